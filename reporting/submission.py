"""Report -> what is sent with a manuscript or back to its authors: the filled checklist, a check of one, questions."""

import csv
import re
from dataclasses import dataclass
from pathlib import Path

from .check import Report, Verdict
from .documents import DocumentError, Sentence
from .markdown_tables import markdown_table
from .word import open_word

HEADER = ("Item", "Checklist item", "Reported on page / paragraph", "Draft evidence (check and delete)")


def place_of(sentence: Sentence) -> str:
    """Page where the file has pages, and paragraph."""
    page = f"p. {sentence.page}, " if sentence.page else ""
    return f"{page}par. {sentence.paragraph}"


def checklist_rows(report: Report) -> list[tuple[str, str, str, str]]:
    """Item, text, where it is reported and a draft of the evidence; to be corrected by the author."""
    return [
        (
            verdict.item.number,
            verdict.item.text,
            _submission_place(verdict),
            verdict.evidence[0].text if verdict.evidence else "",
        )
        for verdict in report.verdicts
    ]


def _submission_place(verdict: Verdict) -> str:
    if verdict.status in ("not applicable", "not checked"):
        return verdict.status
    return "; ".join(dict.fromkeys(place_of(sentence) for sentence in verdict.evidence))


def write_checklist(report: Report, out: Path) -> None:
    """The table that journals ask authors to submit, as .docx or Markdown."""
    rows = checklist_rows(report)
    if out.suffix.lower() != ".docx":
        out.write_text(f"# {report.checklist} checklist\n\n{markdown_table(HEADER, rows)}", encoding="utf-8")
        return
    import docx

    file = docx.Document()
    file.add_heading(f"{report.checklist} checklist", level=1)
    file.add_paragraph(report.document.title)
    table = file.add_table(rows=1, cols=len(HEADER))
    table.style = "Table Grid"
    for cell, text in zip(table.rows[0].cells, HEADER, strict=True):
        cell.text = text
    for row in rows:
        for cell, text in zip(table.add_row().cells, row, strict=True):
            cell.text = text
    file.save(str(out))


# ---- the page numbers that a submitted checklist claims ----


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What a submitted checklist says about an item, and whether the report bears it out."""

    number: str
    pages: tuple[int, ...]
    verdict: Verdict
    found_on: tuple[int, ...]

    @property
    def says(self) -> str:
        claimed = ", ".join(map(str, self.pages))
        if not self.found_on:
            return f"claimed on p. {claimed}; the item was not found anywhere ({self.verdict.status})"
        if set(self.pages) & set(self.found_on):
            return f"claimed on p. {claimed}; found there"
        return f"claimed on p. {claimed}; found on p. {', '.join(map(str, self.found_on))}"

    @property
    def agrees(self) -> bool:
        return bool(set(self.pages) & set(self.found_on))


def check_claims(report: Report, checklist: Path) -> list[Claim]:
    """Compares the page numbers of a filled checklist with the pages where the items were found.

    Args:
        report: of a file with pages: PDF, or a Word file that Word has laid out.
        checklist: the filled table as .docx, .csv or Markdown; a row is an item's number, texts, and page numbers last.

    Raises:
        DocumentError: the report has no pages, or no row of the table names an item and a page.
    """
    if not any(sentence.page for sentence in report.document.sentences):
        raise DocumentError(f"{Path(report.document.path).name} has no page numbers; pass the PDF that was submitted.")
    # An extension numbers its items again; journals' forms mean those of the list itself, which come first.
    verdicts = {verdict.item.number: verdict for verdict in reversed(report.verdicts)}
    claims = []
    for cells, where in _rows_of(checklist):
        numbers = [found[1] for cell in cells if (found := _ITEM_NUMBER.fullmatch(cell))]
        pages = claimed_pages(where)
        if numbers and numbers[0] in verdicts and pages:
            verdict = verdicts[numbers[0]]
            found_on = tuple(sorted({sentence.page for sentence in verdict.evidence if sentence.page}))
            claims.append(Claim(number=numbers[0], pages=pages, verdict=verdict, found_on=found_on))
    if not claims:
        raise DocumentError(
            f"{checklist.name}: no row names an item and a page; a cell must be the item's number alone, and the column headed "
            '"page", or else the last, its pages.'
        )
    return claims


_ITEM_NUMBER = re.compile(r"(?:item )?#?(\d+[a-h]?)[.*]?", re.IGNORECASE)
# Numbers in a cell that count something else than pages.
_OTHER_PLACE = re.compile(
    r"\b(par(agraph)?s?|lines?|sections?|tables?|fig(ure)?s?|ref(erence)?s?|appendix|supplement\w*|files?)\b\.?"
    r"\s*[a-z]?\d[\d.]*(\s*(,|and|-|–|to)\s*\d[\d.]*)*",
    re.IGNORECASE,
)
_PAGE_SPAN = re.compile(r"(?<![\d.])(\d{1,3})(?:\s*(?:-|–|to)\s*(\d{1,3}))?(?![\d.]*\d)")
MAX_SPAN = 30


def claimed_pages(cell: str) -> tuple[int, ...]:
    """The pages that a cell names, spans spelled out.

    Example:
        >>> claimed_pages("p. 3, par. 12; pp. 5-7; Table 2")
        (3, 5, 6, 7)
    """
    pages: set[int] = set()
    for first, last in _PAGE_SPAN.findall(_OTHER_PLACE.sub("", cell)):
        span = range(int(first), int(last or first) + 1)
        pages.update(span if 0 < len(span) <= MAX_SPAN else (int(first),))
    return tuple(sorted(pages))


def _rows_of(path: Path) -> list[tuple[list[str], str]]:
    """The rows of a filled checklist, each as its other cells and the one with the pages: under "page", or else the last."""
    suffix = path.suffix.lower()
    if suffix == ".docx":
        tables = [
            [[" ".join(cell.text.split()) for cell in row.cells] for row in table.rows]
            for table in open_word(path).tables
        ]
    elif suffix == ".csv":
        with path.open(encoding="utf-8-sig", newline="") as lines:
            tables = [[[cell.strip() for cell in row] for row in csv.reader(lines)]]
    elif suffix in (".md", ".txt"):
        lines = path.read_text(encoding="utf-8").splitlines()
        tables = [[[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines if "|" in line]]
    else:
        raise DocumentError(f'"{path.suffix}" ({path.name}) is no checklist; pass a table as .docx, .csv or .md.')
    found = []
    for rows in tables:
        column = -1
        for row in rows:
            headed = [number for number, cell in enumerate(row) if re.search(r"\bpages?\b", cell, re.IGNORECASE)]
            if headed and not any(_ITEM_NUMBER.fullmatch(cell) for cell in row):
                column = headed[-1]
            elif len(row) > max(column, 1):
                found.append(([cell for number, cell in enumerate(row) if number != column % len(row)], row[column]))
    return found


# ---- questions to the author ----


def question_of(verdict: Verdict) -> str | None:
    """A question that can be sent as it stands; None where nothing is missing."""
    text = verdict.item.text[0].lower() + verdict.item.text[1:]
    if verdict.status in ("not found", "look here"):
        nearest = verdict.nearest[0] if verdict.nearest else None
        close = f' The nearest passage that we found is "{nearest.text}" ({place_of(nearest)}).' if nearest else ""
        return (
            f"Item {verdict.item.number} ({text}): we did not find this in the manuscript.{close} "
            "Please add it, or tell us where it stands."
        )
    lacking = verdict.missing_elements
    if verdict.status == "partly reported" and lacking:
        where = f" ({place_of(verdict.evidence[0])})" if verdict.evidence else ""
        return (
            f"Item {verdict.item.number} ({text}): this is reported{where}, but we did not find {', '.join(lacking)}. "
            "Please add it, or tell us where it stands."
        )
    return None


def questions(report: Report) -> str:
    """All questions as plain text, to be edited and sent."""
    asked = [question for verdict in report.verdicts if (question := question_of(verdict))]
    lines = [f'Questions on "{report.document.title}" ({report.checklist})', ""]
    lines += [f"{number}. {question}\n" for number, question in enumerate(asked, 1)] or ["Nothing was found missing."]
    return "\n".join(lines) + "\n"
