"""Patient + Grid -> Body: the canvas of HU (D, H, W) and organs (D, H, W) on which painters work.

Organs are painted from the outside in, each with a soft edge of one voxel, so that a later one covers an earlier one.
Numbers are template millimetres of a middle-sized adult, (z, y, x) from an origin on the midline at the level of the
right diaphragm.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .geometry import Cones, Grid, NoiseField, Part, Point, Slices, chain, curve, measure_cones, radial_outline
from .patient import Patient

ORGAN_NAMES: tuple[str, ...] = (
    "background",
    "table",
    "subcutaneous fat",
    "muscle",
    "visceral fat",
    "mediastinum",
    "right upper lobe",
    "right middle lobe",
    "right lower lobe",
    "left upper lobe",
    "left lower lobe",
    "airway",
    "lung vessel",
    "heart",
    "aorta",
    "pulmonary artery",
    "vena cava",
    "oesophagus",
    "spine",
    "rib",
    "sternum",
    "scapula",
    "clavicle",
    "humerus",
    "pelvis",
    "liver",
    "gallbladder",
    "spleen",
    "stomach",
    "pancreas",
    "right kidney",
    "left kidney",
    "adrenal gland",
    "colon",
    "small bowel",
    "breast gland",
)
ORGAN_ID: dict[str, int] = {name: index for index, name in enumerate(ORGAN_NAMES)}
LOBES = ORGAN_NAMES[6:11]

LEVELS = (-300, -240, -200, -150, -100, -50, 0, 50, 100, 130, 160, 185, 205, 230)
MUSCLE_WIDTH = (147, 144, 134, 127, 131, 136, 141, 141, 140, 154, 175, 170, 98, 62)
MUSCLE_FRONT = (79, 79, 80, 84, 90, 95, 97, 98, 91, 81, 68, 60, 54, 50)
MUSCLE_BACK = (106, 102, 96, 95, 101, 107, 111, 112, 111, 104, 95, 85, 75, 66)
CAVITY_WIDTH = (112, 118, 121, 120, 125, 130, 131, 128, 114, 96, 70, 44, 18, 4)
CAVITY_FRONT = (64, 68, 72, 77, 82, 86, 87, 86, 77, 66, 48, 26, 8, 2)
CAVITY_BACK = (58, 58, 60, 66, 76, 85, 90, 91, 88, 79, 54, 29, 8, 2)
CAVITY_CENTRE = (0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 18, 32, 36, 36)
SPINE_Y = (44, 35, 26, 28, 38, 47, 55, 59, 56, 49, 38, 27, 18, 12)
SPINE_RADIUS = (25, 24, 23, 21.5, 19.5, 17.5, 16, 15.5, 14.5, 14, 13.5, 13, 12.5, 12)


@dataclass(frozen=True, kw_only=True)
class BodyChanges:
    """What findings change in the anatomy itself."""

    heart_scale: float = 1.0
    hernia_mm: float = 0.0


class Body:
    """The canvas: HU, organs and the distances that later painters need again."""

    def __init__(self, patient: Patient, changes: BodyChanges, grid: Grid, textures: dict[str, NoiseField]) -> None:
        self.patient, self.changes, self.grid = patient, changes, grid
        self.tissue = patient.tissue_hu
        self.hu = torch.full(grid.shape, -1000.0, device=grid.device)
        self.organs = torch.zeros(grid.shape, dtype=torch.uint8, device=grid.device)
        self.fields = textures
        self.known_points: dict[str, np.ndarray] = {}
        self.textures = {name: field.on_grid(grid.axes_mm, grid.device)[0] for name, field in textures.items()}
        # Distances (D, H, W) that most painters need, measured by the first ones.
        self.skin, self.muscle, self.cavity, self.diaphragm = (torch.empty_like(self.hu) for _ in range(4))
        self.parts: dict[str, Part | None] = {}

    def paint(self, box: Slices, distance: Tensor, hu: float | Tensor, organ: str | None) -> None:
        """Replace what lies inside `distance` (the box's shape)."""
        alpha = self.grid.soft(distance)
        view = self.hu[box]
        view += alpha * (hu - view)
        if organ is not None:
            self.organs[box].masked_fill_(alpha >= 0.5, ORGAN_ID[organ])

    def points(self, name: str, points: Sequence[Point], spread_mm: float) -> np.ndarray:
        """Template points that differ a little between patients, as scanner points (n, 3)."""
        if name not in self.known_points:
            drawn = self.patient.rng("points " + name).normal(0.0, spread_mm, (len(points), 3))
            moved = np.asarray(points) + np.clip(drawn, -2 * spread_mm, 2 * spread_mm)
            self.known_points[name] = self.grid.frame.to_scanner(moved)
        return self.known_points[name]

    def within(self, name: str, box: Slices) -> Tensor:
        """Distance to a named part on a box, far where it is not known."""
        return self.grid.within(self.parts.get(name), box)

    def paint_part(self, part: Part | None, hu: float | Tensor, organ: str | None, grow_mm: float = 0.0) -> None:
        if part is not None:
            self.paint(part.box, part.distance - grow_mm if grow_mm else part.distance, hu, organ)

    def tubes(self, *chains: tuple[np.ndarray, Sequence[float]], margin_mm: float = 8.0) -> Part | None:
        """Distance to smooth curves through scanner points (n, 3) with given radii (n,)."""
        parts = [chain(*curve(points, radii, 4)) for points, radii in chains]
        return measure_cones(self.grid, Cones(*map(np.concatenate, zip(*parts, strict=True))), margin_mm)


def profile(body: Body, table: Sequence[float], box: Slices | None = None) -> Tensor:
    return body.grid.profile(box or body.grid.full, table, LEVELS)


def outline(
    body: Body,
    box: Slices,
    width: Sequence[float],
    front: Sequence[float],
    back: Sequence[float],
    centre_y: Tensor | float,
) -> Tensor:
    """Distance on a box to an outline that reaches `front` and `back` of a centre at each level."""
    forward, backward = profile(body, front, box), profile(body, back, box)
    middle = (backward - forward) * 0.5 + centre_y
    return radial_outline(body.grid.at(box), profile(body, width, box), (forward + backward) * 0.5, middle)


def bounds(centre: Sequence[float] | np.ndarray, reach: Sequence[float]) -> tuple[Point, Point]:
    """The corners of a template box round a centre."""
    z, y, x = (float(value) for value in centre)
    low = (z - reach[0], y - reach[1], x - reach[2])
    high = (z + reach[0], y + reach[1], x + reach[2])
    return low, high
