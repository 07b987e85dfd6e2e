"""A phantom's report says what is there, denies what is not, and never mixes its two wordings."""

import re
from functools import cache

import numpy as np
import pytest
from ctfm.phantom.patient import FINDING_NAMES, TRAIN_RANGES, sample_acquisition, sample_patient
from ctfm.phantom.report import Report, Speaker, Wording, affirm, affirm_all, deny, write_report
from ctfm.phantom.scene import Finding, describe
from ctfm.phantom.wording import WORDS

WORDINGS: tuple[Wording, ...] = ("train", "held_out")
NEGATIONS = re.compile(
    r"\b(no|not|without|negative|free|absent|resolved|cleared|lacking|ruled out|neither|no longer|disappeared"
    r"|normal|unremarkable|homogeneous|regular|uniform)\b",
    re.IGNORECASE,
)
PLACES = {
    "Medical material": ("chest wall", "pacemaker"),
    "Arterial wall calcification": ("descending thoracic aorta", "calcified plaques"),
    "Coronary artery wall calcification": ("left anterior descending artery", "calcified plaques"),
    "Cardiomegaly": ("heart", "enlarged"),
    "Pericardial effusion": ("pericardium", "fluid"),
    "Hiatal hernia": ("oesophageal hiatus", "sliding"),
    "Lymphadenopathy": ("{side} hilum", "enlarged node"),
    "Pleural effusion": ("pleural space", "fluid"),
    "Kidney tumour": ("{side} kidney, upper pole", "solid mass"),
    "Kidney stone": ("{side} kidney, lower pole", "calculus"),
    "Liver lesion": ("{side} hepatic lobe", "cyst"),
    "Ascites": ("peritoneal cavity", "fluid"),
    "Mosaic attenuation pattern": ("lungs", "patchy"),
    "Emphysema": ("upper lobes", "centrilobular"),
    "Interlobular septal thickening": ("lower lobes", "smooth"),
    "Peribronchial thickening": ("lungs", "bronchial wall"),
}
SIDED = tuple(
    name
    for name in FINDING_NAMES
    if name not in ("Cardiomegaly", "Pericardial effusion", "Hiatal hernia", "Ascites") and "calcification" not in name
)


def made_up(name: str, rng: np.random.Generator, side: str | None = None) -> Finding:
    side = side or str(rng.choice(["left", "right"]))
    place, kind = PLACES.get(name, ("{side} lower lobe", "solid"))
    severity = str(rng.choice(["mild", "moderate", "severe"]))
    return describe(
        name, side=side, place=place.format(side=side), size_mm=rng.uniform(4, 60), kind=kind, severity=severity
    )


def report_of(seed: int, findings: tuple[Finding, ...], wording: Wording) -> Report:
    patient, acquisition = sample_patient(seed, TRAIN_RANGES), sample_acquisition(seed, TRAIN_RANGES)
    return write_report(patient, acquisition, findings, wording)


@cache
def reports(wording: Wording, count: int = 400) -> tuple[Report, ...]:
    written = []
    for seed in range(count):
        rng = np.random.default_rng(seed)
        names = rng.permutation(FINDING_NAMES)[: rng.integers(0, 8)]
        findings = [made_up(str(name), rng) for name in names for _ in range(int(rng.integers(1, 4)))]
        written.append(report_of(seed, tuple(findings), wording))
    return tuple(written)


def sentences(report: Report) -> set[str]:
    """Sentences with numbers made equal, so that only the wording is compared."""
    text = f"{report.findings} {report.impression} {report.history} {report.technique} {report.comparison}"
    text = re.sub(r"\b\d+\. (?=[A-Z])", "", text)
    return {
        re.sub(r"\d+(\.\d+)?", "#", s).strip(" .").lower() for s in re.split(r"(?<=[.?])\s+", text) if s.strip(" .")
    }


def test_held_out_wording_shares_no_sentence_with_the_training_wording() -> None:
    train = set().union(*(sentences(report) for report in reports("train")))
    held_out = set().union(*(sentences(report) for report in reports("held_out")))
    assert len(train) > 1500
    assert len(held_out) > 1500
    assert train & held_out == set()


@pytest.mark.parametrize("wording", WORDINGS)
@pytest.mark.parametrize("name", SIDED)
@pytest.mark.parametrize("side", ["left", "right"])
def test_laterality_agrees_with_the_finding(name: str, side: str, wording: Wording) -> None:
    other = {"left": "right", "right": "left"}[side]
    initial = {"left": r"\bL[UL]L\b", "right": r"\bR[UML]L\b"}
    told = 0
    for seed in range(25):
        rng = np.random.default_rng(seed)
        text = affirm(Speaker(rng, wording), made_up(name, rng, side))
        says = bool(re.search(rf"\b{side}\b", text, re.IGNORECASE) or re.search(initial[side], text))
        assert not re.search(rf"\b{other}\b", text, re.IGNORECASE), text
        assert not re.search(initial[other], text), text
        told += says
    assert told >= 15


@pytest.mark.parametrize("wording", WORDINGS)
@pytest.mark.parametrize("name", FINDING_NAMES)
def test_an_absent_finding_is_denied(name: str, wording: Wording) -> None:
    for seed in range(12):
        (text,) = deny(Speaker(np.random.default_rng(seed), wording), [name])
        assert NEGATIONS.search(text), text


@pytest.mark.parametrize("wording", WORDINGS)
@pytest.mark.parametrize("name", FINDING_NAMES)
def test_a_present_finding_is_not_denied(name: str, wording: Wording) -> None:
    denial = re.compile(
        r"\b(no|not|without|negative|free of|absent|resolved|cleared|lacking|ruled out|neither)\b", re.IGNORECASE
    )
    for seed in range(20):
        rng = np.random.default_rng(seed)
        text = affirm(Speaker(rng, wording), made_up(name, rng))
        assert not denial.search(text), text


@pytest.mark.parametrize("wording", WORDINGS)
def test_what_is_stated_is_what_is_there(wording: Wording) -> None:
    rng = np.random.default_rng(0)
    present = ("Lung nodule", "Ascites", "Cardiomegaly")
    report = report_of(1, tuple(made_up(name, rng) for name in present), wording)
    assert {name for name, value in report.stated.items() if value} == set(present)
    denied = [name for name, value in report.stated.items() if not value]
    assert len(denied) >= 4
    # A finding that is not stated at all has none of its words in the findings.
    for name in FINDING_NAMES:
        if name not in report.stated and name not in ("Lung opacity",):
            assert not any(noun.lower() in report.findings.lower() for noun in WORDS[name].bare), name


def test_several_instances_are_told_with_all_their_places() -> None:
    rng = np.random.default_rng(4)
    nodules = [
        describe("Lung nodule", side=lobe.split()[0], place=lobe, size_mm=size, kind="solid")
        for lobe, size in (
            ("left upper lobe", 6),
            ("right lower lobe", 21),
            ("right upper lobe", 9),
            ("left lower lobe", 5),
        )
    ]
    (text,) = affirm_all(Speaker(rng, "train"), nodules)
    assert all(nodule.place in text for nodule in nodules)
    assert re.search(r"\b(21|2\.1)\b", text)


@pytest.mark.parametrize("wording", WORDINGS)
def test_reports_are_hardly_ever_the_same(wording: Wording) -> None:
    rng = np.random.default_rng(0)
    findings = (made_up("Lung nodule", rng), made_up("Pleural effusion", rng))
    texts = {report_of(seed, findings, wording).findings for seed in range(200)}
    assert len(texts) > 195


@pytest.mark.parametrize("wording", WORDINGS)
def test_sentences_are_clean(wording: Wording) -> None:
    for report in reports(wording):
        text = str(report)
        assert not re.search(r"[<>\[\]|{}]|  | [.,;]|,\.|\.\.|\ba [aeio]", text), text


def test_the_impression_holds_the_worst_finding_and_a_normal_scan_says_so() -> None:
    rng = np.random.default_rng(0)
    findings = (made_up("Kidney stone", rng), made_up("Pleural effusion", rng))
    assert len(report_of(0, findings, "train").impression) > 10
    assert re.search(r"normal|unremarkable|no ", report_of(0, (), "train").impression, re.IGNORECASE)


def test_a_report_has_its_sections_in_order() -> None:
    text = str(report_of(3, (), "train"))
    heads = ["History:", "Technique:", "Comparison:", "Findings:", "Impression:"]
    assert [text.index(head) for head in heads] == sorted(text.index(head) for head in heads)
