"""The text tower in a file of its own: the folder loads as before, and only what changed is written anew."""

from pathlib import Path

import pytest
import torch
from ctfm import CTFMModel, CTFMVisionModel
from ctfm.release.split_weights import SHARDS, main, split_weights
from ctfm.weights import INDEX, hash_weight_files, list_weights, load_complete
from safetensors.torch import load_file

from tests.tiny import tiny_config


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    CTFMModel(tiny_config()).to(torch.bfloat16).save_pretrained(tmp_path)
    return tmp_path


def test_a_split_folder_loads_the_same_weights_and_has_no_other_files(folder: Path) -> None:
    before = CTFMModel.from_pretrained(folder).state_dict()
    assert main([str(folder)]) == 0
    assert {path.name for path in folder.glob("model*")} - {"modeling_ctfm.py"} == {*SHARDS, INDEX}
    after = load_complete(CTFMModel, folder).state_dict()
    assert before.keys() == after.keys()
    assert all(
        torch.equal(tensor, after[name]) and tensor.dtype == after[name].dtype for name, tensor in before.items()
    )


def test_only_the_text_tower_is_in_its_file_and_it_stays_when_the_rest_is_trained_anew(folder: Path) -> None:
    split_weights(folder)
    assert all(name.startswith("text_model.") for name in load_file(folder / SHARDS[1]))
    assert not any(name.startswith("text_model.") for name in load_file(folder / SHARDS[0]))
    rest, text, digest = (folder / SHARDS[0]).read_bytes(), (folder / SHARDS[1]).read_bytes(), hash_weight_files(folder)
    model = CTFMModel.from_pretrained(folder)
    torch.nn.init.zeros_(model.visual_projection.out.weight)
    model.save_pretrained(folder)  # as one file, which goes before the index
    assert list_weights(folder) == ("model.safetensors",)
    split_weights(folder)
    assert (folder / SHARDS[1]).read_bytes() == text
    assert (folder / SHARDS[0]).read_bytes() != rest
    assert hash_weight_files(folder) != digest
    assert not CTFMModel.from_pretrained(folder).visual_projection.out.weight.any()


def test_splitting_again_or_a_model_without_a_text_tower_changes_nothing(folder: Path, tmp_path: Path) -> None:
    split_weights(folder)
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    split_weights(folder)
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    CTFMVisionModel(tiny_config().vision_config).save_pretrained(tmp_path / "vision")
    split_weights(tmp_path / "vision")
    assert list_weights(tmp_path / "vision") == ("model.safetensors",)
