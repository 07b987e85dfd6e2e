"""Patient + Grid -> HU (D, H, W) and organs (D, H, W): the body without its findings' own voxels.

Organs are painted from the outside in, each with a soft edge of one voxel, so that a later one covers an earlier one. What a finding
changes in the body itself (a large heart, a hernia that pushes the lung away) comes in as `BodyChanges`. Numbers are template
millimetres of a middle-sized adult, (z, y, x) from an origin on the midline at the level of the right diaphragm.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .phantom_geometry import (
    Cones,
    Coordinates,
    Grid,
    NoiseField,
    Part,
    Point,
    Slices,
    axes_along,
    chain,
    curve,
    ellipsoid,
    radial_outline,
    smooth_min,
    measure_cones,
)
from .phantom_patient import Patient

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
MUSCLE_WIDTH = (150, 148, 139, 131, 136, 143, 149, 152, 156, 166, 180, 172, 98, 62)
MUSCLE_FRONT = (80, 80, 82, 86, 93, 98, 101, 101, 94, 84, 70, 60, 54, 50)
MUSCLE_BACK = (106, 102, 96, 96, 103, 108, 111, 112, 110, 104, 96, 86, 75, 66)
CAVITY_WIDTH = (112, 118, 121, 120, 125, 130, 131, 128, 114, 96, 70, 44, 18, 4)
CAVITY_FRONT = (64, 68, 72, 77, 82, 86, 87, 86, 77, 66, 48, 26, 8, 2)
CAVITY_BACK = (58, 58, 60, 66, 75, 81, 83, 83, 81, 76, 52, 28, 8, 2)
CAVITY_CENTRE = (0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 18, 32, 36, 36)
SPINE_Y = (46, 40, 33, 36, 46, 55, 61, 63, 60, 54, 45, 36, 30, 26)
SPINE_RADIUS = (26, 25, 24, 22.5, 20.5, 18.5, 17, 15.5, 14.5, 14, 13.5, 13, 12.5, 12)


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
        self.textures = {name: field.on_grid(grid.axes_mm, grid.device)[0] for name, field in textures.items()}
        self.cavity = self.skin = self.diaphragm = self.hu  # (D, H, W) distances, measured by the first painters
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
        drawn = self.patient.rng("points " + name).normal(0.0, spread_mm, (len(points), 3))
        return self.grid.frame.to_scanner(np.asarray(points) + np.clip(drawn, -2 * spread_mm, 2 * spread_mm))

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


def draw_body(body: Body) -> None:
    """Paint the whole anatomy except the trees inside the lungs."""
    draw_wall(body)
    measure_mediastinum(body)
    measure_diaphragm(body)
    draw_abdomen(body)
    draw_lungs(body)
    draw_mediastinum(body)
    draw_heart(body)
    draw_great_vessels(body)
    draw_shell_bones(body)
    draw_spine(body)
    draw_other_bones(body)


def profile(body: Body, table: Sequence[float], box: Slices | None = None) -> Tensor:
    return body.grid.profile(box or body.grid.full, table, LEVELS)


def outline(
    body: Body, width: Sequence[float], front: Sequence[float], back: Sequence[float], centre_y: Tensor | float
) -> Tensor:
    """Distance (D, H, W) to an outline that reaches `front` and `back` of a centre at each level."""
    forward, backward = profile(body, front), profile(body, back)
    middle = (backward - forward) * 0.5 + centre_y
    return radial_outline(body.grid.coordinates, profile(body, width), (forward + backward) * 0.5, middle)


def draw_wall(body: Body) -> None:
    """Skin, subcutaneous fat, breasts, muscle and the fat inside the cavity."""
    grid, patient = body.grid, body.patient
    c = grid.coordinates
    coarse, middle = body.textures["coarse"], body.textures["middle"]
    muscle = outline(body, MUSCLE_WIDTH, MUSCLE_FRONT, MUSCLE_BACK, 0.0)
    muscle -= coarse * 1.5
    cavity = outline(body, CAVITY_WIDTH, CAVITY_FRONT, CAVITY_BACK, profile(body, CAVITY_CENTRE))
    body.cavity = cavity
    # Fat is thicker in front of the abdomen and at the flanks, thinner at the shoulders and over the spine.
    belly = profile(body, (1.25, 1.25, 1.2, 1.1, 1.0, 0.85, 0.75, 0.7, 0.7, 0.7, 0.6, 0.5, 0.4, 0.4))
    fat = patient.fat_mm * belly * (1.0 - 0.35 * (c.y / 100.0).clamp(-1.0, 1.0)) + 2.0
    skin = muscle - fat
    if patient.sex == "female":
        add_breasts(body, skin)
    body.paint(body.grid.full, skin, -20.0, "subcutaneous fat")
    inner = grid.soft(skin + 2.2)
    body.hu += inner * (-106.0 + 7.0 * middle - body.hu)
    if patient.sex == "female":
        draw_breast_glands(body)
    # Fat planes between the layers of muscle: a thin shell outside the ribs, thicker in the fatter patient, broken by noise.
    plane = (cavity - 15.0 - 4.0 * coarse).abs_() - (0.5 + 0.05 * patient.fat_mm) * (1.0 + middle)
    alpha = grid.soft(plane, 1.5 * grid.edge_mm) * 0.8
    body.paint(body.grid.full, muscle, body.tissue["muscle"] + 6.0 * middle - alpha * 120.0, "muscle")
    body.paint(body.grid.full, torch.maximum(cavity, muscle + 8.0), -102.0 + 9.0 * middle, "visceral fat")
    body.skin = skin


def breast_geometry(body: Body, side: int) -> tuple[Point, Point]:
    size = body.patient.size("breast") * (0.75 + body.patient.fat_mm / 60.0)
    return (52.0, -100.0, side * 76.0), (52.0 * size, 40.0 * size, 56.0 * size)


def add_breasts(body: Body, skin: Tensor) -> None:
    for side in (-1, 1):
        centre, radii = breast_geometry(body, side)
        box = body.grid.box(*bounds(centre, [r + 10.0 for r in radii]))
        if box is not None:
            skin[box] = smooth_min(skin[box], ellipsoid(body.grid.at(box), centre, radii), 14.0)


def draw_breast_glands(body: Body) -> None:
    density = max(0.0, 1.0 - body.patient.age / 110.0)
    for side in (-1, 1):
        centre, radii = breast_geometry(body, side)
        radii = (radii[0] * 0.7, radii[1] * 0.75, radii[2] * 0.7)
        centre = (centre[0], centre[1] - 6.0, centre[2])
        box = body.grid.box(*bounds(centre, radii))
        if box is not None:
            distance = (
                ellipsoid(body.grid.at(box), centre, radii)
                - (density - 0.75 + body.textures["fine"][box] * 0.45) * 22.0
            )
            distance = torch.maximum(distance, body.cavity[box] * -1.0 + 26.0)
            body.paint(box, distance, 30.0, "breast gland")


def bounds(centre: Sequence[float], reach: Sequence[float]) -> tuple[Point, Point]:
    low = (centre[0] - reach[0], centre[1] - reach[1], centre[2] - reach[2])
    high = (centre[0] + reach[0], centre[1] + reach[1], centre[2] + reach[2])
    return low, high


def chest_box(body: Body) -> Slices | None:
    return body.grid.box((-105.0, -92.0, -134.0), (205.0, 92.0, 134.0))


HEART_AXES = axes_along((-0.45, -0.50, 0.74))


def heart_centre(body: Body) -> np.ndarray:
    """Template centre of the heart; a larger one grows to the left and down."""
    grown = body.changes.heart_scale - 1.0
    shift = body.patient.shift("heart", 2.5) * (0.6, 0.8, 1.0)
    return np.array([24.0, -30.0, 18.0]) + shift + grown * np.array([-8.0, -4.0, 22.0])


def heart_radii(body: Body) -> Point:
    size = body.changes.heart_scale * (0.5 + 0.5 * body.patient.size("heart"))
    return 64.0 * size, 46.0 * size, 43.0 * size


AORTA_ARCH: tuple[Point, ...] = (
    (58, -26, 2), (78, -32, -10), (98, -26, -9), (113, -6, 3), (110, 18, 18), (94, 31, 25), (70, 36, 27),
)  # fmt: skip
AORTA_DOWN: tuple[Point, ...] = (
    (40, 36, 27), (5, 36, 24), (-40, 32, 18), (-85, 22, 12), (-130, 12, 8), (-175, 8, 5), (-216, 10, 3),
)  # fmt: skip
AORTA_RADII = (16, 16, 15.5, 14, 13, 12.5, 12, 12, 11.5, 11, 10.5, 9.5, 8.8, 8)


def aorta_line(body: Body) -> tuple[np.ndarray, list[float]]:
    """Scanner points (14, 3) and radii of the aorta from the heart to its bifurcation; it widens with age."""
    wide = (1.0 + 0.004 * (body.patient.age - 50)) * body.patient.size("aorta")
    return body.points("aorta", [*AORTA_ARCH, *AORTA_DOWN], 1.5), [radius * wide for radius in AORTA_RADII]


def measure_mediastinum(body: Body) -> None:
    """Distances of everything that stands between the lungs; drawn later, after the lungs."""
    p, d = body.points, body.parts
    trunk, radii = aorta_line(body)
    iliac = [(-216, 10, 3), (-245, 16, 24), (-290, 30, 48)], [(-216, 10, 3), (-245, 18, -18), (-290, 32, -44)]
    branches = [
        [(111, -8, 0), (135, -8, -14), (165, 2, -24)],
        [(113, -2, 5), (140, 6, 14), (190, 4, 24)],
        [(112, 8, 12), (145, 22, 24), (168, 20, 50)],
    ]
    small = [(p(f"branch {i}", b, 1.2), [5.5, 4.5, 3.6]) for i, b in enumerate(branches)]
    legs = [(p(f"iliac {i}", b, 1.0), [6.5, 6, 5.5]) for i, b in enumerate(iliac)]
    d["aorta"] = body.tubes((trunk, radii), *small, *legs)
    d["pulmonary_artery"] = body.tubes(
        (p("pulmonary trunk", [(52, -44, 20), (66, -34, 24), (75, -14, 22)], 1.0), [14, 14, 13]),
        (p("right pulmonary", [(72, -18, 20), (66, -4, 0), (63, 4, -26), (56, 8, -44)], 1.0), [11, 11, 10.5, 8]),
        (p("left pulmonary", [(75, -14, 22), (79, 4, 34), (70, 20, 44), (52, 24, 46)], 1.0), [12, 11, 9, 7]),
        margin_mm=10.0,
    )
    upper = p("superior vena cava", [(135, -20, -26), (105, -16, -27), (75, -16, -27), (50, -18, -26)], 1.2)
    across = p("brachiocephalic vein", [(158, -14, 42), (140, -32, 18), (126, -30, -10), (116, -20, -25)], 1.5)
    jugular = p("right brachiocephalic", [(185, -2, -40), (155, -12, -34), (130, -20, -26)], 1.5)
    d["superior_vein"] = body.tubes((upper, [8, 9, 9.5, 10]), (across, [6, 6.5, 6.5, 7]), (jugular, [6, 6.5, 7.5]))
    lower = [
        (8, -8, -24),
        (-10, 4, -24),
        (-45, 8, -22),
        (-85, 10, -20),
        (-130, 10, -18),
        (-175, 12, -16),
        (-216, 18, -14),
    ]
    radii = [11, 12, 12.5, 12, 11, 10.5, 10]
    d["inferior_vein"] = body.tubes((p("inferior vena cava", lower, 1.5), radii), margin_mm=6.0)
    d["pulmonary_vein"] = body.tubes(
        *((p(f"pulmonary vein {i}", chain, 1.0), [7.5, 6, 5]) for i, chain in enumerate(PULMONARY_VEINS))
    )
    d["oesophagus"] = body.tubes(
        (
            p("oesophagus", [(200, 26, 2), (140, 34, 4), (90, 34, 6), (50, 30, 6), (10, 24, 12), (-20, 14, 24)], 1.2),
            [7] * 6,
        )
    )


PULMONARY_VEINS: tuple[tuple[Point, ...], ...] = (
    ((40, 2, -14), (46, 0, -34), (56, -8, -48)),
    ((28, 8, -14), (24, 14, -34), (10, 22, -46)),
    ((44, 2, 30), (52, 2, 44), (62, -8, 54)),
    ((30, 10, 30), (26, 18, 42), (12, 28, 50)),
)


def measure_diaphragm(body: Body) -> None:
    """`diaphragm` (D, H, W): positive below, negative above, roughly millimetres; also the heart and the mediastinum."""
    grid = body.grid
    c = grid.coordinates
    shift = body.patient.shift("diaphragm", 5.0)
    right_top, left_top = 12.0 + shift[0], 2.0 + 0.6 * shift[0] + 0.8 * shift[1]

    def dome(top: float, centre: Point, widths: tuple[float, float, float]) -> Tensor:
        y = c.y - centre[1]
        q = ((c.x - centre[2]) * (1.0 / widths[0])).square_()
        q += torch.where(y < 0, y * (1.0 / widths[1]), y * (1.0 / widths[2])).square_()
        return top - q * (26.0 + 22.0 * q)

    right = dome(right_top, (0, -8.0, -66.0), (72.0, 98.0, 72.0))
    left = dome(left_top, (0, -12.0, 68.0), (66.0, 98.0, 70.0))
    middle = dome(-9.0, (0, -42.0, 10.0), (95.0, 80.0, 62.0))
    top = -smooth_min(smooth_min(-right, -left, 12.0), -middle, 12.0)
    body.diaphragm = top.sub_(c.z).mul_(0.8)


def draw_lungs(body: Body) -> None:
    """Both lungs between the ribs, the mediastinum and the diaphragm, five lobes, darker in front."""
    grid = body.grid
    box = chest_box(body)
    if box is None:
        return
    c = grid.at(box)
    coarse, fine = body.textures["coarse"][box], body.textures["fine"][box]
    spine_y = profile(body, SPINE_Y, box)
    radius = profile(body, SPINE_RADIUS, box)
    # The column between the lungs: thin in front (the anterior junction), as wide as the vessels behind.
    front = profile(body, (8, 8, 8, 8, 8, 8, 8, 4, 4, 8, 16, 26, 30, 30), box)
    deep = profile(body, (15, 15, 15, 15, 15, 15, 15, 17, 21, 24, 24, 22, 20, 20), box)
    share = torch.sigmoid((c.y + 46.0) * 0.12)
    column = (c.x - 4.0 * (1.0 - share)).abs_() - (front + (deep - front) * share)
    column = torch.maximum(column, c.y - 46.0)
    vertebra = ((c.x / (radius + 7.0)).square_() + ((c.y - spine_y) / (radius + 6.0)).square_()).sqrt_().sub_(1.0) * (
        radius + 5.0
    )
    behind = torch.maximum(c.x.abs() - radius - 10.0, spine_y + 8.0 - c.y)
    middle = smooth_min(smooth_min(column, vertebra, 8.0), behind, 10.0)
    middle = smooth_min(middle, pericardium(body, box), 10.0)
    for name, fat_mm in (("aorta", 2.0), ("pulmonary_artery", 1.5), ("superior_vein", 2.0), ("inferior_vein", 1.0)):
        middle = smooth_min(middle, body.within(name, box) - fat_mm, 4.0)
    if body.changes.hernia_mm:
        middle = torch.minimum(middle, hernia(body, box) - 1.5)
    middle -= coarse * 1.2
    lung = torch.maximum(torch.maximum(body.cavity[box] + 3.5, body.diaphragm[box] + 1.5), -middle)
    body.parts["lung"], body.parts["middle"] = Part(box, lung), Part(box, middle)
    lobe, fissure = lobes(c, coarse)
    depth = ((c.y + 85.0) * (1.0 / 165.0)).clamp_(0.0, 1.0)
    hu = body.patient.lung_hu - 22.0 + 55.0 * depth + 9.0 * coarse + 12.0 * fine
    hu += (fissure.mul_(-1.0 / grid.edge_mm).add_(1.0).clamp_(0.0, 1.0)) * (130.0 / max(1.0, grid.edge_mm))
    body.paint(box, lung, hu, None)
    inside = lung < 0
    view = body.organs[box]
    view[inside] = lobe[inside]


def lobes(c: Coordinates, bend: Tensor) -> tuple[Tensor, Tensor]:
    """Organ ids of the five lobes and the distance to the nearest fissure, for every point."""
    y = c.y + 4.0 * bend
    right = c.z - (46.0 + 0.80 * y)
    left = c.z - (52.0 + 0.86 * y)
    horizontal = c.z - 46.0 - 3.0 * bend
    is_right = c.x < 0
    oblique = torch.where(is_right, right, left)
    lower = oblique < 0
    middle = is_right & (horizontal < 0)
    lobe = torch.where(lower, ORGAN_ID["left lower lobe"], ORGAN_ID["left upper lobe"])
    lobe = torch.where(is_right & lower, ORGAN_ID["right lower lobe"], lobe)
    lobe = torch.where(is_right & ~lower, ORGAN_ID["right upper lobe"], lobe)
    lobe = torch.where(middle & ~lower, ORGAN_ID["right middle lobe"], lobe).to(torch.uint8)
    fissure = oblique.abs().mul_(0.76)
    fissure = torch.where(is_right & ~lower, torch.minimum(fissure, horizontal.abs()), fissure)
    return lobe, fissure


def pericardium(body: Body, box: Slices) -> Tensor:
    """Distance to the heart's sac: the heart with its fat, flattened a little where it rests on the diaphragm."""
    radii = heart_radii(body)
    return ellipsoid(body.grid.at(box), tuple(heart_centre(body)), tuple(r + 3.0 for r in radii), HEART_AXES)  # type: ignore[arg-type]


def hernia_centre(body: Body) -> Point:
    return (8.0 + 0.15 * body.changes.hernia_mm, 22.0, 12.0)


def hernia(body: Body, box: Slices) -> Tensor:
    radius = body.changes.hernia_mm / 2.0
    return ellipsoid(body.grid.at(box), hernia_centre(body), (radius, radius * 0.8, radius))


def draw_mediastinum(body: Body) -> None:
    """Fat of the mediastinum, then oesophagus, trachea's neighbours and a few small soft structures."""
    grid = body.grid
    box = chest_box(body)
    if box is None:
        return
    inside = torch.maximum(torch.maximum(body.within("middle", box), body.cavity[box] + 3.0), body.diaphragm[box] - 1.0)
    fat = -88.0 + 14.0 * body.textures["middle"][box] + 10.0 * body.textures["fine"][box]
    body.paint(box, inside, fat, "mediastinum")
    # The diaphragm's muscle: a sheet between lung or fat above and fat below.
    sheet = torch.maximum((body.diaphragm[box] + 0.5).abs_() - 1.6, body.cavity[box])
    alpha = grid.soft(sheet)
    body.hu[box] += alpha * (torch.clamp(body.hu[box], min=40.0) - body.hu[box])
    strands = body.textures["fine"][box].abs() * 3.0 - 0.9
    body.paint(box, torch.maximum(inside + 3.0, strands * 4.0), 20.0, None)
    body.paint_part(body.parts["oesophagus"], 40.0, "oesophagus")


def draw_heart(body: Body) -> None:
    """Four chambers in muscle, a little fat in the grooves."""
    grid, tissue = body.grid, body.tissue
    centre, radii = heart_centre(body), heart_radii(body)
    reach = [max(radii) + 8.0] * 3
    box = grid.box(*bounds(centre, reach))
    if box is None:
        return
    c = grid.at(box)
    bend = body.textures["coarse"][box] * 1.5
    heart = ellipsoid(c, tuple(centre), radii, HEART_AXES) + bend  # type: ignore[arg-type]
    body.parts["heart"] = Part(box, heart)
    body.paint(box, heart, tissue["myocardium"], "heart")
    scale = radii[0] / 64.0

    def chamber(at: Point, size: Point, name: str, rotated: bool) -> None:
        sized = tuple(value * scale for value in size)
        distance = ellipsoid(c, at, sized, HEART_AXES if rotated else None)  # type: ignore[arg-type]
        body.paint(box, torch.maximum(distance, heart + 2.0), tissue[name], None)

    here = centre
    left, right = "left_heart", "right_heart"
    chamber((here[0] + 14 * scale, here[1] + 24 * scale, here[2] - 6 * scale), (25, 20, 30), left, False)  # left atrium
    chamber(
        (here[0] + 2 * scale, here[1] + 4 * scale, here[2] - 42 * scale), (34, 27, 22), right, False
    )  # right atrium
    chamber(
        (here[0] - 6 * scale, here[1] - 24 * scale, here[2] + 2 * scale), (34, 21, 40), right, False
    )  # right ventricle
    centre_left = (here[0] - 6 * scale, here[1] + 1 * scale, here[2] + 26 * scale)
    wall = ellipsoid(c, centre_left, tuple(v * scale for v in (42, 29, 31)), HEART_AXES)  # type: ignore[arg-type]
    body.paint(box, torch.maximum(wall, heart), tissue["myocardium"], None)
    body.paint(box, torch.maximum(wall + 10.0 * scale, heart + 4.0), tissue[left], None)
    groove = torch.maximum((heart + 2.0).abs_() - 3.5, 0.9 - body.textures["middle"][box].abs())
    body.hu[box] += grid.soft(groove * 3.0) * 0.8 * (-80.0 - body.hu[box])


def draw_great_vessels(body: Body) -> None:
    """Pulmonary artery and veins, venae cavae, aorta; then trachea and main bronchi with their walls."""
    tissue, d = body.tissue, body.parts
    body.paint_part(d["pulmonary_vein"], tissue["left_heart"], "lung vessel")
    body.paint_part(d["pulmonary_artery"], tissue["pulmonary_artery"], "pulmonary artery")
    body.paint_part(d["superior_vein"], tissue["superior_vein"], "vena cava")
    body.paint_part(d["inferior_vein"], tissue["vein"], "vena cava")
    body.paint_part(d["aorta"], 45.0, "aorta", 0.8)
    body.paint_part(d["aorta"], tissue["aorta"], None, -0.8)
    p = body.points
    trachea = p("trachea", [(230, 2, 0), (170, 12, 0), (120, 19, 0), (78, 22, 1)], 1.0)
    right = p("right bronchus", [(80, 22, 0), (68, 20, -18), (58, 18, -34), (40, 20, -42)], 0.8)
    left = p("left bronchus", [(80, 22, 2), (66, 22, 20), (56, 22, 40), (38, 28, 48)], 0.8)
    size = (0.9 if body.patient.sex == "female" else 1.05) * body.patient.size("trachea")
    chains = (
        (trachea, [8.8 * size] * 4),
        (right, [7 * size, 6.5 * size, 6, 4.5]),
        (left, [6.5 * size, 6 * size, 5.5, 4]),
    )
    d["airway"] = body.tubes(*chains)
    body.paint_part(d["airway"], 30.0, "airway", 1.6)
    body.paint_part(d["airway"], -985.0, "airway")


def draw_abdomen(body: Body) -> None:
    """Liver, spleen, stomach, pancreas, kidneys, bowel and psoas in their fat, all below the diaphragm."""
    from .phantom_abdomen import draw_abdominal_organs

    draw_abdominal_organs(body)


def draw_shell_bones(body: Body) -> None:
    """Ribs, sternum and scapulae: bones that lie on the cavity's outline, found by level and by the way round the body."""
    grid = body.grid
    box = grid.box((-120.0, -112.0, -170.0), (205.0, 112.0, 170.0))
    if box is None:
        return
    c = grid.at(box)
    cavity = body.cavity[box]
    shell = ((cavity > -4.0) & (cavity < 32.0) & (body.skin[box] < 0)).nonzero(as_tuple=True)
    offset = cavity[shell]
    z, y, x = c.z[shell], c.y[shell], c.x[shell]
    centre_y = profile(body, CAVITY_CENTRE, box).flatten()[shell[0]]
    around = torch.atan2(x.abs() / 130.0, (y - centre_y) / 85.0) / torch.pi  # 0 behind, 1 in front
    edge = grid.edge_mm

    def paint(distance: Tensor, organ: str, marrow: float, cortex_mm: float) -> None:
        alpha = distance.mul(-1.0 / edge).add_(0.5).clamp_(0.0, 1.0)
        inner = (distance + cortex_mm).mul_(-1.0 / edge).add_(0.5).clamp_(0.0, 1.0)
        bone = 850.0 + inner * (marrow - 850.0)
        view = body.hu[box]
        here = view[shell]
        view[shell] = here + alpha * (bone - here)
        organs = body.organs[box]
        old = organs[shell]
        organs[shell] = torch.where(alpha >= 0.5, torch.full_like(old, ORGAN_ID[organ]), old)

    # Rib i runs from level 182 - 23 i behind down by (22 + 7 i) mm to the front: solve for the nearest i.
    step = 23.0 + 7.0 * around
    index = ((182.0 - z - 22.0 * around) / step).clamp_(0.0, 11.0)
    nearest = index.round()
    tall = (index - nearest) * step * 0.93
    nearest_tall = torch.where((index >= 11.0) | (index <= 0.0), (182.0 - z - 22.0 * around) - nearest * step, tall)
    outward = offset - 4.5 - torch.where(around < 0.25, (0.25 - around) * 22.0, torch.zeros_like(around))
    rib = ((nearest_tall / 6.6).square_() + (outward / 3.9).square_()).sqrt_().sub_(1.0) * 4.4
    last = torch.where(
        nearest < 7, 0.93, torch.where(nearest < 10, 0.93 - (nearest - 6.0) * 0.05, 1.32 - nearest * 0.065)
    )
    ends = torch.maximum(16.0 - x.abs(), (around - last) * 170.0)
    rib = torch.maximum(rib, ends)
    rib = torch.maximum(rib, (z - 186.0))
    bony = torch.where(nearest < 2, 0.86, 0.78)
    cartilage = torch.maximum(rib, (bony - around) * 170.0)
    paint(torch.maximum(rib, (around - bony) * 170.0), "rib", body.patient.marrow_hu, 1.6)
    alpha = cartilage.mul(-1.0 / edge).add_(0.5).clamp_(0.0, 1.0)
    view = body.hu[box]
    here = view[shell]
    view[shell] = here + alpha * (95.0 - here)
    half = torch.where(z > 118.0, 27.0, 17.0)
    sternum = torch.maximum(
        torch.maximum((offset - 6.5).abs() - 5.5, x.abs() - half), torch.maximum(z - 152.0, 22.0 - z)
    )
    sternum = torch.where(around > 0.7, sternum, torch.full_like(sternum, 20.0))
    paint(sternum, "sternum", body.patient.marrow_hu * 0.7, 1.4)
    # The blade is a triangle that narrows downwards, the spine of the scapula a ridge near its top.
    width = ((z - 18.0) / 135.0).clamp_(0.0, 1.0)
    blade = torch.maximum((offset - 17.0 - 5.0 * width).abs() - 2.0, (around - 0.27).abs() * 260.0 - 8.0 - 34.0 * width)
    blade = torch.maximum(blade, torch.maximum(z - 158.0, 18.0 - z))
    ridge = torch.maximum((z - 138.0 - (around - 0.27) * 60.0).abs() - 4.0, (offset - 26.0).abs() - 7.0)
    ridge = torch.maximum(ridge, (around - 0.29).abs() * 260.0 - 38.0)
    paint(torch.minimum(blade, ridge), "scapula", 420.0, 1.3)


def draw_spine(body: Body) -> None:
    """Vertebrae with discs, canal, arches and processes, repeated by level."""
    grid = body.grid
    box = grid.box((-320.0, -8.0, -44.0), (260.0, 130.0, 44.0))
    if box is None:
        return
    c = grid.at(box)
    y = c.y - profile(body, SPINE_Y, box)
    radius = profile(body, SPINE_RADIUS, box)
    # Numbered from the level 170 down; the pitch grows from 20 mm in the neck to 34 mm in the loin.
    numbers = np.interp(grid.level[box[0]], (-300, -245, -80, 60, 170, 260), (17.6, 16, 11, 4.8, 0, -5)).astype(
        np.float32
    )
    pitch = np.interp(grid.level[box[0]], (-300, -100, 60, 200), (34.0, 31.0, 22.5, 19.0)).astype(np.float32)
    number = torch.from_numpy(numbers).to(grid.device)[:, None, None]
    pitch_mm = torch.from_numpy(pitch).to(grid.device)[:, None, None]
    along = (number - number.round()) * pitch_mm  # millimetres from the middle of the vertebra, down positive
    flat = along / pitch_mm
    ring = (c.x / (radius * 1.18)).square_() + (y / radius).square_()
    waist = 1.0 + 0.5 * flat.square()
    column = (ring.sqrt_() / waist - 1.0) * radius
    column = torch.maximum(column, -(y - radius * 1.35 + 0.012 * c.x.square()) * 0 + column)
    body_half = pitch_mm * 0.5 - 2.4
    vertebra = torch.maximum(column, along.abs() - body_half)
    body.paint(box, column - 0.3, 85.0, "spine")
    canal_y = radius + 7.0
    arch = (c.x.square() + (y - canal_y).square()).sqrt_()
    lamina = torch.maximum((arch - 11.0).abs_() - 3.2, along.abs() - pitch_mm * 0.36)
    spinous = torch.maximum(
        torch.maximum(c.x.abs() - 3.4, (along - (y - canal_y) * 0.35).abs() - pitch_mm * 0.22),
        (y - canal_y - 22.0).abs() - 14.0,
    )
    side = torch.maximum((along + 2.0).abs() - 5.5, (y - canal_y - 4.0 - 0.25 * c.x.abs()).abs() - 4.5)
    side = torch.maximum(side, (c.x.abs() - 20.0).abs() - 14.0)
    arches = torch.minimum(torch.minimum(lamina, spinous), side)
    canal = arch - 8.5
    bone = torch.minimum(vertebra, torch.maximum(arches, -canal))
    trabecular = body.patient.marrow_hu * (1.15 - 0.006 * (body.patient.age - 40)) + 22.0 * body.textures["fine"][box]
    inner = grid.soft(bone + 1.3)
    body.paint(box, bone, 720.0 + inner * (trabecular - 720.0), "spine")
    body.paint(box, torch.maximum(canal, -column - 1.0), 25.0, "spine")


def draw_other_bones(body: Body) -> None:
    """Clavicles, humeral heads and the iliac wings, where the scan reaches them."""
    p = body.points
    for side in (-1, 1):
        name = "right" if side < 0 else "left"
        clavicle = p(
            f"{name} clavicle",
            [(150, -62, 18 * side), (162, -58, 60 * side), (176, -30, 110 * side), (184, -14, 150 * side)],
            2.0,
        )
        distance = body.tubes((clavicle, [8, 5.5, 5.5, 6.5]), margin_mm=4.0)
        paint_bone(body, distance, "clavicle", 1.6)
        arm = p(f"{name} humerus", [(172, 10, 166 * side), (200, 4, 178 * side), (260, -10, 186 * side)], 2.0)
        distance = body.tubes((arm, [23, 14, 11]), margin_mm=4.0)
        paint_bone(body, distance, "humerus", 2.5)
        draw_wing(body, side)


def paint_bone(body: Body, part: Part | None, organ: str, cortex_mm: float) -> None:
    if part is not None:
        inner = body.grid.soft(part.distance + cortex_mm)
        body.paint_part(part, 850.0 + inner * (body.patient.marrow_hu * 0.8 - 850.0), organ)


def draw_wing(body: Body, side: int) -> None:
    """One iliac wing: a curved plate that leans outwards, from the crest down to the end of the template."""
    box = body.grid.box((-320.0, -70.0, min(20.0 * side, 140.0 * side)), (-195.0, 92.0, max(20.0 * side, 140.0 * side)))
    if box is None:
        return
    c = body.grid.at(box)
    x = c.x * side
    plate = x - (74.0 - 0.62 * (c.y - 15.0) + 0.42 * (c.z + 240.0) - 0.0012 * (c.y - 10.0).square())
    crest = c.z + 205.0 + 0.006 * (c.y - 5.0).square()
    distance = torch.maximum(plate.abs_().mul_(0.8) - 5.0, crest)
    distance = torch.maximum(distance, torch.maximum(c.y - 80.0, -62.0 - c.y))
    paint_bone(body, Part(box, distance), "pelvis", 2.2)
