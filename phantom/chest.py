"""Body -> wall, lungs, mediastinum, heart and great vessels painted into it.

What stands between the lungs is measured before the lungs and painted after them. What a finding changes in the
anatomy itself (a large heart, a hernia that pushes the lung away) comes in as `BodyChanges`.
"""

import numpy as np
import torch
from torch import Tensor

from .body import (
    CAVITY_BACK,
    CAVITY_CENTRE,
    CAVITY_FRONT,
    CAVITY_WIDTH,
    MUSCLE_BACK,
    MUSCLE_FRONT,
    MUSCLE_WIDTH,
    ORGAN_ID,
    SPINE_RADIUS,
    SPINE_Y,
    Body,
    bounds,
    outline,
    profile,
)
from .geometry import Coordinates, Part, Point, Slices, axes_along, ellipsoid, smooth_min


def draw_wall(body: Body) -> None:
    """Skin, subcutaneous fat, breasts, muscle and the fat inside the cavity."""
    female = body.patient.sex == "female"
    for slab in body.grid.slabs():
        measure_wall(body, slab)
    if female:
        add_breasts(body, body.skin)
    for slab in body.grid.slabs():
        draw_wall_slab(body, slab)
    if female:
        draw_breast_glands(body)


def measure_wall(body: Body, box: Slices) -> None:
    """Distances to the cavity inside the ribs, to the muscle round it and to the skin."""
    patient, c = body.patient, body.grid.at(box)
    muscle = outline(body, box, MUSCLE_WIDTH, MUSCLE_FRONT, MUSCLE_BACK, 0.0)
    muscle -= body.textures["coarse"][box] * 1.5
    cavity = outline(body, box, CAVITY_WIDTH, CAVITY_FRONT, CAVITY_BACK, profile(body, CAVITY_CENTRE, box))
    # Behind, the spine and its muscles push the outline forward between two gutters that the lungs fill.
    cavity += 15.0 * torch.exp(-(c.x * (1.0 / 30.0)).square_()) * torch.sigmoid((c.y - 25.0) * 0.15)
    # Fat is thicker in front of the abdomen and at the flanks, thinner at the shoulders and over the spine.
    belly = profile(body, (1.25, 1.25, 1.2, 1.1, 1.0, 0.85, 0.75, 0.7, 0.7, 0.7, 0.6, 0.5, 0.4, 0.4), box)
    fat = patient.fat_mm * belly * (1.0 - 0.35 * (c.y / 100.0).clamp(-1.0, 1.0)) + 2.0
    body.muscle[box], body.cavity[box], body.skin[box] = muscle, cavity, muscle - fat


def draw_wall_slab(body: Body, box: Slices) -> None:
    grid, patient, c = body.grid, body.patient, body.grid.at(box)
    coarse, middle = body.textures["coarse"][box], body.textures["middle"][box]
    skin, muscle, cavity = body.skin[box], body.muscle[box], body.cavity[box]
    body.paint(box, skin, -20.0, "subcutaneous fat")
    body.hu[box] += grid.soft(skin + 2.2) * (-106.0 + 7.0 * middle - body.hu[box])
    # Fat between the layers of muscle: thin sheets where noise crosses zero, more of it in the fatter patient.
    sheet = (middle + 0.7 * coarse).abs_() * 9.0 - (0.35 + 0.035 * patient.fat_mm)
    alpha = grid.soft(torch.maximum(sheet, 9.0 - cavity), 1.5 * grid.edge_mm) * 0.75
    # The armpits hold fat, and round the shoulders muscles are bundles in fat rather than a wall.
    pit = ((c.x.abs() - 132.0) * (1.0 / 22.0)).square_() + ((c.y + 16.0) * (1.0 / 28.0)).square_()
    pit += ((c.z - 122.0) * (1.0 / 44.0)).square_()
    pit = grid.soft(torch.maximum((pit.sqrt_() - 1.0) * 22.0 + 4.0 * coarse, 11.0 - cavity), 2.0 * grid.edge_mm)
    alpha = torch.maximum(alpha, pit * (0.75 + 0.2 * middle).clamp_(0.0, 1.0))
    girdle = torch.sigmoid((c.z - 84.0) * 0.06) * grid.soft(13.0 - cavity)
    bundles = (1.5 * coarse + 0.4 * middle + 0.35 + 0.01 * patient.fat_mm).clamp_(0.0, 0.95)
    alpha = torch.maximum(alpha, girdle * bundles)
    body.paint(box, muscle, body.tissue["muscle"] + 6.0 * middle - alpha * 145.0, "muscle")
    organs = body.organs[box]
    organs.masked_fill_((alpha > 0.5) & (organs == ORGAN_ID["muscle"]), ORGAN_ID["subcutaneous fat"])
    body.paint(box, torch.maximum(cavity, muscle + 8.0), -102.0 + 9.0 * middle, "visceral fat")


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
            distance = torch.maximum(distance, torch.maximum(2.0 - body.muscle[box], body.skin[box] + 7.0))
            body.paint(box, distance, 30.0, "breast gland")


def chest_box(body: Body) -> Slices | None:
    return body.grid.box((-105.0, -92.0, -134.0), (205.0, 92.0, 134.0))


HEART_AXES = axes_along((-0.45, -0.50, 0.74))


def heart_centre(body: Body) -> np.ndarray:
    """Template centre of the heart; a larger one grows to the left and down."""
    grown = body.changes.heart_scale - 1.0
    shift = body.patient.shift("heart", 2.5) * (0.6, 0.8, 1.0)
    return np.array([22.0, -33.0, 19.0]) + shift + grown * np.array([-8.0, -4.0, 22.0])


def heart_radii(body: Body) -> Point:
    size = body.changes.heart_scale * (0.5 + 0.5 * body.patient.size("heart"))
    return 67.0 * size, 49.0 * size, 46.0 * size


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


def measure_heart(body: Body) -> Part | None:
    """Distance to the heart: the ventricles' ellipsoid and the right atrium that bulges to the right."""
    z, y, x = (float(value) for value in heart_centre(body))
    radii = heart_radii(body)
    scale = radii[0] / 67.0
    box = body.grid.box(*bounds((z, y, x), [radii[0] + 12.0] * 3))
    if box is None:
        return None
    c = body.grid.at(box)
    atrium = ellipsoid(
        c, (z + 6.0 * scale, y + 8.0 * scale, x - 38.0 * scale), (37.0 * scale, 30.0 * scale, 27.0 * scale)
    )
    base = ellipsoid(
        c, (z + 18.0 * scale, y + 22.0 * scale, x - 4.0 * scale), (30.0 * scale, 23.0 * scale, 36.0 * scale)
    )
    both = smooth_min(smooth_min(ellipsoid(c, (z, y, x), radii, HEART_AXES), atrium, 14.0), base, 10.0)
    return Part(box, torch.maximum(both + 1.5 * body.textures["coarse"][box], body.cavity[box] + 2.5))


def measure_mediastinum(body: Body) -> None:
    """Distances of everything that stands between the lungs; drawn later, after the lungs."""
    p, d = body.points, body.parts
    d["heart"] = measure_heart(body)
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
    shift = body.patient.shift("diaphragm", 5.0)
    right_top, left_top = 12.0 + shift[0], 2.0 + 0.6 * shift[0] + 0.8 * shift[1]

    def dome(c: Coordinates, top: float, centre: tuple[float, float], widths: tuple[float, float, float]) -> Tensor:
        y = c.y - centre[0]
        q = ((c.x - centre[1]) * (1.0 / widths[0])).square_()
        q += torch.where(y < 0, y * (1.0 / widths[1]), y * (1.0 / widths[2])).square_()
        return top - q * (26.0 + 22.0 * q)

    for slab in body.grid.slabs():
        c = body.grid.at(slab)
        right = dome(c, right_top, (-8.0, -66.0), (72.0, 98.0, 72.0))
        left = dome(c, left_top, (-12.0, 68.0), (66.0, 98.0, 70.0))
        middle = dome(c, -9.0, (-42.0, 10.0), (95.0, 80.0, 62.0))
        top = -smooth_min(smooth_min(-right, -left, 12.0), -middle, 12.0)
        body.diaphragm[slab] = top.sub_(c.z).mul_(0.8)


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
    middle = smooth_min(middle, body.within("heart", box) - 3.0, 10.0)
    for name, fat_mm in (("aorta", 2.0), ("pulmonary_artery", 1.5), ("superior_vein", 2.0), ("inferior_vein", 1.0)):
        middle = smooth_min(middle, body.within(name, box) - fat_mm, 4.0)
    if body.changes.hernia_mm:
        middle = torch.minimum(middle, hernia(body, box) - 1.5)
    middle -= coarse * 1.2
    lung = torch.maximum(torch.maximum(body.cavity[box] + 3.5, body.diaphragm[box] + 0.8), -middle)
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
    sheet = torch.maximum((body.diaphragm[box] + 0.5).abs_() - 1.0, body.cavity[box])
    alpha = grid.soft(sheet)
    body.hu[box] += alpha * (torch.clamp(body.hu[box], min=40.0) - body.hu[box])
    strands = body.textures["fine"][box].abs() * 3.0 - 0.9
    body.paint(box, torch.maximum(inside + 3.0, strands * 4.0), 20.0, None)
    body.paint_part(body.parts["oesophagus"], 40.0, "oesophagus")


def draw_heart(body: Body) -> None:
    """Four chambers in muscle, a little fat in the grooves."""
    grid, tissue = body.grid, body.tissue
    part = body.parts["heart"]
    if part is None:
        return
    box, surface = part
    c, centre, scale_mm = grid.at(box), heart_centre(body), heart_radii(body)[0]
    body.paint(box, surface, tissue["myocardium"], "heart")
    scale = scale_mm / 67.0

    def chamber(at: Point, size: Point, name: str, rotated: bool) -> None:
        sized = tuple(value * scale for value in size)
        distance = ellipsoid(c, at, sized, HEART_AXES if rotated else None)  # type: ignore[arg-type]
        body.paint(box, torch.maximum(distance, surface + 2.0), tissue[name], None)

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
    body.paint(box, torch.maximum(wall, surface), tissue["myocardium"], None)
    body.paint(box, torch.maximum(wall + 10.0 * scale, surface + 4.0), tissue[left], None)
    groove = torch.maximum((surface + 2.0).abs_() - 3.5, 0.9 - body.textures["middle"][box].abs())
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
