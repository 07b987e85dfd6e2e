"""Painted HU -> the HU a scanner would give: table, slice profile, kernel and correlated noise."""

import math

import torch
from torch import Tensor

from .body import ORGAN_ID, Body
from .geometry import named_rng
from .patient import Acquisition

LOWEST_HU, HIGHEST_HU = -1024, 3071


def draw_table(body: Body, acquisition: Acquisition) -> None:
    """The table's shell and mattress under the back, and a sheet of cloth over the patient; only where there is air."""
    grid, patient = body.grid, body.patient
    rng = named_rng(patient.seed, "table")
    back = patient.position_mm[1] + patient.scale[1] * (114.0 + 0.6 * patient.fat_mm)
    gap, cloth_hu, curve = rng.uniform(3.0, 8.0), rng.uniform(20.0, 90.0), rng.uniform(0.0004, 0.0011)
    thick = 1.5 if acquisition.table == "thin" else 3.0
    depth = (grid.y - back + curve * grid.x.square() - 3.0)[0]  # (H, W) below the mattress's top
    half = (grid.x[0].abs() - rng.uniform(200.0, 230.0)).clamp(min=-1.0)
    layers = (  # top, half thickness, HU
        (8.0, 8.0, -935.0),
        (18.0, thick, rng.uniform(-550.0, 50.0)),
        (rng.uniform(38.0, 60.0), thick, rng.uniform(-600.0, 0.0)),
    )
    shares = [grid.soft(torch.maximum((depth - top).abs() - size, half)) for top, size, _ in layers]
    for slab in grid.slabs():
        hu, organs = body.hu[slab], body.organs[slab]
        air = hu < -900.0
        cloth = (body.skin[slab] - gap - 3.0 * body.textures["coarse"][slab]).abs_().sub_(0.4)
        hu += grid.soft(cloth, 1.5 * grid.edge_mm).mul_(air).mul_(cloth_hu)
        if acquisition.table == "none":
            continue
        for share, (_, _, layer_hu) in zip(shares, layers, strict=True):
            alpha = share * air
            hu += alpha * (layer_hu - hu)
            organs.masked_fill_((alpha >= 0.5) & (organs == 0), ORGAN_ID["table"])


def blur(values: Tensor, axis: int, sigma_voxels: float) -> Tensor:
    """Gaussian along one axis; the border's weights are renormalised."""
    radius = math.ceil(2.5 * sigma_voxels)
    if sigma_voxels < 0.2 or radius >= values.shape[axis]:
        return values
    weights = [math.exp(-0.5 * (k / sigma_voxels) ** 2) for k in range(radius + 1)]
    out = values * weights[0]
    total = torch.full((values.shape[axis],), weights[0], device=values.device)
    size = values.shape[axis]
    for k in range(1, radius + 1):
        for to, start in ((0, k), (k, 0)):
            out.narrow(axis, to, size - k).add_(values.narrow(axis, start, size - k), alpha=weights[k])
            total[to : to + size - k] += weights[k]
    shape = [1, 1, 1]
    shape[axis] = size
    return out.div_(total.view(shape))


def acquire(body: Body, acquisition: Acquisition) -> Tensor:
    """HU (D, H, W) int16 after slice profile, kernel and noise."""
    grid, hu = body.grid, body.hu
    # A slice thicker than the spacing overlaps its neighbours; the painted edge already is one voxel wide.
    wide = math.sqrt(max(acquisition.slice_thickness_mm**2 - grid.spacing[0] ** 2, 0.0)) / 2.355
    hu = blur(hu, 0, wide / grid.spacing[0])
    sigmas = [acquisition.soft_sigma_mm / grid.spacing[axis] for axis in (1, 2)]
    if acquisition.kernel == "soft":
        hu = blur(blur(hu, 1, sigmas[0]), 2, sigmas[1])
    else:
        smooth = blur(blur(hu, 1, max(sigmas[0], 0.5)), 2, max(sigmas[1], 0.5))
        hu = hu + acquisition.sharpening * (hu - smooth)
    hu = hu + noise(body, acquisition)
    return hu.round_().clamp_(LOWEST_HU, HIGHEST_HU).to(torch.int16)


def noise(body: Body, acquisition: Acquisition) -> Tensor:
    """Correlated noise (D, H, W): coarse for a soft kernel, fine for a sharp one, stronger deep inside the body."""
    grid = body.grid
    generator = torch.Generator(device=grid.device)
    generator.manual_seed(int(named_rng(body.patient.seed, "noise").integers(2**62)))
    white = torch.randn(grid.shape, generator=generator, device=grid.device)
    sigmas = [max(0.55, 0.9 / grid.spacing[axis]) for axis in (1, 2)]
    smooth = blur(blur(white, 1, sigmas[0]), 2, sigmas[1])
    grain = smooth if acquisition.kernel == "soft" else white - 0.6 * smooth
    strength = acquisition.noise_hu * (1.4 if acquisition.kernel == "sharp" else 0.8)
    depth = (body.skin * (-1.0 / 90.0)).clamp_(-0.15, 1.0).add_(0.45)
    return grain.mul_(depth).mul_(strength / float(grain[::4, ::4, ::4].std()))
