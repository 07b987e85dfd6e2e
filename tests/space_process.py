"""The Space as a process of its own, on a small stand-in checkpoint: what the tests of the Space talk to over HTTP."""

import contextlib
import shutil
import socket
import stat
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from ctfm import CTFMConfig, CTFMImageProcessor, CTFMModel, CTFMProcessor
from ctfm.benchmarks.space_process import start_space
from ctfm.gate import Gate
from ctfm.phantom.dicom_series import write_dicom_series
from ctfm.phantom.gallery import GalleryConfig, index, write_examples

from loading import Source, load_weights
from measure_gate import OpenAnalyser, encode
from tests.phantoms import canonical_affine, phantom_hu, phantom_volume
from tests.tiny import tiny_config, tiny_tokenizer

ROOT = Path(__file__).parent.parent
SECRET = "JANSEN"  # in file names and headers of what the tests upload, and nowhere else
UNSURE = {"slope": 1.0, "intercept": 0.0, "slope_variance": 0.01, "intercept_variance": 0.01, "covariance": 0.0}
CALIBRATION = {
    "Pleural effusion": UNSURE | {"intercept": 3.0, "unsure_low": 0.3, "unsure_high": 0.7},
    "Lung nodule": UNSURE | {"intercept": -3.0, "unsure_low": 0.3, "unsure_high": 0.7},
    "Cardiomegaly": UNSURE | {"unsure_low": 0.01, "unsure_high": 0.99},
}


SENTENCES = (
    *(
        "Pleural effusion.",
        "No pleural effusion.",
        "Fluid in the right lung.",
        "Lung nodule on the left.",
        "Cardiomegaly.",
    ),
    *("No lung nodule.", "The lungs are clear.", "The heart is large.", "Consolidation of the left lower lobe."),
)


@dataclass(frozen=True, kw_only=True)
class Space:
    """A running Space. `work` is where it keeps temporary files, `log` what it wrote, `gates` is for `hold`."""

    url: str
    work: Path
    log: Path
    checkpoint: Path
    gates: Path
    process: subprocess.Popen


def save_stand_in(folder: Path) -> Path:
    """Random weights of seed 0 with patches of 32 mm, calibrated for three findings: one of each answer."""
    torch.manual_seed(0)
    config = tiny_config(patch_size=(8, 8, 8))
    CTFMModel(CTFMConfig(**{**config.to_dict(), "calibration": CALIBRATION})).save_pretrained(folder)
    processor = CTFMProcessor(CTFMImageProcessor(crop_size=(16, 16, 16), spacing=(4.0, 4.0, 4.0)), tiny_tokenizer())
    processor.save_pretrained(folder)
    save_gate(folder)
    return folder


def save_gate(checkpoint: Path) -> None:
    """A gate that lets every scan with a body through."""
    weights = load_weights(Source(model=str(checkpoint)))
    rows = [(phantom_volume(seed), {"Pleural effusion": str(seed % 2)}) for seed in range(8)]
    measured = encode(OpenAnalyser(weights), rows)
    Gate(
        features=torch.stack(measured.features),
        embeddings=torch.stack(measured.embeddings),
        threshold=1e6,
        map_levels=dict.fromkeys(CALIBRATION, 0.001),
        map_top=4.0,
        sentences=SENTENCES,
        data="tests",
        measured={},
    ).save(checkpoint / "gate.safetensors")


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


# ---- what is uploaded in bad faith, or by mistake ----


def bomb(folder: Path, name: str) -> Path:
    with zipfile.ZipFile(folder / f"{name}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(200 * 2**20))
    return folder / f"{name}.zip"


def climbing(folder: Path, name: str) -> Path:
    with zipfile.ZipFile(folder / f"{name}.zip", "w") as archive:
        archive.writestr("../../outside", "x")
    return folder / f"{name}.zip"


def linked(folder: Path, name: str) -> Path:
    with zipfile.ZipFile(folder / f"{name}.zip", "w") as archive:
        link = zipfile.ZipInfo("link")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    return folder / f"{name}.zip"


def cut(folder: Path, name: str) -> Path:
    path = folder / f"{name}.nii.gz"
    phantom_volume().to_nifti(path)
    path.write_bytes(path.read_bytes()[:2000])
    return path


def letter(folder: Path, name: str) -> Path:
    path = folder / f"{name}.zip"
    path.write_bytes(b"%PDF-1.4 a letter")
    return path


def empty(folder: Path, name: str) -> Path:
    path = folder / f"{name}.dcm"
    path.write_bytes(b"")
    return path


HOSTILE = {  # -> key of texts.py, and a part of the reason
    bomb: ("error_unsafe", "times its size"),
    climbing: ("error_unsafe", "climbs out"),
    linked: ("error_unsafe", "symbolic link"),
    cut: ("error_damaged", "ends early"),
    letter: ("error_unsupported", "no CT scan"),
    empty: ("error_unsupported", "no CT scan"),
}


# ---- the process ----


@contextlib.contextmanager
def run_space(scratch: Path) -> Iterator[Space]:
    """A copy of the Space on a stand-in checkpoint, with gates (gated_space.py)."""
    checkpoint = save_stand_in(scratch / "checkpoint")
    folder = copy_space(scratch / "space", checkpoint)
    log, temporary, gates = scratch / "space.log", scratch / "tmp", scratch / "gates"
    temporary.mkdir()
    gates.mkdir()
    environment = {"CTFM_MODEL": str(checkpoint), "TMPDIR": str(temporary), "HF_HUB_OFFLINE": "1"}
    program = (ROOT / "tests" / "gated_space.py", folder / "app.py", gates)
    with log.open("w") as out, start_space(*program, environment=environment, output=out) as (process, url):
        (work,) = temporary.glob("ctfm-space-*")
        yield Space(url=url, work=work, log=log, checkpoint=checkpoint, gates=gates, process=process)
    assert not work.exists(), "the Space left its temporary folder behind"


@contextlib.contextmanager
def hold(space: Space, name: str) -> Iterator[Callable[[], object]]:
    """Holds the next computation called `name` ("analyse" or "view") until the `with` block ends.

    Yields:
        A function that returns once a computation is held.
    """
    held: list[tuple[socket.socket, object]] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(600)  # not waited for on a machine that works: a computation that never begins is a failure
        (space.gates / name).write_text(str(listener.getsockname()[1]))
        try:
            yield lambda: held.append(listener.accept())
        finally:
            (space.gates / name).unlink()
            for connection, _ in held:
                connection.close()
