"""Every load of ours reads every weight: a checkpoint that lacks one is refused, whoever opens it."""

import importlib.util
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ctfm import CTFMForImageClassification, CTFMForSemanticSegmentation
from ctfm.embedding import load
from ctfm.evaluate.features import load_encoder
from ctfm.phantom import gallery
from ctfm.reporting.build import load_encoder as load_report_encoder
from ctfm.reporting.check import load_labeller
from ctfm.reporting.train import Recipe, load_start
from ctfm.train import finetune
from ctfm.train.recipes import FINE_TUNINGS, FineTuning
from safetensors.torch import load_file, save_file

import loading
from tests.tiny import save_tiny, tiny_config

ROOT = Path(__file__).parent.parent
REPORT = ROOT / "reporting" / "checkpoints" / "default"
LACKED = {"scan": "vision_model.local_model.norm.weight", "report": "classifiers.0.bias"}


def build_for_benchmark(name: str) -> object:
    spec = importlib.util.spec_from_file_location("inference", ROOT / "benchmarks" / "inference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.build(name)


def drop(folder: Path, name: str) -> Path:
    """Takes one weight out of a checkpoint."""
    weights = load_file(folder / "model.safetensors")
    weights.pop(name)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def lacking(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("lacking")
    return {
        kind: drop(shutil.copytree(source, folder / kind), LACKED[kind])
        for kind, source in (("scan", whole), ("report", REPORT))
    }


def fine_tuning(task: str, start: Path) -> FineTuning:
    return replace(FINE_TUNINGS[task](), start=str(start))


def fine_tuned(start: Path, *names: str, task: str = "findings") -> finetune.LabelModel:
    recipe = fine_tuning(task, start)
    return finetune.build_model(recipe, finetune.build_config(recipe, names))[0]


LOADS: dict[str, Callable[[Path, Path], object]] = {
    "ctfm embed": lambda folder, out: load(str(folder)),
    "the Space": lambda folder, out: loading.load_weights(loading.Source(model=str(folder))),
    "the gallery": lambda folder, out: gallery.index(gallery.GalleryConfig(checkpoint=folder, out=out, num_scans=1)),
    "features to evaluate": lambda folder, out: load_encoder(str(folder)),
    "fine-tuning": lambda folder, out: fine_tuned(folder, "a", "b"),
    "the benchmark of inference": lambda folder, out: build_for_benchmark(str(folder)),
}
REPORT_LOADS: dict[str, Callable[[Path, Path], object]] = {
    "report-check": lambda folder, out: load_labeller(folder),
    "its training": lambda folder, out: load_start(Recipe(init=folder, data=out, out=out), []),
}


@pytest.mark.parametrize("who", LOADS)
def test_a_checkpoint_of_scans_that_lacks_a_weight_is_refused(
    who: str, lacking: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(OSError, match=f"lacks 1 weights, {LACKED['scan']}"):
        LOADS[who](lacking["scan"], tmp_path)


@pytest.mark.parametrize("who", REPORT_LOADS)
def test_a_checkpoint_of_reports_that_lacks_a_weight_is_refused(
    who: str, lacking: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(OSError, match=f"lacks 1 weights, {LACKED['report']}"):
        REPORT_LOADS[who](lacking["report"], tmp_path)


def test_a_checkpoint_of_reports_is_not_built_on_an_encoder_that_lacks_a_weight(tmp_path: Path) -> None:
    folder = drop(shutil.copytree(REPORT, tmp_path / "report"), "layers.3.norm1.weight")
    with pytest.raises(ValueError, match=r"it differs in layers\.3\.norm1\.weight\."):
        load_report_encoder(folder, ["spirit:7_Objectives"])


def test_a_release_is_not_tried_with_a_weight_that_was_drawn(lacking: dict[str, Path], tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-I",
        str(ROOT / "release" / "load_check.py"),
        str(lacking["scan"]),
        "main",
        "",
        str(tmp_path),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, env={"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    )
    assert done.returncode
    assert f"lacks weights: ['{LACKED['scan']}']" in done.stderr


def test_a_head_for_as_many_other_labels_is_drawn_anew_in_all_its_parts_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = tiny_config()
    config.token_scores, config.id2label = True, {0: "a", 1: "b"}
    CTFMForImageClassification(config).save_pretrained(tmp_path)
    before = {name: part for name, part in load_file(tmp_path / "model.safetensors").items() if "vision" not in name}
    assert all(torch.equal(fine_tuned(tmp_path, "a", "b").state_dict()[name], part) for name, part in before.items())
    assert caplog.text == ""
    with caplog.at_level(logging.WARNING):
        after = fine_tuned(tmp_path, "c", "d").state_dict()
    assert not any(
        torch.equal(after[name], part) for name, part in before.items() if part.any() and name != "token_weights"
    )
    assert "for other labels than ['c', 'd']" in caplog.text


def test_a_segmentation_head_has_the_labels_of_its_own_data_and_not_the_parents_structures(tmp_path: Path) -> None:
    config = tiny_config()
    config.structures = {0: "background", 1: "heart", 2: "liver", 3: "spleen"}
    CTFMForSemanticSegmentation(config).save_pretrained(tmp_path)
    model = fine_tuned(tmp_path, "background", "tumour", task="segmentation")
    assert model.decoder.classifier.out_channels == 2
