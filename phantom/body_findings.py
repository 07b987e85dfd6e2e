"""Scene -> findings of heart, vessels, nodes, foreign material and abdomen, one function each."""

from collections.abc import Sequence

import numpy as np
import torch

from .abdomen import KIDNEY_CENTRE
from .chest import HEART_AXES, aorta_line, heart_centre, heart_radii, hernia, hernia_centre
from .geometry import Cones, curve, measure_cones
from .lungs import thin
from .scene import SOFT_PLACES, Scene, describe, grade, log_uniform

# Where nodes are looked for: name, side, template millimetres.
STATIONS: tuple[tuple[str, str, tuple[float, float, float]], ...] = (
    ("right paratracheal station", "right", (96.0, 6.0, -18.0)),
    ("subcarinal station", "midline", (54.0, 20.0, 2.0)),
    ("right hilum", "right", (60.0, 12.0, -48.0)),
    ("left hilum", "left", (62.0, 18.0, 50.0)),
    ("aortopulmonary window", "left", (92.0, 2.0, 32.0)),
    ("prevascular station", "left", (96.0, -44.0, 12.0)),
    ("right axilla", "right", (118.0, -24.0, -134.0)),
    ("left axilla", "left", (118.0, -24.0, 134.0)),
    ("retroperitoneum", "left", (-138.0, 16.0, 26.0)),
)
CORONARY_PATHS: dict[str, tuple[str, tuple[tuple[float, float, float], ...]]] = {
    "left anterior descending artery": ("left", ((0.75, -0.45, 0.35), (0.35, -0.75, 0.5), (-0.1, -0.75, 0.8))),
    "left circumflex artery": ("left", ((0.7, 0.1, 0.5), (0.35, 0.5, 0.75), (-0.1, 0.5, 0.85))),
    "right coronary artery": ("right", ((0.6, -0.6, -0.35), (0.1, -0.75, -0.6), (-0.5, -0.4, -0.75))),
}
AORTA_PARTS: dict[str, tuple[float, float]] = {
    "ascending aorta": (0.0, 0.16),
    "aortic arch": (0.17, 0.36),
    "descending thoracic aorta": (0.4, 0.66),
    "abdominal aorta": (0.7, 1.0),
}


def draw_cardiomegaly(scene: Scene) -> None:
    """The heart is already large (BodyChanges); here its voxels become the finding's."""
    part = scene.body.parts.get("heart")
    if part is None:
        return
    radii = np.array(heart_radii(scene.body))
    width = 2 * float(np.linalg.norm(radii * HEART_AXES[:, 2])) * scene.patient.scale[2]
    scale = scene.body.changes.heart_scale
    named = describe(
        "Cardiomegaly", side="midline", place="heart", size_mm=width, kind="enlarged", severity=grade(scale, 1.28, 1.38)
    )
    scene.mark(named, [(part.box, (part.distance < 0) & scene.organ_is(part.box, ("heart",)))], None)


def draw_pericardial_effusion(scene: Scene) -> None:
    """A shell of fluid around the heart, thicker behind and below."""
    rng, part = scene.rng("Pericardial effusion"), scene.body.parts.get("heart")
    thick, hu = log_uniform(rng, scene.ranges.pericardial_mm), float(rng.uniform(4.0, 24.0))
    if part is None:
        return
    c, centre = scene.grid.at(part.box), heart_centre(scene.body)
    lower = ((c.y - float(centre[1])) * 0.006 - (c.z - float(centre[0])) * 0.006 + 0.75).clamp_(0.25, 1.15)
    shell = torch.maximum(part.distance - thick * lower, 0.3 - part.distance)
    shell = torch.maximum(shell, torch.maximum(scene.body.diaphragm[part.box] - 4.0, scene.body.cavity[part.box] + 1.5))
    alpha = scene.grid.soft(shell) * scene.organ_is(part.box, (*SOFT_PLACES, "liver", "stomach"))
    scene.blend(part.box, alpha * min(1.0, 0.4 + thick / scene.grid.edge_mm), hu)
    named = describe(
        "Pericardial effusion",
        side="midline",
        place="pericardium",
        size_mm=thick,
        kind="fluid",
        severity=grade(thick, 8.0, 15.0),
    )
    scene.mark(named, [(part.box, alpha > 0.5)], None)


def draw_hernia(scene: Scene) -> None:
    """Stomach above the diaphragm behind the heart, with fluid and gas; the lung already makes room (BodyChanges)."""
    rng, grid = scene.rng("Hiatal hernia"), scene.grid
    size = scene.body.changes.hernia_mm
    gas_level = float(rng.uniform(8.0, 30.0))
    centre = grid.frame.to_scanner([hernia_centre(scene.body)])[0]
    box = scene.sphere_box(centre, size * 0.7 + 10.0)
    if box is None:
        return
    allowed = scene.organ_is(box, (*SOFT_PLACES, "oesophagus", "stomach", "liver", "heart"))
    distance = hernia(scene.body, box)
    alpha = grid.soft(distance) * allowed
    scene.blend(box, alpha, scene.body.tissue["bowel_wall"])
    content = 15.0 + 15.0 * scene.body.textures["fine"][box]
    gas = grid.soft(grid.at(box).y - gas_level)
    scene.blend(box, grid.soft(distance + 4.0) * allowed, content + gas * (-930.0 - content))
    named = describe(
        "Hiatal hernia",
        side="midline",
        place="oesophageal hiatus",
        size_mm=size,
        kind="sliding",
        severity=grade(size, 42.0, 60.0),
    )
    scene.mark(named, [(box, alpha > 0.5)], centre)


def plaques(
    scene: Scene, line: np.ndarray, radii: np.ndarray, rng: np.random.Generator, count: int
) -> tuple[Cones, float]:
    """Calcified plaques on the wall of a line: short cones along it, at a random angle; and their HU."""
    at = rng.integers(0, len(line) - 1, count)
    along = line[at + 1] - line[at]
    along /= np.linalg.norm(along, axis=1, keepdims=True).clip(1e-6)
    aside = rng.normal(0.0, 1.0, (count, 3))
    aside -= (aside * along).sum(1, keepdims=True) * along
    aside /= np.linalg.norm(aside, axis=1, keepdims=True).clip(1e-6)
    start = line[at] + rng.uniform(0.0, 1.0, (count, 1)) * (line[at + 1] - line[at]) + aside * radii[at, None]
    length = rng.uniform(2.0, 8.0, (count, 1))
    radius = rng.uniform(0.9, 2.3, count)
    return Cones(start, start + along * length, radius, radius * rng.uniform(0.5, 1.0, count)), float(
        rng.uniform(450.0, 1200.0)
    )


def draw_arterial_calcification(scene: Scene) -> None:
    rng = scene.rng("Arterial wall calcification")
    points, radii = aorta_line(scene.body)
    line, widths = curve(points, radii, 8)
    for place in rng.permutation(list(AORTA_PARTS)[1:])[: int(rng.integers(1, 4))]:
        low, high = AORTA_PARTS[str(place)]
        piece = slice(int(low * len(line)), int(high * len(line)))
        severity = float(rng.uniform(*scene.ranges.severity))
        cones, hu = plaques(scene, line[piece], widths[piece], rng, 3 + int(severity * 22))
        part = measure_cones(scene.grid, thin(cones, scene.grid.edge_mm), 1.5 * scene.grid.edge_mm)
        if part is None:
            continue
        alpha = scene.grid.soft(part.distance)
        scene.blend(part.box, alpha, torch.clamp(scene.body.hu[part.box], min=hu))
        named = describe(
            "Arterial wall calcification",
            side="midline" if place == "aortic arch" else "left",
            place=str(place),
            size_mm=float(np.linalg.norm(cones.stop - cones.start, axis=1).max()),
            kind="calcified plaques",
            severity=grade(severity, 0.45, 0.75),
        )
        scene.mark(named, [(part.box, alpha > 0.3)], None, (cones.start + cones.stop) / 2)


def draw_coronary_calcification(scene: Scene) -> None:
    rng, body = scene.rng("Coronary artery wall calcification"), scene.body
    centre, radii = heart_centre(body), np.array(heart_radii(body))
    for place in rng.permutation(list(CORONARY_PATHS))[: int(rng.choice([1, 2, 3], p=[0.5, 0.3, 0.2]))]:
        side, directions = CORONARY_PATHS[str(place)]
        unit = np.array(directions)
        depth = np.linalg.norm((unit @ HEART_AXES.T) / radii, axis=1, keepdims=True)
        surface = body.grid.frame.to_scanner(centre + unit / depth * 0.99)
        line, widths = curve(surface, [1.0] * len(surface), 8)
        severity = float(rng.uniform(*scene.ranges.severity))
        cones, hu = plaques(scene, line, widths, rng, 2 + int(severity * 9))
        part = measure_cones(scene.grid, thin(cones, scene.grid.edge_mm), 1.5 * scene.grid.edge_mm)
        if part is None:
            continue
        alpha = scene.grid.soft(part.distance)
        scene.blend(part.box, alpha, torch.clamp(body.hu[part.box], min=hu))
        named = describe(
            "Coronary artery wall calcification",
            side=side,
            place=str(place),
            size_mm=float(np.linalg.norm(cones.stop - cones.start, axis=1).max()),
            kind="calcified plaques",
            severity=grade(severity, 0.45, 0.75),
        )
        scene.mark(named, [(part.box, alpha > 0.3)], None, (cones.start + cones.stop) / 2)


def draw_nodes(scene: Scene) -> None:
    """Enlarged lymph nodes at one to three stations."""
    rng = scene.rng("Lymphadenopathy")
    for index in rng.permutation(len(STATIONS))[: int(rng.choice([1, 2, 3], p=[0.5, 0.3, 0.2]))]:
        station, side, template = STATIONS[index]
        short = log_uniform(rng, scene.ranges.node_mm)
        first = scene.grid.frame.to_scanner([template])[0] + rng.normal(0.0, 2.0, 3)
        pieces = []
        for number in range(int(rng.integers(1, 4))):
            size = short * (1.0 if number == 0 else rng.uniform(0.5, 0.9))
            centre = first + (rng.normal(0.0, 0.6 * short, 3) if number else 0.0)
            longer = rng.uniform(1.0, 1.45)
            hu = float(rng.uniform(30.0, 50.0)) + (35.0 if scene.patient.phase != "none" else 0.0)
            blob = scene.blob(centre, size / 2 * np.array([longer, 1.0, 1.0]), 0.6, "fine")
            if blob is None:
                continue
            allowed = (*SOFT_PLACES, "muscle", "subcutaneous fat", "oesophagus", "pancreas", "small bowel")
            alpha = scene.grid.soft(blob.distance) * scene.organ_is(blob.box, allowed)
            scene.blend(blob.box, alpha, hu)
            pieces.append((blob.box, alpha > 0.5))
        named = describe(
            "Lymphadenopathy",
            side=side,
            place=station,
            size_mm=short,
            kind="enlarged node",
            severity=grade(short, 15.0, 22.0),
        )
        scene.mark(named, pieces, first)


def draw_ascites(scene: Scene) -> None:
    """Fluid between the abdominal wall and what it holds: around liver and spleen and in the flanks."""
    rng, body = scene.rng("Ascites"), scene.body
    severity, hu = float(rng.uniform(*scene.ranges.severity)), float(rng.uniform(2.0, 18.0))
    thick = 6.0 + 20.0 * severity
    box = scene.grid.box((-290.0, -92.0, -134.0), (20.0, 60.0, 134.0))
    if box is None:
        return
    c = scene.grid.at(box)
    room = torch.maximum(body.cavity[box] + 2.0, 2.0 - body.diaphragm[box])
    flank = ((c.x.abs() - 50.0) * 0.02).clamp_(0.0, 1.0)
    fluid = torch.maximum(room, -body.cavity[box] - 2.0 - thick * (0.35 + 0.65 * flank))
    dome = torch.maximum(room, (body.diaphragm[box] - 2.0 - 0.6 * thick))
    organs = (body.organs[box] == 25) | (body.organs[box] == 27)  # liver, spleen: fluid takes a rim of them
    fluid = torch.maximum(torch.minimum(fluid, dome), c.y - 46.0) + organs * 0.3 * thick
    fluid += 2.0 * body.textures["coarse"][box]
    alpha = scene.grid.soft(fluid) * scene.organ_is(box, ("visceral fat", "liver", "spleen", "small bowel"))
    scene.blend(box, alpha, hu)
    named = describe(
        "Ascites",
        side="both",
        place="peritoneal cavity",
        size_mm=thick,
        kind="fluid",
        severity=grade(severity, 0.45, 0.75),
    )
    scene.mark(named, [(box, alpha > 0.5)], None)


def draw_liver_lesions(scene: Scene) -> None:
    """Cysts, metastases or haemangiomas; on a scan without contrast they differ little from the liver."""
    rng, part = scene.rng("Liver lesion"), scene.plan.parts.get("liver")
    if part is None:
        return
    kind = str(rng.choice(["cyst", "hypodense mass", "haemangioma"], p=[0.35, 0.45, 0.2]))
    count = int(rng.choice([1, 2, 3, 5], p=[0.5, 0.25, 0.15, 0.1]))
    liver = scene.body.tissue["liver"]
    drop = {"none": 22.0, "arterial": 25.0, "portal": 50.0}[scene.patient.phase]
    hu = {"cyst": 6.0, "hypodense mass": liver - drop, "haemangioma": liver - drop * 0.8}[kind]
    for number, point in enumerate(scene.plan_points(part, part.distance < -9.0, rng, count)):
        size = log_uniform(rng, scene.ranges.liver_lesion_mm) * (1.0 if number == 0 else 0.6)
        blob = scene.blob(point, size / 2, 0.0 if kind == "cyst" else 0.05 * size, "fine")
        x = float(scene.grid.frame.to_template(point)[0][2])
        if blob is None:
            continue
        allowed = scene.organ_is(blob.box, ("liver",))
        edge = scene.grid.edge_mm if kind == "cyst" else max(scene.grid.edge_mm, 4.0)
        alpha = scene.grid.soft(blob.distance, edge) * allowed
        value = hu + (6.0 * scene.body.textures["fine"][blob.box] if kind != "cyst" else 0.0)
        if kind == "haemangioma" and scene.patient.phase != "none":
            value = value + scene.grid.soft((blob.distance + 0.12 * size).abs() - 0.1 * size) * 70.0
        scene.blend(blob.box, alpha, value)
        lobe = "left hepatic lobe" if x > 0 else "right hepatic lobe"
        named = describe(
            "Liver lesion",
            side="right" if x < 0 else "left",
            place=lobe,
            size_mm=size,
            kind=kind,
            severity=grade(size, 20.0, 45.0),
        )
        scene.mark(named, [(blob.box, (blob.distance < 0) & allowed)], point)


def kidney_point(scene: Scene, side: str, share: np.ndarray) -> np.ndarray:
    """Scanner point of a place inside a kidney's ellipsoid, `share` (z, y, x) of its radii."""
    shift = scene.patient.shift(f"{side} kidney", 4.0) * (1.5, 0.6, 0.7)
    centre = np.array(KIDNEY_CENTRE[side]) + shift
    return scene.grid.frame.to_scanner(centre + share * np.array([52.0, 26.0, 28.0]))[0]


def draw_kidney_tumour(scene: Scene) -> None:
    """A mass at the border of one kidney, partly outside it, with a necrotic centre when large."""
    rng = scene.rng("Kidney tumour")
    side = str(rng.choice(["right", "left"]))
    size = log_uniform(rng, scene.ranges.kidney_tumour_mm)
    angle, height = rng.uniform(-1.2, 1.2), rng.uniform(-0.6, 0.6)
    out = 0.55 + 0.35 * rng.random()
    sign = -1.0 if side == "right" else 1.0
    share = np.array([height, np.sin(angle) * out * 0.9, sign * np.cos(angle) * out])
    point = kidney_point(scene, side, share)
    blob = scene.blob(point, size / 2, 0.04 * size, "fine")
    if blob is None:
        return
    places = (f"{side} kidney", "visceral fat", "colon", "small bowel", "pancreas", "adrenal gland")
    allowed = scene.organ_is(blob.box, places)
    alpha = scene.grid.soft(blob.distance) * allowed
    value = scene.body.tissue["tumour"] + 10.0 * scene.body.textures["fine"][blob.box]
    if size > 35.0:
        value = value - 45.0 * scene.grid.soft(
            blob.distance + 0.28 * size + 3.0 * scene.body.textures["middle"][blob.box], 5.0
        )
    scene.blend(blob.box, alpha, value)
    pole = "upper pole" if height > 0.25 else "lower pole" if height < -0.25 else "interpolar region"
    named = describe(
        "Kidney tumour",
        side=side,
        place=f"{side} kidney, {pole}",
        size_mm=size,
        kind="solid mass",
        severity=grade(size, 30.0, 55.0),
    )
    scene.mark(named, [(blob.box, alpha > 0.5)], point)


def draw_kidney_stones(scene: Scene) -> None:
    rng = scene.rng("Kidney stone")
    side = str(rng.choice(["right", "left"]))
    sign = -1.0 if side == "right" else 1.0
    for _ in range(int(rng.choice([1, 2, 3], p=[0.65, 0.25, 0.1]))):
        size, hu = log_uniform(rng, scene.ranges.kidney_stone_mm), float(rng.uniform(450.0, 1400.0))
        height = rng.uniform(-0.5, 0.5)
        point = kidney_point(scene, side, np.array([height, rng.uniform(-0.3, 0.1), -sign * rng.uniform(0.0, 0.35)]))
        blob = scene.blob(point, size / 2 * rng.uniform(0.75, 1.0, 3), 0.0, "fine")
        if blob is None:
            continue
        share = min(1.0, size**3 / (1.9 * scene.grid.edge_mm**3))
        alpha = scene.grid.soft(blob.distance)
        scene.blend(blob.box, alpha * share, torch.clamp(scene.body.hu[blob.box], min=hu))
        pole = "upper pole" if height > 0.2 else "lower pole" if height < -0.2 else "interpolar region"
        named = describe(
            "Kidney stone",
            side=side,
            place=f"{side} kidney, {pole}",
            size_mm=size,
            kind="calculus",
            severity=grade(size, 5.0, 10.0),
        )
        scene.mark(named, [(blob.box, alpha > 0.5)], point)


def draw_material(scene: Scene) -> None:
    """One device: pacemaker, port, venous catheter, sternal wires, gastric tube or spinal screws."""
    rng = scene.rng("Medical material")
    kinds = [
        "pacemaker",
        "port catheter",
        "central venous catheter",
        "sternal wires",
        "nasogastric tube",
        "spinal screws",
    ]
    kind = str(rng.choice(kinds))
    side = str(rng.choice(["left", "right"]))
    sign = 1.0 if side == "left" else -1.0
    cones, hu, place = device(kind, sign, rng)
    scanner = [(scene.grid.frame.to_scanner(points), radius) for points, radius in cones]
    joined = Cones(
        np.concatenate([points[:-1] for points, _ in scanner]),
        np.concatenate([points[1:] for points, _ in scanner]),
        np.concatenate([np.full(len(points) - 1, radius) for points, radius in scanner]),
        np.concatenate([np.full(len(points) - 1, radius) for points, radius in scanner]),
    )
    part = measure_cones(scene.grid, thin(joined, scene.grid.edge_mm), 1.5 * scene.grid.edge_mm)
    pieces = []
    if part is not None:
        alpha = scene.grid.soft(part.distance)
        scene.blend(part.box, alpha, torch.clamp(scene.body.hu[part.box], min=hu))
        if kind == "nasogastric tube":
            scene.blend(part.box, scene.grid.soft(part.distance + 1.4) * 0.6, -300.0)
        pieces.append((part.box, alpha > 0.25))
    if kind in ("pacemaker", "port catheter"):
        flat = np.array([22.0, 5.0, 24.0]) if kind == "pacemaker" else np.array([12.0, 6.0, 12.0])
        at = scene.grid.frame.to_scanner([chest_pocket(sign)])[0]
        blob = scene.blob(at, flat, 0.0, "fine")
        if blob is not None:
            alpha = scene.grid.soft(blob.distance)
            scene.blend(blob.box, alpha, 2900.0 if kind == "pacemaker" else 1400.0)
            pieces.append((blob.box, alpha > 0.5))
    lateral = kind in ("pacemaker", "port catheter", "central venous catheter")
    named = describe(
        "Medical material", side=side if lateral else "midline", place=place, size_mm=2 * cones[0][1], kind=kind
    )
    scene.mark(named, pieces, None, np.concatenate([points for points, _ in scanner]))


def chest_pocket(sign: float) -> tuple[float, float, float]:
    return (122.0, -78.0, sign * 84.0)


def device(kind: str, sign: float, rng: np.random.Generator) -> tuple[list[tuple[np.ndarray, float]], float, str]:
    """Template lines (n, 3) with their radius, HU and place of a device."""
    subclavian = [(150.0, -46.0, sign * 78.0), (152.0, -30.0, sign * 44.0), (128.0, -26.0, -18.0)]
    if kind == "pacemaker":
        lead = [chest_pocket(sign), *subclavian, (90, -17, -27), (55, -18, -26), (20, -28, -20), (-2, -50, 30)]
        return [(smooth(lead), 1.3)], 2600.0, "chest wall"
    if kind == "port catheter":
        return [(smooth([chest_pocket(sign), *subclavian, (95, -17, -27), (62, -17, -26)]), 1.5)], 700.0, "chest wall"
    if kind == "central venous catheter":
        line = [(205, -12, sign * 36), (160, -14, sign * 36), (128, -26, -20), (95, -17, -27), (66, -17, -26)]
        return [(smooth(line), 1.6)], 650.0, "superior vena cava"
    if kind == "sternal wires":
        rings = []
        turn = np.linspace(0.0, 2 * np.pi, 13)
        for level in np.linspace(40.0, 138.0, int(rng.integers(5, 8))):
            centre = -88.0 if level < 90 else -88.0 + (level - 90) * 0.5
            rings.append((np.stack([level + 0 * turn, centre + 8.0 * np.sin(turn), 15.0 * np.cos(turn)], axis=1), 0.7))
        return rings, 2800.0, "sternum"
    if kind == "nasogastric tube":
        line = [
            (205, 26, 2),
            (140, 34, 4),
            (90, 34, 6),
            (50, 30, 6),
            (10, 24, 12),
            (-22, 12, 30),
            (-50, 2, 66),
            (-80, -26, 62),
        ]
        return [(smooth(line), 2.6)], 350.0, "oesophagus and stomach"
    level = float(rng.choice([-150.0, -100.0, -60.0, 20.0]))
    y = float(np.interp(level, (-150, -100, -60, 20), (36, 46, 53, 62)))
    lines = []
    for x in (-1.0, 1.0):
        lines.append((np.array([(level - 38, y + 44, 17 * x), (level + 38, y + 44, 17 * x)]), 2.8))
        lines.extend(
            (np.array([(level + dz, y + 42, 17 * x), (level + dz, y - 8, 10 * x)]), 2.6) for dz in (-28.0, 4.0, 32.0)
        )
    return lines, 2900.0, "spine"


def smooth(points: Sequence[tuple[float, float, float]]) -> np.ndarray:
    return curve(np.array(points, dtype=np.float64), [1.0] * len(points), 5)[0]
