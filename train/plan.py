"""Measured numbers and stated assumptions -> what the recipe `large` needs: storage, reading, hours, cost, what breaks first.

    ctfm plan

Prints the part of train/README.md between its two `plan` lines. Operations are counted (throughput.py), bytes and processor
seconds were measured (benchmarks/results/data_cpu.json); nothing in `Assumptions` was measured by us.
"""

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..configuration_ctfm import CTFMVisionConfig
from ..evaluate.markdown_tables import markdown_table, print_markdown
from ..image_processing_ctfm import SPACING_PRESETS, CTFMImageProcessor
from ..modeling_ctfm import CTFMLocalModel
from .objective import SelfSupervisedModel
from .recipes import AlignmentPhase, Recipe, SelfSupervisionPhase, large
from .shards import BLOCK
from .throughput import PEAK_FLOPS, alignment_flops, self_supervision_flops

MEASURED = Path(__file__).parent.parent / "benchmarks" / "results" / "data_cpu.json"
NODES = (1, 2, 4, 8, 16, 32, 64)
PLANNED = 4
HOUR = 3600.0


@dataclass(frozen=True, kw_only=True)
class Assumptions:
    """What was not measured.

    Args:
        num_scans, num_reports: to learn from. shape, spacing_mm: of the average scan.
        mfu: share of the data sheet's rate that is reached; the aim is 0.45, and no GPU was at hand.
        text_parameters: of the text tower, which computes no gradient of its own weights (LoRA).
        gpus_per_node, cores_per_node, network_bytes: a DGX B200: 112 cores, a 400 Gbit/s port a GPU (data sheet).
        local_bytes, shared_bytes: read in a second, by a node from its own drives, and by all nodes from one file system.
        dollars: of a GPU-hour.
    """

    num_scans: int = 250_000
    num_reports: int = 75_000
    shape: tuple[int, int, int] = (300, 512, 512)
    spacing_mm: tuple[float, float, float] = (1.25, 0.75, 0.75)
    gpu: str = "B200"
    mfu: float = 0.40
    text_parameters: float = 596e6
    gpus_per_node: int = 8
    cores_per_node: int = 112
    network_bytes: float = 50e9
    local_bytes: float = 40e9
    shared_bytes: float = 100e9
    dollars: float = 5.0


@dataclass(frozen=True, kw_only=True)
class Measured:
    """share_of_int16: of a scan's bytes in a shard; core_bytes: int16 that one core unpacks in a second."""

    share_of_int16: float
    core_bytes: float


@dataclass(frozen=True, kw_only=True)
class Work:
    """Of one optimizer step of a phase, over all processes.

    flops: counted; raw_bytes: int16 that are unpacked; disk_bytes: read; gradient_bytes: exchanged by every GPU.
    """

    name: str
    steps: int
    batch: int
    flops: float
    raw_bytes: float
    disk_bytes: float
    gradient_bytes: float


def read_measured(path: Path = MEASURED) -> Measured:
    found = json.loads(path.read_text())
    return Measured(
        share_of_int16=found["scan"]["share_of_int16"], core_bytes=found["crop"]["unpacked_mb_per_cpu_s"] * 1e6
    )


def crops_of_a_scan(assumed: Assumptions, crop_size: Sequence[int]) -> int:
    """That the grid of the preset "scan" has."""
    spacing = SPACING_PRESETS["scan"]
    assert spacing is not None
    extents = [n * mm for n, mm in zip(assumed.shape, assumed.spacing_mm, strict=True)]
    return math.prod(math.ceil(e / (n * mm)) for e, n, mm in zip(extents, crop_size, spacing, strict=True))


def crop_bytes(phase: SelfSupervisionPhase, assumed: Assumptions) -> float:
    """int16 of the blocks that a crop touches, on average over where it starts."""
    sizes = [
        min(math.ceil(mm / step), n)
        for mm, step, n in zip(phase.crop_mm, assumed.spacing_mm, assumed.shape, strict=True)
    ]
    return 2 * math.prod(BLOCK) * math.prod((n + block - 1) / block for n, block in zip(sizes, BLOCK, strict=True))


def count_parameters(recipe: Recipe) -> tuple[int, int]:
    """Of the local transformer, and of its student with heads."""
    phase = recipe.phases["self_supervision"]
    assert isinstance(phase, SelfSupervisionPhase)
    with torch.device("meta"):
        local = CTFMLocalModel(CTFMVisionConfig(**recipe.model["vision_config"]))
        student = SelfSupervisedModel(local, phase.objective)
    return sum(p.numel() for p in local.parameters()), sum(p.numel() for p in student.parameters())


def list_work(recipe: Recipe, assumed: Assumptions, measured: Measured) -> list[Work]:
    config = CTFMVisionConfig(**recipe.model["vision_config"])
    crop_size = CTFMImageProcessor().crop_size
    num_crops = crops_of_a_scan(assumed, crop_size)
    local, student = count_parameters(recipe)
    scan_bytes = 2.0 * math.prod(assumed.shape)
    work = []
    for name, phase in recipe.phases.items():
        if isinstance(phase, SelfSupervisionPhase):
            flops, raw, trained = self_supervision_flops(phase, config), crop_bytes(phase, assumed), student
            disk = raw * measured.share_of_int16
        else:
            assert isinstance(phase, AlignmentPhase)
            text = 4 * assumed.text_parameters * phase.reports.max_tokens  # forward, and backward to the adapters
            flops = alignment_flops(phase, config, crop_size, num_crops) + text
            trained = 0 if phase.objective.local_is_frozen else local
            raw = 0.0 if phase.descriptors_are_cached else scan_bytes
            disk = (
                num_crops * 2 * config.hidden_size * 2.0
                if phase.descriptors_are_cached
                else raw * measured.share_of_int16
            )
        batch = phase.global_batch
        work.append(
            Work(
                name=name,
                steps=phase.steps,
                batch=batch,
                flops=flops * batch,
                raw_bytes=raw * batch,
                disk_bytes=disk * batch,
                gradient_bytes=2.0 * 4 * trained,  # a ring sends and receives every number twice
            )
        )
    return work


def time_step(work: Work, nodes: int, assumed: Assumptions, measured: Measured) -> dict[str, float]:
    """Seconds of a step if one of these were all there is; a run takes the longest, since they overlap."""
    gpus = min(nodes * assumed.gpus_per_node, work.batch)
    return {
        "GPUs": work.flops / (gpus * assumed.mfu * PEAK_FLOPS[assumed.gpu]),
        "network": work.gradient_bytes / assumed.network_bytes if nodes > 1 else 0.0,
        "cores": work.raw_bytes / (nodes * assumed.cores_per_node * measured.core_bytes),
        "local drives": work.disk_bytes / (nodes * assumed.local_bytes),
    }


def format_plan(recipe: Recipe, assumed: Assumptions, measured: Measured) -> str:
    work = list_work(recipe, assumed, measured)
    return "\n".join(
        [
            *tell_assumptions(assumed, measured),
            "",
            *tell_storage(recipe, assumed, measured),
            "",
            *tell_phases(work, assumed, measured),
            "",
            *tell_nodes(work, assumed, measured),
        ]
    )


def tell_assumptions(assumed: Assumptions, measured: Measured) -> list[str]:
    shape, spacing = (" x ".join(map(str, values)) for values in (assumed.shape, assumed.spacing_mm))
    return [
        f"Measured here: a shard has {measured.share_of_int16:.1%} of the int16 bytes; a core unpacks "
        f"{measured.core_bytes / 1e6:.0f} MB/s. Counted: operations.",
        f"Assumed: {assumed.num_scans:,} scans of {shape} voxels of {spacing} mm, {assumed.num_reports:,} with a report; "
        f"{assumed.mfu:.0%} of the {PEAK_FLOPS[assumed.gpu] / 1e12:,.0f} TFLOP/s of a {assumed.gpu} (bfloat16, data sheet); "
        f"{assumed.cores_per_node} cores a node; {assumed.network_bytes / 1e9:.0f} GB/s of network a GPU; "
        f"{assumed.local_bytes / 1e9:.0f} GB/s from a node's own drives; {assumed.dollars:.2f} dollars a GPU-hour.",
    ]


def tell_storage(recipe: Recipe, assumed: Assumptions, measured: Measured) -> list[str]:
    raw = assumed.num_scans * 2 * math.prod(assumed.shape)
    crops = crops_of_a_scan(assumed, CTFMImageProcessor().crop_size)
    config = CTFMVisionConfig(**recipe.model["vision_config"])
    descriptors = assumed.num_reports * crops * 2 * config.hidden_size * 2
    _, student = count_parameters(recipe)
    rows = [
        ("scans as int16", f"{raw / 1e12:.1f} TB"),
        ("shards, the only voxels that training reads", f"{raw * measured.share_of_int16 / 1e12:.1f} TB"),
        (f"descriptors of {crops} crops a scan, for the first alignment phase", f"{descriptors / 1e9:.0f} GB"),
        ("a checkpoint of self-supervision: student, teacher, two moments", f"{4 * 4 * student / 1e9:.1f} GB"),
    ]
    return markdown_table(["On disk", ""], rows).splitlines()


def tell_phases(work: list[Work], assumed: Assumptions, measured: Measured) -> list[str]:
    columns = (
        "steps",
        "batch",
        "TFLOP a step",
        "s a step",
        "bound by",
        "read, a node",
        "cores at work, a node",
        "hours",
    )
    head = (f"Phase, on {PLANNED} nodes of {assumed.gpus_per_node}", *columns, "GPU-hours", "dollars")
    rows = list[tuple[str, ...]]()
    total = 0.0
    for phase in work:
        seconds = time_step(phase, PLANNED, assumed, measured)
        bound = max(seconds, key=lambda name: seconds[name])
        step = seconds[bound]
        hours = step * phase.steps / HOUR
        gpu_hours = hours * PLANNED * assumed.gpus_per_node
        total += hours
        rows.append(
            (
                phase.name,
                f"{phase.steps:,}",
                f"{phase.batch:,}",
                f"{phase.flops / 1e12:,.0f}",
                f"{step:.3f}",
                bound,
                f"{phase.disk_bytes / step / PLANNED / 1e9:.1f} GB/s",
                f"{phase.raw_bytes / step / PLANNED / measured.core_bytes:.0f}",
                f"{hours:.1f}",
                f"{gpu_hours:,.0f}",
                f"{gpu_hours * assumed.dollars:,.0f}",
            )
        )
    gpu_hours = total * PLANNED * assumed.gpus_per_node
    rows.append(("all", *[""] * 7, f"{total:.1f}", f"{gpu_hours:,.0f}", f"{gpu_hours * assumed.dollars:,.0f}"))
    return markdown_table(head, rows).splitlines()


def tell_nodes(work: list[Work], assumed: Assumptions, measured: Measured) -> list[str]:
    ssl, align = work[0], work[-1]
    first, second = (f"{phase.name}: s a step, bound by" for phase in (ssl, align))
    head = (
        "Nodes",
        "GPUs",
        "crops a GPU",
        first,
        "pairs a GPU",
        second,
        "hours",
        "efficiency",
        "one file system must give",
    )
    rows = list[tuple[str, ...]]()
    hours_of_one = sum(max(time_step(w, 1, assumed, measured).values()) * w.steps for w in work) / HOUR
    for nodes in NODES:
        gpus = nodes * assumed.gpus_per_node
        cells, hours, reading = [], 0.0, 0.0
        for phase in work:
            seconds = time_step(phase, nodes, assumed, measured)
            bound = max(seconds, key=lambda name: seconds[name])
            hours += seconds[bound] * phase.steps / HOUR
            reading = max(reading, phase.disk_bytes / seconds[bound])
            each = phase.batch / gpus
            share = f"{each:.0f}" if each.is_integer() else f"{min(gpus, phase.batch)} GPUs at most"
            cells.append((share, f"{seconds[bound]:.3f}, {bound}"))
        (own, step), (pairs, last) = cells[0], cells[-1]
        enough = "" if reading <= assumed.shared_bytes else f" (more than {assumed.shared_bytes / 1e9:.0f})"
        efficiency, read = f"{hours_of_one / hours / nodes:.0%}", f"{reading / 1e9:.0f} GB/s{enough}"
        rows.append((str(nodes), str(gpus), own, step, pairs, last, f"{hours:.1f}", efficiency, read))
    return markdown_table(head, rows).splitlines()


def main(arguments: Sequence[str] | None = None) -> int:
    argparse.ArgumentParser(
        prog="ctfm plan", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args(arguments)
    print_markdown(format_plan(large(), Assumptions(), read_measured()))
    return 0
