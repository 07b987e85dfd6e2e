"""Report -> for every checklist item: reported, partly reported, not found or not applicable, with its evidence.

    ctfm report-check FILE [--protocol] [--html out.html] [--markdown out.md] [--json out.json] [--csv out.csv]
    ctfm report-check FOLDER [--html PAGES]       every readable file, and which items are most often missing

The checker finds statements. It does not judge whether they are true, and it is wrong as often as the figures beside every
verdict say. Nothing leaves the machine.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from transformers.utils import logging

from . import render
from .check import Report, check, check_folder, summarise
from .compare import compare_outcomes
from .documents import READERS, DocumentError

WRITERS: dict[str, Callable[[Report], str]] = {
    "html": render.html,
    "markdown": render.markdown,
    "json": render.to_json,
    "csv": render.to_csv,
}
ENDINGS = {"html": ".html", "markdown": ".md", "json": ".json", "csv": ".csv", "checklist": ".docx"}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ctfm report-check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", type=Path, help=f"a report ({', '.join(READERS)}), or a folder of reports")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--protocol", action="store_true", default=None, help="a protocol: check against SPIRIT 2013")
    kind.add_argument(
        "--report",
        dest="protocol",
        action="store_false",
        default=None,
        help="a whole report: check against CONSORT 2010; without either, the text decides",
    )
    parser.add_argument("--trial", action="store_true", default=None, help="a randomised trial, whatever the text says")
    parser.add_argument(
        "--compare", type=Path, metavar="PROTOCOL", help="compare the report's outcomes with its protocol's"
    )
    parser.add_argument("--html", type=Path, help="write a page in which a click on an item shows its sentences")
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--json", type=Path, help="report.schema.json describes it")
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--checklist", type=Path, help="write the checklist to fill in and submit, as .docx or .md")
    parser.add_argument("--numbering", choices=("2010", "2025"), default="2010", help="numbers shown for CONSORT items")
    parser.add_argument("--all", action="store_true", help="show the items that are reported, too")
    parser.add_argument("--no-color", action="store_true")
    parser.epilog = (
        "For a folder, --html, --markdown, --json, --csv and --checklist name folders: a file for every report."
    )
    return parser


def write_outputs(report: Report, outputs: dict[str, Path]) -> None:
    """`outputs`: format -> file. An input is never overwritten."""
    for name, out in outputs.items():
        if out.exists() and out.samefile(report.document.path):
            raise DocumentError(f"{out} is the report itself; give --{name} another name.")
        if name == "checklist":
            render.write_checklist(report, out)
        else:
            out.write_text(WRITERS[name](report), encoding="utf-8")


def check_many(options: argparse.Namespace, outputs: dict[str, Path]) -> int:
    reports, problems = check_folder(options.path, options.protocol, options.trial)
    for problem in problems:
        print(f"ctfm report-check: {problem}", file=sys.stderr)
    if not reports:
        print(f"ctfm report-check: {options.path} holds no readable report.", file=sys.stderr)
        return 2
    if options.numbering == "2025":
        reports = [_renumbered(report) for report in reports]
    for folder in outputs.values():
        folder.mkdir(parents=True, exist_ok=True)
    for report in reports:
        name = Path(report.document.path).name  # with its ending: draft.md and draft.pdf may lie side by side
        write_outputs(report, {key: folder / f"{name}{ENDINGS[key]}" for key, folder in outputs.items()})
    for report in reports:
        if not report.study.is_trial:
            print(f"{Path(report.document.path).name}: {report.study.description}", file=sys.stderr)
    for checklist in dict.fromkeys(report.checklist for report in reports if report.study.is_trial):
        own = [report for report in reports if report.study.is_trial and report.checklist == checklist]
        print(f"{checklist}: {render.summary_table(summarise(own), len(own))}")
    return 0


def _renumbered(report: Report) -> Report:
    return render.renumber(report) if report.checklist == "CONSORT 2010" else report


def check_one(options: argparse.Namespace, outputs: dict[str, Path]) -> int:
    protocol = False if options.compare is not None else options.protocol
    original = check(options.path, protocol, is_trial=options.trial)
    report = _renumbered(original) if options.numbering == "2025" else original
    colours = not options.no_color and sys.stdout.isatty()
    print(render.terminal_table(report, colours=colours, everything=options.all))
    write_outputs(report, outputs)
    if options.compare is not None and original.study.is_trial:
        print(render.comparison(compare_outcomes(check(options.compare, protocol=True, is_trial=True), original)))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """`ctfm report-check`. 0: done, 2: a file could not be read or written."""
    parser = build_parser()
    options = parser.parse_args(argv)
    if options.compare is not None and (options.protocol or options.path.is_dir()):
        parser.error("--compare takes one results report and its protocol: ctfm report-check REPORT --compare PROTOCOL")
    if options.numbering == "2025" and options.protocol:
        parser.error("--numbering is of CONSORT; a protocol is checked against SPIRIT 2013.")
    logging.disable_progress_bar()  # of the weights, which load in a second
    outputs = {name: getattr(options, name) for name in ENDINGS if getattr(options, name) is not None}
    try:
        return check_many(options, outputs) if options.path.is_dir() else check_one(options, outputs)
    except (DocumentError, OSError) as error:
        print(f"ctfm report-check: {error}", file=sys.stderr)
        return 2
