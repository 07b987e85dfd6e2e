"""Checkpoint and a folder of lung nodules -> AUROC of "malignant" from frozen features, beside diameter and intensities alone.

    ctfm nodules checkpoints/default spectre-large --nodules NODULES --out measured

NODULES is a folder of sub-volumes around nodules as the readers of LIDC-IDRI outlined them (doi 10.7937/K9/TCIA.2015.LO9QL9SX,
CC BY 3.0): nodules.csv with the columns file, patient, diagnosis (Benign or Malign, by rating) and diameter_mm, and image/ with
a scan for each file. Large nodules are malignant, so what features add to the diameter is what counts: the differences in
nodules.json are to `diameter`, of the same resamples of patients.

Each encoder sees the sub-volume alone, with air around it; its features are the mean and the largest of the patch tokens that
overlap it. Every nodule is scored by a regression of other patients: four fifths of nine tenths of them fit it, the rest of
these nine tenths choose its penalty.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ..errors import TableError
from ..train.table_files import read_table
from ..volume_ctfm import read_volume
from .evaluate import report_metrics
from .features import histogram, image_processor, load_encoder
from .frozen import PENALTIES, linear_scores
from .metrics import Estimate, FindingTable, auroc, estimate, macro_auroc, resample_patients

COLUMNS = ("file", "patient", "diagnosis", "diameter_mm")
DIAGNOSES = {"Benign": 0.0, "Malign": 1.0}
NUM_FOLDS = 10
FINDING = "Malignant nodule"


@dataclass(frozen=True, kw_only=True)
class Nodules:
    """files, patients: of n nodules; malignant `(n,)` 0 or 1; diameter_mm `(n,)`."""

    files: tuple[Path, ...]
    patients: tuple[str, ...]
    malignant: np.ndarray
    diameter_mm: np.ndarray


def read_nodules(folder: Path) -> Nodules:
    """Raises:
    TableError: a column or all rows are missing, a diagnosis is neither word, or a diameter is no length.
    """
    table = folder / "nodules.csv"
    rows = read_table(table, *COLUMNS)
    if not rows:
        raise TableError(f"{table} has no row.")
    for number, row in enumerate(rows, start=2):
        if row["diagnosis"] not in DIAGNOSES:
            raise TableError(
                f"{table}, line {number}: diagnosis {row['diagnosis']!r} is none of {', '.join(DIAGNOSES)}. Write one of "
                "them, or remove the row."
            )
        try:
            is_length = 0 < float(row["diameter_mm"]) < math.inf
        except ValueError:
            is_length = False
        if not is_length:
            raise TableError(
                f"{table}, line {number}: diameter_mm {row['diameter_mm']!r} is no length. Write millimetres, 8.5 for one, or "
                "remove the row."
            )
    return Nodules(
        files=tuple(folder / "image" / row["file"] for row in rows),
        patients=tuple(row["patient"] for row in rows),
        malignant=np.array([DIAGNOSES[row["diagnosis"]] for row in rows]),
        diameter_mm=np.array([float(row["diameter_mm"]) for row in rows]),
    )


@torch.no_grad()
def encode_nodules(encoder: str, files: Sequence[Path]) -> np.ndarray:
    """Mean and largest of the patch tokens that overlap each sub-volume, `(n, 2e)`."""
    model, processor = load_encoder(encoder)
    vision, processor = getattr(model, "vision_model", model), image_processor(processor)
    rows = []
    for file in tqdm(files, desc=encoder[-30:], disable=not sys.stderr.isatty()):
        inputs = processor.preprocess(read_volume(file))
        pixels = inputs["pixel_values"][0]  # (g, c, D, H, W)
        local = vision.local_model(pixels, return_dict=True)  # pyright: ignore[reportCallIssue]
        tokens = vision.to_grid(local.last_hidden_state[None], pixels[None])[0]  # (g, d, h, w, e)  # pyright: ignore
        patch = [size // count for size, count in zip(pixels.shape[2:], tokens.shape[1:4], strict=True)]
        held = torch.nn.functional.max_pool3d((pixels != 0).float().amax(1, keepdim=True), patch)[:, 0] > 0
        own = tokens[held]
        rows.append(torch.cat((own.mean(0), own.amax(0))).float().numpy())
    return np.stack(rows)


def fold_of(patients: Sequence[str], num_folds: int, seed: int) -> np.ndarray:
    """A fold `(n,)` for each nodule, the same for all of a patient."""
    names, group = np.unique(np.asarray(patients), return_inverse=True)
    return np.random.default_rng(seed).permutation(len(names))[group] % num_folds


def cross_score(features: np.ndarray, nodules: Nodules, beside: np.ndarray | None = None) -> np.ndarray:
    """Score `(n,)` of every nodule by a regression that saw no nodule of its patient.

    `beside` `(n, 1)` joins the score and not the features, whose many channels would drown it: a second regression weighs the
    two on patients that the first did not see.
    """
    labels, scores = nodules.malignant[:, None], np.zeros(len(features))

    def fit(rows: np.ndarray, train: np.ndarray, asked: Sequence[np.ndarray], penalty: float) -> list[FindingTable]:
        return linear_scores(train, FindingTable(findings=(FINDING,), values=labels[rows]), asked, penalty)

    fold = fold_of(nodules.patients, NUM_FOLDS, seed=0)
    inner = fold_of(nodules.patients, 5, seed=1)
    for number in range(NUM_FOLDS):
        train, test = fold != number, fold == number
        fitted, chosen = train & (inner > 0), train & (inner == 0)
        truth = FindingTable(findings=(FINDING,), values=labels[chosen])
        found = [fit(fitted, features[fitted], (features[chosen], features[test]), penalty) for penalty in PENALTIES]
        own, asked = max(found, key=lambda pair: macro_auroc(pair[0], truth))
        if beside is not None:
            pair = np.concatenate((beside[chosen], own.values), 1)
            (asked,) = fit(chosen, pair, [np.concatenate((beside[test], asked.values), 1)], 1.0)
        scores[test] = asked.values[:, 0]
    return scores


def measure(nodules: Nodules, features: dict[str, np.ndarray]) -> dict[str, Estimate]:
    """AUROC with its interval by patient: of diameter, of each set of features, of both, and what features add to diameter."""
    weights, n = resample_patients(nodules.patients), len(nodules.files)
    size = auroc(nodules.diameter_mm, nodules.malignant, weights)
    metrics = {"nodules/diameter/auroc": estimate(size, n)}
    for name, own in features.items():
        alone = auroc(cross_score(own, nodules), nodules.malignant, weights)
        joined = cross_score(own, nodules, np.log(nodules.diameter_mm)[:, None])
        both = auroc(joined, nodules.malignant, weights)
        metrics[f"nodules/{name}/auroc"] = estimate(alone, n)
        metrics[f"nodules/{name}+diameter/auroc"] = estimate(both, n)
        metrics[f"nodules/{name}+diameter/gain"] = estimate(both - size, n)
    return metrics


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="ctfm nodules", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("encoders", nargs="+", help="checkpoint folders of any kind, see features.py")
    parser.add_argument("--nodules", type=Path, required=True, help="folder with nodules.csv and image/")
    parser.add_argument("--out", type=Path, required=True, help="where nodules.json goes")
    given = parser.parse_args(arguments)
    nodules = read_nodules(given.nodules)
    features = {"histogram": np.stack([histogram(read_volume(file)) for file in nodules.files])}
    features |= {encoder: encode_nodules(encoder, nodules.files) for encoder in given.encoders}
    report_metrics(measure(nodules, features), given.out / "nodules.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
