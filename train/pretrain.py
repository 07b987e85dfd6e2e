"""Recipe + prepared folders -> checkpoints and a Hub folder. Resumes by itself: start the same command again.

    ctfm pretrain demo --out runs/demo --data runs/prepared
    accelerate launch --config_file train/launch/accelerate_1x8.yaml -m ctfm pretrain large --out RUN --data PREPARED
    OMP_NUM_THREADS=1 python -m torch.distributed.run --standalone --nproc_per_node 2 -m ctfm pretrain demo ...  # CPUs

Every draw of a step depends on the recipe's seed and the step alone, so a run that was killed goes on with the losses it
would have had, to the bit on the same number of processes. SIGTERM and SIGUSR1 save and leave with code 0, without the file
OUT/finished; a launcher hands on those that PET_SIGNALS_TO_HANDLE names (README.md). OUT/log.jsonl has a row every
`log_every` steps; OUT/exported is what from_pretrained loads.
"""

import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import torch
import tyro
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from tqdm import tqdm
from transformers import PreTrainedModel

from ..evaluate.probe import probe
from ..modeling_ctfm import CTFMLayer
from ..processing_ctfm import CTFMProcessor
from .build import Task, build_config, build_model, build_processor, build_task, trained_parameters
from .checkpoint import (
    Position,
    check_recipe,
    export,
    find_checkpoints,
    load_exported,
    load_heads,
    load_start,
    load_state,
    load_weights,
    rotate,
    save_state,
)
from .data import SourceConfig, StepBatches, hash_numbers
from .joint import JointObjective
from .monitor import Monitor
from .objective import along_cosine
from .processes import Processes, all_processes
from .recipes import RECIPES, FineTuning, JointPhase, OptimizerConfig, Phase, Recipe
from .shards import Manifest

SIGNALS: list[int] = []  # received


@dataclass(frozen=True, kw_only=True)
class Run:
    """What belongs to this machine and this run, and changes nothing that is learnt.

    Args:
        recipe: what is learnt; of finetune.py, which shares this loop, a `FineTuning`.
        data: prepared folders, each FOLDER or FOLDER@WEIGHT; none for a recipe that draws its scans.
        out: where everything goes.
        save_every: steps between checkpoints.
        keep_last: checkpoints that stay beside the last of each phase.
        log_every: steps between rows of the log; only then does the device wait for the host.
        probe_every: steps between probes on split "test", from step 0, a multiple of save_every; 0 for none.
        probe_scans: of each split.
        num_workers: loader processes of every process.
        checkpoint_activations: of every layer, computed again in the backward pass: less memory, a third more work.
        compile_layers: every transformer layer through torch.compile.
        stop_after: seconds after which the run saves and leaves, as if it got SIGTERM.
    """

    recipe: Recipe | FineTuning
    out: Path
    data: tuple[str, ...]
    save_every: int = 500
    keep_last: int = 2
    log_every: int = 10
    probe_every: int = 0
    probe_scans: int = 200
    num_workers: int = 0
    checkpoint_activations: bool = False
    compile_layers: bool = False
    stop_after: float = float("inf")


def main(arguments: Sequence[str] | None = None) -> int:
    return launch(pretrain, read_run(arguments))


def launch(program: Callable[[Run, Accelerator], bool], run: Run) -> int:
    """What the programs of this loop do in every process; the exit code."""
    accelerator = prepare_process()
    program(run, accelerator)
    accelerator.end_training()
    return 0


def prepare_process() -> Accelerator:
    """Installs signal handlers and joins the other processes."""
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda received, _: SIGNALS.append(received))
    # The objectives keep sums of their own between micro-steps, which no other process may overwrite.
    settings = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
    patience = InitProcessGroupKwargs(timeout=timedelta(hours=4))  # while others encode their share of the descriptors
    return Accelerator(cpu=not torch.cuda.is_available(), kwargs_handlers=[settings, patience])


def read_run(arguments: Sequence[str] | None = None) -> Run:
    """The command line; `sys.argv` without arguments."""
    return tyro.extras.overridable_config_cli(
        {
            name: (str(make.__doc__), Run(recipe=make(), out=tyro.MISSING, data=needed_data(make())))
            for name, make in RECIPES.items()
        },
        prog="ctfm pretrain",
        description=__doc__,
        args=arguments,
    )


def needed_data(recipe: Recipe) -> tuple[str, ...]:
    """A recipe that draws all its scans needs no prepared folders; of any other the command line asks for them."""
    return () if all(isinstance(phase, JointPhase) for phase in recipe.phases.values()) else tyro.MISSING


def pretrain(run: Run, accelerator: Accelerator) -> bool:
    """Every phase that is not over. Returns whether the run is finished; it is not after a signal."""
    recipe, processes = run.recipe, all_processes()
    assert isinstance(recipe, Recipe)
    stop_at = time.monotonic() + run.stop_after
    data = tuple(read_source(text) for text in run.data)
    with accelerator.main_process_first():
        check_recipe(run.out, recipe)
        processor = keep_processor(run.out / "processor", recipe, data)
    config = build_config(recipe, processor.tokenizer)
    if accelerator.is_main_process:
        config.save_pretrained(run.out / "model")
    checkpoints = find_checkpoints(run.out / "checkpoints", list(recipe.phases))
    bar = tqdm(total=sum(phase.steps for phase in recipe.phases.values()), unit="step", disable=processes.rank > 0)
    before = None

    def ask(path: Path) -> dict[str, float]:
        model, own_processor = load_exported(path)
        folder = Manifest(data[0].folder)
        nn.Module.to(model, accelerator.device)
        return probe(model, own_processor, folder, run.probe_scans, run.probe_scans)

    for name, phase in recipe.phases.items():
        own = [path for path in checkpoints if path.name.startswith(f"{name}-")]
        path = own[-1] if own else None
        if path is None or path.name != f"{name}-{phase.steps:07d}":
            model = build_model(recipe, config)  # anew: FSDP takes the last phase's apart
            if before is not None:
                load_weights(before, model)
            split = "" if isinstance(phase, JointPhase) else phase.split
            sources = tuple(replace(source, split=split) for source in data)
            parts = {"device": accelerator.device, "processes": processes, "cache": run.out / "descriptors"}
            task = build_task(phase, recipe, sources, model, processor, **parts)
            if isinstance(task.objective, JointObjective):
                if before is not None:
                    load_heads(before, task.objective)
                elif recipe.start and path is None:
                    load_start(recipe.start, task.objective)
            path, is_over = train_phase(name, task, run, accelerator, bar, path, stop_at, ask)
            if not is_over:
                return False
        else:
            bar.update(phase.steps)
        before = path
    if accelerator.is_main_process and before is not None:
        export(before, run.out / "exported")
        (run.out / "finished").touch()
    return True


def train_phase(
    name: str,
    task: Task,
    run: Run,
    accelerator: Accelerator,
    bar: tqdm,
    start: Path | None,
    stop_at: float,
    ask: Callable[[Path], dict[str, float]],
) -> tuple[Path, bool]:
    """Trains one phase from `start`, or from its first step; `ask` probes a checkpoint. Returns its last checkpoint, and
    whether the run goes on from there."""
    recipe, phase, processes = run.recipe, run.recipe.phases[name], all_processes()
    num_micro, batch_size = divide_batch(phase, processes.count)
    objective = task.objective.train()
    if run.checkpoint_activations:
        objective.model.apply(checkpoint_layers)
    if run.compile_layers:
        objective.apply(compile_layer)
    wrapped, optimizer = accelerator.prepare(objective, build_optimizer(objective, phase.optimizer))
    step, counters = 0, None
    if start is not None:
        position = load_state(start, objective, optimizer.optimizer)
        step, counters = task.schedule.resume(position.data), position.counters
        if step == phase.steps:
            return start, True
    bar.update(step)
    monitor = Monitor(name, run.out, task, phase, accelerator.device, processes, counters, step)
    batches = StepBatches(
        task.schedule,
        start_step=step + recipe.skip_data_steps,
        stop_step=phase.steps + recipe.skip_data_steps,
        batch_size=batch_size,
        rank=processes.rank,
        num_processes=processes.count,
    )
    loader = iter(task.load(batches, run.num_workers))
    consensus = StopConsensus(processes, accelerator.device, stop_at)

    def save(keep_last: int = run.keep_last) -> Path:
        position = Position(phase=name, step=step, data=task.schedule.state(step), counters=monitor.counters)
        is_main = accelerator.is_main_process
        path = save_state(run.out / "checkpoints", position, objective, optimizer.optimizer, is_main=is_main)
        if is_main:
            if run.probe_every and (step % run.probe_every == 0 or step == phase.steps):
                monitor.write_probe(step, ask(path))
            rotate(run.out / "checkpoints", recipe, keep_last)
        accelerator.wait_for_everyone()
        return path

    if step == 0:
        save()  # what the phase starts from; and a full disk is known at once
    while True:
        step += 1
        set_rates(optimizer, phase.optimizer, step, phase.steps)
        # Dropout and dropped paths: another draw each step and process, the same after a resume.
        torch.manual_seed(hash_numbers(recipe.seed, list(recipe.phases).index(name), step, processes.rank))
        for micro in range(num_micro):
            with monitor.waiting():
                loaded = next(loader)
            # Outside autocast: resampling is made of matrix products, which bfloat16 would round to some 15 HU.
            batch = task.make_batch(loaded)
            is_last = micro == num_micro - 1
            with nullcontext() if is_last else accelerator.no_sync(wrapped), accelerator.autocast():
                loss, metrics = wrapped(batch)
                accelerator.backward(loss / num_micro)
            monitor.add(metrics | {"loss": loss.detach()}, share=1 / num_micro)
        norm = clip_gradients(objective, phase.optimizer.clip_norm)
        is_bad = step_unless_bad(optimizer, norm)
        objective.after_step(step)
        monitor.after_step(norm, is_bad)
        bar.update()
        stop_requested = consensus.should_stop()
        is_over = stop_requested or step == phase.steps
        if step % run.log_every == 0 or is_over:
            monitor.write(step, learning_rate=optimizer.param_groups[0]["lr"], bar=bar)
        if step % run.save_every == 0 or is_over:
            # A run that was asked to stop will be resumed, from a checkpoint that must be kept.
            path = save(max(run.keep_last, 1) if stop_requested else run.keep_last)
            if is_over:
                accelerator.free_memory()
                return path, not stop_requested


def divide_batch(phase: Phase, count: int) -> tuple[int, int]:
    """Forward passes of a step, and samples that each of `count` processes has in one.

    Raises:
        ValueError: they are no whole numbers.
    """
    num_micro, left = divmod(phase.global_batch, phase.micro_batch)
    if left or phase.micro_batch % count:
        raise ValueError(
            f"{count} processes cannot share a step of {phase.global_batch} samples in parts of {phase.micro_batch}: the "
            f"parts must divide the step, and {count} the parts. Change global_batch and micro_batch of the phase (--help "
            "names both), or the number of processes."
        )
    return num_micro, phase.micro_batch // count


def keep_processor(folder: Path, recipe: Recipe, data: tuple[SourceConfig, ...]) -> CTFMProcessor:
    """The run's processor and tokenizer, made once."""
    if not folder.is_dir():
        partial = folder.with_suffix(".partial")
        build_processor(recipe, data).save_pretrained(partial)
        partial.rename(folder)
    return CTFMProcessor.from_pretrained(folder)


def read_source(text: str) -> SourceConfig:
    """`FOLDER` or `FOLDER@WEIGHT`; a scan needs a report where a phase aligns."""
    folder, _, weight = text.partition("@") if "://" not in text else (text, "", "")
    return SourceConfig(folder=folder, weight=float(weight or 1))


def build_optimizer(objective: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    matrices, rest = trained_parameters(objective)
    groups = [{"params": matrices, "decays": True}, {"params": rest, "decays": False, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)


def set_rates(optimizer: torch.optim.Optimizer, config: OptimizerConfig, step: int, num_steps: int) -> None:
    """Learning rate and weight decay of step 1 to `num_steps`, which depend on the step alone."""
    warm = min(1.0, step / max(config.warmup_steps, 1))
    since = max(0, step - config.warmup_steps)
    rate = along_cosine(config.learning_rate, config.last_learning_rate, since, num_steps - config.warmup_steps + 1)
    decay = along_cosine(config.weight_decay, config.last_weight_decay, step - 1, num_steps)
    for group in optimizer.param_groups:
        group["lr"] = rate * warm
        group["weight_decay"] = decay if group["decays"] else 0.0


def clip_gradients(objective: nn.Module, largest: float) -> Tensor:
    """Scales all gradients to a norm of at most `largest` and returns what it was, without waiting for the device."""
    norm = torch.nn.utils.clip_grad_norm_([p for p in objective.parameters() if p.grad is not None], largest)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def step_unless_bad(optimizer: AcceleratedOptimizer, norm: Tensor) -> Tensor:
    """Steps where the norm is finite, and returns 1 where it is not: the fused optimizer decides that on the device."""
    is_bad = (~norm.isfinite()).float()
    optimizer.optimizer.found_inf = is_bad  # type: ignore[attr-defined]  # what torch.amp's scaler tells it, too
    optimizer.step()
    optimizer.zero_grad()
    return is_bad


def compile_layer(module: nn.Module) -> None:
    if isinstance(module, CTFMLayer):
        module.compile()


def checkpoint_layers(module: nn.Module) -> None:
    if isinstance(module, PreTrainedModel) and module.supports_gradient_checkpointing:
        module.activation_checkpointing_enable()


class StopConsensus:
    """Whether any process was asked to stop. All processes get the same answer, a step later where there are several, so
    that none waits for it."""

    def __init__(self, processes: Processes, device: torch.device, stop_at: float) -> None:
        self.processes, self.device, self.stop_at = processes, device, stop_at
        self.pending = torch.zeros(1)

    def should_stop(self) -> bool:
        requested = float(bool(SIGNALS) or time.monotonic() > self.stop_at)
        if self.processes.count == 1:
            return bool(requested)
        agreed = bool(self.pending.item())
        self.pending = self.processes.add(torch.full((1,), requested, device=self.device))
        return agreed


if __name__ == "__main__":
    sys.exit(main())
