"""Volume and features -> pictures. Nothing but voxels and orientation letters is drawn. Needs Pillow."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .volume_ctfm import Volume

try:  # the Hub loader refuses all code of a model where a hard import of one file is missing
    from PIL import Image, ImageDraw, ImageFont
except ImportError:
    HAS_PILLOW = False
else:
    HAS_PILLOW = True

INTENSITY_WINDOWS = {"lung": (-1350.0, 150.0), "mediastinum": (-160.0, 240.0), "bone": (-500.0, 1300.0)}
PLANES = ("axial", "coronal", "sagittal")
LETTERS = {"axial": ("A", "P", "R", "L"), "coronal": ("S", "I", "R", "L"), "sagittal": ("S", "I", "A", "P")}  # top, ...


def principal_components(features: Tensor, body: Tensor) -> Tensor:
    """Colours of features: their first three principal components over the body, each from 0 to 1.

    Args:
        features: `(..., e)`.
        body: `(...)`, True where a feature counts; elsewhere the colour is black.

    Returns:
        `(..., 3)`. Each component spans its 2nd to 98th percentile; signs are such that most of the body is bright.
    """
    chosen = features[body].float()
    centred = chosen - chosen.mean(0)
    _, _, axes = torch.linalg.svd(centred.T @ centred / len(centred))
    components = centred @ axes[:3].T
    components = components * torch.where(components.median(0).values < 0, -1.0, 1.0)
    low, high = (torch.quantile(components[:: max(1, len(components) // 100_000)], q, dim=0) for q in (0.02, 0.98))
    colours = torch.zeros(*features.shape[:-1], 3)
    colours[body] = ((components - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    return colours


def draw_planes(
    volume: Volume,
    intensity_window: tuple[float, float] = INTENSITY_WINDOWS["mediastinum"],
    colours: Sequence[np.ndarray] | None = None,
    opacity: float = 0.55,
    centre: tuple[int, int, int] | None = None,
    height: int = 360,
) -> Image.Image:
    """Axial, coronal and sagittal plane side by side, as a radiologist holds them: head up, patient's right on the left.

    Args:
        volume: the scan.
        colours: red, green and blue from 0 to 1, each `(D, H, W)` on the scan, laid over it with `opacity`.
        centre: voxel through which the planes go; the middle of the scan by default.
        height: of the picture, in pixels.

    Raises:
        ImportError: Pillow is not installed.
    """
    if not HAS_PILLOW:
        raise ImportError("Pictures need Pillow, which is not installed: pip install Pillow", name="PIL")
    centre = centre or tuple(size // 2 for size in volume.hu.shape)
    low, high = intensity_window
    tiles = []
    for axis, plane in enumerate(PLANES):
        slice_hu = cut_plane(volume.hu, axis, centre[axis]).astype(np.float32)
        grey = ((slice_hu - low) / (high - low)).clip(0, 1)
        picture = np.repeat(grey[..., None], 3, -1)
        if colours is not None:
            overlay = np.stack([cut_plane(channel, axis, centre[axis]) for channel in colours], -1)
            picture = picture * (1 - opacity) + overlay * opacity
        rows, columns = (s for a, s in enumerate(volume.spacing) if a != axis)
        width = round(height * picture.shape[1] * columns / (picture.shape[0] * rows))
        tile = Image.fromarray((picture * 255).astype(np.uint8)).resize((width, height), Image.Resampling.BILINEAR)
        write_letters(tile, LETTERS[plane])
        tiles.append(tile)
    return join(tiles, across=True)


def cut_plane(array: np.ndarray, axis: int, index: int) -> np.ndarray:
    """One plane of `(D, H, W)`; where depth runs along the rows, the head is on top."""
    plane = array.take(index, axis)
    return plane if axis == 0 else plane[::-1]


def write_letters(tile: Image.Image, letters: tuple[str, str, str, str]) -> None:
    pen, font = ImageDraw.Draw(tile), ImageFont.load_default(size=14)
    top, bottom, left, right = letters
    width, height = tile.size
    for text, place, anchor in (
        (top, (width / 2, 4), "mt"),
        (bottom, (width / 2, height - 4), "mb"),
        (left, (4, height / 2), "lm"),
        (right, (width - 4, height / 2), "rm"),
    ):
        pen.text(place, text, fill=(255, 214, 90), font=font, anchor=anchor, stroke_width=1, stroke_fill=(0, 0, 0))


def join(tiles: Sequence[Image.Image], across: bool, gap: int = 6) -> Image.Image:
    """Pictures beside or below each other on black."""
    widths, heights = [tile.width for tile in tiles], [tile.height for tile in tiles]
    gaps = gap * (len(tiles) - 1)
    size = (sum(widths) + gaps, max(heights)) if across else (max(widths), sum(heights) + gaps)
    sheet = Image.new("RGB", size)
    place = 0
    for tile in tiles:
        sheet.paste(tile, (place, 0) if across else (0, place))
        place += gap + (tile.width if across else tile.height)
    return sheet
