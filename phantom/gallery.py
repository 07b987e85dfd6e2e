"""Checkpoint -> what the Space shows before anybody uploads: example cases, and an indexed gallery of phantoms.

    ctfm gallery --checkpoint checkpoints/default

space/examples/KEY.zip         a DICOM series of every case of space/cases.json
space/gallery/gallery.json     seed, findings, report and picture of every phantom, and the hash of the weights
space/gallery/gallery.safetensors   `image_embeds` (scans, e), in the order of gallery.json

Nothing of it is committed: `make space` draws it while the page is there already, a release before; what is there of the same
weights stays. No patient is in it.
"""

import json
import shutil
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from safetensors.torch import save_file
from tqdm import tqdm

from .. import CTFMModel, CTFMProcessor
from ..drawing_ctfm import INTENSITY_WINDOWS, draw_planes
from ..volume_ctfm import Volume
from ..weights import hash_weight_files, load_complete
from ..whole_files import write_json, written_whole
from .dicom_series import write_dicom_series
from .make import Phantom, make_phantom

SPACE = Path(__file__).parent.parent / "space"
FIRST_SEED = 3_000_000  # of no split of dataset.py
DRAWING = "drawing"  # a file in examples/ that says that the rest is on its way


@dataclass(frozen=True, kw_only=True)
class GalleryConfig:
    """What to write.

    Args:
        checkpoint: folder with model, processor and tokenizer.
        out: the folder of the Space.
        num_scans: phantoms in the gallery.
        shape, example_shape: voxels `(depth, height, width)` of its scans and of the examples.
    """

    checkpoint: Path
    out: Path = SPACE
    num_scans: int = 24
    shape: tuple[int, int, int] = (64, 96, 96)
    example_shape: tuple[int, int, int] = (120, 192, 192)


def write_examples(out: Path, shape: tuple[int, int, int]) -> None:
    """The cases of cases.json that are not there yet; each appears whole."""
    out.mkdir(parents=True, exist_ok=True)
    drawing = out / DRAWING
    drawing.touch()
    try:
        for case in json.loads((SPACE / "cases.json").read_text()):
            path = out / f"{case['key']}.zip"
            if path.is_file():
                continue
            phantom = make_phantom(case["seed"], shape=shape, findings=case["findings"])
            with written_whole(path) as partial:
                write_zip(phantom, partial)
    finally:
        drawing.unlink()


def write_zip(phantom: Phantom, path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        files = write_dicom_series(phantom.hu.numpy(), phantom.affine, folder)
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in files:
                archive.write(file, file.name)


def index(config: GalleryConfig) -> None:
    """Draws, encodes and pictures the phantoms of the gallery."""
    folder = config.out / "gallery"
    digest = hash_weight_files(config.checkpoint)
    listed = folder / "gallery.json"
    if listed.is_file() and json.loads(listed.read_text())["weights"] == digest:
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    model = load_complete(CTFMModel, config.checkpoint, dtype=torch.float32).eval()
    processor = CTFMProcessor.from_pretrained(str(config.checkpoint)).image_processor
    rows, embeddings = [], []
    for number in tqdm(range(config.num_scans), desc="gallery", unit="scan"):
        phantom = make_phantom(FIRST_SEED + number, shape=config.shape)
        volume = Volume(hu=phantom.hu.numpy(), affine=phantom.affine)
        with torch.inference_mode():
            embeds = model.get_image_features(**processor(volume)).pooler_output
        embeddings.append(torch.nn.functional.normalize(embeds, dim=-1)[0])
        picture = f"{number:03d}.png"
        draw_planes(volume, INTENSITY_WINDOWS["mediastinum"], height=160).save(folder / picture, optimize=True)
        names = dict.fromkeys(finding.name for finding in phantom.findings)
        rows.append(
            {
                "seed": FIRST_SEED + number,
                "picture": picture,
                "findings": list(names),
                "report": phantom.report.impression,
            }
        )
    save_file({"image_embeds": torch.stack(embeddings)}, folder / "gallery.safetensors")
    write_json(listed, {"weights": digest, "scans": rows})  # a Space that runs takes it as soon as it is there


def main(arguments: Sequence[str] | None = None) -> int:
    config = tyro.cli(GalleryConfig, prog="ctfm gallery", args=arguments, description=__doc__)
    write_examples(config.out / "examples", config.example_shape)
    index(config)
    print(f"{config.num_scans} phantoms in {config.out.name}/gallery, the cases in {config.out.name}/examples")
    return 0
