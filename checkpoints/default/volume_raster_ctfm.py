"""NIfTI-1/2, MetaImage (.mha, .mhd) or NRRD file -> `Scan`, with nothing but numpy: headers are checked before memory is spent.

The array of the `Scan` is indexed `(i, j, k)`, `i` being the file's first and fastest axis, as nibabel and pynrrd index it
(SimpleITK's arrays are the transpose). Voxels are read slab by slab into int16 where every value is a whole number that fits.

Kept beside nibabel and SimpleITK because of what they do with damaged files, and because the Hub needs nothing but numpy: of a
NIfTI cut in half SimpleITK returns voxels, and for a header that claims 35 TB nibabel asks for the memory. Of 150 x 512 x 512
voxels an unpacked file takes 0.05 CPU seconds (SimpleITK 0.06 to 0.10) and 0.11 GB (0.16); a .nii.gz takes 0.36 (nibabel 0.43,
SimpleITK 0.12). `benchmarks/rasters.py` measured it.

Sources: NIfTI-1 and NIfTI-2 headers (nifti.nimh.nih.gov), MetaIO tags (itk.org/Wiki/MetaIO), NRRD 0005 (teem.sourceforge.net).
"""

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .volume_archive_ctfm import CHUNK_BYTES, DRIVE, MAX_RATIO, BunzipStream, InflateStream, Stream
from .volume_scan_ctfm import (
    DamagedFileError,
    GeometryError,
    HounsfieldStack,
    NotCTError,
    Scan,
    ScanWarning,
    UnsafeFileError,
    UnsupportedFormatError,
    VolumeSource,
    check_affine,
    check_rescale,
    check_shape,
)

SLAB_BYTES = 2**24
MAX_HEADER_BYTES = 2**16
MAX_DEFLATE_RATIO = 1100  # deflate cannot do better than 1032, and a label map of little but zero comes near
RATIO_FREE_VOXEL_BYTES = 2**30
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])

NIFTI_TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
ATLAS_CODES = (3, 4, 5)  # of a form: Talairach, MNI 152, another template
PATIENT_CODES = (1, 2)  # the scanner, or another scan of the patient
FORMS_TOLERANCE = 0.1  # of the smallest voxel size: what rounding to float32 and to a unit quaternion leaves
SIZES_TOLERANCE = 0.01
NIFTI_UNITS_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
META_TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG": "i4",
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
NRRD_TYPES = {
    **dict.fromkeys(("signed char", "int8", "int8_t"), "i1"),
    **dict.fromkeys(("uchar", "unsigned char", "uint8", "uint8_t"), "u1"),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), "i2"),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), "u2"),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t"), "i4"),
    **dict.fromkeys(("uint", "unsigned int", "uint32", "uint32_t"), "u4"),
    **dict.fromkeys(("longlong", "long long", "long long int", "signed long long", "int64", "int64_t"), "i8"),
    **dict.fromkeys(("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"), "u8"),
    "float": "f4",
    "double": "f8",
}
NRRD_SPACES = {
    **dict.fromkeys(("left-posterior-superior", "lps"), (-1.0, -1.0, 1.0)),
    **dict.fromkeys(("right-anterior-superior", "ras"), (1.0, 1.0, 1.0)),
    **dict.fromkeys(("left-anterior-superior", "las"), (-1.0, 1.0, 1.0)),
}


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What a header says: where the voxels are, of which type, and how they lie in the patient."""

    kind: str
    shape: tuple[int, int, int]  # (i, j, k)
    dtype: np.dtype
    affine: np.ndarray  # (i, j, k, 1) -> RAS+ mm
    data_file: Path
    offset: int  # bytes before the voxels; -1: the voxels end the file
    compression: str = ""  # "", "deflate" (all bytes of the file or those after `offset`), "bzip2"
    whole_file_compressed: bool = False
    slope: float = 1.0
    intercept: float = 0.0
    checks: tuple[str, ...] = ()
    warnings: list[ScanWarning] = field(default_factory=list)


def read_raster(path: Path, kind: str, folder: Path) -> Scan:
    """Reads one volume file.

    Args:
        kind: "nifti", "metaimage" or "nrrd", as `tell_kind` says.
        folder: a detached data file must lie inside it.
    """
    layout, stack = _read_file(path, kind, folder)
    warnings = list(layout.warnings)
    if stack.num_not_finite:
        warnings.append(
            ScanWarning("not_finite", f"{stack.num_not_finite} voxels were not finite numbers and became air.")
        )
    source = VolumeSource(
        kind=kind,
        num_files=1 if layout.data_file == path else 2,
        num_slices=layout.shape[2],
        stored_type=layout.dtype.name,
        rescale=f"slope {layout.slope:g}, intercept {layout.intercept:g}",
        checks=layout.checks,
    )
    hu = stack.array.transpose(2, 1, 0)  # (k, j, i) -> (i, j, k)
    return Scan(hu=hu, affine=layout.affine, warnings=tuple(warnings), source=source)


def read_label_raster(path: Path, kind: str, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Values `(i, j, k)` of a file that holds labels and no Hounsfield units, and its affine to RAS+ mm; arguments as
    `read_raster` takes them. The header's slope and intercept are applied."""
    layout, stack = _read_file(path, kind, folder)
    return stack.array.transpose(2, 1, 0), layout.affine


def _read_file(path: Path, kind: str, folder: Path) -> tuple[Layout, HounsfieldStack]:
    read_header = {"nifti": _nifti_layout, "metaimage": _meta_layout, "nrrd": _nrrd_layout}[kind]
    layout = read_header(path, folder)
    check_affine(layout.affine, path.name)
    return layout, _read_voxels(layout, path.name)


def _open(layout: Layout, file: str) -> Stream:
    stream = layout.data_file.open("rb")
    if layout.whole_file_compressed:
        inflated = InflateStream(stream, file)
        inflated.read(layout.offset)
        return inflated
    stream.seek(max(0, layout.offset))
    if layout.compression == "bzip2":
        return BunzipStream(stream, file)
    return InflateStream(stream, file) if layout.compression else stream


def _read_voxels(layout: Layout, file: str) -> HounsfieldStack:
    columns, rows, num_slices = layout.shape
    check_shape(layout.shape, file)
    slice_bytes = columns * rows * layout.dtype.itemsize
    _check_data_size(layout, slice_bytes * num_slices, file)
    stack = HounsfieldStack((num_slices, rows, columns))
    slab = max(1, SLAB_BYTES // slice_bytes)
    stream = _open(layout, file)
    try:
        for start in range(0, num_slices, slab):
            count = min(slab, num_slices - start)
            raw = stream.read(count * slice_bytes)
            if len(raw) < count * slice_bytes:
                raise DamagedFileError("the voxel data ends early", file=file, cure="Copy or download the file again.")
            values = np.frombuffer(raw, layout.dtype).reshape(count, rows, columns)
            stack.put(start, _rescale(values, layout))
        rest, is_padding = 0, True
        while rest < max(slice_bytes, CHUNK_BYTES) and (chunk := stream.read(CHUNK_BYTES)):
            rest += len(chunk)  # to the end: a checksum stands there
            is_padding = is_padding and not any(chunk)
        if rest >= slice_bytes and not is_padding:
            raise DamagedFileError("more voxel data than the header says", file=file, value=layout.shape)
    finally:
        stream.close()
    return stack


def _check_data_size(layout: Layout, expected: int, file: str) -> None:
    size = layout.data_file.stat().st_size
    if layout.compression:
        if expected > size * (MAX_DEFLATE_RATIO if expected < RATIO_FREE_VOXEL_BYTES else MAX_RATIO):
            raise DamagedFileError(
                "the header announces more than a scan in this file can hold", file=file, value=layout.shape
            )
    elif size - max(0, layout.offset) < expected:
        raise DamagedFileError(
            "the voxel data ends early",
            file=file,
            value=f"{expected} bytes expected, {max(0, size - layout.offset)} there",
            cure="Copy or download the file again.",
        )


def _rescale(values: np.ndarray, layout: Layout) -> np.ndarray:
    if layout.slope == 1 and layout.intercept == 0:
        return values
    with np.errstate(over="ignore", invalid="ignore"):
        return values * np.float64(layout.slope) + np.float64(layout.intercept)


def _numbers(text: str, count: int, what: str, file: str) -> np.ndarray:
    try:
        numbers = np.array([float(part) for part in text.split()])
    except ValueError:
        raise DamagedFileError(f"{what} is not a list of numbers", file=file, value=text) from None
    if len(numbers) != count or not np.isfinite(numbers).all():
        raise DamagedFileError(f"{what} needs {count} finite numbers", file=file, value=text)
    return numbers


def _sizes(text: str, what: str, file: str) -> tuple[int, int, int]:
    if not re.fullmatch(r"[\s\d]+", text):
        raise DamagedFileError(f"{what} is not a list of sizes", file=file, value=text)
    return check_shape(tuple(int(part[:12]) for part in text.split()), file)


def _element_type(types: dict[str, str], name: str, file: str) -> str:
    if name not in types:
        raise NotCTError("not a scalar voxel type", file=file, value=name, cure="A CT scan has one number a voxel.")
    return types[name]


def _text(line: bytes) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError:
        return line.decode("latin-1")


def _data_path(name: str, header: Path, folder: Path) -> Path:
    """A detached data file: a plain file inside the folder of its header."""
    if not name or any(char in name for char in "\0\\") or DRIVE.match(name):
        raise UnsafeFileError(
            "the data file lies outside the folder of its header, or has no plain name", file=header.name
        )
    target = (header.parent / name).resolve()
    if not target.is_relative_to(folder.resolve()):
        raise UnsafeFileError("the data file lies outside the folder of its header", file=header.name)
    if not target.is_file():
        raise DamagedFileError("the data file that the header names is missing", file=header.name, value=target.name)
    return target


# --- NIfTI ---------------------------------------------------------------------------------------------------------------


def _nifti_layout(path: Path, folder: Path) -> Layout:
    with path.open("rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        head = InflateStream(file, path.name).read(544) if compressed else file.read(544)
    if len(head) < 348:
        raise DamagedFileError("too short for a NIfTI header", file=path.name, value=f"{len(head)} bytes")
    for order in "<>":
        (header_size,) = struct.unpack_from(order + "i", head)
        if header_size in (348, 540):
            break
    else:
        raise DamagedFileError("no NIfTI header", file=path.name, value=header_size)
    read = _nifti1_fields if header_size == 348 else _nifti2_fields
    if len(head) < header_size:
        raise DamagedFileError("too short for a NIfTI-2 header", file=path.name, value=f"{len(head)} bytes")
    fields = read(lambda code, at: struct.unpack_from(order + code, head, at), head)
    if fields.magic in (b"ni1", b"ni2"):
        image = _image_beside(path, folder)
        with image.open("rb") as file:
            compressed = file.read(2) == b"\x1f\x8b"
        return _nifti_from_fields(fields, order, path, compressed, 0, image)
    if fields.magic not in (b"n+1", b"n+2"):
        raise DamagedFileError("no NIfTI magic number", file=path.name)
    return _nifti_from_fields(fields, order, path, compressed, header_size + 4, path)


def _image_beside(header: Path, folder: Path) -> Path:
    """The voxels of a NIfTI header without voxels: scan.hdr, scan.img."""
    stem = header.name.removesuffix(".gz").removesuffix(".hdr")
    for name in (f"{stem}.img", f"{stem}.img.gz"):
        if (header.parent / name).is_file():
            return _data_path(name, header, folder)
    raise DamagedFileError(
        "a NIfTI header without voxels", file=header.name, cure=f"Put {stem}.img beside it, or convert both to .nii.gz."
    )


@dataclass(frozen=True, kw_only=True)
class NiftiFields:
    """Fields of a NIfTI-1 or NIfTI-2 header as stored, under the names of the standard but for `offset` (vox_offset), `slope`
    (scl_slope), `intercept` (scl_inter), `sform` (srow_x, y, z) and `units` (xyzt_units)."""

    magic: bytes
    dim: tuple[int, ...]
    datatype: int
    pixdim: tuple[float, ...]
    offset: float
    slope: float
    intercept: float
    qform_code: int
    sform_code: int
    quaternion: tuple[float, ...]  # b, c, d, then the offset
    sform: tuple[float, ...]
    units: int


Unpack = Callable[[str, int], tuple]


def _nifti1_fields(unpack: Unpack, head: bytes) -> NiftiFields:
    return NiftiFields(
        magic=head[344:347],
        dim=unpack("8h", 40),
        datatype=unpack("h", 70)[0],
        pixdim=unpack("8f", 76),
        offset=unpack("f", 108)[0],
        slope=unpack("f", 112)[0],
        intercept=unpack("f", 116)[0],
        qform_code=unpack("h", 252)[0],
        sform_code=unpack("h", 254)[0],
        quaternion=unpack("6f", 256),
        sform=unpack("12f", 280),
        units=head[123],
    )


def _nifti2_fields(unpack: Unpack, head: bytes) -> NiftiFields:
    return NiftiFields(
        magic=head[4:7],
        dim=unpack("8q", 16),
        datatype=unpack("h", 12)[0],
        pixdim=unpack("8d", 104),
        offset=float(unpack("q", 168)[0]),
        slope=unpack("d", 176)[0],
        intercept=unpack("d", 184)[0],
        qform_code=unpack("i", 344)[0],
        sform_code=unpack("i", 348)[0],
        quaternion=unpack("6d", 352),
        sform=unpack("12d", 400),
        units=unpack("i", 500)[0],
    )


def _nifti_from_fields(
    fields: NiftiFields, order: str, path: Path, compressed: bool, data_start: int, data_file: Path
) -> Layout:
    name = path.name
    num_axes = fields.dim[0]
    if not 1 <= num_axes <= 7:
        raise DamagedFileError("implausible number of dimensions", file=name, value=num_axes)
    shape: tuple[int, ...] = fields.dim[1 : num_axes + 1]
    while len(shape) > 3 and shape[-1] == 1:  # many converters write one volume as a time series of length one
        shape = shape[:-1]
    if len(shape) > 3:
        raise NotCTError("more than one volume in the file", file=name, value=shape, cure="Pass one 3-D volume.")
    columns, rows, num_slices = check_shape(shape, name)
    if fields.datatype not in NIFTI_TYPES:
        raise NotCTError("not a scalar voxel type", file=name, value=f"NIfTI datatype {fields.datatype}")
    slope, intercept = fields.slope, fields.intercept
    if slope == 0 or not np.isfinite(slope):
        slope, intercept = 1.0, 0.0  # the standard: no scaling
    check_rescale(slope, intercept, name)
    if not np.isfinite(fields.offset) or fields.offset < 0 or fields.offset > 2**26:
        raise DamagedFileError("implausible offset of the voxel data", file=name, value=fields.offset)
    affine, checks, warnings = _nifti_affine(fields, shape, name)
    return Layout(
        kind="nifti",
        shape=(columns, rows, num_slices),
        dtype=np.dtype(order + NIFTI_TYPES[fields.datatype]),
        affine=affine,
        data_file=data_file,
        offset=max(
            data_start, int(fields.offset)
        ),  # some tools write 0 where the standard wants what follows the header
        compression="deflate" if compressed else "",
        whole_file_compressed=compressed,
        slope=float(slope),
        intercept=float(intercept),
        checks=checks,
        warnings=warnings,
    )


def _nifti_affine(
    fields: NiftiFields, shape: tuple[int, ...], file: str
) -> tuple[np.ndarray, tuple[str, ...], list[ScanWarning]]:
    """sform before qform, as the standard advises and nibabel does, unless the sform is another space's or contradicts the
    voxel sizes; with neither, x runs to the left as in FSL and nibabel."""
    warnings = []
    pixdim = np.array(fields.pixdim[1:4], np.float64)
    sizes = np.abs(pixdim)
    has_sizes = bool(np.isfinite(pixdim).all() and sizes.min() > 0)
    sform = np.vstack([np.array(fields.sform, np.float64).reshape(3, 4), [0, 0, 0, 1]])
    has_sform = fields.sform_code > 0 and _places_voxels(sform)
    qform = _quaternion_affine(fields, sizes) if fields.qform_code > 0 and has_sizes else None
    is_damaged_sform = fields.sform_code > 0 and not has_sform and bool(np.any(sform[:3]))
    if is_damaged_sform and qform is None:
        return sform, (), []  # check_affine says what is wrong with it
    if not has_sizes or pixdim.min() < 0:
        if not has_sform and qform is None:
            raise GeometryError("voxel spacing must be positive", file=file, value=pixdim.tolist())
        warnings.append(
            ScanWarning(
                "bad_voxel_size",
                f"The voxel size in the NIfTI header is no size ({', '.join(f'{size:g}' for size in pixdim)}); "
                + ("that of the sform was used." if has_sform else "its sign was ignored."),
            )
        )
    scale = NIFTI_UNITS_MM.get(fields.units & 7, 1.0)  # the bits above are of time
    if has_sform and qform is not None:
        affine, form = _choose_form(fields, sform, qform, sizes, shape, scale, warnings)
        checks = (f"geometry from the {form}",)
    elif has_sform:
        affine = _sform_with_sizes(fields, sform, sizes, warnings) if has_sizes else sform
        checks = ("geometry from the sform",)
    elif qform is not None:
        affine, checks = qform, ("geometry from the qform",)
        if fields.sform_code > 0:
            warnings.append(
                ScanWarning("sform_unusable", "The sform of the NIfTI header places no voxel; its qform was used.")
            )
    else:
        affine = np.diag([-sizes[0], sizes[1], sizes[2], 1.0])
        affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
        checks = ("no geometry but the voxel size",)
        warnings.append(
            ScanWarning(
                "no_orientation",
                "The NIfTI header says nothing about orientation; axes were taken as left, anterior, superior (as FSL and "
                "nibabel do), so left and right may be swapped.",
            )
        )
    if scale != 1.0:
        affine = np.diag([scale, scale, scale, 1.0]) @ affine
        warnings.append(
            ScanWarning(
                "not_in_millimetres", f"The NIfTI header is not in millimetres; lengths were multiplied by {scale:g}."
            )
        )
    return affine, checks, warnings


def _places_voxels(affine: np.ndarray) -> bool:
    if not np.isfinite(affine).all() or np.abs(affine[:3, :3]).max() > 1e6:
        return False
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    return bool(lengths.min() > 0 and abs(np.linalg.det(affine[:3, :3] / lengths)) >= 0.1)


def _choose_form(
    fields: NiftiFields,
    sform: np.ndarray,
    qform: np.ndarray,
    sizes: np.ndarray,
    shape: tuple[int, ...],
    scale: float,
    warnings: list[ScanWarning],
) -> tuple[np.ndarray, str]:
    corners = np.array(
        [(*(n * (size - 1) for n, size in zip(corner, shape, strict=True)), 1) for corner in np.ndindex(2, 2, 2)]
    )
    apart = float(np.linalg.norm((sform - qform) @ corners.T, axis=0).max())
    if apart <= FORMS_TOLERANCE * sizes.min():
        return sform, "sform"
    if fields.sform_code in ATLAS_CODES and fields.qform_code in PATIENT_CODES:
        form, why = "qform", f"the sform leads into an atlas (code {fields.sform_code}), the qform to the patient"
    elif not _has_sizes(sform, sizes):
        form, why = "qform", "the sform has other voxel sizes than the header"
    else:
        form, why = "sform", "the standard prefers it"
    other = "sform" if form == "qform" else "qform"
    lengths = [np.linalg.norm(affine[:3, :3], axis=0) for affine in (sform, qform)]
    percent = 100 * float(np.abs(lengths[0] / lengths[1] - 1).max())
    warnings.append(
        ScanWarning(
            "forms_differ",
            f"The NIfTI header places the scan in two different ways, up to {apart * scale:.1f} mm apart and with voxel sizes "
            f"that differ by {percent:.1f} %; its {form} was used, not its {other}: {why}.",
        )
    )
    return (sform if form == "sform" else qform), form


def _has_sizes(affine: np.ndarray, sizes: np.ndarray) -> bool:
    """Whether the steps are the voxel sizes, along the axes or, of a sheared (tilted) stack, from plane to plane."""
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    heights = 1 / np.linalg.norm(np.linalg.inv(affine[:3, :3]), axis=1)
    fits = [np.abs(found / sizes - 1) <= SIZES_TOLERANCE for found in (lengths, heights)]
    return bool((fits[0] | fits[1]).all())


def _sform_with_sizes(
    fields: NiftiFields, sform: np.ndarray, sizes: np.ndarray, warnings: list[ScanWarning]
) -> np.ndarray:
    """An sform without a qform to compare it with; the header's voxel sizes stand beside it."""
    if _has_sizes(sform, sizes):
        return sform
    lengths = np.linalg.norm(sform[:3, :3], axis=0)
    if np.allclose(lengths, 1, atol=1e-3):
        warnings.append(
            ScanWarning(
                "sform_without_sizes",
                "The sform of the NIfTI header holds directions without voxel sizes; the voxel sizes of the header were used.",
            )
        )
        return sform @ np.diag([*sizes / lengths, 1.0])
    percent = 100 * float(np.abs(lengths / sizes - 1).max())
    space = f" and leads into an atlas (code {fields.sform_code})" if fields.sform_code in ATLAS_CODES else ""
    warnings.append(
        ScanWarning(
            "sizes_differ",
            f"The voxel size in the NIfTI header differs from its sform by {percent:.1f} %{space}; the sform was used.",
        )
    )
    return sform


def _quaternion_affine(fields: NiftiFields, pixdim: np.ndarray) -> np.ndarray | None:
    """None where the quaternion is none: not finite, or longer than one."""
    b, c, d = fields.quaternion[:3]
    if not np.isfinite(fields.quaternion).all() or b * b + c * c + d * d > 1.01:  # float32 rounds
        return None
    a = np.sqrt(max(0.0, 1.0 - (b * b + c * c + d * d)))
    norm = np.sqrt(a * a + b * b + c * c + d * d)
    a, b, c, d = a / norm, b / norm, c / norm, d / norm
    rotation = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )
    affine = np.eye(4)
    affine[:3, :3] = rotation * pixdim
    if fields.pixdim[0] < 0:  # qfac of the NIfTI-1 header: a rotation cannot mirror, so the sign of z stands here
        affine[:3, 2] *= -1
    affine[:3, 3] = fields.quaternion[3:6]
    return affine


# --- MetaImage -----------------------------------------------------------------------------------------------------------


def _meta_layout(path: Path, folder: Path) -> Layout:
    tags, end = _meta_tags(path)
    name = path.name
    dims = int(_numbers(tags.get("NDims", ""), 1, "NDims", name)[0])
    if dims != 3:
        raise NotCTError("one 3-D scan is needed", file=name, value=f"NDims = {dims}")
    if tags.get("ElementNumberOfChannels", "1").strip() != "1":
        raise NotCTError("several numbers a voxel (colour or vectors)", file=name)
    if tags.get("BinaryData", "True").lower() == "false":
        raise UnsupportedFormatError("MetaImage with text voxels", file=name, cure="Save it as binary.")
    shape = _sizes(tags.get("DimSize", ""), "DimSize", name)
    warnings = []
    # Old writers have the size of a voxel alone. The keys below are synonyms in MetaIO, the library of ITK.
    spacing_text = tags.get("ElementSpacing", tags.get("ElementSize", ""))
    spacing = _numbers(spacing_text, 3, "ElementSpacing", name)
    if spacing.min() <= 0:
        raise GeometryError("voxel spacing must be positive", file=name, value=spacing.tolist())
    direction = next((tags[key] for key in ("TransformMatrix", "Rotation", "Orientation") if key in tags), "")
    origin = next((tags[key] for key in ("Offset", "Position", "Origin") if key in tags), "0 0 0")
    if not direction:
        warnings.append(
            ScanWarning(
                "no_orientation",
                "The MetaImage header says nothing about orientation; left, posterior, superior was assumed.",
            )
        )
    axes = _numbers(direction or "1 0 0 0 1 0 0 0 1", 9, "TransformMatrix", name).reshape(3, 3).T
    affine = np.eye(4)
    affine[:3, :3] = axes * spacing
    affine[:3, 3] = _numbers(origin, 3, "Offset", name)
    big_endian = tags.get("BinaryDataByteOrderMSB", tags.get("ElementByteOrderMSB", "False")).lower() == "true"
    dtype = np.dtype((">" if big_endian else "<") + _element_type(META_TYPES, tags.get("ElementType", ""), name))
    data_name = tags["ElementDataFile"]
    local = data_name.upper() == "LOCAL"
    if data_name.upper().startswith("LIST") or "%" in data_name:
        raise UnsupportedFormatError("MetaImage in several data files", file=name, cure="Save it as one file.")
    data_file = path if local else _data_path(data_name, path, folder)
    offset = end if local else int(_numbers(tags.get("HeaderSize", "0"), 1, "HeaderSize", name)[0])
    if offset < 0:  # HeaderSize -1: of any length, the voxels end the file
        offset = data_file.stat().st_size - int(np.prod(shape, dtype=object)) * dtype.itemsize
    return Layout(
        kind="metaimage",
        shape=shape,
        dtype=dtype,
        affine=LPS_TO_RAS @ affine,
        data_file=data_file,
        offset=offset,
        compression="deflate" if tags.get("CompressedData", "False").lower() == "true" else "",
        warnings=warnings,
    )


def _meta_tags(path: Path) -> tuple[dict[str, str], int]:
    with path.open("rb") as file:
        head = file.read(MAX_HEADER_BYTES)
    tags: dict[str, str] = {}
    end = 0
    for line in head.splitlines(keepends=True):
        end += len(line)
        key, equals, value = _text(line).partition("=")
        if not equals:
            if line.strip():
                break
            continue
        tags[key.strip()] = value.strip()
        if key.strip() == "ElementDataFile":
            if not line.endswith(b"\n") and tags["ElementDataFile"].upper() == "LOCAL":
                break
            return tags, end
    raise DamagedFileError("no complete MetaImage header", file=path.name)


# --- NRRD ----------------------------------------------------------------------------------------------------------------


def _nrrd_layout(path: Path, folder: Path) -> Layout:
    fields, end = _nrrd_fields(path)
    name = path.name
    dims = fields.get("dimension", "")
    if dims != "3":
        raise NotCTError("one 3-D scan is needed", file=name, value=f"dimension: {dims}")
    shape = _sizes(fields.get("sizes", ""), "sizes", name)
    affine, warnings = _nrrd_affine(fields, name)
    element = _element_type(NRRD_TYPES, fields.get("type", "").lower(), name)
    if fields.get("endian", "").lower() not in ("little", "big") and element[1] != "1":
        raise DamagedFileError(
            "the header does not say which byte comes first", file=name, cure="Add `endian: little`."
        )
    dtype = np.dtype((">" if fields.get("endian", "").lower() == "big" else "<") + element)
    encoding = fields.get("encoding", "").lower()
    encodings = {"raw": "", "gzip": "deflate", "gz": "deflate", "bzip2": "bzip2", "bz2": "bzip2"}
    if encoding not in encodings:
        raise UnsupportedFormatError("unsupported NRRD encoding", file=name, value=encoding, cure="Save it as gzip.")
    data_name = fields.get("data file", fields.get("datafile", ""))
    if data_name.upper().startswith("LIST") or "%" in data_name:
        raise UnsupportedFormatError("NRRD in several data files", file=name, cure="Save it as one file.")
    data_file = _data_path(data_name, path, folder) if data_name else path
    skips = [fields.get(key, "0") for key in ("line skip", "lineskip", "byte skip", "byteskip")]
    byte_skip = fields.get("byte skip", fields.get("byteskip", "0"))
    if any(skip not in ("0", "-1") for skip in skips[:2]) or (byte_skip != "0" and encodings[encoding]):
        raise UnsupportedFormatError("NRRD with skipped lines or bytes", file=name, cure="Save it again without.")
    offset = 0 if data_name else end
    if byte_skip == "-1":
        offset = data_file.stat().st_size - int(np.prod(shape, dtype=object)) * dtype.itemsize
    elif byte_skip != "0":
        offset += int(_numbers(byte_skip, 1, "byte skip", name)[0])
    if offset < 0:
        raise DamagedFileError("the voxel data ends early", file=name)
    return Layout(
        kind="nrrd",
        shape=shape,
        dtype=dtype,
        affine=affine,
        data_file=data_file,
        offset=offset,
        compression=encodings[encoding],
        warnings=warnings,
    )


def _nrrd_fields(path: Path) -> tuple[dict[str, str], int]:
    with path.open("rb") as file:
        head = file.read(MAX_HEADER_BYTES)
    fields: dict[str, str] = {}
    end = 0
    for line in head.splitlines(keepends=True):
        end += len(line)
        text = _text(line).strip()
        if not text:
            return fields, end
        key, colon, value = text.partition(": ")
        # "key:=value" is the user's own, and none of the format's fields.
        if colon and not text.startswith("#") and ":=" not in key:
            fields[key.strip().lower()] = value.strip()
    if end == len(head) < MAX_HEADER_BYTES and ("data file" in fields or "datafile" in fields):
        return fields, end  # a detached header may end with the file
    raise DamagedFileError("no complete NRRD header", file=path.name)


def _nrrd_affine(fields: dict[str, str], name: str) -> tuple[np.ndarray, list[ScanWarning]]:
    warnings = []
    space = (
        fields.get("space", "").lower().removesuffix("-time")
    )  # a fourth axis, which the dimension rules out already
    if space and space not in NRRD_SPACES:
        raise GeometryError("not a patient space", file=name, value=space, cure="Save it in space LPS or RAS.")
    units = re.findall(r'"([^"]*)"', fields.get("space units", ""))
    if any(unit not in ("mm", "millimeter", "millimetre", "") for unit in units):
        raise GeometryError("lengths must be in millimetres", file=name, value=units)
    affine = np.eye(4)
    if "space directions" in fields:
        vectors = re.sub(r"[(),]", " ", fields["space directions"])
        affine[:3, :3] = _numbers(vectors, 9, "space directions", name).reshape(3, 3).T
    else:
        spacing = _numbers(fields.get("spacings", ""), 3, "spacings", name)
        if spacing.min() <= 0:
            raise GeometryError("voxel spacing must be positive", file=name, value=spacing.tolist())
        affine[:3, :3] = np.diag(spacing)
    if not space or "space directions" not in fields:
        warnings.append(
            ScanWarning(
                "no_orientation",
                "The NRRD header says too little about orientation; left, posterior, superior was assumed.",
            )
        )
    origin = re.sub(r"[(),]", " ", fields.get("space origin", "(0,0,0)"))
    affine[:3, 3] = _numbers(origin, 3, "space origin", name)
    sign = NRRD_SPACES.get(space, (-1.0, -1.0, 1.0))
    return np.diag([*sign, 1.0]) @ affine, warnings
