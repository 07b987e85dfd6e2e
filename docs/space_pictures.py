"""checkpoints/default -> pictures of the Space on its own examples, in docs/: space.png, space_compare.png, space_phone.png.

The pictures of the example cases, space/static/case_KEY.png, are drawn again, too.

    make pictures     (needs chromium: apt-get install chromium)

The scans are phantoms. Look at the pictures before they are committed: they show what the checkpoint answers.
"""

import shutil
from pathlib import Path

from ctfm import read_volume
from ctfm.benchmarks.space_process import start_space
from ctfm.drawing_ctfm import INTENSITY_WINDOWS, draw_planes
from playwright.sync_api import Browser, Page, sync_playwright

HERE = Path(__file__).parent
PATIENCE_MS = 600_000
DESK, PHONE = (1280, 1150), (390, 844)  # the desk is high, so that one picture holds it all
SPACE = HERE.parent / "space"


def visit(browser: Browser, url: str, size: tuple[int, int]) -> Page:
    page = browser.new_context(viewport={"width": size[0], "height": size[1]}, locale="en-GB").new_page()
    page.set_default_timeout(PATIENCE_MS)
    page.goto(url)
    page.wait_for_selector("#cases button")
    return page


def take(page: Page, name: str, top: str = "body") -> None:
    """What is on the screen once the top of an element is."""
    page.locator(top).first.evaluate("element => element.scrollIntoView()")
    page.wait_for_timeout(3000)  # the rendering
    page.screenshot(path=HERE / name)
    page.context.close()


def take_scan(browser: Browser, url: str, name: str, size: tuple[int, int], top: str = "body") -> None:
    page = visit(browser, url, size)
    page.click("button[data-case=effusion]")
    page.wait_for_selector("#findings table")
    page.wait_for_selector("#viewer[data-shown*='scan.nii.gz']")
    take(page, name, top)


def take_comparison(browser: Browser, url: str, name: str, size: tuple[int, int]) -> None:
    page = visit(browser, url, size)
    page.get_by_role("tab", name="Two scans").click()
    page.click("#example-pair")
    for viewer in ("#viewer-prior", "#viewer-current"):
        page.wait_for_selector(f"{viewer}[data-shown*='scan.nii.gz']")
    take(page, name)


def draw_cases() -> None:
    for path in (SPACE / "examples").glob("*.zip"):
        picture = draw_planes(read_volume(path), INTENSITY_WINDOWS["mediastinum"], height=120)
        picture.save(SPACE / "static" / f"case_{path.stem}.png", optimize=True)


def main() -> None:
    draw_cases()
    with start_space() as (_, url), sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"], timeout=PATIENCE_MS
        )
        take_scan(chromium, url, "space.png", DESK)
        take_scan(chromium, url, "space_phone.png", PHONE, top="#viewer")
        take_comparison(chromium, url, "space_compare.png", DESK)


if __name__ == "__main__":
    main()
