"""Scene -> findings of lungs and pleura, one function each; numbers come from the patient's seed, never from the grid."""

import numpy as np
import torch
from torch import Tensor

from .body import LOBES, ORGAN_ID, profile
from .geometry import Cones, NoiseField, Part, Slices, measure_cones
from .lungs import thin
from .scene import SOFT_PLACES, Scene, describe, grade, log_uniform

LUNG = (*LOBES, "lung vessel", "airway")


def lung_box(scene: Scene) -> Part | None:
    return scene.body.parts.get("lung")


def side_share(x: Tensor, sides: str) -> Tensor:
    """True on the chosen side of the midline."""
    if sides == "both":
        return torch.ones_like(x, dtype=torch.bool)
    return x > 0 if sides == "left" else x < 0


def pick_sides(rng: np.random.Generator, both: float) -> str:
    return "both" if rng.random() < both else str(rng.choice(["left", "right"]))


def draw_emphysema(scene: Scene) -> None:
    """Small dark holes with soft edges, denser towards the apex or everywhere; a few bullae under the pleura."""
    rng, part, body = scene.rng("Emphysema"), lung_box(scene), scene.body
    severity = float(rng.uniform(*scene.ranges.severity))
    sides, kind = (
        pick_sides(rng, 0.85),
        str(rng.choice(["centrilobular", "paraseptal", "panlobular"], p=[0.55, 0.25, 0.2])),
    )
    upper = kind != "panlobular" and rng.random() < 0.8
    bullae = scene.lung_points(rng, 40, 0.0)
    bulla_mm = rng.uniform(7.0, 22.0, 6) * (0.6 + 0.6 * severity)
    if part is None:
        return
    box, c = part.box, scene.grid.at(part.box)
    zone = torch.sigmoid((c.z - 45.0) * 0.06) if upper else torch.ones_like(c.z)
    level = {"centrilobular": 1.0, "paraseptal": 1.9, "panlobular": 0.3}[kind] - 1.3 * severity
    holes = body.textures["fine" if kind == "centrilobular" else "middle"][box] + 0.5 * body.textures["coarse"][box]
    alpha = ((holes - level) * 1.6).clamp_(0.0, 1.0) * zone * (part.distance < -1.0) * side_share(c.x, sides)
    scene.blend(box, alpha * 0.85 * (body.hu[box] < -600.0), -975.0)
    pieces = [(box, alpha > 0.4)]
    if kind == "paraseptal":
        high = [p for p in bullae if scene.grid.frame.to_template(p)[0][0] > 70.0]
        high = [p for p in high if sides in ("both", scene.side_at(p))][: 2 + int(6 * severity)]
        for point, radius in zip(high, bulla_mm, strict=False):
            hole = scene.blob(point, radius, 0.8, "middle")
            if hole is None:
                continue
            inside = torch.maximum(hole.distance, scene.body.within("lung", hole.box))
            scene.blend(hole.box, scene.grid.soft(inside), -990.0)
            shell = scene.grid.soft((inside - 0.4).abs() - 0.5) * 0.5 * (scene.body.within("lung", hole.box) < 1.0)
            scene.blend(hole.box, shell, -500.0)
            pieces.append((hole.box, inside < 0))
    place = "upper lobes" if upper else "lungs"
    named = describe(
        "Emphysema", side=sides, place=place, size_mm=200 * severity, kind=kind, severity=grade(severity, 0.45, 0.75)
    )
    scene.mark(named, pieces, None)


def draw_mosaic(scene: Scene) -> None:
    """Geographic patches of darker and brighter lung with sharp borders."""
    rng, part, body = scene.rng("Mosaic attenuation pattern"), lung_box(scene), scene.body
    severity = float(rng.uniform(*scene.ranges.severity))
    lower = rng.random() < 0.5
    if part is None:
        return
    box, c = part.box, scene.grid.at(part.box)
    pattern = body.textures["coarse"][box] + 0.4 * body.textures["middle"][box]
    patch = (pattern * 5.0 - 0.5).clamp_(0.0, 1.0) * (part.distance < 0)
    if lower:
        patch *= torch.sigmoid((50.0 - c.z) * 0.08)
    air = (body.hu[box] < -650.0).float()
    body.hu[box] += patch * air * (-55.0 - 45.0 * severity) + (1.0 - patch) * air * (25.0 + 45.0 * severity) * (
        part.distance < 0
    )
    place = "lower lobes" if lower else "lungs"
    named = describe(
        "Mosaic attenuation pattern",
        side="both",
        place=place,
        size_mm=30.0,
        kind="patchy",
        severity=grade(severity, 0.45, 0.75),
    )
    scene.mark(named, [(box, patch > 0.5)], None)


def draw_septal(scene: Scene) -> None:
    """Thin polygons around lobules: sheets where one of two noises crosses zero, near the pleura and at the bases."""
    rng, part, body = scene.rng("Interlobular septal thickening"), lung_box(scene), scene.body
    severity = float(rng.uniform(*scene.ranges.severity))
    sides, basal = pick_sides(rng, 0.75), rng.random() < 0.7
    if part is None:
        return
    box, grid = part.box, scene.grid
    c = grid.at(box)
    axes = [axis[s] for axis, s in zip(grid.axes_mm, box, strict=True)]
    sheets = NoiseField(scene.patient.seed, "septa", 20.0, channels=2).on_grid(axes, grid.device)
    half = 0.5 + 0.7 * severity
    alpha = torch.maximum(grid.soft(sheets[0].abs() * 11.0 - half), grid.soft(sheets[1].abs() * 11.0 - half))
    alpha *= min(1.0, 0.35 + 2.0 * half / grid.edge_mm) * (part.distance < -0.5) * side_share(c.x, sides)
    alpha *= torch.sigmoid((part.distance + 28.0) * 0.2)
    if basal:
        alpha *= torch.sigmoid((35.0 - c.z) * 0.07)
    scene.blend(box, alpha, torch.clamp(body.hu[box], min=-330.0 + 200.0 * severity))
    place = "lower lobes" if basal else "lungs"
    named = describe(
        "Interlobular septal thickening",
        side=sides,
        place=place,
        size_mm=2 * half,
        kind="smooth",
        severity=grade(severity, 0.45, 0.75),
    )
    scene.mark(named, [(box, alpha > 0.3)], None)


def bronchi_of(scene: Scene, sides: str, lobe: str | None, least: int, most: int) -> Cones | None:
    """The bronchi of a side or a lobe that serve between `least` and `most` targets."""
    tree = scene.trees.bronchi
    chosen = (tree.num_served >= least) & (tree.num_served <= most) & (tree.depth >= 1)
    if sides != "both":
        chosen &= scene.trees.bronchus_side == (1.0 if sides == "left" else -1.0)
    if lobe is not None:
        middles = (tree.cones.start + tree.cones.stop) / 2
        for i in np.flatnonzero(chosen):
            chosen[i] = scene.lobe_of(middles[i]) == lobe
    if not chosen.any():
        return None
    return Cones(*(array[chosen] for array in tree.cones))


def draw_tubes(scene: Scene, cones: Cones, wall_mm: float, wall_hu: float) -> list[tuple[Slices, Tensor]]:
    """Walls and air of widened or thickened bronchi; the voxels of both."""
    grid = scene.grid
    lumen = measure_cones(grid, thin(cones, grid.edge_mm), 1.5 * grid.edge_mm)
    outer_cones = Cones(cones.start, cones.stop, cones.start_radius + wall_mm, cones.stop_radius + wall_mm)
    outer = measure_cones(grid, thin(outer_cones, grid.edge_mm), 1.5 * grid.edge_mm + wall_mm)
    if outer is None:
        return []
    box = outer.box
    allowed = scene.organ_is(box, LUNG)
    hollow = grid.soft(grid.within(lumen, box)) * allowed
    whole = grid.soft(outer.distance) * allowed
    shell = (whole - hollow).clamp_(min=0.0)
    view = scene.body.hu[box]
    view += shell * (torch.clamp(view, min=wall_hu) - view)
    view += hollow * (-965.0 - view)
    return [(box, whole > 0.35)]


def draw_peribronchial(scene: Scene) -> None:
    rng = scene.rng("Peribronchial thickening")
    severity = float(rng.uniform(*scene.ranges.severity))
    sides = pick_sides(rng, 0.65)
    lobe = None if sides == "both" else str(rng.choice([name for name in LOBES if name.startswith(sides)]))
    cones = bronchi_of(scene, sides, lobe, 9, 180) or bronchi_of(scene, sides, None, 9, 180)
    if cones is None:
        return
    wall = 1.6 + 1.8 * severity
    named = describe(
        "Peribronchial thickening",
        side=sides,
        place=lobe or "lungs",
        size_mm=wall,
        kind="bronchial wall",
        severity=grade(severity, 0.45, 0.75),
    )
    scene.mark(named, draw_tubes(scene, cones, wall, 10.0), None)


def draw_bronchiectasis(scene: Scene) -> None:
    rng = scene.rng("Bronchiectasis")
    severity = float(rng.uniform(*scene.ranges.severity))
    order = rng.permutation(LOBES)
    kind = str(rng.choice(["cylindrical", "varicose", "cystic"], p=[0.6, 0.2, 0.2]))
    for lobe in order:
        side = str(lobe).split()[0]
        cones = bronchi_of(scene, side, str(lobe), 9, 70)
        if cones is not None and len(cones.start) >= 3:
            break
    else:
        return
    radius = rng.uniform(2.0, 3.2, len(cones.start)) * (0.8 + 0.7 * severity) * (1.5 if kind == "cystic" else 1.0)
    far = radius * {"cylindrical": 1.0, "varicose": 0.6, "cystic": 1.4}[kind]
    wide = Cones(cones.start, cones.stop, radius, far)
    named = describe(
        "Bronchiectasis",
        side=side,
        place=str(lobe),
        size_mm=2 * float(radius.max()),
        kind=kind,
        severity=grade(severity, 0.45, 0.75),
    )
    scene.mark(named, draw_tubes(scene, wide, 1.3, 0.0), None)


def draw_opacity(scene: Scene) -> None:
    """Ground glass: patches that brighten the lung without hiding its vessels."""
    rng = scene.rng("Lung opacity")
    count = int(rng.integers(1, 5))
    points, kind = scene.lung_points(rng, count, 10.0), str(rng.choice(["patchy", "nodular", "hazy"]))
    for point in points:
        size, added = log_uniform(rng, scene.ranges.patch_mm) * 0.8, float(rng.uniform(150.0, 400.0))
        squash = rng.uniform(0.6, 1.0, 3)
        blob = scene.blob(point, size / 2 * squash / squash.max(), size * 0.10, "middle")
        if blob is None:
            continue
        inside = torch.maximum(blob.distance, scene.body.within("lung", blob.box))
        alpha = scene.grid.soft(inside, max(6.0, 1.5 * scene.grid.edge_mm)) * scene.organ_is(blob.box, LUNG)
        view = scene.body.hu[blob.box]
        view += alpha * added * ((60.0 - view) * (1.0 / 850.0)).clamp(0.0, 1.0)
        lobe = scene.lobe_of(point)
        named = describe(
            "Lung opacity", side=lobe.split()[0], place=lobe, size_mm=size, kind=kind, severity=grade(size, 35.0, 55.0)
        )
        scene.mark(named, [(blob.box, alpha > 0.5)], point)


def draw_consolidation(scene: Scene) -> None:
    """Airless lung within one lobe, bronchi still dark inside it."""
    rng = scene.rng("Consolidation")
    for _ in range(int(rng.integers(1, 3))):
        size = log_uniform(rng, scene.ranges.patch_mm)
        hu, lower = float(rng.uniform(15.0, 60.0)), rng.random() < 0.6
        lobe = str(rng.choice(["right lower lobe", "left lower lobe"] if lower else LOBES))
        points = scene.lung_points(rng, 1, 7.0, lobe)
        squash = rng.uniform(0.65, 1.0, 3)
        if len(points) == 0:
            continue
        blob = scene.blob(points[0], size / 2 * squash / squash.max(), size * 0.09, "middle")
        if blob is None:
            continue
        lung = torch.maximum(blob.distance, scene.body.within("lung", blob.box))
        here = (scene.body.organs[blob.box] == ORGAN_ID[lobe]) | scene.organ_is(blob.box, ("lung vessel",))
        alpha = scene.grid.soft(lung, max(4.0, 1.5 * scene.grid.edge_mm)) * here
        scene.blend(blob.box, alpha, hu + 6.0 * scene.body.textures["fine"][blob.box])
        named = describe(
            "Consolidation",
            side=lobe.split()[0],
            place=lobe,
            size_mm=size,
            kind="airspace",
            severity=grade(size, 40.0, 60.0),
        )
        scene.mark(named, [(blob.box, alpha > 0.5)], points[0])


def draw_effusion(scene: Scene) -> None:
    """Fluid behind and below one lung or both: a level that rises at the wall, higher towards the base."""
    rng, part = scene.rng("Pleural effusion"), lung_box(scene)
    sides = ("right", "left") if rng.random() < 0.4 else (str(rng.choice(["right", "left"])),)
    for side in sides:
        depth = log_uniform(rng, scene.ranges.effusion_mm)
        top, hu = float(rng.uniform(-10.0, 20.0)) + depth * 1.3, float(rng.uniform(2.0, 22.0))
        if part is None:
            continue
        box, c = part.box, scene.grid.at(part.box)
        high = ((c.z + 60.0) * (1.0 / (top + 60.0))).clamp_(0.0, 1.0)
        back = profile(scene.body, (66, 66, 66, 70, 76, 81, 83, 83, 81, 76, 60, 50, 40, 30), box)
        level = back - depth * (1.0 - high.square())
        rim = (scene.body.cavity[box] + 3.5 + 0.22 * depth * (1.0 - high)) * -1.0  # a thinner layer along the side wall
        fluid = torch.minimum(level - c.y, torch.maximum(rim, 10.0 - c.y))
        fluid = torch.maximum(fluid + 1.5 * scene.body.textures["coarse"][box], part.distance)
        alpha = scene.grid.soft(fluid) * side_share(c.x, side) * scene.organ_is(box, LUNG)
        scene.blend(box, alpha, hu)
        collapsed = scene.grid.soft(fluid - 5.0, 10.0) * side_share(c.x, side) * scene.organ_is(box, LUNG) - alpha
        view = scene.body.hu[box]
        view += collapsed.clamp_(min=0.0) * 420.0 * (view < -300.0)
        named = describe(
            "Pleural effusion",
            side=side,
            place="pleural space",
            size_mm=depth,
            kind="fluid",
            severity=grade(depth, 25.0, 50.0),
        )
        scene.mark(named, [(box, alpha > 0.5)], None)


def draw_atelectasis(scene: Scene) -> None:
    """Plates across the lung bases, the lingula or the middle lobe; a thicker wedge when segmental."""
    rng = scene.rng("Atelectasis")
    for _ in range(int(rng.integers(1, 4))):
        lobe = str(
            rng.choice(
                ["right lower lobe", "left lower lobe", "right middle lobe", "left upper lobe"],
                p=[0.35, 0.35, 0.2, 0.1],
            )
        )
        kind = str(rng.choice(["plate-like", "subsegmental", "segmental"], p=[0.5, 0.3, 0.2]))
        thick = {
            "plate-like": rng.uniform(2.5, 5.0),
            "subsegmental": rng.uniform(5.0, 9.0),
            "segmental": rng.uniform(10.0, 18.0),
        }[kind]
        length, hu = rng.uniform(30.0, 65.0), float(rng.uniform(-20.0, 60.0))
        points = scene.lung_points(rng, 1, 8.0, lobe)
        normal = rng.normal(0.0, (1.0, 0.45, 0.45))
        normal *= (1.0 if rng.random() < 0.8 else -1.0) / max(float(np.linalg.norm(normal)), 1e-6)
        if len(points) == 0:
            continue
        point, box = points[0], scene.sphere_box(points[0], length / 2 + 6.0)
        if box is None:
            continue
        c = scene.grid.scanner_at(box)
        z, y, x = c.z - float(point[0]), c.y - float(point[1]), c.x - float(point[2])
        across = (z * float(normal[0]) + y * float(normal[1]) + x * float(normal[2])) + 1.5 * scene.body.textures[
            "coarse"
        ][box]
        plate = torch.maximum(across.abs() - thick / 2, (z.square() + y.square() + x.square()).sqrt() - length / 2)
        inside = torch.maximum(plate, scene.body.within("lung", box))
        alpha = (
            scene.grid.soft(inside)
            * scene.organ_is(box, (*LOBES, "lung vessel"))
            * min(1.0, 0.3 + thick / scene.grid.edge_mm)
        )
        scene.blend(box, alpha, torch.clamp(scene.body.hu[box], min=hu))
        named = describe(
            "Atelectasis", side=lobe.split()[0], place=lobe, size_mm=length, kind=kind, severity=grade(thick, 5.0, 10.0)
        )
        scene.mark(named, [(box, alpha > 0.4)], point)


def draw_fibrotic_sequela(scene: Scene) -> None:
    """Irregular bands that run from the pleura inwards, most often at an apex, some with a calcified granuloma."""
    rng = scene.rng("Pulmonary fibrotic sequela")
    apical = rng.random() < 0.6
    for _ in range(int(rng.integers(1, 3))):
        lobe = str(rng.choice(["right upper lobe", "left upper lobe"] if apical else LOBES))
        points = scene.lung_points(rng, 60, 4.0, lobe)
        if len(points) == 0:
            continue
        centre = points[int(np.argmax(points[:, 0]))] if apical else points[0]
        reach = float(rng.uniform(12.0, 30.0))
        starts = centre + rng.normal(0.0, reach * 0.35, (9, 3))
        stops = centre + rng.normal(0.0, reach * 0.75, (9, 3))
        radii = rng.uniform(0.8, 2.4, 9)
        hu, granuloma = float(rng.uniform(-120.0, 60.0)), rng.random() < 0.3
        cones = thin(Cones(starts, stops, radii, radii * 0.5), scene.grid.edge_mm)
        part = measure_cones(scene.grid, cones, 1.5 * scene.grid.edge_mm)
        if part is None:
            continue
        allowed = scene.organ_is(part.box, (*LOBES, "lung vessel")) & (scene.body.within("lung", part.box) < 0.5)
        alpha = scene.grid.soft(part.distance + 0.6 * scene.body.textures["fine"][part.box]) * allowed
        scene.blend(part.box, alpha, torch.clamp(scene.body.hu[part.box], min=hu))
        if granuloma:
            ball = scene.blob(centre, 2.2, 0.0, "fine")
            if ball is not None:
                scene.blend(ball.box, scene.grid.soft(ball.distance) * scene.organ_is(ball.box, LUNG), 600.0)
        named = describe(
            "Pulmonary fibrotic sequela",
            side=lobe.split()[0],
            place=lobe,
            size_mm=2 * reach,
            kind="with granuloma" if granuloma else "band-like",
            severity=grade(reach, 17.0, 24.0),
        )
        scene.mark(named, [(part.box, alpha > 0.35)], centre)


def draw_nodules(scene: Scene) -> None:
    """One to four nodules: solid, ground-glass, part-solid, spiculated or calcified."""
    rng = scene.rng("Lung nodule")
    count = int(rng.choice([1, 2, 3, 4], p=[0.6, 0.2, 0.12, 0.08]))
    for point in scene.lung_points(rng, count, 5.0):
        size = log_uniform(rng, scene.ranges.nodule_mm)
        kind = str(
            rng.choice(
                ["solid", "spiculated", "ground-glass", "part-solid", "calcified"], p=[0.45, 0.2, 0.13, 0.1, 0.12]
            )
        )
        if kind == "calcified":
            size = min(size, 12.0)
        spikes = rng.normal(0.0, 1.0, (10, 3))
        spikes /= np.linalg.norm(spikes, axis=1, keepdims=True)
        hu = {"solid": 35.0, "spiculated": 40.0, "ground-glass": -520.0, "part-solid": -480.0, "calcified": 700.0}[kind]
        hu += float(rng.uniform(-30.0, 30.0)) + (
            25.0 if scene.patient.phase != "none" and kind in ("solid", "spiculated") else 0.0
        )
        lobe = scene.lobe_of(point)
        named = describe(
            "Lung nodule", side=lobe.split()[0], place=lobe, size_mm=size, kind=kind, severity=grade(size, 8.0, 18.0)
        )
        blob = scene.blob(point, size / 2, 0.06 * size if size > 6 else 0.0, "fine")
        if blob is None:
            continue
        share = min(1.0, size**3 / (1.9 * scene.grid.edge_mm**3))  # a ball thinner than a voxel fills only part of it
        allowed = scene.organ_is(blob.box, SOFT_PLACES)
        alpha = scene.grid.soft(blob.distance) * allowed
        scene.blend(blob.box, alpha * share, torch.clamp(scene.body.hu[blob.box], min=hu))
        if kind == "part-solid":
            core = scene.grid.soft(blob.distance + 0.25 * size) * allowed * share
            scene.blend(blob.box, core, 25.0)
        if kind == "spiculated":
            ends = point + spikes * size * rng.uniform(0.7, 1.1, (10, 1))
            cones = Cones(point + spikes * size * 0.35, ends, np.full(10, 0.09 * size), np.full(10, 0.3))
            part = measure_cones(scene.grid, thin(cones, scene.grid.edge_mm), 1.5 * scene.grid.edge_mm)
            if part is not None:
                ray = scene.grid.soft(part.distance) * scene.organ_is(part.box, SOFT_PLACES)
                scene.blend(part.box, ray, torch.clamp(scene.body.hu[part.box], min=-50.0))
        scene.mark(named, [(blob.box, alpha > 0.5)], point)
