"""The tab for one scan: input, read-out, viewer, findings, question, similar scans, features, downloads; and their events."""

# pyright: reportOptionalMemberAccess=false, reportArgumentType=false, reportCallIssue=false
# gradio.Progress is called with fewer arguments than it declares, and a finding that was clicked has a place.

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from torch import Tensor

from api import errors_told, paths_of
from exports import write_findings, write_map, write_overlay, write_view
from service import Service
from texts import name_finding, say
from uploads import Upload, UploadError
from views import WAIT_FOR_VIEWER, answer_to, describe_series, findings_table, readout, similar_scans, viewer_state

SHOW = f"async (state) => {{ {WAIT_FOR_VIEWER} await window.ctfmShow('viewer', state); }}"
CHOOSE = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-finding]');
  if (!button) return;
  for (const other of element.querySelectorAll('button[data-finding]')) {
    other.setAttribute('aria-pressed', String(other === button));
    other.closest('tr').classList.toggle('chosen', other === button);
  }
  trigger('click', {finding: button.dataset.finding});
});
"""


@dataclass(kw_only=True)
class Session:
    """What one open page is looking at. The scan itself is in the service's memory, under `key`."""

    upload: Upload | None = None
    key: str | None = None
    was_seen: bool = False
    view: dict | None = None
    overlay: dict | None = None
    overlay_name: str = ""
    cells: Tensor | None = None
    mm: tuple[float, float, float] | None = None
    finding: str | None = None

    def forget(self) -> None:
        if self.upload is not None:
            self.upload.delete()


def forget(session: Session | None) -> None:
    if session is not None:
        session.forget()


@dataclass(kw_only=True)
class ScanTab:
    """The components that events speak of; `words` is what the language changes: component, property, key."""

    session: gr.State
    state: gr.JSON
    files: gr.File
    folder: gr.File
    examples: list[tuple[gr.Button, Path]]
    readout: gr.HTML
    series: gr.Dropdown
    analyse: gr.Button
    findings: gr.HTML
    question: gr.Textbox
    ask: gr.Button
    answer: gr.HTML
    similar: gr.HTML
    components: gr.Image
    draw: gr.Button
    downloads: list[gr.DownloadButton]
    make_map: gr.Button
    map_file: gr.DownloadButton
    words: list[tuple[Any, str, str]]

    @property
    def results(self) -> list[Any]:
        """What a new scan empties."""
        return [self.findings, self.answer, self.similar, self.components, *self.downloads, self.map_file]


def build_scan_tab(examples: Sequence[tuple[str, Path]]) -> ScanTab:
    session = gr.State(None, time_to_live=3600, delete_callback=forget)
    state = gr.JSON(viewer_state("en"), visible=False)
    with gr.Row(elem_classes="scan"):
        with gr.Column(scale=2, min_width=300):
            files = gr.File(label=say("en", "files"), file_count="multiple", elem_id="files", height=180)
            folder = gr.File(label=say("en", "folder"), file_count="directory", elem_id="folder", height=150)
            limits = gr.Markdown(say("en", "limits"), elem_classes="quiet")
            guide = gr.Markdown(say("en", "examples"), elem_classes="quiet", visible=bool(examples))
            with gr.Row(visible=bool(examples)):
                buttons = [(gr.Button(say("en", key), size="sm", elem_id=key), key, path) for key, path in examples]
            series = gr.Dropdown([], label=say("en", "series"), visible=False, elem_id="series", interactive=True)
            shown = gr.HTML(readout("en", None), elem_id="readout", apply_default_css=False)
            analyse = gr.Button(say("en", "analyse"), variant="primary", interactive=False, elem_id="analyse")
        with gr.Column(scale=5, min_width=320):
            gr.HTML('<div id="viewer" class="ctfm-viewer"></div>', js_on_load=None, apply_default_css=False)
    with gr.Row(elem_classes="answers"):
        with gr.Column(scale=7, min_width=320):
            findings = gr.HTML(js_on_load=CHOOSE, elem_id="findings", apply_default_css=False)
            with gr.Row(equal_height=True, elem_classes="ask"):
                question = gr.Textbox(
                    label=say("en", "query"),
                    placeholder=say("en", "query_hint"),
                    max_lines=1,
                    elem_id="question",
                    scale=4,
                )
                ask = gr.Button(say("en", "ask"), elem_id="ask", scale=1, min_width=100)
            answer = gr.HTML(elem_id="answer", apply_default_css=False)
        with gr.Column(scale=3, min_width=300):
            similar_title = gr.Markdown(f"### {say('en', 'similar')}")
            similar = gr.HTML(elem_id="similar", apply_default_css=False)
            downloads_title = gr.Markdown(f"### {say('en', 'downloads')}")
            with gr.Row():
                names = ("download_json", "download_csv", "download_embedding")
                downloads = [
                    gr.DownloadButton(say("en", key), interactive=False, size="sm", elem_id=key) for key in names
                ]
            with gr.Row():
                make_map = gr.Button(say("en", "make_map"), size="sm", elem_id="make-map")
                map_file = gr.DownloadButton(
                    say("en", "download_map"), interactive=False, size="sm", elem_id="map-file"
                )
    components_title = gr.Markdown(f"### {say('en', 'components')}")
    components_help = gr.Markdown(say("en", "components_help"), elem_classes="quiet")
    draw = gr.Button(say("en", "draw_components"), size="sm", elem_id="draw")
    components = gr.Image(
        show_label=False, interactive=False, elem_id="components", format="png", buttons=["download", "fullscreen"],
        alt_text=say("en", "components_help"), visible=False,
    )  # fmt: skip
    words = [
        (files, "label", "files"),
        (folder, "label", "folder"),
        (limits, "value", "limits"),
        (guide, "value", "examples"),
        *((button, "value", key) for button, key, _ in buttons),
        (series, "label", "series"),
        (analyse, "value", "analyse"),
        (question, "label", "query"),
        (question, "placeholder", "query_hint"),
        (ask, "value", "ask"),
        (similar_title, "title", "similar"),
        (downloads_title, "title", "downloads"),
        *((button, "label", key) for button, key in zip(downloads, names, strict=True)),
        (make_map, "value", "make_map"),
        (map_file, "label", "download_map"),
        (components_title, "title", "components"),
        (components_help, "value", "components_help"),
        (components, "alt_text", "components_help"),
        (draw, "value", "draw_components"),
    ]
    return ScanTab(
        session=session,
        state=state,
        files=files,
        folder=folder,
        examples=[(button, path) for button, _, path in buttons],
        readout=shown,
        series=series,
        analyse=analyse,
        findings=findings,
        question=question,
        ask=ask,
        answer=answer,
        similar=similar,
        components=components,
        draw=draw,
        downloads=downloads,
        make_map=make_map,
        map_file=map_file,
        words=words,
    )


# ---- what the events do ----


class ScanEvents:
    """Handlers. Each takes the page's session and language, and returns what the components become."""

    def __init__(self, service: Service) -> None:
        self.service = service

    def open(
        self, files: list[str] | None, session: Session | None, language: str, progress: gr.Progress, keep: bool = False
    ) -> tuple:
        """A new upload, or an example of the Space's own (`keep`): session, read-out, series, button, then empty results."""
        forget(session)
        progress(0.1, desc=say(language, "stage_receive"))
        with errors_told(language):
            upload = self.service.receive(files if keep and files else paths_of(files), keep)
            return self.read(Session(upload=upload), None, language, progress)

    def read(self, session: Session, number: int | None, language: str, progress: gr.Progress) -> tuple:
        progress(0.3, desc=say(language, "stage_read"))
        upload = session.upload
        if upload is None:
            raise UploadError("error_no_scan")
        scan, session.was_seen = self.service.read(upload, number)
        session.key = None if scan is None else scan.key
        session.view = session.overlay = session.cells = session.mm = session.finding = None
        session.overlay_name = ""
        choices = [(describe_series(language, series), index) for index, series in enumerate(upload.series)]
        if scan is None:
            gr.Info(say(language, "choose_series"), duration=10)
        shown = (
            readout(language, scan, session.was_seen)
            if scan is not None
            else f'<p class="choose" role="alert">{say(language, "choose_series")}</p>'
        )
        empty = gr.update(value=None, interactive=False)
        return (
            session,
            shown,
            gr.update(choices=choices, value=number, visible=bool(choices)),
            gr.update(interactive=scan is not None),
            *("", "", ""),  # findings, answer, similar
            gr.update(value=None, visible=False),
            *(empty for _ in range(4)),
        )

    def choose_series(self, number: int | None, session: Session, language: str, progress: gr.Progress) -> tuple:
        with errors_told(language):
            if session is None or session.upload is None:
                raise UploadError("error_no_scan")
            return self.read(session, number, language, progress)

    def view(self, session: Session, language: str, progress: gr.Progress) -> tuple[dict, Session]:
        """The scan for the viewer; nothing while a series has to be chosen."""
        if session.key is None:
            return viewer_state(language), session
        progress(0.5, desc=say(language, "stage_view"))
        with errors_told(language):
            session.view = write_view(self.service.scan(session.key), self.service.work)
        return self.state(session, language), session

    def analyse(self, session: Session | None, language: str, progress: gr.Progress) -> tuple:
        """Findings, similar scans, downloads, and the map of the first finding that is not absent."""
        with errors_told(language):
            if session is None:
                raise UploadError("error_no_scan")
            scan = self.service.scan(session.key)
            analysis = self.service.analyser.analyse(
                scan, lambda share, stage: progress(share, desc=say(language, stage))
            )
            first = analysis.findings[0]
            if first.verdict != "absent":
                self.point(session, first.label)
            similar = self.service.analyser.find_similar(analysis)
            paths = write_findings(scan, self.service.weights, self.service.work)
        size = len(self.service.analyser.gallery)
        return (
            session,
            findings_table(language, analysis.findings, self.service.weights, analysis.seconds, session.finding),
            similar_scans(language, similar, size),
            self.state(session, language),
            *(gr.update(value=path, interactive=True) for path in paths),
        )

    def point(self, session: Session, label: str) -> None:
        """Puts a finding's map into the viewer and the crosshair on its strongest place."""
        scan, analysis = self.service.analysed(session.key)
        found = {finding.label: finding for finding in analysis.findings}.get(label)
        if found is None:
            raise UploadError("error_no_such_finding")
        session.cells, session.finding, session.mm = analysis.maps[label], label, found.place.mm
        session.overlay = write_overlay(scan, session.cells, analysis, self.service.weights, self.service.work)
        session.overlay_name = label

    def choose(self, session: Session | None, language: str, event: gr.EventData) -> tuple:
        """A finding was clicked."""
        with errors_told(language):
            if session is None:
                raise UploadError("error_no_scan")
            self.point(session, str(event.finding))
        return session, self.state(session, language), gr.update(value=None, interactive=False)

    def ask(self, question: str, session: Session | None, language: str) -> tuple:
        """A sentence: its similarity, and its map in the viewer."""
        with errors_told(language):
            if session is None:
                raise UploadError("error_no_scan")
            scan, analysis = self.service.analysed(session.key)
            similarity, cells, place = self.service.analyser.ask(analysis, question)
            session.cells, session.mm, session.finding = cells, place.mm, None
            session.overlay = write_overlay(scan, cells, analysis, self.service.weights, self.service.work)
            session.overlay_name = " ".join(question.split())[:80]
        shown = answer_to(language, session.overlay_name, similarity, place)
        return session, shown, self.state(session, language), gr.update(value=None, interactive=False)

    def draw(self, session: Session | None, language: str, progress: gr.Progress) -> Any:
        with errors_told(language):
            scan, _ = self.service.analysed(session.key if session else None)
            progress(0.3, desc=say(language, "stage_draw"))
            return gr.update(value=self.service.analyser.draw_components(scan), visible=True)

    def make_map(self, session: Session | None, language: str, progress: gr.Progress) -> Any:
        with errors_told(language):
            scan, _ = self.service.analysed(session.key if session else None)
            if session is None or session.cells is None:
                raise UploadError("error_no_map")
            progress(0.3, desc=say(language, "stage_write"))
            return gr.update(
                value=write_map(scan, session.cells, self.service.weights, self.service.work), interactive=True
            )

    def state(self, session: Session | None, language: str) -> dict:
        if session is None or session.view is None:
            return viewer_state(language)
        name = name_finding(language, session.overlay_name)
        return viewer_state(language, session.view, session.overlay, name, session.mm)

    def translate(self, session: Session | None, language: str) -> tuple:
        """Read-out, findings, similar scans and viewer in another language; the answer to a question stays as it is."""
        scan = self.service.cache.get(session.key if session else None)
        if session is None or scan is None:
            return readout(language, None), "", "", viewer_state(language)
        table, similar = "", ""
        if scan.analysis is not None and session.view is not None:
            analysis = scan.analysis
            table = findings_table(language, analysis.findings, self.service.weights, analysis.seconds, session.finding)
            near = self.service.analyser.find_similar(analysis)
            similar = similar_scans(language, near, len(self.service.analyser.gallery))
        return readout(language, scan, session.was_seen), table, similar, self.state(session, language)


# ---- which event does what ----


def connect_scan_tab(tab: ScanTab, service: Service, language: gr.Radio, compute: dict, read: dict) -> ScanEvents:
    events = ScanEvents(service)
    private: dict[str, Any] = {"api_visibility": "private"}
    opened = [tab.session, tab.readout, tab.series, tab.analyse, *tab.results]

    def open_files(paths, session, tongue, progress=gr.Progress()):  # noqa: B008 - how Gradio finds it
        return (None, *events.open(paths, session, tongue, progress))

    def choose_series(number, session, tongue, progress=gr.Progress()):  # noqa: B008
        return events.choose_series(number, session, tongue, progress)

    def view(session, tongue, progress=gr.Progress()):  # noqa: B008
        return events.view(session, tongue, progress)

    def analyse(session, tongue, progress=gr.Progress()):  # noqa: B008
        return events.analyse(session, tongue, progress)

    def draw(session, tongue, progress=gr.Progress()):  # noqa: B008
        return events.draw(session, tongue, progress)

    def make_map(session, tongue, progress=gr.Progress()):  # noqa: B008
        return events.make_map(session, tongue, progress)

    def show(event: Any) -> Any:
        return event.success(None, [tab.state], None, js=SHOW, **private)

    def then_view(event: Any) -> Any:
        return show(event.success(
            view, [tab.session, language], [tab.state, tab.session], show_progress_on=tab.readout, **read, **private
        ))  # fmt: skip

    def analysis_of(start: Callable) -> Any:
        return start(
            analyse, [tab.session, language], [tab.session, tab.findings, tab.similar, tab.state, *tab.downloads],
            show_progress_on=tab.findings, **compute, **private,
        )  # fmt: skip

    for box in (tab.files, tab.folder):
        opening = box.upload(
            open_files, [box, tab.session, language], [box, *opened], show_progress_on=tab.readout, **read, **private
        )
        # What was refused leaves the box, too: it would be sent again beside the next upload.
        opening.failure(lambda: None, None, box, show_progress="hidden", **private)
        then_view(opening)
    for button, path in tab.examples:

        def open_example(session, tongue, progress=gr.Progress(), path=path):  # noqa: B008
            return events.open([str(path)], session, tongue, progress, keep=True)

        example = button.click(
            open_example, [tab.session, language], opened, show_progress_on=tab.readout, **read, **private
        )
        then_view(analysis_of(example.success))
    then_view(tab.series.input(
        choose_series, [tab.series, tab.session, language], opened, show_progress_on=tab.readout, **read, **private
    ))  # fmt: skip
    show(analysis_of(tab.analyse.click))
    show(tab.findings.click(
        events.choose, [tab.session, language], [tab.session, tab.state, tab.map_file], show_progress="hidden", **private
    ))  # fmt: skip
    for start in (tab.ask.click, tab.question.submit):
        show(start(
            events.ask, [tab.question, tab.session, language], [tab.session, tab.answer, tab.state, tab.map_file],
            show_progress_on=tab.answer, **private,
        ))  # fmt: skip
    tab.draw.click(draw, [tab.session, language], tab.components, **compute, **private)
    tab.make_map.click(make_map, [tab.session, language], tab.map_file, **compute, **private)
    return events
