import copy
import math
import warnings
from pathlib import Path

import pytest
import torch
from ctfm import (
    CTFMBackbone,
    CTFMConfig,
    CTFMForImageClassification,
    CTFMForSemanticSegmentation,
    CTFMModel,
    CTFMVisionConfig,
    CTFMVisionModel,
    precision_ctfm,
)
from ctfm.modeling_ctfm import (
    CTFMLocalModel,
    apply_windows,
    grid_coordinates,
    multi_label_loss,
    pool_text,
    pool_token_scores,
    rotary_tables,
    rotate,
    segmentation_loss,
)
from huggingface_hub.errors import StrictDataclassClassValidationError
from transformers import BitsAndBytesConfig, Qwen3Config, TorchAoConfig

from tests.tiny import tiny_config, tiny_crops

GRID = torch.tensor([[2, 2, 2], [2, 2, 2]])


def vision_model(seed: int = 0, **vision: object) -> CTFMVisionModel:
    torch.manual_seed(seed)
    config = tiny_config(initializer_range=0.2, **vision).vision_config
    return CTFMVisionModel(config).eval()


# ---- position ----


def test_coordinates_span_minus_one_to_one_with_width_fastest() -> None:
    coordinates = grid_coordinates((1, 2, 4))
    assert coordinates[:, 0].tolist() == [0.0] * 8
    assert coordinates[:, 1].tolist() == [-0.5] * 4 + [0.5] * 4
    assert coordinates[:4, 2].tolist() == [-0.75, -0.25, 0.25, 0.75]


def test_rotary_attention_depends_on_the_distance_between_tokens_alone() -> None:
    torch.manual_seed(0)
    query, key = torch.randn(2, 1, 1, 1, 12)
    places = torch.rand(5, 3) * 0.2

    def score(at: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        turned = [rotate(x, *rotary_tables(c[None], 12, 100.0, 0)) for x, c in ((query, at), (key, other))]
        return (turned[0] * turned[1]).sum()

    shift = torch.tensor([0.3, -0.1, 0.25])
    for place in places:
        torch.testing.assert_close(score(places[0], place), score(places[0] + shift, place + shift))
    assert not torch.isclose(score(places[0], places[1]), score(places[0], places[2]))


def test_prefix_tokens_are_not_turned() -> None:
    cos, sin = rotary_tables(grid_coordinates((2, 1, 1)), 12, 100.0, 3)
    assert torch.equal(cos[:3], torch.ones(3, 12))
    assert torch.equal(sin[:3], torch.zeros(3, 12))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_every_axis_of_the_crop_and_of_the_grid_matters(axis: int) -> None:
    model = vision_model()
    pixel_values = tiny_crops(1)
    with torch.no_grad():
        before = model(pixel_values, GRID[:1])
        flipped = model(pixel_values.flip(3 + axis), GRID[:1])
        regridded = model(pixel_values.unflatten(1, (2, 2, 2)).flip(1 + axis).flatten(1, 3), GRID[:1])
    assert not torch.allclose(before.pooler_output, flipped.pooler_output, atol=1e-3)
    assert not torch.allclose(before.pooler_output, regridded.pooler_output, atol=1e-4)


# ---- local and global ----


@torch.no_grad()
def test_descriptor_is_class_token_beside_mean_patch_token() -> None:
    output = vision_model(num_register_tokens=2).local_model(tiny_crops()[0])
    tokens = output.last_hidden_state
    expected = torch.cat((tokens[:, 0], tokens[:, 3:].mean(1)), -1)
    torch.testing.assert_close(output.pooler_output[:, 0], expected)


@torch.no_grad()
def test_several_descriptors_of_a_crop_pool_their_own_part_and_know_their_place() -> None:
    model = vision_model(pooled_grid=(2, 1, 1))
    output = model(tiny_crops(), GRID, output_dense_features=True)
    assert output.crop_embeds.shape == (2, 8, 2, 48)
    assert output.last_hidden_state.shape == (2, 1 + 16, 36)
    upper = output.dense_features[:, :, 1].mean((2, 3))
    torch.testing.assert_close(output.crop_embeds[:, :, 1, 24:], upper)
    depth = model.descriptor_coordinates(GRID[:1], 8)[0, :, 0]
    assert depth.tolist() == [-0.75, -0.25] * 4 + [0.25, 0.75] * 4


@torch.no_grad()
def test_a_scan_padded_into_a_batch_gives_what_it_gives_alone() -> None:
    model = vision_model()
    large, small = tiny_crops(1), tiny_crops(1, 2, seed=1)
    padded = torch.cat((large, torch.nn.functional.pad(small, (0, 0) * 4 + (0, 6))))
    mask = torch.arange(8)[None] < torch.tensor([[8], [2]])
    both = model(padded, torch.tensor([[2, 2, 2], [1, 1, 2]]), mask)
    torch.testing.assert_close(both.pooler_output[:1], model(large, GRID[:1]).pooler_output)
    torch.testing.assert_close(both.pooler_output[1:], model(small, torch.tensor([[1, 1, 2]])).pooler_output)


@pytest.mark.parametrize("global_config", ["default", None])
def test_garbage_in_the_padding_changes_nothing(global_config: str | None) -> None:
    model = vision_model() if global_config else vision_model(global_config=None)
    pixel_values = tiny_crops(1)
    mask = torch.arange(8)[None] < 4
    grid = torch.tensor([[1, 2, 2]])
    other = pixel_values.clone()
    other[:, 4:] = 7.0
    with torch.no_grad():
        torch.testing.assert_close(
            model(pixel_values, grid, mask).pooler_output, model(other, grid, mask).pooler_output
        )


def test_air_crops_are_encoded_once_and_give_what_encoding_each_gives() -> None:
    model = vision_model(crops_per_chunk=3)
    pixel_values = tiny_crops()
    pixel_values[0, 1:5] = 0
    pixel_values[1] = 0
    seen = []
    hook = model.local_model.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    arguments = (pixel_values, GRID)
    with torch.no_grad():
        reused = model(*arguments, output_dense_features=True, output_hidden_states=True)
    hook.remove()
    assert seen == [3, 2]  # four crops with body, and one of air for the other twelve
    plain = model(*arguments, output_dense_features=True, output_hidden_states=True)  # with gradients: all at once
    for name in ("pooler_output", "last_hidden_state", "crop_embeds", "dense_features"):
        torch.testing.assert_close(reused[name], plain[name], rtol=0, atol=2e-5)
    for ours, theirs in zip(reused.hidden_states, plain.hidden_states, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)


@torch.no_grad()
def test_encoding_body_alone_equals_full_attention_where_all_is_body_and_ignores_what_is_air() -> None:
    full, packed = vision_model(), vision_model(air_patch_level=0.05)
    packed.load_state_dict(full.state_dict())
    pixel_values = tiny_crops() + 0.1
    torch.testing.assert_close(packed(pixel_values, GRID).pooler_output, full(pixel_values, GRID).pooler_output)

    pixel_values[:, :, :, :4, :8] = 0.01  # the two patches of this row are air
    output = packed(pixel_values, GRID, output_dense_features=True)
    assert (output.dense_features[:, :, 0, 0] == 0).all()
    assert (output.dense_features[:, :, 1] != 0).all()
    expected = output.dense_features.flatten(2, 4).sum(2) / 6
    torch.testing.assert_close(output.crop_embeds[:, :, 0, 24:], expected)
    louder = pixel_values.clone()
    louder[:, :, :, :4, :8] = 0.04
    torch.testing.assert_close(packed(louder, GRID).pooler_output, output.pooler_output)


@torch.no_grad()
def test_windows_show_the_patch_embedding_parts_of_the_range_each_as_channels_of_its_own() -> None:
    model = vision_model(windows=[(0, 1), (0.4, 0.6)]).local_model
    crops = tiny_crops()[0]
    embeddings, patches = model.embeddings, model.embeddings.cut(crops)
    plain, narrow = embeddings.projection.weight.chunk(2, 1)
    expected = patches @ plain.T + ((patches - 0.4) / 0.2).clamp(0, 1) @ narrow.T + embeddings.projection.bias
    torch.testing.assert_close(embeddings(patches)[:, 1:], expected.flatten(1, 3))
    outside = (crops < 0.4) | (crops > 0.6)
    assert outside.any()
    embeddings.projection.weight[:, : plain.shape[1]] = 0
    louder = torch.where(crops > 0.6, 1.0, torch.where(crops < 0.4, 0.0, crops))
    torch.testing.assert_close(model(louder).pooler_output, model(crops).pooler_output)


@pytest.mark.parametrize("windows", [[], [(0.6, 0.4)], [(0.1, 0.2, 0.3)]])
def test_windows_that_hold_no_range_are_refused(windows: list) -> None:
    with pytest.raises(
        StrictDataclassClassValidationError, match="must be pairs \\(low, high\\) with low < high, or None"
    ):
        vision_model(windows=windows)


@torch.no_grad()
def test_encoding_body_alone_does_not_mix_crops_of_different_fill() -> None:
    model = vision_model(air_patch_level=0.05)
    pixel_values = tiny_crops(1) + 0.1
    pixel_values[0, 3, :, :4] = 0
    together = model.local_model(pixel_values[0]).pooler_output
    alone = torch.cat([model.local_model(crop[None]).pooler_output for crop in pixel_values[0]])
    torch.testing.assert_close(together, alone)


def test_hidden_patches_do_not_show_their_voxels() -> None:
    torch.manual_seed(0)
    model = CTFMLocalModel(tiny_config().vision_config).eval()
    crops = tiny_crops()[0]
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[:, 0] = True
    changed = crops.clone()
    changed[:, :, :4, :8, :8] = 0.5
    with torch.no_grad():
        torch.testing.assert_close(model(crops, mask).last_hidden_state, model(changed, mask).last_hidden_state)
        assert not torch.allclose(model(crops).last_hidden_state, model(changed).last_hidden_state)


def test_drop_path_grows_with_depth_and_keeps_the_mean() -> None:
    model = CTFMLocalModel(CTFMVisionConfig(drop_path_rate=0.3, hidden_size=24, num_hidden_layers=4))
    rates = [layer.drop_path.rate for layer in model.layers]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3])
    torch.manual_seed(0)
    dropped = model.layers[3].drop_path.train()(torch.ones(20_000, 1, 1))
    assert dropped.unique().tolist() == pytest.approx([0.0, 1 / 0.7])
    assert dropped.mean().item() == pytest.approx(1.0, abs=0.02)  # spread of the mean: 0.0046


def test_bfloat16_is_close_to_float32() -> None:
    model = vision_model()
    pixel_values = tiny_crops()
    with torch.no_grad():
        exact = model(pixel_values, GRID).pooler_output
        rough = copy.deepcopy(model).bfloat16()(pixel_values, GRID).pooler_output
    assert rough.dtype == torch.bfloat16
    cosine = torch.nn.functional.cosine_similarity(exact, rough.float())
    assert cosine.min() > 0.999


def test_crops_of_any_multiple_of_the_patch_work_and_others_say_why_not() -> None:
    model = CTFMLocalModel(tiny_config().vision_config)
    assert model(torch.rand(1, 1, 12, 8, 24)).last_hidden_state.shape == (1, 1 + 3 * 1 * 3, 24)
    with pytest.raises(ValueError, match=r"multiples of the patch size \(4, 8, 8\), not \(1, 1, 12, 9, 24\)"):
        model(torch.rand(1, 1, 12, 9, 24))
    with pytest.raises(ValueError, match=r"\(b, g, c, D, H, W\)"):
        vision_model()(torch.rand(1, 1, 8, 16, 16))
    with pytest.raises(ValueError, match="crop_grid"):
        vision_model()(tiny_crops())


def test_backbone_gives_maps_of_the_layers_asked_for() -> None:
    config = tiny_config().vision_config
    config.out_features = ["stage1", "stage2"]
    torch.manual_seed(0)
    backbone = CTFMBackbone(config).eval()
    crops = tiny_crops()[0]
    maps = backbone(crops).feature_maps
    assert [tuple(m.shape) for m in maps] == [(8, 24, 2, 2, 2)] * 2
    tokens = backbone.local_model(crops).last_hidden_state[:, 1:]
    torch.testing.assert_close(maps[1].flatten(2).transpose(1, 2), tokens)


# ---- text ----


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_text_is_pooled_over_its_real_tokens_on_either_side(pooling: str) -> None:
    states = torch.arange(12.0).reshape(1, 6, 2)
    for mask, real in (([1, 1, 1, 0, 0, 0], slice(0, 3)), ([0, 0, 1, 1, 1, 1], slice(2, 6)), ([1] * 6, slice(0, 6))):
        pooled = pool_text(states, torch.tensor([mask]), pooling)
        expected = states[:, real].mean(1) if pooling == "mean" else states[:, real.stop - 1]
        torch.testing.assert_close(pooled, expected)
    torch.testing.assert_close(pool_text(states, None, pooling), pool_text(states, torch.ones(1, 6), pooling))


@pytest.mark.parametrize("tower", ["bert", "qwen3"])
def test_any_text_encoder_serves_and_padding_does_not_count(tower: str) -> None:
    config = tiny_config()
    if tower == "qwen3":
        text = Qwen3Config(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            intermediate_size=64,
            head_dim=16,
        )
        config = CTFMConfig(vision_config=config.vision_config, text_config=text, text_pooling="last")
    torch.manual_seed(0)
    model = CTFMModel(config).eval()
    ids = torch.randint(1, 100, (1, 5))
    padded = torch.nn.functional.pad(ids, (0, 3))
    with torch.no_grad():
        alone = model.get_text_features(ids).pooler_output
        mask = torch.arange(8)[None] < 5
        torch.testing.assert_close(model.get_text_features(padded, mask.long()).pooler_output, alone)


def test_logits_are_scaled_cosines_and_the_loss_is_the_sigmoid_loss() -> None:
    torch.manual_seed(0)
    model = CTFMModel(tiny_config()).eval()
    ids = torch.randint(1, 100, (2, 5))
    output = model(tiny_crops(), ids, GRID, return_loss=True)
    cosines = output.image_embeds @ output.text_embeds.t()
    torch.testing.assert_close(output.logits_per_image, 10 * cosines - 10)
    torch.testing.assert_close(output.image_embeds.norm(dim=1), torch.ones(2))
    signs = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    expected = -torch.log(torch.sigmoid(signs * output.logits_per_image)).sum() / 2
    torch.testing.assert_close(output.loss, expected)


# ---- heads ----


def test_findings_that_are_not_stated_do_not_count() -> None:
    logits = torch.tensor([[2.0, -1.0, 3.0]])
    labels = torch.tensor([[1.0, torch.nan, 0.0]])
    expected = -(torch.log(torch.sigmoid(logits[0, 0])) + torch.log(1 - torch.sigmoid(logits[0, 2]))) / 2
    torch.testing.assert_close(multi_label_loss(logits, labels), expected)
    assert multi_label_loss(logits, torch.full((1, 3), torch.nan)) == 0
    with pytest.raises(ValueError, match=r"shape \(1, 3\)"):
        multi_label_loss(logits, torch.zeros(1, 2))


def test_segmentation_loss_is_cross_entropy_plus_dice_over_what_counts() -> None:
    labels = torch.tensor([0, 1, 1, -100]).reshape(1, 1, 1, 1, 4)
    sure = torch.full((1, 1, 2, 1, 1, 4), -20.0)
    sure[0, 0, 0, 0, 0, 0] = sure[0, 0, 1, 0, 0, 1:3] = 20.0
    assert segmentation_loss(sure, labels) == pytest.approx(0.0, abs=1e-4)
    unsure = torch.zeros(1, 1, 2, 1, 1, 4)
    dice = ((2 * 0.5 + 1) / (1.5 + 1 + 1) + (2 * 1.0 + 1) / (1.5 + 2 + 1)) / 2
    assert segmentation_loss(unsure, labels).item() == pytest.approx(torch.log(torch.tensor(2.0)).item() + 1 - dice)


@pytest.mark.parametrize("head", [CTFMForImageClassification, CTFMForSemanticSegmentation])
def test_a_head_learns_a_batch_by_heart(head: type) -> None:
    torch.manual_seed(0)
    model = head(tiny_config(layerscale_value=0.1))
    pixel_values = tiny_crops()
    pixel_values[1, :, :, :, ::2] *= 0.1
    labels = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    if head is CTFMForSemanticSegmentation:
        labels = (pixel_values[:, :, 0] > 0.5).long()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        loss = model(pixel_values, GRID, labels=labels).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0] / 4, losses


@torch.no_grad()
def test_segmentation_in_chunks_equals_all_at_once() -> None:
    torch.manual_seed(0)
    model = CTFMForSemanticSegmentation(tiny_config()).eval()
    pixel_values = tiny_crops()
    chunked = model(pixel_values, GRID).logits
    with torch.enable_grad():
        whole = model(pixel_values, GRID).logits
    assert chunked.shape == (2, 8, 3, 8, 16, 16)
    assert (chunked - whole.detach()).abs().max() < 1e-5 * whole.abs().max()


def test_segment_is_the_largest_logit_and_keeps_neither_logits_nor_a_graph() -> None:
    torch.manual_seed(0)
    model = CTFMForSemanticSegmentation(tiny_config()).eval()
    batches: list[int] = []
    model.decoder.register_forward_hook(lambda _, inputs, out: batches.append(len(out)) or None)
    labels = model.segment(tiny_crops(), GRID)
    assert batches == [1] * 16
    assert (labels.dtype, labels.shape) == (torch.int16, (2, 8, 8, 16, 16))
    with torch.no_grad():
        assert torch.equal(labels.long(), model(tiny_crops(), GRID).logits.argmax(2))


@pytest.mark.parametrize("labels", [-100, 1])
def test_a_segmentation_of_which_nothing_counts_has_a_loss_and_gradient_of_zero(labels: int) -> None:
    logits = torch.randn(1, 2, 3, 2, 4, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    loss = segmentation_loss(logits, torch.full((1, 2, 2, 4, 4), labels))
    loss.backward()
    assert (loss.item() == 0.0) is (labels == -100)
    assert bool(logits.grad.any()) is (labels != -100)
    assert logits.grad.isfinite().all()


def test_losses_of_bfloat16_logits_are_computed_in_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    voxels = torch.randn(1, 2, 3, 16, 16, 16, generator=generator).bfloat16()
    marked = torch.randint(0, 3, (1, 2, 16, 16, 16), generator=generator)
    findings, stated = torch.randn(4, 300, generator=generator).bfloat16(), torch.ones(4, 300)
    for loss, logits, labels in ((segmentation_loss, voxels, marked), (multi_label_loss, findings, stated)):
        torch.testing.assert_close(loss(logits, labels), loss(logits.float(), labels), rtol=0, atol=0)


# ---- configuration ----


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 100}, "divides by 6"),
        ({"patch_size": (8, 16)}, "three positive numbers"),
        ({"pooled_grid": (0, 1, 1)}, "three positive numbers"),
    ],
)
def test_impossible_architectures_are_refused_with_the_value(change: dict, message: str) -> None:
    with pytest.raises(StrictDataclassClassValidationError, match=message):
        CTFMVisionConfig(**change)


@pytest.mark.parametrize("head", [CTFMForImageClassification, CTFMForSemanticSegmentation])
def test_heads_grow_on_a_scan_encoder_without_a_text_tower(head: type, tmp_path: Path) -> None:
    encoder = vision_model()
    encoder.save_pretrained(tmp_path)
    model, loading = head.from_pretrained(tmp_path, num_labels=5, output_loading_info=True)
    assert model.config.num_labels == 5
    assert not loading["unexpected_keys"]
    assert not [key for key in loading["missing_keys"] if key.startswith("vision_model")]
    for key, value in encoder.state_dict().items():
        assert torch.equal(model.vision_model.state_dict()[key], value), key


def test_a_config_of_another_model_is_refused(tmp_path: Path) -> None:
    Qwen3Config().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match='"qwen3"'):
        CTFMConfig.from_pretrained(tmp_path)


def test_outputs_come_as_a_tuple_where_the_config_says_so() -> None:
    torch.manual_seed(0)
    model = CTFMModel(tiny_config()).eval()
    arguments = (tiny_crops(), torch.randint(1, 100, (2, 5)), GRID)
    with torch.no_grad():
        named = model(*arguments)
        model.config.return_dict = model.config.vision_config.return_dict = False
        assert torch.equal(model(*arguments)[0], named.logits_per_image)


# ---- precision ----


@torch.no_grad()
@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
@pytest.mark.parametrize("air_patch_level", [None, 0.05])
def test_a_faster_precision_stays_close_and_gives_float32(precision: str, air_patch_level: float | None) -> None:
    model = vision_model(hidden_size=96, intermediate_size=384, air_patch_level=air_patch_level)
    exact = model(tiny_crops(), GRID, output_dense_features=True)
    model.bfloat16()  # as weights load
    assert model.set_precision(precision) == precision
    found = model(tiny_crops(), GRID, output_dense_features=True)
    for name in ("pooler_output", "dense_features"):
        assert found[name].dtype == torch.float32
        assert not torch.equal(found[name], exact[name])
        assert torch.nn.functional.cosine_similarity(exact[name], found[name], dim=-1).mean() > 0.99


@torch.no_grad()
@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
@pytest.mark.parametrize("model_class", [CTFMModel, CTFMForImageClassification, CTFMForSemanticSegmentation])
def test_every_model_with_a_local_transformer_takes_a_precision_as_it_loads(model_class, precision, tmp_path) -> None:
    torch.manual_seed(0)
    model_class(tiny_config(hidden_size=96, intermediate_size=384)).bfloat16().save_pretrained(tmp_path)
    model = model_class.from_pretrained(tmp_path).eval()
    assert model.dtype == torch.bfloat16
    arguments = {"pixel_values": tiny_crops(), "crop_grid": GRID}
    if model_class is CTFMModel:
        arguments["input_ids"] = torch.randint(1, 100, (2, 5))
    exact = model(**arguments).to_tuple()[0].float().flatten(1)
    model.set_precision(precision)
    found = model(**arguments).to_tuple()[0].flatten(1)
    assert found.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(exact, found).min() > 0.98  # of bfloat16 and of 8 bits


def has(monkeypatch: pytest.MonkeyPatch, *, bfloat16: bool) -> None:
    """A processor with or without bfloat16 instructions."""
    monkeypatch.setattr(precision_ctfm, "multiplies_bfloat16", lambda device: bfloat16)


@pytest.mark.skipif("x86" not in torch.backends.quantized.supported_engines, reason="torch has no 8-bit products here")
def test_the_precision_is_chosen_by_what_the_processor_has_and_by_the_width(monkeypatch: pytest.MonkeyPatch) -> None:
    narrow, wide = CTFMVisionConfig(hidden_size=288), CTFMVisionConfig(hidden_size=1080)
    cpu, others = torch.device("cpu"), torch.device("mps")
    has(monkeypatch, bfloat16=True)
    assert precision_ctfm.list_candidates(narrow, cpu) == ["bfloat16", "int8"]
    assert precision_ctfm.list_candidates(wide, cpu) == ["int8", "bfloat16"]
    has(monkeypatch, bfloat16=False)
    assert precision_ctfm.list_candidates(narrow, cpu) == ["int8"]
    assert precision_ctfm.list_candidates(wide, others) == []


@pytest.mark.parametrize(("bound", "chosen"), [(0.9, "bfloat16"), (1.1, "float32")])
def test_auto_takes_a_precision_whose_features_stay_within_the_bound(
    bound: float, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    has(monkeypatch, bfloat16=True)
    monkeypatch.setattr(precision_ctfm, "MIN_COSINE", bound)
    assert vision_model(hidden_size=96, intermediate_size=384).set_precision("auto") == chosen


def test_auto_leaves_alone_what_a_precision_would_bend(monkeypatch: pytest.MonkeyPatch) -> None:
    """8 bits cannot hold a weight beside one that is a million times as large."""
    has(monkeypatch, bfloat16=False)
    model = vision_model(hidden_size=96, intermediate_size=384)
    for layer in model.local_model.layers:
        layer.mlp.fc2.weight.data[0, 0] = 1e6
        layer.mlp.fc1.bias.data[0] = -1e3  # whose input is nothing
    assert model.set_precision("auto") == "float32"
    with torch.no_grad():
        assert model(tiny_crops(), GRID).pooler_output.dtype == torch.float32


def test_a_precision_that_is_not_there_or_comes_second_is_refused() -> None:
    model = vision_model(hidden_size=96, intermediate_size=384)
    with pytest.raises(ValueError, match="'float8' is unknown; choose"):
        model.set_precision("float8")
    model.set_precision("int8")
    with pytest.raises(ValueError, match="'int8' already; load it again"):
        model.set_precision("bfloat16")
    with pytest.raises(ValueError, match="CTFMGlobalModel has no local transformer"):
        model.global_model.set_precision("int8")


@pytest.mark.parametrize("pooled_grid", [(1, 1, 1), (2, 1, 2)])
def test_a_text_map_says_what_every_patch_adds_to_the_similarity(pooled_grid: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    model = CTFMModel(tiny_config(pooled_grid=pooled_grid)).double().eval()
    crops = tiny_crops(scans=2).double()
    grid, mask = torch.tensor([[2, 2, 2], [1, 2, 2]]), torch.ones(2, 8, dtype=torch.bool)
    mask[1, 4:] = False
    with torch.no_grad():
        output = model.get_image_features(crops, grid, mask, output_dense_features=True)
        directions = torch.nn.functional.normalize(torch.randn(3, 24, dtype=torch.double), dim=-1)
        maps = model.get_text_maps(output, grid, mask, directions)
    assert maps.shape == (2, 3, 8, 2, 2, 2)
    assert not maps[1, :, 4:].any()  # padding says nothing

    def similarity(descriptors: torch.Tensor) -> torch.Tensor:
        places = model.vision_model.descriptor_coordinates(grid, 8)
        features = model.vision_model.mix_descriptors(descriptors, places, mask).pooler_output
        return torch.nn.functional.normalize(model.visual_projection(features), dim=-1) @ directions.T

    # Replacing one patch of a crop, a little, by the scan's mean patch takes its share away, to first order.
    step, (scan, crop, d, h, w) = 1e-4, (1, 2, 1, 0, 1)
    dense = output.dense_features
    mean = dense[scan][mask[scan]].flatten(0, 3).mean(0)
    cell = (d * pooled_grid[0] // 2 * pooled_grid[1] + h * pooled_grid[1] // 2) * pooled_grid[2] + w * pooled_grid[
        2
    ] // 2
    changed = output.crop_embeds.clone()
    share = (dense[scan, crop, d, h, w] - mean) / (8 / math.prod(pooled_grid))
    changed[scan, crop, cell, 24:] -= step * share
    with torch.no_grad():
        lost = (similarity(output.crop_embeds) - similarity(changed))[scan] / step
    torch.testing.assert_close(lost, maps[scan, :, crop, d, h, w], rtol=1e-3, atol=1e-7)


def test_a_text_map_is_the_same_in_inference_mode_and_leaves_no_gradient() -> None:
    torch.manual_seed(0)
    model = CTFMModel(tiny_config()).eval()
    crops, grid, mask = tiny_crops(scans=1), torch.tensor([[2, 2, 2]]), torch.ones(1, 8, dtype=torch.bool)
    maps = []
    for context in (torch.no_grad, torch.enable_grad, torch.inference_mode):
        with context():
            output = model.get_image_features(crops, grid, mask, output_dense_features=True)
            maps.append(model.get_text_maps(output, grid, mask, torch.ones(1, 24)))
            assert not maps[-1].requires_grad
    for other in maps[1:]:
        torch.testing.assert_close(other, maps[0], rtol=1e-4, atol=1e-7)
    outside = model.get_text_maps(output, grid, mask, torch.ones(1, 24))  # of what inference mode made
    torch.testing.assert_close(outside, maps[0], rtol=1e-4, atol=1e-7)


def test_a_text_map_of_encoded_body_alone_says_nothing_of_air() -> None:
    torch.manual_seed(0)
    model = CTFMModel(tiny_config(air_patch_level=0.05)).eval()
    crops, grid = tiny_crops(scans=1), torch.tensor([[2, 2, 2]])
    crops[0, 3, :, : crops.shape[3] // 2] = 0
    with torch.no_grad():
        output = model.get_image_features(crops, grid, output_dense_features=True)
        maps = model.get_text_maps(output, grid, None, torch.ones(1, 24))
    assert not maps[0, 0, 3, 0].any()
    assert maps[0, 0, 3, 1].all()


def test_a_text_map_needs_dense_features() -> None:
    model = CTFMModel(tiny_config()).eval()
    grid = torch.tensor([[2, 2, 2]])
    output = model.get_image_features(tiny_crops(scans=1), grid)
    with pytest.raises(ValueError, match="output_dense_features=True"):
        model.get_text_maps(output, grid, None, torch.zeros(1, 24))


# ---- what is refused ----


@pytest.mark.parametrize(
    ("grid", "mask", "message"),
    [
        ([[2, 2, 2], [2, 2, 1]], None, r"multiplies to \[8, 4\] crops, and the scans have \[8, 8\] of 8"),
        ([[2, 2, 2], [2, 2, 1]], [8, 6], r"multiplies to \[8, 4\] crops, and the scans have \[8, 6\] of 8"),
        ([[2, 2, 2], [3, 2, 2]], [8, 8], r"multiplies to \[8, 12\] crops"),
        ([[2, 2, 2]], None, r"shape \(2, 3\), crops along three axes, not \(1, 3\)"),
    ],
)
def test_a_grid_that_does_not_multiply_to_the_crops_is_refused(grid: list, mask: list | None, message: str) -> None:
    crop_mask = None if mask is None else torch.arange(8) < torch.tensor(mask)[:, None]
    with pytest.raises(ValueError, match=message):
        vision_model()(tiny_crops(), torch.tensor(grid), crop_mask)


def test_a_grid_with_crops_left_out_or_padded_is_taken() -> None:
    crop_mask = torch.arange(8) < torch.tensor([[8], [4]])
    crop_mask[0, 3] = False
    vision_model()(tiny_crops(), torch.tensor([[2, 2, 2], [2, 2, 1]]), crop_mask)


def test_three_channels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"3 channels, \(16, 3, 8, 16, 16\), do not fit a model with num_channels 1"):
        vision_model()(tiny_crops().expand(-1, -1, 3, -1, -1, -1), GRID)


def test_one_integer_a_scan_is_refused_where_findings_are_expected() -> None:
    model = CTFMForImageClassification(tiny_config())
    with pytest.raises(
        ValueError, match=r"shape \(2, 3\).*not \(2,\)\. For one class a scan, set config\.problem_type"
    ):
        model(tiny_crops(), GRID, labels=torch.tensor([0, 2]))
    model.config.problem_type = "single_label_classification"
    assert model(tiny_crops(), GRID, labels=torch.tensor([0, 2])).loss.isfinite()


# ---- other runtimes ----


class Features(torch.nn.Module):
    """What is exported: tensors in, one tensor out."""

    def __init__(self) -> None:
        super().__init__()
        self.model = vision_model()

    def forward(self, pixel_values: torch.Tensor, crop_grid: torch.Tensor, crop_mask: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values, crop_grid, crop_mask).pooler_output


def scan_of(grid: tuple[int, int, int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    crops = math.prod(grid)
    return tiny_crops(scans=1, crops=crops), torch.tensor([grid]), torch.ones(1, crops, dtype=torch.bool)


GRIDS = [(2, 2, 2), (1, 1, 1), (3, 2, 2), (3, 3, 3)]


def test_an_exported_program_takes_any_number_of_crops() -> None:
    features, crops = Features().eval(), torch.export.Dim("crops", min=1, max=512)
    program = torch.export.export(features, scan_of(GRIDS[0]), dynamic_shapes=({1: crops}, None, {1: crops})).module()
    for grid in GRIDS:
        with torch.no_grad():
            torch.testing.assert_close(program(*scan_of(grid)), features(*scan_of(grid)), rtol=0, atol=1e-6)


def test_an_onnx_file_takes_any_number_of_crops(tmp_path) -> None:
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    features, crops = Features().eval(), torch.export.Dim("crops", min=1, max=512)
    names, file = ["pixel_values", "crop_grid", "crop_mask"], tmp_path / "features.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about its own exporter
        torch.onnx.export(
            features,
            scan_of(GRIDS[0]),
            str(file),
            dynamo=True,
            dynamic_shapes=({1: crops}, None, {1: crops}),
            input_names=names,
            verbose=False,
        )
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    for grid in GRIDS:
        inputs = scan_of(grid)
        (found,) = session.run(None, {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(found), features(*inputs), rtol=0, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["bitsandbytes 8 bit", "bitsandbytes 4 bit", "torchao"])
def test_a_model_that_is_quantised_as_it_loads_stays_close(kind: str, tmp_path) -> None:
    pytest.importorskip(kind.split()[0], reason="needs ctfm[quantization]")
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 192,
        "num_attention_heads": 2,
        "intermediate_size": 256,
    }  # in blocks of 64, as on a CPU 4 bits need
    config = tiny_config(**sizes, global_config=sizes | {"num_hidden_layers": 2}).vision_config
    CTFMVisionModel(config).save_pretrained(tmp_path)
    if kind == "torchao":
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig

        settings = TorchAoConfig(Int8DynamicActivationInt8WeightConfig())
    else:
        settings = BitsAndBytesConfig(load_in_8bit="8" in kind, load_in_4bit="4" in kind)
    exact = CTFMVisionModel.from_pretrained(tmp_path).eval()
    quantised = CTFMVisionModel.from_pretrained(tmp_path, quantization_config=settings).eval()
    expected, found = (model(tiny_crops(), GRID).pooler_output for model in (exact, quantised))
    assert not torch.equal(found, expected)
    assert torch.nn.functional.cosine_similarity(found.float(), expected).min() > (0.9 if "4" in kind else 0.99)


# ---- stem and token scores ----


def seeing_config(**changes: object) -> CTFMConfig:
    """A tiny checkpoint with all of it: stem, windows, token scores, findings and structures of their own."""
    small = {"hidden_size": 48, "num_attention_heads": 2, "intermediate_size": 96}
    vision = {
        **small,
        "patch_size": (8, 8, 8),
        "num_hidden_layers": 2,
        "stem_channels": (4, 8),
        "windows": [(0.0, 1.0), (0.2, 0.4)],
        "global_config": {**small, "num_hidden_layers": 1},
    }
    text = {
        "model_type": "bert",
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "vocab_size": 100,
    }
    settings = {
        "vision_config": vision,
        "text_config": text,
        "projection_hidden_size": 64,
        "projection_dim": 32,
        "token_scores": True,
        "structures": {0: "background", 1: "liver", 2: "spleen"},
        "decoder_stride": 2,
        "num_labels": 4,
    }
    return CTFMConfig(**(settings | changes))


def two_scans() -> dict[str, torch.Tensor]:
    """Eight crops each; a crop of air in both, a crop of padding in the second."""
    torch.manual_seed(0)
    pixel_values = torch.rand(2, 8, 1, 16, 16, 16)
    pixel_values[:, 3] = 0
    pixel_values[1, 7] = 0
    crop_mask = torch.ones(2, 8, dtype=torch.bool)
    crop_mask[1, 7] = False
    return {"pixel_values": pixel_values, "crop_grid": torch.tensor([[2, 2, 2], [2, 2, 2]]), "crop_mask": crop_mask}


def test_the_map_of_a_text_is_the_scores_that_are_pooled() -> None:
    torch.manual_seed(1)
    model, scans = CTFMModel(seeing_config()).eval(), two_scans()
    with torch.no_grad():
        image = model.get_image_features(**scans, output_dense_features=True)
        directions = torch.nn.functional.normalize(torch.randn(3, 32), dim=-1)
        scores, maps = model.score_texts(image, directions)
        assert maps is not None
        torch.testing.assert_close(model.get_text_maps(image, scans["crop_grid"], scans["crop_mask"], directions), maps)
        seen = maps[0, 0, [0, 1, 2, 4, 5, 6, 7]].flatten()  # all but the crop of air
        embeds = torch.nn.functional.normalize(image.pooler_output, dim=-1)
        whole = embeds[0] @ directions[0] * model.logit_scale.exp()
        weights = model.score_weights
        pooled = seen.topk(min(64, len(seen))).values.logsumexp(0)
        torch.testing.assert_close(scores[0, 0], (whole * weights[0] + pooled * weights[1] + model.score_bias)[0])


def test_air_has_no_say_in_a_score_of_tokens() -> None:
    scores = torch.zeros(1, 1, 2, 1, 1, 2)
    scores[0, 0, 1] = 9.0
    torch.testing.assert_close(pool_token_scores(scores, torch.tensor([[1.0, 0.0]])), torch.tensor([[2.0]]).log())


def test_one_folder_holds_trained_weights_of_findings_and_structures(tmp_path: Path) -> None:
    config = seeing_config()
    torch.manual_seed(2)
    model = CTFMModel(config)
    findings, structures = CTFMForImageClassification(config), CTFMForSemanticSegmentation(config)
    heads = {
        name: tensor
        for head in (findings, structures)
        for name, tensor in head.state_dict().items()
        if not name.startswith("vision_model.")
    }
    model.save_pretrained(tmp_path, state_dict=model.state_dict() | heads)
    for kind, head in ((CTFMForImageClassification, findings), (CTFMForSemanticSegmentation, structures)):
        loaded, report = kind.from_pretrained(tmp_path, output_loading_info=True)
        assert not report["missing_keys"]
        own = {name: tensor for name, tensor in loaded.state_dict().items() if name in heads}
        assert own
        for name, tensor in own.items():
            torch.testing.assert_close(tensor, head.state_dict()[name])
        for name, tensor in loaded.vision_model.state_dict().items():
            torch.testing.assert_close(tensor, model.vision_model.state_dict()[name])
    logits = loaded.eval()(**two_scans()).logits
    assert logits.shape == (2, 8, 3, 16, 16, 16)  # config.structures, at the crop's resolution
    assert loaded.config.structures == config.structures


def test_a_stem_sees_windows_and_halves_each_stage() -> None:
    model = CTFMModel(seeing_config())
    stem = model.vision_model.local_model.embeddings.stem
    assert stem(torch.rand(2, 1, 16, 16, 16)).shape == (2, 8, 4, 4, 4)
    beyond = torch.full((1, 1, 16, 16, 16), 0.9)
    clipped = apply_windows(beyond, stem.windows, 1)
    torch.testing.assert_close(clipped[:, 1], torch.ones(1, 16, 16, 16))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stem_channels": (4, 8), "patch_size": (6, 8, 8)}, "multiple of the stem's stride, 4"),
        ({"stem_channels": (4,), "patch_size": (8, 8, 8), "air_patch_level": 0.05}, "a stem sees whole crops"),
    ],
)
def test_a_stem_that_does_not_fit_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(Exception, match=message):
        CTFMVisionConfig(**changes)
