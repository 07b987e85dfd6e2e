"""Checkpoints on disk: whole or not there, and as many as asked for."""

from pathlib import Path
from typing import Any

import pytest
import torch
from ctfm.train import checkpoint
from ctfm.train.checkpoint import Position, find_checkpoints, load_state, rotate, save_state
from torch import nn

from tests.tiny_training import tiny_recipe

PHASES = ["self_supervision", "segmentation"]


def make_parts(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = nn.Linear(3, 2)
    return model, torch.optim.AdamW(model.parameters())


def take_step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def save(folder: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> Path:
    position = Position(phase="segmentation", step=step, data={"step": step}, counters={"skipped_steps": 1})
    return save_state(folder, position, model, optimizer, is_main=True)


def test_a_checkpoint_gives_weights_moments_and_position_back(tmp_path: Path) -> None:
    model, optimizer = make_parts(0)
    take_step(model, optimizer)
    path = save(tmp_path, 1, model, optimizer)
    other, other_optimizer = make_parts(1)
    position = load_state(path, other, other_optimizer)
    assert (position.phase, position.step, position.counters) == ("segmentation", 1, {"skipped_steps": 1})
    for parts in ((model, optimizer), (other, other_optimizer)):
        take_step(*parts)
    for name, tensor in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name


def test_a_save_that_breaks_off_leaves_no_checkpoint_and_the_next_one_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, optimizer = make_parts(0)
    write = checkpoint.save_file

    def fill_the_disk(tensors: dict[str, Any], path: Path) -> None:
        write(tensors, path)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save_file", fill_the_disk)
        with pytest.raises(OSError, match="No space left"):
            save(tmp_path, 3, model, optimizer)
    assert list(tmp_path.rglob("objective.safetensors"))  # half of it is there, under another name
    assert find_checkpoints(tmp_path, PHASES) == []
    path = save(tmp_path, 3, model, optimizer)
    assert find_checkpoints(tmp_path, PHASES) == [path]
    assert [folder.name for folder in tmp_path.iterdir()] == [path.name]


def test_the_last_checkpoints_stay_and_the_last_of_every_phase(tmp_path: Path) -> None:
    recipe = tiny_recipe(steps=6)
    for name in ("self_supervision-0000004", "self_supervision-0000006", "segmentation-0000002"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.json").touch()
    for step in (4, 5):
        save(tmp_path, step, *make_parts(0))
    kept = {}
    for keep in (9, 2, 0):
        rotate(tmp_path, recipe, keep=keep)
        kept[keep] = [path.name for path in find_checkpoints(tmp_path, PHASES)]
    assert len(kept[9]) == 5
    assert kept[2] == ["self_supervision-0000006", "segmentation-0000004", "segmentation-0000005"]
    assert kept[0] == ["self_supervision-0000006"]
