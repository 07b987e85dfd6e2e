"""The tiny recipe as one process of a run, for tests that start and kill real ones: `OUT DATA STEPS [fsdp]`."""

import signal
import sys
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, FullyShardedDataParallelPlugin, PartialState
from accelerate.utils import DistributedType
from ctfm.train import pretrain as loop

from tests.tiny_training import tiny_recipe


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
    accelerator = Accelerator(cpu=True, **settings)
    assert ("fsdp" in wishes) is (accelerator.distributed_type == DistributedType.FSDP)
    run = loop.Run(
        recipe=tiny_recipe(int(steps)), out=Path(out), data=(data,), save_every=2, log_every=1, keep_last=100
    )
    loop.pretrain(run, accelerator)
    accelerator.end_training()


if __name__ == "__main__":
    main(*sys.argv[1:])
