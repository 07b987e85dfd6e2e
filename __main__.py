"""`ctfm ...`: the command line over the public API.

ctfm inspect SCAN [--json]        what is in a scan, what was checked and repaired; exit code 2 where it cannot be read
ctfm embed SCAN... --out DIR      features of every scan, as safetensors, and a manifest
ctfm demo [SCAN] [--out DIR]      the main job on one scan, with pictures
ctfm report-check FILE            what a clinical-trial report leaves out
"""

import argparse
import csv
import dataclasses
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import TextIO

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, PreTrainedModel

from .configuration_ctfm import CTFMVisionConfig
from .image_processing_ctfm import SPACING_PRESETS, CTFMBatchFeature, CTFMImageProcessor
from .modeling_ctfm import CTFMModel, CTFMVisionModel
from .pipeline_ctfm import CTFMZeroShotPipeline
from .studies_ctfm import find_scans
from .volume_ctfm import AmbiguousSeriesError, Volume, VolumeError, read_volume

DEFAULT_CHECKPOINT = Path(__file__).parent / "checkpoints" / "default"
UNTRAINED = "untrained"
MANIFEST_FIELDS = [
    "scan",
    "series",
    "status",
    "features",
    "shape",
    "spacing_mm",
    "crop_grid",
    "seconds",
    "model",
    "note",
]


# ---- inspect ----


def inspect(scan: Path, series_uid: str | None, as_json: bool) -> int:
    facts = describe(read_volume(scan, series_uid))
    print(json.dumps(facts, indent=2) if as_json else format_facts(facts))
    return 0


def describe(volume: Volume) -> dict[str, object]:
    """What is in a volume, as plain JSON values without identifiers."""
    low, middle, high = (round(float(q), 1) for q in np.percentile(volume.hu[::2, ::4, ::4], (1, 50, 99)))
    return {
        "shape": list(volume.hu.shape),
        "spacing_mm": [round(size, 4) for size in volume.spacing],
        "size_mm": [round(size * count, 1) for size, count in zip(volume.spacing, volume.hu.shape, strict=True)],
        "orientation_on_disk": volume.orientation,
        "affine": volume.affine.round(6).tolist(),
        "hu": {
            "type": str(volume.hu.dtype),
            "min": float(volume.hu.min()),
            "p01": low,
            "median": middle,
            "p99": high,
            "max": float(volume.hu.max()),
        },
        "source": dataclasses.asdict(volume.source),
        "warnings": list(volume.warnings),
    }


def format_facts(facts: dict) -> str:
    source, hu = facts["source"], facts["hu"]
    by = " x ".join
    lines = [
        f"source       {source['kind']}, {source['num_files']} files, orientation on disk {facts['orientation_on_disk']}",
        f"geometry     {by(map(str, facts['shape']))} voxels of {by(f'{s:.3g}' for s in facts['spacing_mm'])} mm "
        "(depth, height, width)",
        f"HU           {hu['min']:g} to {hu['max']:g}, 1 % {hu['p01']:g}, median {hu['median']:g}, 99 % {hu['p99']:g}",
    ]
    acquisition = [
        ("manufacturer", source["manufacturer"]),
        ("kernel", source["kernel"]),
        ("slice thickness", source["slice_thickness_mm"] and f"{source['slice_thickness_mm']:g} mm"),
        ("kVp", source["kvp"] and f"{source['kvp']:g}"),
        ("contrast", {True: "yes", False: "no", None: ""}[source["contrast"]]),
        ("stored as", source["stored_type"]),
    ]
    known = ", ".join(f"{name} {value}" for name, value in acquisition if value)
    lines += [f"acquisition  {known}"] if known else []
    lines += [f"left out     {count} x {reason}" for reason, count in source["left_out"].items()]
    lines += [f"checked      {check}" for check in source["checks"]]
    lines += [f"WARNING      {warning}" for warning in facts["warnings"]] or ["warnings     none"]
    return "\n".join(lines)


# ---- embed ----


def embed(scans: Sequence[Path], out: Path, model_id: str, spacing: str | None, dense: bool) -> int:
    """Writes one safetensors file a scan and `manifest.csv`; what is done already is not done again."""
    out.mkdir(parents=True, exist_ok=True)
    model, processor, name = load(model_id)
    weights = [(file.name, file.stat().st_mtime_ns) for file in sorted(Path(model_id).glob("*.safetensors"))]
    manifest = Manifest(out / "manifest.csv")
    failed = 0
    found = [one for scan in scans for one in (find_scans(scan) if scan.is_dir() else [(scan, None)])]
    if not found:
        raise VolumeError(
            "there is no scan", value=", ".join(scan.name for scan in scans), cure="Give a folder or a file."
        )
    for scan, series_uid in tqdm(found, desc="embed", unit="scan", disable=not sys.stderr.isatty()):
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
    model: PreTrainedModel,
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
    (geometry,), (volume,) = inputs.geometry, inputs.volumes
    features["crop_grid"] = torch.tensor(geometry.crop_grid)
    features["grid_affine"] = torch.from_numpy(geometry.grid_affine)
    facts = {
        "shape": "x".join(map(str, volume.hu.shape)),
        "spacing_mm": "x".join(f"{size:.4g}" for size in volume.spacing),
        "crop_grid": "x".join(map(str, geometry.crop_grid)),
        "note": " ".join(volume.warnings),
    }
    return {key: value.contiguous().cpu() for key, value in features.items()}, facts


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


def load(model_id: str) -> tuple[PreTrainedModel, CTFMImageProcessor, str]:
    """A checkpoint from a folder or the Hub; without one, the architecture with random weights of seed 0."""
    if model_id != UNTRAINED:
        try:
            model, processor = AutoModel.from_pretrained(model_id), AutoImageProcessor.from_pretrained(model_id)
        except OSError as error:
            raise OSError(f"no checkpoint {model_id}: {str(error).splitlines()[0]}") from error
        return model.eval(), processor, model_id
    print(
        "ctfm: no checkpoint given, so the weights are RANDOM (seed 0) and the features mean nothing", file=sys.stderr
    )
    torch.manual_seed(0)
    config = CTFMVisionConfig(hidden_size=192, num_hidden_layers=6, num_attention_heads=2, layerscale_value=0.3)
    return CTFMVisionModel(config).eval(), CTFMImageProcessor(), UNTRAINED


# ---- demo ----


def demo(scan: Path | None, out: Path, model_id: str, series_uid: str | None, spacing: str | None) -> int:
    """Reads, encodes and draws one scan, saying what it does and how long it takes."""
    out.mkdir(parents=True, exist_ok=True)
    stages: dict[str, float] = {}
    if scan is None:
        scan = out / "phantom"
        with timed(stages, "write phantom"):
            write_phantom(scan)
        print(f"wrote a synthetic phantom as a DICOM series to {scan}\n")
    with timed(stages, "read"):
        volume = read_volume(scan, series_uid)
    print(format_facts(describe(volume)), end="\n\n")
    with timed(stages, "load model"):
        model, processor, name = load(model_id)
    with timed(stages, "preprocess"):
        inputs = processor.preprocess(volume, spacing=spacing)
    vision = model.vision_model if isinstance(model, CTFMModel) else model
    with timed(stages, "encode"), torch.inference_mode():
        output = vision(**inputs, output_dense_features=True)
    with timed(stages, "draw"):
        draw_demo(volume, inputs, output.dense_features, processor, out)
    crops = inputs.pixel_values.shape[1]
    air = sum(not crop.any() for crop in inputs.pixel_values[0])
    grid = " x ".join(map(str, inputs.crop_grid[0].tolist()))
    print(f"weights      {name}")
    if isinstance(model, CTFMModel) and model.config.calibration:
        print_findings(model, model_id, output.pooler_output)
    print(f"crops        {grid} = {crops}, of which {air} hold nothing but air and are encoded once")
    print(f"features     scan {tuple(output.pooler_output.shape)}, dense {tuple(output.dense_features.shape)}")
    print("time         " + ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in stages.items()))
    print(f"pictures     {out / 'planes.png'}, {out / 'components.png'}")
    print("\nResearch only: not for diagnosis or any decision about a patient.")
    return 0


def print_findings(model: CTFMModel, model_id: str, scan_features: torch.Tensor) -> None:
    """What the checkpoint is calibrated for, the likeliest first; one line for all that it says are absent."""
    grade = CTFMZeroShotPipeline(
        model, tokenizer=AutoTokenizer.from_pretrained(model_id), image_processor=CTFMImageProcessor()
    )
    with torch.inference_mode():
        embeds = torch.nn.functional.normalize(model.visual_projection(scan_features), dim=-1)
    rows = grade.postprocess({"image_embeds": embeds}, list(model.config.calibration or {}))
    rows.sort(key=lambda row: -row["probability"])
    heading = "findings"
    for row in rows:
        if row["verdict"] != "absent":
            low, high = row["interval"]
            print(f"{heading:12} {row['probability']:.2f} ({low:.2f} to {high:.2f})  {row['label']}: {row['verdict']}")
            heading = ""
    absent = [row["label"] for row in rows if row["verdict"] == "absent"]
    print(f"{heading:12} absent: {', '.join(absent) if absent else 'none'}")


@contextmanager
def timed(stages: dict[str, float], name: str) -> Iterator[None]:
    """Keeps the seconds of its block as `stages[name]`."""
    start = time.perf_counter()
    yield
    stages[name] = time.perf_counter() - start


def write_phantom(folder: Path) -> None:
    from .train.dicom_series import write_dicom_series
    from .train.phantom import make_phantom

    phantom = make_phantom(4, shape=(100, 200, 200), findings=["Pleural effusion", "Lung nodule", "Cardiomegaly"])
    write_dicom_series(phantom.hu.numpy(), phantom.affine, folder)


def draw_demo(
    volume: Volume, inputs: CTFMBatchFeature, dense: torch.Tensor, processor: CTFMImageProcessor, out: Path
) -> None:
    from .drawing_ctfm import INTENSITY_WINDOWS, draw_planes, join, principal_components

    windows = ("mediastinum", "lung", "bone")
    join([draw_planes(volume, INTENSITY_WINDOWS[name]) for name in windows], across=False).save(out / "planes.png")
    depth, height, width = dense.shape[2:5]
    body = torch.nn.functional.adaptive_avg_pool3d(inputs.pixel_values[0, :, 0], (depth, height, width)) > 0.05
    colours = principal_components(dense[0], body)
    channels = [processor.to_patient_space(channel[None], inputs)[0] for channel in colours.unbind(-1)]
    draw_planes(volume, colours=channels).save(out / "components.png")


# ---- the command line ----


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments[:1] == ["report-check"]:
        from .reporting.command import main as check_report

        return check_report(arguments[1:])
    parser = argparse.ArgumentParser(
        prog="ctfm", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    default = str(DEFAULT_CHECKPOINT) if DEFAULT_CHECKPOINT.is_dir() else UNTRAINED

    inspecting = commands.add_parser("inspect", help="what is in a scan, what was checked and repaired")
    inspecting.add_argument("scan", type=Path)
    inspecting.add_argument("--json", action="store_true", help="print JSON")
    inspecting.add_argument("--series", help="which series, where there are several")

    embedding = commands.add_parser("embed", help="features of scans, as safetensors, and a manifest")
    embedding.add_argument(
        "scans", type=Path, nargs="+", metavar="SCAN", help="DICOM folder, zip, NIfTI, ...; or a folder of them"
    )
    embedding.add_argument("--out", type=Path, required=True)
    embedding.add_argument("--dense", action="store_true", help="also the features of every patch")

    showing = commands.add_parser("demo", help="the main job on one scan, with pictures")
    showing.add_argument("scan", type=Path, nargs="?", help="a synthetic phantom when left out")
    showing.add_argument("--out", type=Path, default=Path("demo"))
    showing.add_argument("--series", help="which series, where there are several")

    for command in (embedding, showing):
        command.add_argument("--model", default=default, help="checkpoint folder or Hub id (%(default)s)")
        command.add_argument("--spacing", choices=SPACING_PRESETS, help="instead of the checkpoint's own")
    options = parser.parse_args(arguments)
    try:
        if options.command == "inspect":
            return inspect(options.scan, options.series, options.json)
        if options.command == "embed":
            return embed(options.scans, options.out, options.model, options.spacing, options.dense)
        return demo(options.scan, options.out, options.model, options.series, options.spacing)
    except AmbiguousSeriesError as error:
        print(f"ctfm: {error}\nChoose one with --series UID.", file=sys.stderr)
    except (VolumeError, OSError) as error:  # a scan, or a folder or checkpoint that is not there
        print(f"ctfm: {error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    raise SystemExit(main())
