"""Path -> the files in it and what each is; a zip is checked before anything is written, then unpacked to a temporary folder.

Nothing is opened that is not a plain file. A zip is refused when a member is encrypted, is a link, or climbs out of the
folder; when it holds more than `MAX_FILES` members or `MAX_UNPACKED_BYTES`; when it unpacks to more than `MAX_RATIO` times its
size (above `RATIO_FREE_BYTES`). A zip inside a zip stays closed and is counted as left out.
"""

import bz2
import hashlib
import lzma
import os
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Protocol

from .volume_scan_ctfm import DamagedFileError, UnsafeFileError, VolumeError

MAX_FILES = 50_000
MAX_ENTRY_BYTES = 400  # of a member in the list of a zip, its path included; 46 and the path are the least
MAX_UNPACKED_BYTES = 16 * 2**30
MAX_RATIO = 200
RATIO_FREE_BYTES = 64 * 2**20
CHUNK_BYTES = 2**20
UNPACKING_THREADS = 2

DRIVE = re.compile(r"[A-Za-z]:")  # "C:..." leaves the folder on Windows; any other colon is part of a name
MAX_NAME_BYTES, MAX_PATH_BYTES = 200, 2000  # file systems take 255 and 4096

POINTERS = (b"/annex/objects/", b"version https://git-lfs.github.com/spec/")
NOT_FETCHED = "pointer to a file"
ANALYZE = "Analyze file"

# What zipfile and its decompressors raise on damaged members; ValueError: a name that is no UTF-8.
UNPACK_ERRORS = (RuntimeError, ValueError, OverflowError, EOFError, OSError, zlib.error, lzma.LZMAError, struct.error)

SYSTEM_NAMES = {"dicomdir", "thumbs.db", "desktop.ini", ".ds_store"}
META_FIRST_LINE = re.compile(rb"\s*(ObjectType|NDims|Comment|ObjectSubType)\s*=")


class Stream(Protocol):
    """Something to read from the front; `close` frees it."""

    def read(self, size: int = ..., /) -> bytes: ...

    def close(self) -> None: ...


class InflateStream:
    """A gzip or zlib file, read from where it stands; a missing end or a wrong checksum is an error, not a short read."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file, self._name = file, name
        self._inflate = zlib.decompressobj(47)  # 32 + 15: gzip or zlib, whichever the header says
        self._pending = b""

    def read(self, size: int = CHUNK_BYTES, /) -> bytes:
        out = bytearray()
        while len(out) < size:
            if self._inflate.eof:
                self._pending = self._inflate.unused_data or self._file.read(CHUNK_BYTES)
                if not self._pending.startswith(b"\x1f\x8b"):  # a second gzip member may follow, padding is ignored
                    break
                self._inflate = zlib.decompressobj(47)
            chunk = self._pending or self._file.read(CHUNK_BYTES)
            if not chunk:
                raise DamagedFileError(
                    "the compressed data ends early", file=self._name, cure="Copy or download the file again."
                )
            try:
                out += self._inflate.decompress(chunk, size - len(out))
            except zlib.error:
                raise DamagedFileError(
                    "the compressed data is damaged", file=self._name, cure="Copy or download the file again."
                ) from None
            self._pending = b"" if self._inflate.eof else self._inflate.unconsumed_tail
        return bytes(out)

    def close(self) -> None:
        self._file.close()


class BunzipStream:
    """A bzip2 file, read from where it stands."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file, self._name = file, name
        self._bunzip = bz2.BZ2File(file)

    def read(self, size: int = CHUNK_BYTES, /) -> bytes:
        try:
            return self._bunzip.read(size)
        except (EOFError, OSError):
            raise DamagedFileError("the compressed data ends early or is damaged", file=self._name) from None

    def close(self) -> None:
        self._file.close()


def tell_kind(path: Path) -> str:
    """What a file is by its first bytes, not by its name: "dicom", "nifti", "metaimage", "nrrd", "zip", "array" or the
    reason why it is left out ("empty file", "system file", "other file"); `NOT_FETCHED` where git-annex or Git LFS put a
    pointer in place of a file."""
    name = path.name
    if name.lower() in SYSTEM_NAMES or name.startswith("._") or "__MACOSX" in path.parts:
        return "system file"
    with path.open("rb") as file:
        head = file.read(1024)
        if head.startswith(b"\x1f\x8b"):
            file.seek(0)
            try:
                inflated = InflateStream(file, name).read(1024)
            except DamagedFileError:
                if name.lower().endswith(".nii.gz"):
                    return "nifti"  # whoever opens it says what is wrong with it
                return "other file"
            return "nifti" if _is_nifti(inflated) else "other file"
    if not head:
        return "empty file"
    if head.startswith(POINTERS):
        return NOT_FETCHED
    if head[128:132] == b"DICM" or _is_bare_dicom(head):
        return "dicom"
    if head.startswith(b"NRRD000"):
        return "nrrd"
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "zip"
    if head.startswith((b"\x93NUMPY",)):
        return "array"
    if _is_nifti(head) or name.lower().endswith((".nii", ".nii.gz")):
        return "nifti"
    if META_FIRST_LINE.match(head) or name.lower().endswith((".mha", ".mhd")):
        return "metaimage"
    if name.lower().endswith(".hdr") and head[:4] in ((348).to_bytes(4, "little"), (348).to_bytes(4, "big")):
        return ANALYZE
    return "other file"


def _is_nifti(head: bytes) -> bool:
    return head[344:348] in (b"n+1\0", b"ni1\0") or head[4:8] in (b"n+2\0", b"ni2\0")


def _is_bare_dicom(head: bytes) -> bool:
    """A data set without preamble: starts with a short element of group 8 (or the meta group 2), little or big endian."""
    if len(head) < 64:
        return False
    for order in ("little", "big"):
        group, element = int.from_bytes(head[:2], order), int.from_bytes(head[2:4], order)
        explicit = head[4:6].isalpha() and head[4:6].isupper()
        length = int.from_bytes(head[6:8] if explicit else head[4:8], order)
        if group in (2, 8) and element <= 0x0070 and length <= 256:
            return True
    return False


def list_files(folder: Path) -> list[Path]:
    """Every plain file under a folder in a fixed order, each once, behind links too.

    Raises:
        VolumeError: links lead to nothing: what they stood for may be half of the scan.
    """
    files: list[Path] = []
    num_unopened = 0
    for _, found, unopened in walk_files(folder, _refuse):
        files += found
        num_unopened += unopened
        if len(files) > MAX_FILES:
            raise UnsafeFileError(f"more than {MAX_FILES} files in the folder", cure="Point at one study.")
    if num_unopened:
        raise VolumeError(
            f"{num_unopened} of {num_unopened + len(files)} files cannot be opened: links that lead to nothing",
            cure="Fetch them (git annex get, datalad get) or copy the whole scan.",
        )
    return files


def walk_files(
    folder: Path, onerror: Callable[[OSError], None] | None = None
) -> Iterator[tuple[Path, list[Path], int]]:
    """Each folder, the plain files directly in it, and how many links in it lead to nothing.

    Links to files and folders are followed; a folder or file that several of them reach comes once, so that a link to a
    folder above ends. Pipes and devices are passed over, and so are hidden links that lead to nothing (an editor's locks).
    """
    seen = {_identity(folder)}
    for parent, folders, names in os.walk(folder, onerror=onerror, followlinks=True):
        files, num_unopened = [], 0
        for name in sorted(names):
            path = Path(parent, name)
            try:
                status = path.stat()
            except OSError:
                num_unopened += not name.startswith(".")
                continue
            if stat.S_ISREG(status.st_mode) and (status.st_dev, status.st_ino) not in seen:
                seen.add((status.st_dev, status.st_ino))
                files.append(path)
        yield Path(parent), files, num_unopened
        folders[:] = [name for name in sorted(folders) if _is_new(Path(parent, name), seen)]


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _is_new(folder: Path, seen: set[tuple[int, int]]) -> bool:
    identity = _identity(folder)
    if identity in seen:
        return False
    seen.add(identity)
    return True


def _refuse(error: OSError) -> None:
    raise error  # a folder that cannot be opened may hold half of the scan


def unpack(archive: Path, folder: Path) -> None:
    """Unpacks a zip into an empty folder, after every member was checked."""
    try:
        _check_directory(archive)
        with zipfile.ZipFile(archive) as zipped:
            members = zipped.infolist()
            _check_archive(archive, members)
            checked = list(_safe_members(archive, members))
            # Inflating is what takes the time, and zlib lets other threads run meanwhile; reads of the archive are locked.
            with ThreadPoolExecutor(max_workers=UNPACKING_THREADS) as pool:
                for _ in pool.map(lambda found: _unpack_member(zipped, found[0], folder.joinpath(*found[1])), checked):
                    pass
    except zipfile.BadZipFile:
        raise DamagedFileError(
            "the zip is damaged or ends early", file=archive.name, cure="Copy or download it again."
        ) from None
    except UNPACK_ERRORS as error:
        if isinstance(error, VolumeError):
            raise
        raise DamagedFileError(
            f"a member of the zip cannot be unpacked: {type(error).__name__}",
            file=archive.name,
            cure="Unpack it with another program and pass the folder.",
        ) from None


def _check_directory(archive: Path) -> None:
    """Refuses a list of members too long to be taken into memory; its length stands at the end of a zip."""
    with archive.open("rb") as file:
        file.seek(max(0, archive.stat().st_size - 2**16 - 200))
        end = file.read()
    size = 0
    for magic, code, at in (
        (b"PK\x05\x06", "<I", 12),
        (b"PK\x06\x06", "<Q", 40),
    ):  # the second where sizes need 64 bits
        found = end.rfind(magic)
        if 0 <= found <= len(end) - at - 8:
            (stated,) = struct.unpack_from(code, end, found + at)
            size = max(size, 0 if stated == 0xFFFFFFFF else stated)
    if size > MAX_FILES * MAX_ENTRY_BYTES:
        raise UnsafeFileError(f"more than {MAX_FILES} members", file=archive.name, value=f"a list of {size} bytes")


def _check_archive(archive: Path, members: list[zipfile.ZipInfo]) -> None:
    unpacked = sum(member.file_size for member in members)
    ratio = unpacked / max(1, archive.stat().st_size)
    if len(members) > MAX_FILES:
        raise UnsafeFileError(f"more than {MAX_FILES} members", file=archive.name, value=len(members))
    if unpacked > MAX_UNPACKED_BYTES:
        raise UnsafeFileError(
            f"unpacks to more than {MAX_UNPACKED_BYTES >> 30} GiB", file=archive.name, value=f"{unpacked} bytes"
        )
    if unpacked > RATIO_FREE_BYTES and ratio > MAX_RATIO:
        raise UnsafeFileError(
            f"unpacks to more than {MAX_RATIO} times its size", file=archive.name, value=f"{ratio:.0f} times"
        )


def _safe_members(archive: Path, members: list[zipfile.ZipInfo]) -> Iterator[tuple[zipfile.ZipInfo, tuple[str, ...]]]:
    checked = []
    for member in members:
        if member.flag_bits & 0x1:
            raise UnsafeFileError("the zip is encrypted", file=archive.name, cure="Unpack it and pass the folder.")
        if stat.S_ISLNK(member.external_attr >> 16):
            raise UnsafeFileError("the zip holds a symbolic link", file=archive.name)
        name = member.orig_filename.replace("\\", "/")
        parts = PurePosixPath(name).parts
        if name.startswith("/") or DRIVE.match(name) or ".." in parts or "\0" in name:
            raise UnsafeFileError("a member of the zip climbs out of its folder", file=archive.name)
        if parts and not member.is_dir() and not name.endswith("/"):
            checked.append((member, _short_names(parts)))
    yield from checked


def _short_names(parts: tuple[str, ...]) -> tuple[str, ...]:
    """A member's folders and name, as short as a file system needs; names that were cut stay different."""
    short = tuple(part if len(os.fsencode(part)) <= MAX_NAME_BYTES else _cut(part) for part in parts)
    if sum(len(os.fsencode(part)) + 1 for part in short) > MAX_PATH_BYTES:
        short = (_digest("/".join(parts[:-1])), short[-1])
    if os.name == "nt":
        short = tuple(part.replace(":", "_") for part in short)
    return short


def _cut(name: str) -> str:
    return f"{name[:20]}~{_digest(name)}{Path(name).suffix[:20]}"


def _digest(name: str) -> str:
    return hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=12).hexdigest()


def _unpack_member(zipped: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with zipped.open(member) as packed, target.open("xb") as file:
        while chunk := packed.read(CHUNK_BYTES):
            file.write(chunk)
