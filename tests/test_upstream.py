"""transformers' own tests of a model, run on ours.

They are not in its wheel but in its source distribution, which is fetched once for the installed version and kept in the
user's cache. `upstream/modeling_cases.py` joins them in a temporary tree and runs there in a process of its own.
"""

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import pytest
import transformers

CASES = Path(__file__).parent / "upstream" / "modeling_cases.py"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ctfm"

# How many pass without an accelerator (5.23.0); what needs one, or flash attention, or a text model, skips itself.
PASSING = {
    "CTFMVisionModelTest": 97,
    "CTFMLocalModelTest": 97,
    "CTFMBackboneTest": 105,
    "CTFMGlobalModelTest": 96,
    "CTFMModelTest": 97,
    "CTFMForImageClassificationTest": 98,
    "CTFMForSemanticSegmentationTest": 98,
}

# Modules that the common tests import and the distribution leaves out; none concerns a vision model.
STUBS = {
    "exporters/test_export.py": "class ExportTesterMixin: pass",
    "generation/test_utils.py": "class GenerationTesterMixin: pass",
    "utils/test_configuration_utils.py": """
config_common_kwargs = {
    "architectures": ["CTFMModel"],
    "chunk_size_feed_forward": 5,
    "dtype": "float16",
    "id2label": {0: "effusion"},
    "is_encoder_decoder": True,
    "label2id": {"effusion": 0},
    "output_attentions": True,
    "output_hidden_states": True,
    "problem_type": "regression",
    "return_dict": False,
}
""",
}
SEEDS = """
import pytest
from transformers import set_seed
from tests import test_modeling_common

@pytest.fixture(autouse=True)
def seeded():
    set_seed(0)
    test_modeling_common.global_rng.seed(0)
"""


@pytest.fixture(scope="module")
def common_tests() -> Path:
    """The folder of transformers' common tests, of exactly the installed version."""
    release = f"transformers-{transformers.__version__}"
    kept = CACHE / release
    if kept.is_dir():
        return kept
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        options = ["--quiet", "--no-deps", "--no-binary", "transformers", "--retries", "1", "--timeout", "20"]
        command = [sys.executable, "-m", "pip", "download", *options, "--dest", folder, release.replace("-", "==")]
        download = subprocess.run(command, capture_output=True, text=True)
        archive = Path(folder) / f"{release}.tar.gz"
        if not archive.is_file():
            pytest.skip(f"The source distribution of {release} is not to be had: {download.stderr.strip()[-200:]}")
        with tarfile.open(archive) as distribution:
            distribution.extraction_filter = getattr(tarfile, "data_filter", None)  # not in Python 3.11.2
            for member in distribution:
                if Path(member.name).match(f"{release}/tests/test_*_common.py"):
                    distribution.extract(member, folder)
        found = Path(folder) / release / "tests"
        if not kept.exists():  # another process may have been faster
            found.rename(kept)
    return kept


def write_tree(root: Path, common_tests: Path) -> None:
    """The part of transformers' tree that its common tests need, with our cases where a model of its own would be."""
    shutil.copytree(common_tests, root / "tests")
    for name, text in STUBS.items():
        (root / "tests" / name).parent.mkdir()
        (root / "tests" / name).write_text(text)
    cases = root / "tests" / "models" / "ctfm" / "test_modeling_ctfm.py"
    cases.parent.mkdir(parents=True)
    shutil.copy(CASES, cases)
    for folder in (root / "tests", *(root / "tests").rglob("*/")):
        (folder / "__init__.py").touch()
    (root / "conftest.py").write_text(SEEDS)
    (root / "pytest.ini").write_text("[pytest]\nfilterwarnings = ignore\n")


def test_transformers_own_tests_pass_for_every_model_class(common_tests: Path, tmp_path: Path) -> None:
    write_tree(tmp_path, common_tests)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    options = ["-n", "2", "-q", "--no-header", "--tb=short", "--show-capture=no", "-p", "no:cacheprovider"]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "--junit-xml=report.xml", "tests/models/ctfm"],
        cwd=tmp_path,
        env=inherited | offline,
        capture_output=True,
        text=True,
    )
    if run.returncode:
        pytest.fail(f"{run.stdout[-20_000:]}\n{run.stderr[-2_000:]}", pytrace=False)
    passed = Counter(
        case.get("classname", "").rpartition(".")[2]
        for case in ElementTree.parse(tmp_path / "report.xml").iter("testcase")
        if not len(case)  # no child says skipped or failed
    )
    missing = {name: (count, passed[name]) for name, count in PASSING.items() if passed[name] < count}
    assert not missing, f"(expected, passed): {missing}"
