"""Checkpoint and scans like those of its training -> gate.safetensors beside the weights: what the Space's gate compares with.

    python space/measure_gate.py checkpoints/default runs/gate/table.csv

TABLE has the columns path, split, report and one of each finding (1 or 0), as `ctfm phantom` writes it. Scans of
split "train" are the reference; on those of "validation", which were drawn with other settings, the threshold and the levels
of the maps are chosen; of "test" it is told how many the gate lets through. --other names scans that it should refuse.
"""

import argparse
import csv
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from analysis import Analyser, Analysis
from from_package import Gate, distances, scan_features, split_crops
from loading import Source, Weights, load_weights
from uploads import Scan

KEPT_SHARE = 0.95  # of the validation scans lie within the threshold: one in twenty is refused for nothing
BELOW_LEVEL = 0.95  # of the scans without a finding have no patch above its level
NUM_SENTENCES = 200


class Measured:
    """What is kept of every scan of one split."""

    def __init__(self) -> None:
        self.features: list[torch.Tensor] = []
        self.embeddings: list[torch.Tensor] = []
        self.strongest: dict[str, list[float]] = {}
        self.present: dict[str, list[bool]] = {}

    def add(self, analysis: Analysis, row: dict[str, str]) -> None:
        body = analysis.body
        self.features.append(scan_features(analysis.vision, split_crops(body, analysis.geometry.crop_grid)))
        self.embeddings.append(analysis.embedding)
        for label, cells in analysis.maps.items():
            self.strongest.setdefault(label, []).append(float(cells[body].max() - cells[body].median()))
            self.present.setdefault(label, []).append(row.get(label) == "1")


class OpenAnalyser(Analyser):
    """Answers whatever the scan: there is no gate yet."""

    def judge(self, *arguments: object) -> object:
        return argparse.Namespace(answers=True, reason=None)


def encode(analyser: Analyser, scans: Iterable[tuple[Any, dict[str, str]]]) -> Measured:
    """Volumes, each with its row of the table."""
    measured = Measured()
    for volume, row in scans:
        measured.add(analyser.analyse(Scan(key="", volume=volume, read_seconds=0.0)), row)
    return measured


def read(weights: Weights, paths: Sequence[Path]) -> Iterator[Any]:
    for number, path in enumerate(paths, 1):
        print(f"{number} / {len(paths)} {path.name}", file=sys.stderr)
        yield weights.volume.read_volume(path)


def sentences_of(rows: Sequence[dict[str, str]]) -> list[str]:
    """Different sentences of findings and impression, without numbers, in the order of the table."""
    found: dict[str, None] = {}
    for row in rows:
        for name in ("Findings", "Impression"):
            section = re.search(rf"^{name}: (.*)$", row.get("report", ""), re.MULTILINE)
            sentences = re.split(r"(?<=[.!?])\s+", section[1]) if section else []
            found |= dict.fromkeys(s for s in sentences if s and not re.search(r"\d", s))
    return list(found)


def choose_levels(measured: Measured) -> tuple[dict[str, float], float]:
    """The level of every finding, and how many times it the strongest patch of scans with a finding reaches."""
    levels, reached = {}, []
    for label, strongest in measured.strongest.items():
        values, present = np.array(strongest), np.array(measured.present[label])
        levels[label] = float(np.quantile(values[~present], BELOW_LEVEL))
        reached += (values[present] / levels[label]).tolist()
    return levels, float(np.quantile(reached, BELOW_LEVEL))


def measure(checkpoint: Path, table: Path, others: Sequence[Path]) -> Gate:
    weights = load_weights(Source(model=str(checkpoint)))
    analyser = OpenAnalyser(weights)
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    splits = {}
    for split in ("train", "validation", "test"):
        chosen = [row for row in rows if row["split"] == split]
        volumes = read(weights, [table.parent / row["path"] for row in chosen])
        splits[split] = encode(analyser, zip(volumes, chosen, strict=False))
    reference = torch.stack(splits["train"].features).half().float()
    far = {name: distances(torch.stack(part.features), reference) for name, part in splits.items() if part.features}
    far["train"] = distances(reference, reference, leave_one_out=True)
    threshold = float(np.quantile(far["validation"].numpy(), KEPT_SHARE))
    levels, top = choose_levels(splits["validation"])
    measured = {f"{name}_scans": float(len(d)) for name, d in far.items()}
    measured |= {f"{name}_within": float((d <= threshold).float().mean()) for name, d in far.items()}
    if others:
        found = encode(analyser, ((volume, {}) for volume in read(weights, others)))
        d = distances(torch.stack(found.features), reference)
        for path, value in sorted(zip(others, d.tolist(), strict=True), key=lambda pair: pair[1]):
            print(f"{value / threshold:6.2f} thresholds  {path.name}")
        measured |= {"other_scans": float(len(d)), "other_within": float((d <= threshold).float().mean())}
    return Gate(
        features=reference,
        embeddings=torch.stack(splits["train"].embeddings),
        threshold=threshold,
        map_levels=levels,
        map_top=max(2.0, round(top, 1)),
        sentences=tuple(sentences_of([row for row in rows if row["split"] == "train"])[:NUM_SENTENCES]),
        data=weights.trained_on,
        measured=measured,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("table", type=Path)
    parser.add_argument("--other", type=Path, nargs="*", default=(), help="scans that the gate should refuse")
    options = parser.parse_args(arguments)
    gate = measure(options.checkpoint, options.table, options.other)
    gate.save(options.checkpoint / "gate.safetensors")
    print({name: round(value, 4) for name, value in gate.measured.items()}, f"threshold {gate.threshold:.4f}")


if __name__ == "__main__":
    main()
