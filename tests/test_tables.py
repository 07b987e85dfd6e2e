"""Tables as Parquet: what `datasets` opens is what was prepared, and what a probe and a fine-tuning take."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from ctfm import CTFMImageProcessor, CTFMModel, CTFMProcessor
from ctfm.__main__ import main as ctfm
from ctfm.evaluate.probe import probe_tables
from ctfm.train import finetune
from ctfm.train.layouts import find_csv
from ctfm.train.prepare import main as prepare
from ctfm.train.pretrain import Run
from ctfm.train.recipes import FINE_TUNINGS
from ctfm.train.shards import Manifest
from ctfm.train.tables import labels_by_scan, read_findings
from datasets import ClassLabel, Dataset, Features, Value, load_dataset

from tests.phantoms import phantom_hu
from tests.test_prepare import write_csv, write_nifti
from tests.tiny import tiny_config, tiny_tokenizer


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scans")
    splits, cells = ("train", "train", "test", ""), ("yes", "", "no", "1")
    rows = []
    for number, (split, cell) in enumerate(zip(splits, cells, strict=True)):
        write_nifti(folder / f"{number}.nii", phantom_hu(seed=number))
        rows.append({"path": f"{number}.nii", "split": split, "report": "Normal.", "Nodule": cell, "Cyst": "0"})
    prepare(["csv", str(write_csv(folder / "table.csv", rows)), str(folder / "prepared"), "--num-workers", "0"])
    return folder / "prepared"


def test_load_dataset_opens_scans_and_findings_of_a_prepared_folder_typed(prepared: Path, tmp_path: Path) -> None:
    manifest = Manifest(prepared)
    scans = load_dataset(str(prepared), "scans", cache_dir=str(tmp_path))
    assert {name: len(table) for name, table in scans.items()} == {"train": 2, "test": 1, "unassigned": 1}
    first, row = manifest[0], scans["train"][0]
    assert (row["scan_id"], row["report"], tuple(row["shape"])) == (first.scan_id, first.report, first.shape)
    assert row["spacing"] == list(first.spacing)
    assert scans["train"].features["spacing"].length == 3
    findings = load_dataset(str(prepared), "findings", split="train", streaming=True)
    assert isinstance(findings.features["Nodule"], ClassLabel)
    assert findings.features["Nodule"].names == ["absent", "present"]
    assert [(row["Nodule"], row["Cyst"]) for row in findings] == [(1, 0), (None, 0)]


def test_labels_of_a_dataset_take_the_place_of_those_that_were_prepared(prepared: Path, tmp_path: Path) -> None:
    table = load_dataset(str(prepared), "findings", split="train", cache_dir=str(tmp_path))
    manifest = Manifest(prepared)
    ours = {scan.scan_id: scan.labels for scan in manifest if scan.split == "train"}
    assert labels_by_scan(table) == ours
    new = Dataset.from_dict({"scan_id": table["scan_id"][:1], "Stone": [True]})
    changed = pickle.loads(pickle.dumps(Manifest(prepared, labels_by_scan(new))))
    assert [scan.labels for scan in changed] == [{"Stone": 1.0}, {}, {}, {}]


@pytest.mark.parametrize("cells", [[True, False, None], ["yes", "No", ""], [1, 0, None], [1.0, 0.0, None]])
def test_labels_of_any_type_are_read(cells: list) -> None:
    found = read_findings(Dataset.from_dict({"Nodule": cells}), ["Nodule"])
    np.testing.assert_array_equal(found.values[:, 0], [1, 0, np.nan])


def test_what_is_no_label_and_what_is_no_column_is_said() -> None:
    table = Dataset.from_dict({"Nodule": [1, 7], "age": [60, 70]})
    with pytest.raises(ValueError, match="Row 1: column 'Nodule' holds no label"):
        read_findings(table, ["Nodule"])
    with pytest.raises(ValueError, match="no column 'Cyst'; its columns are Nodule, age"):
        read_findings(table, ["Cyst"])
    with pytest.raises(ValueError, match="no column of type ClassLabel or bool; its columns are Nodule, age"):
        read_findings(table)


def test_a_table_of_scans_may_be_parquet(tmp_path: Path) -> None:
    features = Features(
        {"path": Value("string"), "split": Value("string"), "Nodule": ClassLabel(names=["present", "absent"])}
    )
    rows = {"path": ["a.nii", "b.nii"], "split": ["train", None], "Nodule": [0, None]}
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "t.parquet")
    found = find_csv(tmp_path / "t.parquet")
    assert [(source.path.name, source.split, source.labels) for source in found] == [
        ("a.nii", "train", {"Nodule": 1.0}),
        ("b.nii", "", {}),
    ]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    CTFMModel(tiny_config()).save_pretrained(folder)
    processor = CTFMImageProcessor(crop_size=(8, 16, 16), spacing=(12.0, 12.0, 12.0))
    CTFMProcessor(processor, tiny_tokenizer()).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def test_features_of_embed_are_a_table_that_a_probe_takes(prepared: Path, checkpoint: Path, tmp_path: Path) -> None:
    assert ctfm(["embed", str(prepared.parent), "--out", str(tmp_path / "f"), "--model", str(checkpoint)]) == 0
    table = load_dataset(
        "parquet", data_files=str(tmp_path / "f" / "features.parquet"), split="train", cache_dir=str(tmp_path)
    )
    assert len(table) == 4
    assert (len(table[0]["scan_features"]), len(table[0]["image_embeds"])) == (72, 24)
    assert table.features["scan_features"].feature.dtype == "float32"
    random = np.random.default_rng(0)
    labels = [bool(k % 2) for k in range(40)]
    vectors = [(random.normal(size=5) + 3 * label).astype(np.float32) for label in labels]
    many = Dataset.from_dict({"scan_features": vectors, "Nodule": labels})
    assert probe_tables(many, many.select(range(20))) == {"knn/macro_auroc": 1.0, "linear/macro_auroc": 1.0}
    with pytest.raises(ValueError, match="no column 'joint'; its columns are scan_features, Nodule"):
        probe_tables(many, many, features="joint")


def test_fine_tuning_learns_the_labels_of_a_dataset(prepared: Path, checkpoint: Path) -> None:
    scans = [scan.scan_id for scan in Manifest(prepared)]
    table = Dataset.from_dict({"scan_id": scans[:2], "Stone": [True, False]})
    run = Run(recipe=FINE_TUNINGS["findings"](), out=Path("unused"), data=(str(prepared),))
    schedule = finetune.build_schedule(run, run.recipe, labels_by_scan(table))  # type: ignore[arg-type]
    assert finetune.name_findings(schedule.manifests, schedule.rows) == ("Stone",)
    before = finetune.build_schedule(run, run.recipe)  # type: ignore[arg-type]
    assert schedule.fingerprint() != before.fingerprint()
    assert json.loads(schedule.manifests[0].table.column("labels")[0].as_py()) == {"Stone": 1.0}
