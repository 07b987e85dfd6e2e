"""Report and its Word file -> the same file with a comment at each verdict's sentence, and the checklist at its end."""

import copy
import re
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

from .check import Report, Verdict
from .documents import DocumentError, Sentence
from .submission import HEADER, checklist_rows
from .word import FALLBACK, WORD, open_word, run_text, word_text

AUTHOR, INITIALS = "CTFM report-check", "RC"


def annotate(report: Report, out: Path) -> None:
    """Writes the report's own Word file with comments; its text is not changed.

    Raises:
        DocumentError: the report is no Word file, or `out` is that file itself.
    """
    source = Path(report.document.path)
    if source.suffix.lower() != ".docx":
        raise DocumentError(f"{source.name} is not a Word file; comments are written into .docx only.")
    if out.exists() and out.samefile(source):
        raise DocumentError(f"{out} is the report itself; give the file with comments another name.")
    file = open_word(source)
    places = _places(file, report.document.sentences)
    for sentence, verdicts in _by_sentence(report, places):
        paragraph, start = places[sentence.number]
        runs = _runs_between(file, paragraph, start, start + len(sentence.text))
        file.add_comment(runs, text="\n".join(map(comment_of, verdicts)), author=AUTHOR, initials=INITIALS)
    _add_list(file, report)
    file.save(str(out))


def comment_of(verdict: Verdict) -> str:
    item = f"{verdict.item.number} {verdict.item.text}"
    if verdict.status in ("not found", "look here"):
        return f"{item}: not found. Does this sentence state it?"
    lacking = ", ".join(verdict.missing_elements)
    return f"{item}: {verdict.status}{f'; not found: {lacking}' if lacking else ''}."


def _by_sentence(report: Report, places: Container[int]) -> list[tuple[Sentence, list[Verdict]]]:
    """Every verdict at the first of its sentences that has a place, or at the first of those that come nearest."""
    found: dict[int, list[Verdict]] = {}
    for verdict in report.verdicts:
        nearest = verdict.nearest if verdict.status in ("not found", "look here") else ()
        for sentence in [s for s in verdict.evidence or nearest if s.number in places][:1]:
            found.setdefault(sentence.number, []).append(verdict)
    return [(report.document.sentences[number - 1], verdicts) for number, verdicts in sorted(found.items())]


def _places(file: Any, sentences: Sequence[Sentence]) -> dict[int, tuple[Any, int]]:
    """The paragraph of every sentence, and where in its text it begins; sentences stand in the order of the paragraphs.

    Sentences of tables, notes and text boxes have no place: a row is read as one sentence, and Word takes no comment in a box.
    """
    elsewhere = (f"{WORD}tbl", f"{WORD}txbxContent", FALLBACK)
    paragraphs = [
        node for node in file.element.body.iter(f"{WORD}p") if next(node.iterancestors(*elsewhere), None) is None
    ]
    texts = [word_text(node) for node in paragraphs]
    places: dict[int, tuple[Any, int]] = {}
    number, start = 0, 0
    for sentence in sentences:
        for later in range(number, len(paragraphs)):
            at = texts[later].find(sentence.text, start if later == number else 0)
            if at >= 0:
                number, start = later, at + len(sentence.text)
                places[sentence.number] = (paragraphs[later], at)
                break
    return places


def _runs_between(file: Any, paragraph: Any, start: int, end: int) -> list[Any]:
    """Runs that hold the letters `start` to `end` of a paragraph's normalised text, parted where these begin and end."""
    from docx.text.run import Run

    offsets = _offsets("".join(map(run_text, _own_runs(paragraph))))
    low, high = offsets[start], offsets[end - 1] + 1
    for cut in (high, low):
        _part(paragraph, cut)
    chosen, position = [], 0
    for run in _own_runs(paragraph):
        length = len(run_text(run))
        if position < high and position + length > low:
            chosen.append(Run(run, file._body))
        position += length
    return chosen


def _own_runs(paragraph: Any) -> list[Any]:
    """The runs whose text is the paragraph's: not deleted, and not of a text box inside it."""
    gone = (f"{WORD}moveFrom", f"{WORD}del")
    return [
        run
        for run in paragraph.iter(f"{WORD}r")
        if next(run.iterancestors(f"{WORD}p"), None) is paragraph and next(run.iterancestors(*gone), None) is None
    ]


def _offsets(raw: str) -> list[int]:
    """For every letter of the normalised text (single spaces, none at the ends), where it stands in `raw`."""
    offsets = []
    for found in re.finditer(r"\S+", raw):
        if offsets:
            offsets.append(found.start() - 1)
        offsets += range(found.start(), found.end())
    return offsets


def _part(paragraph: Any, cut: int) -> None:
    """Parts the run that goes over letter `cut` in two with the same format; a run of text and line breaks stays whole."""
    position = 0
    for run in _own_runs(paragraph):
        whole, texts = run_text(run), list(run.iter(f"{WORD}t"))
        if position < cut < position + len(whole) and len(texts) == 1 and texts[0].text == whole:
            second = copy.deepcopy(run)
            for own, text in ((run, whole[: cut - position]), (second, whole[cut - position :])):
                node = own.find(f"{WORD}t")
                node.text = text
                node.set("{http://www.w3.org/XML/1998/namespace}space", "preserve")
            run.addnext(second)
            return
        position += len(whole)


def _add_list(file: Any, report: Report) -> None:
    file.add_page_break()
    file.add_paragraph(f"{report.checklist} check").runs[0].bold = True
    table = file.add_table(rows=1, cols=len(HEADER) + 1)
    if "Table Grid" in file.styles:
        table.style = "Table Grid"
    for cell, text in zip(table.rows[0].cells, (*HEADER, "Verdict"), strict=True):
        cell.text = text
    for row, verdict in zip(checklist_rows(report), report.verdicts, strict=True):
        for cell, text in zip(table.add_row().cells, (*row, verdict.status), strict=True):
            cell.text = text
