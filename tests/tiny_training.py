"""Batches and objectives of the smallest size, shared by the tests of training."""

from dataclasses import replace
from pathlib import Path

import torch
from ctfm import CTFMModel
from ctfm.modeling_ctfm import CTFMLocalModel
from ctfm.phantom.dataset import PhantomDataset, write_dataset
from ctfm.train.alignment import AlignmentBatch, AlignmentConfig, AlignmentObjective
from ctfm.train.masking import MaskingConfig, draw_token_mask
from ctfm.train.objective import SelfSupervisionBatch, SelfSupervisionConfig, SelfSupervisionObjective
from ctfm.train.prepare import main as prepare
from ctfm.train.processes import ALONE, Processes
from ctfm.train.recipes import AlignmentPhase, OptimizerConfig, Recipe, SegmentationPhase, SelfSupervisionPhase
from ctfm.train.reports import ReportConfig
from ctfm.train.views import ViewConfig, ViewShape

from tests.tiny import TEXT, VISION, tiny_config, tiny_crops

SELF_SUPERVISION = {
    "num_prototypes": 32,
    "head_hidden_size": 24,
    "head_bottleneck_size": 12,
    "teacher_temperature_warmup_steps": 60,
    "frozen_prototype_steps": 0,
}


def tiny_self_supervision(
    seed: int = 0, processes: Processes = ALONE, vision: dict | None = None, total_steps: int = 200, **numbers: object
) -> SelfSupervisionObjective:
    torch.manual_seed(seed)
    local_model = CTFMLocalModel(tiny_config(**(vision or {})).vision_config)
    config = SelfSupervisionConfig(**SELF_SUPERVISION | numbers)  # type: ignore[arg-type]
    return SelfSupervisionObjective(local_model, config, total_steps=total_steps, processes=processes).train()


def tiny_views(crops: int = 4, seed: int = 0, local_views: int = 3) -> SelfSupervisionBatch:
    """Crops that differ, and views of them that differ a little; 2 x 2 x 4 and 1 x 2 x 2 patches."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.rand(crops, 1, 8, 16, 32, generator=generator)
    views = base + 0.2 * torch.rand(2, *base.shape, generator=generator)
    corner = base[..., :4, :16, :16]
    local = corner + 0.2 * torch.rand(local_views, *corner.shape, generator=generator)
    mask = draw_token_mask(2 * crops, (2, 2, 4), MaskingConfig(smallest_block=2), generator)
    return SelfSupervisionBatch(global_views=views, local_views=local, token_mask=mask.unflatten(0, (2, crops)))


def part_of_views(batch: SelfSupervisionBatch, part: slice) -> SelfSupervisionBatch:
    return SelfSupervisionBatch(
        global_views=batch.global_views[:, part],
        local_views=batch.local_views[:, part],
        token_mask=batch.token_mask[:, part],
    )


def tiny_alignment(
    seed: int = 0, processes: Processes = ALONE, vision: dict | None = None, **claims: bool
) -> AlignmentObjective:
    torch.manual_seed(seed)
    config = tiny_config(**(vision or {}))
    config.text_config.hidden_dropout_prob = config.text_config.attention_probs_dropout_prob = (
        0.0  # two passes are equal
    )
    model = CTFMModel(config)
    return AlignmentObjective(model, AlignmentConfig(**claims), processes).train()


def tiny_pairs(scans: int = 4, seed: int = 0) -> AlignmentBatch:
    generator = torch.Generator().manual_seed(seed)
    crop_mask = torch.ones(scans, 8, dtype=torch.bool)
    crop_grid = torch.tensor([[2, 2, 2]] * scans)
    crop_mask[-1, 4:], crop_grid[-1] = False, torch.tensor([1, 2, 2])  # the last scan is smaller
    brightness = torch.linspace(0.3, 1, scans).view(-1, 1, 1, 1, 1, 1)  # tells scans apart
    return AlignmentBatch(
        input_ids=torch.randint(1, 100, (scans, 6), generator=generator),
        attention_mask=torch.arange(6)[None] < torch.randint(3, 7, (scans, 1), generator=generator),
        text_keys=torch.arange(scans)[:, None],
        crop_grid=crop_grid,
        crop_mask=crop_mask,
        pixel_values=tiny_crops(scans, seed=seed) * brightness * crop_mask[:, :, None, None, None, None],
    )


def part_of_pairs(batch: AlignmentBatch, part: slice) -> AlignmentBatch:
    return AlignmentBatch(
        **{name: tensor[part] for name, tensor in vars(batch).items() if tensor is not None}  # type: ignore[arg-type]
    )


def gradients(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def tiny_data(folder: Path, num_train: int = 12, num_test: int = 0) -> Path:
    """Phantoms of 16 x 24 x 24 voxels in shards of four."""
    table = write_dataset(
        PhantomDataset(folder=folder / "phantoms", num_train=num_train, num_test=num_test, shape=(16, 24, 24))
    )
    prepare(["csv", str(table), str(folder / "prepared"), "--scans-per-shard", "4", "--num-workers", "0"])
    return folder / "prepared"


def tiny_recipe(steps: int = 6, micro_batches: int = 1) -> Recipe:
    """Self-supervision, label maps, alignment over cached descriptors, alignment of all; two passes over one step are equal."""
    optimizer = OptimizerConfig(learning_rate=1e-3, warmup_steps=min(2, steps), weight_decay=0.1, last_weight_decay=0.2)
    batch = {"global_batch": 4, "micro_batch": 4 // micro_batches, "optimizer": optimizer, "steps": steps}
    local = ViewShape(count=2, size=(4, 16, 16), spacing=(16, 16, 16), zoom=(0.8, 1.2))
    views = ViewConfig(global_views=replace(local, size=(8, 16, 32)), local_views=local)
    align = AlignmentPhase(**batch, descriptors_are_cached=True, reports=ReportConfig(max_tokens=40))  # type: ignore[arg-type]
    return Recipe(
        name="tiny",
        vocabulary=200,
        model={
            "vision_config": VISION | {"drop_path_rate": 0.1},
            "text_config": TEXT | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
            "projection_hidden_size": 32,
            "projection_bottleneck_size": 16,
            "projection_dim": 24,
            "initializer_range": 0.2,
        },
        processor={"crop_size": (8, 16, 16), "spacing": (20.0, 20.0, 20.0)},
        phases={
            "self_supervision": SelfSupervisionPhase(
                **batch,  # type: ignore[arg-type]
                crops_per_scan=2,
                crop_mm=(160.0, 320.0, 320.0),
                views=views,
                masking=MaskingConfig(smallest_block=2),
                objective=SelfSupervisionConfig(**SELF_SUPERVISION),  # type: ignore[arg-type]
            ),
            "segmentation": SegmentationPhase(**batch, crop_mm=(160.0, 320.0, 320.0), views=views),  # type: ignore[arg-type]
            "alignment": align,
            "alignment_of_all": replace(
                align,
                descriptors_are_cached=False,
                kept_crops=0.5,
                objective=AlignmentConfig(local_is_frozen=False),
            ),
        },
    )
