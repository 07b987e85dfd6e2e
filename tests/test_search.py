"""Embedded scans, kept in an index and found again by text, scan and region."""

import csv
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from ctfm import CTFMModel, CTFMProcessor, Volume, VolumeError, vector_index
from ctfm import search as search_program
from ctfm.embedding import embed, load, read_ahead, read_features, resolve_device
from ctfm.vector_index import HAS_FAISS, VectorIndexError, build_index, build_vectors, open_index, prepare

from tests.phantoms import canonical_affine, phantom_hu
from tests.tiny import save_tiny


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six scans of three sizes, so that batches hold padding."""
    folder = tmp_path_factory.mktemp("studies")
    for number in range(6):
        hu = phantom_hu((16 + 8 * (number % 3), 48, 40), seed=number).astype(np.float64)
        hu[number : number + 6, 10:30, 8:24] += 60 * number
        Volume(hu=hu.astype(np.int16), affine=canonical_affine()).to_nifti(folder / f"{number}.nii")
    return folder


@pytest.fixture(scope="module")
def features(studies: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("features")
    assert embed([studies], out, str(checkpoint), None, dense=False) == 0
    return out


needs_faiss = pytest.mark.skipif(not HAS_FAISS, reason='faiss is not installed: pip install ".[search]"')


@pytest.fixture(scope="module")
def index(features: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("index")
    assert build_index(features, out, with_crops=True) == 6
    return out


def by_scan(out: Path) -> dict[str, dict[str, torch.Tensor]]:
    with (out / "manifest.csv").open(newline="") as file:
        return {Path(row["scan"]).name: read_features(out / row["features"]) for row in csv.DictReader(file)}


# ---- embed ----


@pytest.mark.parametrize(
    "settings", [{"batch": 4}, {"readers": 0}, {"as_npz": True, "batch": 3, "readers": 3}], ids=str
)
def test_batches_readers_and_file_kinds_change_no_feature(
    settings: dict[str, Any], studies: Path, features: Path, checkpoint: Path, tmp_path: Path
) -> None:
    assert embed([studies], tmp_path, str(checkpoint), None, dense=True, **settings) == 0
    expected = by_scan(features)
    for name, tensors in by_scan(tmp_path).items():
        assert tensors.pop("dense_features").shape[0] == len(tensors["crop_embeds"])
        assert set(tensors) == set(expected[name])
        for key, tensor in tensors.items():
            torch.testing.assert_close(tensor, expected[name][key], atol=2e-5, rtol=0, msg=f"{name} {key}")
    assert len(list(tmp_path.glob("*.npz"))) == (6 if "as_npz" in settings else 0)


def test_a_bad_scan_in_a_batch_is_listed_and_the_others_have_features(
    checkpoint: Path, studies: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad.nii.gz").write_bytes(b"broken")
    out = tmp_path / "out"
    scans = [studies / "0.nii", tmp_path / "bad.nii.gz", studies / "1.nii"]
    assert embed(scans, out, str(checkpoint), None, dense=False, batch=3) == 1
    with (out / "manifest.csv").open(newline="") as file:
        statuses = {Path(row["scan"]).name: row["status"] for row in csv.DictReader(file)}
    assert statuses == {"0.nii": "done", "bad.nii.gz": "failed", "1.nii": "done"}


def test_scans_are_read_ahead_of_who_takes_them_and_only_a_few() -> None:
    started, second = [], threading.Event()

    def read(task: int) -> int:
        started.append(task)
        if task == 1:
            second.set()
        return 10 * task

    results = read_ahead(range(20), read, 2)
    assert next(results) == (0, 0)
    assert second.wait()  # read though nobody has asked for it
    assert len(started) <= 4
    assert list(results) == [(task, 10 * task) for task in range(1, 20)]


def test_what_cannot_be_read_is_handed_on_as_its_error() -> None:
    def read(task: int) -> int:
        if task == 1:
            raise VolumeError("no scan")
        if task == 2:
            raise MemoryError
        return task

    results = [result for _, result in read_ahead([0, 1, 2, 3], read, 2)]
    assert (results[0], results[3]) == (0, 3)
    assert "no scan" in str(results[1])
    assert "memory" in str(results[2])


def test_a_device_that_is_not_there_is_refused_by_name() -> None:
    with pytest.raises(OSError, match="cuda:77"):
        resolve_device("cuda:77")


# ---- index ----


@needs_faiss
def test_an_index_that_is_up_to_date_is_kept_and_one_of_other_features_built_again(
    features: Path, tmp_path: Path
) -> None:
    out = tmp_path / "index"
    build_index(features, out)
    written = (out / "scan_features.faiss").stat().st_mtime_ns
    build_index(features, out)
    assert (out / "scan_features.faiss").stat().st_mtime_ns == written
    build_index(features, out, with_crops=True)
    assert (out / "crop_embeds.faiss").is_file()


@needs_faiss
def test_what_cannot_be_an_index_is_refused_with_the_cure(tmp_path: Path) -> None:
    def table(rows: list[dict[str, Any]]) -> Path:
        path = tmp_path / "features.parquet"
        fields = [(name, pa.string()) for name in ("scan", "series", "model")] + [
            ("scan_features", pa.list_(pa.float32()))
        ]
        pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema(fields)), path)
        return path

    row = {"scan": "a", "series": "", "model": "m", "scan_features": [1.0, 2.0]}
    for rows, said in (
        ([], "no scan"),
        ([row, row | {"model": "other"}], "2 models, m and other"),
        ([row, row | {"scan_features": None}], "Row 1 .* no scan_features"),
        ([row, row, row | {"scan_features": [1.0, float("nan")]}], "Row 2 .* not finite"),
    ):
        with pytest.raises(VectorIndexError, match=said):
            build_index(table(rows), tmp_path / "index")
        assert not (tmp_path / "index" / "index.json").exists()
    with pytest.raises(OSError, match="ctfm embed"):
        build_index(tmp_path / "nowhere", tmp_path / "index")
    with pytest.raises(OSError, match="ctfm index"):
        open_index(tmp_path / "index")


@needs_faiss
def test_many_vectors_are_searched_in_lists_that_find_nearly_what_one_by_one_finds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    random = np.random.default_rng(0)
    rows = (random.normal(size=(3000, 6)) @ random.normal(size=(6, 24)) + 5).astype(np.float32)
    exact, centre = build_vectors(lambda: iter(np.array_split(rows, 4)), is_centred=True)
    monkeypatch.setattr(vector_index, "EXACT_UP_TO", 1000)
    monkeypatch.setattr(vector_index, "VECTORS_PER_LIST", 20)
    lists, same = build_vectors(lambda: iter(np.array_split(rows, 4)), is_centred=True)
    np.testing.assert_allclose(centre, same)
    np.testing.assert_allclose(centre, rows.mean(0), atol=1e-4)
    asked = prepare(rows[:50], centre)
    found, expected = (index.search(asked, 10)[1] for index in (lists, exact))
    assert np.mean([len(np.intersect1d(a, b)) / 10 for a, b in zip(found, expected, strict=True)]) > 0.9
    assert (expected[:, 0] == np.arange(50)).all()


# ---- search ----


def ask(capsys: pytest.CaptureFixture, *arguments: str) -> list[dict[str, Any]]:
    assert search_program.main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@needs_faiss
def test_a_scan_finds_itself_first(index: Path, studies: Path, capsys: pytest.CaptureFixture) -> None:
    for number in (0, 4):
        hits = ask(capsys, str(index), "--scan", str(studies / f"{number}.nii"), "--top", "3")
        assert Path(hits[0]["scan"]).name == f"{number}.nii"
        assert hits[0]["score"] == pytest.approx(1, abs=1e-3)
        assert [hit["score"] for hit in hits] == sorted((hit["score"] for hit in hits), reverse=True)


@needs_faiss
def test_a_text_ranks_scans_as_the_model_does(
    index: Path, studies: Path, checkpoint: Path, capsys: pytest.CaptureFixture
) -> None:
    hits = ask(capsys, str(index), "--text", "Pleural effusion.", "--top", "6")
    model, processor = CTFMModel.from_pretrained(checkpoint), CTFMProcessor.from_pretrained(checkpoint)
    scans = [studies / f"{number}.nii" for number in range(6)]
    with torch.no_grad():
        output = model(**processor(images=scans, text=["Pleural effusion."]))
    cosine = (output.image_embeds @ output.text_embeds.T)[:, 0]
    assert [Path(hit["scan"]).stem for hit in hits] == [str(n) for n in cosine.argsort(descending=True).tolist()]
    assert [hit["score"] for hit in hits] == pytest.approx(cosine.sort(descending=True).values.tolist(), abs=1e-4)


@needs_faiss
def test_a_region_finds_its_own_place(index: Path, studies: Path, capsys: pytest.CaptureFixture) -> None:
    """A crop of the index as a region: its scan comes first, at its place, each scan once."""
    opened = open_index(index)
    assert opened.crops is not None
    scan = next(row for row, one in enumerate(opened.scans) if one["scan"].endswith("2.nii"))
    volume = search_program.read_volume(studies / "2.nii")
    inside = []
    for crop in (crop for crop in opened.crops if crop["scan"] == scan):
        middle = (np.linalg.inv(volume.affine) @ [*crop["centre_mm"], 1.0])[:3]
        start = np.rint(middle + 0.5 - np.array([4, 8, 8])).astype(int)
        stop = start + np.array([8, 16, 16])
        if (start >= 0).all() and (stop <= volume.hu.shape).all():
            inside.append((crop, ",".join(f"{a}:{b}" for a, b in zip(start, stop, strict=True))))
    crop, region = inside[len(inside) // 2]
    hits = ask(capsys, str(index), "--scan", str(studies / "2.nii"), "--region", region, "--top", "6")
    assert Path(hits[0]["scan"]).name == "2.nii"
    assert hits[0]["centre_mm"] == pytest.approx(crop["centre_mm"], abs=1e-3)
    assert len({hit["scan"] for hit in hits}) == len(hits) == 6


@needs_faiss
@pytest.mark.parametrize("region", ["1:2", "a:b,c:d,e:f", "0:900,0:9,0:9", "5:5,0:9,0:9"])
def test_a_region_outside_the_scan_is_refused(region: str, index: Path, studies: Path) -> None:
    with pytest.raises(VolumeError, match="Give voxels along depth"):
        search_program.main([str(index), "--scan", str(studies / "0.nii"), "--region", region])


@needs_faiss
def test_a_question_that_the_index_has_no_vectors_for_says_how_to_get_them(
    features: Path, studies: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    build_index(features, tmp_path)
    asked = [str(tmp_path), "--scan", str(studies / "0.nii"), "--region", "0:8,0:16,0:16"]
    assert search_program.main(asked) == 2
    assert "--crops" in capsys.readouterr().err
    assert search_program.main([str(tmp_path), "--text", " "]) == 2
    assert "--text is empty" in capsys.readouterr().err
    assert load(str(checkpoint))[2] == open_index(tmp_path).model
