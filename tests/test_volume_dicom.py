"""DICOM folders and files through `read_volume`: order, geometry, pixels, and the choice of one series."""

import json
import struct
import tracemalloc
import warnings
import zlib
from collections.abc import Callable
from dataclasses import asdict
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import numpy as np
import pydicom
import pytest
from ctfm.phantom.dicom_series import write_dicom_series
from ctfm.volume_ctfm import (
    AIR_HU,
    AmbiguousSeriesError,
    DamagedFileError,
    GeometryError,
    NotCTError,
    UnsupportedFormatError,
    Volume,
    VolumeError,
    list_series,
    read_volume,
)
from pydicom.dataset import Dataset, FileDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.sequence import Sequence
from pydicom.uid import UID, generate_uid

from tests.phantoms import SHAPE, SPACING, canonical_affine, phantom_hu

HU = phantom_hu()
AFFINE = canonical_affine()
Edit = Callable[[FileDataset, int], None]


def write(
    folder: Path, edit: Edit | None = None, hu: np.ndarray = HU, affine: np.ndarray = AFFINE, **names: str
) -> Path:
    write_dicom_series(hu, affine, folder, edit=edit, **names)  # type: ignore[arg-type]
    return folder


def edited(**values: object) -> Edit:
    def edit(data_set: FileDataset, index: int) -> None:
        for name, value in values.items():
            setattr(data_set, name, value)

    return edit


def rewrite(folder: Path, change: Callable[[FileDataset], None]) -> None:
    for path in sorted(folder.iterdir()):
        data_set = pydicom.dcmread(path)
        change(data_set)
        data_set.save_as(path)


def assert_is_phantom(volume: Volume, tolerance: float = 1e-3) -> None:
    assert np.array_equal(volume.hu, HU)
    assert np.allclose(volume.affine, AFFINE, atol=tolerance)


def test_a_series_comes_back_exactly(tmp_path: Path) -> None:
    volume = read_volume(write(tmp_path / "scan"))
    assert_is_phantom(volume)
    assert volume.hu.dtype == np.int16
    assert volume.hu.flags.c_contiguous
    assert volume.warnings == ()
    assert np.allclose(volume.spacing, SPACING)


def test_a_string_path_reads_like_a_path(tmp_path: Path) -> None:
    assert_is_phantom(read_volume(str(write(tmp_path))))


def test_slices_are_ordered_by_position_not_by_name_or_number(tmp_path: Path) -> None:
    def shuffle(data_set: FileDataset, index: int) -> None:
        data_set.InstanceNumber = (index * 7) % 24

    write(tmp_path / "flat", shuffle)
    nested = tmp_path / "nested"
    for index, path in enumerate(sorted((tmp_path / "flat").iterdir())):
        target = nested / str(index % 3) / f"{(index * 5) % 24:x}"
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    assert_is_phantom(read_volume(nested))


def test_each_slice_has_its_own_rescale(tmp_path: Path) -> None:
    def rescale(data_set: FileDataset, index: int) -> None:
        stored = np.frombuffer(data_set.PixelData, "<i2").astype(np.int32) - 1024  # hu
        data_set.RescaleSlope, data_set.RescaleIntercept = "1", str(-1000 - index)
        data_set.PixelData = (stored + 1000 + index).astype("<i2").tobytes()

    volume = read_volume(write(tmp_path, rescale))
    assert_is_phantom(volume)
    assert volume.source.rescale == "differs by slice"


def test_a_broken_slope_gives_float32(tmp_path: Path) -> None:
    write_dicom_series(HU, AFFINE, tmp_path, slope=0.3, intercept=-1024.5)
    volume = read_volume(tmp_path)
    assert volume.hu.dtype == np.float32
    assert np.abs(volume.hu - HU).max() <= 0.151


@pytest.mark.parametrize("slope", ["0", "-1", "1e9", "abc"])
def test_an_implausible_slope_is_refused(tmp_path: Path, slope: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write(tmp_path)
        for path in tmp_path.iterdir():
            path.write_bytes(
                path.read_bytes().replace(b"\x53\x10DS\x02\x001 ", b"\x53\x10DS\x04\x00" + slope.ljust(4).encode())
            )
    with pytest.raises(VolumeError, match=r"[Rr]escale"):
        read_volume(tmp_path)


def test_padding_and_fill_become_air(tmp_path: Path) -> None:
    corners = np.zeros(SHAPE[1:], bool)
    corners[:4, :4] = corners[-4:, -4:] = True

    def pad(data_set: FileDataset, index: int) -> None:
        stored = np.frombuffer(data_set.PixelData, "<i2").reshape(SHAPE[1:]).copy()
        stored[corners] = -2000
        stored[0, -1] = -1024  # -2048 HU, outside the circle, without being the padding value
        data_set.PixelPaddingValue = -2000
        data_set.PixelData = stored.tobytes()

    volume = read_volume(write(tmp_path, pad))
    expected = HU.copy()
    expected[:, corners] = AIR_HU
    expected[:, 0, -1] = AIR_HU
    assert np.array_equal(volume.hu, expected)
    assert any("padding value" in warning for warning in volume.warnings)
    assert any("reconstruction circle" in warning for warning in volume.warnings)


def test_a_padding_range_becomes_air(tmp_path: Path) -> None:
    def pad(data_set: FileDataset, index: int) -> None:
        stored = np.frombuffer(data_set.PixelData, "<i2").reshape(SHAPE[1:]).copy()
        stored[0, :3] = (-30, -20, -10)
        data_set.PixelPaddingValue, data_set.PixelPaddingRangeLimit = -30, -10
        data_set.PixelData = stored.tobytes()

    assert (read_volume(write(tmp_path, pad)).hu[:, 0, :3] == AIR_HU).all()


def test_a_padding_value_that_is_tissue_is_not_padding(tmp_path: Path) -> None:
    volume = read_volume(write(tmp_path, edited(PixelPaddingValue=1064)))  # 40 HU
    assert_is_phantom(volume)


@pytest.mark.parametrize(
    ("bits", "high_bit", "signed"), [(12, 11, False), (12, 13, False), (13, 15, True), (16, 15, False)]
)
def test_odd_bit_layouts_are_unpacked(tmp_path: Path, bits: int, high_bit: int, signed: bool) -> None:
    def pack(data_set: FileDataset, index: int) -> None:
        hu = np.frombuffer(data_set.PixelData, "<i2").astype(np.int64) - 1024
        stored = hu if signed else hu + 1024
        packed = (stored & ((1 << bits) - 1)) << (high_bit + 1 - bits)
        overlay = 0xFFFF & ~(((1 << bits) - 1) << (high_bit + 1 - bits))
        data_set.PixelData = (packed | (overlay if index % 2 else 0)).astype("<u2").tobytes()
        data_set.RescaleIntercept = "0" if signed else "-1024"
        data_set.BitsStored, data_set.HighBit, data_set.PixelRepresentation = bits, high_bit, int(signed)

    assert np.array_equal(read_volume(write(tmp_path, pack)).hu, HU)


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"])
def test_uncompressed_transfer_syntaxes_agree(tmp_path: Path, syntax: str) -> None:
    write(tmp_path)
    for path in tmp_path.iterdir():
        data_set = pydicom.dcmread(path)
        data_set.decode()
        if syntax.endswith("2.2"):
            data_set.PixelData = np.frombuffer(data_set.PixelData, "<i2").astype(">i2").tobytes()
            data_set.PixelPaddingValue = -2000
        data_set.file_meta.TransferSyntaxUID = UID(syntax)
        fresh = Dataset(data_set)
        fresh.file_meta = data_set.file_meta
        fresh.save_as(
            path,
            implicit_vr=syntax == "1.2.840.10008.1.2",
            little_endian=not syntax.endswith("2.2"),
            enforce_file_format=True,
        )
    assert_is_phantom(read_volume(tmp_path))


def test_a_deflated_bomb_is_refused_before_it_fills_memory(tmp_path: Path) -> None:
    write(tmp_path, hu=HU[:2])
    for path in tmp_path.iterdir():
        content = path.read_bytes().replace(b"UI\x14\x001.2.840.10008.1.2.1\0", b"UI\x16\x001.2.840.10008.1.2.1.99")
        start = 144 + int.from_bytes(content[140:144], "little") + 2
        meta = content[:140] + (start - 144).to_bytes(4, "little") + content[144:start]
        squeeze = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
        packed = squeeze.compress(content[start:]) + b"".join(squeeze.compress(bytes(2**20)) for _ in range(400))
        path.write_bytes(meta + packed + squeeze.flush())
    tracemalloc.start()
    with pytest.raises(DamagedFileError, match="deflated"):
        read_volume(tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 200 * 2**20
    tracemalloc.stop()


def compress_with_gdcm(path: Path, syntax: int, signed: bool) -> None:
    gdcm = pytest.importorskip("gdcm")
    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(syntax))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("name", ["JPEGLosslessProcess14_1", "JPEGLSLossless", "JPEG2000Lossless", "RLELossless"])
def test_lossless_compression_changes_no_value(tmp_path: Path, name: str, signed: bool) -> None:
    gdcm = pytest.importorskip("gdcm")

    def pad(data_set: FileDataset, index: int) -> None:
        stored = np.frombuffer(data_set.PixelData, "<i2").reshape(SHAPE[1:]).copy()
        if signed:
            stored[:3, :3] = -2000
        else:
            data_set.PixelRepresentation, data_set.BitsStored, data_set.HighBit = 0, 12, 11
        data_set.PixelData = stored.tobytes()

    write(tmp_path / "plain", pad)
    write(tmp_path / "packed", pad)
    for path in (tmp_path / "packed").iterdir():
        compress_with_gdcm(path, getattr(gdcm.TransferSyntax, name), signed)
    plain, packed = read_volume(tmp_path / "plain"), read_volume(tmp_path / "packed")
    assert np.array_equal(plain.hu, packed.hu)
    assert np.array_equal(plain.affine, packed.affine)
    assert packed.source.transfer_syntax != plain.source.transfer_syntax


STORED_FORMS = [(signed, bits) for signed in (False, True) for bits in (8, 10, 12, 13, 16)]
LOSSLESS = ["JPEGLosslessProcess14", "JPEGLosslessProcess14_1", "JPEGLSLossless", "JPEG2000Lossless", "RLELossless"]


def as_stored(signed: bool, bits: int) -> Edit:
    """The phantom in as many bits of 16 as asked for, squeezed where it does not fit; bits above are not set."""

    def pack(data_set: FileDataset, index: int) -> None:
        hu = np.frombuffer(data_set.PixelData, "<i2").astype(np.int64) - 1024
        squeezed = hu // {8: 32, 10: 8}.get(bits, 2)
        stored = squeezed if signed else squeezed + {8: 32, 10: 128}.get(bits, 512)
        data_set.PixelData = (stored & ((1 << bits) - 1)).astype("<u2").tobytes()
        data_set.RescaleSlope, data_set.RescaleIntercept = "1", "-600"
        data_set.BitsStored, data_set.HighBit, data_set.PixelRepresentation = bits, bits - 1, int(signed)

    return pack


@pytest.mark.parametrize(("signed", "bits"), STORED_FORMS)
@pytest.mark.parametrize("name", LOSSLESS)
def test_compressed_bits_mean_what_the_uncompressed_ones_do(tmp_path: Path, name: str, signed: bool, bits: int) -> None:
    gdcm = pytest.importorskip("gdcm")
    write(tmp_path / "plain", as_stored(signed, bits), hu=HU[:4])
    write(tmp_path / "packed", as_stored(signed, bits), hu=HU[:4])
    for path in (tmp_path / "packed").iterdir():
        compress_with_gdcm(path, getattr(gdcm.TransferSyntax, name), signed)
    plain, packed = read_volume(tmp_path / "plain"), read_volume(tmp_path / "packed")
    assert np.array_equal(plain.hu, packed.hu)
    assert plain.source.stored_type == packed.source.stored_type


@pytest.mark.parametrize(("signed", "bits"), STORED_FORMS)
@pytest.mark.parametrize("name", ["JPEGLSLossless", "JPEG2000Lossless", "JPEGLosslessProcess14_1"])
def test_a_code_stream_of_the_other_sign_is_read_by_the_header(
    tmp_path: Path, name: str, signed: bool, bits: int
) -> None:
    gdcm = pytest.importorskip("gdcm")
    write(tmp_path / "plain", as_stored(signed, bits), hu=HU[:4])
    write(tmp_path / "packed", as_stored(signed, bits), hu=HU[:4])
    for path in (tmp_path / "packed").iterdir():
        data_set = pydicom.dcmread(path)
        data_set.PixelRepresentation = 1 - int(signed)  # what the encoder is told
        data_set.save_as(path)
        compress_with_gdcm(path, getattr(gdcm.TransferSyntax, name), not signed)
        data_set = pydicom.dcmread(path)
        data_set.PixelRepresentation = int(signed)
        data_set.save_as(path)
    assert np.array_equal(read_volume(tmp_path / "plain").hu, read_volume(tmp_path / "packed").hu)


def test_a_code_stream_inside_a_jp2_file_is_read(tmp_path: Path) -> None:
    gdcm = pytest.importorskip("gdcm")
    write(tmp_path, hu=HU[:4])
    for path in tmp_path.iterdir():
        compress_with_gdcm(path, gdcm.TransferSyntax.JPEG2000Lossless, True)
        data_set = pydicom.dcmread(path)
        size = struct.pack(">I4s2IH4B", 22, b"ihdr", *SHAPE[1:], 1, 0x8F, 7, 0, 0)
        colour = struct.pack(">I4s3BI", 15, b"colr", 1, 0, 0, 17)  # grey
        boxes = b"\0\0\0\x0cjP  \r\n\x87\n" + struct.pack(">I4s4sI4s", 20, b"ftyp", b"jp2 ", 0, b"jp2 ")
        boxes += struct.pack(">I4s", 8 + len(size + colour), b"jp2h") + size + colour + struct.pack(">I4s", 0, b"jp2c")
        put_frame(data_set, boxes + next(generate_frames(data_set.PixelData, number_of_frames=1)))
        data_set.save_as(path)
    assert np.array_equal(read_volume(tmp_path).hu, HU[:4])


def put_frame(data_set: FileDataset, frame: bytes) -> None:
    data_set.PixelData = encapsulate([frame])
    data_set["PixelData"].is_undefined_length = True
    data_set["PixelData"].VR = "OB"


def encapsulated(folder: Path, syntax: str, frame: bytes) -> Path:
    """A series whose every slice has this compressed picture."""
    write(folder, hu=HU[:3])
    for path in folder.iterdir():
        data_set = pydicom.dcmread(path)
        data_set.file_meta.TransferSyntaxUID = UID(syntax)
        put_frame(data_set, frame)
        data_set.save_as(path)
    return folder


def jpeg_of_process(marker: int, precision: int) -> bytes:
    frame = bytes([0xFF, marker, 0, 11, precision, *SHAPE[1].to_bytes(2, "big"), *SHAPE[2].to_bytes(2, "big")])
    return b"\xff\xd8" + frame + bytes([1, 1, 0x11, 0]) + b"\xff\xd9"


@pytest.mark.parametrize(
    ("syntax", "frame", "message"),
    [
        ("1.2.840.10008.1.2.4.51", jpeg_of_process(0xC1, 12), r"12-bit lossy JPEG.*JPEG Extended.*dcmdjpeg"),
        ("1.2.840.10008.1.2.4.57", jpeg_of_process(0xC7, 16), r"JPEG process.*FFC7.*dcmdjpeg"),
        pytest.param(
            "1.2.840.10008.1.2.4.201",
            b"",
            r"not installed.*High-Throughput JPEG 2000.*pylibjpeg-openjpeg",
            marks=pytest.mark.skipif(find_spec("openjpeg") is not None, reason="its decoder is installed"),
        ),
        ("1.2.840.10008.1.2.4.102", b"", r"no decoder.*MPEG-4.*Decompress"),
    ],
)
def test_pictures_without_a_decoder_are_not_called_damaged(
    tmp_path: Path, syntax: str, frame: bytes, message: str
) -> None:
    with pytest.raises(UnsupportedFormatError, match=message):
        read_volume(encapsulated(tmp_path, syntax, frame or b"\0" * 64))


def reoriented(order: tuple[int, int, int], signs: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """The phantom stored with other axes: `order` names our axis on each stored axis, `signs` reverses some."""
    hu, affine = HU, AFFINE.copy()
    flips = tuple(slice(None, None, sign) for sign in signs)
    hu = hu.transpose(order)[flips]
    affine = affine[:, [*order, 3]]
    for axis, sign in enumerate(signs):
        if sign < 0:
            affine[:, 3] += affine[:, axis] * (hu.shape[axis] - 1)
            affine[:, axis] *= -1
    return np.ascontiguousarray(hu), affine


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)])
@pytest.mark.parametrize("signs", list(product((1, -1), repeat=3)))  # prone is (1, -1, -1), feet first (-1, 1, -1)
def test_every_acquisition_plane_lands_in_one_orientation(
    tmp_path: Path, order: tuple[int, int, int], signs: tuple[int, int, int]
) -> None:
    hu, affine = reoriented(order, signs)
    volume = read_volume(write(tmp_path, hu=hu, affine=affine))
    assert_is_phantom(volume)
    back = volume.to_source_order(
        volume.hu
    )  # slices run along their normal, so a left-handed stack comes back reversed
    handed = np.linalg.det(np.diag([-1, -1, 1]) @ affine[:3, [2, 1, 0]]) > 0
    assert np.array_equal(back, hu if handed else hu[::-1])


def rotation_about_x(degrees: float) -> np.ndarray:
    angle = np.radians(degrees)
    matrix = np.eye(4)
    matrix[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return matrix


def test_an_oblique_stack_keeps_its_voxels_and_its_rotation(tmp_path: Path) -> None:
    affine = rotation_about_x(15) @ AFFINE
    volume = read_volume(write(tmp_path, affine=affine))
    assert np.array_equal(volume.hu, HU)
    assert np.allclose(volume.affine, affine, atol=1e-3)
    assert any("15.0 degrees" in warning for warning in volume.warnings)


def world_ramp(shape: tuple[int, int, int], affine: np.ndarray) -> np.ndarray:
    """HU that are a linear function of the place in the patient, so that any true resampling keeps them."""
    index = np.stack(np.meshgrid(*(np.arange(size) for size in shape), indexing="ij"), -1)
    world = index @ affine[:3, :3].T + affine[:3, 3]
    return np.rint(world @ [3.0, 4.0, 5.0]).astype(np.int16)


def interior(volume: Volume) -> np.ndarray:
    return (volume.hu != AIR_HU) & (np.abs(volume.hu) < 2000)


@pytest.mark.parametrize("degrees", [-20.0, 8.0, 25.0])
def test_gantry_tilt_is_straightened(tmp_path: Path, degrees: float) -> None:
    affine = AFFINE.copy()
    affine[:3, 1] = rotation_about_x(degrees)[:3, :3] @ affine[:3, 1]  # rows lean, the table still runs along z
    volume = read_volume(write(tmp_path, hu=world_ramp(SHAPE, affine), affine=affine))
    cosines = volume.affine[:3, :3] / np.linalg.norm(volume.affine[:3, :3], axis=0)
    assert np.allclose(cosines.T @ cosines, np.eye(3), atol=1e-6)
    assert any("gantry tilt" in warning for warning in volume.warnings)
    expected = world_ramp(volume.hu.shape, volume.affine)
    inside = interior(volume)
    assert inside.mean() > 0.4
    assert np.abs(volume.hu.astype(int) - expected)[inside].max() <= 4
    with pytest.raises(VolumeError, match="resampled"):
        volume.to_source_order(volume.hu)


def test_a_missing_slice_is_interpolated_and_said(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "slice0007.dcm").unlink()
    volume = read_volume(tmp_path)
    assert volume.hu.shape == SHAPE
    assert np.array_equal(np.delete(volume.hu, 7, 0), np.delete(HU, 7, 0))
    assert np.array_equal(volume.hu[7], np.rint((HU[6].astype(float) + HU[8]) / 2))
    assert any("missing slices" in warning for warning in volume.warnings)
    with pytest.raises(VolumeError, match="resampled"):
        volume.to_source_order(volume.hu)


def test_a_wide_hole_is_refused(tmp_path: Path) -> None:
    write(tmp_path)
    for index in range(7, 12):
        (tmp_path / f"slice{index:04d}.dcm").unlink()
    with pytest.raises(GeometryError, match=r"hole of 18\.0 mm"):
        read_volume(tmp_path)


def test_a_changing_slice_distance_is_resampled_from_true_positions(tmp_path: Path) -> None:
    depths = np.concatenate([np.arange(8) * 2.0, 14 + np.arange(1, 9) * 4.0])
    hu = np.broadcast_to((depths * 10)[:, None, None], (16, 8, 8)).astype(np.int16) - 500
    hu = hu + np.arange(8, dtype=np.int16)

    def place(data_set: FileDataset, index: int) -> None:
        data_set.ImagePositionPatient[2] = float(depths[index])

    volume = read_volume(write(tmp_path, place, hu=hu))
    assert volume.hu.shape == (24, 8, 8)
    assert np.allclose(volume.spacing[0], 2.0)
    assert np.array_equal(volume.hu[:, 0, 0], np.arange(24) * 20 - 500)


def scan_in_steps(folder: Path, steps: list[float], **values: list[float]) -> Path:
    """A ramp along the scan whose slices lie these steps apart; `values` give a tag of each slice."""
    depths = np.concatenate([[0.0], np.cumsum(steps)])
    hu = (depths * 8)[:, None, None] + np.arange(8)[None, None] - 500 + np.zeros((1, 8, 1))

    def place(data_set: FileDataset, index: int) -> None:
        data_set.ImagePositionPatient[2] = f"{depths[index]:g}"
        for name, each in values.items():
            setattr(data_set, name, f"{each[index]:g}")

    return write(folder, place, hu=np.rint(hu).astype(np.int16))


@pytest.mark.parametrize(("fine", "coarse"), [(1.25, 5.0), (3.0, 10.0), (1.0, 20.0)])
@pytest.mark.parametrize("name", ["SliceThickness", "SpacingBetweenSlices"])
def test_a_protocol_of_two_slice_distances_is_no_gap(tmp_path: Path, fine: float, coarse: float, name: str) -> None:
    steps = [fine] * 10 + [coarse] * 6
    scan_in_steps(tmp_path, steps, **{name: [fine] * 11 + [coarse] * 6})
    if name == "SpacingBetweenSlices":
        for path in tmp_path.iterdir():
            data_set = pydicom.dcmread(path)
            data_set.SliceThickness = ""
            data_set.save_as(path)
    volume = read_volume(tmp_path)
    assert np.isclose(volume.spacing[0], fine)
    assert volume.hu.shape[0] == round(sum(steps) / fine) + 1
    assert np.abs(volume.hu[:, 0, 0] - (np.arange(volume.hu.shape[0]) * fine * 8 - 500)).max() <= 1
    assert any("resampled" in warning for warning in volume.warnings)


@pytest.mark.parametrize("thickness", [1.25, 5.0])
def test_one_wide_step_between_slices_like_all_others_is_a_gap(tmp_path: Path, thickness: float) -> None:
    scan_in_steps(tmp_path, [1.25] * 8 + [5.0] + [1.25] * 8, SliceThickness=[thickness] * 18)
    with pytest.raises(GeometryError, match=r"hole of 5\.0 mm"):
        read_volume(tmp_path)


def test_every_second_slice_missing_is_said_where_the_header_says_so(tmp_path: Path) -> None:
    write(tmp_path, edited(SpacingBetweenSlices="3"))
    assert read_volume(tmp_path).warnings == ()
    for path in sorted(tmp_path.iterdir())[1::2]:
        path.unlink()
    volume = read_volume(tmp_path)
    assert any("every second slice is missing" in warning for warning in volume.warnings)


def test_identical_duplicates_are_dropped_and_said(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "copy").mkdir()
    for index in (3, 11):
        (tmp_path / "copy" / f"again{index}").write_bytes((tmp_path / f"slice{index:04d}.dcm").read_bytes())
    volume = read_volume(tmp_path)
    assert_is_phantom(volume)
    assert volume.source.left_out == {"duplicate slice": 2}
    assert any("twice" in warning for warning in volume.warnings)


def test_different_slices_on_one_place_are_refused(tmp_path: Path) -> None:
    def stack(data_set: FileDataset, index: int) -> None:
        if index == 5:
            data_set.ImagePositionPatient[2] = data_set.ImagePositionPatient[2] - SPACING[0]

    with pytest.raises(VolumeError, match="same place"):
        read_volume(write(tmp_path, stack))


def test_one_slice_is_no_volume(tmp_path: Path) -> None:
    with pytest.raises(GeometryError, match="one slice is no volume"):
        read_volume(write(tmp_path, hu=HU[:1]))


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["ORIGINAL", "PRIMARY", "LOCALIZER"], "localizer"),
        (["DERIVED", "SECONDARY", "SCREEN SAVE"], "secondary capture"),
        (["DERIVED", "PRIMARY", "CBF"], "derived map (CBF)"),
    ],
)
def test_what_is_no_slice_is_left_out_and_listed(tmp_path: Path, words: list[str], reason: str) -> None:
    write(tmp_path / "scan", series_uid="1.2.3")
    write(tmp_path / "other", edited(ImageType=words), hu=HU[:6])
    write(tmp_path / "inside", edited(ImageType=words), hu=HU[6:8], series_uid="1.2.3")
    volume = read_volume(tmp_path)
    assert_is_phantom(volume)
    assert volume.source.left_out == {reason: 8}
    assert any(reason in warning for warning in volume.warnings)


@pytest.mark.parametrize("modality", ["MR", "PT", "SEG", "RTSTRUCT", "SR", "PR"])
def test_other_modalities_are_left_out_and_alone_refused(tmp_path: Path, modality: str) -> None:
    other = write(tmp_path / "other", edited(Modality=modality, SOPClassUID="1.2.840.10008.5.1.4.1.1.4"))
    with pytest.raises(NotCTError, match=modality):
        read_volume(other)
    write(tmp_path / "scan")
    volume = read_volume(tmp_path)
    assert_is_phantom(volume)
    assert volume.source.left_out == {f"modality {modality}": 24}


def test_junk_is_left_out(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "__MACOSX").mkdir()
    for name in ("DICOMDIR", "Thumbs.db", "._slice0000.dcm", "__MACOSX/._x"):
        (tmp_path / name).write_bytes(b"\0" * 200)
    (tmp_path / "empty.dcm").write_bytes(b"")
    (tmp_path / "report.pdf").write_bytes(b"%PDF-1.4 nothing")
    volume = read_volume(tmp_path)
    assert_is_phantom(volume)
    assert volume.source.left_out == {"system file": 4, "empty file": 1, "other file": 1}


def test_reformats_are_used_only_when_alone(tmp_path: Path) -> None:
    reformat = write(tmp_path / "mpr", edited(ImageType=["DERIVED", "SECONDARY", "MPR"]), hu=HU + np.int16(1))
    assert np.array_equal(read_volume(reformat).hu, HU + 1)
    write(tmp_path / "scan")
    assert_is_phantom(read_volume(tmp_path))
    derived = write(tmp_path / "derived only", edited(ImageType=["DERIVED", "SECONDARY", "AXIAL"]))
    assert_is_phantom(read_volume(derived))


def test_two_series_must_be_chosen_from(tmp_path: Path) -> None:
    write(tmp_path / "a", series_uid="1.2.3", kernel="SOFT")
    write(tmp_path / "b", series_uid="1.2.4", kernel="BONE", hu=HU + np.int16(5))
    with pytest.raises(AmbiguousSeriesError, match=r"1\.2\.3.*SOFT(?s:.*)1\.2\.4.*BONE") as caught:
        read_volume(tmp_path)
    assert [choice.series_uid for choice in caught.value.choices] == ["1.2.3", "1.2.4"]
    assert np.array_equal(read_volume(tmp_path, "1.2.4").hu, HU + 5)
    assert [found.series_uid for found in list_series(tmp_path)] == ["1.2.3", "1.2.4"]
    with pytest.raises(AmbiguousSeriesError, match="no such series"):
        read_volume(tmp_path, "9.9")


def test_a_short_series_beside_a_long_one_is_left_out(tmp_path: Path) -> None:
    write(tmp_path / "long")
    write(tmp_path / "short", hu=HU[:3])
    assert_is_phantom(read_volume(tmp_path))


def test_two_patients_are_never_merged(tmp_path: Path) -> None:
    write(tmp_path / "a", edited(PatientID="SECRET-A", PatientName="Doe^Jane"), series_uid="1.2.3")
    write(tmp_path / "b", edited(PatientID="SECRET-B", PatientName="Roe^Rick"), hu=HU[:1], series_uid="1.2.4")
    with pytest.raises(AmbiguousSeriesError, match="2 patients") as caught:
        read_volume(tmp_path)
    assert "patient 1" in str(caught.value)
    assert not any(word in str(caught.value) for word in ("SECRET", "Doe", "Roe", "Jane"))
    assert_is_phantom(read_volume(tmp_path, "1.2.3"))


def test_two_patients_under_one_series_uid_stay_apart(tmp_path: Path) -> None:
    write(tmp_path / "a", edited(PatientID="A"), series_uid="1.2.3")
    write(tmp_path / "b", edited(PatientID="B"), hu=HU + np.int16(3), series_uid="1.2.3")
    for chosen in (None, "1.2.3"):
        with pytest.raises(AmbiguousSeriesError, match="patient 2"):
            read_volume(tmp_path, chosen)
    assert_is_phantom(read_volume(tmp_path, "1.2.3#1"))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("AcquisitionNumber", ("1", "2")),
        ("TemporalPositionIdentifier", ("1", "2")),
        ("ContrastBolusAgent", ("", "iodine")),
        ("ConvolutionKernel", ("B30f", "B70f")),
        ("KVP", ("140", "80")),
        ("ReconstructionDiameter", ("320", "400")),
    ],
)
@pytest.mark.parametrize("offset", [0.0, 1.5])
def test_interleaved_acquisitions_are_split(tmp_path: Path, name: str, values: tuple[str, str], offset: float) -> None:
    def one_study(data_set: FileDataset, value: str) -> None:
        data_set.FrameOfReferenceUID, data_set.StudyInstanceUID = "1.9", "1.8"
        setattr(data_set, name, value)

    def first(data_set: FileDataset, index: int) -> None:
        one_study(data_set, values[0])

    def second(data_set: FileDataset, index: int) -> None:
        one_study(data_set, values[1])
        data_set.ImagePositionPatient[2] = data_set.ImagePositionPatient[2] + offset

    write(tmp_path / "a", first, series_uid="1.2.3")
    write(tmp_path / "b", second, hu=HU + np.int16(5), series_uid="1.2.3")
    with pytest.raises(AmbiguousSeriesError, match=r"1\.2\.3#2") as caught:
        read_volume(tmp_path)
    assert {choice.shape[0] for choice in caught.value.choices} == {24}
    assert np.array_equal(read_volume(tmp_path, "1.2.3#1").hu, HU)
    assert np.array_equal(read_volume(tmp_path, "1.2.3#2").hu, HU + 5)


def test_acquisitions_that_collide_are_split_by_their_one_time(tmp_path: Path) -> None:
    for name, time, added in (("a", "101500", 0), ("b", "101642.5", 5)):

        def timed(data_set: FileDataset, index: int, time: str = time) -> None:
            data_set.AcquisitionTime = time
            data_set.FrameOfReferenceUID, data_set.StudyInstanceUID = "1.9", "1.8"

        write(tmp_path / name, timed, hu=HU + np.int16(added), series_uid="1.2.3")
    with pytest.raises(AmbiguousSeriesError, match="2 CT series or acquisitions"):
        read_volume(tmp_path)
    assert np.array_equal(read_volume(tmp_path, "1.2.3#2").hu, HU + 5)


def test_two_passes_are_split_by_time(tmp_path: Path) -> None:
    for name, start, added in (("a", 100000, 0), ("b", 100100, 5)):

        def timed(data_set: FileDataset, index: int, start: int = start) -> None:
            data_set.AcquisitionTime = f"{start + index}"
            data_set.FrameOfReferenceUID, data_set.StudyInstanceUID = "1.9", "1.8"

        write(tmp_path / name, timed, hu=HU + np.int16(added), series_uid="1.2.3")
    assert np.array_equal(read_volume(tmp_path, "1.2.3#2").hu, HU + 5)


def interleave(
    folder: Path, edit: Callable[[FileDataset, int, int], None], offset: float = 1.5, added: int = 5
) -> Path:
    """Two acquisitions in one series, the second `offset` mm above the first and `added` HU brighter."""
    for number in range(2):

        def place(data_set: FileDataset, index: int, number: int = number) -> None:
            data_set.FrameOfReferenceUID, data_set.StudyInstanceUID = "1.9", "1.8"
            data_set.ImagePositionPatient[2] = data_set.ImagePositionPatient[2] + number * offset
            edit(data_set, number, index)

        write(folder / str(number), place, hu=HU + np.int16(number * added), series_uid="1.2.3")
    return folder


@pytest.mark.parametrize(
    "time",
    [
        lambda number, index: f"10{15 + 4 * number}00",
        lambda number, index: f"{100000 + 300 * number + index}",
        lambda number, index: f"{100000 + 300 * number + index // 4}",
        lambda number, index: f"{100030 + 300 * number - index}",
        lambda number, index: f"{100000 + (330 - index if number else index)}",
    ],
    ids=["one time each", "a time a slice", "a time for four slices", "both downwards", "there and back"],
)
@pytest.mark.parametrize(("name", "date"), [("AcquisitionTime", ""), ("AcquisitionDateTime", "20200101")])
@pytest.mark.parametrize("offset", [0.0, 1.5])
def test_acquisitions_on_or_between_each_other_are_split_by_time(
    tmp_path: Path, name: str, date: str, time: Callable[[int, int], str], offset: float
) -> None:
    interleave(tmp_path, lambda data_set, number, index: setattr(data_set, name, date + time(number, index)), offset)
    with pytest.raises(AmbiguousSeriesError, match=r"1\.2\.3#2"):
        read_volume(tmp_path)
    assert np.array_equal(read_volume(tmp_path, "1.2.3#1").hu, HU)
    assert np.array_equal(read_volume(tmp_path, "1.2.3#2").hu, HU + 5)


def test_interleaved_acquisitions_that_nothing_tells_apart_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AmbiguousSeriesError, match="two interleaved acquisitions"):
        read_volume(interleave(tmp_path, lambda data_set, number, index: None, added=100))


@pytest.mark.parametrize("direction", [1, -1])
@pytest.mark.parametrize("together", [1, 3, 24])
def test_the_time_of_a_slice_does_not_split_one_acquisition(tmp_path: Path, direction: int, together: int) -> None:
    def timed(data_set: FileDataset, index: int) -> None:
        data_set.AcquisitionTime = f"{101530 + direction * (index // together)}"
        data_set.ContentTime = f"{101700 + index * 7 % 5}"  # slices are reconstructed in any order

    assert_is_phantom(read_volume(write(tmp_path, timed)))


def test_steps_of_one_axial_scan_are_not_split(tmp_path: Path) -> None:
    def step(data_set: FileDataset, index: int) -> None:
        data_set.AcquisitionNumber = index // 4
        data_set.AcquisitionTime = f"{101500 + index // 4}"

    assert_is_phantom(read_volume(write(tmp_path, step)))


def test_slices_of_another_orientation_size_or_spacing_are_not_mixed_in(tmp_path: Path) -> None:
    write(tmp_path / "a", series_uid="1.2.3")
    write(tmp_path / "b", hu=HU[:, :24], series_uid="1.2.3")
    hu, affine = reoriented((1, 0, 2), (1, 1, 1))
    write(tmp_path / "c", hu=hu, affine=affine, series_uid="1.2.3")
    for path in tmp_path.rglob("*.dcm"):
        data_set = pydicom.dcmread(path)
        data_set.FrameOfReferenceUID, data_set.StudyInstanceUID = "1.9", "1.8"
        data_set.save_as(path)
    with pytest.raises(AmbiguousSeriesError) as caught:
        read_volume(tmp_path)
    assert len(caught.value.choices) == 3
    assert {choice.plane for choice in caught.value.choices} == {"axial", "coronal"}


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (edited(PixelSpacing=["0", "1"]), GeometryError),
        (edited(PixelSpacing=["-1", "1"]), GeometryError),
        (edited(ImageOrientationPatient=["0"] * 6), GeometryError),
        (edited(ImagePositionPatient=["1e30", "0", "0"]), GeometryError),
        (edited(Rows=400), DamagedFileError),
        (edited(Rows=10), DamagedFileError),
        (edited(Rows=0), DamagedFileError),
        (edited(Rows=65535, Columns=65535), DamagedFileError),
        (edited(NumberOfFrames=50), DamagedFileError),
        (edited(NumberOfFrames=10**9), DamagedFileError),
        (edited(BitsStored=40), UnsupportedFormatError),
        (edited(HighBit=2), DamagedFileError),
    ],
)
def test_implausible_headers_are_refused(tmp_path: Path, change: Edit, error: type[VolumeError]) -> None:
    with pytest.raises(error):
        read_volume(write(tmp_path, change))


@pytest.mark.parametrize("name", ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"])
def test_a_missing_geometry_is_refused(tmp_path: Path, name: str) -> None:
    def drop(data_set: FileDataset, index: int) -> None:
        delattr(data_set, name)

    with pytest.raises(GeometryError, match="position, orientation or pixel spacing"):
        read_volume(write(tmp_path, drop))


def test_one_slice_without_a_position_is_refused_in_the_series_and_left_out_beside_it(tmp_path: Path) -> None:
    def drop(data_set: FileDataset, index: int) -> None:
        if index == 5:
            del data_set.ImagePositionPatient

    with pytest.raises(GeometryError, match=r"slice0005\.dcm"):
        read_volume(write(tmp_path / "broken", drop))
    write(tmp_path / "both" / "scan")
    write(tmp_path / "both" / "other", lambda data_set, index: delattr(data_set, "ImagePositionPatient"), hu=HU[:2])
    assert_is_phantom(read_volume(tmp_path / "both"))


def test_a_missing_rescale_is_said(tmp_path: Path) -> None:
    def drop(data_set: FileDataset, index: int) -> None:
        del data_set.RescaleSlope, data_set.RescaleIntercept

    said = read_volume(write(tmp_path, drop)).warnings
    assert any("no rescale slope" in warning for warning in said)
    assert any("intercept is probably missing" in warning for warning in said)


def test_one_slice_without_a_rescale_is_refused(tmp_path: Path) -> None:
    def drop(data_set: FileDataset, index: int) -> None:
        if index == 5:
            del data_set.RescaleIntercept

    with pytest.raises(NotCTError, match=r"slice0005\.dcm.*1 of 24 without"):
        read_volume(write(tmp_path, drop))


def test_slices_without_a_kernel_belong_to_the_only_one(tmp_path: Path) -> None:
    def drop(data_set: FileDataset, index: int) -> None:
        if index < 3:
            data_set.ConvolutionKernel = ""

    volume = read_volume(write(tmp_path, drop))
    assert_is_phantom(volume)
    assert volume.source.kernel == "STANDARD"


def test_a_short_acquisition_of_the_same_series_is_left_out_by_that_name(tmp_path: Path) -> None:
    def test_run(data_set: FileDataset, index: int) -> None:
        data_set.AcquisitionNumber = 1 if index < 3 else 2
        data_set.FrameOfReferenceUID, data_set.StudyInstanceUID = "1.9", "1.8"

    write(tmp_path / "test run", test_run, hu=HU[:3] + np.int16(7), series_uid="1.2.3")
    write(tmp_path / "scan", lambda data_set, index: test_run(data_set, 3), series_uid="1.2.3")
    volume = read_volume(tmp_path)
    assert_is_phantom(volume)
    assert volume.source.left_out == {"other acquisition of the same series": 3}


@pytest.mark.parametrize("keep", [140, 400, 900, 1500, 3000])
def test_a_truncated_slice_is_refused(tmp_path: Path, keep: int) -> None:
    write(tmp_path)
    path = tmp_path / "slice0009.dcm"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(VolumeError, match=r"slice0009\.dcm"):
        read_volume(tmp_path)


@pytest.mark.parametrize("name", ["JPEGLSLossless", "JPEG2000Lossless", "JPEGLosslessProcess14_1", "RLELossless"])
def test_damaged_compressed_pixels_are_refused(tmp_path: Path, name: str) -> None:
    gdcm = pytest.importorskip("gdcm")
    write(tmp_path, hu=HU[:6])
    for path in tmp_path.iterdir():
        compress_with_gdcm(path, getattr(gdcm.TransferSyntax, name), True)
    path = tmp_path / "slice0003.dcm"
    whole = path.read_bytes()
    path.write_bytes(whole[:-200])
    with pytest.raises(DamagedFileError, match=r"slice0003\.dcm"):
        read_volume(tmp_path)
    path.write_bytes(whole)
    for path in tmp_path.iterdir():
        whole = path.read_bytes()
        rows = whole.index(b"\x28\x00\x10\x00US\x02\x00") + 8
        path.write_bytes(whole[:rows] + b"\x30\x01" + whole[rows + 2 :])
    with pytest.raises(DamagedFileError):
        read_volume(tmp_path)


@pytest.mark.parametrize(
    ("name", "marker", "at"),
    [
        ("JPEGLSLossless", b"\xff\xf7\x00\x0b", 4),  # precision
        ("JPEG2000Lossless", b"\xff\x51\x00\x29", 40),  # precision
        ("JPEGLosslessProcess14_1", b"\xff\xc3\x00\x0b", 4),  # precision
        ("JPEGLosslessProcess14_1", b"\xff\xc3\x00\x0b", 9),  # components
        ("JPEGLosslessProcess14_1", b"\xff\xc4\x00", 3),  # length of the Huffman table
        ("JPEGLosslessProcess14_1", b"\xff\xc4\x00", 6),  # counts of the Huffman table
        ("JPEGLosslessProcess14_1", b"\xff\xda\x00", 6),  # number of the Huffman table
    ],
)
def test_a_picture_that_would_end_the_process_inside_gdcm_is_refused(
    tmp_path: Path, name: str, marker: bytes, at: int
) -> None:
    gdcm = pytest.importorskip("gdcm")
    write(tmp_path, hu=HU[:3])
    for path in tmp_path.iterdir():
        compress_with_gdcm(path, getattr(gdcm.TransferSyntax, name), True)
    content = bytearray(path.read_bytes())
    content[content.rindex(marker, 0, content.rindex(b"\xe0\x7f\x10\x00") + 400) + at] ^= 0x55
    path.write_bytes(content)
    with pytest.raises(DamagedFileError, match="compressed picture"):
        read_volume(tmp_path)


ENHANCED, LEGACY_ENHANCED = (UID(f"1.2.840.10008.5.1.4.1.1.2.{number}") for number in (1, 2))


def as_enhanced(folder: Path, order: list[int], sop_class: UID = ENHANCED) -> FileDataset:
    """One enhanced multi-frame file with the slices of a series as frames, in the given order."""
    slices = [pydicom.dcmread(folder / f"slice{index:04d}.dcm") for index in order]
    data_set = pydicom.dcmread(folder / f"slice{order[0]:04d}.dcm")
    data_set.SOPClassUID = data_set.file_meta.MediaStorageSOPClassUID = sop_class
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept"):
        delattr(data_set, name)
    shared = Dataset()
    measures, plane = Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = slices[0].PixelSpacing, slices[0].SliceThickness
    plane.ImageOrientationPatient = slices[0].ImageOrientationPatient
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = Sequence([measures]), Sequence([plane])
    frames = []
    for one in slices:
        frame, place, scale, content = Dataset(), Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient = one.ImagePositionPatient
        scale.RescaleSlope, scale.RescaleIntercept = one.RescaleSlope, one.RescaleIntercept
        content.FrameAcquisitionNumber = 1
        frame.PlanePositionSequence, frame.PixelValueTransformationSequence = Sequence([place]), Sequence([scale])
        frame.FrameContentSequence = Sequence([content])
        frames.append(frame)
    data_set.SharedFunctionalGroupsSequence = Sequence([shared])
    data_set.PerFrameFunctionalGroupsSequence = Sequence(frames)
    data_set.NumberOfFrames = len(slices)
    data_set.PixelData = b"".join(one.PixelData for one in slices)
    return data_set


@pytest.mark.parametrize("order", [list(range(24)), list(range(23, -1, -1)), [(7 * index) % 24 for index in range(24)]])
def test_an_enhanced_file_reads_like_its_series(tmp_path: Path, order: list[int]) -> None:
    data_set = as_enhanced(write(tmp_path / "scan"), order)
    path = tmp_path / "enhanced"
    data_set.save_as(path)
    volume = read_volume(path)
    assert_is_phantom(volume)
    if order in (list(range(24)), list(range(23, -1, -1))):
        assert np.array_equal(volume.to_source_order(volume.hu), HU[order])


def test_a_legacy_converted_file_reads_like_its_series(tmp_path: Path) -> None:
    data_set = as_enhanced(write(tmp_path / "scan"), list(range(24)), LEGACY_ENHANCED)
    data_set.save_as(tmp_path / "legacy.dcm")
    assert_is_phantom(read_volume(tmp_path / "legacy.dcm"))


def test_a_compressed_enhanced_file_reads_like_its_series(tmp_path: Path) -> None:
    data_set = as_enhanced(write(tmp_path / "scan"), list(range(24)))
    data_set.compress(UID("1.2.840.10008.1.2.5"))
    data_set.save_as(tmp_path / "enhanced.dcm")
    assert_is_phantom(read_volume(tmp_path / "enhanced.dcm"))


def test_phases_of_an_enhanced_file_are_split(tmp_path: Path) -> None:
    folder = write(tmp_path / "scan")
    data_set = as_enhanced(folder, [*range(24), *range(24)])
    for index, frame in enumerate(data_set.PerFrameFunctionalGroupsSequence):
        frame.FrameContentSequence[0].TemporalPositionIndex = 1 + index // 24
    data_set.save_as(tmp_path / "enhanced.dcm")
    with pytest.raises(AmbiguousSeriesError, match="#2"):
        read_volume(tmp_path / "enhanced.dcm")


@pytest.mark.parametrize("frames", [23, 25])
def test_a_lying_number_of_frames_is_refused(tmp_path: Path, frames: int) -> None:
    data_set = as_enhanced(write(tmp_path / "scan"), list(range(24)))
    data_set.NumberOfFrames = frames
    data_set.save_as(tmp_path / "enhanced.dcm")
    with pytest.raises(DamagedFileError, match="frames"):
        read_volume(tmp_path / "enhanced.dcm")


def test_multi_frame_without_positions_is_refused(tmp_path: Path) -> None:
    data_set = as_enhanced(write(tmp_path / "scan"), list(range(24)))
    del data_set.PerFrameFunctionalGroupsSequence
    data_set.save_as(tmp_path / "enhanced.dcm")
    with pytest.raises(GeometryError, match="position"):
        read_volume(tmp_path / "enhanced.dcm")


def two_acquisitions(folder: Path, num_shared: int, added: int, **second: object) -> Path:
    def one_study(data_set: FileDataset, index: int) -> None:
        data_set.FrameOfReferenceUID, data_set.StudyInstanceUID = "1.9", "1.8"

    def continue_it(data_set: FileDataset, index: int) -> None:
        one_study(data_set, index)
        data_set.AcquisitionNumber = 2
        for name, value in second.items():
            setattr(data_set, name, value)

    hu = HU.copy()
    hu[13 - num_shared : 13] += np.int16(added)
    affine = AFFINE.copy()
    affine[:, 3] += affine[:, 0] * (13 - num_shared)
    write(folder / "a", one_study, hu=HU[:13], series_uid="1.2.3")
    write(folder / "b", continue_it, hu=hu[13 - num_shared :], affine=affine, series_uid="1.2.3")
    return folder


@pytest.mark.parametrize("num_shared", [1, 2])
@pytest.mark.parametrize("added", [0, 7])
def test_acquisitions_that_share_a_slice_can_be_read_whole(tmp_path: Path, num_shared: int, added: int) -> None:
    two_acquisitions(tmp_path, num_shared, added)
    with pytest.raises(AmbiguousSeriesError) as caught:
        read_volume(tmp_path)
    names = ["1.2.3#1", "1.2.3#2", "1.2.3#whole"]
    assert [choice.series_uid for choice in caught.value.choices] == names
    assert [found.series_uid for found in list_series(tmp_path)] == names
    volume = read_volume(tmp_path, "1.2.3#whole")
    assert_is_phantom(volume)
    num_identical = 0 if added else num_shared
    assert any(f"{num_identical} identical" in warning for warning in volume.warnings)
    assert volume.source.left_out == {"duplicate slice": num_shared}
    half = read_volume(tmp_path, "1.2.3#1")
    assert np.array_equal(half.hu, HU[:13])
    assert half.source.left_out == {"other acquisition of the same series": 11 + num_shared}


@pytest.mark.parametrize(("num_shared", "second"), [(6, {}), (1, {"KVP": "80"}), (1, {"ContrastBolusAgent": "iodine"})])
def test_acquisitions_that_are_no_parts_of_one_scan_are_not_offered_whole(
    tmp_path: Path, num_shared: int, second: dict
) -> None:
    two_acquisitions(tmp_path, num_shared, 0, **second)
    assert [found.series_uid for found in list_series(tmp_path)] == ["1.2.3#1", "1.2.3#2"]


@pytest.mark.parametrize(
    ("group", "name", "values"),
    [
        ("CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime", (100.0, 300.0)),
        ("CardiacSynchronizationSequence", "NominalPercentageOfCardiacPhase", (40.0, 70.0)),
        ("CardiacSynchronizationSequence", "NominalCardiacTriggerTimePriorToRPeak", (100.0, 300.0)),
        ("CardiacSynchronizationSequence", "ActualCardiacTriggerDelayTime", (100.0, 300.0)),
        ("RespiratorySynchronizationSequence", "NominalPercentageOfRespiratoryPhase", (0.0, 50.0)),
        ("RespiratorySynchronizationSequence", "NominalRespiratoryTriggerDelayTime", (100.0, 300.0)),
        ("TemporalPositionSequence", "TemporalPositionTimeOffset", (0.0, 1.5)),
    ],
)
@pytest.mark.parametrize("enhanced", [True, False])
def test_phases_of_the_heart_and_of_breathing_are_choices(
    tmp_path: Path, group: str, name: str, values: tuple[float, float], enhanced: bool
) -> None:
    for number, value in enumerate(values):
        synchronisation = Dataset()
        setattr(synchronisation, name, value)

        def one_study(data_set: FileDataset, index: int, value: float = value) -> None:
            data_set.FrameOfReferenceUID, data_set.StudyInstanceUID = "1.9", "1.8"
            if not enhanced:
                setattr(data_set, name, value)

        folder = tmp_path / ("made" if enhanced else "read") / str(number)
        write(folder, one_study, hu=HU + np.int16(5 * number), series_uid="1.2.3")
        if enhanced:
            data_set = as_enhanced(folder, list(range(24)))
            for frame in data_set.PerFrameFunctionalGroupsSequence:
                setattr(frame, group, Sequence([synchronisation]))
            (tmp_path / "read").mkdir(exist_ok=True)
            data_set.save_as(tmp_path / "read" / f"phase{number}")
    with pytest.raises(AmbiguousSeriesError, match="2 CT series or acquisitions") as caught:
        read_volume(tmp_path / "read")
    assert [choice.series_uid for choice in caught.value.choices] == ["1.2.3#1", "1.2.3#2"]
    if "Nominal" in name:
        assert {f"{value:g}" for value in values} == {choice.phase.split()[0] for choice in caught.value.choices}
        assert all(choice.phase in str(caught.value) for choice in caught.value.choices)
    found = {int(read_volume(tmp_path / "read", f"1.2.3#{number}").hu[0, 0, 0]) - int(HU[0, 0, 0]) for number in (1, 2)}
    assert found == {0, 5}


def test_a_multi_frame_file_without_functional_groups_is_named(tmp_path: Path) -> None:
    def many(data_set: FileDataset, index: int) -> None:
        data_set.NumberOfFrames, data_set.SpacingBetweenSlices = 24, "3"
        data_set.PixelData = data_set.PixelData * 24

    with pytest.raises(GeometryError, match=r"multi-frame file without functional groups.*24 frames"):
        read_volume(write(tmp_path, many, hu=HU[:1]))


def test_one_position_for_all_slices_is_named(tmp_path: Path) -> None:
    write(tmp_path, edited(ImagePositionPatient=["0", "0", "0"]))
    with pytest.raises(GeometryError, match=r"all slices have the same position \(24 slices\)"):
        read_volume(tmp_path)
    assert "position of all others" in list_series(tmp_path)[0].left_out_because


def test_a_series_a_slice_is_named(tmp_path: Path) -> None:
    def own_series(data_set: FileDataset, index: int) -> None:
        data_set.SeriesInstanceUID = generate_uid()

    with pytest.raises(GeometryError, match="24 series of one slice each"):
        read_volume(write(tmp_path, own_series))


def test_zeros_behind_the_pixels_are_padding_and_other_bytes_are_not(tmp_path: Path) -> None:
    def pad(data_set: FileDataset, index: int) -> None:
        data_set.PixelData = data_set.PixelData + bytes(4000)

    assert_is_phantom(read_volume(write(tmp_path / "padded", pad)))

    def append(data_set: FileDataset, index: int) -> None:
        data_set.PixelData = data_set.PixelData + data_set.PixelData

    with pytest.raises(DamagedFileError, match="more pixel data"):
        read_volume(write(tmp_path / "more", append))


@pytest.mark.parametrize("stray", [bytes(128) + b"DICM" + b"\xff" * 900, bytes(128) + b"DICM", "other series"])
def test_a_damaged_file_beside_a_whole_scan_is_left_out_and_listed(tmp_path: Path, stray: bytes | str) -> None:
    write(tmp_path / "scan", series_uid="1.2.3")
    if isinstance(stray, str):
        stray = sorted(write(tmp_path / "made", edited(PixelSpacing=["0", "1"])).iterdir())[0].read_bytes()
    (tmp_path / "scan" / "stray.dcm").write_bytes(stray)
    volume = read_volume(tmp_path / "scan")
    assert_is_phantom(volume)
    assert volume.source.left_out == {"DICOM file that cannot be read": 1}
    assert len(list_series(tmp_path / "scan")) == 1
    (tmp_path / "scan" / "slice0009.dcm").unlink()  # the stray file may be what is missing
    with pytest.raises(VolumeError, match=r"stray\.dcm"):
        read_volume(tmp_path / "scan")


def test_a_damaged_slice_at_the_end_of_its_series_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, series_uid="1.2.3")
    path = tmp_path / "slice0023.dcm"
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"1.2.3\0") + 20])
    with pytest.raises(VolumeError, match=r"slice0023\.dcm"):
        read_volume(tmp_path)


def test_colour_and_maps_in_other_units_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NotCTError, match="rescale type MGML"):
        read_volume(write(tmp_path / "a", edited(RescaleType="MGML")))
    with pytest.raises(NotCTError, match="colour"):
        read_volume(write(tmp_path / "b", edited(SamplesPerPixel=3, PhotometricInterpretation="RGB")))


def as_map(words: str, rescale_type: str | None, description: str) -> Edit:
    def edit(data_set: FileDataset, index: int) -> None:
        data_set.ImageType, data_set.SeriesDescription = words.split("/"), description
        data_set.RescaleType = rescale_type
        if rescale_type is None:
            del data_set.RescaleType

    return edit


@pytest.mark.parametrize("rescale_type", ["HU", "US", None])
@pytest.mark.parametrize(
    ("words", "description"),
    [
        ("DERIVED/PRIMARY/AXIAL/MAT_SPECIFIC", "Iodine"),
        ("ORIGINAL/PRIMARY/AXIAL/MAT_SPECIFIC", ""),
        ("DERIVED/PRIMARY/AXIAL/MAT_FRACTIONAL", "fat"),
        ("DERIVED/PRIMARY/AXIAL/MAT_VALUE_BASED", ""),
        ("DERIVED/PRIMARY/AXIAL/EFF_ATOMIC_NUM", ""),
        ("DERIVED/PRIMARY/AXIAL/ELECTRON_DENSITY", ""),
        ("DERIVED/SECONDARY/AXIAL/PERFUSION/TMAXD", ""),
        ("DERIVED/PRIMARY/AXIAL/SUBTRACTION", ""),
        ("DERIVED/SECONDARY/AXIAL/IODINE MAP", ""),
        ("DERIVED/SECONDARY/AXIAL", "Iodine map"),
        ("DERIVED/PRIMARY/AXIAL", "Iodine(Water)"),
        ("DERIVED/SECONDARY/AXIAL", "DE Rho_Z"),
        ("DERIVED/PRIMARY/AXIAL", "Z Effective"),
        ("DERIVED/PRIMARY/AXIAL/VMI", "Mono 40 keV - 140 keV difference"),
    ],
)
def test_a_map_is_no_scan_whatever_its_rescale_type(
    tmp_path: Path, words: str, description: str, rescale_type: str | None
) -> None:
    write(tmp_path, as_map(words, rescale_type, description))
    with pytest.raises(NotCTError, match="derived map"):
        read_volume(tmp_path)
    assert "derived map" in list_series(tmp_path)[0].left_out_because


@pytest.mark.parametrize("rescale_type", ["HU", "US", None])
@pytest.mark.parametrize(
    ("words", "description"),
    [
        ("DERIVED/PRIMARY/AXIAL/VMI", "Mono 70 keV"),
        ("DERIVED/PRIMARY/AXIAL", "MonoE 40keV"),
        ("ORIGINAL/PRIMARY/AXIAL", "ABDOMEN IODINE CONTRAST water oral"),
        ("ORIGINAL/PRIMARY/PERFUSION/NONE", "CT perfusion"),
        ("DERIVED/PRIMARY/AXIAL/MEAN", "average"),
    ],
)
def test_what_is_in_hounsfield_units_is_not_taken_for_a_map(
    tmp_path: Path, words: str, description: str, rescale_type: str | None
) -> None:
    volume = read_volume(write(tmp_path, as_map(words, rescale_type, description)))
    assert_is_phantom(volume)
    assert volume.warnings == ()


@pytest.mark.parametrize("word", ["MAT_REMOVED", "MAT_MODIFIED", "VNC"])
def test_a_removed_material_is_said(tmp_path: Path, word: str) -> None:
    volume = read_volume(write(tmp_path, as_map(f"DERIVED/PRIMARY/AXIAL/{word}", "HU", "")))
    assert_is_phantom(volume)
    assert any(word in warning for warning in volume.warnings)


def test_a_description_against_the_rest_of_the_header_is_said(tmp_path: Path) -> None:
    volume = read_volume(write(tmp_path, as_map("ORIGINAL/PRIMARY/AXIAL", "HU", "Electron density")))
    assert_is_phantom(volume)
    assert any('"electron density"' in warning for warning in volume.warnings)


@pytest.mark.parametrize(("unit", "is_map"), [("mg/mL", True), ("1", True), ("[hnsf'U]", False)])
@pytest.mark.parametrize("enhanced", [False, True])
def test_the_unit_of_a_real_world_value_mapping_counts(tmp_path: Path, unit: str, is_map: bool, enhanced: bool) -> None:
    code, mapping = Dataset(), Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = unit, "UCUM", unit
    mapping.MeasurementUnitsCodeSequence = Sequence([code])
    write(tmp_path / "scan", None if enhanced else edited(RealWorldValueMappingSequence=Sequence([mapping])))
    path = tmp_path / "scan"
    if enhanced:
        data_set = as_enhanced(path, list(range(24)))
        data_set.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence = Sequence([mapping])
        path = tmp_path / "enhanced.dcm"
        data_set.save_as(path)
    if is_map:
        with pytest.raises(NotCTError, match=f"unit {unit.lower()}"):
            read_volume(path)
    else:
        assert_is_phantom(read_volume(path))


def test_files_without_preamble_are_read(tmp_path: Path) -> None:
    write(tmp_path)
    for path in tmp_path.iterdir():
        content = path.read_bytes()
        start = 144 + int.from_bytes(content[140:144], "little")
        path.write_bytes(content[start:])
    assert_is_phantom(read_volume(tmp_path))


def test_nothing_says_who_the_patient_is(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    secrets = ["Muster", "Erika", "ID4711", "19700101", "ACC99", "1.2.826.777"]

    def identify(data_set: FileDataset, index: int) -> None:
        data_set.PatientName, data_set.PatientID, data_set.PatientBirthDate = "Muster^Erika", "ID4711", "19700101"
        data_set.AccessionNumber = "ACC99"
        data_set.StudyInstanceUID = "1.2.826.777"

    folder = write(tmp_path / "Muster_Erika_19700101", identify, series_uid="1.2.826.777.1")
    for path in folder.iterdir():  # values that pydicom would warn about, with the value in the text
        path.write_bytes(path.read_bytes().replace(b"19700101", b"19701301").replace(b"ACC99", b"ACC99"))
    path = folder / "slice0003.dcm"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        volume = read_volume(folder)
        path.write_bytes(path.read_bytes()[:-700])
        with pytest.raises(VolumeError) as caught:
            read_volume(folder)
    text = json.dumps([asdict(volume.source), volume.warnings]) + str(caught.value) + repr(caught.value)
    text += "".join(capfd.readouterr()) + caplog.text + str(caught.value.__cause__)
    assert not any(secret in text for secret in secrets)
    assert "slice0003.dcm" in str(caught.value)


def test_a_folder_name_is_never_shown(tmp_path: Path) -> None:
    folder = tmp_path / "Muster_Erika"
    write(folder / "Erika1")
    write(folder / "Erika2")
    with pytest.raises(AmbiguousSeriesError) as caught:
        read_volume(folder)
    assert "Erika" not in str(caught.value)
    (tmp_path / "Erika").mkdir()
    with pytest.raises(VolumeError, match="no CT scan found") as missing:
        read_volume(tmp_path / "Erika")
    assert "Erika" not in str(missing.value)


def test_a_stack_whose_slices_each_have_a_frame_of_reference_is_one_stack(tmp_path: Path) -> None:
    def anonymise(data_set: FileDataset, index: int) -> None:
        data_set.FrameOfReferenceUID = generate_uid()

    assert_is_phantom(read_volume(write(tmp_path, anonymise)))


def test_a_stated_tilt_that_the_positions_do_not_show_is_said(tmp_path: Path) -> None:
    volume = read_volume(write(tmp_path, edited(GantryDetectorTilt="-15")))
    assert_is_phantom(volume)
    assert any("tilt of -15 degrees" in warning for warning in volume.warnings)


def test_lossy_compression_is_said(tmp_path: Path) -> None:
    volume = read_volume(write(tmp_path, edited(LossyImageCompression="01")))
    assert any("with loss" in warning for warning in volume.warnings)


def test_implicit_data_under_an_explicit_label_is_read(tmp_path: Path) -> None:
    write(tmp_path)
    for path in tmp_path.iterdir():
        data_set = pydicom.dcmread(path)
        fresh = Dataset(data_set)
        fresh.file_meta = data_set.file_meta
        fresh.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2")
        fresh.save_as(path, implicit_vr=True, little_endian=True, enforce_file_format=True)
        explicit = b"1.2.840.10008.1.2.1\0"
        content = path.read_bytes().replace(b"UI\x12\x001.2.840.10008.1.2\0", b"UI\x14\x00" + explicit)
        length = int.from_bytes(content[140:144], "little") + 2
        path.write_bytes(content[:140] + length.to_bytes(4, "little") + content[144:])
    assert_is_phantom(read_volume(tmp_path))


def test_source_is_plain_json(tmp_path: Path) -> None:
    write(tmp_path, edited(ContrastBolusAgent="IODINE", BodyPartExamined="CHEST"))
    source = json.loads(json.dumps(asdict(read_volume(tmp_path).source)))
    assert source["kind"] == "dicom"
    assert source["orientation"] == "SPL"
    assert source["kernel"] == "STANDARD"
    assert source["contrast"] is True
    assert source["num_files"] == source["num_slices"] == 24


def test_new_uids_do_not_change_what_is_read(tmp_path: Path) -> None:
    assert_is_phantom(read_volume(write(tmp_path, edited(SOPInstanceUID=generate_uid()))))
