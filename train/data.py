"""Shards -> crops and scans -> batch. The only file that samples at random from data.

Every sample is a pure function of the seed and of its number, and the numbers of a step are a pure function of the step. So
the position of a run is one integer, the step; it does not depend on workers, and with another number of processes the same
step has the same global batch. Within a pass each scan of a source is drawn once, in an order that is computed, not stored.
"""

import hashlib
import json
import math
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol, TypeVar

import numpy as np
import pyarrow.compute as pc
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ..volume_ctfm import AIR_HU
from .shards import Box, Manifest, ScanRow

SLOTS = 1000  # of a mixture's round: weights are kept to 1 in 1,000 in every round, not on average
FEISTEL_ROUNDS = 6

SampleT = TypeVar("SampleT")


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One prepared folder in a mixture.

    Args:
        folder: where `prepare` wrote, or `hf://datasets/...`.
        weight: its share of the samples, relative to the other sources'.
        split: only scans of this split; all where empty.
        with_report: only scans that have a report.
        with_segmentation: only scans that have a label map, which is read with them.
        with_labels: only scans of which a finding is stated.
    """

    folder: str
    weight: float = 1.0
    split: str = ""
    with_report: bool = False
    with_segmentation: bool = False
    with_labels: bool = False


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """What is drawn, and how much of it a step.

    Args:
        sources: the mixture.
        seed: of every choice.
        global_batch: samples of an optimizer step over all processes and accumulated batches; SPECTRE's self-supervision
            took 1,536 crops, its report alignment 4,096 pairs.
        crops_per_scan: consecutive samples that come from one scan, from places of their own; 4 as in SPECTRE's paper. Whole
            scans take 1.
        crop_mm: extent of a crop, `(depth, height, width)`. SPECTRE's 128 x 256 x 256 voxels of 1 x 0.5 x 0.5 mm.
        focal_share: of the crops that lie around a finding, where a scan's label map has one.
        max_crop: voxels beyond which a crop is not read, whatever the spacing: 33 MB of int16.
    """

    sources: tuple[SourceConfig, ...]
    seed: int = 0
    global_batch: int = 1536
    crops_per_scan: int = 4
    crop_mm: tuple[float, float, float] = (128.0, 128.0, 128.0)
    focal_share: float = 0.0
    max_crop: Box = (256, 256, 256)


@dataclass(frozen=True, kw_only=True)
class Draw:
    """Sample `number` of a run: a scan, and the seed of everything else about it."""

    number: int
    source: int
    row: int  # of the source's manifest
    seed: int


class Schedule:
    """Sample numbers -> draws."""

    def __init__(self, config: SamplingConfig, labels: Mapping[str, Mapping[str, float]] | None = None) -> None:
        """Args:
        labels: in place of those of the folders, see `Manifest`.
        """
        self.config, self.labels = config, labels
        self.manifests = tuple(Manifest(source.folder, labels) for source in config.sources)
        self.rows = tuple(select_rows(m, s) for m, s in zip(self.manifests, config.sources, strict=True))
        empty = [s.folder for s, rows in zip(config.sources, self.rows, strict=True) if not len(rows)]
        if empty:
            raise ValueError(
                f"No scan is left in {', '.join(empty)}: look at split, with_report, with_segmentation, with_labels."
            )
        self.order = order_mixture([source.weight for source in config.sources], config.seed)  # (SLOTS,) -> source
        self.earlier = np.stack([np.cumsum(self.order == k) - (self.order == k) for k in range(len(self.rows))])

    def draw(self, number: int) -> Draw:
        turn, place = divmod(number, self.config.crops_per_scan)
        round_, slot = divmod(turn, SLOTS)
        source = int(self.order[slot])
        turn_of_source = round_ * int(np.count_nonzero(self.order == source)) + int(self.earlier[source, slot])
        rows = self.rows[source]
        pass_, position = divmod(turn_of_source, len(rows))
        row = int(rows[shuffle(position, len(rows), hash_numbers(self.config.seed, source, pass_))])
        return Draw(number=number, source=source, row=row, seed=hash_numbers(self.config.seed, turn, place, 1))

    def numbers(self, step: int, rank: int = 0, num_processes: int = 1) -> range:
        """See `samples_of_step`."""
        return samples_of_step(self.config.global_batch, step, rank, num_processes)

    def state(self, step: int) -> dict[str, Any]:
        """The position after `step` steps, as plain JSON values; it belongs into a checkpoint."""
        return {"step": step, "data": self.fingerprint()}

    def resume(self, state: dict[str, Any]) -> int:
        """The step to go on with.

        Raises:
            ValueError: the mixture, the seed or the scans are others, so the samples to come would not be those left out.
        """
        if state["data"] != self.fingerprint():
            raise ValueError("The data are not those of the checkpoint: another mixture, seed, batch or manifest.")
        return int(state["step"])

    def fingerprint(self) -> str:
        """Of all that decides what is drawn, apart from where folders lie."""
        settings = asdict(self.config)
        for source in settings["sources"]:
            del source["folder"], source["with_labels"]  # the rows say which scans are left
        digest = hashlib.blake2b(json.dumps(settings).encode(), digest_size=10)
        if self.labels is not None:
            digest.update(json.dumps(self.labels, sort_keys=True).encode())
        for manifest, rows in zip(self.manifests, self.rows, strict=True):
            digest.update(rows.tobytes())
            for chunk in manifest.table.column("scan_id").chunks:
                digest.update(chunk.cast("binary").buffers()[2])
        return digest.hexdigest()


def select_rows(manifest: Manifest, source: SourceConfig) -> np.ndarray:
    """Rows of the manifest that a source draws from."""
    keep = np.ones(len(manifest), np.bool_)
    if source.split:
        keep &= pc.call_function("equal", [manifest.table.column("split"), source.split]).to_numpy(zero_copy_only=False)
    if source.with_report:
        keep &= pc.call_function("not_equal", [manifest.table.column("report_key"), ""]).to_numpy(zero_copy_only=False)
    if source.with_segmentation:
        keep &= pc.call_function("not_equal", [manifest.table.column("places"), ""]).to_numpy(zero_copy_only=False)
    if source.with_labels:
        keep &= pc.call_function("not_equal", [manifest.table.column("labels"), "{}"]).to_numpy(zero_copy_only=False)
    return np.flatnonzero(keep)


def order_mixture(weights: Sequence[float], seed: int) -> np.ndarray:
    """Weights -> the source of each slot of a round, in an order drawn from the seed."""
    if not weights or min(weights) <= 0:
        raise ValueError(f"weights {list(weights)} must be positive.")
    exact = np.array(weights) / sum(weights) * SLOTS
    counts = np.floor(exact).astype(int)
    for index in np.argsort(counts - exact, kind="stable")[: SLOTS - counts.sum()]:
        counts[index] += 1
    if counts.min() == 0:
        raise ValueError(f"weights {list(weights)}: a source has less than 1 of {SLOTS} samples.")
    order = np.repeat(np.arange(len(counts)), counts)
    return np.random.Generator(np.random.Philox(hash_numbers(seed, 2))).permutation(order)


def hash_numbers(*numbers: int) -> int:
    """63 bits that differ for any other numbers."""
    data = ",".join(map(str, numbers)).encode()
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little") >> 1


def samples_of_step(global_batch: int, step: int, rank: int, num_processes: int) -> range:
    """Sample numbers of one process in a step: `num_processes` contiguous, equal parts of the global batch.

    Raises:
        ValueError: the parts are not equal.
    """
    size, left = divmod(global_batch, num_processes)
    if left:
        raise ValueError(f"A global batch of {global_batch} does not divide among {num_processes}.")
    first = step * global_batch + rank * size
    return range(first, first + size)


def shuffle(position: int, size: int, seed: int) -> int:
    """Where `position` goes in a permutation of `range(size)`: a Feistel network over the next power of 4, walked until it
    lands inside."""
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = position >> half, position & mask
        for turn in range(FEISTEL_ROUNDS):
            left, right = right, left ^ (hash_numbers(seed, turn, right) & mask)
        position = left << half | right
        if position < size:
            return position


# --- crops ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Crop:
    """A box of a scan as it was scanned."""

    number: int
    seed: int
    scan_id: str
    start: Box
    spacing: tuple[float, float, float]
    hu: Tensor  # (D, H, W) int16
    segmentation: Tensor | None = None  # (D, H, W) uint8


@dataclass(frozen=True, kw_only=True)
class CropBatch:
    """Crops of unlike shapes, filled up with air at their far ends."""

    hu: Tensor  # (b, D, H, W) int16
    shape: Tensor  # (b, 3) int64, voxels that are real
    spacing: Tensor  # (b, 3) float32, mm
    seeds: Tensor  # (b,) int64, of the views
    numbers: tuple[int, ...]
    scan_ids: tuple[str, ...]
    segmentation: Tensor | None = None  # (b, D, H, W) uint8

    def to(self, device: torch.device | str) -> "CropBatch":
        """With the voxels on a device; the rest is small and stays."""
        labels = None if self.segmentation is None else self.segmentation.to(device, non_blocking=True)
        return replace(self, hu=self.hu.to(device, non_blocking=True), segmentation=labels)

    def pin_memory(self) -> "CropBatch":
        labels = None if self.segmentation is None else self.segmentation.pin_memory()
        return replace(self, hu=self.hu.pin_memory(), segmentation=labels)


class CropDataset(Dataset[Crop]):
    """Sample number -> crop."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule

    def __getitem__(self, index: int) -> Crop:
        draw = self.schedule.draw(index)
        manifest, config = self.schedule.manifests[draw.source], self.schedule.config
        scan = manifest[draw.row]
        start, size = place_crop(scan, config.crop_mm, config.max_crop, draw.seed, config.focal_share)
        segmentation = None
        if config.sources[draw.source].with_segmentation:
            labels = manifest.read_box(scan, start, size, "segmentation")
            segmentation = torch.from_numpy(labels.astype(np.uint8))
        return Crop(
            number=index,
            seed=draw.seed,
            scan_id=scan.scan_id,
            start=start,
            spacing=scan.spacing,
            hu=torch.from_numpy(manifest.read_box(scan, start, size)),
            segmentation=segmentation,
        )


def place_crop(
    scan: ScanRow, crop_mm: Sequence[float], max_crop: Sequence[int], seed: int, focal_share: float = 0.0
) -> tuple[Box, Box]:
    """Start and size in voxels: as many as cover `crop_mm`, no more than the scan has, uniform over where they lie within
    the body, or hold all of it along an axis on which it is shorter; for `focal_share` of the seeds a voxel of one of the
    scan's findings, each as likely, lies anywhere in the middle three fifths."""
    random = np.random.Generator(np.random.Philox(seed))
    chances = random.random(3)
    place = None
    if focal_share and scan.places and random.random() < focal_share:
        voxels = scan.places[sorted(scan.places)[int(random.integers(len(scan.places)))]]
        place = voxels[int(random.integers(len(voxels)))]
    starts, sizes = [], []
    for axis, chance in enumerate(chances):
        wanted = min(math.ceil(crop_mm[axis] / scan.spacing[axis]), max_crop[axis], scan.shape[axis])
        low, high = scan.body_start[axis], scan.body_stop[axis] - wanted
        low, high = min(low, high), max(low, high)
        if place is not None:
            low, high = place[axis] - int(0.8 * wanted), place[axis] - int(0.2 * wanted)
        low, high = (min(max(end, 0), scan.shape[axis] - wanted) for end in (low, high))
        starts.append(low + int(chance * (high - low + 1)))
        sizes.append(wanted)
    return (starts[0], starts[1], starts[2]), (sizes[0], sizes[1], sizes[2])


def collate_crops(crops: Sequence[Crop]) -> CropBatch:
    depth, height, width = (max(crop.hu.shape[axis] for crop in crops) for axis in range(3))
    hu = torch.full((len(crops), depth, height, width), AIR_HU, dtype=torch.int16)
    for place, crop in zip(hu, crops, strict=True):
        d, h, w = crop.hu.shape
        place[:d, :h, :w] = crop.hu
    segmentation = None
    if all(crop.segmentation is not None for crop in crops):
        segmentation = torch.zeros(hu.shape, dtype=torch.uint8)
        for place, crop in zip(segmentation, crops, strict=True):
            assert crop.segmentation is not None
            d, h, w = crop.hu.shape
            place[:d, :h, :w] = crop.segmentation
    return CropBatch(
        segmentation=segmentation,
        hu=hu,
        shape=torch.tensor([crop.hu.shape for crop in crops]),
        spacing=torch.tensor([crop.spacing for crop in crops]),
        seeds=torch.tensor([crop.seed for crop in crops]),
        numbers=tuple(crop.number for crop in crops),
        scan_ids=tuple(crop.scan_id for crop in crops),
    )


# --- whole scans ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ScanSample:
    """A whole scan with what is said about it."""

    number: int
    seed: int
    scan_id: str
    hu: Tensor  # (D, H, W) int16
    affine: np.ndarray  # (4, 4), (d, h, w, 1) -> RAS+ mm
    report: str
    labels: dict[str, float]
    segmentation: Tensor | None = None  # (D, H, W) uint8


def read_scan(
    manifest: Manifest, scan: ScanRow, draw: Draw | None = None, with_segmentation: bool = False
) -> ScanSample:
    """All of a scan; outside a run there is no draw."""
    hu = manifest.read_box(scan, (0, 0, 0), scan.shape)
    segmentation = None
    if with_segmentation:
        segmentation = torch.from_numpy(manifest.read_box(scan, (0, 0, 0), scan.shape, "segmentation").astype(np.uint8))
    return ScanSample(
        number=draw.number if draw else 0,
        seed=draw.seed if draw else 0,
        scan_id=scan.scan_id,
        hu=torch.from_numpy(hu),
        affine=scan.affine,
        report=scan.report,
        labels=scan.labels,
        segmentation=segmentation,
    )


class ScanDataset(Dataset[ScanSample]):
    """Sample number -> whole scan and report."""

    def __init__(self, schedule: Schedule) -> None:
        if schedule.config.crops_per_scan != 1:
            raise ValueError("Whole scans take crops_per_scan = 1.")
        self.schedule = schedule

    def __getitem__(self, index: int) -> ScanSample:
        draw = self.schedule.draw(index)
        manifest = self.schedule.manifests[draw.source]
        source = self.schedule.config.sources[draw.source]
        return read_scan(manifest, manifest[draw.row], draw, source.with_segmentation)


# --- the loader ----------------------------------------------------------------------------------------------------------


class Numbered(Protocol):
    """What tells which samples a step has: `Schedule`, or `drawn.DrawingSchedule`."""

    def numbers(self, step: int, rank: int = 0, num_processes: int = 1) -> range: ...


class StepBatches(Sampler[list[int]]):
    """The numbers of one process, batch by batch, from `start_step` to before `stop_step`."""

    def __init__(
        self,
        schedule: Numbered,
        *,
        start_step: int,
        stop_step: int,
        batch_size: int,
        rank: int = 0,
        num_processes: int = 1,
    ) -> None:
        self.schedule, self.batch_size = schedule, batch_size
        self.steps, self.rank, self.num_processes = range(start_step, stop_step), rank, num_processes
        if len(schedule.numbers(0, rank, num_processes)) % batch_size:
            raise ValueError(
                f"{len(schedule.numbers(0, rank, num_processes))} samples a step and process do not divide into batches of "
                f"{batch_size}."
            )

    def __iter__(self) -> Iterator[list[int]]:
        for step in self.steps:
            numbers = self.schedule.numbers(step, self.rank, self.num_processes)
            for first in range(0, len(numbers), self.batch_size):
                yield list(numbers[first : first + self.batch_size])

    def __len__(self) -> int:
        return len(self.steps) * len(self.schedule.numbers(0, self.rank, self.num_processes)) // self.batch_size


def load_crops(schedule: Schedule, batches: StepBatches, *, num_workers: int = 0) -> DataLoader[Crop]:
    """Batches of crops, in order. The loader is rank-disjoint by itself: no `accelerator.prepare` and no sampler."""
    return _load(CropDataset(schedule), batches, collate_crops, num_workers)


def load_scans(schedule: Schedule, batches: StepBatches, *, num_workers: int = 0) -> DataLoader[ScanSample]:
    """Batches of whole scans, as lists: they have shapes of their own until they are resampled."""
    return _load(ScanDataset(schedule), batches, list, num_workers)


def ignore_signals(_: int) -> None:
    """What a loader process does first. The launcher asks all processes of a group to leave, and the loop needs its loaders
    until every process of the run agreed on a step; they end with the loop."""
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def _load(dataset: Dataset[SampleT], batches: StepBatches, collate: Any, num_workers: int) -> DataLoader[SampleT]:
    return DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=num_workers,
        worker_init_fn=ignore_signals,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=False,
    )
