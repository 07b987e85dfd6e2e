"""Table of scans -> a trained head on frozen features, in minutes on a CPU once these are there: `ctfm probe`.

    ctfm probe scans.csv --out runs/probe                                    findings: columns of 1 and 0
    ctfm probe scans.csv --out runs/stage --one-of stage                     one of several words
    ctfm probe scans.csv --out runs/age --value age weight                   numbers
    ctfm probe scans.csv --out runs/survival --time days --event death       time to an event

A row of the table is a scan: path (relative to it), and as far as known patient, split and series_uid. DIR/model is a folder
that from_pretrained, pipeline("image-classification") and `ctfm worklist` open; DIR/metrics.json says what it reaches on scans
that it was not fitted on, DIR/few_shot.csv and .png what a head reaches that saw 1, 2, 4, ... patients. Features stay in
DIR/features, so a scan is encoded once. A scan that cannot be read is listed in DIR/features/manifest.csv and left out.
"""

import argparse
import csv
import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..configuration_ctfm import CTFMConfig
from ..embedding import Manifest, add_model_arguments, embed_found, fingerprint, read_features, weight_files
from ..errors import TableError
from ..modeling_ctfm import CTFMForImageClassification
from ..processing_ctfm import CTFMProcessor
from ..volume_scan_ctfm import VolumeError
from ..volume_studies_ctfm import Found
from ..weights import load_complete
from ..whole_files import write_json
from .linear_head import MAIN_METRIC, LinearHead, calibrate_head, choose_head, few_shot, measure
from .survival import baseline_hazard
from .targets import PROBLEM_TYPES, Targets, add_question_arguments, read_question, read_targets


def probe(
    table: Path, targets: Targets, out: Path, model_id: str, spacing: str | None, num_draws: int
) -> dict[str, Any]:
    """Embeds, fits, calibrates, measures and exports. Returns what metrics.json holds.

    Raises:
        ValueError: no scan of split "train" could be read.
    """
    out.mkdir(parents=True, exist_ok=True)
    failed = embed_found(targets.scans, out / "features", model_id, spacing)
    features, kept = load_features(out / "features", targets)
    targets = select(targets, kept)
    if not len(targets.rows("train")):
        raise ValueError(
            f"No scan of {table} for training could be read; {out / 'features' / 'manifest.csv'} says why."
        )
    head = choose_head(features, targets)
    validation = targets.rows("validation")
    calibration = calibrate_head(head(features[validation]), targets, validation)
    metrics: dict[str, Any] = {"kind": targets.kind, "scans_failed": failed, "penalty": head.penalty}
    for split in ("train", "validation", "test"):
        rows = targets.rows(split)
        patients = len({targets.patients[row] for row in rows})
        found = measure(head(features[rows]), targets, rows) if len(rows) else {}
        numbers = {name: round(value, 4) for name, value in found.items()}
        metrics[split] = {"scans": len(rows), "patients": patients} | numbers
    metrics["calibrated"] = sorted(calibration)
    if targets.kind == "survival":
        rows = targets.rows("train")
        time, event = targets.values[rows].T
        steps = baseline_hazard(head(features[rows])[:, 0], time, event)
        metrics["baseline_hazard"] = [{"time": moment, "hazard": round(total, 6)} for moment, total in steps]
    export_head(head, targets, calibration, model_id, out / "model")
    write_few_shot(few_shot(features, targets, num_draws), metrics, out)
    return metrics


def load_features(folder: Path, targets: Targets) -> tuple[np.ndarray, np.ndarray]:
    """`(n, f)` scan features and the rows of `targets` that have some."""
    manifest, vectors, kept = Manifest(folder / "manifest.csv"), [], []
    for row, (path, series_uid) in enumerate(targets.scans):
        stated = manifest.rows.get((str(path), series_uid or ""), {})
        if stated.get("status") == "done":
            vectors.append(read_features(folder / stated["features"])["scan_features"].numpy())
            kept.append(row)
    return np.array(vectors, np.float64).reshape(len(kept), -1), np.array(kept, int)


def select(targets: Targets, rows: np.ndarray) -> Targets:
    return replace(
        targets,
        scans=tuple(targets.scans[row] for row in rows),
        patients=tuple(targets.patients[row] for row in rows),
        splits=tuple(targets.splits[row] for row in rows),
        values=targets.values[rows],
    )


def export_head(
    head: LinearHead, targets: Targets, calibration: dict[str, dict[str, float]], model_id: str, out: Path
) -> None:
    """A `CTFMForImageClassification` whose classifier is the head, with its processor and code, in float32."""
    config = CTFMConfig.from_pretrained(model_id)
    config.id2label = dict(enumerate(targets.names))
    config.label2id = {name: number for number, name in enumerate(targets.names)}
    config.problem_type = PROBLEM_TYPES[targets.kind]
    config.calibration = calibration or None
    config.structures = None
    config.token_scores = False  # the head reads the scan's feature alone
    model = load_complete(
        CTFMForImageClassification, model_id, new=("classifier.",), config=config, dtype=torch.float32
    )
    with torch.no_grad():
        model.classifier.weight.copy_(torch.from_numpy(head.weight))
        model.classifier.bias.copy_(torch.from_numpy(head.bias))
    model.save_pretrained(out)
    CTFMProcessor.from_pretrained(model_id).save_pretrained(out)


def write_few_shot(rows: Sequence[dict[str, Any]], metrics: dict[str, Any], out: Path) -> None:
    """few_shot.csv, and few_shot.png with the mean and the spread of the draws; nothing where nothing could be measured."""
    if not rows:
        return
    from matplotlib.figure import Figure

    name = MAIN_METRIC[metrics["kind"]]
    with (out / "few_shot.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    counts = sorted({row["patients"] for row in rows})
    drawn = [[row[name] for row in rows if row["patients"] == count] for count in counts]
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axis = figure.subplots()
    axis.plot(counts, [np.mean(some) for some in drawn], "o-", color="#0b7a75", label=f"mean of {len(drawn[0])} draws")
    axis.fill_between(
        counts, [min(some) for some in drawn], [max(some) for some in drawn], color="#0b7a75", alpha=0.15, lw=0
    )
    measured = metrics["test"] if metrics["test"]["scans"] else metrics["validation"]
    if name in measured:
        axis.axhline(measured[name], color="0.5", ls="--", lw=1, label=f"all {metrics['train']['patients']} patients")
    each = " of each kind" if metrics["kind"] in ("findings", "one_of") else ""
    axis.set_xscale("log", base=2)
    axis.set_xticks(counts, [str(count) for count in counts])
    axis.set(xlabel=f"patients to learn from{each}", ylabel=f"{name.replace('_', ' ')}, held-out patients")
    axis.grid(alpha=0.25)
    axis.legend(frameon=False)
    figure.savefig(out / "few_shot.png", dpi=130)


def inputs_of(table: Path, files: Sequence[Found], given: argparse.Namespace) -> str:
    """Of all that decides what comes out: table, its scans and label maps by place, size and time, weights, settings."""
    asked = {name: value for name, value in vars(given).items() if name not in ("out", "table")}
    facts = json.dumps(
        [asked, [fingerprint(*file, ()) for file in files], weight_files(given.model)], default=str, sort_keys=True
    )
    return hashlib.sha256(facts.encode() + table.read_bytes()).hexdigest()[:20]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="ctfm probe", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", type=Path, help=".csv, .tsv, .xlsx or .parquet with a column path")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--draws", type=int, default=5, help="of patients, for each point of the few-shot curve")
    parser.add_argument("--seed", type=int, default=0, help="of the split, where the table has none")
    add_question_arguments(parser)
    add_model_arguments(parser)
    given = parser.parse_args(arguments)
    if not given.table.is_file():
        print(f"ctfm: no table {given.table}", file=sys.stderr)
        return 2
    done = given.out / "metrics.json"
    try:
        targets = read_targets(given.table, read_question(given), given.seed)
        key = inputs_of(given.table, targets.scans, given)
        if done.is_file() and (metrics := json.loads(done.read_text())).get("inputs") == key:
            print(
                f"{describe(metrics, given.out)}\nNothing is to be done: table, scans and weights are those of before."
            )
            return 1 if metrics["scans_failed"] else 0
        metrics = probe(given.table, targets, given.out, given.model, given.spacing, given.draws)
    except ValueError as error:
        if isinstance(error, VolumeError | TableError):  # which every command tells in the same way
            raise
        print(f"ctfm: {error}", file=sys.stderr)
        return 2
    write_json(done, metrics | {"inputs": key})
    print(describe(metrics, given.out))
    return 1 if metrics["scans_failed"] else 0


def describe(metrics: dict[str, Any], out: Path) -> str:
    name = MAIN_METRIC[metrics["kind"]]
    lines = []
    for split in ("train", "validation", "test"):
        part = metrics[split]
        value = f"{part[name]:.3f}" if name in part else "too few to measure"
        lines.append(
            f"{split:11} {part['scans']} scans of {part['patients']} patients, {name.replace('_', ' ')} {value}"
        )
    if metrics["scans_failed"]:
        lines.append(f"{metrics['scans_failed']} scans could not be read: {out / 'features' / 'manifest.csv'}")
    if metrics["kind"] == "findings":
        lines.append(
            f"calibrated  {', '.join(metrics['calibrated']) or 'nothing; validation holds too few of each kind'}"
        )
    return "\n".join([*lines, f"model       {out / 'model'}"])
