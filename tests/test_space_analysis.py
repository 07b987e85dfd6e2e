"""What the Space computes equals what the package computes; maps and places lie where they belong."""

import json
import string
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ctfm.gate import load_gate
from ctfm.phantom.make import FINDING_NAMES
from safetensors.torch import load_file
from transformers import pipeline

from analysis import (
    Analyser,
    Finding,
    Place,
    blocks_of,
    compare,
    join_crops,
    lay_cells,
    place_on,
    shrink,
    strongest_place,
)
from exports import findings_json, write_findings, write_map, write_overlay, write_view
from loading import Source, Weights, load_weights
from tests.phantoms import phantom_volume
from tests.space_process import CALIBRATION, SENTENCES, UNSURE, save_stand_in
from texts import FINDINGS_NL, TEXTS
from uploads import Scan, UploadError
from views import answer_to, describe_place, findings_panel, findings_table, notice, readout, show_interval, show_share

nibabel = pytest.importorskip("nibabel")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_stand_in(tmp_path_factory.mktemp("stand-in"))


@pytest.fixture(scope="module")
def weights(checkpoint: Path) -> Weights:
    return load_weights(Source(model=str(checkpoint)))


@pytest.fixture(scope="module")
def scan(weights: Weights) -> Scan:
    scan = Scan(key="phantom", volume=phantom_volume(), read_seconds=0.0)
    Analyser(weights).analyse(scan)
    return scan


def test_findings_equal_the_pipelines_and_are_sorted(scan: Scan, checkpoint: Path) -> None:
    grade = pipeline("zero-shot-image-classification", model=str(checkpoint), trust_remote_code=True)
    answers = {answer["label"]: answer for answer in grade(scan.volume, candidate_labels=list(CALIBRATION))}
    for finding in scan.analysis.findings:
        answer = answers[finding.label]
        assert finding.score == pytest.approx(answer["score"], abs=1e-5)
        assert finding.probability == pytest.approx(answer["probability"], abs=1e-5)
        assert finding.interval == pytest.approx(answer["interval"], abs=1e-5)
        assert finding.verdict == answer["verdict"]
    orders = [finding.order for finding in scan.analysis.findings]
    assert orders == sorted(orders, reverse=True)
    assert {f.verdict for f in scan.analysis.findings} == {"present", "absent", "not sure"}


def test_a_second_look_computes_nothing(scan: Scan, weights: Weights) -> None:
    analyser = Analyser(weights)
    analyser._forward = None  # would fail if it were called
    assert analyser.analyse(scan) is scan.analysis


def test_a_map_on_the_token_grid_lies_where_the_processor_lays_it(scan: Scan, weights: Weights) -> None:
    """The Space's cells of the whole scan against the package's crops, both brought to the scan's voxels."""
    analysis = scan.analysis
    dense = analysis.vision.dense_features.norm(dim=-1)
    (geometry,) = analysis.inputs.geometry
    (direct,) = weights.processor.to_patient_space(dense, SimpleNamespace(geometry=(geometry,)))
    laid = lay_cells(join_crops(dense[0], geometry.crop_grid), geometry, weights)
    np.testing.assert_allclose(laid, direct, atol=1e-6)


def test_the_strongest_place_is_that_of_the_map_on_the_scan(scan: Scan, weights: Weights) -> None:
    analysis = scan.analysis
    inside = analysis.body.nonzero()
    for index in (inside[0], inside[len(inside) // 3], inside[-1]):
        cells = torch.zeros(analysis.body.shape)
        cells[tuple(index)] = 1.0
        laid = lay_cells(cells, analysis.geometry, weights)
        peaks = np.argwhere(laid >= laid.max() - 1e-6).mean(0)
        mm = (scan.volume.affine @ [*peaks, 1.0])[:3]
        place = strongest_place(analysis, cells)
        assert np.abs(mm - place.mm).max() < 8.5  # half a patch of 16 mm, beyond whose centre nothing is larger
        assert place.slice_number == pytest.approx(peaks[0] + 1, abs=3.5)


def test_sides_are_the_patients(scan: Scan) -> None:
    analysis = scan.analysis
    where = analysis.body.nonzero()
    for column, side, sign in ((where[:, 2].min(), "right", 1), (where[:, 2].max(), "left", -1)):
        cells = torch.zeros(analysis.body.shape)
        cells[tuple(where[(where[:, 2] == column).nonzero()[0, 0]])] = 1.0
        place = strongest_place(analysis, cells)
        assert place.side == side
        middle = scan.volume.affine @ [*(np.array(scan.volume.hu.shape) / 2), 1.0]
        assert np.sign(place.mm[0] - middle[0]) == sign


def test_a_smaller_copy_holds_the_means_of_blocks_in_the_same_place(weights: Weights, scan: Scan) -> None:
    volume = scan.volume
    small = shrink(volume, 8000)
    blocks = blocks_of(volume, 8000)
    assert small.hu.shape == blocks.shape
    deep, high, wide = blocks.factors
    block = volume.hu[deep : 2 * deep, high : 2 * high, wide : 2 * wide]
    assert small.hu[1, 1, 1] == pytest.approx(block.mean(), abs=0.51)
    corner = volume.affine @ [deep * 1.5 - 0.5, high * 1.5 - 0.5, wide * 1.5 - 0.5, 1]
    np.testing.assert_allclose(small.affine @ [1, 1, 1, 1], corner)
    cells = scan.analysis.maps["Pleural effusion"]
    geometry = scan.analysis.geometry
    full = lay_cells(cells, geometry, weights)
    coarse = lay_cells(cells, place_on(geometry, small.hu.shape, small.affine), weights)
    means = full[: deep * small.hu.shape[0], : high * small.hu.shape[1], : wide * small.hu.shape[2]]
    means = means.reshape(small.hu.shape[0], deep, small.hu.shape[1], high, small.hu.shape[2], wide).mean((1, 3, 5))
    assert np.abs(means - coarse).max() < 0.1 * np.ptp(full)


def test_the_downloaded_map_lies_on_the_scans_own_voxels(scan: Scan, weights: Weights, tmp_path: Path) -> None:
    cells = scan.analysis.maps["Lung nodule"]
    image = nibabel.load(write_map(scan, cells, weights, tmp_path))
    laid = np.asarray(image.dataobj).transpose(2, 1, 0)
    np.testing.assert_allclose(
        laid, lay_cells(cells, scan.analysis.geometry, weights), atol=float(cells.abs().max()) / 1999
    )
    np.testing.assert_allclose(image.affine, scan.volume.affine[:, [2, 1, 0, 3]], atol=1e-3)
    assert image.header["descrip"].item() == b""


def test_what_the_viewer_gets_lies_in_the_same_millimetres(scan: Scan, weights: Weights, tmp_path: Path) -> None:
    view = nibabel.load(write_view(scan, tmp_path)["scan"])
    np.testing.assert_allclose(view.affine, scan.volume.affine[:, [2, 1, 0, 3]], atol=1e-3)
    overlay = write_overlay(scan, scan.analysis.maps["Lung nodule"], 1e-3, 4.0, weights, tmp_path)
    values = nibabel.load(overlay["map"]).get_fdata()
    assert (overlay["low"], overlay["high"]) == (1.0, 4.0)
    assert values.max() <= overlay["strongest"] + 1e-6
    air = scan.volume.hu.transpose(2, 1, 0) < -900
    assert (values[:2, :, :][air[:2, :, :]] == 0).all()


def test_downloads_hold_the_findings_and_the_embedding(scan: Scan, weights: Weights, tmp_path: Path) -> None:
    facts, table, embedding = (Path(path) for path in write_findings(scan, weights, tmp_path))
    assert "Research only" in facts.read_text()
    rows = table.read_text().splitlines()
    assert len(rows) == 1 + len(CALIBRATION)
    stored = load_file(embedding)["image_embeds"]
    assert float(stored.norm()) == pytest.approx(1.0, abs=1e-5)
    assert findings_json(scan, weights)["weights_sha256"] == weights.digest != ""


def test_a_sentence_is_compared_with_sentences_and_with_reference_scans(scan: Scan, weights: Weights) -> None:
    analyser = Analyser(weights)
    answer = analyser.ask(scan.analysis, " Pleural  effusion. ")
    text = analyser.embed_texts(["Pleural effusion."])[0]
    assert answer.similarity == pytest.approx(float(text @ scan.analysis.embedding), abs=1e-6)
    assert answer.cells is not None
    assert answer.cells.shape == scan.analysis.body.shape
    assert 1 <= answer.rank <= answer.num_sentences == len(SENTENCES)  # itself, and all others
    reference = weights.gate.embeddings @ text
    assert answer.better_than == pytest.approx(float((reference < answer.similarity).float().mean()))


def test_a_sentence_of_words_that_no_report_has_is_not_understood(scan: Scan, weights: Weights) -> None:
    answer = Analyser(weights).ask(scan.analysis, "A banana in the right lung")
    assert answer.unknown == ("banana",)
    assert answer.cells is None
    assert "not understood" in answer_to("en", "A banana", answer)


def test_a_question_is_refused_when_empty_or_long(scan: Scan, weights: Weights) -> None:
    for question, key in (("  ", "error_no_text"), ("a" * 501, "error_long_text")):
        with pytest.raises(UploadError, match=key):
            Analyser(weights).ask(scan.analysis, question)


# ---- the gate ----


def unlike(weights: Weights) -> Weights:
    return replace(weights, gate=replace(weights.gate, threshold=0.0))


@pytest.mark.parametrize(
    ("change", "reason"), [(unlike, "unlike_training"), (lambda w: replace(w, gate=None), "gate_unknown")]
)
def test_a_scan_unlike_the_training_scans_gets_no_answer_and_the_reason(
    weights: Weights, tmp_path: Path, change: Callable[[Weights], Weights], reason: str
) -> None:
    gated = change(weights)
    scan = Scan(key="unlike", volume=phantom_volume(), read_seconds=0.0)
    analyser = Analyser(gated)
    analysis = analyser.analyse(scan)
    assert analysis.findings == ()
    assert analysis.maps == {}
    assert analysis.embedding.shape == (24,)
    panel = findings_panel("en", analysis, gated)
    assert TEXTS[reason][0] in panel
    assert "%" not in panel
    assert all(label in panel for label in CALIBRATION)
    facts, table, _ = (Path(path).read_text(errors="replace") for path in write_findings(scan, gated, tmp_path))
    assert json.loads(facts)["gate"]["answers"] is False
    assert TEXTS[reason][0] in table
    with pytest.raises(UploadError, match="error_no_answers"):
        analyser.ask(analysis, "Pleural effusion.")


def test_a_scan_like_the_reference_scans_is_answered(scan: Scan, weights: Weights) -> None:
    judged = scan.analysis.judged
    assert judged.answers
    assert judged.distance < judged.threshold


def test_the_gate_is_read_as_it_was_measured(weights: Weights, tmp_path: Path) -> None:
    weights.gate.save(tmp_path / "gate.safetensors")
    again = load_gate(tmp_path / "gate.safetensors")
    assert again.sentences == weights.gate.sentences
    assert torch.equal(again.features, weights.gate.features)
    assert load_gate(None) is None


# ---- numbers and answers agree ----


def test_a_finding_that_could_never_be_present_is_not_asked(weights: Weights) -> None:
    never = {"Ascites": UNSURE | {"unsure_low": 0.1, "unsure_high": 1.0}}
    config = SimpleNamespace(calibration=CALIBRATION | never)
    analyser = Analyser(replace(weights, model=SimpleNamespace(config=config)))
    assert "Ascites" not in analyser.labels
    assert analyser.not_asked == ("Ascites",)


def test_a_finding_near_chance_is_behind_a_switch(scan: Scan, weights: Weights) -> None:
    metrics = {"zero_shot/Lung nodule/auroc": {"value": 0.6, "low": 0.55, "high": 0.65}}
    told = replace(weights, metrics=metrics, run={"data": "synthetic phantoms"})
    again = Scan(key="told", volume=phantom_volume(), read_seconds=0.0)
    panel = findings_panel("en", Analyser(told).analyse(again), told)
    before, _, hidden = panel.partition("<details>")
    assert "Lung nodule" not in before
    assert "Lung nodule" in hidden
    assert "AUROC on phantoms 0.60" in hidden


def test_an_absent_finding_has_no_place(scan: Scan) -> None:
    assert {f.verdict: f.place is None for f in scan.analysis.findings} == {
        "present": False, "not sure": False, "absent": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("value", "thresholds", "shown"),
    [(0.1853, (0.1856, 0.9), "18.5 %"), (0.24, (0.09, 0.9), "24 %"), (0.004, (0.09,), "&lt; 1 %")],
)
def test_a_number_is_as_fine_as_tells_it_from_its_threshold(
    value: float, thresholds: tuple[float, ...], shown: str
) -> None:
    assert show_share(value, *thresholds) == shown


# ---- the pass ----


def test_a_pass_that_takes_too_long_is_given_up(weights: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("analysis.MAX_SECONDS", -1.0)
    with pytest.raises(UploadError, match="error_too_slow"):
        Analyser(weights).analyse(Scan(key="slow", volume=phantom_volume(), read_seconds=0.0))


def test_a_pass_tells_how_far_it_is_and_in_which_stage(weights: Weights) -> None:
    told: list[tuple[float, str]] = []
    scan = Scan(key="told", volume=phantom_volume(), read_seconds=0.0)
    Analyser(weights).analyse(scan, lambda share, stage: told.append((share, stage)))
    shares, stages = zip(*told, strict=True)
    assert list(shares) == sorted(shares)
    assert shares[-1] < 1
    assert list(dict.fromkeys(stages)) == ["stage_resample", "stage_encode", "stage_findings"]
    assert stages.count("stage_encode") > 1  # the pass itself tells, too


def test_where_a_gpu_is_lent_the_pass_asks_for_it(
    scan: Scan, weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a ZeroGPU Space `spaces.GPU` wraps what runs on the GPU."""
    lent: list[int] = []

    def lend(duration: int) -> Callable:
        def wrap(function: Callable) -> Callable:
            return lambda *arguments: (lent.append(duration), function(*arguments))[1]

        return wrap

    monkeypatch.setitem(sys.modules, "spaces", SimpleNamespace(GPU=lend))
    again = Scan(key="lent", volume=phantom_volume(), read_seconds=0.0)
    answers = Analyser(weights).analyse(again).findings
    assert lent == [60]
    assert [f.label for f in answers] == [f.label for f in scan.analysis.findings]
    for there, here in zip(answers, scan.analysis.findings, strict=True):
        assert there.score == pytest.approx(here.score, abs=1e-6)


PLACE = Place(mm=(0, 0, 0), slice_number=1, side="left", front="front", level="upper")


def graded(low: float, high: float, verdict: str) -> Finding:
    return Finding(
        label="x", score=0.5, probability=(low + high) / 2, interval=(low, high), verdict=verdict, place=PLACE
    )


@pytest.mark.parametrize(
    ("prior", "current", "kind"),
    [
        (graded(0.1, 0.2, "absent"), graded(0.8, 0.9, "present"), "new"),
        (graded(0.8, 0.9, "present"), graded(0.1, 0.2, "absent"), "resolved"),
        (graded(0.3, 0.4, "not sure"), graded(0.8, 0.9, "present"), "more"),
        (graded(0.7, 0.8, "present"), graded(0.5, 0.6, "not sure"), "less"),
        (graded(0.7, 0.9, "present"), graded(0.75, 0.95, "present"), "same"),
        (graded(0.4, 0.6, "not sure"), graded(0.45, 0.65, "not sure"), "unclear"),
    ],
)
def test_changes_are_verdicts_that_turned_or_intervals_apart(prior: Finding, current: Finding, kind: str) -> None:
    (change,) = compare([prior], [current])
    assert change.kind == kind


def test_a_value_from_a_file_is_escaped_on_the_page(weights: Weights) -> None:
    volume = phantom_volume()
    scan = Scan(key="x", volume=volume.__class__(hu=volume.hu, affine=volume.affine, warnings=("<script>1</script>",)),
                read_seconds=0.0)  # fmt: skip
    assert "<script>" not in readout("en", scan)
    row = Finding(label="<b>", score=0.5, probability=None, interval=None, verdict=None, place=PLACE)
    assert "<b>" not in findings_table("en", [row], weights)


def test_the_notice_says_what_the_record_of_the_weights_says_they_were_trained_on(weights: Weights) -> None:
    assert "without a record of their training" in notice("en", weights)
    phantoms = replace(weights, run={"data": "synthetic phantoms (phantom/make.py); no patient"})
    assert "synthetic phantoms only" in notice("en", phantoms)
    assert "synthetische fantomen" in notice("nl", phantoms)
    assert "trained on: CT-RATE &lt;1&gt;." in notice("en", replace(weights, run={"data": "CT-RATE <1>"}))


def test_without_a_calibration_a_score_is_no_probability(weights: Weights) -> None:
    row = Finding(label="Ascites", score=0.75, probability=None, interval=None, verdict=None, place=PLACE)
    table = findings_table("en", [row], weights)
    assert "not calibrated" in table
    assert "0.75" in table
    assert "75 %" not in table
    assert "95 % interval" not in table


@pytest.mark.parametrize(("size", "told"), [(628.3, "630 ml"), (4.26, "4.3 ml"), (0.271, "0.27 ml")])
def test_the_size_of_a_place_is_told_in_two_digits_without_an_exponent(size: float, told: str) -> None:
    place = Place(mm=(0.0, 0.0, 0.0), slice_number=1, side="left", front="front", level="lower", size_ml=size)
    assert told in describe_place("en", place)


@pytest.mark.parametrize(
    ("low", "high", "shown"), [(0.2, 0.4, "20 % – 40 %"), (0.001, 0.002, "&lt; 1 %"), (0.97, 0.999, "97 % – &gt; 99 %")]
)
def test_an_interval_is_told_once_where_both_ends_read_alike(low: float, high: float, shown: str) -> None:
    assert show_interval(low, high) == shown


def test_both_languages_say_everything() -> None:
    for key, (english, dutch) in TEXTS.items():
        assert english, key
        assert dutch, key
        places = [{name for _, name, _, _ in string.Formatter().parse(text) if name} for text in (english, dutch)]
        assert places[0] == places[1], key
    assert set(FINDING_NAMES) == set(FINDINGS_NL)
