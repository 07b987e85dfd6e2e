"""The tab that checks the report of a randomised trial: the project's second model, offline like the first."""

import importlib
import importlib.util
import json
import sys
from html import escape
from pathlib import Path
from types import ModuleType
from typing import Any

import gradio as gr
from huggingface_hub import snapshot_download

from api import checked, paths_of
from exports import new_folder
from loading import Source
from service import Service
from texts import say
from uploads import UploadError

MAX_BYTES = 50 * 2**20
SAMPLE = Path(__file__).parent / "sample_trial.md"  # of an invented trial


def load_checker(source: Source) -> tuple[ModuleType, ModuleType, Path | None] | None:
    """The modules `check` and `render` and their checkpoint: of the package, else of the report model's repository, else
    None."""
    try:
        check = importlib.import_module("ctfm.reporting.check")
        return check, importlib.import_module("ctfm.reporting.render"), None
    except ImportError:
        if source.report is None:
            return None
    folder = Path(snapshot_download(source.report, revision=source.report_revision))
    found = importlib.util.spec_from_file_location(
        "trialreport", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if found is None or found.loader is None or not (folder / "check.py").is_file():
        return None
    package = importlib.util.module_from_spec(found)
    sys.modules["trialreport"] = package
    found.loader.exec_module(package)
    return importlib.import_module("trialreport.check"), importlib.import_module("trialreport.render"), folder


def check_report(
    service: Service, checker: Any, paths: list[str], protocol: bool, keep: bool = False
) -> tuple[str, dict]:
    """Page and JSON of a report; the upload is deleted, unless it is a file of the Space (`keep`).

    Raises:
        UploadError: it cannot be read as an English report.
    """
    check, render, checkpoint = checker
    upload = service.receive(paths, keep)
    try:
        if len(paths) != 1:
            raise UploadError("error_one_file", str(len(paths)))
        (file,) = upload.folder.iterdir()
        if file.stat().st_size > MAX_BYTES:
            raise UploadError("error_too_large", f"{MAX_BYTES >> 20} MiB")
        # An unticked box leaves it to the text whether it is a protocol.
        report = check.check(file, protocol or None, *([checkpoint] if checkpoint else []))
        facts = render.as_dict(report) | {"file": f"report{file.suffix.lower()}"}
        return render.html(report), facts
    except check.DocumentError as error:
        raise UploadError("error_report", str(error).replace(Path(paths[0]).name, "report")) from None
    finally:
        upload.delete()


def add_report_tab(service: Service, checker: Any, language: gr.Radio, limit: dict) -> list[tuple[Any, str, str]]:
    """Builds the tab's content; returns what the language changes."""
    banner = gr.HTML(
        f'<div class="notice report" role="note">{say("en", "report_notice")}</div>', apply_default_css=False
    )
    guide = gr.Markdown(say("en", "report_help"))
    if checker is None:
        absent = gr.Markdown(say("en", "report_absent"))
        return [
            (banner, "report", "report_notice"),
            (guide, "value", "report_help"),
            (absent, "value", "report_absent"),
        ]
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            file = gr.File(label=say("en", "report_file"), elem_id="report-file", height=140)
            protocol = gr.Checkbox(label=say("en", "report_protocol"))
            button = gr.Button(say("en", "report_check"), variant="primary", elem_id="report-check")
            sample = gr.Button(say("en", "report_sample"), elem_id="report-sample")
            page = gr.DownloadButton(say("en", "report_page"), visible=False)
            facts = gr.DownloadButton(say("en", "report_json"), visible=False)
        with gr.Column(scale=3):
            shown = gr.HTML(elem_id="report-shown")

    # `tongue` is for Site, which says what went wrong in the language among a call's inputs.
    def check(path: str | None, is_protocol: bool, tongue: str) -> tuple:
        return show(*check_report(service, checker, paths_of(path), is_protocol))

    def check_sample(tongue: str) -> tuple:
        return show(*check_report(service, checker, [str(SAMPLE)], False, keep=True))

    def show(html: str, result: dict) -> tuple:
        folder = new_folder(service.made)
        (folder / "report.html").write_text(html, encoding="utf-8")
        (folder / "report.json").write_text(json.dumps(result, indent=1, ensure_ascii=False), encoding="utf-8")
        frame = f'<iframe title="report" sandbox="allow-scripts" srcdoc="{escape(html, quote=True)}"></iframe>'
        return (
            None,
            frame,
            gr.update(value=str(folder / "report.html"), visible=True),
            gr.update(value=str(folder / "report.json"), visible=True),
        )

    outputs = [file, shown, page, facts]
    settings: dict[str, Any] = {"show_progress_on": shown, "api_visibility": "private", **limit}
    button.click(check, [file, protocol, language], outputs, **settings)
    sample.click(check_sample, [language], outputs, **settings)

    def report_check(report: gr.FileData, is_protocol: bool = False) -> dict:
        """What the report of a randomised trial leaves out, against CONSORT 2010 or, for a protocol, SPIRIT 2013.

        Args:
            report: a .docx, .pdf, .md, .txt or JATS .xml file in English.
            is_protocol: check a protocol against SPIRIT 2013.
        """
        return check_report(service, checker, paths_of(report), is_protocol)[1]

    gr.api(checked(report_check), api_name="report_check", **limit)
    return [
        (guide, "value", "report_help"),
        (file, "label", "report_file"),
        (protocol, "label", "report_protocol"),
        (button, "value", "report_check"),
        (sample, "value", "report_sample"),
        (banner, "report", "report_notice"),
        (page, "label", "report_page"),
        (facts, "label", "report_json"),
    ]
