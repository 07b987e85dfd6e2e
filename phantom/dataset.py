"""Phantoms -> a folder of scans and segmentations (MetaImage), table.csv and structures.json, in the layout `csv` of
`prepare`.

    ctfm phantom FOLDER --num-train 1000 --num-validation 150 --num-test 300 --num-workers 8

Test phantoms have seeds of their own, parameters from shifted ranges (other noise, kernels, spacing, sizes, body
habitus) and reports in sentences that no training report has. Validation phantoms are drawn as the test phantoms are,
from other seeds: settings and calibration are chosen on them.
"""

import csv
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro
from tqdm import tqdm

from ..whole_files import written_whole
from .make import FINDING_NAMES, SEGMENTATION_NAMES, SHIFTED_RANGES, TRAIN_RANGES, Phantom, make_phantom

# Findings that lie in one lung, pleural space or kidney: the table also says on which side ("Left lung nodule").
SIDED_NAMES = (
    "Atelectasis",
    "Lung nodule",
    "Lung opacity",
    "Pulmonary fibrotic sequela",
    "Pleural effusion",
    "Consolidation",
    "Bronchiectasis",
    "Kidney tumour",
    "Kidney stone",
)
COLUMNS = (
    *("path", "patient", "split", "report", "segmentation", *FINDING_NAMES),
    *(f"{side} {name.lower()}" for name in SIDED_NAMES for side in ("Left", "Right")),
)
FIRST_TEST_SEED = 1_000_000
FIRST_VALIDATION_SEED = 2_000_000


@dataclass(frozen=True, kw_only=True)
class PhantomDataset:
    """What to draw.

    Args:
        folder: where the scans and table.csv go.
        num_train: of split "train"; num_validation: of split "validation"; num_test: of split "test".
        shape: voxels `(depth, height, width)`; the spacing follows from the coverage, about 5 x 4 x 4 mm here.
        num_workers: processes; 0 works in this one.
    """

    folder: tyro.conf.Positional[Path]
    num_train: int = 1000
    num_validation: int = 0
    num_test: int = 300
    shape: tuple[int, int, int] = (64, 96, 96)
    num_workers: int = 0


def plan(dataset: PhantomDataset) -> Iterator[tuple[int, str]]:
    """Seed and split of every phantom."""
    yield from ((seed, "train") for seed in range(dataset.num_train))
    yield from ((FIRST_VALIDATION_SEED + k, "validation") for k in range(dataset.num_validation))
    yield from ((FIRST_TEST_SEED + k, "test") for k in range(dataset.num_test))


def draw(task: tuple[int, str, PhantomDataset]) -> dict[str, object]:
    """Writes one scan and returns its row of the table."""
    seed, split, dataset = task
    torch.set_num_threads(1)
    wording: Literal["train", "held_out"] = "train" if split == "train" else "held_out"
    ranges = TRAIN_RANGES if split == "train" else SHIFTED_RANGES
    phantom = make_phantom(seed, shape=dataset.shape, ranges=ranges, wording=wording)
    path = dataset.folder / split / f"{seed:07d}.mha"
    drawn = path.with_name(f"{seed:07d}-segmentation.mha")
    write_mha(phantom.hu, phantom, path)
    write_mha(phantom.segmentation, phantom, drawn)
    row: dict[str, object] = {"path": f"{split}/{path.name}", "patient": f"phantom {seed}", "split": split}
    row["segmentation"] = f"{split}/{drawn.name}"
    return row | {"report": str(phantom.report)} | label(phantom)


def label(phantom: Phantom) -> dict[str, int]:
    """Columns of the table: 1 for what the scan shows, 0 for the rest.

    >>> named = label(make_phantom(7, shape=(24, 32, 32), findings=["Pleural effusion"]))
    >>> named["Pleural effusion"], named["Lung nodule"]
    (1, 0)
    """
    labels = {name: phantom.labels[name] for name in FINDING_NAMES}
    for name in SIDED_NAMES:
        sides = {finding.side for finding in phantom.findings if finding.name == name}
        for side in ("left", "right"):
            labels[f"{side.capitalize()} {name.lower()}"] = int(side in sides or "both" in sides)
    return labels


def write_mha(voxels: torch.Tensor, phantom: Phantom, path: Path) -> None:
    """Writes a phantom's HU or segmentation, whole or not at all."""
    to_world = (
        np.diag([-1.0, -1.0, 1.0]) @ phantom.affine[:3, [2, 1, 0, 3]]
    )  # columns (x, y, z), LPS as MetaImage has it
    spacing = np.linalg.norm(to_world[:, :3], axis=0)
    directions = (to_world[:, :3] / spacing).T  # one row an axis
    array = voxels.cpu().numpy()
    header = {
        "ObjectType": "Image",
        "NDims": "3",
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": "False",
        "TransformMatrix": " ".join(f"{v:g}" for v in directions.ravel()),
        "Offset": " ".join(repr(float(v)) for v in to_world[:, 3]),
        "ElementSpacing": " ".join(repr(float(v)) for v in spacing),
        "DimSize": " ".join(map(str, array.shape[::-1])),
        "ElementType": "MET_UCHAR" if array.dtype == np.uint8 else "MET_SHORT",
        "ElementDataFile": "LOCAL",
    }
    text = "".join(f"{name} = {value}\n" for name, value in header.items())
    with written_whole(path) as partial:
        partial.write_bytes(text.encode() + array.astype(array.dtype.newbyteorder("<")).tobytes())


def write_dataset(dataset: PhantomDataset) -> Path:
    """Draws what is planned and returns the table."""
    tasks = [(seed, split, dataset) for seed, split in plan(dataset)]
    for split in {split for _, split, _ in tasks}:
        (dataset.folder / split).mkdir(parents=True, exist_ok=True)
    bar = tqdm(total=len(tasks), unit="phantom", disable=None)
    structures = {number: name for number, name in SEGMENTATION_NAMES.items() if name != "background"}
    (dataset.folder / "structures.json").write_text(json.dumps(structures, indent=1))
    table = dataset.folder / "table.csv"
    with written_whole(table) as partial, partial.open("w", newline="", encoding="utf-8") as file, bar:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        if dataset.num_workers == 0:
            rows = map(draw, tasks)
            writer.writerows(row for row in rows if not bar.update())
        else:
            with ProcessPoolExecutor(dataset.num_workers) as pool:
                writer.writerows(row for row in pool.map(draw, tasks, chunksize=4) if not bar.update())
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    print(write_dataset(tyro.cli(PhantomDataset, prog="ctfm phantom", args=arguments, description=__doc__)))
    return 0
