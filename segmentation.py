"""Scans -> label maps of organs in each scan's own geometry: `ctfm segment`.

`segment_volume` blends overlapping crops: beside the grid of crops that features are computed on lie up to seven others, each
shifted by half a crop along some axes, so that every voxel is seen near the centre of some crop. Each grid is encoded whole,
as the model was trained. Shares of the structures are blended with weights that fall towards the border of a crop, plane by
plane from the feet to the head, so that memory grows with the cross-section of a scan and hardly with its length.
"""

import argparse
import hashlib
import itertools
import json
import math
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor
from tqdm import tqdm
from transformers import AutoConfig

from .configuration_ctfm import CTFMConfig
from .drawing_ctfm import draw_segmentation
from .embedding import (
    add_device_argument,
    add_model_arguments,
    add_scans_argument,
    fingerprint,
    list_scans,
    resolve_device,
    weight_files,
)
from .image_processing_ctfm import CropGeometry, CTFMImageProcessor, resolve_spacing, sample_axis
from .modeling_ctfm import CTFMForSemanticSegmentation, crop_context
from .volume_ctfm import Volume, VolumeError, read_volume, write_nifti
from .weights import load_complete
from .whole_files import write_json

NOTICE = "Research only. Not for diagnosis or any decision about a patient."
BACKGROUND = "background"
EXTRAS = ("measurements", "preview")
OVERLAPS = ("half", "none")


@dataclass(frozen=True, kw_only=True)
class Segmenter:
    """A model that segments, what prepares its scans, and the name of every number that it gives, 0 the background."""

    model: CTFMForSemanticSegmentation
    processor: CTFMImageProcessor
    structures: dict[int, str]
    name: str


@dataclass(frozen=True, kw_only=True)
class Segmentation:
    """labels: `(D, H, W)` uint8 on the scan's `hu`; confidence: for each number that occurs, the mean of what the model gives
    its voxels, 0 to 1. It is not calibrated."""

    labels: np.ndarray
    structures: dict[int, str]
    confidence: dict[int, float]


# ---- model -----------------------------------------------------------------------------------------------------------------


def load_segmenter(model_id: str, device: str | None = None) -> Segmenter:
    """A checkpoint with a trained decoder, from a folder or the Hub, in float32.

    Raises:
        OSError: there is no such checkpoint, or it was not trained to segment.
    """
    cure = (
        "Pass --model with a checkpoint that was trained to segment: one whose config.json names its `structures` and whose "
        "weights hold a decoder, such as `ctfm finetune segmentation` writes."
    )
    try:
        config = AutoConfig.from_pretrained(model_id)
        if not isinstance(config, CTFMConfig) or (
            config.structures is None and "CTFMForSemanticSegmentation" not in (config.architectures or ())
        ):
            raise OSError(f"{model_id} has no trained segmentation decoder. {cure}")
        structures = read_structures(config, model_id)
        model = load_complete(CTFMForSemanticSegmentation, model_id, dtype=torch.float32)
        processor = CTFMImageProcessor.from_pretrained(model_id)
    except (OSError, ValueError, SafetensorError) as error:
        raise OSError(str(error).splitlines()[0]) from error
    torch.nn.Module.to(model, resolve_device(device))
    return Segmenter(model=model.eval(), processor=processor, structures=structures, name=model_id)


def read_structures(config: CTFMConfig, model_id: str) -> dict[int, str]:
    """The name of every output of the decoder."""
    names = config.structures if config.structures is not None else config.id2label
    structures = {int(number): name for number, name in (names or {}).items()}
    if sorted(structures) != list(range(len(structures))) or len(structures) > 256:
        raise OSError(
            f"The structures of {model_id} must be numbered from 0 without a gap, 256 at most, not {sorted(structures)[:8]}. "
            "Number them in config.json as the decoder's outputs are."
        )
    if structures[0].lower() != BACKGROUND:
        raise OSError(
            f"Structure 0 of {model_id} is {structures[0]!r}, and 0 is where nothing is in a label map. Name it "
            f'"{BACKGROUND}" in config.json, or train with the background as label 0.'
        )
    return structures


# ---- one scan --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class EncodedGrid:
    """A grid of crops that lies on a scan, as the model's decoder takes it.

    start: where it begins on the lattice of the plain grid's voxels, whose first is the first that lies on the scan.
    tokens `(g, d, h, w, e)`, context `(g, e)`: of its crops; weights: of a crop's voxels along each axis.
    """

    geometry: CropGeometry
    start: tuple[int, ...]
    tokens: Tensor
    context: Tensor
    weights: tuple[Tensor, Tensor, Tensor]


@torch.inference_mode()
def segment_volume(
    segmenter: Segmenter, volume: Volume, *, overlap: str = "half", spacing: Sequence[float] | str | None = None
) -> Segmentation:
    """The label of every voxel of a scan.

    Args:
        overlap: `"half"`: crops overlap by half along every axis that has more than one; `"none"`: they lie side by side, for
            an eighth of the work where no crop is air.
        spacing: instead of the checkpoint's own.

    Raises:
        ValueError: `overlap` or `spacing` is not known.
    """
    if overlap not in OVERLAPS:
        raise ValueError(f"overlap {overlap!r} must be one of {', '.join(OVERLAPS)}.")
    processor = segmenter.processor
    plain = processor.place_grid(volume, resolve_spacing(processor.spacing if spacing is None else spacing))
    covered = [find_covered(plain, axis) for axis in range(3)]
    size = [stop - start for start, stop in covered]
    hu = torch.from_numpy(volume.hu)
    grids = [encode_grid(segmenter, hu, *placed) for placed in place_grids(plain, covered, overlap)]

    labeler = SliceLabeler(volume.hu.shape, plain, covered, len(segmenter.structures))
    crops = [
        ([s + c * i for s, c, i in zip(grid.start, plain.crop_size, index, strict=True)], grid, number, index)
        for grid in grids
        for number, index in enumerate(np.ndindex(*grid.geometry.crop_grid))
    ]
    for start, grid, number, index in sorted(crops, key=lambda crop: crop[0][0]):
        labeler.finish_planes(start[0])  # crops to come add nothing in front of this one
        inside = [slice(max(s, 0), min(s + c, n)) for s, c, n in zip(start, plain.crop_size, size, strict=True)]
        part = [slice(i.start - s, i.stop - s) for i, s in zip(inside, start, strict=True)]
        labeler.add(decode_crop(segmenter, hu, grid, number, index)[(slice(None), *part)], inside)
    labeler.finish_planes(size[0])
    return labeler.result(segmenter.structures)


def find_covered(grid: CropGeometry, axis: int) -> tuple[int, int]:
    """First and one past the last of a grid's voxels along an axis that lie on the scan."""
    parts = sample_axis(grid, axis, "linear")
    crop = grid.crop_size[axis]
    return parts[0].inside.start, (len(parts) - 1) * crop + parts[-1].inside.stop


def place_grids(
    plain: CropGeometry, covered: Sequence[tuple[int, int]], overlap: str
) -> Iterator[tuple[CropGeometry, tuple[int, ...], tuple[Tensor, Tensor, Tensor]]]:
    """The plain grid, and for overlap those shifted by half a crop along any of the axes that have more than one crop.

    Returns:
        Each grid, the lattice voxel at which it starts, and the weights of its crops' voxels along every axis. At each voxel of
        the scan the weights of all grids sum to 1.
    """
    choices = []
    for axis, crop in enumerate(plain.crop_size):
        start, stop = covered[axis]
        options = [(0, plain.crop_grid[axis], torch.ones(crop))]
        if overlap == "half" and plain.crop_grid[axis] > 1:
            half = crop // 2
            tent = crop / 2 - (torch.arange(crop) + 0.5 - crop / 2).abs()
            weights = tent / (tent + tent.roll(-half))  # a plain crop's voxel i is voxel i + half of a shifted crop
            first, last = (start + half) // crop, (stop - 1 + half) // crop  # of the shifted crops that hold scan
            options = [(0, plain.crop_grid[axis], weights)]
            options.append((first * crop - half, last - first + 1, (1 - weights).roll(half)))
        choices.append(options)
    for depth, height, width in itertools.product(*choices):
        shifts, counts, weights = zip(depth, height, width, strict=True)
        offset = tuple(o + s * step for o, s, step in zip(plain.offset, shifts, plain.step, strict=True))
        start = tuple(shift - first for shift, (first, _) in zip(shifts, covered, strict=True))
        yield replace(plain, crop_grid=counts, offset=offset), start, weights


def encode_grid(
    segmenter: Segmenter,
    hu: Tensor,
    geometry: CropGeometry,
    start: tuple[int, ...],
    weights: tuple[Tensor, Tensor, Tensor],
) -> EncodedGrid:
    """One pass of the trunk over a whole scan. The crops' voxels are not kept; `decode_crop` cuts them again."""
    model = segmenter.model
    num_crops = math.prod(geometry.crop_grid)
    pixel_values = torch.zeros(1, num_crops, 1, *geometry.crop_size)
    segmenter.processor.cut(hu, geometry, pixel_values[0, :, 0])
    crop_grid = torch.tensor([geometry.crop_grid], device=model.device)
    output = model.vision_model(pixel_values.to(model.device), crop_grid, output_dense_features=True, return_dict=True)
    return EncodedGrid(
        geometry=geometry,
        start=start,
        tokens=output.dense_features[0],
        context=crop_context(output.last_hidden_state, num_crops)[0],
        weights=weights,
    )


def decode_crop(segmenter: Segmenter, hu: Tensor, grid: EncodedGrid, number: int, index: tuple[int, ...]) -> Tensor:
    """Weighted shares of the structures in one crop, `(structures, D, H, W)`; a crop of nothing but air is background."""
    geometry, model = grid.geometry, segmenter.model
    offset = [
        o + i * c * s for o, i, c, s in zip(geometry.offset, index, geometry.crop_size, geometry.step, strict=True)
    ]
    crop = torch.zeros(1, 1, *geometry.crop_size)
    segmenter.processor.cut(hu, replace(geometry, crop_grid=(1, 1, 1), offset=tuple(offset)), crop[:, 0])
    if crop.any():
        logits = model.decoder(crop.to(model.device), grid.tokens[number, None], grid.context[number, None])
        shares = logits[0].float().softmax(0).cpu()
    else:
        shares = torch.zeros(len(segmenter.structures), *geometry.crop_size)
        shares[0] = 1.0
    depth, height, width = grid.weights
    return shares * (depth[:, None, None] * height[:, None] * width)


class SliceLabeler:
    """Shares of the structures on the voxels of a grid -> labels on those of the scan, plane by plane.

    Args:
        shape: of the scan's `hu`; grid: the plain grid; covered: where its voxels lie on the scan.
    """

    def __init__(
        self, shape: tuple[int, ...], grid: CropGeometry, covered: Sequence[tuple[int, int]], num_structures: int
    ) -> None:
        self.labels = np.zeros(shape, np.uint8)
        self.num_voxels, self.sum_shares = np.zeros(num_structures), np.zeros(num_structures)
        self._size = (num_structures, *(stop - start for start, stop in covered[1:]))
        self._places = [  # of the scan's voxels on the lattice
            ((torch.arange(size, dtype=torch.float64) - offset) / step - start).clamp(0, stop - start - 1)
            for size, offset, step, (start, stop) in zip(shape, grid.offset, grid.step, covered, strict=True)
        ]
        self._planes: dict[int, Tensor] = {}  # lattice planes that are still needed, (structures, height, width)
        self._next_slice = 0

    def add(self, shares: Tensor, inside: Sequence[slice]) -> None:
        for number, plane in zip(range(inside[0].start, inside[0].stop), shares.unbind(1), strict=True):
            if number not in self._planes:
                self._planes[number] = torch.zeros(self._size, dtype=torch.float16)  # of shares 0 to 1, eight are added
            self._planes[number][:, inside[1], inside[2]] += plane

    def finish_planes(self, stop: int) -> None:
        """Labels the slices of the scan that lie between lattice planes before `stop`, to which nothing is added any more."""
        depth = self._places[0]
        while self._next_slice < len(depth):
            place = float(depth[self._next_slice])
            below, above = math.floor(place), math.ceil(place)
            if above >= stop:
                break
            plane = torch.lerp(self._planes[below].float(), self._planes[above].float(), place - below)
            self._label_slice(plane)
            self._next_slice += 1
            for number in [number for number in self._planes if number < below]:
                del self._planes[number]

    def _label_slice(self, plane: Tensor) -> None:
        # The largest of n shares is 1/n at least, so what is nowhere near that is left out of the work.
        kept = (plane.amax((1, 2)) > 0.9 / len(plane)).nonzero()[:, 0]
        plane = plane[kept]
        for axis in (1, 2):
            place = self._places[axis]
            low = place.floor().long()
            high = place.ceil().long()
            weight = (place - low).float().view(-1, 1) if axis == 1 else (place - low).float()
            plane = torch.lerp(plane.index_select(axis, low), plane.index_select(axis, high), weight)
        share, index = plane.max(0)
        labels = kept[index]
        self.labels[self._next_slice] = labels.to(torch.uint8).numpy()
        flat, size = labels.flatten().numpy(), len(self.num_voxels)
        self.num_voxels += np.bincount(flat, minlength=size)
        self.sum_shares += np.bincount(flat, share.flatten().numpy(), minlength=size)

    def result(self, structures: dict[int, str]) -> Segmentation:
        found = {n: float(self.sum_shares[n] / self.num_voxels[n]) for n in structures if self.num_voxels[n]}
        return Segmentation(labels=self.labels, structures=structures, confidence=found)


# ---- what is told of structures --------------------------------------------------------------------------------------------


def measure_structures(volume: Volume, segmentation: Segmentation) -> list[dict[str, Any]]:
    """One row a structure that was found: volume in ml, mean HU, extent in mm, confidence, and whether the scan ends in it.

    `size_mm` is the extent along the volume's axes, head to feet, front to back, right to left, first and last voxel included.
    A structure that reaches the border of the scan may go on outside, and its volume is then that of a part.
    """
    labels, hu = segmentation.labels, volume.hu
    count = len(segmentation.structures)
    voxels, total = np.zeros(count), np.zeros(count)
    seen = [np.zeros((count, size), bool) for size in labels.shape]
    for index, (plane, values) in enumerate(zip(labels, hu, strict=True)):
        flat = plane.ravel()
        voxels += np.bincount(flat, minlength=count)
        total += np.bincount(flat, values.ravel(), minlength=count)
        seen[0][np.unique(flat), index] = True
        rows, columns = np.indices(plane.shape, np.int32)
        seen[1][flat, rows.ravel()] = True
        seen[2][flat, columns.ravel()] = True
    voxel_ml = abs(float(np.linalg.det(volume.affine[:3, :3]))) / 1000
    measured = []
    for number, name in segmentation.structures.items():
        if number == 0 or not voxels[number]:
            continue
        spans = [np.flatnonzero(axis[number])[[0, -1]] for axis in seen]
        measured.append(
            {
                "number": number,
                "structure": name,
                "volume_ml": round(float(voxels[number]) * voxel_ml, 3),
                "mean_hu": round(float(total[number] / voxels[number]), 1),
                "size_mm": [round(float(b - a + 1) * s, 1) for (a, b), s in zip(spans, volume.spacing, strict=True)],
                "confidence": round(segmentation.confidence[number], 3),
                "reaches_border": any(a == 0 or b == n - 1 for (a, b), n in zip(spans, labels.shape, strict=True)),
            }
        )
    return measured


def choose_centre(segmentation: Segmentation) -> tuple[int, int, int]:
    """The voxel through which a preview's planes go: along each axis the plane with the most labelled voxels."""
    best, most = 0, -1
    _, height, width = segmentation.labels.shape
    across, along = np.zeros(height, np.int64), np.zeros(width, np.int64)
    for index, plane in enumerate(segmentation.labels):
        is_labelled = plane > 0
        across += is_labelled.sum(1)
        along += is_labelled.sum(0)
        if (count := int(is_labelled.sum())) > most:
            most, best = count, index
    return best, int(across.argmax()), int(along.argmax())


# ---- command ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Writer:
    """Makes another object of a segmentation. write: folder of the results, scan and series that were read, volume,
    segmentation -> files; a `VolumeError` is a failure of the scan. name: of what is written and how."""

    name: str
    write: Callable[[Path, Path, str | None, Volume, Segmentation], None]


def segment(
    scans: Sequence[Path],
    out: Path,
    model_id: str,
    *,
    spacing: str | None = None,
    overlap: str = "half",
    also: Sequence[str] = (),
    writers: Sequence["Writer"] = (),
    device: str | None = None,
) -> int:
    """Writes `segmentation.nii.gz` and `structures.json` of one scan into `out`, of several into a folder each, and
    `scans.json`, a row a scan. What is done already is not done again, and a scan that cannot be read stops nothing.

    Args:
        also: of `EXTRAS`; writers: of other objects made of the same segmentation.
    """
    found = list_scans(scans)
    segmenter = load_segmenter(model_id, device)
    out.mkdir(parents=True, exist_ok=True)
    wanted = sorted([*also, *(writer.name for writer in writers)])
    settings = (model_id, weight_files(model_id), spacing or segmenter.processor.spacing, overlap, wanted)
    rows = []
    for (scan, series_uid), name in zip(
        tqdm(found, desc="segment", unit="scan", disable=not sys.stderr.isatty()),
        name_folders(found, scans),
        strict=True,
    ):
        folder = out / name
        key = fingerprint(scan, series_uid, settings)
        row = {"scan": str(scan), "series": series_uid or "", "folder": name}
        if read_key(folder) != key:
            try:
                volume = read_volume(scan, series_uid)
                segmentation = segment_volume(segmenter, volume, overlap=overlap, spacing=spacing)
                folder.mkdir(parents=True, exist_ok=True)
                (folder / "segmentation.json").unlink(missing_ok=True)
                for writer in writers:
                    writer.write(folder, scan, series_uid, volume, segmentation)
            except VolumeError as error:
                rows.append(row | {"status": "failed", "note": str(error)})
                continue
            write_results(folder, volume, segmentation, also, {"key": key, "model": model_id, "notice": NOTICE})
        rows.append(row | {"status": "done", "note": ""})
    write_json(out / "scans.json", rows)
    num_failed = sum(row["status"] == "failed" for row in rows)
    print(
        f"{len(rows) - num_failed} of {len(rows)} scans are segmented in {out}; {num_failed} could not be read (scans.json)"
    )
    return 1 if num_failed else 0


def name_folders(found: Sequence[tuple[Path, str | None]], roots: Sequence[Path]) -> list[str]:
    """Where the results of each scan go under `out`: nowhere below it for one scan alone, else as the scans lie in the folders
    that were given, without the ending of a file. What would share a folder keeps its ending, or else a number of its path."""
    if len(found) == 1:
        return ["."]
    plain, whole, numbered = [], [], []
    for scan, series_uid in found:
        inside = next((scan.relative_to(root) for root in roots if root.is_dir() and scan.is_relative_to(root)), None)
        place = Path(scan.name) if inside is None or inside == Path(".") else inside
        code = "" if series_uid is None else "-" + hashlib.sha256(series_uid.encode()).hexdigest()[:8]
        path_code = hashlib.sha256(os.fsencode(scan.resolve())).hexdigest()[:8]
        stem = re.sub(r"(\.nii|\.nii\.gz|\.mha|\.mhd|\.nrrd|\.nhdr|\.zip|\.dcm)$", "", place.name, flags=re.IGNORECASE)
        plain.append(str(place.with_name((stem or place.name) + code)))
        whole.append(str(place.with_name(place.name + code)))
        numbered.append(str(place.with_name(f"{place.name}{code}-{path_code}")))
    counts, whole_counts = Counter(plain), Counter(whole)
    return [
        a if counts[a] == 1 else b if whole_counts[b] == 1 else c
        for a, b, c in zip(plain, whole, numbered, strict=True)
    ]


def read_key(folder: Path) -> str | None:
    """Of what a folder's results were made; None where there are none, or not all of them."""
    try:
        return json.loads((folder / "segmentation.json").read_text()).get("key")
    except (OSError, ValueError):
        return None


def write_results(
    folder: Path, volume: Volume, segmentation: Segmentation, also: Sequence[str], facts: Mapping[str, Any]
) -> None:
    """The files of one scan; `segmentation.json` comes last, so that it says that the others are whole."""
    labels, affine = volume.segmentation_to_source(segmentation.labels)
    if volume.source.kind == "dicom":  # slices are first there, and last in NIfTI
        labels, affine = labels.transpose(2, 1, 0), affine[:, [2, 1, 0, 3]]
    write_nifti(folder / "segmentation.nii.gz", labels, affine)
    write_json(folder / "structures.json", segmentation.structures)
    if "measurements" in also:
        measured = {"notice": NOTICE, "structures": measure_structures(volume, segmentation)}
        write_json(folder / "measurements.json", measured)
    if "preview" in also:
        picture = draw_segmentation(volume, segmentation.labels, segmentation.structures, choose_centre(segmentation))
        picture.save(folder / "preview.png")
    confidence = {segmentation.structures[n]: round(share, 4) for n, share in segmentation.confidence.items()}
    write_json(folder / "segmentation.json", {**facts, "warnings": list(volume.warnings), "confidence": confidence})


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ctfm segment",
        description="Organs of scans as label maps on each scan's own voxels, with their names. Done scans are kept.",
    )
    add_scans_argument(parser)
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of the label map; of several scans, of a folder each"
    )
    parser.add_argument(
        "--overlap", choices=OVERLAPS, default="half", help="of crops; none is an eighth of the work (%(default)s)"
    )
    parser.add_argument("--also", nargs="+", choices=EXTRAS, default=[], metavar="WHAT", help=" ".join(EXTRAS))
    add_device_argument(parser)
    add_model_arguments(parser)
    return parser
