"""Recipe and device -> floating-point operations of a sample, for the model FLOP utilisation.

A multiplication and an addition are two. Only what the model must do counts: matrix products and attention, backward as
twice the forward, nothing for what activation checkpointing repeats (PaLM, arXiv:2204.02311, appendix B).
"""

import math
from collections.abc import Sequence

import torch

from ..configuration_ctfm import CTFMGlobalConfig, CTFMVisionConfig
from ..modeling_ctfm import CTFMFineDecoder
from .recipes import AlignmentPhase, FineTuning, SegmentationPhase, SelfSupervisionPhase

# Dense bf16, from the vendor's data sheets, by what the name of the device contains.
PEAK_FLOPS = {"B200": 2.25e15, "H200": 9.89e14, "H100": 9.89e14, "A100": 3.12e14, "L40S": 3.62e14}


def peak_flops(device: torch.device) -> float | None:
    """Of one device per second; None where the data sheet is not known here."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((peak for part, peak in PEAK_FLOPS.items() if part in name), None)


def layer_flops(config: CTFMVisionConfig | CTFMGlobalConfig, num_tokens: int) -> float:
    """Forward of all layers over a sequence: four projections, two of the MLP, attention."""
    e, i = config.hidden_size, config.intermediate_size
    return config.num_hidden_layers * (2 * num_tokens * (4 * e * e + 2 * e * i) + 4 * num_tokens**2 * e)


def num_tokens(config: CTFMVisionConfig, size: Sequence[int]) -> int:
    """Of one crop or view, prefix tokens included."""
    num_patches = math.prod(n // p for n, p in zip(size, config.patch_size, strict=True))
    return num_patches + 1 + config.num_register_tokens


def stem_flops(config: CTFMVisionConfig, size: Sequence[int]) -> float:
    """Forward of the convolutional stem over one crop; 0 without one."""
    total, before, voxels = 0.0, config.windowed_channels, math.prod(size)
    for channels in config.stem_channels or ():
        voxels /= 8
        total += 2 * voxels * 27 * channels * (before + channels)
        before = channels
    return total


def crop_flops(config: CTFMVisionConfig, size: Sequence[int], backward: bool = False) -> float:
    """Forward of the local transformer over one crop or view; with `backward` both, in which voxels get no gradient."""
    num_patches = num_tokens(config, size) - 1 - config.num_register_tokens
    embedded = config.stem_channels[-1] if config.stem_channels else config.windowed_channels
    places = math.prod(n // config.stem_stride for n in config.patch_size)
    embedding = 2 * num_patches * places * embedded * config.hidden_size + stem_flops(config, size)
    layers = layer_flops(config, num_tokens(config, size))
    return 2 * embedding + 3 * layers if backward else embedding + layers


def view_tokens(phase: SelfSupervisionPhase, config: CTFMVisionConfig) -> int:
    """That the student reads of one crop."""
    views = (phase.views.global_views, phase.views.local_views)
    return sum(view.count * num_tokens(config, view.size) for view in views)


def self_supervision_flops(phase: SelfSupervisionPhase, config: CTFMVisionConfig) -> float:
    """Student forward and backward and teacher forward of one crop, with the heads."""
    views, heads = phase.views, phase.objective
    shapes = (views.global_views, views.local_views)
    student = sum(shape.count * crop_flops(config, shape.size, backward=True) for shape in shapes)
    teacher = views.global_views.count * crop_flops(config, views.global_views.size)
    hidden, bottleneck = heads.head_hidden_size, heads.head_bottleneck_size
    row = 2 * (config.hidden_size * hidden + hidden * hidden + hidden * bottleneck + bottleneck * heads.num_prototypes)
    masking = phase.masking
    ratio = masking.masked_share * (masking.lowest_ratio + masking.highest_ratio) / 2
    hidden_rows = ratio * views.global_views.count * (num_tokens(config, views.global_views.size) - 1)
    teacher_rows = views.global_views.count + hidden_rows
    student_rows = teacher_rows + views.local_views.count
    return student + 3 * student_rows * row + teacher + teacher_rows * row


def segmentation_flops(phase: SegmentationPhase, config: CTFMVisionConfig) -> float:
    """Forward and backward of one crop; the heads are too small to count."""
    return crop_flops(config, phase.views.global_views.size, backward=True)


def alignment_flops(
    phase: AlignmentPhase, config: CTFMVisionConfig, crop_size: Sequence[int], num_crops: float
) -> float:
    """Of one scan of `num_crops` crops, without the text tower."""
    kept = num_crops * phase.kept_crops
    assert isinstance(config.global_config, CTFMGlobalConfig)
    mixing = 3 * layer_flops(config.global_config, round(kept) + 1)
    if phase.descriptors_are_cached:
        return mixing
    return mixing + kept * crop_flops(config, crop_size, backward=not phase.objective.local_is_frozen)


def label_flops(
    recipe: FineTuning,
    config: CTFMVisionConfig,
    crop_size: Sequence[int],
    num_crops: float,
    decoder: CTFMFineDecoder | None = None,
) -> float:
    """Of one scan of `num_crops` crops, with the decoder where voxels are labelled."""
    learns = not recipe.trunk_is_frozen
    trunk = num_crops * crop_flops(config, crop_size, backward=learns)
    if isinstance(config.global_config, CTFMGlobalConfig):
        trunk += (3 if learns else 1) * layer_flops(config.global_config, round(num_crops) + 1)
    return trunk if decoder is None else trunk + 3 * num_crops * decoder_flops(decoder, crop_size)


def decoder_flops(decoder: CTFMFineDecoder, crop_size: Sequence[int]) -> float:
    """Forward of its convolutions over one crop; what tokens bring is too small to count."""
    fine = math.prod(n / step for n, step in zip(crop_size, decoder.stem1.stride, strict=True))
    at_fine = (decoder.stem1, decoder.up2, decoder.up1, decoder.classifier)
    at_half, at_quarter = (decoder.stem2, decoder.up4), (decoder.stem4,)
    levels = ((fine, at_fine), (fine / 8, at_half), (fine / 64, at_quarter))
    return sum(2 * voxels * layer.weight.numel() for voxels, layers in levels for layer in layers)
