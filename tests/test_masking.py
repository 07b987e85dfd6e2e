import math

import numpy as np
import pytest
import torch
from jaxtyping import install_import_hook
from scipy import ndimage

with install_import_hook("ctfm.train.masking", "beartype.beartype"):
    from ctfm.train.masking import MaskingConfig, draw_counts, draw_kept_crops, draw_token_mask, neighbours

GRIDS = [(8, 8, 8), (4, 8, 16), (1, 6, 6), (2, 2, 2)]


def draw(seed: int = 0, num_views: int = 16, grid: tuple[int, int, int] = (8, 8, 8), **numbers: float) -> torch.Tensor:
    config = MaskingConfig(**numbers)  # type: ignore[arg-type]
    return draw_token_mask(num_views, grid, config, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("grid", GRIDS)
def test_half_of_the_views_hide_exactly_the_drawn_counts(grid: tuple[int, int, int]) -> None:
    mask = draw(grid=grid)
    counts = draw_counts(16, math.prod(grid), MaskingConfig(), torch.Generator().manual_seed(0))
    assert mask.shape == (16, math.prod(grid))
    assert mask.sum(1).tolist() == counts.tolist()
    assert int(mask.any(1).sum()) == 8


def test_every_part_of_the_ratio_range_gives_one_view() -> None:
    for seed in range(20):
        ratios = draw(seed).float().mean(1).sort().values[8:]
        edges = torch.linspace(0.2, 0.7, 9)
        half_a_token = 0.5 / 512 + 1e-6
        assert (ratios >= edges[:-1] - half_a_token).all()
        assert (ratios <= edges[1:] + half_a_token).all()


def test_which_views_are_hidden_and_how_much_varies_with_the_seed() -> None:
    masks = torch.stack([draw(seed).any(1) for seed in range(100)]).float()
    assert (masks.mean(0) - 0.5).abs().max() < 0.2  # 4 standard deviations of a share over 100 draws
    assert len({int(draw(seed).sum()) for seed in range(20)}) > 10


@pytest.mark.parametrize("masked_share", [0.0, 1.0])
def test_no_view_or_every_view_can_be_hidden(masked_share: float) -> None:
    assert draw(masked_share=masked_share).any(1).float().mean() == masked_share


def test_a_whole_view_can_be_hidden() -> None:
    assert draw(masked_share=1.0, lowest_ratio=1.0, highest_ratio=1.0).all()


@pytest.mark.parametrize("grid", [(8, 8, 8), (4, 8, 16)])
def test_hidden_tokens_form_a_few_connected_blocks(grid: tuple[int, int, int]) -> None:
    parts, scattered = [], []
    for seed in range(10):
        masks = draw(seed, grid=grid)
        for mask in masks[masks.any(1)]:
            labelled, number = ndimage.label(mask.reshape(grid).numpy())
            sizes = np.bincount(labelled.ravel())[1:]
            assert sizes.min() >= 2
            parts.append(number)
            shuffled = mask[torch.randperm(len(mask), generator=torch.Generator().manual_seed(seed))]
            scattered.append(ndimage.label(shuffled.reshape(grid).numpy())[1])
    assert np.mean(parts) < 3
    assert np.mean(scattered) > 10


def test_every_place_is_hidden_about_as_often() -> None:
    share = torch.cat([draw(seed, masked_share=1.0) for seed in range(30)]).float().mean(0).reshape(8, 8, 8)
    inner, corner = share[2:6, 2:6, 2:6].mean(), share[::7, ::7, ::7].mean()
    assert corner > inner / 3  # boxes cover a corner less often, but do not leave it alone
    assert (share - share.flip((0, 1, 2))).abs().mean() < 0.07  # no end of an axis is preferred


def test_the_same_seed_gives_the_same_mask() -> None:
    assert torch.equal(draw(5), draw(5))
    assert not torch.equal(draw(5), draw(6))


def test_neighbours_share_a_face() -> None:
    mask = torch.zeros(1, 3, 3, 3, dtype=torch.bool)
    mask[0, 1, 1, 1] = True
    cross = torch.from_numpy(ndimage.generate_binary_structure(3, 1)) & ~mask[0]
    assert torch.equal(neighbours(mask)[0], cross)


def test_wrong_ratios_are_refused_by_value() -> None:
    with pytest.raises(ValueError, match=r"0\.8 and highest_ratio 0\.7"):
        MaskingConfig(lowest_ratio=0.8)


def test_kept_crops_are_real_ordered_and_of_one_number() -> None:
    crop_mask = torch.arange(12)[None] < torch.tensor([[12], [7], [3]])
    kept = draw_kept_crops(crop_mask, 0.5, torch.Generator().manual_seed(0))
    assert kept.shape == (3, 6)
    assert (kept.diff(dim=1) > 0).all()
    assert crop_mask.gather(1, kept).sum(1).tolist() == [6, 6, 3]


def test_keeping_every_crop_changes_nothing() -> None:
    kept = draw_kept_crops(torch.ones(2, 5, dtype=torch.bool), 1.0, torch.Generator())
    assert kept.tolist() == [list(range(5))] * 2
