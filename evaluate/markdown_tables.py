"""Rows of text -> a table in Markdown, and Markdown -> what a terminal shows of it."""

import sys
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.markdown import Markdown


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A line each, with its line break.

    >>> print(markdown_table(["scan", "ml"], [["a|b", "3"]]), end="")
    | scan | ml |
    | --- | --- |
    | a\\|b | 3 |
    """
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def print_markdown(text: str) -> None:
    """Laid out in a terminal; as it is where a file or another program reads it."""
    if sys.stdout.isatty():
        Console().print(Markdown(text))
    else:
        print(text)
