"""A checkpoint as ONNX gives what it gives itself, and Triton's configuration says what the file holds."""

import math
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ctfm import CTFMForImageClassification, CTFMImageProcessor, CTFMModel, CTFMProcessor, onnx_export
from ctfm.onnx_export import load_scan_model, main

from tests.tiny import tiny_config, tiny_tokenizer

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
CROP = (8, 16, 16)
GRIDS = [(1, 1, 1), (2, 2, 2), (3, 1, 2)]


def save(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    CTFMProcessor(CTFMImageProcessor(crop_size=CROP, spacing="native"), tiny_tokenizer()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return save(CTFMModel(tiny_config()), tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def models(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    assert main(["--model", str(checkpoint), "--out", str(folder), "--name", "lungs"]) == 0
    return folder


def open_file(file: Path) -> Any:
    return onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])


def inputs_of(grid: tuple[int, int, int]) -> dict[str, np.ndarray]:
    random = np.random.default_rng(1)
    crops = random.random((1, math.prod(grid), 1, *CROP), np.float32)
    crops[0, 0] = 0  # air, which the checkpoint encodes apart
    return {"pixel_values": crops, "crop_grid": np.array([grid])}


def check_equality(file: Path, folder: Path) -> None:
    scan, _ = load_scan_model(str(folder))
    session = open_file(file)
    assert tuple(output.name for output in session.get_outputs()) == scan.names
    for grid in GRIDS:
        inputs = inputs_of(grid)
        with torch.no_grad():
            expected = scan(*(torch.from_numpy(value) for value in inputs.values()))
        for a, b in zip(session.run(None, inputs), expected, strict=True):
            torch.testing.assert_close(torch.from_numpy(a), b, rtol=1e-5, atol=1e-5)


def test_features_and_embeddings_of_any_number_of_crops_are_those_of_the_checkpoint(
    checkpoint: Path, models: Path
) -> None:
    check_equality(models / "lungs" / "1" / "model.onnx", checkpoint)
    scan, _ = load_scan_model(str(checkpoint))
    inputs = {name: torch.from_numpy(value) for name, value in inputs_of((2, 2, 2)).items()}
    with torch.no_grad():
        own = scan.model(**inputs, **tiny_text()).image_embeds
        torch.testing.assert_close(scan(*inputs.values())[1], own)


def tiny_text() -> dict[str, torch.Tensor]:
    return dict(tiny_tokenizer()(["air"], return_tensors="pt"))


def test_triton_is_told_the_inputs_and_outputs_that_the_file_has(models: Path) -> None:
    said = (models / "lungs" / "config.pbtxt").read_text()
    assert 'name: "lungs"' in said
    session = open_file(models / "lungs" / "1" / "model.onnx")
    types = {"TYPE_FP32": "tensor(float)", "TYPE_INT64": "tensor(int64)"}
    for kind, tensors in (("input", session.get_inputs()), ("output", session.get_outputs())):
        rows = re.findall(rf'^{kind} \[ {{ name: "(\w+)" data_type: (\w+) dims: \[ (.*) \] }} \]$', said, re.MULTILINE)
        stated = [(name, types[word], [int(size) for size in dims.split(", ")]) for name, word, dims in rows]
        shapes = [[size if isinstance(size, int) else -1 for size in tensor.shape] for tensor in tensors]
        assert stated == [(t.name, t.type, shape) for t, shape in zip(tensors, shapes, strict=True)]
    assert stated[0][2] == [1, tiny_config().vision_config.feature_size]
    assert re.search(r"pixel_values.*dims: \[ 1, -1, 1, 8, 16, 16 \]", said)


@pytest.mark.parametrize("token_scores", [False, True])
def test_a_fine_tuned_model_gives_its_logits(token_scores: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = tiny_config(id2label={0: "Effusion", 1: "Nodule"}, label2id={"Effusion": 0, "Nodule": 1})
    config.token_scores = token_scores
    folder = save(CTFMForImageClassification(config), tmp_path / "tuned")
    assert main(["--model", str(folder), "--out", str(tmp_path / "models")]) == 0
    check_equality(tmp_path / "models" / "ctfm" / "1" / "model.onnx", folder)


def test_eight_bits_are_fewer_bytes_and_close(checkpoint: Path, models: Path) -> None:
    assert main(["--model", str(checkpoint), "--out", str(models), "--name", "small", "--int8"]) == 0
    exact, small = (models / name / "1" / "model.onnx" for name in ("lungs", "small"))
    assert small.stat().st_size < exact.stat().st_size
    a, b = (open_file(file).run(None, inputs_of((2, 2, 2)))[0] for file in (exact, small))
    assert not np.array_equal(a, b)
    assert torch.nn.functional.cosine_similarity(torch.from_numpy(a), torch.from_numpy(b)).min() > 0.98


def test_a_file_that_computes_something_else_is_not_left_behind(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(onnx_export.MIN_COSINE, False, 2.0)
    with pytest.raises(onnx_export.ExportError, match="computes other values than the checkpoint"):
        main(["--model", str(checkpoint), "--out", str(tmp_path)])
    assert not list(tmp_path.rglob("*.onnx"))


def test_what_is_not_installed_is_named_with_the_command(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert main(["--model", str(checkpoint), "--out", str(tmp_path)]) == 2
    assert '"onnxscript" is not installed: run pip install --editable ".[onnx]"' in capsys.readouterr().err
