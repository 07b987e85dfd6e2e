"""Word files -> blocks."""

import re
import zipfile
from pathlib import Path

from .reading import DAMAGE, Block, DocumentError, Reading, add_row, heading_level, mark_title

MAX_EXPANDED_BYTES = 200_000_000


def read_docx(path: Path) -> Reading:
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
    except (PackageNotFoundError, InvalidXmlError, LxmlError, *DAMAGE) as error:
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


def _read_body(file) -> Reading:
    import docx.oxml

    reading = Reading()
    names = {style.style_id: style.name or "" for style in file.styles}
    rows = 0
    for node in file.element.body.iter(f"{_WORD}p", f"{_WORD}tr"):
        if any(True for _ in node.iterancestors(f"{_WORD}tr", _FALLBACK)):
            continue  # a row is read whole; a fallback repeats a text box for old readers
        if node.tag == f"{_WORD}tr":
            rows += not add_row(
                [" ".join(map(_word_text, cell.iter(f"{_WORD}p"))) for cell in node.iter(f"{_WORD}tc")], reading
            )
            continue
        text, style = _word_text(node), node.find(f"{_WORD}pPr/{_WORD}pStyle")
        name = names.get(style.get(f"{_WORD}val"), "") if style is not None else ""
        marked = re.match(r"Heading (\d)", name)
        if not text:
            continue
        if name == "Title":
            reading.blocks.append(Block(text=text, section=("Title",)))
        else:
            level = int(marked[1]) if marked else heading_level(text)
            reading.blocks.append(Block(text=text, level=level))
    for part in file.part.package.iter_parts():
        if part.partname in ("/word/footnotes.xml", "/word/endnotes.xml"):
            root = docx.oxml.parse_xml(part.blob)
            for text in map(_word_text, root.iter(f"{_WORD}p")):
                if text:
                    reading.blocks.append(Block(text=text, section=("Back matter", "Notes")))
    for what, count in (("rows of tables", rows), ("pictures", len(file.inline_shapes))):
        if count:
            reading.warnings.append(f"{count} {what} were not read.")
    if not any(block.section == ("Title",) for block in reading.blocks):
        mark_title(reading)
    return reading
