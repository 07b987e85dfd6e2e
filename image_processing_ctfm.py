"""Volume -> pixel_values: resample, window, cut into a grid of crops; and the way back to the scan's own voxels.

Nothing at the border is dropped: the grid covers the whole scan and what sticks out is padded with air (0). Within that
freedom the grid is laid so that the body falls into as few crops as possible, since crops of nothing but air cost nothing.
"""

from .requirements_ctfm import TRANSFORMERS  # noqa: F401 - first, see there

# isort: split
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.utils import TensorType

from .volume_ctfm import Source, Volume, read_segmentation, read_volume

Segmentation = str | Path | tuple[np.ndarray, np.ndarray]  # as `read_segmentation` takes it

SPACING_PRESETS: dict[str, tuple[float, float, float] | None] = {
    "scan": (1.5, 0.75, 0.75),  # SPECTRE's report alignment; whole-scan features
    "fine": (1.0, 0.5, 0.5),  # SPECTRE's self-supervision; crop features
    "coarse": (3.0, 1.5, 1.5),
    "native": None,  # the scan's own
}


RESAMPLING = ("area", "linear")
OF_TRANSFORMERS = (
    "auto_map",
    "feature_extractor_type",
    "image_processor_type",
    "processor_class",
)  # in every saved file


class ImageSettings(TypedDict, total=False):
    """What `CTFMImageProcessor.from_pretrained` takes instead of what was saved. The base class hands on to `__init__`, which
    checks it, what is named here, and would set it unchecked otherwise."""

    crop_size: Sequence[int]
    spacing: Sequence[float] | str | None
    intensity_window: Sequence[float]
    air_hu: float
    resampling: str


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
        resampling: how voxels become the crops' samples. `"area"` averages them, along every axis on which the samples are
            further apart than the voxels, as a scan with voxels of that size does: less noise, no aliasing. `"linear"`
            interpolates between the two nearest voxels at any spacing, which drops those between; SPECTRE was trained
            so. Where samples are as close as the voxels or closer, both are the same linear interpolation. Weights
            expect the one that they were trained with.
    """

    _auto_class = "AutoImageProcessor"
    model_input_names = ["pixel_values", "crop_grid", "crop_mask"]
    valid_kwargs = ImageSettings  # type: ignore[assignment]

    def __init__(
        self,
        crop_size: Sequence[int] = (64, 128, 128),
        spacing: Sequence[float] | str | None = "scan",
        intensity_window: Sequence[float] = (-1000.0, 1000.0),
        air_hu: float = -900.0,
        resampling: str = "area",
        **kwargs: Any,
    ):
        # The base class would keep a misspelt setting as an attribute that nothing reads.
        if unknown := sorted(set(kwargs) - set(OF_TRANSFORMERS)):
            known = ", ".join(ImageSettings.__annotations__)
            raise TypeError(f"CTFMImageProcessor has no setting {', '.join(unknown)}; its settings are {known}.")
        super().__init__(**kwargs)
        self.crop_size = list(crop_size)
        self.spacing = resolve_spacing(spacing) or "native"  # transformers leaves None out of what it saves
        self.intensity_window = list(intensity_window)
        self.air_hu = air_hu
        self.resampling = resampling
        if resampling not in RESAMPLING:
            raise ValueError(f'resampling "{resampling}" is not known; choose one of {", ".join(RESAMPLING)}.')
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
        segmentations: Segmentation | list[Segmentation] | None = None,
        return_tensors: str | TensorType | None = "pt",
    ) -> CTFMBatchFeature:
        """Reads, resamples, windows and cuts scans.

        Args:
            images: a scan or a list of them: a path to a DICOM folder, zip or file, NIfTI, MHA or NRRD; a `Volume`; or
                `(array, affine)` as `read_volume` takes it.
            spacing: instead of the processor's own.
            series_uid: which series to read where the source holds several.
            segmentations: a label map for every scan, as `read_segmentation` takes it: a path, or `(array, affine)`. Gives
                `labels` `(b, g, D, H, W)`, nearest neighbour, -100 outside the scan.
            return_tensors: `"pt"` or `"np"`.

        Raises:
            VolumeError: a scan or a label map that cannot be read safely.
        """
        scans = list(images) if isinstance(images, list) else [images]
        if not scans:
            raise ValueError("No scan was given.")
        if return_tensors not in (None, "pt", "np"):
            raise ValueError(f'return_tensors {return_tensors!r} must be "pt" or "np".')
        maps = segmentations if isinstance(segmentations, list) or segmentations is None else [segmentations]
        if maps is not None and len(maps) != len(scans):
            raise ValueError(f"{len(maps)} segmentations do not belong to {len(scans)} scans; give one for each scan.")
        volumes = tuple(scan if isinstance(scan, Volume) else read_volume(scan, series_uid) for scan in scans)
        chosen = resolve_spacing(self.spacing if spacing is None else spacing)
        geometry = tuple(self.place_grid(volume, chosen) for volume in volumes)
        longest = max(math.prod(g.crop_grid) for g in geometry)
        data: dict[str, Tensor] = {
            "pixel_values": torch.zeros(len(scans), longest, 1, *self.crop_size),
            "crop_grid": torch.tensor([g.crop_grid for g in geometry]),
            "crop_mask": torch.zeros(len(scans), longest, dtype=torch.bool),
        }
        for index, (volume, placed) in enumerate(zip(volumes, geometry, strict=True)):
            self.cut(torch.from_numpy(volume.hu), placed, data["pixel_values"][index, :, 0])
            data["crop_mask"][index, : math.prod(placed.crop_grid)] = True
        if maps is not None:
            data["labels"] = torch.full((len(scans), longest, *self.crop_size), -100)
            for index, (one, volume, placed) in enumerate(zip(maps, volumes, geometry, strict=True)):
                cut_labels(read_segmentation(one, volume), placed, data["labels"][index])
        batch = CTFMBatchFeature(data={k: v.numpy() if return_tensors == "np" else v for k, v in data.items()})
        batch.geometry, batch.volumes = geometry, volumes
        return batch

    def place_grid(self, volume: Volume, spacing: Sequence[float] | None) -> CropGeometry:
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
            width = area_width(step[axis], self.resampling)
            if len(body) and width > 0:  # samples beside the body average some of it, so their crops are not air either
                reach = (width / 2 + 1) / step[axis]
                body = torch.stack((body[0] - reach, body[-1] + reach))
            before = place_axis(body, crop, grid[-1] * crop - count)
            offset.append(first - before * step[axis])
        return CropGeometry(
            shape=volume.hu.shape,
            affine=volume.affine,
            crop_size=tuple(self.crop_size),
            crop_grid=tuple(grid),
            offset=tuple(offset),
            step=step,
        )

    def cut(self, hu: Tensor, geometry: CropGeometry, out: Tensor) -> None:
        """Fills `out` `(g, D, H, W)` with the crops of a scan `(D, H, W)`, one by one, so that nothing larger is ever
        resampled. Both are on the same device; on an accelerator nothing waits for it."""
        low_hu, high_hu = self.intensity_window
        axes = [sample_axis(geometry, axis, self.resampling) for axis in range(3)]
        for number, index in enumerate(np.ndindex(*geometry.crop_grid)):
            parts = [axis[i] for axis, i in zip(axes, index, strict=True)]
            box = hu[tuple(part.box for part in parts)]
            holds_body = box.amax() > self.air_hu
            if box.device.type == "cpu" and not holds_body:
                continue  # air, and `out` is zero there
            box = box.float().clamp(low_hu, high_hu).sub_(low_hu).div_(high_hu - low_hu)
            box = resample(box, [part.matrix.to(box.device) for part in parts])
            out[number][tuple(part.inside for part in parts)] = torch.where(holds_body, box, 0.0)

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
        return [resample_to_scan(part, geometry) for part, geometry in zip(maps, inputs.geometry, strict=True)]

    def post_process_semantic_segmentation(self, outputs: Any, inputs: CTFMBatchFeature) -> list[np.ndarray]:
        """Segmentation logits `(b, g, labels, D, H, W)` -> one label map a scan, shaped like its `hu`."""
        return self.to_patient_space(outputs.logits.argmax(2), inputs)


def collate_scans(scans: Sequence[Mapping[str, Any]]) -> CTFMBatchFeature:
    """Scans of different crop counts -> one batch: the `collate_fn` of a `DataLoader`, the `data_collator` of a `Trainer`.

    Args:
        scans: what `CTFMImageProcessor` or `CTFMProcessor` makes of one scan, or a row of it without the leading axis, as
            `datasets` with `with_transform` gives it. `labels` beside it are one value a finding, or one a voxel. Texts
            must be of one length, which the processor's `padding="max_length"` makes.

    Returns:
        Every entry with a leading axis of all scans; `pixel_values` are filled up with air, labels of voxels with -100,
        `crop_mask` with False.

    Raises:
        ValueError: a scan lacks an entry that another has, or entries differ in a size that nothing fills up.

    Example:
        >>> processor = CTFMImageProcessor(crop_size=(8, 8, 8), spacing="native")
        >>> noise = np.random.default_rng(0).normal(0, 300, (2, 8, 8, 16))
        >>> batch = collate_scans([processor((noise[0], np.eye(4))), processor((noise[1, :, :, :8], np.eye(4)))])
        >>> batch.crop_mask.tolist()
        [[True, True], [True, False]]
    """
    names = set().union(*scans)
    for scan in scans:
        if missing := sorted((names | {"pixel_values", "crop_grid", "crop_mask"}) - set(scan)):
            raise ValueError(f"A scan has no {', '.join(missing)}; it has {', '.join(sorted(scan))}.")
    parts: dict[str, list[Tensor]] = {name: [] for name in scans[0]}
    geometry: tuple[CropGeometry, ...] = ()
    volumes: tuple[Volume, ...] = ()
    for scan in scans:
        is_batch = torch.as_tensor(scan["crop_grid"]).ndim == 2
        for name, entry in scan.items():
            tensor = torch.as_tensor(entry)
            has_lead = tensor.ndim in (2, 5) if name == "labels" else is_batch
            parts[name].append(tensor if has_lead else tensor[None])
        if isinstance(scan, CTFMBatchFeature):
            geometry, volumes = geometry + scan.geometry, volumes + scan.volumes
    longest = max(pixels.shape[1] for pixels in parts["pixel_values"])
    batch = CTFMBatchFeature()
    for name, tensors in parts.items():
        if name in ("pixel_values", "crop_mask") or (name == "labels" and tensors[0].ndim == 5):
            fill = -100 if name == "labels" else 0
            tensors = [
                torch.cat((t, t.new_full((len(t), longest - t.shape[1], *t.shape[2:]), fill)), 1) for t in tensors
            ]
        if len({tensor.shape[1:] for tensor in tensors}) > 1:
            shapes = ", ".join(str(tuple(tensor.shape[1:])) for tensor in tensors)
            cure = ' Tokenize texts with padding="max_length".' if name in ("input_ids", "attention_mask") else ""
            raise ValueError(f"{name} of the scans have different shapes: {shapes}.{cure}")
        batch[name] = torch.cat(tensors)
    batch.geometry, batch.volumes = geometry, volumes
    return batch


def resolve_spacing(spacing: Sequence[float] | str | None) -> list[float] | None:
    if isinstance(spacing, str):
        if spacing not in SPACING_PRESETS:
            raise ValueError(f'spacing "{spacing}" is no preset; there are {", ".join(SPACING_PRESETS)}.')
        spacing = SPACING_PRESETS[spacing]
    if spacing is None:
        return None
    if (
        isinstance(spacing, int | float)
        or len(spacing) != 3
        or not all(isinstance(size, int | float) and 0 < size < math.inf for size in spacing)
    ):
        raise ValueError(
            f"spacing {spacing} must be three positive numbers in mm (depth, height, width), such as (1.5, 0.75, 0.75), "
            f"or the name of a preset: {', '.join(SPACING_PRESETS)}."
        )
    return [float(size) for size in spacing]


def place_axis(body: Tensor, crop: int, slack: int) -> int:
    """Padding in front of a scan, of `slack` in all, with which its `body` (positions) falls into the fewest crops; of
    several, the most central."""
    if not len(body):
        return slack // 2
    before = torch.arange(slack + 1)
    spanned = (before + body[-1]) // crop - (before + body[0]) // crop
    return int(torch.argmin(spanned * 2 * (slack + 1) + (2 * before - slack).abs()))


def area_width(step: Any, resampling: str) -> Any:
    """Width in voxels of the box over which samples `step` voxels apart average the linear interpolation between voxels.

    A voxel is itself a mean over its own width, 1. Means over 1 and over this width on top of it have together the
    variance of a mean over `step`, so a sample is as sharp as a voxel of that size; at `step` 1 nothing is averaged.
    """
    return max(step**2 - 1, 0.0) ** 0.5 if resampling == "area" else 0.0


def weigh_voxels(positions: Tensor, width: Tensor, size: Tensor) -> Tensor:
    """Samples along an axis as weighted means of its voxels.

    The weights of a sample sum to 1 and their centre is its position, so constants stay, and so do linear ramps where
    the samples do not reach beyond the ends, at which the last voxel repeats.

    Args:
        positions: `(..., n)` float64, in voxels, of samples that lie from 0 to `size - 1`.
        width: `(...)` float64, of the box that is averaged, see `area_width`; 0 for linear interpolation.
        size: `(...)` int64, voxels along the axis.

    Returns:
        `(..., n, max(size))` float32.
    """
    width = width[..., None, None]
    voxels = (positions[..., None] - width / 2).floor() + torch.arange(math.ceil(float(width.max())) + 2)
    distance = positions[..., None] - voxels  # (..., n, k)

    def integrate(to: Tensor) -> Tensor:
        """Of a voxel's share in a linear interpolation, 1 at its centre and 0 from its neighbours on."""
        to = to.clamp(-1, 1)
        return 0.5 + to - to * to.abs() / 2

    mean = (integrate(distance + width / 2) - integrate(distance - width / 2)) / width
    weights = torch.where(width > 0, mean, (1 - distance.abs()).clamp(min=0)).float()
    voxels = torch.minimum(voxels.long().clamp(min=0), size[..., None, None] - 1)
    return torch.zeros(*positions.shape, int(size.max())).scatter_add_(-1, voxels, weights)


@dataclass(frozen=True, kw_only=True)
class AxisSamples:
    """The samples of one crop along one axis that lie on the scan."""

    inside: slice  # of the crop
    box: slice  # of the scan: the voxels they are made of
    matrix: Tensor  # (samples, voxels of the box)
    nearest: Tensor  # (samples,) scan voxels


def sample_axis(geometry: CropGeometry, axis: int, resampling: str) -> list[AxisSamples]:
    """The samples of every crop along one axis; each has one at least, since the grid is no larger than it has to be."""
    size, crop, step = geometry.shape[axis], geometry.crop_size[axis], geometry.step[axis]
    positions = geometry.offset[axis] + step * torch.arange(geometry.crop_grid[axis] * crop, dtype=torch.float64)
    covered = ((positions > -0.5 - 1e-6) & (positions < size - 0.5 + 1e-6)).nonzero()[:, 0]
    start, stop = int(covered[0]), int(covered[-1]) + 1
    width = area_width(step, resampling)
    positions = positions[start:stop].clamp(0, size - 1)
    matrix = weigh_voxels(positions, torch.tensor(width, dtype=torch.float64), torch.tensor(size))
    nearest = (positions + 0.5).floor().long().clamp(max=size - 1)
    crops = []
    for first in range(0, geometry.crop_grid[axis] * crop, crop):
        low, high = max(first, start), min(first + crop, stop)
        rows = slice(low - start, high - start)
        ends = positions[rows][[0, -1]]
        box = slice(
            max(math.floor(float(ends[0]) - width / 2), 0), min(math.floor(float(ends[1]) + width / 2) + 2, size)
        )
        crops.append(
            AxisSamples(
                inside=slice(low - first, high - first), box=box, matrix=matrix[rows, box], nearest=nearest[rows]
            )
        )
    return crops


def resample(box: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """`(..., D, H, W)` and for each axis `(..., samples, voxels)` -> `(..., d, h, w)`: small dense products beat gathering."""
    along_depth, along_height, along_width = matrices
    with torch.autocast(box.device.type, enabled=False):  # bfloat16 would round HU to 8 and more
        box = (along_depth @ box.flatten(-2)).unflatten(-1, box.shape[-2:])
        return along_height.unsqueeze(-3) @ box @ along_width.unsqueeze(-3).mT


def cut_labels(segmentation: np.ndarray, geometry: CropGeometry, out: Tensor) -> None:
    """Fills `out` `(g, D, H, W)` with the nearest labels of `(D, H, W)`."""
    if segmentation.shape != geometry.shape:
        raise ValueError(f"A segmentation of shape {segmentation.shape} does not lie on a scan of {geometry.shape}.")
    labels = torch.from_numpy(np.ascontiguousarray(segmentation)).long()
    axes = [sample_axis(geometry, axis, "linear") for axis in range(3)]
    for number, index in enumerate(np.ndindex(*geometry.crop_grid)):
        parts = [axis[i] for axis, i in zip(axes, index, strict=True)]
        nearest = torch.meshgrid(*(part.nearest for part in parts), indexing="ij")
        out[number][tuple(part.inside for part in parts)] = labels[nearest]


def resample_to_scan(cells: Tensor, geometry: CropGeometry) -> np.ndarray:
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


__all__ = ["RESAMPLING", "SPACING_PRESETS", "CTFMBatchFeature", "CTFMImageProcessor", "CropGeometry", "collate_scans"]
