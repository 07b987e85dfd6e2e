"""Phantoms drawn as they are asked for: train/drawn.py."""

from pathlib import Path

import numpy as np
import pytest
import torch
from ctfm import CTFMImageProcessor, Volume
from ctfm.phantom.dataset import label
from ctfm.phantom.make import Phantom, make_phantom
from ctfm.train.drawn import (
    BOXES_PER_PATIENT,
    FINDING_STEP,
    FINDINGS,
    DrawingConfig,
    DrawingSchedule,
    DrawnScan,
    DrawnScans,
    cut_drawn,
    draw_box,
    encode_voxels,
    find_occupied,
    find_places,
    finding_codes,
)

PROCESSOR = CTFMImageProcessor(crop_size=(16, 24, 24), spacing=(6.0, 5.0, 5.0), intensity_window=(-1024.0, 3071.0))


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    return make_phantom(11, shape=(40, 56, 56), findings=["Pleural effusion", "Lung nodule", "Ascites"])


def drawn(phantom: Phantom) -> DrawnScan:
    geometry = PROCESSOR.place_grid(Volume(hu=phantom.hu.numpy(), affine=phantom.affine), list(PROCESSOR.spacing))
    return DrawnScan(
        number=0,
        seed=0,
        hu=phantom.hu,
        codes=encode_voxels(phantom),
        labels=label(phantom),
        report=str(phantom.report),
        geometry=geometry,
        occupied=find_occupied(phantom.hu, geometry, PROCESSOR),
    )


def test_crops_and_labels_are_those_of_the_image_processor(phantom: Phantom) -> None:
    scan = drawn(phantom)
    volume = Volume(hu=phantom.hu.numpy(), affine=phantom.affine)
    organs = (encode_voxels(phantom) % FINDING_STEP).to(torch.uint8).numpy()
    inputs = PROCESSOR.preprocess(volume, segmentations=[(organs, phantom.affine)])
    pixels, codes = cut_drawn(scan, PROCESSOR, torch.device("cpu"))
    torch.testing.assert_close(inputs["pixel_values"][0].flatten(1).any(1), scan.occupied)
    torch.testing.assert_close(pixels, inputs["pixel_values"][0, scan.occupied], atol=1e-6, rtol=0)
    expected = inputs["labels"][0, scan.occupied]
    torch.testing.assert_close(torch.where(codes < 0, -100, codes % FINDING_STEP).long(), expected.long())


def test_the_side_of_a_finding_is_the_patients(phantom: Phantom) -> None:
    codes, numbers = encode_voxels(phantom) // FINDING_STEP, finding_codes()
    labels = label(phantom)
    for name in ("pleural effusion", "lung nodule"):
        for side in ("Left", "Right"):
            (code,) = numbers[f"{side} {name}"]
            assert bool((codes == code).any()) == bool(labels[f"{side} {name}"])
    (left,) = numbers["Left pleural effusion"]
    if bool((codes == left).any()):
        width = (codes == left).nonzero()[:, 2].float().mean()
        assert width > phantom.hu.shape[2] / 2  # towards the patient's left


def test_every_finding_has_codes_of_its_own() -> None:
    numbers = finding_codes()
    assert set(FINDINGS) == set(numbers)
    own = [code for name in numbers if not name.startswith(("Left ", "Right ")) for code in numbers[name]]
    assert len(own) == len(set(own))
    assert max(own) < FINDING_STEP


def test_a_scan_comes_again_from_a_window_and_is_new_once() -> None:
    config = DrawingConfig(seed=3, global_batch=4, repeats=4, window=10)
    scans = [DrawingSchedule(config).scan(number) for number in range(400)]
    assert scans[::4] == list(range(100))  # every fourth is new, in order
    for number, scan in enumerate(scans):
        assert number // 4 - 10 <= scan <= number // 4
    later = DrawingSchedule(DrawingConfig(seed=3, global_batch=4, repeats=4, window=10, first_scan=100))
    assert later.scan(0) == 100
    assert later.scan(1) in range(90, 100)  # what an earlier phase drew last


def test_a_run_does_not_go_on_with_other_scans() -> None:
    schedule = DrawingSchedule(DrawingConfig(repeats=4))
    assert schedule.resume(schedule.state(7)) == 7
    with pytest.raises(ValueError, match=r"'repeats': 4.* then, .*'repeats': 2"):
        DrawingSchedule(DrawingConfig(repeats=2)).resume(schedule.state(7))


def test_the_folder_of_drawn_scans_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def small(seed: int) -> Phantom:
        return make_phantom(seed, shape=(20, 32, 32))

    monkeypatch.setattr("ctfm.train.drawn.draw_phantom", small)
    schedule = DrawingSchedule(DrawingConfig(window=1, global_batch=1, repeats=1))
    scans = DrawnScans(schedule, PROCESSOR, tmp_path / "kept")
    first, again = scans[2], scans[2]
    anew = DrawnScans(schedule, PROCESSOR, tmp_path / "empty")[2]
    for other in (again, anew):
        torch.testing.assert_close(other.hu, first.hu, rtol=0, atol=0)
        torch.testing.assert_close(other.codes, first.codes, rtol=0, atol=0)
        np.testing.assert_array_equal(other.geometry.affine, first.geometry.affine)
        assert other.report == first.report
    scans[7]
    assert not (tmp_path / "kept" / "2.safetensors").exists()  # out of the window: the folder does not grow


CROP_MM = (96.0, 96.0, 96.0)


def test_a_box_shows_the_patient_as_a_whole_scan_does() -> None:
    whole = make_phantom(5, shape=(60, 72, 72), spacing=(6.0, 6.0, 6.0), centre_mm=(0.0, 0.0, 0.0))
    box = make_phantom(5, shape=(20, 24, 24), spacing=(6.0, 6.0, 6.0), centre_mm=(60.0, -24.0, 36.0))
    # The middle of a grid of even size lies between voxels, so both grids share theirs.
    first = [
        round((60.0, -24.0, 36.0)[axis] / 6 + (60, 72, 72)[axis] / 2 - (20, 24, 24)[axis] / 2) for axis in range(3)
    ]
    inside = tuple(slice(start, start + size) for start, size in zip(first, box.organs.shape, strict=True))
    assert (box.organs != whole.organs[inside]).float().mean() < 1e-3  # rounding at borders
    assert box.organs.unique().numel() > 3


def test_a_box_is_one_crop_and_holds_a_finding_of_its_patient_or_the_place_of_anothers() -> None:
    processor = CTFMImageProcessor(crop_size=(48, 64, 64), spacing=(2.0, 1.5, 1.5), intensity_window=(-1024.0, 3071.0))
    own = 0
    for seed in range(3):
        places = find_places(seed)
        for number in range(BOXES_PER_PATIENT):
            phantom = draw_box(seed, seed + 100, number, CROP_MM)
            volume = Volume(hu=phantom.hu.numpy(), affine=phantom.affine)
            assert processor.place_grid(volume, list(processor.spacing)).crop_grid == (1, 1, 1)
            own += number < BOXES_PER_PATIENT - 1 and bool(places.keys() & {f.name for f in phantom.findings})
    assert own >= 7  # of nine; a centroid between two lungs may lie in neither


def test_without_a_spacing_a_box_has_no_extent(tmp_path: Path) -> None:
    native = CTFMImageProcessor(crop_size=(48, 64, 64), spacing="native")
    with pytest.raises(ValueError, match="give the image processor a spacing"):
        DrawnScans(DrawingSchedule(DrawingConfig(boxes=1.0)), native, tmp_path)
