"""Rows of text -> a table in Markdown."""

from collections.abc import Iterable, Sequence


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A line each, with its line break.

    >>> print(markdown_table(["Item", "Found"], [["7a|b", "yes"]]), end="")
    | Item | Found |
    |---|---|
    | 7a\\|b | yes |
    """
    first, *rest = (
        "|" + "".join(f" {cell} |" if cell else " |" for cell in (text.replace("|", "\\|") for text in line)) + "\n"
        for line in (head, *rows)
    )
    return "".join((first, "|" + "---|" * len(head) + "\n", *rest))
