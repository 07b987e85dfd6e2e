"""The code blocks of the documentation run, in order, where a user would run them."""

import ast
import doctest
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ctfm.phantom.dataset import PhantomDataset, write_dataset
from ctfm.phantom.dicom_series import write_dicom_series

from tests.phantoms import canonical_affine, phantom_hu

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", "model_card.md", "reporting/model_card.md"]
OTHER_PAGES = ["reporting/data_card.md", "train/README.md"]
OTHER_PAGES += sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """A folder with what the pages speak of: the checkpoints of this repository, a study as a zip of DICOM, reports."""
    write_dicom_series(phantom_hu(), canonical_affine(), tmp_path / "studies" / "study")
    shutil.make_archive(str(tmp_path / "study"), "zip", tmp_path / "studies" / "study")
    for name in ("checkpoints", "reporting", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    fixtures = ROOT / "tests" / "fixtures" / "reporting"
    shutil.copy(fixtures / "walking.md", tmp_path / "trial.md")
    (tmp_path / "home").mkdir()
    return tmp_path


def write_drafts(folder: Path) -> None:
    """The invented report and its protocol in the formats of the pages' commands."""
    docx, pypdf = pytest.importorskip("docx"), pytest.importorskip("pypdf")
    fixtures = ROOT / "tests" / "fixtures" / "reporting"
    draft = docx.Document()
    for line in (fixtures / "walking.md").read_text().splitlines():
        if line.startswith("#"):
            draft.add_heading(line.lstrip("# "), level=len(line) - len(line.lstrip("#")))
        elif line.strip():
            draft.add_paragraph(line)
    draft.save(str(folder / "draft.docx"))
    (folder / "submissions").mkdir()
    shutil.copy(folder / "draft.docx", folder / "submissions")
    words = "".join(
        f"<p>{line}</p>" for line in (fixtures / "walking.md").read_text().splitlines() if line[:1].isalpha()
    )
    (folder / "report.xml").write_text(f"<article><body><sec><title>Methods</title>{words}</sec></body></article>")
    write_pdf((fixtures / "walking_protocol.md").read_text().splitlines(), folder / "protocol.pdf", pypdf)


def write_pdf(lines: list[str], path: Path, pypdf: Any) -> None:
    """One page of text in the base font."""
    from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject

    writer = pypdf.PdfWriter()
    page = writer.add_blank_page(595, 842)
    names = {"/Type": "/Font", "/Subtype": "/Type1", "/BaseFont": "/Helvetica"}
    font = DictionaryObject({NameObject(key): NameObject(value) for key, value in names.items()})
    fonts = DictionaryObject({NameObject("/F1"): font})
    page[NameObject("/Resources")] = DictionaryObject({NameObject("/Font"): fonts})
    stream = DecodedStreamObject()
    rows = "".join(f"({re.sub(r'[^ -&*-~]', ' ', line)}) Tj T* " for line in lines)
    stream.set_data(f"BT /F1 6 Tf 8 TL 20 820 Td {rows}ET".encode())
    page[NameObject("/Contents")] = writer._add_object(stream)
    writer.write(path)


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)


def run_fresh(command: list[str], workplace: Path) -> subprocess.CompletedProcess:
    """In a process of its own, with an empty home and without a network."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTHON", "XDG_"))}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    environment |= {"HOME": str(workplace / "home"), "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    return subprocess.run(
        command, cwd=workplace, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.parametrize("page", [*PAGES, "docs/report_check.md"])
def test_python_blocks_run_as_printed_without_the_package_where_they_do_not_import_it(
    page: str, workplace: Path
) -> None:
    printed = blocks(page, "python")
    with_package = [block for block in printed if re.search(r"^(from|import) ctfm\b", block, re.MULTILINE)]
    without = [block for block in printed if block not in with_package]
    if without:
        without.insert(0, "import sys\n\nsys.modules['ctfm'] = None\n")
    assert printed
    for code in filter(None, ("".join(without), "".join(with_package))):
        done = run_fresh([sys.executable, "-I", "-c", code], workplace)
        assert done.returncode == 0, done.stdout
        assert done.stdout == "", "what is printed loads silently"
    assert (workplace / "heat.nii.gz").is_file() or page != "README.md"


@pytest.mark.parametrize("page", ["README.md", "reporting/model_card.md", "docs/report_check.md"])
def test_commands_run_as_printed(page: str, workplace: Path) -> None:
    write_drafts(workplace)
    table = write_dataset(PhantomDataset(folder=workplace, num_train=24, num_test=0, shape=(24, 32, 32)))
    table.rename(workplace / "TABLE.csv")
    lines = "\n".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()
    commands = [line for line in lines if line.startswith("ctfm ")]
    assert commands
    for command in commands:
        done = run_fresh(["bash", "-c", command], workplace)
        assert done.returncode == 0, f"{command}\n{done.stdout}"


@pytest.mark.parametrize("page", [*PAGES, *OTHER_PAGES])
def test_programs_that_are_named_exist(page: str) -> None:
    for name in re.findall(r"python -m (ctfm[.\w]*)", (ROOT / page).read_text()):
        assert importlib.util.find_spec(name), name


def test_nobody_is_told_to_install_the_package_from_an_index() -> None:
    """It is on none; what works is the path of a clone. installation.py tells it only to what came from an index."""
    for page in [*ROOT.glob("*.md"), *ROOT.glob("*/*.md"), *ROOT.glob("*.py"), *ROOT.glob("*/*.py")]:
        if page.parent.name != "tests" and page.name != "installation.py":
            assert not re.search(r"pip install [\"'`]*ctfm\b", page.read_text()), page


EXAMPLES = sorted(
    file.relative_to(ROOT).with_suffix("")
    for folder in (".", "phantom", "train", "evaluate", "release", "reporting")
    for file in (ROOT / folder).glob("*.py")
    if ">>> " in file.read_text()
)


@pytest.mark.parametrize("module", EXAMPLES, ids=str)
def test_examples_in_docstrings_are_true(module: Path) -> None:
    found = doctest.testmod(importlib.import_module(".".join(("ctfm", *module.parts))))
    assert found.attempted
    assert not found.failed


@pytest.mark.parametrize("page", [*PAGES, "CONTRIBUTING.md", "CHANGELOG.md", *OTHER_PAGES])
def test_links_and_files_spoken_of_exist(page: str) -> None:
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        assert ((ROOT / page).parent / target).exists(), target
    for name in re.findall(r"`(\w+_ctfm\.py|(?:phantom|train|evaluate|release|tests)/\w+\.py)`", text):
        assert (ROOT / name).is_file() or "recipes" in name, name


@pytest.mark.parametrize("page", [*PAGES, *OTHER_PAGES])
def test_every_row_of_a_table_has_as_many_cells_as_its_head(page: str) -> None:
    blocks = re.findall(r"(?:^\|.*\n)+", (ROOT / page).read_text(), re.MULTILINE)
    assert all(len({line.count("|") for line in block.splitlines()}) == 1 for block in blocks)


def test_no_page_holds_a_path_of_somebodys_machine() -> None:
    for page in ROOT.glob("*.md"):
        assert not re.search(r"/(home|root|Users|work)/", page.read_text()), page.name
        assert os.sep + "tmp" + os.sep not in page.read_text(), page.name


def test_messages_of_the_troubleshooting_page_are_messages_of_the_code() -> None:
    code = [path for folder in (".", "train", "evaluate") for path in (ROOT / folder).glob("*.py")]
    texts = [
        node.value
        for path in code
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    page, _, _ = (ROOT / "docs" / "troubleshooting.md").read_text().partition("## Installation")
    messages = [
        part for row in re.findall(r"^\| (`.*?) \|", page, re.MULTILINE) for part in re.findall(r"`(.+?)`", row)
    ]
    assert len(messages) > 30
    assert [message for message in messages if not any(message in text for text in texts)] == []
