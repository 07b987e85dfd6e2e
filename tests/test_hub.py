"""A saved folder is a Hub repository: it carries its code, any Auto class loads it, and every number survives the way."""

import ast
import importlib
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ctfm import (
    CTFMBackbone,
    CTFMConfig,
    CTFMForImageClassification,
    CTFMForSemanticSegmentation,
    CTFMImageProcessor,
    CTFMModel,
    CTFMProcessor,
    CTFMVisionConfig,
    CTFMVisionModel,
)
from ctfm.release.code_files import write_model_code, write_report_code
from safetensors.torch import load_file
from transformers import AutoModel, PreTrainedModel, pipeline
from transformers.utils import logging

from tests.local_hub import LocalHub
from tests.tiny import tiny_config, tiny_crops, tiny_tokenizer

ROOT = Path(__file__).parent.parent
TEXTS = ["Pleural effusion.", "No pleural effusion."]
GRID = torch.tensor([[2, 2, 2], [2, 2, 2]])
NAMES = dict(enumerate(("effusion", "nodule", "emphysema", "fracture", "cardiomegaly")))
# Where weights lie in memory and how many threads add products up moves the last bits. Ten times the largest difference,
# 8e-7 of the largest value, between 1, 2 and 4 threads and weights at seven offsets from a cache line.
ROUNDING = 8e-6
HEADS = {CTFMForImageClassification: "classifier.", CTFMForSemanticSegmentation: "decoder."}


@pytest.fixture(autouse=True)
def logged_without_progress_bars() -> Iterator[None]:
    """Lets `caplog` see what transformers has to say."""
    logging.disable_progress_bar()
    logging.enable_propagation()
    yield
    logging.disable_propagation()
    logging.enable_progress_bar()


def dual_model(seed: int = 0) -> CTFMModel:
    torch.manual_seed(seed)
    return CTFMModel(tiny_config()).eval()


def tiny_processor() -> CTFMProcessor:
    return CTFMProcessor(CTFMImageProcessor(crop_size=(8, 16, 16), spacing="native"), tiny_tokenizer())


def tiny_scan() -> tuple[np.ndarray, np.ndarray]:
    """12 x 20 x 24 voxels of noise in canonical axes: towards head, back and left, in RAS+ mm."""
    hu = np.random.default_rng(0).integers(-800, 600, size=(12, 20, 24)).astype(np.int16)
    affine = np.array([[0.0, 0, -1, 0], [0, -1, 0, 0], [2, 0, 0, 0], [0, 0, 0, 1]])
    return hu, affine


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder a checkpoint: `dual` with its processor, `findings`, `organs`, `vision`."""
    root = tmp_path_factory.mktemp("hub")
    dual_model().save_pretrained(root / "dual")
    tiny_processor().save_pretrained(root / "dual")
    torch.manual_seed(1)
    for name, model_class in (("findings", CTFMForImageClassification), ("organs", CTFMForSemanticSegmentation)):
        model_class.from_pretrained(root / "dual").save_pretrained(root / name)
    CTFMVisionModel.from_pretrained(root / "dual").save_pretrained(root / "vision")
    return root


# ---- what is written ----


def imported_files(name: str) -> set[str]:
    """A file of the package and the siblings that it imports, directly or not; some name each other for type checkers."""
    found, waiting = set[str](), {name}
    while waiting:
        file = waiting.pop()
        found.add(file)
        nodes = ast.walk(ast.parse((ROOT / file).read_text()))
        siblings = {f"{node.module}.py" for node in nodes if isinstance(node, ast.ImportFrom) and node.level == 1}
        waiting |= siblings - found
    return found


def test_a_saved_model_carries_its_code_and_weights_and_nothing_else(folders: Path) -> None:
    code = imported_files("modeling_ctfm.py")
    assert code == {path.name for path in ROOT.glob("*_ctfm.py")} - {
        "volume_studies_ctfm.py"
    }  # which is for folders of scans
    for name in ("findings", "organs", "vision"):
        assert {path.name for path in (folders / name).iterdir()} == code | {"config.json", "model.safetensors"}


def test_a_saved_dual_model_and_processor_carry_what_both_and_the_pipeline_need(folders: Path) -> None:
    code = imported_files("modeling_ctfm.py")
    data = {"config.json", "model.safetensors", "processor_config.json", "tokenizer.json", "tokenizer_config.json"}
    assert {path.name for path in (folders / "dual").iterdir()} == code | data


@pytest.mark.parametrize("name", ["dual", "findings", "organs"])
def test_every_saved_checkpoint_names_every_auto_class(folders: Path, name: str) -> None:
    auto_map = json.loads((folders / name / "config.json").read_text())["auto_map"]
    assert auto_map == CTFMConfig().auto_map
    assert set(auto_map) == {
        "AutoConfig",
        "AutoModel",
        "AutoModelForZeroShotImageClassification",
        "AutoModelForImageClassification",
        "AutoModelForSemanticSegmentation",
        "AutoBackbone",
    }


def test_a_saved_vision_tower_names_model_and_backbone(folders: Path) -> None:
    auto_map = json.loads((folders / "vision" / "config.json").read_text())["auto_map"]
    assert auto_map == CTFMVisionConfig().auto_map
    assert set(auto_map) == {"AutoConfig", "AutoModel", "AutoBackbone"}


@pytest.mark.parametrize("config_class", [CTFMConfig, CTFMVisionConfig])
def test_every_class_that_the_auto_map_names_exists_and_takes_that_config(config_class: type) -> None:
    for auto_class, reference in config_class().auto_map.items():
        module, name = reference.split(".")
        found = getattr(importlib.import_module(f"ctfm.{module}"), name)
        assert found is config_class if auto_class == "AutoConfig" else found.config_class is config_class


# ---- a stranger's machine ----

STRANGER = """
import json, sys
from pathlib import Path

sys.modules["ctfm"] = None  # the package is not installed there
import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file

root, out = Path(sys.argv[1]), Path(sys.argv[2])
scan = (np.load(out / "hu.npy"), np.load(out / "affine.npy"))
texts = json.loads((out / "texts.json").read_text())
trusted = {"trust_remote_code": True}

config = transformers.AutoConfig.from_pretrained(root / "dual", **trusted)
processor = transformers.AutoProcessor.from_pretrained(root / "dual", **trusted)
image_processor = transformers.AutoImageProcessor.from_pretrained(root / "dual", **trusted)
inputs = processor(images=scan, text=texts)
images = image_processor(scan)
assert all(torch.equal(images[name], inputs[name]) for name in images)

results = dict(inputs)
with torch.no_grad():
    dual = transformers.AutoModel.from_pretrained(root / "dual", **trusted)
    given_config = transformers.AutoModel.from_pretrained(root / "dual", config=config, **trusted)
    zero_shot = transformers.AutoModelForZeroShotImageClassification.from_pretrained(root / "dual", **trusted)
    findings = transformers.AutoModelForImageClassification.from_pretrained(root / "findings", **trusted)
    organs = transformers.AutoModelForSemanticSegmentation.from_pretrained(root / "organs", **trusted)
    vision = transformers.AutoModel.from_pretrained(root / "vision", **trusted)
    vision_config = transformers.AutoConfig.from_pretrained(root / "vision", **trusted)
    backbone = transformers.AutoBackbone.from_config(vision_config, **trusted).eval()
    backbone = type(backbone).from_pretrained(root / "vision")
    built = transformers.AutoModel.from_config(config, **trusted).eval()
    built.load_state_dict(dual.state_dict())
    dual.save_pretrained(out / "again")
    again = transformers.AutoModel.from_pretrained(out / "again", **trusted)
    grade = transformers.pipeline("zero-shot-image-classification", model=str(root / "dual"), **trusted)
    scores = {entry["label"]: entry["score"] for entry in grade(scan, candidate_labels=texts)}
    results["pipeline"] = torch.tensor([scores[text] for text in texts], dtype=torch.float64)
    results["dual"] = dual(**inputs).logits_per_image
    results["again"] = again(**inputs).logits_per_image
    results["given_config"] = given_config(**inputs).logits_per_image
    results["zero_shot"] = zero_shot(**inputs).logits_per_image
    results["built"] = built(**inputs).logits_per_image
    results["findings"] = findings(**images).logits
    results["organs"] = organs(**images).logits
    results["vision"] = vision(**images).pooler_output
    results["backbone"] = backbone(images["pixel_values"][0]).feature_maps[-1]
assert type(grade).__module__.startswith("transformers_modules."), type(grade)
models = {
    "dual": dual, "again": again, "given_config": given_config, "zero_shot": zero_shot, "built": built,
    "pipeline": grade.model, "findings": findings, "organs": organs, "vision": vision, "backbone": backbone,
}
for name, model in models.items():
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    save_file({key: value.clone() for key, value in model.state_dict().items()}, out / f"{name}.safetensors")
save_file({name: value.contiguous() for name, value in results.items()}, out / "results.safetensors")
loaded = {Path(m.__file__).name for n, m in list(sys.modules.items()) if n.startswith("transformers_modules.") and m.__file__}
(out / "loaded.json").write_text(json.dumps(sorted(loaded - {"__init__.py"})))
"""


@pytest.fixture(scope="module")
def stranger(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """What a fresh process without `ctfm` and without network made of the folders, and what it printed."""
    out = tmp_path_factory.mktemp("stranger")
    hu, affine = tiny_scan()
    np.save(out / "hu.npy", hu)
    np.save(out / "affine.npy", affine)
    (out / "texts.json").write_text(json.dumps(TEXTS))
    return out, run_stranger(STRANGER, folders, out, home=out)


def run_stranger(code: str, *arguments: object, home: Path, **settings: str) -> str:
    """What a fresh process without `ctfm` on its path, with an empty home and, by default, without network prints."""
    settings = {"HOME": str(home / "home"), "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"} | settings
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTHON", "XDG_"))}
    run = subprocess.run(
        [sys.executable, "-I", "-c", code, *map(str, arguments)],
        cwd=home,
        env=environment | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert run.returncode == 0, run.stdout
    return run.stdout


def test_a_fresh_process_without_the_package_prepares_and_loads_the_same_bits(
    folders: Path, stranger: tuple[Path, str]
) -> None:
    out, _ = stranger
    inputs = tiny_processor()(images=tiny_scan(), text=TEXTS)
    results = load_file(out / "results.safetensors")
    assert_same({name: results[name] for name in inputs}, dict(inputs))
    for name in ("dual", "again", "given_config", "zero_shot", "built", "pipeline"):
        assert_same(load_file(out / f"{name}.safetensors"), state(dual_model()))
    for name in ("findings", "organs", "vision"):
        assert_same(load_file(out / f"{name}.safetensors"), load_file(folders / name / "model.safetensors"))
    local = state(dual_model().vision_model, "local_model.")
    assert_same({k.removeprefix("local_model."): v for k, v in load_file(out / "backbone.safetensors").items()}, local)


def largest_difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """In parts of the largest expected value."""
    return float((found - expected).abs().max() / expected.abs().max())


@torch.no_grad()
def test_a_fresh_process_without_the_package_computes_the_same_to_the_rounding_of_float32(
    folders: Path, stranger: tuple[Path, str]
) -> None:
    processor = tiny_processor()
    inputs = processor(images=tiny_scan(), text=TEXTS)
    images = processor.image_processor(tiny_scan())
    vision = CTFMVisionModel.from_pretrained(folders / "vision")
    logits = dual_model()(**inputs).logits_per_image
    expected = dict.fromkeys(("dual", "again", "given_config", "zero_shot", "built"), logits)
    grade: Any = pipeline("zero-shot-image-classification", model=str(folders / "dual"), trust_remote_code=True)
    scores = {entry["label"]: entry["score"] for entry in grade(tiny_scan(), candidate_labels=TEXTS)}
    expected["pipeline"] = torch.tensor([scores[text] for text in TEXTS], dtype=torch.float64)
    expected["findings"] = CTFMForImageClassification.from_pretrained(folders / "findings")(**images).logits
    expected["organs"] = CTFMForSemanticSegmentation.from_pretrained(folders / "organs")(**images).logits
    expected["vision"] = vision(**images).pooler_output
    tokens = vision.local_model(images["pixel_values"][0]).last_hidden_state[:, 1:]
    expected["backbone"] = tokens.transpose(1, 2).unflatten(2, (2, 2, 2))
    results = load_file(stranger[0] / "results.safetensors")
    assert results.keys() == expected.keys() | inputs.keys()
    differences = {name: largest_difference(results[name], value) for name, value in expected.items()}
    assert {name: value for name, value in differences.items() if value > ROUNDING} == {}


@torch.no_grad()
def test_rounding_hides_no_other_model() -> None:
    """The smallest slip that a config could make, an epsilon of 1e-6 for 1e-5, is far above it."""
    inputs = tiny_processor()(images=tiny_scan(), text=TEXTS)
    expected = dual_model()(**inputs)
    other = CTFMModel(tiny_config(layer_norm_eps=1e-6)).eval()
    assert CTFMVisionConfig().layer_norm_eps == 1e-5
    other.load_state_dict(dual_model().state_dict())
    found = other(**inputs)
    assert largest_difference(found.logits_per_image, expected.logits_per_image) > ROUNDING
    assert largest_difference(found.image_embeds, expected.image_embeds) > ROUNDING


def test_a_fresh_process_needs_every_file_of_code_that_was_copied(folders: Path, stranger: tuple[Path, str]) -> None:
    copied = {path.name for path in (folders / "dual").glob("*.py")}
    assert set(json.loads((stranger[0] / "loaded.json").read_text())) == copied - {
        "drawing_ctfm.py"
    }  # the Space needs it


def test_a_fresh_process_prints_nothing_while_it_loads(stranger: tuple[Path, str]) -> None:
    assert stranger[1] == ""


# ---- the checkpoints of this repository ----

COMMITTED = {"checkpoints/default": write_model_code, "reporting/checkpoints/default": write_report_code}


@pytest.mark.parametrize("name", COMMITTED)
def test_the_code_beside_committed_weights_is_that_of_the_package(name: str, tmp_path: Path) -> None:
    for file in (ROOT / name).glob("*config.json"):
        shutil.copy(file, tmp_path)
    COMMITTED[name](tmp_path)
    fresh = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    there = {path.name: path.read_bytes() for path in (ROOT / name).iterdir() if path.suffix == ".py"}
    there |= {file: (ROOT / name / file).read_bytes() for file in fresh if file.endswith(".json")}
    differing = sorted(file for file in fresh.keys() | there.keys() if fresh.get(file) != there.get(file))
    assert not differing, (
        f"{differing} of {name} are not what the package has; run `make code` and commit what it writes."
    )


COMMITTED_STRANGER = """
import sys

sys.modules["ctfm"] = None  # the package is not installed there
import numpy as np
import torch
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification, AutoProcessor, pipeline

repo, report, trusted = *sys.argv[1:], {"trust_remote_code": True}
scan = (np.random.default_rng(0).normal(0, 100, (24, 36, 36)).astype(np.float32), np.diag([4.0, 3.0, 3.0, 1.0]))
classes = (AutoConfig, AutoProcessor, AutoImageProcessor, AutoModel)
loaded = [one.from_pretrained(repo, **trusted) for one in classes]
loaded += [one.from_pretrained(report, **trusted) for one in (AutoConfig, AutoProcessor, AutoModel)]
grade = pipeline("zero-shot-image-classification", model=repo, **trusted)
assert all(type(one).__module__.startswith("transformers_modules.") for one in [*loaded, grade]), loaded
_, processor, images, model, *_ = loaded
with torch.no_grad():
    model(**processor(images=scan, text=["Pleural effusion."]))
findings = AutoModelForImageClassification.from_pretrained(repo, **trusted)
findings(**images(scan))
(row,) = grade(scan, candidate_labels=["Pleural effusion"])
assert {"score", "probability", "interval", "verdict"} <= row.keys(), row
"""


def test_committed_folders_load_in_a_fresh_process_elsewhere_without_the_package(tmp_path: Path) -> None:
    printed = run_stranger(COMMITTED_STRANGER, *(ROOT / name for name in COMMITTED), home=tmp_path)
    lines = [line for line in printed.splitlines() if line.strip()]
    assert {"classifier.weight", "classifier.bias"} == {line.split()[0] for line in lines if "MISSING" in line[-40:]}, (
        printed
    )


# ---- what is pushed can be served ----

PUSH = """
import sys
from pathlib import Path

sys.modules["ctfm"] = None
from transformers import AutoModel, AutoModelForImageClassification, AutoProcessor

root, trusted = Path(sys.argv[1]), {"trust_remote_code": True}
processor = AutoProcessor.from_pretrained(root / "dual", **trusted)
dual = AutoModel.from_pretrained(root / "dual", **trusted)
findings = AutoModelForImageClassification.from_pretrained(root / "findings", **trusted)
for repo, parts in {
    "org/dual": (dual, processor),
    "org/vision": (dual.vision_model, processor.image_processor),
    "org/findings": (findings, processor),
}.items():
    for part in parts:
        part.push_to_hub(repo)
"""
PULL = """
import sys
from pathlib import Path

sys.modules["ctfm"] = None
import numpy as np
import torch
from safetensors.torch import save_file
from transformers import AutoBackbone, AutoModel, AutoModelForImageClassification, AutoProcessor, pipeline

out, trusted = Path(sys.argv[1]), {"trust_remote_code": True}
scan = (np.load(out / "hu.npy"), np.load(out / "affine.npy"))
results = {}
with torch.no_grad():
    for repo in ("org/dual", "org/vision", "org/findings"):
        images = AutoProcessor.from_pretrained(repo, **trusted)(images=scan)
        backbone = AutoBackbone.from_pretrained(repo, out_indices=[1, 2], **trusted).eval()
        first, last = backbone(images["pixel_values"][0]).feature_maps
        results |= {f"{repo} backbone 1": first, f"{repo} backbone 2": last}
    results["vision"] = AutoModel.from_pretrained("org/vision", **trusted)(**images).pooler_output
    grade = pipeline("zero-shot-image-classification", model="org/dual", **trusted)
    classify = pipeline("image-classification", model="org/findings", **trusted)
    results["zero-shot"] = torch.tensor([grade(scan, candidate_labels=["Lung"])[0]["score"]])
    graded = classify(scan)
    results["findings"] = torch.tensor([row["score"] for row in sorted(graded, key=lambda row: row["label"])])
    assert [row["score"] for row in graded] == sorted((row["score"] for row in graded), reverse=True)
    assert classify(scan, top_k=1) == graded[:1]
    try:
        pipeline("zero-shot-image-classification", model="org/findings", **trusted)
    except ValueError as error:
        assert "image-classification" in str(error), error
    else:
        raise AssertionError("random projections graded a scan")
save_file({name: value.contiguous() for name, value in results.items()}, out / "results.safetensors")
"""


@torch.no_grad()
def test_what_a_machine_without_the_package_pushes_another_one_serves(folders: Path, tmp_path: Path) -> None:
    hu, affine = tiny_scan()
    np.save(tmp_path / "hu.npy", hu)
    np.save(tmp_path / "affine.npy", affine)
    with LocalHub() as hub:
        settings = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        run_stranger(PUSH, folders, home=tmp_path, HF_TOKEN="hf_test", **settings)
        shutil.rmtree(tmp_path / "home")  # the other machine
        run_stranger(PULL, tmp_path, home=tmp_path, **settings)
    results = load_file(tmp_path / "results.safetensors")
    images = tiny_processor().image_processor(tiny_scan())
    backbone = CTFMBackbone.from_pretrained(folders / "dual", out_indices=[1, 2])
    expected = {"vision": CTFMVisionModel.from_pretrained(folders / "vision")(**images).pooler_output}
    for repo in ("org/dual", "org/vision", "org/findings"):
        maps = backbone(images["pixel_values"][0]).feature_maps
        expected |= {f"{repo} backbone {number}": one for number, one in enumerate(maps, 1)}
    expected["findings"] = (
        CTFMForImageClassification.from_pretrained(folders / "findings")(**images).logits[0].sigmoid()
    )
    expected["zero-shot"] = results["zero-shot"]
    assert results.keys() == expected.keys()
    assert {name for name, value in expected.items() if largest_difference(results[name], value) > ROUNDING} == set()


# ---- save and load ----


def state(model: PreTrainedModel, prefix: str = "") -> dict[str, torch.Tensor]:
    return {k.removeprefix(prefix): v for k, v in model.state_dict().items() if k.startswith(prefix)}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [
        name for name in one if one[name].dtype != other[name].dtype or not torch.equal(one[name], other[name])
    ] == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shards", ["one", "many"])
def test_weights_are_restored_exactly_and_as_safetensors_alone(
    tmp_path: Path, dtype: torch.dtype, shards: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = dual_model().to(dtype)
    model.save_pretrained(tmp_path, max_shard_size="50KB" if shards == "many" else "1GB")
    weights = {path.name for path in tmp_path.iterdir()} - {"config.json"}
    weights -= imported_files("modeling_ctfm.py")
    if shards == "one":
        assert weights == {"model.safetensors"}
    else:
        files = set(json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"].values())
        assert len(files) > 2
        assert weights == files | {"model.safetensors.index.json"}
    assert_same(state(CTFMModel.from_pretrained(tmp_path)), state(model))
    assert caplog.text == ""


@pytest.mark.parametrize("model_class", [CTFMVisionModel, CTFMBackbone])
def test_a_vision_tower_is_taken_out_of_a_dual_checkpoint_silently(
    folders: Path, model_class: Any, caplog: pytest.LogCaptureFixture
) -> None:
    model, info = model_class.from_pretrained(folders / "dual", output_loading_info=True)
    assert not any(info.values()), info
    prefix = "vision_model.local_model." if model_class is CTFMBackbone else "vision_model."
    mine = state(model, "local_model.") if model_class is CTFMBackbone else state(model)
    assert_same(mine, state(dual_model(), prefix))
    assert caplog.text == ""


@pytest.mark.parametrize("model_class", HEADS)
def test_a_head_on_a_dual_checkpoint_takes_the_tower_and_says_that_the_head_is_new(
    folders: Path, model_class: Any, caplog: pytest.LogCaptureFixture
) -> None:
    model, info = model_class.from_pretrained(folders / "dual", id2label=NAMES, output_loading_info=True)
    assert_same(state(model, "vision_model."), state(dual_model(), "vision_model."))
    new = {name for name in model.state_dict() if name.startswith(HEADS[model_class])}
    assert info.pop("missing_keys") == new
    assert not any(info.values()), info
    assert model.config.num_labels == len(NAMES)
    assert "MISSING" in caplog.text
    assert "UNEXPECTED" not in caplog.text


@pytest.mark.parametrize("model_class", HEADS)
def test_a_trained_head_comes_back_exactly_and_silently(
    folders: Path, tmp_path: Path, model_class: Any, caplog: pytest.LogCaptureFixture
) -> None:
    name = "findings" if model_class is CTFMForImageClassification else "organs"
    model = model_class.from_pretrained(folders / name)
    model.save_pretrained(tmp_path)
    assert_same(state(model_class.from_pretrained(tmp_path)), state(model))
    assert caplog.text == ""


def test_a_head_of_another_size_is_refused_unless_asked_for(folders: Path) -> None:
    with pytest.raises(RuntimeError, match="mismatch"):
        CTFMForImageClassification.from_pretrained(folders / "findings", num_labels=7)


def test_the_local_class_serves_where_the_package_is_installed(folders: Path) -> None:
    assert type(AutoModel.from_pretrained(folders / "dual")) is CTFMModel
    assert type(AutoModel.from_pretrained(folders / "vision")) is CTFMVisionModel


class Malice:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple:
        return (os.mkdir, (str(self.path),))


def test_a_pickle_that_runs_code_is_refused(folders: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text((folders / "dual" / "config.json").read_text())
    torch.save({"logit_scale": Malice(tmp_path / "owned")}, model / "pytorch_model.bin")
    with pytest.raises((pickle.UnpicklingError, ValueError, OSError)):
        CTFMModel.from_pretrained(model)
    assert not (tmp_path / "owned").exists()


# ---- ways to run ----


def test_checkpointing_gradients_changes_neither_loss_nor_gradients() -> None:
    texts = torch.randint(1, 100, (2, 5), generator=torch.Generator().manual_seed(0))
    model = dual_model()  # in eval mode no dropout differs, and checkpointing is for training alone
    losses, gradients = [], []
    for checkpointing in (False, True):
        model.zero_grad()
        if checkpointing:
            model.activation_checkpointing_enable()
            model.vision_model.train()  # the tower's dropout rates are 0
        loss = model(tiny_crops(), texts, GRID, return_loss=True).loss
        loss.backward()
        losses.append(loss.detach())
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert torch.equal(losses[0], losses[1])
    assert_same(gradients[0], gradients[1])
    without = {name for name, _ in model.named_parameters()} - gradients[0].keys()
    assert without == {"vision_model.local_model.embeddings.mask_token"}  # nothing is hidden behind it here


@torch.no_grad()
def test_attention_back_ends_agree(folders: Path) -> None:
    texts = torch.randint(1, 100, (2, 5), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(8)[None] < torch.tensor([[8], [4]])  # the second scan has half a grid
    grid = torch.tensor([[2, 2, 2], [1, 2, 2]])
    logits = {}
    for name in ("eager", "sdpa"):
        model = CTFMModel.from_pretrained(folders / "dual", attn_implementation=name)
        assert model.vision_model.local_model.config._attn_implementation == name
        assert model.vision_model.global_model.config._attn_implementation == name
        logits[name] = model(tiny_crops(), texts, grid, mask).logits_per_image
    torch.testing.assert_close(logits["eager"], logits["sdpa"])


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_the_vision_model_compiles_into_one_graph(backend: str) -> None:
    model = dual_model().vision_model
    arguments = (tiny_crops(), GRID, torch.arange(8)[None] < torch.tensor([[8], [4]]))
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend=backend)(*arguments)
        torch.testing.assert_close(compiled.pooler_output, model(*arguments).pooler_output, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # which PEFT asks for
def test_low_rank_adapters_are_trained_saved_and_merged(folders: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    base = CTFMForImageClassification.from_pretrained(folders / "findings")
    before = base(tiny_crops(), GRID).logits
    settings = peft.LoraConfig(target_modules=["qkv"], modules_to_save=["classifier"], r=2)
    adapted = peft.get_peft_model(base, settings).eval()
    torch.manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    logits = adapted(tiny_crops(), GRID).logits
    assert not torch.allclose(logits, before, atol=1e-3)
    loss = adapted(tiny_crops(), GRID, labels=torch.ones(2, 3)).loss
    loss.backward()
    trained = {name for name, parameter in adapted.named_parameters() if parameter.grad is not None}
    assert all("lora_" in name or "modules_to_save" in name for name in trained)
    layers = len(base.vision_model.local_model.layers) + len(base.vision_model.global_model.layers)
    assert len(trained) == 2 * layers + 2

    adapted.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
    assert not [*tmp_path.glob("*.bin")]
    fresh = CTFMForImageClassification.from_pretrained(folders / "findings")
    again = peft.PeftModel.from_pretrained(fresh, tmp_path).eval()
    assert torch.equal(again(tiny_crops(), GRID).logits, logits)
    merged = again.merge_and_unload()
    assert type(merged) is CTFMForImageClassification
    torch.testing.assert_close(merged(tiny_crops(), GRID).logits, logits, rtol=1e-4, atol=1e-5)
