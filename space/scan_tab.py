"""The workspace for one scan: what to open, the viewer, and beside it what was found, asked and read; and their events."""

# pyright: reportOptionalMemberAccess=false, reportArgumentType=false, reportCallIssue=false
# gradio.Progress is called with fewer arguments than it declares, and a finding that was clicked has a place.

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import gradio as gr
from torch import Tensor

from analysis import Analysis
from api import paths_of
from cases import Case
from exports import write_findings, write_map, write_overlay, write_picture, write_thumbnail, write_view
from service import Service
from texts import name_finding, say
from uploads import Scan, Upload, UploadError
from views import (
    WAIT_FOR_VIEWER,
    answer_to,
    case_cards,
    findings_panel,
    readout,
    scan_bar,
    series_cards,
    similar_scans,
    trouble,
    viewer_state,
)

SHOW = f"async (state) => {{ {WAIT_FOR_VIEWER} await window.ctfmShow('viewer', state); }}"
REMEMBERED = f"async (page, known) => {{ {WAIT_FOR_VIEWER} return [page, window.ctfmRemembered()]; }}"
MAX_THUMBNAILS = 8
AWAY = [
    "away"
]  # of static/style.css: `visible=False` would take the viewer off the page, and a layout ignores "hidden"
PROGRESS = gr.Progress()  # by this default Gradio finds who reports progress
CHOOSE = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-finding]');
  if (!button) return;
  for (const other of element.querySelectorAll('button[data-finding]')) {
    other.setAttribute('aria-pressed', String(other === button));
    other.closest('tr').classList.toggle('chosen', other === button);
  }
  if (window.ctfmWillShow) window.ctfmWillShow('viewer');
  trigger('click', {finding: button.dataset.finding});
});
"""
PICK = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-%s]');
  if (button) trigger('click', {chosen: button.dataset.%s});
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
    case: Case | None = None
    number: int | None = None
    pictures: dict[int, str] = field(default_factory=dict)
    refused: UploadError | None = None
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
    known: gr.Textbox
    state: gr.JSON
    start: gr.Column
    open: gr.Row
    workspace: gr.Row
    files: gr.File
    folder: gr.File
    trouble: gr.HTML
    cases: gr.HTML
    series: gr.HTML
    bar: gr.HTML
    other: gr.Button
    readout: gr.HTML
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
    def opened(self) -> list[Any]:
        """What a new upload changes."""
        return [
            self.page, self.state, self.start, self.open, self.workspace, self.trouble, self.series, self.bar, self.readout,
            self.findings, self.answer, self.similar, self.components, *self.downloads, self.map_file,
        ]  # fmt: skip


def build_scan_tab(cases: list[Case]) -> ScanTab:
    page = gr.State(Page(), delete_callback=lambda page: page.session.forget_unless())
    state = gr.JSON(viewer_state("en"), visible=False)
    known = gr.Textbox(visible="hidden", elem_id="known", show_label=False)
    failed = gr.HTML("", elem_id="trouble", apply_default_css=False)
    series = gr.HTML("", js_on_load=PICK % ("series", "series"), elem_id="series", apply_default_css=False)
    with gr.Column(elem_id="start") as start:
        purpose = gr.Markdown(say("en", "purpose"), elem_classes="purpose")
        with gr.Row(elem_classes="boxes"):
            files = gr.File(label=say("en", "files"), file_count="multiple", elem_id="files", height=132, scale=3)
            folder = gr.File(label=say("en", "folder"), file_count="directory", elem_id="folder", height=132, scale=2)
        limits = gr.Markdown(say("en", "limits"), elem_classes="quiet")
        guide = gr.HTML(f"<h2>{say('en', 'examples')}</h2>", apply_default_css=False)
        shown_cases = gr.HTML(
            case_cards("en", cases), js_on_load=PICK % ("case", "case"), elem_id="cases", apply_default_css=False
        )
    with gr.Row(elem_id="open", elem_classes=AWAY, equal_height=True) as opened:
        bar = gr.HTML("", elem_id="bar", apply_default_css=False)
        other = gr.Button(say("en", "other"), size="sm", elem_id="other", scale=0, min_width=150)
    with gr.Row(elem_id="workspace", elem_classes=AWAY) as workspace:
        with gr.Column(scale=6, min_width=320, elem_id="stage"):
            gr.HTML('<div id="viewer" class="ctfm-viewer"></div>', js_on_load=None, apply_default_css=False)
        with gr.Column(scale=5, min_width=320, elem_id="beside"):
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
            with gr.Accordion(say("en", "readout"), open=False, elem_id="readout-box") as readout_box:
                shown = gr.HTML("", elem_id="readout", apply_default_css=False)
            with gr.Accordion(say("en", "downloads"), open=False, elem_id="downloads") as downloads_box:
                names = ("download_json", "download_csv", "download_embedding")
                with gr.Row():
                    downloads = [
                        gr.DownloadButton(say("en", key), interactive=False, size="sm", elem_id=key, min_width=120)
                        for key in names
                    ]
                with gr.Row():
                    make_map = gr.Button(say("en", "make_map"), size="sm", elem_id="make-map", min_width=120)
                    map_file = gr.DownloadButton(
                        say("en", "download_map"), interactive=False, size="sm", elem_id="map-file", min_width=120
                    )
            with gr.Accordion(say("en", "similar"), open=False, elem_id="similar-box") as similar_box:
                similar = gr.HTML(elem_id="similar", apply_default_css=False)
            with gr.Accordion(say("en", "components"), open=False, elem_id="components-box") as components_box:
                components_help = gr.Markdown(say("en", "components_help"), elem_classes="quiet")
                draw = gr.Button(say("en", "draw_components"), size="sm", elem_id="draw")
                components = gr.Image(
                    show_label=False, interactive=False, elem_id="components", format="png",
                    buttons=["download", "fullscreen"], alt_text=say("en", "components_help"), visible=False,
                )  # fmt: skip
    words = [
        (purpose, "value", "purpose"),
        (files, "label", "files"),
        (folder, "label", "folder"),
        (limits, "value", "limits"),
        (guide, "heading", "examples"),
        (other, "value", "other"),
        (question, "label", "query"),
        (question, "placeholder", "query_hint"),
        (ask, "value", "ask"),
        (readout_box, "label", "readout"),
        (similar_box, "label", "similar"),
        (downloads_box, "label", "downloads"),
        (components_box, "label", "components"),
        *((button, "label", key) for button, key in zip(downloads, names, strict=True)),
        (make_map, "value", "make_map"),
        (map_file, "label", "download_map"),
        (components_help, "value", "components_help"),
        (components, "alt_text", "components_help"),
        (draw, "value", "draw_components"),
    ]
    return ScanTab(
        page=page,
        known=known,
        state=state,
        start=start,
        open=opened,
        workspace=workspace,
        files=files,
        folder=folder,
        trouble=failed,
        cases=shown_cases,
        series=series,
        bar=bar,
        other=other,
        readout=shown,
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
    """Handlers. Each takes the page and its language, and returns what the components become."""

    def __init__(self, service: Service, cases: list[Case]) -> None:
        self.service = service
        self.cases = {case.key: case for case in cases}

    def open(self, files: list[str] | None, page: Page, language: str, progress: gr.Progress) -> tuple:
        """A new upload: everything of the scan before leaves the page, whatever becomes of this one."""
        turn = page.begin()
        progress(0.1, desc=say(language, "stage_receive"))
        try:
            upload = self.service.receive(paths_of(files))
            return self.read(page, turn, upload, None, language, progress)
        except UploadError as error:
            return self.replace(page, Session(turn=turn, refused=error), None, language)

    def open_case(self, page: Page, language: str, event: gr.EventData, progress: gr.Progress = PROGRESS) -> tuple:
        """An example, drawn meanwhile where it is not there yet."""
        turn = page.begin()
        try:
            case = self.cases[str(event.chosen)]
            progress(0.1, desc=say(language, "stage_draw_case"))
            upload = self.service.receive([str(case.wait())], keep=True)
            return self.read(page, turn, upload, None, language, progress, case)
        except UploadError as error:
            return self.replace(page, Session(turn=turn, refused=error), None, language)

    def choose_series(self, page: Page, language: str, event: gr.EventData, progress: gr.Progress = PROGRESS) -> tuple:
        turn, upload = page.begin(), page.session.upload
        try:
            if upload is None:
                raise UploadError("error_no_scan")
            return self.read(page, turn, upload, int(event.chosen), language, progress)
        except UploadError as error:
            return self.replace(page, Session(turn=turn, refused=error), None, language)

    def restore(self, page: Page, known: str, language: str) -> tuple:
        """What the browser remembered of the page before it was loaded again, where it is still in memory."""
        turn = page.begin()
        try:
            remembered = json.loads(known or "{}")
            key, case = str(remembered.get("key")), self.cases.get(str(remembered.get("case")))
        except (ValueError, AttributeError):
            key, case = "", None
        scan = self.service.cache.get(key)
        if scan is None:
            return tuple(gr.skip() for _ in range(self.num_opened))
        return self.replace(page, Session(turn=turn, key=key, was_seen=True, case=case), scan, language)

    def close(self, page: Page, language: str) -> tuple:
        return self.replace(page, Session(turn=page.begin()), None, language)

    def read(
        self,
        page: Page,
        turn: int,
        upload: Upload,
        number: int | None,
        language: str,
        progress: gr.Progress,
        case: Case | None = None,
    ) -> tuple:
        progress(0.3, desc=say(language, "stage_read"))
        scan, was_seen = self.service.read(upload, number)
        key = None if scan is None else scan.key
        pictures = page.session.pictures if page.session.upload is upload else {}
        session = Session(
            turn=turn, upload=upload, key=key, was_seen=was_seen, case=case, number=number, pictures=pictures
        )
        return self.replace(page, session, scan, language)

    num_opened = 17

    def replace(self, page: Page, session: Session, scan: Scan | None, language: str) -> tuple:
        """The page with another session, unless a later one is there already: `ScanTab.opened`."""
        if session.turn < page.session.turn:
            session.forget_unless(page.session)
            return tuple(gr.skip() for _ in range(self.num_opened))
        page.session.forget_unless(session)
        page.session = session
        is_open = scan is not None
        empty = gr.update(value=None, interactive=False)
        return (
            page,
            self.state(session, language),
            gr.update(elem_classes=AWAY if is_open else []),
            gr.update(elem_classes=[] if is_open else AWAY),
            gr.update(elem_classes=[] if is_open else AWAY),
            *self.told(session, scan, language),
            *("", "", ""),  # findings, answer, similar
            gr.update(value=None, visible=False),
            *(empty for _ in range(4)),
        )

    def draw_series(self, page: Page, language: str) -> Iterator[Any]:
        """A picture of every series, one after the other, while one has to be chosen; what is read stays in memory."""
        session = page.session
        if session.upload is None or session.key is not None:
            return
        for number in range(min(len(session.upload.series), MAX_THUMBNAILS)):
            if page.session is not session or number in session.pictures:
                continue
            try:
                scan, _ = self.service.read(session.upload, number, keeps_upload=True)
            except UploadError:
                continue  # told when it is chosen
            if scan is not None:
                session.pictures[number] = write_thumbnail(scan, self.service.weights, self.service.made)
            yield page.unless_replaced(session, self.told(session, None, language)[1])

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
        if session.key is None:
            return tuple(gr.skip() for _ in range(6))
        scan = self.service.scan(session.key)
        try:
            analysis = self.service.analyser.analyse(
                scan, lambda share, stage: progress(share, desc=say(language, stage))
            )
        except UploadError as error:
            told = (trouble(language, error), *(gr.skip() for _ in range(5)))
            return page.unless_replaced(session, told)
        shown = [finding for finding in analysis.findings if not finding.is_near_chance]
        if shown and shown[0].verdict != "absent" and session.pointed is None:
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
        remembered = {"key": session.key, "case": None if session.case is None else session.case.key}
        if session.view is None:
            return viewer_state(language) | remembered
        pointed = session.pointed
        if pointed is None:
            return viewer_state(language, session.view) | remembered
        name = name_finding(language, pointed.name)
        return viewer_state(language, session.view, pointed.overlay, name, pointed.mm) | remembered

    def answers(self, session: Session, analysis: Analysis, language: str) -> tuple[str, str]:
        """The table of findings, and the similar scans."""
        chosen = None if session.pointed is None else session.pointed.finding
        truth = None if session.case is None else session.case.findings
        near = self.service.analyser.find_similar(analysis)
        not_asked = self.service.analyser.not_asked
        return (
            findings_panel(language, analysis, self.service.weights, not_asked, chosen, truth),
            similar_scans(language, near, len(self.service.analyser.gallery)),
        )

    def translate(self, page: Page, language: str) -> tuple:
        """The example cases, trouble, series, bar, read-out, findings, similar scans and viewer in another language; the answer
        to a question stays as it is."""
        session = page.session
        scan = self.service.cache.get(session.key)
        cases = case_cards(language, list(self.cases.values()))
        if session.key is not None and scan is None:  # no longer in memory: what was found stays as it is
            return cases, *(gr.skip() for _ in range(6)), self.state(session, language)
        answers = ("", "") if scan is None or scan.analysis is None else self.answers(session, scan.analysis, language)
        return cases, *self.told(session, scan, language), *answers, self.state(session, language)

    def told(self, session: Session, scan: Scan | None, language: str) -> tuple[str, str, str, str]:
        """Trouble, series, bar and read-out: what is said of an upload before anything is computed."""
        title = "" if session.case is None else say(language, f"case_{session.case.key}")
        listed = () if session.upload is None else session.upload.series
        return (
            "" if session.refused is None else trouble(language, session.refused),
            series_cards(language, listed, session.pictures, session.number),
            "" if scan is None else scan_bar(language, scan, title),
            "" if scan is None else readout(language, scan, session.was_seen),
        )


# ---- which event does what ----


def connect_scan_tab(
    tab: ScanTab, service: Service, cases: list[Case], language: gr.Radio, compute: dict, read: dict
) -> ScanEvents:
    events = ScanEvents(service, cases)
    assert len(tab.opened) == events.num_opened
    # "multiple": Gradio would drop without a word what is clicked, or follows, while the same is under way.
    private: dict[str, Any] = {"api_visibility": "private", "trigger_mode": "multiple"}

    def open_files(paths, page, tongue, progress=PROGRESS):
        return None, *events.open(paths, page, tongue, progress)  # or it would be sent again beside the next upload

    def show(event: Any) -> None:
        event.success(None, [tab.state], None, js=SHOW, **private)

    def go_on(opening: Any) -> None:
        """From what was read to what is seen and found."""
        show(opening)  # the scan before leaves the viewer
        opening.success(events.draw_series, [tab.page, language], tab.series, show_progress="hidden", **read, **private)
        viewed = opening.success(
            events.view, [tab.page, language], tab.state, show_progress_on=tab.bar, **read, **private
        )
        show(viewed)
        show(viewed.success(
            events.analyse, [tab.page, language], [tab.findings, tab.similar, tab.state, *tab.downloads],
            show_progress_on=tab.findings, **compute, **private,
        ))  # fmt: skip

    for box in (tab.files, tab.folder):
        opening = box.upload(
            open_files, [box, tab.page, language], [box, *tab.opened], show_progress_on=tab.trouble, **read, **private
        )
        opening.failure(lambda: None, None, box, show_progress="hidden", **private)
        go_on(opening)
    picks: dict[str, Any] = {"show_progress_on": tab.trouble, **read, **private}
    go_on(tab.cases.click(events.open_case, [tab.page, language], tab.opened, **picks))
    go_on(tab.series.click(events.choose_series, [tab.page, language], tab.opened, **picks))
    show(tab.other.click(events.close, [tab.page, language], tab.opened, show_progress="hidden", **private))
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


def restore_scan(tab: ScanTab, events: ScanEvents, loaded: Any, language: gr.Radio, compute: dict, read: dict) -> None:
    """After the page was loaded again: the scan that this tab of the browser had open."""
    private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    known = loaded.success(lambda page, known: known, [tab.page, tab.known], tab.known, js=REMEMBERED, **private)
    restored = known.success(events.restore, [tab.page, tab.known, language], tab.opened, **read, **private)
    viewed = restored.success(events.view, [tab.page, language], tab.state, **read, **private)
    viewed.success(None, [tab.state], None, js=SHOW, api_visibility="private")
    found = viewed.success(
        events.analyse,
        [tab.page, language],
        [tab.findings, tab.similar, tab.state, *tab.downloads],
        **compute,
        **private,
    )
    found.success(None, [tab.state], None, js=SHOW, api_visibility="private")
