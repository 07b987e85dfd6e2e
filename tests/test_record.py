"""What stands beside the weights of a run."""

import json
from pathlib import Path

import pytest
import torch
from ctfm.release.record import record
from safetensors.torch import save_file

ROOT = Path(__file__).parent.parent
RECIPE = {
    "name": "small",
    "seed": 7,
    "phases": {"first": {"steps": 20, "global_batch": 4}, "second": {"steps": 10, "global_batch": 8}},
}
LOG = [
    {"phase": "first", "step": 10, "loss": 3.0, "samples_per_s": 2.0},  # 40 samples: 20 s
    {"phase": "first", "step": 10, "probe/knn": 0.5},
    {"phase": "first", "step": 20, "loss": 2.0, "samples_per_s": 1.0},  # 40 s
    {"phase": "second", "step": 10, "loss": 1.0, "samples_per_s": 8.0},  # 80 samples: 10 s
]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    (folder / "exported").mkdir(parents=True)
    (folder / "recipe.json").write_text(json.dumps(RECIPE))
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in LOG))
    save_file({"a": torch.zeros(3, 5), "b": torch.zeros(2)}, folder / "exported" / "model.safetensors")
    for name in ("config.json", "modeling_ctfm.py"):
        (folder / "exported" / name).write_text("{}")
    return folder


def test_a_finished_run_leaves_its_files_with_the_code_of_today_and_where_they_come_from(
    run: Path, tmp_path: Path
) -> None:
    (run / "finished").touch()
    record(run, tmp_path / "kept")
    names = {path.name for path in (tmp_path / "kept").iterdir()}
    code = {path.name for path in (ROOT / "checkpoints" / "default").glob("*.py")}
    assert names == {"config.json", "model.safetensors", "run.json"} | code
    assert all((tmp_path / "kept" / name).read_bytes() == (ROOT / name).read_bytes() for name in code)
    facts = json.loads((tmp_path / "kept" / "run.json").read_text())
    assert facts["hours"] == round(70 / 3600, 2)
    assert (facts["recipe"], facts["seed"], facts["parameters"]) == ("small", 7, 17)
    assert facts["second_steps"] == "10 of 8"
    assert len(facts["commit"]) == 40
    assert [row["loss"] for row in facts["curve"]] == [3.0, 2.0, 1.0]


def test_a_run_that_is_not_finished_is_not_kept(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not finished"):
        record(run, tmp_path / "kept")
    assert not (tmp_path / "kept").exists()
