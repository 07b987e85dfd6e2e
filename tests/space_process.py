"""The Space as a process of its own, on a small stand-in checkpoint: what the tests of the Space talk to over HTTP."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from ctfm import CTFMConfig, CTFMImageProcessor, CTFMModel, CTFMProcessor
from ctfm.train.dicom_series import write_dicom_series
from ctfm.train.gallery import GalleryConfig, index, write_examples

from tests.phantoms import canonical_affine, phantom_hu
from tests.tiny import tiny_config, tiny_tokenizer

ROOT = Path(__file__).parent.parent
SECRET = "JANSEN"  # in file names and headers of what the tests upload, and nowhere else
UNSURE = {"slope": 1.0, "intercept": 0.0, "slope_variance": 0.01, "intercept_variance": 0.01, "covariance": 0.0}
CALIBRATION = {
    "Pleural effusion": UNSURE | {"intercept": 3.0, "unsure_low": 0.3, "unsure_high": 0.7},
    "Lung nodule": UNSURE | {"intercept": -3.0, "unsure_low": 0.3, "unsure_high": 0.7},
    "Cardiomegaly": UNSURE | {"unsure_low": 0.01, "unsure_high": 0.99},
}


@dataclass(frozen=True, kw_only=True)
class Space:
    """A running Space. `work` is where it keeps temporary files, `log` what it wrote."""

    url: str
    work: Path
    log: Path
    folder: Path


def save_stand_in(folder: Path) -> Path:
    """Random weights of seed 0 with patches of 32 mm, calibrated for three findings: one of each answer."""
    torch.manual_seed(0)
    config = tiny_config(patch_size=(8, 8, 8))
    CTFMModel(CTFMConfig(**{**config.to_dict(), "calibration": CALIBRATION})).save_pretrained(folder)
    processor = CTFMProcessor(CTFMImageProcessor(crop_size=(16, 16, 16), spacing=(4.0, 4.0, 4.0)), tiny_tokenizer())
    processor.save_pretrained(folder)
    return folder


def copy_space(folder: Path, checkpoint: Path) -> Path:
    """The Space's folder with examples and a gallery of three small phantoms, as a release would lay it out."""
    shutil.copytree(ROOT / "space", folder, ignore=shutil.ignore_patterns("__pycache__", "examples", "gallery"))
    write_examples(folder / "examples", (40, 64, 64))
    index(GalleryConfig(checkpoint=checkpoint, out=folder, num_scans=3, shape=(24, 32, 32)))
    return folder


def write_study(path: Path, seeds: tuple[int, ...] = (0,)) -> Path:
    """A zip of one series a seed; its headers name a patient."""
    with zipfile.ZipFile(path, "w") as archive:
        for seed in seeds:
            files = write_dicom_series(
                phantom_hu(seed=seed)[: 20 + seed],
                canonical_affine(),
                path.parent / f"{path.stem}-{seed}",
                edit=lambda header, _: setattr(header, "PatientName", f"{SECRET}^PIET"),
            )
            for file in files:
                archive.write(file, f"{SECRET}/{seed}/{file.name}")
    return path


@contextlib.contextmanager
def run_space(folder: Path, checkpoint: Path, scratch: Path) -> Iterator[Space]:
    """Starts `python app.py` and waits until it answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log, temporary = scratch / "space.log", scratch / "tmp"
    temporary.mkdir()
    environment = os.environ | {
        "CTFM_MODEL": str(checkpoint),
        "TMPDIR": str(temporary),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, str(folder / "app.py"), "--port", str(port)], env=environment, stdout=out, stderr=out
        )
        try:
            url = f"http://127.0.0.1:{port}"
            wait_for(url, process, log)
            (work,) = temporary.glob("ctfm-space-*")
            yield Space(url=url, work=work, log=log, folder=folder)
        finally:
            process.terminate()
            process.wait(30)
    assert not work.exists(), "the Space left its temporary folder behind"


def wait_for(url: str, process: subprocess.Popen, log: Path, seconds: float = 900.0) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if process.poll() is not None:
            break
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
            return
        time.sleep(0.2)
    raise AssertionError(f"the Space does not answer:\n{log.read_text()}")
