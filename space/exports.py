"""Scan and analysis -> files: what the viewer loads, and what a user takes home. Neither carries anything of the headers but
geometry."""

import csv
import json
import secrets
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from safetensors.torch import save_file
from torch import Tensor

from analysis import Analysis, blocks_of, lay_cells, place_on, relative_map, shrink
from loading import Weights
from texts import say
from uploads import Scan

VIEWER_VOXELS = 20_000_000  # 300 slices of 256 x 256
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


def write_thumbnail(scan: Scan, weights: Weights, made: Path) -> str:
    """The middle of a scan in three planes, small; its path."""
    drawing = weights.drawing
    small = shrink(scan.volume, 2_000_000)
    return write_picture(drawing.draw_planes(small, drawing.INTENSITY_WINDOWS["mediastinum"], height=120), made)


def write_overlay(scan: Scan, cells: Tensor, level: float, top: float, weights: Weights, made: Path) -> dict[str, Any]:
    """A map as the viewer shows it: in the scan's own millimetres, on fewer voxels, 0 outside the body.

    All maps share the scale of `relative_map`: 1 is what 19 of 20 scans without the finding stay below everywhere.

    Returns:
        `{"map": path, "low": 1, "high": top, "strongest": float}`.
    """
    analysis: Analysis = scan.analysis
    relative = relative_map(cells, analysis.body, level)
    blocks = blocks_of(scan.volume, OVERLAY_VOXELS)
    placed = place_on(analysis.geometry, blocks.shape, blocks.affine)
    laid = lay_cells(relative, placed, weights)
    laid[lay_cells(analysis.inside.float(), placed, weights) < 0.5] = 0
    path = new_folder(made) / "map.nii.gz"
    type(scan.volume)(hu=laid.astype(np.float32), affine=blocks.affine).to_nifti(path)
    return {"map": str(path), "low": 1.0, "high": top, "strongest": float(relative.max())}


# ---- for the user ----


class GateJson(TypedDict):
    answers: bool
    reason: str
    distance: float | None
    threshold: float | None


class CaveatJson(TypedDict):
    notice: str
    model: str
    weights_sha256: str
    trained_on: str
    measured_on: str
    gate: GateJson


def answer_facts(analysis: Analysis, weights: Weights) -> CaveatJson:
    """What stands in every result: the caveat, what the weights were trained on, and whether the scan is like that."""
    judged = analysis.judged
    return {
        "notice": NOTICE,
        "model": weights.name,
        "weights_sha256": weights.digest,
        "trained_on": weights.trained_on or "unknown",
        "measured_on": weights.measured_on or "unknown",
        "gate": {
            "answers": judged.answers,
            "reason": "" if judged.reason is None else say("en", judged.reason),
            "distance": judged.distance,
            "threshold": judged.threshold,
        },
    }


def findings_json(scan: Scan, weights: Weights) -> dict[str, Any]:
    """Everything about a scan that is no picture, as plain JSON values."""
    analysis: Analysis = scan.analysis
    return {
        **answer_facts(analysis, weights),
        "scan": scan_facts(scan),
        "findings": [asdict(finding) | {"is_near_chance": finding.is_near_chance} for finding in analysis.findings],
        "seconds": {"read": round(scan.read_seconds, 2), "analyse": round(analysis.seconds, 2)},
        "units": "places in RAS+ mm; a score is the logistic function of the difference between a present and an absent prompt",
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
    write_csv(scan, weights, folder / "findings.csv")
    save_file(
        {"image_embeds": scan.analysis.embedding.contiguous()},
        folder / "embedding.safetensors",
        metadata={
            name: json.dumps(value) if name == "gate" else str(value)
            for name, value in answer_facts(scan.analysis, weights).items()
        },
    )
    return str(folder / "findings.json"), str(folder / "findings.csv"), str(folder / "embedding.safetensors")


CSV_COLUMNS = (
    *("finding", "probability", "low", "high", "answer", "absent_below", "present_above", "score", "auroc", "auroc_on"),
    *("x_mm", "y_mm", "z_mm", "slice", "gate", "trained_on", "notice"),
)


def write_csv(scan: Scan, weights: Weights, path: Path) -> None:
    """A row a finding; where nothing is answered, one row that says why. The caveat stands in every row: rows get copied."""
    facts = answer_facts(scan.analysis, weights)
    said = {"trained_on": facts["trained_on"], "notice": NOTICE}
    said["gate"] = "answers" if facts["gate"]["answers"] else facts["gate"]["reason"]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, CSV_COLUMNS)
        writer.writeheader()
        if not facts["gate"]["answers"]:
            writer.writerow({"answer": "no answer", **said})
        for finding in scan.analysis.findings:
            row = {"finding": finding.label, "answer": finding.verdict or "not calibrated", "score": finding.score}
            row |= {"absent_below": finding.absent_below, "present_above": finding.present_above}
            if finding.probability is not None and finding.interval is not None:
                low, high = finding.interval
                row |= {"probability": finding.probability, "low": low, "high": high}
            if finding.auroc is not None:
                row |= {"auroc": finding.auroc["value"], "auroc_on": facts["measured_on"]}
            if finding.place is not None:
                x, y, z = finding.place.mm
                row |= {"x_mm": x, "y_mm": y, "z_mm": z, "slice": finding.place.slice_number}
            writer.writerow(row | said)


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
