"""Table of scans -> what is to be learnt of each: `Targets`, for `ctfm probe` and `ctfm finetune`.

A row is a scan: its path (relative to the table), and as far as known patient, split (train, validation, test) and series_uid.
What is learnt is said by the command: by default every other column is a finding of 1 or 0; --one-of names a column of words
of which each scan has one; --value names columns of numbers; --time and --event say after how long what happened was seen, or
the scan's patient was last seen without it. An empty cell is not stated.
"""

import argparse
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import TableError
from ..evaluate.metrics import FindingTable
from .layouts import TABLE_COLUMNS, read_labels, read_split
from .table_files import read_table

KINDS = ("findings", "one_of", "value", "survival")
VALIDATION_SHARE, TEST_SHARE = 0.15, 0.15
PROBLEM_TYPES = {
    "findings": "multi_label_classification",
    "one_of": "single_label_classification",
    "value": "regression",
    "survival": "regression",  # one number: the logarithm of the relative hazard
}


@dataclass(frozen=True, kw_only=True)
class Question:
    """What a table is asked for: columns of one kind."""

    kind: str = "findings"
    columns: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Targets:
    """
    kind: of KINDS; names: of the head's outputs.
    scans: path and series of each row; patients; splits: "train", "validation" or "test" of each.
    values: `(n, k)`: 1, 0 or NaN a finding; a class's number, `k` = 1; numbers; or time and event, `k` = 2. NaN is not stated.
    """

    kind: str
    names: tuple[str, ...]
    scans: tuple[tuple[Path, str | None], ...]
    patients: tuple[str, ...]
    splits: tuple[str, ...]
    values: np.ndarray

    def rows(self, split: str) -> np.ndarray:
        """Rows of a split of which anything is stated."""
        return np.flatnonzero((np.array(self.splits) == split) & ~np.isnan(self.values).all(1))

    def findings(self, rows: np.ndarray) -> FindingTable:
        return FindingTable(findings=self.names, values=self.values[rows])


def add_question_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--one-of", metavar="COLUMN", help="a column of words, of which each scan has one")
    parser.add_argument("--value", nargs="+", metavar="COLUMN", help="columns of numbers")
    parser.add_argument("--time", metavar="COLUMN", help="time until --event, or until last seen without it")
    parser.add_argument("--event", metavar="COLUMN", help="1 where it was seen, 0 where not")


def read_question(given: argparse.Namespace) -> Question:
    """
    Raises:
        ValueError: several things are asked for at once.
    """
    asked = [given.one_of is not None, given.value is not None, given.time is not None or given.event is not None]
    if sum(asked) > 1:
        raise ValueError("Choose one of --one-of, --value, and --time with --event.")
    if asked[2] and None in (given.time, given.event):
        raise ValueError("--time needs --event, and --event needs --time.")
    if given.one_of is not None:
        return Question(kind="one_of", columns=(given.one_of,))
    if given.value is not None:
        return Question(kind="value", columns=tuple(given.value))
    return Question(kind="survival", columns=(str(given.time), str(given.event))) if asked[2] else Question()


def read_targets(table: Path, question: Question, seed: int = 0) -> Targets:
    """
    Raises:
        ValueError: a column is missing, a cell holds what is no target, or nothing can be learnt; row, column and cure are
            named, and of a cell its value where it is no name.
    """
    rows = read_table(table, "path", *question.columns)
    if not rows:
        raise TableError(f"{table} has no row.")
    check_paths(table, rows)
    patients = tuple(row.get("patient") or row["path"] for row in rows)
    stated = [read_split(row.get("split", ""), f"{table.name}, row {number}") for number, row in enumerate(rows, 2)]
    names, values = read_values(table, rows, question)
    targets = Targets(
        kind=question.kind,
        names=names,
        scans=tuple((table.parent / row["path"], row.get("series_uid") or None) for row in rows),
        patients=patients,
        splits=tuple(split_patients(patients, stated, seed)),
        values=values,
    )
    check_splits(targets, table)
    return targets


def check_paths(table: Path, rows: Sequence[dict[str, str]]) -> None:
    """
    Raises:
        ValueError: a path is empty, which would name the table's own folder.
    """
    if empty := [number for number, row in enumerate(rows, 2) if not row["path"].strip()]:
        raise ValueError(f"{table.name}, row {empty[0]}: path is empty.")


def read_values(table: Path, rows: Sequence[dict[str, str]], question: Question) -> tuple[tuple[str, ...], np.ndarray]:
    places = [f"{table.name}, row {number}" for number in range(2, len(rows) + 2)]
    if question.kind == "findings":
        columns = [name for name in rows[0] if name not in TABLE_COLUMNS]
        if not columns:
            raise ValueError(
                f"{table} has no column of a finding beside {', '.join(rows[0])}. Add one of 1 and 0, or name what to learn "
                "with --one-of, --value, or --time and --event."
            )
        labels = [read_labels({n: row[n] for n in columns}, place) for row, place in zip(rows, places, strict=True)]
        return tuple(columns), np.array([[one.get(name, np.nan) for name in columns] for one in labels])
    if question.kind == "one_of":
        (column,) = question.columns
        words = [row[column].strip() for row in rows]
        names = tuple(sorted(set(words) - {""}))
        if len(names) < 2:
            raise ValueError(
                f'{table}: column "{column}" holds {len(names)} different words; there must be two or more.'
            )
        if len(names) > len(rows) // 2:
            raise ValueError(
                f'{table}: column "{column}" holds {len(names)} different words in {len(rows)} rows, so most are of one scan. '
                "Numbers are learnt with --value."
            )
        return names, np.array([[names.index(word) if word else np.nan] for word in words], float)
    values = np.array(
        [
            [read_number(row[name], name, place) for name in question.columns]
            for row, place in zip(rows, places, strict=True)
        ]
    )
    if question.kind == "value":
        return question.columns, values
    for place, (time, event) in zip(places, values, strict=True):
        if time < 0 or (event not in (0.0, 1.0) and not math.isnan(event)):
            raise ValueError(f"{place}: time {time:g} must be 0 or more, and event {event:g} 1 or 0.")
    values[np.isnan(values).any(1)] = np.nan  # half of it says nothing
    return (question.columns[1],), values


def read_number(text: str, column: str, place: str) -> float:
    if not text.strip():
        return math.nan
    try:
        number = float(text)
    except ValueError:
        number = math.inf
    if not math.isfinite(
        number
    ):  # what stands there is not repeated: a column that is no number's may name the patient
        raise ValueError(f'{place}: column "{column}" holds no number. Leave the cell empty where nothing is known.')
    return number


def split_patients(patients: Sequence[str], stated: Sequence[str], seed: int) -> list[str]:
    """The splits of the table. Without any, 15 % of the patients are for validation and 15 % for the test; without validation
    alone, 15 % of those in "train" are. A patient is in one split.

    Raises:
        ValueError: the table puts a patient into two splits.
    """
    by_patient: dict[str, str] = {}
    for number, (patient, split) in enumerate(zip(patients, stated, strict=True), 2):
        if split and by_patient.setdefault(patient, split) != split:
            raise ValueError(f"Row {number}: its patient is in splits {by_patient[patient]} and {split}; choose one.")
    has_any, has_validation = bool(by_patient), "validation" in by_patient.values()

    def chance(patient: str) -> float:
        return int.from_bytes(hashlib.blake2b(f"{seed} {patient}".encode(), digest_size=6).digest()) / 2**48

    splits = []
    for patient, split in zip(patients, stated, strict=True):
        if not has_any:
            drawn = chance(patient)
            is_test = drawn < TEST_SHARE
            split = "test" if is_test else "validation" if drawn < TEST_SHARE + VALIDATION_SHARE else "train"
        elif split == "train" and not has_validation and chance(patient) < VALIDATION_SHARE:
            split = "validation"
        splits.append(split)
    return splits


def check_splits(targets: Targets, table: Path) -> None:
    train = targets.values[targets.rows("train")]
    if not len(train):
        raise ValueError(f'{table}: no scan of split "train" has anything stated, so there is nothing to learn.')
    if targets.kind in ("findings", "one_of"):
        flat = [
            name
            for name, column in zip(targets.names, train.T, strict=False)
            if len(np.unique(column[~np.isnan(column)])) < 2
        ]
        if (targets.kind == "one_of" and flat) or len(flat) == len(targets.names):
            raise ValueError(
                f"{table}: all {len(train)} scans for training are alike in {', '.join(targets.names[:5])}."
            )
    if targets.kind == "survival" and not train[:, 1].any():
        raise ValueError(f'{table}: "{targets.names[0]}" happened to none of the {len(train)} scans for training.')
