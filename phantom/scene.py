"""Body + planning body -> a scene into which findings are drawn, each voxel of them known.

The planning body is the same patient on a fixed coarse grid. Every place is chosen there, so that a finding lies at
the same point of the patient whatever grid the scan has.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from .body import ORGAN_ID, ORGAN_NAMES, Body
from .chest import lobes
from .geometry import Coordinates, Part, Point, Slices
from .lungs import LungTrees
from .patient import FINDING_NAMES, PhantomRanges

FIRST_FINDING_ID = 64
FINDING_ID: dict[str, int] = {name: FIRST_FINDING_ID + index for index, name in enumerate(FINDING_NAMES)}
SEGMENTATION_NAMES: dict[int, str] = dict(enumerate(ORGAN_NAMES)) | {index: name for name, index in FINDING_ID.items()}

SOFT_PLACES = ("mediastinum", "visceral fat", "lung vessel", *ORGAN_NAMES[6:11])


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One instance of a finding, as the scan shows it."""

    name: str
    side: str  # "left", "right", "both" or "midline"
    place: str  # a lobe, an organ, a vessel or a station
    size_mm: float  # largest diameter of a focal finding, thickness of fluid, extent of a diffuse one
    centre_mm: Point  # RAS+ world
    centre_voxel: Point  # (d, h, w)
    kind: str  # what it looks like: "solid", "ground-glass", "pacemaker", ...
    severity: str  # "mild", "moderate" or "severe"
    num_voxels: int  # in the segmentation when it was drawn


class Scene:
    """Where findings are drawn: HU and organs of the body, the segmentation, and the findings so far."""

    def __init__(self, body: Body, plan: Body, trees: LungTrees, ranges: PhantomRanges) -> None:
        self.body, self.plan, self.trees, self.ranges = body, plan, trees, ranges
        self.grid, self.patient = body.grid, body.patient
        self.segmentation = body.organs.clone()
        self.findings: list[Finding] = []

    def rng(self, name: str) -> np.random.Generator:
        return self.patient.rng("finding " + name)

    def organ_is(self, box: Slices, names: tuple[str, ...]) -> Tensor:
        """Which voxels of a box belong to one of the named organs."""
        wanted = torch.zeros(256, dtype=torch.bool)
        wanted[[ORGAN_ID[name] for name in names]] = True
        return wanted.to(self.grid.device)[self.body.organs[box].long()]

    def plan_points(self, part: Part, chosen: Tensor, rng: np.random.Generator, count: int) -> np.ndarray:
        """Random scanner points (count, 3) inside the chosen voxels of a part of the plan; (0, 3) when none is chosen."""
        voxels = chosen.nonzero().cpu().numpy()
        if len(voxels) == 0:
            return np.zeros((0, 3))
        voxels = voxels[rng.integers(len(voxels), size=count)] + [s.start for s in part.box]
        plan = self.plan.grid
        return np.array(plan.start_mm) + (voxels + rng.uniform(-0.45, 0.45, voxels.shape)) * plan.spacing

    def lung_points(
        self, rng: np.random.Generator, count: int, depth_mm: float = 6.0, lobe: str | None = None
    ) -> np.ndarray:
        """Random scanner points (count, 3) in the lungs, at least `depth_mm` from their border."""
        part = self.plan.parts["lung"]
        if part is None:
            return np.zeros((0, 3))
        chosen = part.distance < -depth_mm
        if lobe is not None:
            chosen = chosen & (self.plan.organs[part.box] == ORGAN_ID[lobe])
        return self.plan_points(part, chosen, rng, count)

    def lobe_of(self, point: np.ndarray) -> str:
        """The lobe in which a scanner point lies."""
        z, y, x = (torch.tensor(float(v)) for v in self.grid.frame.to_template(point)[0])
        bend = torch.tensor(float(self.body.fields["coarse"].at(point.reshape(1, 3))[0, 0]))
        return ORGAN_NAMES[int(lobes(Coordinates(z, y, x), bend)[0])]

    def side_at(self, point: np.ndarray) -> str:
        return "left" if self.grid.frame.to_template(point)[0][2] > 0 else "right"

    def sphere_box(self, centre: np.ndarray, reach_mm: float) -> Slices | None:
        return self.grid.slices(centre - reach_mm, centre + reach_mm)

    def blob(self, centre: np.ndarray, radii: np.ndarray | float, roughness_mm: float, texture: str) -> Part | None:
        """Distance to an ellipsoid along the scanner's axes whose surface is disturbed by noise."""
        radii = np.broadcast_to(np.asarray(radii, dtype=np.float64), 3)
        box = self.sphere_box(centre, float(radii.max()) + 2.5 * roughness_mm + 2.0 * self.grid.edge_mm)
        if box is None:
            return None
        c = self.grid.scanner_at(box)
        r = float(radii.min())
        squared = ((c.z - float(centre[0])) * (r / radii[0])).square() + (
            (c.y - float(centre[1])) * (r / radii[1])
        ).square()
        squared = squared + ((c.x - float(centre[2])) * (r / radii[2])).square()
        distance = squared.sqrt_().sub_(r)
        if roughness_mm:
            distance += self.body.textures[texture][box] * roughness_mm
        return Part(box, distance)

    def blend(self, box: Slices, alpha: Tensor, hu: float | Tensor) -> None:
        view = self.body.hu[box]
        view += alpha * (hu - view)

    def mark(
        self,
        finding: Finding,
        pieces: list[tuple[Slices, Tensor]],
        centre: np.ndarray | None,
        through: np.ndarray | None = None,
    ) -> None:
        """Enter a finding: its voxels, boolean on boxes, and its centre (the voxels' centroid when None).

        Voxels that hold one of the scanner points `through` (n, 3) belong to it too: what is thin fills no voxel by half.
        A finding that is smaller than a voxel still owns the voxel of its centre; one outside the scan is not entered.
        """
        grid, index = self.grid, FINDING_ID[finding.name]
        count, total = 0, np.zeros(3)
        for box, inside in pieces:
            self.segmentation[box].masked_fill_(inside, index)
            number = int(inside.sum())
            if number and centre is None:
                mean = inside.nonzero().double().mean(0).cpu().numpy()
                total += number * (mean + [s.start for s in box])
            count += number
        if through is not None:
            held = np.unique(np.round((through - grid.start_mm) / grid.spacing).astype(int), axis=0)
            held = held[((held >= 0) & (held < grid.shape)).all(1)]
            at = tuple(torch.from_numpy(held.T).to(grid.device))
            held = held[(self.segmentation[at] != index).cpu().numpy()]
            self.segmentation[at] = index
            total, count = total + held.sum(0), count + len(held)
        if centre is None:
            if count == 0:
                return
            voxel = total / count
        else:
            voxel = (centre - grid.start_mm) / grid.spacing
            nearest = np.round(voxel).astype(int)
            seen = bool((nearest >= 0).all() and (nearest < grid.shape).all())
            if count == 0 and not seen:
                return
            if count == 0:
                self.segmentation[tuple(nearest)] = index
                count = 1
        world = np.array(grid.start_mm) + voxel * grid.spacing
        self.findings.append(
            replace(
                finding,
                centre_mm=(-float(world[2]), -float(world[1]), float(world[0])),
                centre_voxel=(float(voxel[0]), float(voxel[1]), float(voxel[2])),
                num_voxels=count,
            )
        )


def describe(
    name: str, *, side: str, place: str, size_mm: float, kind: str = "", severity: str = "moderate"
) -> Finding:
    """A finding before it is drawn."""
    nowhere = (0.0, 0.0, 0.0)
    return Finding(
        name=name,
        side=side,
        place=place,
        size_mm=round(float(size_mm), 1),
        centre_mm=nowhere,
        centre_voxel=nowhere,
        kind=kind,
        severity=severity,
        num_voxels=0,
    )


def grade(value: float, moderate: float, severe: float) -> str:
    return "mild" if value < moderate else "moderate" if value < severe else "severe"


def log_uniform(rng: np.random.Generator, bounds: tuple[float, float]) -> float:
    return float(np.exp(rng.uniform(np.log(bounds[0]), np.log(bounds[1]))))
