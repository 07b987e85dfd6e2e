"""Body -> the organs below the diaphragm painted into it."""

import numpy as np
import torch
from torch import Tensor

from .body import Body, bounds
from .geometry import Coordinates, Part, Point, Slices, axes_along, ellipsoid, smooth_min

KIDNEY_CENTRE = {"right": (-128.0, 42.0, -60.0), "left": (-114.0, 44.0, 62.0)}
KIDNEY_RADII = (54.0, 27.0, 29.0)


def draw_abdominal_organs(body: Body) -> None:
    """Paint from the back of the list of priorities: bowel first, solid organs last."""
    draw_psoas(body)
    draw_bowel(body)
    draw_stomach(body)
    draw_pancreas(body)
    draw_liver(body)
    draw_spleen(body)
    draw_kidneys(body)
    draw_adrenals(body)


def below(body: Body, box: Slices, gap_mm: float = 2.0) -> Tensor:
    """Distance to the space that abdominal organs may fill: under the diaphragm, inside the wall."""
    return torch.maximum(body.cavity[box] + gap_mm, 0.2 * gap_mm - body.diaphragm[box])


def liver_centre(body: Body) -> tuple[Point, Point]:
    shift = body.patient.shift("liver", 3.0)
    right = (-62.0 + shift[0], -6.0 + shift[1], -72.0 + shift[2])
    left = (-38.0 + shift[0], -46.0 + shift[1], 2.0 + shift[2])
    return right, left


def draw_liver(body: Body) -> None:
    """Right and left lobe, portal and hepatic veins, gallbladder."""
    grid, size = body.grid, body.patient.size("liver")
    box = grid.box((-180.0, -92.0, -134.0), (35.0, 92.0, 90.0))
    if box is None:
        return
    c = grid.at(box)
    right, left = liver_centre(body)
    distance = smooth_min(
        ellipsoid(c, right, (88.0 * size, 86.0, 84.0)), ellipsoid(c, left, (44.0 * size, 36.0, 64.0 * size)), 16.0
    )
    tip = ellipsoid(c, (-118.0 * size, 4.0, -104.0), (42.0 * size, 46.0, 24.0))
    distance = smooth_min(distance, tip, 12.0) + 2.0 * body.textures["coarse"][box]
    distance = torch.maximum(distance, below(body, box))
    spine = (c.x.square() + (c.y - 46.0).square()).sqrt_()
    distance = torch.maximum(distance, torch.maximum(36.0 - spine, 3.0 - kidney(body, c, "right")))
    distance = torch.maximum(distance, 1.0 - body.within("inferior_vein", box))
    hu = body.tissue["liver"] + 2.5 * body.textures["middle"][box] + 2.0 * body.textures["fine"][box]
    body.paint(box, distance, hu, "liver")
    body.parts["liver"] = Part(box, distance)
    p = body.points
    portal = [
        (p("portal trunk", [(-92, -6, 4), (-78, -14, -22), (-66, -14, -48), (-60, -6, -78)], 2.0), [7, 7, 6, 4]),
        (p("left portal", [(-70, -14, -36), (-52, -36, -20), (-40, -48, 12)], 2.0), [5.5, 4.5, 3]),
        (p("right anterior", [(-62, -10, -62), (-46, -34, -78), (-26, -46, -84)], 2.0), [4, 3.2, 2]),
        (p("right posterior", [(-62, -8, -66), (-84, 8, -92), (-104, 12, -104)], 2.0), [4, 3.2, 2]),
    ]
    hepatic = [
        (p("right hepatic", [(-14, 4, -26), (-32, 6, -62), (-60, 6, -96)], 2.0), [5.5, 4.5, 2.5]),
        (p("middle hepatic", [(-14, 2, -24), (-30, -26, -44), (-60, -44, -60)], 2.0), [5, 4, 2.2]),
        (p("left hepatic", [(-14, 2, -22), (-22, -26, -8), (-36, -48, 10)], 2.0), [4.5, 3.5, 2]),
    ]
    veins = torch.maximum(body.grid.within(body.tubes(*portal, *hepatic, margin_mm=4.0), box), distance + 3.0)
    body.paint(box, veins, body.tissue["portal_vein"], None)
    gallbladder = ellipsoid(c, (-112.0, -50.0, -52.0), (30.0, 15.0, 13.0), axes_along((-0.85, -0.5, -0.1)))
    body.paint(box, torch.maximum(gallbladder, below(body, box)), 10.0, "gallbladder")


def draw_spleen(body: Body) -> None:
    grid, size = body.grid, body.patient.size("spleen")
    shift = body.patient.shift("spleen", 3.0)
    centre = (-46.0 + shift[0], 38.0 + shift[1], 98.0 + shift[2])
    box = grid.box(*bounds(centre, (62.0, 62.0, 62.0)))
    if box is None:
        return
    c = grid.at(box)
    distance = ellipsoid(c, centre, (47.0 * size, 30.0 * size, 46.0 * size), SPLEEN_AXES)
    hollow = ellipsoid(c, (centre[0], centre[1] - 20.0, centre[2] - 38.0), (60.0, 36.0, 34.0))
    distance = torch.maximum(torch.maximum(distance, -hollow), below(body, box)) + 1.2 * body.textures["coarse"][box]
    hu = body.tissue["spleen"] + (22.0 if body.patient.phase == "arterial" else 2.0) * body.textures["middle"][box]
    body.paint(box, distance, hu, "spleen")


# The spleen lies along the tenth rib: long from behind to the side, flat towards the ribs.
SPLEEN_AXES = np.array([[1.0, 0.0, 0.0], [0.0, 0.62, 0.785], [0.0, -0.785, 0.62]])


def draw_stomach(body: Body) -> None:
    """Fundus under the left dome, body, antrum; fluid below and gas above, since the patient lies on the back."""
    grid = body.grid
    p = body.points(
        "stomach", [(-22, 22, 56), (-48, 2, 70), (-80, -28, 62), (-100, -48, 32), (-104, -44, -2), (-98, -34, -22)], 4.0
    )
    fill = float(body.patient.rng("stomach").uniform(0.75, 1.15))
    radii = np.array([30, 29, 25, 20, 16, 10]) * fill
    part = body.tubes((p, list(radii)), margin_mm=8.0)
    if part is None:
        return
    box, c = part.box, grid.at(part.box)
    distance = torch.maximum(part.distance, below(body, box, 2.5)) + 1.5 * body.textures["coarse"][box]
    body.paint(box, distance, body.tissue["bowel_wall"], "stomach")
    level = float(body.patient.rng("stomach level").uniform(-62.0, -10.0))
    content = 14.0 + 16.0 * body.textures["fine"][box] + 10.0 * body.textures["middle"][box]
    gas = grid.soft(c.y - level)
    body.paint(box, distance + 4.0, content + gas * (-960.0 - content), None)


def draw_pancreas(body: Body) -> None:
    p = body.points("pancreas", [(-118, -12, -30), (-104, -18, -18), (-94, -24, 8), (-86, -10, 42), (-72, 12, 72)], 2.5)
    part = body.tubes((p, [13, 11, 9, 9, 8]), margin_mm=6.0)
    if part is None:
        return
    fatty = 4.0 * max(0.0, (body.patient.age - 40) / 40)
    distance = part.distance + body.textures["fine"][part.box] * (0.8 + fatty * 0.5)
    body.paint(part.box, distance, body.tissue["pancreas"], "pancreas")


def kidney(body: Body, c: Coordinates, side: str) -> Tensor:
    """Distance to one kidney, its hilum not yet cut out."""
    shift = body.patient.shift(f"{side} kidney", 4.0)
    size = body.patient.size(f"{side} kidney")
    z, y, x = KIDNEY_CENTRE[side]
    sign = -1.0 if side == "right" else 1.0
    centre = (z + shift[0] * 1.5, y + shift[1] * 0.6, x + shift[2] * 0.7)
    radii = (KIDNEY_RADII[0] * size, KIDNEY_RADII[1] * size, KIDNEY_RADII[2] * size)
    return ellipsoid(c, centre, radii, axes_along((0.95, -0.12, -0.22 * sign)))


def draw_kidneys(body: Body) -> None:
    """Cortex, medulla and the sinus with its fat, open towards the spine; renal vein and artery."""
    grid = body.grid
    for side, sign in (("right", -1.0), ("left", 1.0)):
        z, y, x = KIDNEY_CENTRE[side]
        box = grid.box(*bounds((z, y, x), (76.0, 44.0, 44.0)))
        if box is None:
            continue
        c = grid.at(box)
        whole = kidney(body, c, side) + 1.0 * body.textures["coarse"][box]
        shift = body.patient.shift(f"{side} kidney", 4.0)
        hilum = (z + shift[0] * 1.5, y + shift[1] * 0.6 - 5.0, x + shift[2] * 0.7 - sign * 13.0)
        sinus = ellipsoid(c, hilum, (27.0, 8.0, 18.0)) + 3.5 * body.textures["fine"][box]
        distance = torch.maximum(whole, -sinus)
        wall = body.cavity[box] + 1.0
        rim = grid.soft(whole + 7.0)
        pyramids = (body.textures["middle"][box] * 0.5 + 0.6).clamp(0.0, 1.0) * rim
        hu = body.tissue["kidney_cortex"] + pyramids * (body.tissue["kidney_medulla"] - body.tissue["kidney_cortex"])
        body.paint(box, torch.maximum(distance, wall - 6.0), hu, f"{side} kidney")
        body.parts[f"{side} kidney"] = Part(box, whole)
        pelvis = ellipsoid(c, hilum, (14.0, 4.5, 10.0))
        body.paint(box, pelvis, 8.0, None)
        vein = body.points(
            f"{side} renal", [hilum, (z + 2, y - 14, x * 0.6), (z + 6, 10, -14.0 if sign < 0 else 4.0)], 1.0
        )
        body.paint_part(body.tubes((vein, [4.5, 4.5, 5]), margin_mm=4.0), body.tissue["vein"] + 10.0, None)


def draw_adrenals(body: Body) -> None:
    p = body.points
    right = p("right adrenal", [(-74, 18, -28), (-84, 28, -32), (-92, 36, -38)], 1.5)
    left = p("left adrenal", [(-74, 16, 34), (-84, 24, 40), (-94, 32, 44)], 1.5)
    other = p("left adrenal limb", [(-74, 16, 34), (-86, 28, 32), (-94, 36, 32)], 1.0)
    part = body.tubes((right, [2.6, 2.6, 2]), (left, [2.6, 2.6, 2]), (other, [2.4, 2.2, 2]), margin_mm=5.0)
    body.paint_part(part, 30.0 + body.tissue["gland"] * 0.3, "adrenal gland")


def draw_psoas(body: Body) -> None:
    p = body.points
    chains = []
    for side in (-1, 1):
        chains.append(
            (
                p(
                    f"psoas {side}",
                    [(-90, 50, 26 * side), (-140, 42, 36 * side), (-200, 34, 46 * side), (-280, 20, 62 * side)],
                    1.5,
                ),
                [5, 15, 22, 22],
            )
        )
        chains.append(
            (p(f"crus {side}", [(-30, 34, 12 * side), (-80, 32, 17 * side), (-120, 26, 14 * side)], 1.0), [3, 5, 4])
        )
    body.paint_part(body.tubes(*chains, margin_mm=4.0), body.tissue["muscle"], "muscle")


def draw_bowel(body: Body) -> None:
    """Colon as a frame with stool and gas, small bowel as loops inside it."""
    grid, rng = body.grid, body.patient.rng("bowel")
    box = grid.box((-330.0, -92.0, -134.0), (-20.0, 84.0, 134.0))
    if box is None:
        return
    p = body.points
    loops = []
    for _ in range(9):
        centre = np.array([rng.uniform(-260, -135), rng.uniform(-50, 6), rng.uniform(-72, 78)])
        turn = rng.normal(0.0, (16.0, 12.0, 26.0), (6, 3)).cumsum(0) * 0.6
        points = np.clip(centre + turn, (-300, -64, -92), (-120, 14, 96))
        loops.append((grid.frame.to_scanner(points), list(rng.uniform(8.0, 13.0, 6))))
    inside = below(body, box, 5.0)
    small = torch.maximum(grid.within(body.tubes(*loops, margin_mm=4.0), box), inside)
    body.paint(box, small, body.tissue["bowel_wall"], "small bowel")
    body.paint(box, small + 3.0, 22.0 + 12.0 * body.textures["middle"][box], None)
    arch = p(
        "colon",
        [
            (-285, -6, -84),
            (-230, 4, -98),
            (-170, 2, -96),
            (-140, -30, -88),
            (-138, -62, -40),
            (-146, -68, 10),
            (-118, -58, 62),
        ],
        6.0,
    )
    tail = p(
        "descending colon",
        [(-118, -58, 62), (-78, -24, 102), (-110, 16, 108), (-170, 22, 106), (-230, 8, 100), (-285, -6, 86)],
        4.0,
    )
    wide = rng.uniform(0.75, 1.15)
    radii = np.array([22, 23, 22, 20, 20, 19, 18]) * wide
    part = body.tubes((arch, list(radii)), (tail, list(np.array([18, 16, 15, 14, 14, 14]) * wide)), margin_mm=5.0)
    colon = torch.maximum(grid.within(part, box) + 2.5 * body.textures["fine"][box], inside)
    body.paint(box, colon, body.tissue["bowel_wall"], "colon")
    stool = 25.0 + 30.0 * body.textures["fine"][box]
    bubbles = (body.textures["fine"][box] + 0.8 * body.textures["coarse"][box] - 0.5).mul_(1.6).clamp_(0.0, 1.0)
    body.paint(box, colon + 3.5, stool + bubbles * (-850.0 - stool), None)
