"""Which scans a folder of studies holds: each once and whole, however its files lie."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from ctfm.phantom.dicom_series import write_dicom_series
from ctfm.volume_ctfm import VolumeError, read_volume
from ctfm.volume_studies_ctfm import find_scans, find_studies

from tests.phantoms import canonical_affine, phantom_hu, phantom_volume

HU = phantom_hu()


def write(folder: Path, series_uid: str, patient: str = "PHANTOM", added: int = 0) -> Path:
    def name(data_set, index: int) -> None:
        data_set.PatientID, data_set.StudyInstanceUID, data_set.FrameOfReferenceUID = patient, "1.8", "1.9"

    write_dicom_series(HU + np.int16(added), canonical_affine(), folder, series_uid=series_uid, edit=name)
    return folder


def deal_out(folder: Path, parts: int) -> None:
    """Moves the files of a folder into folders inside it."""
    for index, path in enumerate(sorted(folder.iterdir())):
        part = folder / f"part{index * parts // 24:02d}"
        part.mkdir(exist_ok=True)
        path.rename(part / path.name)


def test_each_series_of_a_folder_is_named_where_it_holds_several(tmp_path: Path) -> None:
    for number in range(2):
        for path in write(tmp_path / f"made{number}", f"1.2.{number}").iterdir():
            path.rename(_made(tmp_path / "studies" / "together") / f"{number}{path.name}")
    alone = write(tmp_path / "studies" / "alone", "1.2.7")
    together = tmp_path / "studies" / "together"
    assert find_scans(tmp_path / "studies") == [(alone, None), (together, "1.2.0"), (together, "1.2.1")]


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.mark.parametrize("name", ["DICOMDIR", "README.txt", "Thumbs.db", "labels.csv"])
def test_what_lies_beside_the_studies_adds_no_scan(tmp_path: Path, name: str) -> None:
    one, other = write(tmp_path / "a" / "s", "1.2.1"), write(tmp_path / "b" / "s", "1.2.2", "OTHER")
    (tmp_path / name).write_bytes(b"beside the studies " * 20)
    assert find_scans(tmp_path) == [(one, None), (other, None)]


def test_a_header_and_its_data_file_are_one_scan(tmp_path: Path) -> None:
    sitk = pytest.importorskip("SimpleITK")
    sitk.WriteImage(sitk.GetImageFromArray(HU), tmp_path / "scan.mhd")
    assert find_scans(tmp_path) == [(tmp_path / "scan.mhd", None)]


@pytest.mark.parametrize("parts", [2, 24])
def test_a_series_in_several_folders_is_one_scan(tmp_path: Path, parts: int) -> None:
    deal_out(write(tmp_path / "patient" / "series", "1.2.1"), parts)
    other = write(tmp_path / "patient" / "other", "1.2.2", added=3)
    found = find_scans(tmp_path)
    assert found == [(other, None), (tmp_path / "patient" / "series", None)]
    assert np.array_equal(read_volume(*found[1]).hu, HU)


def test_series_that_share_their_folders_are_told_apart(tmp_path: Path) -> None:
    for number in range(2):
        deal_out(write(tmp_path / f"made{number}", f"1.2.{number}", added=number), 2)
        for path in (tmp_path / f"made{number}").rglob("*.dcm"):
            path.rename(_made(tmp_path / "study" / path.parent.name) / f"{number}{path.name}")
    found = find_scans(tmp_path / "study")
    assert found == [(tmp_path / "study", "1.2.0"), (tmp_path / "study", "1.2.1")]
    assert [read_volume(*scan).hu[0, 0, 0] for scan in found] == [HU[0, 0, 0], HU[0, 0, 0] + 1]


def test_one_series_uid_for_two_patients_joins_nothing(tmp_path: Path) -> None:
    one, other = write(tmp_path / "a", "1.2.1"), write(tmp_path / "b", "1.2.1", "OTHER", added=5)
    assert find_scans(tmp_path) == [(one, None), (other, None)]


def test_half_a_series_is_not_taken_for_a_scan_where_the_other_half_is_damaged(tmp_path: Path) -> None:
    deal_out(write(tmp_path / "scan", "1.2.1"), 2)
    path = tmp_path / "scan" / "part00" / "slice0003.dcm"
    path.write_bytes(path.read_bytes()[:600])
    found = find_scans(tmp_path)
    assert (tmp_path / "scan" / "part01", None) not in found
    for scan in found:
        with pytest.raises(VolumeError):
            read_volume(*scan)


def test_what_is_no_volume_is_passed_over_unless_there_is_nothing_else(tmp_path: Path) -> None:
    localizer = write(tmp_path / "localizer", "1.2.3")
    for path in sorted(localizer.iterdir())[1:]:
        path.unlink()
    assert find_scans(tmp_path) == [(tmp_path, None)]
    scan = write(tmp_path / "scan", "1.2.1")
    assert find_scans(tmp_path) == [(scan, None)]


def test_files_are_scans_by_content_or_ending(tmp_path: Path) -> None:
    phantom_volume().to_nifti(tmp_path / "plain.nii")
    shutil.move(tmp_path / "plain.nii", tmp_path / "upload")
    (tmp_path / "broken.nii.gz").write_bytes(b"broken")
    (tmp_path / "broken.zip").write_bytes(b"broken")
    (tmp_path / ".hidden.nii").write_bytes(b"broken")
    assert [path.name for path, _ in find_scans(tmp_path)] == ["broken.nii.gz", "broken.zip", "upload"]


def test_a_folder_without_scans_holds_none(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    assert find_scans(tmp_path) == []


def test_series_of_one_study_are_one_with_the_longest_first(tmp_path: Path) -> None:
    def write_part(name: str, slices: int, study: str) -> Path:
        def edit(data_set, index: int) -> None:
            data_set.PatientID, data_set.StudyInstanceUID = "PHANTOM", study

        write_dicom_series(HU[:slices], canonical_affine(), tmp_path / name, series_uid=f"1.2.{name}", edit=edit)
        return tmp_path / name

    short, long, other = write_part("1", 12, "1.8"), write_part("2", 24, "1.8"), write_part("3", 24, "1.9")
    phantom_volume().to_nifti(tmp_path / "4.nii")
    assert find_studies(tmp_path) == [[(long, None), (short, None)], [(other, None)], [(tmp_path / "4.nii", None)]]
    assert find_scans(tmp_path) == [(short, None), (long, None), (other, None), (tmp_path / "4.nii", None)]
