"""Scan on disk (DICOM, NIfTI, MetaImage, NRRD, zip) or array -> `Volume`: Hounsfield units in one orientation, and where.

Arrays are `(depth, height, width)`: depth towards the head, height towards the back, width towards the patient's left, so
that `volume.hu[k]` shown as an image is the axial slice as a radiologist sees it. `affine` maps `(d, h, w, 1)` to patient
millimetres in the NIfTI world (RAS+: x to the right, y to the front, z to the head).

- Axes are permuted and flipped, never interpolated, while the scan lies within `MAX_OBLIQUE_DEGREES` of the patient's axes;
  that rotation stays in `affine`. Beyond it, and for axes that are not at right angles (gantry tilt), voxels are resampled.
- Values of `FILL_HU` and below lie outside the reconstruction circle and become air (-1024), as does what is not a number.
- Everything repaired or suspicious is a sentence in `warnings`; what cannot be read safely is a `VolumeError`.
"""

import gzip
import itertools
import re
import struct
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from .volume_archive_ctfm import ANALYZE, NOT_FETCHED, list_files, tell_kind, unpack
from .volume_dicom_ctfm import list_dicom_stacks, list_planes, read_dicom
from .volume_dicom_header_ctfm import Slice
from .volume_raster_ctfm import read_label_raster, read_raster
from .volume_scan_ctfm import (
    AIR_HU,
    AmbiguousSeriesError,
    DamagedFileError,
    GeometryError,
    HounsfieldStack,
    NotCTError,
    Scan,
    ScanWarning,
    SeriesInfo,
    UnsafeFileError,
    UnsupportedFormatError,
    VolumeError,
    VolumeSource,
    check_affine,
    check_shape,
)

__all__ = [
    "AIR_HU",
    "AmbiguousSeriesError",
    "DamagedFileError",
    "GeometryError",
    "NotCTError",
    "SeriesInfo",
    "UnsafeFileError",
    "UnsupportedFormatError",
    "Volume",
    "VolumeError",
    "VolumeSource",
    "dicom_planes",
    "list_series",
    "read_segmentation",
    "read_volume",
    "resample_segmentation",
    "write_nifti",
]

FILL_HU = -1500  # no tissue and no air; scanners fill the corners with -2000, -2048, -3024
MIN_TISSUE_HU = -200  # fat is -100
EIGHT_BITS = re.compile(r"u?int[1-8]")
MAX_OBLIQUE_DEGREES = 30.0
MAX_SHEAR_DEGREES = 0.5
RESAMPLING_THREADS = 2
RASTERS = ("nifti", "metaimage", "nrrd")

# Columns: depth, height, width of the canonical orientation, in RAS.
CANONICAL_AXES = np.array([[0.0, 0.0, -1.0], [0.0, -1.0, 0.0], [1.0, 0.0, 0.0]])


@dataclass(frozen=True, kw_only=True)
class Volume:
    """A CT scan, ready for the image processor.

    Args:
        hu: `(depth, height, width)` int16 where every value is a whole number, else float32; finite, contiguous.
        affine: 4 x 4 float64, `(d, h, w, 1)` -> patient millimetres, RAS+.
        warnings: sentences, each says what was repaired or is suspicious; `.code` names its kind.
        source: facts of the files without identifiers; `dataclasses.asdict` gives plain JSON values.
        source_axes: which axis on disk each of our axes is, and `source_flips` whether it was reversed; None where voxels
            were resampled.
        source_shape, source_affine: the scan's voxels on disk, in the axis order of `to_source_order`, and where they lie; of a
            stack with filled gaps with the slices that were filled in. None for a `Volume` that was made by hand.
    """

    hu: np.ndarray
    affine: np.ndarray
    warnings: tuple[ScanWarning, ...] = ()
    source: VolumeSource = field(default_factory=lambda: VolumeSource(kind="array"))
    source_axes: tuple[int, int, int] | None = (0, 1, 2)
    source_flips: tuple[bool, bool, bool] = (False, False, False)
    source_shape: tuple[int, int, int] | None = None
    source_affine: np.ndarray | None = None

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in mm, `(depth, height, width)`."""
        depth, height, width = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(depth), float(height), float(width)

    @property
    def orientation(self) -> str:
        """Towards what each axis ran on disk, e.g. "RAS"; DICOM axes are slices (along their normal), rows, columns."""
        return self.source.orientation

    def to_source_order(self, array: np.ndarray) -> np.ndarray:
        """`(depth, height, width)` -> the axis order and direction on disk, as copied voxels.

        DICOM: slices along the normal of the image plane (frames as stored, if those ran against it), rows, columns. Other
        files: first axis of the header first, as nibabel indexes it.

        Raises:
            VolumeError: voxels were resampled, so no order on disk corresponds to them; or `array` has another shape.
        """
        if self.source_axes is None:
            raise GeometryError(
                "voxels were resampled, so they have no order on disk",
                cure="Use `affine` to bring points or a segmentation back to the patient.",
            )
        if array.shape != self.hu.shape:
            raise GeometryError("the array must be shaped like hu", value=f"{array.shape} instead of {self.hu.shape}")
        flipped = array[tuple(slice(None, None, -1 if flip else 1) for flip in self.source_flips)]
        return np.ascontiguousarray(flipped.transpose(np.argsort(self.source_axes)))

    def segmentation_to_source(self, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A label map on the scan's voxels as they lie on disk, also where `hu` was straightened (gantry tilt, oblique axes).

        Args:
            labels: `(depth, height, width)`, whole numbers, shaped like `hu`.

        Returns:
            `(a, b, c)` in the axis order on disk, see `to_source_order`, and its 4 x 4 affine to RAS+ mm. Of voxels that were
            resampled each takes the label that has most of the eight around it, see `resample_segmentation`.

        Raises:
            VolumeError: `labels` has another shape.
        """
        if labels.shape != self.hu.shape:
            raise GeometryError("the array must be shaped like hu", value=f"{labels.shape} instead of {self.hu.shape}")
        if self.source_axes is not None:
            shape = tuple(self.hu.shape[self.source_axes.index(axis)] for axis in range(3))
            affine = self.affine @ np.linalg.inv(_reorder_matrix(self.source_axes, self.source_flips, shape))
            return self.to_source_order(labels), affine if self.source_affine is None else self.source_affine
        if self.source_shape is None or self.source_affine is None:
            return labels, self.affine
        return resample_segmentation(labels, self.affine, self.source_affine, self.source_shape), self.source_affine

    def to_nifti(self, path: str | Path, array: np.ndarray | None = None) -> None:
        """Writes `array` (default `hu`), shaped like `hu`, as NIfTI-1 with this geometry and no other metadata.

        Args:
            path: ends in .nii or .nii.gz.
            array: int16, uint8 or float32; bool becomes uint8, other types float32.
        """
        array = self.hu if array is None else np.asarray(array)
        if array.shape != self.hu.shape:
            raise GeometryError("the array must be shaped like hu", value=f"{array.shape} instead of {self.hu.shape}")
        if array.dtype == np.bool_:
            array = array.astype(np.uint8)
        if array.dtype not in (np.dtype(np.int16), np.dtype(np.uint8), np.dtype(np.float32)):
            array = array.astype(np.float32)
        # Stored as (right-to-left, front-to-back, foot-to-head), fastest first: our own memory order.
        write_nifti(path, array.transpose(2, 1, 0), self.affine[:, [2, 1, 0, 3]])


def write_nifti(path: str | Path, array: np.ndarray, affine: np.ndarray) -> None:
    """Writes `array` `(i, j, k)` int16, uint8 or float32 as NIfTI-1 with its 4 x 4 affine to RAS+ mm and no other metadata.

    Args:
        path: ends in .nii or .nii.gz.
    """
    header = _nifti_header(affine, array.shape, array.dtype)
    data = np.ascontiguousarray(array.T).astype(
        array.dtype.newbyteorder("<"), copy=False
    )  # the first axis is the fastest
    path = Path(path)
    with path.open("wb") as file:
        if path.name.endswith(".gz"):
            with gzip.GzipFile(filename="", mode="wb", fileobj=file, compresslevel=3, mtime=0) as packed:
                packed.write(header)
                packed.write(data.data)
        else:
            file.write(header)
            file.write(data.data)


Source = str | Path | tuple[np.ndarray, np.ndarray] | Volume


def read_volume(source: Source, series_uid: str | None = None) -> Volume:
    """Reads one CT scan.

    Args:
        source: a DICOM folder (nested, any file names), a zip of one, a multi-frame DICOM file, a .nii, .nii.gz, .hdr (with its
            .img beside it), .mha, .mhd, .nrrd or .nhdr file, or `(array, affine)`: an array indexed `(i, j, k)` with the 4 x 4
            affine that maps `(i, j, k, 1)` to RAS+ millimetres, in any axis order. A `Volume` passes through.
        series_uid: which series, as `list_series` names it. Without it, the source must hold just one CT volume of one
            patient: localizers, secondary captures, derived maps, reformats beside an original stack, and series of fewer
            than five slices beside a longer one are left out and reported; several remaining ones are refused.

    Raises:
        VolumeError: what cannot be read safely; the message says the file, the value and the cure.

    Example:
        >>> volume = read_volume((np.random.default_rng(0).normal(0, 300, (8, 8, 8)), np.eye(4)))
        >>> volume.hu.shape
        (8, 8, 8)
    """
    if isinstance(source, Volume):
        return source
    if isinstance(source, tuple):
        return _to_volume(_scan_from_array(source))
    with _readable(), tempfile.TemporaryDirectory(prefix="ctfm-") as temporary:
        path, files = _open_source(source, Path(temporary))
        return _to_volume(_read_files(path, files, series_uid or None))


def read_segmentation(source: str | Path | tuple[np.ndarray, np.ndarray], volume: Volume) -> np.ndarray:
    """Reads a label map drawn on the voxels of a scan, whatever its axis order.

    Args:
        source: a .nii, .nii.gz, .mha, .mhd, .nrrd or .nhdr file, or `(array, affine)` as `read_volume` takes it.
        volume: the scan.

    Returns:
        `(depth, height, width)` uint8 on the grid of `volume.hu`; 0 where nothing is drawn.

    Raises:
        GeometryError: it lies on other voxels, or has no affine that says where it lies; nothing is resampled.
        VolumeError: values are no whole numbers of 0 to 255.
    """
    if isinstance(source, tuple) and len(source) == 2:
        name, labels, affine = "", np.asarray(source[0]), np.array(source[1], np.float64)
        labels = labels.astype(np.uint8) if labels.dtype == np.bool_ else labels
        check_shape(labels.shape, name)
        check_affine(affine, name)
    elif isinstance(source, str | Path):
        name, (labels, affine) = Path(source).name, _read_label_file(Path(source))
    else:
        raise GeometryError(
            "a label map needs a path, or an array with its affine",
            value=type(source).__name__,
            cure="Pass (array, affine), e.g. (array, volume.affine) for an array on the axes of volume.hu.",
        )
    axes, flips = _nearest_axes(affine)
    affine = affine @ _reorder_matrix(axes, flips, labels.shape)
    labels = labels.transpose(axes)[tuple(slice(None, None, -1 if flip else 1) for flip in flips)]
    if labels.shape != volume.hu.shape or not np.allclose(affine, volume.affine, atol=0.01):
        raise GeometryError(
            "the label map lies on other voxels than the scan",
            file=name,
            value=labels.shape,
            cure="Resample it to the scan's voxels, nearest neighbour.",
        )
    if labels.dtype.kind not in "iuf" or labels.min() < 0 or labels.max() > 255 or not _is_whole(labels):
        found = f"{labels.min()} to {labels.max()}" if labels.dtype.kind in "iuf" else labels.dtype
        raise VolumeError("labels must be whole numbers of 0 to 255", file=name, value=found)
    return np.ascontiguousarray(labels.astype(np.uint8))


def resample_segmentation(
    labels: np.ndarray, affine: np.ndarray, target: np.ndarray, shape: tuple[int, int, int]
) -> np.ndarray:
    """A label map on other voxels, plane by plane.

    Args:
        labels: `(a, b, c)`, whole numbers; affine: its 4 x 4 to millimetres.
        target, shape: affine to the same millimetres, and shape, of the voxels that are asked for.

    Returns:
        `shape`, of the type of `labels`: the label with the largest share of a trilinear interpolation between the eight voxels
        around a place, so a voxel's own where the two grids have it in common; 0 outside.
    """
    matrix = np.linalg.inv(affine) @ target
    out = np.zeros(shape, labels.dtype)
    rows, columns = np.arange(shape[1])[:, None], np.arange(shape[2])[None, :]
    for index in range(shape[0]):
        lows, parts, inside = [], [], np.ones(shape[1:], bool)
        for axis, size in enumerate(labels.shape):
            place = matrix[axis, 0] * index + matrix[axis, 1] * rows + matrix[axis, 2] * columns + matrix[axis, 3]
            low, part, covered = _neighbours(place, size)
            lows.append(low)
            parts.append(part)
            inside &= covered
        nearest = tuple(low + (part > 0.5) for low, part in zip(lows, parts, strict=True))
        plane = labels[nearest]
        corners = [
            (labels[tuple(low + step for low, step in zip(lows, steps, strict=True))], steps)
            for steps in itertools.product((0, 1), repeat=3)
        ]
        mixed = np.logical_or.reduce([corner != corners[0][0] for corner, _ in corners])
        values = np.stack([corner[mixed] for corner, _ in corners])  # (8, n)
        shares = [
            np.prod([part[mixed] if step else 1 - part[mixed] for part, step in zip(parts, steps, strict=True)], 0)
            for _, steps in corners
        ]
        votes = [sum(share * (value == one) for share, value in zip(shares, values, strict=True)) for one in values]
        plane[mixed] = values[np.argmax(votes, 0), np.arange(values.shape[1])]
        out[index] = np.where(inside, plane, 0)
    return out


def _read_label_file(path: Path) -> tuple[np.ndarray, np.ndarray]:
    kind = tell_kind(path) if path.is_file() else "missing"
    if kind not in RASTERS:
        raise UnsupportedFormatError(
            "no label map", file=path.name, value=kind, cure="Pass a NIfTI, MetaImage or NRRD file."
        )
    return read_label_raster(path, kind, path.parent)


def _is_whole(labels: np.ndarray) -> bool:
    return bool(np.array_equal(np.rint(labels), labels))


def list_series(source: Source) -> list[SeriesInfo]:
    """What `read_volume` could read from a source, and what it would leave out and why (`left_out_because`).

    Voxels are not read: a listed series may still be refused for its values.
    """
    if isinstance(source, Volume | tuple):
        return [_describe(read_volume(source), "")]
    with _readable(), tempfile.TemporaryDirectory(prefix="ctfm-") as temporary:
        path, files = _open_source(source, Path(temporary))
        kinds = _tell_kinds(path, files)
        if "dicom" in kinds.values():
            return [stack.info for stack in list_dicom_stacks(_name(path), kinds)]
        rasters = [file for file, kind in kinds.items() if kind in RASTERS]
        if not rasters:
            raise _nothing_found(path, kinds)
        return [
            _describe(_to_volume(read_raster(file, kinds[file], file.parent)), file.name if len(rasters) > 1 else "")
            for file in rasters
        ]


@contextmanager
def dicom_planes(source: str | Path, series_uid: str | None = None) -> Iterator[list[tuple[Slice, int]]]:
    """The slices that `read_volume` reads, one for each place along the stack, and on which plane each lies: an index along the
    first axis of `source_affine` and of what `segmentation_to_source` gives, the nearest where planes were resampled. A zip
    stays unpacked until the `with` block ends.

    Raises:
        VolumeError: it holds no DICOM series, or `read_volume` would refuse it for its headers.
    """
    with _readable(), tempfile.TemporaryDirectory(prefix="ctfm-") as temporary:
        path, files = _open_source(source, Path(temporary))
        kinds = _tell_kinds(path, files)
        if "dicom" not in kinds.values():
            raise UnsupportedFormatError(
                "DICOM objects refer to the slices of a series, and this is none",
                file=_name(path),
                cure="Pass the DICOM series itself.",
            )
        yield list_planes(_name(path), kinds, series_uid or None)


# --- source -> files -----------------------------------------------------------------------------------------------------


def _open_source(source: str | Path, temporary: Path) -> tuple[Path, list[Path]]:
    if not isinstance(source, str | Path):
        raise UnsupportedFormatError(
            "a path or a tuple (array, affine) is needed", value=type(source).__name__, cure="See read_volume."
        )
    path = Path(source)
    if path.is_dir():
        return path, list_files(path)
    if not path.is_file():
        problem = "a link that leads to nothing" if path.is_symlink() else "no such file or folder"
        raise VolumeError(problem, file=path.name)
    if tell_kind(path) != "zip":
        return path, [path]
    unpack(path, temporary)
    return path, list_files(temporary)


@contextmanager
def _readable() -> Iterator[None]:
    """What the system refuses (no permission, a broken disk) is an error of the scan like any other."""
    try:
        yield
    except OSError as error:
        path = Path(str(error.filename or ""))
        reason = error.strerror or type(error).__name__
        raise VolumeError(f"the system cannot read it: {reason}", file=_name(path)) from None


def _name(path: Path) -> str:
    """What an error calls the source: a file by the last part of its name, a folder not at all (it may name the patient)."""
    return "" if path.is_dir() else path.name


def _tell_kinds(path: Path, files: list[Path]) -> dict[Path, str]:
    kinds = {file: tell_kind(file) for file in files}
    num_pointers = list(kinds.values()).count(NOT_FETCHED)
    if num_pointers:
        raise VolumeError(
            f"{num_pointers} of {len(files)} files were not fetched: they hold a pointer to their content",
            file=_name(path),
            cure="Fetch them (git lfs pull, git annex get, datalad get).",
        )
    return kinds


def _read_files(path: Path, files: list[Path], series_uid: str | None) -> Scan:
    kinds = _tell_kinds(path, files)
    if "dicom" in kinds.values():
        return read_dicom(_name(path), kinds, series_uid)
    rasters = [file for file, kind in kinds.items() if kind in RASTERS]
    if not rasters:
        raise _nothing_found(path, kinds)
    if series_uid:
        rasters = [file for file in rasters if file.name == series_uid]
    if len(rasters) != 1:
        raise AmbiguousSeriesError(
            f"{len(rasters)} volume files" + (" of that name" if series_uid else ""),
            file=_name(path),
            value=", ".join(file.name for file in rasters[:8]) or series_uid,
            cure="Pass the path of one of them.",
        )
    return read_raster(rasters[0], kinds[rasters[0]], rasters[0].parent)


def _nothing_found(path: Path, kinds: dict[Path, str]) -> VolumeError:
    counts = Counter(kinds.values())
    if counts["array"]:
        return UnsupportedFormatError(
            "a bare array has no spacing and no orientation", file=_name(path), cure="Pass (array, affine)."
        )
    if counts[ANALYZE]:
        return UnsupportedFormatError(
            "an Analyze 7.5 header (.hdr/.img) does not say which side of the patient is left",
            file=_name(path),
            cure="Convert the original series to NIfTI.",
        )
    if path.suffix.lower() == ".img" and path.with_suffix(".hdr").is_file():
        return UnsupportedFormatError(
            "voxels without their header", file=path.name, cure=f"Pass {path.with_suffix('.hdr').name}."
        )
    found = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items())) or "no file"
    return UnsupportedFormatError(
        "no CT scan found",
        file=_name(path),
        value=found,
        cure="Pass the folder that it stands in."
        if path.name.upper() == "DICOMDIR"
        else "DICOM, NIfTI, MetaImage and NRRD can be read; unpack inner archives.",
    )


def _scan_from_array(given: tuple[np.ndarray, np.ndarray]) -> Scan:
    if len(given) != 2:
        raise UnsupportedFormatError("a tuple must be (array, affine)", value=f"{len(given)} parts")
    array = np.asarray(given[0])
    try:
        affine = np.array(given[1], np.float64)
    except (TypeError, ValueError):
        raise GeometryError("the affine must be 4 x 4 and finite", value=type(given[1]).__name__) from None
    if array.dtype.kind not in "iuf":
        raise NotCTError("voxels must be whole or floating-point numbers", value=array.dtype)
    check_shape(array.shape, "")
    check_affine(affine, "")
    stack = HounsfieldStack(array.shape)
    for start in range(0, len(array), 16):
        stack.put(start, array[start : start + 16])
    warnings = (
        [ScanWarning("not_finite", f"{stack.num_not_finite} voxels were not finite numbers and became air.")]
        if stack.num_not_finite
        else []
    )
    source = VolumeSource(kind="array", num_files=0, num_slices=array.shape[2], stored_type=array.dtype.name)
    return Scan(hu=stack.array, affine=affine, warnings=tuple(warnings), source=source)


def _describe(volume: Volume, series_uid: str) -> SeriesInfo:
    return SeriesInfo(
        series_uid=series_uid,
        patient="patient 1",
        shape=volume.hu.shape,
        spacing=volume.spacing,
        plane="axial",
        kernel=volume.source.kernel,
        contrast=volume.source.contrast,
    )


# --- Scan -> Volume --------------------------------------------------------------------------------------------------------


def _to_volume(scan: Scan) -> Volume:
    if min(scan.hu.shape) < 2:
        raise GeometryError("one slice is no volume", value=scan.hu.shape, cure="Pass the whole series.")
    warnings = [*scan.warnings, *_check_values(scan.hu, scan.source.stored_type)]
    axes, flips = _nearest_axes(scan.affine)
    source = replace(scan.source, orientation=_orientation_code(scan.affine))
    affine = scan.affine @ _reorder_matrix(axes, flips, scan.hu.shape)
    hu = scan.hu.transpose(axes)[tuple(slice(None, None, -1 if flip else 1) for flip in flips)]
    hu = np.ascontiguousarray(hu)
    warnings += _fill_to_air(hu)
    target = _straight_grid(affine, hu.shape, warnings)
    if target is not None:
        hu = _resample(hu, affine, *target)
        affine = target[0]
    return Volume(
        hu=hu,
        affine=affine,
        warnings=tuple(warnings),
        source=source,
        source_axes=None if scan.resampled or target is not None else axes,
        source_flips=flips,
        source_shape=scan.hu.shape,
        source_affine=scan.affine,
    )


def _nearest_axes(affine: np.ndarray) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
    """For depth, height and width: the axis on disk that runs nearest to it, and whether it runs against it."""
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    cosines = CANONICAL_AXES.T @ directions  # (canonical axis, axis on disk)
    orders = sorted(itertools.permutations(range(3)))
    best = max(orders, key=lambda order: round(sum(abs(cosines[i, order[i]]) for i in range(3)), 6))
    depth, height, width = best
    flips = (bool(cosines[0, depth] < 0), bool(cosines[1, height] < 0), bool(cosines[2, width] < 0))
    return (depth, height, width), flips


def _reorder_matrix(axes: tuple[int, int, int], flips: tuple[bool, bool, bool], shape: tuple[int, ...]) -> np.ndarray:
    """Maps canonical indices `(d, h, w, 1)` to indices on disk."""
    matrix = np.zeros((4, 4))
    matrix[3, 3] = 1
    for ours, (axis, flip) in enumerate(zip(axes, flips, strict=True)):
        matrix[axis, ours] = -1 if flip else 1
        matrix[axis, 3] = shape[axis] - 1 if flip else 0
    return matrix


def _orientation_code(affine: np.ndarray) -> str:
    axes, flips = _nearest_axes(affine)
    letters = {0: "SI", 1: "PA", 2: "LR"}
    code = [""] * 3
    for ours, (axis, flip) in enumerate(zip(axes, flips, strict=True)):
        code[axis] = letters[ours][int(flip)]
    return "".join(code)


def _check_values(hu: np.ndarray, stored_type: str) -> list[ScanWarning]:
    """Refuses what is clearly no CT in Hounsfield units; warns of what hardly is."""
    low, high = float(hu.min()), float(hu.max())
    sample = hu[tuple(slice(None, None, max(1, size // 96)) for size in hu.shape[:2])].reshape(-1, hu.shape[2])
    whole = hu.dtype == np.int16 or bool(np.array_equal(np.rint(sample), sample))
    values = f"{low:g} to {high:g}"
    if low == high:
        raise NotCTError("every voxel has the same value", value=low)
    if whole and low >= 0 and high <= 20:
        raise NotCTError("this is a mask or a label map, not a CT scan", value=values, cure="Pass the scan itself.")
    if high - low <= 20:
        raise NotCTError("these are not Hounsfield units", value=values, cure="Pass the scan before normalisation.")
    if whole and low >= 0 and high < 1000 and _is_label_map(sample):
        raise NotCTError(
            "this is a label map, not a CT scan", value=values, cure="Pass the scan, not its segmentation."
        )
    warnings = []
    if low >= 0 and high <= 255:
        warnings.append(
            ScanWarning(
                "windowed", f"Values are {values}: this looks like a windowed 8-bit export, not Hounsfield units."
            )
        )
    elif low >= 0:
        warnings.append(
            ScanWarning(
                "no_intercept", f"No value is below zero ({values}): the rescale intercept is probably missing."
            )
        )
    elif low > -300:
        warnings.append(
            ScanWarning("no_air", f"No value is below {low:g}: the scan holds no air or was windowed before.")
        )
    if high > 32767:
        warnings.append(
            ScanWarning(
                "read_as_unsigned",
                f"Values up to {high:g} cannot be Hounsfield units: signed values may have been read as unsigned.",
            )
        )
    if _is_rescaled_twice(sample):
        warnings.append(
            ScanWarning(
                "rescaled_twice",
                f"Values are {values}: the rescale was probably applied twice; tissue lies about 1024 too low.",
            )
        )
    elif high < MIN_TISSUE_HU:
        warnings.append(
            ScanWarning("no_tissue", f"No value is above {high:g}: there is no tissue, or the rescale is wrong.")
        )
    if EIGHT_BITS.fullmatch(stored_type) and not (low >= 0 and high <= 255):
        warnings.append(
            ScanWarning(
                "stored_in_8_bits", f"Values were stored in 8 bits ({stored_type}): this looks like a windowed export."
            )
        )
    return warnings


def _is_label_map(sample: np.ndarray) -> bool:
    """Few whole numbers, equal over regions: next neighbours agree nearly always, which noise does not allow."""
    values = np.unique(sample)
    if len(values) <= 2:
        return True
    inner = (sample != values[0]) & (sample != values[-1])
    pairs = inner[:, 1:] & inner[:, :-1]
    equal = (sample[:, 1:] == sample[:, :-1]) & pairs
    return bool(equal.sum() >= 0.75 * max(1, pairs.sum())) and len(values) <= 512


def _is_rescaled_twice(sample: np.ndarray) -> bool:
    low = sample[sample <= FILL_HU]
    if len(low) < 0.01 * sample.size or len(np.unique(low)) <= 16:
        return False  # a fill is one value or a few
    return bool(np.count_nonzero(sample > -500) < 0.1 * sample.size)


def _fill_to_air(hu: np.ndarray) -> list[ScanWarning]:
    sample = hu[tuple(slice(None, None, max(1, size // 96)) for size in hu.shape[:2])]
    if _is_rescaled_twice(sample):
        return []
    count = 0
    for plane in hu:
        fill = plane <= FILL_HU
        if fill.any():
            count += int(np.count_nonzero(fill))
            plane[fill] = AIR_HU
    if not count:
        return []
    return [
        ScanWarning(
            "fill_to_air",
            f"{count} voxels of {FILL_HU} and below, outside the reconstruction circle, became air ({AIR_HU}).",
        )
    ]


def _straight_grid(
    affine: np.ndarray, shape: tuple[int, ...], warnings: list[ScanWarning]
) -> tuple[np.ndarray, tuple[int, int, int]] | None:
    """The grid to resample onto, where the axes are not at right angles or stand too far off the patient's; else None."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    directions = affine[:3, :3] / spacing
    cosines = np.abs(directions.T @ directions - np.eye(3)).max()
    shear = float(np.degrees(np.arcsin(min(1.0, cosines))))
    oblique = float(np.degrees(np.arccos(np.clip((CANONICAL_AXES * directions).sum(0), -1, 1)).max()))
    if oblique > MAX_OBLIQUE_DEGREES:
        axes = CANONICAL_AXES
        warnings.append(
            ScanWarning(
                "oblique_resampled",
                f"The scan lies {oblique:.1f} degrees off the patient's axes; voxels were resampled onto those.",
            )
        )
    elif shear > MAX_SHEAR_DEGREES:
        depth = np.cross(directions[:, 1], directions[:, 2])  # slices keep their planes, and shift within them
        depth *= np.sign(depth @ directions[:, 0]) / np.linalg.norm(depth)
        width = directions[:, 2]
        axes = np.stack([depth, np.cross(width, depth), width], axis=1)
        axes[:, 1] *= np.sign(axes[:, 1] @ directions[:, 1])
        spacing = spacing * np.abs((axes * directions).sum(0))
        warnings.append(
            ScanWarning(
                "not_orthogonal",
                f"The axes are not orthogonal, by {shear:.1f} degrees (gantry tilt or shear); slices were "
                "resampled to upright.",
            )
        )
    else:
        if oblique > 5:
            warnings.append(
                ScanWarning(
                    "oblique",
                    f"The scan lies {oblique:.1f} degrees off the patient's axes; `affine` keeps that rotation.",
                )
            )
        return None
    return _bounding_grid(affine, shape, axes * spacing)


def _bounding_grid(
    affine: np.ndarray, shape: tuple[int, ...], steps: np.ndarray
) -> tuple[np.ndarray, tuple[int, int, int]]:
    """The smallest grid of these steps that holds every voxel centre and passes through the first one."""
    corners = np.array(list(itertools.product(*((0, size - 1) for size in shape)))).T  # (3, 8)
    inside = np.linalg.solve(steps, affine[:3, :3] @ corners)
    first, last = np.floor(inside.min(1) + 1e-3), np.ceil(inside.max(1) - 1e-3)
    depth, height, width = (int(size) for size in last - first + 1)
    if depth * height * width > 8 * int(np.prod(shape)):
        raise GeometryError(
            "the scan leans so much that straightening it would be mostly empty", value=(depth, height, width)
        )
    check_shape((depth, height, width), "")
    target = np.eye(4)
    target[:3, :3] = steps
    target[:3, 3] = affine[:3, 3] + steps @ first
    return target, (depth, height, width)


def _resample(hu: np.ndarray, affine: np.ndarray, target: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Trilinear, slice by slice, air outside; whole numbers stay whole numbers (rounded).

    numpy in `RESAMPLING_THREADS` threads: torch's own threads wait for each other while they spin, which multiplies the time
    on busy cores.
    """
    matrix = np.linalg.inv(affine) @ target  # (d, h, w, 1) of the target -> index in `hu`
    # Of a tilted stack each plane stays a plane and shifts: then rows and columns are interpolated one after the other.
    is_shift = np.abs(matrix[[0, 0, 1, 2], [1, 2, 2, 1]]).max() < 1e-6
    plane_at = _shifted_plane if is_shift else _trilinear_plane
    out = np.empty(shape, hu.dtype)

    def fill(d: int) -> None:
        plane = plane_at(hu, matrix, d, shape[1:])
        out[d] = np.rint(plane) if hu.dtype == np.int16 else plane

    with ThreadPoolExecutor(max_workers=RESAMPLING_THREADS) as pool:
        for _ in pool.map(fill, range(shape[0])):
            pass
    return out


def _neighbours(place: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For places along an axis: the index below, how far towards the next, and whether a voxel of `hu` covers the place."""
    inside = (place > -0.501) & (place < size - 0.499)
    place = np.clip(place, 0, size - 1)
    low = np.minimum(place.astype(np.int64), size - 2)
    return low, (place - low).astype(np.float32), inside


def _shifted_plane(hu: np.ndarray, matrix: np.ndarray, d: int, shape: tuple[int, int]) -> np.ndarray:
    steps = (np.zeros(1), np.arange(shape[0]), np.arange(shape[1]))
    found = []
    for axis, size in enumerate(hu.shape):
        place = matrix[axis, 0] * d + matrix[axis, axis] * steps[axis] * (axis > 0) + matrix[axis, 3]
        found.append(_neighbours(np.round(place, 6), size))
    (depth, part, inside), (rows, row_parts, row_inside), (columns, column_parts, column_inside) = found
    plane = _between(hu[depth[0]], hu[depth[0] + 1], part[0])
    plane = _between(plane[rows], plane[rows + 1], row_parts[:, None])
    plane = _between(plane[:, columns], plane[:, columns + 1], column_parts)
    plane[~row_inside] = AIR_HU
    plane[:, ~column_inside] = AIR_HU
    return plane if inside[0] else np.full_like(plane, AIR_HU)


def _between(first: np.ndarray, second: np.ndarray, part: np.ndarray | np.float32) -> np.ndarray:
    first = first.astype(np.float32)
    return first if not np.any(part) else first + part * (second - first)


def _trilinear_plane(hu: np.ndarray, matrix: np.ndarray, d: int, shape: tuple[int, int]) -> np.ndarray:
    rows, columns = np.arange(shape[0])[:, None], np.arange(shape[1])[None, :]
    strides = (hu.shape[1] * hu.shape[2], hu.shape[2], 1)
    index, inside, parts = np.zeros(shape, np.int64), np.ones(shape, bool), []
    for axis, size in enumerate(hu.shape):
        place = matrix[axis, 0] * d + matrix[axis, 1] * rows + matrix[axis, 2] * columns + matrix[axis, 3]
        low, part, covered = _neighbours(place, size)
        index += low * strides[axis]
        inside &= covered
        parts.append(part)
    voxels = hu.reshape(-1)
    corners = [
        voxels[index + sum(corner)].astype(np.float32) for corner in itertools.product(*((0, s) for s in strides))
    ]
    for part in parts:  # depth, height, width: each halves the corners
        half = len(corners) // 2
        corners = [
            first + part * (second - first) for first, second in zip(corners[:half], corners[half:], strict=True)
        ]
    corners[0][~inside] = AIR_HU
    return corners[0]


def _nifti_header(affine: np.ndarray, shape: tuple[int, ...], dtype: np.dtype) -> bytes:
    """NIfTI-1 header: sform only, code 1 (scanner), millimetres."""
    if max(shape) > 32767:
        raise GeometryError("NIfTI-1 holds at most 32767 voxels along an axis", value=shape)
    code = {np.dtype(np.uint8): 2, np.dtype(np.int16): 4, np.dtype(np.float32): 16}[dtype]
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, *shape, 1, 1, 1, 1)
    struct.pack_into("<2h", header, 70, code, dtype.itemsize * 8)
    struct.pack_into("<8f", header, 76, 1.0, *np.linalg.norm(affine[:3, :3], axis=0), 0, 0, 0, 0)
    struct.pack_into("<3f", header, 108, 352.0, 1.0, 0.0)
    header[123] = 2  # millimetres
    struct.pack_into("<2h", header, 252, 0, 1)
    struct.pack_into("<12f", header, 280, *affine[:3].ravel())
    header[344:348] = b"n+1\0"
    return bytes(header)
