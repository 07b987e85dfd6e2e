"""What a room imports is declared for it in pyproject.toml, and does not come along by chance with something else."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from ctfm.release.release import SHARED_WITH_SPACE
from ctfm.requirements_ctfm import TRANSFORMERS
from ctfm.train import LIBRARIES

ROOT = Path(__file__).parent.parent
ROOMS = {  # folder -> the extras that whoever runs it has
    ".": ("io", "search", "onnx"),
    "phantom": ("io", "train"),
    "train": ("io", "train"),
    "evaluate": ("io", "train"),
    "release": ("io", "train"),
    "clinical": ("clinical",),
    "reporting": ("reporting", "train"),
    "space": ("io", "space"),
    "benchmarks": ("io", "train", "reporting", "space", "quantization", "dev"),
    "tests": ("io", "train", "reporting", "space", "clinical", "quantization", "dev"),
}


def imported(path: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level}
    return {name.partition(".")[0] for name in names}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("room", ROOMS)
def test_what_a_room_imports_is_declared(room: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = [*project["dependencies"], *(line for x in ROOMS[room] for line in project["optional-dependencies"][x])]
    declared = {normal(re.match(r"[\w.-]+", line)[0]) for line in required}  # type: ignore[index]
    owners = {"faiss": ["faiss-cpu"]} | packages_distributions()  # whoever lacks the extra [search] can tell, too
    # "spaces" is on the Hub alone; the others are what benchmarks compare with, where they are installed.
    own = {
        "ctfm",
        "tests",
        "spaces",
        "dicom2nifti",
        "hnswlib",
        "openvino",
        "spectre",
        *(path.stem for path in (ROOT / "space").glob("*.py")),
    }
    own |= {path.removesuffix(".py") for path in SHARED_WITH_SPACE}  # which lie beside the Space's files on the Hub
    undeclared = {
        f"{path.name}: {name}"
        for path in (ROOT / room).glob("*.py")
        for name in imported(path) - sys.stdlib_module_names - own
        if declared.isdisjoint(map(normal, owners.get(name, [name])))
    }
    assert undeclared == set()


OLD_TRANSFORMERS = """
import importlib.metadata, sys
import transformers
from transformers import AutoConfig, AutoModel, AutoProcessor, configuration_utils, pipeline

version = importlib.metadata.version
importlib.metadata.version = lambda name: "5.17.0" if name == "transformers" else version(name)
del configuration_utils.SubConfigSpec  # which 5.17 lacks
sys.modules["ctfm"] = None
repo = sys.argv[1]
for load in (
    AutoConfig.from_pretrained,
    AutoModel.from_pretrained,
    AutoProcessor.from_pretrained,
    lambda repo, **loading: pipeline("zero-shot-image-classification", model=repo, **loading),
):
    try:
        load(repo, trust_remote_code=True)
    except ImportError as error:
        print(" ".join(str(error).split()))
"""


def test_code_from_the_hub_names_the_transformers_that_is_too_old_and_the_command(tmp_path: Path) -> None:
    command = [sys.executable, "-I", "-c", OLD_TRANSFORMERS, str(ROOT / "checkpoints" / "default")]
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    run = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    said = run.stdout.splitlines()
    assert len(said) == 4
    for line in said:
        assert "transformers==5.17.0" in line
        assert line.endswith('pip install --upgrade "transformers>=5.23"')


def test_the_transformers_that_code_from_the_hub_asks_for_is_that_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert TRANSFORMERS in project["dependencies"]


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["-m", "ctfm.train.pretrain", "--help"], 1),
        (["-c", "import ctfm.evaluate.probe"], 1),
        (["-m", "ctfm", "learning-curve", "--help"], 2),
    ],
    ids=str,
)
def test_training_without_the_extra_names_the_command_that_installs_it(
    command: list[str], code: int, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['tyro'] = None\n")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    run = subprocess.run([sys.executable, *command], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == code
    *before, last = run.stderr.splitlines()
    if code == 2:
        assert before == []
        assert last.startswith('ctfm learning-curve: "tyro" is not installed.')
    else:
        assert last.startswith("ModuleNotFoundError: tyro not installed.")
    assert 'pip install --editable ".[train]" in the cloned folder' in run.stderr


def test_the_libraries_that_training_looks_for_are_those_of_its_extra() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extra = {normal(re.match(r"[\w.-]+", line)[0]) for line in project["optional-dependencies"]["train"]}  # type: ignore[index]
    owners = packages_distributions()
    assert {normal(owners[name][0]) for name in LIBRARIES} == extra
