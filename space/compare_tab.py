"""The tab for two scans of a person: linked viewers, and what changed in the findings."""

# pyright: reportOptionalMemberAccess=false, reportArgumentType=false, reportCallIssue=false
# gradio.Progress is called with fewer arguments than it declares, and a finding that was clicked has a place.

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from analysis import Analysis, Change, Finding, compare
from api import paths_of
from cases import Case
from exports import write_overlay, write_view
from service import Service
from texts import name_finding, say
from uploads import Scan, UploadError
from views import WAIT_FOR_VIEWER, changes_table, viewer_state

SHOW_BOTH = f"""async (prior, current) => {{
  {WAIT_FOR_VIEWER}
  await window.ctfmShow('viewer-prior', prior);
  await window.ctfmShow('viewer-current', current);
  const same = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]];
  window.ctfmLink('viewer-prior', 'viewer-current', [same, same]);
}}"""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What was found of two scans, and what their viewers show."""

    changes: Sequence[Change]
    cosine: float
    views: Sequence[dict]
    overlays: Sequence[dict | None]

    def shown(self, language: str) -> tuple[dict, dict, str]:
        """Both viewers at the largest change, and the table of changes."""
        first = self.changes[0] if self.changes else None
        place = None if first is None or not any(self.overlays) else stronger(first).place
        mm = None if place is None else place.mm
        name = "" if first is None else name_finding(language, first.label)
        prior, current = (
            viewer_state(language, view, overlay, name, mm)
            for view, overlay in zip(self.views, self.overlays, strict=True)
        )
        return prior, current, changes_table(language, self.changes, self.cosine)


@dataclass(frozen=True, kw_only=True)
class CompareTab:
    """`words` is what the language changes: component, property, key; the rest is what a comparison does."""

    compared: gr.State
    states: list[gr.JSON]
    changes: gr.HTML
    words: list[tuple[Any, str, str]]


def add_compare_tab(service: Service, pair: dict[str, Case], language: gr.Radio, limit: dict) -> CompareTab:
    compared = gr.State(None)
    states = [gr.JSON(viewer_state("en"), visible=False) for _ in range(2)]
    with gr.Row():
        prior = gr.File(label=say("en", "prior"), file_count="multiple", height=130, elem_id="prior")
        current = gr.File(label=say("en", "current"), file_count="multiple", height=130, elem_id="current")
    with gr.Row():
        button = gr.Button(say("en", "compare"), variant="primary", elem_id="compare")
        example = gr.Button(say("en", "example_pair"), visible=len(pair) == 2, elem_id="example-pair")
    with gr.Row():
        with gr.Column(min_width=300):
            prior_title = gr.Markdown(f"## {say('en', 'prior')}")
            gr.HTML('<div id="viewer-prior" class="ctfm-viewer"></div>', js_on_load=None, apply_default_css=False)
        with gr.Column(min_width=300):
            current_title = gr.Markdown(f"## {say('en', 'current')}")
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
        for analysis in analyses:
            if not analysis.judged.answers:
                raise UploadError("error_no_answers")
        found = compare(analyses[0].findings, analyses[1].findings)
        comparison = Comparison(
            changes=found,
            cosine=float(analyses[0].embedding @ analyses[1].embedding),
            views=[write_view(scan, service.made) for scan in scans],
            overlays=overlays_of(found[0], scans, analyses) if found else [None, None],
        )
        return comparison, *comparison.shown(tongue)

    def overlays_of(change: Change, scans: list[Scan], analyses: list[Analysis]) -> list[dict | None]:
        """The map of a change over the scan that shows more of the finding."""
        overlays: list[dict | None] = [None, None]
        if change.kind not in ("same", "unclear"):
            which = int(stronger(change) is change.current)
            cells = analyses[which].maps[change.label]
            level, top = service.analyser.map_level(change.label), service.analyser.map_top
            overlays[which] = write_overlay(scans[which], cells, level, top, service.weights, service.made)
        return overlays

    def compare_uploads(first, second, tongue, progress=gr.Progress()):  # noqa: B008 - how Gradio finds it
        return None, None, *compare_paths(paths_of(first), paths_of(second), tongue, progress, keep=False)

    def compare_examples(tongue, progress=gr.Progress()):  # noqa: B008
        earlier, now = ([str(pair[name].wait())] for name in ("earlier", "effusion"))
        return compare_paths(earlier, now, tongue, progress, keep=True)

    settings: dict[str, Any] = {"show_progress_on": changes, "api_visibility": "private", **limit}
    done = (
        button.click(
            compare_uploads, [prior, current, language], [prior, current, compared, *states, changes], **settings
        ),
        example.click(compare_examples, [language], [compared, *states, changes], **settings),
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
    return CompareTab(compared=compared, states=states, changes=changes, words=words)


def stronger(change: Change) -> Finding:
    """That of the two scans with more of the finding."""
    return change.current if change.current.order > change.prior.order else change.prior


def translate_comparison(comparison: Comparison | None, language: str) -> tuple[dict, dict, str]:
    """The tab's results in another language."""
    if comparison is None:
        return viewer_state(language), viewer_state(language), ""
    return comparison.shown(language)
