"""The main job on one scan, with pictures: `ctfm demo`."""

import argparse
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import AutoTokenizer

from . import CTFMImageProcessor, CTFMModel, Volume, read_volume
from .embedding import add_model_arguments, load
from .image_processing_ctfm import CTFMBatchFeature
from .inspection import describe, format_facts
from .modeling_ctfm import CTFMVisionOutput
from .pipeline_ctfm import CTFMZeroShotPipeline


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
        print_findings(model, model_id, output)
    print(f"crops        {grid} = {crops}, of which {air} hold nothing but air and are encoded once")
    print(f"features     scan {tuple(output.pooler_output.shape)}, dense {tuple(output.dense_features.shape)}")
    print("time         " + ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in stages.items()))
    print(f"pictures     {out / 'planes.png'}, {out / 'components.png'}")
    print("\nResearch only: not for diagnosis or any decision about a patient.")
    return 0


def print_findings(model: CTFMModel, model_id: str, output: CTFMVisionOutput) -> None:
    """What the checkpoint is calibrated for, the likeliest first; one line for all that it says are absent."""
    grade = CTFMZeroShotPipeline(
        model, tokenizer=AutoTokenizer.from_pretrained(model_id), image_processor=CTFMImageProcessor()
    )
    with torch.inference_mode():
        joint = CTFMVisionOutput(**output | {"pooler_output": model.visual_projection(output.pooler_output)})
        rows = grade.postprocess(grade.keep(joint), list(model.config.calibration or {}))
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
    from .phantom.dicom_series import write_dicom_series
    from .phantom.make import make_phantom

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


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="ctfm demo",
        description="Reads and encodes one scan and draws it, saying what it does and how long it takes.",
    )
    parser.add_argument("scan", type=Path, nargs="?", help="a synthetic phantom when left out")
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder of the pictures (%(default)s)")
    parser.add_argument("--series", help="UID of the series to read, where there are several")
    add_model_arguments(parser)
    given = parser.parse_args(arguments)
    return demo(given.scan, given.out, given.model, given.series, given.spacing)
