"""The real scans of ../shared/ct, where they are: all are read, derived cases equal their truth, formats agree."""

import csv
import hashlib
import json
import warnings
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from ctfm.volume_ctfm import AIR_HU, GeometryError, NotCTError, read_volume
from ctfm.volume_dicom_ctfm import read_slice

SCANS = Path(__file__).parent.parent.parent / "shared" / "ct"

pytestmark = pytest.mark.skipif(not SCANS.is_dir(), reason="the real scans of ../shared/ct are not here")


def listed(name: str) -> list[dict[str, str]]:
    path = SCANS / name
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def expected_cases(expect: str) -> list[str]:
    path = SCANS / "edge" / "expected_dev.json"
    cases = json.loads(path.read_text())["cases"] if path.is_file() else {}
    return [name for name, case in cases.items() if case["expect"] == expect]


@pytest.mark.parametrize("name", [row["file"] for row in listed("labels_dev.csv")])
def test_a_real_scan_is_read_as_ct_in_patient_space(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        volume = read_volume(SCANS / name)
    json.dumps(asdict(volume.source))
    assert volume.hu.min() >= -1500
    assert volume.hu.max() > 500
    directions = volume.affine[:3, :3] / volume.spacing
    assert (np.diag(np.array([[0, 0, 1], [0, -1, 0], [-1, 0, 0]]) @ directions) > 0.7).all()
    assert not any("Hounsfield" in warning or "intercept" in warning for warning in volume.warnings)


@pytest.mark.parametrize("name", [row["file"] for row in listed("labels_dev.csv") if not row["file"].endswith(".zip")])
def test_a_real_scan_lies_where_simpleitk_puts_it(name: str) -> None:
    image = sitk.DICOMOrient(sitk.ReadImage(SCANS / name), "LPS")
    volume = read_volume(SCANS / name)
    assert np.array_equal(volume.hu, sitk.GetArrayFromImage(image))
    assert np.allclose(volume.spacing, image.GetSpacing()[::-1], atol=1e-4)
    assert np.allclose(np.diag([-1, -1, 1]) @ volume.affine[:3, 3], image.GetOrigin(), atol=1e-2)


@pytest.mark.parametrize("name", expected_cases("equals truth"))
def test_a_derived_case_equals_its_truth(name: str) -> None:
    truth = json.loads((SCANS / "edge" / "expected_dev.json").read_text())["truth"]
    volume = read_volume(SCANS / "edge" / name)
    assert hashlib.sha256(volume.hu.astype(np.int16).tobytes()).hexdigest() == truth["sha256_int16_zyx"]
    assert np.allclose(volume.spacing, truth["spacing_xyz"][::-1], atol=1e-4)
    assert np.allclose(np.diag([-1, -1, 1]) @ volume.affine[:3, 3], truth["origin_lps"], atol=1e-3)


@pytest.mark.parametrize("name", expected_cases("pixels identical to CTImage.dcm"))
def test_compressed_pixels_are_the_uncompressed_ones(name: str) -> None:
    plain = read_slice(SCANS / "edge" / "native_single" / "CTImage.dcm")
    assert np.array_equal(read_slice(SCANS / "edge" / name), plain)
    assert plain.min() == -3024  # a fill outside the circle; a volume makes it air
    assert plain.max() == 1378


@pytest.mark.parametrize("name", expected_cases("decodes"))
def test_a_single_slice_decodes_but_is_no_volume(name: str) -> None:
    assert read_slice(SCANS / "edge" / name).ndim == 2
    with pytest.raises(GeometryError, match="one slice is no volume"):
        read_volume(SCANS / "edge" / name)


def test_dicom_and_nrrd_of_one_scan_agree() -> None:
    folder = SCANS / "cip_ct64"
    if not folder.is_dir():
        pytest.skip("cip_ct64 is not here")
    dicom, nrrd = read_volume(folder / "ct-64-dicom.zip"), read_volume(folder / "ct-64.nrrd")
    assert np.array_equal(dicom.hu, nrrd.hu)
    assert np.allclose(dicom.affine, nrrd.affine, atol=1e-2)


def test_ge_padding_becomes_air() -> None:
    path = SCANS / "crlm_1004" / "crlm_1004.dcm.zip"
    if not path.is_file():
        pytest.skip("crlm_1004 is not here")
    volume = read_volume(path)
    assert volume.hu.min() == AIR_HU
    assert any("padding" in warning for warning in volume.warnings)


@pytest.mark.parametrize("name", [row["file"] for row in listed("MANIFEST.csv") if row["hu_range"].startswith("0..")])
def test_a_label_map_is_no_scan(name: str) -> None:
    with pytest.raises(NotCTError):
        read_volume(SCANS / name)
