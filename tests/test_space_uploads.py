"""What the Space does with uploaded files: read, remembered by their bytes, deleted; hostile ones refused."""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ctfm import volume_ctfm

from tests.phantoms import phantom_volume
from tests.space_process import HOSTILE, SECRET, write_study
from uploads import Scan, ScanCache, UploadError, read_scan, sweep, take


@pytest.fixture
def work(tmp_path: Path) -> Path:
    work = tmp_path / "work"
    work.mkdir()
    return work


def read(work: Path, *paths: Path, number: int | None = None) -> Scan | None:
    upload = take([str(path) for path in paths], work)
    try:
        return read_scan(upload, number, volume_ctfm, time.perf_counter)
    finally:
        upload.delete()


def test_an_upload_is_moved_read_and_deleted(work: Path, tmp_path: Path) -> None:
    study = write_study(tmp_path / f"{SECRET}.zip")
    scan = read(work, study)
    assert scan is not None
    assert scan.volume.hu.shape == (20, 48, 40)
    assert not study.exists()
    assert not list(work.iterdir())
    assert SECRET not in repr(scan)


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz", "scan.mha", "scan.nrrd"])
def test_every_other_format_is_the_same_scan_as_its_dicom(name: str, work: Path, tmp_path: Path) -> None:
    dicom = read(work, write_study(tmp_path / "study.zip"))
    assert dicom is not None
    volume = dicom.volume
    if name.endswith((".nii", ".nii.gz")):
        volume.to_nifti(tmp_path / name)
    else:
        sitk = pytest.importorskip("SimpleITK")
        image = sitk.GetImageFromArray(
            volume.hu
        )  # its axes go to the left, the back and the head, and so do a Volume's
        image.SetSpacing(volume.spacing[::-1])
        image.SetOrigin([float(value) for value in np.diag([-1, -1, 1]) @ volume.affine[:3, 3]])
        sitk.WriteImage(image, str(tmp_path / name))
    scan = read(work, tmp_path / name)
    assert scan is not None
    np.testing.assert_array_equal(scan.volume.hu, volume.hu)
    np.testing.assert_allclose(scan.volume.affine, volume.affine, atol=1e-3)
    assert scan.volume.source.kind != volume.source.kind


def test_a_scan_is_known_by_its_bytes_and_not_by_its_names(work: Path, tmp_path: Path) -> None:
    study = write_study(tmp_path / "a.zip")
    shutil.copy(study, tmp_path / "b.zip")
    write_study(tmp_path / "c.zip", seeds=(1,))
    digests = [take([str(tmp_path / f"{name}.zip")], work).digest for name in "abc"]
    assert digests[0] == digests[1] != digests[2]


def test_files_of_a_folder_may_share_names_and_come_in_any_order(work: Path, tmp_path: Path) -> None:
    write_study(tmp_path / "study.zip")
    files = sorted((tmp_path / "study-0").iterdir())
    for number, file in enumerate(files):
        (tmp_path / str(number)).mkdir()
        file.rename(tmp_path / str(number) / "slice")
    paths = [tmp_path / str(number) / "slice" for number in range(len(files))]
    scan = read(work, *reversed(paths))
    assert scan is not None
    assert scan.volume.hu.shape == (20, 48, 40)


def test_a_path_answers_nothing_once_its_file_was_taken(work: Path, tmp_path: Path) -> None:
    study = str(write_study(tmp_path / "study.zip"))
    take([study], work)
    with pytest.raises(UploadError, match="error_upload_gone"):
        take([study], work)


def test_one_file_that_is_given_twice_counts_once(work: Path, tmp_path: Path) -> None:
    study = write_study(tmp_path / "study.zip")
    shutil.copy(study, tmp_path / "again.zip")
    twice = take([str(study), f"{tmp_path}/./study.zip"], work)
    assert twice.digest == take([str(tmp_path / "again.zip")], work).digest


def test_of_two_calls_on_one_path_one_has_the_file_and_the_other_leaves_nothing(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = write_study(tmp_path / "study.zip")

    def move_when_another_call_did(path: Path, target: Path) -> None:
        path.unlink()
        path.rename(target)

    monkeypatch.setattr("uploads.os.replace", move_when_another_call_did)
    with pytest.raises(UploadError, match="error_upload_gone"):
        take([str(study)], work)
    assert not list(work.iterdir())


def test_several_series_are_a_choice_and_nothing_is_chosen(work: Path, tmp_path: Path) -> None:
    upload = take([str(write_study(tmp_path / "two.zip", seeds=(0, 1)))], work)
    assert read_scan(upload, None, volume_ctfm, time.perf_counter) is None
    sizes = [series.shape[0] for series in upload.series]
    assert sorted(sizes) == [20, 21]
    chosen = read_scan(upload, sizes.index(21), volume_ctfm, time.perf_counter)
    assert chosen is not None
    assert chosen.volume.hu.shape[0] == 21
    assert all(series.uid not in repr(series) for series in upload.series)
    with pytest.raises(UploadError, match="error_no_such_series"):
        read_scan(upload, 7, volume_ctfm, time.perf_counter)


@pytest.mark.parametrize("make", HOSTILE, ids=lambda make: make.__name__)
def test_a_hostile_upload_is_refused_with_its_reason_and_leaves_nothing(
    make: Callable[[Path, str], Path], work: Path, tmp_path: Path
) -> None:
    path = make(tmp_path, SECRET)
    key, reason = HOSTILE[make]
    with pytest.raises(UploadError, match=key) as told:
        read(work, path)
    assert reason in told.value.detail
    assert SECRET not in str(told.value)
    assert not list(work.iterdir())
    assert not (tmp_path.parent / "outside").exists()


def test_too_many_files_and_none_are_refused(work: Path) -> None:
    with pytest.raises(UploadError, match="error_too_many_files"):
        take([f"{number}" for number in range(1001)], work)
    with pytest.raises(UploadError, match="error_no_file"):
        take([], work)
    with pytest.raises(UploadError, match="error_upload_gone"):
        take(["nowhere"], work)


def test_the_memory_of_scans_is_bounded_and_drops_the_least_recently_used() -> None:
    size = phantom_volume().hu.nbytes
    cache = ScanCache(max_bytes=2 * size, max_scans=10)
    for key in ("a", "b"):
        cache.put(Scan(key=key, volume=phantom_volume(), read_seconds=0.0))
    assert cache.get("a") is not None
    cache.put(Scan(key="c", volume=phantom_volume(), read_seconds=0.0))
    assert [cache.get(key) is not None for key in ("a", "b", "c")] == [True, False, True]
    few = ScanCache(max_scans=1)
    for key in ("a", "b"):
        few.put(Scan(key=key, volume=phantom_volume(), read_seconds=0.0))
    assert few.get("a") is None


def test_what_was_left_behind_is_swept_away_once_it_is_old(tmp_path: Path) -> None:
    for name, touched in (("old", 1000.0), ("new", 2000.0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("x")
        for path in (tmp_path / name / "file", tmp_path / name):
            os.utime(path, (touched, touched))
    sweep(tmp_path, 2100.0, 900.0)
    assert not (tmp_path / "old" / "file").exists()
    assert (tmp_path / "new" / "file").exists()
