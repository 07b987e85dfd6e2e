"""Scan and analysis -> files: what the viewer loads, and what a user takes home. Neither carries anything of the headers but
geometry."""

import csv
import json
import secrets
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from analysis import Analysis, blocks_of, lay_cells, place_on, shrink
from loading import Weights
from uploads import Scan

VIEWER_VOXELS = 20_000_000  # 300 slices of 256 x 256
TISSUE_HU = -300
OVERLAY_VOXELS = 400_000  # about 4 mm; a map is no finer than the model's patches
NOTICE = "Research only. Not for diagnosis or any decision about a patient."


def new_folder(made: Path) -> Path:
    """A folder whose name nobody guesses, in the folder that is served; the sweep deletes it."""
    folder = made / secrets.token_hex(16)
    folder.mkdir(parents=True)  # the sweep takes an empty `made` with it
    return folder


# ---- for the viewer ----


def write_view(scan: Scan, made: Path) -> dict[str, Any]:
    """What the viewer shows of a scan: `{"scan": path, "reduced": [d, h, w] voxels a mean was taken over}`."""
    small = shrink(scan.volume, VIEWER_VOXELS)
    path = new_folder(made) / "scan.nii.gz"
    small.to_nifti(path, np.clip(small.hu, -1024, 3071).astype(np.int16))
    ratio = [round(a / b) for a, b in zip(small.spacing, scan.volume.spacing, strict=True)]
    return {"scan": str(path), "reduced": ratio}


def write_picture(picture: Any, made: Path) -> str:
    """A picture (Pillow) as PNG; its path."""
    path = new_folder(made) / "picture.png"
    picture.save(path)
    return str(path)


def write_overlay(scan: Scan, cells: Tensor, analysis: Analysis, weights: Weights, made: Path) -> dict[str, Any]:
    """A map as the viewer shows it: in the scan's own millimetres, on fewer voxels, nothing outside the body.

    Returns:
        `{"map": path, "low": from where it is drawn, "high": its strongest value}`.
    """
    inside = cells[analysis.body] if analysis.body.any() else cells.flatten()
    high, middle, low = float(inside.max()), float(inside.median()), float(inside.min())
    blocks = blocks_of(scan.volume, OVERLAY_VOXELS)
    placed = place_on(analysis.geometry, blocks.shape, blocks.affine)
    laid = lay_cells(torch.where(analysis.body, cells, low), placed, weights)
    laid[~lies_in_body(scan.volume.hu, blocks.factors, blocks.shape)] = low
    path = new_folder(made) / "map.nii.gz"
    type(scan.volume)(hu=laid.astype(np.float32), affine=blocks.affine).to_nifti(path)
    return {"map": str(path), "low": middle + 0.35 * (high - middle), "high": max(high, middle + 1e-6)}


def lies_in_body(hu: np.ndarray, factors: tuple[int, int, int], shape: tuple[int, int, int]) -> np.ndarray:
    """`shape` truth values: tissue lies on both sides of a voxel and before and behind it, so that lungs count as body."""
    depth, height, width = shape
    sample = tuple(slice(f // 2, f // 2 + f * size, f) for f, size in zip(factors, shape, strict=True))
    tissue = hu[sample][:depth, :height, :width] > TISSUE_HU
    inside = np.ones(shape, bool)
    for axis in (1, 2):
        seen = np.logical_or.accumulate(tissue, axis)
        seen_back = np.flip(np.logical_or.accumulate(np.flip(tissue, axis), axis), axis)
        inside &= seen & seen_back
    return inside


# ---- for the user ----


def findings_json(scan: Scan, weights: Weights) -> dict[str, Any]:
    """Everything about a scan that is no picture, as plain JSON values."""
    analysis: Analysis = scan.analysis
    return {
        "notice": NOTICE,
        "model": weights.name,
        "weights_sha256": weights.digest,
        "scan": scan_facts(scan),
        "findings": [asdict(finding) for finding in analysis.findings],
        "seconds": {"read": round(scan.read_seconds, 2), "analyse": round(analysis.seconds, 2)},
        "units": "places in RAS+ mm; a score is the softmax over a present and an absent prompt",
    }


def scan_facts(scan: Scan) -> dict[str, Any]:
    """Geometry, values and what was checked, without identifiers."""
    volume = scan.volume
    source = volume.source
    low, high = (float(value) for value in np.percentile(volume.hu[::2, ::4, ::4], (1, 99)))
    return {
        "shape": list(volume.hu.shape),
        "spacing_mm": [round(size, 4) for size in volume.spacing],
        "orientation_on_disk": volume.orientation,
        "hu_1_percent": round(low, 1),
        "hu_99_percent": round(high, 1),
        "kind": source.kind,
        "num_files": source.num_files,
        "num_slices": source.num_slices,
        "checks": list(source.checks),
        "warnings": list(volume.warnings),
        "left_out": dict(source.left_out),
    }


def write_findings(scan: Scan, weights: Weights, made: Path) -> tuple[str, str, str]:
    """JSON, CSV and the embedding; paths."""
    folder = new_folder(made)
    facts = findings_json(scan, weights)
    (folder / "findings.json").write_text(json.dumps(facts, indent=2) + "\n")
    with (folder / "findings.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["finding", "probability", "low", "high", "answer", "score", "x_mm", "y_mm", "z_mm", "slice"])
        for finding in scan.analysis.findings:
            interval = finding.interval or ("", "")
            answer = finding.verdict or "not calibrated"
            numbers = [finding.probability if finding.probability is not None else "", *interval, answer, finding.score]
            writer.writerow([finding.label, *numbers, *finding.place.mm, finding.place.slice_number])
    save_file(
        {"image_embeds": scan.analysis.embedding.contiguous()},
        folder / "embedding.safetensors",
        metadata={"model": weights.name, "weights_sha256": weights.digest, "notice": NOTICE},
    )
    return str(folder / "findings.json"), str(folder / "findings.csv"), str(folder / "embedding.safetensors")


def write_map(scan: Scan, cells: Tensor, weights: Weights, made: Path) -> str:
    """A map on the scan's own voxels, float32: every patch's share of the similarity, rounded to a 2,000th of the largest so
    that it packs better (300 slices of 512 x 512: 99 MB)."""
    laid = lay_cells(cells, scan.analysis.geometry, weights)
    step = max(float(cells.abs().max()) / 2000, 1e-12)
    for start in range(0, len(laid), 16):  # in place, slab by slab
        part = laid[start : start + 16]
        np.rint(part / step, out=part)
        part *= step
    path = new_folder(made) / "heat_map.nii.gz"
    scan.volume.to_nifti(path, laid)
    return str(path)
