import math
from pathlib import Path

import pytest
import torch
from ctfm import CTFMImageProcessor, CTFMModel, CTFMProcessor, read_volume
from ctfm.pipeline_ctfm import calibrate, finding_prompts
from transformers import AutoProcessor, pipeline

from tests.phantoms import phantom_volume
from tests.tiny import tiny_config, tiny_tokenizer

FINDINGS = ["Pleural effusion", "Lung nodule", "COPD"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    CTFMModel(tiny_config()).save_pretrained(folder)
    image_processor = CTFMImageProcessor(crop_size=(8, 16, 16), spacing="native")
    CTFMProcessor(image_processor, tiny_tokenizer()).save_pretrained(folder)
    image_processor.save_pretrained(folder)
    return folder


def test_prompts_read_like_a_report() -> None:
    assert finding_prompts("Pleural effusion") == ("Pleural effusion.", "No pleural effusion.")
    assert finding_prompts("COPD") == ("COPD.", "No COPD.")


def test_scores_are_the_softmax_of_present_over_absent_sorted(checkpoint: Path) -> None:
    grade = pipeline("zero-shot-image-classification", model=str(checkpoint), trust_remote_code=True)
    graded = grade(phantom_volume(), candidate_labels=FINDINGS)
    assert [row["score"] for row in graded] == sorted((row["score"] for row in graded), reverse=True)
    assert {row["label"] for row in graded} == set(FINDINGS)

    processor, model = AutoProcessor.from_pretrained(checkpoint), CTFMModel.from_pretrained(checkpoint)
    for row in graded:
        inputs = processor(phantom_volume(), text=list(finding_prompts(row["label"])))
        with torch.no_grad():
            expected = model(**inputs).logits_per_image[0].softmax(0)[0].item()
        assert row["score"] == pytest.approx(expected, abs=1e-5)


def test_scans_come_as_files_volumes_arrays_and_lists_of_them(checkpoint: Path, tmp_path: Path) -> None:
    grade = pipeline("zero-shot-image-classification", model=str(checkpoint), trust_remote_code=True)
    volume = phantom_volume()
    volume.to_nifti(tmp_path / "scan.nii.gz")
    scans = [str(tmp_path / "scan.nii.gz"), volume, (volume.hu, volume.affine)]
    together = grade(scans, candidate_labels=FINDINGS)
    for scan, graded in zip(scans, together, strict=True):
        alone = grade(scan, candidate_labels=FINDINGS)
        assert [row["label"] for row in alone] == [row["label"] for row in graded]
        assert [row["score"] for row in alone] == pytest.approx([row["score"] for row in graded], abs=1e-5)
        assert [row["score"] for row in alone] == pytest.approx([row["score"] for row in together[0]], abs=1e-4)


def test_nothing_to_grade_is_an_error(checkpoint: Path) -> None:
    grade = pipeline("zero-shot-image-classification", model=str(checkpoint), trust_remote_code=True)
    with pytest.raises(ValueError, match=r"candidate_labels \[\]"):
        grade(phantom_volume())
    with pytest.raises(ValueError, match=r"candidate_labels \['COPD', ''\]"):
        grade(phantom_volume(), candidate_labels=["COPD", ""])
    with pytest.raises(ValueError, match=r"candidate_labels \[5\]"):
        grade(phantom_volume(), candidate_labels=[5])


def test_one_finding_may_be_given_as_its_name(checkpoint: Path) -> None:
    grade = pipeline("zero-shot-image-classification", model=str(checkpoint), trust_remote_code=True)
    (alone,) = grade(phantom_volume(), candidate_labels="Pleural effusion")
    assert [alone] == grade(phantom_volume(), candidate_labels=["Pleural effusion"])


def test_processor_gives_scans_texts_or_both_and_the_same_from_file_array_and_batch(
    checkpoint: Path, tmp_path: Path
) -> None:
    processor = AutoProcessor.from_pretrained(checkpoint)
    volume = phantom_volume()
    volume.to_nifti(tmp_path / "scan.nii.gz")
    alone = processor(images=tmp_path / "scan.nii.gz", text="No pleural effusion.")
    assert set(alone) == {"pixel_values", "crop_grid", "crop_mask", "input_ids", "attention_mask"}
    assert set(processor(text=["a", "b"])) == {"input_ids", "attention_mask"}
    array = processor(images=(volume.hu, volume.affine))
    batch = processor(images=[volume, read_volume(tmp_path / "scan.nii.gz")])
    torch.testing.assert_close(array.pixel_values, alone.pixel_values, rtol=0, atol=1e-5)
    for one in batch.pixel_values:
        torch.testing.assert_close(one[None], alone.pixel_values, rtol=0, atol=1e-5)
    (map_of_crops,) = processor.to_patient_space(torch.arange(alone.pixel_values.shape[1])[None], alone)
    assert map_of_crops.shape == volume.hu.shape
    with pytest.raises(ValueError, match="Neither"):
        processor()


def test_standard_keywords_reach_the_tokenizer_and_unknown_ones_are_refused(checkpoint: Path) -> None:
    processor = AutoProcessor.from_pretrained(checkpoint)
    texts = ["No pleural effusion.", "no"]
    padded = processor(text=texts, padding="max_length", max_length=12, truncation=True, return_tensors="np")
    assert padded["input_ids"].shape == (2, 12)
    assert padded["attention_mask"].sum(1).tolist() == processor(text=texts).attention_mask.sum(1).tolist()
    assert processor(text=texts, max_length=3).input_ids.shape == (2, 3)
    assert processor(text=["no"] * 2, padding=False, truncation=False).input_ids.shape[0] == 2
    with pytest.raises(TypeError, match="max_lenght"):
        processor(text=texts, max_lenght=12)


@pytest.mark.parametrize(
    ("text", "value"), [([], r"\[\]"), (5, "5"), (["a", 5], r"\['a', 5\]"), ({"a": 1}, "{'a': 1}")]
)
def test_what_is_no_text_is_refused_with_the_value(checkpoint: Path, text: object, value: str) -> None:
    processor = AutoProcessor.from_pretrained(checkpoint)
    with pytest.raises(ValueError, match=rf"text {value} must be a text or a list of texts"):
        processor(text=text)


CALIBRATION = {
    "slope": 2.0,
    "intercept": -1.0,
    "slope_variance": 0.01,
    "intercept_variance": 0.04,
    "covariance": -0.005,
    "unsure_low": 0.3,
    "unsure_high": 0.6,
}


def test_a_calibrated_logit_is_a_probability_with_the_interval_of_its_variance() -> None:
    known = calibrate(2.0, CALIBRATION)  # log odds 3, variance 0.04 + 2 * (-0.01 + 2 * 0.01) = 0.06
    assert known["probability"] == pytest.approx(1 / (1 + math.exp(-3)))
    reach = 1.96 * math.sqrt(0.06)
    assert known["interval"] == pytest.approx([1 / (1 + math.exp(reach - 3)), 1 / (1 + math.exp(-reach - 3))])
    verdicts = [calibrate(logit, CALIBRATION)["verdict"] for logit in (0.0, 0.5, 2.0, -2000.0, 2000.0)]
    assert verdicts == ["absent", "not sure", "present", "absent", "present"]


def test_the_calibration_travels_with_the_weights(checkpoint: Path, tmp_path: Path) -> None:
    model = CTFMModel.from_pretrained(checkpoint)
    model.config.calibration = {"Lung nodule": CALIBRATION}
    model.save_pretrained(tmp_path)
    CTFMProcessor.from_pretrained(checkpoint).save_pretrained(tmp_path)
    CTFMImageProcessor.from_pretrained(checkpoint).save_pretrained(tmp_path)
    grade = pipeline("zero-shot-image-classification", model=str(tmp_path), trust_remote_code=True)
    by_label = {row["label"]: row for row in grade(phantom_volume(), candidate_labels=FINDINGS)}
    assert set(by_label["COPD"]) == {"label", "score"}
    row = by_label["Lung nodule"]
    logit = math.log(row["score"] / (1 - row["score"]))
    expected = calibrate(logit, CALIBRATION)
    assert row["probability"] == pytest.approx(expected["probability"], abs=1e-5)
    assert row["verdict"] == expected["verdict"]
    (other_case,) = grade(phantom_volume(), candidate_labels="lung NODULE")
    assert other_case["label"] == "lung NODULE"
    assert other_case["score"] == pytest.approx(row["score"], abs=1e-5)
    assert other_case["probability"] == pytest.approx(row["probability"], abs=1e-5)
