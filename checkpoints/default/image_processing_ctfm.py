"""Volume -> pixel_values: resample, window, cut into a grid of crops; and the way back to the scan's own voxels.

Nothing at the border is dropped: the grid covers the whole scan and what sticks out is padded with air (0). Within that
freedom the grid is laid so that the body falls into as few crops as possible, since crops of nothing but air cost nothing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.utils import TensorType

from .volume_ctfm import Source, Volume, read_volume

SPACING_PRESETS: dict[str, tuple[float, float, float] | None] = {
    "scan": (1.5, 0.75, 0.75),  # SPECTRE's report alignment; whole-scan features
    "fine": (1.0, 0.5, 0.5),  # SPECTRE's self-supervision; crop features
    "coarse": (3.0, 1.5, 1.5),
    "native": None,  # the scan's own
}


@dataclass(frozen=True, kw_only=True)
class CropGeometry:
    """Where a scan's crops lie on it. Along every axis, grid voxel `i` has its centre on scan voxel `offset + step * i`."""

    shape: tuple[int, ...]  # of the scan's hu
    affine: np.ndarray  # (4, 4), scan voxel (d, h, w, 1) -> RAS+ mm
    crop_size: tuple[int, ...]
    crop_grid: tuple[int, ...]
    offset: tuple[float, ...]
    step: tuple[float, ...]

    @property
    def grid_affine(self) -> np.ndarray:
        """`(4, 4)`, grid voxel `(d, h, w, 1)` -> RAS+ mm."""
        to_scan = np.diag([*self.step, 1.0])
        to_scan[:3, 3] = self.offset
        return self.affine @ to_scan


class CTFMBatchFeature(BatchFeature):
    """`pixel_values` `(b, g, 1, D, H, W)` in 0 to 1, `crop_grid` `(b, 3)`, `crop_mask` `(b, g)`; and, beside the tensors that
    the model takes, `geometry` of every scan and the `volumes` that were read."""

    geometry: tuple[CropGeometry, ...] = ()
    volumes: tuple[Volume, ...] = ()

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"geometry": self.geometry, "volumes": self.volumes}  # out of a worker process

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.geometry, self.volumes = state["geometry"], state["volumes"]


class CTFMImageProcessor(BaseImageProcessor):
    """Prepares CT scans for CTFM.

    Args:
        crop_size: voxels of a crop, `(depth, height, width)`.
        spacing: mm between voxels, `(depth, height, width)`, or the name of a preset in `SPACING_PRESETS`.
        intensity_window: HU that become 0 and 1; beyond is clipped.
        air_hu: a crop without a voxel above this becomes air altogether (0), so that scanner noise beside the patient
            does not have to be encoded. At or below `intensity_window[0]` it changes nothing.
    """

    model_input_names = ["pixel_values", "crop_grid", "crop_mask"]

    def __init__(
        self,
        crop_size: Sequence[int] = (64, 128, 128),
        spacing: Sequence[float] | str | None = "scan",
        intensity_window: Sequence[float] = (-1000.0, 1000.0),
        air_hu: float = -900.0,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.crop_size = list(crop_size)
        self.spacing = resolve_spacing(spacing) or "native"  # transformers leaves None out of what it saves
        self.intensity_window = list(intensity_window)
        self.air_hu = air_hu
        if len(self.crop_size) != 3 or min(self.crop_size) < 1:
            raise ValueError(f"crop_size {self.crop_size} must be three positive numbers (depth, height, width).")
        if not self.intensity_window[0] < self.intensity_window[1]:
            raise ValueError(f"intensity_window {self.intensity_window} must be (low, high) in HU with low < high.")

    def fetch_images(self, images: Any) -> Any:
        return images  # paths are scans on disk, not pictures on the web

    def preprocess(
        self,
        images: Source | list[Source],
        spacing: Sequence[float] | str | None = None,
        series_uid: str | None = None,
        segmentations: Sequence[np.ndarray] | None = None,
        return_tensors: str | TensorType | None = "pt",
    ) -> CTFMBatchFeature:
        """Reads, resamples, windows and cuts scans.

        Args:
            images: a scan or a list of them: a path to a DICOM folder, zip or file, NIfTI, MHA or NRRD; a `Volume`; or
                `(array, affine)` as `read_volume` takes it.
            spacing: instead of the processor's own.
            series_uid: which series to read where the source holds several.
            segmentations: a label map for every scan, shaped like its `hu`; gives `labels` `(b, g, D, H, W)`, nearest
                neighbour, -100 outside the scan.
            return_tensors: `"pt"` or `"np"`.

        Raises:
            VolumeError: a scan that cannot be read safely.
        """
        scans = list(images) if isinstance(images, list) else [images]
        if not scans:
            raise ValueError("No scan was given.")
        volumes = tuple(scan if isinstance(scan, Volume) else read_volume(scan, series_uid) for scan in scans)
        chosen = resolve_spacing(self.spacing if spacing is None else spacing)
        geometry = tuple(self.lay_grid(volume, chosen) for volume in volumes)
        longest = max(math.prod(g.crop_grid) for g in geometry)
        data: dict[str, Tensor] = {
            "pixel_values": torch.zeros(len(scans), longest, 1, *self.crop_size),
            "crop_grid": torch.tensor([g.crop_grid for g in geometry]),
            "crop_mask": torch.zeros(len(scans), longest, dtype=torch.bool),
        }
        for index, (volume, placed) in enumerate(zip(volumes, geometry, strict=True)):
            self.cut(volume, placed, data["pixel_values"][index, :, 0])
            data["crop_mask"][index, : math.prod(placed.crop_grid)] = True
        if segmentations is not None:
            data["labels"] = torch.full((len(scans), longest, *self.crop_size), -100)
            for index, (segmentation, placed) in enumerate(zip(segmentations, geometry, strict=True)):
                cut_labels(segmentation, placed, data["labels"][index])
        batch = CTFMBatchFeature(data={k: v.numpy() if return_tensors == "np" else v for k, v in data.items()})
        batch.geometry, batch.volumes = geometry, volumes
        return batch

    def lay_grid(self, volume: Volume, spacing: Sequence[float] | None) -> CropGeometry:
        """Chooses grid size and place: all of the scan is covered, and its body by as few crops as can be."""
        hu = torch.from_numpy(volume.hu)
        step = (
            (1.0, 1.0, 1.0) if spacing is None else tuple(s / v for s, v in zip(spacing, volume.spacing, strict=True))
        )
        plane = hu.amax(0)  # (D, H, W) -> (H, W)
        brightest = (hu.amax((1, 2)), plane.amax(1), plane.amax(0))
        grid, offset = [], []
        for axis, crop in enumerate(self.crop_size):
            size = volume.hu.shape[axis]
            count = max(1, math.ceil(size / step[axis] - 1e-3))  # grid voxels that the scan spans, centred on it
            first = (size - 1) / 2 - (count - 1) / 2 * step[axis]
            grid.append(math.ceil(count / crop))
            body = ((brightest[axis] > self.air_hu).nonzero()[:, 0] - first) / step[axis]
            before = lay_axis(body, crop, grid[-1] * crop - count)
            offset.append(first - before * step[axis])
        return CropGeometry(
            shape=volume.hu.shape,
            affine=volume.affine,
            crop_size=tuple(self.crop_size),
            crop_grid=tuple(grid),
            offset=tuple(offset),
            step=step,
        )

    def cut(self, volume: Volume, geometry: CropGeometry, out: Tensor) -> None:
        """Fills `out` `(g, D, H, W)` with a scan's crops, one by one, so that nothing larger is ever resampled."""
        low_hu, high_hu = self.intensity_window
        hu = torch.from_numpy(volume.hu)
        samples = [AxisSamples.along(geometry, axis) for axis in range(3)]
        for number, index in enumerate(np.ndindex(*geometry.crop_grid)):
            parts = [axis.crop(i) for axis, i in zip(samples, index, strict=True)]
            box = hu[tuple(slice(part.low[0], part.high[-1] + 1) for part in parts)]
            if box.amax() <= self.air_hu:
                continue  # air, and `out` is zero there
            box = box.clamp(low_hu, high_hu).float().sub_(low_hu).div_(high_hu - low_hu)
            along_depth, along_height, along_width = (part.matrix() for part in parts)
            box = (along_depth @ box.flatten(1)).unflatten(1, box.shape[1:])  # small dense products beat gathering
            box = along_height @ box @ along_width.T
            out[number][tuple(part.inside for part in parts)] = box

    def to_patient_space(self, maps: Tensor | np.ndarray, inputs: CTFMBatchFeature) -> list[np.ndarray]:
        """Brings maps over crops, patches or voxels back to each scan's own voxels.

        Args:
            maps: `(b, g)` one value a crop, `(b, g, d, h, w)` one a patch, or one a voxel with `d h w = D H W`. Numbers
                with a fraction are interpolated linearly between the cells' centres; whole numbers and truth values are
                labels and keep the nearest.
            inputs: what this processor made of the scans.

        Returns:
            One array a scan, shaped like its `hu` and lying on its `affine`; `Volume.to_source_order` turns it to the
            order on disk.
        """
        if len(maps) != len(inputs.geometry):
            raise ValueError(f"maps of {len(maps)} scans do not belong to inputs of {len(inputs.geometry)}.")
        num_crops = max(math.prod(geometry.crop_grid) for geometry in inputs.geometry)
        if maps.ndim not in (2, 5) or maps.shape[1] != num_crops:
            raise ValueError(
                f"maps must have shape (b, g) or (b, g, d, h, w) with g = {num_crops}, not {tuple(maps.shape)}."
            )
        maps = torch.as_tensor(maps).detach().cpu()
        maps = maps.float() if maps.dtype == torch.bfloat16 else maps  # numpy has no such type
        maps = maps[..., None, None, None] if maps.ndim == 2 else maps
        return [lay_on_scan(part, geometry) for part, geometry in zip(maps, inputs.geometry, strict=True)]

    def post_process_semantic_segmentation(self, outputs: Any, inputs: CTFMBatchFeature) -> list[np.ndarray]:
        """Segmentation logits `(b, g, labels, D, H, W)` -> one label map a scan, shaped like its `hu`."""
        return self.to_patient_space(outputs.logits.argmax(2), inputs)


def resolve_spacing(spacing: Sequence[float] | str | None) -> list[float] | None:
    if isinstance(spacing, str):
        if spacing not in SPACING_PRESETS:
            raise ValueError(f'spacing "{spacing}" is no preset; there are {", ".join(SPACING_PRESETS)}.')
        spacing = SPACING_PRESETS[spacing]
    if spacing is None:
        return None
    if len(spacing) != 3 or not all(0 < size < math.inf for size in spacing):
        raise ValueError(f"spacing {spacing} must be three positive numbers in mm (depth, height, width).")
    return [float(size) for size in spacing]


def lay_axis(body: Tensor, crop: int, slack: int) -> int:
    """Padding in front of a scan, of `slack` in all, with which its `body` (positions) falls into the fewest crops; of
    several, the most central."""
    if not len(body):
        return slack // 2
    before = torch.arange(slack + 1)
    spanned = (before + body[-1]) // crop - (before + body[0]) // crop
    return int(torch.argmin(spanned * 2 * (slack + 1) + (2 * before - slack).abs()))


@dataclass(frozen=True, kw_only=True)
class AxisSamples:
    """Linear interpolation along one axis: grid voxels `inside` lie between scan voxels `low` and `high`."""

    low: Tensor
    high: Tensor
    weight: Tensor  # of `high`
    inside: slice  # where these samples lie in their crop or grid
    crop_size: int

    @classmethod
    def along(cls, geometry: CropGeometry, axis: int) -> "AxisSamples":
        size, crop_size = geometry.shape[axis], geometry.crop_size[axis]
        grid = torch.arange(geometry.crop_grid[axis] * crop_size, dtype=torch.float64)
        positions = geometry.offset[axis] + geometry.step[axis] * grid
        covered = ((positions > -0.5 - 1e-6) & (positions < size - 0.5 + 1e-6)).nonzero()[:, 0]
        positions = positions[covered].clamp(0, size - 1)
        low = positions.floor().long()
        return cls(
            low=low,
            high=(low + 1).clamp(max=size - 1),
            weight=(positions - low).float(),
            inside=slice(int(covered[0]), int(covered[-1]) + 1),
            crop_size=crop_size,
        )

    def crop(self, index: int) -> "AxisSamples":
        """The samples that fall into crop `index`; there is always one, since the grid is no larger than it has to be."""
        start = max(index * self.crop_size, self.inside.start)
        stop = min((index + 1) * self.crop_size, self.inside.stop)
        chosen = slice(start - self.inside.start, stop - self.inside.start)
        inside = slice(start - index * self.crop_size, stop - index * self.crop_size)
        return AxisSamples(
            low=self.low[chosen],
            high=self.high[chosen],
            weight=self.weight[chosen],
            inside=inside,
            crop_size=self.crop_size,
        )

    def matrix(self) -> Tensor:
        """`(samples, scan voxels)` from the first `low` to the last `high`: the interpolation as a product."""
        rows = torch.arange(len(self.low))
        matrix = torch.zeros(len(self.low), int(self.high[-1] - self.low[0]) + 1)
        matrix[rows, self.low - self.low[0]] += 1 - self.weight
        matrix[rows, self.high - self.low[0]] += self.weight
        return matrix


def cut_labels(segmentation: np.ndarray, geometry: CropGeometry, out: Tensor) -> None:
    """Fills `out` `(g, D, H, W)` with the nearest labels of `(D, H, W)`."""
    if segmentation.shape != geometry.shape:
        raise ValueError(f"A segmentation of shape {segmentation.shape} does not lie on a scan of {geometry.shape}.")
    labels = torch.from_numpy(np.ascontiguousarray(segmentation)).long()
    samples = [AxisSamples.along(geometry, axis) for axis in range(3)]
    for number, index in enumerate(np.ndindex(*geometry.crop_grid)):
        parts = [axis.crop(i) for axis, i in zip(samples, index, strict=True)]
        nearest = [torch.where(part.weight < 0.5, part.low, part.high) for part in parts]
        out[number][tuple(part.inside for part in parts)] = labels[torch.meshgrid(*nearest, indexing="ij")]


def lay_on_scan(cells: Tensor, geometry: CropGeometry) -> np.ndarray:
    """One scan's `(g, d, h, w)`, cells of its crops -> `(D, H, W)` on the scan."""
    grid, size = geometry.crop_grid, cells.shape[1:]
    cells = cells[: math.prod(grid)].unflatten(
        0, grid
    )  # -> (gd, gh, gw, d, h, w); what follows is padding of the batch
    cells = cells.permute(0, 3, 1, 4, 2, 5).reshape([g * s for g, s in zip(grid, size, strict=True)])
    for axis in range(3):
        voxels = torch.arange(geometry.shape[axis], dtype=torch.float64)
        position = (voxels - geometry.offset[axis]) / geometry.step[axis]  # scan voxel -> grid voxel
        position = (position + 0.5) * size[axis] / geometry.crop_size[axis] - 0.5  # -> cell
        position = position.clamp(0, cells.shape[axis] - 1)
        if cells.is_floating_point():
            low = position.floor().long()
            weight = (position - low).to(cells.dtype).view([-1 if a == axis else 1 for a in range(3)])
            above = cells.index_select(axis, (low + 1).clamp(max=cells.shape[axis] - 1))
            cells = cells.index_select(axis, low).lerp_(above, weight)
        else:
            cells = cells.index_select(axis, position.round().long())
    return cells.numpy()


__all__ = ["SPACING_PRESETS", "CTFMBatchFeature", "CTFMImageProcessor", "CropGeometry"]
