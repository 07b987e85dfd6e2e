"""Scans -> descriptors of their crops on disk, encoded once by the frozen local transformer for the first alignment phase.

One safetensors file a shard, in the order of the manifest: 85,689 scans of 36 crops at 2 x 1080 numbers of 2 bytes are
13 GB. Files appear whole, so a killed run goes on with those that are missing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from ..image_processing_ctfm import CTFMImageProcessor
from ..modeling_ctfm import CTFMVisionModel
from ..whole_files import written_whole
from .data import ScanSample, Schedule, hash_numbers, read_scan
from .processes import Processes
from .views import ViewConfig, cut_scans, vary_scan


@dataclass(frozen=True, kw_only=True)
class DescriptorSample:
    """A scan as the first alignment phase sees it."""

    number: int
    seed: int
    scan_id: str
    report: str
    labels: dict[str, float]
    descriptors: Tensor  # (g, t, 2e)
    crop_grid: Tensor  # (3,)
    structures: Tensor | None = None  # (g, 256) uint8: voxels of each structure in each crop, up to 255


def encode_sources(
    schedule: Schedule,
    vision: CTFMVisionModel,
    processor: CTFMImageProcessor,
    folder: Path,
    processes: Processes,
    varied: ViewConfig | None = None,
    with_structures: bool = False,
) -> None:
    """Encodes all scans that the schedule draws from, each shard by one process. Returns when this process is done."""
    device = next(vision.parameters()).device
    todo = []
    for source, (manifest, rows) in enumerate(zip(schedule.manifests, schedule.rows, strict=True)):
        shards = manifest.table.column("shard").to_numpy()[rows]
        for shard in dict.fromkeys(shards.tolist()):
            path = descriptor_path(folder, source, shard)
            todo.append((path, source, manifest, rows[shards == shard]))
    mine = todo[processes.rank :: processes.count]
    missing = [task for task in mine if not task[0].is_file()]
    was_training = vision.training
    vision.eval()
    for path, source, manifest, rows in tqdm(missing, desc="descriptors", unit="shard", disable=processes.rank > 0):
        tensors: dict[str, Tensor] = {}
        for row in rows:
            scan = manifest[int(row)]
            sample = read_scan(manifest, scan, with_segmentation=with_structures)
            found = encode_scan(sample, vision, processor, device, varied, hash_numbers(source, int(row)))
            tensors |= {f"{scan.scan_id}.{name}": tensor for name, tensor in found.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as partial:
            save_file(tensors, partial)
    vision.train(was_training)


@torch.no_grad()
def encode_scan(
    sample: ScanSample,
    vision: CTFMVisionModel,
    processor: CTFMImageProcessor,
    device: torch.device,
    varied: ViewConfig | None = None,
    seed: int = 0,
) -> dict[str, Tensor]:
    """`descriptors`, `crop_grid` and, where the sample holds a label map, `structures` of one scan; see `DescriptorSample`."""
    cut = cut_scans([sample], processor, device)
    if varied is not None:
        cut["pixel_values"] = vary_scan(cut["pixel_values"], varied, seed)
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        found = vision.encode_crops(cut["pixel_values"], output_tokens=False).pooler_output
    assert found is not None
    tensors = {"descriptors": found[0].half().cpu(), "crop_grid": cut["crop_grid"][0].cpu()}
    if "labels" in cut:
        labels = cut["labels"][0].flatten(1).clamp(min=0).cpu()  # outside the scan is nothing, too
        counts = torch.zeros(len(labels), 256, dtype=torch.int64).scatter_add_(1, labels, torch.ones_like(labels))
        tensors["structures"] = counts.clamp(max=255).to(torch.uint8)
    return tensors


def descriptor_path(folder: Path, source: int, shard: int) -> Path:
    return folder / f"{source:02d}" / f"{shard:06d}.safetensors"


@lru_cache(maxsize=64)
def open_descriptors(path: Path) -> safe_open:
    return safe_open(path, framework="pt")


class DescriptorDataset(Dataset[DescriptorSample]):
    """Sample number -> cached descriptors and report."""

    def __init__(self, schedule: Schedule, folder: Path) -> None:
        self.schedule, self.folder = schedule, folder

    def __getitem__(self, index: int) -> DescriptorSample:
        draw = self.schedule.draw(index)
        scan = self.schedule.manifests[draw.source][draw.row]
        stored = open_descriptors(descriptor_path(self.folder, draw.source, scan.shard))
        mapped = f"{scan.scan_id}.structures"
        return DescriptorSample(
            number=index,
            seed=draw.seed,
            scan_id=scan.scan_id,
            report=scan.report,
            labels=scan.labels,
            descriptors=stored.get_tensor(f"{scan.scan_id}.descriptors"),
            crop_grid=stored.get_tensor(f"{scan.scan_id}.crop_grid"),
            structures=stored.get_tensor(mapped) if mapped in stored.keys() else None,  # noqa: SIM118
        )


def collate_descriptors(samples: Sequence[DescriptorSample]) -> tuple[list[DescriptorSample], dict[str, Tensor]]:
    """Descriptors of unlike numbers of crops, filled up with zeros that `crop_mask` tells apart."""
    most = max(len(sample.descriptors) for sample in samples)
    first = samples[0].descriptors
    descriptors = torch.zeros(len(samples), most, *first.shape[1:])
    crop_mask = torch.zeros(len(samples), most, dtype=torch.bool)
    for row, real, sample in zip(descriptors, crop_mask, samples, strict=True):
        row[: len(sample.descriptors)] = sample.descriptors.float()
        real[: len(sample.descriptors)] = True
    grids = torch.stack([sample.crop_grid for sample in samples])
    return list(samples), {"descriptors": descriptors, "crop_mask": crop_mask, "crop_grid": grids}
