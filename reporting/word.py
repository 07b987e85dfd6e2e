"""Word files -> blocks."""

import re
import zipfile
from pathlib import Path

from .reading import DAMAGE, Block, DocumentError, Reading, add_row, heading_level, mark_title

MAX_EXPANDED_BYTES = 200_000_000


def open_word(path: Path):
    """A Word file, bounded before it is expanded.

    Raises:
        DocumentError: encrypted, an old .doc, damaged, or too large.
    """
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
        return docx.Document(str(path))
    except (PackageNotFoundError, InvalidXmlError, LxmlError, *DAMAGE) as error:
        if isinstance(error, DocumentError):
            raise
        raise DocumentError(f"{path.name} is not a readable docx ({error}). Save it again as .docx.") from error


def read_docx(path: Path) -> Reading:
    """Headings by their style, or recognised by their words. Text is that which Word shows once all changes are accepted: with
    insertions, content controls, text boxes, fields and notes, without deletions. Of tables, rows of words are read. Pages are
    those of Word's last layout, where the file keeps it."""
    file = open_word(path)
    try:
        from lxml.etree import LxmlError  # pyright: ignore[reportAttributeAccessIssue] -- compiled, without stubs

        return _read_body(file)
    except (LxmlError, *DAMAGE) as error:
        if isinstance(error, DocumentError):
            raise
        raise DocumentError(f"{path.name} is not a readable docx ({error}). Save it again as .docx.") from error


WORD = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
FALLBACK = "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"


def word_text(paragraph) -> str:
    """What a paragraph says, in single spaces. Moved text counts where it went."""
    runs = (
        run_text(run)
        for run in paragraph.iter(f"{WORD}r")
        if next(run.iterancestors(f"{WORD}p"), None) is paragraph
        and next(run.iterancestors(f"{WORD}moveFrom"), None) is None
    )
    return " ".join("".join(runs).split())


def run_text(run) -> str:
    """The letters of a run. Deleted text is `w:delText`, and codes of fields are `w:instrText`: neither is `w:t`."""
    signs = {f"{WORD}tab": " ", f"{WORD}br": " ", f"{WORD}cr": " ", f"{WORD}noBreakHyphen": "-"}
    return "".join(node.text or "" if node.tag == f"{WORD}t" else signs.get(node.tag, "") for node in run)


def _begins_page(node) -> bool:
    """Whether the page breaks before the first letter."""
    first = next((part for part in node.iter(f"{WORD}t", f"{WORD}lastRenderedPageBreak")), None)
    return first is not None and first.tag == f"{WORD}lastRenderedPageBreak"


def _read_body(file) -> Reading:
    import docx.oxml

    reading = Reading()
    names = {style.style_id: style.name or "" for style in file.styles}
    rows = 0
    breaks = f"{WORD}lastRenderedPageBreak"
    page = 1 if next(file.element.body.iter(breaks), None) is not None else None
    for node in file.element.body.iter(f"{WORD}p", f"{WORD}tr"):
        if any(True for _ in node.iterancestors(f"{WORD}tr", FALLBACK)):
            continue  # a row is read whole; a fallback repeats a text box for old readers
        start = page
        if page is not None:
            page += sum(1 for _ in node.iter(breaks))
            start = page if _begins_page(node) else start
        if node.tag == f"{WORD}tr":
            cells = [" ".join(map(word_text, cell.iter(f"{WORD}p"))) for cell in node.iter(f"{WORD}tc")]
            if add_row(cells, reading):
                reading.blocks[-1].page = start
            else:
                rows += 1
            continue
        text, style = word_text(node), node.find(f"{WORD}pPr/{WORD}pStyle")
        name = names.get(style.get(f"{WORD}val"), "") if style is not None else ""
        marked = re.match(r"Heading (\d)", name)
        if not text:
            continue
        if name == "Title":
            reading.blocks.append(Block(text=text, section=("Title",), page=start))
        else:
            level = int(marked[1]) if marked else heading_level(text)
            reading.blocks.append(Block(text=text, level=level, page=start))
    for part in file.part.package.iter_parts():
        if part.partname in ("/word/footnotes.xml", "/word/endnotes.xml"):
            root = docx.oxml.parse_xml(part.blob)
            for text in map(word_text, root.iter(f"{WORD}p")):
                if text:
                    reading.blocks.append(Block(text=text, section=("Back matter", "Notes")))
    unread = {
        "rows of tables": rows,
        "pictures": len(file.inline_shapes),
        "passages that tracked changes delete": sum(
            next(node.iter(f"{WORD}delText"), None) is not None for node in file.element.body.iter(f"{WORD}del")
        ),
        "comments": len(list(file.comments)),
    }
    for what, count in unread.items():
        if count:
            reading.warnings.append(f"{count} {what} were not read.")
    if not any(block.section == ("Title",) for block in reading.blocks):
        mark_title(reading)
    return reading
