"""Volume -> shard on disk -> any box of its voxels: the format that `prepare` writes and `data` reads.

A shard is an Arrow IPC file, one record batch a scan, memory-mapped; `datasets` opens it as "arrow". A scan's HU are int16,
lossless, cut into blocks of `BLOCK` voxels that are compressed one by one, so that a crop costs the blocks it touches: each
value is replaced by its difference to the neighbour in the row, signs are folded into the lowest bit, low and high bytes are
parted, then zstd. The manifest is one Arrow IPC file, one row a scan; reports and labels are there and nowhere else.
"""

import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
from fsspec.core import url_to_fs

from ..volume_ctfm import AIR_HU
from ..whole_files import written_whole

Box = tuple[int, int, int]

# 262 kB of voxels: a 128 x 256 x 256 crop touches at most 5 x 5 x 5 blocks; 16 x 64 x 64 compresses 1 % worse (measured).
BLOCK: Box = (32, 64, 64)
# On 512 x 512 abdominal slices level 1 gives 29.9 % of the int16 bytes, level 3 gives 30.5 %, at half the speed (measured).
ZSTD_LEVEL = 1
OPEN_SHARDS = 128  # of a process; each holds one file descriptor of the usual 1,024

SHARD_SCHEMA = pa.schema(
    [
        pa.field("scan_id", pa.string(), nullable=False),
        pa.field("shape", pa.list_(pa.int32(), 3), nullable=False),
        pa.field("block", pa.list_(pa.int32(), 3), nullable=False),
        pa.field("blocks", pa.large_list(pa.large_binary()), nullable=False),
        pa.field("segmentation", pa.large_list(pa.large_binary()), nullable=False),  # its blocks, or none
    ]
)
MANIFEST_SCHEMA = pa.schema(
    [
        pa.field("scan_id", pa.string(), nullable=False),
        pa.field("shard", pa.int32(), nullable=False),
        pa.field("row", pa.int32(), nullable=False),
        pa.field("shape", pa.list_(pa.int32(), 3), nullable=False),  # (depth, height, width)
        pa.field("spacing", pa.list_(pa.float64(), 3), nullable=False),  # mm
        pa.field("affine", pa.list_(pa.float64(), 16), nullable=False),  # (d, h, w, 1) -> RAS+ mm, row by row
        pa.field("body_start", pa.list_(pa.int32(), 3), nullable=False),  # the box of what is denser than lung
        pa.field("body_stop", pa.list_(pa.int32(), 3), nullable=False),
        pa.field("patient", pa.string(), nullable=False),  # keyed hash: split by this
        pa.field("region", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("report", pa.string(), nullable=False),
        pa.field("report_key", pa.string(), nullable=False),  # equal reports have equal keys
        pa.field("labels", pa.string(), nullable=False),  # JSON, finding -> number
        pa.field(
            "places", pa.string(), nullable=False
        ),  # JSON, finding -> some of its voxels; empty without segmentation
        pa.field("content", pa.string(), nullable=False),  # keyed hash of the voxels
        pa.field("repairs", pa.list_(pa.string()), nullable=False),
        pa.field("warnings", pa.list_(pa.string()), nullable=False),
    ]
)


# --- blocks --------------------------------------------------------------------------------------------------------------


def encode_block(hu: np.ndarray) -> bytes:
    """`(d, h, w)` int16 -> compressed bytes."""
    step = hu.copy()
    step[..., 1:] -= hu[..., :-1]  # wraps around, and so does the sum that undoes it
    folded = ((step << 1) ^ (step >> 15)).view(np.uint16).ravel()
    parted = np.concatenate([(folded & 255).astype(np.uint8), (folded >> 8).astype(np.uint8)])
    return zstd().compress(parted.data, asbytes=True)


def decode_block(data: pa.Buffer | bytes, shape: Box) -> np.ndarray:
    """Compressed bytes -> `(d, h, w)` int16."""
    size = shape[0] * shape[1] * shape[2]
    parted = np.frombuffer(zstd().decompress(data, decompressed_size=2 * size), np.uint8)
    folded = parted[size:].astype(np.uint16)
    folded <<= 8
    folded |= parted[:size]
    sign = (folded & 1).view(np.int16)
    np.negative(sign, out=sign)
    folded >>= 1
    step = folded.view(np.int16)
    step ^= sign
    return np.cumsum(step.reshape(shape), axis=2, dtype=np.int16)


@lru_cache(maxsize=1)
def zstd() -> pa.Codec:
    return pa.Codec("zstd", compression_level=ZSTD_LEVEL)


def encode_scan(hu: np.ndarray, block: Box = BLOCK) -> Iterator[bytes]:
    """`(depth, height, width)` int16 -> its blocks, width fastest; those at the far edges are smaller."""
    if hu.dtype != np.int16 or hu.ndim != 3:
        raise ValueError(f"hu must be int16 (depth, height, width), not {hu.dtype} with {hu.ndim} axes.")
    for start in itertools.product(*(range(0, size, step) for size, step in zip(hu.shape, block, strict=True))):
        yield encode_block(
            np.ascontiguousarray(hu[tuple(slice(a, a + step) for a, step in zip(start, block, strict=True))])
        )


# --- shards --------------------------------------------------------------------------------------------------------------


class ShardWriter:
    """Writes scans to `path`, which appears, whole, when the `with` block ends well."""

    def __init__(self, path: Path) -> None:
        self.path, self.partial, self.num_rows = path, path.with_suffix(".partial"), 0

    def __enter__(self) -> "ShardWriter":
        self.file = self.partial.open("wb")
        self.writer = pa.ipc.new_file(self.file, SHARD_SCHEMA)
        return self

    def add(self, scan_id: str, hu: np.ndarray, block: Box = BLOCK, segmentation: np.ndarray | None = None) -> int:
        """Returns the scan's row."""
        row = {"scan_id": scan_id, "shape": hu.shape, "block": block, "blocks": list(encode_scan(hu, block))}
        labels = [] if segmentation is None else list(encode_scan(segmentation.astype(np.int16), block))
        row["segmentation"] = labels
        self.writer.write_batch(pa.RecordBatch.from_pylist([row], schema=SHARD_SCHEMA))
        self.num_rows += 1
        return self.num_rows - 1

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.writer.close()
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        if kind is None:
            os.replace(self.partial, self.path)
        else:
            self.partial.unlink()


class Shard:
    """A shard, opened. A local file is memory-mapped; from `hf://` and other remote places a scan's row is fetched whole."""

    def __init__(self, path: str) -> None:
        self.reader = pa.ipc.open_file(open_file(path))

    def read_box(self, row: int, start: Sequence[int], size: Sequence[int], column: str = "blocks") -> np.ndarray:
        """Voxels `start` to `start + size` of a scan as int16 `(size)`; what lies outside the scan is air. Of the column
        "segmentation" its labels, 0 outside."""
        batch = self.reader.get_batch(row)
        shape, block = (batch.column(name)[0].as_py() for name in ("shape", "block"))
        blocks = batch.column(column).values
        grid = [-(-extent // step) for extent, step in zip(shape, block, strict=True)]
        out = np.full(tuple(size), AIR_HU if column == "blocks" else 0, np.int16)
        touched = [
            range(max(0, a) // step, -(-min(extent, a + n) // step))
            for a, n, step, extent in zip(start, size, block, shape, strict=True)
        ]
        for index in itertools.product(*touched):
            first = [i * step for i, step in zip(index, block, strict=True)]
            stop = [min(a + step, extent) for a, step, extent in zip(first, block, shape, strict=True)]
            number = (index[0] * grid[1] + index[1]) * grid[2] + index[2]
            depth, height, width = (b - a for a, b in zip(first, stop, strict=True))
            voxels = decode_block(blocks[number].as_buffer(), (depth, height, width))
            inner, outer = [], []
            for a, b, wanted, n in zip(first, stop, start, size, strict=True):
                low, high = max(a, wanted), min(b, wanted + n)
                inner.append(slice(low - a, high - a))
                outer.append(slice(low - wanted, high - wanted))
            out[tuple(outer)] = voxels[tuple(inner)]
        return out


def open_file(path: str) -> pa.NativeFile:
    """Maps a local file into memory; opens a remote one for reading by range."""
    if "://" not in path:
        return pa.memory_map(path)
    system, inside = url_to_fs(path)
    return pa.PythonFile(system.open(inside, "rb"), mode="r")


@lru_cache(maxsize=OPEN_SHARDS)
def open_shard(path: str) -> Shard:
    return Shard(path)


def shard_name(number: int) -> str:
    return f"shards/{number:06d}.arrow"


# --- manifest ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ScanRow:
    """One scan of a manifest."""

    scan_id: str
    shard: int
    row: int
    shape: Box
    spacing: tuple[float, float, float]
    affine: np.ndarray
    body_start: Box
    body_stop: Box
    patient: str
    region: str
    split: str
    report: str
    report_key: str
    labels: dict[str, float]
    places: dict[str, list[Box]]


class Manifest:
    """The scans of a prepared folder (or `hf://datasets/...`), memory-mapped: opening costs the same for 10 and 250,000."""

    def __init__(self, folder: str | Path, labels: Mapping[str, Mapping[str, float]] | None = None) -> None:
        """Args:
        labels: scan_id -> finding -> 1 or 0, in place of those that were prepared; a scan that it lacks has none.
        """
        self.folder, self.labels = str(folder), labels
        path = f"{self.folder}/manifest.arrow"
        self.table = pa.ipc.open_file(open_file(path)).read_all()
        if labels is not None:
            column = [json.dumps(labels.get(scan, {})) for scan in self.table.column("scan_id").to_pylist()]
            self.table = self.table.set_column(
                self.table.schema.get_field_index("labels"), MANIFEST_SCHEMA.field("labels"), [column]
            )

    @property
    def structures(self) -> dict[int, str]:
        """Names of the segmentation's labels."""
        with open_file(f"{self.folder}/structures.json") as file:
            return {int(label): name for label, name in json.loads(file.read()).items()}

    def __reduce__(self) -> tuple[type, tuple[str, Mapping[str, Mapping[str, float]] | None]]:
        return Manifest, (self.folder, self.labels)  # a worker process maps the file itself

    def __len__(self) -> int:
        return self.table.num_rows

    def __getitem__(self, index: int) -> ScanRow:
        values = {name: self.table.column(name)[index].as_py() for name in ScanRow.__dataclass_fields__}
        for name in ("shape", "spacing", "body_start", "body_stop"):
            values[name] = tuple(values[name])
        values["affine"] = np.array(values["affine"]).reshape(4, 4)
        values["labels"] = json.loads(values["labels"])
        values["places"] = json.loads(values["places"] or "{}")
        return ScanRow(**values)

    def labels_of(self, index: int) -> dict[str, float]:
        """Finding -> number, without the rest of the row."""
        return json.loads(self.table.column("labels")[index].as_py())

    def read_box(self, scan: ScanRow, start: Sequence[int], size: Sequence[int], column: str = "blocks") -> np.ndarray:
        """See `Shard.read_box`."""
        return open_shard(f"{self.folder}/{shard_name(scan.shard)}").read_box(scan.row, start, size, column)


def agree_on_structures(tables: Mapping[str, Mapping[int, str]]) -> dict[int, str]:
    """Names of label maps' numbers in several folders -> those of all; a folder without names has no label maps and no say.

    A folder that names only some of the structures is refused, too: in its label maps the others are background, though the
    scans may well have them.

    Raises:
        ValueError: two folders have other names or numbers.
    """
    named = {folder: dict(table) for folder, table in tables.items() if table}
    if not named:
        return {}
    first = next(iter(named))
    for folder, table in named.items():
        for number in sorted(table.keys() | named[first].keys()):
            here, there = (names.get(number, "nothing") for names in (table, named[first]))
            if here != there:
                raise ValueError(
                    f"Label {number} of label maps is {here!r} in {folder} and {there!r} in {first} (structures.json). "
                    "Write the label maps of both with the same numbers and names, or use one of the two."
                )
    return named[first]


def write_manifest(path: Path, rows: Iterable[dict]) -> None:
    """Writes rows of `MANIFEST_SCHEMA`, whole or not at all."""
    with written_whole(path) as partial, partial.open("wb") as file, pa.ipc.new_file(file, MANIFEST_SCHEMA) as writer:
        remaining = iter(rows)
        while some := list(itertools.islice(remaining, 65536)):
            writer.write_batch(pa.RecordBatch.from_pylist(some, schema=MANIFEST_SCHEMA))
