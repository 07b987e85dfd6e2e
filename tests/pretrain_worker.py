"""The tiny recipe as one process of a run, for tests that start and kill real ones.

OUT DATA STEPS [fsdp] [hold=N] [workers=N]
"""

import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, FullyShardedDataParallelPlugin, PartialState
from accelerate.utils import DistributedType
from ctfm.train import pretrain as loop
from ctfm.train.monitor import Monitor

from tests.tiny_training import tiny_recipe


def hold_at(row: int) -> None:
    """Waits at that row of the log, in every process, for a signal: so it comes there however slow the machine is."""
    write, numbers = Monitor.write, iter(range(1, 1000))

    def write_and_wait(*arguments: Any, **named: Any) -> None:
        write(*arguments, **named)
        is_there, deadline = next(numbers) == row, time.monotonic() + 1200
        while is_there and not loop.SIGNALS and time.monotonic() < deadline:
            time.sleep(0.02)

    Monitor.write = write_and_wait


def main(out: str, data: str, steps: str, *wishes: str) -> None:
    torch.set_num_threads(1)
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda received, _: loop.SIGNALS.append(received))
    settings: dict = {"kwargs_handlers": [DistributedDataParallelKwargs(broadcast_buffers=False)]}
    if "fsdp" in wishes:
        # Accelerate leaves FSDP out on CPUs; torch does not.
        PartialState(cpu=True)
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        settings["fsdp_plugin"] = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy="transformer_based_wrap",
            transformer_cls_names_to_wrap=["CTFMLayer"],
            cpu_ram_efficient_loading=False,
        )
    numbers = {name: int(number) for name, _, number in (wish.partition("=") for wish in wishes) if number}
    if "hold" in numbers:
        hold_at(numbers["hold"])
    accelerator = Accelerator(cpu=True, **settings)
    assert ("fsdp" in wishes) is (accelerator.distributed_type == DistributedType.FSDP)
    run = loop.Run(
        recipe=tiny_recipe(int(steps)),
        out=Path(out),
        data=(data,),
        save_every=2,
        log_every=1,
        keep_last=100,
        num_workers=numbers.get("workers", 0),
    )
    loop.pretrain(run, accelerator)
    accelerator.end_training()


if __name__ == "__main__":
    main(*sys.argv[1:])
