"""Uploaded files -> a scan that was read, with what was checked and repaired; then the files are deleted.

No name of a file, patient or series leaves this room: a scan is known by the hash of its bytes, a series by its number.
"""

import contextlib
import hashlib
import os
import shutil
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

MAX_UPLOAD_BYTES = 2 * 2**30
MAX_FILES = 1000  # what one request may carry; a larger series goes as a zip
MAX_VOXELS = 450_000_000  # 1,700 slices of 512 x 512
CACHE_BYTES = 2**30  # what ten uploads may leave; the largest scan that is read is 0.9 GB
CACHE_SCANS = 6


class UploadError(ValueError):
    """What was uploaded cannot be used; the message is a key of texts.py, `detail` the reader's own sentence."""

    def __init__(self, key: str, detail: str = "") -> None:
        super().__init__(f"{key} {detail}".strip())
        self.key, self.detail = key, detail


@dataclass(frozen=True, kw_only=True)
class Series:
    """One choice where an upload holds several series; `uid` stays on the server."""

    uid: str = field(repr=False)
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    plane: str
    kernel: str
    contrast: bool | None
    patient: str


@dataclass(kw_only=True)
class Scan:
    """A scan that was read. `analysis` is filled once (analysis.py)."""

    key: str
    volume: Any
    read_seconds: float
    analysis: Any = None

    @property
    def num_bytes(self) -> int:
        return self.volume.hu.nbytes + (0 if self.analysis is None else self.analysis.num_bytes)


class ScanCache:
    """Scans by the hash of their bytes, the least recently used dropped first; in memory only."""

    def __init__(self, max_bytes: int = CACHE_BYTES, max_scans: int = CACHE_SCANS) -> None:
        self.max_bytes, self.max_scans = max_bytes, max_scans
        self._scans: OrderedDict[str, Scan] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        with self._lock:
            return len(self._scans)

    def get(self, key: str | None) -> Scan | None:
        with self._lock:
            if key is None or key not in self._scans:
                return None
            self._scans.move_to_end(key)
            return self._scans[key]

    def put(self, scan: Scan) -> None:
        with self._lock:
            self._scans[scan.key] = scan
            self._scans.move_to_end(scan.key)
            while len(self._scans) > 1 and (
                len(self._scans) > self.max_scans or sum(s.num_bytes for s in self._scans.values()) > self.max_bytes
            ):
                self._scans.popitem(last=False)


@dataclass(kw_only=True)
class Upload:
    """Files of one upload, moved into a folder of their own, and the hash of their bytes.

    `series` is filled where a choice has to be made; until then the files stay.
    """

    folder: Path
    digest: str
    series: tuple[Series, ...] = ()

    def delete(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def take(paths: Sequence[str], work: Path, keep: bool = False) -> Upload:
    """Moves uploaded files into a new folder under `work` and hashes them; what they are called there does not matter.

    Whoever moves a file first has it: for every later call on its path there is nothing there.

    Args:
        paths: as the server stored them; one that is given twice counts once.
        keep: leave the files where they are (the Space's own examples).

    Raises:
        UploadError: nothing, too many files, too many bytes, or files that are gone.
    """
    if not paths:
        raise UploadError("error_no_file")
    if len(paths) > MAX_FILES:
        raise UploadError("error_too_many_files", str(len(paths)))
    files = sorted({Path(path).resolve() for path in paths})
    if not all(file.is_file() for file in files):
        raise UploadError("error_upload_gone")
    upload = Upload(folder=Path(tempfile.mkdtemp(dir=work, prefix="upload-")), digest="")
    try:
        if sum(file.stat().st_size for file in files) > MAX_UPLOAD_BYTES:
            raise UploadError("error_too_large", f"{MAX_UPLOAD_BYTES >> 30} GiB")
        moved = [bring(file, upload.folder, number, keep) for number, file in enumerate(files)]
    except FileNotFoundError:  # another call on the same path came first
        upload.delete()
        raise UploadError("error_upload_gone") from None
    except UploadError:
        upload.delete()
        raise
    digests = sorted(hash_file(path) for path in moved)
    upload.digest = hashlib.sha256("".join(digests).encode()).hexdigest()
    return upload


def bring(path: Path, folder: Path, number: int, keep: bool) -> Path:
    target = folder / path.name
    if target.exists():  # the same name in two folders of one drop
        target = folder / f"{number}-{path.name}"
    if keep:
        shutil.copyfile(path, target)
    else:
        os.replace(path, target)
    return target


def hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


def scan_key(upload: Upload, number: int | None) -> str:
    return f"{upload.digest}-{number or 0}"


def find_series(upload: Upload, reader: ModuleType) -> tuple[Series, ...]:
    """The series that can be read; left-out ones (localizers, ...) are reported by the reader.

    Raises:
        UploadError: with the reader's reason.
    """
    try:
        listed = reader.list_series(source_of(upload))
    except reader.VolumeError as error:
        raise UploadError(error_key(error), describe_error(error)) from None
    return tuple(
        Series(
            uid=series.series_uid,
            shape=series.shape,
            spacing=series.spacing,
            plane=series.plane,
            kernel=series.kernel,
            contrast=series.contrast,
            patient=series.patient,
        )
        for series in listed
        if not series.left_out_because
    )


def read_scan(upload: Upload, number: int | None, reader: ModuleType, seconds: Any) -> Scan | None:
    """Reads the scan, or fills `upload.series` and returns None where one has to be chosen.

    Args:
        number: of the chosen series in `upload.series`, None when nothing was chosen.
        seconds: a clock.

    Raises:
        UploadError: with the reader's reason.
    """
    if not upload.folder.is_dir():
        raise UploadError("error_upload_gone")
    start = seconds()
    uid = None
    if number is not None and not upload.series:
        upload.series = find_series(upload, reader)
    if number is not None and upload.series:
        if not 0 <= number < len(upload.series):
            raise UploadError("error_no_such_series", f"{number} / {len(upload.series)}")
        uid = upload.series[number].uid
    try:
        volume = reader.read_volume(source_of(upload), uid)
    except reader.AmbiguousSeriesError as error:
        upload.series = find_series(upload, reader)
        if len(upload.series) < 2:
            raise UploadError("error_unreadable", describe_error(error)) from None
        return None
    except reader.VolumeError as error:
        raise UploadError(error_key(error), describe_error(error)) from None
    if volume.hu.size > MAX_VOXELS:
        raise UploadError("error_too_large", f"{volume.hu.size // 10**6} > {MAX_VOXELS // 10**6} million voxels")
    return Scan(key=scan_key(upload, number), volume=volume, read_seconds=seconds() - start)


def source_of(upload: Upload) -> Path:
    """One file is the source itself; several are a folder."""
    files = list(upload.folder.iterdir())
    return files[0] if len(files) == 1 else upload.folder


def error_key(error: Exception) -> str:
    kinds = {
        "DamagedFileError": "error_damaged",
        "UnsafeFileError": "error_unsafe",
        "NotCTError": "error_not_ct",
        "GeometryError": "error_geometry",
        "UnsupportedFormatError": "error_unsupported",
    }
    return kinds.get(type(error).__name__, "error_unreadable")


def describe_error(error: Any) -> str:
    """Problem, value and cure without the file's name, which may be a patient's."""
    names = type(error).__name__ == "AmbiguousSeriesError"
    value = "" if error.value is None or names else f" ({str(error.value)[:100]})"
    return f"{error.problem}{value}. {error.cure}".strip()


def sweep(work: Path, now: float, max_age_seconds: float) -> None:
    """Deletes what was left behind under `work`: files and empty folders that nobody touched for a while."""
    for folder, folders, names in os.walk(work, topdown=False):
        for path in (Path(folder, name) for name in (*names, *folders)):
            with contextlib.suppress(OSError):  # its owner was faster, or a folder is not empty
                if now - path.stat().st_mtime > max_age_seconds:
                    path.rmdir() if path.is_dir() else path.unlink()
