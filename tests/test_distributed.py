"""One process with the whole batch against two real ones (gloo) with half of it each, wrapped by DDP."""

import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from ctfm.train.objective import MomentumCentringConfig, SinkhornConfig
from ctfm.train.processes import ALONE, Processes, all_processes
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from tests.tiny_training import (
    gradients,
    part_of_pairs,
    part_of_views,
    tiny_alignment,
    tiny_pairs,
    tiny_self_supervision,
    tiny_views,
)

CASES = ["dino with centring", "dino with Sinkhorn", "first phase", "second phase"]
Step = dict[str, dict[str, Tensor]]


def steps_of(case: str, processes: Processes) -> list[Step]:
    """Two steps of plain gradient descent: loss and metrics, gradients, and the state after each."""
    if case.startswith("dino"):
        centring = MomentumCentringConfig() if case.endswith("centring") else SinkhornConfig()
        model = tiny_self_supervision(processes=processes, centring=centring, first_teacher_momentum=0.5)
        batches, part_of = [tiny_views(4, seed) for seed in (0, 1)], part_of_views
    else:
        model = tiny_alignment(processes=processes, local_is_frozen=case == "first phase")
        same = torch.tensor([[0], [1], [0], [2]])  # a report of the first process, and of the second
        batches, part_of = [replace(tiny_pairs(4, seed), text_keys=same) for seed in (0, 1)], part_of_pairs
    rows = 4 // processes.count
    mine = slice(processes.rank * rows, (processes.rank + 1) * rows)
    wrapped = model if processes.count == 1 else DistributedDataParallel(model)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    steps = []
    for step, batch in enumerate(batches, 1):
        optimizer.zero_grad()
        loss, metrics = wrapped(part_of(batch, mine))  # type: ignore[arg-type]
        loss.backward()
        found = gradients(model)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # heads of a few numbers have steep ones at the start
        numbers = {"loss": loss.detach()} | metrics
        means = {name: processes.add(value.float()) / processes.count for name, value in numbers.items()}
        optimizer.step()
        model.after_step(step)
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        steps.append({"numbers": means, "gradients": found, "state": state})
    return steps


def work(rank: int, count: int, folder: str) -> None:
    """What every process does; spawned, so it is found by name."""
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=count)
    processes = all_processes()
    rows = torch.arange(6.0).reshape(3, 2).add(10 * rank).requires_grad_()
    gathered = processes.gather(rows)
    (gathered * (rank + 1)).sum().backward()
    found = {case: steps_of(case, processes) for case in CASES}
    exchange = {"rows": rows.detach(), "gathered": gathered.detach(), "gradient": rows.grad}
    torch.save({"exchange": exchange, "cases": found}, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    folder = tmp_path_factory.mktemp("gloo")
    torch.multiprocessing.spawn(work, (2, str(folder)), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


def test_gather_keeps_the_order_of_ranks_and_adds_what_every_loss_says_of_a_row(two: list[dict]) -> None:
    expected = torch.cat([process["exchange"]["rows"] for process in two])
    for process in two:
        assert torch.equal(process["exchange"]["gathered"], expected)
        assert torch.equal(process["exchange"]["gradient"], torch.full((3, 2), 3.0))  # 1 from rank 0 and 2 from rank 1


def test_one_process_is_alone() -> None:
    assert all_processes() is ALONE


@pytest.mark.parametrize("case", CASES)
def test_two_processes_give_loss_gradients_and_state_of_one(case: str, two: list[dict]) -> None:
    for step, expected in enumerate(steps_of(case, ALONE)):
        for process in two:
            found = process["cases"][case][step]
            for part in ("gradients", "state"):
                assert found[part].keys() == expected[part].keys()
                for name, tensor in expected[part].items():
                    largest = max(1.0, float(tensor.abs().max()))
                    torch.testing.assert_close(
                        found[part][name], tensor, atol=1e-5 * largest, rtol=0, msg=f"{part} {name}"
                    )
            torch.testing.assert_close(found["numbers"]["loss"], expected["numbers"]["loss"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_processes_stay_equal_to_the_bit(case: str, two: list[dict]) -> None:
    first, second = (process["cases"][case][-1]["state"] for process in two)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("case", CASES)
def test_the_comparison_sees_what_it_should(case: str) -> None:
    """Gradients are far above the tolerance, so that equality means something."""
    norms = {name: float(gradient.norm()) for name, gradient in steps_of(case, ALONE)[0]["gradients"].items()}
    assert max(norms.values()) > 1e-1
    assert sum(norm > 1e-4 for norm in norms.values()) > 0.9 * len(norms)
