"""The repository root is the package `ctfm`: pytest must not import its `__init__.py` again under the folder's name."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def pytest_collect_directory(path: Path, parent: pytest.Collector) -> pytest.Dir | None:
    return pytest.Dir.from_parent(parent, path=path) if path == ROOT else None
