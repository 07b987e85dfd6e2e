"""The same checkpoint in PyTorch, ONNX Runtime and OpenVINO, float32 and 8 bits, in one run: JSON on standard output.

    python benchmarks/export.py [CHECKPOINT] [--scans 4] [--rounds 5] [--threads 1]

Scans are phantoms as `ctfm phantom` draws them. Every path encodes the first one once in each round, one path after the other,
so that what else the machine does falls on all; `times_faster` is the median over rounds of the CPU seconds of PyTorch in
float32 over the path's own. PyTorch encodes air once ("torch") unless a gradient may be asked for ("torch, air too"); exported
files never do. `cosine` is the smallest over scans of the features and embeddings with those of PyTorch in float32. What a path
does to AUROC on held-out scans is not measured here. OpenVINO is left out where it is not installed.
"""

import argparse
import contextlib
import copy
import importlib.metadata
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from ctfm.onnx_export import OneScan, export, load_scan_model
from ctfm.phantom.make import make_phantom
from ctfm.volume_ctfm import Volume
from safetensors.torch import save

Encode = Callable[[np.ndarray, np.ndarray], list[np.ndarray]]


def in_torch(scan: OneScan) -> Encode:
    def encode(pixel_values: np.ndarray, crop_grid: np.ndarray) -> list[np.ndarray]:
        with torch.inference_mode():
            return [part.numpy() for part in scan(torch.from_numpy(pixel_values), torch.from_numpy(crop_grid))]

    return encode


def in_torch_with_air(scan: OneScan) -> Encode:
    """Air is told from the rest only where no gradient could be asked for."""
    scan.requires_grad_(False)

    def encode(pixel_values: np.ndarray, crop_grid: np.ndarray) -> list[np.ndarray]:
        with torch.enable_grad():
            return [part.numpy() for part in scan(torch.from_numpy(pixel_values), torch.from_numpy(crop_grid))]

    return encode


def in_onnxruntime(file: Path, threads: int) -> Encode:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return lambda pixel_values, crop_grid: [
        np.asarray(part) for part in session.run(None, {"pixel_values": pixel_values, "crop_grid": crop_grid})
    ]


def in_openvino(file: Path, threads: int) -> Encode:
    import openvino

    compiled = openvino.compile_model(
        file, "CPU", {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    )
    return lambda pixel_values, crop_grid: list(compiled([pixel_values, crop_grid]).to_tuple())


def vision_bytes(scan: OneScan) -> int:
    """Of the part that sees, as safetensors; the text tower is in none of the other files either."""
    parts = {name: tensor.contiguous() for name, tensor in scan.state_dict().items() if ".text_model." not in name}
    return len(save(parts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", default="checkpoints/default")
    parser.add_argument("--scans", type=int, default=4)
    parser.add_argument("--shape", type=int, nargs=3, default=(96, 144, 144), help="voxels of a phantom")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    scan, processor = load_scan_model(given.checkpoint)
    phantoms = [make_phantom(seed, shape=tuple(given.shape)) for seed in range(given.scans)]
    batches = [processor(Volume(hu=one.hu.numpy(), affine=one.affine)) for one in phantoms]
    inputs = [(batch.pixel_values.numpy(), batch.crop_grid.numpy()) for batch in batches]
    int8 = copy.deepcopy(scan)
    int8.model.set_precision("int8")
    versions = {name: importlib.metadata.version(name) for name in ("torch", "onnxruntime", "onnxscript")}
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(sys.stderr):
        exact, small = Path(scratch, "exact.onnx"), Path(scratch, "int8.onnx")
        export(scan, processor, exact)
        export(scan, processor, small, int8=True)
        paths = {
            "torch": (in_torch(scan), vision_bytes(scan)),
            "torch, air too": (in_torch_with_air(copy.deepcopy(scan)), None),
            "torch int8": (in_torch(int8), None),  # made as it loads
            "onnxruntime": (in_onnxruntime(exact, given.threads), exact.stat().st_size),
            "onnxruntime int8": (in_onnxruntime(small, given.threads), small.stat().st_size),
        }
        try:
            versions["openvino"] = importlib.metadata.version("openvino")
            paths["openvino"] = (in_openvino(exact, given.threads), exact.stat().st_size)
        except importlib.metadata.PackageNotFoundError:
            print("openvino is not installed and is left out: pip install openvino", file=sys.stderr)
        results = measure({name: encode for name, (encode, _) in paths.items()}, inputs, given.rounds)
    for name, (_, size) in paths.items():
        results[name] |= {"bytes": size}
    machine = {"processor": platform.processor() or platform.machine(), "threads": given.threads} | versions
    crops = inputs[0][0][0]
    air = int(sum(not crop.any() for crop in crops))
    facts = {"checkpoint": given.checkpoint, "scans": given.scans, "crops": len(crops), "crops_of_air": air}
    print(json.dumps(facts | {"rounds": given.rounds, "machine": machine, "paths": results}, indent=1))


def measure(paths: dict[str, Encode], inputs: list[tuple[np.ndarray, np.ndarray]], rounds: int) -> dict[str, dict]:
    results: dict[str, dict] = {}
    expected = [paths["torch"](*one) for one in inputs]
    for name, encode in paths.items():  # also what warms each of them up
        found = [encode(*one) for one in inputs]
        pairs = [pair for a, b in zip(found, expected, strict=True) for pair in zip(a, b, strict=True)]
        results[name] = {"cosine": round(min(cosine(*pair) for pair in pairs), 6)}
    seconds: dict[str, list[float]] = {name: [] for name in paths}
    for _ in range(rounds):
        for name, encode in paths.items():
            start = time.process_time()  # of all threads
            encode(*inputs[0])
            seconds[name].append(time.process_time() - start)
    for name, own in seconds.items():
        ratios = [exact / one for exact, one in zip(seconds["torch"], own, strict=True)]
        results[name] |= {
            "cpu_s": round(statistics.median(own), 3),
            "times_faster": round(statistics.median(ratios), 2),
        }
    return results


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.ravel().astype(np.float64), b.ravel().astype(np.float64)
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


if __name__ == "__main__":
    main()
