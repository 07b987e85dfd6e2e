"""Seed -> a CT scan of thorax and abdomen that never was, with everything about it known.

A phantom has HU, a segmentation, labels, the attributes of every finding and a radiology report. It is the source of
tests, of the embedded checkpoint's training and of the public demo. It is never a substitute for patients: no claim
about patients may rest on it.

The patient is defined in millimetres (see geometry.py), so the same seed seen at two spacings is the same
person. One seed gives the same phantom bit for bit on one device; between devices, HU differ by rounding and by the
noise.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from .anatomy import draw_body, measure_body
from .body import Body, BodyChanges
from .findings import draw_findings
from .geometry import Frame, Grid, NoiseField, Point, named_rng
from .lungs import draw_lung_trees, grow_lungs
from .patient import (
    CT_RATE_NAMES,
    FINDING_NAMES,
    RANDOMISED_RANGES,
    SHIFTED_RANGES,
    TRAIN_RANGES,
    Acquisition,
    Patient,
    PhantomRanges,
    sample_acquisition,
    sample_findings,
    sample_patient,
)
from .report import Report, write_report
from .scanner import acquire, draw_table
from .scene import FINDING_ID, SEGMENTATION_NAMES, Finding, Scene

__all__ = [
    "CT_RATE_NAMES",
    "FINDING_ID",
    "FINDING_NAMES",
    "RANDOMISED_RANGES",
    "SEGMENTATION_NAMES",
    "SHIFTED_RANGES",
    "TRAIN_RANGES",
    "Acquisition",
    "Finding",
    "Patient",
    "Phantom",
    "PhantomRanges",
    "Report",
    "make_phantom",
]

# Planning sees the whole template at 9 mm, whatever the scan shows.
PLAN_SPACING: Point = (9.0, 9.0, 9.0)
PLAN_START_MM: Point = (-250.0, -135.0, -180.0)
PLAN_SHAPE = (52, 31, 41)
TEXTURE_STEPS_MM = {"coarse": 30.0, "middle": 14.0, "fine": 7.0}


@dataclass(frozen=True, kw_only=True)
class Phantom:
    """A scan and the truth about it."""

    hu: torch.Tensor  # (D, H, W) int16, canonical orientation: d to the head, h to the back, w to the patient's left
    affine: np.ndarray  # (4, 4) from (d, h, w, 1) to RAS+ millimetres
    spacing: Point  # (d, h, w) millimetres
    segmentation: torch.Tensor  # (D, H, W) uint8, SEGMENTATION_NAMES; findings cover organs
    organs: torch.Tensor  # (D, H, W) uint8, the same without the findings
    labels: dict[str, int]  # every name of FINDING_NAMES -> 1 when the scan shows it, else 0
    findings: tuple[Finding, ...]
    report: Report
    patient: Patient
    acquisition: Acquisition


def make_phantom(
    seed: int,
    *,
    shape: tuple[int, int, int] = (96, 128, 128),
    spacing: Point | None = None,
    ranges: PhantomRanges = TRAIN_RANGES,
    device: str | torch.device = "cpu",
    findings: Collection[str] | None = None,
    wording: Literal["train", "held_out"] = "train",
    centre_mm: Point | None = None,
) -> Phantom:
    """Make one phantom.

    `shape` is (D, H, W); `spacing` (d, h, w) in millimetres, drawn from `ranges` when None. `findings` are the names to
    draw, sampled when None. `wording` chooses between two sets of sentences that share none. `centre_mm` is the middle of
    the scan in scanner millimetres (z, y, x), for a box of the patient; None puts it where the scanner would.

    >>> phantom = make_phantom(7, shape=(24, 32, 32), findings=["Lung nodule"])
    >>> phantom.labels["Lung nodule"], phantom.labels["Ascites"]
    (1, 0)
    """
    unknown = sorted(set(findings or ()) - set(FINDING_NAMES))
    if unknown:
        raise ValueError(f"unknown findings {unknown}; choose from {list(FINDING_NAMES)}")
    device = torch.device(device)
    patient, acquisition = sample_patient(seed, ranges), sample_acquisition(seed, ranges)
    names = sample_findings(patient, ranges) if findings is None else tuple(n for n in FINDING_NAMES if n in findings)
    changes = change_body(seed, ranges, names)
    frame = Frame(
        scale=patient.scale,
        position_mm=patient.position_mm,
        roll_rad=math.radians(patient.roll_deg),
        bend=NoiseField(seed, "bend", 70.0, channels=3),
        bend_mm=patient.bend_mm,
    )
    textures = {name: NoiseField(seed, name, step) for name, step in TEXTURE_STEPS_MM.items()}
    plan_grid = Grid(frame, PLAN_START_MM, PLAN_SPACING, PLAN_SHAPE, torch.device("cpu"))
    plan = Body(patient, changes, plan_grid, textures)
    measure_body(plan)
    trees = grow_lungs(plan)

    spacing = spacing or sample_spacing(shape, acquisition)
    start = start_of(shape, spacing, acquisition) if centre_mm is None else first_voxel(centre_mm, shape, spacing)
    body = Body(patient, changes, Grid(frame, start, spacing, shape, device), textures)
    body.known_points = plan.known_points
    draw_body(body)
    draw_lung_trees(body, trees)
    draw_table(body, acquisition)
    scene = Scene(body, plan, trees, ranges)
    draw_findings(scene, names)
    labels = {name: int(any(f.name == name for f in scene.findings)) for name in FINDING_NAMES}
    return Phantom(
        hu=acquire(body, acquisition),
        affine=affine_of(body.grid),
        spacing=spacing,
        segmentation=scene.segmentation,
        organs=body.organs,
        labels=labels,
        findings=tuple(scene.findings),
        report=write_report(patient, acquisition, tuple(scene.findings), wording),
        patient=patient,
        acquisition=acquisition,
    )


def change_body(seed: int, ranges: PhantomRanges, names: tuple[str, ...]) -> BodyChanges:
    rng = named_rng(seed, "body changes")
    heart, hernia = float(rng.uniform(*ranges.heart_scale)), float(rng.uniform(*ranges.hernia_mm))
    return BodyChanges(
        heart_scale=heart if "Cardiomegaly" in names else 1.0, hernia_mm=hernia if "Hiatal hernia" in names else 0.0
    )


def sample_spacing(shape: tuple[int, int, int], acquisition: Acquisition) -> Point:
    """The spacing that lets this shape cover the drawn coverage and field of view."""
    side = acquisition.field_of_view_mm / max(shape[1:])
    return acquisition.coverage_mm / shape[0], side, side


def start_of(shape: tuple[int, int, int], spacing: Point, acquisition: Acquisition) -> Point:
    """Scanner millimetres of the first voxel; a scan too short for chest and abdomen shows one of them."""
    z, y, x = acquisition.centre_mm
    missing = max(0.0, 340.0 - shape[0] * spacing[0])
    z += 0.5 * missing * (1.0 if acquisition.region == "chest" else -1.0)
    return first_voxel((z, y, x), shape, spacing)


def first_voxel(centre_mm: Point, shape: tuple[int, int, int], spacing: Point) -> Point:
    """Scanner millimetres of voxel (0, 0, 0) of a grid around `centre_mm`."""
    start = [centre - step * (n - 1) / 2 for centre, step, n in zip(centre_mm, spacing, shape, strict=True)]
    return start[0], start[1], start[2]


def affine_of(grid: Grid) -> np.ndarray:
    """(4, 4) from (d, h, w, 1) to RAS+ millimetres: right is against w, anterior against h, superior along d."""
    affine = np.zeros((4, 4))
    affine[0, 2], affine[1, 1], affine[2, 0] = -grid.spacing[2], -grid.spacing[1], grid.spacing[0]
    affine[:, 3] = (-grid.start_mm[2], -grid.start_mm[1], grid.start_mm[0], 1.0)
    return affine
