"""What a reader of one format hands over: errors, facts, `Scan`. `volume_ctfm.py` turns a `Scan` into a `Volume`.

A message, a warning and a fact never carry a patient's name, number or date, a UID that the user need not choose by, or a
folder: a file is named by its last part only.
"""

from dataclasses import dataclass, field

import numpy as np

AIR_HU = -1024  # what lies outside the patient or the reconstruction circle, and what is not a number
MAX_VOXELS = 2**31  # 4 GiB of int16; a whole body of 2,000 slices of 512 x 512 is a quarter of it
MIN_SPACING_MM, MAX_SPACING_MM = 0.01, 100.0


class VolumeError(ValueError):
    """A scan that cannot be read safely: what is wrong, in which file (last part of its name), which value, what to do."""

    def __init__(self, problem: str, *, file: str = "", value: object = None, cure: str = "") -> None:
        super().__init__(problem)
        self.problem = problem
        self.file = file
        self.value = value
        self.cure = cure

    def __str__(self) -> str:
        where = f"{self.file}: " if self.file else ""
        value = "" if self.value is None else f" ({str(self.value)[:100]})"
        return f"{where}{self.problem}{value}." + (f" {self.cure}" if self.cure else "")

    def __reduce__(self) -> tuple[object, ...]:  # keyword arguments survive the trip out of a worker process
        return _rebuild_error, (type(self), self.problem, self.__dict__)


def _rebuild_error(kind: type[VolumeError], problem: str, state: dict[str, object]) -> VolumeError:
    error = kind(problem)
    error.__dict__.update(state)
    return error


class DamagedFileError(VolumeError):
    """The file ends early, its checksum fails or its header contradicts itself."""


class UnsafeFileError(VolumeError):
    """An archive or a header that reaches out of its folder, or would unpack to far more than it should."""


class NotCTError(VolumeError):
    """The values or the headers say that this is no CT scan in Hounsfield units."""


class GeometryError(VolumeError):
    """The voxels cannot be placed in the patient."""


class UnsupportedFormatError(VolumeError):
    """No reader for this file, or the optional package that reads it is not installed."""


@dataclass(frozen=True, kw_only=True)
class SeriesInfo:
    """One choice for `read_volume(source, series_uid=...)`.

    Args:
        series_uid: what to pass as `series_uid`; `uid#2` is the second acquisition inside a series, `uid#whole` all of them
            where each begins where the one before ends.
        patient: "patient 1", "patient 2", ... in the order found; nothing else is said about who it is.
        shape: slices, rows, columns.
        spacing: in mm, in the order of `shape`.
        left_out_because: empty where the series can be read, else the reason why it is never chosen by itself.
        phase: of the heart or of breathing, where the header says one.
    """

    series_uid: str
    patient: str
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    plane: str
    kernel: str
    contrast: bool | None
    left_out_because: str = ""
    phase: str = ""

    def __str__(self) -> str:
        num_slices, rows, columns = self.shape
        depth, height, width = self.spacing
        parts = [
            f"{self.series_uid or 'no series UID'}: {self.patient}",
            f"{num_slices} {self.plane} slices of {rows} x {columns}",
            f"{depth:.3g} x {height:.3g} x {width:.3g} mm",
            f"kernel {self.kernel or 'unknown'}",
            self.phase,
        ]
        return ", ".join(part for part in parts if part)


class AmbiguousSeriesError(VolumeError):
    """Several scans could be meant; `choices` says which."""

    def __init__(
        self,
        problem: str,
        *,
        choices: tuple[SeriesInfo, ...] = (),
        file: str = "",
        value: object = None,
        cure: str = "",
    ) -> None:
        super().__init__(problem, file=file, value=value, cure=cure)
        self.choices = choices

    def __str__(self) -> str:
        return super().__str__() + "".join(f"\n  {choice}" for choice in self.choices)


@dataclass(frozen=True, kw_only=True)
class VolumeSource:
    """Where a volume came from, as plain JSON values without identifiers.

    Args:
        kind: "dicom", "nifti", "metaimage", "nrrd" or "array".
        orientation: towards what each axis ran on disk, e.g. "RAS" (NIfTI letters; DICOM: slices, rows, columns).
        num_files: files whose voxels are in the volume; num_slices: slices before any resampling.
        left_out: reason -> number of files (of frames in a multi-frame file).
        contrast: True where the header names a contrast agent, None where it says nothing.
        checks: what was looked at and found in order or repaired.
    """

    kind: str
    orientation: str = ""
    num_files: int = 1
    num_slices: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    stored_type: str = ""
    transfer_syntax: str = ""
    rescale: str = ""
    manufacturer: str = ""
    kernel: str = ""
    slice_thickness_mm: float | None = None
    kvp: float | None = None
    contrast: bool | None = None
    patient_position: str = ""
    body_part: str = ""
    image_type: str = ""
    gantry_tilt_degrees: float | None = None
    checks: tuple[str, ...] = ()


class ScanWarning(str):
    """A sentence about what was repaired or is suspicious, with a `code` that says which kind it is, for programs."""

    code: str

    def __new__(cls, code: str, sentence: str) -> "ScanWarning":
        self = super().__new__(cls, sentence)
        self.code = code
        return self

    def __getnewargs__(self) -> tuple[str, str]:  # type: ignore[override]  # what a copy or another process makes it from
        return self.code, str(self)


@dataclass(frozen=True, kw_only=True)
class Scan:
    """A scan as it lies on disk.

    Args:
        hu: `(a, b, c)` int16 or float32 in the source's own axis order, finite.
        affine: 4 x 4 float64, maps `(a, b, c, 1)` to patient millimetres, NIfTI world (RAS+).
        resampled: True where voxels were interpolated, so that no order on disk corresponds to them.
    """

    hu: np.ndarray
    affine: np.ndarray
    warnings: tuple[ScanWarning, ...]
    source: VolumeSource
    resampled: bool = False


class HounsfieldStack:
    """Slabs of any type -> one array `(n, rows, columns)`: int16 while every value is a whole number that fits, float32
    from the first slab that is not. What is not finite becomes air and is counted."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self.array = np.empty(shape, np.int16)
        self.num_not_finite = 0

    def put(self, start: int, values: np.ndarray) -> None:
        """Writes `values` `(m, rows, columns)` at slice `start`."""
        if values.dtype.kind == "f":
            values = self._finite(values.astype(np.float32) if values.dtype.itemsize < 4 else values)
        stop = start + len(values)
        if self.array.dtype == np.int16 and not _fits_int16(values):
            self.array = self.array.astype(np.float32)
        np.copyto(self.array[start:stop], values, casting="unsafe")

    def _finite(self, values: np.ndarray) -> np.ndarray:
        finite = np.isfinite(values) & (np.abs(values) < 1e6)  # nothing in Hounsfield units is beyond a million
        if finite.all():
            return values
        self.num_not_finite += int(values.size - np.count_nonzero(finite))
        return np.where(finite, values, AIR_HU)


def _fits_int16(values: np.ndarray) -> bool:
    if values.dtype in (np.dtype(np.int8), np.dtype(np.uint8), np.dtype(np.int16)):
        return True
    if values.size and (values.min() < -32768 or values.max() > 32767):
        return False
    return values.dtype.kind in "iu" or bool(np.array_equal(np.rint(values), values))


def check_shape(shape: tuple[int, ...], file: str) -> tuple[int, int, int]:
    """Refuses the size of a volume before any memory is spent on it."""
    if len(shape) != 3:
        raise NotCTError(
            f"{len(shape)}-dimensional image, one 3-D scan is needed", file=file, value=shape, cure="Pass one volume."
        )
    first, second, third = (int(size) for size in shape)
    if min(first, second, third) < 1 or first * second * third > MAX_VOXELS:
        raise DamagedFileError(
            "implausible image size", file=file, value=shape, cure="The header is damaged or no CT scan."
        )
    return first, second, third


def check_rescale(slope: float, intercept: float, file: str) -> None:
    """Refuses a slope and an intercept that no scanner writes."""
    if not 0 < slope <= 1e4 or not abs(intercept) <= 1e6:
        raise DamagedFileError("implausible rescale slope or intercept", file=file, value=f"{slope:g}, {intercept:g}")


def check_affine(affine: np.ndarray, file: str) -> None:
    """Refuses a geometry that places no voxel: not finite, without extent, or flat."""
    if affine.shape != (4, 4) or not np.isfinite(affine).all():
        raise GeometryError("the affine must be 4 x 4 and finite", file=file, value=affine.tolist())
    spacing = np.linalg.norm(np.clip(affine[:3, :3], -1e6, 1e6), axis=0)  # what is beyond overflows when squared
    if spacing.min() < MIN_SPACING_MM or spacing.max() > MAX_SPACING_MM:
        raise GeometryError(
            f"voxel spacing outside {MIN_SPACING_MM} to {MAX_SPACING_MM:g} mm",
            file=file,
            value=spacing.round(6).tolist(),
            cure="Give the spacing in millimetres.",
        )
    if abs(np.linalg.det(affine[:3, :3] / spacing)) < 0.1:
        raise GeometryError("two axes run in nearly the same direction: singular affine", file=file)
    if np.abs(affine[:3, 3]).max() > 1e6 or not np.allclose(affine[3], (0, 0, 0, 1)):
        raise GeometryError("the affine does not end in a plausible origin", file=file, value=affine[:, 3].tolist())
