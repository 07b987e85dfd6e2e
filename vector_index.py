"""Features of `ctfm embed` -> an index of vectors that `ctfm search` asks: `ctfm index`. Needs faiss, pip install ".[search]".

A folder holds index.json (what it was made of), scans.parquet (row -> scan), and for each kind of vector KIND.faiss:
`scan_features` (scans alike), `image_embeds` (scans that a text describes), and with --crops `crop_embeds` (regions alike) with
crops.parquet (row -> scan and place). Vectors are centred, apart from those that texts are compared with, and of length 1: a
score is a cosine. Up to `EXACT_UP_TO` vectors are compared one by one; more lie in lists of 16-bit numbers around centres, of
which the nearest are searched (benchmarks/search.py).
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import load_file, save_file

from .installation import how_to_install
from .whole_files import write_json

try:  # --help and a clear sentence need none of it
    import faiss
except ImportError:
    HAS_FAISS = False
else:
    HAS_FAISS = True

FEATURES = "features.parquet"
EXACT_UP_TO = 20_000  # below, one by one takes a few milliseconds and misses nothing
LISTS_SEARCHED = 32
VECTORS_PER_LIST = 64  # that its centre is found by
ROWS_AT_ONCE = 10_000
WHOLE = ("scan_features", "image_embeds")
CROPS = "crop_embeds"
CENTRED = ("scan_features", CROPS)  # their common part says nothing; texts are compared with image_embeds as they are
Batches = Callable[[], Iterator[np.ndarray]]  # (n, f) again from the start


class VectorIndexError(ValueError):
    """Features or an index that cannot be used: what is wrong and what to do."""


@dataclass(frozen=True, kw_only=True)
class VectorIndex:
    """An index folder, open.

    scans: rows with scan, series and model; crops: rows with scan (a row of `scans`), centre_mm (RAS+) and size_mm, or None.
    """

    model: str
    scans: list[dict[str, Any]]
    crops: list[dict[str, Any]] | None
    indices: "dict[str, faiss.Index]"
    centres: dict[str, np.ndarray]

    def nearest(self, kind: str, vectors: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
        """Cosine and row of the `top` nearest to each of `vectors` `(n, f)`, `(n, top)` both; fewer where there are fewer.

        Raises:
            VectorIndexError: the index has no such vectors, or they have another length.
        """
        if kind not in self.indices:
            cure = (
                "Build it with --crops."
                if kind == CROPS
                else "Its checkpoint has no joint space of scans and texts; embed with one that has."
            )
            raise VectorIndexError(f"The index has no {kind}; it has {', '.join(self.indices)}. {cure}")
        index = self.indices[kind]
        if vectors.shape[1] != index.d:
            raise VectorIndexError(
                f"{kind} of length {vectors.shape[1]} cannot be compared with those of the index, of length {index.d}. Pass "
                f"--model with the checkpoint that the index was made with, {self.model}."
            )
        prepared = prepare(vectors.astype(np.float32), self.centres.get(kind))
        scores, rows = index.search(prepared, min(top, index.ntotal))
        return scores, rows


def require_faiss() -> None:
    if not HAS_FAISS:
        raise OSError(f"The index needs faiss, which is not installed: {how_to_install('search')}.")


def open_index(folder: Path) -> VectorIndex:
    """
    Raises:
        OSError: there is no index, or faiss is missing.
    """
    require_faiss()
    if not (folder / "index.json").is_file():
        raise OSError(f"{folder} holds no index. Build one: ctfm index FEATURES --out {folder}")
    facts = json.loads((folder / "index.json").read_text())
    indices = {kind: faiss.read_index(str(folder / f"{kind}.faiss")) for kind in facts["vectors"]}
    crops = pq.read_table(folder / "crops.parquet").to_pylist() if CROPS in indices else None
    return VectorIndex(
        model=facts["model"],
        scans=pq.read_table(folder / "scans.parquet").to_pylist(),
        crops=crops,
        indices=indices,
        centres=load_file(folder / "centres.safetensors"),
    )


def prepare(vectors: np.ndarray, centre: np.ndarray | None) -> np.ndarray:
    """Centred and of length 1, `(n, f)`."""
    moved = vectors if centre is None else vectors - centre
    return np.ascontiguousarray(moved / np.linalg.norm(moved, axis=1, keepdims=True).clip(min=1e-12), np.float32)


# ---- build ----


def build_index(features: Path, out: Path, with_crops: bool = False) -> int:
    """Writes the index of a folder that `ctfm embed` wrote, unless it is there already. Returns how many scans it holds.

    Raises:
        OSError: there is no features.parquet, or faiss is missing.
        VectorIndexError: it holds no scan, scans of several models, or a scan twice.
    """
    require_faiss()
    table = features / FEATURES if features.is_dir() else features
    if not table.is_file():
        raise OSError(f"{table} is not there. Write it: ctfm embed SCAN... --out {features}")
    stat = table.stat()
    source = {"bytes": stat.st_size, "modified_ns": stat.st_mtime_ns, "with_crops": with_crops}
    facts_file = out / "index.json"
    if facts_file.is_file() and (facts := json.loads(facts_file.read_text()))["source"] == source:
        return int(facts["scans"])
    scans = read_scans(table)
    out.mkdir(parents=True, exist_ok=True)
    facts_file.unlink(missing_ok=True)  # what a killed run leaves is no index
    parts: dict[str, Batches] = {
        kind: lambda kind=kind: read_vectors(table, kind) for kind in WHOLE if has_vectors(table, kind)
    }
    if with_crops:
        parts[CROPS] = lambda: (crops for crops, _ in read_crops(table.parent, scans))
    centres, counts = dict[str, np.ndarray](), dict[str, int]()
    for kind, batches in parts.items():
        index, centre = build_vectors(batches, is_centred=kind in CENTRED)
        counts[kind] = index.ntotal
        centres |= {} if centre is None else {kind: centre}
        faiss.write_index(index, str(out / f"{kind}.faiss"))
    if with_crops:
        places = [place for _, some in read_crops(table.parent, scans) for place in some]
        pq.write_table(pa.Table.from_pylist(places), out / "crops.parquet")
    save_file(centres, out / "centres.safetensors")
    pq.write_table(
        pa.Table.from_pylist([{name: scan[name] for name in ("scan", "series", "model")} for scan in scans]),
        out / "scans.parquet",
    )
    facts = {"source": source, "scans": len(scans), "model": scans[0]["model"], "vectors": counts}
    write_json(facts_file, facts)
    return len(scans)


def read_scans(table: Path) -> list[dict[str, Any]]:
    columns = pq.read_schema(table).names
    wanted = [name for name in ("scan", "series", "model", "features") if name in columns]
    if missing := [name for name in ("scan", "series", "model") if name not in wanted]:
        raise VectorIndexError(f"{table} has no column {missing[0]!r}; `ctfm embed` writes one that has.")
    scans = pq.read_table(table, columns=wanted).to_pylist()
    if not scans:
        raise VectorIndexError(f"{table} holds no scan, so there is nothing to search.")
    models = sorted({scan["model"] for scan in scans})
    if len(models) > 1:
        raise VectorIndexError(
            f"{table} holds features of {len(models)} models, {models[0]} and {models[1]}, which cannot be compared. "
            "Embed each into a folder of its own."
        )
    return scans


def has_vectors(table: Path, kind: str) -> bool:
    if kind not in pq.read_schema(table).names:
        return False
    (first,) = next(pq.ParquetFile(table).iter_batches(1, columns=[kind])).column(0).to_pylist()
    return first is not None


def read_vectors(table: Path, kind: str) -> Iterator[np.ndarray]:
    """Every row's vector, `(n, f)` some thousand rows at a time.

    Raises:
        VectorIndexError: a row has none, or one of another length, or with a number that is not finite.
    """
    start, length = 0, None
    for batch in pq.ParquetFile(table).iter_batches(ROWS_AT_ONCE, columns=[kind]):
        column = batch.column(0)
        lengths = column.value_lengths().to_numpy(zero_copy_only=False)
        length = lengths[0] if length is None else length
        if column.null_count or (lengths != length).any():
            row = start + int(np.flatnonzero(~(lengths == length))[0])
            raise VectorIndexError(f"Row {row} of {table} has no {kind} of length {length}. Embed its scan again.")
        vectors = column.flatten().to_numpy(zero_copy_only=False).reshape(len(batch), -1)
        if not np.isfinite(vectors).all():
            row = start + int(np.flatnonzero(~np.isfinite(vectors).all(1))[0])
            raise VectorIndexError(f"Row {row} of {table} has a {kind} that is not finite. Embed its scan again.")
        start += len(batch)
        yield vectors


def read_crops(features: Path, scans: Sequence[dict[str, Any]]) -> Iterator[tuple[np.ndarray, list[dict[str, Any]]]]:
    """Of every scan its crops' mean descriptors `(g, f)` and where they lie."""
    for row, scan in enumerate(scans):
        tensors = load_file(features / scan["features"]) if scan.get("features") else {}
        if "crop_size" not in tensors:
            raise VectorIndexError(
                f"Row {row} of {features / FEATURES} names no file with crops and their size. Embed again for --crops."
            )
        yield tensors[CROPS].mean(1), place_crops(row, tensors)


def place_crops(row: int, tensors: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """Centre and size of every crop of a scan in patient millimetres (RAS+), crops width fastest."""
    size, affine = tensors["crop_size"].astype(float), tensors["grid_affine"]
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    places = []
    for index in np.ndindex(*(int(n) for n in tensors["crop_grid"])):
        centre = affine @ np.append((np.array(index) + 0.5) * size - 0.5, 1.0)
        places.append({"scan": row, "centre_mm": centre[:3].tolist(), "size_mm": (size * spacing).tolist()})
    return places


def build_vectors(batches: Batches, is_centred: bool) -> "tuple[faiss.Index, np.ndarray | None]":
    """Two passes over the vectors: count, mean and a sample; then all into the index."""
    count, total = 0, np.zeros(0)
    for vectors in batches():
        count, total = count + len(vectors), vectors.sum(0, dtype=np.float64) + (total if count else 0)
    centre = (total / count).astype(np.float32) if is_centred and count > 1 else None
    index: faiss.Index = faiss.IndexFlatIP(len(total))
    if count > EXACT_UP_TO:
        num_lists = round(2 * math.sqrt(count))
        index = faiss.IndexIVFScalarQuantizer(
            faiss.IndexFlatIP(len(total)),
            len(total),
            num_lists,
            faiss.ScalarQuantizer.QT_fp16,
            faiss.METRIC_INNER_PRODUCT,
        )
        stride = max(1, count // (VECTORS_PER_LIST * num_lists))
        sample = np.concatenate([prepare(vectors[::stride], centre) for vectors in batches()])
        index.train(sample)
        index.nprobe = LISTS_SEARCHED
    for vectors in batches():
        index.add(prepare(vectors, centre))
    return index, centre


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="ctfm index", description="An index of embedded scans for `ctfm search`. One that is up to date is kept."
    )
    parser.add_argument("features", type=Path, help="what `ctfm embed --out` wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder of the index")
    parser.add_argument("--crops", action="store_true", help="also every crop, for `ctfm search --region`")
    given = parser.parse_args(arguments)
    try:
        count = build_index(given.features, given.out, given.crops)
    except VectorIndexError as error:
        print(f"ctfm: {error}", file=sys.stderr)
        return 2
    print(f'{count} scans in {given.out}; ask with: ctfm search {given.out} --text "Pleural effusion."')
    return 0
