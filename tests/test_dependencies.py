"""What a room imports is declared for it in pyproject.toml, and does not come along by chance with something else."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = {  # folder -> the extras that whoever runs it has
    ".": ("io",),
    "train": ("io", "train"),
    "reporting": ("reporting", "train"),
    "space": ("io", "space"),
    "benchmarks": ("io", "train", "reporting", "space", "quantization", "dev"),
    "tests": ("io", "train", "reporting", "space", "quantization", "dev"),
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
    owners = packages_distributions()
    # "spaces" is on the Hub alone; "dicom2nifti" is a reader to compare with, which a benchmark takes where it is installed.
    own = {"ctfm", "tests", "spaces", "dicom2nifti", *(path.stem for path in (ROOT / "space").glob("*.py"))}
    undeclared = {
        f"{path.name}: {name}"
        for path in (ROOT / room).glob("*.py")
        for name in imported(path) - sys.stdlib_module_names - own
        if declared.isdisjoint(map(normal, owners.get(name, [name])))
    }
    assert undeclared == set()
