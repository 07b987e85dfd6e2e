"""Zip files: what is read from them, and what is refused before anything is written."""

import os
import stat
import struct
import tempfile
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from ctfm.phantom.dicom_series import write_dicom_series
from ctfm.volume_ctfm import DamagedFileError, UnsafeFileError, Volume, VolumeError, list_series, read_volume
from ctfm.volume_studies_ctfm import find_scans

from tests.phantoms import canonical_affine, phantom_hu

HU = phantom_hu()
AFFINE = canonical_affine()


@pytest.fixture
def series(tmp_path: Path) -> Path:
    folder = tmp_path / "series"
    write_dicom_series(HU, AFFINE, folder)
    return folder


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders go; it must be empty after every read."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def zip_series(series: Path, archive: Path, prefix: str = "", method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(archive, "w", method) as zipped:
        for path in sorted(series.iterdir()):
            zipped.write(path, prefix + path.name)
    return archive


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zipped_series_is_read_and_nothing_stays_behind(series: Path, scratch: Path, method: int) -> None:
    archive = zip_series(series, series.parent / "scan.zip", "a/b/", method)
    volume = read_volume(archive)
    assert np.array_equal(volume.hu, HU)
    assert list_series(archive)[0].shape == HU.shape
    assert list(scratch.iterdir()) == []


def test_a_zip_without_its_ending_is_a_zip(series: Path, scratch: Path) -> None:
    assert np.array_equal(read_volume(zip_series(series, series.parent / "upload")).hu, HU)


def test_a_zipped_volume_file_is_read(tmp_path: Path, scratch: Path) -> None:
    Volume(hu=HU, affine=AFFINE).to_nifti(tmp_path / "scan.nii.gz")
    with zipfile.ZipFile(tmp_path / "scan.zip", "w") as zipped:
        zipped.write(tmp_path / "scan.nii.gz", "scan.nii.gz")
        zipped.writestr("__MACOSX/._scan.nii.gz", b"junk")
    assert np.array_equal(read_volume(tmp_path / "scan.zip").hu, HU)


@pytest.mark.parametrize(
    "name", ["../evil.dcm", "a/../../evil.dcm", "/tmp/evil.dcm", "..\\evil.dcm", "C:\\evil.dcm", "C:/evil.dcm"]
)
def test_members_that_climb_out_are_refused(series: Path, scratch: Path, name: str) -> None:
    archive = zip_series(series, series.parent / "scan.zip")
    with zipfile.ZipFile(archive, "a") as zipped:
        zipped.writestr(zipfile.ZipInfo(name), b"evil")
    before = set(series.parent.rglob("*"))
    with pytest.raises(UnsafeFileError, match="climbs out"):
        read_volume(archive)
    assert set(series.parent.rglob("*")) == before


def test_links_in_a_zip_are_refused(series: Path, scratch: Path) -> None:
    archive = zip_series(series, series.parent / "scan.zip")
    link = zipfile.ZipInfo("link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(archive, "a") as zipped:
        zipped.writestr(link, "/etc/passwd")
    with pytest.raises(UnsafeFileError, match="symbolic link"):
        read_volume(archive)


def test_an_encrypted_zip_is_refused(series: Path, scratch: Path) -> None:
    archive = zip_series(series, series.parent / "scan.zip", method=zipfile.ZIP_STORED)
    content = bytearray(archive.read_bytes())
    at = content.index(b"PK\x01\x02")
    content[at + 8] |= 1
    archive.write_bytes(content)
    with pytest.raises(UnsafeFileError, match="encrypted"):
        read_volume(archive)


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, scratch: Path) -> None:
    with (
        zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as zipped,
        zipped.open("zeros", "w") as member,
    ):
        for _ in range(80):
            member.write(bytes(2**20))
    with pytest.raises(UnsafeFileError, match="times its size"):
        read_volume(tmp_path / "bomb.zip")
    assert list(scratch.iterdir()) == []


def test_too_many_members_are_refused(tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctfm.volume_archive_ctfm.MAX_FILES", 20)
    with zipfile.ZipFile(tmp_path / "many.zip", "w") as zipped:
        for index in range(21):
            zipped.writestr(str(index), b"x")
    with pytest.raises(UnsafeFileError, match="more than 20 members"):
        read_volume(tmp_path / "many.zip")


def test_a_lying_size_in_the_directory_is_refused(series: Path, scratch: Path) -> None:
    archive = zip_series(series, series.parent / "scan.zip")
    content = bytearray(archive.read_bytes())
    at = content.index(b"PK\x01\x02")
    content[at + 24 : at + 28] = (100).to_bytes(4, "little")
    archive.write_bytes(content)
    with pytest.raises(VolumeError):
        read_volume(archive)


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.99])
def test_a_truncated_zip_is_refused(series: Path, scratch: Path, keep: float) -> None:
    archive = zip_series(series, series.parent / "scan.zip")
    content = archive.read_bytes()
    archive.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(DamagedFileError, match=r"scan\.zip"):
        read_volume(archive)
    assert list(scratch.iterdir()) == []


def test_a_zip_inside_a_zip_stays_closed(series: Path, scratch: Path) -> None:
    inner = zip_series(series, series.parent / "inner.zip")
    with zipfile.ZipFile(series.parent / "outer.zip", "w") as zipped:
        zipped.write(inner, "inner.zip")
    with pytest.raises(VolumeError, match="1 zip"):
        read_volume(series.parent / "outer.zip")
    with zipfile.ZipFile(series.parent / "outer.zip", "a") as zipped:
        for path in series.iterdir():
            zipped.write(path, path.name)
    volume = read_volume(series.parent / "outer.zip")
    assert np.array_equal(volume.hu, HU)
    assert volume.source.left_out == {"zip file": 1}


def test_odd_members_do_not_stop_the_reader(series: Path, scratch: Path) -> None:
    archive = zip_series(series, series.parent / "scan.zip", "deep/")
    with zipfile.ZipFile(archive, "a") as zipped:
        zipped.writestr("empty/", b"")
        zipped.writestr("empty.dcm", b"")
    assert np.array_equal(read_volume(archive).hu, HU)


def test_two_members_of_one_name_are_refused(series: Path, scratch: Path) -> None:
    archive = zip_series(series, series.parent / "scan.zip")
    with zipfile.ZipFile(archive, "a") as zipped, pytest.warns(UserWarning, match="Duplicate name"):
        zipped.writestr("slice0000.dcm", b"other")
    with pytest.raises(DamagedFileError, match="cannot be unpacked"):
        read_volume(archive)


def test_a_list_of_members_too_long_for_memory_is_refused_unread(tmp_path: Path, scratch: Path) -> None:
    entry = struct.pack("<4s6H3I5H2I", b"PK\1\2", 20, 20, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"a"
    count = 1_000_000
    listed = entry * count
    ends = struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, count, count, len(listed), 0)
    ends += struct.pack("<4sIQI", b"PK\6\7", 0, len(listed), 1)
    ends += struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    (tmp_path / "many.zip").write_bytes(b"PK\3\4" + listed + ends)
    tracemalloc.start()
    with pytest.raises(UnsafeFileError, match="more than 50000 members"):
        read_volume(tmp_path / "many.zip")
    assert tracemalloc.get_traced_memory()[1] < 2**20 * 8
    tracemalloc.stop()


def test_a_folder_or_file_that_the_system_refuses_is_an_error_and_not_half_a_scan(
    series: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (series / "closed").mkdir()
    (series / "slice0003.dcm").rename(series / "closed" / "slice0003.dcm")
    scandir = os.scandir

    def refuse(folder: Path | int) -> object:
        if str(folder).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    with monkeypatch.context() as patched:
        patched.setattr(os, "scandir", refuse)
        with pytest.raises(VolumeError, match="Permission denied"):
            read_volume(series)
    assert np.array_equal(read_volume(series).hu, HU)


def test_a_dicomdir_alone_points_to_its_folder(series: Path) -> None:
    (series / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    with pytest.raises(VolumeError, match="Pass the folder"):
        read_volume(series / "DICOMDIR")


def test_pipes_locks_and_loops_in_a_folder_are_passed_over(series: Path) -> None:
    os.mkfifo(series / "pipe")
    (series / ".#lock").symlink_to("somebody@somewhere:1")
    (series / "loop").symlink_to(series, target_is_directory=True)
    (series / "again.dcm").symlink_to(series / "slice0003.dcm")
    volume = read_volume(series)
    assert np.array_equal(volume.hu, HU)
    assert volume.warnings == ()


@pytest.mark.parametrize("linked", ["folder", "files"])
def test_the_half_of_a_scan_behind_links_is_read(series: Path, tmp_path: Path, linked: str) -> None:
    (tmp_path / "elsewhere").mkdir()
    for path in sorted(series.iterdir())[12:]:
        moved = path.rename(tmp_path / "elsewhere" / path.name)
        if linked == "files":
            path.symlink_to(moved)
    if linked == "folder":
        (series / "part2").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert np.array_equal(read_volume(series).hu, HU)
    assert list_series(series)[0].shape == HU.shape
    assert find_scans(tmp_path / "series") == [(series, None)]


def test_links_that_lead_to_nothing_are_counted(series: Path) -> None:
    for path in sorted(series.iterdir())[16:]:
        path.unlink()
        path.symlink_to(f"../.git/annex/objects/xx/{path.name}")
    for read in (read_volume, list_series):
        with pytest.raises(VolumeError, match=r"8 of 24 files cannot be opened"):
            read(series)
    with pytest.raises(VolumeError, match="leads to nothing"):
        read_volume(series / "slice0020.dcm")
    assert find_scans(series) == [(series, None)]


@pytest.mark.parametrize(
    "pointer", ["/annex/objects/MD5E-s9--0.dcm\n", "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"]
)
def test_files_that_were_not_fetched_are_counted(series: Path, pointer: str) -> None:
    for path in sorted(series.iterdir())[16:]:
        path.write_text(pointer)
    for read in (read_volume, list_series):
        with pytest.raises(VolumeError, match=r"8 of 24 files were not fetched"):
            read(series)
    assert find_scans(series) == [(series, None)]


def test_names_too_long_for_a_file_system_and_colons_are_read(series: Path, scratch: Path) -> None:
    archive = series.parent / "scan.zip"
    with zipfile.ZipFile(archive, "w") as zipped:
        for index, path in enumerate(sorted(series.iterdir())):
            folder = ("Series 2: lung", "x" * 300, "/".join(["deep" * 20] * 60))[index % 3]
            zipped.write(path, f"{folder}/{'n' * 300}{index}.dcm")
    assert np.array_equal(read_volume(archive).hu, HU)


def test_a_data_file_with_a_colon_in_its_name_is_read(tmp_path: Path) -> None:
    sitk = pytest.importorskip("SimpleITK")
    sitk.WriteImage(sitk.GetImageFromArray(HU), tmp_path / "scan.mhd")
    (tmp_path / "scan.raw").rename(tmp_path / "scan 10:30.raw")
    header = tmp_path / "scan.mhd"
    header.write_text(header.read_text().replace("scan.raw", "scan 10:30.raw"))
    assert np.array_equal(read_volume(header).hu, HU)


def test_a_member_whose_name_is_no_text_is_an_error_of_the_zip(series: Path, scratch: Path) -> None:
    archive = zip_series(series, series.parent / "scan.zip")
    content = bytearray(archive.read_bytes())
    for start in (content.index(b"PK\x03\x04") + 6, content.index(b"PK\x01\x02") + 8):
        content[start + 1] |= 0x08  # the name is UTF-8
    archive.write_bytes(content.replace(b"slice0000.dcm", b"\x8flice0000.dcm"))
    with pytest.raises(DamagedFileError, match=r"scan\.zip"):
        read_volume(archive)


def test_a_damaged_lzma_member_is_an_error_of_the_zip(series: Path, scratch: Path) -> None:
    archive = zip_series(series, series.parent / "scan.zip", method=zipfile.ZIP_LZMA)
    content = bytearray(archive.read_bytes())
    content[30 + len("slice0000.dcm") + 4] = 0xFF  # properties of the coder
    archive.write_bytes(content)
    with pytest.raises(DamagedFileError, match=r"scan\.zip"):
        read_volume(archive)
