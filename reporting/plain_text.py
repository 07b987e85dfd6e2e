"""Plain text and Markdown -> blocks."""

import re
from collections import Counter
from pathlib import Path

from .processing_trialreport import section_kind
from .reading import REFERENCE, Block, Reading, heading_level, is_table_row, mark_title, read_text, warn_of_rows


def read_plain(path: Path) -> Reading:
    """Paragraphs are separated by empty lines; headings are recognised by their words or numbering."""
    reading = Reading()
    paragraph: list[str] = []

    def close() -> None:
        if paragraph:
            reading.blocks.append(Block(text=" ".join(paragraph)))
            paragraph.clear()

    rows = 0
    for line in read_text(path).splitlines():
        level = heading_level(line)
        if line.strip() and is_table_row(line.strip()):
            rows += 1
            close()
        elif level:
            close()
            reading.blocks.append(Block(text=line.strip().rstrip(":"), level=level))
        elif REFERENCE.match(line.strip()):  # every reference is a paragraph of its own, so that a list of them is seen
            close()
            paragraph.append(line.strip())
        elif line.strip():
            paragraph.append(line.strip())
        else:
            close()
    close()
    warn_of_rows(reading, rows)
    mark_title(reading)
    return reading


def read_markdown(path: Path) -> Reading:
    """ATX and underlined headings; code is left out, tables and pictures (but for their captions) are too, and counted."""
    reading = Reading()
    skipped = Counter()
    paragraph: list[str] = []
    in_code = False
    lines = read_text(path).splitlines()
    if lines and lines[0].strip() == "---" and "---" in (line.strip() for line in lines[1:]):
        end = next(number for number, line in enumerate(lines[1:], 1) if line.strip() == "---")
        for line in lines[1:end]:
            if found := re.fullmatch(r"title:\s*[\"']?(.+?)[\"']?\s*", line):
                reading.blocks.append(Block(text=_plain_markdown(found[1]), section=("Title",)))
        reading.warnings.append("Of the front matter only the title was read.")
        lines = lines[end + 1 :]

    def close() -> None:
        if paragraph:
            reading.blocks.append(Block(text=" ".join(paragraph)))
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
            reading.blocks.append(Block(text=_plain_markdown(marked[2]), level=len(marked[1])))
        elif line.strip() and re.fullmatch(r"(=+|-{3,})\s*", following):
            close()
            reading.blocks.append(Block(text=_plain_markdown(line), level=1 if following[0] == "=" else 2))
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
        mark_title(reading)
    return reading


def _plain_markdown(text: str) -> str:
    text = re.sub(r"!?\[([^]]{0,500})\]\([^)]{0,2000}\)", r"\1", text)
    return re.sub(r"(\*\*|__|`|(?<!\w)[*_](?=\w)|(?<=\w)[*_](?!\w))", "", text).strip()
