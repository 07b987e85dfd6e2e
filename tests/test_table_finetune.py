"""From a table to a fine-tuned model: every kind of target and of trunk, what is kept, exported and gone on with."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ctfm import CTFMForSemanticSegmentation, CTFMImageProcessor, CTFMModel, CTFMProcessor, Volume
from ctfm.train import table_finetune
from ctfm.train.finetune import Best
from ctfm.train.labels import add_adapters, label_loss, merge_adapters
from ctfm.train.table_finetune import main
from transformers import pipeline

from tests.phantoms import canonical_affine, phantom_hu
from tests.tiny import tiny_config, tiny_crops, tiny_tokenizer

NUM_SCANS = 40


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    CTFMModel(tiny_config()).save_pretrained(folder)
    CTFMProcessor(CTFMImageProcessor(crop_size=(8, 16, 16), spacing="native"), tiny_tokenizer()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Bodies that are dense or not, and their label maps."""
    folder = tmp_path_factory.mktemp("scans")
    (folder / "structures.json").write_text(json.dumps({"1": "body"}))
    random, rows = np.random.default_rng(0), []
    for number in range(NUM_SCANS):
        added = float(random.uniform(50, 300)) * (1 if number % 2 else -1)
        hu = phantom_hu((8, 32, 32), seed=number).astype(float)
        body = hu > -500
        hu[body] += added
        affine = canonical_affine()
        Volume(hu=hu.astype(np.int16), affine=affine).to_nifti(folder / f"{number}.nii")
        Volume(hu=body.astype(np.int16), affine=affine).to_nifti(folder / f"{number}-labels.nii")
        split = "train" if number < 20 else "validation" if number < 30 else "test"
        rows.append({"path": f"{number}.nii", "segmentation": f"{number}-labels.nii", "split": split, "added": added})
    return [row | {"folder": folder} for row in rows]


def table(scans: list[dict[str, Any]], name: str, **columns: Any) -> Path:
    path = scans[0]["folder"] / name
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["path", "segmentation", "split", *columns])
        writer.writeheader()
        for row in scans:
            own = {column: make(row["added"]) for column, make in columns.items()}
            writer.writerow({key: row[key] for key in ("path", "segmentation", "split")} | own)
    return path


def fine_tune(out: Path, checkpoint: Path, *arguments: str) -> dict[str, Any]:
    torch.set_num_threads(1)
    few = ["--steps", "40", "--probe-every", "10", "--patience", "2", "--batch", "5", "--model", str(checkpoint)]
    assert main([*arguments[:2], "--out", str(out), *few, *arguments[2:]]) == 0
    return json.loads((out / "metrics.json").read_text())


@pytest.mark.parametrize("trunk", ["frozen", "lora", "last", "full"])
def test_findings_are_learnt_calibrated_and_served(
    trunk: str, scans: list[dict[str, Any]], checkpoint: Path, tmp_path: Path
) -> None:
    dense = table(scans, f"{trunk}.csv", dense=lambda added: int(added > 0))
    # A head alone moves slowly on features that nothing standardises.
    slow = ("--steps", "200", "--probe-every", "50", "--learning-rate", "0.05")
    settings = slow if trunk == "frozen" else ("--learning-rate", "0.005")
    metrics = fine_tune(tmp_path, checkpoint, "findings", str(dense), "--trunk", trunk, *settings)
    assert metrics["test"]["dense/auroc"] > 0.8
    assert metrics["calibrated"] == ["dense"]
    classify: Any = pipeline("image-classification", model=str(tmp_path / "model"), trust_remote_code=True)
    (found,) = classify(str(scans[0]["folder"] / "0.nii"))
    assert {"probability", "interval", "verdict"} <= set(found)
    before = CTFMModel.from_pretrained(checkpoint).vision_model.local_model.layers[0].attention.qkv.weight
    after = classify.model.vision_model.local_model.layers[0].attention.qkv.weight
    assert torch.equal(before, after) is (trunk == "frozen")  # the smallest model has two layers, which "last" trains


@pytest.mark.parametrize(
    ("arguments", "metric"),
    [
        (["findings", "--one-of", "kind"], "balanced_accuracy"),
        (["findings", "--value", "added"], "added/mean_absolute_error"),
        (["survival", "--time", "days", "--event", "death"], "concordance"),
    ],
    ids=["one of", "value", "survival"],
)
def test_other_targets_are_learnt(
    arguments: list[str], metric: str, scans: list[dict[str, Any]], checkpoint: Path, tmp_path: Path
) -> None:
    path = table(
        scans,
        f"{metric.replace('/', ' ')}.csv",
        kind=lambda added: "dense" if added > 0 else "thin",
        added=lambda added: added,
        days=lambda added: 500 - added,
        death=lambda added: 1,
    )
    slow = ("--trunk", "frozen", "--steps", "300", "--probe-every", "100", "--learning-rate", "0.05")
    metrics = fine_tune(tmp_path, checkpoint, arguments[0], str(path), *arguments[1:], *slow)
    reached = metrics["test"][metric]
    assert reached < 150 if metric.endswith("error") else reached > 0.7  # half of all differ by 300 HU and more
    classify: Any = pipeline("image-classification", model=str(tmp_path / "model"), trust_remote_code=True)
    rows = classify(str(scans[0]["folder"] / "0.nii"))
    assert {row["label"] for row in rows} == {
        "balanced_accuracy": {"dense", "thin"},
        "concordance": {"death"},
    }.get(metric, {"added"})


def test_voxels_are_learnt_from_label_maps_where_they_lie(
    scans: list[dict[str, Any]], checkpoint: Path, tmp_path: Path
) -> None:
    metrics = fine_tune(
        tmp_path,
        checkpoint,
        "segmentation",
        str(table(scans, "voxels.csv")),
        "--trunk",
        "full",
        "--learning-rate",
        "0.005",
    )
    assert metrics["test"]["body/dice"] > 0.6
    model = CTFMForSemanticSegmentation.from_pretrained(tmp_path / "model")
    assert model.config.id2label == {0: "background", 1: "body"}


def test_the_same_command_again_does_nothing_and_another_table_is_refused(
    scans: list[dict[str, Any]],
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    path = table(scans, "again.csv", dense=lambda added: int(added > 0))
    first = fine_tune(tmp_path, checkpoint, "findings", str(path), "--trunk", "frozen")
    monkeypatch.setattr(table_finetune, "fine_tune", lambda *arguments: pytest.fail("trained again"))
    assert fine_tune(tmp_path, checkpoint, "findings", str(path), "--trunk", "frozen") == first
    capsys.readouterr()
    table(scans, "again.csv", dense=lambda added: int(added > 100))
    asked = ["findings", str(path), "--out", str(tmp_path), "--trunk", "frozen", "--model", str(checkpoint)]
    assert main(asked) == 2
    assert "holds a run on another table" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["survival"], "needs --time"),
        (["findings", "--value", "nowhere"], 'no column "nowhere"'),
        (["segmentation", "--one-of", "dense"], "takes no --one-of"),
    ],
)
def test_what_cannot_be_learnt_is_refused(
    arguments: list[str],
    said: str,
    scans: list[dict[str, Any]],
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    path = table(scans, "refused.csv", dense=lambda added: int(added > 0))
    given = [arguments[0], str(path), *arguments[1:], "--out", str(tmp_path), "--model", str(checkpoint)]
    assert main(given) == 2
    assert said in capsys.readouterr().err


def test_scans_that_cannot_be_read_are_left_out_and_named_by_their_row(
    scans: list[dict[str, Any]], checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    rows = [scans[number] for number in (0, 1, 2, 3, 20, 21, 30, 31)]
    folder = scans[0]["folder"]
    (folder / "broken.nii").write_bytes(b"abc")
    kinds = {"dense": lambda added: int(added > 0)}
    few = ["--out", str(tmp_path), "--trunk", "frozen", "--steps", "1", "--model", str(checkpoint)]
    path = table([row | {"path": "broken.nii"} if row in rows[:4] else row for row in rows], "unread.csv", **kinds)
    assert main(["findings", str(path), *few]) == 2
    assert 'No scan of split "train" could be read. row 2: ' in capsys.readouterr().err
    table(
        [rows[0], rows[1] | {"path": "broken.nii"}, *rows[2:7], rows[7] | {"path": "gone.nii"}], "unread.csv", **kinds
    )
    assert main(["findings", str(path), *few]) == 1  # a table that was mended goes on in the same folder
    said = capsys.readouterr().err
    assert "ctfm: left out, row 3: too short for a NIfTI header" in said
    assert "ctfm: left out, row 9: no such file or folder" in said
    assert json.loads((tmp_path / "metrics.json").read_text())["scans_failed"] == 2
    assert (tmp_path / "model" / "config.json").is_file()
    table([rows[0] | {"path": ""}, *rows[1:]], "unread.csv")
    assert main(["segmentation", str(path), "--out", str(tmp_path / "voxels"), *few[2:]]) == 2
    assert "unread.csv, row 2: path is empty" in capsys.readouterr().err


# ---- parts ----


def test_the_best_is_kept_and_training_ends_when_nothing_got_better(tmp_path: Path) -> None:
    for step in range(5):
        (tmp_path / str(step)).mkdir()
        (tmp_path / str(step) / "objective.safetensors").write_text(str(step))
    best = Best(tmp_path, patience=2)
    assert [best.add(tmp_path / str(step), loss) for step, loss in enumerate([3.0, 1.0, 2.0])] == [False, False, False]
    again = Best(tmp_path, patience=2)  # after a kill
    assert not again.add(tmp_path / "3", float("nan"))
    assert again.add(tmp_path / "4", 1.5)
    assert again.path is not None
    assert (again.path / "objective.safetensors").read_text() == "1"


def test_merged_adapters_give_what_adapters_gave() -> None:
    torch.manual_seed(0)
    vision = CTFMModel(tiny_config()).vision_model.eval()
    add_adapters(vision, 4)
    for name, parameter in vision.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.5)
    inputs = {"pixel_values": tiny_crops(), "crop_grid": torch.tensor([[2, 2, 2]] * 2)}
    with torch.no_grad():
        expected = vision(**inputs).pooler_output
        merge_adapters(vision)
        torch.testing.assert_close(vision(**inputs).pooler_output, expected, atol=1e-4, rtol=1e-4)
    assert not any("lora" in name for name in vision.state_dict())


def test_losses_count_what_is_stated_alone_and_rare_findings_more() -> None:
    nan = float("nan")
    logits, labels = torch.tensor([[2.0, -1.0], [0.5, 0.3]]), torch.tensor([[1.0, nan], [0.0, 1.0]])
    plain = torch.nn.functional.binary_cross_entropy_with_logits
    three = plain(torch.tensor([2.0, 0.5, 0.3]), torch.tensor([1.0, 0.0, 1.0]))
    assert label_loss(logits, labels) == pytest.approx(float(three))
    weighed = label_loss(logits, labels, positive_weights=[4.0, 1.0])
    assert weighed - three == pytest.approx(3 * float(plain(torch.tensor([2.0]), torch.tensor([1.0]))) / 3, abs=1e-5)
    classes = torch.tensor([[0.0, 1.0], [nan, nan]])
    expected = torch.nn.functional.cross_entropy(logits[:1], torch.tensor([1]))
    assert label_loss(logits, classes, "one_of") == pytest.approx(float(expected))
    assert label_loss(logits, labels, "value") == pytest.approx((1 + 0.25 + 0.49) / 3)
    assert label_loss(logits, torch.full((2, 2), nan)) == 0
