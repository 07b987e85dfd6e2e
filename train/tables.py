"""Scans and findings of a prepared folder <-> Parquet with typed columns, which `datasets` opens, streams, and the Hub shows.

    from datasets import load_dataset

    scans = load_dataset("PREPARED", "scans", split="train")
    findings = load_dataset("PREPARED", "findings", split="train", streaming=True)

One file a split. `scans` holds what is known of each scan and where its voxels are (shard, row); `findings` a column for each
finding: absent, present, or null where nothing is stated. The manifest stays what training reads: it is mapped into memory, so
that every loader process shares it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, Dataset, Features, List, Value

from ..evaluate.metrics import FindingTable
from ..whole_files import written_whole
from .layouts import LABELS, SPLITS

UNASSIGNED = "unassigned"  # the split of scans that are of none
ANSWERS = ("absent", "present")
SCANS = Features(
    {
        "scan_id": Value("string"),
        "patient": Value("string"),
        "region": Value("string"),
        "shape": List(Value("int32"), length=3),  # (depth, height, width)
        "spacing": List(Value("float64"), length=3),  # mm
        "affine": List(Value("float64"), length=16),  # (d, h, w, 1) -> RAS+ mm, row by row
        "report": Value("string"),
        "has_segmentation": Value("bool"),
        "repairs": List(Value("string")),
        "warnings": List(Value("string")),
        "shard": Value("int32"),
        "row": Value("int32"),
    }
)


def write_tables(folder: Path, scans: Sequence[Mapping[str, Any]], labels: Sequence[Mapping[str, float]]) -> None:
    """Rows of the manifest and their findings -> scans/SPLIT.parquet, findings/SPLIT.parquet, and the README.md that names
    them to `load_dataset`."""
    names = sorted({name for stated in labels for name in stated})
    findings = Features(
        {"scan_id": Value("string"), "patient": Value("string")}
        | {name: ClassLabel(names=list(ANSWERS)) for name in names}
    )
    splits = [name for name in (*SPLITS, "") if any(scan["split"] == name for scan in scans)]
    tables = {"scans": SCANS, "findings": findings} if names else {"scans": SCANS}
    for kind in ("scans", "findings"):
        for stale in (folder / kind).glob("*.parquet"):
            stale.unlink()
    for split in splits:
        chosen = [k for k, scan in enumerate(scans) if scan["split"] == split]
        rows = {
            "scans": [dict(scans[k]) | {"has_segmentation": bool(scans[k]["places"])} for k in chosen],
            "findings": [
                {"scan_id": scans[k]["scan_id"], "patient": scans[k]["patient"]}
                | {name: int(labels[k][name]) if name in labels[k] else None for name in names}
                for k in chosen
            ],
        }
        for kind, features in tables.items():
            path = folder / kind / f"{split or UNASSIGNED}.parquet"
            write_parquet(path, rows[kind], features)
    files = "".join(
        f"- config_name: {kind}\n  data_files:\n"
        + "".join(f"  - {{split: {s or UNASSIGNED}, path: {kind}/{s or UNASSIGNED}.parquet}}\n" for s in splits)
        for kind in tables
    )
    (folder / "README.md").write_text(
        f"---\nconfigs:\n{files}---\n\nScans prepared by `ctfm prepare`. Research only: not for diagnosis or any "
        "decision about a patient.\n"
        if splits
        else "No scan could be prepared; refusals.csv says why.\n"
    )


def write_parquet(path: Path, rows: Sequence[Mapping[str, Any]], features: Features) -> None:
    """Rows of a typed table, whole or not at all; what is no column of it is left out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    some = [{name: row[name] for name in features} for row in rows]
    with written_whole(path) as partial:
        pq.write_table(pa.Table.from_pylist(some, schema=features.arrow_schema), partial)


def finding_columns(table: Dataset) -> list[str]:
    """Columns of yes or no: of type `ClassLabel` or bool."""
    return [
        name
        for name, kind in table.features.items()
        if isinstance(kind, ClassLabel) or getattr(kind, "dtype", None) == "bool"
    ]


def read_findings(table: Dataset, findings: Sequence[str] | None = None) -> FindingTable:
    """Labels of a Dataset: the columns `findings`, or else those of yes or no. Null is not stated.

    Raises:
        ValueError: there is no such column, or a cell is no label.
    """
    names = finding_columns(table) if findings is None else list(findings)
    missing = [name for name in names if name not in table.column_names]
    if missing or not names:
        raise ValueError(
            f"The table has {f'no column {missing[0]!r}' if missing else 'no column of type ClassLabel or bool'}; its columns "
            f"are {', '.join(table.column_names)}."
        )
    columns = []
    for name in names:
        kind = table.features[name]
        values = []
        for number, cell in enumerate(table[name]):
            if isinstance(kind, ClassLabel) and cell is not None:
                cell = kind.int2str(cell)
            word = "" if cell is None else str(cell).strip().lower().removesuffix(".0")
            if word and word not in LABELS:
                raise ValueError(
                    f"Row {number}: column {name!r} holds no label; labels are {', '.join(LABELS)}, or null."
                )
            values.append(LABELS[word] if word else np.nan)
        columns.append(values)
    return FindingTable(findings=tuple(names), values=np.array(columns).T.reshape(len(table), len(names)))


def labels_by_scan(table: Dataset, findings: Sequence[str] | None = None) -> dict[str, dict[str, float]]:
    """scan_id -> finding -> 1 or 0, as `Manifest` takes them in place of its own."""
    labels = read_findings(table, findings)
    return {
        scan: {name: float(v) for name, v in zip(labels.findings, row, strict=True) if not np.isnan(v)}
        for scan, row in zip(table["scan_id"], labels.values, strict=True)
    }
