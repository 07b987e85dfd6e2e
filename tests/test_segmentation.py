"""Label maps: read on the scan's voxels, cropped and viewed with it, counted by patch, learnt from."""

import csv
import itertools
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from ctfm import CTFMVisionModel
from ctfm.evaluate.cases import find_population
from ctfm.evaluate.protocol import load_protocol
from ctfm.phantom.dataset import write_mha
from ctfm.phantom.make import FINDING_NAMES, SEGMENTATION_NAMES, make_phantom
from ctfm.train import pretrain as loop
from ctfm.train.build import name_structures
from ctfm.train.data import CropDataset, SamplingConfig, Schedule, SourceConfig, collate_crops
from ctfm.train.prepare import main as prepare
from ctfm.train.segmentation import (
    SegmentationBatch,
    SegmentationConfig,
    SegmentationObjective,
    count_voxels,
    presence_loss,
)
from ctfm.train.shards import Manifest, agree_on_structures
from ctfm.train.views import ViewConfig, ViewShape, make_labelled_views
from ctfm.volume_ctfm import GeometryError, Volume, VolumeError, read_segmentation, read_volume

from tests.tiny_training import tiny_data, tiny_recipe, tiny_self_supervision


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_data(tmp_path_factory.mktemp("segmentation"))


def sources(prepared: Path) -> tuple[SourceConfig, ...]:
    return (SourceConfig(folder=str(prepared), with_segmentation=True),)


def other_structures(prepared: Path, folder: Path, structures: dict[int, str]) -> Path:
    """The same scans with other names of their labels."""
    shutil.copytree(prepared, folder)
    (folder / "structures.json").write_text(json.dumps(structures))
    return folder


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({1: "spleen", 2: "liver"}, "Label 1 of label maps is 'spleen' in b and 'liver' in a"),
        ({1: "liver"}, "Label 2 of label maps is 'nothing' in b and 'spleen' in a"),
        ({1: "liver", 2: "spleen", 3: "aorta"}, "Label 3 of label maps is 'aorta' in b and 'nothing' in a"),
    ],
)
def test_structures_that_disagree_are_refused_by_number_and_name(other: dict[int, str], message: str) -> None:
    table = {1: "liver", 2: "spleen"}
    assert agree_on_structures({"a": table, "b": dict(table), "c": {}}) == table
    with pytest.raises(ValueError, match=message):
        agree_on_structures({"none": {}, "a": table, "b": other})


def test_folders_whose_structures_disagree_are_merged_by_no_phase_and_no_evaluation(
    prepared: Path, tmp_path: Path
) -> None:
    swapped = dict(Manifest(prepared).structures)
    swapped[1], swapped[2] = swapped[2], swapped[1]
    folders = [prepared, other_structures(prepared, tmp_path / "other", swapped)]
    two = tuple(SourceConfig(folder=str(folder), with_segmentation=True) for folder in folders)
    with pytest.raises(ValueError, match="Label 1 of label maps is"):
        name_structures(Schedule(SamplingConfig(sources=two)))
    tested = replace(load_protocol("phantoms"), splits={"train": "", "validation": "", "test": "train"})
    with pytest.raises(ValueError, match="Label 1 of label maps is"):
        find_population(tested, folders, 1, 1)
    unnamed = SourceConfig(folder=str(other_structures(prepared, tmp_path / "unnamed", {})), with_segmentation=True)
    with pytest.raises(ValueError, match="have no names"):
        name_structures(Schedule(SamplingConfig(sources=(unnamed,))))


# --- files ---------------------------------------------------------------------------------------------------------------


def write_labels(path: Path, labels: np.ndarray, affine: np.ndarray) -> None:
    Volume(hu=labels.astype(np.int16), affine=affine).to_nifti(path)


def test_a_label_map_in_another_axis_order_lands_on_the_scans_voxels(tmp_path: Path) -> None:
    phantom = make_phantom(3, shape=(12, 20, 16))
    scan = tmp_path / "scan.mha"
    write_mha(phantom.hu, phantom, scan)
    volume = read_volume(scan)
    labels = phantom.segmentation.numpy()
    turned = np.array([[0, -1, 0, 11], [0, 0, 1, 0], [-1, 0, 0, 15], [0, 0, 0, 1]])
    other = labels.transpose(2, 0, 1)[::-1, ::-1]
    write_labels(tmp_path / "labels.nii", np.ascontiguousarray(other), volume.affine @ turned)
    np.testing.assert_array_equal(read_segmentation(tmp_path / "labels.nii", volume), labels)


def test_a_label_map_on_other_voxels_or_with_other_values_is_refused(tmp_path: Path) -> None:
    volume = read_volume((np.random.default_rng(0).normal(0, 300, (6, 7, 8)), np.diag([2.0, 2.0, 2.0, 1.0])))
    labels = np.zeros(volume.hu.shape)
    moved = volume.affine.copy()
    moved[0, 3] += 1
    write_labels(tmp_path / "moved.nii", labels, moved)
    write_labels(tmp_path / "small.nii", labels[1:], volume.affine)
    write_labels(tmp_path / "large.nii", labels + 300, volume.affine)
    with pytest.raises(GeometryError, match="other voxels"):
        read_segmentation(tmp_path / "moved.nii", volume)
    with pytest.raises(GeometryError, match="other voxels"):
        read_segmentation(tmp_path / "small.nii", volume)
    with pytest.raises(VolumeError, match="0 to 255"):
        read_segmentation(tmp_path / "large.nii", volume)
    with pytest.raises(VolumeError, match="no label map"):
        read_segmentation(tmp_path / "nothing.nii", volume)


def test_a_prepared_folder_holds_label_maps_names_and_places(prepared: Path) -> None:
    manifest = Manifest(prepared)
    assert manifest.structures == {k: name for k, name in SEGMENTATION_NAMES.items() if k}
    with (prepared.parent / "phantoms" / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    numbers = {name: number for number, name in SEGMENTATION_NAMES.items()}
    for scan, row in zip(manifest, rows, strict=True):
        phantom = make_phantom(int(Path(row["path"]).stem), shape=(16, 24, 24))
        labels = manifest.read_box(scan, (0, 0, 0), scan.shape, "segmentation")
        np.testing.assert_array_equal(labels, phantom.segmentation.numpy())
        assert set(scan.places) == {name for name in FINDING_NAMES if (labels == numbers[name]).any()}
        for name, places in scan.places.items():
            assert all(labels[tuple(place)] == numbers[name] for place in places)
    outside = manifest.read_box(manifest[0], (-3, 0, 0), (3, 4, 4), "segmentation")
    assert not outside.any()


def test_a_scan_whose_label_map_does_not_fit_is_left_out_with_the_reason(tmp_path: Path) -> None:
    for seed, shape in ((0, (16, 24, 24)), (1, (16, 24, 20))):
        phantom = make_phantom(seed, shape=shape)
        write_mha(phantom.hu, phantom, tmp_path / f"{seed}.mha")
        write_mha(phantom.segmentation, phantom, tmp_path / f"{seed}-labels.mha")
    (tmp_path / "table.csv").write_text("path,segmentation\n0.mha,1-labels.mha\n1.mha,1-labels.mha\n")
    prepare(["csv", str(tmp_path / "table.csv"), str(tmp_path / "out"), "--num-workers", "0"])
    assert len(Manifest(tmp_path / "out")) == 1
    assert "other voxels" in (tmp_path / "out" / "refusals.csv").read_text()


# --- crops and views -----------------------------------------------------------------------------------------------------


def test_focal_crops_hold_a_finding_of_their_scan(prepared: Path) -> None:
    config = SamplingConfig(sources=sources(prepared), global_batch=8, crop_mm=(120.0, 120.0, 120.0), focal_share=1.0)
    crops = CropDataset(Schedule(config))
    manifest = crops.schedule.manifests[0]
    numbers = {name: number for number, name in SEGMENTATION_NAMES.items()}
    held = 0
    for number in range(80):
        crop, scan = crops[number], manifest[crops.schedule.draw(number).row]
        found = {int(label) for label in crop.segmentation.unique()}
        if scan.places:
            held += 1
            assert found & {numbers[name] for name in scan.places}
    assert held > 40


@pytest.mark.parametrize("axis", [1, 2, 3])
def test_labels_and_voxels_of_a_view_lie_at_the_same_place(prepared: Path, axis: int) -> None:
    """HU and labels both say how far along an axis they lie, so what a view shows is within half a voxel of its label."""
    config = SamplingConfig(sources=sources(prepared), global_batch=6, crop_mm=(200.0, 250.0, 250.0))
    batch = collate_crops([CropDataset(Schedule(config))[number] for number in range(6)])
    shape = [1] * 4
    shape[axis] = -1
    ruler = torch.arange(1, batch.hu.shape[axis] + 1).view(shape).expand(batch.hu.shape)
    batch = replace(batch, hu=(ruler * 10 - 1000).to(torch.int16), segmentation=ruler.to(torch.uint8))
    plain = ViewConfig(
        global_views=ViewShape(count=2, size=(16, 16, 16), spacing=(6.0, 6.0, 6.0), zoom=(0.8, 1.2)),
        flip=(0.5, 0.5, 0.5),
        intensity_probability=0.0,
        noise_probability=0.0,
        blur_probability=0.0,
        sharpen_probability=0.0,
    )
    pixels, labels = make_labelled_views(batch, plain)
    shown = pixels[:, 0] * 200
    assert (shown - labels).abs().max() <= 0.501
    assert shown.std() > 1


# --- objective -----------------------------------------------------------------------------------------------------------


def test_voxels_are_counted_in_the_order_of_the_patch_tokens() -> None:
    labels = torch.randint(0, 5, (2, 4, 6, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    counts = count_voxels(labels, (2, 3, 4), (1, 4))
    places = itertools.product(range(2), range(2), range(2))
    for n, (d, h, w) in enumerate(places):
        part = labels[:, 2 * d : 2 * d + 2, 3 * h : 3 * h + 3, 4 * w : 4 * w + 4].flatten(1)
        assert counts[:, n, 0].tolist() == (part == 1).sum(1).tolist()
        assert counts[:, n, 1].tolist() == (part == 4).sum(1).tolist()


def test_the_loss_is_the_sum_over_structures_and_the_mean_over_rows() -> None:
    logits, present = torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0]]), torch.tensor([[True, False], [False, True]])
    counted = torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    by_hand = (math.log(2) + math.log(4) + math.log(2)) / 2
    assert presence_loss(logits, present, counted).item() == pytest.approx(by_hand, rel=1e-6)


def test_a_rare_structure_weighs_as_much_where_it_is_as_where_it_is_not_up_to_a_bound() -> None:
    logits, counted = torch.zeros(10, 1), torch.ones(10, 1)
    present = torch.zeros(10, 1, dtype=torch.bool)
    present[:2] = True
    # log(2) each: 8 without, and 2 with 4 times the weight, or 3 where that is the most
    assert presence_loss(logits, present, counted, 30.0).item() == pytest.approx(1.6 * math.log(2), rel=1e-6)
    assert presence_loss(logits, present, counted, 3.0).item() == pytest.approx(1.4 * math.log(2), rel=1e-6)
    assert presence_loss(logits, ~present, counted, 30.0).item() == pytest.approx(math.log(2), rel=1e-6)


def test_a_few_steps_tell_bright_patches_from_dark_ones() -> None:
    local = tiny_self_supervision().student.backbone
    objective = SegmentationObjective(local, (1, 2), SegmentationConfig())
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (8, 2, 2, 4), generator=generator).to(torch.uint8)
    labels = labels.repeat_interleave(4, 1).repeat_interleave(8, 2).repeat_interleave(8, 3)
    pixels = labels[:, None].float() / 2 + 0.05 * torch.randn(8, 1, 8, 16, 32, generator=generator)
    batch = SegmentationBatch(pixel_values=pixels, segmentation=labels)
    optimizer = torch.optim.AdamW([p for p in objective.parameters() if p.requires_grad], lr=5e-3)
    losses = []
    for _ in range(150):
        loss, _ = objective(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.25 * losses[0]


def test_the_loop_trains_on_label_maps_and_exports_the_local_transformer(prepared: Path, tmp_path: Path) -> None:
    tiny = tiny_recipe(steps=2)
    recipe = replace(tiny, phases={name: tiny.phases[name] for name in ("self_supervision", "segmentation")})
    run = loop.Run(recipe=recipe, out=tmp_path / "run", data=(str(prepared),), log_every=1)
    assert loop.pretrain(run, Accelerator(cpu=True))
    before, after = (
        loop.load_exported(tmp_path / "run" / "checkpoints" / name)[0]
        for name in ("self_supervision-0000002", "segmentation-0000002")
    )
    start = loop.load_exported(tmp_path / "run" / "checkpoints" / "segmentation-0000000")[0]
    for name, tensor in before.state_dict().items():
        torch.testing.assert_close(start.state_dict()[name], tensor, rtol=0, atol=0)
    assert any(not torch.equal(after.state_dict()[name], tensor) for name, tensor in before.state_dict().items())
    loaded = CTFMVisionModel.from_pretrained(tmp_path / "run" / "exported")
    for name, tensor in after.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name].float(), tensor, rtol=1e-2, atol=1e-3)
