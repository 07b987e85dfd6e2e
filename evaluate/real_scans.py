"""Checkpoint and a few real scans -> whether it does anything sensible there. Sanity, far from accuracy: tens of scans.

    ctfm real-scans checkpoints/default --scans ../shared/ct --out looked_at [--metrics METRICS.json]

SCANS holds labels_dev.csv with the columns file, patient, region and finding. Every scan is encoded; each asks for the
nearest scan of another patient, which should be of the same body region; prompts say on which side a lung tumour or an
effusion is. Heat maps are drawn into OUT, to be looked at; they show patients and belong nowhere else.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ..drawing_ctfm import INTENSITY_WINDOWS, draw_planes, join
from ..train.table_files import read_table
from ..volume_ctfm import VolumeError, read_volume
from ..whole_files import write_json
from .evaluate import report_metrics
from .features import Texts, image_processor, load_encoder, mix_crops, text_maps, unit
from .figures import draw_over, level_of, with_title
from .metrics import Estimate, auroc, estimate, mean, resample_patients
from .protocol import average, load_protocol, say

REGIONS = (("abdomen", "abdomen"), ("chest", "chest"), ("heart", "chest"), ("soft tissue", "limb"))  # first that fits
NAMES = (("effusion", "Pleural effusion"), ("lung", "Lung nodule"), ("liver metastases", "Liver lesion"))


def look_at(encoder: str, scans: Path, out: Path) -> dict[str, Estimate]:
    """Encodes, asks and draws."""
    out.mkdir(parents=True, exist_ok=True)
    model, processor = load_encoder(encoder)
    texts = Texts(encoder)
    laterality = load_protocol("phantoms").laterality
    assert laterality is not None
    said = [say(side, finding, {}) for _, finding in NAMES[:2] for side in (laterality.left, laterality.right)]
    sides = np.stack([average(texts(some)) for some in said])  # (findings * left and right, e)
    rows, features = [], []
    table = read_table(scans / "labels_dev.csv")
    for row in tqdm(table, disable=None):
        try:
            volume = read_volume(scans / row["file"])
        except VolumeError as error:
            print(f"{row['file']}: {error}", file=sys.stderr)
            continue
        inputs = image_processor(processor).preprocess(volume)
        with torch.no_grad():
            output = model.vision_model(**inputs, output_dense_features=True)  # pyright: ignore[reportCallIssue]
        found = mix_crops(model, output, inputs["crop_grid"], sides)
        if all(np.isfinite(vector).all() for vector in found.values()):
            rows.append(row)
            features.append(found)
        finding = next((name for word, name in NAMES if word in row["finding"]), None)
        if finding is not None:
            present, absent = (average(texts(say([text], finding, {}))) for text in ("{Finding}.", "No {finding}."))
            grid, direction = inputs["crop_grid"], (present - absent)[None]
            heat = text_maps(model, image_processor(processor), output, grid, volume, direction)[0]
            window = INTENSITY_WINDOWS["mediastinum" if finding == "Liver lesion" else "lung"]
            d, h, w = np.unravel_index(int(heat.argmax()), heat.shape)
            level, centre = level_of(heat), (int(d), int(h), int(w))
            colours = [np.ones_like(level), (2 * level - 1).clip(0, 1), 0 * level]
            heated = draw_over(volume, window, 0.6 * level, colours, centre)
            plain = draw_planes(volume, window, centre=centre, height=230)
            title = f"{finding}; known: {row['finding']}"
            with_title(join([plain, heated], across=False), title).save(out / f"heat_{len(rows):02d}.png")
    return ask(rows, features, len(table))


def ask(
    rows: Sequence[dict[str, str]], features: Sequence[dict[str, np.ndarray]], num_scans: int
) -> dict[str, Estimate]:
    """Share encoded, share whose nearest scan of another patient is of the same region, sides."""
    patients = np.array([row["patient"] for row in rows])
    weights = resample_patients(patients.tolist())
    encoded = len(rows) / num_scans
    metrics = {"real_scans/encoded": Estimate(value=encoded, low=encoded, high=encoded, n=num_scans)}

    regions = np.array([next((name for word, name in REGIONS if word in row["region"]), "") for row in rows])
    others = np.array([np.any((regions == r) & (patients != p)) for r, p in zip(regions, patients, strict=True)])
    vectors = np.stack([found["scan"] for found in features])
    vectors = unit((vectors - vectors.mean(0)) / (vectors.std(0) + 1e-6))
    similarity = np.where(patients[:, None] == patients[None], -np.inf, vectors @ vectors.T)
    is_right = (regions[similarity.argmax(1)] == regions).astype(float)
    asked = np.flatnonzero(others & (regions != ""))
    metrics["real_scans/nearest_is_same_region"] = estimate(mean(is_right[asked], weights[:, asked]), len(asked))
    shares = [np.mean(regions[patients != patients[k]] == regions[k]) for k in asked]
    metrics["real_scans/nearest_is_same_region_by_chance"] = estimate(
        mean(np.array(shares), weights[:, asked]), len(asked)
    )
    scores, sides, which = [], [], []
    for k, row in enumerate(rows):
        number = next((number for number, (word, _) in enumerate(NAMES[:2]) if word in row["finding"]), None)
        side = next((s for s in ("left", "right") if s in row["finding"]), None)
        if number is not None and side:
            left, right = features[k]["scores"][2 * number : 2 * number + 2]
            scores.append(float(left - right))
            sides.append(float(side == "left"))
            which.append(k)
    if len(set(sides)) == 2:
        found = auroc(np.array(scores), np.array(sides), weights[:, which])
        metrics["real_scans/side_auroc"] = estimate(found, len(which))
    return metrics


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="ctfm real-scans", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("encoder", help="a dual encoder, see features.py")
    parser.add_argument("--scans", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="pictures of patients go there")
    parser.add_argument("--metrics", type=Path, help="a metrics.json to add the numbers to")
    given = parser.parse_args(arguments)
    found = report_metrics(look_at(given.encoder, given.scans, given.out), given.out / "real_scans.json")
    if given.metrics is not None:
        write_json(given.metrics, json.loads(given.metrics.read_text()) | found)
    return 0
