"""Any checkpoint + labels of prepared folders -> a model of findings or of voxels that from_pretrained loads.

    ctfm finetune findings --recipe.start checkpoints/default --out runs/findings --data PREPARED
    ctfm finetune segmentation --recipe.start RUN/exported --out runs/organs --data PREPARED
    accelerate launch --config_file train/launch/accelerate_1x8.yaml -m ctfm finetune findings ...

The loop is that of pretrain.py: resumable to the bit, on any number of processes; `--recipe.trunk-is-frozen` trains the head
alone (beside it `--recipe.adapter-rank` LoRA, `--recipe.last-layers` the last layers), `--recipe.from-scratch` draws all
weights anew, which is the supervised baseline of a checkpoint. From a table of scans where they lie: ctfm finetune findings
TABLE --out DIR (see table_finetune.py and ctfm finetune findings TABLE --help). OUT/log.jsonl has a
row `probe/...` with what the split `test_split` says every `probe_every` steps and at the end, OUT/metrics.json the last.
"""

import json
import logging
import math
import shutil
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
from .labels import (
    LabelModel,
    LabelObjective,
    add_adapters,
    answer,
    grade,
    grade_findings,
    label_loss,
    make_label_batch,
    merge_adapters,
    name_findings,
)
from .pretrain import SIGNALS, Run, launch, read_source, train_phase
from .processes import Processes, all_processes
from .recipes import FINE_TUNINGS, FineTuning
from .shards import Manifest
from .tables import labels_by_scan
from .targets import PROBLEM_TYPES
from .throughput import label_flops, num_tokens

HEADS = ("classifier.", "token_head.", "token_weights", "decoder.")  # what lies beside the trunk
MODELS = {"findings": CTFMForImageClassification, "segmentation": CTFMForSemanticSegmentation}


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    if len(arguments) > 1 and arguments[0] in ("findings", "segmentation", "survival") and arguments[1][:1] != "-":
        from .table_finetune import main as fine_tune_table

        return fine_tune_table(arguments)
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


@dataclass(frozen=True, kw_only=True)
class ScanLabels:
    """Labels that take the place of those that were prepared; a scan that lacks them is not trained on.

    by_scan: scan_id -> column -> number; names: of the head's outputs; columns: of the labels, where these are others.
    """

    by_scan: Mapping[str, Mapping[str, float]]
    names: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()


def fine_tune(run: Run, accelerator: Accelerator, labels: Dataset | ScanLabels | None = None) -> bool:
    """Trains from `recipe.start`, or goes on. Returns whether the run is finished; it is not after a signal.

    Args:
        labels: a table with a column scan_id, as `load_dataset(PREPARED, "findings")` opens it, and a column of yes or no for
            each finding; or any labels. They take the place of those that were prepared.
    """
    recipe, processes = run.recipe, all_processes()
    assert isinstance(recipe, FineTuning)
    is_main = accelerator.is_main_process
    with accelerator.main_process_first():
        check_recipe(run.out, recipe)
    if (run.out / "finished").exists():  # one that ended early has steps left, and no reason to take them
        return True
    processor = CTFMImageProcessor.from_pretrained(recipe.start)
    given = ScanLabels(by_scan=labels_by_scan(labels)) if isinstance(labels, Dataset) else labels
    schedule = build_schedule(run, recipe, None if given is None else given.by_scan)
    findings: tuple[str, ...] = ()
    if recipe.task == "findings":
        findings = (given.names if given else ()) or name_findings(schedule.manifests, schedule.rows)
    columns = (given.columns if given else ()) or findings
    names = list(findings) or list_labels(name_structures(schedule))
    model, new = build_model(recipe, build_config(recipe, names))
    add_adapters(model.vision_model, recipe.adapter_rank)
    new = (*new, *last_layers(model, recipe.last_layers))
    if is_main:
        model.config.save_pretrained(run.out / "model")
        CTFMProcessor.from_pretrained(recipe.start).save_pretrained(run.out / "model")
    task = build_task(recipe, schedule, model, new, processor, columns, accelerator.device, processes)
    best = Best(run.out, recipe.patience)

    def look(path: Path) -> dict[str, float]:
        folder = schedule.manifests[0]
        trained, cutter = load_trained(path)
        nn.Module.to(trained, accelerator.device)
        found = measure(recipe, trained, cutter, folder, run.probe_scans, columns)
        if not found:
            print(f"{folder.folder} has no labelled scan of split {recipe.test_split!r}, so nothing is measured.")
        return found

    def ask(path: Path) -> dict[str, float]:
        found = look(path)
        if recipe.patience and best.add(path, found.get("loss", -found.get("macro_dice", math.nan))):
            SIGNALS.append(signal.SIGTERM)  # all processes leave together, as if they were asked to
        return found

    checkpoints = find_checkpoints(run.out / "checkpoints", [recipe.name])
    path = checkpoints[-1] if checkpoints else None
    bar = tqdm(total=recipe.steps, unit="step", disable=not is_main)
    stop_at = time.monotonic() + run.stop_after
    path, is_over = train_phase(recipe.name, task, run, accelerator, bar, path, stop_at, ask)
    if best.is_over:
        SIGNALS.clear()
        is_over = True
    if is_over and is_main:
        path = best.path or path
        export(path, run.out / "exported")
        (run.out / "metrics.json").write_text(json.dumps(look(path), indent=1) + "\n")
        (run.out / "finished").touch()
    return is_over


class Best:
    """The checkpoint with the smallest loss so far, kept in OUT/best, over resumes too."""

    def __init__(self, out: Path, patience: int):
        self.out, self.patience = out, patience
        self.file = out / "best" / "best.json"
        stated = json.loads(self.file.read_text()) if self.file.is_file() else {"loss": math.inf, "worse": 0}
        self.loss, self.worse = stated["loss"], stated["worse"]

    @property
    def is_over(self) -> bool:
        return self.patience > 0 and self.worse >= self.patience

    @property
    def path(self) -> Path | None:
        place = self.out / "best" / "checkpoint"
        return place if place.is_dir() else None

    def add(self, path: Path, loss: float) -> bool:
        """Whether training ends. A loss that could not be measured changes nothing."""
        if math.isnan(loss):
            return False
        place = self.out / "best" / "checkpoint"
        place.parent.mkdir(exist_ok=True)
        if loss < self.loss:
            self.loss, self.worse = loss, 0
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            shutil.copy(path / "objective.safetensors", place)
        else:
            self.worse += 1
        self.file.write_text(json.dumps({"loss": self.loss, "worse": self.worse}) + "\n")
        return self.is_over


def measure(
    recipe: FineTuning,
    model: LabelModel,
    processor: CTFMImageProcessor,
    manifest: Manifest,
    num_scans: int,
    columns: Sequence[str],
) -> dict[str, float]:
    """Of split `test_split`; of labels of scans the loss beside what `grade` says, without weights; empty without scans."""
    if not isinstance(model, CTFMForImageClassification):
        return grade(model, processor, manifest, recipe.test_split, num_scans)
    logits, truth, _ = answer(model, processor, manifest, recipe.test_split, num_scans, columns)
    if not len(logits):
        return {}
    loss = float(label_loss(torch.from_numpy(logits), torch.from_numpy(truth), recipe.question))
    found = grade_findings(columns, logits, truth) if recipe.question == "findings" else {}
    return found | ({"loss": loss} if recipe.patience else {})


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
    if recipe.task == "findings":
        config.problem_type = PROBLEM_TYPES[recipe.question]
    if recipe.question != "findings":
        config.token_scores = False  # the largest of many tokens says that something is there, and no number or class
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


def last_layers(model: LabelModel, count: int) -> tuple[str, ...]:
    """Names of the last layers of the local transformer and of all that follows them; none for 0."""
    total = len(model.vision_model.local_model.layers)
    if not count:
        return ()
    if count > total:
        raise ValueError(f"last_layers {count} is more than the {total} layers of the local transformer.")
    layers = tuple(f"local_model.layers.{number}." for number in range(total - count, total))
    return (*layers, "local_model.norm.", "global_model.")


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
    objective = LabelObjective(
        model,
        trunk_is_frozen=recipe.trunk_is_frozen,
        new=new,
        processes=processes,
        question=recipe.question,
        positive_weights=weigh_findings(schedule, findings, recipe.max_positive_weight),
    )
    crops, crop_size = mean_crops(schedule, processor), tuple(processor.crop_size)
    vision = model.vision_model.config
    return Task(
        objective=objective.to(device),
        schedule=schedule,
        load=lambda batches, num_workers: load_scans(schedule, batches, num_workers=num_workers),
        make_batch=lambda samples: make_label_batch(samples, processor, findings, device),
        sample_flops=label_flops(recipe, vision, crop_size, crops, getattr(model, "decoder", None)),
        sample_tokens=crops * num_tokens(vision, crop_size),
    )


def weigh_findings(schedule: Schedule, findings: Sequence[str], largest: float) -> list[float] | None:
    """Absent over present scans of each finding among those that are trained on, from 1 to `largest`; None for 1."""
    if largest <= 1:
        return None
    sources = zip(schedule.manifests, schedule.rows, strict=True)
    stated = [manifest.labels_of(int(row)) for manifest, rows in sources for row in rows]
    counts = [(sum(one.get(name) == kind for one in stated) for kind in (0.0, 1.0)) for name in findings]
    return [min(largest, max(1.0, absent / max(present, 1))) for absent, present in counts]


# ---- checkpoints ----


def load_trained(path: Path) -> tuple[LabelModel, CTFMImageProcessor]:
    """Model and image processor of a checkpoint of a run."""
    out = path.parents[1]
    config = CTFMConfig.from_pretrained(out / "model")
    recipe = json.loads((out / "recipe.json").read_text())
    model = MODELS[recipe["task"]](config)
    add_adapters(model.vision_model, recipe["adapter_rank"])
    state: dict[str, Any] = load_file(path / "objective.safetensors")
    model.load_state_dict({name.removeprefix("model."): tensor for name, tensor in state.items()})
    merge_adapters(model.vision_model)
    return model.eval(), CTFMImageProcessor.from_pretrained(out / "model")


def export(path: Path, out: Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """Checkpoint -> a folder that `from_pretrained` loads, code files included."""
    model, _ = load_trained(path)
    nn.Module.to(model, dtype)
    model.save_pretrained(out)
    CTFMProcessor.from_pretrained(str(path.parents[1] / "model")).save_pretrained(out)


if __name__ == "__main__":
    sys.exit(main())
