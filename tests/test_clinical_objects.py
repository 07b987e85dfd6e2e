"""DICOM objects of a scan, read back by highdicom's own readers: where they lie, what they refer to, whom they name."""

import json
import logging
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pytest
import scipy.ndimage
from ctfm import read_volume
from ctfm.__main__ import main
from ctfm.clinical.codes import (
    FINDINGS,
    GATE,
    PROBABILITY,
    STRUCTURES,
    VERDICT,
    finding_code,
    private_value,
    structure_code,
)
from ctfm.clinical.contours import make_structure_set, trace_outlines
from ctfm.clinical.measurement_report import make_report
from ctfm.clinical.results import Results, collect_results
from ctfm.clinical.segmentation_object import make_segmentation, write_object
from ctfm.clinical.source import IDENTIFIERS, Maker, SourceSeries, read_source
from ctfm.grading import Graded
from ctfm.phantom.dicom_series import write_dicom_series
from ctfm.segmentation import Segmentation, measure_structures
from ctfm.volume_ctfm import GeometryError, Volume, VolumeError
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.sr._concepts_dict import concepts
from pydicom.sr.codedict import codes
from pydicom.uid import EnhancedCTImageStorage

from tests.phantoms import canonical_affine, phantom_hu, phantom_volume
from tests.test_segment_command import NAMES, by_threshold, oblique_affine, tilted_affine
from tests.tiny import save_tiny_segmenter

MAKER = Maker(name="tiny", digest="0123456789abcdef", settings="[]")
REAL_SERIES = sorted((Path(__file__).parents[2] / "shared" / "ct").rglob("*.dcm.zip"))
SECRETS = ("Zebrafinch", "Quilla", "907351", "ACC4711", "19610203", "Dr Ortolan")


def name_patient(data_set: Dataset, index: int) -> None:
    data_set.PatientName, data_set.PatientID, data_set.AccessionNumber = "Zebrafinch^Quilla", "907351", "ACC4711"
    data_set.PatientBirthDate, data_set.PatientSex, data_set.ReferringPhysicianName = "19610203", "F", "Dr Ortolan"
    data_set.StudyDate, data_set.StudyTime = "20260101", "101500"


def write_scan(
    folder: Path,
    affine: np.ndarray | None = None,
    edit: Callable[[Any, int], None] = name_patient,
    slices: int = 12,
) -> Path:
    write_dicom_series(
        phantom_hu((slices, 48, 40)), canonical_affine() if affine is None else affine, folder, edit=edit
    )
    return folder


def segment_by_threshold(volume: Volume) -> Segmentation:
    return Segmentation(labels=by_threshold(volume.hu), structures=NAMES, confidence={0: 1.0, 1: 0.75, 2: 0.5})


def make(folder: Path, keep_identifiers: bool = False) -> tuple[Volume, SourceSeries, Any]:
    volume = read_volume(folder)
    source = read_source(folder, None, volume)
    return volume, source, make_segmentation(source, volume, segment_by_threshold(volume), MAKER, keep_identifiers)


def read_back(made: Dataset, path: Path) -> highdicom.seg.Segmentation:
    write_object(path, made)
    return highdicom.seg.segread(path)


# --- DICOM SEG -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "affine",
    [canonical_affine(), tilted_affine(15.0), oblique_affine(20.0), oblique_affine(40.0)],
    ids=["upright", "tilted", "oblique", "oblique and resampled"],
)
def test_a_seg_lies_on_every_voxel_of_its_slices(affine: np.ndarray, tmp_path: Path) -> None:
    scan = write_scan(tmp_path / "scan", affine)
    volume, _, made = make(scan)
    expected, _ = volume.segmentation_to_source(segment_by_threshold(volume).labels)
    back = read_back(made, tmp_path / "seg.dcm")
    slices = [dcmread(scan / f"slice{index:04d}.dcm") for index in range(12)]
    found = back.get_pixels_by_source_instance([one.SOPInstanceUID for one in slices], combine_segments=True)
    np.testing.assert_array_equal(found, expected)
    assert back.FrameOfReferenceUID == slices[0].FrameOfReferenceUID
    assert back.StudyInstanceUID == slices[0].StudyInstanceUID
    place_of = {one.SOPInstanceUID: one for one in slices}
    for frame in back.PerFrameFunctionalGroupsSequence:
        referred = frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        position = frame.PlanePositionSequence[0].ImagePositionPatient
        np.testing.assert_allclose(position, place_of[referred].ImagePositionPatient, atol=1e-6)
    orientation = back.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0].ImageOrientationPatient
    np.testing.assert_allclose(orientation, slices[0].ImageOrientationPatient, atol=1e-6)


def test_a_seg_of_a_series_with_a_missing_slice_has_frames_on_true_slices_alone(tmp_path: Path) -> None:
    scan = write_scan(tmp_path / "scan")
    (scan / "slice0005.dcm").unlink()
    _, source, made = make(scan)
    assert source.planes == (0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11)
    back = read_back(made, tmp_path / "seg.dcm")
    uids = [header.SOPInstanceUID for header in source.headers]
    found = back.get_pixels_by_source_instance(uids, combine_segments=True)
    np.testing.assert_array_equal(found, np.delete(by_threshold(phantom_hu((12, 48, 40))), 5, 0))


def test_a_seg_of_a_zip_and_of_files_in_any_order_is_the_same(tmp_path: Path) -> None:
    scan = write_scan(tmp_path / "scan")
    _, _, made = make(scan)
    for index, name in enumerate("qwertzuiopas"):
        (scan / f"slice{index:04d}.dcm").rename(scan / name)
    shutil.make_archive(str(tmp_path / "zipped"), "zip", scan)
    for place in (scan, tmp_path / "zipped.zip"):
        volume = read_volume(place)
        again = make_segmentation(
            read_source(place, None, volume), volume, segment_by_threshold(volume), MAKER, keep_identifiers=False
        )
        assert again.SOPInstanceUID == made.SOPInstanceUID
        assert again.PixelData == made.PixelData


@pytest.mark.skipif(not REAL_SERIES, reason="the real scans of ../shared/ct are not here")
def test_objects_of_real_series_lie_on_their_voxels_and_are_valid(tmp_path: Path) -> None:
    for scan in REAL_SERIES:
        volume, source, seg = make(scan, keep_identifiers=True)
        back = read_back(seg, tmp_path / "seg.dcm")
        found = back.get_pixels_by_source_instance(
            [one.SOPInstanceUID for one in source.headers], combine_segments=True
        )
        expected, _ = volume.segmentation_to_source(segment_by_threshold(volume).labels)
        np.testing.assert_array_equal(found, expected[list(source.planes)])
        write_object(tmp_path / "sr.dcm", make_report(source, results_of(volume), MAKER, True, seg))
        check_by_dciodvfy(tmp_path / "seg.dcm")
        check_by_dciodvfy(tmp_path / "sr.dcm")


def test_structures_are_coded_and_numbered_without_a_gap(tmp_path: Path) -> None:
    scan = write_scan(tmp_path / "scan")
    volume = read_volume(scan)
    labels = by_threshold(volume.hu) * 2  # 2 and 4, and nothing of 1 and 3
    structures = {0: "background", 1: "spleen", 2: "left kidney", 3: "liver", 4: "odd thing of no known code"}
    segmentation = Segmentation(labels=labels, structures=structures, confidence={0: 1.0, 2: 1.0, 4: 1.0})
    source = read_source(scan, None, volume)
    back = read_back(make_segmentation(source, volume, segmentation, MAKER, False), tmp_path / "seg.dcm")
    assert list(back.segment_numbers) == [1, 2]
    kidney, odd = (back.get_segment_description(number) for number in (1, 2))
    assert (kidney.segment_label, kidney.segmented_property_type.value) == ("left kidney", "64033007")
    side = kidney.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence[0]
    assert side.CodeMeaning == "Left"
    assert odd.segmented_property_type.scheme_designator == "99CTFM"
    assert back.CodingSchemeIdentificationSequence[0].CodingSchemeDesignator == "99CTFM"


def test_a_multi_frame_file_is_referred_to_by_its_frames(tmp_path: Path) -> None:
    scan = write_scan(tmp_path / "scan", slices=8)
    order = [5, 2, 7, 0, 3, 6, 1, 4]
    slices = [dcmread(scan / f"slice{index:04d}.dcm") for index in order]
    enhanced = slices[0]
    enhanced.SOPClassUID = enhanced.file_meta.MediaStorageSOPClassUID = EnhancedCTImageStorage
    enhanced.NumberOfFrames = len(slices)
    enhanced.PixelData = b"".join(one.PixelData for one in slices)
    frames = []
    for one in slices:
        groups = Dataset()
        groups.PlanePositionSequence, groups.PlaneOrientationSequence = [Dataset()], [Dataset()]
        groups.PixelMeasuresSequence = [Dataset()]
        groups.PlanePositionSequence[0].ImagePositionPatient = one.ImagePositionPatient
        groups.PlaneOrientationSequence[0].ImageOrientationPatient = one.ImageOrientationPatient
        groups.PixelMeasuresSequence[0].PixelSpacing = one.PixelSpacing
        groups.PixelMeasuresSequence[0].SliceThickness = one.SliceThickness
        frames.append(groups)
    enhanced.PerFrameFunctionalGroupsSequence = frames
    enhanced.SharedFunctionalGroupsSequence = [Dataset()]
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
        delattr(enhanced, keyword)
    enhanced.save_as(tmp_path / "enhanced.dcm", enforce_file_format=True)
    _, source, made = make(tmp_path / "enhanced.dcm")
    assert source.planes == tuple(order)
    back = read_back(made, tmp_path / "seg.dcm")
    found = back.get_pixels_by_source_frame(enhanced.SOPInstanceUID, range(1, 9), combine_segments=True)
    np.testing.assert_array_equal(found, by_threshold(phantom_hu((8, 48, 40)))[order])
    check_by_dciodvfy(tmp_path / "seg.dcm")


@pytest.mark.parametrize("missing", ["FrameOfReferenceUID", "SOPInstanceUID", "StudyInstanceUID"])
def test_slices_that_nothing_can_refer_to_are_refused_in_words(missing: str, tmp_path: Path) -> None:
    def edit(data_set: Dataset, index: int) -> None:
        delattr(data_set, missing)

    if missing == "SOPInstanceUID":  # pydicom writes none without it

        def edit(data_set: Dataset, index: int) -> None:
            data_set.SOPInstanceUID = "1.2.3"

    scan = write_scan(tmp_path / "scan", edit=edit)
    with pytest.raises(VolumeError, match=r"frame of reference|SOPInstanceUID|StudyInstanceUID") as refused:
        make(scan)
    assert "Export the series again" in str(refused.value)


def test_a_nifti_and_slices_that_moved_are_refused(tmp_path: Path) -> None:
    phantom_volume().to_nifti(tmp_path / "scan.nii")
    with pytest.raises(VolumeError, match="Pass the DICOM series"):
        read_source(tmp_path / "scan.nii", None, read_volume(tmp_path / "scan.nii"))
    scan = write_scan(tmp_path / "scan")
    volume = read_volume(scan)
    shutil.rmtree(scan)
    write_scan(scan, canonical_affine(origin=(0.0, 0.0, 0.0)))
    with pytest.raises(GeometryError, match="do not lie where the scan was read"):
        read_source(scan, None, volume)


# --- RT Structure Set ----------------------------------------------------------------------------------------------------


def fill(outlines: list[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """The pixels whose centres lie inside outlines of (row, column) corners, by the even-odd rule."""
    flips = np.zeros((shape[0], shape[1] + 1), bool)
    for outline in outlines:
        for (row, column), (to_row, to_column) in zip(outline, np.roll(outline, -1, 0), strict=True):
            if column == to_column:
                flips[min(row, to_row) : max(row, to_row), column] ^= True
            else:
                assert row == to_row  # along the borders of pixels
    return np.logical_xor.accumulate(flips, 1)[:, :-1]


@pytest.mark.parametrize("seed", range(12))
def test_outlines_hold_the_pixels_of_any_mask_with_holes_and_corners(seed: int) -> None:
    random = np.random.default_rng(seed)
    mask = random.random((17, 23)) < random.uniform(0.2, 0.9)
    if seed % 2:  # larger parts, with holes in holes
        mask = np.kron(mask, np.ones((3, 2), bool)) & (random.random((51, 46)) < 0.97)
    outlines = [np.array(outline) for outline in trace_outlines(mask)]
    np.testing.assert_array_equal(fill(outlines, mask.shape), mask)  # type: ignore[arg-type]
    assert len(outlines) == scipy.ndimage.label(mask)[1]  # type: ignore[index]
    assert trace_outlines(np.zeros((3, 3), bool)) == []


@pytest.mark.parametrize("affine", [canonical_affine(), tilted_affine(15.0)], ids=["upright", "tilted"])
def test_a_structure_set_holds_the_voxels_of_every_structure(affine: np.ndarray, tmp_path: Path) -> None:
    scan = write_scan(tmp_path / "scan", affine, slices=8)
    volume = read_volume(scan)
    source = read_source(scan, None, volume)
    segmentation = segment_by_threshold(volume)
    write_object(tmp_path / "rt.dcm", make_structure_set(source, volume, segmentation, MAKER, keep_identifiers=False))
    back = dcmread(tmp_path / "rt.dcm")
    expected, _ = volume.segmentation_to_source(segmentation.labels)
    assert [one.ROIName for one in back.StructureSetROISequence] == ["liver", "left kidney"]
    slices = {one.SOPInstanceUID: (index, one) for index, one in enumerate(map(dcmread, sorted(scan.iterdir())))}
    for roi in back.ROIContourSequence:
        outlines: dict[int, list[np.ndarray]] = {index: [] for index in range(8)}
        for contour in roi.ContourSequence:
            index, one = slices[contour.ContourImageSequence[0].ReferencedSOPInstanceUID]
            points = np.array(contour.ContourData, float).reshape(-1, 3) - np.array(one.ImagePositionPatient, float)
            across, down = np.array(one.ImageOrientationPatient, float).reshape(2, 3)
            assert np.abs(points @ np.cross(across, down)).max() < 1e-3  # in the plane of its slice
            corners = np.stack([points @ down / one.PixelSpacing[0], points @ across / one.PixelSpacing[1]], 1) + 0.5
            np.testing.assert_allclose(corners, np.rint(corners), atol=1e-3)
            outlines[index].append(np.rint(corners).astype(int))
        found = np.stack([fill(outlines[index], (48, 40)) for index in range(8)])
        np.testing.assert_array_equal(found, expected == roi.ReferencedROINumber)
    assert back.PatientID == ""
    check_by_dciodvfy(tmp_path / "rt.dcm")


# --- identifiers and UIDs ------------------------------------------------------------------------------------------------


def test_objects_name_nobody_unless_asked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scan = write_scan(tmp_path / "scan")
    with caplog.at_level(logging.DEBUG):
        for keep_identifiers in (False, True):
            volume, source, seg = make(scan, keep_identifiers)
            report = make_report(source, results_of(volume), MAKER, keep_identifiers, seg)
            for made, path in ((seg, tmp_path / "seg.dcm"), (report, tmp_path / "sr.dcm")):
                write_object(path, made)
                held = path.read_bytes()
                for secret in SECRETS:
                    assert (secret.encode() in held) is keep_identifiers, secret
                back = dcmread(path)
                assert ("PatientID" in back, back.PatientID) == (True, "907351" if keep_identifiers else "")
    for secret in SECRETS:
        assert secret not in caplog.text


def test_damaged_identifiers_are_left_out_and_foreign_letters_kept(tmp_path: Path) -> None:
    scan = write_scan(tmp_path / "scan", edit=lambda data_set, index: edit_damaged(data_set))
    _, _, made = make(scan, keep_identifiers=True)
    back = read_back(made, tmp_path / "seg.dcm")
    assert str(back.PatientName) == "Müßig^Jörg"
    assert back.SpecificCharacterSet == "ISO_IR 192"
    assert (back.PatientSex, back.PatientBirthDate or "") == ("", "")


def edit_damaged(data_set: Dataset) -> None:
    data_set.SpecificCharacterSet = "ISO_IR 100"
    data_set.PatientName, data_set.PatientSex = "Müßig^Jörg", "X"


def test_the_same_study_gives_the_same_uids_and_another_model_others(tmp_path: Path) -> None:
    scan = write_scan(tmp_path / "scan")
    volume, source, first = make(scan)
    copied = shutil.copytree(scan, tmp_path / "elsewhere")
    _, _, again = make(copied)
    for keyword in ("SOPInstanceUID", "SeriesInstanceUID"):
        assert first[keyword].value == again[keyword].value
    other = Maker(name="tiny", digest="another", settings="[]")
    made = make_segmentation(source, volume, segment_by_threshold(volume), other, False)
    kept = make_segmentation(source, volume, segment_by_threshold(volume), MAKER, True)
    assert len({first.SOPInstanceUID, made.SOPInstanceUID, kept.SOPInstanceUID}) == 3
    assert all(highdicom.UID(uid).is_valid for uid in (first.SOPInstanceUID, first.SeriesInstanceUID))


# --- DICOM SR ------------------------------------------------------------------------------------------------------------


def results_of(volume: Volume, distance: float | None = 0.5) -> Results:
    findings = (
        {"label": "Pleural effusion", "score": 0.3, "probability": 0.8, "interval": (0.5, 0.9), "verdict": "present"}
        | {"place_mm": [-10.0, 20.0, -35.0]},
        {"label": "Left lung nodule", "score": 0.3, "probability": 0.3, "interval": (0.1, 0.6), "verdict": "not sure"},
        {"label": "Something new", "score": 0.2},
    )
    structures = measure_structures(volume, segment_by_threshold(volume))
    return collect_results(Graded(findings=findings, distance=distance), structures, volume.warnings)


def report_of(scan: Path, path: Path, distance: float | None = 0.5) -> tuple[Any, Any]:
    volume, source, seg = make(scan)
    write_object(path, make_report(source, results_of(volume, distance), MAKER, False, seg))
    return highdicom.sr.srread(path), seg


def test_a_report_reads_back_with_codes_numbers_and_answers(tmp_path: Path) -> None:
    back, _ = report_of(write_scan(tmp_path / "scan"), tmp_path / "sr.dcm")
    scan, effusion, nodule, new = back.content.get_image_measurement_groups()
    assert effusion.finding_type == FINDINGS["pleural effusion"]
    assert [(m.name.meaning, m.value) for m in effusion.get_measurements()] == [
        ("Calibrated probability", 0.8),
        ("Lower bound of the 95 % interval", 0.5),
        ("Upper bound of the 95 % interval", 0.9),
    ]
    (place,) = effusion.get_measurements(PROBABILITY)[0].referenced_coordinates
    np.testing.assert_allclose(place.value, [[10.0, -20.0, -35.0]])  # LPS
    assert place.frame_of_reference_uid == dcmread(tmp_path / "scan" / "slice0000.dcm").FrameOfReferenceUID
    (answer,) = effusion.get_qualitative_evaluations(VERDICT)
    assert answer.value.meaning == "Present"
    assert nodule.finding_sites[0].laterality.meaning == "Left"
    assert nodule.get_qualitative_evaluations(VERDICT)[0].value.meaning == "Indeterminate"
    assert new.finding_type.scheme_designator == "99CTFM"
    assert new.get_measurements()[0].name.meaning == "Uncalibrated score"
    (likeness,) = scan.get_qualitative_evaluations(GATE)
    assert likeness.value.meaning == "Like scans of the training"


def test_a_reports_structures_lie_in_their_segments(tmp_path: Path) -> None:
    scan = write_scan(tmp_path / "scan")
    back, seg = report_of(scan, tmp_path / "sr.dcm")
    liver, kidney = back.content.get_volumetric_roi_measurement_groups(referenced_sop_instance_uid=seg.SOPInstanceUID)
    (place,) = (item for item in kidney[0].ContentSequence if item.name == codes.DCM.ReferencedSegment)
    assert place.referenced_segment_numbers == [2]
    expected = measure_structures(read_volume(scan), segment_by_threshold(read_volume(scan)))[0]
    values = {one.name.meaning: (one.value, one.unit.value) for one in liver.get_measurements()}
    assert values["Volume"] == (expected["volume_ml"], "ml")
    assert values["Attenuation Coefficient"] == (expected["mean_hu"], "[hnsf'U]")


def test_a_report_says_that_it_is_for_research_and_refers_to_every_slice(tmp_path: Path) -> None:
    scan = write_scan(tmp_path / "scan")
    back, seg = report_of(scan, tmp_path / "sr.dcm")
    assert "research use only" in back.ConceptNameCodeSequence[0].CodeMeaning
    (context,) = back.content.get_observer_contexts()
    assert "research" in context.observer_identifying_attributes.name
    caveat = next(
        item for item in back.content[0].ContentSequence if item.ValueType == "TEXT" and item.name.value == "caveat"
    )
    assert "Not for diagnosis" in caveat.TextValue
    assert back.CompletionFlag == "COMPLETE"
    assert back.VerificationFlag == "UNVERIFIED"
    evidence = [
        *back.get("CurrentRequestedProcedureEvidenceSequence", []),
        *back.get("PertinentOtherEvidenceSequence", []),
    ]
    referred = {
        one.ReferencedSOPInstanceUID
        for study in evidence
        for series in study.ReferencedSeriesSequence
        for one in series.ReferencedSOPSequence
    }
    assert referred == {dcmread(path).SOPInstanceUID for path in scan.iterdir()} | {seg.SOPInstanceUID}


@pytest.mark.parametrize(
    ("distance", "answer"), [(3.0, "Unlike any scan"), (None, "Not known"), (np.inf, "Unlike any scan")]
)
def test_a_report_of_an_unlike_scan_names_no_finding(distance: float | None, answer: str, tmp_path: Path) -> None:
    back, _ = report_of(write_scan(tmp_path / "scan"), tmp_path / "sr.dcm", distance)
    scan, *findings = back.content.get_image_measurement_groups()
    assert scan.get_qualitative_evaluations(GATE)[0].value.meaning.startswith(answer)
    assert len(findings) == (3 if distance is None else 0)


# --- codes ---------------------------------------------------------------------------------------------------------------


def test_codes_of_structures_are_those_of_dicoms_context_groups() -> None:
    known = {(code, meaning) for entries in concepts["SCT"].values() for code, (meaning, _) in entries.items()}
    for code in STRUCTURES.values():
        assert (code.value, code.meaning) in known


def test_a_side_is_told_apart_from_the_name_and_private_codes_are_short() -> None:
    assert structure_code("Right_Kidney")[1].meaning == "Right"  # type: ignore[union-attr]
    assert structure_code("right middle lobe") == (STRUCTURES["right middle lobe"], None)
    assert finding_code("Left pleural effusion")[0] == FINDINGS["pleural effusion"]
    assert finding_code("Left turn")[0].scheme_designator == "99CTFM"
    values = [private_value(name) for name in ("a long name of a thing", "a long name of another", "café", "")]
    assert len(set(values)) == 4
    assert all(0 < len(value) <= 16 for value in values)


# --- the command ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_segmenter(tmp_path_factory.mktemp("segmenter"), NAMES)


def test_the_command_writes_a_seg_beside_the_label_map_and_a_second_run_nothing(
    tmp_path: Path, checkpoint: Path, capfd: pytest.CaptureFixture
) -> None:
    write_scan(tmp_path / "scans" / "a")
    phantom_volume().to_nifti(tmp_path / "scans" / "b.nii")
    arguments = ["segment", tmp_path / "scans", "--out", tmp_path / "out", "--model", checkpoint, "--overlap", "none"]
    assert main([*map(str, arguments), "--dicom-seg"]) == 1
    rows = {row["folder"]: row for row in json.loads((tmp_path / "out" / "scans.json").read_text())}
    assert (rows["a"]["status"], rows["b"]["status"]) == ("done", "failed")
    assert "Pass the DICOM series" in rows["b"]["note"]
    file = tmp_path / "out" / "a" / "segmentation.dcm"
    written = file.stat().st_mtime_ns
    assert highdicom.seg.segread(file).PatientID == ""
    assert main([*map(str, arguments), "--dicom-seg"]) == 1
    assert file.stat().st_mtime_ns == written
    assert main([*map(str, arguments), "--dicom-seg", "--rtstruct", "--keep-identifiers"]) == 1
    assert highdicom.seg.segread(file).PatientID == dcmread(file.with_name("rtstruct.dcm")).PatientID == "907351"
    said = "".join(capfd.readouterr())
    for secret in SECRETS:
        assert secret not in said


# --- dciodvfy ------------------------------------------------------------------------------------------------------------


def check_by_dciodvfy(path: Path) -> None:
    """The validator of Debian's dicom3tools finds no error; that a private coding scheme is private is a warning."""
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy of Debian's dicom3tools is not installed")
    checked = subprocess.run(["dciodvfy", path], capture_output=True, text=True)
    errors = [line for line in checked.stderr.splitlines() if line.startswith("Error")]
    assert errors == []


@pytest.mark.parametrize("keep_identifiers", [False, True])
def test_objects_are_valid_to_dciodvfy(keep_identifiers: bool, tmp_path: Path) -> None:
    volume, source, seg = make(write_scan(tmp_path / "scan", tilted_affine(10.0)), keep_identifiers)
    write_object(tmp_path / "seg.dcm", seg)
    write_object(tmp_path / "sr.dcm", make_report(source, results_of(volume), MAKER, keep_identifiers, seg))
    check_by_dciodvfy(tmp_path / "seg.dcm")
    check_by_dciodvfy(tmp_path / "sr.dcm")


def test_identifiers_are_those_that_dicom_puts_into_patient_and_study() -> None:
    assert set(IDENTIFIERS) >= {"PatientID", "PatientName", "AccessionNumber"}
