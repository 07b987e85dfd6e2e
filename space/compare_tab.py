"""The tab for two scans of a person: linked viewers, and what changed in the findings."""

# pyright: reportOptionalMemberAccess=false, reportArgumentType=false, reportCallIssue=false
# gradio.Progress is called with fewer arguments than it declares, and a finding that was clicked has a place.

from pathlib import Path
from typing import Any

import gradio as gr

from analysis import Change, compare
from api import errors_told, paths_of
from exports import write_overlay, write_view
from service import Service
from texts import name_finding, say
from uploads import Scan
from views import WAIT_FOR_VIEWER, changes_table, viewer_state

SHOW_BOTH = f"""async (prior, current) => {{
  {WAIT_FOR_VIEWER}
  await window.ctfmShow('viewer-prior', prior);
  await window.ctfmShow('viewer-current', current);
  window.ctfmLink('viewer-prior', 'viewer-current');
}}"""


def add_compare_tab(
    service: Service, examples: dict[str, Path], language: gr.Radio, limit: dict
) -> tuple[list[tuple[Any, str, str]], list[gr.JSON]]:
    """Builds the tab; returns what the language changes, and the states of its two viewers."""
    states = [gr.JSON(viewer_state("en"), visible=False) for _ in range(2)]
    with gr.Row():
        prior = gr.File(label=say("en", "prior"), file_count="multiple", height=130, elem_id="prior")
        current = gr.File(label=say("en", "current"), file_count="multiple", height=130, elem_id="current")
    with gr.Row():
        button = gr.Button(say("en", "compare"), variant="primary", elem_id="compare")
        example = gr.Button(say("en", "example_pair"), visible=len(examples) == 2, elem_id="example-pair")
    with gr.Row():
        with gr.Column(min_width=300):
            prior_title = gr.Markdown(f"### {say('en', 'prior')}")
            gr.HTML('<div id="viewer-prior" class="ctfm-viewer"></div>', js_on_load=None, apply_default_css=False)
        with gr.Column(min_width=300):
            current_title = gr.Markdown(f"### {say('en', 'current')}")
            gr.HTML('<div id="viewer-current" class="ctfm-viewer"></div>', js_on_load=None, apply_default_css=False)
    changes = gr.HTML(elem_id="changes", apply_default_css=False)

    def compare_paths(first: list[str], second: list[str], tongue: str, progress: gr.Progress, keep: bool) -> tuple:
        scans, analyses = [], []
        for part, paths in enumerate((first, second)):
            scan, analysis = service.open(
                paths,
                report=lambda share, stage, part=part: progress((part + share) / 2, desc=say(tongue, stage)),
                keep=keep,
            )
            scans.append(scan)
            analyses.append(analysis)
        found = compare(analyses[0].findings, analyses[1].findings)
        shown = [write_view(scan, service.work) for scan in scans]
        cosine = float(analyses[0].embedding @ analyses[1].embedding)
        return *point_at(tongue, found[0], shown, scans), changes_table(tongue, found, cosine)

    def point_at(tongue: str, change: Change, shown: list[dict], scans: list[Scan]) -> list[dict]:
        """Both viewers at the largest change, and its map over the scan that shows more of the finding."""
        if change.kind in ("same", "unclear"):
            return [viewer_state(tongue, view) for view in shown]
        place = max(change.prior, change.current, key=lambda finding: finding.order).place
        which = int(change.current.order > change.prior.order)
        scan, name = scans[which], name_finding(tongue, change.label)
        overlays: list[dict | None] = [None, None]
        overlays[which] = write_overlay(
            scan, scan.analysis.maps[change.label], scan.analysis, service.weights, service.work
        )
        return [
            viewer_state(tongue, view, overlay, name, place.mm) for view, overlay in zip(shown, overlays, strict=True)
        ]

    def compare_uploads(first, second, tongue, progress=gr.Progress()):  # noqa: B008 - how Gradio finds it
        with errors_told(tongue):
            return None, None, *compare_paths(paths_of(first), paths_of(second), tongue, progress, keep=False)

    def compare_examples(tongue, progress=gr.Progress()):  # noqa: B008
        earlier, now = ([str(examples[name])] for name in ("example_prior", "example"))
        with errors_told(tongue):
            return compare_paths(earlier, now, tongue, progress, keep=True)

    settings: dict[str, Any] = {"show_progress_on": changes, "api_visibility": "private", **limit}
    done = (
        button.click(compare_uploads, [prior, current, language], [prior, current, *states, changes], **settings),
        example.click(compare_examples, [language], [*states, changes], **settings),
    )
    for event in done:
        event.success(None, states, None, js=SHOW_BOTH, api_visibility="private")
    words = [
        (prior, "label", "prior"),
        (current, "label", "current"),
        (button, "value", "compare"),
        (example, "value", "example_pair"),
        (prior_title, "title", "prior"),
        (current_title, "title", "current"),
    ]
    return words, states
