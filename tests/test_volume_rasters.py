"""NIfTI, MetaImage and NRRD files through `read_volume`, with nibabel and SimpleITK as writers."""

import gzip
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from ctfm.volume_ctfm import (
    AIR_HU,
    DamagedFileError,
    GeometryError,
    NotCTError,
    UnsafeFileError,
    UnsupportedFormatError,
    Volume,
    VolumeError,
    list_series,
    read_volume,
)

from tests.phantoms import canonical_affine, phantom_hu

HU = phantom_hu()
AFFINE = canonical_affine()
LPS = HU.transpose(2, 1, 0)  # (i, j, k) to the left, the back and the head
LPS_AFFINE = AFFINE[:, [2, 1, 0, 3]]
CODES = ["LPS", "RAS", "LAS", "RPI", "PIR", "SAL", "IRP", "ASR"]


def as_orientation(code: str, dtype: type = np.int16) -> nib.nifti1.Nifti1Image:
    image = nib.nifti1.Nifti1Image(LPS.astype(dtype), LPS_AFFINE)
    turn = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(LPS_AFFINE), nib.orientations.axcodes2ornt(code)
    )
    return image.as_reoriented(turn)


def assert_is_phantom(volume: Volume, tolerance: float = 1e-3) -> None:
    assert np.array_equal(volume.hu, HU)
    assert np.allclose(volume.affine, AFFINE, atol=tolerance)


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_any_axis_order_of_nifti_gives_the_same_volume(tmp_path: Path, code: str, ending: str) -> None:
    image = as_orientation(code)
    path = tmp_path / f"scan{ending}"
    nib.save(image, path)
    volume = read_volume(path)
    assert_is_phantom(volume)
    assert volume.orientation == code
    assert volume.warnings == ()
    assert np.array_equal(volume.to_source_order(volume.hu), np.asarray(image.dataobj))


@pytest.mark.parametrize("forms", [(1, 0), (0, 1), (1, 1), (2, 3)])
@pytest.mark.parametrize("big_endian", [False, True])
@pytest.mark.parametrize("version", [1, 2])
def test_qform_and_sform_agree(tmp_path: Path, forms: tuple[int, int], big_endian: bool, version: int) -> None:
    kind = nib.nifti1.Nifti1Image if version == 1 else nib.nifti2.Nifti2Image
    turned = as_orientation("PIR")
    header = kind.header_class(endianness=">" if big_endian else "<")
    header.set_data_dtype(np.int16)
    image = kind(np.asarray(turned.dataobj), turned.affine, header)
    image.set_qform(turned.affine, forms[0])
    image.set_sform(turned.affine, forms[1])
    if not forms[1]:
        image.header["srow_x"] = 0
    nib.save(image, tmp_path / "scan.nii")
    assert_is_phantom(read_volume(tmp_path / "scan.nii"))


def test_a_header_without_orientation_reads_as_nibabel_does_and_says_so(tmp_path: Path) -> None:
    image = nib.nifti1.Nifti1Image(LPS, None)
    image.header.set_zooms((1.25, 1.0, 3.0))
    nib.save(image, tmp_path / "scan.nii.gz")
    volume = read_volume(tmp_path / "scan.nii.gz")
    assert np.array_equal(volume.hu, HU[:, ::-1])
    assert np.allclose(volume.spacing, (3.0, 1.0, 1.25))
    assert any("left and right may be swapped" in warning for warning in volume.warnings)


def test_forms_that_disagree_are_said(tmp_path: Path) -> None:
    image = nib.nifti1.Nifti1Image(LPS, LPS_AFFINE)
    image.set_qform(np.diag([1.25, 1.0, 3.0, 1.0]), 1)
    image.set_sform(LPS_AFFINE, 1)
    nib.save(image, tmp_path / "scan.nii")
    volume = read_volume(tmp_path / "scan.nii")
    assert_is_phantom(volume)
    assert any("two different ways" in warning for warning in volume.warnings)


def two_forms(path: Path, sform: np.ndarray, sform_code: int, qform_code: int) -> Path:
    """The phantom with its true geometry as qform (code 0: none) and this sform."""
    image = nib.nifti1.Nifti1Image(LPS, LPS_AFFINE)
    image.set_qform(LPS_AFFINE, qform_code)
    image.set_sform(sform, sform_code)
    image.header["pixdim"][1:4] = (1.25, 1.0, 3.0)
    nib.save(image, path)
    return path


@pytest.mark.parametrize("code", [3, 4, 5])
@pytest.mark.parametrize("qform_code", [1, 2])
def test_the_sform_of_an_atlas_does_not_win_over_the_scanner(tmp_path: Path, code: int, qform_code: int) -> None:
    atlas = np.diag([1.1, 1.1, 1.1, 1]) @ LPS_AFFINE
    volume = read_volume(two_forms(tmp_path / "scan.nii", atlas, code, qform_code))
    assert_is_phantom(volume)
    assert volume.source.checks == ("geometry from the qform",)
    assert any("10.0 %" in warning and "mm apart" in warning and "atlas" in warning for warning in volume.warnings)


def test_an_sform_of_other_voxel_sizes_than_the_header_does_not_win(tmp_path: Path) -> None:
    longer = LPS_AFFINE.copy()
    longer[2, 2] = 4.0
    volume = read_volume(two_forms(tmp_path / "scan.nii", longer, 1, 1))
    assert_is_phantom(volume)
    assert any("23.0 mm apart" in warning and "33.3 %" in warning for warning in volume.warnings)


def test_a_turned_sform_of_the_same_voxel_sizes_is_used(tmp_path: Path) -> None:
    moved = LPS_AFFINE.copy()
    moved[2, 3] += 5
    volume = read_volume(two_forms(tmp_path / "scan.nii", moved, 2, 1))
    assert np.allclose(volume.affine[2, 3], AFFINE[2, 3] + 5)
    assert any("5.0 mm apart" in warning and "its sform was used" in warning for warning in volume.warnings)


def test_the_shear_of_a_tilted_scan_is_in_its_sform(tmp_path: Path) -> None:
    sheared = LPS_AFFINE.copy()
    sheared[1, 2] = -1.0
    volume = read_volume(two_forms(tmp_path / "scan.nii", sheared, 1, 1))
    assert volume.source.checks == ("geometry from the sform",)
    assert any("resampled to upright" in warning for warning in volume.warnings)


@pytest.mark.parametrize("qform_code", [0, 1])
def test_directions_without_voxel_sizes_get_those_of_the_header(tmp_path: Path, qform_code: int) -> None:
    bare = LPS_AFFINE.copy()
    bare[:3, :3] /= np.linalg.norm(bare[:3, :3], axis=0)
    volume = read_volume(two_forms(tmp_path / "scan.nii", bare, 1, qform_code))
    assert_is_phantom(volume)
    assert len(volume.warnings) == 1


def test_an_atlas_alone_is_said_with_its_scale(tmp_path: Path) -> None:
    volume = read_volume(two_forms(tmp_path / "scan.nii", np.diag([1.1, 1.1, 1.1, 1]) @ LPS_AFFINE, 4, 0))
    assert np.allclose(volume.spacing, np.multiply(1.1, (3.0, 1.0, 1.25)))
    assert any("10.0 %" in warning and "atlas (code 4)" in warning for warning in volume.warnings)


@pytest.mark.parametrize(("at", "sizes"), [(80, (0.0,)), (84, (-1.0,)), (88, (float("nan"),)), (80, (0.0, 0.0, 0.0))])
def test_voxel_sizes_that_are_none_do_not_matter_beside_a_good_sform(tmp_path: Path, at: int, sizes: tuple) -> None:
    path = two_forms(tmp_path / "scan.nii", LPS_AFFINE, 1, 1)
    content = bytearray(path.read_bytes())
    struct.pack_into(f"<{len(sizes)}f", content, at, *sizes)
    path.write_bytes(content)
    volume = read_volume(path)
    assert_is_phantom(volume)
    assert any("is no size" in warning for warning in volume.warnings)


def test_a_negative_voxel_size_has_its_sign_ignored_in_the_qform(tmp_path: Path) -> None:
    path = two_forms(tmp_path / "scan.nii", LPS_AFFINE, 0, 1)
    content = bytearray(path.read_bytes())
    struct.pack_into("<f", content, 88, -3.0)
    path.write_bytes(content)
    assert_is_phantom(read_volume(path))


@pytest.mark.parametrize("values", [(0.0,) * 12, (0.0,) * 4, (float("nan"),)])
def test_an_sform_that_places_nothing_falls_back_to_the_qform(tmp_path: Path, values: tuple) -> None:
    path = two_forms(tmp_path / "scan.nii", LPS_AFFINE, 1, 1)
    content = bytearray(path.read_bytes())
    struct.pack_into(f"<{len(values)}f", content, 280, *values)
    path.write_bytes(content)
    volume = read_volume(path)
    assert_is_phantom(volume)
    assert any("places no voxel; its qform was used" in warning for warning in volume.warnings)


def test_an_empty_sform_without_a_qform_is_no_geometry(tmp_path: Path) -> None:
    path = two_forms(tmp_path / "scan.nii", LPS_AFFINE, 1, 0)
    content = bytearray(path.read_bytes())
    struct.pack_into("<12f", content, 280, *(0.0,) * 12)
    path.write_bytes(content)
    volume = read_volume(path)
    assert np.allclose(volume.spacing, (3.0, 1.0, 1.25))
    assert any("left and right may be swapped" in warning for warning in volume.warnings)


def test_a_quaternion_longer_than_one_is_no_geometry(tmp_path: Path) -> None:
    path = two_forms(tmp_path / "scan.nii", LPS_AFFINE, 1, 1)
    content = bytearray(path.read_bytes())
    struct.pack_into("<3f", content, 256, 0.9, 0.9, 0.9)
    path.write_bytes(content)
    assert_is_phantom(read_volume(path))


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_a_nifti_pair_is_read(tmp_path: Path, ending: str) -> None:
    nib.save(nib.nifti1.Nifti1Pair(LPS, LPS_AFFINE), tmp_path / f"scan.img{ending}")
    assert_is_phantom(read_volume(tmp_path / f"scan.hdr{ending}"))
    assert_is_phantom(read_volume(tmp_path))
    (tmp_path / f"scan.img{ending}").rename(tmp_path / "other.img")
    with pytest.raises(DamagedFileError, match=r"Put scan\.img beside it"):
        read_volume(tmp_path / f"scan.hdr{ending}")


def test_an_analyze_pair_is_named(tmp_path: Path) -> None:
    nib.save(nib.analyze.AnalyzeImage(LPS, LPS_AFFINE), tmp_path / "scan.img")
    for path in (tmp_path, tmp_path / "scan.hdr"):
        with pytest.raises(UnsupportedFormatError, match="Analyze"):
            read_volume(path)
    with pytest.raises(UnsupportedFormatError, match=r"Pass scan\.hdr"):
        read_volume(tmp_path / "scan.img")


@pytest.mark.parametrize("ending", [".nii", ".mha", ".nrrd"])
def test_zeros_behind_the_voxels_are_padding(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"scan{ending}"
    sitk.WriteImage(itk_image(), path)
    path.write_bytes(path.read_bytes() + bytes(2 * 48 * 40 * 3))
    assert_is_phantom(read_volume(path))
    path.write_bytes(path.read_bytes() + b"\x01")
    with pytest.raises(DamagedFileError, match="more voxel data"):
        read_volume(path)


@pytest.mark.parametrize(
    ("dtype", "slope", "intercept"),
    [
        (np.uint8, 16.0, -1024.0),
        (np.int16, 1.0, -1024.0),
        (np.uint16, 0.5, -1024.25),
        (np.float32, 2.0, 1.0),
        (np.int32, 1, 0),
    ],
)
def test_slope_and_intercept_are_applied(tmp_path: Path, dtype: type, slope: float, intercept: float) -> None:
    stored = np.clip(
        (LPS - intercept) / slope, 0 if np.dtype(dtype).kind == "u" else None, 255 if dtype == np.uint8 else None
    )
    stored = stored.astype(dtype)
    image = nib.nifti1.Nifti1Image(stored, LPS_AFFINE)
    nib.save(image, tmp_path / "scan.nii")
    content = bytearray((tmp_path / "scan.nii").read_bytes())
    struct.pack_into("<2f", content, 112, slope, intercept)
    (tmp_path / "scan.nii").write_bytes(content)
    expected = nib.load(tmp_path / "scan.nii").get_fdata().transpose(2, 1, 0)
    volume = read_volume(tmp_path / "scan.nii")
    assert np.abs(volume.hu - expected).max() < 1e-3
    assert volume.hu.dtype == (np.int16 if np.array_equal(np.rint(expected), expected) else np.float32)


@pytest.mark.parametrize("dtype", [np.int8, np.float64, np.int64, np.uint32])
def test_whole_numbers_of_any_type_become_int16(tmp_path: Path, dtype: type) -> None:
    values = np.clip(HU // 10, -128, 127) if dtype == np.int8 else HU + 1024 if dtype == np.uint32 else HU
    image = nib.nifti1.Nifti1Image(values.transpose(2, 1, 0).astype(dtype), LPS_AFFINE, dtype=dtype)
    nib.save(image, tmp_path / "scan.nii")
    volume = read_volume(tmp_path / "scan.nii")
    assert volume.hu.dtype == np.int16
    assert np.array_equal(volume.hu, values)


def test_what_is_not_finite_becomes_air(tmp_path: Path) -> None:
    values = LPS.astype(np.float64)
    values[0, 0, 0], values[1, 1, 1], values[2, 2, 2], values[3, 3, 3] = np.nan, np.inf, -np.inf, 1e300
    nib.save(nib.nifti1.Nifti1Image(values, LPS_AFFINE), tmp_path / "scan.nii.gz")
    volume = read_volume(tmp_path / "scan.nii.gz")
    assert np.isfinite(volume.hu).all()
    assert [volume.hu[n, n, n] for n in range(4)] == [AIR_HU] * 4
    assert any("4 voxels were not finite" in warning for warning in volume.warnings)


def test_metres_become_millimetres(tmp_path: Path) -> None:
    image = nib.nifti1.Nifti1Image(LPS, np.diag([1e-3, 1e-3, 1e-3, 1]) @ LPS_AFFINE)
    image.header.set_xyzt_units("meter")
    nib.save(image, tmp_path / "scan.nii")
    assert_is_phantom(read_volume(tmp_path / "scan.nii"))


def test_a_trailing_axis_of_one_is_ignored_and_a_time_axis_refused(tmp_path: Path) -> None:
    nib.save(nib.nifti1.Nifti1Image(LPS[..., None], LPS_AFFINE), tmp_path / "one.nii")
    assert_is_phantom(read_volume(tmp_path / "one.nii"))
    nib.save(nib.nifti1.Nifti1Image(np.stack([LPS, LPS], -1), LPS_AFFINE), tmp_path / "two.nii")
    with pytest.raises(NotCTError, match="more than one volume"):
        read_volume(tmp_path / "two.nii")
    nib.save(nib.nifti1.Nifti1Image(LPS[..., :1], LPS_AFFINE), tmp_path / "flat.nii")
    with pytest.raises(GeometryError, match="one slice is no volume"):
        read_volume(tmp_path / "flat.nii")


def test_an_oblique_nifti_keeps_its_rotation_up_to_thirty_degrees(tmp_path: Path) -> None:
    for degrees in (12.0, 28.0, 40.0):
        angle = np.radians(degrees)
        turn = np.eye(4)
        turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        nib.save(nib.nifti1.Nifti1Image(LPS, turn @ LPS_AFFINE), tmp_path / "scan.nii")
        volume = read_volume(tmp_path / "scan.nii")
        assert any(f"{degrees:.1f} degrees" in warning for warning in volume.warnings)
        if degrees < 30:
            assert np.array_equal(volume.hu, HU)
            assert np.allclose(volume.affine, turn @ AFFINE, atol=1e-3)
        else:
            assert np.allclose(np.abs(volume.affine[:3, :3]) > 1e-6, np.eye(3)[::-1].astype(bool))
            assert volume.source_axes is None
            centre = np.linalg.inv(volume.affine) @ turn @ AFFINE @ [19, 14, 27, 1]
            found = volume.hu[tuple(np.rint(centre[:3]).astype(int))]
            assert abs(int(found) - int(HU[19, 14, 27])) < 60


@pytest.mark.parametrize(
    ("at", "code", "values"),
    [
        (40, "<8h", (3, 30000, 30000, 30000, 1, 1, 1, 1)),
        (40, "<8h", (3, -5, 48, 24, 1, 1, 1, 1)),
        (40, "<h", (9000,)),
        (40, "<8h", (3, 40, 48, 23, 1, 1, 1, 1)),
        (40, "<8h", (3, 40, 48, 25, 1, 1, 1, 1)),
        (70, "<h", (128,)),
        (70, "<h", (32,)),
        (108, "<f", (1e30,)),
        (112, "<2f", (1.0, float("inf"))),
        (112, "<2f", (1e30, 0.0)),
        (112, "<2f", (-1.0, 0.0)),
        (280, "<4f", (0.0, 0.0, 0.0, 0.0)),
        (280, "<f", (float("nan"),)),
        (292, "<f", (float("inf"),)),
        (344, "4s", (b"xxx\0",)),
        (344, "4s", (b"ni1\0",)),
    ],
)
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_implausible_nifti_headers_are_refused(tmp_path: Path, at: int, code: str, values: tuple, ending: str) -> None:
    nib.save(nib.nifti1.Nifti1Image(LPS, LPS_AFFINE), tmp_path / "plain.nii")
    content = bytearray((tmp_path / "plain.nii").read_bytes())
    struct.pack_into(code, content, at, *values)
    path = tmp_path / f"scan{ending}"
    path.write_bytes(gzip.compress(content) if ending.endswith("gz") else content)
    with pytest.raises(VolumeError):
        read_volume(path)


@pytest.mark.parametrize("keep", [0, 5, 100, 351, 400, -1, -9, -100, -5000])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".mha", ".nrrd"])
def test_truncated_files_are_refused(tmp_path: Path, keep: int, ending: str) -> None:
    whole, path = tmp_path / f"whole{ending}", tmp_path / f"cut{ending}"
    if ending.startswith(".nii"):
        nib.save(nib.nifti1.Nifti1Image(LPS, LPS_AFFINE), whole)
    else:
        sitk.WriteImage(itk_image(), whole, useCompression=True)
    content = whole.read_bytes()
    path.write_bytes(content[:keep] if keep else b"")
    with pytest.raises(VolumeError):
        read_volume(path)


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd"])
def test_a_header_that_announces_gigabytes_in_a_small_file_is_refused_unread(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"bomb{ending}"
    if ending == ".nrrd":
        header = (
            "NRRD0004\ntype: short\ndimension: 3\nspace: LPS\nsizes: 1000 1000 1000\nencoding: bzip2\nendian: little\n"
        )
        header += "space directions: (1,0,0) (0,1,0) (0,0,1)\nspace origin: (0,0,0)\n\n"
        path.write_bytes(header.encode() + bytes(2_000_000))
    else:
        nib.save(nib.nifti1.Nifti1Image(LPS, LPS_AFFINE), tmp_path / "plain.nii")
        content = bytearray((tmp_path / "plain.nii").read_bytes())
        struct.pack_into("<8h", content, 40, 3, 1000, 1000, 1000, 1, 1, 1, 1)
        noise = np.random.default_rng(0).integers(0, 256, 2_000_000, np.uint8).tobytes()
        path.write_bytes(gzip.compress(bytes(content[:352]) + noise))
    with pytest.raises(DamagedFileError, match="announces more"):
        read_volume(path)


def test_a_wrong_checksum_is_refused(tmp_path: Path) -> None:
    nib.save(nib.nifti1.Nifti1Image(LPS, LPS_AFFINE), tmp_path / "scan.nii.gz")
    content = bytearray((tmp_path / "scan.nii.gz").read_bytes())
    content[-6] ^= 0xFF
    (tmp_path / "scan.nii.gz").write_bytes(content)
    with pytest.raises(DamagedFileError, match="damaged"):
        read_volume(tmp_path / "scan.nii.gz")


def test_gzip_is_told_by_content_not_by_name(tmp_path: Path) -> None:
    nib.save(nib.nifti1.Nifti1Image(LPS, LPS_AFFINE), tmp_path / "plain.nii")
    content = (tmp_path / "plain.nii").read_bytes()
    (tmp_path / "misnamed.nii.gz").write_bytes(content)
    (tmp_path / "packed.nii").write_bytes(gzip.compress(content))
    assert_is_phantom(read_volume(tmp_path / "misnamed.nii.gz"))
    assert_is_phantom(read_volume(tmp_path / "packed.nii"))


def itk_image(order: tuple[int, int, int] = (0, 1, 2), direction: np.ndarray | None = None) -> sitk.Image:
    image = sitk.GetImageFromArray(HU)
    image.SetSpacing((1.25, 1.0, 3.0))
    image.SetOrigin((-AFFINE[0, 3], -AFFINE[1, 3], AFFINE[2, 3]))
    if order != (0, 1, 2):
        image = sitk.PermuteAxes(image, order)
    if direction is not None:
        image.SetDirection(direction.ravel().tolist())
    return image


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 0, 2)])
@pytest.mark.parametrize("flips", [(False, False, False), (True, False, True)])
@pytest.mark.parametrize("ending", [".mha", ".mhd", ".nrrd", ".nhdr", ".nii.gz"])
@pytest.mark.parametrize("compressed", [False, True])
def test_what_simpleitk_writes_is_read_in_one_orientation(
    tmp_path: Path, order: tuple[int, int, int], flips: tuple[bool, bool, bool], ending: str, compressed: bool
) -> None:
    image = sitk.Flip(itk_image(order), flips)
    path = tmp_path / f"scan{ending}"
    sitk.WriteImage(image, path, useCompression=compressed)
    volume = read_volume(path)
    assert_is_phantom(volume)
    assert np.array_equal(volume.to_source_order(volume.hu).transpose(2, 1, 0), sitk.GetArrayFromImage(image))


@pytest.mark.parametrize("ending", [".mha", ".nrrd"])
def test_an_oblique_direction_means_what_it_means_to_simpleitk(tmp_path: Path, ending: str) -> None:
    angle = np.radians(10)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    image = itk_image(direction=turn)
    sitk.WriteImage(image, tmp_path / f"scan{ending}")
    volume = read_volume(tmp_path / f"scan{ending}")
    place = np.diag([-1, -1, 1, 1]) @ volume.affine @ [3, 20, 30, 1]
    assert np.allclose(place[:3], image.TransformIndexToPhysicalPoint((30, 20, 3)), atol=1e-3)


@pytest.mark.parametrize("ending", [".mha", ".nrrd"])
@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32, np.float64])
def test_itk_voxel_types_are_read(tmp_path: Path, ending: str, dtype: type) -> None:
    values = HU + 1024 if dtype == np.uint16 else HU
    sitk.WriteImage(sitk.GetImageFromArray(values.astype(dtype)), tmp_path / f"scan{ending}")
    assert np.array_equal(read_volume(tmp_path / f"scan{ending}").hu, values)


def test_big_endian_metaimage_and_nrrd_are_read(tmp_path: Path) -> None:
    data = HU.astype(">i2").tobytes()
    meta = "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = True\n"
    meta += "TransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = 30 -40 -50\nElementSpacing = 1.25 1 3\n"
    meta += "DimSize = 40 48 24\nElementType = MET_SHORT\nElementDataFile = LOCAL\n"
    (tmp_path / "scan.mha").write_bytes(meta.encode() + data)
    assert_is_phantom(read_volume(tmp_path / "scan.mha"))
    nrrd = "NRRD0005\n# comment\ntype: int16\ndimension: 3\nspace: RAS\nsizes: 40 48 24\nencoding: raw\nendian: big\n"
    nrrd += "space directions: (-1.25,0,0) (0,-1,0) (0,0,3)\nspace origin: (-30,40,-50)\nkey:=value: x\n\n"
    (tmp_path / "scan.nrrd").write_bytes(nrrd.encode() + data)
    assert_is_phantom(read_volume(tmp_path / "scan.nrrd"))


@pytest.mark.parametrize("ending", [".mhd", ".nhdr"])
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_a_data_file_may_have_any_name(tmp_path: Path, ending: str, encoding: str) -> None:
    path = tmp_path / f"scan{ending}"
    sitk.WriteImage(itk_image(), path)
    (tmp_path / "scan.raw").rename(tmp_path / "Größe 1.raw")
    path.write_text(path.read_text().replace("scan.raw", "Größe 1.raw"), encoding)
    assert_is_phantom(read_volume(path))


@pytest.mark.parametrize(
    "name", ["../outside.raw", "/etc/hostname", "sub/../../outside.raw", "..\\outside.raw", "C:\\x.raw", "a\0b"]
)
@pytest.mark.parametrize("ending", [".mhd", ".nhdr"])
def test_a_data_file_outside_the_folder_is_refused(tmp_path: Path, name: str, ending: str) -> None:
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "outside.raw").write_bytes(HU.tobytes())
    (folder / "scan.raw").symlink_to(tmp_path / "outside.raw")
    path = folder / f"scan{ending}"
    sitk.WriteImage(itk_image(), tmp_path / f"scan{ending}")
    text = (tmp_path / f"scan{ending}").read_text()
    for target in (name, "scan.raw"):
        path.write_text(text.replace("scan.raw", target))
        with pytest.raises(UnsafeFileError, match="outside the folder"):
            read_volume(path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("DimSize = 40 48 24", "DimSize = 40 48 99999999"),
        ("DimSize = 40 48 24", "DimSize = 40 48 -24"),
        ("DimSize = 40 48 24", "DimSize = 0 48 24"),
        ("DimSize = 40 48 24", "DimSize = 40 48"),
        ("ElementSpacing = 1.25 1 3", "ElementSpacing = 1.25 0 3"),
        ("ElementSpacing = 1.25 1 3", "ElementSpacing = 1.25 nan 3"),
        ("ElementSpacing = 1.25 1 3", "ElementSpacing = -1.25 1 3"),
        ("TransformMatrix = 1 0 0 0 1 0 0 0 1", "TransformMatrix = 1 0 0 1 0 0 0 0 1"),
        ("NDims = 3", "NDims = 4"),
        ("NDims = 3", "NDims = three"),
        ("MET_SHORT", "MET_SHORT_ARRAY"),
        ("ElementType", "ElementNumberOfChannels = 3\nElementType"),
    ],
)
def test_implausible_metaimage_headers_are_refused(tmp_path: Path, old: str, new: str) -> None:
    sitk.WriteImage(itk_image(), tmp_path / "scan.mhd")
    text = (tmp_path / "scan.mhd").read_text()
    assert old in text
    (tmp_path / "scan.mhd").write_text(text.replace(old, new))
    with pytest.raises(VolumeError):
        read_volume(tmp_path / "scan.mhd")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("sizes: 40 48 24", "sizes: 40 48 2400000000000"),
        ("sizes: 40 48 24", "sizes: 40 48 25"),
        ("sizes: 40 48 24", "sizes: 40 48 20"),
        ("(0,0,3)", "(0,0,0)"),
        ("(0,0,3)", "(0,0,nan)"),
        ("(0,0,3)", "none"),
        ("dimension: 3", "dimension: 4"),
        ("type: short", "type: block"),
        ("encoding: raw", "encoding: text"),
        ("space: left-posterior-superior", "space: scanner-xyz"),
        ("endian: little\n", ""),
    ],
)
def test_implausible_nrrd_headers_are_refused(tmp_path: Path, old: str, new: str) -> None:
    sitk.WriteImage(itk_image(), tmp_path / "scan.nhdr")
    text = (tmp_path / "scan.nhdr").read_text()
    assert old in text
    (tmp_path / "scan.nhdr").write_text(text.replace(old, new))
    with pytest.raises(VolumeError):
        read_volume(tmp_path / "scan.nhdr")


def test_a_colour_image_is_refused(tmp_path: Path) -> None:
    colour = sitk.GetImageFromArray(np.zeros((4, 5, 6, 3), np.uint8), isVector=True)
    for ending in (".mha", ".nrrd", ".nii"):
        sitk.WriteImage(colour, tmp_path / f"rgb{ending}")
        with pytest.raises(NotCTError):
            read_volume(tmp_path / f"rgb{ending}")


def test_what_we_write_is_what_nibabel_and_we_read(tmp_path: Path) -> None:
    volume = Volume(hu=HU, affine=AFFINE)
    for name in ("scan.nii", "scan.nii.gz"):
        volume.to_nifti(tmp_path / name)
        assert_is_phantom(read_volume(tmp_path / name))
        image = nib.load(tmp_path / name)
        assert np.array_equal(np.asarray(image.dataobj), LPS)
        assert np.allclose(image.affine, LPS_AFFINE)
        assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(tmp_path / name)), HU)
    for array in (HU > 0, HU.astype(np.float64) / 7, (HU > 0).astype(np.uint8)):
        volume.to_nifti(tmp_path / "other.nii.gz", array)
        found = np.asarray(nib.load(tmp_path / "other.nii.gz").dataobj)
        assert np.allclose(found.transpose(2, 1, 0), array, rtol=1e-6)
    with pytest.raises(VolumeError, match="shaped like hu"):
        volume.to_nifti(tmp_path / "wrong.nii", HU[:3])


def test_a_folder_with_one_volume_file_is_that_file(tmp_path: Path) -> None:
    nib.save(nib.nifti1.Nifti1Image(LPS, LPS_AFFINE), tmp_path / "scan.nii.gz")
    (tmp_path / "notes.txt").write_text("notes")
    assert_is_phantom(read_volume(tmp_path))
    assert [found.shape for found in list_series(tmp_path)] == [HU.shape]
    nib.save(nib.nifti1.Nifti1Image(LPS, LPS_AFFINE), tmp_path / "second.nii.gz")
    with pytest.raises(VolumeError, match="2 volume files"):
        read_volume(tmp_path)
    assert_is_phantom(read_volume(tmp_path, "second.nii.gz"))


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"\x1f\x8b\x08nonsense", b"\x93NUMPY\x01\x00", b"NRRD0004\n", b"PK\x03\x04"]
)
def test_other_files_are_refused_with_a_reason(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(VolumeError, match="file"):
        read_volume(tmp_path / "file")
    with pytest.raises(VolumeError, match="no such file"):
        read_volume(tmp_path / "absent")
    with pytest.raises(UnsupportedFormatError, match="path or a tuple"):
        read_volume(3.0)  # type: ignore[arg-type]
