"""Sample number -> a phantom, drawn when it is asked for: scans without end, and no folder to prepare.

A sample is a pure function of the seed and its number, as those of prepared folders are (data.py), so a run that was killed
goes on with the same scans. Drawing takes a processor core one to three seconds; a scan is therefore learnt from several
times, from a window of the latest ones, which a folder keeps. Emptying that folder costs time and changes nothing.
"""

import json
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..image_processing_ctfm import CropGeometry, CTFMImageProcessor, sample_axis
from ..phantom.body import ORGAN_NAMES
from ..phantom.dataset import SIDED_NAMES, label
from ..phantom.geometry import Point, named_rng
from ..phantom.make import FINDING_ID, FINDING_NAMES, RANDOMISED_RANGES, Phantom, make_phantom
from ..volume_ctfm import Volume
from ..whole_files import written_whole
from .data import StepBatches, hash_numbers, ignore_signals, samples_of_step

# A voxel's code is its organ's number plus, where a finding covers the organ, FINDING_STEP times what `finding_codes` says.
FINDING_STEP = 64
STRUCTURES = dict(enumerate(ORGAN_NAMES))
SIDED_FINDINGS = tuple(f"{side} {name.lower()}" for name in SIDED_NAMES for side in ("Left", "Right"))
FINDINGS = (*FINDING_NAMES, *SIDED_FINDINGS)


@dataclass(frozen=True, kw_only=True)
class DrawingConfig:
    """What is drawn, and how often it is learnt from.

    Args:
        seed: of every scan.
        global_batch: scans of an optimizer step over all processes.
        repeats: how often a scan is learnt from, on average; 1 draws every sample anew.
        window: of the latest scans, from which those that come again are taken.
        first_scan: number of the first new scan: a later phase goes on with patients that no earlier one saw.
        boxes: share of scans that are one crop of a patient, around a finding or where another patient has one. A box costs a
            fiftieth of a whole scan, so small findings are seen far more often for the same work.
    """

    seed: int = 0
    global_batch: int = 8
    repeats: int = 4
    window: int = 512
    first_scan: int = 0
    boxes: float = 0.0


class DrawingSchedule:
    """Steps -> sample numbers -> scan numbers; the same interface as `data.Schedule`."""

    def __init__(self, config: DrawingConfig) -> None:
        self.config = config

    def numbers(self, step: int, rank: int = 0, num_processes: int = 1) -> range:
        return samples_of_step(self.config.global_batch, step, rank, num_processes)

    def scan(self, number: int) -> int:
        """The scan of a sample: every `repeats`-th is new, the others come from the window before it."""
        newest, place = divmod(number, self.config.repeats)
        newest += self.config.first_scan
        if place == 0 or newest == 0:
            return newest
        window = min(newest, self.config.window)
        return newest - 1 - hash_numbers(self.config.seed, number, 7) % window

    def state(self, step: int) -> dict[str, Any]:
        return {"step": step, "data": asdict(self.config)}

    def resume(self, state: dict[str, Any]) -> int:
        """The step to go on with.

        Raises:
            ValueError: other scans would come than those left out.
        """
        if state["data"] != asdict(self.config):
            raise ValueError(
                f"The scans are not those of the checkpoint: {state['data']} then, {asdict(self.config)} now."
            )
        return int(state["step"])


@dataclass(frozen=True, kw_only=True)
class DrawnScan:
    """A phantom and where its crops lie.

    hu: `(D, H, W)` int16; codes: `(D, H, W)` int16, see FINDING_STEP; labels: finding -> 1 or 0, FINDINGS.
    geometry: of the crop grid; occupied: `(g,)`, False for crops of air.
    """

    number: int
    seed: int
    hu: Tensor
    codes: Tensor
    labels: dict[str, int]
    report: str
    geometry: CropGeometry
    occupied: Tensor

    def pin_memory(self) -> "DrawnScan":
        return replace(self, hu=self.hu.pin_memory(), codes=self.codes.pin_memory())


class DrawnScans(Dataset[DrawnScan]):
    """Sample number -> scan, from `cache` where it was drawn before."""

    def __init__(self, schedule: DrawingSchedule, processor: CTFMImageProcessor, cache: Path) -> None:
        self.schedule, self.processor, self.cache = schedule, processor, cache
        self.spacing = None if processor.spacing == "native" else [float(mm) for mm in processor.spacing]
        if schedule.config.boxes and self.spacing is None:
            raise ValueError("Boxes have the extent of a crop in millimetres; give the image processor a spacing.")

    def __getitem__(self, number: int) -> DrawnScan:
        torch.set_num_threads(1)
        scan = self.schedule.scan(number)
        path = self.cache / f"{scan}.safetensors"
        if not path.is_file():
            self.cache.mkdir(parents=True, exist_ok=True)
            write_phantom(self.draw(scan), path)
            passed = scan - self.schedule.config.window - 4 * self.schedule.config.global_batch
            (self.cache / f"{passed}.safetensors").unlink(missing_ok=True)
        with safe_open(path, framework="pt") as file:
            facts = json.loads(file.metadata()["facts"])
            hu, codes = file.get_tensor("hu"), file.get_tensor("codes")
        volume = Volume(hu=hu.numpy(), affine=np.array(facts["affine"]))
        geometry = self.processor.place_grid(volume, self.spacing)
        return DrawnScan(
            number=number,
            seed=hash_numbers(self.schedule.config.seed, number, 9),
            hu=hu,
            codes=codes,
            labels=facts["labels"],
            report=facts["report"],
            geometry=geometry,
            occupied=find_occupied(hu, geometry, self.processor),
        )

    def draw(self, scan: int) -> Phantom:
        """The phantom of a scan number, whole or a box of one crop."""
        config, patient = self.schedule.config, scan // BOXES_PER_PATIENT
        if named_rng(hash_numbers(config.seed, patient, 11), "kind").random() >= config.boxes:
            return draw_phantom(hash_numbers(config.seed, scan, 8))
        assert self.spacing is not None
        depth, height, width = (n * mm for n, mm in zip(self.processor.crop_size, self.spacing, strict=True))
        before = hash_numbers(config.seed, patient - 1, 8)
        own = hash_numbers(config.seed, patient, 8)
        return draw_box(own, before, scan % BOXES_PER_PATIENT, (depth, height, width))


def load_drawn(
    schedule: DrawingSchedule,
    processor: CTFMImageProcessor,
    cache: Path,
    batches: StepBatches,
    *,
    num_workers: int = 0,
) -> DataLoader[DrawnScan]:
    """Batches of scans, as lists: they have shapes of their own until they are resampled."""
    return DataLoader(
        DrawnScans(schedule, processor, cache),
        batch_sampler=batches,
        collate_fn=list,
        num_workers=num_workers,
        worker_init_fn=ignore_signals,
        pin_memory=torch.cuda.is_available(),
    )


# ---- draw ----

BOXES_PER_PATIENT = 4  # consecutive scans, so that a loader process finds a patient's findings once
# Small or rare in a patch, so a box is put around them three times as often as around what fills half a chest.
SMALL_FINDINGS = (
    "Medical material",
    "Arterial wall calcification",
    "Pericardial effusion",
    "Coronary artery wall calcification",
    "Hiatal hernia",
    "Lymphadenopathy",
    "Lung nodule",
    "Pulmonary fibrotic sequela",
    "Bronchiectasis",
    "Kidney tumour",
    "Kidney stone",
    "Liver lesion",
)


def draw_box(seed: int, other: int, number: int, crop_mm: Point) -> Phantom:
    """Box `number` of a patient: around a finding, and the last one where the patient of seed `other` has one."""
    rng = named_rng(seed, f"box {number}")
    is_own = number < BOXES_PER_PATIENT - 1
    places = (find_places(seed) if is_own else ()) or find_places(other) or {"": ((0.0, 0.0, 0.0),)}
    names = sorted(places)
    weights = np.array([3.0 if name in SMALL_FINDINGS else 1.0 for name in names])
    chosen = places[names[int(rng.choice(len(names), p=weights / weights.sum()))]]
    centre = np.array(chosen[int(rng.integers(len(chosen)))]) + rng.uniform(-0.37, 0.37, 3) * crop_mm
    thick = rng.uniform(1.2, 3.2) if rng.random() < 0.75 else rng.uniform(3.2, 6.0)
    wanted = (thick, *[rng.uniform(1.2, 2.2)] * 2)
    depth, height, width = (round(mm / step) for mm, step in zip(crop_mm, wanted, strict=True))
    return make_phantom(
        seed,
        shape=(depth, height, width),
        spacing=(crop_mm[0] / depth, crop_mm[1] / height, crop_mm[2] / width),  # exactly one crop
        ranges=RANDOMISED_RANGES,
        centre_mm=(float(centre[0]), float(centre[1]), float(centre[2])),
    )


@lru_cache(maxsize=8)
def find_places(seed: int) -> dict[str, tuple[Point, ...]]:
    """Name of each finding of a patient -> the scanner millimetres (z, y, x) of its instances, from a coarse drawing."""
    places = dict[str, tuple[Point, ...]]()
    for finding in make_phantom(seed, shape=(56, 64, 64), ranges=RANDOMISED_RANGES).findings:
        x, y, z = finding.centre_mm
        places[finding.name] = (*places.get(finding.name, ()), (z, -y, -x))
    return places


def draw_phantom(seed: int) -> Phantom:
    """A patient of `RANDOMISED_RANGES` on any scanner: whole at 2 to 6 mm, or whole or in part at 1.2 to 2.5 mm."""
    rng = named_rng(seed, "drawn scan")
    kind = rng.random()
    if kind < 0.4:
        spacing, extent = (rng.uniform(2.0, 6.0), rng.uniform(2.0, 3.5)), (rng.uniform(280, 430), rng.uniform(320, 500))
    elif kind < 0.8:
        spacing, extent = (rng.uniform(1.2, 2.5), rng.uniform(1.2, 1.9)), (rng.uniform(110, 260), rng.uniform(240, 420))
    else:
        spacing, extent = (rng.uniform(1.5, 2.5), rng.uniform(1.3, 1.9)), (rng.uniform(280, 400), rng.uniform(320, 440))
    side = max(32, round(extent[1] / spacing[1]))
    steps: Point = (float(spacing[0]), float(spacing[1]), float(spacing[1]))
    return make_phantom(
        seed, shape=(max(16, round(extent[0] / spacing[0])), side, side), spacing=steps, ranges=RANDOMISED_RANGES
    )


def write_phantom(phantom: Phantom, path: Path) -> None:
    """Whole or not at all, since other processes look for it."""
    facts = {"affine": phantom.affine.tolist(), "labels": label(phantom), "report": str(phantom.report)}
    tensors = {"hu": phantom.hu.contiguous(), "codes": encode_voxels(phantom)}
    with written_whole(path) as partial:
        save_file(tensors, partial, metadata={"facts": json.dumps(facts)})


def finding_codes() -> dict[str, tuple[int, ...]]:
    """Finding -> its codes in units of FINDING_STEP: one of its own, or one a side, of which "Lung nodule" has both."""
    codes, following = dict[str, tuple[int, ...]](), 1
    for name in FINDING_NAMES:
        if name not in SIDED_NAMES:
            codes[name], following = (following,), following + 1
            continue
        codes[name] = (following, following + 1)
        for code, side in zip(codes[name], ("Left", "Right"), strict=True):
            codes[f"{side} {name.lower()}"] = (code,)
        following += 2
    return codes


def encode_voxels(phantom: Phantom) -> Tensor:
    """Organ and finding of every voxel, `(D, H, W)` int16; the side of a paired finding is that of the patient."""
    place_h, place_w = (torch.arange(size, dtype=torch.float32) for size in phantom.hu.shape[1:])
    start = (-phantom.affine[1, 3], -phantom.affine[0, 3])  # scanner y to the back, x to the left
    y = place_h * phantom.spacing[1] + float(start[0]) - phantom.patient.position_mm[1]
    x = place_w * phantom.spacing[2] + float(start[1]) - phantom.patient.position_mm[2]
    roll = np.radians(phantom.patient.roll_deg)
    is_right = (float(np.cos(roll)) * x[None] - float(np.sin(roll)) * y[:, None]) < 0  # (H, W)
    lookup = torch.zeros(2, 256, dtype=torch.int16)
    for name, code in finding_codes().items():
        if name in FINDING_ID:
            lookup[0, FINDING_ID[name]], lookup[1, FINDING_ID[name]] = code[0], code[-1]
    found = phantom.segmentation.long()
    codes = torch.where(is_right, lookup[1][found], lookup[0][found])
    return phantom.organs.to(torch.int16) + FINDING_STEP * codes


def find_occupied(hu: Tensor, geometry: CropGeometry, processor: CTFMImageProcessor) -> Tensor:
    """Which crops hold a voxel above air, as `CTFMImageProcessor.cut` asks, `(g,)`."""
    axes = [sample_axis(geometry, axis, processor.resampling) for axis in range(3)]
    occupied = []
    for index in np.ndindex(*geometry.crop_grid):
        box = hu[tuple(axis[i].box for axis, i in zip(axes, index, strict=True))]
        occupied.append(bool(box.amax() > processor.air_hu))
    return torch.tensor(occupied)


# ---- cut, on the training device ----


def cut_drawn(scan: DrawnScan, processor: CTFMImageProcessor, device: torch.device) -> tuple[Tensor, Tensor]:
    """The occupied crops `(m, 1, D, H, W)`, equal to the image processor's, and their codes `(m, D, H, W)`, -1 outside.

    The scan is resampled whole, in three products: on an accelerator many small ones cost more than the air between."""
    low_hu, high_hu = processor.intensity_window
    hu = scan.hu.to(device, non_blocking=True).float().clamp(low_hu, high_hu).sub(low_hu).div(high_hu - low_hu)
    codes = scan.codes.to(device, non_blocking=True).int()
    for axis in range(3):
        crop = scan.geometry.crop_size[axis]
        length = scan.geometry.crop_grid[axis] * crop
        matrix, padded = torch.zeros(length, scan.geometry.shape[axis]), codes.new_full((length, *codes.shape[1:]), -1)
        for number, part in enumerate(sample_axis(scan.geometry, axis, processor.resampling)):
            rows = slice(number * crop + part.inside.start, number * crop + part.inside.stop)
            matrix[rows, part.box] = part.matrix
            padded[rows] = codes.index_select(0, part.nearest.to(device))
        hu = hu.movedim(0, -1) @ matrix.to(device).t()  # the first axis goes last: after three, as before
        codes = padded.movedim(0, -1)
    grid, size = scan.geometry.crop_grid, scan.geometry.crop_size
    kept = scan.occupied.to(device)

    def cut(voxels: Tensor) -> Tensor:
        parts = voxels.reshape(grid[0], size[0], grid[1], size[1], grid[2], size[2])
        return parts.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)[kept]

    return cut(hu)[:, None], cut(codes)
