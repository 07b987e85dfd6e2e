import copy
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from ctfm import (
    CTFMForImageClassification,
    CTFMForSemanticSegmentation,
    VolumeError,
    collate_scans,
    read_segmentation,
    read_volume,
)
from ctfm.image_processing_ctfm import CTFMImageProcessor, area_width, place_axis
from ctfm.volume_ctfm import GeometryError
from torch.utils.data import DataLoader
from transformers import AutoImageProcessor, Trainer, TrainingArguments

from tests.tiny import tiny_config

ALL = (-32768.0, 32767.0)  # a window that clips nothing


def affine(spacing: tuple[float, float, float] = (1.0, 1.0, 1.0), origin: tuple[float, float, float] = (0, 0, 0)):
    """Canonical axes, (depth to the head, height to the back, width to the left), in RAS+ mm."""
    matrix = np.zeros((4, 4))
    matrix[2, 0], matrix[1, 1], matrix[0, 2] = spacing[0], -spacing[1], -spacing[2]
    matrix[:3, 3], matrix[3, 3] = origin, 1
    return matrix


def scan(
    shape: tuple[int, int, int] = (12, 20, 24), spacing: tuple[float, float, float] = (2.0, 1.0, 1.0), seed: int = 0
):
    """A box of tissue in air, with noise that tells every voxel from every other."""
    rng = np.random.default_rng(seed)
    hu = np.full(shape, -1000, np.int16)
    hu[2:, 4:-3, 5:-2] = rng.integers(-200, 300, size=(shape[0] - 2, shape[1] - 7, shape[2] - 7))
    return hu, affine(spacing)


def processor(**changes: object) -> CTFMImageProcessor:
    return CTFMImageProcessor(**{"crop_size": (8, 16, 16), "spacing": "native"} | changes)


def assemble(crops: torch.Tensor, grid: tuple[int, ...]) -> torch.Tensor:
    """(g, D, H, W) -> one array over the grid."""
    d, h, w = crops.shape[1:]
    joined = crops[: math.prod(grid)].unflatten(0, grid).permute(0, 3, 1, 4, 2, 5)
    return joined.reshape(grid[0] * d, grid[1] * h, grid[2] * w)


# ---- there ----


def test_native_spacing_keeps_every_voxel_and_pads_with_air() -> None:
    hu, matrix = scan()
    inputs = processor()((hu, matrix))
    assert inputs.crop_grid.tolist() == [[2, 2, 2]]
    assert inputs.pixel_values.shape == (1, 8, 1, 8, 16, 16)
    (geometry,) = inputs.geometry
    volume = assemble(inputs.pixel_values[0, :, 0], geometry.crop_grid)
    start = [round(-offset) for offset in geometry.offset]
    inside = tuple(slice(s, s + n) for s, n in zip(start, hu.shape, strict=True))
    expected = torch.from_numpy((hu.clip(-1000, 1000) + 1000) / 2000).float()
    torch.testing.assert_close(volume[inside], expected)
    outside = volume.clone()
    outside[inside] = 0
    assert (outside == 0).all()


def test_window_clips_before_it_interpolates() -> None:
    hu = np.tile(np.array([-3000, 3000], np.int16), (4, 4, 4))
    inputs = processor(spacing=(1.0, 1.0, 0.5), crop_size=(4, 4, 16), air_hu=-1000)((hu, affine()))
    line = inputs.pixel_values[0, 0, 0, 2, 2]
    torch.testing.assert_close(line[:4], torch.tensor([0.0, 0.25, 0.75, 0.75]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("resampling", ["area", "linear"])
@pytest.mark.parametrize("spacing", [(1.0, 0.7, 0.9), (3.0, 1.9, 2.2), (0.6, 1.0, 1.3)])
def test_a_ramp_in_millimetres_stays_the_same_ramp_at_any_spacing(
    spacing: tuple[float, float, float], resampling: str
) -> None:
    """The true value at every grid voxel is known, so this finds any error of offset, step or axis."""
    shape, source = (20, 40, 30), (1.5, 0.8, 1.1)
    matrix = affine(source, origin=(40.0, -7.0, 100.0))
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1)
    world = index @ matrix[:3, :3].T + matrix[:3, 3]
    hu = (world @ np.array([3.0, -2.0, 1.5])).astype(np.float32)
    worker = processor(intensity_window=ALL, spacing=spacing, air_hu=-30000, resampling=resampling)
    inputs = worker((hu, matrix))
    (geometry,) = inputs.geometry
    volume = assemble(inputs.pixel_values[0, :, 0], geometry.crop_grid).double() * (ALL[1] - ALL[0]) + ALL[0]
    grid_index = np.stack(np.meshgrid(*(np.arange(n) for n in volume.shape), indexing="ij"), -1)
    grid_world = grid_index @ geometry.grid_affine[:3, :3].T + geometry.grid_affine[:3, 3]
    position = (grid_index * np.array(geometry.step)) + np.array(geometry.offset)
    reach = np.array(
        [area_width(step, resampling) / 2 for step in geometry.step]
    )  # beyond the ends the last voxel repeats
    inner = ((position >= reach) & (position <= np.array(shape) - 1 - reach)).all(-1)
    assert inner.sum() > 0.5 * np.prod([n * s / t for n, s, t in zip(shape, source, spacing, strict=True)])
    expected = grid_world @ np.array([3.0, -2.0, 1.5])
    assert np.abs(volume.numpy() - expected)[inner].max() < 0.02  # float32 over a window of 65,535


@pytest.mark.parametrize("spacing", [(1.0, 0.7, 0.9), (3.0, 1.9, 2.2), (0.6, 5.0, 1.3)])
def test_a_constant_stays_constant_up_to_the_last_voxel(spacing: tuple[float, float, float]) -> None:
    hu = np.random.default_rng(0).integers(200, 300, (20, 40, 30), dtype=np.int16)  # all of it clipped to 200
    inputs = processor(spacing=spacing, intensity_window=(-1000, 200))((hu, affine((1.5, 0.8, 1.1))))
    inside = inputs.pixel_values[inputs.pixel_values > 0]
    torch.testing.assert_close(inside, torch.ones_like(inside), rtol=0, atol=1e-6)


def test_a_sample_holds_no_more_noise_than_the_mean_of_the_voxels_it_stands_for() -> None:
    """Of white noise, the mean of 4 x 4 x 4 voxels keeps 1/64 of the variance."""
    hu = np.random.default_rng(0).normal(0, 100, (64, 96, 96)).astype(np.float32)
    variance = {}
    for resampling in ("area", "linear"):
        worker = processor(crop_size=(16, 24, 24), spacing=(4.0, 4.0, 4.0), resampling=resampling, intensity_window=ALL)
        variance[resampling] = float(worker((hu, affine())).pixel_values.double().var() * (ALL[1] - ALL[0]) ** 2)
    assert 0.7 * 100**2 / 64 < variance["area"] < 100**2 / 64  # of 9,216 samples
    assert variance["linear"] > 8 * variance["area"]


def test_what_is_finer_than_the_grid_can_show_does_not_fold_into_it() -> None:
    """Stripes of 3 voxels sampled every 4: without a low-pass they come back as stripes of 12."""
    stripes = np.broadcast_to(np.where(np.arange(97) % 3 == 0, 400, -200).astype(np.float32), (16, 16, 97))
    amplitude = {}
    for resampling in ("area", "linear"):
        worker = processor(crop_size=(16, 16, 25), spacing=(1.0, 1.0, 4.0), resampling=resampling)
        line = worker((stripes, affine())).pixel_values[0, 0, 0, 8, 8, 2:-2]
        amplitude[resampling] = float(line.max() - line.min())
    assert amplitude["area"] < 0.25 * amplitude["linear"]


@pytest.mark.parametrize("spacing", ["native", (2.0, 0.7, 0.3)])
def test_both_resamplings_are_the_same_where_the_grid_is_no_coarser_than_the_scan(spacing) -> None:
    area, linear = (processor(spacing=spacing, resampling=name)(scan()) for name in ("area", "linear"))
    assert torch.equal(area.pixel_values, linear.pixel_values)


def test_the_samples_beside_a_body_count_when_the_grid_is_laid() -> None:
    """A body of 8 samples, each a mean of 4 voxels: the two beside hold some of it, and all ten share a crop of 12."""
    hu = np.full((8, 8, 80), -1000, np.int16)
    hu[:, :, 8:40] = 40
    worker = processor(crop_size=(8, 8, 12), spacing=(1.0, 1.0, 4.0), resampling="area")
    assert worker((hu, affine())).pixel_values.flatten(2).any(-1).sum() == 1


def test_a_crop_of_noise_below_air_hu_becomes_air_and_the_rest_is_untouched() -> None:
    hu, matrix = scan((8, 16, 32))
    hu[:, :, 16:] = np.random.default_rng(0).integers(-1000, -900, size=(8, 16, 16))
    noisy = processor(air_hu=-1000)((hu, matrix)).pixel_values
    clean = processor(air_hu=-900)((hu, matrix)).pixel_values
    assert noisy[0, 1].max() > 0.04
    assert (clean[0, 1] == 0).all()
    assert torch.equal(clean[0, 0], noisy[0, 0])


@pytest.mark.parametrize(
    ("low", "high", "crop", "slack", "expected"),
    [
        (20, 51, 16, 12, 12),  # 32 voxels fit into two crops when padded to 32..63
        (0, 51, 16, 12, 6),  # nothing to win: central
        (17, 30, 16, 12, 6),  # one crop however it lies between 0 and 12 minus what shifts it over an edge
    ],
)
def test_the_grid_is_laid_so_that_the_body_spans_the_fewest_crops(low, high, crop, slack, expected) -> None:
    def spanned(before: int) -> int:
        return (before + high) // crop - (before + low) // crop + 1

    before = place_axis(torch.arange(low, high + 1), crop, slack)
    best = min(range(slack + 1), key=lambda b: (spanned(b), abs(2 * b - slack)))
    assert before == best
    assert spanned(before) == spanned(expected) or spanned(before) < spanned(expected)


def test_batch_of_different_scans_equals_each_alone() -> None:
    scans = [scan(), scan((30, 20, 50), seed=1)]
    together = processor()(scans)
    assert together.crop_grid.tolist() == [[2, 2, 2], [4, 2, 4]]
    for index, one in enumerate(scans):
        alone = processor()(one)
        count = alone.pixel_values.shape[1]
        assert torch.equal(together.pixel_values[index, :count], alone.pixel_values[0])
        assert (together.pixel_values[index, count:] == 0).all()
        assert together.crop_mask[index].tolist() == [i < count for i in range(together.crop_mask.shape[1])]


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
@pytest.mark.parametrize("flips", [(), (0,), (1, 2), (0, 1, 2)])
def test_axis_order_and_direction_on_disk_do_not_change_what_the_model_sees(axes, flips) -> None:
    hu, matrix = scan(spacing=(2.0, 1.0, 1.5))
    turned = np.flip(hu.transpose(axes), flips)
    to_original = np.zeros((4, 4))
    to_original[3, 3] = 1
    for new, old in enumerate(axes):
        to_original[old, new] = -1 if new in flips else 1
        to_original[old, 3] = hu.shape[old] - 1 if new in flips else 0
    expected = processor(spacing=(1.0, 1.0, 1.0))((hu, matrix))
    inputs = processor(spacing=(1.0, 1.0, 1.0))((turned, matrix @ to_original))
    assert torch.equal(inputs.pixel_values, expected.pixel_values)


# ---- and back ----


@pytest.mark.parametrize("spacing", ["native", (1.0, 1.5, 0.7)])
def test_voxel_map_comes_back_to_where_it_came_from(spacing) -> None:
    d, h, w = np.meshgrid(*(np.arange(n) for n in (20, 30, 40)), indexing="ij")
    hu = (400 * np.sin(d / 6) + 300 * np.cos(h / 8) + 200 * np.sin(w / 7 + d / 9)).astype(np.float32)
    inputs = processor(spacing=spacing, air_hu=-2000, intensity_window=ALL)((hu, affine((2.0, 1.0, 1.0))))
    (back,) = processor().to_patient_space(inputs.pixel_values[:, :, 0], inputs)
    back = back * (ALL[1] - ALL[0]) + ALL[0]
    error = np.abs(back - hu)[2:-2, 2:-2, 2:-2]
    assert error.max() < (0.01 if spacing == "native" else 10)  # of a range of 1,800, over two linear interpolations


@pytest.mark.parametrize("size", [(2, 2, 2), (4, 4, 8), (8, 16, 16)])
def test_cells_come_back_to_their_own_centres(size) -> None:
    """A map that holds every cell's own place in mm, axis by axis, holds every voxel's own place on the scan."""
    hu, matrix = scan((20, 30, 40), spacing=(2.0, 1.2, 0.9))
    worker = processor(spacing=(1.5, 1.0, 1.0))
    inputs = worker((hu, matrix))
    (geometry,) = inputs.geometry
    grid = [g * s for g, s in zip(geometry.crop_grid, size, strict=True)]
    for axis in range(3):
        cell = geometry.crop_size[axis] / size[axis]
        centre = (np.arange(grid[axis]) + 0.5) * cell - 0.5  # in grid voxels
        place = np.broadcast_to(centre.reshape([-1 if a == axis else 1 for a in range(3)]), grid)
        cells = torch.from_numpy(place.copy()).reshape(
            geometry.crop_grid[0], size[0], geometry.crop_grid[1], size[1], -1, size[2]
        )
        cells = cells.permute(0, 2, 4, 1, 3, 5).reshape(1, -1, *size)
        (back,) = worker.to_patient_space(cells, inputs)
        voxel = np.arange(hu.shape[axis])
        expected = (voxel - geometry.offset[axis]) / geometry.step[axis]
        expected = expected.clip(centre[0], centre[-1])
        line = np.moveaxis(back, axis, 0)[:, 0, 0]
        np.testing.assert_allclose(line, expected, atol=1e-6)


def test_one_value_a_crop_comes_back_as_blocks_of_the_scan() -> None:
    hu, matrix = scan()
    inputs = processor()((hu, matrix))
    (labels,) = processor().to_patient_space(torch.arange(8)[None], inputs)
    (geometry,) = inputs.geometry
    start = [round(-offset) for offset in geometry.offset]
    for voxel in [(0, 0, 0), (11, 19, 23), (3, 10, 14), (8, 2, 20)]:
        d, h, w = ((v + s) // c for v, s, c in zip(voxel, start, geometry.crop_size, strict=True))
        assert labels[voxel] == d * 4 + h * 2 + w


def test_segmentation_goes_there_and_back_unchanged_at_native_spacing() -> None:
    hu, matrix = scan()
    segmentation = (hu > 0).astype(np.uint8) + 2 * (hu > 200)
    worker = processor()
    inputs = worker((hu, matrix), segmentations=(segmentation, matrix))
    assert (inputs.labels == -100).sum() == inputs.labels.numel() - hu.size
    (back,) = worker.to_patient_space(inputs.labels, inputs)
    np.testing.assert_array_equal(back, segmentation)
    coarse = worker((hu, matrix), segmentations=[(segmentation, matrix)], spacing=(2.0, 2.0, 2.0))
    assert set(coarse.labels.unique().tolist()) == {-100, 0, 1, 3}


def test_a_label_map_lies_where_its_affine_says_whatever_its_axis_order(tmp_path) -> None:
    hu, matrix = scan()
    segmentation = (hu > 0).astype(np.uint8) + 2 * (hu > 200)
    turned = matrix[:, [2, 0, 1, 3]]
    expected = processor()((hu, matrix), segmentations=(segmentation, matrix)).labels
    volume = read_volume((hu, matrix))
    volume.to_nifti(tmp_path / "labels.nii.gz", segmentation)
    for source in ((segmentation.transpose(2, 0, 1), turned), tmp_path / "labels.nii.gz"):
        assert torch.equal(processor()(volume, segmentations=[source]).labels, expected)


@pytest.mark.parametrize(
    "labels", [np.ones((12, 20, 24), bool), np.full((12, 20, 24), 3.0), np.zeros((12, 20, 24), int)]
)
def test_a_label_map_is_not_checked_as_hounsfield_units(labels: np.ndarray) -> None:
    hu, matrix = scan()
    found = read_segmentation((labels, matrix), read_volume((hu, matrix)))
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, labels)


def test_label_maps_that_may_lie_elsewhere_are_refused_with_the_cure() -> None:
    hu, matrix = scan()
    labels = np.zeros(hu.shape, np.uint8)
    with pytest.raises(GeometryError, match=r"an array with its affine.*ndarray.*\(array, volume\.affine\)"):
        processor()((hu, matrix), segmentations=[labels])
    with pytest.raises(GeometryError, match="other voxels than the scan"):
        processor()((hu, matrix), segmentations=[(labels, affine((2.0, 1.0, 1.0), origin=(5.0, 0.0, 0.0)))])
    with pytest.raises(GeometryError, match=r"other voxels.*\(3, 3, 3\)"):
        processor()((hu, matrix), segmentations=[(np.zeros((3, 3, 3), np.uint8), matrix)])
    with pytest.raises(VolumeError, match=r"0 to 255.*0\.5 to 0\.5"):
        processor()((hu, matrix), segmentations=[(labels + 0.5, matrix)])
    with pytest.raises(ValueError, match="2 segmentations do not belong to 1 scans"):
        processor()((hu, matrix), segmentations=[(labels, matrix)] * 2)


def test_segmentation_logits_become_label_maps_on_each_scan() -> None:
    torch.manual_seed(0)
    model = CTFMForSemanticSegmentation(tiny_config()).eval()
    worker = processor()
    inputs = worker([scan(), scan((30, 20, 50), seed=1)])
    with torch.no_grad():
        outputs = model(**inputs)
    maps = worker.post_process_semantic_segmentation(outputs, inputs)
    assert [m.shape for m in maps] == [(12, 20, 24), (30, 20, 50)]
    assert set(np.unique(maps[0])) <= {0, 1, 2}


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, "numpy", "gradient"])
def test_maps_of_any_kind_come_back(kind) -> None:
    inputs = processor()(scan())
    values = torch.arange(8.0)[None]
    maps = {"numpy": values.numpy(), "gradient": values.clone().requires_grad_()}.get(kind, values)
    maps = maps.to(kind) if isinstance(kind, torch.dtype) else maps
    expected = processor().to_patient_space(values, inputs)[0]
    np.testing.assert_allclose(processor().to_patient_space(maps, inputs)[0], expected, rtol=0.01, atol=0.01)


# ---- the object ----


def test_the_way_back_survives_the_trip_out_of_a_worker_process_and_to_a_device() -> None:
    inputs = processor()(scan())
    for copied in (pickle.loads(pickle.dumps(inputs)), copy.deepcopy(inputs), inputs.to("cpu")):
        assert torch.equal(copied.pixel_values, inputs.pixel_values)
        assert copied.geometry[0].crop_grid == inputs.geometry[0].crop_grid
        assert np.array_equal(copied.volumes[0].hu, inputs.volumes[0].hu)


def test_processor_saves_and_loads_as_auto_image_processor(tmp_path) -> None:
    ours = processor(spacing="fine", air_hu=-950.0, resampling="linear")
    ours.save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path, trust_remote_code=True)
    assert loaded.to_dict() == ours.to_dict()
    assert loaded.spacing == [1.0, 0.5, 0.5]
    assert loaded.resampling == "linear"
    hu, matrix = scan()
    assert torch.equal(loaded((hu, matrix)).pixel_values, ours((hu, matrix)).pixel_values)
    assert loaded((hu, matrix), spacing="native").crop_grid.tolist() == [[2, 2, 2]]


def test_numpy_is_given_where_it_is_asked_for() -> None:
    inputs = processor()(scan(), return_tensors="np")
    assert isinstance(inputs["pixel_values"], np.ndarray)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crop_size": (8, 16)}, r"crop_size \[8, 16\]"),
        ({"spacing": (1.0, 0.0, 1.0)}, "three positive numbers in mm"),
        ({"spacing": (1.0, math.nan, 1.0)}, "three positive numbers in mm"),
        ({"spacing": 1.5}, r"spacing 1\.5 must be three positive numbers in mm .* such as"),
        ({"spacing": (1.0, "a", 1.0)}, "three positive numbers in mm"),
        ({"spacing": "finest"}, "scan, fine, coarse, native"),
        ({"intensity_window": (100, -100)}, r"\[100, -100\]"),
        ({"resampling": "cubic"}, '"cubic" is not known; choose one of area, linear'),
    ],
)
def test_impossible_settings_are_refused_with_the_value(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        processor(**change)


def test_unknown_keywords_and_tensor_types_are_refused() -> None:
    with pytest.raises(TypeError, match="spacings"):
        processor()(scan(), spacings="native")
    with pytest.raises(ValueError, match=r"return_tensors 'tf' must be"):
        processor()(scan(), return_tensors="tf")


def test_maps_that_do_not_belong_to_the_inputs_are_refused() -> None:
    inputs = processor()(scan())
    with pytest.raises(ValueError, match="maps of 2 scans"):
        processor().to_patient_space(torch.zeros(2, 8), inputs)
    with pytest.raises(ValueError, match=r"\(b, g, d, h, w\)"):
        processor().to_patient_space(torch.zeros(1, 8, 2), inputs)
    with pytest.raises(ValueError, match="g = 8"):
        processor().to_patient_space(torch.zeros(1, 7), inputs)
    with pytest.raises(ValueError, match="No scan"):
        processor()([])


# ---- batches ----


class Scans(torch.utils.data.Dataset):
    """Scans of 8 and 32 crops with two findings each, as a training set gives them."""

    def __init__(self, with_segmentation: bool = False) -> None:
        self.with_segmentation = with_segmentation

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict:
        hu, matrix = scan((30, 20, 50) if index % 2 else (12, 20, 24), seed=index)
        segmentation = ((hu > 0).astype(np.uint8), matrix) if self.with_segmentation else None
        inputs = processor()((hu, matrix), segmentations=segmentation)
        return dict(inputs) | ({} if self.with_segmentation else {"labels": torch.tensor([index % 2, math.nan, 1.0])})


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_data_loader_collates_scans_as_the_processor_batches_them(num_workers: int) -> None:
    scans = [scan((30, 20, 50) if index % 2 else (12, 20, 24), seed=index) for index in range(4)]
    loader = DataLoader(Scans(), batch_size=4, collate_fn=collate_scans, num_workers=num_workers)
    (batch,) = loader
    expected = processor()(scans)
    for name in expected:
        assert torch.equal(batch[name], expected[name]), name
    assert batch["labels"].shape == (4, 3)


def test_collated_label_maps_are_the_processors_and_do_not_count_where_crops_were_added() -> None:
    dataset = Scans(with_segmentation=True)
    batch = collate_scans([dataset[0], dataset[1]])
    scans = [scan(), scan((30, 20, 50), seed=1)]
    expected = processor()(scans, segmentations=[((hu > 0).astype(np.uint8), matrix) for hu, matrix in scans])
    assert torch.equal(batch["labels"], expected["labels"])
    assert (batch["labels"][0, 8:] == -100).all()


def test_maps_of_a_collated_batch_come_back_to_each_scan() -> None:
    batch = collate_scans([processor()(scan()), processor()(scan((30, 20, 50), seed=1))])
    maps = processor().to_patient_space(batch.crop_mask.float(), batch)
    assert [m.shape for m in maps] == [(12, 20, 24), (30, 20, 50)]
    assert all((m == 1).all() for m in maps)


def test_rows_of_a_dataset_with_a_transform_are_collated() -> None:
    datasets = pytest.importorskip("datasets")
    scans = [scan(), scan((30, 20, 50), seed=1)]

    def transform(rows: dict) -> dict:
        inputs = processor()([scans[number] for number in rows["number"]])
        return dict(inputs) | {"labels": [[float(number), 0.0, 1.0] for number in rows["number"]]}

    rows = datasets.Dataset.from_dict({"number": [0, 1]}).with_transform(transform)
    expected = processor()(scans)
    for batch in (
        next(iter(DataLoader(rows, batch_size=2, collate_fn=collate_scans))),
        collate_scans([rows[0], rows[1]]),
    ):
        for name in expected:
            assert torch.equal(batch[name], expected[name]), name
        assert batch["labels"].tolist() == [[0.0, 0.0, 1.0], [1.0, 0.0, 1.0]]


def test_a_trainer_fine_tunes_on_scans_of_different_crop_counts(tmp_path) -> None:
    torch.manual_seed(0)
    model = CTFMForImageClassification(tiny_config())
    before = model.classifier.weight.detach().clone()
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=2,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
    )
    trainer = Trainer(
        model=model, args=arguments, train_dataset=Scans(), eval_dataset=Scans(), data_collator=collate_scans
    )
    assert math.isfinite(trainer.train().training_loss)
    assert not torch.equal(model.classifier.weight, before)
    assert math.isfinite(trainer.evaluate()["eval_loss"])


def test_scans_that_cannot_be_one_batch_are_refused() -> None:
    first, second = Scans()[0], Scans()[1]
    with pytest.raises(ValueError, match="A scan has no labels; it has crop_grid"):
        collate_scans([first, {name: entry for name, entry in second.items() if name != "labels"}])
    with pytest.raises(ValueError, match=r"input_ids .* \(3,\), \(4,\)\. Tokenize texts with padding"):
        collate_scans([first | {"input_ids": torch.ones(1, 3)}, second | {"input_ids": torch.ones(1, 4)}])


# --- settings --------------------------------------------------------------------------------------------------------------


def test_a_setting_that_is_not_known_is_refused_also_in_a_saved_file(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="no setting window; its settings are crop_size, spacing, intensity_window"):
        CTFMImageProcessor(window=(-160, 240))
    CTFMImageProcessor().save_pretrained(tmp_path)
    (file,) = tmp_path.glob("*.json")
    file.write_text(file.read_text().replace('"air_hu"', '"air_HU"'))
    with pytest.raises(TypeError, match="no setting air_HU"):
        CTFMImageProcessor.from_pretrained(tmp_path)


def test_a_setting_given_while_loading_is_checked_as_one_given_while_making(tmp_path: Path) -> None:
    CTFMImageProcessor().save_pretrained(tmp_path)
    loaded = CTFMImageProcessor.from_pretrained(tmp_path, spacing="fine", crop_size=(8, 16, 16))
    assert (loaded.spacing, loaded.crop_size) == ([1.0, 0.5, 0.5], [8, 16, 16])
    with pytest.raises(ValueError, match="three positive numbers"):
        CTFMImageProcessor.from_pretrained(tmp_path, crop_size=(8, 16))
