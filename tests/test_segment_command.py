"""`ctfm segment`: overlapping crops blended, labels on the scan's own voxels, files that say what was found."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ctfm import CTFMForSemanticSegmentation, CTFMImageProcessor, CTFMModel, read_segmentation, read_volume
from ctfm.__main__ import main
from ctfm.phantom.dicom_series import write_dicom_series
from ctfm.segmentation import (
    EXTRAS,
    Segmentation,
    Segmenter,
    decode_crop,
    encode_grid,
    find_covered,
    load_segmenter,
    measure_structures,
    name_folders,
    place_grids,
    segment_volume,
)
from ctfm.volume_ctfm import GeometryError, Volume, write_nifti

from tests.phantoms import canonical_affine, phantom_hu, phantom_volume
from tests.test_docs import blocks, run_fresh
from tests.tiny import save_tiny_segmenter, tiny_config

NAMES = {0: "background", 1: "liver", 2: "left kidney"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_segmenter(tmp_path_factory.mktemp("segmenter"), NAMES)


@pytest.fixture(scope="module")
def segmenter(checkpoint: Path) -> Segmenter:
    return load_segmenter(str(checkpoint), "cpu")


class ThresholdDecoder(torch.nn.Module):
    """Says of every voxel alone whether it is tissue (1) or bone (2): what is wrong then is the way back to the scan."""

    def forward(self, crops: torch.Tensor, tokens: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        hu = crops * 2000 - 1000
        logits = torch.cat((-300 - hu, torch.minimum(hu + 300, 400 - hu), hu - 400), 1)
        return logits / 20


def by_threshold(hu: np.ndarray) -> np.ndarray:
    return (hu > -300).astype(np.uint8) + (hu > 400)


@pytest.fixture
def thresholder(segmenter: Segmenter) -> Segmenter:
    model = CTFMForSemanticSegmentation(segmenter.model.config).eval()
    model.decoder = ThresholdDecoder()  # type: ignore[assignment]
    return Segmenter(model=model, processor=segmenter.processor, structures=NAMES, name="threshold")


# --- overlapping crops ---------------------------------------------------------------------------------------------------


def test_without_overlap_labels_are_those_of_the_models_own_segment() -> None:
    torch.manual_seed(0)
    model, volume = CTFMForSemanticSegmentation(tiny_config()).eval(), phantom_volume()
    processor = CTFMImageProcessor(crop_size=(8, 16, 16), spacing="native", air_hu=-1025)  # no crop counts as air
    inputs = processor.preprocess(volume)
    (expected,) = processor.to_patient_space(model.segment(**inputs), inputs)
    one = Segmenter(model=model, processor=processor, structures=NAMES, name="")
    found = segment_volume(one, volume, overlap="none")
    assert (found.labels != expected).mean() < 1e-3  # shares are kept in half precision, so some are equal


@pytest.mark.parametrize("spacing", ["native", (2.0, 1.5, 1.5), (4.0, 2.0, 3.0)])
def test_overlap_is_the_weighted_mean_of_all_grids_on_every_voxel(segmenter: Segmenter, spacing: object) -> None:
    processor = CTFMImageProcessor(crop_size=(8, 16, 16), spacing=spacing)  # type: ignore[arg-type]
    one = Segmenter(model=segmenter.model, processor=processor, structures=NAMES, name="")
    volume = phantom_volume()
    hu = torch.from_numpy(volume.hu)
    plain = processor.place_grid(volume, None if spacing == "native" else spacing)  # type: ignore[arg-type]
    covered = [find_covered(plain, axis) for axis in range(3)]
    size = [stop - start for start, stop in covered]
    total, weights = torch.zeros(3, *size), torch.zeros(size)
    with torch.inference_mode():
        for placed in place_grids(plain, covered, "half"):
            grid = encode_grid(one, hu, *placed)
            for number, index in enumerate(np.ndindex(*grid.geometry.crop_grid)):
                shares = decode_crop(one, hu, grid, number, index)
                start = [s + i * c for s, i, c in zip(grid.start, index, plain.crop_size, strict=True)]
                for place in np.ndindex(*plain.crop_size):
                    voxel = [s + p for s, p in zip(start, place, strict=True)]
                    if all(0 <= v < n for v, n in zip(voxel, size, strict=True)):
                        total[:, *voxel] += shares[:, *place]
                        weights[*voxel] += shares[:, *place].sum()
    torch.testing.assert_close(weights, torch.ones(size), rtol=0, atol=1e-5)
    found = segment_volume(one, volume)
    if spacing == "native":
        assert (found.labels != total.argmax(0).numpy()).mean() < 1e-3
    assert set(found.confidence) == set(np.unique(found.labels).tolist())


def test_a_scan_smaller_than_a_crop_and_one_of_odd_crops_are_segmented(thresholder: Segmenter) -> None:
    for shape, crop_size in (((6, 10, 12), (8, 16, 16)), ((24, 48, 40), (12, 24, 8)), ((24, 48, 40), (4, 48, 40))):
        processor = CTFMImageProcessor(crop_size=crop_size, spacing="native")
        one = Segmenter(model=thresholder.model, processor=processor, structures=NAMES, name="")
        volume = Volume(hu=phantom_hu(shape), affine=canonical_affine())
        np.testing.assert_array_equal(segment_volume(one, volume).labels, by_threshold(volume.hu))


def test_unknown_overlap_is_refused(segmenter: Segmenter) -> None:
    with pytest.raises(ValueError, match="'quarter' must be one of half, none"):
        segment_volume(segmenter, phantom_volume(), overlap="quarter")


# --- the scan's own voxels -----------------------------------------------------------------------------------------------


def run(arguments: list[object]) -> int:
    return main(["segment", *map(str, arguments)])


@pytest.mark.parametrize("turn", ["as it is", "another order"])
def test_a_niftis_segmentation_has_its_shape_its_affine_and_its_voxels(
    turn: str, tmp_path: Path, checkpoint: Path, thresholder: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    nibabel = pytest.importorskip("nibabel")
    volume = phantom_volume()
    array, affine = volume.hu, volume.affine
    if turn == "another order":
        array = np.ascontiguousarray(array.transpose(2, 0, 1)[::-1])
        affine = affine @ np.array([[0, 1, 0, 0], [0, 0, 1, 0], [-1, 0, 0, array.shape[0] - 1], [0, 0, 0, 1.0]])
    write_nifti(tmp_path / "scan.nii.gz", array, affine)
    monkeypatch.setattr("ctfm.segmentation.load_segmenter", lambda *_: thresholder)
    assert run([tmp_path / "scan.nii.gz", "--out", tmp_path / "out", "--model", checkpoint]) == 0
    source, found = (nibabel.load(path) for path in (tmp_path / "scan.nii.gz", tmp_path / "out/segmentation.nii.gz"))
    np.testing.assert_allclose(found.affine, source.affine, atol=1e-5)
    np.testing.assert_array_equal(np.asarray(found.dataobj), by_threshold(np.asarray(source.dataobj)))
    assert json.loads((tmp_path / "out" / "structures.json").read_text()) == {str(k): n for k, n in NAMES.items()}


def smooth_phantom() -> np.ndarray:
    """Without noise, and edges over several voxels, so that interpolation moves no threshold by much."""
    d, h, w = np.meshgrid(*(np.linspace(0, 1, size) for size in (30, 48, 40)), indexing="ij")
    inside = 1.0 - np.sqrt(((d - 0.5) / 0.42) ** 2 + ((h - 0.52) / 0.4) ** 2 + ((w - 0.45) / 0.36) ** 2)
    rod = 0.25 - np.sqrt((h - 0.75) ** 2 + (w - 0.4) ** 2)
    return np.rint(np.clip(-1000 + 2500 * inside, -1000, 40) + np.clip(3000 * rod, 0, 900)).astype(np.int16)


def tilted_affine(tilt: float) -> np.ndarray:
    affine = canonical_affine((2.0, 1.0, 1.25))
    affine[1, 0] = 2.0 * np.tan(np.radians(tilt))  # each slice shifts towards the front
    return affine


def oblique_affine(angle: float) -> np.ndarray:
    c, s = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    turned = np.eye(4)
    turned[1:3, 1:3] = [[c, -s], [s, c]]
    return turned @ canonical_affine((2.0, 1.0, 1.25))


@pytest.mark.parametrize(
    ("affine", "is_straightened"),
    [(tilted_affine(15.0), True), (oblique_affine(20.0), False), (oblique_affine(40.0), True)],
)
def test_tilted_and_oblique_series_are_segmented_on_their_own_voxels(
    affine: np.ndarray, is_straightened: bool, tmp_path: Path, thresholder: Segmenter
) -> None:
    hu = smooth_phantom()
    write_dicom_series(hu, affine, tmp_path / "scan")
    volume = read_volume(tmp_path / "scan")
    assert (volume.source_axes is None) is is_straightened
    labels, found_affine = volume.segmentation_to_source(segment_volume(thresholder, volume).labels)
    assert labels.shape == hu.shape
    np.testing.assert_allclose(found_affine, affine, atol=1e-3)
    wrong = labels != by_threshold(hu)
    near = [np.abs(hu.astype(int) - level) for level in (-300, 400)]
    if not is_straightened:
        assert not wrong.any()
    else:  # two interpolations: wrong only next to a border of the structure
        assert wrong.mean() < 0.02
        assert (np.minimum(*near)[wrong] < 450).all()
    shifted = np.roll(labels, 1, 0) != by_threshold(hu)
    assert shifted.mean() > 2 * wrong.mean() + 0.005


def test_a_label_map_comes_back_over_straightened_voxels_as_it_was(tmp_path: Path) -> None:
    write_dicom_series(phantom_hu(), tilted_affine(12.0), tmp_path / "scan")
    volume = read_volume(tmp_path / "scan")
    assert volume.source_axes is None
    blocks = np.zeros(volume.hu.shape, np.uint8)
    blocks[4:16, 8:30, 6:20] = 7
    labels, affine = volume.segmentation_to_source(blocks)
    places = np.argwhere(labels == 7) @ affine[:3, :3].T + affine[:3, 3]
    inside = (places - volume.affine[:3, 3]) @ np.linalg.inv(volume.affine[:3, :3]).T
    assert (inside >= np.array([4, 8, 6]) - 0.51).all()
    assert (inside <= np.array([15, 29, 19]) + 0.51).all()
    with pytest.raises(GeometryError, match="shaped like hu"):
        volume.segmentation_to_source(blocks[1:])


def test_a_written_segmentation_is_read_back_on_the_scan(
    tmp_path: Path, checkpoint: Path, thresholder: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_dicom_series(phantom_hu(), canonical_affine(), tmp_path / "scan")
    monkeypatch.setattr("ctfm.segmentation.load_segmenter", lambda *_: thresholder)
    assert run([tmp_path / "scan", "--out", tmp_path / "out", "--model", checkpoint]) == 0
    found = read_segmentation(tmp_path / "out" / "segmentation.nii.gz", read_volume(tmp_path / "scan"))
    np.testing.assert_array_equal(found, by_threshold(phantom_hu()))


# --- the command ---------------------------------------------------------------------------------------------------------


def test_a_folder_goes_on_past_a_bad_scan_and_a_second_run_does_nothing(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture
) -> None:
    scans, out = tmp_path / "scans", tmp_path / "out"
    write_dicom_series(phantom_hu(), canonical_affine(), scans / "a" / "dicom")
    phantom_volume().to_nifti(scans / "b.nii.gz")
    (scans / "c.nii.gz").write_bytes(b"broken")
    arguments = [scans, "--out", out, "--model", checkpoint, "--overlap", "none"]
    assert run(arguments) == 1
    assert "2 of 3 scans" in capsys.readouterr().out
    rows = {row["folder"]: row for row in json.loads((out / "scans.json").read_text())}
    assert {name: row["status"] for name, row in rows.items()} == {"a/dicom": "done", "b": "done", "c": "failed"}
    assert "c.nii.gz" in rows["c"]["note"]
    files = sorted(out.rglob("*.nii.gz"))
    assert files == [out / "a/dicom/segmentation.nii.gz", out / "b/segmentation.nii.gz"]
    written = [file.stat().st_mtime_ns for file in files]
    assert run(arguments) == 1
    assert [file.stat().st_mtime_ns for file in files] == written


def test_a_killed_run_goes_on_and_other_settings_are_run_again(tmp_path: Path, checkpoint: Path) -> None:
    scan, out = tmp_path / "scan.nii", tmp_path / "out"
    phantom_volume().to_nifti(scan)
    arguments = [scan, "--out", out, "--model", checkpoint, "--overlap", "none"]
    assert run(arguments) == 0
    first = (out / "segmentation.nii.gz").read_bytes()
    (out / "segmentation.json").unlink()  # killed before the last file
    (out / "segmentation.nii.gz").write_bytes(first[:50])
    assert run(arguments) == 0
    assert (out / "segmentation.nii.gz").read_bytes() == first
    assert run([*arguments, "--also", "measurements"]) == 0
    assert (out / "measurements.json").is_file()


def test_extras_are_measurements_and_a_picture(tmp_path: Path, checkpoint: Path) -> None:
    scan, out = tmp_path / "scan.nii", tmp_path / "out"
    phantom_volume().to_nifti(scan)
    assert run([scan, "--out", out, "--model", checkpoint, "--also", *EXTRAS]) == 0
    measured = json.loads((out / "measurements.json").read_text())
    assert "Research only" in measured["notice"]
    labels = read_segmentation(out / "segmentation.nii.gz", read_volume(scan))
    assert [row["number"] for row in measured["structures"]] == [n for n in np.unique(labels).tolist() if n]
    assert (out / "preview.png").read_bytes().startswith(b"\x89PNG")


def test_measurements_are_those_of_a_box_of_known_size() -> None:
    volume = phantom_volume()
    labels = np.zeros(volume.hu.shape, np.uint8)
    box = np.s_[4:9, 10:30, 5:25]
    labels[box] = 2
    segmentation = Segmentation(labels=labels, structures=NAMES, confidence={0: 1.0, 2: 0.75})
    (row,) = measure_structures(volume, segmentation)
    assert row["structure"] == "left kidney"
    assert row["volume_ml"] == pytest.approx(5 * 20 * 20 * 3.0 * 1.0 * 1.25 / 1000)
    assert row["mean_hu"] == pytest.approx(volume.hu[box].mean(), abs=0.06)
    assert row["size_mm"] == [15.0, 20.0, 25.0]
    assert (row["confidence"], row["reaches_border"]) == (0.75, False)
    labels[:, 10, 5] = 2
    assert measure_structures(volume, segmentation)[0]["reaches_border"]


@pytest.mark.parametrize("kind", ["no decoder", "gap", "no background", "nothing"])
def test_a_checkpoint_that_cannot_segment_is_refused_with_the_cure(
    kind: str, tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture
) -> None:
    phantom_volume().to_nifti(tmp_path / "scan.nii")
    model = tmp_path / "model"
    if kind == "no decoder":
        CTFMModel(tiny_config()).save_pretrained(model)
        CTFMImageProcessor(crop_size=(8, 16, 16)).save_pretrained(model)
    elif kind != "nothing":
        shutil.copytree(checkpoint, model)
        config = json.loads((model / "config.json").read_text())
        config["structures"] = (
            {"0": "background", "1": "liver", "3": "x"} if kind == "gap" else {"0": "a", "1": "b", "2": "c"}
        )
        (model / "config.json").write_text(json.dumps(config))
    capsys.readouterr()
    assert run([tmp_path / "scan.nii", "--out", tmp_path / "out", "--model", model]) == 2
    (said,) = capsys.readouterr().err.strip().splitlines()
    cures = {"no decoder": "Pass --model", "gap": "Number them", "no background": "Name it", "nothing": str(model)}
    assert cures[kind] in said


def test_folders_are_named_as_the_scans_lie_and_never_shared(tmp_path: Path) -> None:
    root = tmp_path / "scans"
    (root / "a").mkdir(parents=True)
    found = [
        (root / "a" / "x.nii.gz", None),
        (root / "a" / "x.mha", None),
        (root / "b", "1.2.3"),
        (root / "b", "1.2.4"),
    ]
    names = name_folders(found, [root])
    assert names[:2] == ["a/x.nii.gz", "a/x.mha"]
    assert len(set(names)) == 4
    assert not any("1.2.3" in name for name in names)
    assert name_folders(found[:1], [root]) == ["."]
    both = name_folders([(root / "a" / "x.mha", None), (tmp_path / "x.mha", None)], [])
    assert len(set(both)) == 2


def test_the_pages_commands_and_code_run_as_printed(tmp_path: Path, checkpoint: Path) -> None:
    write_dicom_series(phantom_hu(), canonical_affine(), tmp_path / "studies" / "study")
    phantom_volume().to_nifti(tmp_path / "studies" / "other.nii.gz")
    shutil.make_archive(str(tmp_path / "study"), "zip", tmp_path / "studies" / "study")
    (tmp_path / "organs").symlink_to(checkpoint)
    (tmp_path / "home").mkdir()
    commands = "".join(blocks("docs/segmentation.md", "sh")).splitlines()
    done = run_fresh(["bash", "-ec", "\n".join(commands)], tmp_path)
    assert done.returncode == 0, done.stdout
    assert (tmp_path / "all_organs" / "study" / "preview.png").is_file()
    done = run_fresh([sys.executable, "-I", "-c", "".join(blocks("docs/segmentation.md", "python"))], tmp_path)
    assert done.returncode == 0, done.stdout
