"""Lung of a patient -> the trees inside it: arteries, veins and bronchi as round cones that fill the lung.

A tree is grown by halving its targets: points inside the lung, split along their widest direction, each half reached
from a point between the parent and the half's middle. Radii follow Murray's law in the number of targets. Bronchi run
beside the arteries.
"""

from dataclasses import dataclass

import numpy as np

from .body import Body
from .geometry import Cones, measure_cones, thin_radius

SIDES = ("right", "left")


@dataclass(frozen=True, kw_only=True)
class Tree:
    """A branching tree: its cones, and how many targets each one serves."""

    cones: Cones
    num_served: np.ndarray  # (n,)
    depth: np.ndarray  # (n,)


@dataclass(frozen=True, kw_only=True)
class LungTrees:
    """The trees of both lungs."""

    arteries: Tree
    veins: Tree
    bronchi: Tree
    bronchus_side: np.ndarray  # (n,) -1 right, +1 left


def grow_tree(targets: np.ndarray, root: np.ndarray, rng: np.random.Generator, leaf_mm: float, power: float) -> Tree:
    """A tree from a root (3,) to targets (n, 3), one generation of all branches at a time."""
    points, counts, start, above, depth = targets, np.array([len(targets)]), root[None], np.array([len(targets)]), 0
    starts, stops, served, served_by_parent, depths = [], [], [], [], []
    while len(counts):
        first = np.concatenate([[0], np.cumsum(counts)[:-1]])
        middle = np.add.reduceat(points, first) / counts[:, None]
        spread = np.add.reduceat(points**2, first) / counts[:, None] - middle**2
        several = counts > 1
        share = np.where(several, rng.uniform(0.4, 0.6, len(counts)) if depth else 0.30, 1.0)[:, None]
        stop = start + share * (middle - start) + several[:, None] * rng.normal(0.0, 1.5, start.shape)
        for history, values in zip(
            (starts, stops, served, served_by_parent, depths),
            (start, stop, counts, above, np.full(len(counts), depth)),
            strict=True,
        ):
            history.append(values)
        # Halve every group of several targets along its widest axis.
        group = np.repeat(np.arange(len(counts)), counts)
        key = points[np.arange(len(points)), spread.argmax(1)[group]]
        order = np.lexsort((key, group))
        points = points[order[several[group]]]
        cut = np.clip(np.round(counts * rng.uniform(0.35, 0.65, len(counts))).astype(int), 1, np.maximum(counts - 1, 1))
        start, above = np.repeat(stop[several], 2, axis=0), np.repeat(counts[several], 2)
        counts = np.stack([cut, counts - cut], axis=1)[several].ravel()
        depth += 1
    num_served = np.concatenate(served)
    end_radius = leaf_mm * num_served**power
    start_radius = np.minimum(leaf_mm * np.concatenate(served_by_parent) ** power, end_radius * 1.25)
    cones = Cones(np.concatenate(starts), np.concatenate(stops), start_radius, end_radius)
    return Tree(cones=cones, num_served=num_served, depth=np.concatenate(depths))


def join(trees: list[Tree]) -> Tree:
    cones = Cones(*(np.concatenate(arrays) for arrays in zip(*(tree.cones for tree in trees), strict=True)))
    served = np.concatenate([tree.num_served for tree in trees])
    return Tree(cones=cones, num_served=served, depth=np.concatenate([tree.depth for tree in trees]))


def beside(artery: Tree, artery_root: np.ndarray, bronchus_root: np.ndarray, rng: np.random.Generator) -> Tree:
    """Bronchi along the arteries that serve at least nine targets, moved from the artery's root to the bronchus's."""
    large = artery.num_served >= 9
    c = artery.cones
    aside = rng.normal(0.0, 1.0, 3)
    aside *= 4.5 / np.linalg.norm(aside)
    gap = bronchus_root - artery_root

    def move(points: np.ndarray, depth: np.ndarray) -> np.ndarray:
        near = (0.45**depth)[:, None]
        return points + gap * near + aside * (1.0 - near)

    depth = artery.depth[large]
    radius = np.clip(0.50 * artery.num_served[large] ** 0.38, 1.0, 4.5)
    cones = Cones(move(c.start[large], depth), move(c.stop[large], depth + 1), radius * 1.05, radius)
    return Tree(cones=cones, num_served=artery.num_served[large], depth=depth)


def grow_lungs(plan: Body) -> LungTrees:
    """Trees for the lungs of a body that was measured on a coarse grid; they do not depend on the scan's own grid."""
    rng, frame = plan.patient.rng("lung trees"), plan.grid.frame
    part = plan.parts["lung"]
    if part is None:
        raise ValueError("the planning grid does not reach the lungs: it must cover the whole template")
    c, sc = plan.grid.at(part.box), plan.grid.scanner_at(part.box)
    arteries, veins, bronchi, sides = [], [], [], []
    for sign, side in ((-1.0, "right"), (1.0, "left")):
        inside = ((part.distance < -5.0) & (c.x * sign > 0)).nonzero().cpu().numpy()
        axes = [axis.flatten().cpu().numpy() for axis in sc]
        voxels = np.stack([axes[i][inside[:, i]] for i in range(3)], axis=1)

        def choose(count: int, voxels: np.ndarray = voxels) -> np.ndarray:
            chosen = voxels[rng.choice(len(voxels), size=min(count, len(voxels)), replace=False)]
            return chosen + rng.uniform(-3.5, 3.5, chosen.shape)

        root, bronchus, upper, lower = frame.to_scanner(ROOTS[side])
        artery = grow_tree(choose(620), root, rng, 0.58, 0.33)
        arteries.append(artery)
        tree = beside(artery, root, bronchus, rng)
        bronchi.append(tree)
        sides.append(np.full(len(tree.depth), sign))
        targets = choose(420)
        above = targets[:, 0] > (upper[0] + lower[0]) / 2
        veins.extend(grow_tree(t, r, rng, 0.56, 0.34) for t, r in ((targets[above], upper), (targets[~above], lower)))
    return LungTrees(
        arteries=join(arteries), veins=join(veins), bronchi=join(bronchi), bronchus_side=np.concatenate(sides)
    )


# Ends of the pulmonary artery, the main bronchus, the upper and the lower pulmonary vein, in template millimetres.
ROOTS = {
    "right": [(56.0, 8.0, -44.0), (42.0, 20.0, -41.0), (56.0, -8.0, -48.0), (10.0, 22.0, -46.0)],
    "left": [(52.0, 24.0, 46.0), (40.0, 28.0, 47.0), (62.0, -8.0, 54.0), (12.0, 28.0, 50.0)],
}


def draw_lung_trees(body: Body, trees: LungTrees) -> None:
    """Arteries, veins, then bronchi with walls; where a branch is thinner than a voxel it only tints it."""
    grid, tissue = body.grid, body.tissue
    for tree, hu in ((trees.veins, tissue["left_heart"]), (trees.arteries, tissue["pulmonary_artery"])):
        paint_cones(body, tree.cones, hu, "lung vessel")
    wall_mm = 1.0
    c = trees.bronchi.cones
    outer = Cones(c.start, c.stop, c.start_radius + wall_mm, c.stop_radius + wall_mm)
    lumen = measure_cones(grid, thin(c, grid.edge_mm), 1.5 * grid.edge_mm)
    tube = measure_cones(grid, outer, 1.5 * grid.edge_mm)
    if tube is None or lumen is None:
        return
    hollow = grid.soft(grid.within(lumen, tube.box))
    shell = (grid.soft(tube.distance) - hollow).clamp_(min=0.0) * min(1.0, 1.2 * wall_mm / grid.edge_mm)
    view = body.hu[tube.box]
    view += shell * (10.0 - view) + hollow * (-970.0 - view)
    body.organs[tube.box].masked_fill_(hollow >= 0.5, 11)


def thin(cones: Cones, edge_mm: float) -> Cones:
    radii = (thin_radius(radius, edge_mm) for radius in (cones.start_radius, cones.stop_radius))
    return Cones(cones.start, cones.stop, *radii)


def paint_cones(body: Body, cones: Cones, hu: float, organ: str) -> None:
    part = measure_cones(body.grid, thin(cones, body.grid.edge_mm), 1.5 * body.grid.edge_mm)
    body.paint_part(part, hu, organ)
