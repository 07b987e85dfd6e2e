"""LaTeX -> blocks: title, abstract, sections, lists and tables of words; pylatexenc resolves the commands."""

import re
from pathlib import Path

from .reading import Block, DocumentError, Reading, add_row, mark_title, read_text

_LEVELS = {
    "part": 1,
    "chapter": 1,
    "section": 1,
    "subsection": 2,
    "subsubsection": 3,
    "paragraph": 4,
    "subparagraph": 4,
}
_ABSENT = {
    "figure": "pictures (their captions were)", "equation": "equations", "align": "equations", "displaymath": "equations",
    "verbatim": "listings", "lstlisting": "listings", "tikzpicture": "drawings", "thebibliography": "lists of references",
}  # fmt: skip
_FILES = ("input", "include", "subfile")
_NO_TEXT = ("maketitle", "date", "tableofcontents", "label", "bibliography", "bibliographystyle", "includegraphics")


def read_latex(path: Path) -> Reading:
    """One file; what it includes from others is named and not read."""
    try:
        from pylatexenc.latexwalker import LatexWalker, LatexWalkerError
    except ImportError as error:
        raise DocumentError("Reading LaTeX needs pylatexenc: pip install pylatexenc.") from error
    source = read_text(path)
    try:
        nodes, _, _ = LatexWalker(source, tolerant_parsing=True).get_latex_nodes()
        reader = _Reader()
        reader.walk(nodes)
        reader.close()
    except (LatexWalkerError, RecursionError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise DocumentError(f"{path.name} is not readable LaTeX ({error}). Pass its PDF.") from error
    reading = reader.reading
    reading.warnings += [f"{count} {what} were not read." for what, count in reader.skipped.items()]
    if not any(block.section == ("Title",) for block in reading.blocks):
        mark_title(reading)
    return reading


class _Reader:
    def __init__(self) -> None:
        from pylatexenc.latex2text import LatexNodes2Text

        self.reading = Reading()
        self.skipped: dict[str, int] = {}
        self._plain = LatexNodes2Text(math_mode="text", keep_comments=False, strict_latex_spaces=False)
        self._pending: list = []
        self._section: tuple[str, ...] | None = None

    def close(self) -> None:
        """The text collected so far becomes paragraphs, which empty lines part."""
        text = self._plain.nodelist_to_text(self._pending)
        self._pending = []
        for paragraph in re.split(r"\n\s*\n", text):
            words = re.sub(r"<cit\.>", "", " ".join(paragraph.split())).strip()
            if words:
                self.reading.blocks.append(Block(text=words, section=self._section))

    def walk(self, nodes) -> None:
        from pylatexenc.latexwalker import LatexEnvironmentNode, LatexMacroNode

        for node in nodes or ():
            if isinstance(node, LatexEnvironmentNode):
                self._environment(node, node.environmentname.rstrip("*"))
            elif isinstance(node, LatexMacroNode) and node.macroname in _LEVELS:
                self._heading(node)
            elif isinstance(node, LatexMacroNode) and node.macroname == "title":
                self.close()
                title = self._argument(node)
                if title:
                    self.reading.blocks.insert(0, Block(text=title, section=("Title",)))
            elif isinstance(node, LatexMacroNode) and node.macroname in _FILES:
                self._skip(f"files that \\{node.macroname} names")
            elif isinstance(node, LatexMacroNode) and node.macroname in _NO_TEXT:
                continue
            elif isinstance(node, LatexMacroNode) and node.macroname == "item":
                self.close()
            elif isinstance(node, LatexMacroNode) and node.macroname == "caption":
                self.close()
                self.reading.blocks.append(Block(text=self._argument(node), section=self._section))
            else:
                self._pending.append(node)

    def _skip(self, what: str) -> None:
        self.skipped[what] = self.skipped.get(what, 0) + 1

    def _argument(self, node) -> str:
        arguments = [a for a in (node.nodeargd.argnlist if node.nodeargd else []) if a is not None]
        text = self._plain.nodelist_to_text(arguments[-1:])
        return " ".join(text.split())

    def _heading(self, node) -> None:
        self.close()
        self._section = None
        title = self._argument(node)
        if title:
            self.reading.blocks.append(Block(text=title, level=_LEVELS[node.macroname]))

    def _environment(self, node, name: str) -> None:
        self.close()
        if name == "document":
            self.reading.blocks = [block for block in self.reading.blocks if block.section == ("Title",)]
            self.walk(node.nodelist)
        elif name == "abstract":
            self._section = ("Abstract",)
            self.walk(node.nodelist)
            self.close()
            self._section = None
            return
        elif name in _ABSENT:
            self._skip(_ABSENT[name])
            self._captions(node.nodelist)
        elif name.startswith("tabular") or name in ("longtable", "array"):
            self._rows(node)
        else:
            self.walk(node.nodelist)
        self.close()

    def _captions(self, nodes) -> None:
        for node in nodes or ():
            if getattr(node, "macroname", None) == "caption":
                self.walk([node])
            self._captions(getattr(node, "nodelist", None))

    def _rows(self, node) -> None:
        source = self._plain.nodelist_to_text(node.nodelist)
        for row in source.splitlines():
            cells = [" ".join(cell.split()) for cell in re.split(r"\s{2,}|&", row)]
            if any(cells) and not add_row(cells, self.reading, self._section):
                self._skip("rows of tables")
