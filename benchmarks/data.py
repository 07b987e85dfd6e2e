"""Prepared shards beside the NIfTI file they were made of: seconds of a random crop, bytes on disk, and how long a manifest of
250,000 scans takes to open. JSON on standard output.

    python benchmarks/data.py [--scan FILE] [--others FILE...] [--shape 300 512 512] [--crops 12] [--rows 250000]

The scan is a phantom of `--shape`, with a scanner's noise, or `--scan`, repeated along depth until it is as deep (a block of a
shard holds 32 slices, so a scan of more than that does not meet itself in one). It is written as .nii.gz and through
`prepare`. `--others` are real files of which the share of bytes alone is measured. Everything is read from the page cache, so
this is what decompression costs; a disk adds to whatever has more bytes to read. Three ways to a crop of the .nii.gz:

- nibabel   `dataobj[box]`: what a part of a compressed file costs
- SimpleITK the whole file, then the box, as MONAI's readers do
- ctfm      the whole file through `read_volume`, checks included

`times_faster` is against the fastest of the three, in processor seconds.
"""

import argparse
import json
import math
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pyarrow as pa
import SimpleITK
import torch
from ctfm import read_volume
from ctfm.phantom.make import make_phantom
from ctfm.train.data import SamplingConfig, Schedule, SourceConfig
from ctfm.train.prepare import PrepareConfig, prepare
from ctfm.train.shards import BLOCK, MANIFEST_SCHEMA, Manifest
from ctfm.volume_ctfm import Volume

CROP = (128, 256, 256)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scan", type=Path)
    parser.add_argument("--others", nargs="*", default=[])
    parser.add_argument("--shape", type=int, nargs=3, default=(300, 512, 512))
    parser.add_argument("--crops", type=int, default=12)
    parser.add_argument("--rows", type=int, default=250_000)
    given = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {"machine": {"processor": platform.processor() or platform.machine(), "threads": 1}}
    found["other_scans"] = [measure_share(path) for path in given.others]
    with tempfile.TemporaryDirectory() as folder:
        volume = make_volume(tuple(given.shape)) if given.scan is None else repeat_scan(given.scan, given.shape[0])
        source = "phantom" if given.scan is None else f"{given.scan.name}, repeated"
        found |= measure_scan(volume, source, Path(folder), given.crops)
        found["manifest"] = measure_manifest(Path(folder), given.rows)
    print(json.dumps(found, indent=1))


def make_volume(shape: tuple[int, int, int]) -> Volume:
    phantom = make_phantom(0, shape=shape)
    return Volume(hu=phantom.hu.numpy(), affine=phantom.affine)


def repeat_scan(path: Path, depth: int) -> Volume:
    volume = read_volume(path)
    return Volume(hu=np.concatenate([volume.hu] * -(-depth // len(volume.hu)))[:depth], affine=volume.affine)


def measure_scan(volume: Volume, source: str, folder: Path, num_crops: int) -> dict[str, Any]:
    path, shape = folder / "scan.nii.gz", volume.hu.shape
    volume.to_nifti(path)
    report = str(make_phantom(0, shape=(4, 8, 8)).report).replace('"', "'")
    (folder / "table.csv").write_text(f'path,report,patient,split\n{path.name},"{report}",1,train\n')
    start = time.perf_counter()
    config = PrepareConfig(
        layout="csv", source=folder / "table.csv", out=folder / "out", private=folder / "private", scans_per_shard=1
    )
    fingerprint = prepare(config)
    prepared_s = time.perf_counter() - start
    manifest = Manifest(folder / "out")
    scan = manifest[0]
    random = np.random.default_rng(0)
    size = tuple(min(n, m) for n, m in zip(CROP, shape, strict=True))
    boxes = [tuple(int(random.integers(m - n + 1)) for n, m in zip(size, shape, strict=True)) for _ in range(num_crops)]
    expected = [volume.hu[tuple(slice(a, a + n) for a, n in zip(box, size, strict=True))] for box in boxes]
    hu = volume.hu

    def from_shard(box: tuple[int, ...]) -> np.ndarray:
        return manifest.read_box(scan, box, size)

    def cut(array: np.ndarray, box: tuple[int, ...]) -> np.ndarray:
        return array[tuple(slice(a, a + n) for a, n in zip(box, size, strict=True))]

    def nibabel_box(box: tuple[int, ...]) -> np.ndarray:
        image = nibabel.nifti1.Nifti1Image.from_filename(path)
        return np.asanyarray(image.dataobj[tuple(slice(a, a + n) for a, n in zip(box[::-1], size[::-1], strict=True))])

    ways: dict[str, Callable[[tuple[int, ...]], np.ndarray]] = {
        "shard": from_shard,
        "nibabel": nibabel_box,
        "SimpleITK": lambda box: cut(SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path))), box),
        "ctfm": lambda box: cut(read_volume(path).hu, box),
    }
    from_shard(boxes[0])  # opens the shard
    seconds = {name: time_crops(read, boxes if name == "shard" else boxes[:2]) for name, read in ways.items()}
    assert all(np.array_equal(from_shard(box), wanted) for box, wanted in zip(boxes, expected, strict=True))
    fastest_file = min(seconds[name]["cpu_s"] for name in ways if name != "shard")
    return {
        "scan": {
            "source": source,
            "shape": shape,
            "prepared_in_s": round(prepared_s, 1),
            "noise_hu": round(estimate_noise(hu), 1),
            "share_of_int16": fingerprint["shard_bytes_per_int16_byte"],
            "nii_gz_share_of_int16": round(path.stat().st_size / (2 * hu.size), 4),
        },
        "crop": {
            "voxels": size,
            "seconds": seconds,
            "unpacked_mb_per_cpu_s": round(2 * touched_voxels(boxes, size, shape) / 1e6 / seconds["shard"]["cpu_s"]),
            "times_faster": round(fastest_file / seconds["shard"]["cpu_s"], 1),
        },
    }


def time_crops(read: Callable[[tuple[int, ...]], np.ndarray], boxes: list[tuple[int, ...]]) -> dict[str, float]:
    """Medians of a crop."""
    wall, cpu = [], []
    for box in boxes:
        start, used = time.perf_counter(), time.process_time()
        read(box)
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - used)
    return {"wall_s": round(statistics.median(wall), 4), "cpu_s": round(statistics.median(cpu), 4)}


def touched_voxels(boxes: list[tuple[int, ...]], size: tuple[int, ...], shape: tuple[int, ...]) -> float:
    """Of the blocks that a box touches, on average: what is unpacked for it."""
    total = 0
    for box in boxes:
        sides = zip(box, size, BLOCK, shape, strict=True)
        total += math.prod(min(-(-(a + n) // step) * step, most) - a // step * step for a, n, step, most in sides)
    return total / len(boxes)


def estimate_noise(hu: np.ndarray) -> float:
    """HU, of soft tissue: the median over 8 x 8 squares of the standard deviation of differences of neighbours, by root 2."""
    depth, height, width = (n // 8 * 8 for n in hu.shape)
    step = np.diff(hu[:depth:8, :height, :width].astype(np.float32), axis=2, append=0)
    level = hu[:depth:8, :height, :width].reshape(-1, height // 8, 8, width // 8, 8).mean((2, 4))
    spread = step.reshape(-1, height // 8, 8, width // 8, 8)[..., :7].std((2, 4)) / math.sqrt(2)
    tissue = (level > 20) & (level < 90)
    return float(np.median(spread[tissue]))


def measure_share(name: str) -> dict[str, Any]:
    """A real scan's bytes in a shard and as it lies on disk."""
    path = Path(name)
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / "table.csv", Path(folder) / "out"
        source.write_text(f"path\n{path.resolve()}\n")
        found = prepare(PrepareConfig(layout="csv", source=source, out=out, private=Path(folder) / "private"))
        scan = Manifest(out)[0]
        hu = Manifest(out).read_box(scan, (0, 0, 0), scan.shape)
    return {
        "scan": path.name,
        "shape": scan.shape,
        "noise_hu": round(estimate_noise(hu), 1),
        "share_of_int16": found["shard_bytes_per_int16_byte"],
        "file_share_of_int16": round(path.stat().st_size / (2 * hu.size), 4),
    }


def measure_manifest(folder: Path, num_rows: int) -> dict[str, Any]:
    """Rows are the scan's, with ids and keys of their own. Opening is what every process of a run does first: the manifest, one
    of its rows, and the plan of a run over all of them."""
    (first,) = Manifest(folder / "out").table.to_pylist()
    table = pa.concat_tables([pa.Table.from_pylist([first] * 1000, schema=MANIFEST_SCHEMA)] * -(-num_rows // 1000))
    table = table.slice(0, num_rows)
    keys = pa.array([f"{number:020x}" for number in range(num_rows)])
    for name in ("scan_id", "patient", "content", "report_key"):
        table = table.set_column(table.schema.get_field_index(name), MANIFEST_SCHEMA.field(name), keys)
    path = folder / "large" / "manifest.arrow"
    path.parent.mkdir()
    with path.open("wb") as file, pa.ipc.new_file(file, MANIFEST_SCHEMA) as writer:
        for batch in table.combine_chunks().to_batches(65536):  # as `write_manifest` cuts them
            writer.write_batch(batch)
    start = time.perf_counter(), time.process_time()
    manifest = Manifest(path.parent)
    row = manifest[num_rows - 1]
    opened = time.perf_counter(), time.process_time()
    sources = (SourceConfig(folder=str(path.parent), split="train", with_report=True),)
    schedule = Schedule(SamplingConfig(sources=sources))
    schedule.state(0)
    schedule.draw(10**9)
    planned = time.perf_counter(), time.process_time()
    assert int(row.scan_id, 16) == num_rows - 1
    return {
        "rows": num_rows,
        "bytes": path.stat().st_size,
        "open_and_read_a_row": {"wall_s": round(opened[0] - start[0], 3), "cpu_s": round(opened[1] - start[1], 3)},
        "plan_a_run": {"wall_s": round(planned[0] - opened[0], 3), "cpu_s": round(planned[1] - opened[1], 3)},
    }


if __name__ == "__main__":
    main()
