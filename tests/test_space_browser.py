"""The page in headless Chromium: what a visitor does, at a desk with NiiVue and on a phone with the plain viewer."""

import base64
import gzip
import io
import json
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ctfm import Volume
from PIL import Image

from tests.phantoms import canonical_affine, phantom_hu
from tests.space_process import HOSTILE, SECRET, Space, hold, letter, run_space, write_study
from texts import TEXTS

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="the extra [dev] is not installed")
nibabel = pytest.importorskip("nibabel")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (Debian: apt-get install chromium)")

FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
PATIENCE_MS = 300_000  # a busy machine is no failure


@dataclass(kw_only=True)
class Visit:
    """An open page, whether its viewer is the plain one, and what went wrong: requests to other hosts, errors of scripts."""

    page: Any
    is_plain: bool
    strangers: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Space]:
    with run_space(tmp_path_factory.mktemp("space")) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS, timeout=PATIENCE_MS)
        yield browser
        browser.close()


def visit(browser: Any, space: Space, size: tuple[int, int], is_plain: bool) -> Visit:
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]}, locale="en-GB", reduced_motion="reduce"
    )
    context.set_default_timeout(PATIENCE_MS)
    visited = Visit(page=context.new_page(), is_plain=is_plain)
    visited.page.on("request", lambda request: note(visited.strangers, request.url, space.url))
    visited.page.on("pageerror", lambda error: visited.errors.append(str(error)))
    visited.page.on("console", lambda message: note_violation(visited.errors, message.text))
    if is_plain:
        visited.page.route("**/niivue.umd.js", lambda route: route.abort())
    visited.page.goto(space.url, timeout=PATIENCE_MS)
    visited.page.wait_for_function("(document.querySelector('#viewer .help') || {}).textContent")
    assert (TEXTS["viewer_plain"][0] in visited.page.inner_text("#viewer .help")) == is_plain
    return visited


def note(strangers: list[str], url: str, home: str) -> None:
    if not url.startswith((home, "data:", "blob:")):
        strangers.append(url)


def note_violation(errors: list[str], text: str) -> None:
    """What the page wanted and its content security policy forbids."""
    if "Content Security Policy" in text:
        errors.append(text)


@pytest.fixture(scope="module", params=["desk", "phone"])
def looked(request: pytest.FixtureRequest, browser: Any, space: Space, study: Path) -> Iterator[Visit]:
    """A page on which a scan was uploaded and analysed."""
    if request.param == "desk":
        if not (space.checkpoint.parent / "space" / "static" / "niivue.umd.js").is_file():
            pytest.skip("NiiVue is not here: `make space` brings it")
        visited = visit(browser, space, (1280, 900), is_plain=False)
    else:
        visited = visit(browser, space, (390, 844), is_plain=True)
    upload(visited.page, study)
    visited.page.wait_for_selector("#viewer[data-mm]")
    wait_for_map(visited.page, "Pleural effusion")
    yield visited
    assert visited.strangers == []
    assert visited.errors == []
    visited.page.context.close()


@pytest.fixture(scope="module")
def fresh(browser: Any, space: Space) -> Iterator[Visit]:
    visited = visit(browser, space, (1280, 900), is_plain=True)
    yield visited
    assert visited.strangers == []
    assert visited.errors == []
    visited.page.context.close()


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(tmp_path_factory.mktemp("study") / f"{SECRET}.zip")


def leave_scan(page: Any) -> None:
    """Back to the first screen, where a scan is open."""
    if page.is_visible("#other"):
        page.click("#other")
        page.locator("#start").wait_for()


def upload(page: Any, *paths: Path, box: str = "#files") -> None:
    """From whatever the page shows: an upload that was read has shrunk to a bar."""
    leave_scan(page)
    page.set_input_files(f"{box} input[type=file]", [str(path) for path in paths])


def wait_for_bar(page: Any, slices: int) -> None:
    """Until the page says what is open: a scan of so many slices."""
    page.wait_for_selector(f"#bar p:has-text('{slices} × 48 × 40')")


def open_box(page: Any, name: str) -> None:
    """Unfolds what lies folded under the findings."""
    button = page.locator(f"#{name} > button")
    if "open" not in (button.get_attribute("class") or "").split():
        button.click()


def wait_for_map(page: Any, name: str) -> None:
    page.wait_for_function(
        "name => (JSON.parse(document.querySelector('#viewer').dataset.shown || '{}').map) === name", arg=name
    )


def wait_for_scan(page: Any, space: Space, shape: tuple[int, int, int]) -> None:
    """Until the viewer shows a scan of `(x, y, z)` voxels."""
    until = time.monotonic() + PATIENCE_MS / 1000
    while shape_in_viewer(page, space) != shape:
        assert time.monotonic() < until
        page.wait_for_timeout(100)


def shape_in_viewer(page: Any, space: Space) -> tuple[int, ...] | None:
    shown = json.loads(page.get_attribute("#viewer", "data-shown") or "{}").get("scan")
    if shown is None:
        return None
    return nibabel.Nifti1Image.from_bytes(gzip.decompress(page.request.get(f"{space.url}/{shown}").body())).shape


def picture(page: Any) -> np.ndarray:
    """`(height, width, 3)` of the viewer as it is on the screen."""
    canvas = page.locator("#viewer canvas")
    canvas.scroll_into_view_if_needed()
    return np.asarray(Image.open(io.BytesIO(canvas.screenshot())).convert("RGB")).astype(int)


def changed(before: np.ndarray, after: np.ndarray) -> float:
    """Share of pixels that are not the same."""
    return float((np.abs(before - after).max(-1) > 8).mean())


def crosshair(page: Any) -> list[float]:
    """Where it is, RAS+ mm."""
    return [float(value) for value in page.get_attribute("#viewer", "data-mm").split()]


def set_opacity(page: Any, percent: int) -> None:
    page.locator("#viewer .opacity input").fill(str(percent))


# ---- a scan that was analysed ----


def test_an_upload_shrinks_to_a_bar_and_becomes_a_readout_and_a_sorted_table_of_findings(looked: Visit) -> None:
    page = looked.page
    assert "20 × 48 × 40" in page.inner_text("#bar")
    assert not page.is_visible("#files")
    open_box(page, "readout-box")
    page.wait_for_selector("#readout:has-text('20 × 48 × 40')")
    rows = page.locator("#findings tbody tr").all_inner_texts()
    assert len(rows) == 3
    shares = [int(re.search(r"(\d+) %", row)[1]) for row in rows]  # type: ignore[index]
    assert shares == sorted(shares, reverse=True)
    assert {name for name in ("present", "absent", "not sure") if any(name in row for row in rows)} == {
        "present", "absent", "not sure",
    }  # fmt: skip
    assert SECRET not in page.content()


def test_a_finding_that_is_clicked_shows_its_map_and_moves_the_crosshair_to_its_strongest_place(looked: Visit) -> None:
    page = looked.page
    page.click("button[data-finding='Pleural effusion']")
    wait_for_map(page, "Pleural effusion")
    row = page.locator("#findings tr", has=page.locator("button[data-finding='Pleural effusion']"))
    assert row.get_attribute("class") == "chosen"
    told = [float(v) for v in re.search(r"; (\S+), (\S+), (\S+) mm", row.inner_text()).groups()]  # type: ignore[union-attr]
    assert np.abs(np.subtract(told, crosshair(page))).max() < 2.0  # half a slice of 3 mm, and the table is rounded
    set_opacity(page, 0)
    plain = picture(page)
    set_opacity(page, 100)
    assert changed(plain, picture(page)) > 0.005
    set_opacity(page, 55)


@pytest.mark.parametrize(("kind", "first"), [("window", "mediastinum"), ("layout", "planes")])
def test_every_window_and_every_layout_is_another_picture(looked: Visit, kind: str, first: str) -> None:
    page = looked.page
    buttons = page.locator(f"#viewer [data-group={kind}] button")
    names = [name for name in buttons.evaluate_all("all => all.map((one) => one.dataset.name)") if name != first]
    assert len(names) == 4
    if looked.is_plain and kind == "layout":
        names.remove("render")  # the plain viewer has none
    last = picture(page)
    for name in [*names, first]:
        button = page.locator(f"#viewer [data-group={kind}] button[data-name={name}]")
        button.click()
        assert button.get_attribute("aria-pressed") == "true"
        shown = picture(page)
        assert changed(last, shown) > 0.02, name
        last = shown


def test_the_keyboard_moves_the_crosshair(looked: Visit) -> None:
    page = looked.page
    page.focus("#viewer canvas")
    before = [float(v) for v in page.get_attribute("#viewer", "data-mm").split()]
    page.keyboard.press("PageUp" if before[2] < 0 else "PageDown")
    page.wait_for_function(
        "was => document.querySelector('#viewer').dataset.mm !== was", arg=" ".join(f"{v:.1f}" for v in before)
    )
    after = [float(v) for v in page.get_attribute("#viewer", "data-mm").split()]
    assert abs(after[2] - before[2]) == pytest.approx(3.0, abs=0.11)
    assert after[:2] == before[:2]


def test_a_question_is_answered_with_its_rank_and_has_a_map_where_it_fits(looked: Visit) -> None:
    page, text = looked.page, "Fluid in the right lung."
    page.fill("#question textarea, #question input", text)
    page.keyboard.press("Enter")
    page.wait_for_function("text => document.querySelector('#answer').innerText.includes(text)", arg=text)
    answer = page.inner_text("#answer")
    assert re.search(r"It ranks \d+ of 9 sentences.* [+-]0\.\d{3}", answer)
    if "fits this scan" in answer:
        wait_for_map(page, text)
    else:
        assert json.loads(page.get_attribute("#viewer", "data-shown")).get("map") != text


def test_similar_scans_show_their_pictures_and_the_features_are_drawn(looked: Visit) -> None:
    page = looked.page
    open_box(page, "similar-box")
    page.wait_for_function("document.querySelectorAll('#similar img').length === 3")  # Gradio fills a box when it opens
    page.locator("#similar img").first.scroll_into_view_if_needed()
    page.wait_for_function("document.querySelector('#similar img').naturalWidth > 0")
    open_box(page, "components-box")
    page.click("#draw")
    page.wait_for_function("(document.querySelector('#components img') || {}).naturalWidth > 0")


def test_findings_are_downloaded_without_a_name(looked: Visit) -> None:
    open_box(looked.page, "downloads")
    with looked.page.expect_download() as started:
        looked.page.click("#download_json")
    text = Path(started.value.path()).read_text()
    assert len(json.loads(text)["findings"]) == 3
    assert SECRET not in text
    assert SECRET not in started.value.suggested_filename


OVERFLOWING = """() => {
  const width = document.documentElement.clientWidth;
  const clips = (e) => e && (getComputedStyle(e).overflowX !== 'visible' || clips(e.parentElement));
  return [...document.querySelectorAll('body *')].filter((e) => {
    const box = e.getBoundingClientRect();
    return box.width && box.height && (box.right > width + 1 || box.left < -1) && !clips(e.parentElement);
  }).map((e) => `${e.tagName}.${e.className}#${e.id}`).concat(
    document.documentElement.scrollWidth > width ? ['the page scrolls sideways'] : []);
}"""


def test_nothing_is_wider_than_the_screen(looked: Visit) -> None:
    page = looked.page
    for tab in page.get_by_role("tab").all():
        if tab.is_visible():
            tab.click()
            assert page.evaluate(OVERFLOWING) == [], tab.inner_text()
    page.get_by_role("tab", name=TEXTS["tab_scan"][0]).click()


def grave(page: Any) -> list[str]:
    """What axe-core finds serious or critical on the page as it is."""
    found = axe.Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
    return [
        f"{rule['id']}: {node['target']} {node['html'][:160]} {node['failureSummary'][:200]}"
        for rule in found
        if rule["impact"] in ("serious", "critical")
        for node in rule["nodes"]
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious_on_any_tab(looked: Visit, scheme: str) -> None:
    page = looked.page
    page.evaluate("isDark => document.body.classList.toggle('dark', isDark)", scheme == "dark")
    for key in ("tab_compare", "tab_report", "tab_about", "tab_scan"):
        if page.get_by_role("tab", name=TEXTS[key][0]).is_visible():
            page.get_by_role("tab", name=TEXTS[key][0]).click()
            assert grave(page) == [], (scheme, key)


def test_axe_finds_nothing_serious_on_the_first_screen(browser: Any, space: Space) -> None:
    visited = visit(browser, space, (1280, 900), is_plain=True)
    assert grave(visited.page) == []
    visited.page.context.close()


def test_an_example_with_its_known_truth_is_no_wider_than_a_phone(browser: Any, space: Space) -> None:
    visited = visit(browser, space, (390, 844), is_plain=True)
    page = visited.page
    page.click("button[data-case=effusion]")
    page.wait_for_selector(f"#findings td:has-text('{TEXTS['drawn'][0]}')")
    assert page.evaluate(OVERFLOWING) == []
    page.context.close()


def test_a_sample_of_a_trial_report_is_checked_with_one_click(browser: Any, space: Space) -> None:
    visited = visit(browser, space, (1280, 900), is_plain=True)
    page = visited.page
    page.get_by_role("tab", name=TEXTS["tab_report"][0]).click()
    page.locator(".notice.report").wait_for()
    page.click("#report-sample")
    page.wait_for_selector("#report-shown iframe")
    assert (space.checkpoint.parent / "space" / "sample_trial.md").is_file()
    assert visited.errors == []
    page.context.close()


NAMELESS = """() => [...document.querySelectorAll('button, input, textarea, canvas, img, select')].filter((e) =>
    e.offsetParent && e.type !== 'file' && !(e.innerText || '').trim() && !e.ariaLabel && !e.title && !e.alt
    && !e.querySelector('img[alt]:not([alt=""])') && !e.closest('label') && !document.querySelector(`label[for="${e.id}"]`)
  ).map((e) => e.outerHTML.slice(0, 120))"""


def test_everything_that_is_used_has_a_name_for_a_screen_reader(looked: Visit) -> None:
    assert looked.page.evaluate(NAMELESS) == []


# ---- a page that was just opened ----


@pytest.mark.parametrize("script", ["viewer.js", "plain_viewer.js"])
def test_a_script_that_comes_late_is_waited_for(browser: Any, space: Space, script: str) -> None:
    context = browser.new_context(locale="nl-NL")
    context.set_default_timeout(PATIENCE_MS)
    page, held = context.new_page(), []
    page.route(f"**/{script}", lambda route: held.append(route))
    page.goto(space.url, timeout=PATIENCE_MS)
    page.locator("#notice").get_by_text(
        TEXTS["notice"][1]
    ).wait_for()  # what the server sent when the page opened is there
    assert page.locator("#viewer .help").count() == 0
    held[0].continue_()
    page.wait_for_function("(document.querySelector('#viewer .help') || {}).textContent")
    context.close()


def test_an_uploaded_page_and_one_that_the_space_made_run_no_script(browser: Any, space: Space) -> None:
    context = browser.new_context()
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    script = b"<title>still</title><script>document.title = 'ran'</script>"
    upload = {"name": "x.html", "mimeType": "text/html", "buffer": script}
    (path,) = page.request.post(f"{space.url}/gradio_api/upload", multipart={"files": upload}).json()
    assert page.goto(f"{space.url}/gradio_api/file={path}").status == 404
    assert page.title() != "ran"
    made = space.work / "made" / "x" / "x.html"
    made.parent.mkdir(parents=True)
    made.write_bytes(script)
    with page.expect_download() as started, pytest.raises(sync_api.Error, match="Download is starting"):
        page.goto(f"{space.url}/gradio_api/file={made}")
    assert Path(started.value.path()).read_bytes() == script
    page.goto(space.url, timeout=PATIENCE_MS)
    page.set_content(f"<iframe src='{space.url}/gradio_api/file={made}'></iframe>")
    assert page.evaluate("document.querySelector('iframe').contentDocument?.title") != "ran"
    shutil.rmtree(made.parent)
    context.close()


def test_the_browser_lets_go_of_the_scans_before(browser: Any, space: Space, tmp_path: Path) -> None:
    if not (space.checkpoint.parent / "space" / "static" / "niivue.umd.js").is_file():
        pytest.skip("NiiVue is not here: `make space` brings it")
    visited = visit(browser, space, (1280, 900), is_plain=False)
    page, held = visited.page, []
    measure = page.context.new_cdp_session(page)
    hu = phantom_hu((12, 48, 48)).repeat(3, 0).repeat(4, 1).repeat(4, 2)
    for number in range(12):
        path = tmp_path / f"{number}.nii.gz"
        Volume(hu=hu + np.int16(number), affine=canonical_affine((5.0, 2.5, 2.5))).to_nifti(path)
        before = page.get_attribute("#viewer", "data-shown")
        upload(page, path)
        page.wait_for_function(
            """before => {
              const shown = document.querySelector('#viewer').dataset.shown;
              return shown !== before && JSON.parse(shown || '{}').scan;
            }""",
            arg=before,
        )
        page.click("#viewer button[data-name=axial]")  # a processor draws one slice sooner than the rendering
        measure.send("HeapProfiler.collectGarbage")
        held.append(measure.send("Runtime.getHeapUsage")["backingStorageSize"])
    assert held[-1] - held[2] < 2 * hu.nbytes  # of nine more
    page.context.close()


def test_bad_input_is_told_and_the_next_upload_works(fresh: Visit, study: Path, tmp_path: Path) -> None:
    page = fresh.page
    upload(page, letter(tmp_path, SECRET))
    page.wait_for_selector("#trouble .trouble")
    told = page.inner_text("#trouble")
    assert TEXTS[HOSTILE[letter][0]][0] in told
    assert SECRET not in told
    page.locator("#files").get_by_text(SECRET).wait_for(state="detached")  # or it would be sent again beside the next
    upload(page, study)
    wait_for_bar(page, 20)
    assert not page.is_visible("#trouble")


def test_a_scan_that_is_refused_takes_the_one_before_off_the_page(
    fresh: Visit, space: Space, study: Path, tmp_path: Path
) -> None:
    page = fresh.page
    upload(page, study)
    page.wait_for_selector("#findings table")
    upload(page, letter(tmp_path, SECRET))
    page.wait_for_selector("#trouble .trouble")
    assert not page.is_visible("#workspace")
    assert page.locator("#findings table").count() == 0
    assert page.get_attribute("#viewer", "data-mm") is None


def test_an_example_opens_with_one_click_and_says_whether_the_model_is_right(fresh: Visit) -> None:
    page = fresh.page
    leave_scan(page)
    assert page.locator("#cases button").count() == 6
    page.click("button[data-case=effusion]")
    page.wait_for_selector(f"#bar p:has-text('{TEXTS['case_effusion'][0]}')")
    page.wait_for_selector(f"#findings td:has-text('{TEXTS['drawn'][0]}')")


def test_a_page_that_is_loaded_again_shows_the_scan_that_was_open(browser: Any, space: Space, study: Path) -> None:
    visited = visit(browser, space, (1280, 900), is_plain=True)
    upload(visited.page, study)
    visited.page.wait_for_selector("#findings table")
    before = visited.page.locator("#findings tbody tr").all_inner_texts()
    visited.page.reload()
    visited.page.wait_for_selector("#findings table")
    wait_for_bar(visited.page, 20)
    assert visited.page.locator("#findings tbody tr").all_inner_texts() == before
    wait_for_scan(visited.page, space, (40, 48, 20))
    visited.page.get_by_label("Nederlands").click()
    visited.page.wait_for_function("document.documentElement.lang === 'nl'")
    visited.page.reload()
    visited.page.wait_for_selector(f"#findings caption:has-text('{TEXTS['findings'][1]}')")
    assert visited.errors == []
    visited.page.context.close()


def test_a_drop_anywhere_on_the_page_is_an_upload(fresh: Visit, tmp_path: Path) -> None:
    page = fresh.page
    leave_scan(page)
    content = base64.b64encode(write_study(tmp_path / "study.zip", seeds=(4,)).read_bytes()).decode()
    page.evaluate(
        """content => {
          const transfer = new DataTransfer();
          const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
          transfer.items.add(new File([bytes], 'study.zip', {type: 'application/zip'}));
          document.querySelector('h1').dispatchEvent(
            new DragEvent('drop', {dataTransfer: transfer, bubbles: true, cancelable: true}));
        }""",
        content,
    )
    wait_for_bar(page, 24)


def test_several_series_are_a_list_to_choose_from(fresh: Visit, tmp_path: Path) -> None:
    page = fresh.page
    upload(page, write_study(tmp_path / f"{SECRET}.zip", seeds=(0, 1)))
    page.wait_for_selector("#series .choose")
    assert not page.is_visible("#workspace")
    page.wait_for_function("document.querySelectorAll('#series img').length === 2")
    choices = page.locator("#series button").all_inner_texts()
    assert len(choices) == 2
    assert all(SECRET not in choice for choice in choices)
    page.locator("#series button").filter(has_text="21").click()
    wait_for_bar(page, 21)


def test_a_folder_is_read(fresh: Visit, tmp_path: Path) -> None:
    write_study(tmp_path / "study.zip", seeds=(2,))
    upload(fresh.page, tmp_path / "study-2", box="#folder")
    wait_for_bar(fresh.page, 22)


def test_the_page_is_usable_while_it_computes(fresh: Visit, space: Space, tmp_path: Path) -> None:
    page = fresh.page
    with hold(space, "analyse") as begun:
        upload(page, write_study(tmp_path / "study.zip", seeds=(3,)))
        wait_for_bar(page, 23)
        begun()
        page.get_by_role("tab", name=TEXTS["tab_about"][0]).click()
        page.get_by_text("gradio_client").first.wait_for()
        assert page.locator("#findings table").count() == 0
    page.get_by_role("tab", name=TEXTS["tab_scan"][0]).click()
    page.wait_for_selector("#findings table")


def test_a_scan_that_is_opened_while_another_is_read_or_computed_takes_its_place(
    fresh: Visit, space: Space, study: Path, tmp_path: Path
) -> None:
    page, shape, rows = fresh.page, (40, 48, 20), []
    for seed, name in ((4, "view"), (1, "analyse")):
        with hold(space, name) as begun:
            other = write_study(tmp_path / f"other{seed}.zip", seeds=(seed,))
            upload(page, other)
            wait_for_bar(page, 20 + seed)
            begun()
            upload(page, study)
            wait_for_bar(page, 20)
            assert page.locator("#findings table").count() == 0
        wait_for_scan(page, space, shape)
        page.wait_for_selector("#findings table")
        rows.append(page.locator("#findings tbody tr").all_inner_texts())
        assert shape_in_viewer(page, space) == shape
    assert rows[0] == rows[1]


def test_two_examples_are_compared(fresh: Visit) -> None:
    page = fresh.page
    page.get_by_role("tab", name=TEXTS["tab_compare"][0]).click()
    page.click("#example-pair")
    page.wait_for_selector("#changes table")
    assert page.locator("#changes tbody tr").count() == 3
    for viewer in ("#viewer-prior", "#viewer-current"):
        page.wait_for_selector(f"{viewer}[data-shown*='scan.nii.gz']")
    kind = page.locator("#changes tbody tr").first.get_attribute("class")
    shown = [json.loads(page.get_attribute(viewer, "data-shown")) for viewer in ("#viewer-prior", "#viewer-current")]
    assert sum(state["map"] is not None for state in shown) == (kind not in ("same", "unclear"))
    page.focus("#viewer-prior canvas")
    page.keyboard.press("PageUp")
    page.wait_for_function(
        "document.querySelector('#viewer-prior').dataset.mm === document.querySelector('#viewer-current').dataset.mm"
    )
    before = page.get_attribute("#viewer-current", "data-mm")
    page.keyboard.press("PageUp")
    page.wait_for_function("was => document.querySelector('#viewer-current').dataset.mm !== was", arg=before)
    assert page.get_attribute("#viewer-current", "data-mm") == page.get_attribute("#viewer-prior", "data-mm")
    page.get_by_role("tab", name=TEXTS["tab_scan"][0]).click()


def test_a_dutch_browser_gets_a_dutch_page(fresh: Visit) -> None:
    page = fresh.page
    page.get_by_label("Nederlands").click()
    page.locator("#notice").get_by_text(TEXTS["notice"][1]).wait_for()
    assert page.get_by_role("tab", name=TEXTS["tab_report"][1]).is_visible()
    page.wait_for_selector(f"#findings caption:has-text('{TEXTS['findings'][1]}')")
    page.get_by_role("tab", name=TEXTS["tab_compare"][1]).click()
    page.wait_for_selector(f"#changes caption:has-text('{TEXTS['changes'][1]}')")
    page.wait_for_selector(f"#viewer-prior summary:has-text('{TEXTS['viewer_keys'][1]}')")
    page.get_by_role("tab", name=TEXTS["tab_scan"][1]).click()
    page.wait_for_function("document.documentElement.lang === 'nl'")
