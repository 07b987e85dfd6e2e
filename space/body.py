"""HU of a scan -> which voxels lie in the body: without the table, with lungs and bowel. No model is asked."""

import math

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

TISSUE = 0.35  # of pixel_values: -300 HU where the window is -1000 ... 1000; between lung and fat
CELL_MM = 3.5  # what the search works on: the plates of a table are thinner than two of these, limbs are not
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
