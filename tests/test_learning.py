"""The curve of a run: its points, and the picture."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from accelerate import Accelerator
from ctfm.evaluate import learning
from ctfm.evaluate.metrics import FindingTable
from ctfm.evaluate.probe import ProbeSet
from ctfm.train import pretrain as loop
from PIL import Image

from tests.tiny_training import tiny_data, tiny_recipe

ROOT = Path(__file__).parent.parent


def test_every_checkpoint_is_asked_and_rows_of_the_same_phase_make_place(tmp_path: Path) -> None:
    data, recipe = tiny_data(tmp_path, num_train=20, num_test=20), tiny_recipe(2)
    recipe = replace(recipe, phases={name: recipe.phases[name] for name in ("self_supervision", "alignment")})
    out, points = tmp_path / "run", tmp_path / "points.json"
    loop.pretrain(loop.Run(recipe=recipe, out=out, data=(str(data),), save_every=1, keep_last=9), Accelerator(cpu=True))
    other = {"run": "tiny", "phase": "segmentation", "step": 0, "question": "findings, linear probe"}
    learning.replace_rows([other, other | {"phase": "alignment", "step": 99}], points)
    asked = ["--train", f"{data}@train", "--test", f"{data}@test", "--train-scans", "15", "--points", str(points)]
    learning.main(["measure", str(out), *asked])
    kept, *rows = json.loads(points.read_text())
    assert kept == other
    found = [(row["phase"], row["step"], row["question"]) for row in rows]
    both = ("nearest neighbours", "linear probe")
    steps = [("self_supervision", step) for step in (0, 1, 2)] + [("alignment", step) for step in (0, 1, 2)]
    assert found == [
        *(
            (*place, f"findings, {way}")
            for place in steps
            for way in (*both, *["zero-shot"] * (place[0] == "alignment"))
        ),
        *((*place, f"structures, {way}") for place in steps for way in both),
    ]
    assert all(row["low"] <= row["auroc"] <= row["high"] for row in rows)
    assert {(row["train"], row["test"]) for row in rows} == {(15, 20)}
    # The local transformer is frozen in this phase, so that its features stay.
    assert (
        len({row["auroc"] for row in rows if row["phase"] == "alignment" and row["question"] == f"findings, {both[0]}"})
        == 1
    )


def test_scores_that_are_the_labels_are_graded_with_one() -> None:
    labels = np.tile([[0, 1], [1, 0]], (10, 1))
    labels[:, 1] = 0  # nobody has the second finding, so it does not count
    scans = tuple(str(number // 2) for number in range(20))
    table = FindingTable(findings=("a", "b"), values=labels.astype(float))
    test = ProbeSet(features=np.zeros((20, 1)), labels=table, scans=scans)
    assert learning.grade(table, test) == {"auroc": 1.0, "low": 1.0, "high": 1.0}
    assert learning.grade(FindingTable(findings=("a", "b"), values=np.zeros((20, 2))), test)["auroc"] == 0.5


def test_a_panel_a_phase(tmp_path: Path) -> None:
    place = {"run": "phantoms", "train": 10, "test": 20, "low": 0.5, "high": 0.7}
    points = [
        place | {"phase": phase, "step": step, "question": question, "auroc": 0.6}
        for phase, question in (("self_supervision", "findings, linear probe"), ("alignment", "findings, zero-shot"))
        for step in (0, 50)
    ]
    sizes = []
    for count in (2, 4):
        (tmp_path / "points.json").write_text(json.dumps(points[:count]))
        learning.main(["draw", "--points", str(tmp_path / "points.json"), "--out", str(tmp_path / "curve.png")])
        with Image.open(tmp_path / "curve.png") as image:
            sizes.append(image.size)
    assert sizes[1][0] == pytest.approx(2 * sizes[0][0], abs=2)
    assert sizes[1][1] == sizes[0][1]


def test_the_readme_says_what_was_measured_before_and_after() -> None:
    text = (ROOT / "train" / "README.md").read_text()
    for row in json.loads(learning.POINTS.read_text()):
        if row["run"] == "phantoms" and row["step"] in (0, 400):
            assert f"{row['auroc']:.3f} ({row['low']:.3f} to {row['high']:.3f})" in text
