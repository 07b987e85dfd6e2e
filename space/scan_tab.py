"""The tab for one scan: input, read-out, viewer, findings, question, similar scans, features, downloads; and their events."""

# pyright: reportOptionalMemberAccess=false, reportArgumentType=false, reportCallIssue=false
# gradio.Progress is called with fewer arguments than it declares, and a finding that was clicked has a place.

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr
from torch import Tensor

from analysis import Analysis
from api import paths_of
from exports import write_findings, write_map, write_overlay, write_picture, write_view
from service import Service
from texts import name_finding, say
from uploads import Scan, Upload, UploadError
from views import WAIT_FOR_VIEWER, answer_to, describe_series, findings_panel, readout, similar_scans, viewer_state

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


@dataclass(frozen=True, kw_only=True)
class Pointed:
    """The map in the viewer: of a finding, or of a question (`finding` None)."""

    name: str
    finding: str | None
    cells: Tensor
    mm: tuple[float, float, float] | None
    overlay: dict


@dataclass(kw_only=True)
class Session:
    """One scan on an open page. The scan itself is in the service's memory, under `key`."""

    turn: int = 0
    upload: Upload | None = None
    key: str | None = None
    was_seen: bool = False
    view: dict | None = None
    pointed: Pointed | None = None

    def forget_unless(self, other: "Session | None" = None) -> None:
        """Deletes what is left of the upload, unless it is the other's, too: one upload may hold several series."""
        if self.upload is not None and (other is None or self.upload is not other.upload):
            self.upload.delete()


@dataclass(kw_only=True)
class Page:
    """One open page: the session of its scan, and how many were begun.

    Events overlap. What comes late for an earlier scan is dropped, so that no result stands beside another scan's.
    """

    session: Session = field(default_factory=Session)
    begun: int = 0

    def begin(self) -> int:
        self.begun += 1
        return self.begun

    def unless_replaced(self, session: Session, outputs: Any) -> Any:
        return outputs if self.session is session else gr.skip()


@dataclass(kw_only=True)
class ScanTab:
    """The components that events speak of; `words` is what the language changes: component, property, key."""

    page: gr.State
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
    page = gr.State(Page(), delete_callback=lambda page: page.session.forget_unless())
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
        page=page,
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


PROGRESS = gr.Progress()  # by this default Gradio finds who reports progress


class ScanEvents:
    """Handlers. Each takes the page and its language, and returns what the components become."""

    def __init__(self, service: Service) -> None:
        self.service = service

    def open(
        self, files: list[str] | None, page: Page, language: str, progress: gr.Progress, keep: bool = False
    ) -> tuple:
        """A new upload, or an example of the Space's own (`keep`): page, viewer, read-out, series, button, empty results."""
        turn = page.begin()
        progress(0.1, desc=say(language, "stage_receive"))
        upload = self.service.receive(files if keep and files else paths_of(files), keep)
        return self.read(page, turn, upload, None, language, progress)

    def choose_series(self, number: int | None, page: Page, language: str, progress: gr.Progress = PROGRESS) -> tuple:
        turn, upload = page.begin(), page.session.upload
        if upload is None:
            raise UploadError("error_no_scan")
        return self.read(page, turn, upload, number, language, progress)

    def read(
        self, page: Page, turn: int, upload: Upload, number: int | None, language: str, progress: gr.Progress
    ) -> tuple:
        progress(0.3, desc=say(language, "stage_read"))
        scan, was_seen = self.service.read(upload, number)
        session = Session(turn=turn, upload=upload, key=None if scan is None else scan.key, was_seen=was_seen)
        choices = [(describe_series(language, series), index) for index, series in enumerate(upload.series)]
        empty = gr.update(value=None, interactive=False)
        outputs = (
            page,
            viewer_state(language),
            self.told(session, scan, language),
            gr.update(choices=choices, value=number, visible=bool(choices)),
            gr.update(interactive=scan is not None),
            *("", "", ""),  # findings, answer, similar
            gr.update(value=None, visible=False),
            *(empty for _ in range(4)),
        )
        if turn < page.session.turn:
            session.forget_unless(page.session)
            return tuple(gr.skip() for _ in outputs)
        page.session.forget_unless(session)
        page.session = session
        if scan is None:
            gr.Info(say(language, "choose_series"), duration=10)
        return outputs

    def view(self, page: Page, language: str, progress: gr.Progress = PROGRESS) -> Any:
        """The scan for the viewer; nothing while a series has to be chosen."""
        session = page.session
        if session.key is not None:
            progress(0.5, desc=say(language, "stage_view"))
            session.view = write_view(self.service.scan(session.key), self.service.made)
        return page.unless_replaced(session, self.state(session, language))

    def analyse(self, page: Page, language: str, progress: gr.Progress = PROGRESS) -> Any:
        """Findings, similar scans, downloads, and the map of the first finding that is not absent."""
        session = page.session
        scan = self.service.scan(session.key)
        analysis = self.service.analyser.analyse(scan, lambda share, stage: progress(share, desc=say(language, stage)))
        shown = [finding for finding in analysis.findings if not finding.is_near_chance]
        if shown and shown[0].verdict != "absent":
            self.point(session, shown[0].label)
        paths = write_findings(scan, self.service.weights, self.service.made)
        return page.unless_replaced(
            session,
            (
                *self.answers(session, analysis, language),
                self.state(session, language),
                *(gr.update(value=path, interactive=True) for path in paths),
            ),
        )

    def point(self, session: Session, label: str) -> None:
        """Puts a finding's map into the viewer and the crosshair on its strongest place."""
        scan, analysis = self.service.analysed(session.key)
        found = {finding.label: finding for finding in analysis.findings}.get(label)
        if found is None:
            raise UploadError("error_no_such_finding")
        cells = analysis.maps[label]
        mm = None if found.place is None else found.place.mm
        overlay = self.overlay(scan, cells, label)
        session.pointed = Pointed(name=label, finding=label, cells=cells, mm=mm, overlay=overlay)

    def overlay(self, scan: Scan, cells: Tensor, label: str | None) -> dict:
        level, top = self.service.analyser.map_level(label), self.service.analyser.map_top
        return write_overlay(scan, cells, level, top, self.service.weights, self.service.made)

    def choose(self, page: Page, language: str, event: gr.EventData) -> Any:
        """A finding was clicked."""
        session = page.session
        self.point(session, str(event.finding))
        return page.unless_replaced(session, (self.state(session, language), gr.update(value=None, interactive=False)))

    def ask(self, question: str, page: Page, language: str) -> Any:
        """A sentence: its similarity, and its map in the viewer."""
        session, name = page.session, " ".join(question.split())[:80]
        scan, analysis = self.service.analysed(session.key)
        answer = self.service.analyser.ask(analysis, question)
        if answer.cells is not None and answer.place is not None and answer.fits:
            overlay = self.overlay(scan, answer.cells, None)
            session.pointed = Pointed(name=name, finding=None, cells=answer.cells, mm=answer.place.mm, overlay=overlay)
        else:
            session.pointed = None
        shown = answer_to(language, name, answer)
        return page.unless_replaced(
            session, (shown, self.state(session, language), gr.update(value=None, interactive=False))
        )

    def draw(self, page: Page, language: str, progress: gr.Progress = PROGRESS) -> Any:
        session = page.session
        scan, _ = self.service.analysed(session.key)
        progress(0.3, desc=say(language, "stage_draw"))
        drawn = write_picture(self.service.analyser.draw_components(scan), self.service.made)
        return page.unless_replaced(session, gr.update(value=drawn, visible=True))

    def make_map(self, page: Page, language: str, progress: gr.Progress = PROGRESS) -> Any:
        session = page.session
        pointed = session.pointed
        scan, _ = self.service.analysed(session.key)
        if pointed is None:
            raise UploadError("error_no_map")
        progress(0.3, desc=say(language, "stage_write"))
        path = write_map(scan, pointed.cells, self.service.weights, self.service.made)
        is_shown = session.pointed is pointed
        return page.unless_replaced(session, gr.update(value=path, interactive=True) if is_shown else gr.skip())

    def state(self, session: Session, language: str) -> dict:
        if session.view is None:
            return viewer_state(language)
        pointed = session.pointed
        if pointed is None:
            return viewer_state(language, session.view)
        name = name_finding(language, pointed.name)
        return viewer_state(language, session.view, pointed.overlay, name, pointed.mm)

    def answers(self, session: Session, analysis: Analysis, language: str) -> tuple[str, str]:
        """The table of findings, and the similar scans."""
        chosen = None if session.pointed is None else session.pointed.finding
        near = self.service.analyser.find_similar(analysis)
        return (
            findings_panel(language, analysis, self.service.weights, self.service.analyser.not_asked, chosen),
            similar_scans(language, near, len(self.service.analyser.gallery)),
        )

    def translate(self, page: Page, language: str) -> tuple:
        """Read-out, findings, similar scans and viewer in another language; the answer to a question stays as it is."""
        session = page.session
        scan = self.service.cache.get(session.key)
        if session.key is not None and scan is None:  # no longer in memory: what was found stays as it is
            return gr.skip(), gr.skip(), gr.skip(), self.state(session, language)
        answers = ("", "") if scan is None or scan.analysis is None else self.answers(session, scan.analysis, language)
        return self.told(session, scan, language), *answers, self.state(session, language)

    def told(self, session: Session, scan: Scan | None, language: str) -> str:
        """What is said of an upload before anything is computed."""
        if session.upload is not None and scan is None:
            return f'<p class="choose" role="alert">{say(language, "choose_series")}</p>'
        return readout(language, scan, session.was_seen)


# ---- which event does what ----


def connect_scan_tab(tab: ScanTab, service: Service, language: gr.Radio, compute: dict, read: dict) -> ScanEvents:
    events = ScanEvents(service)
    # "multiple": Gradio would drop without a word what is clicked, or follows, while the same is under way.
    private: dict[str, Any] = {"api_visibility": "private", "trigger_mode": "multiple"}
    opened = [tab.page, tab.state, tab.readout, tab.series, tab.analyse, *tab.results]

    def open_files(paths, page, tongue, progress=PROGRESS):
        return None, *events.open(paths, page, tongue, progress)  # or it would be sent again beside the next upload

    def show(event: Any) -> None:
        event.success(None, [tab.state], None, js=SHOW, **private)

    def then_view(opening: Any) -> None:
        show(opening)  # the scan before leaves the viewer
        show(opening.success(
            events.view, [tab.page, language], tab.state, show_progress_on=tab.readout, **read, **private
        ))  # fmt: skip

    def analyse_on(start: Callable) -> None:
        show(start(
            events.analyse, [tab.page, language], [tab.findings, tab.similar, tab.state, *tab.downloads],
            show_progress_on=tab.findings, **compute, **private,
        ))  # fmt: skip

    for box in (tab.files, tab.folder):
        opening = box.upload(
            open_files, [box, tab.page, language], [box, *opened], show_progress_on=tab.readout, **read, **private
        )
        opening.failure(lambda: None, None, box, show_progress="hidden", **private)
        then_view(opening)
    for button, path in tab.examples:

        def open_example(page, tongue, progress=PROGRESS, path=path):
            return events.open([str(path)], page, tongue, progress, keep=True)

        example = button.click(
            open_example, [tab.page, language], opened, show_progress_on=tab.readout, **read, **private
        )
        then_view(example)
        analyse_on(example.success)
    then_view(tab.series.input(
        events.choose_series, [tab.series, tab.page, language], opened, show_progress_on=tab.readout, **read, **private
    ))  # fmt: skip
    analyse_on(tab.analyse.click)
    show(tab.findings.click(
        events.choose, [tab.page, language], [tab.state, tab.map_file], show_progress="hidden", **private
    ))  # fmt: skip
    for start in (tab.ask.click, tab.question.submit):
        show(start(
            events.ask, [tab.question, tab.page, language], [tab.answer, tab.state, tab.map_file],
            show_progress_on=tab.answer, **private,
        ))  # fmt: skip
    tab.draw.click(events.draw, [tab.page, language], tab.components, **compute, **private)
    tab.make_map.click(events.make_map, [tab.page, language], tab.map_file, **compute, **private)
    return events
