"""Checkpoint with a segmentation decoder and real scans with label maps -> Dice of each organ, and whether sides are exchanged.

    ctfm organs CHECKPOINT --table organs.csv --out measured

organs.csv has the columns scan (a path), patient, and segmentation: a label map with TotalSegmentator's numbers (v2,
https://github.com/wasserth/TotalSegmentator; organs.json beside this file names them), or `lungs`, which makes a reference of
the lungs by a threshold: air inside the body. Paths are relative to the table. Reference label maps are the work of another
model, so a Dice is agreement with it and no truth. An organ of which a scan shows less than a millilitre is not measured there.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import ndimage
from tqdm import tqdm

from ..errors import TableError
from ..segmentation import load_segmenter
from ..train.table_files import read_table
from ..volume_ctfm import Volume, read_segmentation, read_volume
from .evaluate import report_metrics
from .metrics import Estimate, dice, estimate, mean, resample_patients

ORGANS: dict[str, dict[str, list]] = json.loads((Path(__file__).parent / "organs.json").read_text())
OTHER_SIDE = {"right lung": "left lung", "left lung": "right lung", "right kidney": "left kidney"} | {
    "left kidney": "right kidney"
}
COLUMNS = ("scan", "patient", "segmentation")
AIR_HU, BODY_HU = -500, -300
MIN_VOXELS_ML = 1.0


def lungs_by_threshold(volume: Volume) -> np.ndarray:
    """Voxels of air inside the body `(D, H, W)`, airways with them: nothing that touches the border of a slice."""
    air = volume.hu < AIR_HU
    parts = np.zeros(air.shape, np.int32)
    ndimage.label(air, output=parts)
    rim = np.concatenate([np.unique(parts[:, edge]) for edge in (0, -1)] + [np.unique(parts[:, :, e]) for e in (0, -1)])
    inside = air & ~np.isin(parts, rim)
    sizes_ml = np.bincount(parts[inside], minlength=int(parts.max()) + 1) * float(np.prod(volume.spacing)) / 1000
    return inside & (sizes_ml[parts] > 100)  # gas of the bowel comes in smaller pockets


def find_references(segmentation: str, folder: Path, volume: Volume) -> dict[str, np.ndarray]:
    """Organ -> its voxels in the reference `(D, H, W)`."""
    if segmentation == "lungs":
        return {"lungs by threshold": lungs_by_threshold(volume)}
    labels = read_segmentation(folder / segmentation, volume)
    present = set(np.unique(labels).tolist())
    return {
        name: np.isin(labels, organ["reference"]) for name, organ in ORGANS.items() if present & set(organ["reference"])
    }


def measure(checkpoint: Path, table: Path) -> dict[str, Estimate]:
    """Mean Dice of each organ over scans, with intervals by patient where there are several; and of paired organs the share of
    predicted voxels that lie in the reference of the other side.

    Raises:
        TableError: the table lacks a column or has no row.
    """
    rows = read_table(table, *COLUMNS)
    if not rows:
        raise TableError(f"{table} has no row.")
    segmenter = load_segmenter(str(checkpoint), device="cpu")
    model, processor = segmenter.model, segmenter.processor
    numbers = {name: number for number, name in segmenter.structures.items()}
    values, exchanged = dict[str, list[tuple[str, float]]](), dict[str, list[tuple[str, float]]]()
    for row in tqdm(rows, disable=not sys.stderr.isatty()):
        volume = read_volume(table.parent / row["scan"])
        inputs = processor.preprocess(volume)
        labels = model.segment(inputs["pixel_values"], inputs["crop_grid"], inputs["crop_mask"])
        found = processor.to_patient_space(labels, inputs)[0]
        voxel_ml = float(np.prod(volume.spacing)) / 1000
        references = find_references(row["segmentation"], table.parent, volume)
        for name, truth in references.items():
            if truth.sum() * voxel_ml < MIN_VOXELS_ML:
                continue
            own = np.isin(found, [numbers[part] for part in ORGANS[name]["predicted"] if part in numbers])
            values.setdefault(name, []).append((row["patient"], dice(own, truth)))
            other = references.get(OTHER_SIDE.get(name, ""))
            if other is not None and own.any():
                exchanged.setdefault(name, []).append((row["patient"], float((own & other).sum() / own.sum())))
    metrics = {f"organs/{name}/dice": average_over(pairs) for name, pairs in values.items()}
    return metrics | {f"organs/{name}/on_the_other_side": average_over(pairs) for name, pairs in exchanged.items()}


def average_over(pairs: Sequence[tuple[str, float]]) -> Estimate:
    """Mean over scans; without an interval where all are of one patient."""
    patients, numbers = [patient for patient, _ in pairs], np.array([value for _, value in pairs])
    weights = resample_patients(patients)
    if len(set(patients)) == 1:
        return Estimate(value=float(np.nanmean(numbers)), low=float("nan"), high=float("nan"), n=len(numbers))
    return estimate(mean(numbers, weights), len(numbers))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="ctfm organs", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, help="a folder whose config.json names structures")
    parser.add_argument("--table", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="where organs.json goes")
    given = parser.parse_args(arguments)
    report_metrics(measure(given.checkpoint, given.table), given.out / "organs.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
