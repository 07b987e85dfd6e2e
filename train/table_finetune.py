"""Table of scans where they lie -> a fine-tuned model: `ctfm finetune findings|segmentation|survival TABLE --out DIR`.

    ctfm finetune findings scans.csv --out runs/findings --trunk lora
    ctfm finetune findings scans.csv --out runs/stage --one-of stage        or --value age weight
    ctfm finetune segmentation scans.csv --out runs/organs                  column segmentation: label maps on the scans' voxels
    ctfm finetune survival scans.csv --out runs/survival --time days --event death

The table is that of `ctfm probe`, with a column segmentation where voxels are learnt, whose labels structures.json beside it
names. Scans are read once, into DIR/prepared; a killed run goes on, and a finished one does nothing. Training ends when the
loss on "validation" (of segmentations the Dice) got no better `--patience` times; the best is calibrated there, measured on
"test" and saved as DIR/model, a folder that from_pretrained, pipelines and `ctfm worklist` open. Scans that cannot be read
are left out and named by their row of the table.
"""

import argparse
import csv
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..embedding import add_model_argument
from ..modeling_ctfm import CTFMForImageClassification
from ..processing_ctfm import CTFMProcessor
from ..volume_scan_ctfm import VolumeError
from ..whole_files import write_json
from .data import SourceConfig, select_rows
from .finetune import ScanLabels, fine_tune, load_trained
from .labels import answer, grade
from .linear_head import MAIN_METRIC, calibrate_head, measure
from .prepare import PrepareConfig, prepare
from .pretrain import Run, prepare_process
from .recipes import FINE_TUNINGS, FineTuning, OptimizerConfig
from .shards import Manifest
from .table_files import read_table
from .table_probe import inputs_of
from .targets import Question, Targets, add_question_arguments, check_paths, read_question, read_targets, split_patients

TRUNKS = ("frozen", "lora", "last", "full")
ADAPTER_RANK, LAST_LAYERS = 16, 2
MAX_POSITIVE_WEIGHT = 20.0
LEARNING_RATES = {"frozen": 1e-3, "lora": 5e-4, "last": 1e-4, "full": 5e-5}


def place_of(table: Path, row: dict[str, str]) -> str:
    return f"{(table.parent / row['path']).resolve()}#{row.get('series_uid') or ''}"


def prepare_table(
    table: Path, splits: Sequence[str], columns: Sequence[str], out: Path
) -> tuple[Path, dict[str, str], list[str]]:
    """Shards of the table's scans, with its splits. Returns their folder, the path and series of each scan's id, and which rows
    are left out and why."""
    rows = read_table(table)
    kept = [name for name in ("path", "patient", "series_uid", "segmentation", *columns) if name in rows[0]]
    own = out / "table.csv"
    with own.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*kept, "split"])
        writer.writeheader()
        for row, split in zip(rows, splits, strict=True):
            places = {
                name: str((table.parent / row[name]).resolve()) for name in ("path", "segmentation") if row.get(name)
            }
            writer.writerow({name: row[name] for name in kept} | places | {"split": split})
    names = table.with_name("structures.json")
    if names.is_file():
        own.with_name("structures.json").write_text(names.read_text())
    private = out / "prepared-private"
    prepare(PrepareConfig(layout="csv", source=own, out=out / "prepared", private=private))
    with (private / "sources.csv").open(newline="", encoding="utf-8") as file:
        scans = {row["scan_id"]: f"{row['path']}#{row['series_uid']}" for row in csv.DictReader(file)}
    numbers: dict[str, list[int]] = {}
    for number, row in enumerate(rows, 2):
        numbers.setdefault(place_of(table, row), []).append(number)
    with (out / "prepared" / "refusals.csv").open(newline="", encoding="utf-8") as file:
        # of rows that name the same scan, the last are those that are left out
        refused = sorted((numbers[scans[row["scan_id"]]].pop(), row["reason"]) for row in csv.DictReader(file))
    return out / "prepared", scans, [f"row {number}: {reason}" for number, reason in refused]


def label_scans(targets: Targets, scans: dict[str, str]) -> tuple[ScanLabels, np.ndarray]:
    """What each prepared scan is trained with, and middle and spread `(2, k)` by which numbers were standardised."""
    rows = {f"{path.resolve()}#{series or ''}": k for k, (path, series) in enumerate(targets.scans)}
    middle, spread = np.zeros(len(targets.names)), np.ones(len(targets.names))
    values, columns = targets.values, targets.names
    if targets.kind == "one_of":
        values = np.where(np.isnan(values), np.nan, values == np.arange(len(targets.names)))
    elif targets.kind == "value":
        train = values[targets.rows("train")]
        middle, spread = np.nanmean(train, 0), np.nanstd(train, 0)
        spread = np.where(spread > 0, spread, 1.0)
        values = (values - middle) / spread
    elif targets.kind == "survival":
        columns = ("time", *targets.names) if targets.names[0] != "time" else ("time of event", *targets.names)
    by_scan = {}
    for scan, place in scans.items():
        stated = values[rows[place]]
        by_scan[scan] = {name: float(v) for name, v in zip(columns, stated, strict=True) if not np.isnan(v)}
    return ScanLabels(by_scan=by_scan, names=targets.names, columns=columns), np.stack((middle, spread))


def build_recipe(teaches: str, question: Question, given: argparse.Namespace, num_train: int) -> FineTuning:
    batch = max(1, min(given.batch, num_train))
    optimizer = OptimizerConfig(
        learning_rate=given.learning_rate or LEARNING_RATES[given.trunk],
        warmup_steps=min(20, given.steps - 1),
        weight_decay=0.05,
        last_weight_decay=0.05,
        betas=(0.9, 0.98),
    )
    return replace(
        FINE_TUNINGS[teaches](),
        start=given.model,
        trunk_is_frozen=given.trunk != "full",
        adapter_rank=ADAPTER_RANK if given.trunk == "lora" else 0,
        last_layers=LAST_LAYERS if given.trunk == "last" else 0,
        question=question.kind,
        max_positive_weight=MAX_POSITIVE_WEIGHT,
        patience=given.patience,
        steps=given.steps,
        global_batch=batch,
        micro_batch=batch,
        test_split="validation",
        optimizer=optimizer,
        seed=given.seed,
    )


def run_table(teaches: str, question: Question, given: argparse.Namespace) -> dict[str, Any] | None:
    """Metrics of a run that is finished; None where a signal ended it."""
    rows = read_table(given.table, "path", *(("segmentation",) if teaches == "segmentation" else ()))
    targets = None
    if teaches == "findings":
        targets = read_targets(given.table, question, given.seed)
        splits, columns = targets.splits, targets.names if targets.kind == "findings" else ()
    else:
        check_paths(given.table, rows)
        stated = [row.get("split", "") for row in rows]
        splits, columns = split_patients([row.get("patient") or row["path"] for row in rows], stated, given.seed), ()
    label_maps = [given.table.parent / row["segmentation"] for row in rows if row.get("segmentation")]
    scans_at = [(given.table.parent / row["path"], row.get("series_uid") or None) for row in rows]
    key = inputs_of(given.table, [*scans_at, *((path, None) for path in label_maps)], given)
    if (done := read_done(given.out, key)) is not None:
        return done
    folder, scans, left_out = prepare_table(given.table, splits, columns, given.out)
    trained_on = SourceConfig(folder=str(folder), split="train", with_segmentation=teaches == "segmentation")
    if not len(select_rows(Manifest(folder), trained_on)):
        kind = "No scan with a label map" if teaches == "segmentation" else "No scan"
        raise ValueError(f'{kind} of split "train" could be read. {"; ".join(left_out[:5])}'.rstrip())
    (given.out / "inputs.json").write_text(json.dumps({"inputs": key}) + "\n")
    labels, scale = (None, np.zeros((2, 0))) if targets is None else label_scans(targets, scans)
    recipe = build_recipe(teaches, question, given, list(splits).count("train"))
    every = max(1, min(given.probe_every, given.steps))
    run = Run(recipe=recipe, out=given.out / "run", data=(str(folder),), probe_every=every, save_every=every)
    accelerator = prepare_process()
    if not fine_tune(run, accelerator, labels):
        return None
    best = run.out / "best" / "checkpoint"
    model, processor = load_trained(best if best.is_dir() else last_checkpoint(run.out))
    metrics: dict[str, Any] = {"scans_failed": len(left_out), "left_out": left_out, "trunk": given.trunk, "inputs": key}
    if isinstance(model, CTFMForImageClassification) and targets is not None and labels is not None:
        metrics |= calibrate_and_measure(model, processor, Manifest(folder, labels.by_scan), targets, labels, scale)
    else:
        for split in ("validation", "test"):
            metrics[split] = grade(model, processor, Manifest(folder), split, len(rows))
    nn.Module.to(model, torch.float32)  # calibrated as it is: bfloat16 would move the logits
    model.save_pretrained(given.out / "model")
    CTFMProcessor.from_pretrained(recipe.start).save_pretrained(given.out / "model")
    return metrics


def read_done(out: Path, key: str) -> dict[str, Any] | None:
    """Metrics of a finished run on the same inputs, which OUT/inputs.json names once training began; else None.

    Raises:
        ValueError: OUT holds a run on others. What it has learnt would be measured on labels that it was not trained for.
    """
    out.mkdir(parents=True, exist_ok=True)
    begun, done = out / "inputs.json", out / "metrics.json"
    if begun.is_file() and json.loads(begun.read_text())["inputs"] != key:
        raise ValueError(
            f"{out} holds a run on another table, other scans or weights, or with other options. Take another --out."
        )
    return json.loads(done.read_text()) if done.is_file() else None


def last_checkpoint(out: Path) -> Path:
    return sorted((out / "checkpoints").iterdir())[-1]


def calibrate_and_measure(
    model: CTFMForImageClassification,
    processor: Any,
    manifest: Manifest,
    targets: Targets,
    labels: ScanLabels,
    scale: np.ndarray,
) -> dict[str, Any]:
    """Puts the scale of numbers into the head and the calibration into the config."""
    middle, spread = scale
    if targets.kind == "value":
        with torch.no_grad():
            weight, bias = model.classifier.weight, model.classifier.bias
            weight.mul_(torch.tensor(spread, dtype=weight.dtype)[:, None])
            bias.mul_(torch.tensor(spread, dtype=bias.dtype)).add_(torch.tensor(middle, dtype=bias.dtype))
    metrics: dict[str, Any] = {"kind": targets.kind}
    for split in ("validation", "test"):
        outputs, truth, ids = answer(model, processor, manifest, split, len(targets.scans), labels.columns)
        if not ids:
            metrics[split] = {"scans": 0}
            continue
        if targets.kind == "one_of":
            truth = np.where(np.isnan(truth).any(1), np.nan, truth.argmax(1))[:, None]
        elif targets.kind == "value":
            truth = truth * spread + middle
        known = ~np.isnan(truth).all(1)
        part = replace(targets, values=truth[known], splits=(), scans=(), patients=())
        found = measure(outputs[known], part, np.arange(len(part.values)))
        metrics[split] = {"scans": int(known.sum())} | {name: round(value, 4) for name, value in found.items()}
        if split == "validation":
            calibration = calibrate_head(outputs[known], part, np.arange(len(part.values)))
            model.config.calibration = calibration or None
            metrics["calibrated"] = sorted(calibration)
    return metrics


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="ctfm finetune", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("task", choices=("findings", "segmentation", "survival"))
    parser.add_argument("table", type=Path, help=".csv, .tsv, .xlsx or .parquet with a column path")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    add_model_argument(parser)
    parser.add_argument("--trunk", choices=TRUNKS, default="lora", help="what learns beside the head (%(default)s)")
    parser.add_argument("--steps", type=int, default=500, help="at most (%(default)s)")
    parser.add_argument("--batch", type=int, default=8, help="scans of a step (%(default)s)")
    parser.add_argument("--learning-rate", type=float, help="instead of that of --trunk")
    parser.add_argument("--probe-every", type=int, default=25, help="steps between looks at validation (%(default)s)")
    parser.add_argument(
        "--patience", type=int, default=4, help="looks without a better one (%(default)s); 0 for all steps"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the split, where the table has none, and of the training"
    )
    add_question_arguments(parser)
    given = parser.parse_args(arguments)
    if given.steps < 1 or given.batch < 1 or given.probe_every < 1:
        parser.error(
            f"--steps {given.steps}, --batch {given.batch} and --probe-every {given.probe_every} must be 1 or more"
        )
    if not given.table.is_file():
        print(f"ctfm: no table {given.table}", file=sys.stderr)
        return 2
    try:
        question = read_question(given)
        if given.task == "survival" and question.kind != "survival":
            raise ValueError("survival needs --time COLUMN and --event COLUMN.")
        if given.task == "segmentation" and question.kind != "findings":
            raise ValueError(
                "segmentation learns the column segmentation and takes no --one-of, --value, --time or --event."
            )
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # set by launchers
            raise ValueError(
                "A table is trained on by one process. For several, run `ctfm prepare csv TABLE PREPARED`, then launch "
                f"`ctfm finetune {given.task} --data PREPARED` (train/README.md)."
            )
        teaches = "segmentation" if given.task == "segmentation" else "findings"
        metrics = run_table(teaches, question, given)
    except ValueError as error:
        if isinstance(error, VolumeError):
            raise
        print(f"ctfm: {error}", file=sys.stderr)
        return 2
    if metrics is None:
        print(f"Not finished; the same command goes on in {given.out}.")
        return 0
    write_json(given.out / "metrics.json", metrics)
    name = MAIN_METRIC[question.kind] if teaches == "findings" else "macro_dice"
    for split in ("validation", "test"):
        value = metrics[split].get(name)
        print(f"{split:11} {name.replace('_', ' ')} {'too few to measure' if value is None else f'{value:.3f}'}")
    for line in metrics["left_out"]:
        print(f"ctfm: left out, {line}", file=sys.stderr)
    print(f"model       {given.out / 'model'}")
    return 1 if metrics["scans_failed"] else 0
