"""Checkpoints of a run and scans that it did not see -> points of its learning curve -> evaluate/learning.png.

    ctfm pretrain phantoms --out RUN --data PREPARED --save-every 50 --keep-last 100
    ctfm learning-curve measure RUN --train FOLDER@validation --test FOLDER@test
    ctfm learning-curve draw

`measure` puts a row into evaluate/learning.json for every checkpoint and question: findings of scans by nearest neighbours and
by a linear probe over crops' descriptors, both fitted on the scans of `--train`, and zero-shot where a phase aligns; where
there are label maps, structures of patches over the local transformer's tokens. All are macro AUROC over what `--test` holds,
with 95 % intervals over resampled scans. Rows of other runs, phases and questions stay.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ..train.checkpoint import find_checkpoints, load_exported
from ..train.data import SourceConfig
from ..train.shards import Manifest
from .metrics import FindingTable, auroc, estimate, measure_findings, resample_patients
from .probe import ProbeSet, choose_rows, encode_patches, encode_scans, stated_findings

POINTS = Path(__file__).with_suffix(".json")
RESAMPLES = 500
COLOURS = {
    "findings, nearest neighbours": "#0b7a75",
    "findings, linear probe": "#b5541c",
    "findings, zero-shot": "#3d5a98",
    "structures, nearest neighbours": "#6a994e",
    "structures, linear probe": "#bc4b8a",
}


WAYS = {"knn": "nearest neighbours", "linear": "linear probe", "zero_shot": "zero-shot"}
KINDS = ("findings", "structures")


def measure_run(
    run: Path,
    phases: Sequence[str],
    asked: Sequence[str],
    train: SourceConfig,
    test: SourceConfig,
    num_train: int,
    num_test: int,
) -> list[dict[str, Any]]:
    """A row a checkpoint and question, of the phases that are named, or all."""
    recipe = json.loads((run / "recipe.json").read_text())
    wanted = [name for name in recipe["phases"] if not phases or name in phases]
    paths = find_checkpoints(run / "checkpoints", wanted)
    checkpoints = [load_exported(path) for path in paths]
    parts = ((Manifest(train.folder), train.split, num_train), (Manifest(test.folder), test.split, num_test))
    rows = []
    for kind in asked:
        chosen = [
            (manifest, choose_rows(manifest, split, count, with_segmentation=kind == "structures"))
            for manifest, split, count in parts
        ]
        if kind == "findings":
            findings = stated_findings(*chosen)
            known, unknown = (encode_scans(checkpoints, *part, findings) for part in chosen)
        else:
            known, unknown = (encode_patches(checkpoints, *part) for part in chosen)
        for path, a, b in zip(paths, known, unknown, strict=True):
            phase, _, step = path.name.rpartition("-")
            place = {"run": recipe["name"], "phase": phase, "step": int(step)}
            place |= {"train": len(set(a.scans)), "test": len(set(b.scans))}
            for way, scores in a.scores_of(b).items():
                rows.append(place | {"question": f"{kind}, {WAYS[way]}"} | grade(scores, b))
    return rows


def grade(scores: FindingTable, test: ProbeSet) -> dict[str, float]:
    """Macro AUROC of what enough rows have and have not, with its 95 % interval over scans."""
    each = measure_findings(auroc, scores, test.labels, resample_patients(test.scans, RESAMPLES))
    found = estimate(np.mean(list(each.values()), 0), len(scores))
    return {"auroc": round(found.value, 4), "low": round(found.low, 4), "high": round(found.high, 4)}


def replace_rows(rows: list[dict[str, Any]], path: Path = POINTS) -> None:
    """Rows of the same runs, phases and questions make place."""

    def place(row: dict[str, Any]) -> tuple[str, ...]:
        return row["run"], row["phase"], row["question"]

    new = {place(row) for row in rows}
    before = json.loads(path.read_text()) if path.is_file() else []
    kept = [row for row in before if place(row) not in new] + rows
    path.write_text("[\n" + ",\n".join(json.dumps(row) for row in kept) + "\n]\n")


def draw(points: list[dict[str, Any]], path: Path) -> None:
    """A panel for every run and phase; dotted, what it started from; dashed, chance."""
    panels = list(dict.fromkeys((row["run"], row["phase"]) for row in points))
    figure = Figure(figsize=(6.4 * len(panels), 4.2), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, panel in zip(axes, panels, strict=True):
        rows = [row for row in points if (row["run"], row["phase"]) == panel]
        for question in dict.fromkeys(row["question"] for row in rows):
            own = sorted((row for row in rows if row["question"] == question), key=lambda row: row["step"])
            steps, values = [row["step"] for row in own], [row["auroc"] for row in own]
            colour = COLOURS[question]
            label = f"{question} ({own[0]['train']} scans to train, {own[0]['test']} to test)"
            axis.plot(steps, values, "o-", ms=3.5, lw=1.6, color=colour, label=label)
            axis.fill_between(
                steps, [row["low"] for row in own], [row["high"] for row in own], color=colour, alpha=0.15, lw=0
            )
            if steps[0] == 0 and not question.endswith("zero-shot"):
                axis.axhline(values[0], color=colour, ls=":", lw=1.2)
        axis.axhline(0.5, color="0.5", ls="--", lw=1, label="chance")
        axis.set(title=f"{panel[1].replace('_', ' ')} (recipe {panel[0]})", xlabel="optimizer steps")
        axis.grid(alpha=0.25)
        axis.legend(frameon=False, fontsize=8)
    axes[0].set_ylabel("macro AUROC, held-out phantoms")
    figure.savefig(path, dpi=130)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="ctfm learning-curve", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    measuring = commands.add_parser("measure")
    measuring.add_argument("run", type=Path, help="OUT of ctfm pretrain")
    measuring.add_argument("--train", required=True, metavar="FOLDER@SPLIT")
    measuring.add_argument("--test", required=True, metavar="FOLDER@SPLIT")
    measuring.add_argument("--phases", nargs="*", default=[])
    measuring.add_argument("--ask", nargs="*", choices=KINDS, default=list(KINDS))
    measuring.add_argument("--train-scans", type=int, default=300)
    measuring.add_argument("--test-scans", type=int, default=300)
    measuring.add_argument("--points", type=Path, default=POINTS)
    drawing = commands.add_parser("draw")
    drawing.add_argument("--points", type=Path, default=POINTS)
    drawing.add_argument("--out", type=Path, default=POINTS.with_suffix(".png"))
    given = parser.parse_args(arguments)
    if given.command == "draw":
        draw(json.loads(given.points.read_text()), given.out)
        return 0
    train, test = (
        SourceConfig(folder=f, split=s) for f, _, s in (text.rpartition("@") for text in (given.train, given.test))
    )
    rows = measure_run(given.run, given.phases, given.ask, train, test, given.train_scans, given.test_scans)
    replace_rows(rows, given.points)
    for row in rows:
        print(json.dumps(row))
    return 0
