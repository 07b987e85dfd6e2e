"""Vectors -> which index answers fastest, at what recall, size and time to build: faiss and hnswlib on one thread.

    python benchmarks/search.py --vectors 100000
    python benchmarks/search.py --vectors 1000000 --kinds flat ivf --append

Vectors are drawn: 512 numbers of length 1 around 2,000 centres in 32 dimensions, with noise in all, since embeddings of scans
lie near a surface of few dimensions and evenly drawn ones have no neighbours that an index could find. Recall is that of the
ten nearest against an exact search. Times are CPU seconds.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import faiss
import hnswlib
import numpy as np

RESULTS = Path(__file__).parent / "results" / "search.json"
DIMENSIONS, INNER, CENTRES, QUERIES, NEAREST = 512, 32, 2000, 200, 10


def draw(count: int, random: np.random.Generator, centres: np.ndarray, plane: np.ndarray) -> np.ndarray:
    points = centres[random.integers(len(centres), size=count)] + random.normal(0, 0.5, (count, INNER))
    vectors = (points @ plane).astype(np.float32) + random.normal(0, 0.02, (count, DIMENSIONS)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def build_flat(vectors: np.ndarray) -> faiss.Index:
    index = faiss.IndexFlatIP(DIMENSIONS)
    index.add(vectors)
    return index


def build_ivf(vectors: np.ndarray) -> faiss.Index:
    """Lists of 16-bit vectors: as `ctfm index` builds it."""
    num_lists = int(2 * len(vectors) ** 0.5)
    index = faiss.IndexIVFScalarQuantizer(
        faiss.IndexFlatIP(DIMENSIONS),
        DIMENSIONS,
        num_lists,
        faiss.ScalarQuantizer.QT_fp16,
        faiss.METRIC_INNER_PRODUCT,
    )
    index.cp.max_points_per_centroid, index.cp.niter = 64, 10
    index.train(vectors)
    index.add(vectors)
    index.nprobe = 16
    return index


def build_faiss_hnsw(vectors: np.ndarray) -> faiss.Index:
    index = faiss.IndexHNSWFlat(DIMENSIONS, 16, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction, index.hnsw.efSearch = 100, 64
    index.add(vectors)
    return index


def build_hnswlib(vectors: np.ndarray) -> hnswlib.Index:
    index = hnswlib.Index(space="ip", dim=DIMENSIONS)
    index.init_index(max_elements=len(vectors), ef_construction=100, M=16)
    index.set_num_threads(1)
    index.add_items(vectors)
    index.set_ef(64)
    return index


KINDS: dict[str, Callable] = {
    "flat": build_flat,
    "ivf": build_ivf,
    "faiss_hnsw": build_faiss_hnsw,
    "hnswlib": build_hnswlib,
}


def measure(kind: str, vectors: np.ndarray, queries: np.ndarray, exact: np.ndarray | None) -> tuple[dict, np.ndarray]:
    start = time.process_time()
    index = KINDS[kind](vectors)
    built = time.process_time() - start
    found, times = [], []
    for query in queries:
        start = time.process_time()
        if kind == "hnswlib":
            labels, _ = index.knn_query(query[None], k=NEAREST)
        else:
            _, labels = index.search(query[None], NEAREST)
        times.append(time.process_time() - start)
        found.append(labels[0])
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/index"
        index.save_index(path) if kind == "hnswlib" else faiss.write_index(index, path)
        size = Path(path).stat().st_size
    labels = np.array(found)
    hits = [len(np.intersect1d(a, b)) for a, b in zip(labels, labels if exact is None else exact, strict=True)]
    row = {
        "kind": kind,
        "vectors": len(vectors),
        "build_cpu_seconds": round(built, 1),
        "query_ms_median": round(1000 * float(np.median(times)), 2),
        "query_ms_p95": round(1000 * float(np.quantile(times, 0.95)), 2),
        "recall_at_10": round(float(np.mean(hits)) / NEAREST, 4),
        "megabytes": round(size / 1e6),
    }
    return row, labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=int, default=100_000)
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=list(KINDS))
    parser.add_argument("--append", action="store_true", help="keep the rows that are there")
    given = parser.parse_args()
    faiss.omp_set_num_threads(1)
    random = np.random.default_rng(0)
    centres, plane = random.normal(0, 1, (CENTRES, INNER)), random.normal(0, 1, (INNER, DIMENSIONS)) / INNER**0.5
    vectors = np.concatenate([draw(50_000, random, centres, plane) for _ in range(given.vectors // 50_000)])
    queries = draw(QUERIES, random, centres, plane)
    rows = json.loads(RESULTS.read_text()) if given.append else []
    exact = None
    for kind in given.kinds:
        row, labels = measure(kind, vectors, queries, exact)
        exact = labels if kind == "flat" else exact
        print(row, flush=True)
        rows.append(row)
    RESULTS.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")


if __name__ == "__main__":
    main()
