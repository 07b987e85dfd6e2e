"""Events of the page that overlap: what comes late for one scan never stands beside another."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("gradio", reason="the extra [space] is not installed")
pytest.importorskip("nibabel")

import gradio as gr

import scan_tab
from analysis import Analyser
from cases import Case
from loading import Source, load_weights
from scan_tab import Page, ScanEvents
from service import Service
from tests.phantoms import phantom_volume
from tests.space_process import CALIBRATION, save_stand_in, write_study
from texts import FINDINGS_NL, TEXTS
from uploads import ScanCache, Upload


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Service:
    weights = load_weights(Source(model=str(save_stand_in(tmp_path_factory.mktemp("stand-in")))))
    return Service(weights, tmp_path_factory.mktemp("work"))


@pytest.fixture
def events(service: Service, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ScanEvents:
    monkeypatch.setattr(scan_tab, "paths_of", list)  # no upload of a browser
    return ScanEvents(service, [Case(key="effusion", findings=("Pleural effusion",), folder=tmp_path)])


def say_nothing(share: float, desc: str = "") -> None:
    """In place of a progress bar."""


def write_scan(folder: Path, seed: int) -> str:
    path = folder / f"{seed}.nii.gz"
    phantom_volume(seed).to_nifti(path)
    return str(path)


def open_scan(events: ScanEvents, page: Page, folder: Path, seed: int) -> Any:
    return events.open([write_scan(folder, seed)], page, "en", say_nothing)


def looked_at(events: ScanEvents, folder: Path, seed: int = 0) -> Page:
    """A page with a scan in the viewer, its findings, and a map."""
    page = Page()
    open_scan(events, page, folder, seed)
    events.view(page, "en", say_nothing)
    events.analyse(page, "en", say_nothing)
    events.choose(page, "en", click("Cardiomegaly"))
    return page


def click(finding: str) -> Any:
    return SimpleNamespace(finding=finding)


LATE: dict[str, tuple[Callable[[ScanEvents, Page], Any], Any, str]] = {  # an event, and what it waits for
    "view": (lambda events, page: events.view(page, "en", say_nothing), scan_tab, "write_view"),
    "analyse": (lambda events, page: events.analyse(page, "en", say_nothing), scan_tab, "write_findings"),
    "choose": (lambda events, page: events.choose(page, "en", click("Cardiomegaly")), scan_tab, "write_overlay"),
    "ask": (lambda events, page: events.ask("Fluid in the lung", page, "en"), Analyser, "ask"),
    "draw": (lambda events, page: events.draw(page, "en", say_nothing), Analyser, "draw_components"),
    "make_map": (lambda events, page: events.make_map(page, "en", say_nothing), scan_tab, "write_map"),
}


@pytest.mark.parametrize("name", LATE)
def test_what_comes_late_for_the_scan_before_is_dropped(
    events: ScanEvents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    page = looked_at(events, tmp_path)
    handle, owner, slow = LATE[name]
    assert handle(events, page) != gr.skip()
    original = getattr(owner, slow)

    def open_another_meanwhile(*arguments: Any) -> Any:
        monkeypatch.setattr(owner, slow, original)
        open_scan(events, page, tmp_path, 1)
        return original(*arguments)

    monkeypatch.setattr(owner, slow, open_another_meanwhile)
    assert handle(events, page) == gr.skip()
    assert page.session.view is None
    assert page.session.pointed is None


def test_of_two_scans_that_are_read_at_once_the_one_begun_last_stays(
    events: ScanEvents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page, original, keys = Page(), Service.read, []

    def open_another_meanwhile(service: Service, upload: Upload, number: int | None = None) -> Any:
        monkeypatch.setattr(Service, "read", original)
        assert open_scan(events, page, tmp_path, 1)[0] is page
        keys.append(page.session.key)
        return original(service, upload, number)

    monkeypatch.setattr(Service, "read", open_another_meanwhile)
    assert all(output == gr.skip() for output in open_scan(events, page, tmp_path, 0))
    assert page.session.key == keys[0]


def test_a_scan_that_is_refused_clears_the_page_and_says_so_there(events: ScanEvents, tmp_path: Path) -> None:
    page = looked_at(events, tmp_path)
    (tmp_path / "letter.pdf").write_bytes(b"%PDF-1.4 a letter")
    _, state, _, _, _, trouble, *rest = events.open([str(tmp_path / "letter.pdf")], page, "en", say_nothing)
    assert TEXTS["error_unsupported"][0] in trouble
    assert state["scan"] is None
    assert state["key"] is None
    assert rest[:6] == [""] * 6
    assert page.session.key is None
    assert events.analyse(page, "en", say_nothing) == (gr.skip(),) * 6
    assert TEXTS["error_unsupported"][1] in events.translate(page, "nl")[1]


def test_one_that_is_refused_late_leaves_the_scan_that_was_opened_since(
    events: ScanEvents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page, original = Page(), Service.read
    (tmp_path / "letter.pdf").write_bytes(b"%PDF-1.4 a letter")

    def open_another_meanwhile(service: Service, upload: Upload, number: int | None = None) -> Any:
        monkeypatch.setattr(Service, "read", original)
        open_scan(events, page, tmp_path, 1)
        return original(service, upload, number)

    monkeypatch.setattr(Service, "read", open_another_meanwhile)
    outputs = events.open([str(tmp_path / "letter.pdf")], page, "en", say_nothing)
    assert all(output == gr.skip() for output in outputs)
    assert page.session.key is not None


def test_a_page_that_is_loaded_again_has_the_scan_that_was_open(events: ScanEvents, tmp_path: Path) -> None:
    before = looked_at(events, tmp_path)
    known = json.dumps({"key": before.session.key, "case": "effusion"})
    page = Page()
    assert events.restore(page, known, "en")[0] is page
    assert page.session.key == before.session.key
    assert "Known truth" in events.analyse(page, "en", say_nothing)[0]


@pytest.mark.parametrize("known", ["", "no JSON", "[]", "null", '{"key": "nothing like it"}'])
def test_what_the_browser_remembers_wrongly_opens_nothing(events: ScanEvents, known: str) -> None:
    page = Page()
    assert all(output == gr.skip() for output in events.restore(page, known, "en"))
    assert page.session.key is None


def test_series_are_told_apart_by_pictures_before_one_is_chosen(events: ScanEvents, tmp_path: Path) -> None:
    page = Page()
    study = write_study(tmp_path / "study.zip", seeds=(0, 1))
    outputs = events.open([str(study)], page, "en", say_nothing)
    assert outputs[6].count("<button") == 2
    assert "<img" not in outputs[6]
    *_, last = events.draw_series(page, "en")
    assert last.count("<img") == 2
    assert page.session.key is None
    chosen = events.choose_series(page, "en", SimpleNamespace(chosen="1"), say_nothing)
    assert chosen[6].count('aria-pressed="true"') == 1
    assert events.choose_series(page, "en", SimpleNamespace(chosen="0"), say_nothing)[0] is page  # another after that
    assert page.session.refused is None


def test_an_example_says_what_is_known_and_whether_the_model_is_right(events: ScanEvents, tmp_path: Path) -> None:
    write_study(tmp_path / "effusion.zip")
    page = Page()
    events.open_case(page, "en", SimpleNamespace(chosen="effusion"), say_nothing)
    panel = events.analyse(page, "en", say_nothing)[0]
    assert TEXTS["model_right"][0] in panel  # an effusion, which is there
    assert (tmp_path / "effusion.zip").is_file()


def test_an_example_that_nobody_draws_is_said_not_to_be_there(events: ScanEvents) -> None:
    page = Page()
    outputs = events.open_case(page, "en", SimpleNamespace(chosen="effusion"), say_nothing)
    assert TEXTS["error_not_drawn"][0] in outputs[5]


def test_another_language_changes_no_result_and_loses_none(events: ScanEvents, tmp_path: Path) -> None:
    page = looked_at(events, tmp_path)
    cases, _, _, bar, told, findings, _, state = events.translate(page, "nl")
    assert TEXTS["case_effusion"][1] in cases
    assert (bar, told) == events.told(page.session, events.service.scan(page.session.key), "nl")[2:]
    assert TEXTS["findings"][1] in findings
    assert findings.count("data-finding") == len(CALIBRATION)
    assert state["map"]["name"] == FINDINGS_NL["Cardiomegaly"]
    events.service.cache = ScanCache()  # as if others had opened many scans since
    _, *rest, state = events.translate(page, "en")
    assert rest == [gr.skip()] * 6
    assert state["map"]["name"] == "Cardiomegaly"


def test_another_language_still_asks_for_a_series(events: ScanEvents, tmp_path: Path) -> None:
    page = Page()
    events.open([str(write_study(tmp_path / "study.zip", seeds=(0, 1)))], page, "en", say_nothing)
    assert TEXTS["choose_series"][1] in events.translate(page, "nl")[2]
