"""Volume and features -> pictures. Nothing but voxels and orientation letters is drawn. Needs Pillow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
    check_pillow()
    centre = centre or tuple(size // 2 for size in volume.hu.shape)
    tiles = []
    for axis, index in enumerate(centre):
        picture = grey_plane(volume, axis, index, intensity_window)
        if colours is not None:
            overlay = np.stack([cut_plane(channel, axis, index) for channel in colours], -1)
            picture = picture * (1 - opacity) + overlay * opacity
        tiles.append(draw_tile(volume, picture, axis, height))
    return join(tiles, across=True)


def draw_segmentation(
    volume: Volume,
    labels: np.ndarray,
    structures: Mapping[int, str],
    centre: tuple[int, int, int],
    intensity_window: tuple[float, float] = INTENSITY_WINDOWS["mediastinum"],
    opacity: float = 0.5,
    height: int = 360,
) -> Image.Image:
    """The three planes through `centre` with a colour for each structure that they show, and its name below.

    Args:
        labels: `(D, H, W)` on the scan's `hu`, 0 is not coloured.

    Raises:
        ImportError: Pillow is not installed.
    """
    check_pillow()
    tiles, shown = [], set()
    palette = label_colours(max(structures) + 1)
    for axis, index in enumerate(centre):
        picture, plane = grey_plane(volume, axis, index, intensity_window), cut_plane(labels, axis, index)
        shown |= set(np.unique(plane).tolist()) - {0}
        share = np.where(plane > 0, opacity, 0.0)[..., None]
        tiles.append(draw_tile(volume, picture * (1 - share) + palette[plane] * share, axis, height))
    planes = join(tiles, across=True)
    font, row, column = ImageFont.load_default(size=14), 20, 190
    per_row = max(1, planes.width // column)
    legend = Image.new("RGB", (planes.width, row * -(-len(shown) // per_row) + 4))
    pen = ImageDraw.Draw(legend)
    for place, number in enumerate(sorted(shown)):
        x, y = place % per_row * column + 4, place // per_row * row + 4
        pen.rectangle((x, y, x + 12, y + 12), fill=tuple((palette[number] * 255).astype(int).tolist()))
        pen.text((x + 18, y + 6), structures.get(number, str(number)), fill=(255, 255, 255), font=font, anchor="lm")
    return join([planes, legend], across=False)


def label_colours(count: int) -> np.ndarray:
    """`(count, 3)` red, green and blue from 0 to 1, far from each other for neighbouring numbers; 0 is black."""
    hue = np.arange(count) * 0.618034 % 1.0  # the golden ratio spreads any number of hues
    channels = np.abs((hue[:, None] * 6 + np.array([0.0, 4.0, 2.0])) % 6 - 3) - 1
    colours = channels.clip(0, 1) * 0.75 + 0.25
    colours[0] = 0
    return colours


def grey_plane(volume: Volume, axis: int, index: int, intensity_window: tuple[float, float]) -> np.ndarray:
    """`(rows, columns, 3)` from 0 to 1."""
    low, high = intensity_window
    grey = ((cut_plane(volume.hu, axis, index).astype(np.float32) - low) / (high - low)).clip(0, 1)
    return np.repeat(grey[..., None], 3, -1)


def draw_tile(volume: Volume, picture: np.ndarray, axis: int, height: int) -> Image.Image:
    rows, columns = (s for a, s in enumerate(volume.spacing) if a != axis)
    width = round(height * picture.shape[1] * columns / (picture.shape[0] * rows))
    tile = Image.fromarray((picture * 255).astype(np.uint8)).resize((width, height), Image.Resampling.BILINEAR)
    write_letters(tile, LETTERS[PLANES[axis]])
    return tile


def check_pillow() -> None:
    if not HAS_PILLOW:
        raise ImportError("Pictures need Pillow, which is not installed: pip install Pillow", name="PIL")


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
