"""DICOM file -> `Slice`s: what places one frame in the patient, scales it, and tells its acquisition from others.

Only the tags listed here are read, as raw bytes: pydicom's conversion of values warns with the value in the text. Patient tags
serve to tell patients apart and are kept as a hash only.
"""

import hashlib
import io
import itertools
import logging
import math
import re
import struct
import threading
import warnings as python_warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .volume_dicom_pixels_ctfm import BIG_ENDIAN, DEFLATED, EXPLICIT, IMPLICIT, PixelLayout, data_set_bytes, inflate
from .volume_scan_ctfm import (
    MAX_SPACING_MM,
    MIN_SPACING_MM,
    DamagedFileError,
    GeometryError,
    UnsupportedFormatError,
    VolumeError,
    check_rescale,
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

NO_PLACE = "no position, orientation or pixel spacing"

CT_CLASSES = {
    "1.2.840.10008.5.1.4.1.1.2": "CT",
    "1.2.840.10008.5.1.4.1.1.2.1": "enhanced CT",
    "1.2.840.10008.5.1.4.1.1.2.2": "legacy converted enhanced CT",
}
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
LOCALIZER_WORDS = {"LOCALIZER", "SCOUT", "TOPOGRAM", "SURVIEW", "SCANOGRAM", "SCANO"}
CAPTURE_WORDS = {"SCREEN SAVE", "SCREENSAVE", "SCREEN", "SSAVE", "DOSE", "DOSE_INFO", "PROTOCOL", "REPORT", "RGB"}
# Images of modality CT whose values are no Hounsfield units. Multi-energy CT (PS3.3 C.8.2.1.1.1, value 4 of the image type):
# a virtual monoenergetic image (VMI) is in HU and reads; one with a material removed or highlighted is in HU but where that
# was, and reads with a warning.
MAP_WORDS = {"MAT_SPECIFIC", "MAT_FRACTIONAL", "MAT_VALUE_BASED", "EFF_ATOMIC_NUM", "ELECTRON_DENSITY"}
MODIFIED_HU_WORDS = {"MAT_REMOVED", "MAT_MODIFIED", "VNC", "VIRTUAL_NON_CONTRAST", "VIRTUAL NON CONTRAST"}
# Contrast of derived pixels (PS3.3 C.8.16.1.4); mean, maximum, minimum and energy weighting keep the unit.
MAP_WORDS |= {"ADDITION", "DIVISION", "MULTIPLICATION", "SUBTRACTION", "SUBTRACT", "DIFFERENCE", "STD_DEVIATION"}
MAP_WORDS |= {"T_TEST", "Z_SCORE", "QUANTITY"}
# Words of the vendors' workstations.
MAP_WORDS |= {f"{word}{end}" for word in ("CBF", "CBV", "MTT", "TTP", "TMAX", "TTD", "TTS") for end in ("", "D")}
MAP_WORDS |= {
    "PERMEABILITY",
    "IODINE",
    "IODINE_MAP",
    "IODINEMAP",
    "Z_EFF",
    "ZEFF",
    "EFFECTIVE_Z",
    "RHO",
    "RHO_Z",
    "RHOZ",
}
MAP_WORDS |= {"PBV", "LUNG_PBV", "LPBV", "SBI", "WATER", "CALCIUM", "URIC_ACID", "FAT_FRACTION", "MATERIAL_DENSITY"}
# "PERFUSION" names the time series, which is in HU, as well as the maps computed from it.
DERIVED_MAP_WORDS = {"PERFUSION"}
# What a series description or a vendor's word says of a map. No single word that a protocol has too ("iodine contrast").
MAP_PHRASES = re.compile(
    r"\biodine (map|no water|density|overlay|concentration|image)|\bno iodine map"
    r"|\b(iodine|water|calcium|hap|fat|blood|uric acid|gadolinium) ?\( ?(iodine|water|calcium|hap|fat|blood|uric acid) ?\)"
    r"|\bz ?eff|\beff(ective)? (z|atomic)\b|\batomic number|\belectron density|\brho ?/? ?z\b|\brho map"
    r"|\bmaterial density|\bmat density|\b(lung|heart|liver)? ?pbv\b|\bperfused blood vol|\bspectral base|\bsbi\b"
    r"|\bfat fraction|\bfat map|\buric acid map|\bcalcium map|\bwater map|\bgadolinium map|\bk ?edge"
    r"|\bphotoelectric|\bcompton"
)
MONOENERGETIC = re.compile(r"kev\b|\bmono")
DIFFERENCE = re.compile(r"\b(difference|subtraction|subtracted|ratio)\b")
# US: unspecified (PS3.3 C.11.1.1.2), which some scanners write of plain CT; the tag may be absent where the unit is HU.
HU_RESCALE_TYPES = ("HU", "US", "", "HU_MOD")
# Hounsfield units in UCUM.
HU_UNITS = ("hnsf'u", "[hnsf'u]")
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
    "cardiac delay": 0x0020_9153,
    "cardiac time before R": 0x0020_9154,
    "respiratory phase": 0x0020_9245,
    "respiratory delay": 0x0020_9255,
    "trigger delay": 0x0018_1067,
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
    "actual cardiac delay": 0x0020_9252,
    "actual respiratory delay": 0x0020_9257,
    "temporal offset": 0x0020_930D,
    "contrast start": 0x0018_1042,
    "acquisition time": 0x0008_0032,
    "acquisition datetime": 0x0008_002A,
    "frame datetime": 0x0018_9074,
    "content time": 0x0008_0033,
    "series time": 0x0008_0031,
    "comments": 0x0020_4000,
}
START_NAMES = ("acquisition time", "acquisition datetime", "frame datetime")  # when a slice was scanned
IMAGE_TIME_NAMES = ("content time", "trigger time")  # when it was reconstructed, or since the heart beat

PATIENT_TAGS = (0x0010_0020, 0x0010_0010, 0x0010_0030)  # ID, name and birth date: each alone is missing somewhere
# fmt: off
PLAIN_TAGS = (
    0x0008_0005, 0x0008_0016, 0x0008_0018, 0x0008_0060, 0x0008_0070, 0x0018_0015, 0x0018_0088, 0x0018_1120, 0x0018_1210,
    0x0018_5100, 0x0020_000D, 0x0020_000E, 0x0020_0032, 0x0020_0037, 0x0020_0052, 0x0028_0002, 0x0028_0004,
    0x0028_0008, 0x0028_0010, 0x0028_0011, 0x0028_0030, 0x0028_0100, 0x0028_0101, 0x0028_0102, 0x0028_0103,
    0x0028_0120, 0x0028_0121, 0x0028_1052, 0x0028_1053, 0x0028_1054, 0x0028_2110, 0x0028_3000, 0x0040_9096, 0x5200_9229,
    0x5200_9230,
)
# fmt: on
# Functional groups of enhanced files: where a tag is found inside a frame's item.
MACROS = {
    0x0020_0032: 0x0020_9113,
    0x0020_0037: 0x0020_9116,
    0x0028_0030: 0x0028_9110,
    0x0018_0050: 0x0028_9110,
    0x0018_0088: 0x0028_9110,
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
    0x0020_9153: 0x0018_9118,
    0x0020_9154: 0x0018_9118,
    0x0020_9252: 0x0018_9118,
    0x0020_9245: 0x0020_9253,
    0x0020_9255: 0x0020_9253,
    0x0020_9257: 0x0020_9253,
    0x0020_930D: 0x0020_9310,
}
# Which phase of the heart or of breathing a stack shows: tag, format of its binary value, words.
PHASE_TAGS = (
    (0x0020_9241, "f", "{:g} % of the cardiac cycle"),
    (0x0020_9153, "d", "{:g} ms after the R wave"),
    (0x0020_9154, "f", "{:g} ms before the R wave"),
    (0x0020_9245, "f", "{:g} % of the respiratory cycle"),
    (0x0020_9255, "d", "{:g} ms after the respiratory trigger"),
)
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
    has_own_place: bool  # False: a frame of a multi-frame file whose frames have one position for all
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


quiet_pydicom = _Quiet()


def read_header(path: Path) -> list[Slice] | str:
    """The slices of a file, or the reason why it is left out."""
    try:
        with path.open("rb") as file:
            head = file.read(1024)
            file.seek(0)
            deflated = (
                DEFLATED.encode() in head[:1024]
            )  # the file meta information names it and is never deflated itself
            if deflated:
                data = io.BytesIO(inflate(data_set_bytes(file.read(), path.name), path.name))
                data_set = read_dataset(data, False, True, stop_when=_at_pixels, specific_tags=_tags())
                syntax, offset = DEFLATED, data.tell()
            else:
                # force: many exports leave out the preamble and "DICM".
                data_set = dcmread(file, stop_before_pixels=True, specific_tags=_tags(), force=True)
                syntax, offset = _transfer_syntax(data_set), file.tell()
                if len(file.read(8)) < 8:  # tag and length of the pixel data
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
    # Without file meta information the encoding is what pydicom found by trying.
    implicit, little = data_set.original_encoding
    return IMPLICIT if implicit else (EXPLICIT if little else BIG_ENDIAN)


class _Header:
    """Raw values of one file. Nothing goes through pydicom's value conversion, which warns with the value in the text."""

    def __init__(self, data_set: "Dataset", path: Path, syntax: str, offset: int) -> None:
        self.path, self.syntax, self.offset = path, syntax, offset
        self._data_set = data_set
        self.order = ">" if syntax == BIG_ENDIAN else "<"
        frames = self.text(0x0028_0008) or "1"
        if not frames.isdigit() or not 1 <= int(frames) <= 100_000:
            raise DamagedFileError("implausible number of frames", file=path.name, value=frames)
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
        # Codes and numbers: latin-1 has a character for every byte, so a damaged value fails where it is used.
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
        return struct.unpack(self.order + "H", value[:2])[0]

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
        # Archives differ in case and in "^" or blanks between the parts of one name.
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
        has_own_place=header.num_frames == 1 or bool(header.per_frame),
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
            "spacing": header.text(0x0018_0088, frame),
            "kvp": header.text(0x0018_0060, frame),
            "patient_position": header.label(0x0018_5100),
            "body_part": header.label(0x0018_0015),
            "tilt": header.text(0x0018_1120),
            "rescale_type": header.text(0x0028_1054, frame).upper(),
            "rescale": "stated" if header.raw(0x0028_1053, frame) and header.raw(0x0028_1052, frame) else "missing",
            "lossy": header.text(0x0028_2110),
            "phase": _phase(header, frame),
            "modified": next((word for word in image_type if word in MODIFIED_HU_WORDS), ""),
            "named_map": _map_phrase(_description(header)),
            "image_type": "\\".join(word for word in image_type if word.replace("_", "").replace(" ", "").isalnum())[
                :64
            ],
        },
    )


def _phase(header: _Header, frame: int) -> str:
    for tag, code, words in PHASE_TAGS:
        value = header.raw(tag, frame)
        if len(value) == struct.calcsize(code):
            return words.format(struct.unpack(header.order + code, value)[0])
    return ""


def _never_reason(header: _Header, frame: int, image_type: list[str]) -> str:
    """Why an image of modality CT is no slice of a CT volume; empty where it is one."""
    words = set(image_type)
    if LOCALIZER_WORDS & words:
        return "localizer"
    if header.short(0x0028_0002, 1) != 1 or header.text(0x0028_0004).upper() not in ("MONOCHROME1", "MONOCHROME2", ""):
        return "colour image"
    if CAPTURE_WORDS & words:
        return "secondary capture"
    named_map = _named_map(header, frame, image_type)
    if named_map:
        return f"derived map ({named_map})"
    placed = header.raw(0x0020_0032, frame) and header.raw(0x0020_0037, frame) and header.raw(0x0028_0030, frame)
    if header.text(0x0008_0016).startswith(SECONDARY_CAPTURE) and not placed:
        return "secondary capture"
    # Where the file ends before its pixels, its place may have been lost with them: an error, and no image without a place.
    if not placed and header.offset >= 0:
        return NO_PLACE
    return ""


def _named_map(header: _Header, frame: int, image_type: list[str]) -> str:
    """The word by which the header says that values are no Hounsfield units; empty where it says no such thing."""
    rescale_type = header.label(0x0028_1054, frame).strip().upper()
    if rescale_type not in HU_RESCALE_TYPES:
        return f"rescale type {rescale_type}"
    # Values 1 and 2 of the image type are ORIGINAL or DERIVED and PRIMARY or SECONDARY (PS3.3 C.7.6.1.1.2).
    is_derived = "DERIVED" in image_type[:1]
    named = (MAP_WORDS | DERIVED_MAP_WORDS if is_derived else MAP_WORDS) & set(image_type[2:])
    phrases = [word.replace("_", " ").lower() for word in image_type[2:]]
    if is_derived or rescale_type != "HU":
        phrases += [_description(header)]
    found = next(filter(None, map(_map_phrase, phrases)), "")
    units = {unit.strip().lower() for unit in _real_world_units(header, frame)}
    if named or found:
        return min(named, default=found)
    if units and not units.intersection(HU_UNITS):
        return f"unit {min(units)[:16]}"
    return ""


def _map_phrase(text: str) -> str:
    """The words that name a map, and no more of the text, which may name the patient."""
    found = MAP_PHRASES.search(text) or (MONOENERGETIC.search(text) and DIFFERENCE.search(text))
    return found.group().strip() if found else ""


def _description(header: _Header) -> str:
    return " ".join(re.split(r"[\s_.,;:-]+", header.text(0x0008_103E).lower()))


def _real_world_units(header: _Header, frame: int) -> Iterator[str]:
    """The unit codes (UCUM) of the real world value mappings."""
    groups = [header.items(0x0040_9096), *(header.items(0x0040_9096, group) for group in header.shared[:1])]
    if frame < len(header.per_frame):
        groups.append(header.items(0x0040_9096, header.per_frame[frame]))
    for mapping in itertools.chain(*groups):
        for code in header.items(0x0040_08EA, mapping):
            value = getattr(code.get_item(0x0008_0100), "value", b"")
            if isinstance(value, bytes) and value.strip(b"\0 "):
                yield value.decode("latin-1").strip("\0 ")


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
        raise GeometryError("implausible pixel spacing", file=file, value=pixel_spacing)
    if max(abs(place) for place in position) > 1e5:
        raise GeometryError("implausible slice position", file=file, value=position)
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    # Exports round the cosines.
    if max(abs(length - 1) for length in lengths) > 0.01 or abs(row @ column) > 0.01:
        raise GeometryError("the rows and columns of the slice are not at right angles", file=file, value=orientation)
    orientation = (*(row / lengths[0]).tolist(), *(column / lengths[1]).tolist())
    slope = (header.numbers(0x0028_1053, 1, frame) or (1.0,))[0]
    intercept = (header.numbers(0x0028_1052, 1, frame) or (0.0,))[0]
    check_rescale(slope, intercept, file)
    if header.items(0x0028_3000):  # Modality LUT Sequence, which may stand in place of the rescale (PS3.3 C.11.1)
        raise UnsupportedFormatError("a lookup table instead of rescale slope and intercept", file=file)
    return position, orientation, pixel_spacing, slope, intercept


def _pixel_layout(header: _Header) -> PixelLayout:
    rows, columns = header.short(0x0028_0010), header.short(0x0028_0011)
    check_shape((header.num_frames, rows, columns), header.path.name)
    allocated = header.short(0x0028_0100)
    stored = header.short(0x0028_0101, allocated)
    signed = header.short(0x0028_0103, 0) == 1
    code = header.order + ("h" if signed else "H")
    # Pixel Padding Value, and the other end of a range, which means nothing without it (PS3.3 C.7.5.1.1.2).
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
