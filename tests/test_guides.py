"""The guides run as they stand, on synthetic patients and the smallest model."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ctfm import CTFMImageProcessor, CTFMModel, CTFMProcessor
from ctfm.vector_index import HAS_FAISS
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification

from tests.local_hub import LocalHub
from tests.tiny import tiny_config, tiny_tokenizer

GUIDES = Path(__file__).parent.parent / "docs" / "guides"
SIZE = "16,24,24"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    CTFMModel(tiny_config()).save_pretrained(folder)
    CTFMProcessor(CTFMImageProcessor(crop_size=(8, 16, 16), spacing="native"), tiny_tokenizer()).save_pretrained(folder)
    return folder


def run(guide: str, *arguments: str, **settings: str) -> str:
    done = subprocess.run(
        [sys.executable, str(GUIDES / guide), *arguments],
        env=os.environ | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_guides_fit_a_page() -> None:
    for guide in GUIDES.glob("*.py"):
        assert len(guide.read_text().splitlines()) < 60, guide.name


@pytest.mark.skipif(not HAS_FAISS, reason='faiss is not installed: pip install ".[search]"')
def test_the_guide_to_search(checkpoint: Path, tmp_path: Path) -> None:
    said = run("search.py", str(checkpoint), str(tmp_path), SIZE, HF_HOME=str(tmp_path / "home"))
    assert [said.count(f"\n{kind} ") for kind in ("text", "scan", "region")] == [3, 3, 3]


def test_the_guide_to_lora(checkpoint: Path, tmp_path: Path) -> None:
    run("lora.py", str(checkpoint), str(tmp_path), SIZE, "2", HF_HOME=str(tmp_path / "home"), CUDA_VISIBLE_DEVICES="")
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "lora", trust_remote_code=True)
    assert list(model.config.id2label.values()) == ["Pleural effusion", "Cardiomegaly"]


def test_the_guide_to_segmenting(checkpoint: Path, tmp_path: Path) -> None:
    said = run("segment.py", str(checkpoint), str(tmp_path), SIZE, "2", CUDA_VISIBLE_DEVICES="")
    assert "\nDice {" in said
    assert "\nlabels (" in said


def test_the_guide_from_an_archive_and_back(checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("highdicom", reason="needs the extra [clinical]")
    from tests.orthanc import run_orthanc

    (tmp_path / "orthanc").mkdir()
    with run_orthanc(tmp_path / "orthanc") as server:
        said = run("pacs.py", str(checkpoint), server.dicomweb, str(tmp_path), SIZE)
    assert "on the server ['CT', 'DOC', 'SR']" in said


def test_the_guide_to_the_weights_of_spectre(tmp_path: Path) -> None:
    """On the small random SPECTRE of the tests, laid out as the published files are."""
    parts = load_file(Path(__file__).parent / "fixtures" / "spectre_tiny.safetensors")
    for name, part in (("spectre_backbone_vit_large_patch16_128.pt", "backbone"), ("combiner.pt", "combiner")):
        own = {key.split("/", 1)[1]: tensor for key, tensor in parts.items() if key.startswith(part + "/")}
        torch.save(own, tmp_path / name)
    files = [str(tmp_path / name) for name in ("spectre_backbone_vit_large_patch16_128.pt", "combiner.pt")]
    assert "features (2, " in run("spectre.py", *files, str(tmp_path / "out"), SIZE)


def test_the_guides_to_probing_and_publishing(checkpoint: Path, tmp_path: Path) -> None:
    said = run("probe.py", str(checkpoint), str(tmp_path), SIZE)
    assert said.count("'label'") == 3
    with LocalHub() as hub:
        settings = {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_TOKEN": "hf_test",
        }
        said = run("publish.py", str(tmp_path / "probe"), "org/probe", **settings)
    assert f"{hub.url}/org/probe" in said
    assert "Research only" in (tmp_path / "probe" / "model" / "README.md").read_text()
