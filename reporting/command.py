"""Report -> for every checklist item: reported, partly reported, not found or not applicable, with its evidence.

    ctfm report-check FILE [--html out.html] [--word commented.docx] [--checklist filled.docx] [--questions out.txt]
    ctfm report-check FOLDER [--html PAGES] [--table editor.csv]    every readable file, and which items are most often missing

The checker finds statements. It does not judge whether they are true, and it is wrong as often as the figures beside every
verdict say. Nothing leaves the machine.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from transformers.utils import logging

from . import render
from .annotate import annotate
from .check import Report, check, check_folder, summarise
from .checklist import checklist_keys
from .compare import compare_outcomes
from .documents import READERS, DocumentError
from .submission import check_claims, questions, write_checklist

WRITERS: dict[str, Callable[[Report], str]] = {
    "html": render.html,
    "markdown": render.markdown,
    "json": render.to_json,
    "csv": render.to_csv,
    "questions": questions,
}
FILES: dict[str, Callable[[Report, Path], None]] = {"checklist": write_checklist, "word": annotate}
ENDINGS = {
    "html": ".html", "markdown": ".md", "json": ".json", "csv": ".csv", "questions": ".txt", "checklist": ".docx",
    "word": ".docx",
}  # fmt: skip


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
    parser.add_argument(
        "--word", type=Path, help="write the report's Word file with a comment at each verdict's sentence"
    )
    parser.add_argument("--questions", type=Path, help="write questions to the author, to be edited and sent")
    parser.add_argument(
        "--claims",
        type=Path,
        metavar="CHECKLIST",
        help="check the page numbers of a filled checklist (.docx, .csv, .md)",
    )
    parser.add_argument("--table", type=Path, help="of a folder: write a table with a row for every report, as .csv")
    parser.add_argument(
        "--list",
        choices=checklist_keys(),
        help="the checklist, whatever the text calls for; an extension follows CONSORT 2010",
    )
    parser.add_argument("--all", action="store_true", help="show the items that are reported, too")
    parser.add_argument("--no-color", action="store_true")
    parser.epilog = (
        "For a folder, --html, --markdown, --json, --csv, --questions, --checklist and --word name folders: "
        "a file for every report."
    )
    return parser


def write_outputs(report: Report, outputs: dict[str, Path]) -> None:
    """`outputs`: format -> file. An input is never overwritten."""
    for name, out in outputs.items():
        if out.exists() and out.samefile(report.document.path):
            raise DocumentError(f"{out} is the report itself; give --{name} another name.")
        if name in FILES:
            FILES[name](report, out)
        else:
            out.write_text(WRITERS[name](report), encoding="utf-8")


def check_many(options: argparse.Namespace, outputs: dict[str, Path]) -> int:
    reports, problems = check_folder(options.path, options.protocol, options.trial, options.list)
    for problem in problems:
        print(f"ctfm report-check: {problem}", file=sys.stderr)
    if not reports:
        print(f"ctfm report-check: {options.path} holds no readable report.", file=sys.stderr)
        return 2
    for folder in outputs.values():
        folder.mkdir(parents=True, exist_ok=True)
    for report in reports:
        name = Path(report.document.path).name  # with its ending: draft.md and draft.pdf may lie side by side
        own = {key: folder for key, folder in outputs.items() if key != "word" or name.lower().endswith(".docx")}
        write_outputs(report, {key: folder / f"{name}{ENDINGS[key]}" for key, folder in own.items()})
    if options.table is not None:
        options.table.write_text(render.editors_csv(reports), encoding="utf-8")
    for report in reports:
        if not report.study.is_trial:
            print(f"{Path(report.document.path).name}: {report.study.description}", file=sys.stderr)
    for checklist in dict.fromkeys(report.checklist for report in reports if report.study.is_trial):
        own = [report for report in reports if report.study.is_trial and report.checklist == checklist]
        print(f"{checklist}: {render.summary_table(summarise(own), len(own))}")
    print(render.editors_table(reports))
    return 0


def check_one(options: argparse.Namespace, outputs: dict[str, Path]) -> int:
    protocol = False if options.compare is not None else options.protocol
    report = check(options.path, protocol, is_trial=options.trial, checklist=options.list)
    colours = not options.no_color and sys.stdout.isatty()
    print(render.terminal_table(report, colours=colours, everything=options.all))
    write_outputs(report, outputs)
    if options.claims is not None and report.study.is_trial:
        print(render.claims_table(check_claims(report, options.claims)))
    if options.compare is not None and report.study.is_trial:
        print(render.comparison(compare_outcomes(check(options.compare, protocol=True, is_trial=True), report)))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """`ctfm report-check`. 0: done, 2: a file could not be read or written."""
    parser = build_parser()
    options = parser.parse_args(argv)
    if options.compare is not None and (options.protocol or options.path.is_dir()):
        parser.error("--compare takes one results report and its protocol: ctfm report-check REPORT --compare PROTOCOL")
    if options.compare is not None and options.list not in (None, "consort"):
        parser.error("--compare reads outcomes as CONSORT 2010 numbers them; leave out --list.")
    if options.claims is not None and options.path.is_dir():
        parser.error("--claims takes one report: ctfm report-check REPORT.pdf --claims CHECKLIST.docx")
    logging.disable_progress_bar()  # of the weights, which load in a second
    outputs = {name: getattr(options, name) for name in ENDINGS if getattr(options, name) is not None}
    try:
        return check_many(options, outputs) if options.path.is_dir() else check_one(options, outputs)
    except (
        ValueError,
        OSError,
    ) as error:  # a DocumentError is a ValueError, and so is a checklist for another kind of text
        print(f"ctfm report-check: {error}", file=sys.stderr)
        return 2
