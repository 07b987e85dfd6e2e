"""Checkpoint -> an ONNX file for scans of any number of crops, in a folder that Triton serves: `ctfm export-onnx`.

    ctfm export-onnx --model CHECKPOINT --out MODELS [--int8]        MODELS/ctfm/1/model.onnx and MODELS/ctfm/config.pbtxt

Inputs are what `CTFMImageProcessor` makes of one scan: `pixel_values` `(1, g, c, D, H, W)` float32, `crop_grid` `(1, 3)` int64.
Outputs: `logits` of a checkpoint that grades findings; else `scan_features`, and `image_embeds` where scans and texts share a
space. All crops go through at once, those of air too, so memory and time grow with them (benchmarks/export.py). ONNX Runtime
and OpenVINO read the file.
"""

import argparse
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoConfig

from .embedding import add_model_argument, load
from .image_processing_ctfm import CTFMImageProcessor
from .installation import how_to_install
from .modeling_ctfm import CTFMForImageClassification, CTFMModel, CTFMVisionModel
from .weights import load_complete

MAX_CROPS = 4096
TRITON_TYPES = {"tensor(float)": "TYPE_FP32", "tensor(int64)": "TYPE_INT64"}
MIN_COSINE = {
    False: 0.9999,
    True: 0.98,
}  # of outputs with the checkpoint's, on noise; by whether products are in 8 bits


class ExportError(OSError):
    """What was written does not compute what the checkpoint computes."""


class OneScan(nn.Module):
    """Tensors of one scan in, tensors out: what is exported."""

    def __init__(self, model: CTFMModel | CTFMVisionModel | CTFMForImageClassification):
        super().__init__()
        self.model = model

    @property
    def names(self) -> tuple[str, ...]:
        if isinstance(self.model, CTFMForImageClassification):
            return ("logits",)
        return ("scan_features", "image_embeds") if isinstance(self.model, CTFMModel) else ("scan_features",)

    def forward(self, pixel_values: Tensor, crop_grid: Tensor) -> tuple[Tensor, ...]:
        if isinstance(self.model, CTFMForImageClassification):
            return (self.model(pixel_values, crop_grid).logits,)
        if isinstance(self.model, CTFMVisionModel):
            return (self.model(pixel_values, crop_grid).pooler_output,)
        features = self.model.vision_model(pixel_values, crop_grid).pooler_output
        joint = self.model.visual_projection(features)
        return features, joint / joint.norm(dim=-1, keepdim=True)


def load_scan_model(model_id: str) -> tuple[OneScan, CTFMImageProcessor]:
    """In float32.

    Raises:
        OSError: there is no such checkpoint, it is none of CTFM, or it lacks weights.
    """
    architectures = AutoConfig.from_pretrained(model_id).architectures or ()
    if "CTFMForImageClassification" in architectures:
        model = load_complete(CTFMForImageClassification, model_id, dtype=torch.float32)
        return OneScan(model).eval(), CTFMImageProcessor.from_pretrained(model_id)
    encoder, processor, _ = load(model_id)
    return OneScan(encoder).eval(), processor


def make_noise(scan: OneScan, processor: CTFMImageProcessor, grid: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """Inputs that are no scan: `(1, g, c, D, H, W)` from 0 to 1 and `(1, 3)`."""
    config = scan.model.config
    channels = getattr(config, "vision_config", config).num_channels
    random = torch.Generator().manual_seed(0)
    crops = torch.rand(1, int(np.prod(grid)), channels, *processor.crop_size, generator=random)
    return crops, torch.tensor([grid])


def export(scan: OneScan, processor: CTFMImageProcessor, file: Path, *, int8: bool = False) -> float:
    """Writes an ONNX file. Returns the smallest cosine of its outputs with those of `scan`, on another number of crops.

    Args:
        int8: products with weights are in 8 bits, of activations as they come (dynamic quantisation of ONNX Runtime).

    Raises:
        ExportError: it computes something else.
    """
    import onnxruntime

    crops = torch.export.Dim("crops", min=1, max=MAX_CROPS)
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch's own, about its own exporter
        exact = Path(scratch, "exact.onnx") if int8 else file
        torch.onnx.export(
            scan,
            make_noise(scan, processor, (1, 1, 2)),
            str(exact),
            dynamo=True,
            dynamic_shapes=({1: crops}, None),
            input_names=["pixel_values", "crop_grid"],
            output_names=list(scan.names),
            external_data=False,
            verbose=False,
        )
        if int8:
            from onnxruntime.quantization import QuantType, quantize_dynamic

            quantize_dynamic(exact, file, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul", "Gemm"])
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    inputs = make_noise(scan, processor, (1, 1, 1))
    found: Any = session.run(None, {"pixel_values": inputs[0].numpy(), "crop_grid": inputs[1].numpy()})
    with torch.no_grad():
        expected = scan(*inputs)
    cosine = min(
        float(nn.functional.cosine_similarity(torch.from_numpy(a), b).min())
        for a, b in zip(found, expected, strict=True)
    )
    if not cosine >= MIN_COSINE[int8]:
        file.unlink()
        raise ExportError(
            f"the ONNX file computes other values than the checkpoint: cosine {cosine:.4f}, and {MIN_COSINE[int8]} is needed. "
            + (
                "Export without --int8."
                if int8
                else "Report it with the versions of torch, onnxscript and onnxruntime."
            )
        )
    return cosine


def write_triton_config(file: Path, name: str) -> Path:
    """config.pbtxt of Triton for `.../NAME/1/model.onnx`, from the inputs and outputs of the file itself."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    parts = [f'name: "{name}"', 'backend: "onnxruntime"', "max_batch_size: 0  # scans differ in their crops"]
    for kind, tensors in (("input", session.get_inputs()), ("output", session.get_outputs())):
        for tensor in tensors:
            dims = ", ".join(str(size) if isinstance(size, int) else "-1" for size in tensor.shape)
            parts.append(
                f'{kind} [ {{ name: "{tensor.name}" data_type: {TRITON_TYPES[tensor.type]} dims: [ {dims} ] }} ]'
            )
    config = file.parents[1] / "config.pbtxt"
    config.write_text("\n".join(parts) + "\n")
    return config


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="ctfm export-onnx", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_model_argument(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="MODELS", help="Triton's model repository")
    parser.add_argument("--name", default="ctfm", help="of the model there (%(default)s)")
    parser.add_argument("--int8", action="store_true", help="products with weights in 8 bits")
    given = parser.parse_args(arguments)
    try:
        import onnx  # noqa: F401 - needed by what follows
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        print(f'ctfm export-onnx: "{error.name}" is not installed: run {how_to_install("onnx")}.', file=sys.stderr)
        return 2
    scan, processor = load_scan_model(given.model)
    file = given.out / given.name / "1" / "model.onnx"
    file.parent.mkdir(parents=True, exist_ok=True)
    cosine = export(scan, processor, file, int8=given.int8)
    config = write_triton_config(file, given.name)
    print(f"{file}  {file.stat().st_size / 1e6:.1f} MB, cosine with the checkpoint {cosine:.5f}")
    print(f"{config}")
    return 0
