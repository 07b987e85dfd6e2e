"""Crops with label maps -> loss of the local transformer that names what every patch and every crop holds.

Where voxels are labelled (by phantoms, by hand, by a segmentation model), they say far more than a report, and they say it at
its place. Two linear heads read the local transformer: one each patch token, one the crop's descriptor (class token and mean
of the patch tokens), which is what report alignment reads after it. Both answer, for every structure, whether any voxel is
there: structures may overlap a patch as they like.
"""

# ruff: noqa: F722

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..modeling_ctfm import CTFMLocalModel
from .objective import Metrics


@dataclass(frozen=True, kw_only=True)
class SegmentationConfig:
    """Weights of the two losses, each a sum over structures and a mean over patches or crops.

    Args:
        patch_weight, crop_weight: of the losses.
        least_voxels: of a structure that a crop holds; fewer at its edge are left out of the crop's loss.
        rare_weight: where a structure is present weighs as much as where it is absent in a process's batch, but at most so
            many times as much. With 1 all places weigh alike: organs are then learnt long before findings, which few patches
            hold.
    """

    patch_weight: float = 1.0
    crop_weight: float = 0.2
    least_voxels: int = 3
    rare_weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class SegmentationBatch:
    """pixel_values: `(b, c, D, H, W)`; segmentation: `(b, D, H, W)` uint8, 0 where nothing is."""

    pixel_values: Tensor
    segmentation: Tensor

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "SegmentationBatch":
        return replace(
            self,
            pixel_values=self.pixel_values.to(device, non_blocking=non_blocking),
            segmentation=self.segmentation.to(device, non_blocking=non_blocking),
        )


def count_voxels(
    segmentation: Int[Tensor, "b D H W"], patch_size: Sequence[int], structures: tuple[int, ...]
) -> Float[Tensor, "b n k"]:
    """Voxels of each structure in each patch, in the order of the patch tokens."""
    d, h, w = patch_size
    parts = segmentation.unflatten(3, (-1, w)).unflatten(2, (-1, h)).unflatten(1, (-1, d))
    patches = parts.permute(0, 1, 3, 5, 2, 4, 6).flatten(4).flatten(1, 3).long()  # (b, n, voxels)
    counts = torch.zeros(*patches.shape[:2], 256, device=patches.device)
    counts.scatter_add_(2, patches, torch.ones((), device=patches.device).expand(patches.shape))
    return counts[..., torch.tensor(structures, device=patches.device)]


class Segmenter(nn.Module):
    """The local transformer and a head for patches and one for crops."""

    def __init__(self, backbone: CTFMLocalModel, num_structures: int):
        super().__init__()
        self.backbone = backbone
        width = backbone.config.hidden_size
        self.patch_head = nn.Linear(width, num_structures)
        self.crop_head = nn.Linear(2 * width, num_structures)
        for head in (self.patch_head, self.crop_head):
            nn.init.zeros_(head.weight)
            nn.init.constant_(head.bias, -3.0)  # most structures are in few places

    def forward(self, pixel_values: Float[Tensor, "b c D H W"]) -> tuple[Float[Tensor, "b n k"], Float[Tensor, "b k"]]:
        """Logits of patches and of crops."""
        hidden = self.backbone(pixel_values, return_dict=True).last_hidden_state
        patches = hidden[:, self.backbone.config.num_prefix_tokens :]
        return self.patch_head(patches), self.crop_head(torch.cat((hidden[:, 0], patches.mean(1)), -1))


class SegmentationObjective(nn.Module):
    """See the module. `structures` are the label map's numbers; `local_model` is trained in place."""

    def __init__(self, local_model: CTFMLocalModel, structures: tuple[int, ...], config: SegmentationConfig):
        super().__init__()
        if local_model.config.air_patch_level is not None:
            raise ValueError(
                f"air_patch_level {local_model.config.air_patch_level} leaves patches out of the local transformer, and "
                "every patch is asked about here. Set it to None for training with label maps."
            )
        self.config, self.structures = config, structures
        self.segmenter = Segmenter(local_model, len(structures))
        local_model.embeddings.mask_token.requires_grad_(False)  # nothing is hidden: DDP would wait for its gradient

    @property
    def model(self) -> nn.Module:
        return self.segmenter

    @property
    def inference_model(self) -> CTFMLocalModel:
        return self.segmenter.backbone

    def forward(self, batch: SegmentationBatch) -> tuple[Float[Tensor, ""], Metrics]:
        patch_logits, crop_logits = self.segmenter(batch.pixel_values)
        counts = count_voxels(batch.segmentation, self.segmenter.backbone.config.patch_size, self.structures)
        whole = counts.sum(1)
        rare_weight = self.config.rare_weight
        patch_loss = presence_loss(patch_logits, counts > 0, torch.ones_like(counts), rare_weight)
        is_clear = (whole == 0) | (whole >= self.config.least_voxels)
        crop_loss = presence_loss(crop_logits, whole > 0, is_clear.to(counts.dtype), rare_weight)
        loss = self.config.patch_weight * patch_loss + self.config.crop_weight * crop_loss
        return loss, {"patch": patch_loss.detach(), "crop": crop_loss.detach()}

    def after_step(self, step: int) -> None:
        """There is no teacher to update."""


def presence_loss(
    logits: Float[Tensor, "*rows k"], present: Tensor, counted: Float[Tensor, "*rows k"], rare_weight: float = 1.0
) -> Float[Tensor, ""]:
    """Binary cross entropy, summed over structures, mean over rows; see `SegmentationConfig.rare_weight`."""
    losses = nn.functional.binary_cross_entropy_with_logits(logits.float(), present.float(), reduction="none")
    shares = (present.float() * counted).flatten(0, -2).mean(0)
    weights = ((1 - shares) / shares.clamp(min=1e-6)).clamp(1.0, rare_weight)  # of a structure's places, each
    return (losses * counted * torch.where(present, weights, 1.0)).sum(-1).mean()
