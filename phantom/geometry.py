"""A voxel grid and a patient's shape -> signed distances in millimetres, each evaluated only inside its own box.

Three frames, all ordered (z to the head, y to the back, x to the patient's left), in millimetres:

- scanner: where the voxels are; the canonical orientation of `ctfm`, so that RAS+ world = (-x, -y, z);
- patient: scanner moved by the patient's position on the table and turned by the roll;
- template: patient divided by the habitus and bent by a smooth random displacement; every organ is defined here.

A distance is negative inside. Distances are approximate away from the surface, which is all that a partial-volume
edge needs.
"""

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

Slices = tuple[slice, slice, slice]
Point = tuple[float, float, float]

FIELD_START_MM = (-400.0, -260.0, -320.0)
FIELD_STOP_MM = (320.0, 260.0, 320.0)
MAX_BEND_MM = 12.0
FAR_MM = 99.0
MAX_BATCH_VOXELS = 1_000_000
SLAB_VOXELS = 1 << 17


def named_rng(seed: int, name: str) -> np.random.Generator:
    """A generator that depends on the seed and on a name, so that adding one draw never changes another."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


class Part(NamedTuple):
    """A distance known only inside a box of the grid; elsewhere it is far."""

    box: Slices
    distance: Tensor


class Coordinates(NamedTuple):
    """Template millimetres of some voxels, three tensors that broadcast to the box's shape."""

    z: Tensor
    y: Tensor
    x: Tensor


def spline_weights(position_mm: np.ndarray, start_mm: float, step_mm: float, num_knots: int) -> tuple[np.ndarray, ...]:
    """Cubic B-spline weights (n, 4) and their knots (n, 4); positions beyond the lattice take its border."""
    knot = np.clip((position_mm - start_mm) / step_mm, 1.0, num_knots - 2.001)
    first = knot.astype(int)
    t = knot - first
    s = 1.0 - t
    cubic = (s**3, 3 * t**3 - 6 * t**2 + 4, 3 * s**3 - 6 * s**2 + 4, t**3)
    return np.stack(cubic, axis=1) / 6.0, first[:, None] + np.arange(-1, 3)


class NoiseField:
    """Smooth random numbers fixed in scanner millimetres: normal numbers on a lattice between cubic splines."""

    def __init__(self, seed: int, name: str, step_mm: float, channels: int = 1) -> None:
        self.step_mm = step_mm
        extent = np.subtract(FIELD_STOP_MM, FIELD_START_MM)
        self.shape = tuple(math.ceil(length / step_mm) + 3 for length in extent)
        rng = named_rng(seed, name)
        # White noise between cubic B-splines has variance (151/315)^3 on average: divide, so that the field has unit variance.
        self.lattice = rng.standard_normal((channels, *self.shape), dtype=np.float32) / (151.0 / 315.0) ** 1.5

    def weights(self, axis: int, position_mm: np.ndarray) -> tuple[np.ndarray, ...]:
        return spline_weights(position_mm, FIELD_START_MM[axis], self.step_mm, self.shape[axis])

    def on_grid(self, axes: Sequence[np.ndarray], device: torch.device) -> Tensor:
        """Values (channels, D, H, W) at the product of three axes of scanner millimetres: three small matrix products."""
        dense = []
        for axis, position_mm in enumerate(axes):
            weights, knots = self.weights(axis, position_mm)
            matrix = np.zeros((len(position_mm), self.shape[axis]), dtype=np.float32)
            np.put_along_axis(matrix, knots, weights.astype(np.float32), axis=1)
            dense.append(torch.from_numpy(matrix).to(device))
        values = torch.from_numpy(self.lattice).to(device)
        values = torch.einsum("dz,czyx->cdyx", dense[0], values)
        values = torch.matmul(dense[1], values)  # (c, D, H, nx)
        return torch.matmul(values, dense[2].T)  # (c, D, H, W)

    def at(self, points_mm: np.ndarray) -> np.ndarray:
        """Values (n, channels) at scanner points (n, 3)."""
        (wz, kz), (wy, ky), (wx, kx) = (self.weights(axis, points_mm[:, axis]) for axis in range(3))
        near = self.lattice[:, kz[:, :, None, None], ky[:, None, :, None], kx[:, None, None, :]]  # (c, n, 4, 4, 4)
        weights = wz[:, :, None, None] * wy[:, None, :, None] * wx[:, None, None, :]
        return (near * weights).sum((2, 3, 4)).T


@dataclass(frozen=True, kw_only=True)
class Frame:
    """The way between scanner and template millimetres for one patient."""

    scale: Point  # habitus (z, y, x): patient millimetres per template millimetre
    position_mm: Point  # where the template's origin lies in the scanner
    roll_rad: float
    bend: NoiseField  # three channels
    bend_mm: float

    def to_scanner(self, points: Sequence[Point] | np.ndarray) -> np.ndarray:
        """Scanner points (n, 3) whose template coordinates are `points` (n, 3), by fixed-point iteration."""
        target = np.asarray(points, dtype=np.float64).reshape(-1, 3)
        scanner = self.unbent_to_scanner(target)
        for _ in range(3):
            displacement = self.bend.at(scanner) * self.bend_mm
            scanner = self.unbent_to_scanner(target - np.clip(displacement, -MAX_BEND_MM, MAX_BEND_MM))
        return scanner

    def to_template(self, points_mm: np.ndarray) -> np.ndarray:
        """Template points (n, 3) of scanner points (n, 3)."""
        points = np.asarray(points_mm, dtype=np.float64).reshape(-1, 3)
        z, y, x = (points - self.position_mm).T
        c, s = math.cos(self.roll_rad), math.sin(self.roll_rad)
        unbent = np.stack([z, c * y + s * x, c * x - s * y], axis=1) / self.scale
        return unbent + np.clip(self.bend.at(points) * self.bend_mm, -MAX_BEND_MM, MAX_BEND_MM)

    def unbent_to_scanner(self, points: np.ndarray) -> np.ndarray:
        z, y, x = (points * self.scale).T
        c, s = math.cos(self.roll_rad), math.sin(self.roll_rad)
        return np.stack([z, c * y - s * x, s * y + c * x], axis=1) + self.position_mm


class Grid:
    """The voxels of one scan: scanner axes (D,), (H,), (W,) and template coordinates (D, H, W)."""

    def __init__(
        self, frame: Frame, start_mm: Point, spacing: Point, shape: tuple[int, int, int], device: torch.device
    ) -> None:
        self.frame, self.start_mm, self.spacing, self.shape, self.device = frame, start_mm, spacing, shape, device
        self.axes_mm = [s + step * np.arange(n) for s, step, n in zip(start_mm, spacing, shape, strict=True)]
        self.edge_mm = float(np.mean(spacing))
        tensors = [torch.tensor(axis, dtype=torch.float32, device=device) for axis in self.axes_mm]
        self.z, self.y, self.x = tensors[0][:, None, None], tensors[1][None, :, None], tensors[2][None, None, :]
        c, s = math.cos(frame.roll_rad), math.sin(frame.roll_rad)
        y, x = self.y - frame.position_mm[1], self.x - frame.position_mm[2]
        self.profile_z = (self.z - frame.position_mm[0]) / frame.scale[
            0
        ]  # (D, 1, 1), unbent: for shapes given by level
        self.level = self.profile_z.flatten().cpu().numpy()
        bend = frame.bend.on_grid(self.axes_mm, device).mul_(frame.bend_mm).clamp_(-MAX_BEND_MM, MAX_BEND_MM)
        self.coordinates = Coordinates(
            bend[0].add_(self.profile_z),
            bend[1].add_((c * y + s * x) / frame.scale[1]),
            bend[2].add_((c * x - s * y) / frame.scale[2]),
        )

    def slices(self, low: np.ndarray, high: np.ndarray) -> Slices | None:
        """Voxels between two scanner points, or None when the scan does not reach them."""
        out = []
        for axis in range(3):
            first = math.ceil((low[axis] - self.start_mm[axis]) / self.spacing[axis])
            last = math.floor((high[axis] - self.start_mm[axis]) / self.spacing[axis]) + 1
            first, last = max(first, 0), min(last, self.shape[axis])
            if first >= last:
                return None
            out.append(slice(first, last))
        return (out[0], out[1], out[2])

    def box(self, low: Point, high: Point) -> Slices | None:
        """Voxels whose template coordinates may lie between two template points."""
        corners = np.array([[z, y, x] for z in (low[0], high[0]) for y in (low[1], high[1]) for x in (low[2], high[2])])
        scanner = self.frame.unbent_to_scanner(corners)
        margin = MAX_BEND_MM * np.max(self.frame.scale) * 0.8 + self.edge_mm
        return self.slices(scanner.min(0) - margin, scanner.max(0) + margin)

    @property
    def full(self) -> Slices:
        z, y, x = (slice(0, n) for n in self.shape)
        return z, y, x

    def slabs(self) -> list[Slices]:
        """The scan cut into slabs whose tensors stay in a processor's cache; one slab on an accelerator."""
        depth, height, width = self.shape
        step = depth if self.device.type != "cpu" else max(1, SLAB_VOXELS // (height * width))
        return [(slice(d, min(d + step, depth)), slice(0, height), slice(0, width)) for d in range(0, depth, step)]

    def within(self, part: Part | None, box: Slices) -> Tensor:
        """A part's distance on another box, far where the part does not reach."""
        if part is not None and part.box == box:
            return part.distance
        out = torch.full([s.stop - s.start for s in box], FAR_MM, device=self.device)
        common = overlap(part.box, box) if part is not None else None
        if part is not None and common is not None:
            out[relative(common, box)] = part.distance[relative(common, part.box)]
        return out

    def at(self, box: Slices) -> Coordinates:
        return Coordinates(*(tensor[box] for tensor in self.coordinates))

    def scanner_at(self, box: Slices) -> Coordinates:
        return Coordinates(self.z[box[0]], self.y[:, box[1]], self.x[:, :, box[2]])

    def profile(self, box: Slices, table: Sequence[float], levels: Sequence[float]) -> Tensor:
        """A number given by level of the body, (d, 1, 1) for the box's slices."""
        values = np.interp(self.level[box[0]], levels, table).astype(np.float32)
        return torch.from_numpy(values).to(self.device)[:, None, None]

    def soft(self, distance: Tensor, edge_mm: float | None = None) -> Tensor:
        """Fraction of a voxel that lies inside: the partial-volume edge, one voxel wide unless told."""
        return distance.mul(-1.0 / (edge_mm or self.edge_mm)).add_(0.5).clamp_(0.0, 1.0)


def ellipsoid(c: Coordinates, centre: Point, radii: Point, axes: np.ndarray | None = None) -> Tensor:
    """Distance to an ellipsoid; `axes` (3, 3) holds its unit axes as rows of (z, y, x)."""
    squares = []
    for axis, radius in enumerate(radii):
        if axes is None:
            along = (c.z, c.y, c.x)[axis] - centre[axis]
        else:
            z, y, x = (float(value) for value in axes[axis])
            along = (c.z * z).add_(c.y, alpha=y).add_(c.x, alpha=x)
            along.sub_(z * centre[0] + y * centre[1] + x * centre[2])
        squares.append(along.mul_(1.0 / radius).square_())
    gradient = (
        (squares[0] * radii[0] ** -2).add_(squares[1], alpha=radii[1] ** -2).add_(squares[2], alpha=radii[2] ** -2)
    )
    k = (squares[0].add_(squares[1])).add_(squares[2]).sqrt_()
    return (k - 1.0).mul_(k).div_(gradient.sqrt_().clamp_(min=1e-4))


def axes_along(direction: Point) -> np.ndarray:
    """Unit axes (3, 3) whose first row points along `direction`."""
    first = np.asarray(direction, dtype=np.float64)
    first = first / np.linalg.norm(first)
    helper = np.eye(3)[int(np.argmin(np.abs(first)))]
    second = np.cross(first, helper)
    second /= np.linalg.norm(second)
    return np.stack([first, second, np.cross(first, second)])


def radial_outline(c: Coordinates, half_width: Tensor, half_depth: Tensor, centre_y: Tensor) -> Tensor:
    """Distance along the ray from the axis to a rounded body outline given by level."""
    y = c.y - centre_y
    u, v = (c.x / half_width).square_(), (y / half_depth).square_()
    # k is homogeneous of degree one in (x, y); the factor 1.1 instead of 2 makes the ellipse squarer, as a thorax is.
    k = torch.add(v, u, alpha=1.1).mul_(v).addcmul_(u, u).sqrt_().sqrt_().clamp_(min=1e-3)
    return y.square_().addcmul_(c.x, c.x).sqrt_().mul_(k.reciprocal_().neg_().add_(1.0))


def smooth_min(a: Tensor, b: Tensor, blend_mm: float) -> Tensor:
    """Union of two distances whose crease is rounded over `blend_mm`."""
    h = (blend_mm - (a - b).abs()).clamp_(min=0.0)
    return torch.minimum(a, b).sub_(h.square_().mul_(0.25 / blend_mm))


class Cones(NamedTuple):
    """Round cones between scanner points (n, 3) with radii (n,) at both ends: vessels, bronchi, bones of the limbs."""

    start: np.ndarray
    stop: np.ndarray
    start_radius: np.ndarray
    stop_radius: np.ndarray


def chain(points: np.ndarray, radii: np.ndarray) -> Cones:
    """The cones along one line of points (n, 3)."""
    return Cones(points[:-1], points[1:], radii[:-1], radii[1:])


def measure_cones(grid: Grid, cones: Cones, margin_mm: float) -> Part | None:
    """Distance to the union of cones, known within `margin_mm` of each, or None when all are out of the scan.

    Cones of similar size are evaluated together, each in its own small box, and joined by a scattered minimum.
    """
    reach = np.maximum(cones.start_radius, cones.stop_radius)[:, None] + margin_mm
    lows, highs = np.minimum(cones.start, cones.stop) - reach, np.maximum(cones.start, cones.stop) + reach
    first = np.maximum(np.ceil((lows - grid.start_mm) / grid.spacing), 0).astype(int)
    last = np.minimum(np.floor((highs - grid.start_mm) / grid.spacing) + 1, grid.shape).astype(int)
    seen = ((last - first) > 0).all(1)
    if not seen.any():
        return None
    first, last = first[seen], last[seen]
    low, high = first.min(0), last.max(0)
    box = (slice(int(low[0]), int(high[0])), slice(int(low[1]), int(high[1])), slice(int(low[2]), int(high[2])))
    out = torch.full(tuple(int(n) for n in high - low), FAR_MM, device=grid.device)
    table = np.concatenate(
        [cones.start, cones.stop, cones.start_radius[:, None], cones.stop_radius[:, None]], axis=1, dtype=np.float32
    )[seen]
    order = np.argsort((last - first).prod(1))
    begin = 0
    while begin < len(order):
        # As many as fit in a batch: sizes are sorted, so that the last one is the largest.
        end = begin + 1
        size = (last - first)[order[begin]]
        while end < len(order) and end - begin < 256:
            grown = np.maximum(size, (last - first)[order[end]])
            if grown.prod() * (end + 1 - begin) > MAX_BATCH_VOXELS:
                break
            size, end = grown, end + 1
        chosen = order[begin:end]
        lower_to_cones(grid, out, low, np.minimum(first[chosen], high - size), size, table[chosen])
        begin = end
    return Part(box, out)


def lower_to_cones(
    grid: Grid, out: Tensor, low: np.ndarray, first: np.ndarray, size: np.ndarray, table: np.ndarray
) -> None:
    """Lower `out`, whose first voxel is `low`, to cones (n, 8), each in the box of one `size` that starts at `first` (n, 3)."""
    device = grid.device
    rows = torch.from_numpy(table).to(device)[:, :, None, None, None]  # (n, 8, 1, 1, 1)
    firsts = torch.from_numpy(first).to(device)
    index, position = [], []
    for axis in range(3):
        view = [-1, 1, 1, 1]
        view[axis + 1] = int(size[axis])
        steps = firsts[:, axis, None] + torch.arange(int(size[axis]), device=device)
        index.append((steps - int(low[axis])).view(view))
        position.append((steps * grid.spacing[axis] + grid.start_mm[axis]).to(torch.float32).view(view) - rows[:, axis])
    ends = rows[:, 3:6] - rows[:, 0:3]
    scaled = ends / ends.square().sum(1, keepdim=True).clamp(min=1e-6)
    along = position[0] * scaled[:, 0] + position[1] * scaled[:, 1]
    along = (along + position[2] * scaled[:, 2]).clamp_(0.0, 1.0)
    squared = (position[0] - along * ends[:, 0]).square_()
    squared += (position[1] - along * ends[:, 1]).square_()
    squared += (position[2] - along * ends[:, 2]).square_()
    distance = squared.sqrt_().sub_(rows[:, 6]).sub_(along.mul_(rows[:, 7] - rows[:, 6]))
    flat = (index[0] * out.shape[1] + index[1]) * out.shape[2] + index[2]
    out.view(-1).scatter_reduce_(0, flat.flatten(), distance.flatten(), "amin")


def thin_radius(radius_mm: np.ndarray, edge_mm: float) -> np.ndarray:
    """The radius whose soft edge lets a tube thinner than a voxel fill as much of the voxels as it should.

    A soft tube of central share a < 1 is a cone over the cross-section, of area pi (a edge)^2 a / 3; it has to be pi r^2.
    """
    drawn = np.minimum(1.0, 0.5 + radius_mm / edge_mm)
    true = np.minimum(1.0, np.cbrt(3.0 * radius_mm**2 / edge_mm**2))
    return radius_mm - np.maximum(drawn - true, 0.0) * edge_mm


def relative(box: Slices, outer: Slices) -> Slices:
    """The same voxels counted from the start of a box that contains them."""
    z, y, x = (slice(i.start - o.start, i.stop - o.start) for i, o in zip(box, outer, strict=True))
    return z, y, x


def overlap(a: Slices, b: Slices) -> Slices | None:
    z, y, x = (slice(max(i.start, o.start), min(i.stop, o.stop)) for i, o in zip(a, b, strict=True))
    return (z, y, x) if all(s.start < s.stop for s in (z, y, x)) else None


def curve(points: np.ndarray, radii: Sequence[float], num_between: int) -> tuple[np.ndarray, np.ndarray]:
    """A Catmull-Rom curve through points (n, 3) and its radii, `num_between` pieces for each given piece."""
    knots = np.arange(len(points), dtype=np.float64)
    t = np.linspace(0, len(points) - 1, (len(points) - 1) * num_between + 1)
    i = np.clip(np.floor(t).astype(int), 0, len(points) - 2)
    f = (t - i)[:, None]
    padded = np.concatenate([2 * points[:1] - points[1:2], points, 2 * points[-1:] - points[-2:-1]])
    p0, p1, p2, p3 = padded[i], padded[i + 1], padded[i + 2], padded[i + 3]
    smooth = 0.5 * (
        2 * p1 + (p2 - p0) * f + (2 * p0 - 5 * p1 + 4 * p2 - p3) * f**2 + (3 * p1 - p0 - 3 * p2 + p3) * f**3
    )
    return smooth, np.interp(t, knots, radii)
