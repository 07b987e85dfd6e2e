"""A folder of studies as a ranked list: which group, which order, what the page shows and what it must not."""

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ctfm import CTFMForImageClassification, CTFMImageProcessor, CTFMModel, CTFMProcessor, Volume, worklist
from ctfm.body import BODY_SHARE, find_inside, join_crops, split_crops
from ctfm.gate import Gate, scan_features
from ctfm.grading import Grader
from ctfm.image_quality import measure_quality
from ctfm.phantom.dicom_series import write_dicom_series
from ctfm.volume_studies_ctfm import find_studies
from ctfm.worklist import Worklist, rank, watch
from PIL import Image
from transformers import pipeline

from tests.phantoms import canonical_affine, phantom_hu, phantom_volume
from tests.tiny import tiny_config, tiny_tokenizer

FLAT = {"intercept_variance": 0.0, "slope_variance": 0.0, "covariance": 0.0}


def write_checkpoint(folder: Path, **calibration: dict[str, float]) -> Path:
    torch.manual_seed(0)
    model = CTFMModel(tiny_config())
    model.config.calibration = {name.replace("_", " "): FLAT | numbers for name, numbers in calibration.items()}
    model.save_pretrained(folder)
    CTFMProcessor(CTFMImageProcessor(crop_size=(8, 16, 16), spacing="native"), tiny_tokenizer()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    steep = {"slope": 20.0, "unsure_low": 0.2, "unsure_high": 0.8}
    return write_checkpoint(
        tmp_path_factory.mktemp("checkpoint"),
        Lung_nodule=steep | {"intercept": 0.0},
        Pleural_effusion={"slope": 0.0, "intercept": -3.0, "unsure_low": 0.2, "unsure_high": 0.8},
    )


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three files, one study of two DICOM series whose folder is named after the patient, and a damaged file."""
    folder = tmp_path_factory.mktemp("studies")
    for number in range(3):
        phantom_volume(seed=number).to_nifti(folder / f"{number}.nii")
    for number, slices in enumerate((24, 12)):

        def edit(data_set: Any, index: int) -> None:
            data_set.PatientName, data_set.PatientID = "Zebrafinch^Quilla", "907351"
            data_set.StudyInstanceUID = "1.8.8"

        place = folder / "Zebrafinch" / str(number)
        write_dicom_series(phantom_hu()[:slices], canonical_affine(), place, series_uid=f"1.2.{number}", edit=edit)
    (folder / "damaged.nii.gz").write_bytes(b"broken")
    return folder


def make(out: Path, checkpoint: Path, findings: tuple[str, ...] = ()) -> Worklist:
    return Worklist(out, str(checkpoint), None, findings, "cpu")


def test_every_study_stands_once_and_the_command_says_what_failed(
    studies: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert worklist.main([str(studies), "--out", str(tmp_path), "--model", str(checkpoint), "--device", "cpu"]) == 1
    printed = capsys.readouterr()
    assert "an hour" in printed.out
    assert "damaged.nii.gz" in printed.err
    listed = json.loads((tmp_path / "worklist.json").read_text())["studies"]
    assert [row["rank"] for row in listed] == [1, 2, 3, 4, 5]
    assert sum(row["other_series"] for row in listed) == 1
    assert listed[-1]["group"] == "failed"
    with (tmp_path / "worklist.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["key"] for row in rows] == [row["key"] for row in listed]
    assert {row["group"] for row in rows[:-1]} <= {"present", "not sure", "absent"}
    assert all(float(row["noise_hu"]) > 0 for row in rows[:-1])


def test_the_page_has_a_picture_of_each_study_and_names_nobody(studies: Path, checkpoint: Path, tmp_path: Path) -> None:
    worklist.main([str(studies), "--out", str(tmp_path), "--model", str(checkpoint), "--device", "cpu"])
    page = (tmp_path / "index.html").read_text()
    pictures = re.findall(r'<img src="([^"]+)"', page)
    assert len(pictures) == 4
    assert all((tmp_path / picture).is_file() for picture in pictures)
    assert "not for diagnosis" in page
    shown = page.encode() + b"".join((tmp_path / picture).read_bytes() for picture in pictures)
    for secret in ("Zebrafinch", "Quilla", "907351", "1.8.8", "1.2.0", "damaged", str(studies)):
        assert secret.encode() not in shown, secret


def test_the_list_is_the_same_for_any_order_and_number_of_readers(
    studies: Path, checkpoint: Path, tmp_path: Path
) -> None:
    found = find_studies(studies)
    first = rank(make(tmp_path / "a", checkpoint).work(found, 3))
    assert rank(make(tmp_path / "b", checkpoint).work(found[::-1], 0)) == first


def test_a_killed_run_goes_on_and_a_second_does_nothing(
    studies: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = find_studies(studies)
    expected = make(tmp_path / "whole", checkpoint).work(found, 0)
    half = make(tmp_path / "half", checkpoint)
    half.work(found[:2], 0)
    (half.out / "studies" / "x.partial").write_text("{")  # what a kill leaves
    assert half.work(found, 0) == expected
    monkeypatch.setattr(worklist, "read_volume", lambda *source: pytest.fail("read again"))
    assert make(tmp_path / "half", checkpoint).work(found, 0) == expected


def test_findings_are_those_of_the_pipeline(studies: Path, checkpoint: Path, tmp_path: Path) -> None:
    (row,) = make(tmp_path, checkpoint).work([[(studies / "1.nii", None)]], 0)
    grade: Any = pipeline("zero-shot-image-classification", model=str(checkpoint), trust_remote_code=True)
    expected = {
        one["label"]: one for one in grade(str(studies / "1.nii"), candidate_labels=["Lung nodule", "Pleural effusion"])
    }
    for finding in row["findings"]:
        assert finding["verdict"] == expected[finding["label"]]["verdict"]
        assert finding["probability"] == pytest.approx(expected[finding["label"]]["probability"], abs=1e-3)


@pytest.mark.parametrize(("intercept", "group"), [(3.0, "present"), (0.0, "not sure"), (-3.0, "absent")])
def test_groups_are_those_of_the_verdicts(intercept: float, group: str, studies: Path, tmp_path: Path) -> None:
    numbers = {"slope": 0.0, "intercept": intercept, "unsure_low": 0.2, "unsure_high": 0.8}
    model = write_checkpoint(tmp_path / "model", Emphysema=numbers)
    (row,) = make(tmp_path / "out", model).work([[(studies / "1.nii", None)]], 0)
    assert row["group"] == group


def test_a_classifier_grades_what_it_was_trained_for_and_no_other_finding(
    studies: Path, checkpoint: Path, tmp_path: Path
) -> None:
    model = tmp_path / "classifier"
    shutil.copytree(checkpoint, model)
    torch.manual_seed(0)
    head = CTFMForImageClassification.from_pretrained(checkpoint)
    head.config.id2label, head.config.calibration = {0: "ball", 1: "rod", 2: "wedge"}, None
    head.save_pretrained(model)
    (row,) = make(tmp_path / "out", model, ("rod",)).work([[(studies / "1.nii", None)]], 0)
    classify: Any = pipeline("image-classification", model=str(model), trust_remote_code=True)
    expected = {one["label"]: one["score"] for one in classify(str(studies / "1.nii"))}
    assert [(f["label"], pytest.approx(f["score"], abs=1e-4)) for f in row["findings"]] == [("rod", expected["rod"])]
    with pytest.raises(OSError, match="was not trained for stone; it grades ball, rod, wedge"):
        make(tmp_path / "out", model, ("stone",))


# ---- unlike the training ----


def with_gate(checkpoint: Path, folder: Path, threshold: float) -> Path:
    shutil.copytree(checkpoint, folder)
    random = torch.Generator().manual_seed(0)
    Gate(
        features=torch.randn(12, 48, generator=random),
        embeddings=torch.randn(12, 24, generator=random),
        threshold=threshold,
        map_levels={},
        map_top=2.0,
        sentences=(),
        data="nothing",
        measured={},
    ).save(folder / "gate.safetensors")
    return folder


def test_a_study_unlike_the_training_gets_no_answer(studies: Path, checkpoint: Path, tmp_path: Path) -> None:
    for threshold, group in ((1e-3, "unlike"), (1e3, None)):
        model = with_gate(checkpoint, tmp_path / f"model {threshold}", threshold)
        (row,) = make(tmp_path / f"out {threshold}", model).work([[(studies / "1.nii", None)]], 0)
        assert (row["group"] == "unlike") is (group == "unlike")
        assert bool(row["findings"]) is (group is None)
        assert (row["distance"] > 1) is (group == "unlike")


def test_the_distance_is_that_of_the_space(checkpoint: Path, studies: Path, tmp_path: Path) -> None:
    model = with_gate(checkpoint, tmp_path / "model", 1.0)
    grader = Grader(str(model))
    inputs = grader.processor(studies / "1.nii")
    with torch.no_grad():
        vision = grader.model.vision_model(**inputs, output_dense_features=True)
    (geometry,) = inputs.geometry
    inside = find_inside(inputs.pixel_values[0, :, 0], geometry)
    whole = [n * crops for n, crops in zip(vision.dense_features.shape[2:5], geometry.crop_grid, strict=True)]
    share = torch.nn.functional.adaptive_avg_pool3d(inside[None].float(), whole)[0]
    body = (share > BODY_SHARE * share.max()) & join_crops(vision.dense_features[0].any(-1), geometry.crop_grid)
    assert grader.gate is not None
    expected = grader.gate.distance(scan_features(vision, split_crops(body, geometry.crop_grid)))
    assert grader.distance_of(vision, grader.find_body(vision, inputs)) == pytest.approx(expected, rel=1e-5)


# ---- where a finding is ----


def test_a_finding_has_the_place_where_its_map_is_strongest_and_an_absent_one_has_none(
    studies: Path, checkpoint: Path
) -> None:
    grader = Grader(str(checkpoint))
    inputs = grader.processor(studies / "1.nii")
    graded = grader.grade(inputs)
    assert graded.heat is not None
    places = {finding["label"]: finding.get("place_mm") for finding in graded.findings}
    assert all((place is None) == (f["verdict"] == "absent") for f in graded.findings for place in [places[f["label"]]])
    first = next(finding for finding in graded.findings if "place_mm" in finding)
    (laid,) = grader.processor.to_patient_space(graded.heat[None], inputs)
    voxel = np.rint(np.linalg.solve(phantom_volume().affine, [*first["place_mm"], 1.0])[:3]).astype(int)
    assert laid[tuple(voxel)] > 0.9 * laid.max()
    assert (float(graded.heat.min()), float(graded.heat.max())) == (0.0, 1.0)


def test_a_thumbnail_is_red_at_the_place_of_the_finding_and_grey_without_one(
    studies: Path, checkpoint: Path, tmp_path: Path
) -> None:
    steep = {"slope": 0.0, "unsure_low": 0.2, "unsure_high": 0.8}
    absent = write_checkpoint(tmp_path / "absent", Lung_nodule=steep | {"intercept": -3.0})
    present = write_checkpoint(tmp_path / "present", Lung_nodule=steep | {"intercept": 3.0})
    for model in (absent, present):
        worklist.main([str(studies), "--out", str(tmp_path / "out"), "--model", str(model), "--device", "cpu"])
        pictures = [np.asarray(Image.open(path), int) for path in (tmp_path / "out" / "thumbnails").iterdir()]
        shutil.rmtree(tmp_path / "out")
        redness = [(picture[..., 0] - picture[..., 1]).max() for picture in pictures]
        assert len(redness) == 4
        assert [bool(red > 100) for red in redness] == [model == present] * 4


# ---- a folder that is watched ----


def rounds(*actions: Callable[[], object]) -> Callable[[], bool]:
    """A wait that does something each time, and ends."""
    left = list(actions)

    def wait() -> bool:
        if not left:
            return False
        left.pop(0)()
        return True

    return wait


def test_a_watched_folder_is_worked_as_studies_arrive_and_settle(
    studies: Path, checkpoint: Path, tmp_path: Path
) -> None:
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    shutil.copy(studies / "0.nii", inbox)
    said: list[str] = []
    whole = (studies / "1.nii").read_bytes()
    wait = rounds(
        lambda: (inbox / "1.nii").write_bytes(whole[:5000]),  # arriving while the folder is looked at
        lambda: (inbox / "1.nii").write_bytes(whole),
        lambda: None,
    )
    assert watch(lambda: inbox, make(tmp_path / "out", checkpoint), 0, wait, said.append) == 0
    assert [line.partition(" ")[0] for line in said] == ["1", "1", "2"]
    assert all("0 failed" in line for line in said)


def test_a_watched_server_that_is_down_is_asked_again(studies: Path, checkpoint: Path, tmp_path: Path) -> None:
    answers: list[object] = [OSError("no server answers there"), studies, OSError("no server answers there"), studies]
    said: list[str] = []

    def find() -> Path:
        answer = answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return tmp_path / "inbox"

    (tmp_path / "inbox").mkdir()
    shutil.copy(studies / "0.nii", tmp_path / "inbox")
    wait = rounds(*[lambda: None] * 3)
    assert watch(find, make(tmp_path / "out", checkpoint), 0, wait, said.append) == 0
    assert said[:2] == ["ctfm: no server answers there"] * 2
    assert said[2].startswith("1 studies: ")


# ---- image quality ----


def test_noise_metal_and_truncation_are_measured() -> None:
    random = np.random.default_rng(0)
    hu = np.full((8, 64, 64), -1000.0)
    hu[:, 10:54, 10:54] = 40 + random.normal(0, 25, (8, 44, 44))
    hu[2, 30:32, 30:32] = 3000
    hu[:2, 10:54, :54] = 40 + random.normal(0, 25, (2, 44, 54))  # reaches the border in two of eight slices
    quality = measure_quality(Volume(hu=hu.astype(np.int16), affine=canonical_affine((5.0, 1.0, 1.0))))
    assert quality.noise_hu == pytest.approx(25, rel=0.1)
    assert quality.metal_ml == 0.02
    assert quality.cut_slices == 0.25
    assert quality.length_mm == 40
    air = Volume(hu=np.full((8, 16, 16), -1000, np.int16), affine=canonical_affine())
    assert measure_quality(air).noise_hu is None
