"""Crops -> views, scans -> model input: where everything lies, and that it is the same each time."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from ctfm import CTFMImageProcessor
from ctfm.train.data import Crop, CropBatch, ScanSample, collate_crops
from ctfm.train.views import (
    Placement,
    ViewConfig,
    ViewShape,
    blur,
    cut_scans,
    make_views,
    place_views,
    sample_hu,
    sample_labels,
    vary_scan,
)
from ctfm.volume_ctfm import Volume
from torch import Tensor

from tests.phantoms import canonical_affine, phantom_hu

SPACING = (2.0, 1.0, 1.25)
PLAIN = ViewConfig(
    global_views=ViewShape(count=2, size=(8, 12, 10), spacing=SPACING, zoom=(1.0, 1.0)),
    local_views=ViewShape(count=3, size=(4, 6, 5), spacing=(1.5, 0.7, 0.9), zoom=(0.8, 1.2)),
    stretch=(1.0, 1.0),
    intensity_probability=0,
    noise_probability=0,
    blur_probability=0,
    sharpen_probability=0,
)
VARIED = replace(PLAIN, stretch=(0.9, 1.1), intensity_probability=1, noise_probability=1, sharpen_probability=0.7)


def crop(hu: Tensor, seed: int = 7, spacing: tuple[float, float, float] = SPACING) -> Crop:
    return Crop(number=seed, seed=seed, scan_id=str(seed), start=(0, 0, 0), spacing=spacing, hu=hu.to(torch.int16))


def random_crops(count: int = 3) -> list[Crop]:
    generator = torch.Generator().manual_seed(0)
    return [crop(torch.randint(-1000, 1000, (9 + i, 14, 12), generator=generator), seed=100 + i) for i in range(count)]


def ramps(shape: tuple[int, int, int] = (20, 30, 24)) -> Tensor:
    """`(3, D, H, W)`: along each axis, tens of millimetres times 10 from the first voxel's centre, in HU."""
    axes = [10 * torch.arange(n) * mm for n, mm in zip(shape, SPACING, strict=True)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


def place(start: list[float], step: list[float], count: int = 1) -> Placement:
    return Placement(start_mm=torch.tensor([start] * count), step_mm=torch.tensor([step] * count))


def test_an_untransformed_view_is_the_crop_exactly() -> None:
    batch = collate_crops(random_crops(1))
    shape = ViewShape(count=1, size=(9, 14, 12), spacing=SPACING, zoom=(1, 1))
    views = sample_hu(batch, place([0, 0, 0], list(SPACING)), shape, "area")
    torch.testing.assert_close(views[0, 0], batch.hu[0].float(), rtol=0, atol=2e-3)  # HU
    assert torch.equal(views[0, 0].round().to(torch.int16), batch.hu[0])


@pytest.mark.parametrize("resampling", ["area", "linear"])
@pytest.mark.parametrize("step", [[1.7, 0.6, 1.9], [2.9, 1.3, 1.25]])
def test_a_ramp_keeps_its_place_in_millimetres(step: list[float], resampling: str) -> None:
    batch = collate_crops([crop(ramp) for ramp in ramps()])
    start = [3.3, 5.5, 2.2]
    shape = ViewShape(count=1, size=(9, 14, 10), spacing=SPACING, zoom=(1, 1))
    views = sample_hu(batch, place(start, step, 3), shape, resampling)[:, 0]
    for axis in range(3):
        expected = 10 * (start[axis] + step[axis] * torch.arange(shape.size[axis]))
        lying = expected.view([-1 if a == axis else 1 for a in range(3)]).expand(shape.size)
        torch.testing.assert_close(views[axis], lying, rtol=0, atol=0.05 + 0.5)  # a ramp of 12.5 HU a voxel, rounded


@pytest.mark.parametrize("axis", range(3))
def test_a_flip_mirrors_the_same_box(axis: int) -> None:
    batch = collate_crops(random_crops())
    flip = [0.0, 0.0, 0.0]
    flip[axis] = 1.0
    for salt, shape in ((1, PLAIN.global_views), (2, PLAIN.local_views)):
        found = []
        for config in (PLAIN, replace(PLAIN, flip=(flip[0], flip[1], flip[2]))):
            generators = [torch.Generator().manual_seed(salt) for _ in batch.numbers]
            found.append(sample_hu(batch, place_views(batch, shape, config, generators), shape, "area"))
        torch.testing.assert_close(found[1], found[0].flip(axis + 2), rtol=0, atol=0.02)


def test_no_view_is_mirrored_unless_asked() -> None:
    batch = collate_crops(random_crops())
    generators = [torch.Generator().manual_seed(n) for n in batch.numbers]
    assert (place_views(batch, ViewConfig().local_views, ViewConfig(), generators).step_mm > 0).all()


def test_a_view_that_fits_lies_within_the_real_voxels() -> None:
    batch = collate_crops([crop(torch.zeros(40, 60, 50)), crop(torch.zeros(30, 50, 40), seed=8)])
    for _ in range(20):
        batch = replace(batch, seeds=batch.seeds + 1)
        views = make_views(batch, PLAIN)
        for made in (views.global_views, views.local_views):
            torch.testing.assert_close(made, torch.full_like(made, 0.5), rtol=0, atol=1e-5)  # 0 HU


def test_a_view_larger_than_its_crop_is_centred_in_air() -> None:
    batch = collate_crops([crop(torch.zeros(4, 6, 6))])
    views = make_views(batch, PLAIN).global_views[:, 0]
    assert (views[:, 2:6, 3:9, 2:8] == 0.5).all()
    assert (views[:, 0] == 0).all()
    assert (views[:, :, 0] == 0).all()
    torch.testing.assert_close(views, views.flip(1, 2, 3))


def test_a_sample_has_the_same_views_in_any_batch() -> None:
    crops = random_crops()
    together = make_views(collate_crops(crops), VARIED)
    for index, one in enumerate(crops):
        alone = make_views(collate_crops([one]), VARIED)
        torch.testing.assert_close(together.global_views[index::3], alone.global_views, rtol=0, atol=1e-5)
        torch.testing.assert_close(together.local_views[index::3], alone.local_views, rtol=0, atol=1e-5)


def test_views_are_a_function_of_their_seeds() -> None:
    batch = collate_crops(random_crops())
    first, again = make_views(batch, VARIED), make_views(batch, VARIED)
    other = make_views(replace(batch, seeds=batch.seeds + 9), VARIED)
    assert torch.equal(first.global_views, again.global_views)
    assert torch.equal(first.local_views, again.local_views)
    assert not torch.equal(first.global_views, other.global_views)
    assert first.global_views.shape == (6, 1, 8, 12, 10)
    assert first.local_views.shape == (9, 1, 4, 6, 5)
    assert not torch.equal(first.global_views[0], first.global_views[3])  # two views of one crop


def test_the_plain_window_is_the_image_processors() -> None:
    hu = torch.tensor([-1024, -1000, -500, 0, 250, 1000, 3000]).repeat(12, 14, 2)
    shape = ViewShape(count=1, size=(12, 14, 14), spacing=SPACING, zoom=(1, 1))
    views = make_views(collate_crops([crop(hu)]), replace(PLAIN, global_views=shape)).global_views
    expected = torch.tensor([0, 0, 0.25, 0.5, 0.625, 1, 1]).repeat(12, 14, 2)
    torch.testing.assert_close(views[0, 0], expected, rtol=0, atol=1e-5)


def test_varied_views_stay_between_0_and_1_and_differ_as_told() -> None:
    batch = collate_crops(random_crops())
    plain = make_views(batch, PLAIN).global_views
    for name in ("intensity", "noise", "blur", "sharpen"):
        varied = make_views(batch, replace(PLAIN, **{f"{name}_probability": 1.0})).global_views
        assert varied.min() >= 0
        assert varied.max() <= 1
        assert not torch.allclose(varied, plain, atol=1e-3), name
        if name in ("blur", "sharpen"):
            assert (varied.std() < plain.std()) == (name == "blur")


def test_a_blur_keeps_the_sum_and_has_the_width_it_is_told() -> None:
    point = torch.zeros(2, 1, 15, 15, 15)
    point[:, :, 7, 7, 7] = 1
    sigma = torch.tensor([0.7, 0.9])
    blurred = blur(point, sigma)
    torch.testing.assert_close(blurred.sum((1, 2, 3, 4)), torch.ones(2))
    for dim in (2, 3, 4):
        others = [d for d in (1, 2, 3, 4) if d != dim]
        variance = (blurred.sum(others) * (torch.arange(15) - 7) ** 2).sum(1)
        torch.testing.assert_close(variance.sqrt(), sigma, rtol=0.02, atol=0)


@pytest.mark.parametrize("resampling", ["area", "linear"])
def test_a_view_is_resampled_as_the_image_processor_resamples_a_scan(resampling: str) -> None:
    hu = torch.from_numpy(phantom_hu((24, 48, 40), 1))
    processor = CTFMImageProcessor(
        crop_size=(10, 18, 16),
        spacing=(2.5, 2.0, 1.75),
        resampling=resampling,
        intensity_window=(-2000, 2000),
        air_hu=-2000,
    )
    volume = Volume(hu=hu.numpy(), affine=canonical_affine((1.0, 1.0, 1.0)))
    inputs = processor(volume)
    (geometry,) = inputs.geometry
    assert geometry.crop_grid == (1, 2, 2)
    shape = ViewShape(count=1, size=(10, 18, 16), spacing=(2.5, 2.0, 1.75), zoom=(1, 1))
    batch = collate_crops([crop(hu, spacing=(1.0, 1.0, 1.0))])
    for number, index in enumerate(np.ndindex(1, 2, 2)):
        start = [o + s * i * n for o, s, i, n in zip(geometry.offset, geometry.step, index, shape.size, strict=True)]
        view = sample_hu(batch, place(start, [2.5, 2.0, 1.75]), shape, resampling)[0, 0]
        expected = inputs.pixel_values[0, number, 0]
        torch.testing.assert_close(((view + 2000) / 4000)[expected > 0], expected[expected > 0], rtol=0, atol=1e-6)


def test_views_of_labels_are_the_nearest_voxels() -> None:
    generator = torch.Generator().manual_seed(0)
    crops = [
        replace(one, segmentation=torch.randint(1, 9, one.hu.shape, generator=generator).to(torch.uint8))
        for one in random_crops()
    ]
    batch = collate_crops(crops)
    shape = ViewShape(count=1, size=(12, 14, 12), spacing=SPACING, zoom=(1, 1))
    start = [0.9, -0.4, -1.3]  # mm: under half a voxel, under half a voxel, one voxel
    labels = sample_labels(batch, place(start, list(SPACING), 3), shape)
    for one, view in zip(crops, labels, strict=True):
        expected = torch.zeros(12, 14, 12, dtype=torch.uint8)
        expected[: len(one.hu), :, 1:] = one.segmentation[:, :, :-1]
        assert torch.equal(view, expected)


@pytest.mark.parametrize("resampling", ["area", "linear"])
@pytest.mark.parametrize("spacing", ["native", (2.0, 1.5, 0.8)])
def test_scans_are_cut_as_the_image_processor_cuts_them(
    spacing: str | tuple[float, float, float], resampling: str
) -> None:
    processor = CTFMImageProcessor(crop_size=(8, 16, 16), spacing=spacing, resampling=resampling)
    volumes = [Volume(hu=phantom_hu((24 + 6 * n, 48, 40), n), affine=canonical_affine()) for n in range(2)]
    samples = [
        ScanSample(
            number=n,
            seed=n,
            scan_id="",
            hu=torch.from_numpy(volume.hu),
            affine=np.asarray(volume.affine),
            report="",
            labels={},
        )
        for n, volume in enumerate(volumes)
    ]
    cut, expected = cut_scans(samples, processor, "cpu"), processor(volumes)
    assert set(cut) == set(processor.model_input_names)
    for name in cut:
        assert torch.equal(cut[name], expected[name])


def test_a_scan_is_varied_as_one_and_crops_that_hold_nothing_stay_empty() -> None:
    pixels = torch.full((1, 3, 1, 4, 6, 6), 0.5)
    pixels[0, 1] = 0
    brighter = replace(PLAIN, intensity_probability=1, window_shift_hu=(-40, -40), window_scale=(1, 1), gamma=(1, 1))
    varied = vary_scan(pixels, brighter, seed=3)
    assert not varied[0, 1].any()
    torch.testing.assert_close(varied[0, [0, 2]], torch.full((2, 1, 4, 6, 6), 0.52))
    torch.testing.assert_close(vary_scan(pixels, PLAIN, seed=3), pixels)
    noisy = replace(PLAIN, noise_probability=1, noise=(0.03, 0.03))
    noise = vary_scan(pixels, noisy, seed=3) - pixels
    assert float(noise[0, [0, 2]].std()) == pytest.approx(0.03, rel=0.15)  # of 288 voxels
    assert not torch.equal(noise[0, 0], noise[0, 2])
    torch.testing.assert_close(vary_scan(pixels, noisy, seed=3), vary_scan(pixels, noisy, seed=3), rtol=0, atol=0)


def test_a_scan_that_is_aligned_with_its_report_is_never_mirrored() -> None:
    pixels = torch.rand(1, 3, 1, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    mirrored = replace(PLAIN, flip=(1.0, 1.0, 1.0))
    assert all(torch.equal(vary_scan(pixels, mirrored, seed), vary_scan(pixels, PLAIN, seed)) for seed in range(5))


@pytest.mark.gpu
def test_views_on_the_gpu_are_those_of_the_cpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    batch = collate_crops(random_crops())
    varied = replace(VARIED, noise_probability=0)
    near, far = make_views(batch, varied), make_views(batch.to("cuda"), varied)
    torch.testing.assert_close(far.global_views.cpu(), near.global_views, rtol=0, atol=1e-4)
    assert isinstance(batch, CropBatch)
