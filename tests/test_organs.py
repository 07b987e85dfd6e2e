"""Organs on real scans against label maps: evaluate/organs.py."""

import json
import re
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from ctfm import CTFMForSemanticSegmentation, CTFMImageProcessor, Volume
from ctfm.__main__ import main as ctfm
from ctfm.evaluate.organs import lungs_by_threshold, main

from tests.tiny import tiny_config

STRUCTURES = {0: "background", 1: "right kidney", 2: "left kidney", 3: "liver"}


def test_lungs_are_the_air_inside_the_body() -> None:
    hu = np.full((20, 60, 60), -1000, np.int16)
    hu[:, 10:50, 5:55] = 40
    hu[:, 20:40, 10:25] = hu[:, 20:40, 35:50] = -850
    hu[5:8, 42:46, 28:32] = -950  # a pocket of gas
    found = lungs_by_threshold(Volume(hu=hu, affine=np.diag([-3.0, -3.0, 3.0, 1.0])[[2, 1, 0, 3]]))
    np.testing.assert_array_equal(found, hu == -850)


def test_an_exchanged_side_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config()
    config.structures = STRUCTURES
    CTFMForSemanticSegmentation(config).save_pretrained(tmp_path / "model")
    CTFMImageProcessor(crop_size=(16, 16, 16), spacing=(2.0, 2.0, 2.0)).save_pretrained(tmp_path / "model")
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    labels = np.zeros(
        (16, 16, 16), np.uint8
    )  # (x, y, z) of the file, x to the patient's right hand as it grows: -x is left
    labels[2:7, 4:10, 4:10], labels[9:14, 4:10, 4:10] = 3, 2  # TotalSegmentator: 3 left kidney, 2 right kidney
    hu = (np.random.default_rng(0).normal(0, 20, labels.shape) + 60 * (labels > 0)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(hu, affine), tmp_path / "scan.nii.gz")
    nibabel.save(nibabel.Nifti1Image(labels, affine), tmp_path / "labels.nii.gz")
    (tmp_path / "organs.csv").write_text("scan,patient,segmentation\nscan.nii.gz,a,labels.nii.gz\n")

    def answer(left: int, right: int) -> None:
        def segment(self: object, pixel_values: torch.Tensor, *_: object) -> torch.Tensor:
            # The scan's own grid: (d, h, w) = (z, -y, -x) of the file.
            own = torch.from_numpy(np.where(labels == 3, left, np.where(labels == 2, right, 0)).T[:, ::-1, ::-1].copy())
            return own.to(torch.int16)[None, None]

        monkeypatch.setattr(CTFMForSemanticSegmentation, "segment", segment)

    arguments = [str(tmp_path / "model"), "--table", str(tmp_path / "organs.csv"), "--out", str(tmp_path / "out")]
    for left, right, overlap in ((2, 1, 1.0), (1, 2, 0.0)):
        answer(left, right)
        assert main(arguments) == 0
        found = json.loads((tmp_path / "out" / "organs.json").read_text())
        assert found["organs/left kidney/dice"]["value"] == overlap
        assert found["organs/right kidney/on_the_other_side"]["value"] == 1 - overlap
        assert "organs/liver/dice" not in found  # the reference has none


@pytest.mark.parametrize(
    ("table", "told"),
    [("scan,segmentation\nscan.nii,lungs\n", 'no column "patient".*add the column'), ("scan,patient\n", "has no row")],
    ids=["column", "rows"],
)
def test_a_table_that_cannot_be_used_is_said_with_its_cure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], table: str, told: str
) -> None:
    (tmp_path / "organs.csv").write_text(table)
    code = ctfm(["organs", "model", "--table", str(tmp_path / "organs.csv"), "--out", str(tmp_path / "out")])
    (line,) = capsys.readouterr().err.splitlines()
    assert code == 2
    assert re.search(told, line)
