"""Training state <-> folder, and folder -> Hub files.

    ctfm export runs/x/checkpoints/alignment-0001500 EXPORTED

    OUT/recipe.json            what decides the run
    OUT/processor/             image processor and tokenizer
    OUT/checkpoints/PHASE-STEP/objective.safetensors   student, teacher, heads, centres, step; or the whole dual encoder
                               optimizer.safetensors   moments and steps, by parameter name
                               state.json              phase, step, data position, counters

A folder has its final name only when all its files are on disk, so a run that is killed while it saves goes on from the one
before. Nothing in it depends on the number of processes. There is no random state: every draw of a step comes from the
recipe's seed and the step's number.
"""

import argparse
import json
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from ..configuration_ctfm import CTFMConfig, CTFMVisionConfig
from ..image_processing_ctfm import CTFMImageProcessor
from ..modeling_ctfm import CTFMModel, CTFMVisionModel
from ..processing_ctfm import CTFMProcessor
from ..weights import read_weights
from ..whole_files import write_json
from .build import add_adapters
from .joint import JointObjective
from .recipes import FineTuning, Recipe

NAME = re.compile(r"(.+)-(\d{7})")
LOCAL = ("teacher.backbone.", "segmenter.backbone.")  # the local transformer of a phase that trains it alone
FULL = StateDictOptions(full_state_dict=True, cpu_offload=True)


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where a run stands: `step` of the phase, counting the optimizer's steps, and what the loop counted."""

    phase: str
    step: int
    data: dict[str, Any]
    counters: dict[str, Any]


# ---- save and load: every process calls them ----


def save_state(
    folder: Path, position: Position, objective: nn.Module, optimizer: torch.optim.Optimizer, *, is_main: bool
) -> Path:
    """Writes `folder/PHASE-STEP` and returns it. Sharded parameters are collected; the main process writes."""
    model_state = get_model_state_dict(objective, options=FULL)
    # Asked before its first step, torch would make one, with gradients of zero, and count it.
    has_stepped = bool(optimizer.state)
    moments: dict[str, Any] = {"state": {}}
    if has_stepped:
        moments |= get_optimizer_state_dict(objective, optimizer, options=FULL)
    path = folder / f"{position.phase}-{position.step:07d}"
    if is_main and not path.is_dir():
        partial = folder / f".{path.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save_file(own_memory(model_state), partial / "objective.safetensors")
        tensors = {f"{name}.{key}": value for name, own in moments["state"].items() for key, value in own.items()}
        save_file(own_memory(tensors), partial / "optimizer.safetensors")
        groups = {"param_groups": moments.get("param_groups", [])}
        (partial / "state.json").write_text(json.dumps(asdict(position) | groups, indent=1))
        for file in partial.iterdir():
            with file.open("rb") as written:
                os.fsync(written.fileno())
        os.replace(partial, path)
    return path


def own_memory(tensors: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


def load_state(path: Path, objective: nn.Module, optimizer: torch.optim.Optimizer) -> Position:
    """Continues `objective` and `optimizer`, on any number of processes."""
    state = json.loads((path / "state.json").read_text())
    set_model_state_dict(objective, dict[str, Any](load_file(path / "objective.safetensors")), options=FULL)
    groups, moments = state.pop("param_groups"), dict[str, dict[str, Any]]()
    for key, tensor in load_file(path / "optimizer.safetensors").items():
        name, _, kind = key.rpartition(".")
        moments.setdefault(name, {})[kind] = tensor
    if moments:
        stored: dict[str, Any] = {"state": moments, "param_groups": groups}
        set_optimizer_state_dict(objective, optimizer, stored, options=FULL)
    return Position(**state)


def find_checkpoints(folder: Path, phases: list[str]) -> list[Path]:
    """All that are whole, oldest first."""
    found = []
    for path in folder.glob("*-*"):
        match = NAME.fullmatch(path.name)
        if match and match[1] in phases and (path / "state.json").is_file():
            found.append((phases.index(match[1]), int(match[2]), path))
    return [path for *_, path in sorted(found)]


def rotate(folder: Path, recipe: Recipe | FineTuning, keep: int) -> None:
    """Removes all but the last `keep`; the last of every phase stays, since another lineage may grow from it."""
    ends = {f"{name}-{phase.steps:07d}" for name, phase in recipe.phases.items()}
    found = find_checkpoints(folder, list(recipe.phases))
    for path in found[: max(len(found) - keep, 0)]:
        if path.name not in ends:
            shutil.rmtree(path)


def load_weights(path: Path, model: CTFMModel) -> None:
    """What a phase leaves to the next: the local transformer (the teacher's), or the dual encoder."""
    state = load_file(path / "objective.safetensors")
    local = local_weights(state)
    if local:
        model.vision_model.local_model.load_state_dict(local)
    else:
        model.load_state_dict(model_weights(state))


def model_weights(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix("model."): tensor for name, tensor in state.items() if name.startswith("model.")}


def head_weights(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Of the classifier and the decoder that a joint phase trains beside the dual encoder, as their classes name them."""
    return {
        name.removeprefix("findings."): tensor
        for name, tensor in state.items()
        if name.startswith(("findings.", "decoder."))
    }


def load_heads(path: Path, objective: nn.Module) -> None:
    """What one joint phase leaves to the next beside the dual encoder; nothing where the phase before had no such heads."""
    state = load_file(path / "objective.safetensors")
    heads = {
        name: tensor for name, tensor in state.items() if name.startswith(("findings.", "decoder.", "organ_head."))
    }
    objective.load_state_dict(heads, strict=False)


def load_start(folder: str, objective: JointObjective) -> None:
    """The weights of a published checkpoint of the same architecture, heads included; the head that only training needs is
    drawn anew.

    Raises:
        OSError: it lacks weights.
    """
    stored = read_weights(folder)
    parts = ((objective.model, ""), (objective.findings, ""), (objective.decoder, "decoder."))
    missing = [f"{prefix}{name}" for part, prefix in parts for name in part.state_dict() if prefix + name not in stored]
    if missing:
        raise OSError(
            f"{folder} lacks {len(missing)} weights that this phase goes on from, {missing[0]} for one. Take a checkpoint of "
            "this architecture that a joint phase trained, with its classifier and decoder."
        )
    for part, prefix in parts:
        part.load_state_dict({name: stored[prefix + name] for name in part.state_dict()})


def local_weights(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        name[len(prefix) :]: tensor for name, tensor in state.items() for prefix in LOCAL if name.startswith(prefix)
    }


# ---- export ----


CHANGEABLE = (
    "learning_rate",
    "last_learning_rate",
    "clip_norm",
    "skip_data_steps",
)  # what a run that diverged needs to go on with


def find_changes(before: Any, now: Any, name: str = "") -> dict[str, list[Any]]:
    """Dotted name -> the value before and now, of all that differ."""
    if isinstance(before, dict) and isinstance(now, dict):
        parts = [
            find_changes(before.get(k), now.get(k), f"{name}.{k}".strip(".")) for k in [*before, *(now.keys() - before)]
        ]
        return {dotted: values for part in parts for dotted, values in part.items()}
    return {} if before == now else {name: [before, now]}


def check_recipe(out: Path, recipe: Recipe | FineTuning) -> None:
    """Writes the recipe of a new run. One that goes on must have the same but for `CHANGEABLE`; what it changes is noted under
    "history" in recipe.json with the checkpoint that it goes on from.

    Raises:
        ValueError: it has another.
    """
    now = json.loads(json.dumps(asdict(recipe)))
    path = out / "recipe.json"
    if not path.is_file():
        out.mkdir(parents=True, exist_ok=True)
        write_json(path, now)
        return
    before = json.loads(path.read_text())
    history = before.pop("history", [])
    changes = find_changes(before, now)
    others = sorted(name for name in changes if name.rpartition(".")[2] not in CHANGEABLE)
    if others:
        raise ValueError(f"{out} holds a run of another recipe ({', '.join(others)} differ). Take another --out.")
    if changes:
        found = find_checkpoints(out / "checkpoints", list(recipe.phases))
        history.append({"from": found[-1].name if found else None, "changes": changes})
        write_json(path, now | {"history": history})


def load_exported(path: Path) -> tuple[CTFMVisionModel | CTFMModel, CTFMImageProcessor | CTFMProcessor]:
    """Model and processor as a checkpoint is published: of a phase that trains the local transformer alone a scan encoder
    without a global one; of alignment the dual encoder, adapters merged."""
    out = path.parents[1]
    state = load_file(path / "objective.safetensors")
    config = CTFMConfig.from_pretrained(out / "model")
    processor = CTFMProcessor.from_pretrained(out / "processor")
    local = local_weights(state)
    if local:
        vision_config = config.vision_config
        assert isinstance(vision_config, CTFMVisionConfig)
        vision_config.global_config = None
        vision = CTFMVisionModel(vision_config)
        vision.local_model.load_state_dict(local)
        return vision.eval(), processor.image_processor
    model = CTFMModel(config)
    rank = json.loads((out / "recipe.json").read_text())["text_adapter_rank"]
    add_adapters(model, rank)
    model.load_state_dict(model_weights(state))
    if rank:
        model.text_model = model.text_model.merge_and_unload()  # type: ignore[operator]
    return model.eval(), processor


def export(path: Path, out: Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """Checkpoint -> a folder that `from_pretrained` loads, code files included."""
    model, processor = load_exported(path)
    nn.Module.to(model, dtype)
    heads = head_weights(load_file(path / "objective.safetensors"))
    weights = model.state_dict() | {name: tensor.to(dtype) for name, tensor in heads.items()}
    model.save_pretrained(out, state_dict=weights)
    processor.save_pretrained(out)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="ctfm export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    given = parser.parse_args(arguments)
    export(given.checkpoint, given.out)
    print(given.out)
    return 0
