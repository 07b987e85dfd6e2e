"""Labels that a checkpoint is taught: what is learnt, kept, resumed, exported, measured."""

import csv
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from ctfm import CTFMImageProcessor, CTFMModel, CTFMProcessor, CTFMVisionModel
from ctfm.train import finetune
from ctfm.train.build import name_structures
from ctfm.train.checkpoint import find_checkpoints
from ctfm.train.finetune import load_trained
from ctfm.train.labels import dice_of, grade, name_findings
from ctfm.train.prepare import main as prepare
from ctfm.train.pretrain import Run
from ctfm.train.recipes import FINE_TUNINGS, FineTuning, OptimizerConfig
from ctfm.train.shards import Manifest
from ctfm.volume_ctfm import Volume
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoImageProcessor, AutoModelForImageClassification, AutoProcessor, pipeline

from tests.phantoms import canonical_affine
from tests.tiny import save_tiny, tiny_config

SHAPE = (16, 32, 32)


def write_ball(folder: Path, seed: int) -> dict[str, object]:
    """A body of water with or without a ball of bone at any place, its label map, and what is said of it."""
    random = np.random.default_rng(seed)
    place = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), -1)
    body = ((place - np.array(SHAPE) / 2) ** 2 / (np.array(SHAPE) * 0.45) ** 2).sum(-1) < 1
    ball = (
        np.linalg.norm(place - random.uniform(0.3, 0.7, 3) * SHAPE, axis=-1) < 6 if seed % 2 else np.zeros(SHAPE, bool)
    )
    hu = random.normal(-1000, 20, SHAPE) + 1000 * body + 600 * ball
    affine = canonical_affine((2.0, 2.0, 2.0))
    Volume(hu=np.clip(hu, -1024, 3000).astype(np.int16), affine=affine).to_nifti(folder / f"{seed}.nii")
    Volume(hu=body.astype(np.int16) + ball, affine=affine).to_nifti(folder / f"{seed}-labels.nii")
    return {
        "path": f"{seed}.nii",
        "patient": seed,
        "split": "test" if seed >= 32 else "train",
        "segmentation": f"{seed}-labels.nii",
        "ball": seed % 2,
        "unknown in some": "" if seed % 3 else seed % 2,
        "the same in all": 1,
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("balls")
    rows = [write_ball(folder, seed) for seed in range(52)]
    with (folder / "table.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    (folder / "structures.json").write_text(json.dumps({"1": "body", "2": "ball of bone"}))
    prepare(["csv", str(folder / "table.csv"), str(folder / "prepared"), "--num-workers", "0"])
    return folder / "prepared"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dual encoder, as pretrain.py exports it."""
    return save_tiny(tmp_path_factory.mktemp("checkpoint"))


def recipe_of(task: str, start: Path, **settings: Any) -> FineTuning:
    recipe = FINE_TUNINGS[task]()
    warmup_steps = min(5, settings.get("steps", 4))
    fast = OptimizerConfig(learning_rate=1e-3, warmup_steps=warmup_steps, weight_decay=0.01, last_weight_decay=0.01)
    small = {"start": str(start), "steps": 4, "global_batch": 8, "micro_batch": 8, "optimizer": fast}
    return replace(recipe, **small | settings)  # type: ignore[arg-type]


def train(out: Path, data: Path, recipe: FineTuning, **settings: Any) -> list[dict[str, float]]:
    torch.set_num_threads(1)
    run = Run(recipe=recipe, out=out, data=(str(data),), log_every=1, save_every=100, **settings)
    is_over = finetune.fine_tune(run, Accelerator(cpu=True))
    assert is_over is (out / "finished").exists()
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def losses(rows: list[dict[str, float]]) -> list[float]:
    return [row["loss"] for row in rows if "loss" in row]


def last(out: Path) -> dict[str, torch.Tensor]:
    name = json.loads((out / "recipe.json").read_text())["name"]
    return load_file(find_checkpoints(out / "checkpoints", [name])[-1] / "objective.safetensors")


# --- learning --------------------------------------------------------------------------------------------------------------


def test_findings_are_learnt_and_measured_on_held_out_scans(data: Path, checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    rows = train(out, data, recipe_of("findings", checkpoint, steps=60))
    assert np.mean(losses(rows)[-5:]) < np.mean(losses(rows)[:5])
    metrics = json.loads((out / "metrics.json").read_text())
    assert set(metrics) == {"macro_auroc", "ball/auroc"}  # of the other, too few held-out scans say something
    assert metrics["ball/auroc"] > 0.85


def test_voxels_are_learnt_and_measured_on_held_out_scans(data: Path, checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    rows = train(out, data, recipe_of("segmentation", checkpoint, steps=120, global_batch=4, micro_batch=4))
    assert losses(rows)[-1] < 0.5 * losses(rows)[0]
    metrics = json.loads((out / "metrics.json").read_text())
    assert set(metrics) == {"macro_dice", "body/dice", "ball of bone/dice"}
    assert metrics["body/dice"] > 0.8
    assert metrics["ball of bone/dice"] > 0.3


# --- the loop ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["findings", "segmentation"])
def test_a_run_that_leaves_after_every_step_has_the_losses_and_weights_of_one_that_stays(
    task: str, data: Path, checkpoint: Path, tmp_path: Path
) -> None:
    recipe = recipe_of(task, checkpoint, global_batch=2, micro_batch=1)
    expected = losses(train(tmp_path / "stays", data, recipe))
    for _ in range(recipe.steps):
        found = losses(train(tmp_path / "leaves", data, recipe, stop_after=0.0))
    assert found == expected
    for name, tensor in last(tmp_path / "stays").items():
        assert torch.equal(last(tmp_path / "leaves")[name], tensor), name


def test_a_frozen_trunk_stays_as_it_was(data: Path, checkpoint: Path, tmp_path: Path) -> None:
    train(tmp_path / "run", data, recipe_of("findings", checkpoint, trunk_is_frozen=True))
    before = CTFMModel.from_pretrained(checkpoint).state_dict()
    for name, tensor in last(tmp_path / "run").items():
        name = name.removeprefix("model.")
        assert name.startswith("classifier.") or torch.equal(before[name], tensor), name


def test_a_scan_encoder_without_global_transformer_gets_one_for_voxels_and_trains_it_though_frozen(
    data: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    config = tiny_config(global_config=None).vision_config
    CTFMVisionModel(config).save_pretrained(tmp_path / "local")
    CTFMImageProcessor(crop_size=(8, 16, 16), spacing="native").save_pretrained(tmp_path / "local")
    recipe = recipe_of("segmentation", tmp_path / "local", steps=1, global_batch=1, micro_batch=1, trunk_is_frozen=True)
    train(tmp_path / "run", data, recipe)
    before = CTFMVisionModel.from_pretrained(tmp_path / "local").state_dict()
    start = load_file(tmp_path / "run/checkpoints/segmentation-0000000/objective.safetensors")
    for name, tensor in last(tmp_path / "run").items():
        own = name.removeprefix("model.vision_model.")
        if own in before:
            assert torch.equal(before[own], tensor), name
    assert any(not torch.equal(start[n], t) for n, t in last(tmp_path / "run").items() if "global_model" in n)


def test_from_scratch_takes_the_architecture_and_no_weight(checkpoint: Path) -> None:
    recipe = recipe_of("findings", checkpoint, from_scratch=True, seed=7)
    model, _ = finetune.build_model(recipe, finetune.build_config(recipe, ["a", "b"]))
    before = CTFMModel.from_pretrained(checkpoint).vision_model
    pairs = zip(model.vision_model.named_parameters(), before.named_parameters(), strict=True)
    assert all(not torch.equal(a, b) for (name, a), (_, b) in pairs if a.ndim == 2 and a.shape[0] > 1)
    with pytest.raises(ValueError, match="learns nothing"):
        recipe_of("findings", checkpoint, from_scratch=True, trunk_is_frozen=True)


def test_a_head_is_kept_for_labels_of_the_same_names_alone(data: Path, checkpoint: Path, tmp_path: Path) -> None:
    train(tmp_path / "run", data, recipe_of("findings", checkpoint))
    names = ["ball", "unknown in some"]
    expected = last(tmp_path / "run")["model.classifier.weight"].bfloat16().float()
    for wanted, is_kept in ((names, True), (["bone", "water"], False), (["a", "b", "c"], False)):
        recipe = recipe_of("findings", tmp_path / "run" / "exported")
        model, _ = finetune.build_model(recipe, finetune.build_config(recipe, wanted))
        found = model.classifier.weight
        assert (found.shape == expected.shape and torch.equal(found, expected)) is is_kept


def test_the_export_is_loaded_by_auto_classes_and_says_what_was_trained(
    data: Path, checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    train(out, data, recipe_of("findings", checkpoint))
    trained, _ = load_trained(out / "checkpoints" / "findings-0000004")
    model = AutoModelForImageClassification.from_pretrained(out / "exported", dtype=torch.float32)
    processor = AutoImageProcessor.from_pretrained(out / "exported")
    assert model.config.id2label == {0: "ball", 1: "unknown in some"}
    manifest = Manifest(data)
    scan = manifest[0]
    inputs = processor((manifest.read_box(scan, (0, 0, 0), scan.shape), scan.affine))
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, trained(**inputs).logits, atol=3e-2, rtol=3e-2)


@pytest.mark.parametrize("start", ["both towers", "scan encoder"])
def test_the_export_has_a_pipeline_and_a_processor_and_no_calibration_of_its_parent(
    start: str, data: Path, checkpoint: Path, tmp_path: Path
) -> None:
    parent = tmp_path / "parent"
    if start == "both towers":
        shutil.copytree(checkpoint, parent)
        config = json.loads((parent / "config.json").read_text())
        (parent / "config.json").write_text(json.dumps(config | {"calibration": {"ball": {"slope": 1.0}}}))
    else:
        CTFMVisionModel.from_pretrained(checkpoint).save_pretrained(parent)
        CTFMImageProcessor.from_pretrained(checkpoint).save_pretrained(parent)
    out = tmp_path / "run"
    train(out, data, recipe_of("findings", parent))
    processor = AutoProcessor.from_pretrained(out / "exported")
    assert type(processor) is (CTFMProcessor if start == "both towers" else CTFMImageProcessor)
    classify: Any = pipeline("image-classification", model=str(out / "exported"), trust_remote_code=True)
    assert classify.model.config.calibration is None
    manifest = Manifest(data)
    scan = (manifest.read_box(manifest[0], (0, 0, 0), manifest[0].shape), manifest[0].affine)
    assert {row["label"] for row in classify(scan)} == {"ball", "unknown in some"}


@pytest.mark.parametrize("task", ["findings", "segmentation"])
def test_counted_operations_are_those_that_are_done(task: str, data: Path, checkpoint: Path, tmp_path: Path) -> None:
    recipe = recipe_of(task, checkpoint)
    schedule = finetune.build_schedule(Run(recipe=recipe, out=tmp_path, data=(str(data),)), recipe)
    findings = name_findings(schedule.manifests, schedule.rows) if task == "findings" else ()
    names = list(findings) or finetune.list_labels(name_structures(schedule))
    model, new = finetune.build_model(recipe, finetune.build_config(recipe, names))
    processor = CTFMImageProcessor.from_pretrained(checkpoint)
    task = finetune.build_task(
        recipe, schedule, model, new, processor, findings, torch.device("cpu"), finetune.all_processes()
    )
    batch = task.make_batch([task.load([[0, 1]], 0).dataset[number] for number in (0, 1)])  # type: ignore[arg-type, attr-defined]
    with FlopCounterMode(display=False) as counter:
        task.objective(batch)[0].backward()
    assert 2 * task.sample_flops == pytest.approx(counter.get_total_flops(), rel=0.15)


# --- labels and figures ----------------------------------------------------------------------------------------------------


def test_findings_that_every_scan_has_or_none_states_are_left_out(data: Path) -> None:
    manifest = Manifest(data)
    assert name_findings([manifest], [np.arange(len(manifest))]) == ("ball", "unknown in some")
    with pytest.raises(ValueError, match="nothing to learn"):
        name_findings([manifest], [np.array([0])])


def test_dice_by_hand() -> None:
    labels, found = torch.tensor([[0, 1, 1, -100]]), torch.tensor([[0, 1, 2, 1]])
    assert dice_of(found, labels, 4) == pytest.approx([1.0, 2 / 3, math.nan, math.nan], nan_ok=True)


def test_a_split_without_scans_is_not_graded(data: Path, checkpoint: Path) -> None:
    recipe = recipe_of("findings", checkpoint)
    model, _ = finetune.build_model(recipe, finetune.build_config(recipe, ["ball"]))
    processor = CTFMImageProcessor.from_pretrained(checkpoint)
    assert grade(model.eval(), processor, Manifest(data), "nowhere", 5) == {}


def test_commands_are_read() -> None:
    run = finetune.read_run(["findings", "--recipe.start", "X", "--recipe.from-scratch", "--out", "RUN", "--data", "D"])
    assert isinstance(run.recipe, FineTuning)
    assert (run.recipe.start, run.recipe.from_scratch, run.recipe.task) == ("X", True, "findings")
