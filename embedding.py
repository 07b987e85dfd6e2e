"""Scans -> feature files and a manifest: `ctfm embed`."""

import argparse
import csv
import hashlib
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import Any, TextIO

import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm
from transformers import AutoConfig
from transformers.utils import cached_file

from . import CTFMImageProcessor, CTFMModel, CTFMVisionConfig, CTFMVisionModel, VolumeError
from .image_processing_ctfm import SPACING_PRESETS
from .volume_studies_ctfm import find_scans
from .weights import load_complete

UNTRAINED = "untrained"
DEFAULT_CHECKPOINT = Path(__file__).parent / "checkpoints" / "default"
MANIFEST_FIELDS = [
    "scan",
    "series",
    "status",
    "features",
    "outputs",
    "shape",
    "spacing_mm",
    "crop_grid",
    "seconds",
    "model",
    "note",
]


def embed(scans: Sequence[Path], out: Path, model_id: str, spacing: str | None, dense: bool) -> int:
    """Writes one safetensors file a scan and `manifest.csv`; what is done already is not done again."""
    out.mkdir(parents=True, exist_ok=True)
    model, processor, name = load(model_id)
    files = [
        *Path(model_id).glob("*.safetensors"),
        *Path(model_id).glob("*config.json"),
    ]  # of the Hub, `name` says which
    weights = [(file.name, file.stat().st_mtime_ns) for file in sorted(files)]
    manifest = Manifest(out / "manifest.csv")
    failed = 0
    found = [one for scan in scans for one in (find_scans(scan) if scan.is_dir() else [(scan, None)])]
    if not found:
        raise VolumeError(
            "there is no scan", value=", ".join(scan.name for scan in scans), cure="Give a folder or a file."
        )
    for scan, series_uid in tqdm(found, desc="embed", unit="scan", disable=None):
        settings = (name, weights, spacing or processor.spacing, dense)
        key = fingerprint(scan, series_uid, settings)
        file = out / f"{key}.safetensors"
        if manifest.is_done(scan, series_uid, file.name) and file.is_file():
            continue
        row = {"scan": str(scan), "series": series_uid or "", "model": name}
        start = time.perf_counter()
        try:
            features, facts = embed_scan(model, processor, scan, series_uid, spacing, dense)
        except VolumeError as error:
            failed += 1
            manifest.add(row | {"status": "failed", "note": str(error)})
            continue
        partial = file.with_suffix(".partial")
        save_file(features, partial)
        os.replace(partial, file)
        seconds = round(time.perf_counter() - start, 2)
        manifest.add(row | facts | {"status": "done", "features": file.name, "seconds": seconds})
    manifest.tidy()
    manifest.write_parquet(out)
    print(
        f"{len(found) - failed} of {len(found)} scans have features in {out}; {failed} could not be read (manifest.csv)"
    )
    return 1 if failed else 0


@torch.inference_mode()
def embed_scan(
    model: CTFMModel | CTFMVisionModel,
    processor: CTFMImageProcessor,
    scan: Path,
    series_uid: str | None,
    spacing: str | None,
    dense: bool,
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """One scan's features and its facts for the manifest."""
    inputs = processor.preprocess(scan, spacing=spacing, series_uid=series_uid)
    vision = model.vision_model if isinstance(model, CTFMModel) else model
    tensors = {key: value.to(model.device) for key, value in inputs.items()}
    output = vision(**tensors, output_dense_features=dense)
    features = {"scan_features": output.pooler_output[0], "crop_embeds": output.crop_embeds[0]}
    if isinstance(model, CTFMModel):
        joint = model.visual_projection(output.pooler_output)
        features["image_embeds"] = torch.nn.functional.normalize(joint, dim=-1)[0]
    if dense:
        features["dense_features"] = output.dense_features[0]
    facts = {"outputs": " ".join(features)}
    (geometry,), (volume,) = inputs.geometry, inputs.volumes
    features["crop_grid"] = torch.tensor(geometry.crop_grid)
    features["grid_affine"] = torch.from_numpy(geometry.grid_affine)
    facts |= {
        "shape": "x".join(map(str, volume.hu.shape)),
        "spacing_mm": "x".join(f"{size:.4g}" for size in volume.spacing),
        "crop_grid": "x".join(map(str, geometry.crop_grid)),
        "note": " ".join(volume.warnings),
    }
    # numpy has no bfloat16, so files hold float32 whatever the model computes in
    single = {key: value.float() if value.is_floating_point() else value for key, value in features.items()}
    single["grid_affine"] = features["grid_affine"]
    return {key: value.contiguous().cpu() for key, value in single.items()}, facts


def fingerprint(scan: Path, series_uid: str | None, settings: tuple) -> str:
    """Names a scan's features by its place, size and time and by how they were made, so that nothing of its name shows."""
    files = sorted(scan.rglob("*")) if scan.is_dir() else [scan]
    stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]
    facts = json.dumps([str(scan.resolve()), stats, series_uid, settings], default=str)
    return hashlib.sha256(facts.encode()).hexdigest()[:20]


class Manifest:
    """`manifest.csv`, one row a scan. Rows are appended as scans end, and a later row replaces an earlier one."""

    def __init__(self, path: Path):
        self.path = path
        self.rows: dict[tuple[str, str], dict[str, str]] = {}
        if path.is_file():
            with self._open(path, "r") as file:
                for row in csv.DictReader(file):
                    if list(row) == MANIFEST_FIELDS and None not in row.values():  # else torn, by a run that was killed
                        self.rows[row["scan"], row["series"]] = row
        self.tidy()

    @staticmethod
    def _open(path: Path, mode: str) -> TextIO:
        """A file name need not be UTF-8."""
        file = path.open(mode, newline="", encoding="utf-8", errors="surrogateescape")
        assert isinstance(file, TextIOWrapper)
        return file

    def is_done(self, scan: Path, series_uid: str | None, features: str) -> bool:
        row = self.rows.get((str(scan), series_uid or ""), {})
        return row.get("status") == "done" and row.get("features") == features

    def add(self, row: Mapping[str, object]) -> None:
        full = {name: str(row.get(name, "")) for name in MANIFEST_FIELDS}
        self.rows[full["scan"], full["series"]] = full
        with self._open(self.path, "a") as file:
            csv.DictWriter(file, MANIFEST_FIELDS).writerow(full)

    def write_parquet(self, out: Path) -> None:
        """features.parquet, which `datasets.load_dataset` opens: a row for every scan that has features, `scan_features` and
        `image_embeds` as lists of float32."""
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError:
            print("ctfm: features.parquet is left out; `pip install pyarrow` and run again for it.", file=sys.stderr)
            return
        rows = []
        for row in self.rows.values():
            if row["status"] == "done" and (out / row["features"]).is_file():
                tensors = load_file(out / row["features"])
                vectors = {name: tensors[name].float() for name in ("scan_features", "image_embeds") if name in tensors}
                # A file name need not be UTF-8, and Parquet's text must be.
                facts = {name: row[name].encode(errors="replace").decode() for name in ("scan", "series", "model")}
                rows.append(facts | {name: vector.numpy() for name, vector in vectors.items()})
        vector, text = pa.list_(pa.float32()), pa.string()
        schema = [*((name, text) for name in ("scan", "series", "model"))]
        schema += [(name, vector) for name in ("scan_features", "image_embeds")]
        partial = out / "features.partial"
        pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema(schema)), partial)
        os.replace(partial, out / "features.parquet")

    def tidy(self) -> None:
        partial = self.path.with_suffix(".partial")
        with self._open(partial, "w") as file:
            writer = csv.DictWriter(file, MANIFEST_FIELDS)
            writer.writeheader()
            writer.writerows(self.rows.values())
        os.replace(partial, self.path)


def load(model_id: str) -> tuple[CTFMModel | CTFMVisionModel, CTFMImageProcessor, str]:
    """A checkpoint from a folder or the Hub; "untrained" is the architecture with random weights of seed 0.

    Only what was trained is loaded: a checkpoint that was not saved as a `CTFMModel` has no joint space of scans and texts, and
    gives its scan encoder.

    Returns:
        Model in float32, image processor, and the model's name; of a Hub model with its commit.

    Raises:
        OSError: there is no such checkpoint, it is none of CTFM, or it lacks weights.
    """
    if model_id == UNTRAINED:
        print(
            "ctfm: no checkpoint given, so the weights are RANDOM (seed 0) and the features mean nothing",
            file=sys.stderr,
        )
        torch.manual_seed(0)
        config = CTFMVisionConfig(hidden_size=192, num_hidden_layers=6, num_attention_heads=2, layerscale_value=0.3)
        return CTFMVisionModel(config).eval(), CTFMImageProcessor(), UNTRAINED
    try:
        place = Path(str(cached_file(model_id, "config.json"))).parent  # of a Hub model snapshots/COMMIT
        config = AutoConfig.from_pretrained(place)
        if config.model_type not in ("ctfm", "ctfm_vision"):
            raise OSError(f"its model_type is {config.model_type!r}, and CTFM's are 'ctfm' and 'ctfm_vision'")
        revision = "main" if Path(model_id).is_dir() else place.name
        model_class: Any = CTFMModel if "CTFMModel" in (config.architectures or ()) else CTFMVisionModel
        model = load_complete(model_class, model_id, revision=revision, dtype=torch.float32)
        processor = CTFMImageProcessor.from_pretrained(model_id, revision=revision)
    except (OSError, ValueError) as error:
        raise OSError(f"no checkpoint {model_id}: {str(error).splitlines()[0]}") from error
    return model.eval(), processor, model_id if Path(model_id).is_dir() else f"{model_id}@{revision}"


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """`--model` and `--spacing`, of every command that runs a model on scans."""
    default = str(DEFAULT_CHECKPOINT) if DEFAULT_CHECKPOINT.is_dir() else UNTRAINED
    parser.add_argument("--model", default=default, help="checkpoint folder or Hub id (%(default)s)")
    parser.add_argument("--spacing", choices=list(SPACING_PRESETS), help="instead of the checkpoint's own")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="ctfm embed",
        description="Features of scans, one safetensors file each, and a manifest. Done scans are kept.",
    )
    parser.add_argument(
        "scans", type=Path, nargs="+", metavar="SCAN", help="DICOM folder, zip, NIfTI, ...; or a folder of them"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the features and manifest.csv")
    parser.add_argument("--dense", action="store_true", help="also the features of every patch")
    add_model_arguments(parser)
    given = parser.parse_args(arguments)
    return embed(given.scans, given.out, given.model, given.spacing, given.dense)
