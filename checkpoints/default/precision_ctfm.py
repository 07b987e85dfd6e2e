"""Local transformer -> the same in the arithmetic that a processor is fast at, for inference.

Most of the work on a scan is the matrix products of the local transformer, so they alone are changed: the stem and everything
after the crops stays in float32. How far a precision may move the features is measured on the model itself, not assumed.
"""

import copy
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from .configuration_ctfm import CTFMVisionConfig
    from .modeling_ctfm import CTFMLocalModel

PRECISIONS = ("float32", "bfloat16", "int8")
MIN_COSINE = 0.999  # of descriptors, and of patch tokens on average, to those of float32
WIDE = 768  # hidden size from which 8-bit products gain more than turning activations into 8 bits costs


def set_precision(local_model: "CTFMLocalModel", precision: str) -> str:
    """Changes a local transformer in float32 in place; see `CTFMPreTrainedModel.set_precision`."""
    if precision != "auto":
        convert(local_model, precision)
        return precision
    crops = probe_crops(local_model.config).to(local_model.device)
    exact = encode(local_model, crops)
    for candidate in list_candidates(local_model.config, local_model.device):
        trial = copy.deepcopy(local_model)
        convert(trial, candidate)
        if is_close(encode(trial, crops), exact):
            convert(local_model, candidate)
            return candidate
    return "float32"


def convert(local_model: "CTFMLocalModel", precision: str) -> None:
    """
    Raises:
        ValueError: there is no such precision, or none such on this device.
    """
    if precision not in PRECISIONS:
        raise ValueError(f'precision {precision!r} is unknown; choose "auto" or one of {", ".join(PRECISIONS)}.')
    is_on_cpu = local_model.device.type == "cpu"
    if precision == "bfloat16":
        local_model.layers.bfloat16()
    if precision == "int8":
        if not is_on_cpu:
            raise ValueError(f'precision "int8" is made of products of CPUs, and the model is on {local_model.device}.')
        from torch.ao.quantization import quantize_dynamic

        with warnings.catch_warnings():
            # deprecated for torchao, whose integer products took more CPU time than these and than plain bfloat16
            # (benchmarks/results/int8_cpu.json)
            warnings.simplefilter("ignore")
            quantize_dynamic(local_model.layers, {nn.Linear}, dtype=torch.qint8, inplace=True)
    if precision != "float32" and is_on_cpu and multiplies_bfloat16(local_model.device):
        for layer in local_model.layers:
            attention: Any = layer.attention
            attention.product_dtype = torch.bfloat16
    local_model.precision = precision


def list_candidates(config: "CTFMVisionConfig", device: torch.device) -> list[str]:
    """Precisions that are faster than float32 on a device, the fastest first.

    8-bit products gain on every x86 processor, most with VNNI, and in wide layers more than bfloat16
    (benchmarks/spectre_fm.py); in narrow ones bfloat16 does as well, without a pass over the activations.
    """
    is_wide = config.hidden_size >= WIDE
    candidates = ["bfloat16"] if multiplies_bfloat16(device) else []
    if device.type == "cpu" and "x86" in torch.backends.quantized.supported_engines:
        candidates.insert(0 if is_wide else len(candidates), "int8")
    return candidates


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether products in bfloat16 are instructions of the processor; elsewhere they are slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # torch has no public question for it: torch.backends.cpu.get_cpu_capability() tells AVX-512, not its parts.
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()


def probe_crops(config: "CTFMVisionConfig") -> Tensor:
    """Crops of 4 x 4 x 4 patches, `(2, c, D, H, W)`: smooth noise about soft tissue, and from air to bone. Always the same, so
    the choice hangs on weights and machine alone and is the same for every scan of a folder."""
    size = [4 * patch for patch in config.patch_size]
    generator = torch.Generator().manual_seed(0)
    noise = torch.zeros(2, config.num_channels, *size)
    for scale in (1, 4, 8):
        coarse = [max(2, length // scale) for length in size]
        drawn = torch.randn(2, config.num_channels, *coarse, generator=generator)
        noise += nn.functional.interpolate(drawn, size=size, mode="trilinear")
    contrast = torch.tensor([0.02, 0.2]).view(2, 1, 1, 1, 1)
    return (0.45 + contrast * noise).clamp(0, 1)


@torch.inference_mode()
def encode(local_model: "CTFMLocalModel", crops: Tensor) -> tuple[Tensor, Tensor]:
    """Descriptors and patch tokens."""
    output = local_model(crops, return_dict=True)
    return output.pooler_output.float(), output.last_hidden_state.float()


def is_close(found: tuple[Tensor, Tensor], exact: tuple[Tensor, Tensor]) -> bool:
    descriptors, tokens = (nn.functional.cosine_similarity(a, b, dim=-1) for a, b in zip(found, exact, strict=True))
    return bool(descriptors.min() >= MIN_COSINE and tokens.mean() >= MIN_COSINE)
