"""What every reader of a format shares: blocks of text, sentences, headings that nobody marked, references, rows of tables."""

# ruff: noqa: E501 -- lists of headings

import re
import struct
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path

# What pypdf, python-docx, lxml and zipfile raise on damaged files, beside errors of their own; found by fuzzing.
DAMAGE = (ValueError, LookupError, TypeError, AttributeError, AssertionError, ArithmeticError, RuntimeError, EOFError)
DAMAGE = (*DAMAGE, OSError, SyntaxError, zlib.error, struct.error, zipfile.BadZipFile)


class DocumentError(ValueError):
    """A file that cannot be read as a report; the message names the value and the cure."""


@dataclass(kw_only=True)
class Block:
    """A paragraph or heading on its way to sentences; `level` 0 is a paragraph."""

    text: str
    level: int = 0
    page: int | None = None
    section: tuple[str, ...] | None = None


@dataclass(kw_only=True)
class Reading:
    """What a reader of one format hands over: blocks in their order, and what it could not read."""

    blocks: list[Block] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


# The wording of the checklists themselves, as authors append them to a draft; it states nothing about the trial.
CHECKLIST_HEADING = re.compile(
    r".*\b(consort|spirit|tidier|prisma|strobe)\b.*\b(check ?list|statement|items?)\b.*|.*\bcheck ?list of information to\b.*|reporting checklist",
    re.IGNORECASE,
)

# ---- sentences ----

_ABBREVIATION = re.compile(
    r"(?:\b(?:e\.g|i\.e|cf|vs|et al|fig|figs|ref|refs|no|nos|dr|drs|mr|mrs|ms|prof|st|approx|ca|eq|sec|vol|pp|p|resp|inc|ltd"
    r"|co|corp|dept|univ|jan|feb|mar|apr|jun|jul|aug|sep|sept|oct|nov|dec|u\.s|u\.k|ph\.d|m\.d)|\b[A-Z])\.$",
    re.IGNORECASE,
)
CAPTION = re.compile(r"(fig(ure|\.)?|table) \d+[.:]", re.IGNORECASE)
_INITIAL = re.compile(r"(?<![A-Za-z])[A-Z]\.$")
_BREAK = re.compile(r"(?<=[.!?])(?:[\"'”’)\]]*)(?:\[?\d+(?:[,–-]\d+)*\]?)?\s+(?=[\"'“‘(\[]?[A-Z0-9])")


def split_sentences(text: str) -> list[str]:
    """Sentences of a paragraph; abbreviations, initials and decimals do not end one.

    Example:
        >>> split_sentences("We gave 2.5 mg vs. placebo (see Fig. 1). Nobody died.")
        ['We gave 2.5 mg vs. placebo (see Fig. 1).', 'Nobody died.']
    """
    text = " ".join(text.split())
    sentences, start = [], 0
    for found in _BREAK.finditer(text):
        before = text[max(start, found.start() - 40) : found.start()]
        tail = before[-12:]
        if found.start() - start < 40 and CAPTION.fullmatch(before):
            continue
        word = re.search(r"[\w.]+\.$", tail)
        if word and (_INITIAL.search(tail) or _ABBREVIATION.match(word[0]) or _is_et_al(before)):
            continue
        sentences.append(text[start : found.end()].strip())
        start = found.end()
    if text[start:].strip():
        sentences.append(text[start:].strip())
    return sentences


def _is_et_al(text: str) -> bool:
    return text.endswith("et al.")


# ---- headings in text that has none marked ----

_KNOWN_HEADING = re.compile(
    r"(abstract|summary|background|introduction|objectives?|aims?|methods?|materials? and methods|patients? and methods"
    r"|subjects? and methods|participants and methods|methods and materials|research design and methods|study design|trial design"
    r"|design|setting|settings and participants|participants?|patients|eligibility( criteria)?|inclusion criteria|exclusion criteria"
    r"|interventions?|treatments?|outcomes?|outcome measures?|end ?points?|sample size( calculation)?|randomi[sz]ation"
    r"|randomi[sz]ation and (blinding|masking)|allocation( concealment)?|sequence generation|implementation|blinding|masking"
    r"|statistical (analysis|analyses|methods)|statistics|data (analysis|collection|management|monitoring)|ethics.*|results|findings"
    r"|participant flow|recruitment|baseline (data|characteristics)|numbers analy[sz]ed|outcomes and estimation"
    r"|ancillary analyses|harms|adverse events|safety|discussion|limitations|strengths and limitations|generali[sz]ability"
    r"|interpretation|conclusions?|trial registration|registration|protocol|funding|acknowledge?ments?|competing interests"
    r"|conflicts? of interest|authors?['’]? contributions?|data (sharing|availability).*|references|bibliography"
    r"|supplementary (material|data|appendix)|appendix.*|abbreviations|monitoring|dissemination|confidentiality|consent.*)",
    re.IGNORECASE,
)
_OUTER_HEADING = re.compile(
    r"(abstract|summary|background|introduction|(materials?|patients?|subjects?|participants) and methods|methods?(/design)?"
    r"|methods and (analysis|materials|design)|research design and methods|results|findings|discussion|conclusions?|references"
    r"|bibliography|acknowledge?ments?|funding|trial registration|competing interests|conflicts? of interest"
    r"|authors?['’]? contributions?|supplementary.*|appendix.*|declarations?|ethics and dissemination|abbreviations)",
    re.IGNORECASE,
)
_NUMBERING = re.compile(r"^(\d+(?:\.\d+)*)[.):]?\s+(?:[|:–—-]\s*)?(?=[A-Z])")
_ROMAN = re.compile(r"^(?:[IVX]+[.):]|[A-Z][.)])\s*(?:[|–—-]\s*)?(?=[A-Z])")
REFERENCES = re.compile(r"(references|bibliography|literature cited|works cited)", re.IGNORECASE)
RUN_IN = re.compile(
    r"^(background|introduction|objectives?|aims?|purpose|design|setting|participants|patients|interventions?"
    r"|main outcome measures?|methods?|results|findings|conclusions?|interpretation|trial registration|registration|funding)"
    r"\s*[:.—]\s+(?=\S)",
    re.IGNORECASE,
)


def run_in_heading(text: str) -> str | None:
    """The heading at the start of its own paragraph, without its stop.

    Example:
        >>> run_in_heading("Sample size. We needed 82 people."), run_in_heading("Consent was given. We met.")
        ('Sample size', None)
    """
    found = re.match(r"([A-Z][^.:—]{2,60}?)\s*[.:—]\s+(?=[A-Z(\"“])", text)
    if found is None or not (_KNOWN_HEADING.fullmatch(found[1]) or _OUTER_HEADING.fullmatch(found[1])):
        return None
    return None if re.search(r"\b(was|were|is|are|has|have|had|will)\b", found[1]) else found[1]


def is_outer_heading(text: str) -> bool:
    return bool(_OUTER_HEADING.fullmatch(text))


def heading_level(line: str) -> int:
    """0 for a paragraph, 1 for an outer heading, 2 for an inner one, in text where headings are not marked.

    Example:
        >>> heading_level("2.1 Sequence generation"), heading_level("METHODS"), heading_level("We met.")
        (2, 1, 0)
    """
    line = line.strip()
    if not line or len(line) > 80 or line[-1] in ".,;?!" or REFERENCE.match(line):
        return 0
    numbering = _NUMBERING.match(line)
    plain = line[numbering.end() :] if numbering else _ROMAN.sub("", line)
    plain = plain.rstrip(":")
    if CHECKLIST_HEADING.fullmatch(plain):
        return 1
    if _OUTER_HEADING.fullmatch(plain):
        return 2 if numbering and "." in numbering[1] else 1
    if _KNOWN_HEADING.fullmatch(plain):
        return 2
    if numbering and len(plain.split()) <= 8:
        return 1 + min(numbering[1].count("."), 2)
    return 0


# "1. Smith AB," or, with other names, a number in front of a year with a volume, a DOI or "et al.".
REFERENCE = re.compile(
    r"\[?\d{1,3}[.\])]?\s+[A-Z][\w'’-]+ [A-Z]{1,3}[.,]"
    r"|(?=.*\b(19|20)\d\d\b)(?=.*(\bet al\b|\bdoi\b|\d+ ?: ?e?\d+))\[?\d{1,3}[.\])]\s+\S"
)
MIN_REFERENCES = 3


def without_references(reading: "Reading") -> None:
    """A numbered list of references at the end that no heading announces."""
    if any(block.level and REFERENCES.fullmatch(re.sub(r"^[\d.\s]+", "", block.text)) for block in reading.blocks):
        return
    paragraphs = [number for number, block in enumerate(reading.blocks) if not block.level]
    listed = [number for number in paragraphs if REFERENCE.match(reading.blocks[number].text)]
    first = next((n for n in listed if all(m in listed for m in paragraphs if m >= n)), None)
    if first is not None and sum(number >= first for number in listed) >= MIN_REFERENCES:
        reading.warnings.append(f"{sum(n >= first for n in listed)} references without a heading were left out.")
        reading.blocks = reading.blocks[:first]


_NUMBER = re.compile(r"[(\[<>=±*]*[-−–+]?\d[\d.,·%/]*[)\]%*†‡]*")


def is_table_row(line: str) -> bool:
    """A line of mostly numbers that ends no sentence, in text where tables are not marked.

    Example:
        >>> is_table_row("Age (years) 54.2 (10.1) 55.0 (9.8) 0.45"), is_table_row("the score fell (95% CI 1.2 to 3.4).")
        (True, False)
    """
    words = line.split()
    numbers = sum(bool(_NUMBER.fullmatch(word)) for word in words)
    return numbers >= 3 and numbers > len(words) / 2 and line[-1] not in ".;,"


def warn_of_rows(reading: "Reading", count: int) -> None:
    if count:
        reading.warnings.append(f"{count} lines look like rows of tables and were not read.")


def read_text(path: Path) -> str:
    data = path.read_bytes()
    if b"\0" in data[:4096]:
        raise DocumentError(
            f"{path.name} is not text: it holds NUL bytes. Pass the report as PDF, docx, JATS XML or UTF-8."
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("cp1252", errors="replace")
    strange = sum(not (letter.isprintable() or letter in "\n\r\t\f") for letter in text[:20000])
    if text and strange > 0.02 * min(len(text), 20000):
        raise DocumentError(f"{path.name} does not look like text: {strange} unprintable characters. Save it as UTF-8.")
    return text


def mark_title(reading: Reading) -> None:
    """What stands before the first heading, if it is short, is the title."""
    if reading.blocks and reading.blocks[0].level == 0 and len(reading.blocks[0].text) <= 300:
        reading.blocks[0].section = ("Title",)


def add_row(cells: list[str], reading: Reading, path: tuple[str, ...] | None = None) -> bool:
    """Reads a row that holds words: criteria and outcomes often stand in tables. Whether it was read."""
    text = ": ".join(dict.fromkeys(filter(None, cells)))  # cells that were merged come once
    words = re.findall(r"[A-Za-z]{3,}", text)
    if len(words) < 5 or is_table_row(text):
        return False
    reading.blocks.append(Block(text=text, section=path))
    return True
