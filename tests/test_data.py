"""Shards -> crops, scans, batches: what is drawn, where, and in which order."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from ctfm.train.data import (
    CropBatch,
    CropDataset,
    SamplingConfig,
    Schedule,
    SourceConfig,
    StepBatches,
    load_crops,
    load_scans,
    place_crop,
    shuffle,
)
from ctfm.train.prepare import PrepareConfig, prepare
from ctfm.train.shards import Manifest, write_manifest
from ctfm.volume_ctfm import Volume

from tests.phantoms import canonical_affine, phantom_hu


def prepare_phantoms(folder: Path, seeds: range) -> dict[str, np.ndarray]:
    """Prepares phantoms of unlike depth under `folder`; gives their voxels by scan id."""
    rows = ["path,report,patient,split"]
    for seed in seeds:
        volume = Volume(hu=phantom_hu((20 + seed, 48, 40), seed), affine=canonical_affine())
        volume.to_nifti(folder / f"{seed}.nii")
        rows.append(
            f"{seed}.nii,{'' if seed % 4 == 3 else f'Report {seed}.'},{seed},{'test' if seed == 0 else 'train'}"
        )
    (folder / "table.csv").write_text("\n".join(rows))
    prepare(
        PrepareConfig(
            layout="csv",
            source=folder / "table.csv",
            out=folder / "out",
            private=folder / "private",
            scans_per_shard=3,
        )
    )
    return {
        scan.scan_id: phantom_hu((20 + seed, 48, 40), seed)
        for seed, scan in zip(seeds, Manifest(folder / "out"), strict=True)
    }


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    folder = tmp_path_factory.mktemp("prepared")
    return folder / "out", prepare_phantoms(folder, range(8))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("other")
    prepare_phantoms(folder, range(10, 13))
    return folder / "out"


def configure(*folders: Path, **settings) -> SamplingConfig:
    defaults = {"global_batch": 8, "crops_per_scan": 2, "crop_mm": (24.0, 20.0, 20.0)}
    return SamplingConfig(sources=tuple(SourceConfig(folder=str(f)) for f in folders), **defaults | settings)


def test_a_crop_is_the_slice_of_its_scan_bit_for_bit(prepared: tuple[Path, dict[str, np.ndarray]]) -> None:
    folder, scans = prepared
    crops = CropDataset(Schedule(configure(folder)))
    for number in range(32):
        crop = crops[number]
        assert crop.hu.shape == (8, 20, 16)
        inside = tuple(slice(a, a + n) for a, n in zip(crop.start, crop.hu.shape, strict=True))
        np.testing.assert_array_equal(crop.hu.numpy(), scans[crop.scan_id][inside])


def test_crops_reach_every_place_where_the_body_is(prepared: tuple[Path, dict[str, np.ndarray]]) -> None:
    scan = Manifest(prepared[0])[0]
    starts = np.array([place_crop(scan, (24, 20, 20), (256,) * 3, seed)[0] for seed in range(3000)])
    for axis, size in enumerate((8, 20, 16)):
        expected = set(range(scan.body_start[axis], scan.body_stop[axis] - size + 1))
        assert set(starts[:, axis]) == expected
        counts = np.bincount(starts[:, axis] - min(expected))
        assert counts.min() > 0.6 * counts.mean()  # least of 12 to 16 counts of 180 or more: 4 deviations are 30 %


def test_a_crop_larger_than_the_scan_is_the_scan(prepared: tuple[Path, dict[str, np.ndarray]]) -> None:
    folder, scans = prepared
    crop = CropDataset(Schedule(configure(folder, crop_mm=(900.0, 900.0, 900.0))))[0]
    np.testing.assert_array_equal(crop.hu.numpy(), scans[crop.scan_id])


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 1000])
def test_a_shuffle_is_a_permutation_and_depends_on_its_seed(size: int) -> None:
    orders = [[shuffle(i, size, seed) for i in range(size)] for seed in range(2)]
    assert all(sorted(order) == list(range(size)) for order in orders)
    assert size < 7 or orders[0] != orders[1]


def test_each_pass_draws_every_scan_once_in_an_order_of_its_own(prepared: tuple[Path, dict[str, np.ndarray]]) -> None:
    schedule = Schedule(configure(prepared[0], crops_per_scan=1))
    passes = [[schedule.draw(8 * turn + i).row for i in range(8)] for turn in range(4)]
    assert all(sorted(rows) == list(range(8)) for rows in passes)
    assert len({tuple(rows) for rows in passes}) > 1


def test_crops_of_a_scan_come_together_from_places_of_their_own(prepared: tuple[Path, dict[str, np.ndarray]]) -> None:
    crops = CropDataset(Schedule(configure(prepared[0], crops_per_scan=4)))
    some = [crops[number] for number in range(4)]
    assert len({crop.scan_id for crop in some}) == 1
    assert len({crop.start for crop in some}) > 1
    assert len({crop.seed for crop in some}) == 4


def test_a_mixture_keeps_its_weights_and_loses_no_scan(
    prepared: tuple[Path, dict[str, np.ndarray]], other: Path
) -> None:
    sources = (SourceConfig(folder=str(prepared[0]), weight=3.0), SourceConfig(folder=str(other), weight=1.0))
    schedule = Schedule(SamplingConfig(sources=sources, crops_per_scan=1))
    draws = [schedule.draw(number) for number in range(2000)]
    assert Counter(draw.source for draw in draws) == {0: 1500, 1: 500}
    rows = Counter(draw.row for draw in draws if draw.source == 1)
    assert max(rows.values()) - min(rows.values()) <= 1


def test_a_source_can_be_narrowed_to_a_split_and_to_reports(prepared: tuple[Path, dict[str, np.ndarray]]) -> None:
    source = SourceConfig(folder=str(prepared[0]), split="train", with_report=True)
    schedule = Schedule(SamplingConfig(sources=(source,), global_batch=4, crops_per_scan=1))
    assert schedule.rows[0].tolist() == [1, 2, 4, 5, 6]
    with pytest.raises(ValueError, match="No scan is left"):
        Schedule(SamplingConfig(sources=(SourceConfig(folder=str(prepared[0]), split="nowhere"),)))


def load(folder: Path, *, rank: int, num_processes: int, num_workers: int, start: int = 0) -> list[CropBatch]:
    schedule = Schedule(configure(folder))
    batches = StepBatches(schedule, start_step=start, stop_step=3, batch_size=2, rank=rank, num_processes=num_processes)
    return list(load_crops(schedule, batches, num_workers=num_workers))


def test_two_ranks_of_two_workers_draw_what_one_process_draws(prepared: tuple[Path, dict[str, np.ndarray]]) -> None:
    alone = load(prepared[0], rank=0, num_processes=1, num_workers=0)
    ranks = [load(prepared[0], rank=rank, num_processes=2, num_workers=2) for rank in range(2)]
    numbers = [[number for batch in batches for number in batch.numbers] for batches in ranks]
    assert not set(numbers[0]) & set(numbers[1])
    together = {
        n: (hu, s) for batches in ranks for b in batches for n, hu, s in zip(b.numbers, b.hu, b.seeds, strict=True)
    }
    assert sorted(together) == [number for batch in alone for number in batch.numbers] == list(range(24))
    for batch in alone:
        for number, hu, seed in zip(batch.numbers, batch.hu, batch.seeds, strict=True):
            assert torch.equal(hu, together[number][0])
            assert seed == together[number][1]


def test_a_run_goes_on_from_its_step_with_any_number_of_processes(prepared: tuple[Path, dict[str, np.ndarray]]) -> None:
    schedule = Schedule(configure(prepared[0]))
    step = schedule.resume(json.loads(json.dumps(schedule.state(2))))
    rest = [load(prepared[0], rank=rank, num_processes=4, num_workers=0, start=step) for rank in range(4)]
    assert sorted(n for batches in rest for batch in batches for n in batch.numbers) == list(range(16, 24))


def test_a_run_does_not_go_on_with_other_data(prepared: tuple[Path, dict[str, np.ndarray]], other: Path) -> None:
    state = Schedule(configure(prepared[0])).state(5)
    for changed in (configure(prepared[0], seed=1), configure(other), configure(prepared[0], global_batch=4)):
        with pytest.raises(ValueError, match="not those of the checkpoint"):
            Schedule(changed).resume(state)


def test_a_batch_that_does_not_divide_is_refused(prepared: tuple[Path, dict[str, np.ndarray]]) -> None:
    schedule = Schedule(configure(prepared[0]))
    with pytest.raises(ValueError, match="does not divide among 3"):
        schedule.numbers(0, 0, 3)
    with pytest.raises(ValueError, match="batches of 3"):
        StepBatches(schedule, start_step=0, stop_step=1, batch_size=3)


def test_crops_of_unlike_shapes_are_filled_up_with_air(prepared: tuple[Path, dict[str, np.ndarray]]) -> None:
    schedule = Schedule(configure(prepared[0], crops_per_scan=1, crop_mm=(900.0, 20.0, 20.0)))
    (batch,) = load_crops(schedule, StepBatches(schedule, start_step=0, stop_step=1, batch_size=8))
    for hu, shape in zip(batch.hu, batch.shape, strict=True):
        assert (hu[shape[0] :] == -1024).all()
        assert (hu[: shape[0]].amax((1, 2)) > -1024).all()
    assert batch.hu.shape[1] == batch.shape[:, 0].max() == 27
    assert batch.spacing.tolist() == [[3.0, 1.0, 1.25]] * 8


def test_whole_scans_come_with_their_reports(prepared: tuple[Path, dict[str, np.ndarray]]) -> None:
    folder, scans = prepared
    sources = (SourceConfig(folder=str(folder), with_report=True),)
    schedule = Schedule(SamplingConfig(sources=sources, global_batch=6, crops_per_scan=1))
    (batch,) = load_scans(schedule, StepBatches(schedule, start_step=0, stop_step=1, batch_size=6), num_workers=1)
    assert sorted(sample.report for sample in batch) == [f"Report {seed}." for seed in (0, 1, 2, 4, 5, 6)]
    for sample in batch:
        np.testing.assert_array_equal(sample.hu.numpy(), scans[sample.scan_id])
        assert sample.report == f"Report {sample.hu.shape[0] - 20}."


def test_a_manifest_of_250000_scans_opens_and_is_drawn_from(tmp_path: Path) -> None:
    row = {
        "shape": [300, 512, 512],
        "spacing": [1.0, 0.7, 0.7],
        "affine": [0.0] * 16,
        "body_start": [0, 0, 0],
        "body_stop": [300, 512, 512],
        "region": "chest",
        "split": "train",
        "labels": "{}",
        "content": "",
        "repairs": [],
        "warnings": [],
    }
    report = "No finding. " * 20
    rows = (
        row
        | {
            "scan_id": f"{n:020x}",
            "shard": n // 32,
            "row": n % 32,
            "patient": str(n),
            "report": report,
            "report_key": "k",
        }
        for n in range(250_000)
    )
    write_manifest(tmp_path / "manifest.arrow", rows)
    schedule = Schedule(configure(tmp_path))
    assert len(schedule.rows[0]) == 250_000
    draw = schedule.draw(123_456_789)
    assert schedule.manifests[0][draw.row].shard == draw.row // 32
