"""Batch of crops or scans -> views and model input, on the training device: the loader only decompresses.

A view is placed in millimetres: a point of the crop, a spacing, an extent. Every choice comes from a `torch.Generator` that
is seeded by the sample, so a sample has the same views in any batch, on any rank. Nothing here is mirrored from left to right
unless it is asked for: scans are in one orientation, findings have sides, and reports name them. `cut_scans`, which feeds
report alignment, cannot mirror at all.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..image_processing_ctfm import CTFMImageProcessor, area_width, cut_labels, resample, weigh_voxels
from ..volume_ctfm import AIR_HU, Volume
from .data import CropBatch, ScanSample

Range = tuple[float, float]
Shape = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class ViewShape:
    """How many views of which size.

    Args:
        count: views of a crop; size: voxels, `(depth, height, width)`.
        spacing: mm, as the model sees it, before zoom.
        zoom: factor of the spacing, drawn log-uniformly: more shows more of the patient, coarser.
    """

    count: int
    size: Shape
    spacing: tuple[float, float, float]
    zoom: Range


@dataclass(frozen=True, kw_only=True)
class ViewConfig:
    """What becomes of a crop. Probabilities are per view.

    Args:
        global_views, local_views: 2 of 64 x 128 x 128 and 8 of 24 x 48 x 48, after SPECTRE's 2 and 8 (DINOv2's recipe) and its
            sizes; SPECTRE's spacing in self-supervision.
        stretch: each axis by itself on top of the zoom, so that a voxel's shape is no constant to lean on.
        flip: probability along (depth, height, width); SPECTRE flips all three, at the price of sides.
        intensity_window, resampling: the image processor's, see there.
        window_shift_hu, window_scale: jitter of the window's middle and width; scanners differ by tens of HU.
        gamma: exponent on 0 to 1, drawn log-uniformly.
        noise: standard deviation in 0 to 1; 0.02 is 40 HU, a low-dose scan.
        blur_voxels: standard deviation of the Gaussian that is added or, as sharpening, taken away.
        sharpen: how much of the difference to the blurred view is added: a bone kernel.
        intensity_probability, noise_probability, blur_probability, sharpen_probability: of each of these.
    """

    global_views: ViewShape = ViewShape(count=2, size=(64, 128, 128), spacing=(1.0, 0.5, 0.5), zoom=(1.0, 2.0))
    local_views: ViewShape = ViewShape(count=8, size=(24, 48, 48), spacing=(1.0, 0.5, 0.5), zoom=(0.7, 1.4))
    stretch: Range = (0.9, 1.1)
    flip: tuple[float, float, float] = (0.0, 0.0, 0.0)
    intensity_window: Range = (-1000.0, 1000.0)
    resampling: Literal["area", "linear"] = "area"
    window_shift_hu: Range = (-50.0, 50.0)
    window_scale: Range = (0.8, 1.25)
    gamma: Range = (0.8, 1.25)
    noise: Range = (0.0, 0.02)
    blur_voxels: Range = (0.4, 1.0)
    sharpen: Range = (0.5, 1.5)
    intensity_probability: float = 0.8
    noise_probability: float = 0.5
    blur_probability: float = 0.3
    sharpen_probability: float = 0.2


@dataclass(frozen=True, kw_only=True)
class Views:
    """Views of a batch of crops, 0 to 1; view `v` of crop `i` is row `v * b + i`."""

    global_views: Tensor  # (v * b, 1, D, H, W)
    local_views: Tensor  # (v * b, 1, D, H, W)


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where views lie on their crops, one row a view. Voxel `i` of a view lies `start_mm + step_mm * i` from the centre of
    the crop's first voxel, along each axis; a negative step is a flip."""

    start_mm: Tensor  # (n, 3)
    step_mm: Tensor  # (n, 3)


def make_views(batch: CropBatch, config: ViewConfig) -> Views:
    """Crops -> their global and local views, on the device of the crops."""
    seeds = batch.seeds.tolist()
    made = []
    for salt, shape in enumerate((config.global_views, config.local_views)):
        generators = [torch.Generator().manual_seed(seed ^ (salt + 1)) for seed in seeds]
        placement = place_views(batch, shape, config, generators)
        hu = sample_hu(batch, placement, shape, config.resampling)
        made.append(vary_intensity(hu, config, generators, seeds, salt))
    return Views(global_views=made[0], local_views=made[1])


def place_views(
    batch: CropBatch, shape: ViewShape, config: ViewConfig, generators: Sequence[torch.Generator]
) -> Placement:
    """Draws spacing, flips and place. A view that fits lies within the crop's voxels; one that does not is centred on them."""
    chances = torch.stack([torch.rand(shape.count, 10, generator=g) for g in generators], dim=1)  # -> (v, b, 10)
    zoom = log_uniform(chances[..., :1], shape.zoom) * log_uniform(chances[..., 1:4], config.stretch)
    step = zoom * torch.tensor(shape.spacing)
    extent = step * (torch.tensor(shape.size) - 1)
    room = (batch.shape - 1) * batch.spacing.float() - extent
    start = torch.where(room > 0, chances[..., 4:7] * room, room / 2)
    flipped = chances[..., 7:10] < torch.tensor(config.flip)
    start, step = torch.where(flipped, start + extent, start), torch.where(flipped, -step, step)
    return Placement(start_mm=start.flatten(0, 1), step_mm=step.flatten(0, 1))


def make_labelled_views(batch: CropBatch, config: ViewConfig) -> tuple[Tensor, Tensor]:
    """Crops -> one view each, in the shape of global views, `(b, 1, D, H, W)` 0 to 1, with its labels `(b, D, H, W)` uint8."""
    assert batch.segmentation is not None
    shape, seeds = replace(config.global_views, count=1), batch.seeds.tolist()
    generators = [torch.Generator().manual_seed(seed ^ 1) for seed in seeds]
    placement = place_views(batch, shape, config, generators)
    labels = sample_labels(batch, placement, shape)
    hu = sample_hu(batch, placement, shape, config.resampling)
    return vary_intensity(hu, config, generators, seeds, 0), labels


def sample_hu(batch: CropBatch, placement: Placement, shape: ViewShape, resampling: str) -> Tensor:
    """`(n, 1, D, H, W)` HU float32, resampled as the image processor does, air outside the crops."""
    device, matrices = batch.hu.device, []
    for axis, (positions, step, size) in enumerate(view_positions(batch, placement, shape)):
        width = torch.tensor([area_width(one, resampling) for one in step.tolist()], dtype=torch.float64)
        matrix = weigh_voxels(positions.clamp(min=0).minimum(size[:, None] - 1), width, size)
        matrix = F.pad(matrix, (0, batch.hu.shape[1 + axis] - matrix.shape[-1]))
        lies_inside = (positions >= -0.5) & (positions <= size[:, None] - 0.5)
        matrices.append((matrix * lies_inside[..., None]).to(device))
    voxels = batch.hu.float() - AIR_HU  # so that rows of zeros give air
    parts = zip(*(matrix.split(len(voxels)) for matrix in matrices), strict=True)  # a view of every crop at a time
    return torch.cat([resample(voxels, part) for part in parts])[:, None] + AIR_HU


def sample_labels(batch: CropBatch, placement: Placement, shape: ViewShape) -> Tensor:
    """`(n, D, H, W)` uint8, the nearest labels, 0 outside the crops."""
    assert batch.segmentation is not None
    device = batch.hu.device
    indices, lies_inside = [], torch.tensor(True, device=device)
    for axis, (positions, _, size) in enumerate(view_positions(batch, placement, shape)):
        nearest = (positions + 0.5).floor().long()
        along = [-1 if a == axis + 1 else n for a, n in enumerate((len(nearest), 1, 1, 1))]
        lies_inside = lies_inside & ((nearest >= 0) & (nearest < size[:, None])).view(along).to(device)
        indices.append(nearest.clamp(min=0).minimum(size[:, None] - 1).view(along).to(device))
    crops = torch.arange(len(lies_inside), device=device).remainder(len(batch.shape)).view(-1, 1, 1, 1)
    return batch.segmentation[crops, *indices] * lies_inside


def view_positions(batch: CropBatch, placement: Placement, shape: ViewShape) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """For each axis, where views lie on their crops, in voxels: positions `(n, samples)` and step `(n,)` float64, and the
    crops' sizes `(n,)`."""
    num_views = len(placement.start_mm) // len(batch.shape)
    spacing = batch.spacing.double().repeat(num_views, 1)
    start, step = placement.start_mm / spacing, placement.step_mm / spacing
    for axis in range(3):
        positions = start[:, axis, None] + step[:, axis, None] * torch.arange(shape.size[axis])
        yield positions, step[:, axis], batch.shape[:, axis].repeat(num_views)


def vary_intensity(
    hu: Tensor, config: ViewConfig, generators: Sequence[torch.Generator], seeds: Sequence[int], salt: int
) -> Tensor:
    """HU -> 0 to 1 through a window of its own for each view, blurred or sharpened, with noise."""
    num_views = len(hu) // len(seeds)
    chances = torch.stack([torch.rand(num_views, 10, generator=g) for g in generators], dim=1).flatten(0, 1)
    varied = chances[:, 0] < config.intensity_probability
    low, high = config.intensity_window
    shift = torch.where(varied, uniform(chances[:, 1], config.window_shift_hu), 0.0)
    width = (high - low) * torch.where(varied, log_uniform(chances[:, 2], config.window_scale), 1.0)
    gamma = torch.where(varied, log_uniform(chances[:, 3], config.gamma), 1.0)
    noise = torch.where(chances[:, 4] < config.noise_probability, uniform(chances[:, 5], config.noise), 0.0)
    blurred = chances[:, 6] < config.blur_probability
    sharpened = chances[:, 6] > 1 - config.sharpen_probability
    amount = torch.where(sharpened, uniform(chances[:, 7], config.sharpen), 0.0) - blurred.float()
    sigma = uniform(chances[:, 8], config.blur_voxels)

    def wide(values: Tensor) -> Tensor:
        return values.view(-1, 1, 1, 1, 1).to(hu.device)

    views = ((hu - wide((low + high) / 2 + shift - width / 2)) / wide(width)).clamp(0, 1)
    views = views ** wide(gamma)
    changed = amount.nonzero()[:, 0]
    if len(changed):
        rows = changed.to(hu.device)
        part = views[rows]
        views[rows] = part + wide(amount[changed]) * (part - blur(part, sigma[changed]))
    if config.noise_probability > 0:
        views += draw_noise(views, seeds, salt) * wide(noise)
    return views.clamp(0, 1)


def vary_scan(pixel_values: Tensor, config: ViewConfig, seed: int) -> Tensor:
    """Crops of one scan `(1, g, 1, D, H, W)` through one window with one noise; crops that hold nothing stay so. Kernels are
    left as they are: a blur would need the crop beside."""
    config = replace(config, blur_probability=0.0, sharpen_probability=0.0)
    crops = pixel_values[0]
    occupied = crops.flatten(1).any(1)
    low, high = config.intensity_window
    hu = low + crops[occupied].flatten(0, 2)[None, None] * (
        high - low
    )  # (g, 1, D, H, W) -> (1, 1, g*D, H, W), one view
    views = vary_intensity(hu, config, [torch.Generator().manual_seed(seed)], [seed], 0)
    varied = crops.clone()
    varied[occupied] = views[0, 0].unflatten(0, (-1, *crops.shape[1:3]))
    return varied[None]


def draw_noise(views: Tensor, seeds: Sequence[int], salt: int) -> Tensor:
    """Standard normal, from each sample's own seed, drawn on the device."""
    num_views = len(views) // len(seeds)
    generator = torch.Generator(views.device)
    noise = torch.empty(num_views, len(seeds), *views.shape[1:], device=views.device)
    for index, seed in enumerate(seeds):
        generator.manual_seed(seed ^ (salt + 3))
        noise[:, index] = torch.randn(num_views, *views.shape[1:], device=views.device, generator=generator)
    return noise.flatten(0, 1)


def blur(views: Tensor, sigma_voxels: Tensor) -> Tensor:
    """Gaussian over 3 standard deviations of 1 voxel, `(n, 1, D, H, W)` with one `sigma_voxels` `(n,)` each; edges repeat."""
    places = torch.arange(-3, 4)
    weights = torch.exp(-0.5 * (places / sigma_voxels[:, None]) ** 2)
    weights = (weights / weights.sum(1, keepdim=True)).to(views.device)  # (n, 7)
    part = views.transpose(0, 1)  # (1, n, D, H, W): a kernel a view is a group a channel
    for axis in range(3):
        padding = [0] * 6
        padding[2 * (2 - axis)] = padding[2 * (2 - axis) + 1] = 3
        kernel = weights.view(-1, 1, *(7 if a == axis else 1 for a in range(3)))
        part = F.conv3d(F.pad(part, padding, mode="replicate"), kernel, groups=len(views))
    return part.transpose(0, 1)


def uniform(chance: Tensor, limits: Range) -> Tensor:
    return limits[0] + chance * (limits[1] - limits[0])


def log_uniform(chance: Tensor, limits: Range) -> Tensor:
    low, high = torch.tensor(limits).log()
    return torch.exp(low + chance * (high - low))


# --- report alignment ----------------------------------------------------------------------------------------------------


def cut_scans(
    samples: Sequence[ScanSample], processor: CTFMImageProcessor, device: torch.device | str
) -> dict[str, Tensor]:
    """Whole scans -> what the model takes (`pixel_values`, `crop_grid`, `crop_mask`, and with label maps `labels`), on the
    device and equal to what the image processor makes of them."""
    spacing = None if processor.spacing == "native" else [float(mm) for mm in processor.spacing]
    volumes = [Volume(hu=sample.hu.numpy(), affine=sample.affine) for sample in samples]
    geometry = [processor.place_grid(volume, spacing) for volume in volumes]
    counts = [math.prod(g.crop_grid) for g in geometry]
    pixels = torch.zeros(len(samples), max(counts), 1, *processor.crop_size, device=device)
    for row, sample, placed in zip(pixels, samples, geometry, strict=True):
        processor.cut(sample.hu.to(device, non_blocking=True), placed, row[:, 0])
    cut = {
        "pixel_values": pixels,
        "crop_grid": torch.tensor([g.crop_grid for g in geometry], device=device),
        "crop_mask": (torch.arange(max(counts)) < torch.tensor(counts)[:, None]).to(device),
    }
    if all(sample.segmentation is not None for sample in samples):
        labels = torch.full((len(samples), max(counts), *processor.crop_size), -100)
        for row, sample, placed in zip(labels, samples, geometry, strict=True):
            assert sample.segmentation is not None
            cut_labels(sample.segmentation.numpy(), placed, row)
        cut["labels"] = labels.to(device)
    return cut
