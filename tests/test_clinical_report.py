"""`ctfm report`: SR, page and FHIR of a scan say the same, refer to its slices, and name nobody unless asked."""

import json
from pathlib import Path
from typing import Any

import highdicom
import pytest
from ctfm import read_volume
from ctfm.__main__ import main
from ctfm.clinical.fhir import SYSTEMS, make_fhir
from ctfm.clinical.pdf_report import MAX_FINDINGS, draw_page, make_pdf
from ctfm.clinical.results import collect_results
from ctfm.clinical.segmentation_object import write_object
from ctfm.clinical.source import read_source
from ctfm.drawing_ctfm import draw_planes
from ctfm.grading import Graded
from pydicom import dcmread
from pypdf import PdfReader

from tests.phantoms import phantom_volume
from tests.test_clinical_objects import MAKER, SECRETS, check_by_dciodvfy, results_of, write_scan
from tests.test_segment_command import NAMES
from tests.test_worklist import write_checkpoint
from tests.tiny import save_tiny_segmenter


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scan(tmp_path_factory.mktemp("named") / "scan")


# ---- the page -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep_identifiers", [False, True])
def test_the_page_is_one_says_what_was_found_and_is_a_valid_object(
    keep_identifiers: bool, scan: Path, tmp_path: Path
) -> None:
    volume = read_volume(scan)
    source = read_source(scan, None, volume)
    made = make_pdf(source, results_of(volume), MAKER, draw_planes(volume), keep_identifiers)
    write_object(tmp_path / "page.dcm", made)
    back = dcmread(tmp_path / "page.dcm")
    (tmp_path / "page.pdf").write_bytes(back.EncapsulatedDocument[: back.EncapsulatedDocumentLength])
    (page,) = PdfReader(tmp_path / "page.pdf").pages
    text = page.extract_text()
    assert "research use only" in text
    assert "Not for diagnosis" in text
    assert "Pleural effusion: present, probability 0.80 (0.50 to 0.90)" in text
    assert "Something new: score 0.2, not calibrated" in text
    assert "left kidney" in text
    held = (tmp_path / "page.dcm").read_bytes() + text.encode()
    for secret in ("Zebrafinch", "907351", "ACC4711"):
        assert (secret in text) is (secret.encode() in held) is keep_identifiers
    assert back.BurnedInAnnotation == ("YES" if keep_identifiers else "NO")
    assert {item.ReferencedSOPInstanceUID for item in back.SourceInstanceSequence} == {
        dcmread(path).SOPInstanceUID for path in scan.iterdir()
    }
    check_by_dciodvfy(tmp_path / "page.dcm")


def test_a_page_of_many_findings_and_foreign_letters_is_still_one_and_counts_the_rest(tmp_path: Path) -> None:
    findings = tuple({"label": f"Läsion Nr. {number} 病変 {'x' * 300}", "score": 0.1} for number in range(40))
    results = collect_results(Graded(findings=findings, distance=None), warnings=["A long warning. " * 60] * 5)
    first = draw_page(results, MAKER, None, "")
    (tmp_path / "page.pdf").write_bytes(first)
    (page,) = PdfReader(tmp_path / "page.pdf").pages
    assert f"and {40 - MAX_FINDINGS} more findings" in page.extract_text()
    assert "Läsion Nr. 1 ??" in page.extract_text()
    assert draw_page(results, MAKER, None, "") == first


# ---- FHIR ---------------------------------------------------------------------------------------------------------------


def strings(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for one in value.values() for text in strings(one)]
    return [text for one in value for text in strings(one)] if isinstance(value, list) else [str(value)]


@pytest.mark.parametrize("keep_identifiers", [False, True])
def test_a_fhir_report_says_what_the_sr_says(keep_identifiers: bool, scan: Path) -> None:
    volume = read_volume(scan)
    source = read_source(scan, None, volume)
    report = json.loads(json.dumps(make_fhir(source, results_of(volume), MAKER, keep_identifiers)))
    assert (report["resourceType"], report["status"]) == ("DiagnosticReport", "preliminary")
    assert "research use only" in report["code"]["coding"][0]["display"]
    assert "Not for diagnosis" in report["conclusion"]
    held = {item["id"]: item for item in report["contained"]}
    observations = [held[one["reference"].removeprefix("#")] for one in report["result"]]
    assert len(observations) == 1 + 3 + 2
    assert len(held) == len(observations) + 1  # and the device
    effusion, nodule = observations[1:3]
    assert effusion["code"]["coding"] == [
        {"system": "http://snomed.info/sct", "code": "60046008", "display": "Pleural effusion"}
    ]
    assert effusion["valueCodeableConcept"]["coding"][0]["display"] == "Present"
    assert [part["valueQuantity"]["value"] for part in effusion["component"]] == [0.8, 0.5, 0.9]
    assert nodule["bodySite"]["coding"][0]["display"] == "Left"
    assert observations[4]["valueQuantity"]["unit"] == "mL"
    assert report["imagingStudy"][0]["identifier"]["value"] == f"urn:oid:{source.study_uid}"
    for secret in ("Zebrafinch", "907351", "ACC4711"):
        assert any(secret in text for text in strings(report)) is keep_identifiers
    assert ("subject" in report) is keep_identifiers
    assert report.get("effectiveDateTime") == ("2026-01-01" if keep_identifiers else None)
    systems = {coding["system"] for item in observations for coding in item["code"]["coding"]}
    assert systems <= set(SYSTEMS.values())


# ---- the command --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    numbers = {"slope": 0.0, "intercept": 3.0, "unsure_low": 0.2, "unsure_high": 0.8}
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"), Pleural_effusion=numbers)


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_segmenter(tmp_path_factory.mktemp("segmenter"), NAMES)


def test_the_command_writes_every_object_once_and_says_nothing_of_the_patient(
    tmp_path: Path, checkpoint: Path, segmenter: Path, capfd: pytest.CaptureFixture
) -> None:
    write_scan(tmp_path / "scans" / "Zebrafinch")
    phantom_volume().to_nifti(tmp_path / "scans" / "plain.nii")
    arguments = [
        "report",
        tmp_path / "scans",
        "--out",
        tmp_path / "out",
        "--model",
        checkpoint,
        "--segmenter",
        segmenter,
    ]
    assert main([*map(str, arguments), "--device", "cpu"]) == 1
    folder = tmp_path / "out" / "Zebrafinch"
    written = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert set(written) == {
        *("segmentation.dcm", "report.dcm", "page.dcm", "page.pdf", "report.json", "report.done.json"),
    }
    report, seg = highdicom.sr.srread(folder / "report.dcm"), highdicom.seg.segread(folder / "segmentation.dcm")
    (finding,) = report.content.get_image_measurement_groups()[1:]
    assert finding.finding_type.meaning == "Pleural effusion"
    assert len(report.content.get_volumetric_roi_measurement_groups()) == len(list(seg.segment_numbers))
    assert len({report.StudyInstanceUID, seg.StudyInstanceUID, dcmread(folder / "page.dcm").StudyInstanceUID}) == 1
    assert main([*map(str, arguments), "--device", "cpu"]) == 1
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == written
    said = "".join(capfd.readouterr())  # of folders nothing, as they may be named after the patient
    assert "1 of 2 scans are reported" in said
    assert "Pass the DICOM series" in said
    for secret in SECRETS:
        assert secret not in said
