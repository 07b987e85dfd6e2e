"""rows of one process -> rows of all processes, with gradients.

An objective is given a `Processes` and knows nothing else of the machine, so that it can be tested in one process. The rule
that makes gradients of n processes equal those of one process with the whole batch:

1. every process returns the mean over its own rows, so the loss of the whole batch is the mean of the processes' losses;
2. the backward of `gather` sums over processes what each of their losses says about a row, and hands it to its owner;
3. DDP and FSDP average parameter gradients over processes, which is the gradient of the mean in (1).

Every process must bring the same number of rows to `gather`; `add` takes any tensors of one shape.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Processes:
    """Which process this is, and how it hears of the others.

    rank, count: this process, and how many there are.
    gather: `(b, ...) -> (count*b, ...)`, rows of all processes in the order of their ranks, differentiable.
    add: sum over processes of a tensor, without gradient.
    """

    rank: int
    count: int
    gather: Callable[[Tensor], Tensor]
    add: Callable[[Tensor], Tensor]


def itself(tensor: Tensor) -> Tensor:
    return tensor


ALONE = Processes(rank=0, count=1, gather=itself, add=itself)


def all_processes() -> Processes:
    """The processes of the default group of `torch.distributed`, or this one alone where there is none."""
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return ALONE
    return Processes(rank=dist.get_rank(), count=dist.get_world_size(), gather=gather_rows, add=add_over_processes)


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]


def gather_rows(rows: Tensor) -> Tensor:
    gathered = _GatherRows.apply(rows)
    assert isinstance(gathered, Tensor)
    return gathered


def add_over_processes(tensor: Tensor) -> Tensor:
    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total
