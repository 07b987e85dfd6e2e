"""Scan on disk -> features, timed stage by stage: JSON on standard output.

    python benchmarks/inference.py FILE... [--model large|small|FOLDER] [--paths exact plain fast] [--spacing scan]

Every path runs in a process of its own (peak memory is the process's) on the same scan, grid and weights:

- plain   the scan is resampled whole, every crop is encoded, queries and keys-with-values are separate products, rotary
          tables are rebuilt in every layer, nothing is reused. What the exact path is compared with.
- exact   what `CTFMVisionModel` does: float32, crops of air encoded once.
- fast    the same with 8-bit integer products (`set_precision("int8")`).
- bfloat16, torchao
          the layers in bfloat16; and all in it with torchao's dynamic 8-bit products (ctfm[quantization]).
- body    fast, and only the patches that hold body are encoded (`air_patch_level`): other features, for weights that were
          trained so; its cosine says how far they are from these.

`cosine` and `difference` compare the scan's features with the plain path's (with the first path's, where plain is left
out). Without a checkpoint the weights are random, so they say how far arithmetic goes astray, not what it costs in
accuracy.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import torch
from ctfm import CTFMImageProcessor, CTFMVisionConfig, CTFMVisionModel, read_volume
from ctfm.modeling_ctfm import CTFMAttention, grid_coordinates, rotary_tables
from ctfm.weights import load_complete
from torch import nn
from transformers import AutoImageProcessor, AutoModel

SIZES = {
    "large": {  # SPECTRE's ViT-L
        "hidden_size": 1080,
        "num_hidden_layers": 24,
        "num_attention_heads": 12,
        "intermediate_size": 4320,
        "global_config": {"hidden_size": 1080, "num_attention_heads": 12, "intermediate_size": 4320},
    },
    "small": {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 4, "intermediate_size": 1536},
}
PATHS = ("plain", "exact", "fast", "body")
OTHERS = ("bfloat16", "torchao")


def build(name: str) -> tuple[CTFMVisionModel, CTFMImageProcessor]:
    if name not in SIZES:
        model = load_complete(AutoModel, name)
        return getattr(model, "vision_model", model).eval(), AutoImageProcessor.from_pretrained(name)
    torch.manual_seed(0)
    model = CTFMVisionModel(CTFMVisionConfig(**SIZES[name], layerscale_value=0.3)).eval()
    for key, parameter in model.named_parameters():
        if key.endswith("bias"):  # zero biases leave air at exactly zero, which no trained model does
            nn.init.normal_(parameter, std=0.02)
    return model, CTFMImageProcessor(resampling="linear")  # as `resample_whole` does


class Stages:
    def __init__(self) -> None:
        self.seconds: dict[str, dict[str, float]] = {}

    @contextmanager
    def __call__(self, name: str):
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.seconds[name] = {
            "wall_s": round(time.perf_counter() - wall, 3),
            "cpu_s": round(time.process_time() - cpu, 3),
        }


def resample_whole(volume, processor: CTFMImageProcessor, geometry) -> torch.Tensor:
    """The whole scan through one `grid_sample`, as MONAI's Spacing does it, then cut: `(1, g, 1, D, H, W)`."""
    low, high = processor.intensity_window
    hu = (torch.from_numpy(volume.hu).float().clamp(low, high) - low) / (high - low)
    axes, inside = [], []
    for axis, size in enumerate(geometry.shape):
        grid = torch.arange(geometry.crop_grid[axis] * geometry.crop_size[axis], dtype=torch.float64)
        positions = geometry.offset[axis] + geometry.step[axis] * grid
        covered = ((positions > -0.5 - 1e-6) & (positions < size - 0.5 + 1e-6)).nonzero()[:, 0]
        axes.append(2 * positions[covered].clamp(0, size - 1) / max(1, size - 1) - 1)
        inside.append(slice(int(covered[0]), int(covered[-1]) + 1))
    places = torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], -1).float()
    resampled = nn.functional.grid_sample(hu[None, None], places[None], align_corners=True, padding_mode="border")[0, 0]
    whole = torch.zeros([g * c for g, c in zip(geometry.crop_grid, geometry.crop_size, strict=True)])
    whole[tuple(inside)] = resampled
    (a, b, c), (d, h, w) = geometry.crop_grid, geometry.crop_size
    crops = whole.reshape(a, d, b, h, c, w).permute(0, 2, 4, 1, 3, 5).reshape(1, a * b * c, 1, d, h, w)
    return crops


class PlainAttention(nn.Module):
    """Separate products, tables of its own in every layer, prefix tokens split off and put back."""

    def __init__(self, fused: CTFMAttention, theta: float, num_prefix_tokens: int):
        super().__init__()
        self.heads, self.size = fused.config.num_attention_heads, fused.head_size
        self.scaling, self.theta, self.prefix, self.out = fused.scaling, theta, num_prefix_tokens, fused.out
        e = fused.config.hidden_size
        self.q, self.kv = nn.Linear(e, e), nn.Linear(e, 2 * e)
        for part, rows in ((self.q, slice(0, e)), (self.kv, slice(e, 3 * e))):
            part.weight, part.bias = nn.Parameter(fused.qkv.weight[rows]), nn.Parameter(fused.qkv.bias[rows])

    def forward(self, hidden_states, attention_mask, position_embeddings, **kwargs):
        b, n, _ = hidden_states.shape
        query = self.q(hidden_states).reshape(b, n, self.heads, self.size).transpose(1, 2)
        key, value = self.kv(hidden_states).reshape(b, n, 2, self.heads, self.size).permute(2, 0, 3, 1, 4)
        side = round((n - self.prefix) ** (1 / 3))
        cos, sin = rotary_tables(grid_coordinates((side, side, side)), self.size, self.theta, 0)

        def turn(states):
            prefix, rest = states[:, :, : self.prefix], states[:, :, self.prefix :]
            first, second = rest.chunk(2, -1)
            return torch.cat((prefix, rest * cos + torch.cat((-second, first), -1) * sin), 2)

        output = nn.functional.scaled_dot_product_attention(turn(query), turn(key), value, scale=self.scaling)
        return self.out(output.transpose(1, 2).reshape(b, n, -1)), None


def run(file: str, path: str, model_name: str, spacing: str, threads: int, features: Path) -> dict:
    """One path on one scan, in this process."""
    torch.set_num_threads(threads)
    stages = Stages()
    with stages("import_and_build"):
        model, processor = build(model_name)
        if path == "plain":
            for layer in model.local_model.layers:
                layer.attention = PlainAttention(
                    layer.attention, model.config.rope_theta, model.config.num_prefix_tokens
                )
        if path in ("fast", "body"):
            model.set_precision("int8")
        if path == "bfloat16":
            model.set_precision("bfloat16")
        if path == "torchao":
            model.bfloat16()
            from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

            quantize_(model.local_model.layers, Int8DynamicActivationInt8WeightConfig())
        if path == "body":
            model.config.air_patch_level = 0.05  # -900 HU
    with stages("read"):
        volume = read_volume(file)
    air = None
    if path == "plain":  # the crops that count as air are part of the processor's definition, so plain has them too
        air = [not crop.any() for crop in processor(volume, spacing=spacing).pixel_values[0]]
    with stages("preprocess"):
        if path == "plain":
            geometry = processor.place_grid(volume, processor.spacing if spacing == "scan" else None)
            pixel_values = resample_whole(volume, processor, geometry)
            pixel_values[0, air] = 0
            crop_grid = torch.tensor([geometry.crop_grid])
        else:
            inputs = processor(volume, spacing=spacing)
            pixel_values, crop_grid = inputs.pixel_values, inputs.crop_grid
    with torch.inference_mode():
        with stages("local"):
            if path == "plain":
                parts = [model.local_model(crop[None]).pooler_output for crop in pixel_values[0]]
                descriptors = torch.cat(parts)[None]
            else:
                descriptors = model.encode_crops(pixel_values, output_tokens=False).pooler_output
        with stages("global"):
            coordinates = model.descriptor_coordinates(crop_grid, descriptors.shape[1])
            output = model.global_model(descriptors.flatten(1, 2), coordinates).pooler_output
    torch.save(output.float(), features)
    steps = ("read", "preprocess", "local", "global")
    return {
        "path": path,
        "stages": stages.seconds,
        "file_to_features_wall_s": round(sum(stages.seconds[s]["wall_s"] for s in steps), 3),
        "file_to_features_cpu_s": round(sum(stages.seconds[s]["cpu_s"] for s in steps), 3),
        "peak_memory_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3),
        "shape": list(volume.hu.shape),
        "spacing_mm": [round(s, 4) for s in volume.spacing],
        "crop_grid": crop_grid[0].tolist(),
        "crops": pixel_values.shape[1],
        "crops_of_air": sum(not crop.any() for crop in pixel_values[0]),
    }


def compare(file: str, options: argparse.Namespace, folder: Path) -> dict:
    """All paths on one scan, each in its own process, against the first."""
    results, reference = {}, None
    for path in options.paths:
        features = folder / f"{path}.pt"
        command = [sys.executable, __file__, file, "--model", options.model, "--spacing", options.spacing]
        command += ["--threads", str(options.threads), "--one", path, str(features)]
        environment = os.environ | {"OMP_NUM_THREADS": str(options.threads)}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode:
            raise SystemExit(done.stderr)
        result = json.loads(done.stdout.splitlines()[-1])
        output = torch.load(features, weights_only=True)
        if reference is None:
            reference, first = output, result
        result["cosine"] = round(nn.functional.cosine_similarity(output, reference).item(), 6)
        result["difference"] = float(f"{(output - reference).abs().max().item():.3g}")
        result["times_faster"] = round(first["file_to_features_wall_s"] / result["file_to_features_wall_s"], 2)
        result["times_less_cpu"] = round(first["file_to_features_cpu_s"] / result["file_to_features_cpu_s"], 2)
        results[path] = result
    return {"scan": Path(file).name, "compared_with": options.paths[0], "paths": results}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+")
    parser.add_argument("--model", default="large", help="large, small (random weights) or a checkpoint")
    parser.add_argument("--paths", nargs="+", choices=PATHS + OTHERS, default=PATHS)
    parser.add_argument("--spacing", default="scan", choices=("scan", "native"))
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        path, features = options.one
        result = run(options.files[0], path, options.model, options.spacing, options.threads, Path(features))
        print(json.dumps(result))
        return
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        scans = [compare(file, options, Path(folder)) for file in options.files]
    machine = {"processor": platform.processor() or platform.machine(), "threads": options.threads}
    print(
        json.dumps(
            {"model": options.model, "machine": machine | {"torch": torch.__version__}, "scans": scans}, indent=2
        )
    )


if __name__ == "__main__":
    main()
