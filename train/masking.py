"""token grid -> boolean token mask, and crops of a scan -> those that are kept.

Everything is drawn from a `torch.Generator` on the CPU, so that a mask depends on the seed of its step alone. Leave token
masks on the CPU: the objective lists the hidden tokens, which would stop a GPU.
"""

# ruff: noqa: F722
import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

Grid = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class MaskingConfig:
    """How much of the global views is hidden.

    Args:
        masked_share: share of the views with hidden tokens (DINOv2 and SPECTRE: 0.5).
        lowest_ratio, highest_ratio: hidden share of such a view (SPECTRE, arXiv:2511.17209, table 5: U(0.2, 0.7);
            DINOv2: U(0.1, 0.5)).
        smallest_block: tokens of the smallest block; what is left below that grows from the rim of the others (BEiT,
            arXiv:2106.08254: 16 of 196 in two dimensions; 8 is a cube of two).
        largest_stretch: longest against shortest side of a block before it is rounded (BEiT: 0.3 to 1/0.3).
    """

    masked_share: float = 0.5
    lowest_ratio: float = 0.2
    highest_ratio: float = 0.7
    smallest_block: int = 8
    largest_stretch: float = 10 / 3

    def __post_init__(self) -> None:
        if not 0 <= self.masked_share <= 1:
            raise ValueError(f"masked_share {self.masked_share} must lie between 0 and 1.")
        if not 0 < self.lowest_ratio <= self.highest_ratio <= 1:
            raise ValueError(
                f"lowest_ratio {self.lowest_ratio} and highest_ratio {self.highest_ratio} must be ordered within 0 to 1."
            )


def draw_token_mask(
    num_views: int, grid: Grid, config: MaskingConfig, generator: torch.Generator
) -> Bool[Tensor, "views n"]:
    """Hidden tokens of every view, True = hidden, in blocks.

    Ratios are stratified: m masked views take one ratio from each of m equal parts of the range, so that every batch has
    about the same number of hidden tokens. Counts are exact.

    >>> mask = draw_token_mask(4, (8, 8, 8), MaskingConfig(), torch.Generator().manual_seed(0))
    >>> mask.shape, int(mask.any(1).sum())
    (torch.Size([4, 512]), 2)
    """
    counts = draw_counts(num_views, math.prod(grid), config, generator)
    return draw_blocks(counts, grid, config, generator)


def draw_counts(
    num_views: int, num_tokens: int, config: MaskingConfig, generator: torch.Generator
) -> Int[Tensor, " views"]:
    """How many tokens of every view are hidden; most views of zero tokens come from `masked_share`."""
    num_masked = round(num_views * config.masked_share)
    within = (torch.arange(num_masked) + torch.rand(num_masked, generator=generator)) / max(num_masked, 1)
    ratios = config.lowest_ratio + (config.highest_ratio - config.lowest_ratio) * within
    counts = torch.zeros(num_views, dtype=torch.long)
    counts[:num_masked] = (ratios * num_tokens).round().long().clamp(min=1)
    return counts[torch.randperm(num_views, generator=generator)]


def draw_blocks(
    counts: Int[Tensor, " views"], grid: Grid, config: MaskingConfig, generator: torch.Generator
) -> Bool[Tensor, "views n"]:
    """Hides exactly `counts` tokens of every view in boxes; less than a smallest box then grows from their rim."""
    mask = torch.zeros(len(counts), *grid, dtype=torch.bool)
    while True:
        left = counts - mask.flatten(1).sum(1)
        views = ((left >= config.smallest_block) | ((left == counts) & (left > 0))).nonzero()[:, 0]
        if not len(views):
            break
        box = (draw_box(left[views], grid, config, generator) & ~mask[views]).flatten(1)
        # A box is filled in raster order from one end or the other, so that a cut box still hangs together.
        order = box.cumsum(1)
        from_end = torch.rand(len(views), 1, generator=generator) < 0.5
        order = torch.where(from_end, order[:, -1:] + 1 - order, order)
        mask[views] |= (box & (order <= left[views, None])).unflatten(1, grid)
    while len(views := (left := counts - mask.flatten(1).sum(1)).nonzero()[:, 0]):
        rim = (neighbours(mask[views]) & ~mask[views]).flatten(1)
        scores = torch.rand(rim.shape, generator=generator).masked_fill(~rim, 2.0)
        lowest = scores.topk(int(left.max()), largest=False, sorted=True).values
        threshold = lowest.gather(1, left[views, None] - 1)
        mask[views] |= (rim & (scores <= threshold)).unflatten(1, grid)
    return mask.flatten(1)


def draw_box(
    left: Int[Tensor, " views"], grid: Grid, config: MaskingConfig, generator: torch.Generator
) -> Bool[Tensor, "views d h w"]:
    """One box a view of `smallest_block` to `left` tokens (rounded to whole sides), anywhere in the grid."""
    views = len(left)
    smallest = torch.full_like(left, config.smallest_block).minimum(left).clamp(min=1)
    volume = smallest + (left - smallest) * torch.rand(views, generator=generator)
    stretch = (torch.rand(views, 3, generator=generator) - 0.5) * math.log(config.largest_stretch)
    shape = (stretch - stretch.mean(1, keepdim=True)).exp()  # sides of a box of volume 1
    sizes = torch.tensor(grid)
    sides = (shape * volume[:, None] ** (1 / 3)).round().long().clamp(min=1).minimum(sizes)
    # A box may stick out of the grid, all but two tokens of a side: otherwise corners would hardly ever be hidden.
    within = sides.clamp(max=2)
    start = within - sides + (torch.rand(views, 3, generator=generator) * (sizes + sides - 2 * within + 1)).long()
    inside = [
        (torch.arange(size) >= start[:, axis, None]) & (torch.arange(size) < (start + sides)[:, axis, None])
        for axis, size in enumerate(grid)
    ]
    return inside[0][:, :, None, None] & inside[1][:, None, :, None] & inside[2][:, None, None, :]


def neighbours(mask: Bool[Tensor, "views d h w"]) -> Bool[Tensor, "views d h w"]:
    """Tokens that share a face with a hidden one."""
    reached = torch.zeros_like(mask)
    for axis in (1, 2, 3):
        size = mask.shape[axis]
        reached.narrow(axis, 1, size - 1).logical_or_(mask.narrow(axis, 0, size - 1))
        reached.narrow(axis, 0, size - 1).logical_or_(mask.narrow(axis, 1, size - 1))
    return reached


def draw_kept_crops(crop_mask: Bool[Tensor, "b g"], share: float, generator: torch.Generator) -> Int[Tensor, "b kept"]:
    """Crops that the encoder sees in a step of report alignment, the same number of every scan, in their order.

    Leaves crops out at random as FLIP does patches (Li et al. 2023, arXiv:2212.00794). A scan's real crops come before its
    padding.
    """
    if not 0 < share <= 1:
        raise ValueError(f"The share of crops to keep, {share}, must be above 0 and at most 1.")
    num_kept = max(1, round(crop_mask.shape[1] * share))
    scores = torch.rand(crop_mask.shape, generator=generator) + (~crop_mask).float()
    return scores.argsort(1)[:, :num_kept].sort(1).values
