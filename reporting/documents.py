"""File -> `Document`: sentences, each with its section path and its place, and what could not be read.

Plain text, Markdown, JATS XML (PubMed Central), PDF and docx. Size, pages and expansion are bounded before anything is
parsed; XML is read without entities, DTD or network. Nothing leaves the machine.
"""

# ruff: noqa: E501 -- lists of headings

import re
import struct
import time
import zipfile
import zlib
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

from .processing_trialreport import section_kind

MAX_BYTES = 40_000_000
MAX_PAGES = 400
MAX_PDF_SECONDS = 120
MAX_SENTENCES = 6000
MAX_LETTERS = 2_000_000
MAX_EXPANDED_BYTES = 200_000_000


# What pypdf, python-docx, lxml and zipfile raise on damaged files, beside errors of their own; found by fuzzing.
_DAMAGE = (ValueError, LookupError, TypeError, AttributeError, AssertionError, ArithmeticError, RuntimeError, EOFError)
_DAMAGE = (*_DAMAGE, OSError, SyntaxError, zlib.error, struct.error, zipfile.BadZipFile)


class DocumentError(ValueError):
    """A file that cannot be read as a report; the message names the value and the cure."""


@dataclass(frozen=True, kw_only=True)
class Sentence:
    """`number` counts from 1 in the document, `page` from 1 where the format has pages."""

    number: int
    text: str
    section: tuple[str, ...]
    page: int | None = None

    @property
    def place(self) -> str:
        where = " > ".join(self.section) or "no section"
        return f"{where}, p. {self.page}" if self.page else where


@dataclass(frozen=True, kw_only=True)
class Document:
    path: str
    kind: str
    sentences: tuple[Sentence, ...]
    warnings: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """The longest sentence of the title section, or the first sentence."""
        titles = [sentence.text for sentence in self.sentences if section_kind(sentence.section) == "title"]
        return max(titles, key=len) if titles else self.sentences[0].text


@dataclass(kw_only=True)
class _Block:
    """A paragraph or heading on its way to sentences; `level` 0 is a paragraph."""

    text: str
    level: int = 0
    page: int | None = None
    section: tuple[str, ...] | None = None


@dataclass(kw_only=True)
class _Reading:
    blocks: list[_Block] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


# ---- sentences ----

_ABBREVIATION = re.compile(
    r"(?:\b(?:e\.g|i\.e|cf|vs|et al|fig|figs|ref|refs|no|nos|dr|drs|mr|mrs|ms|prof|st|approx|ca|eq|sec|vol|pp|p|resp|inc|ltd"
    r"|co|corp|dept|univ|jan|feb|mar|apr|jun|jul|aug|sep|sept|oct|nov|dec|u\.s|u\.k|ph\.d|m\.d)|\b[A-Z])\.$",
    re.IGNORECASE,
)
_CAPTION = re.compile(r"(fig(ure|\.)?|table) \d+[.:]", re.IGNORECASE)
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
        if found.start() - start < 40 and _CAPTION.fullmatch(before):
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
_REFERENCES = re.compile(r"(references|bibliography|literature cited|works cited)", re.IGNORECASE)
_RUN_IN = re.compile(
    r"^(background|introduction|objectives?|aims?|purpose|design|setting|participants|patients|interventions?"
    r"|main outcome measures?|methods?|results|findings|conclusions?|interpretation|trial registration|registration|funding)"
    r"\s*[:.—]\s+(?=\S)",
    re.IGNORECASE,
)


def heading_level(line: str) -> int:
    """0 for a paragraph, 1 for an outer heading, 2 for an inner one, in text where headings are not marked.

    Example:
        >>> heading_level("2.1 Sequence generation"), heading_level("METHODS"), heading_level("We met.")
        (2, 1, 0)
    """
    line = line.strip()
    if not line or len(line) > 80 or line[-1] in ".,;?!" or _REFERENCE.match(line):
        return 0
    numbering = _NUMBERING.match(line)
    plain = line[numbering.end() :] if numbering else _ROMAN.sub("", line)
    plain = plain.rstrip(":")
    if _CHECKLIST_HEADING.fullmatch(plain):
        return 1
    if _OUTER_HEADING.fullmatch(plain):
        return 2 if numbering and "." in numbering[1] else 1
    if _KNOWN_HEADING.fullmatch(plain):
        return 2
    if numbering and len(plain.split()) <= 8:
        return 1 + min(numbering[1].count("."), 2)
    return 0


# "1. Smith AB," or, with other names, a number in front of a year with a volume, a DOI or "et al.".
_REFERENCE = re.compile(
    r"\[?\d{1,3}[.\])]?\s+[A-Z][\w'’-]+ [A-Z]{1,3}[.,]"
    r"|(?=.*\b(19|20)\d\d\b)(?=.*(\bet al\b|\bdoi\b|\d+ ?: ?e?\d+))\[?\d{1,3}[.\])]\s+\S"
)
MIN_REFERENCES = 3


def _without_references(reading: "_Reading") -> None:
    """A numbered list of references at the end that no heading announces."""
    if any(block.level and _REFERENCES.fullmatch(re.sub(r"^[\d.\s]+", "", block.text)) for block in reading.blocks):
        return
    paragraphs = [number for number, block in enumerate(reading.blocks) if not block.level]
    listed = [number for number in paragraphs if _REFERENCE.match(reading.blocks[number].text)]
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


def _warn_of_rows(reading: "_Reading", count: int) -> None:
    if count:
        reading.warnings.append(f"{count} lines look like rows of tables and were not read.")


# ---- readers ----


def _read_text(path: Path) -> str:
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


def read_plain(path: Path) -> _Reading:
    """Paragraphs are separated by empty lines; headings are recognised by their words or numbering."""
    reading = _Reading()
    paragraph: list[str] = []

    def close() -> None:
        if paragraph:
            reading.blocks.append(_Block(text=" ".join(paragraph)))
            paragraph.clear()

    rows = 0
    for line in _read_text(path).splitlines():
        level = heading_level(line)
        if line.strip() and is_table_row(line.strip()):
            rows += 1
            close()
        elif level:
            close()
            reading.blocks.append(_Block(text=line.strip().rstrip(":"), level=level))
        elif _REFERENCE.match(
            line.strip()
        ):  # every reference is a paragraph of its own, so that a list of them is seen
            close()
            paragraph.append(line.strip())
        elif line.strip():
            paragraph.append(line.strip())
        else:
            close()
    close()
    _warn_of_rows(reading, rows)
    _mark_title(reading)
    return reading


def read_markdown(path: Path) -> _Reading:
    """ATX and underlined headings; code is left out, tables and pictures (but for their captions) are too, and counted."""
    reading = _Reading()
    skipped = Counter()
    paragraph: list[str] = []
    in_code = False
    lines = _read_text(path).splitlines()
    if lines and lines[0].strip() == "---" and "---" in (line.strip() for line in lines[1:]):
        end = next(number for number, line in enumerate(lines[1:], 1) if line.strip() == "---")
        for line in lines[1:end]:
            if found := re.fullmatch(r"title:\s*[\"']?(.+?)[\"']?\s*", line):
                reading.blocks.append(_Block(text=_plain_markdown(found[1]), section=("Title",)))
        reading.warnings.append("Of the front matter only the title was read.")
        lines = lines[end + 1 :]

    def close() -> None:
        if paragraph:
            reading.blocks.append(_Block(text=" ".join(paragraph)))
            paragraph.clear()

    for number, line in enumerate(lines):
        following = lines[number + 1] if number + 1 < len(lines) else ""
        marked = re.match(r"(#{1,6})\s+(.*?)\s*#*$", line)
        if line.lstrip().startswith("```"):
            in_code = not in_code
            close()
        elif in_code or re.fullmatch(r"\s*(=+|-{3,})\s*", line):
            continue
        elif marked:
            close()
            reading.blocks.append(_Block(text=_plain_markdown(marked[2]), level=len(marked[1])))
        elif line.strip() and re.fullmatch(r"(=+|-{3,})\s*", following):
            close()
            reading.blocks.append(_Block(text=_plain_markdown(line), level=1 if following[0] == "=" else 2))
        elif line.lstrip().startswith("|"):
            close()
            skipped["rows of tables"] += 1
        elif line.strip():
            if re.match(r"\s*([-*+]|\d+[.)])\s+", line):
                close()
            skipped["pictures"] += line.count("![")
            paragraph.append(_plain_markdown(re.sub(r"^\s*([-*+]|\d+[.)])\s+", "", line)))
        else:
            close()
    close()
    reading.warnings += [f"{count} {what} were not read." for what, count in skipped.items() if count]
    first = next((block for block in reading.blocks if block.level), None)
    if first is not None and first.level == 1 and section_kind([first.text]) == "other" and first is reading.blocks[0]:
        first.level, first.section = 0, ("Title",)
    else:
        _mark_title(reading)
    return reading


def _plain_markdown(text: str) -> str:
    text = re.sub(r"!?\[([^]]{0,500})\]\([^)]{0,2000}\)", r"\1", text)
    return re.sub(r"(\*\*|__|`|(?<!\w)[*_](?=\w)|(?<=\w)[*_](?!\w))", "", text).strip()


def _mark_title(reading: _Reading) -> None:
    """What stands before the first heading, if it is short, is the title."""
    if reading.blocks and reading.blocks[0].level == 0 and len(reading.blocks[0].text) <= 300:
        reading.blocks[0].section = ("Title",)


def read_jats(path: Path) -> _Reading:
    """JATS XML as PubMed Central gives it. References are left out; tables give their captions."""
    try:
        from lxml import etree  # pyright: ignore[reportAttributeAccessIssue] -- compiled, without stubs
    except ImportError as error:
        raise DocumentError("Reading XML needs lxml: pip install lxml.") from error
    parser = etree.XMLParser(
        resolve_entities=False, no_network=True, huge_tree=False, load_dtd=False, remove_comments=True, remove_pis=True
    )
    try:
        root = etree.parse(str(path), parser).getroot()
    except (etree.XMLSyntaxError, OSError) as error:  # OSError: an encoding that the declaration names and nobody knows
        raise DocumentError(
            f"{path.name} is not well-formed XML ({error}). Download the article's XML again."
        ) from error
    if any(isinstance(node, etree._Entity) for node in root.iter()):
        raise DocumentError(f"{path.name} defines XML entities, which are not expanded. Save it without a DTD.")
    article = root if _tag(root) == "article" else next((n for n in root.iter() if _tag(n) == "article"), None)
    if article is None:
        raise DocumentError(
            f"{path.name} is XML with the root <{_tag(root)}>, not a JATS <article>. Pass the JATS XML."
        )
    reading = _Reading()
    for node in article.iter():
        if _tag(node) == "article-title" and _tag(node.getparent()) == "title-group":
            subtitles = [_words(child) for child in node.getparent() if _tag(child) == "subtitle"]
            reading.blocks.append(_Block(text=": ".join([_words(node), *subtitles]), section=("Title",)))
            break
    for abstract in article.findall("./{*}front//{*}abstract"):
        if abstract.get("abstract-type") in (None, "", "structured", "summary"):
            _walk_jats(abstract, ("Abstract",), reading)
    for body in article.findall("./{*}body"):
        _walk_jats(body, (), reading)
    for funding in article.findall("./{*}front//{*}funding-statement"):
        reading.blocks.append(_Block(text=_words(funding), section=("Back matter", "Funding")))
    for award in article.findall("./{*}front//{*}award-group"):
        text = ", ".join(
            filter(None, (_words(child) for child in award if _tag(child) in ("funding-source", "award-id")))
        )
        if text:
            reading.blocks.append(_Block(text=f"Funding: {text}.", section=("Back matter", "Funding")))
    for meta in article.findall("./{*}front//{*}custom-meta"):
        said = [_words(child) for child in meta if _tag(child) in ("meta-name", "meta-value")]
        if re.search(r"regist|trial|protocol|data avail", said[0] if said else "", re.IGNORECASE):
            reading.blocks.append(_Block(text=": ".join(said) + ".", section=("Back matter", said[0])))
    for trial in article.findall("./{*}front//{*}related-object"):
        number = trial.get("document-id") or trial.get("object-id") or ""
        text = " ".join(filter(None, (trial.get("source-id"), _words(trial), number)))
        reading.blocks.append(
            _Block(text=f"Trial registration: {text}.", section=("Back matter", "Trial registration"))
        )
    for notes in article.findall("./{*}front//{*}author-notes") + article.findall("./{*}front/{*}notes"):
        _walk_jats(notes, ("Back matter",), reading)
    for back in article.findall("./{*}back"):
        _walk_jats(back, ("Back matter",), reading)
    for name, said in _JATS_NOT_READ.items():
        if count := len(article.findall(f".//{{*}}{name}")):
            reading.warnings.append(f"{count} {said}")
    return reading


_JATS_NOT_READ = {
    "fig": "figures: captions were read, pictures were not.",
    "table": "tables: captions and rows of words were read, rows of numbers were not.",
    "sub-article": "sub-articles (letters, translations, reviews) were not read.",
    "supplementary-material": "supplements were recognised and not read.",
    "ref": "references were recognised and left out.",
}


def _tag(node) -> str:
    return node.tag.rpartition("}")[2] if node is not None and isinstance(node.tag, str) else ""


_NOT_WORDS = frozenset(("table", "graphic", "fn", "fig", "table-wrap", "inline-formula", "disp-formula", "media"))


def _words(node) -> str:
    """Text of a paragraph or title; marks of citations stay, as they do in the corpora."""
    return " ".join(_raw_words(node).split())


def _raw_words(node) -> str:
    parts: list[str] = [node.text or ""]
    for child in node:
        if _tag(child) not in _NOT_WORDS:
            parts.append(_raw_words(child))
        parts.append(child.tail or "")
    return "".join(parts)


def _walk_jats(node, path: tuple[str, ...], reading: _Reading) -> None:
    for child in node:
        name = _tag(child)
        if name in ("sec", "ack", "app", "fn-group", "notes", "glossary", "boxed-text"):
            title = child.find("./{*}title")
            header = _words(title) if title is not None else ("Acknowledgements" if name == "ack" else "")
            inner = (*path, header) if header else path
            if header:
                reading.blocks.append(_Block(text=header, section=inner))
            _walk_jats(child, inner, reading)
        elif name == "p":
            reading.blocks.append(_Block(text=_words(child), section=path))
            for figure in child:
                if _tag(figure) in ("fig", "table-wrap"):
                    _read_caption(figure, path, reading)
        elif name in ("fig", "table-wrap"):
            _read_caption(child, path, reading)
        elif name == "def-item":
            parts = [_words(part) for part in child if _tag(part) in ("term", "def")]
            reading.blocks.append(_Block(text=": ".join(parts), section=path))
        elif name in ("fig-group", "fn", "list", "list-item", "disp-quote", "sec-meta", "def-list"):
            _walk_jats(child, path, reading)


def _read_caption(node, path: tuple[str, ...], reading: _Reading) -> None:
    label, caption = node.find("./{*}label"), node.find("./{*}caption")
    text = " ".join("".join(part.itertext()) for part in (label, caption) if part is not None)
    if text.strip():
        reading.blocks.append(_Block(text=text, section=path))
    for row in node.iter("{*}tr"):
        _add_row([_words(cell) for cell in row], reading, path)


def _add_row(cells: list[str], reading: _Reading, path: tuple[str, ...] | None = None) -> bool:
    """Reads a row that holds words: criteria and outcomes often stand in tables. Whether it was read."""
    text = ": ".join(dict.fromkeys(filter(None, cells)))  # cells that were merged come once
    words = re.findall(r"[A-Za-z]{3,}", text)
    if len(words) < 5 or is_table_row(text):
        return False
    reading.blocks.append(_Block(text=text, section=path))
    return True


def read_pdf(path: Path) -> _Reading:
    """Text of the pages in reading order as the file gives it; repeated headers and footers are left out."""
    try:
        import pypdf
        from pypdf.errors import PyPdfError
    except ImportError as error:
        raise DocumentError("Reading PDF needs pypdf: pip install pypdf.") from error
    reading = _Reading()
    try:
        file = pypdf.PdfReader(path)
        if file.is_encrypted and not file.decrypt(""):
            raise DocumentError(f"{path.name} is encrypted. Save a copy without a password and pass that.")
        pages = len(file.pages)
        if pages > MAX_PAGES:
            raise DocumentError(f"{path.name} has {pages} pages; at most {MAX_PAGES} are read. Pass the report alone.")
        texts: list[str] = []
        deadline = time.monotonic() + MAX_PDF_SECONDS
        for page in file.pages:
            if time.monotonic() > deadline:
                raise DocumentError(
                    f"{path.name} took more than {MAX_PDF_SECONDS} s, at page {len(texts) + 1} of {pages}. Pass it as docx or text."
                )
            texts.append(page.extract_text() or "")
    except (PyPdfError, *_DAMAGE) as error:
        if isinstance(error, DocumentError):
            raise
        raise DocumentError(f"{path.name} is not a readable PDF ({error}). Print it to PDF again.") from error
    letters = sum(len(text.strip()) for text in texts)
    if letters < 200 * max(1, pages // 4):
        raise DocumentError(
            f"{path.name} holds {letters} letters on {pages} pages: it is a scan. Run text recognition (OCR) first."
        )
    empty = sum(len(text.strip()) < 40 for text in texts)
    if empty:
        reading.warnings.append(f"{empty} of {pages} pages hold no text (pictures?) and were not read.")
    _add_pages(reading, texts)
    _mark_title(reading)
    return reading


def _add_pages(reading: _Reading, texts: list[str]) -> None:
    def edge(text: str) -> list[str]:
        lines = [re.sub(r"\d+", "#", line.strip()) for line in text.splitlines() if line.strip()]
        return lines[:2] + lines[2:][-2:]

    seen = Counter(line for text in texts for line in set(edge(text)))
    repeated = {line for line, count in seen.items() if line and count > max(2, len(texts) // 2)}
    paragraph, first_page, rows = "", 1, 0
    for number, text in enumerate(texts, 1):
        for raw in text.splitlines():
            line = raw.strip()
            if not line or re.sub(r"\d+", "#", line) in repeated or re.fullmatch(r"(page )?\d+( of \d+)?", line, re.I):
                continue
            level = heading_level(line)
            is_row = is_table_row(line)
            rows += is_row
            if level or is_row or _CAPTION.match(line) or _REFERENCE.match(line):
                if paragraph:
                    reading.blocks.append(_Block(text=paragraph, page=first_page))
                paragraph = ""
            if level:
                reading.blocks.append(_Block(text=line, level=level, page=number))
            if level or is_row:
                continue
            if not paragraph:
                first_page = number
            hyphenated = re.search(r"[a-z]-$", paragraph) and line[:1].islower()
            paragraph = paragraph[:-1] + line if hyphenated else f"{paragraph} {line}".strip()
            if len(paragraph) > 5000 or (len(paragraph) > 600 and line.endswith(".")):
                reading.blocks.append(_Block(text=paragraph, page=first_page))
                paragraph = ""
    if paragraph:
        reading.blocks.append(_Block(text=paragraph, page=first_page))
    _warn_of_rows(reading, rows)


def read_docx(path: Path) -> _Reading:
    """Headings by their style, or recognised by their words. Text is that which Word shows once all changes are accepted: with
    insertions, content controls, text boxes, fields and notes, without deletions. Of tables, rows of words are read."""
    try:
        import docx
        from docx.opc.exceptions import PackageNotFoundError
        from docx.oxml.exceptions import InvalidXmlError
        from lxml.etree import LxmlError  # pyright: ignore[reportAttributeAccessIssue] -- compiled, without stubs
    except ImportError as error:
        raise DocumentError("Reading docx needs python-docx: pip install python-docx.") from error
    if path.read_bytes()[:8] == b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1":
        raise DocumentError(f"{path.name} is encrypted, or an old .doc. Save it as .docx without a password.")
    try:
        with zipfile.ZipFile(path) as archive:
            expanded = sum(entry.file_size for entry in archive.infolist())
            if expanded > MAX_EXPANDED_BYTES:
                raise DocumentError(
                    f"{path.name} expands to {expanded:,} bytes; at most {MAX_EXPANDED_BYTES:,} are read."
                )
        reading = _read_body(docx.Document(str(path)))
    except (PackageNotFoundError, InvalidXmlError, LxmlError, *_DAMAGE) as error:
        if isinstance(error, DocumentError):
            raise
        raise DocumentError(f"{path.name} is not a readable docx ({error}). Save it again as .docx.") from error
    return reading


_WORD = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_FALLBACK = "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"


def _word_text(paragraph) -> str:
    """What a paragraph says. Deleted text is `w:delText`, and codes of fields are `w:instrText`: neither is `w:t`."""
    parts = []
    for node in paragraph.iter(f"{_WORD}t", f"{_WORD}tab", f"{_WORD}br", f"{_WORD}noBreakHyphen"):
        owner = next(node.iterancestors(f"{_WORD}p"), None)
        if owner is paragraph and next(node.iterancestors(f"{_WORD}moveFrom"), None) is None:
            parts.append(node.text or "" if node.tag == f"{_WORD}t" else "-" if node.tag.endswith("Hyphen") else " ")
    return " ".join("".join(parts).split())


def _read_body(file) -> _Reading:
    import docx.oxml

    reading = _Reading()
    names = {style.style_id: style.name or "" for style in file.styles}
    rows = 0
    for node in file.element.body.iter(f"{_WORD}p", f"{_WORD}tr"):
        if any(True for _ in node.iterancestors(f"{_WORD}tr", _FALLBACK)):
            continue  # a row is read whole; a fallback repeats a text box for old readers
        if node.tag == f"{_WORD}tr":
            rows += not _add_row(
                [" ".join(map(_word_text, cell.iter(f"{_WORD}p"))) for cell in node.iter(f"{_WORD}tc")], reading
            )
            continue
        text, style = _word_text(node), node.find(f"{_WORD}pPr/{_WORD}pStyle")
        name = names.get(style.get(f"{_WORD}val"), "") if style is not None else ""
        marked = re.match(r"Heading (\d)", name)
        if not text:
            continue
        if name == "Title":
            reading.blocks.append(_Block(text=text, section=("Title",)))
        else:
            level = int(marked[1]) if marked else heading_level(text)
            reading.blocks.append(_Block(text=text, level=level))
    for part in file.part.package.iter_parts():
        if part.partname in ("/word/footnotes.xml", "/word/endnotes.xml"):
            root = docx.oxml.parse_xml(part.blob)
            for text in map(_word_text, root.iter(f"{_WORD}p")):
                if text:
                    reading.blocks.append(_Block(text=text, section=("Back matter", "Notes")))
    for what, count in (("rows of tables", rows), ("pictures", len(file.inline_shapes))):
        if count:
            reading.warnings.append(f"{count} {what} were not read.")
    if not any(block.section == ("Title",) for block in reading.blocks):
        _mark_title(reading)
    return reading


READERS = {
    ".txt": read_plain,
    ".text": read_plain,
    ".md": read_markdown,
    ".markdown": read_markdown,
    ".xml": read_jats,
    ".nxml": read_jats,
    ".pdf": read_pdf,
    ".docx": read_docx,
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
    _without_references(reading)
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


def to_sentences(reading: _Reading) -> list[Sentence]:
    """Blocks -> sentences with section paths; headings are sentences too, as in the corpora. References end the text."""
    sentences: list[Sentence] = []
    path: list[tuple[int, str]] = []
    dropped = 0
    for block in reading.blocks:
        text = " ".join(block.text.split())
        if not text:
            continue
        if block.level:
            path = [(level, header) for level, header in path if level < block.level] + [(block.level, text)]
        headers = block.section if block.section is not None else tuple(header for _, header in path)
        if any(_REFERENCES.fullmatch(re.sub(r"^[\d.\s]+", "", header)) for header in headers):
            dropped += block.level == 0
            continue
        in_abstract = section_kind(headers) == "abstract"
        for part in [text] if block.level else split_sentences(text):
            run_in = _RUN_IN.match(part) if in_abstract and not block.level else None
            if run_in:
                headers = (headers[0], run_in[1])
            sentences.append(Sentence(number=len(sentences) + 1, text=part, section=headers, page=block.page))
    if dropped:
        reading.warnings.append(f"{dropped} paragraphs under References were left out.")
    return _without_empty_evidence(reading, sentences)


# The wording of the checklists themselves, as authors append them to a draft; it states nothing about the trial.
_CHECKLIST_HEADING = re.compile(
    r".*\b(consort|spirit|tidier|prisma|strobe)\b.*\b(check ?list|statement|items?)\b.*|.*\bcheck ?list of information to\b.*|reporting checklist",
    re.IGNORECASE,
)
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


def _without_empty_evidence(reading: _Reading, sentences: list[Sentence]) -> list[Sentence]:
    """Leaves out an appended checklist, placeholders, and headings under which nothing is said: none is a statement."""
    checklist = [
        any(_CHECKLIST_HEADING.fullmatch(header) for header in sentence.section)
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
