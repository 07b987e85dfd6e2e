"""The plan in train/README.md: computed, not written."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ctfm import CTFMForSemanticSegmentation
from ctfm.train.plan import (
    Assumptions,
    Measured,
    count_parameters,
    crop_bytes,
    crops_of_a_scan,
    format_plan,
    list_work,
    read_measured,
    time_step,
)
from ctfm.train.recipes import SelfSupervisionPhase, large
from ctfm.train.throughput import decoder_flops
from torch.utils.flop_counter import FlopCounterMode

from tests.tiny import tiny_config

README = Path(__file__).parent.parent / "train" / "README.md"
MEASURED = Measured(share_of_int16=0.4, core_bytes=200e6)


def test_the_readme_holds_what_the_script_prints() -> None:
    _, text, _ = README.read_text().split("<!-- plan -->")
    assert text.strip() == format_plan(large(), Assumptions(), read_measured())


def test_bytes_and_crops_by_hand() -> None:
    assumed = Assumptions(shape=(256, 512, 512), spacing_mm=(1.5, 0.75, 0.75))
    assert crops_of_a_scan(assumed, (64, 128, 128)) == 4 * 4 * 4
    phase = large().phases["self_supervision"]
    assert isinstance(phase, SelfSupervisionPhase)
    phase = replace(phase, crop_mm=(96.0, 96.0, 96.0))  # 64 x 128 x 128 voxels in blocks of 32 x 64 x 64
    touched = math.prod((n + block - 1) / block for n, block in ((64, 32), (128, 64), (128, 64)))
    assert crop_bytes(phase, assumed) == pytest.approx(touched * 32 * 64 * 64 * 2)


def test_parameters_are_those_of_spectres_local_transformer_and_two_heads() -> None:
    local, student = count_parameters(large())
    assert local == pytest.approx(338_528_160, rel=1e-3)
    head = 1080 * 2048 + 2048 * 2048 + 2048 * 256 + 256 * 65_536
    assert student - local == pytest.approx(2 * head, rel=1e-3)


def test_work_is_shared_by_nodes_until_a_batch_has_no_more_to_give() -> None:
    assumed = Assumptions()
    *_, align = list_work(large(), assumed, MEASURED)
    seconds = {nodes: time_step(align, nodes, assumed, MEASURED)["GPUs"] for nodes in (1, 4, 16, 64)}
    assert seconds[1] == pytest.approx(4 * seconds[4]) == pytest.approx(16 * seconds[16])
    assert seconds[64] == seconds[16]  # 128 pairs keep 128 GPUs at work
    assert time_step(align, 1, assumed, MEASURED)["network"] == 0


def test_slower_drives_bound_the_step() -> None:
    slow = replace(Assumptions(), local_bytes=1e9)
    crops = list_work(large(), slow, MEASURED)[0]
    seconds = time_step(crops, 4, slow, MEASURED)
    assert max(seconds, key=lambda name: seconds[name]) == "local drives"
    assert seconds["local drives"] == pytest.approx(crops.disk_bytes / 4e9)


@pytest.mark.parametrize("stride", [1, 2])
def test_the_decoders_operations_are_those_that_torch_counts(stride: int) -> None:
    config = tiny_config()
    config.decoder_stride = stride
    decoder = CTFMForSemanticSegmentation(config).decoder
    size, vision = (16, 32, 32), config.vision_config
    tokens = torch.zeros(1, *(n // p for n, p in zip(size, vision.patch_size, strict=True)), vision.hidden_size)
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        decoder(torch.zeros(1, 1, *size), tokens, torch.zeros(1, vision.global_config.hidden_size))
    assert counted.get_total_flops() == pytest.approx(decoder_flops(decoder, size), rel=0.01)
