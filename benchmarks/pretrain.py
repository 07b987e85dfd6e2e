"""The loop of pretraining as it runs, and a plain one beside it: crops or scans and tokens a second, model FLOP utilisation,
share of the time that it waits for data, peak memory. JSON on standard output.

    python benchmarks/pretrain.py [--sizes tiny small base large] [--crops 64] [--scans 8] [--steps 10] [--num-workers 12]

Objectives, views, masks and heads are the large recipe's, in both of its phases that train the local transformer; scans are
phantoms. Every run is a process of its own with half of its steps to warm up:

- ours    views on the training device, `--compile-layers`, and for the ViT-L `--checkpoint-activations`; on a CPU neither
- plain   views, cutting and resampling in the loaders on the CPU, nothing compiled, no activation computed again

Precision is the same in both: bfloat16 on a GPU, float32 on a CPU. MFU counts what the model must do (train/throughput.py)
against the data sheet; on a CPU against a product of large float32 matrices, timed in the same process. `cpu_s` is what a
sample costs of all threads of the training process, which other work on the machine changes less than its seconds.
Without a GPU the small sizes alone are run, and `not_measured` says what was left out.
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
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from ctfm.phantom.dataset import write_mha
from ctfm.phantom.make import FINDING_NAMES, make_phantom
from ctfm.train import pretrain as loop
from ctfm.train.build import Task, build_task
from ctfm.train.data import CropDataset, ScanDataset, collate_crops, ignore_signals
from ctfm.train.monitor import Monitor
from ctfm.train.prepare import PrepareConfig, prepare
from ctfm.train.recipes import Recipe, SelfSupervisionPhase, large
from torch.utils.data import DataLoader

SIZES = {
    "tiny": (192, 12, 2),
    "small": (384, 12, 4),
    "base": (768, 12, 8),
    "large": (1080, 24, 12),
}  # width, layers, heads
PHASES = ("self_supervision", "alignment_of_all")
PATHS = ("ours", "plain")
HAS_GPU = torch.cuda.is_available()
BERT = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
QWEN = {  # Qwen3-Embedding-0.6B's layers with random weights
    "model_type": "qwen3",
    "hidden_size": 1024,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 3072,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES) if HAS_GPU else ["tiny", "small"])
    parser.add_argument("--phases", nargs="+", choices=PHASES, default=PHASES)
    parser.add_argument("--crops", type=int, default=64 if HAS_GPU else 2, help="of a step of self-supervision")
    parser.add_argument("--scans", type=int, default=8 if HAS_GPU else 2, help="of a step of alignment")
    parser.add_argument("--steps", type=int, default=10 if HAS_GPU else 1, help="timed, after as many to warm up")
    parser.add_argument("--num-workers", type=int, default=12 if HAS_GPU else 0)
    parser.add_argument("--shape", type=int, nargs=3, default=(300, 512, 512) if HAS_GPU else (128, 256, 256))
    parser.add_argument("--phantoms", type=int, default=4)
    parser.add_argument("--one", nargs=4, metavar=("SIZE", "PHASE", "PATH", "DATA"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given, *given.one)))
        return
    device = torch.cuda.get_device_name() if HAS_GPU else platform.processor() or platform.machine()
    settings = {name: getattr(given, name) for name in ("crops", "scans", "steps", "num_workers", "shape")}
    found: dict[str, Any] = {"device": device, "torch": torch.__version__, "settings": settings, "runs": []}
    with tempfile.TemporaryDirectory() as folder:
        data = draw_scans(Path(folder), given.phantoms, tuple(given.shape))
        for size in given.sizes:
            for phase in given.phases:
                runs = [run_apart(size, phase, path, data) for path in PATHS]
                ratio = runs[0].get("samples_per_s", 0) / runs[1].get("samples_per_s", float("inf"))
                found["runs"] += [runs[0] | {"times_faster_than_plain": round(ratio, 2)}, runs[1]]
                print(size, phase, "done", file=sys.stderr)
    found["not_measured"] = [] if HAS_GPU else tell_what_is_missing(given.sizes)
    print(json.dumps(found, indent=1))


def tell_what_is_missing(sizes: list[str]) -> list[str]:
    left = [size for size in SIZES if size not in sizes]
    return [
        *(f"{size}: no GPU at hand" for size in left),
        "bfloat16, compiled layers and activation checkpointing: no GPU at hand",
        "waiting for loader processes: here both paths make their views on the same cores, in the training process",
    ]


def run_apart(size: str, phase: str, path: str, data: Path) -> dict[str, Any]:
    """In a process of its own; one that fails, as when memory is too small, is told with its last line."""
    given = [text for text in sys.argv[1:] if text != "--one"]
    command = [sys.executable, __file__, *given, "--one", size, phase, path, str(data)]
    environment = os.environ | ({"ACCELERATE_MIXED_PRECISION": "bf16"} if HAS_GPU else {})
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        return {"size": size, "phase": phase, "path": path, "failed": done.stderr.strip().splitlines()[-1][:300]}
    return json.loads(done.stdout.splitlines()[-1])


def draw_scans(folder: Path, number: int, shape: tuple[int, int, int]) -> Path:
    """Phantoms at the spacing of report alignment, prepared."""
    rows = [",".join(["path", "patient", "split", "report", *FINDING_NAMES])]
    for seed in range(number):
        phantom = make_phantom(seed, shape=shape, spacing=(1.5, 0.75, 0.75), device="cuda" if HAS_GPU else "cpu")
        write_mha(phantom.hu, phantom, folder / f"{seed}.mha")
        report = str(phantom.report).replace('"', "'")
        labels = ",".join(str(phantom.labels[name]) for name in FINDING_NAMES)
        rows.append(f'{seed}.mha,{seed},train,"{report}",{labels}')
    (folder / "table.csv").write_text("\n".join(rows) + "\n")
    out = folder / "prepared"
    prepare(PrepareConfig(layout="csv", source=folder / "table.csv", out=out, private=folder / "private"))
    return out


def build_recipe(size: str, name: str, batch: int, steps: int) -> Recipe:
    """One phase of the large recipe at another size and batch."""
    recipe, (width, layers, heads) = large(), SIZES[size]
    phase = replace(recipe.phases[name], steps=steps, global_batch=batch, micro_batch=batch)
    shape = {"hidden_size": width, "num_attention_heads": heads, "intermediate_size": 4 * width}
    vision = {**recipe.model["vision_config"], **shape, "num_hidden_layers": layers}
    vision["global_config"] = {**shape, "num_hidden_layers": 4 if size == "large" else 2}
    is_large = size == "large"
    text = QWEN if is_large else {"model_type": "bert", "max_position_embeddings": 512, **BERT}
    model = {"vision_config": vision, "text_config": text, "text_pooling": "last" if is_large else "mean"}
    return replace(recipe, model=model, text_start="", text_adapter_rank=16 if is_large else 0, phases={name: phase})


def measure(given: argparse.Namespace, size: str, name: str, path: str, data: str) -> dict[str, Any]:
    batch = given.crops if name == "self_supervision" else given.scans
    recipe = build_recipe(size, name, batch, 2 * given.steps)
    is_ours = path == "ours"
    marks: list[float] = []
    write = Monitor.write

    def write_and_mark(*arguments: Any, **named: Any) -> None:
        write(*arguments, **named)
        marks.append(time.process_time())

    Monitor.write = write_and_mark
    if not is_ours:
        loop.build_task = build_plain_task
    tasks: list[Task] = []
    build = loop.build_task
    loop.build_task = lambda *arguments, **named: tasks.append(build(*arguments, **named)) or tasks[-1]
    with tempfile.TemporaryDirectory() as folder:
        run = loop.Run(
            recipe=recipe,
            out=Path(folder),
            data=(data,),
            save_every=10**9,
            log_every=given.steps,
            num_workers=given.num_workers,
            compile_layers=is_ours and HAS_GPU,
            checkpoint_activations=is_ours and HAS_GPU and size == "large",
        )
        accelerator = loop.prepare_process()
        loop.pretrain(run, accelerator)
        row = json.loads((run.out / "log.jsonl").read_text().splitlines()[-1])
    model: Any = tasks[0].objective.inference_model
    local = model.vision_model.local_model if name.startswith("alignment") else model
    rate = row["samples_per_s"] * tasks[0].sample_flops
    memory = torch.cuda.max_memory_allocated() if HAS_GPU else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = {
        "size": size,
        "phase": name,
        "path": path,
        "parameters_million": round(sum(p.numel() for p in local.parameters()) / 1e6, 1),
        "samples_per_s": round(row["samples_per_s"], 4),
        "tokens_per_s": round(row["tokens_per_s"], 1),
        "tflops_a_sample": round(tasks[0].sample_flops / 1e12, 4),
        "tflop_per_s": round(rate / 1e12, 4),
        "waiting_share": round(row["waiting_share"], 4),
        "peak_memory_gb": round(memory / 1e9, 2),
    }
    if HAS_GPU:
        return found | {"mfu": round(row.get("mfu", float("nan")), 4)}
    per_sample = (marks[-1] - marks[-2]) / (given.steps * batch)
    speed = time_product()
    share = tasks[0].sample_flops / per_sample / speed
    return found | {
        "cpu_s": round(per_sample, 2),
        "share_of_matrix_product": round(share, 3),
        "product_gflop_per_cpu_s": round(speed / 1e9, 1),
    }


def time_product(size: int = 1536) -> float:
    """Operations in a processor second of a product of float32 matrices: the best of three."""
    a, best = torch.randn(size, size), 0.0
    for _ in range(3):
        start = time.process_time()
        a @ a
        best = max(best, 2 * size**3 / (time.process_time() - start))
    return best


def build_plain_task(phase: Any, *arguments: Any, device: torch.device, **named: Any) -> Task:
    """The same batches, made by the loaders on the CPU."""
    task = build_task(phase, *arguments, device=torch.device("cpu"), **named)
    crops = isinstance(phase, SelfSupervisionPhase)
    dataset: Any = CropDataset(task.schedule) if crops else ScanDataset(task.schedule)

    def load(batches: Any, num_workers: int) -> DataLoader:
        def collate(samples: list) -> Any:
            return task.make_batch(collate_crops(samples) if crops else samples)

        return DataLoader(
            dataset, batch_sampler=batches, collate_fn=collate, num_workers=num_workers, worker_init_fn=ignore_signals
        )

    objective = task.objective.to(device)
    return replace(task, objective=objective, load=load, make_batch=lambda batch: batch.to(device, non_blocking=True))


if __name__ == "__main__":
    main()
