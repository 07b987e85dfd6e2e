"""`make train-demo`: its commands are known to the programs that they start, and the chain runs."""

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from ctfm import CTFMModel
from ctfm.train.pretrain import read_run

ROOT = Path(__file__).parent.parent
CHAIN = ["phantom", "prepare", "pretrain", "evaluate", "record"]


def say(folder: Path) -> list[list[str]]:
    """The commands that make would run, without `setup`'s."""
    command = [
        "make",
        "--no-print-directory",
        "--dry-run",
        "--old-file=.venv/.done",
        "train-demo",
        f"TRAIN_DEMO={folder}",
    ]
    text = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [shlex.split(line) for line in text.replace("\\\n", " ").splitlines()]


def test_the_chain_is_drawn_prepared_trained_asked_recorded_and_loaded(tmp_path: Path) -> None:
    commands = say(tmp_path / "demo")
    assert [words[3] for words in commands if words[1:3] == ["-m", "ctfm"]] == CHAIN
    (training,) = (words[5:] for words in commands if words[3:5] == ["pretrain", "demo"])
    assert read_run(["demo", *training]).out == tmp_path / "demo" / "run"
    (loading,) = (words for words in commands if words[1:2] == ["-I"])
    assert (ROOT / loading[2]).is_file()
    assert loading[3] == str(tmp_path / "demo" / "run" / "exported")


def test_make_help_and_the_readme_name_it() -> None:
    assert "make train-demo" in subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True).stdout
    assert re.search(r"^make train-demo", (ROOT / "train" / "README.md").read_text(), re.MULTILINE)


@pytest.mark.slow
def test_the_chain_runs_on_few_scans(tmp_path: Path) -> None:
    scans = "--num-train 24 --num-validation 24 --num-test 24 --shape 24 32 32 --num-workers 0"
    folder = tmp_path / "demo"
    command = ["make", "--old-file=.venv/.done", "train-demo", f"TRAIN_DEMO={folder}", f"TRAIN_DEMO_SCANS={scans}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    answers = json.loads((folder / "loaded" / "answers.json").read_text())
    assert sorted(answer["label"] for answer in answers) == ["Lung nodule", "Pleural effusion"]
    metrics = json.loads((folder / "evaluated" / "metrics.json").read_text())
    assert "zero_shot/macro_auroc" in metrics
    facts = json.loads((folder / "checkpoint" / "run.json").read_text())
    assert facts["recipe"] == "demo"
    assert (folder / "checkpoint" / "model.safetensors").is_file()
    assert CTFMModel.from_pretrained(folder / "run" / "exported").config.projection_dim == 256
