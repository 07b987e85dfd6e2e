"""PDF -> blocks: lines with their place on the page, in reading order, without banners, line numbers and rows of tables."""

import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from statistics import median
from typing import Any

from .reading import (
    CAPTION,
    DAMAGE,
    REFERENCE,
    Block,
    DocumentError,
    Reading,
    heading_level,
    is_table_row,
    mark_title,
    warn_of_rows,
)

MAX_PAGES = 400
MAX_PDF_SECONDS = 120
HEAD, FOOT = 0.06, 0.1  # of a page's height: where running heads and feet stand
LETTER = 0.5  # mean width of a letter, in sizes of its font; pypdf does not give the width of a text


@dataclass(kw_only=True)
class Line:
    """A line of a page: `x` and `y` of its start and its `size`, in points, `y` from the foot of the page."""

    text: str
    x: float
    y: float
    size: float
    page: int
    height: float

    @property
    def end(self) -> float:
        return self.x + LETTER * self.size * len(self.text)

    @property
    def key(self) -> str:
        """The same for a running head of every page, whatever number it holds."""
        return re.sub(r"\d+", "#", self.text)

    @property
    def is_in_margin(self) -> bool:
        return not FOOT * self.height < self.y < (1 - HEAD) * self.height


@dataclass(kw_only=True)
class _Page:
    lines: list[Line]
    width: float
    num_rotated: int = 0


def read_pdf(path: Path) -> Reading:
    """Text of the pages in reading order; running heads, banners, line numbers and rotated text are left out and counted."""
    try:
        import pypdf
        from pypdf.errors import PyPdfError
    except ImportError as error:
        raise DocumentError("Reading PDF needs pypdf: pip install pypdf.") from error
    reading = Reading()
    try:
        file = pypdf.PdfReader(path)
        if file.is_encrypted and not file.decrypt(""):
            raise DocumentError(f"{path.name} is encrypted. Save a copy without a password and pass that.")
        count = len(file.pages)
        if count > MAX_PAGES:
            raise DocumentError(f"{path.name} has {count} pages; at most {MAX_PAGES} are read. Pass the report alone.")
        pages: list[_Page] = []
        deadline = time.monotonic() + MAX_PDF_SECONDS
        for page in file.pages:
            if time.monotonic() > deadline:
                raise DocumentError(
                    f"{path.name} took more than {MAX_PDF_SECONDS} s, at page {len(pages) + 1} of {count}. "
                    "Pass it as docx or text."
                )
            pages.append(_read_page(page, len(pages) + 1))
    except (PyPdfError, *DAMAGE) as error:
        if isinstance(error, DocumentError):
            raise
        raise DocumentError(f"{path.name} is not a readable PDF ({error}). Print it to PDF again.") from error
    sizes = [sum(len(line.text) for line in page.lines) for page in pages]
    if sum(sizes) < 200 * max(1, count // 4):
        raise DocumentError(
            f"{path.name} holds {sum(sizes)} letters on {count} pages: it is a scan. Run text recognition (OCR) first."
        )
    empty = sum(size < 40 for size in sizes)
    if empty:
        reading.warnings.append(f"{empty} of {count} pages hold no text (pictures?) and were not read.")
    lines = _clean(pages, reading)
    title = _title(lines)
    _add_lines(reading, lines, title)
    if not title:
        mark_title(reading)
    return reading


def _read_page(page: Any, number: int) -> _Page:
    """Lines as the file draws them, then in the order of columns."""
    box = page.mediabox
    width, height, left, foot = float(box.width), float(box.height), float(box.left), float(box.bottom)
    chunks: list[Line] = []
    num_rotated = 0

    def visit(text: str, user: Sequence[float], matrix: Sequence[float], font: Any, size: float) -> None:
        nonlocal num_rotated
        if not text.strip():
            if "\n" in text and chunks:
                chunks[-1].text += "\n"
            elif chunks:
                chunks[-1].text += text
            return
        a, b, c, d, e, f = (float(value) for value in matrix)
        p, q, r, s, t, u = (float(value) for value in user)
        across, up = a * p + b * r, a * q + b * s
        if abs(up) > abs(across):
            num_rotated += 1
            return
        high = abs(c * q + d * s) * float(size or 1)
        chunks.append(
            Line(
                text=text, x=e * p + f * r + t - left, y=e * q + f * s + u - foot, size=high, page=number, height=height
            )
        )

    page.extract_text(visitor_text=visit)
    return _Page(lines=_in_columns(_lines_of(chunks, width), width), width=width, num_rotated=num_rotated)


def _lines_of(chunks: Sequence[Line], width: float) -> list[Line]:
    """Chunks of text that stand on one line of one column -> that line."""
    starts = Counter(round(chunk.x) for chunk in chunks if 0.45 * width < chunk.x < 0.7 * width)
    column, times = starts.most_common(1)[0] if starts else (0, 0)
    lines: list[Line] = []
    is_open = False
    for chunk in chunks:
        begins_column = times >= 6 and abs(chunk.x - column) < 2
        for number, part in enumerate(chunk.text.split("\n")):
            if number or not is_open or begins_column:
                is_open = False
            if not part.strip():
                continue
            last = lines[-1] if lines else None
            # What starts again at the left is drawn over the line, as banners are, and does not go on with it.
            is_same = (
                last is not None
                and chunk.x >= last.x + 0.5 * last.size
                and abs(chunk.y - last.y) < 0.6 * max(last.size, chunk.size)
            )
            if last is not None and is_open and is_same:
                gap = chunk.x - last.end > 0.3 * chunk.size and not last.text.endswith((" ", "-"))
                last.text += f" {part}" if gap and not part.startswith(" ") else part
                last.size = max(last.size, chunk.size)
            else:
                lines.append(
                    Line(text=part, x=chunk.x, y=chunk.y, size=chunk.size, page=chunk.page, height=chunk.height)
                )
            is_open = True
    for line in lines:
        line.text = " ".join(line.text.split())
    return lines


def _in_columns(lines: list[Line], width: float) -> list[Line]:
    """Left column before right column where the file draws them line by line; else the order of the file, which is right."""
    middle = 0.47 * width

    def side(line: Line) -> str:
        if line.x > middle:
            return "right"
        return "left" if line.end < 0.6 * width else "whole"

    sides = [side(line) for line in lines]
    if min(sides.count("left"), sides.count("right")) < 8:
        return lines
    turns = sum(pair in (("left", "right"), ("right", "left")) for pair in pairwise(sides))
    if turns < 0.5 * sides.count("right"):
        return lines
    ordered: list[Line] = []
    band: list[tuple[str, Line]] = []
    for where, line in sorted(zip(sides, lines, strict=True), key=lambda pair: -pair[1].y):
        if where == "whole":
            ordered += _band(band)
            band = []
            ordered.append(line)
        else:
            band.append((where, line))
    return ordered + _band(band)


def _band(band: Sequence[tuple[str, Line]]) -> list[Line]:
    return [line for name in ("left", "right") for where, line in band if where == name]


def _clean(pages: Sequence[_Page], reading: Reading) -> list[Line]:
    """Without banners, page numbers, line numbers and rotated text."""
    num_pages = len(pages)
    edges = Counter(key for page in pages for key in {line.key for line in page.lines[:2] + page.lines[2:][-2:]})
    margins = Counter(key for page in pages for key in {line.key for line in page.lines if line.is_in_margin})

    def is_banner(line: Line) -> bool:
        if re.fullmatch(r"(page )?\d+( (of|/) \d+)?", line.text, re.IGNORECASE):
            return line.is_in_margin or num_pages > 1
        repeated = edges[line.key] > max(2, num_pages // 2)
        return repeated or (line.is_in_margin and margins[line.key] > 1)

    lines, num_banners, num_numbers = [], 0, 0
    for page in pages:
        own, numbers = _without_line_numbers(page.lines)
        num_numbers += numbers
        kept = [line for line in own if line.text and not is_banner(line)]
        num_banners += len(own) - len(kept)
        lines += kept
    for count, what in (
        (num_banners, "lines of running heads, feet and page numbers"),
        (num_numbers, "line numbers"),
        (sum(page.num_rotated for page in pages), "pieces of rotated text"),
    ):
        if count:
            reading.warnings.append(f"{count} {what} were left out.")
    return lines


def _without_line_numbers(lines: list[Line]) -> tuple[list[Line], int]:
    """Numbers of a manuscript's lines: a column of them beside the text, or in front of every line."""
    beside = [line for line in lines if re.fullmatch(r"\d{1,4}", line.text)]
    counted = [int(line.text) for line in beside]
    if len(beside) >= 5 and len(beside) > 0.4 * (len(lines) - len(beside)) and _counts_up(counted):
        return [line for line in lines if line not in beside], len(beside)
    found = [re.match(r"(\d{1,4})\s+(?=\S)", line.text) for line in lines]
    counted = [int(match[1]) for match in found if match]
    if len(counted) >= 5 and len(counted) > 0.6 * len(lines) and _counts_up(counted):
        for line, match in zip(lines, found, strict=True):
            line.text = line.text[match.end() :] if match else line.text
        return lines, len(counted)
    return lines, 0


def _counts_up(numbers: Sequence[int]) -> bool:
    steps = [after - before for before, after in pairwise(numbers)]
    return sum(step in (1, 5) for step in steps) >= 0.8 * len(steps)


def _title(lines: Sequence[Line]) -> list[Line]:
    """The largest letters above the abstract or the first section, where they are larger than those of the text."""
    if not lines:
        return []
    body = median(line.size for line in lines for _ in range(max(1, len(line.text) // 10)))
    first = next((n for n, line in enumerate(lines) if heading_level(line.text) == 1), min(len(lines), 40))
    above = [line for line in lines[:first] if line.page == 1 and len(line.text) >= 4]
    largest = max((line.size for line in above), default=0.0)
    if largest < 1.15 * body:
        return []
    runs = [list(run) for large, run in groupby(above, lambda line: line.size > 0.95 * largest) if large]
    longest = max(runs, key=lambda run: sum(len(line.text) for line in run))
    return longest if sum(len(line.text) for line in longest) >= 20 else []


def _paragraphs(lines: Sequence[Line]) -> Iterator[tuple[Line, bool]]:
    """Lines, and whether a paragraph begins there by a gap above it."""
    gaps = [before.y - after.y for before, after in pairwise(lines) if before.page == after.page and before.y > after.y]
    usual = median(gaps) if gaps else 0.0
    for before, line in zip([None, *lines[:-1]], lines, strict=True):
        is_apart = before is not None and before.page == line.page and before.y - line.y > 1.6 * usual
        yield line, is_apart


def _add_lines(reading: Reading, lines: Sequence[Line], title: Sequence[Line]) -> None:
    if title:
        reading.blocks.append(Block(text=_joined([line.text for line in title]), section=("Title",), page=1))
    rest = [line for line in lines if not any(line is other for other in title)]
    paragraph: list[str] = []
    first_page, rows = 1, 0

    def close() -> None:
        if paragraph:
            reading.blocks.append(Block(text=_joined(paragraph), page=first_page))
            paragraph.clear()

    for line, is_apart in _paragraphs(rest):
        text, level = line.text, heading_level(line.text)
        is_row = is_table_row(text)
        rows += is_row
        ended = bool(paragraph) and paragraph[-1][-1] in ".!?:" and is_apart
        if level or is_row or ended or CAPTION.match(text) or REFERENCE.match(text):
            close()
        if level:
            reading.blocks.append(Block(text=text, level=level, page=line.page))
        if level or is_row:
            continue
        if not paragraph:
            first_page = line.page
        paragraph.append(text)
        letters = sum(map(len, paragraph))
        if letters > 5000 or (letters > 600 and text.endswith(".")):
            close()
    close()
    warn_of_rows(reading, rows)


def _joined(lines: Sequence[str]) -> str:
    text = ""
    for line in lines:
        is_hyphenated = re.search(r"[a-z]-$", text) and line[:1].islower()
        text = text[:-1] + line if is_hyphenated else f"{text} {line}".strip()
    return text
