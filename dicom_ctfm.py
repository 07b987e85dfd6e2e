"""DICOM files -> headers -> stacks of slices that belong together -> one `Scan`. Nothing is merged that the headers tell apart.

- A stack has one patient, study, series, frame of reference, orientation, size, pixel spacing and kernel. Slices that
  overlap are split by acquisition, time point, contrast, energy, ...; `uid#2` names the second stack of a series.
- A stack is usable when it is CT in Hounsfield units with at least two positions. Localizers, secondary captures, colour,
  maps that are not in HU and other modalities never are. Reformats (MPR, MIP, ...) and stacks under `SHORT_STACK` slices
  are used only where nothing better is there. If more than one stack remains, the caller must choose.
- Slices are ordered by position along their normal. Identical duplicates are dropped, different ones refused. A hole of up
  to `MAX_GAP_STEPS` slice distances and `MAX_GAP_MM` is filled by linear interpolation from the true positions, a larger
  one refused.

Only the tags listed here are read, as raw bytes; patient tags serve to tell patients apart and are not kept.
"""

import hashlib
import io
import itertools
import logging
import math
import struct
import threading
import warnings as python_warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .dicom_pixels_ctfm import (
    BIG_ENDIAN,
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    LOSSY,
    SYNTAX_NAMES,
    PixelLayout,
    data_set_bytes,
    inflate,
    read_stored,
    to_hounsfield,
)
from .scan_ctfm import (
    MAX_SPACING_MM,
    MIN_SPACING_MM,
    AmbiguousSeriesError,
    DamagedFileError,
    GeometryError,
    HounsfieldStack,
    NotCTError,
    Scan,
    SeriesInfo,
    UnsupportedFormatError,
    VolumeError,
    VolumeSource,
    check_shape,
)

try:
    from pydicom.datadict import keyword_for_tag
    from pydicom.dataset import Dataset, FileDataset
    from pydicom.errors import BytesLengthException, InvalidDicomError
    from pydicom.filereader import dcmread, read_dataset

    HAS_PYDICOM = True
    PYDICOM_ERRORS: tuple[type[Exception], ...] = (InvalidDicomError, BytesLengthException)
except ImportError:
    HAS_PYDICOM = False
    PYDICOM_ERRORS = ()

SHORT_STACK = 5
MAX_GAP_STEPS = 3.0
MAX_GAP_MM = 15.0
SAME_POSITION_MM = 0.01
REGULAR_TOLERANCE = 0.1  # of the slice distance: positions are often rounded to a tenth of a millimetre
MAX_STACKS = 500
MIN_TILT_DEGREES = 0.5
NO_PLACE = "no position, orientation or pixel spacing"

CT_CLASSES = {
    "1.2.840.10008.5.1.4.1.1.2": "CT",
    "1.2.840.10008.5.1.4.1.1.2.1": "enhanced CT",
    "1.2.840.10008.5.1.4.1.1.2.2": "legacy converted enhanced CT",
}
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
LOCALIZER_WORDS = {"LOCALIZER", "SCOUT", "TOPOGRAM", "SURVIEW", "SCANOGRAM", "SCANO"}
CAPTURE_WORDS = {"SCREEN SAVE", "SCREENSAVE", "SCREEN", "SSAVE", "DOSE", "DOSE_INFO", "PROTOCOL", "REPORT", "RGB"}
MAP_WORDS = {"CBF", "CBV", "MTT", "TTP", "TMAX", "PERFUSION", "PERMEABILITY", "IODINE", "Z_EFF", "ZEFF", "EFFECTIVE_Z"}
REFORMAT_WORDS = {
    "MPR",
    "MIP",
    "MINIP",
    "AVERAGE_IP",
    "VRT",
    "VOLREND",
    "CURVED",
    "PROJECTION IMAGE",
    "REFORMATTED",
    "CSA MPR",
}
REFORMAT_WORDS |= {
    "MAX_IP",
    "MIN_IP",
    "MAXIP",
    "RENDERING",
    "SSD",
    "3D",
    "PARALLEL",
    "CSAPARALLEL",
    "THICK MPR",
    "RESAMPLED",
}

# Tags that tell acquisitions apart wherever their slices overlap.
ACQUISITION_TAGS = {
    "acquisition": 0x0020_0012,
    "frame acquisition": 0x0020_9156,
    "temporal position": 0x0020_0100,
    "temporal index": 0x0020_9128,
    "stack": 0x0020_9056,
    "acquisition uid": 0x0008_0017,
    "irradiation event": 0x0008_3010,
    "contrast": 0x0018_0010,
    "energy": 0x0018_0060,
    "echo time": 0x0018_0081,
    "cardiac phase": 0x0020_9241,
    "slice thickness": 0x0018_0050,
    "filter": 0x0018_1160,
    "field of view": 0x0018_1100,
    "image type": 0x0008_0008,
    "frame type": 0x0008_9007,
    "series number": 0x0020_0011,
    "scan options": 0x0018_0022,
    "series description": 0x0008_103E,
    "protocol": 0x0018_1030,
}
# Tags that differ inside one acquisition too, so they count only where slices lie on the same place.
COLLISION_TAGS = {
    "trigger time": 0x0018_1060,
    "contrast start": 0x0018_1042,
    "acquisition time": 0x0008_0032,
    "acquisition datetime": 0x0008_002A,
    "frame datetime": 0x0018_9074,
    "content time": 0x0008_0033,
    "series time": 0x0008_0031,
}
TIME_NAMES = ("acquisition time", "acquisition datetime", "frame datetime", "content time", "trigger time")

PATIENT_TAGS = (0x0010_0020, 0x0010_0010, 0x0010_0030)
# fmt: off
PLAIN_TAGS = (
    0x0008_0005, 0x0008_0016, 0x0008_0018, 0x0008_0060, 0x0008_0070, 0x0018_0015, 0x0018_1120, 0x0018_1210,
    0x0018_5100, 0x0020_000D, 0x0020_000E, 0x0020_0032, 0x0020_0037, 0x0020_0052, 0x0028_0002, 0x0028_0004,
    0x0028_0008, 0x0028_0010, 0x0028_0011, 0x0028_0030, 0x0028_0100, 0x0028_0101, 0x0028_0102, 0x0028_0103,
    0x0028_0120, 0x0028_0121, 0x0028_1052, 0x0028_1053, 0x0028_1054, 0x0028_2110, 0x0028_3000, 0x5200_9229, 0x5200_9230,
)
# fmt: on
# Functional groups of enhanced files: where a tag is found inside a frame's item.
MACROS = {
    0x0020_0032: 0x0020_9113,
    0x0020_0037: 0x0020_9116,
    0x0028_0030: 0x0028_9110,
    0x0018_0050: 0x0028_9110,
    0x0028_1052: 0x0028_9145,
    0x0028_1053: 0x0028_9145,
    0x0028_1054: 0x0028_9145,
    0x0018_1210: 0x0018_9314,
    0x0018_1100: 0x0018_9314,
    0x0018_0060: 0x0018_9325,
    0x0020_9156: 0x0020_9111,
    0x0020_9128: 0x0020_9111,
    0x0020_9056: 0x0020_9111,
    0x0018_9074: 0x0020_9111,
    0x0008_9007: 0x0018_9329,
    0x0020_9241: 0x0018_9118,
}
PARSE_ERRORS = (
    *(
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        IndexError,
        EOFError,
        NotImplementedError,
        OverflowError,
        MemoryError,
    ),
    *(struct.error, RecursionError, AssertionError, OSError),
    *PYDICOM_ERRORS,
)


@dataclass(frozen=True, kw_only=True)
class Slice:
    """One frame and what places it. Lengths in mm, LPS."""

    pixels: PixelLayout
    frame: int
    patient: str
    study: str
    series: str
    instance: str
    frame_of_reference: str
    reason: str  # why it can never be part of a volume; empty where it can
    is_reformat: bool
    position: tuple[float, float, float]
    orientation: tuple[float, float, float, float, float, float]
    pixel_spacing: tuple[float, float]
    slope: float
    intercept: float
    kernel: str
    marks: dict[str, bytes]
    facts: dict[str, str]

    @property
    def normal(self) -> np.ndarray:
        return np.cross(self.orientation[:3], self.orientation[3:])


@dataclass(frozen=True, kw_only=True)
class Stack:
    """Slices that belong together, ordered along their normal."""

    slices: tuple[Slice, ...]
    series_uid: str
    info: SeriesInfo

    @property
    def is_reformat(self) -> bool:
        return self.slices[0].is_reformat


# --- public --------------------------------------------------------------------------------------------------------------


def list_dicom_series(source: str, kinds: dict[Path, str]) -> list[SeriesInfo]:
    """Every stack of slices in these files, the unusable ones with their reason."""
    with _quiet_pydicom:
        stacks, _, _ = _find_stacks(source, kinds)
    return [stack.info for stack in stacks]


def read_dicom(source: str, kinds: dict[Path, str], series_uid: str | None) -> Scan:
    """Reads the one stack that is a CT volume, or the one that `series_uid` names.

    Args:
        source: what errors call the source.
        kinds: every file of the source, and what `tell_kind` says it is.
    """
    with _quiet_pydicom:
        stacks, left_out, num_patients = _find_stacks(source, kinds)
        stack = _choose(stacks, left_out, num_patients, series_uid, source)
        for other in stacks:
            if other.info.left_out_because == NO_PLACE and other.slices[0].series == stack.slices[0].series:
                raise GeometryError(
                    f"a slice of the series has {NO_PLACE}",
                    file=other.slices[0].pixels.path.name,
                    cure="Export it again.",
                )
            if other is not stack:
                left_out[other.info.left_out_because or "other series"] += len(other.slices)
        return _read_stack(stack, left_out)


def read_slice(path: Path) -> np.ndarray:
    """One DICOM image in Hounsfield units, `(rows, columns)` as stored, without a volume's checks; padding becomes air."""
    with _quiet_pydicom:
        found = _read_header(path)
        if isinstance(found, str) or found[0].reason:
            raise NotCTError("no CT slice", file=path.name, value=found if isinstance(found, str) else found[0].reason)
        return _to_hounsfield(next(read_stored(found[0].pixels)), found[0])[0]


class _Quiet:
    """pydicom puts values into its warnings and paths into its log. One counter for all threads, as both are global."""

    def __init__(self) -> None:
        self._lock, self._depth = threading.Lock(), 0
        self._catch: python_warnings.catch_warnings | None = None
        self._logger = logging.getLogger("pydicom")
        self._was_disabled = False

    def __enter__(self) -> None:
        with self._lock:
            if self._depth == 0:
                self._catch = python_warnings.catch_warnings()
                self._catch.__enter__()
                python_warnings.simplefilter("ignore")
                self._was_disabled, self._logger.disabled = self._logger.disabled, True
            self._depth += 1

    def __exit__(self, *exc: object) -> None:
        with self._lock:
            self._depth -= 1
            if self._depth == 0 and self._catch is not None:
                self._logger.disabled = self._was_disabled
                self._catch.__exit__(None, None, None)


_quiet_pydicom = _Quiet()


# --- files -> slices -------------------------------------------------------------------------------------------------------


def _find_stacks(source: str, kinds: dict[Path, str]) -> tuple[list[Stack], Counter[str], int]:
    if not HAS_PYDICOM:
        raise UnsupportedFormatError(
            "reading DICOM needs pydicom", file=source, cure='Install it with pip install "ctfm[io]".'
        )
    left_out: Counter[str] = Counter()
    slices: list[Slice] = []
    patients: dict[str, int] = {}
    for path, kind in kinds.items():
        if kind != "dicom":
            left_out[kind if kind.endswith("file") else f"{kind} file"] += 1
            continue
        found = _read_header(path)
        if isinstance(found, str):
            left_out[found] += 1
            continue
        for one in found:
            patients.setdefault(one.patient, len(patients) + 1)
        slices += found
    return _group(slices, patients), left_out, len(patients)


def _read_header(path: Path) -> list[Slice] | str:
    """The slices of a file, or the reason why it is left out."""
    try:
        with path.open("rb") as file:
            head = file.read(1024)
            file.seek(0)
            deflated = DEFLATED.encode() in head[:1024]
            if deflated:
                data = io.BytesIO(inflate(data_set_bytes(file.read(), path.name), path.name))
                data_set = read_dataset(data, False, True, stop_when=_at_pixels, specific_tags=_tags())
                syntax, offset = DEFLATED, data.tell()
            else:
                data_set = dcmread(file, stop_before_pixels=True, specific_tags=_tags(), force=True)
                syntax, offset = _transfer_syntax(data_set), file.tell()
                if len(file.read(8)) < 8:
                    offset = -1
        header = _Header(data_set, path, syntax, offset)
        if header.is_directory:
            return "system file"
        reason = header.foreign_reason()
        if reason:
            return reason
        return [_read_slice(header, frame) for frame in range(header.num_frames)]
    except VolumeError:
        raise
    except PARSE_ERRORS as error:
        raise DamagedFileError(
            f"the DICOM header cannot be read: {type(error).__name__}", file=path.name, cure="Copy the file again."
        ) from None


def _tags() -> list[int]:
    return [*PATIENT_TAGS, *PLAIN_TAGS, *ACQUISITION_TAGS.values(), *COLLISION_TAGS.values()]


def _at_pixels(tag: int, vr: str | None, length: int) -> bool:
    return tag >= 0x7FE0_0008


def _transfer_syntax(data_set: "FileDataset") -> str:
    stated = data_set.file_meta.get_item(0x0002_0010)
    value = getattr(stated, "value", None)
    if value:
        text = value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)
        return text.strip("\0 ")
    implicit, little = data_set.original_encoding
    return IMPLICIT if implicit else (EXPLICIT if little else BIG_ENDIAN)


class _Header:
    """Raw values of one file. Nothing goes through pydicom's value conversion, which warns with the value in the text."""

    def __init__(self, data_set: "Dataset", path: Path, syntax: str, offset: int) -> None:
        self.path, self.syntax, self.offset = path, syntax, offset
        self._data_set = data_set
        self._order = ">" if syntax == BIG_ENDIAN else "<"
        frames = self.text(0x0028_0008) or "1"
        if not frames.isdigit() or not 1 <= int(frames) <= 100_000:
            raise DamagedFileError("absurd number of frames", file=path.name, value=frames)
        self.num_frames = int(frames)
        self.shared = self.items(0x5200_9229)
        self.per_frame = self.items(0x5200_9230)
        if self.per_frame and len(self.per_frame) != self.num_frames:
            raise DamagedFileError(
                "the number of frames is not that of their headers",
                file=path.name,
                value=f"{self.num_frames} frames, {len(self.per_frame)} headers",
            )

    def items(self, tag: int, data_set: "Dataset | None" = None) -> Sequence["Dataset"]:
        data_set = self._data_set if data_set is None else data_set
        return data_set[tag].value or () if tag in data_set else ()

    def raw(self, tag: int, frame: int | None = None) -> bytes:
        """The value as stored; of a frame, from its own functional group, the shared one, or the file."""
        for data_set in self._places(tag, frame):
            element = data_set.get_item(tag)
            value = getattr(element, "value", None)
            if isinstance(value, bytes):
                if len(value) < getattr(element, "length", 0) < 0xFFFFFFFF:
                    raise DamagedFileError(f"the file ends inside {_tag_name(tag)}", file=self.path.name)
                return value
        return b""

    def _places(self, tag: int, frame: int | None) -> Iterator["Dataset"]:
        macro = MACROS.get(tag)
        if frame is not None and macro is not None:
            if frame < len(self.per_frame):
                yield from self.items(macro, self.per_frame[frame])
            if self.shared:
                yield from self.items(macro, self.shared[0])
        yield self._data_set

    def text(self, tag: int, frame: int | None = None) -> str:
        return self.raw(tag, frame).decode("latin-1").strip("\0 \t\r\n")

    def words(self, tag: int, frame: int | None = None) -> list[str]:
        return [word.strip().upper() for word in self.text(tag, frame).split("\\") if word.strip()]

    def label(self, tag: int, frame: int | None = None) -> str:
        """A short technical text, cleaned for display."""
        text = " ".join(self.text(tag, frame).split("\\"))
        return "".join(char for char in text if char.isascii() and char.isprintable())[:32]

    def short(self, tag: int, default: int | None = None) -> int:
        value = self.raw(tag)
        if len(value) < 2:
            if default is None:
                raise DamagedFileError(f"the header lacks {_tag_name(tag)}", file=self.path.name)
            return default
        return struct.unpack(self._order + "H", value[:2])[0]

    def numbers(self, tag: int, count: int, frame: int | None = None) -> tuple[float, ...]:
        """`count` finite decimal numbers, or an empty tuple where the tag is missing or empty."""
        text = self.text(tag, frame)
        if not text:
            return ()
        parts = text.split("\\")
        try:
            numbers = tuple(float(part) for part in parts)
        except ValueError:
            raise DamagedFileError(f"{_tag_name(tag)} is no number", file=self.path.name, value=text[:40]) from None
        if len(numbers) != count or not all(math.isfinite(number) for number in numbers):
            raise DamagedFileError(
                f"{_tag_name(tag)} needs {count} finite numbers", file=self.path.name, value=text[:40]
            )
        return numbers

    @property
    def is_directory(self) -> bool:
        return self.text(0x0008_0016) == "1.2.840.10008.1.3.10" or self._media_class() == "1.2.840.10008.1.3.10"

    def _media_class(self) -> str:
        meta = getattr(self._data_set, "file_meta", None)
        value = getattr(meta.get_item(0x0002_0002), "value", b"") if meta is not None else b""
        return (value.decode("latin-1") if isinstance(value, bytes) else str(value)).strip("\0 ")

    def foreign_reason(self) -> str:
        """Why the file is no CT image at all; empty where it may be one."""
        modality, sop_class = self.text(0x0008_0060).upper(), self.text(0x0008_0016)
        if modality and modality != "CT":
            return f"modality {modality}" if modality.isalnum() and len(modality) <= 16 else "other modality"
        if not modality and not sop_class:
            raise DamagedFileError("no DICOM image header: the file is damaged or ends early", file=self.path.name)
        if not modality and sop_class not in CT_CLASSES:
            return "other kind of object"
        if sop_class and sop_class not in CT_CLASSES and not self.raw(0x0028_0010):
            return "other kind of object"
        return ""

    def patient(self) -> str:
        """A key that tells patients apart and cannot be read back."""
        parts = [b" ".join(self.raw(tag).upper().replace(b"^", b" ").split()).strip(b"\0 ") for tag in PATIENT_TAGS]
        return hashlib.blake2b(b"\n".join(parts)).hexdigest()


def _tag_name(tag: int) -> str:
    return keyword_for_tag(tag) or f"{tag:08x}"


def _read_slice(header: _Header, frame: int) -> Slice:
    image_type = header.words(0x0008_9007, frame) or header.words(0x0008_0008)
    reason = _never_reason(header, frame, image_type)
    placed = ((0.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0), (1.0, 1.0), 1.0, 0.0)
    position, orientation, pixel_spacing, slope, intercept = placed if reason else _read_place(header, frame)
    marks = {**ACQUISITION_TAGS, **COLLISION_TAGS}
    return Slice(
        pixels=_pixel_layout(header) if not reason else _no_pixels(header),
        frame=frame,
        patient=header.patient(),
        study=header.text(0x0020_000D),
        series=header.text(0x0020_000E),
        instance=header.text(0x0008_0018),
        frame_of_reference=header.text(0x0020_0052),
        reason=reason,
        is_reformat=bool(REFORMAT_WORDS & set(image_type)) or header.text(0x0008_0016).startswith(SECONDARY_CAPTURE),
        position=position,
        orientation=orientation,
        pixel_spacing=pixel_spacing,
        slope=slope,
        intercept=intercept,
        kernel=header.label(0x0018_1210, frame),
        marks={name: header.raw(tag, frame) for name, tag in marks.items()},
        facts={
            "manufacturer": header.label(0x0008_0070),
            "thickness": header.text(0x0018_0050, frame),
            "kvp": header.text(0x0018_0060, frame),
            "patient_position": header.label(0x0018_5100),
            "body_part": header.label(0x0018_0015),
            "tilt": header.text(0x0018_1120),
            "rescale_type": header.text(0x0028_1054, frame).upper(),
            "rescale": "stated" if header.raw(0x0028_1053, frame) and header.raw(0x0028_1052, frame) else "missing",
            "lossy": header.text(0x0028_2110),
            "image_type": "\\".join(word for word in image_type if word.replace("_", "").replace(" ", "").isalnum())[
                :64
            ],
        },
    )


def _never_reason(header: _Header, frame: int, image_type: list[str]) -> str:
    """Why an image of modality CT is no slice of a CT volume; empty where it is one."""
    words = set(image_type)
    if LOCALIZER_WORDS & words:
        return "localizer"
    if header.short(0x0028_0002, 1) != 1 or header.text(0x0028_0004).upper() not in ("MONOCHROME1", "MONOCHROME2", ""):
        return "colour image"
    if CAPTURE_WORDS & words:
        return "secondary capture"
    if MAP_WORDS & words:
        return "derived map"
    placed = header.raw(0x0020_0032, frame) and header.raw(0x0020_0037, frame) and header.raw(0x0028_0030, frame)
    if header.text(0x0008_0016).startswith(SECONDARY_CAPTURE) and not placed:
        return "secondary capture"
    if not placed and header.offset >= 0:
        return NO_PLACE
    if header.text(0x0028_1054, frame).upper() not in ("HU", "US", "", "HU_MOD"):
        return "derived map"
    return ""


def _read_place(header: _Header, frame: int) -> tuple:
    """Position, orientation, pixel spacing, slope, intercept; an error where the slice cannot be placed or scaled."""
    file = header.path.name
    position = header.numbers(0x0020_0032, 3, frame)
    orientation = header.numbers(0x0020_0037, 6, frame)
    pixel_spacing = header.numbers(0x0028_0030, 2, frame)
    for value, what in ((position, "position"), (orientation, "orientation"), (pixel_spacing, "pixel spacing")):
        if not value:
            raise GeometryError(
                f"the header gives no {what} of the slice", file=file, cure="Export the original series again."
            )
    if min(pixel_spacing) < MIN_SPACING_MM or max(pixel_spacing) > MAX_SPACING_MM:
        raise GeometryError("absurd pixel spacing", file=file, value=pixel_spacing)
    if max(abs(place) for place in position) > 1e5:
        raise GeometryError("absurd slice position", file=file, value=position)
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if max(abs(length - 1) for length in lengths) > 0.01 or abs(row @ column) > 0.01:
        raise GeometryError("the rows and columns of the slice are not at right angles", file=file, value=orientation)
    orientation = (*(row / lengths[0]).tolist(), *(column / lengths[1]).tolist())
    slope = (header.numbers(0x0028_1053, 1, frame) or (1.0,))[0]
    intercept = (header.numbers(0x0028_1052, 1, frame) or (0.0,))[0]
    if slope <= 0 or abs(slope) > 1e4 or abs(intercept) > 1e6:
        raise DamagedFileError("absurd rescale slope or intercept", file=file, value=f"{slope:g}, {intercept:g}")
    if header.items(0x0028_3000):
        raise UnsupportedFormatError("a lookup table instead of rescale slope and intercept", file=file)
    return position, orientation, pixel_spacing, slope, intercept


def _pixel_layout(header: _Header) -> PixelLayout:
    rows, columns = header.short(0x0028_0010), header.short(0x0028_0011)
    check_shape((header.num_frames, rows, columns), header.path.name)
    allocated = header.short(0x0028_0100)
    stored = header.short(0x0028_0101, allocated)
    signed = header.short(0x0028_0103, 0) == 1
    code = header._order + ("h" if signed else "H")
    limits = [struct.unpack(code, raw[:2])[0] for tag in (0x0028_0120, 0x0028_0121) if len(raw := header.raw(tag)) >= 2]
    return PixelLayout(
        path=header.path,
        transfer_syntax=header.syntax,
        offset=header.offset,
        rows=rows,
        columns=columns,
        num_frames=header.num_frames,
        bits_allocated=allocated,
        bits_stored=stored,
        high_bit=header.short(0x0028_0102, stored - 1),
        signed=signed,
        padding=(min(limits), max(limits)) if limits and header.raw(0x0028_0120) else None,
    )


def _no_pixels(header: _Header) -> PixelLayout:
    return PixelLayout(
        path=header.path,
        transfer_syntax=header.syntax,
        offset=-1,
        rows=header.short(0x0028_0010, 0),
        columns=header.short(0x0028_0011, 0),
        num_frames=header.num_frames,
        bits_allocated=16,
        bits_stored=16,
        high_bit=15,
        signed=False,
        padding=None,
    )


# --- slices -> stacks ------------------------------------------------------------------------------------------------------


def _group(slices: list[Slice], patients: dict[str, int]) -> list[Stack]:
    series: dict[tuple[str, ...], list[Slice]] = defaultdict(list)
    for one in slices:
        series[one.series, one.patient, one.study].append(one)
    by_uid: dict[str, list[list[Slice]]] = defaultdict(list)
    for key in sorted(series, key=lambda key: (key[0], patients[key[1]], key[2])):
        by_uid[key[0]] += _split(series[key])
    stacks = []
    for uid, groups in by_uid.items():
        reasons = [_unusable(group) for group in groups]
        usable = reasons.count("")
        number = 0
        for group, reason in zip(groups, reasons, strict=True):
            number += not reason
            name = f"{uid}#{number}" if usable > 1 and not reason else uid
            ordered = tuple(_by_position(group))
            info = _series_info(ordered, name, f"patient {patients[group[0].patient]}", reason)
            stacks.append(Stack(slices=ordered, series_uid=name, info=info))
    return stacks


def _unusable(group: list[Slice]) -> str:
    if group[0].reason:
        return group[0].reason
    places = np.sort([np.dot(one.position, group[0].normal) for one in group])
    return "" if places[-1] - places[0] > SAME_POSITION_MM else "single slice"


def _split(slices: list[Slice]) -> list[list[Slice]]:
    """The stacks of one series."""
    hard: dict[tuple, list[list[Slice]]] = defaultdict(list)
    num_frames_of_reference = len({one.frame_of_reference for one in slices})
    stated = num_frames_of_reference <= len(slices) // 2  # some anonymisers give every slice its own
    for one in slices:
        pixels = one.pixels
        key = (
            one.reason,
            one.is_reformat,
            one.frame_of_reference if stated else "",
            pixels.rows,
            pixels.columns,
            one.kernel,
        )
        for group in hard[key]:
            if _looks_alike(group[0], one):
                group.append(one)
                break
        else:
            hard[key].append([one])
        if len(hard[key]) > MAX_STACKS:
            raise GeometryError(f"more than {MAX_STACKS} orientations or pixel spacings in one series")
    groups = [group for alike in hard.values() for group in alike]
    return [part for group in groups for part in ([group] if group[0].reason else _split_acquisitions(group))]


def _looks_alike(first: Slice, other: Slice) -> bool:
    turned = max(abs(a - b) for a, b in zip(first.orientation, other.orientation, strict=True))
    scaled = max(abs(a / b - 1) for a, b in zip(first.pixel_spacing, other.pixel_spacing, strict=True))
    return turned < 0.005 and scaled < 0.001


def _split_acquisitions(group: list[Slice]) -> list[list[Slice]]:
    places = _places(group)
    collides = len(np.unique(places)) < len(group)
    names = [*ACQUISITION_TAGS, *(COLLISION_TAGS if collides else ())]
    for name in names:
        parts: dict[bytes, list[int]] = defaultdict(list)
        for index, one in enumerate(group):
            parts[one.marks[name]].append(index)
        if _are_acquisitions(parts, places):
            return [
                split for key in sorted(parts) for split in _split_acquisitions([group[index] for index in parts[key]])
            ]
    if collides:
        for name in TIME_NAMES:
            passes = _split_passes(group, places, name)
            if passes:
                return passes
    return [group]


def _places(group: Sequence[Slice]) -> np.ndarray:
    """Place along the normal, in whole hundredths of a millimetre."""
    return np.round(np.array([one.position for one in group]) @ group[0].normal / SAME_POSITION_MM).astype(np.int64)


def _are_acquisitions(parts: dict[bytes, list[int]], places: np.ndarray) -> bool:
    """Several stacks, each more than a slice thick, that overlap. Those which only follow each other are one scan in steps."""
    if len(parts) < 2 or any(len(np.unique(places[part])) < 2 for part in parts.values()):
        return False
    ranges = sorted((int(places[part].min()), int(places[part].max())) for part in parts.values())
    return any(second[0] <= first[1] for first, second in itertools.pairwise(ranges))


def _split_passes(group: list[Slice], places: np.ndarray, name: str) -> list[list[Slice]]:
    """Slices in order of time: a new pass begins where a place comes again. Empty where that does not explain them."""
    times = [one.marks[name].strip(b"\0 ") for one in group]
    if not all(time.replace(b".", b"", 1).isdigit() for time in times) or len(set(times)) < 2:
        return []
    passes: list[list[int]] = [[]]
    seen: set[int] = set()
    for index in sorted(range(len(group)), key=lambda index: (float(times[index]), int(places[index]))):
        if int(places[index]) in seen:
            passes.append([])
            seen = set()
        passes[-1].append(index)
        seen.add(int(places[index]))
    if min(len(one) for one in passes) < max(3, len(passes[0]) // 2):
        return []
    return [[group[index] for index in one] for one in passes]


def _by_position(group: Sequence[Slice]) -> list[Slice]:
    """Along the normal; frames of one file keep their order on disk where it runs strictly the other way."""
    places = _places(group)
    ordered = [group[index] for index in np.argsort(places, kind="stable")]
    frames = [one.frame for one in ordered]
    one_file = all(one.pixels.path == ordered[0].pixels.path for one in ordered)
    if one_file and len(frames) > 1 and all(a > b for a, b in itertools.pairwise(frames)):
        return ordered[::-1]
    return ordered


def _series_info(ordered: tuple[Slice, ...], name: str, patient: str, reason: str) -> SeriesInfo:
    first, last = ordered[0], ordered[-1]
    places = np.unique(_places(ordered))
    extent = (places[-1] - places[0]) * SAME_POSITION_MM
    plane = ("sagittal", "coronal", "axial")[int(np.abs(first.normal).argmax())]
    return SeriesInfo(
        series_uid=name,
        patient=patient,
        shape=(len(places), first.pixels.rows, first.pixels.columns),
        spacing=(round(float(extent / max(1, len(places) - 1)), 4), *first.pixel_spacing),
        plane=plane,
        kernel=first.kernel,
        contrast=_contrast(first if first.marks["contrast"] else last),
        left_out_because=reason,
    )


def _contrast(one: Slice) -> bool | None:
    agent = one.marks["contrast"].strip(b"\0 ").upper()
    return None if not agent else agent not in (b"NO", b"NONE", b"N")


# --- stacks -> one stack ---------------------------------------------------------------------------------------------------


def _choose(stacks: list[Stack], left_out: Counter[str], num_patients: int, series_uid: str | None, file: str) -> Stack:
    usable = [stack for stack in stacks if not stack.info.left_out_because]
    if series_uid is not None:
        return _choose_named(stacks, usable, series_uid, file)
    if not usable:
        raise _no_volume(stacks, left_out, file)
    choices = tuple(stack.info for stack in usable)
    if num_patients > 1:
        raise AmbiguousSeriesError(
            f"scans of {num_patients} patients",
            choices=choices,
            file=file,
            cure="Pass series_uid, or one patient's folder.",
        )
    best = _best(usable)
    if len(best) > 1:
        raise AmbiguousSeriesError(
            f"{len(best)} CT series or acquisitions", choices=choices, file=file, cure="Pass series_uid, one of:"
        )
    return best[0]


def _choose_named(stacks: list[Stack], usable: list[Stack], series_uid: str, file: str) -> Stack:
    exact = [stack for stack in usable if stack.series_uid == series_uid]
    if exact:
        return exact[0]
    inside = [stack for stack in usable if stack.slices[0].series == series_uid]
    best = _best(inside)
    if len(best) == 1 and len({stack.slices[0].patient for stack in inside}) == 1:
        return best[0]
    if inside:
        raise AmbiguousSeriesError(
            f"the series holds {len(inside)} acquisitions",
            choices=tuple(stack.info for stack in inside),
            file=file,
            cure="Pass series_uid, one of:",
        )
    for stack in stacks:
        if stack.slices[0].series == series_uid:
            raise NotCTError("the series is no CT volume", file=file, value=stack.info.left_out_because)
    raise AmbiguousSeriesError(
        "no such series",
        choices=tuple(stack.info for stack in usable),
        file=file,
        cure="Pass series_uid, one of:" if usable else "",
    )


def _best(usable: list[Stack]) -> list[Stack]:
    """Original stacks before reformats, and long ones before short ones."""
    originals = [stack for stack in usable if not stack.is_reformat] or usable
    return [stack for stack in originals if stack.info.shape[0] >= SHORT_STACK] or originals


def _no_volume(stacks: list[Stack], left_out: Counter[str], file: str) -> VolumeError:
    reasons = Counter(left_out)
    for stack in stacks:
        reasons[stack.info.left_out_because] += len(stack.slices)
    found = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
    if reasons[NO_PLACE]:
        return GeometryError(
            f"slices have {NO_PLACE}", file=file, value=found, cure="Export the original series again."
        )
    if reasons["single slice"]:
        return GeometryError("one slice is no volume", file=file, value=found, cure="Pass the whole series.")
    return NotCTError("no CT volume", file=file, value=found, cure="Pass a CT series in Hounsfield units.")


# --- one stack -> Scan -----------------------------------------------------------------------------------------------------


def _read_stack(stack: Stack, left_out: Counter[str]) -> Scan:
    warnings = [f"{count} files were left out: {reason}." for reason, count in sorted(left_out.items())]
    slices = stack.slices
    slots, places = _slots(slices)
    check_shape((len(places), slices[0].pixels.rows, slices[0].pixels.columns), slices[0].pixels.path.name)
    affine = _stack_affine(slices, slots, places)
    _check_gaps(places)
    hu = _read_hounsfield(slices, slots, len(places), warnings)
    num_duplicates = len(slices) - len(places)
    if num_duplicates:
        warnings.append(f"{num_duplicates} slices were there twice, with identical voxels; one of each was kept.")
    if any(one.facts["rescale"] == "missing" for one in slices):
        warnings.append("The header gives no rescale slope and intercept; 1 and 0 were assumed.")
    warnings += _suspicions(slices[0])
    hu, affine, resampled = _fill_gaps(hu, affine, places, warnings)
    return Scan(
        hu=hu,
        affine=affine,
        warnings=tuple(warnings),
        source=_describe_source(slices, len(places), left_out, num_duplicates),
        resampled=resampled,
    )


def _suspicions(one: Slice) -> list[str]:
    said = []
    if one.facts["rescale_type"] == "HU_MOD":
        said.append("The header says modified Hounsfield units (HU_MOD).")
    if one.facts["lossy"] == "01" or one.pixels.transfer_syntax in LOSSY:
        said.append("The pixels were compressed with loss.")
    tilt = _float(one.facts["tilt"])
    if tilt is not None and abs(tilt) > MIN_TILT_DEGREES and np.abs(one.normal).max() > math.cos(math.radians(0.5)):
        said.append(
            f"The header says a gantry tilt of {tilt:g} degrees, but its slices stand upright; positions were trusted."
        )
    return said


def _slots(slices: tuple[Slice, ...]) -> tuple[list[int], np.ndarray]:
    """Which plane each slice fills, and where the planes lie along the stack (mm, from the first)."""
    along = _places(slices)
    steps = np.abs(np.diff(along))
    slots = np.concatenate([[0], np.cumsum(steps > 0)]).tolist()
    exact = np.array([one.position for one in slices]) @ slices[0].normal
    first = [slots.index(slot) for slot in range(slots[-1] + 1)]
    return slots, np.abs(exact[first] - exact[0])


def _stack_affine(slices: tuple[Slice, ...], slots: list[int], places: np.ndarray) -> np.ndarray:
    """(slice, row, column, 1) -> RAS mm for planes at equal steps from the first to the last; slices must lie on a line."""
    first = slices[0]
    positions = np.array([one.position for one in slices])
    line = positions[-1] - positions[0]
    expected = positions[0] + np.outer(places[slots] / places[-1], line)
    aside = float(np.abs(positions - expected).max())
    if aside > max(0.5 * min(first.pixel_spacing), 2 * SAME_POSITION_MM):
        raise GeometryError("the slices do not lie on a straight line", value=f"one is {aside:.2f} mm aside")
    if abs(first.normal @ line) < 0.7 * np.linalg.norm(line):
        raise GeometryError("the stack leans more than 45 degrees from its slices' normal")
    affine = np.eye(4)
    affine[:3, 0] = line / (len(places) - 1)
    affine[:3, 1] = np.array(first.orientation[3:]) * first.pixel_spacing[0]
    affine[:3, 2] = np.array(first.orientation[:3]) * first.pixel_spacing[1]
    affine[:3, 3] = first.position
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def _is_regular(places: np.ndarray) -> bool:
    step = places[-1] / (len(places) - 1)
    return bool(np.abs(places - step * np.arange(len(places))).max() <= REGULAR_TOLERANCE * step)


def _usual_step(places: np.ndarray) -> float:
    """The slice distance: the smaller one where two are common, so that nothing is lost."""
    return float(np.quantile(np.diff(places), 0.2, method="lower"))


def _check_gaps(places: np.ndarray) -> None:
    step, widest = _usual_step(places), float(np.diff(places).max())
    if step > MAX_SPACING_MM:
        raise GeometryError("absurd slice distance", value=f"{step:g} mm")
    if not _is_regular(places) and (widest > MAX_GAP_STEPS * step * 1.05 or widest > max(MAX_GAP_MM, step * 1.05)):
        raise GeometryError(
            "slices are missing",
            value=f"a hole of {widest:.1f} mm between slices {step:.2f} mm apart",
            cure=f"Holes up to {MAX_GAP_STEPS:g} slice distances and {MAX_GAP_MM:g} mm are filled; send the series again.",
        )


def _fill_gaps(
    hu: np.ndarray, affine: np.ndarray, places: np.ndarray, warnings: list[str]
) -> tuple[np.ndarray, np.ndarray, bool]:
    """Linear interpolation between the true positions onto equal steps, where they are not equal."""
    if _is_regular(places):
        return hu, affine, False
    step = _usual_step(places)
    count = math.floor(places[-1] / step + 1e-3) + 1
    check_shape((count, *hu.shape[1:]), "")
    out = np.empty((count, *hu.shape[1:]), hu.dtype)
    for index in range(count):
        place = index * step
        above = int(np.clip(np.searchsorted(places, place), 1, len(places) - 1))
        part = float(np.clip((place - places[above - 1]) / (places[above] - places[above - 1]), 0, 1))
        plane = (1 - part) * hu[above - 1] + part * hu[above]
        out[index] = np.rint(plane) if hu.dtype == np.int16 else plane
    affine = affine.copy()
    affine[:3, 0] *= step * (len(places) - 1) / places[-1]
    steps = np.diff(places)
    warnings.append(
        f"Slices are {steps.min():.2f} to {steps.max():.2f} mm apart (missing slices or a changing distance); they were "
        f"resampled to {step:.2f} mm from their true positions."
    )
    return out, affine, True


def _read_hounsfield(slices: tuple[Slice, ...], slots: list[int], num_planes: int, warnings: list[str]) -> np.ndarray:
    first = slices[0].pixels
    stack = HounsfieldStack((num_planes, first.rows, first.columns))
    filled = [False] * num_planes
    padded = 0
    for one, slot, hu, num_padded in _decode(slices, slots):
        if filled[slot]:
            if not np.array_equal(stack.array[slot], hu.astype(stack.array.dtype)):
                raise AmbiguousSeriesError(
                    "two different slices lie on the same place, and nothing in their headers tells them apart",
                    file=one.pixels.path.name,
                    value=f"{len(slices)} slices on {num_planes} places",
                    cure="Pass one acquisition only.",
                )
            continue
        stack.put(slot, hu[None])
        filled[slot] = True
        padded += num_padded
    if padded:
        warnings.append(f"{padded} voxels carried the padding value of the header and became air.")
    return stack.array


def _decode(slices: tuple[Slice, ...], slots: list[int]) -> Iterator[tuple[Slice, int, np.ndarray, int]]:
    """Every slice in Hounsfield units, read and decoded in two threads, a file at a time."""
    wanted: dict[Path, dict[int, tuple[Slice, int]]] = defaultdict(dict)
    for one, slot in zip(slices, slots, strict=True):
        wanted[one.pixels.path][one.frame] = (one, slot)

    def decode_file(path: Path) -> Iterator[tuple[Slice, int, np.ndarray, int]]:
        frames = wanted[path]
        layout = next(iter(frames.values()))[0].pixels
        for frame, stored in enumerate(read_stored(layout)):
            if frame in frames:
                one, slot = frames[frame]
                yield one, slot, *_to_hounsfield(stored, one)

    if len(wanted) == 1:
        yield from decode_file(next(iter(wanted)))
        return
    with ThreadPoolExecutor(max_workers=2) as pool:
        paths = list(wanted)
        for start in range(0, len(paths), 32):  # a bounded number of decoded slices at a time
            for decoded in pool.map(lambda path: list(decode_file(path)), paths[start : start + 32]):
                yield from decoded


def _to_hounsfield(stored: np.ndarray, one: Slice) -> tuple[np.ndarray, int]:
    """A padding value that would be tissue counts as padding only where it fills the corners."""
    padding = one.pixels.padding
    if padding is not None:
        in_hu = [value * one.slope + one.intercept for value in padding]
        corners = stored[[0, 0, -1, -1], [0, -1, 0, -1]]
        outside = (corners >= padding[0]) & (corners <= padding[1])
        if not (max(in_hu) < -900 or min(in_hu) > 3000) and not outside.all():
            padding = None
    num_padded = 0
    if padding is not None:
        num_padded = int(np.count_nonzero((stored >= padding[0]) & (stored <= padding[1])))
    return to_hounsfield(stored, one.slope, one.intercept, padding if num_padded else None), num_padded


def _describe_source(
    slices: tuple[Slice, ...], num_slices: int, left_out: Counter[str], num_duplicates: int
) -> VolumeSource:
    first = slices[0]
    rescales = sorted({(one.slope, one.intercept) for one in slices})
    rescale = f"slope {rescales[0][0]:g}, intercept {rescales[0][1]:g}" if len(rescales) == 1 else "differs by slice"
    left = dict(left_out) | ({"duplicate slice": num_duplicates} if num_duplicates else {})
    return VolumeSource(
        kind="dicom",
        num_files=len({one.pixels.path for one in slices}),
        num_slices=num_slices,
        left_out=left,
        stored_type=f"{'int' if first.pixels.signed else 'uint'}{first.pixels.bits_stored}",
        transfer_syntax=SYNTAX_NAMES.get(first.pixels.transfer_syntax, ""),
        rescale=rescale,
        manufacturer=first.facts["manufacturer"],
        kernel=first.kernel,
        slice_thickness_mm=_float(first.facts["thickness"]),
        kvp=_float(first.facts["kvp"]),
        contrast=_contrast(first),
        patient_position=first.facts["patient_position"],
        body_part=first.facts["body_part"],
        image_type=first.facts["image_type"],
        gantry_tilt_degrees=_float(first.facts["tilt"]),
        checks=("one patient and one acquisition", "slices ordered by position", "rescale applied slice by slice"),
    )


def _float(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
