"""HTML -> blocks: what a reader of the page sees as the article, without menus, scripts, references and pictures."""

import re
from pathlib import Path

from .reading import DAMAGE, Block, DocumentError, Reading, add_row, mark_title, read_text

_NOT_READ = frozenset(
    ("script", "style", "nav", "header", "footer", "aside", "form", "button", "noscript", "template", "svg", "math", "iframe",
     "select", "head")
)  # fmt: skip
_INLINE = frozenset(("span", "a", "b", "strong", "i", "em", "sup", "sub", "u"))
_REFERENCE_LIST = re.compile(r"\b(ref(erence)?-?list|references|bibliography|citations?)\b", re.IGNORECASE)
_PARAGRAPHS = frozenset(("p", "li", "dd", "dt", "blockquote", "figcaption", "caption", "pre"))
MAX_DEPTH = 200


def read_html(path: Path) -> Reading:
    """The `article` or `main` of a page, else its body. Headings are those that are marked; a title is the first of them."""
    try:
        import lxml.html
        from lxml.etree import LxmlError  # pyright: ignore[reportAttributeAccessIssue] -- compiled, without stubs
    except ImportError as error:
        raise DocumentError("Reading HTML needs lxml: pip install lxml.") from error
    text = re.sub(r"^\s*<\?xml[^>]*\?>", "", read_text(path))
    try:
        root = lxml.html.document_fromstring(text or "<html></html>")
        homes = root.xpath("//article") or root.xpath("//main") or root.xpath("//body") or [root]
        reading = Reading()
        home = max(homes, key=lambda node: len(node.text_content()))
        skipped: dict[str, int] = {}
        _walk(home, reading, skipped, 0)
    except (LxmlError, *DAMAGE) as error:
        if isinstance(error, DocumentError):
            raise
        raise DocumentError(f"{path.name} is not readable HTML ({error}). Save the page again.") from error
    for what, count in skipped.items():
        reading.warnings.append(f"{count} {what} were not read.")
    first = next((block for block in reading.blocks if block.level), None)
    if first is not None and first.level == 1 and first is reading.blocks[0]:
        first.level, first.section = 0, ("Title",)
    else:
        mark_title(reading)
    return reading


def _text(node) -> str:
    if not isinstance(node.tag, str) or node.tag in _NOT_READ:
        return ""
    parts = [node.text or ""]
    for child in node:
        parts += [_text(child), " " if child.tag == "br" else "", child.tail or ""]
    return "".join(parts)


def _walk(node, reading: Reading, skipped: dict[str, int], depth: int) -> None:
    if depth > MAX_DEPTH:
        raise ValueError(f"elements lie more than {MAX_DEPTH} deep")

    def add(text: str | None, level: int = 0) -> None:
        words = " ".join((text or "").split())
        if words:
            reading.blocks.append(Block(text=words, level=level))

    def count(what: str) -> None:
        skipped[what] = skipped.get(what, 0) + 1

    add(node.text)
    for child in node:
        tag = child.tag if isinstance(child.tag, str) else ""
        named = f"{child.get('id', '')} {child.get('class', '')} {child.get('role', '')}" if tag else ""
        if tag in ("ul", "ol", "section", "div") and _REFERENCE_LIST.search(named) and not child.xpath(".//section"):
            count("lists of references")
        elif re.fullmatch(r"h[1-6]", tag):
            add(_text(child), int(tag[1]))
        elif tag == "tr":
            cells = [" ".join(_text(cell).split()) for cell in child]
            if not add_row(cells, reading):
                count("rows of tables")
        elif tag in ("img", "picture", "video"):
            count("pictures")
        elif (tag in _PARAGRAPHS and not child.xpath(".//p|.//li|.//table|.//div")) or tag in _INLINE:
            add(_text(child))
        elif tag and tag not in _NOT_READ:
            _walk(child, reading, skipped, depth + 1)
        add(child.tail)
