"""The code blocks of the documentation run, in order, where a user would run them."""

import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from ctfm import CTFMImageProcessor, CTFMModel, CTFMProcessor
from ctfm.train.dicom_series import write_dicom_series

from tests.phantoms import canonical_affine, phantom_hu
from tests.tiny import tiny_config, tiny_tokenizer

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", "model_card.md", "reporting/model_card.md"]
OTHER_PAGES = ["docs/comparison.md", "docs/report_check.md", "reporting/data_card.md", "train/README.md"]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the pages speak of: a study as a zip of DICOM, and a checkpoint."""
    write_dicom_series(phantom_hu(), canonical_affine(), tmp_path / "study")
    shutil.make_archive(str(tmp_path / "study"), "zip", tmp_path / "study")
    torch.manual_seed(0)
    checkpoint = tmp_path / "path" / "to" / "a" / "checkpoint"
    CTFMModel(tiny_config()).save_pretrained(checkpoint)
    image_processor = CTFMImageProcessor(crop_size=(8, 16, 16), spacing="native")
    CTFMProcessor(image_processor, tiny_tokenizer()).save_pretrained(checkpoint)
    image_processor.save_pretrained(checkpoint)
    shutil.copytree(checkpoint, tmp_path / "checkpoints" / "default")
    shutil.copy(ROOT / "tests" / "fixtures" / "reporting" / "walking.md", tmp_path / "trial.md")
    (tmp_path / "reporting").symlink_to(ROOT / "reporting")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", PAGES)
def test_code_blocks_run(page: str, workplace: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert blocks
    names: dict[str, object] = {}
    for number, block in enumerate(blocks):
        exec(compile(block, f"{page}, python block {number + 1}", "exec"), names)
    assert (workplace / "heat.nii.gz").is_file() or page != "README.md"


@pytest.mark.parametrize("page", [*PAGES, "CONTRIBUTING.md", "CHANGELOG.md", *OTHER_PAGES])
def test_links_and_files_spoken_of_exist(page: str) -> None:
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        assert ((ROOT / page).parent / target).exists(), target
    for name in re.findall(r"`((?:train/)?\w+_ctfm\.py|(?:train|tests)/\w+\.py)`", text):
        assert (ROOT / name).is_file() or "recipes" in name, name


@pytest.mark.parametrize("page", [*PAGES, *OTHER_PAGES])
def test_every_row_of_a_table_has_as_many_cells_as_its_head(page: str) -> None:
    blocks = re.findall(r"(?:^\|.*\n)+", (ROOT / page).read_text(), re.MULTILINE)
    assert all(len({line.count("|") for line in block.splitlines()}) == 1 for block in blocks)


def test_no_page_holds_a_path_of_somebodys_machine() -> None:
    for page in ROOT.glob("*.md"):
        assert not re.search(r"/(home|root|Users|work)/", page.read_text()), page.name
        assert os.sep + "tmp" + os.sep not in page.read_text(), page.name
