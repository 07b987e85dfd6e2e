"""SPECTRE's own package beside this one, with equal weights: JSON on standard output.

    python benchmarks/spectre_fm.py [SCAN.nii] --environment FOLDER [--backbone PT --combiner PT] [--rounds 2] [--threads 1]

spectre-fm is installed from PyPI into an environment of its own, FOLDER, which sees the torch of this one, so that both
multiply with the same library; its code reads the file, cuts it and encodes it, and nothing of it is imitated here. Without the
published files (`--backbone`, `--combiner`) its largest model gets weights of seed 0, which its package writes and
`ctfm convert-spectre` converts. The scan keeps its spacing. Each path runs in a process of its own, all of them once a round,
in turn; the least CPU seconds of the rounds count, since a shared core only ever adds to them.

`cosine` and `difference` compare the scan's class token with the peer's. Without a scan it is the chest of a phantom,
512 x 512 x 64 voxels and 16 crops. A scan whose shape is no multiple of 128 x 128 x 64 is
cut by the peer and padded here, so it is refused.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

import torch

PEER, CROP = "spectre-fm==0.2.1", (128, 128, 64)
PATHS = ("spectre-fm", "float32", "bfloat16", "int8", "auto")


def prepare_environment(folder: Path) -> Path:
    """The environment's Python; made once."""
    python = folder / "bin" / "python"
    if not (folder / "ready").is_file():
        venv.create(folder, with_pip=True, clear=True)
        (site,) = (folder / "lib").glob("python*/site-packages")
        (site / "shared.pth").write_text("\n".join(p for p in sys.path if p.endswith("site-packages")))
        # Without what they depend on: that is here already, but for CUDA's libraries, which nothing here needs.
        pip = [str(python), "-m", "pip", "install", "--quiet", "--no-deps"]
        subprocess.run([*pip, PEER, "loralib", "timm", "torchvision"], check=True)
        (folder / "ready").touch()
    return python


def write_chest(path: Path) -> None:
    """A phantom's chest of 512 x 512 x 64 voxels at 0.7 x 0.7 x 2.5 mm."""
    from ctfm import Volume
    from ctfm.phantom.make import make_phantom

    phantom = make_phantom(1_000_000, shape=(64, 512, 512), spacing=(2.5, 0.7, 0.7))
    Volume(hu=phantom.hu.numpy(), affine=phantom.affine).to_nifti(path)


def define_operators() -> None:
    """timm imports torchvision, whose operators from PyPI need CUDA's libraries; the peer uses none, but two must be known."""
    for name in ("nms", "qnms"):
        torch.library.define(f"torchvision::{name}", "(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor")


def write_weights(folder: Path) -> None:
    """Runs in the peer's environment: its largest model with weights of seed 0, as its files are."""
    from spectre import SpectreImageFeatureExtractor  # type: ignore

    torch.manual_seed(0)
    model = SpectreImageFeatureExtractor.from_pretrained("spectre-large", pretrained=False)
    torch.save(model.backbone.state_dict(), folder / "backbone.pt")
    torch.save(model.feature_combiner.state_dict(), folder / "combiner.pt")


def run_peer(scan: str, weights: Path, out: Path) -> dict:
    """Runs in the peer's environment."""
    from spectre.io import load_and_window  # type: ignore
    from spectre.model import SpectreImageFeatureExtractor  # type: ignore
    from spectre.presets import get_preset  # type: ignore

    preset = get_preset("spectre-large")
    model = SpectreImageFeatureExtractor(
        preset.backbone,
        backbone_kwargs=preset.backbone_kwargs | {"strict": True},
        backbone_checkpoint_path_or_url=str(weights / "backbone.pt"),
        feature_combiner_name=preset.feature_combiner,
        feature_combiner_kwargs=preset.feature_combiner_kwargs | {"strict": True},
        feature_combiner_checkpoint_path_or_url=str(weights / "combiner.pt"),
    ).eval()
    start = time.process_time()
    crops, grid, _ = load_and_window(scan)
    features = model.extract(crops, grid)
    seconds = time.process_time() - start
    torch.save(features[0].float().clone(), out)
    return {"cpu_s": seconds}


def run_own(scan: str, path: str, model_folder: Path, out: Path) -> dict:
    from ctfm import CTFMImageProcessor, CTFMVisionModel

    model = CTFMVisionModel.from_pretrained(model_folder, dtype=torch.float32).eval()
    processor = CTFMImageProcessor.from_pretrained(model_folder)
    start = time.process_time()
    precision = model.set_precision(path)
    choosing = time.process_time() - start
    start = time.process_time()
    with torch.inference_mode():
        features = model(**processor(scan, spacing="native")).pooler_output
    seconds = time.process_time() - start
    torch.save(features[0, : features.shape[1] // 2].clone(), out)
    return {"cpu_s": seconds, "precision": precision, "choosing_cpu_s": choosing}


def measure(path: str, scan: str, python: Path, weights: Path, out: Path, threads: int) -> dict:
    """One path in a process of its own."""
    own = sys.executable if path != "spectre-fm" else str(python)
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    command = [own, __file__, scan, "--one", path, str(weights), str(out), "--threads", str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scan", nargs="?", help="NIfTI, its shape a multiple of 128 x 128 x 64")
    parser.add_argument("--environment", type=Path, help="folder of the peer's environment, made where it is missing")
    parser.add_argument("--backbone", type=Path)
    parser.add_argument("--combiner", type=Path)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.one:
        path, weights, out = given.one[0], Path(given.one[1]), Path(given.one[2])
        if path in ("weights", "spectre-fm"):
            define_operators()
        if path == "weights":
            write_weights(weights)
            return
        run = (
            run_peer(given.scan, weights, out)
            if path == "spectre-fm"
            else run_own(given.scan, path, weights / "ctfm", out)
        )
        print(json.dumps(run | {"peak_memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}))
        return

    import nibabel as nib

    python = prepare_environment(given.environment or Path(tempfile.gettempdir()) / "spectre-fm")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scan = given.scan or str(folder / "chest.nii")
        if not given.scan:
            write_chest(Path(scan))
        shape = nib.load(scan).shape  # type: ignore[attr-defined]
        if any(size % crop for size, crop in zip(shape, CROP, strict=True)):
            raise SystemExit(f"{scan}: its shape {shape} must be a multiple of {CROP} voxels.")
        if given.backbone and given.combiner:
            for source, part in ((given.backbone, "backbone.pt"), (given.combiner, "combiner.pt")):
                (folder / part).symlink_to(source.resolve())
        else:
            subprocess.run([str(python), __file__, scan, "--one", "weights", name, name], check=True)
        convert = [sys.executable, "-m", "ctfm", "convert-spectre", "--backbone", str(folder / "backbone.pt")]
        convert += [
            "--combiner",
            str(folder / "combiner.pt"),
            "--combiner-eps",
            "1e-5",
            "--backbone-saw-reports",
            "--out",
            str(folder / "ctfm"),
        ]
        subprocess.run(convert, check=True, stdout=subprocess.DEVNULL)
        rounds = [
            {path: measure(path, scan, python, folder, folder / f"{path}.out", given.threads) for path in PATHS}
            for _ in range(given.rounds)
        ]
        peer = torch.load(folder / "spectre-fm.out", weights_only=True)
        results = {}
        for path in PATHS:
            best = min((row[path] for row in rounds), key=lambda row: row["cpu_s"])
            found = torch.load(folder / f"{path}.out", weights_only=True)
            results[path] = {key: round(value, 3) if isinstance(value, float) else value for key, value in best.items()}
            results[path]["cosine"] = round(torch.nn.functional.cosine_similarity(peer, found, dim=0).item(), 6)
            results[path]["difference"] = float(f"{(peer - found).abs().max().item():.3g}")
        for row in results.values():
            row["times_less_cpu"] = round(results["spectre-fm"]["cpu_s"] / row["cpu_s"], 2)
    machine = {"processor": platform.processor() or platform.machine(), "threads": given.threads}
    machine |= {"instructions": torch.backends.cpu.get_cpu_capability(), "torch": torch.__version__}
    machine |= {"bfloat16": torch.cpu._is_avx512_bf16_supported(), "vnni": torch.cpu._is_vnni_supported()}
    print(json.dumps({"peer": PEER, "machine": machine, "shape": shape, "paths": results}, indent=2))


if __name__ == "__main__":
    main()
