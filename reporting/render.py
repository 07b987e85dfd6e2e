"""`Report` -> what people and programs read: terminal, Markdown, JSON, CSV and HTML; `submission.py` has what is sent on."""

import csv
import html as escape
import io
import json
import shutil
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from .check import STATUSES, ElementVerdict, Report, Verdict
from .checklist import Item
from .compare import OutcomeMatch
from .documents import Sentence
from .markdown_tables import markdown_table
from .submission import Claim, question_of

DISCLAIMER = (
    "It finds statements; it does not judge whether they are true, and it is wrong as often as the figures beside each "
    "verdict say. Read the report yourself before you ask its authors for anything."
)
LEGEND = (
    "Beside each verdict: its calibrated probability, and how often such a verdict was right on articles that the deciding "
    'layers had not seen. "Look here" is an item that was not found, where that is too often wrong to be called missing. "Not '
    'checked" is an item that nothing here answers.'
)
_COLOURS = {
    "reported": "32",
    "partly reported": "33",
    "not found": "31",
    "look here": "35",
    "not applicable": "90",
    "not checked": "90",
}
_MARKS = {
    "reported": "✓",
    "partly reported": "~",
    "not found": "✗",
    "look here": "?",
    "not applicable": "-",
    "not checked": "·",
}
# What a reader should see first.
_FIRST = ("look here", "not found", "partly reported", "reported", "not applicable", "not checked")


def error_rate(verdict: Verdict) -> str:
    """How often such a verdict was right on articles that the model had not seen.

    For "not found" it is how often the item was really missing; else how often it was really there.
    """
    rates = verdict.error_rates
    if verdict.status == "not checked":
        return ""
    if rates is None:
        return "not measured"
    if verdict.status in ("not found", "look here", "not applicable"):
        right, said = rates.called_missing_rightly, rates.called_missing
    else:
        right, said = rates.called_reported_rightly, rates.called_reported
    if not said:
        return f"no such verdict in {rates.called_reported + rates.called_missing} articles"
    return f"right {right} of {said} times"


def _places(verdict: Verdict, most: int = 3) -> str:
    places = [f"{sentence.place} (s. {sentence.number})" for sentence in verdict.evidence[:most]]
    more = len(verdict.evidence) - most
    return "; ".join(places) + (f"; and {more} more" if more > 0 else "")


def _missing(verdict: Verdict) -> str:
    return ", ".join(_lack(element) for element in verdict.elements if not element.found)


def _lack(element: ElementVerdict) -> str:
    rates = element.error_rates
    if rates is None or not rates.called_missing:
        return element.name
    return f"{element.name} (right {rates.called_missing_rightly} of {rates.called_missing} times)"


def _confidence(verdict: Verdict) -> str:
    return "" if verdict.confidence is None else f"{verdict.confidence:.0%}"


def counts(report: Report) -> str:
    if not report.study.is_trial:
        return "not checked"
    return ", ".join(f"{report.count(status)} {status}" for status in STATUSES if report.count(status))


# ---- terminal ----


def terminal_table(report: Report, colours: bool = True, everything: bool = False) -> str:
    """A table that fits the terminal; items that need no look only with `everything`."""

    def paint(text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if colours else text

    width = max(60, min(shutil.get_terminal_size((110, 24)).columns, 140))
    lines = [paint(textwrap.shorten(report.document.title, width), "1"), f"{report.checklist}: {counts(report)}", ""]
    part = ""
    shown = [verdict for verdict in report.verdicts if everything or verdict.needs_a_look]
    longest = max((len(error_rate(verdict)) for verdict in shown), default=0)
    for verdict in shown:
        if verdict.item.part != part:
            part = verdict.item.part
            lines.append(paint(part, "1"))
        head = f"  {verdict.item.number:<4} {_MARKS[verdict.status]} {verdict.status:<15}"
        confidence = f"{_confidence(verdict):>4}  {error_rate(verdict):<{longest}}"
        room = width - len(head) - len(confidence) - 3
        title = textwrap.shorten(verdict.item.text, max(room, 20), placeholder="…")
        lines.append(f"{paint(head, _COLOURS[verdict.status])} {title:<{max(room, 20)}}  {confidence}".rstrip())
        if verdict.status == "partly reported":
            lines += textwrap.wrap(
                f"not found: {_missing(verdict)}", width, initial_indent=" " * 9, subsequent_indent=" " * 9
            )
        if verdict.note and everything:
            lines.append(f"         {verdict.note}")
        if verdict.nearest and verdict.needs_a_look:
            near = ", ".join(f"s. {sentence.number}" for sentence in verdict.nearest)
            first = max(verdict.nearest, key=lambda sentence: len(sentence.text))
            lines.append(" " * 9 + textwrap.shorten(f"nearest: {near}: {first.text}", width - 9, placeholder="…"))
        if verdict.evidence and everything:
            lines.append(" " * 9 + textwrap.shorten(_places(verdict), width - 9, placeholder="…"))
    if not report.study.is_trial:
        lines.append(paint(report.study.description, "31"))
    elif len(lines) == 3:
        lines.append("Every item that applies was found.")
    lines.append("")
    lines += [paint(f"! {warning}", "33") for warning in report.warnings]
    return "\n".join([*lines, textwrap.fill(f"{LEGEND} {DISCLAIMER}", width)])


def summary_table(rows: Sequence[tuple[Item, Counter]], num_reports: int) -> str:
    """Over a folder: the items that are missing most often first."""
    lines = [f"{num_reports} reports; items most often missing first", ""]
    lines.append(f"{'item':<6}{'not found':>10}{'look':>6}{'partly':>8}{'reported':>10}{'n/a':>6}  text")
    for item, found in rows:
        cells = (
            f"{found['not found']:>10}{found['look here']:>6}{found['partly reported']:>8}{found['reported']:>10}"
            f"{found['not applicable']:>6}"
        )
        lines.append(f"{item.number:<6}{cells}  {item.text}")
    return "\n".join([*lines, "", DISCLAIMER])


EDITOR_COLUMNS = ("file", "title", "taken for", "checklist", *STATUSES, "items not found", "items to look at")


def editors_rows(reports: Sequence[Report]) -> list[list[str]]:
    """One row a report, those with most items not found first; `EDITOR_COLUMNS` names the columns."""
    rows = []
    for report in sorted(reports, key=lambda report: -report.count("not found")):
        numbers = {
            status: " ".join(verdict.item.number for verdict in report.verdicts if verdict.status == status)
            for status in ("not found", "look here")
        }
        kind = "protocol" if report.study.is_protocol else "abstract" if report.study.is_abstract else "report"
        rows.append(
            [
                Path(report.document.path).name,
                report.document.title,
                kind if report.study.is_trial else report.study.kind,
                report.checklist,
                *(str(report.count(status)) for status in STATUSES),
                numbers["not found"],
                numbers["look here"],
            ]
        )
    return rows


def editors_table(reports: Sequence[Report]) -> str:
    """The same for the terminal."""
    lines = ["", f"{'not found':>9} {'look':>5} {'partly':>6} {'reported':>8}  report"]
    for row in editors_rows(reports):
        cells = dict(zip(EDITOR_COLUMNS, row, strict=True))
        counts = f"{cells['not found']:>9} {cells['look here']:>5} {cells['partly reported']:>6} {cells['reported']:>8}"
        lines.append(f"{counts}  {cells['file']} ({cells['taken for']}, {cells['checklist']})")
    return "\n".join(lines)


def editors_csv(reports: Sequence[Report]) -> str:
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(EDITOR_COLUMNS)
    writer.writerows([[_plain_cell(cell) for cell in row] for row in editors_rows(reports)])
    return out.getvalue()


def _plain_cell(cell: str) -> str:
    """A cell that a spreadsheet would run as a formula gets a quote in front."""
    return f"'{cell}" if cell[:1] in ("=", "+", "-", "@") else cell


def comparison(matches: Sequence[OutcomeMatch]) -> str:
    """Outcomes of a protocol that its report may have left out."""
    lines = ["", "Outcomes in the protocol, and the nearest sentence of the report (words compared, not meanings)"]
    for match in matches:
        lines.append(f"- protocol s. {match.protocol.number}: {match.protocol.text}")
        if match.report is None:
            lines.append("  no sentence of the report is near")
        else:
            lines.append(f"  report s. {match.report.number}: {match.report.text}")
        lines += [f"  ! {change}" for change in match.changes]
    return "\n".join(lines if matches else [*lines, "No sentence of the protocol was recognised as defining outcomes."])


def claims_table(claims: Sequence[Claim]) -> str:
    """The page numbers of a submitted checklist, those that do not agree first."""
    lines = ["", "Page numbers of the submitted checklist"]
    lines += [
        f"{'  ' if claim.agrees else '! '}{claim.number:<5}{claim.says}"
        for claim in sorted(claims, key=lambda c: c.agrees)
    ]
    return "\n".join(lines)


# ---- documents ----


def markdown(report: Report) -> str:
    lines = [
        f"# {report.checklist} check: {report.document.title}",
        "",
        f"{counts(report)}.",
        "",
        f"{LEGEND} {DISCLAIMER}",
        "",
    ]
    lines += [f"- {warning}" for warning in report.warnings]
    rows = [
        (
            verdict.item.number,
            verdict.item.text,
            verdict.status,
            _confidence(verdict),
            _missing(verdict) or verdict.note,
            _places(verdict),
            error_rate(verdict),
        )
        for verdict in report.verdicts
    ]
    head = ("Item", "", "Status", "Probability", "Missing", "Where", "Such verdicts")
    return "\n".join([*lines, "", markdown_table(head, rows)])


def _sentence(sentence: Sentence) -> dict:
    return {
        "sentence": sentence.number,
        "section": list(sentence.section),
        "page": sentence.page,
        "paragraph": sentence.paragraph,
        "text": sentence.text,
    }


def as_dict(report: Report) -> dict:
    """What `to_json` writes; `report.schema.json` describes it."""
    return {
        "schema": 2,
        "file": Path(report.document.path).name,
        "title": report.document.title,
        "checklist": report.checklist,
        "extensions": list(report.extensions),
        "study": {
            "kind": report.study.kind,
            "is_trial": report.study.is_trial,
            "is_protocol": report.study.is_protocol,
            "is_abstract": report.study.is_abstract,
            "designs": list(report.study.designs),
        },
        "warnings": list(report.warnings),
        "disclaimer": DISCLAIMER,
        "items": [
            {
                "number": verdict.item.number,
                "same_as": {key: list(numbers) for key, numbers in verdict.item.same_as.items()},
                "answered_by": verdict.item.answered_by,
                "part": verdict.item.part,
                "text": verdict.item.text,
                "status": verdict.status,
                "probability": None if verdict.probability is None else round(verdict.probability, 4),
                "note": verdict.note,
                "evidence": [_sentence(sentence) for sentence in verdict.evidence],
                "nearest": [_sentence(sentence) for sentence in verdict.nearest],
                "question": question_of(verdict),
                "elements": [asdict(element) for element in verdict.elements],
                "error_rates": None if verdict.error_rates is None else asdict(verdict.error_rates),
            }
            for verdict in report.verdicts
        ],
    }


def to_json(report: Report) -> str:
    return json.dumps(as_dict(report), indent=1, ensure_ascii=False) + "\n"


def to_csv(report: Report) -> str:
    """One row an item."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(["item", "part", "text", "status", "probability", "missing", "where", "such verdicts"])
    for verdict in report.verdicts:
        row = (
            verdict.item.number,
            verdict.item.part,
            verdict.item.text,
            verdict.status,
            _confidence(verdict),
            _missing(verdict),
            _places(verdict),
            error_rate(verdict),
        )
        writer.writerow([_plain_cell(cell) for cell in row])
    return out.getvalue()


def html(report: Report) -> str:
    """One file without outside resources: a click on an item shows its sentences in the text, and the other way round."""
    template = (Path(__file__).parent / "report.html").read_text(encoding="utf-8")
    owners: dict[int, list[int]] = {}
    for row, verdict in enumerate(report.verdicts):
        for sentence in verdict.evidence:
            owners.setdefault(sentence.number, []).append(row)
    body = []
    header: tuple[str, ...] | None = None
    for sentence in report.document.sentences:
        if sentence.section != header:
            header = sentence.section
            body.append(f"</p><h3>{escape.escape(' › '.join(header) or 'No section')}</h3><p>")
        if header and sentence.text == header[-1]:
            continue  # a heading is a sentence to the model; the reader has just seen it
        rows = owners.get(sentence.number, [])
        numbers = escape.escape(", ".join(report.verdicts[row].item.number for row in rows))
        marked = f' class="e" data-rows="{" ".join(map(str, rows))}" title="{numbers}"' if rows else ""
        body.append(f'<span id="s{sentence.number}"{marked}>{escape.escape(sentence.text)}</span> ')
    warnings = "".join(f"<li>{escape.escape(warning)}</li>" for warning in report.warnings)
    values = {
        "TITLE": escape.escape(report.document.title),
        "CHECKLIST": escape.escape(report.checklist),
        "COUNTS": f"<li><b>{escape.escape(report.study.description)}</b></li>"
        if not report.study.is_trial
        else "".join(
            f'<li><button type=button class="{_css(status)}" data-status="{_css(status)}" aria-pressed="false">'
            f"<b>{report.count(status)}</b> {status}</button></li>"
            for status in _FIRST
            if report.count(status)
        ),
        "WARNINGS": f"<ul class=warnings>{warnings}</ul>" if warnings else "",
        "DISCLAIMER": escape.escape(f"{LEGEND} {DISCLAIMER}"),
        "ITEMS": "\n".join(
            _html_row(report.verdicts[row], row)
            for row in sorted(range(len(report.verdicts)), key=lambda row: _FIRST.index(report.verdicts[row].status))
        ),
        "KEY": escape.escape(f"{Path(report.document.path).name} {report.checklist}"),
        "TEXT": f"<p>{''.join(body)}</p>".replace("<p></p>", ""),
    }
    parts = template.split("%%")
    return "".join(values[part] if number % 2 else part for number, part in enumerate(parts))


def _css(status: str) -> str:
    return status.replace(" ", "-")


def _html_element(element: ElementVerdict) -> str:
    if not element.found:
        return f"<li class=lack>✗ {escape.escape(_lack(element))}</li>"
    name = escape.escape(element.name)
    return f'<li>✓ {name} <a href="#s{element.sentence}">s.&nbsp;{element.sentence}</a></li>'


def _html_row(verdict: Verdict, row: int) -> str:
    item = verdict.item
    details = []
    if verdict.elements:
        details.append(f"<ul class=elements>{''.join(map(_html_element, verdict.elements))}</ul>")
    if verdict.note:
        details.append(f"<p class=note>{escape.escape(verdict.note)}</p>")
    if verdict.evidence:
        links = " ".join(f'<a href="#s{s.number}">s.&nbsp;{s.number}</a>' for s in verdict.evidence)
        details.append(f"<p class=where>Stated in {links}</p>")
    if verdict.nearest:
        links = " ".join(f'<a href="#s{s.number}">s.&nbsp;{s.number}</a>' for s in verdict.nearest)
        details.append(f"<p class=where>Nearest sentences: {links}</p>")
    question = escape.escape(question_of(verdict) or "")
    asked = (
        f"<label>Question to the author<textarea class=question rows=4>{question}</textarea></label>"
        if question
        else ""
    )
    details.append(
        "<div class=judge><button type=button data-judge=accepted aria-pressed=false>Accept</button>"
        "<button type=button data-judge=rejected aria-pressed=false>Reject</button>"
        f"<label>Note<textarea class=remark rows=2></textarea></label>{asked}</div>"
    )
    numbers = ",".join(str(sentence.number) for sentence in verdict.evidence or verdict.nearest)
    rate = " · ".join(filter(None, (_confidence(verdict), error_rate(verdict))))
    return (
        f'<li class="item {_css(verdict.status)}" data-row="{row}" data-sentences="{numbers}">'
        f'<button type=button class=head aria-expanded="false"><span class=number>{escape.escape(item.number)}</span>'
        f"<span class=text>{escape.escape(item.text)}</span>"
        f"<span class=status>{verdict.status}</span>"
        f"<span class=rate>{rate}</span></button>"
        f"<div class=details>{''.join(details)}</div></li>"
    )
