"""What the loop counts -> log.jsonl, TensorBoard, progress bar; and when a run must not go on.

Numbers stay on the device between rows of the log, so that no step waits for them.
"""

import json
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from .build import Task
from .processes import Processes
from .recipes import Phase
from .throughput import peak_flops

MAX_BAD_STEPS = 10  # skipped in a row
WINDOW = 50  # rows of the log, all within the range, that the next one is compared with
MIN_WINDOW = 20
MAX_DEVIATIONS = 10.0  # that a loss may lie above their median
MIN_DEVIATION = 0.01  # of the median: a loss almost without noise may still drift
PATIENCE = 5  # rows out of the range in a row that stop the run


class TrainingStopped(RuntimeError):
    """The losses say that going on would spoil the run. The last checkpoint is from before."""


class LossRange:
    """Whether a run diverges: `PATIENCE` rows in a row above the median of earlier ones by `MAX_DEVIATIONS` standard
    deviations, which the median absolute deviation estimates, so that single outliers neither stop a run nor widen its range.
    benchmarks/loss_stop.py measures how often noise alone stops a run, and how soon a divergence does.

    `losses` and `rows_out` are all of its state.
    """

    def __init__(self, losses: Sequence[float] = (), rows_out: int = 0) -> None:
        self.losses, self.rows_out = list(losses), rows_out

    def limit(self) -> float:
        """The largest loss within the range; no limit before there are `MIN_WINDOW` rows."""
        if len(self.losses) < MIN_WINDOW:
            return math.inf
        median = statistics.median(self.losses)
        deviation = 1.4826 * statistics.median(abs(loss - median) for loss in self.losses)  # of a Gaussian, its sigma
        return median + MAX_DEVIATIONS * max(deviation, MIN_DEVIATION * abs(median))

    def add(self, loss: float) -> int:
        """Takes in a row and returns how many in a row are out of the range, which these do not change."""
        if loss > self.limit():
            self.rows_out += 1
        else:
            self.rows_out, self.losses = 0, [*self.losses[1 - WINDOW :], loss]
        return self.rows_out


class Monitor:
    """Of one phase. `counters` travel with the checkpoint: losses of the last rows, rows out of range, steps skipped so far."""

    def __init__(
        self,
        name: str,
        out: Path,
        task: Task,
        phase: Phase,
        device: torch.device,
        processes: Processes,
        counters: dict[str, Any] | None,
        step: int,
    ) -> None:
        self.name, self.out, self.device, self.processes = name, out, device, processes
        self.counters: dict[str, Any] = counters or {"windows": [], "skipped_steps": 0}
        self.sums: dict[str, Tensor] = {}
        self.bad = torch.zeros(2, device=device)  # skipped since the last row, skipped in a row
        self.samples_per_step = phase.global_batch
        self.flops, self.tokens = task.sample_flops, task.sample_tokens
        self.peak = peak_flops(device)
        self.wait_s, self.last_step, self.last_time = 0.0, step, time.monotonic()
        self.writer = None
        if processes.rank == 0:
            cut_log(out / "log.jsonl", name, step)
            self.writer = SummaryWriter(str(out / "tensorboard" / name), purge_step=step + 1)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """For the loader."""
        start = time.monotonic()
        yield
        self.wait_s += time.monotonic() - start

    def add(self, metrics: dict[str, Tensor], share: float) -> None:
        """Numbers that are not finite are left out of the means; steps with them are skipped and counted."""
        for name, value in metrics.items():
            value = value.detach().float().reshape(())
            counted = torch.stack((value.nan_to_num(0.0, 0.0, 0.0), value.isfinite().float())) * share
            self.sums[name] = self.sums[name] + counted if name in self.sums else counted

    def after_step(self, norm: Tensor, is_bad: Tensor) -> None:
        self.add({"gradient_norm": norm}, 1.0)
        skipped, in_a_row = self.bad
        # On the device, without a branch: a good step, `is_bad` 0, ends the row.
        self.bad = torch.stack((skipped + is_bad, (in_a_row + 1) * is_bad))

    def write(self, step: int, learning_rate: float, bar: tqdm) -> None:
        """A row of means since the last one, over all processes.

        Raises:
            TrainingStopped: gradients were not finite for `MAX_BAD_STEPS` steps, or the loss left its range.
        """
        names = sorted(self.sums)
        sums, counts = self.processes.add(torch.stack([self.sums[name] for name in names])).unbind(1)
        row = dict(zip(names, (sums / counts.clamp(min=1e-9)).tolist(), strict=True))
        num_steps, now = step - self.last_step, time.monotonic()
        skipped, in_a_row = (int(number) for number in self.bad.tolist())
        self.counters["skipped_steps"] += skipped
        row |= {"learning_rate": learning_rate, "skipped_steps": self.counters["skipped_steps"]}
        elapsed = now - self.last_time
        per_second = num_steps * self.samples_per_step / elapsed
        speed = {
            "samples_per_s": per_second,
            "tokens_per_s": per_second * self.tokens,
            "waiting_share": self.wait_s / elapsed,
        }
        if self.peak is not None:
            speed["mfu"] = per_second * self.flops / (self.peak * self.processes.count)
        self.write_row(step, row | speed)
        bar.set_postfix(loss=f"{row['loss']:.3f}", rate=f"{per_second:.1f}/s")
        self.sums, self.bad = {}, self.bad * torch.tensor([0.0, 1.0], device=self.device)
        self.wait_s, self.last_step, self.last_time = 0.0, step, now
        if in_a_row >= MAX_BAD_STEPS:
            raise TrainingStopped(
                f"{self.name}: gradients were not finite in {in_a_row} steps in a row up to step {step}. Start again from "
                "the last checkpoint with a lower learning_rate of this phase, or with --recipe.skip-data-steps above the "
                "number of these steps, which a run that goes on may change."
            )
        if not in_a_row:
            self.check_loss(row["loss"], step)

    def check_loss(self, loss: float, step: int) -> None:
        range_ = LossRange(self.counters["windows"], self.counters.get("rows_out", 0))
        limit, rows_out = range_.limit(), range_.add(loss)
        self.counters |= {"windows": range_.losses, "rows_out": rows_out}
        if not rows_out:
            return
        said = f"{self.name}: loss {loss:.4g} at step {step} is above {limit:.4g}, the range of the rows before"
        if rows_out >= PATIENCE:
            raise TrainingStopped(
                f"{said}, in {rows_out} rows of the log in a row. Remove the checkpoints of these rows and start the same "
                "command with a lower learning_rate or clip_norm of this phase, or with --recipe.skip-data-steps, which a run "
                "that goes on may change."
            )
        if rows_out == 1 and self.processes.rank == 0:
            tqdm.write(f"{said}. The run stops after {PATIENCE} such rows in a row.")

    def write_probe(self, step: int, found: dict[str, float]) -> None:
        self.write_row(step, {f"probe/{name}": value for name, value in found.items()})
        self.last_time = time.monotonic()

    def write_row(self, step: int, values: dict[str, float]) -> None:
        if self.writer is None:
            return
        with (self.out / "log.jsonl").open("a") as file:
            file.write(json.dumps({"phase": self.name, "step": step} | values) + "\n")
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)


def cut_log(path: Path, phase: str, step: int) -> None:
    """Takes away the rows that a run which goes on will write again."""
    if not path.is_file():
        return
    rows = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    kept = [row for row in rows if row["phase"] != phase or row["step"] <= step]
    path.write_text("".join(json.dumps(row) + "\n" for row in kept))
