"""The Space: drop in a CT scan and see what the model sees in it.

    python space/app.py [--port 7860]      (or `make demo`)

This file is the page around its tabs, and the server. What the Space needs beside its code (the viewer's script, examples,
gallery) `make space` brings.
"""

import argparse
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from types import FrameType
from typing import Any

# Read when torch and numpy are imported: on busy cores, threads that wait for each other cost more than they bring.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported; nothing is reported anywhere

import gradio as gr

from api import add_api
from cases import load_cases
from compare_tab import SHOW_BOTH, Comparison, add_compare_tab, translate_comparison
from hosting import Calls, hosting_routes
from loading import find_source, load_weights
from report_tab import add_report_tab, load_checker
from scan_tab import SHOW, Page, build_scan_tab, connect_scan_tab, restore_scan
from service import Service
from serving import Site, app_settings
from texts import LANGUAGES, say
from views import notice

HERE = Path(__file__).parent
STATIC, EXAMPLES, GALLERY = HERE / "static", HERE / "examples", HERE / "gallery"
QUEUE_SIZE = 32
COMPUTE: dict[str, Any] = {"concurrency_id": "compute", "concurrency_limit": 1}  # two cores: one pass at a time
READ: dict[str, Any] = {"concurrency_id": "read", "concurrency_limit": 2}


def build(service: Service, checker: Any, calls: Calls) -> gr.Blocks:
    """The page. `checker` is the trial-report model, None where there is none; `calls` counts what is done."""
    cases = load_cases(EXAMPLES)
    pair = {case.key: case for case in cases if case.key in ("earlier", "effusion")}
    with Site(title="CTFM", analytics_enabled=False) as demo:
        demo.calls = calls
        with gr.Row(elem_classes="head"):
            title = gr.Markdown(f"# {say('en', 'title')}", elem_classes="title")
            language = gr.Radio(
                [(name, code) for code, name in LANGUAGES.items()], value="en", label=say("en", "language"),
                elem_id="language", min_width=290, scale=0, container=False,
            )  # fmt: skip
        demo.language = language
        with gr.Tabs():
            with gr.Tab(say("en", "tab_scan"), id="scan") as first:
                banner = gr.HTML(notice("en", service.weights), elem_id="notice", apply_default_css=False)
                tab = build_scan_tab(cases)
            with gr.Tab(say("en", "tab_compare"), id="compare") as second:
                again = gr.HTML(notice("en", service.weights), apply_default_css=False)
                comparison = add_compare_tab(service, pair, language, COMPUTE)
            with gr.Tab(say("en", "tab_report"), id="report") as third:
                words = add_report_tab(service, checker, language, COMPUTE)
            with gr.Tab(say("en", "tab_about"), id="about") as fourth:
                about = gr.Markdown(describe("en"), elem_id="about")
        events = connect_scan_tab(tab, service, cases, language, COMPUTE, READ)
        add_api(service, COMPUTE)

        words += [*tab.words, *comparison.words]
        words += [(language, "label", "language")]
        words += [(t, "label", f"tab_{key}") for t, key in zip((first, second, third, fourth), TABS, strict=True)]
        changed = {id(component): component for component, _, _ in words}

        def translate(page: Page, compared: Comparison | None, tongue: str) -> tuple:
            updates: dict[int, dict] = {key: {} for key in changed}
            for component, name, key in words:
                updates[id(component)] |= translated_word(name, say(tongue, key))
            told = notice(tongue, service.weights)
            return (
                *(gr.update(**update) for update in updates.values()),
                f"# {say(tongue, 'title')}",
                *(told, told),
                describe(tongue),
                *translate_comparison(compared, tongue),
                *events.translate(page, tongue),
            )

        translated = language.change(
            translate,
            [tab.page, comparison.compared, language],
            [
                *changed.values(), title, banner, again, about, *comparison.states, comparison.changes,
                tab.cases, tab.trouble, tab.series, tab.bar, tab.readout, tab.findings, tab.similar, tab.state,
            ],
            show_progress="hidden",
            api_visibility="private",
        )  # fmt: skip
        started = demo.load(
            preferred_language, tab.known, language, js=SPOKEN, api_visibility="private", show_progress="hidden"
        )
        for event in (started, translated):
            event.success(None, comparison.states, None, js=SHOW_BOTH, api_visibility="private")
        translated.success(None, [tab.state], None, js=SHOW, api_visibility="private")
        restore_scan(tab, events, started, language, COMPUTE, READ)
    return demo


def translated_word(name: str, text: str) -> dict[str, str]:
    """The property of a component that a text of texts.py becomes."""
    if name == "report":
        return {"value": f'<div class="notice report" role="note">{text}</div>'}
    if name == "heading":
        return {"value": f"<h2>{text}</h2>"}
    return {"value": f"## {text}"} if name == "title" else {name: text}


SPOKEN = "() => [sessionStorage.getItem('ctfm-language') || '']"  # as static/viewer.js remembers it
TABS = ("scan", "compare", "report", "about")


def preferred_language(spoken: str, request: gr.Request) -> str:
    """What this tab of the browser spoke before it was loaded again, else the browser's first choice among the languages."""
    if spoken in LANGUAGES:
        return spoken
    for part in request.headers.get("accept-language", "").split(","):
        code = part.strip()[:2].lower()
        if code in LANGUAGES:
            return code
    return "en"


def describe(language: str) -> str:
    """The Space's own card is the documentation of its API; the page shows it whole."""
    card = (HERE / "README.md").read_text(encoding="utf-8")
    body = card.split("---\n", 2)[-1]
    return f"{say(language, 'privacy')}\n\n{say(language, 'full_size')}\n\n{body}"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=int(os.environ.get("GRADIO_SERVER_PORT", "7860")))
    parser.add_argument("--host", default=os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"))
    options = parser.parse_args(arguments)
    source = find_source()
    work = Path(tempfile.mkdtemp(prefix="ctfm-space-"))
    os.environ["GRADIO_TEMP_DIR"] = str(work / "uploads")

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, leave)
    try:
        service = Service(load_weights(source), work, GALLERY)
        calls = Calls()
        served = [service.made, STATIC, GALLERY]
        # Given as they are: otherwise Gradio copies what the Space made to where uploads lie, and serves it from there.
        gr.set_static_paths([*map(str, served)])
        service.start_sweeping()
        demo = build(service, load_checker(source), calls).queue(max_size=QUEUE_SIZE, default_concurrency_limit=4)
        demo.launch(
            server_name=options.host,
            server_port=options.port,
            app_kwargs=app_settings(served, hosting_routes(service, calls)),
            mcp_server=True,
            ssr_mode=False,
            run_history=False,  # Gradio would keep every upload and answer in the browser
            footer_links=["api"],
            head=f'<script src="gradio_api/file={STATIC / "viewer.js"}"></script>',
            css_paths=[STATIC / "style.css"],
            theme=gr.themes.Default(
                primary_hue="sky", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
            ),
            _frontend=False,  # else Gradio asks for its own page, and gives up where a busy machine takes more than 3 s
        )
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
