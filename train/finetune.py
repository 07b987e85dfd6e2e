"""Any checkpoint + labels of prepared folders -> a model of findings or of voxels that from_pretrained loads.

    ctfm finetune findings --recipe.start checkpoints/default --out runs/findings --data PREPARED
    ctfm finetune segmentation --recipe.start RUN/exported --out runs/organs --data PREPARED
    accelerate launch --config_file train/launch/accelerate_1x8.yaml -m ctfm finetune findings ...

The loop is that of pretrain.py: resumable to the bit, on any number of processes; `--recipe.trunk-is-frozen` trains the head
alone, `--recipe.from-scratch` draws all weights anew, which is the supervised baseline of a checkpoint. OUT/log.jsonl has a
row `probe/...` with what the split `test_split` says every `probe_every` steps and at the end, OUT/metrics.json the last.
"""

import json
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import tyro
from accelerate import Accelerator
from datasets import Dataset
from safetensors.torch import load_file
from torch import nn
from tqdm import tqdm

from ..configuration_ctfm import CTFMConfig, CTFMGlobalConfig, CTFMVisionConfig
from ..image_processing_ctfm import CTFMImageProcessor
from ..modeling_ctfm import CTFMForImageClassification, CTFMForSemanticSegmentation
from ..processing_ctfm import CTFMProcessor
from ..weights import load_complete
from .build import Task, mean_crops, name_structures
from .checkpoint import check_recipe, find_checkpoints
from .data import SamplingConfig, Schedule, SourceConfig, load_scans
from .labels import LabelModel, LabelObjective, grade, label_names, make_label_batch, name_findings
from .pretrain import Run, launch, read_source, train_phase
from .processes import Processes, all_processes
from .recipes import FINE_TUNINGS, FineTuning
from .tables import labels_by_scan
from .throughput import label_flops, num_tokens

HEADS = ("classifier.", "token_head.", "token_weights", "decoder.")  # what lies beside the trunk
MODELS = {"findings": CTFMForImageClassification, "segmentation": CTFMForSemanticSegmentation}


def main(arguments: Sequence[str] | None = None) -> int:
    return launch(fine_tune, read_run(arguments))


def read_run(arguments: Sequence[str] | None = None) -> Run:
    """The command line; `sys.argv` without arguments."""
    return tyro.extras.overridable_config_cli(
        {
            name: (str(make.__doc__), Run(recipe=make(), out=tyro.MISSING, data=tyro.MISSING, probe_every=500))
            for name, make in FINE_TUNINGS.items()
        },
        prog="ctfm finetune",
        description=__doc__,
        args=arguments,
    )


def fine_tune(run: Run, accelerator: Accelerator, labels: Dataset | None = None) -> bool:
    """Trains from `recipe.start`, or goes on. Returns whether the run is finished; it is not after a signal.

    Args:
        labels: a table with a column scan_id, as `load_dataset(PREPARED, "findings")` opens it, and a column of yes or no for
            each finding; it takes the place of the labels that were prepared, and a scan that it lacks is not trained on.
    """
    recipe, processes = run.recipe, all_processes()
    assert isinstance(recipe, FineTuning)
    is_main = accelerator.is_main_process
    with accelerator.main_process_first():
        check_recipe(run.out, recipe)
    processor = CTFMImageProcessor.from_pretrained(recipe.start)
    schedule = build_schedule(run, recipe, None if labels is None else labels_by_scan(labels))
    findings = name_findings(schedule.manifests, schedule.rows) if recipe.task == "findings" else ()
    names = list(findings) or list_labels(name_structures(schedule))
    model, new = build_model(recipe, build_config(recipe, names))
    if is_main:
        model.config.save_pretrained(run.out / "model")
        CTFMProcessor.from_pretrained(recipe.start).save_pretrained(run.out / "model")
    task = build_task(recipe, schedule, model, new, processor, findings, accelerator.device, processes)

    def ask(path: Path) -> dict[str, float]:
        folder = schedule.manifests[0]
        trained, cutter = load_trained(path)
        found = grade(trained.to(accelerator.device), cutter, folder, recipe.test_split, run.probe_scans)  # type: ignore[arg-type]
        if not found:
            print(f"{folder.folder} has no labelled scan of split {recipe.test_split!r}, so nothing is measured.")
        return found

    checkpoints = find_checkpoints(run.out / "checkpoints", [recipe.name])
    path = checkpoints[-1] if checkpoints else None
    bar = tqdm(total=recipe.steps, unit="step", disable=not is_main)
    stop_at = time.monotonic() + run.stop_after
    path, is_over = train_phase(recipe.name, task, run, accelerator, bar, path, stop_at, ask)
    if is_over and is_main:
        export(path, run.out / "exported")
        (run.out / "metrics.json").write_text(json.dumps(ask(path), indent=1) + "\n")
        (run.out / "finished").touch()
    return is_over


# ---- data ----


def build_schedule(run: Run, recipe: FineTuning, labels: Mapping[str, Mapping[str, float]] | None = None) -> Schedule:
    voxels = recipe.task == "segmentation"
    sources = [read_source(text) for text in run.data]
    return Schedule(
        SamplingConfig(
            sources=tuple(
                SourceConfig(
                    folder=source.folder,
                    weight=source.weight,
                    split=recipe.split,
                    with_segmentation=voxels,
                    with_labels=not voxels,
                )
                for source in sources
            ),
            seed=recipe.seed,
            global_batch=recipe.global_batch,
            crops_per_scan=1,
        ),
        labels,
    )


def list_labels(structures: Mapping[int, str]) -> list[str]:
    """Names of a label map's numbers from 0, the background, to the last that has one."""
    return ["background"] + [structures.get(number, f"label {number}") for number in range(1, max(structures) + 1)]


# ---- model ----


def build_config(recipe: FineTuning, names: Sequence[str]) -> CTFMConfig:
    """That of the checkpoint with the labels' names; voxels need a global transformer, and get one where it has none."""
    config = CTFMConfig.from_pretrained(recipe.start)
    config.id2label = dict(enumerate(names))
    config.label2id = {name: number for number, name in enumerate(names)}
    config.calibration = None  # of the parent's zero-shot scores
    config.structures = (
        None  # the parent's, where one checkpoint held both heads; here `id2label` names what the head says
    )
    vision = config.vision_config
    assert isinstance(vision, CTFMVisionConfig)
    if vision.global_config is None and recipe.task == "segmentation":
        vision.global_config = CTFMGlobalConfig(
            input_size=2 * vision.hidden_size,
            hidden_size=vision.hidden_size,
            num_hidden_layers=2,
            num_attention_heads=vision.num_attention_heads,
            intermediate_size=vision.intermediate_size,
            layerscale_value=vision.layerscale_value,
            initializer_range=vision.initializer_range,
        )
    return config


def build_model(recipe: FineTuning, config: CTFMConfig) -> tuple[LabelModel, tuple[str, ...]]:
    """The checkpoint's trunk under a head, which is new unless the checkpoint has one for labels of the same names.

    Returns:
        The model, and the parts of the trunk that the checkpoint did not have.
    """
    torch.manual_seed(recipe.seed)
    model_class, before = MODELS[recipe.task], CTFMConfig.from_pretrained(recipe.start)
    if recipe.from_scratch:
        return model_class(config), ("",)
    had_global = getattr(before.vision_config, "global_config", None) is not None
    new = () if had_global or config.vision_config.global_config is None else ("global_model.",)  # type: ignore[union-attr]
    learnt = (*HEADS, *(f"vision_model.{name}" for name in new))
    model = load_complete(model_class, recipe.start, new=learnt, config=config, dtype=torch.float32)
    names = before.structures if recipe.task == "segmentation" and before.structures else before.id2label
    if names != config.id2label:  # of other labels, though there may be as many
        draw_head_anew(model)
        logging.getLogger(__name__).warning(
            "The head of %s is for other labels than %s, so a new one is drawn at random.",
            recipe.start,
            list((config.id2label or {}).values()),
        )
    return model, new


def draw_head_anew(model: LabelModel) -> None:
    parts: list[Any] = [
        module for name, part in model.named_children() if name != "vision_model" for module in part.modules()
    ]
    for module in parts:
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    if isinstance(model, CTFMForImageClassification) and model.config.token_scores:
        nn.init.ones_(model.token_weights)


def build_task(
    recipe: FineTuning,
    schedule: Schedule,
    model: LabelModel,
    new: Sequence[str],
    processor: CTFMImageProcessor,
    findings: Sequence[str],
    device: torch.device,
    processes: Processes,
) -> Task:
    objective = LabelObjective(model, trunk_is_frozen=recipe.trunk_is_frozen, new=new, processes=processes)
    crops, crop_size = mean_crops(schedule, processor), tuple(processor.crop_size)
    vision = model.vision_model.config
    return Task(
        objective=objective.to(device),
        schedule=schedule,
        load=lambda batches, num_workers: load_scans(schedule, batches, num_workers=num_workers),
        make_batch=lambda samples: make_label_batch(samples, processor, findings, device),
        sample_flops=label_flops(recipe, vision, crop_size, crops, len(label_names(model))),
        sample_tokens=crops * num_tokens(vision, crop_size),
    )


# ---- checkpoints ----


def load_trained(path: Path) -> tuple[LabelModel, CTFMImageProcessor]:
    """Model and image processor of a checkpoint of a run."""
    out = path.parents[1]
    config = CTFMConfig.from_pretrained(out / "model")
    model = MODELS[json.loads((out / "recipe.json").read_text())["task"]](config)
    state: dict[str, Any] = load_file(path / "objective.safetensors")
    model.load_state_dict({name.removeprefix("model."): tensor for name, tensor in state.items()})
    return model.eval(), CTFMImageProcessor.from_pretrained(out / "model")


def export(path: Path, out: Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """Checkpoint -> a folder that `from_pretrained` loads, code files included."""
    model, _ = load_trained(path)
    nn.Module.to(model, dtype)
    model.save_pretrained(out)
    CTFMProcessor.from_pretrained(str(path.parents[1] / "model")).save_pretrained(out)


if __name__ == "__main__":
    sys.exit(main())
