"""Body -> ribs, sternum, shoulder girdle, spine and pelvis painted into it."""

import numpy as np
import torch
from torch import Tensor

from .body import CAVITY_CENTRE, ORGAN_ID, SPINE_RADIUS, SPINE_Y, Body, profile
from .geometry import Part


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
        bone = 950.0 + inner * (marrow - 950.0)
        view = body.hu[box]
        here = view[shell]
        view[shell] = here + alpha * (bone - here)
        organs = body.organs[box]
        old = organs[shell]
        organs[shell] = torch.where(alpha >= 0.5, torch.full_like(old, ORGAN_ID[organ]), old)

    # Rib i runs from level 182 - 23 i behind down by (34 + 9 i) mm to the front: solve for the nearest i.
    step = 23.0 + 9.0 * around
    index = ((182.0 - z - 34.0 * around) / step).clamp_(0.0, 11.0)
    nearest = index.round()
    tall = (index - nearest) * step * 0.93
    nearest_tall = torch.where((index >= 11.0) | (index <= 0.0), (182.0 - z - 34.0 * around) - nearest * step, tall)
    outward = offset - 4.5 - torch.where(around < 0.25, (0.25 - around) * 22.0, torch.zeros_like(around))
    rib = ((nearest_tall / 6.6).square_() + (outward / 3.9).square_()).sqrt_().sub_(1.0) * 4.4
    last = torch.where(nearest < 6.5, torch.full_like(nearest, 0.93), (1.32 - 0.077 * nearest).clamp(0.42, 0.8))
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
    half = 17.0 + 11.0 * torch.sigmoid((z - 122.0) * 0.3)
    sternum = ((offset - 6.0) * (1.0 / 5.5)).square_().square_() + (x / half).square_().square_()
    sternum = torch.maximum((sternum.sqrt_().sqrt_() - 1.0) * 5.5, torch.maximum(z - 152.0, 22.0 - z))
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
    body_half = pitch_mm * 0.5 - 2.4
    vertebra = torch.maximum(column, along.abs() - body_half)
    body.paint(box, column - 0.3, 85.0, "spine")
    canal_y = radius + 7.0
    arch = (c.x.square() + (y - canal_y).square()).sqrt_()
    lamina = torch.maximum((arch - 11.0).abs_() - 3.2, along.abs() - pitch_mm * 0.36)
    spinous = torch.maximum(
        torch.maximum(c.x.abs() - 3.4, (along - (y - canal_y) * 0.35).abs() - pitch_mm * 0.22),
        (y - canal_y - 19.0).abs() - 11.0,
    )
    side = torch.maximum((along + 2.0).abs() - 5.5, (y - canal_y - 4.0 - 0.25 * c.x.abs()).abs() - 4.5)
    side = torch.maximum(side, (c.x.abs() - 20.0).abs() - 14.0)
    arches = torch.minimum(torch.minimum(lamina, spinous), side)
    canal = arch - 8.5
    bone = torch.minimum(vertebra, torch.maximum(arches, -canal))
    trabecular = body.patient.marrow_hu * (1.1 - 0.006 * (body.patient.age - 40)) + 40.0 * body.textures["fine"][box]
    inner = grid.soft(bone + 1.3)
    body.paint(box, bone, 560.0 + inner * (trabecular - 560.0), "spine")
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
        body.paint_part(part, 950.0 + inner * (body.patient.marrow_hu * 0.8 - 950.0), organ)


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
