"""File -> `Document`: sentences, each with its section path and its place, and what could not be read.

Plain text, Markdown, JATS XML (PubMed Central), HTML, LaTeX, PDF and docx. Size, pages and expansion are bounded before anything is
parsed. Nothing leaves the machine.
"""

# ruff: noqa: E501 -- lists of headings

import re
from dataclasses import dataclass, replace
from pathlib import Path

from .html import read_html
from .jats import read_jats
from .latex import read_latex
from .pdf import read_pdf
from .plain_text import read_markdown, read_plain
from .processing_trialreport import section_kind
from .reading import (
    CHECKLIST_HEADING,
    REFERENCES,
    RUN_IN,
    DocumentError,
    Reading,
    is_outer_heading,
    run_in_heading,
    split_sentences,
    without_references,
)
from .word import read_docx

MAX_BYTES = 40_000_000
MAX_SENTENCES = 6000
MAX_LETTERS = 2_000_000
RUN_IN_LEVEL = 7  # below every heading that stands alone


@dataclass(frozen=True, kw_only=True)
class Sentence:
    """`number` and `paragraph` count from 1 in the document, `page` from 1 where the format has pages."""

    number: int
    text: str
    section: tuple[str, ...]
    page: int | None = None
    paragraph: int | None = None

    @property
    def place(self) -> str:
        where = " > ".join(self.section) or "no section"
        return f"{where}, p. {self.page}" if self.page else where


@dataclass(frozen=True, kw_only=True)
class Document:
    """A text in sentences. `kind`: ending of the file that it was read from; `warnings`: what could not be read."""

    path: str
    kind: str
    sentences: tuple[Sentence, ...]
    warnings: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """The longest sentence of the title section, or the first sentence."""
        titles = [sentence.text for sentence in self.sentences if section_kind(sentence.section) == "title"]
        return max(titles, key=len) if titles else self.sentences[0].text


READERS = {
    ".txt": read_plain,
    ".text": read_plain,
    ".md": read_markdown,
    ".markdown": read_markdown,
    ".xml": read_jats,
    ".nxml": read_jats,
    ".pdf": read_pdf,
    ".docx": read_docx,
    ".html": read_html,
    ".htm": read_html,
    ".xhtml": read_html,
    ".tex": read_latex,
}


# ---- together ----


def read_document(path: str | Path) -> Document:
    """Reads a report.

    Raises:
        DocumentError: no such file, an unknown format, encrypted, scanned, too large, empty, or not English.
    """
    path = Path(path)
    if not path.is_file():
        raise DocumentError(f"{path} is not a file.")
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise DocumentError(f"{path.name} has {size:,} bytes; at most {MAX_BYTES:,} are read. Pass the report alone.")
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise DocumentError(f'"{path.suffix}" ({path.name}) is not a known format; pass one of {", ".join(READERS)}.')
    reading = reader(path)
    letters = sum(len(block.text) for block in reading.blocks)
    if letters > MAX_LETTERS:
        raise DocumentError(
            f"{path.name} has {letters:,} letters; at most {MAX_LETTERS:,} are read. Pass the report alone."
        )
    without_references(reading)
    sentences = to_sentences(reading)
    if not sentences:
        raise DocumentError(f"{path.name} holds no sentence.")
    if len(sentences) > MAX_SENTENCES:
        raise DocumentError(
            f"{path.name} has {len(sentences)} sentences; at most {MAX_SENTENCES} are read. Pass the report alone."
        )
    _refuse_other_languages(path.name, sentences)
    return Document(
        path=str(path),
        kind=path.suffix.lower(),
        sentences=tuple(sentences),
        warnings=(*reading.warnings, *_doubts(sentences)),
    )


def to_sentences(reading: Reading) -> list[Sentence]:
    """Blocks -> sentences with section paths; headings are sentences too, as in the corpora. References end the text."""
    sentences: list[Sentence] = []
    path: list[tuple[int, str]] = []
    dropped = paragraph = 0
    for block in reading.blocks:
        text = " ".join(block.text.split())
        if not text:
            continue
        # "Background: ... Methods: ... Results: ..." in one paragraph is an abstract that nothing announces.
        if not block.level and not path and sum(bool(RUN_IN.match(part)) for part in split_sentences(text)) >= 3:
            block.section = block.section or ("Abstract",)
        run_in = None if block.level else run_in_heading(text)
        if run_in and block.section and run_in.lower() == block.section[-1].lower():
            run_in = None
        level = block.level
        if run_in and block.section is None and not (path and section_kind([path[0][1]]) == "abstract"):
            level = 1 if is_outer_heading(run_in) else RUN_IN_LEVEL
        if level:
            path = [row for row in path if row[0] < level] + [(level, run_in or text)]
        headers = block.section if block.section is not None else tuple(header for _, header in path)
        if any(REFERENCES.fullmatch(re.sub(r"^[\d.\s]+", "", header)) for header in headers):
            dropped += block.level == 0
            continue
        paragraph += block.level == 0
        in_abstract = section_kind(headers) == "abstract"
        if run_in and not in_abstract:
            headers = headers if block.section is None else (*headers, run_in)
            sentences.append(
                Sentence(number=len(sentences) + 1, text=run_in, section=headers, page=block.page, paragraph=paragraph)
            )
            text = re.sub(r"^\s*[.:—]\s+", "", text[len(run_in) :])
        for part in [text] if block.level else split_sentences(text):
            named = RUN_IN.match(part) if in_abstract and not block.level else None
            if named:
                headers = (headers[0], named[1])
            sentences.append(
                Sentence(number=len(sentences) + 1, text=part, section=headers, page=block.page, paragraph=paragraph)
            )
    if dropped:
        reading.warnings.append(f"{dropped} paragraphs under References were left out.")
    return _without_empty_evidence(reading, sentences)


_CHECKLIST_ROW = re.compile(
    r"\bhow sample size was determined\b|\bmethod used to generate the (random )?allocation sequence\b"
    r"|\bmechanism used to implement the (random )?allocation sequence\b|\btype of randomi[sz]ation[;,] details? of any restriction\b"
    r"|\bwho generated the (random )?allocation sequence, who enrolled\b|\bif done, who was blinded after assignment\b"
    r"|\bwhere the full trial protocol can be accessed\b|\bregistration number and name of trial registry\b"
    r"|\bidentification as a randomi[sz]ed trial in the title\b|\bstructured summary of trial design, methods\b"
    r"|\bscientific background and explanation of rationale\b|\bspecific objectives or hypotheses\b"
    r"|\bdescription of trial design \(such as parallel\b|\bimportant changes to methods after trial commencement\b"
    r"|\beligibility criteria for participants\b.{0,12}$|\bsettings and locations where the data were collected\b"
    r"|\bthe interventions for each group with sufficient details\b|\bcompletely defined pre-?specified primary and secondary\b"
    r"|\bstatistical methods used to compare groups for primary\b|\bsources of funding and other support\b.{0,60}role of funders\b"
    r"|\ball important harms or unintended effects in each group\b|\btrial limitations, addressing sources of potential bias\b",
    re.IGNORECASE,
)
_PLACEHOLDER = re.compile(
    r"[\W_]*((to be|will be) (completed|added|filled in|provided|inserted|confirmed|determined|written)\b.{0,40}|tb[acd]|todo|to do"
    r"|(please )?(insert|add|complete|describe|enter|fill in)\b[^.]{0,60}\b(here|text|this section)|lorem ipsum\b.*|x{3,}|n/?a|not applicable)[\W_]*",
    re.IGNORECASE,
)


def _without_empty_evidence(reading: Reading, sentences: list[Sentence]) -> list[Sentence]:
    """Leaves out an appended checklist, placeholders, and headings under which nothing is said: none is a statement."""
    checklist = [
        any(CHECKLIST_HEADING.fullmatch(header) for header in sentence.section)
        or bool(_CHECKLIST_ROW.search(sentence.text))
        for sentence in sentences
    ]
    blank = [bool(_PLACEHOLDER.fullmatch(sentence.text)) for sentence in sentences]
    said = [s for s, *is_empty in zip(sentences, checklist, blank, strict=True) if not any(is_empty)]
    filled = {s.section[:depth] for s in said if s.text not in s.section[-1:] for depth in range(1, len(s.section) + 1)}
    kept = [s for s in said if s.text not in s.section[-1:] or s.section in filled]
    for count, what in (
        (sum(checklist), "sentences of an appended checklist were left out"),
        (sum(blank), "placeholders were left out"),
        (len(said) - len(kept), "headings without text of their own were left out"),
    ):
        if count:
            reading.warnings.append(f"{count} {what}: they state nothing about the trial.")
    return [replace(sentence, number=number) for number, sentence in enumerate(kept, 1)]


_ENGLISH = frozenset(
    ("the", "of", "and", "to", "in", "were", "was", "for", "with", "a", "that", "by", "at", "or", "from", "on", "this", "is")
)  # fmt: skip


def _refuse_other_languages(name: str, sentences: list[Sentence]) -> None:
    words = [word for sentence in sentences[:800] for word in re.findall(r"\w+", sentence.text.lower())]
    share = sum(word in _ENGLISH for word in words) / max(len(words), 1)
    if len(words) >= 60 and share < 0.12:
        raise DocumentError(
            f"{name} does not look English: {share:.0%} of its words are among the commonest English ones. "
            "The checker was trained on English reports only; pass a translation."
        )


_SUPPLEMENT = re.compile(
    r"\bsupplementa(l|ry) (materials?|files?|appendi(x|ces)|tables?|figures?|data|information|methods?)\b"
    r"|\badditional files? \d|\b(web|online|supplementary) (appendi(x|ces)|supplements?)\b|\bappendix [\dA-Z]\b|\bsee (the )?appendix\b",
    re.IGNORECASE,
)


def _doubts(sentences: list[Sentence]) -> list[str]:
    doubts = []
    text = " ".join(sentence.text for sentence in sentences).lower()
    if len(re.findall(r"\brandom(?:ly|i[sz]ed|i[sz]ation|i[sz]e)?\b", text)) < 2:
        doubts.append("Randomisation is hardly mentioned: this may not be a report of a randomised trial.")
    elsewhere = sum(bool(_SUPPLEMENT.search(sentence.text)) for sentence in sentences)
    if elsewhere:
        doubts.append(
            f"Sentences that point to a supplement: {elsewhere}. Supplements are not read; what only they state is not found."
        )
    if len(sentences) < 40:
        doubts.append(f"Only {len(sentences)} sentences: an abstract or a part? Absent items say little then.")
    return doubts
