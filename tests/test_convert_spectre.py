"""SPECTRE's numbers come out of CTFM: a small random SPECTRE with its outputs lies in `fixtures/`, larger ones in
`../shared/fixtures/spectre` where that is present. Made by running SPECTRE's own code; no published weights are in them."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ctfm import CTFMModel, CTFMVisionModel
from ctfm.image_processing_ctfm import CTFMImageProcessor
from ctfm.modeling_ctfm import pool_text
from ctfm.phantom.dicom_series import write_dicom_series
from ctfm.release import convert_spectre
from ctfm.release.convert_spectre import (
    ConversionError,
    Part,
    SpectreFiles,
    convert,
    convert_head,
    load_part,
    merge_lora,
    save,
)
from huggingface_hub import ModelCard
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import Qwen3Config

from tests.phantoms import canonical_affine, phantom_hu

ROOT = Path(__file__).parent.parent
FIXTURE = ROOT / "tests" / "fixtures" / "spectre_tiny.safetensors"
SHARED = ROOT.parent / "shared" / "fixtures" / "spectre"
GRID = (2, 3, 2)  # of the fixture's scans, along SPECTRE's axes (right, anterior, head)
TOLERANCE = 2e-5


def read_fixture(part: str) -> dict[str, Tensor]:
    with safe_open(FIXTURE, "pt") as file:
        return {key.split("/", 1)[1]: file.get_tensor(key) for key in file.keys() if key.startswith(part + "/")}  # noqa: SIM118


def to_ours(array: Tensor, first_axis: int) -> Tensor:
    """(..., right, anterior, head, ...) -> (..., head, posterior, left, ...)."""
    axes = list(range(array.ndim))
    axes[first_axis : first_axis + 3] = [first_axis + 2, first_axis + 1, first_axis]
    return array.permute(axes).flip(first_axis + 1, first_axis + 2)


def tokens_to_ours(tokens: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """(..., prefix + n, e), n over `grid` in SPECTRE's order -> the same in ours."""
    axis = tokens.ndim - 2
    prefix = tokens.shape[axis] - int(np.prod(grid))
    places = to_ours(tokens.narrow(axis, prefix, tokens.shape[axis] - prefix).unflatten(axis, grid), axis)
    return torch.cat((tokens.narrow(axis, 0, prefix), places.flatten(axis, axis + 2)), axis)


def crops_to_ours(x: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """(b, g, c, right, anterior, head) -> (b, g, c, D, H, W), crops in our order."""
    return to_ours(to_ours(x.unflatten(1, grid), 1).flatten(1, 3), 3)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> SpectreFiles:
    """The fixture's weights, in files laid out as SPECTRE publishes them."""
    folder = tmp_path_factory.mktemp("published")
    backbone = folder / "spectre_backbone_vit_large_patch16_128.pt"
    torch.save(read_fixture("backbone"), backbone)
    for part in ("combiner", "projection_image", "projection_text"):
        torch.save(read_fixture(part), folder / f"{part}.pt")
    return SpectreFiles(backbone=str(backbone), combiner=str(folder / "combiner.pt"))


@pytest.fixture(scope="module")
def io() -> dict[str, Tensor]:
    return read_fixture("io")


@pytest.fixture(scope="module", params=[1e-5, 1e-6])
def vision(request: pytest.FixtureRequest, published: SpectreFiles) -> CTFMVisionModel:
    files = SpectreFiles(
        backbone=published.backbone, combiner=published.combiner, combiner_layer_norm_eps=request.param
    )
    model = convert(files)
    assert isinstance(model, CTFMVisionModel)
    return model


def expect_equal(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE)


@torch.no_grad()
def test_patch_tokens_are_spectres(vision: CTFMVisionModel, io: dict[str, Tensor]) -> None:
    tokens = vision.local_model(to_ours(io["x"], 2)).last_hidden_state
    expect_equal(tokens, tokens_to_ours(io["tokens"], (4, 4, 4)))


@torch.no_grad()
def test_crops_of_another_size_are_spectres(vision: CTFMVisionModel, io: dict[str, Tensor]) -> None:
    tokens = vision.local_model(to_ours(io["x_odd"], 2)).last_hidden_state
    expect_equal(tokens, tokens_to_ours(io["tokens_odd"], (3, 5, 3)))


@torch.no_grad()
def test_hidden_patches_are_spectres(vision: CTFMVisionModel, io: dict[str, Tensor]) -> None:
    embeddings = vision.local_model.embeddings
    before = embeddings.mask_token.data.clone()
    embeddings.mask_token.copy_(io["mask_token"])
    mask = tokens_to_ours(io["mask"][..., None], (4, 4, 4))[:, 1:, 0]
    tokens = vision.local_model(to_ours(io["x"], 2), mask).last_hidden_state
    embeddings.mask_token.copy_(before)
    expect_equal(tokens, tokens_to_ours(io["tokens_masked"], (4, 4, 4)))


@torch.no_grad()
def test_descriptors_are_spectres(vision: CTFMVisionModel, io: dict[str, Tensor]) -> None:
    descriptors = vision.local_model(to_ours(io["x"], 2)).pooler_output
    expect_equal(descriptors[:, 0], io["descriptors"][0, :2])


@torch.no_grad()
def test_scan_features_are_spectres_at_both_eps(vision: CTFMVisionModel, io: dict[str, Tensor]) -> None:
    eps = vision.config.global_config.layer_norm_eps
    name = "eps1e5" if eps == 1e-5 else "eps1e6"
    descriptors = tokens_to_ours(io["descriptors"], GRID)
    grid = torch.tensor([[GRID[2], GRID[1], GRID[0]]] * 2)
    output = vision.global_model(descriptors, vision.descriptor_coordinates(grid, 12))
    expect_equal(output.last_hidden_state, tokens_to_ours(io[f"combiner_{name}"], GRID))
    if eps == 1e-5:
        expect_equal(output.pooler_output, io["scan_eps1e5"])


@torch.no_grad()
def test_projection_heads_are_spectres(joint: CTFMModel, io: dict[str, Tensor]) -> None:
    expect_equal(joint.visual_projection(io["scan_eps1e5"]), io["image_embedding_eps1e5"])
    head = joint.text_projection.__class__(40, joint.config)
    head.load_state_dict(convert_head(Part(name="text", tensors=read_fixture("projection_text"))))
    expect_equal(head(io["text_in"]), io["text_embedding"])


@pytest.fixture(scope="module")
def joint(published: SpectreFiles, tmp_path_factory: pytest.TempPathFactory) -> CTFMModel:
    """All five parts. The fixture's text head takes 40 channels and its tower gives 64, so the head is widened with
    channels that count for nothing."""
    folder = tmp_path_factory.mktemp("joint")
    head = read_fixture("projection_text")
    head["layers.0.weight"] = torch.nn.functional.pad(head["layers.0.weight"], (0, 24))
    torch.save(head, folder / "text_head.pt")
    torch.save(read_fixture("text_tower"), folder / "tower.pt")
    with safe_open(FIXTURE, "pt") as file:
        metadata = file.metadata()
    lora = json.loads(metadata["lora"])
    model = convert(
        SpectreFiles(
            backbone=published.backbone,
            combiner=published.combiner,
            image_head=str(Path(published.backbone).parent / "projection_image.pt"),
            text_head=str(folder / "text_head.pt"),
            text_tower=str(folder / "tower.pt"),
            text_config=Qwen3Config(**json.loads(metadata["text_config"])),
            lora_alpha=lora["alpha"],
        )
    )
    assert isinstance(model, CTFMModel)
    return model


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_text_tower_with_merged_lora_is_spectres_whatever_the_padding_side(joint: CTFMModel, side: str) -> None:
    text = read_fixture("text_io")
    mask = text[f"mask_{side}"]
    hidden_states = joint.text_model(text["input_ids"], attention_mask=mask).last_hidden_state
    expect_equal(pool_text(hidden_states, mask, "last"), text[f"pooled_{side}"])


@torch.no_grad()
def test_the_whole_way_from_crops_to_joint_space(joint: CTFMModel, io: dict[str, Tensor]) -> None:
    """Two crops side by side, against the same stages run one by one."""
    pixel_values = crops_to_ours(io["x"][None], (2, 1, 1))
    output = joint.get_image_features(pixel_values, torch.tensor([[1, 1, 2]]))
    local = joint.vision_model.local_model(pixel_values[0]).pooler_output.flatten(0, 1)[None]
    coordinates = joint.vision_model.descriptor_coordinates(torch.tensor([[1, 1, 2]]), 2)
    scan = joint.vision_model.global_model(local, coordinates).pooler_output
    expect_equal(output.pooler_output, joint.visual_projection(scan))


@pytest.mark.parametrize("name", ["b"])
def test_crops_come_in_spectres_order(name: str) -> None:
    crops = read_fixture("windowing")[f"{name}/crops"][:, 0]  # (g, right, anterior, head), each voxel its own number
    shape = (16, 24, 8)
    volume = to_ours(torch.arange(float(np.prod(shape))).reshape(shape), 0).numpy()
    processor = CTFMImageProcessor(
        crop_size=(4, 8, 8), spacing="native", intensity_window=(0, float(volume.max())), air_hu=-1
    )
    affine = np.diag([1.0, 1.0, 1.0, 1.0])[[2, 1, 0, 3]] * np.array([[-1], [-1], [1], [1]])
    pixel_values = processor((volume, affine)).pixel_values * volume.max()
    grid = (shape[0] // 8, shape[1] // 8, shape[2] // 4)
    torch.testing.assert_close(pixel_values[:, :, 0], crops_to_ours(crops[None, :, None], grid)[:, :, 0])


def test_safetensors_layout_gives_the_same_model(published: SpectreFiles, tmp_path: Path) -> None:
    tensors = {f"model.backbone.{key}": value for key, value in read_fixture("backbone").items()}
    tensors |= {f"model.feature_combiner.{key}": value for key, value in read_fixture("combiner").items()}
    save_file(tensors, tmp_path / "model.safetensors")
    ours = convert(SpectreFiles(backbone=str(tmp_path / "model.safetensors"))).state_dict()
    for key, value in convert(published).state_dict().items():
        assert torch.equal(ours[key], value), key


def test_a_part_may_lie_on_the_hub(published: SpectreFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(repo: str, file: str) -> str:
        asked.append((repo, file))
        return published.backbone

    monkeypatch.setattr(convert_spectre, "hf_hub_download", download)
    part = load_part("hf://cclaess/SPECTRE/weights/backbone.pt")
    assert asked == [("cclaess/SPECTRE", "weights/backbone.pt")]
    assert part.tensors.keys() == load_part(published.backbone).tensors.keys()
    with pytest.raises(ConversionError, match="Give a path, or hf://"):
        load_part("cclaess/SPECTRE")


def test_backbone_alone_gives_crop_features_and_their_largest_as_the_scans(published: SpectreFiles) -> None:
    model = convert(SpectreFiles(backbone=published.backbone))
    assert model.config.global_config is None
    crops = torch.rand(1, 2, 1, *(32, 64, 64))
    with torch.no_grad():
        output = model(crops, crop_grid=torch.tensor([[2, 1, 1]]))
    torch.testing.assert_close(output.pooler_output, output.crop_embeds.flatten(1, 2).amax(1))


@pytest.mark.parametrize("saw_reports", [False, True])
def test_combiner_is_refused_with_the_backbone_that_it_was_not_trained_on(
    published: SpectreFiles, tmp_path: Path, saw_reports: bool
) -> None:
    other = tmp_path / "spectre_backbone_vit_large_patch16_128_no_vla.pt"
    shutil.copyfile(published.backbone, other)
    with pytest.raises(ConversionError, match="issue 34"):
        convert(SpectreFiles(backbone=str(other), combiner=published.combiner, backbone_saw_reports=saw_reports))


def test_combiner_on_a_renamed_backbone_needs_the_word_of_whoever_renamed_it(
    published: SpectreFiles, tmp_path: Path
) -> None:
    renamed = str(tmp_path / "backbone.pt")
    shutil.copyfile(published.backbone, renamed)
    with pytest.raises(ConversionError, match=r"nothing in backbone\.pt says .* --backbone-saw-reports"):
        convert(SpectreFiles(backbone=renamed, combiner=published.combiner))
    model = convert(SpectreFiles(backbone=renamed, combiner=published.combiner, backbone_saw_reports=True))
    assert model.config.global_config is not None
    assert convert(SpectreFiles(backbone=renamed)).config.global_config is None


def test_a_missing_a_foreign_and_a_left_over_tensor_are_refused(published: SpectreFiles, tmp_path: Path) -> None:
    whole = read_fixture("backbone")
    for change, message in (
        ({key: value for key, value in whole.items() if "blocks.1.attn.kv.bias" not in key}, "kv.bias"),
        (whole | {"head.weight": torch.zeros(3)}, "no place"),
        (read_fixture("combiner"), "not the SPECTRE file"),
    ):
        torch.save(change, tmp_path / "changed.pt")
        with pytest.raises(ConversionError, match=message):
            convert(SpectreFiles(backbone=str(tmp_path / "changed.pt")))


def test_code_in_a_pickle_is_never_run(tmp_path: Path) -> None:
    marker = tmp_path / "was_run"

    class Attack:
        def __reduce__(self) -> tuple:
            return (Path.touch, (marker,))

    torch.save({"weight": Attack()}, tmp_path / "attack.pt")
    with pytest.raises(ConversionError, match=r"weights_only|Weights only"):
        load_part(str(tmp_path / "attack.pt"))
    assert not marker.exists()


@pytest.mark.parametrize("name", ["cut.pt", "cut.safetensors"])
def test_a_damaged_file_is_refused_with_its_name(published: SpectreFiles, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(Path(published.backbone).read_bytes()[:1000])
    with pytest.raises(ConversionError, match=rf"{name} cannot be read"):
        load_part(str(tmp_path / name))


def test_scans_are_prepared_as_the_parts_were_trained(published: SpectreFiles, tmp_path: Path) -> None:
    alone = SpectreFiles(backbone=published.backbone)
    for files, spacing in ((alone, [1.0, 0.5, 0.5]), (published, [1.5, 0.75, 0.75])):
        save(convert(files), files, tmp_path / str(spacing[0]), None)
        processor = CTFMImageProcessor.from_pretrained(tmp_path / str(spacing[0]))
        assert (processor.spacing, processor.resampling) == (spacing, "linear")
        assert " x ".join(map(str, spacing)) in (tmp_path / str(spacing[0]) / "README.md").read_text()


def test_lora_is_merged_at_alpha_over_rank() -> None:
    base, down, up = torch.randn(6, 4), torch.randn(2, 4), torch.randn(6, 2)
    tensors = {"a.q_proj.weight": base, "a.q_proj.lora_A": down, "a.q_proj.lora_B": up}
    merged = merge_lora(Part(name="tower", tensors=tensors), alpha=8.0)
    torch.testing.assert_close(merged["a.q_proj.weight"], base + 4 * up @ down)


def test_command_line_writes_a_folder_with_a_card_whose_snippet_runs(
    published: SpectreFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [sys.executable, "-m", "ctfm", "convert-spectre", "--backbone", published.backbone]
    command += ["--combiner", str(published.combiner), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.license == "cc-by-nc-sa-4.0"
    assert card.data.pipeline_tag == "image-feature-extraction"
    assert f"{Path(published.backbone).name}, {Path(str(published.combiner)).name}." in card.text
    write_dicom_series(phantom_hu(), canonical_affine(), tmp_path / "study")
    shutil.make_archive(str(tmp_path / "study"), "zip", tmp_path / "study")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    (block,) = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    exec(compile(block, "README.md", "exec"), names)
    assert names["outputs"].pooler_output.isfinite().all()
    loaded = CTFMVisionModel.from_pretrained(tmp_path / "out")
    for key, value in convert(published).state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key


@pytest.mark.skipif(not SHARED.is_dir(), reason="the larger parity fixtures are not here")
@pytest.mark.parametrize("size", ["tiny", "hd90"])
@torch.no_grad()
def test_the_larger_fixtures_from_crops_to_embedding(size: str) -> None:
    io = torch.load(SHARED / f"{size}_io.pt", weights_only=True)
    parts = {name: str(SHARED / f"{size}_{name}.pt") for name in ("backbone", "combiner")}
    model = convert(SpectreFiles(**parts, backbone_saw_reports=True, combiner_layer_norm_eps=1e-5))
    grid = tuple(io["config"]["grid"])
    pixel_values = crops_to_ours(io["x"].float(), grid)
    crop_grid = torch.tensor([[grid[2], grid[1], grid[0]]] * len(pixel_values))
    output = model(pixel_values, crop_grid=crop_grid)
    expect_equal(output.crop_embeds[:, :, 0], tokens_to_ours(io["descriptors"], grid))
    expect_equal(output.last_hidden_state, tokens_to_ours(io["combiner_eps1e5"], grid))
    expect_equal(output.pooler_output, io["scan_eps1e5"])


@pytest.mark.skipif(not SHARED.is_dir(), reason="the published key lists are not here")
def test_every_published_key_has_its_place(tmp_path: Path) -> None:
    """The published files hold the same kinds of keys as the smallest preset, which is converted here from numbers of our
    own; `convert` refuses a key without a place and a place without a key."""
    listing = json.loads((SHARED / "state_dict_keys.json").read_text())
    small = listing["preset spectre-tiny (pretrained-style kwargs)"]["keys"]
    tensors = {f"model.{key}": torch.randn(fact["shape"]) for key, fact in small.items()}
    for name, theta in (("backbone", 1000.0), ("feature_combiner", 100.0)):
        periods = tensors[f"model.{name}.rope.periods"]
        tensors[f"model.{name}.rope.periods"] = theta ** (torch.arange(len(periods)) / len(periods))
    save_file(tensors, tmp_path / "model.safetensors")
    config = convert(SpectreFiles(backbone=str(tmp_path / "model.safetensors"))).config
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (192, 12, 2)
    assert (config.rope_theta, config.global_config.rope_theta) == (1000.0, 100.0)

    def kinds(keys: Iterable[str], prefix: str) -> set[str]:
        return {prefix + re.sub(r"blocks\.\d+", "blocks.i", key) for key in keys}

    expected = kinds(tensors, "")
    assert kinds(listing["cclaess/SPECTRE-Large model.safetensors"]["keys"], "") == expected
    backbone = kinds(listing["spectre_backbone_vit_large_patch16_128.pt"]["keys"], "model.backbone.")
    combiner = kinds(listing["spectre_combiner_feature_vit_large.pt"]["keys"], "model.feature_combiner.")
    assert backbone | combiner == expected
