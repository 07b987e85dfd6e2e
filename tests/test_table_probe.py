"""A table of scans to a trained head: what is learnt, measured, exported, refused and not done twice."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ctfm import Volume
from ctfm.train import linear_head, table_probe
from ctfm.train.linear_head import few_shot, fit_head, measure
from ctfm.train.survival import baseline_hazard, concordance, cox_loss, fit_cox
from ctfm.train.targets import Question, Targets, read_targets
from transformers import AutoModelForImageClassification, pipeline

from tests.phantoms import canonical_affine, phantom_hu
from tests.tiny import save_tiny

NUM_SCANS = 48


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("checkpoint"))


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Small scans whose body is dense or not by any amount; two scans a patient."""
    folder = tmp_path_factory.mktemp("scans")
    random = np.random.default_rng(0)
    rows = []
    for number in range(NUM_SCANS):
        added = float(random.uniform(30, 200)) * (1 if number % 2 else -1)
        hu = phantom_hu((8, 32, 32), seed=number).astype(float)
        hu[hu > -500] += added
        Volume(hu=hu.astype(np.int16), affine=canonical_affine()).to_nifti(folder / f"{number}.nii")
        split = "train" if number < 24 else "validation" if number < 36 else "test"
        rows.append({"path": str(folder / f"{number}.nii"), "patient": number // 2, "split": split, "added": added})
    return rows


def test_findings_are_learnt_calibrated_measured_and_served(
    scans: list[dict[str, Any]], checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    rows = [
        {name: row[name] for name in ("path", "patient", "split")}
        | {"dense": int(row["added"] > 0), "in some": "" if k % 3 else int(row["added"] > 0), "in none": 0}
        for k, row in enumerate(scans)
    ]
    out = tmp_path / "out"
    arguments = [str(write_rows(tmp_path / "table.csv", rows)), "--out", str(out), "--model", str(checkpoint)]
    assert table_probe.main(arguments) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["test"]["dense/auroc"] > 0.9
    assert metrics["test"]["scans"] == 12
    assert metrics["calibrated"] == ["dense"]

    features, _ = table_probe.load_features(out / "features", read_targets(tmp_path / "table.csv", Question()))
    model = AutoModelForImageClassification.from_pretrained(out / "model", trust_remote_code=True)
    classify: Any = pipeline("image-classification", model=str(out / "model"), trust_remote_code=True)
    for row in (1, 40):
        found = {one["label"]: one for one in classify(scans[row]["path"])}
        with torch.no_grad():
            logits = model.classifier(torch.from_numpy(features[row]).float())
        assert set(found) == {"dense", "in some", "in none"}
        assert found["dense"]["score"] == pytest.approx(float(logits[0].sigmoid()), abs=1e-3)
        assert {"probability", "interval", "verdict"} <= set(found["dense"])
        assert found["in none"]["score"] == 0.5

    with (out / "few_shot.csv").open(newline="") as file:
        counts = [int(row["patients"]) for row in csv.DictReader(file)]
    assert set(counts) == {1, 2, 4, 8}
    assert counts.count(1) == 5
    assert (out / "few_shot.png").is_file()

    written = (out / "model" / "model.safetensors").stat().st_mtime_ns
    assert table_probe.main(arguments) == 0
    assert "Nothing is to be done" in capsys.readouterr().out
    assert (out / "model" / "model.safetensors").stat().st_mtime_ns == written


def test_a_scan_that_cannot_be_read_is_left_out_and_counted(
    scans: list[dict[str, Any]], checkpoint: Path, tmp_path: Path
) -> None:
    rows = [{"path": row["path"], "value": row["added"]} for row in scans[:10]]
    (tmp_path / "bad.nii").write_bytes(b"broken")
    table = write_rows(
        tmp_path / "table.csv", [*rows, {"path": "bad.nii", "value": 3}, {"path": "nowhere.nii", "value": 1}]
    )
    arguments = [str(table), "--out", str(tmp_path / "out"), "--value", "value", "--model", str(checkpoint)]
    assert table_probe.main(arguments) == 1
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["scans_failed"] == 2
    classify: Any = pipeline("image-classification", model=str(tmp_path / "out" / "model"), trust_remote_code=True)
    (found,) = classify(scans[0]["path"])
    assert abs(found["score"]) > 1  # a number, not a share


# ---- heads on drawn features ----


def draw(kind: str, names: tuple[str, ...], values: np.ndarray) -> Targets:
    n = len(values)
    splits = ["train"] * (n // 2) + ["validation"] * (n // 4) + ["test"] * (n - n // 2 - n // 4)
    return Targets(
        kind=kind,
        names=names,
        scans=tuple((Path(str(k)), None) for k in range(n)),
        patients=tuple(map(str, range(n))),
        splits=tuple(splits),
        values=values,
    )


@pytest.fixture(scope="module")
def drawn() -> tuple[np.ndarray, np.ndarray, np.random.Generator]:
    random = np.random.default_rng(0)
    features = 3 + random.normal(0, [1, 20, 0.1, 1, 1, 1], (400, 6))
    return features, (features - 3) @ [1, 0.05, 10, 0, 0, 0], random


def test_one_of_several_is_learnt(drawn: tuple) -> None:
    features, signal, _ = drawn
    for edges in ([0.0], [-1.0, 1.0]):
        targets = draw("one_of", ("a", "b", "c")[: len(edges) + 1], np.digitize(signal, edges)[:, None].astype(float))
        head = linear_head.choose_head(features, targets)
        rows = targets.rows("test")
        assert measure(head(features[rows]), targets, rows)["balanced_accuracy"] > 0.8
        assert len(few_shot(features, targets, 2)) >= 8


def test_numbers_are_learnt_in_their_own_unit(drawn: tuple) -> None:
    features, signal, random = drawn
    values = np.stack([100 + 30 * signal, random.normal(size=400)], 1)
    values[::7, 0] = np.nan
    targets = draw("value", ("age", "noise"), values)
    rows = targets.rows("test")
    found = measure(linear_head.choose_head(features, targets)(features[rows]), targets, rows)
    assert found["age/r2"] > 0.95
    assert found["age/mean_absolute_error"] < 10
    assert found["noise/r2"] < 0.2


def test_time_to_an_event_is_learnt_though_some_were_last_seen_without_it(drawn: tuple) -> None:
    features, signal, random = drawn
    time, seen = random.exponential(np.exp(-signal)), random.exponential(2.0, 400)
    targets = draw("survival", ("death",), np.stack([np.minimum(time, seen), (time <= seen).astype(float)], 1))
    head = linear_head.choose_head(features, targets)
    rows = targets.rows("test")
    assert measure(head(features[rows]), targets, rows)["concordance"] > 0.75
    assert np.corrcoef(head(features)[:, 0], signal)[0, 1] > 0.95


def test_rare_findings_weigh_as_much_as_common_ones(drawn: tuple) -> None:
    features, signal, _ = drawn
    targets = draw("findings", ("rare",), (signal > np.quantile(signal, 0.95))[:, None].astype(float))
    rows = targets.rows("train")
    outputs = fit_head(features, targets, rows, 1.0)(features[rows])[:, 0]
    assert (outputs[targets.values[rows, 0] == 1] > 0).mean() > 0.9


# ---- survival by hand ----


def test_the_partial_likelihood_by_hand() -> None:
    risk = torch.tensor([0.5, -0.2, 0.1, 0.7])
    time, event = torch.tensor([3.0, 1.0, 2.0, 2.0]), torch.tensor([0.0, 1.0, 1.0, 1.0])
    everybody, later = risk.logsumexp(0), risk[[0, 2, 3]].logsumexp(0)
    expected = (everybody - risk[1] + later - risk[2] + later - risk[3]) / 3
    assert cox_loss(risk, time, event) == pytest.approx(float(expected), abs=1e-6)
    unknown = torch.cat((time, torch.tensor([float("nan")])))
    assert cox_loss(torch.cat((risk, risk[:1])), unknown, torch.cat((event, event[:1]))) == cox_loss(risk, time, event)
    assert cox_loss(risk, time, torch.zeros(4)) == 0
    assert cox_loss(risk[:0], time[:0], event[:0]) == 0


def test_concordance_and_baseline_hazard_by_hand() -> None:
    risk, time, event = np.array([2.0, 1.0, 0.0]), np.array([1.0, 2.0, 3.0]), np.array([1.0, 1.0, 0.0])
    assert concordance(risk, time, event) == 1
    assert concordance(-risk, time, event) == 0
    assert concordance(0 * risk, time, event) == 0.5
    assert np.isnan(concordance(risk, time, 0 * event))
    assert baseline_hazard(0 * risk, time, event) == [(1.0, pytest.approx(1 / 3)), (2.0, pytest.approx(1 / 3 + 1 / 2))]


def test_the_weights_of_a_proportional_hazard_are_found() -> None:
    random = np.random.default_rng(0)
    features = random.normal(size=(2000, 2))
    time = random.exponential(np.exp(-features @ [1.0, -0.5]))
    assert fit_cox(features, time, np.ones(2000), 100.0) == pytest.approx([1.0, -0.5], abs=0.1)


# ---- tables ----


@pytest.mark.parametrize(
    ("rows", "question", "said"),
    [
        ([{"path": "a", "patient": "x", "nodule": "maybe"}], Question(), 'row 2: column "nodule" holds no label'),
        ([{"path": "a"}], Question(), "no column of a finding"),
        ([{"path": ""}], Question(kind="value", columns=("path",)), "row 2: path is empty"),
        (
            [{"path": "a", "age": "old"}],
            Question(kind="value", columns=("age",)),
            'row 2: column "age" holds no number',
        ),
        (
            [{"path": "a", "age": "3"}],
            Question(kind="value", columns=("size",)),
            'no column "size"; its columns are path, age',
        ),
        (
            [{"path": "a", "t": "-1", "e": "1"}],
            Question(kind="survival", columns=("t", "e")),
            "time -1 must be 0 or more",
        ),
        ([{"path": "a", "t": "1", "e": "2"}], Question(kind="survival", columns=("t", "e")), "event 2"),
        ([{"path": "a", "split": "train", "x": "1"}] * 3, Question(), "all 3 scans for training are alike in x"),
        ([{"path": "a", "stage": "II"}] * 3, Question(kind="one_of", columns=("stage",)), "1 different words"),
        (
            [{"path": str(k), "patient": "p", "split": s, "x": str(k)} for k, s in enumerate(("train", "test"))],
            Question(),
            "Row 3: its patient is in splits train and test",
        ),
    ],
)
def test_what_is_no_target_is_refused_with_row_and_column(
    rows: list[dict[str, str]], question: Question, said: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=said):
        read_targets(write_rows(tmp_path / "table.csv", rows), question)


def test_patients_are_dealt_to_splits_whole(tmp_path: Path) -> None:
    rows = [{"path": f"{k}", "patient": f"{k // 4}", "x": k % 2} for k in range(400)]
    targets = read_targets(write_rows(tmp_path / "table.csv", rows), Question())
    for patient in set(targets.patients):
        assert len({s for s, p in zip(targets.splits, targets.patients, strict=True) if p == patient}) == 1
    shares = {split: targets.splits.count(split) / 400 for split in ("train", "validation", "test")}
    assert shares["train"] == pytest.approx(0.7, abs=0.12)
    assert min(shares.values()) > 0.05
    named = [row | {"split": "train" if int(row["patient"]) < 80 else "test"} for row in rows]
    splits = read_targets(write_rows(tmp_path / "named.csv", named), Question()).splits
    assert splits.count("test") == 80
    assert 0 < splits.count("validation") < 120
