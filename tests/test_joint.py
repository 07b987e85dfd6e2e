"""Tokens, scans, voxels and reports taught at once: train/joint.py."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from ctfm import CTFMForImageClassification, CTFMForSemanticSegmentation, CTFMModel
from ctfm.phantom.make import Phantom, make_phantom
from ctfm.train import pretrain as program
from ctfm.train.build import build_config, build_model, build_processor
from ctfm.train.checkpoint import load_start
from ctfm.train.drawn import FINDINGS, STRUCTURES
from ctfm.train.joint import JointConfig, JointObjective, find_codes
from ctfm.train.pretrain import Run, pretrain
from ctfm.train.recipes import RECIPES, JointPhase, OptimizerConfig, Recipe, ReportConfig
from safetensors.torch import load_file


def test_codes_lie_in_the_patches_that_hold_them() -> None:
    codes = torch.full((1, 4, 4, 4), -1)
    codes[0, 0, 0, 0], codes[0, 3, 3, 3], codes[0, 3, 0, 3] = 0, 2, 2
    found = find_codes(codes, (2, 2, 2), 3)
    assert found.shape == (1, 8, 3)
    assert found[0].nonzero().tolist() == [[0, 0], [5, 2], [7, 2]]  # patches in the order of the tokens, width fastest


def tiny_recipe(text_start: Path) -> Recipe:
    size = {"hidden_size": 24, "intermediate_size": 48, "num_attention_heads": 2}
    phase = JointPhase(
        steps=3,
        global_batch=2,
        micro_batch=2,
        repeats=2,
        window=4,
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=1, weight_decay=0.0, last_weight_decay=0.0),
        reports=ReportConfig(excerpt_probability=1.0, longest_excerpt=2, max_tokens=24),
        objective=JointConfig(segmented_crops=2),
    )
    return Recipe(
        name="tiny",
        model={
            "vision_config": {
                **size,
                "num_hidden_layers": 1,
                "patch_size": (8, 8, 8),
                "stem_channels": (4, 8),
                "windows": [(0.0, 0.16), (0.17, 0.37)],
                "global_config": {**size, "num_hidden_layers": 1},
            },
            "projection_hidden_size": 32,
            "projection_bottleneck_size": 16,
            "projection_dim": 16,
            "token_scores": True,
            "decoder_stride": 2,
            "structures": dict(STRUCTURES),
            "id2label": dict(enumerate(FINDINGS)),
            "label2id": {name: number for number, name in enumerate(FINDINGS)},
        },
        processor={"crop_size": (16, 16, 16), "spacing": (12.0, 12.0, 12.0), "intensity_window": (-1024.0, 3071.0)},
        text_start=str(text_start),
        phases={"joint": phase, "refinement": replace(phase, steps=2, first_scan=3)},
    )


@pytest.fixture
def text_start(tmp_path: Path) -> Path:
    """A text tower with its tokenizer, as a Hub folder holds them."""
    from ctfm.train.build import train_tokenizer
    from transformers import BertConfig, BertModel

    tokenizer = train_tokenizer(["No pleural effusion. A nodule in the right upper lobe."], 300)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=48,
        pad_token_id=tokenizer.pad_token_id,
    )
    BertModel(config).save_pretrained(tmp_path / "text")
    tokenizer.save_pretrained(tmp_path / "text")
    return tmp_path / "text"


@pytest.fixture(autouse=True)
def small_phantoms(monkeypatch: pytest.MonkeyPatch) -> None:
    def small(seed: int) -> Phantom:
        return make_phantom(seed, shape=(24, 32, 32), findings=["Pleural effusion"] if seed % 2 else [])

    monkeypatch.setattr("ctfm.train.drawn.draw_phantom", small)


def read_losses(out: Path) -> list[tuple[str, int, float]]:
    import json

    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [(row["phase"], row["step"], row["loss"]) for row in rows]


def test_a_run_without_prepared_folders_exports_three_trained_models(tmp_path: Path, text_start: Path) -> None:
    run = Run(recipe=tiny_recipe(text_start), out=tmp_path / "run", data=(), log_every=1)
    assert pretrain(run, Accelerator(cpu=True))
    for kind in (CTFMModel, CTFMForImageClassification, CTFMForSemanticSegmentation):
        _, report = kind.from_pretrained(tmp_path / "run" / "exported", output_loading_info=True)
        assert not report["missing_keys"]
        assert not report["unexpected_keys"]
    parts = [part for _, _, part in read_losses(tmp_path / "run")]
    assert len(parts) == 5
    assert all(torch.tensor(parts).isfinite())


def test_a_run_that_was_stopped_goes_on_with_the_losses_of_one_that_was_not(
    tmp_path: Path, text_start: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(text_start)
    pretrain(Run(recipe=recipe, out=tmp_path / "whole", data=(), log_every=1), Accelerator(cpu=True))
    # A run that is out of time leaves after its first step; the next one goes on, in an empty folder of drawn scans.
    stopped = Run(recipe=recipe, out=tmp_path / "stopped", data=(), log_every=1, stop_after=0.0)
    assert not pretrain(stopped, Accelerator(cpu=True))
    assert not (tmp_path / "stopped" / "finished").exists()
    for kept in (tmp_path / "stopped" / "drawn").iterdir():
        kept.unlink()
    assert pretrain(replace(stopped, stop_after=float("inf")), Accelerator(cpu=True))
    assert read_losses(tmp_path / "stopped") == read_losses(tmp_path / "whole")


def test_a_recipe_goes_on_from_a_published_folder(tmp_path: Path, text_start: Path) -> None:
    recipe = tiny_recipe(text_start)
    pretrain(Run(recipe=recipe, out=tmp_path / "first", data=(), log_every=1), Accelerator(cpu=True))
    start = tmp_path / "first" / "exported"
    later = replace(recipe, start=str(start), seed=1, phases={"boxes": replace(recipe.phases["joint"], boxes=1.0)})
    assert pretrain(Run(recipe=later, out=tmp_path / "later", data=(), log_every=1), Accelerator(cpu=True))
    published, begun = (
        load_file(path)
        for path in (start / "model.safetensors", tmp_path / "later/checkpoints/boxes-0000000/objective.safetensors")
    )
    for name, tensor in begun.items():
        if not name.startswith("organ_head."):  # only training needs it, so it is not published
            stored = name.removeprefix("model.").removeprefix("findings.")
            torch.testing.assert_close(tensor, published[stored].float(), rtol=0, atol=0)


def test_a_folder_that_lacks_what_a_joint_phase_goes_on_from_is_refused(tmp_path: Path, text_start: Path) -> None:
    recipe = tiny_recipe(text_start)
    config = build_config(recipe, build_processor(recipe, ()).tokenizer)
    model = build_model(recipe, config)
    model.save_pretrained(tmp_path)  # neither classifier nor decoder
    objective = JointObjective(model, recipe.phases["joint"].objective)  # type: ignore[attr-defined]
    with pytest.raises(OSError, match=r"lacks \d+ weights that this phase goes on from, token_weights"):
        load_start(str(tmp_path), objective)


def test_a_phase_that_cannot_go_on_from_a_folder_is_refused() -> None:
    with pytest.raises(ValueError, match=r"begins with phase 'self_supervision'.*recipes trunk and boxes"):
        replace(RECIPES["demo"](), start="somewhere")


def test_a_model_without_token_scores_is_refused() -> None:
    from tests.tiny import tiny_config

    with pytest.raises(ValueError, match="set token_scores"):
        JointObjective(CTFMModel(tiny_config()), JointConfig())


def test_a_recipe_that_draws_its_scans_asks_for_no_folders(tmp_path: Path) -> None:
    run = program.read_run(["trunk", "--out", str(tmp_path)])
    assert run.data == ()
