"""Tables in files, .csv, .tsv, .xlsx and .parquet -> rows of text by column name."""

import csv
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from ..errors import TableError


def read_table(path: Path, *needed: str) -> list[dict[str, str]]:
    """Rows of a table, of an .xlsx those of its first sheet. An empty cell is an empty text.

    Args:
        needed: columns that it must have.

    Raises:
        TableError: a column that is needed is missing, or one stands there twice.
        OSError: the file cannot be read.
    """
    if path.suffix == ".xlsx":
        names, rows = _read_sheet(path)
    elif path.suffix == ".parquet":
        names, rows = _read_parquet(path)
    else:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = csv.reader(file, delimiter="\t" if path.suffix == ".tsv" else ",")
            names = next(lines, [])
            rows = [dict(zip(names, [*line, *[""] * len(names)], strict=False)) for line in lines if line]
    for name, count in Counter(names).items():
        if name and count > 1:
            raise TableError(f'{path} has {count} columns "{name}", of which only one would be read; name them apart.')
    missing = [name for name in needed if rows and name not in names]
    if missing:
        raise TableError(
            f'{path} has no column "{missing[0]}"; its columns are {", ".join(names)}. '
            f"It needs {', '.join(needed)}: add the column, or rename the one that holds it."
        )
    return rows


def _read_parquet(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Cells as text; the numbers of a `ClassLabel`, whose order is the table's own, as its names."""
    import pyarrow.parquet as pq  # with datasets takes longer to import than a table without them to read
    from datasets import ClassLabel, Features

    table = pq.read_table(path)
    kinds = Features.from_arrow_schema(table.schema)
    named = {name: kind for name, kind in kinds.items() if isinstance(kind, ClassLabel)}
    return table.column_names, [
        {
            name: "" if value is None else str(named[name].int2str(value) if name in named else value)
            for name, value in row.items()
        }
        for row in table.to_pylist()
    ]


def _read_sheet(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Cells as text, of formulas what the program that saved the file computed last."""
    from openpyxl import load_workbook

    book = load_workbook(path, read_only=True, data_only=True)
    try:
        lines: Iterable[tuple[object, ...]] = book.worksheets[0].iter_rows(values_only=True)
        cells = [["" if value is None else str(value) for value in line] for line in lines]
    finally:
        book.close()
    names = cells[0] if cells else []
    rows = [dict(zip(names, [*line, *[""] * len(names)], strict=False)) for line in cells[1:] if any(line)]
    return names, [{name: value for name, value in row.items() if name} for row in rows]
