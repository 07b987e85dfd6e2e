"""Lung nodules by their features beside their diameter: evaluate/nodules.py."""

import csv
import json
import re
from pathlib import Path

import nibabel
import numpy as np
import pytest
from ctfm import CTFMImageProcessor, CTFMModel
from ctfm.__main__ import main as ctfm
from ctfm.evaluate.nodules import Nodules, cross_score, encode_nodules, main, measure, read_nodules

from tests.tiny import tiny_config


def write_table(path: Path, rows: list[dict[str, object]]) -> None:
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)


def nodules_of(malignant: np.ndarray, diameter: np.ndarray, per_patient: int = 2) -> Nodules:
    return Nodules(
        files=tuple(Path(f"{k}.nii.gz") for k in range(len(malignant))),
        patients=tuple(f"p{k // per_patient}" for k in range(len(malignant))),
        malignant=malignant,
        diameter_mm=diameter,
    )


def test_features_gain_on_the_diameter_only_where_they_say_more() -> None:
    random = np.random.default_rng(0)
    malignant = random.permutation(np.repeat([0.0, 1.0], 150))
    nodules = nodules_of(malignant, np.exp(2 + 0.5 * malignant + random.normal(0, 0.5, 300)))
    telling = random.normal(0, 1, (300, 8))
    telling[:, 3] += 1.5 * malignant
    found = measure(nodules, {"telling": telling, "noise": random.normal(0, 1, (300, 8))})
    assert found["nodules/telling+diameter/gain"].low > 0
    assert found["nodules/noise+diameter/gain"].low <= 0
    assert found["nodules/noise/auroc"].value < 0.6
    sizes = found["nodules/diameter/auroc"]
    assert found["nodules/telling+diameter/auroc"].value - sizes.value == pytest.approx(
        found["nodules/telling+diameter/gain"].value
    )


def test_a_nodule_is_never_scored_by_what_saw_its_patient() -> None:
    random = np.random.default_rng(1)
    malignant = np.repeat(random.permutation(np.repeat([0.0, 1.0], 30)), 3)
    # Features that name the patient tell everything to a regression that saw the patient, and nothing to another one.
    features = np.repeat(np.eye(60), 3, axis=0)
    scores = cross_score(features, nodules_of(malignant, np.ones(180), per_patient=3))
    benign, malign = scores[malignant == 0], scores[malignant == 1]
    assert (malign[:, None] > benign).mean() + (malign[:, None] == benign).mean() / 2 < 0.7


def test_a_folder_of_nodules_is_measured(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    rows = list[dict[str, object]]()
    (tmp_path / "image").mkdir()
    for k in range(24):
        file, is_large = f"n{k}.nii.gz", k % 2
        hu = random.normal(-800, 20, (12, 12, 6)).astype(np.int16)
        hu[3 : 6 + 3 * is_large, 3 : 6 + 3 * is_large, 2:4] = 30
        nibabel.save(nibabel.Nifti1Image(hu, np.diag([0.7, 0.7, 1.25, 1.0])), tmp_path / "image" / file)
        diagnosis = "Malign" if is_large else "Benign"
        rows.append({"file": file, "patient": f"p{k}", "diagnosis": diagnosis, "diameter_mm": 3.0 + is_large + k / 100})
    write_table(tmp_path / "nodules.csv", rows)
    checkpoint = tmp_path / "tiny"
    CTFMModel(tiny_config()).save_pretrained(checkpoint)
    CTFMImageProcessor(crop_size=(16, 16, 16), spacing=(1.0, 1.0, 1.0)).save_pretrained(checkpoint)
    features = encode_nodules(str(checkpoint), read_nodules(tmp_path).files)
    assert np.isfinite(features).all()
    assert len(np.unique(features, axis=0)) == 24
    assert main([str(checkpoint), "--nodules", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out" / "nodules.json").read_text())
    assert found["nodules/diameter/auroc"]["value"] == 1.0
    write_table(tmp_path / "nodules.csv", [*rows, rows[0] | {"diagnosis": "Unclear"}])
    with pytest.raises(ValueError, match=r"line 26: diagnosis 'Unclear' is none of Benign, Malign"):
        read_nodules(tmp_path)


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ("file,patient,diagnosis\n1.nii,a,Benign\n", 'no column "diameter_mm".*add the column'),
        ("file,patient,diagnosis,diameter_mm\n", "has no row"),
        (
            "file,patient,diagnosis,diameter_mm\n1.nii,a,Unsure,8\n",
            "line 2: diagnosis 'Unsure' is none of Benign, Malign",
        ),
        ("file,patient,diagnosis,diameter_mm\n1.nii,a,Malign,large\n", "line 2: diameter_mm 'large' is no length"),
    ],
    ids=["column", "rows", "diagnosis", "diameter"],
)
def test_a_table_that_cannot_be_used_is_said_with_its_cure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], table: str, told: str
) -> None:
    (tmp_path / "nodules.csv").write_text(table)
    code = ctfm(["nodules", "model", "--nodules", str(tmp_path), "--out", str(tmp_path / "out")])
    (line,) = capsys.readouterr().err.splitlines()
    assert code == 2
    assert re.search(told, line)
