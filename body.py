"""HU of a scan -> which voxels lie in the body: without the table, with lungs and bowel. No model is asked."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

TISSUE = 0.35  # of pixel_values: -300 HU where the window is -1000 ... 1000; between lung and fat
CELL_MM = 3.5  # what the search works on: the plates of a table are thinner than two of these, limbs are not
BODY_SHARE = 0.5  # of a patch lies in the body where the patch counts as body, compared with the fullest patch
SMALLEST_SHARE = 0.1  # of the largest piece: arms and the other leg are kept, mattresses and tubes are not


def shrink_factors(shape: tuple[int, ...], spacing: tuple[float, ...]) -> tuple[int, ...]:
    """Whole voxels a cell of about `CELL_MM`, of which every axis holds a whole number."""
    return tuple(
        max(f for f in range(1, max(1, math.floor(CELL_MM / size)) + 1) if n % f == 0)
        for n, size in zip(shape, spacing, strict=True)
    )


def label_pieces(mask: np.ndarray) -> np.ndarray:
    """The number of its connected piece for every voxel of a mask, from 1; 0 elsewhere."""
    pieces = np.zeros(mask.shape, np.int32)
    ndimage.label(mask, output=pieces)
    return pieces


def find_body(values: Tensor, level: float = TISSUE) -> Tensor:
    """`(D, H, W)` of pixel_values on cells of about `CELL_MM` -> truth values of the same shape.

    Pieces of tissue are told apart after thin plates (the table) were taken away; what a large piece encloses in its slice,
    from side to side and from front to back, belongs to it.
    """
    tissue = values.numpy() > level
    plane = ndimage.generate_binary_structure(2, 1)[None]
    thick = ndimage.binary_erosion(tissue, plane, border_value=1)
    pieces = label_pieces(thick)
    if not pieces.any():
        return torch.from_numpy(tissue)
    sizes = np.bincount(pieces.ravel())[1:]
    large = np.isin(pieces, 1 + np.flatnonzero(sizes >= SMALLEST_SHARE * sizes.max()))
    body = ndimage.binary_dilation(large, plane, mask=tissue)
    enclosed = np.ones(body.shape, bool)
    for axis in (1, 2):
        before = np.logical_or.accumulate(body, axis)
        behind = np.flip(np.logical_or.accumulate(np.flip(body, axis), axis), axis)
        enclosed = enclosed & before & behind
    return torch.from_numpy(np.logical_or(enclosed, body))


def find_inside(pixels: Tensor, geometry: Any) -> Tensor:
    """Crops of pixel_values `(g, D, H, W)` -> which cells of the whole grid lie in the body."""
    spacing = [float(np.linalg.norm(column)) for column in geometry.grid_affine[:3, :3].T]
    factors = shrink_factors(tuple(pixels.shape[1:]), tuple(spacing))
    pooled = torch.nn.functional.avg_pool3d(pixels[:, None].float(), factors)[:, 0]
    return find_body(join_crops(pooled, geometry.crop_grid))


def find_body_patches(inside: Tensor, dense: Tensor, crop_grid: Sequence[int]) -> Tensor:
    """Cells of `find_inside` and patch features `(g, d, h, w, e)` -> which patches of the whole scan lie in the body,
    `(D, H, W)`. Patches of air that the model left out, whose features are 0, do not."""
    depth, height, width = (n * crops for n, crops in zip(dense.shape[1:4], crop_grid, strict=True))
    share = torch.nn.functional.adaptive_avg_pool3d(inside[None].float(), (depth, height, width))[0]
    return (share > BODY_SHARE * share.max()) & join_crops(dense.any(-1).to(share.device), crop_grid)


def split_crops(cells: Tensor, crop_grid: Sequence[int]) -> Tensor:
    """Cells of the scan `(D, H, W)` -> of its crops `(g, d, h, w)`: the way back of `join_crops`."""
    for axis, count in enumerate(crop_grid):
        cells = cells.unflatten(2 * axis, (count, -1))  # -> (gd, d, gh, h, gw, w)
    return cells.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)


def join_crops(cells: Tensor, crop_grid: Sequence[int], lead: int = 0) -> Tensor:
    """Cells of crops `(..., g, d, h, w)` -> cells of the scan `(..., D, H, W)`; `lead` axes stand before."""
    number = math.prod(crop_grid)
    cells = cells.narrow(lead, 0, number).unflatten(lead, tuple(crop_grid))  # (..., gd, gh, gw, d, h, w)
    order = [*range(lead), *(lead + a for a in (0, 3, 1, 4, 2, 5))]
    cells = cells.permute(order)
    shape = cells.shape
    return cells.reshape(*shape[:lead], *(shape[lead + 2 * a] * shape[lead + 2 * a + 1] for a in range(3)))
