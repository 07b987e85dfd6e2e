"""Arrays with an affine, the values that cannot be Hounsfield units, and the way back to the order on disk."""

import copy
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from ctfm.phantom.dicom_series import write_dicom_series
from ctfm.volume_ctfm import (
    AIR_HU,
    AmbiguousSeriesError,
    GeometryError,
    NotCTError,
    SeriesInfo,
    VolumeError,
    _resample,
    _shifted_plane,
    _trilinear_plane,
    list_series,
    read_volume,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.phantoms import canonical_affine, phantom_hu, phantom_volume

HU = phantom_hu()
AFFINE = canonical_affine()


def warnings_of(hu: np.ndarray) -> str:
    return " ".join(read_volume((hu, AFFINE)).warnings)


def test_an_array_with_its_affine_is_read_without_sharing_memory() -> None:
    array = HU.copy()
    volume = read_volume((array, AFFINE))
    array[:] = 0
    assert np.array_equal(volume.hu, HU)
    assert np.array_equal(volume.affine, AFFINE)
    assert volume.warnings == ()


def test_a_volume_passes_through() -> None:
    volume = phantom_volume()
    assert read_volume(volume) is volume
    assert list_series(volume)[0].shape == HU.shape


@settings(max_examples=60, deadline=None)
@given(
    order=st.permutations(range(3)), flips=st.tuples(*[st.booleans()] * 3), turn=st.tuples(*[st.floats(-14, 14)] * 3)
)
def test_any_order_of_axes_comes_back_exactly(
    order: list[int], flips: tuple[bool, ...], turn: tuple[float, ...]
) -> None:
    rotation = np.eye(4)
    for axis, degrees in enumerate(turn):
        one, angle = np.eye(4), np.radians(degrees)
        first, second = [other for other in range(3) if other != axis]
        one[first, first] = one[second, second] = np.cos(angle)
        one[first, second], one[second, first] = -np.sin(angle), np.sin(angle)
        rotation = rotation @ one
    index = np.eye(4)[:, [*order, 3]]
    array = HU.transpose(order)
    for axis, flip in enumerate(flips):
        if flip:
            mirror = np.eye(4)
            mirror[axis, axis], mirror[axis, 3] = -1, array.shape[axis] - 1
            index = index @ mirror
            array = np.flip(array, axis)
    volume = read_volume((array, rotation @ AFFINE @ index))
    assert np.array_equal(volume.hu, HU)
    assert np.allclose(volume.affine, rotation @ AFFINE)
    assert np.array_equal(volume.to_source_order(volume.hu), array)


def test_at_45_degrees_the_choice_of_axes_is_stable() -> None:
    angle = np.pi / 4
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    shapes = {
        read_volume((HU, turn @ AFFINE + 1e-9 * noise)).hu.shape
        for noise in np.random.default_rng(0).normal(size=(5, 4, 4)) * [[1], [1], [1], [0]]
    }
    assert len(shapes) == 1


def test_an_affine_with_shear_is_straightened() -> None:
    sheared = AFFINE.copy()
    sheared[1, 0] = 0.8
    volume = read_volume((HU, sheared))
    assert any("shear" in warning for warning in volume.warnings)
    ball = np.array([19, 14, 27, 1])
    place = np.linalg.inv(volume.affine) @ sheared @ ball
    assert abs(int(volume.hu[tuple(np.rint(place[:3]).astype(int))]) - int(HU[tuple(ball[:3])])) < 60


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
@pytest.mark.parametrize("shift", [(0.0, 0.0), (0.37, 0.0), (-1.25, 0.6)])
def test_a_plane_that_shifts_is_interpolated_as_any_other(dtype: type, shift: tuple[float, float]) -> None:
    hu = HU.astype(dtype)
    matrix = np.eye(4)
    matrix[1:3, 0] = shift
    matrix[:3, 3] = (-1.0, 2.5, -3.25)
    shape = (20, 55, 33)
    for d in range(0, 24, 5):
        shifted = _shifted_plane(hu, matrix, d, shape[1:])
        assert np.abs(shifted - _trilinear_plane(hu, matrix, d, shape[1:])).max() < 0.01


def test_resampling_keeps_a_linear_scan_linear() -> None:
    d, h, w = np.indices((12, 16, 20)).astype(np.float32)
    hu = 3 * d + 5 * h + 7 * w - 300.5
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
    target = np.eye(4)
    target[:3, :3], target[:3, 3] = 0.4 * turn, (6, 8, 10)
    found = _resample(hu, np.eye(4), target, (5, 6, 7))
    place = np.stack(np.indices((5, 6, 7)), -1) @ target[:3, :3].T + target[:3, 3]
    assert np.abs(found - (place @ [3, 5, 7] - 300.5)).max() < 0.01


@pytest.mark.parametrize(
    "affine",
    [
        np.zeros((4, 4)),
        np.diag([1.0, 1, 0, 1]),
        np.full((4, 4), np.nan),
        np.eye(3),
        np.diag([1e-9, 1, 1, 1]),
        np.diag([1, 1, 1e6, 1.0]),
    ],
)
def test_an_affine_that_places_nothing_is_refused(affine: np.ndarray) -> None:
    with pytest.raises(GeometryError):
        read_volume((HU, affine))


def test_fill_becomes_air_and_overshoot_stays() -> None:
    hu = HU.copy()
    hu[:, :3, :3], hu[0, 10, 10] = -3024, -1200
    volume = read_volume((hu, AFFINE))
    assert (volume.hu[:, :3, :3] == AIR_HU).all()
    assert volume.hu[0, 10, 10] == -1200
    assert "reconstruction circle" in " ".join(volume.warnings)


def test_a_missing_intercept_is_suspected() -> None:
    assert "intercept is probably missing" in warnings_of(HU + np.int16(1024))


def test_a_warning_has_a_code_that_survives_a_copy_and_another_process() -> None:
    (warning,) = read_volume((HU + np.int16(1024), AFFINE)).warnings
    for same in (warning, copy.deepcopy(warning), pickle.loads(pickle.dumps(warning))):
        assert same.code == "no_intercept"
        assert same == warning
        assert json.loads(json.dumps(same)) == str(warning)


def test_a_rescale_applied_twice_is_suspected_and_not_taken_for_fill() -> None:
    volume = read_volume((HU - np.int16(1024), AFFINE))
    assert "applied twice" in " ".join(volume.warnings)
    assert np.array_equal(volume.hu, HU - 1024)


def test_an_8_bit_window_is_suspected() -> None:
    windowed = np.clip((HU + 160.0) / 400 * 255, 0, 255).astype(np.uint8)
    assert "8-bit" in warnings_of(windowed)
    assert "windowed" in warnings_of(np.clip(HU, -160, 240))


def test_values_without_tissue_are_suspected() -> None:
    assert "there is no tissue" in warnings_of(np.clip(HU, -1024, -700))


def test_values_stored_in_8_bits_are_suspected_whatever_their_rescale(tmp_path: Path) -> None:
    def window(data_set, index: int) -> None:
        hu = np.frombuffer(data_set.PixelData, "<i2") - 1024.0
        data_set.PixelData = np.clip((hu + 1024) / 16, 0, 255).astype(np.uint8).tobytes()
        data_set.BitsAllocated = data_set.BitsStored = 8
        data_set.HighBit, data_set.PixelRepresentation = 7, 0
        data_set["PixelData"].VR = "OB"
        data_set.RescaleSlope = "16"

    write_dicom_series(HU, AFFINE, tmp_path, edit=window)
    assert "stored in 8 bits (uint8)" in " ".join(read_volume(tmp_path).warnings)


@pytest.mark.parametrize("source", [(HU,), (HU, AFFINE, AFFINE), (HU, "RAS"), (HU, None)])
def test_a_tuple_that_is_not_an_array_and_its_affine_is_refused(source: tuple) -> None:
    with pytest.raises(VolumeError):
        read_volume(source)


def test_half_precision_is_read() -> None:
    assert np.array_equal(read_volume((HU.astype(np.float16), AFFINE)).hu, HU)


def test_unsigned_values_are_suspected() -> None:
    assert "unsigned" in warnings_of(HU.astype(np.uint16))


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((8, 8, 8)),
        (HU > 0).astype(np.uint8),
        np.digitize(HU, [-500, 0, 100, 500]),
        (HU + 1024) / 4095,
        (HU - HU.mean()) / HU.std(),
        np.stack([HU, HU]),
        HU[0],
        HU.astype(complex),
        HU > 0,
        np.full((8, 8, 8), np.nan),
    ],
)
def test_what_is_clearly_no_ct_is_refused(array: np.ndarray) -> None:
    with pytest.raises(VolumeError):
        read_volume((array, AFFINE))


def test_a_label_map_with_many_labels_is_refused() -> None:
    d, h, w = np.indices(HU.shape)
    labels = (d // 6) * 36 + (h // 8) * 6 + w // 8
    assert labels.max() > 100
    with pytest.raises(NotCTError, match="label map"):
        read_volume((labels.astype(np.int16), AFFINE))


def test_fractions_give_float32_and_stay() -> None:
    volume = read_volume((HU + 0.25, AFFINE))
    assert volume.hu.dtype == np.float32
    assert np.array_equal(volume.hu, HU + np.float32(0.25))


def test_errors_survive_a_worker_process() -> None:
    choice = SeriesInfo(
        series_uid="1.2",
        patient="patient 1",
        shape=(2, 3, 4),
        spacing=(1, 1, 1),
        plane="axial",
        kernel="",
        contrast=None,
    )
    error = AmbiguousSeriesError("two series", choices=(choice,), file="folder", value=2, cure="Choose.")
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error)
    assert again.choices == (choice,)


def test_an_array_of_another_shape_has_no_source_order() -> None:
    with pytest.raises(VolumeError, match="shaped like hu"):
        phantom_volume().to_source_order(HU[:3])
