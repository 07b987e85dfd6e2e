"""The loop as it is started, killed, asked to leave and started again; what it trains, skips, stops at and exports."""

import copy
import csv
import itertools
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from ctfm import CTFMModel, CTFMProcessor, CTFMVisionModel
from ctfm.train import build as building
from ctfm.train import checkpoint as checkpoints
from ctfm.train import finetune
from ctfm.train import monitor as monitoring
from ctfm.train import pretrain as loop
from ctfm.train.checkpoint import check_recipe, load_exported
from ctfm.train.data import SourceConfig, StepBatches
from ctfm.train.prepare import main as prepare
from ctfm.train.processes import ALONE
from ctfm.train.recipes import RECIPES, Recipe, SegmentationPhase
from ctfm.train.segmentation import SegmentationBatch
from ctfm.train.shards import Manifest
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode

from tests.tiny import TEXT, tiny_tokenizer
from tests.tiny_training import tiny_data, tiny_recipe

ROOT = Path(__file__).parent.parent
STEPS = 4  # of each of four phases
KILLED_AT = 2 * STEPS + 3  # a row of the log: in the middle of a phase, between two checkpoints
SPEED = {"samples_per_s", "tokens_per_s", "waiting_share", "mfu"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_data(tmp_path_factory.mktemp("data"))


# --- real processes ------------------------------------------------------------------------------------------------------


def start(out: Path, data: Path, *wishes: str, num_processes: int = 2) -> subprocess.Popen:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={num_processes}"]
    if num_processes == 1:
        command = [sys.executable]
    command += ["-m", "tests.pretrain_worker", str(out), str(data), str(STEPS), *wishes]
    environment = os.environ | slurm_environment() | {"TORCH_CPP_LOG_LEVEL": "ERROR"}
    with out.with_suffix(".txt").open("a") as output:
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, start_new_session=True, stdout=output, stderr=subprocess.STDOUT
        )


def slurm_environment() -> dict[str, str]:
    """What launch/slurm.sbatch exports."""
    lines = (ROOT / "train/launch/slurm.sbatch").read_text().splitlines()
    exported = " ".join(line.removeprefix("export ") for line in lines if line.startswith("export "))
    return dict(setting.split("=") for setting in exported.split())


def finish(process: subprocess.Popen, out: Path) -> None:
    assert process.wait() == 0, out.with_suffix(".txt").read_text()[-3000:]


def rows(out: Path) -> list[dict[str, Any]]:
    """The log without what the clock says."""
    path = out / "log.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    return [{name: value for name, value in line.items() if name not in SPEED} for line in lines]


def wait_for_rows(out: Path, number: int, process: subprocess.Popen) -> None:
    while len(rows(out)) < number:
        assert process.poll() is None, out.with_suffix(".txt").read_text()[-3000:]
        time.sleep(0.02)


def weights(out: Path, checkpoint: str = f"alignment_of_all-{STEPS:07d}") -> dict[str, torch.Tensor]:
    return load_file(out / "checkpoints" / checkpoint / "objective.safetensors")


def assert_equal_runs(one: Path, other: Path) -> None:
    assert rows(one) == rows(other)
    expected, found = weights(one), weights(other)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name


@pytest.fixture(scope="module")
def two_processes(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on two processes that nothing disturbed."""
    out = tmp_path_factory.mktemp("two") / "run"
    finish(start(out, data), out)
    assert (out / "finished").is_file()
    return out


@pytest.fixture(scope="module")
def one_process(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("one") / "run"
    finish(start(out, data, num_processes=1), out)
    return out


def test_a_run_that_is_killed_goes_on_to_the_same_losses_and_weights_bit_for_bit(
    data: Path, two_processes: Path, tmp_path: Path
) -> None:
    out, row = tmp_path / "run", KILLED_AT
    process = start(out, data, f"hold={row}")
    wait_for_rows(out, row, process)
    for one in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
        one.kill()
    process.wait()
    assert len(rows(out)) == row
    assert not (out / "finished").exists()
    finish(start(out, data), out)
    assert_equal_runs(two_processes, out)


def test_two_processes_of_fsdp_give_what_two_of_ddp_give(data: Path, two_processes: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    finish(start(out, data, "fsdp"), out)
    for one, other in zip(rows(two_processes), rows(out), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4, abs=1e-5), (one, other)
    expected, found = weights(two_processes), weights(out)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=2e-4, msg=name)


def test_one_process_takes_over_the_run_of_two_with_the_same_samples(
    data: Path, two_processes: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(two_processes, out)
    (out / "finished").unlink()
    for path in (out / "checkpoints").iterdir():
        if not path.name.startswith("self_supervision") or path.name > "self_supervision-0000002":
            shutil.rmtree(path)
    finish(start(out, data, num_processes=1), out)
    assert [(row["phase"], row["step"]) for row in rows(out)] == [(r["phase"], r["step"]) for r in rows(two_processes)]
    assert all(math.isfinite(row["loss"]) for row in rows(out))
    state = f"checkpoints/alignment_of_all-{STEPS:07d}/state.json"
    one, two = (json.loads((run / state).read_text()) for run in (out, two_processes))
    assert one["data"] == two["data"]


@pytest.mark.parametrize(
    ("number", "num_processes", "wish"),
    [(signal.SIGTERM, 1, "workers=0"), (signal.SIGUSR1, 2, "workers=0"), (signal.SIGTERM, 2, "workers=1")],
)
def test_a_signal_saves_and_leaves_and_nothing_is_lost(
    data: Path, request: pytest.FixtureRequest, tmp_path: Path, number: signal.Signals, num_processes: int, wish: str
) -> None:
    undisturbed = request.getfixturevalue("one_process" if num_processes == 1 else "two_processes")
    # One leaves in the next step, step 3, which has no regular checkpoint; two agree in that step or in the one before or
    # after, since no process waits for the answer of the others.
    out, row = tmp_path / "run", STEPS + (2 if num_processes == 1 else 1)
    process = start(out, data, f"hold={row}", wish, num_processes=num_processes)
    wait_for_rows(out, row, process)
    process.send_signal(number)  # a launcher sends it to the loaders of its processes as well
    code = process.wait()
    assert code == 0 or num_processes == 2  # torchrun, asked to leave itself, leaves with 1
    last = rows(out)[-1]
    assert last["phase"] == "segmentation"
    assert last["step"] == 3 or num_processes == 2
    assert (out / "checkpoints" / f"segmentation-{last['step']:07d}" / "state.json").is_file()
    assert not (out / "finished").exists()
    finish(start(out, data, num_processes=num_processes), out)
    assert_equal_runs(undisturbed, out)


# --- one process, in this one --------------------------------------------------------------------------------------------


def train(out: Path, data: Path, recipe: Recipe, **settings: Any) -> Path:
    torch.set_num_threads(1)
    run = loop.Run(recipe=recipe, out=out, data=(str(data),), log_every=1, save_every=100, **settings)
    assert loop.pretrain(run, Accelerator(cpu=True))
    return out


def only(name: str, steps: int = 4, micro_batches: int = 1) -> Recipe:
    recipe = tiny_recipe(steps, micro_batches)
    return replace(recipe, phases={name: recipe.phases[name]})


def without_drop_path(recipe: Recipe) -> Recipe:
    recipe = copy.deepcopy(recipe)
    recipe.model["vision_config"] = recipe.model["vision_config"] | {"drop_path_rate": 0.0}
    return recipe


def losses(out: Path) -> list[float]:
    return [row["loss"] for row in rows(out)]


def test_the_loop_itself_is_what_the_processes_ran(data: Path, one_process: Path, tmp_path: Path) -> None:
    out = train(tmp_path / "run", data, tiny_recipe(STEPS))
    assert losses(out) == pytest.approx(losses(one_process), rel=1e-6)


def test_accumulation_equals_the_large_batch_and_steps_are_the_optimizers(data: Path, tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", data, without_drop_path(only("segmentation")))
    parts = train(tmp_path / "parts", data, without_drop_path(only("segmentation", micro_batches=4)))
    assert [row["step"] for row in rows(parts)] == [1, 2, 3, 4]
    assert losses(parts) == pytest.approx(losses(whole), rel=1e-5)
    expected, found = (weights(out, "segmentation-0000004") for out in (whole, parts))
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-5, msg=name)
    state = json.loads((parts / "checkpoints/segmentation-0000004/state.json").read_text())
    assert state["step"] == state["data"]["step"] == 4


@pytest.mark.parametrize(("micro_batch", "count"), [(4, 8), (12, 8), (10, 2)])
def test_a_batch_that_processes_cannot_share_is_refused(micro_batch: int, count: int) -> None:
    phase = replace(tiny_recipe().phases["segmentation"], global_batch=48, micro_batch=micro_batch)
    with pytest.raises(
        ValueError, match=f"{count} processes cannot share a step of 48 samples in parts of {micro_batch}"
    ):
        loop.divide_batch(phase, count)
    assert loop.divide_batch(replace(phase, micro_batch=16), 8) == (3, 2)


def test_activations_computed_again_change_nothing(data: Path, tmp_path: Path) -> None:
    kept = train(tmp_path / "kept", data, tiny_recipe(2))
    again = train(tmp_path / "again", data, tiny_recipe(2), checkpoint_activations=True)
    assert losses(again) == pytest.approx(losses(kept), rel=1e-6)


def train_in_bfloat16(out: Path, data: Path, recipe: Recipe) -> Path:
    AcceleratorState._reset_state(reset_partial_state=True)  # a process keeps its first precision
    try:
        run = loop.Run(recipe=recipe, out=out, data=(str(data),), log_every=1, save_every=100)
        loop.pretrain(run, Accelerator(cpu=True, mixed_precision="bf16"))
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    return out


def test_bfloat16_gives_nearly_the_losses_of_float32(data: Path, tmp_path: Path) -> None:
    """One step a phase: AdamW's first steps have the sign of the gradient alone, so that weights drift apart soon after."""
    whole = losses(train(tmp_path / "whole", data, tiny_recipe(1)))
    out = train_in_bfloat16(tmp_path / "half", data, tiny_recipe(1))
    assert losses(out) != whole
    assert losses(out) == pytest.approx(whole, rel=0.02)  # measured over 8 seeds: 0.012 at most
    assert all(tensor.dtype != torch.bfloat16 for tensor in weights(out, "alignment_of_all-0000001").values())


def test_batches_of_a_bfloat16_run_are_those_of_the_image_processor_to_the_bit(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[list[Any], Any]] = []
    build = loop.build_task

    def build_watched(*arguments: Any, **named: Any) -> Any:
        task = build(*arguments, **named)

        def make_batch(samples: Any) -> Any:
            seen.append((samples, task.make_batch(samples)))
            return seen[-1][1]

        return replace(task, make_batch=make_batch)

    monkeypatch.setattr(loop, "build_task", build_watched)
    out = train_in_bfloat16(tmp_path / "run", data, only("alignment_of_all", steps=2))
    processor = CTFMProcessor.from_pretrained(out / "processor").image_processor
    for samples, batch in seen:
        for sample, crops, mask in zip(samples, batch.pixel_values, batch.crop_mask, strict=True):
            expected = processor((sample.hu.numpy(), sample.affine))["pixel_values"][0]
            assert torch.equal(crops[mask], expected)
    assert len(seen) == 2


@pytest.mark.slow
# Both of torch's compiler itself; it looks at `.grad` of every tensor that it traces, activations too.
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_compiled_layers_give_the_losses_of_eager_ones(data: Path, tmp_path: Path) -> None:
    recipe = without_drop_path(tiny_recipe(2))
    eager = train(tmp_path / "eager", data, recipe)
    compiled = train(tmp_path / "compiled", data, recipe, compile_layers=True)
    assert losses(compiled) == pytest.approx(losses(eager), rel=1e-4)


def test_a_run_is_probed_as_often_as_asked_and_at_the_end_of_a_phase(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def answer(model: torch.nn.Module, processor: Any, manifest: Manifest, *scans: int) -> dict[str, float]:
        asked.append((type(model), manifest.folder, scans))
        return {"knn/macro_auroc": 0.5 + len(asked) / 100}

    monkeypatch.setattr(loop, "probe", answer)
    run = loop.Run(
        recipe=only("segmentation", steps=3),
        out=tmp_path / "run",
        data=(str(data),),
        save_every=1,
        probe_every=2,
        probe_scans=7,
        log_every=9,
    )
    loop.pretrain(run, Accelerator(cpu=True))
    found = [(row["step"], row["probe/knn/macro_auroc"]) for row in rows(run.out) if "probe/knn/macro_auroc" in row]
    assert found == [(0, 0.51), (2, 0.52), (3, 0.53)]
    assert set(asked) == {(CTFMVisionModel, str(data), (7, 7))}


def test_a_run_that_keeps_no_checkpoint_is_probed_and_keeps_the_one_it_leaves_with(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "probe", lambda *_: {"knn/macro_auroc": 0.5})
    run = loop.Run(
        recipe=only("segmentation", steps=3),
        out=tmp_path / "run",
        data=(str(data),),
        save_every=1,
        probe_every=1,
        keep_last=0,
        log_every=1,
    )
    assert not loop.pretrain(replace(run, stop_after=0.0), Accelerator(cpu=True))
    assert [path.name for path in (run.out / "checkpoints").iterdir()] == ["segmentation-0000001"]
    assert loop.pretrain(run, Accelerator(cpu=True))
    assert [path.name for path in (run.out / "checkpoints").iterdir()] == ["segmentation-0000003"]
    found = [row["loss"] for row in rows(run.out) if "loss" in row]
    assert found == losses(train(tmp_path / "stays", data, run.recipe))


# --- bad steps -----------------------------------------------------------------------------------------------------------


def spoil(monkeypatch: pytest.MonkeyPatch, spoilt: set[int]) -> None:
    """Batches of these steps hold a NaN."""
    build, count = loop.build_task, iter(range(1, 1000))

    def build_spoilt(*arguments: Any, **named: Any) -> Any:
        task = build(*arguments, **named)

        def make_batch(loaded: Any) -> Any:
            batch = task.make_batch(loaded)
            if next(count) in spoilt:
                batch.pixel_values[0, 0, 0, 0, 0] = math.nan
            return batch

        return replace(task, make_batch=make_batch)

    monkeypatch.setattr(loop, "build_task", build_spoilt)


def test_a_step_with_a_nan_is_skipped_and_counted(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, {2})
    out = tmp_path / "run"
    run = loop.Run(recipe=only("segmentation"), out=out, data=(str(data),), log_every=1, save_every=1, keep_last=9)
    loop.pretrain(run, Accelerator(cpu=True))
    assert [row["skipped_steps"] for row in rows(out)] == [0, 1, 1, 1]
    before, skipped, after = (weights(out, f"segmentation-000000{step}") for step in (1, 2, 3))
    assert all(torch.equal(tensor, skipped[name]) for name, tensor in before.items())
    assert any(not torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert all(tensor.isfinite().all() for tensor in after.values())


def test_nothing_but_bad_steps_stop_the_run(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, set(range(3, 100)))
    with pytest.raises(monitoring.TrainingStopped, match="in 10 steps in a row up to step 12"):
        train(tmp_path / "run", data, only("segmentation", steps=20))


def make_monitor(data: Path, folder: Path) -> monitoring.Monitor:
    recipe = only("segmentation")
    task = make_task(recipe, "segmentation", (SourceConfig(folder=str(data)),), folder)
    phase = recipe.phases["segmentation"]
    return monitoring.Monitor("segmentation", folder, task, phase, torch.device("cpu"), ALONE, None, 0)


def test_a_loss_that_stays_out_of_its_range_warns_first_and_then_stops_the_run(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monitor, generator = make_monitor(data, tmp_path), random.Random(0)
    for step in range(1, 101):
        monitor.check_loss(generator.gauss(4.0, 0.1), step)
    for step in range(101, 105):
        monitor.check_loss(9.0, step)
    monitor.check_loss(4.0, 105)  # it came back
    assert capsys.readouterr().out.count("loss 9 at step 101 is above") == 1
    for step in range(106, 110):
        monitor.check_loss(9.0, step)
    counters = json.loads(json.dumps(monitor.counters))  # as a checkpoint keeps them
    assert max(counters["windows"]) < 5
    monitor.counters = counters
    with pytest.raises(monitoring.TrainingStopped, match=r"loss 9 at step 110 .* in 5 rows .* lower learning_rate"):
        monitor.check_loss(9.0, 110)


def test_heavy_tailed_noise_and_a_falling_loss_stop_no_run() -> None:
    generator = random.Random(0)
    for draw in (lambda: generator.gauss(0, 1), lambda: generator.lognormvariate(0, 1)):
        range_ = monitoring.LossRange()
        assert max(range_.add(5 * math.exp(-row / 500) + 0.2 * draw()) for row in range(3000)) < monitoring.PATIENCE


# --- recipes, export, figures --------------------------------------------------------------------------------------------


def make_task(recipe: Recipe, name: str, sources: tuple[SourceConfig, ...], folder: Path) -> building.Task:
    processor = building.build_processor(recipe, sources)
    model = building.build_model(recipe, building.build_config(recipe, processor.tokenizer))
    parts = {"device": torch.device("cpu"), "processes": ALONE, "cache": folder / "descriptors"}
    return building.build_task(recipe.phases[name], recipe, sources, model, processor, **parts)


def test_another_recipe_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    check_recipe(tmp_path, tiny_recipe())
    check_recipe(tmp_path, tiny_recipe())
    with pytest.raises(ValueError, match="another recipe \\(seed differ\\)"):
        check_recipe(tmp_path, replace(tiny_recipe(), seed=1))


def test_a_run_that_goes_on_may_change_learning_rate_and_clip_norm_and_notes_it(data: Path, tmp_path: Path) -> None:
    recipe = only("segmentation", steps=3)
    run = loop.Run(recipe=recipe, out=tmp_path, data=(str(data),), log_every=1, save_every=1, stop_after=0.0)
    assert not loop.pretrain(run, Accelerator(cpu=True))
    phase = recipe.phases["segmentation"]
    slower = replace(phase, optimizer=replace(phase.optimizer, learning_rate=1e-4, clip_norm=0.5))
    train(tmp_path, data, replace(recipe, phases={"segmentation": slower}))
    stored = json.loads((tmp_path / "recipe.json").read_text())
    optimizer = "phases.segmentation.optimizer"
    changes = {f"{optimizer}.learning_rate": [1e-3, 1e-4], f"{optimizer}.clip_norm": [1.0, 0.5]}
    assert stored["history"] == [{"from": "segmentation-0000001", "changes": changes}]
    assert stored["phases"]["segmentation"]["optimizer"]["learning_rate"] == 1e-4
    assert rows(tmp_path)[-1]["learning_rate"] < 1e-4
    faster = replace(slower, optimizer=replace(slower.optimizer, betas=(0.5, 0.9)))
    with pytest.raises(ValueError, match=r"phases\.segmentation\.optimizer\.betas differ"):
        check_recipe(tmp_path, replace(recipe, phases={"segmentation": faster}))


def test_a_run_that_goes_on_may_pass_over_samples_and_notes_it(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []

    class Recorded(StepBatches):
        def __iter__(self) -> Iterator[list[int]]:
            for numbers in super().__iter__():
                taken.extend(numbers)
                yield numbers

    monkeypatch.setattr(loop, "StepBatches", Recorded)
    recipe = only("segmentation", steps=3)
    run = loop.Run(recipe=recipe, out=tmp_path, data=(str(data),), log_every=1, save_every=1, stop_after=0.0)
    assert not loop.pretrain(run, Accelerator(cpu=True))
    train(tmp_path, data, replace(recipe, skip_data_steps=5))
    batch = recipe.phases["segmentation"].global_batch
    assert taken == [*range(batch), *range(6 * batch, 8 * batch)]  # of steps 0, 6 and 7
    stored = json.loads((tmp_path / "recipe.json").read_text())
    assert stored["history"] == [{"from": "segmentation-0000001", "changes": {"skip_data_steps": [0, 5]}}]


def test_the_export_loads_as_it_was_trained(one_process: Path, data: Path) -> None:
    trained, processor = load_exported(one_process / "checkpoints" / f"alignment_of_all-{STEPS:07d}")
    model = CTFMModel.from_pretrained(one_process / "exported", dtype=torch.bfloat16)
    loaded = CTFMProcessor.from_pretrained(one_process / "exported")
    for name, tensor in trained.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor.to(model.state_dict()[name].dtype)), name
    manifest = Manifest(data)
    scan = manifest[0]
    volume = (manifest.read_box(scan, (0, 0, 0), scan.shape), scan.affine)
    inputs = loaded(images=[volume], text=["Pleural effusion."])
    expected = processor(images=[volume], text=["Pleural effusion."])
    assert torch.equal(inputs["pixel_values"], expected["pixel_values"])
    assert torch.equal(inputs["input_ids"], expected["input_ids"])


def test_a_checkpoint_of_any_step_is_exported_by_a_command(
    one_process: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = one_process / "checkpoints" / "self_supervision-0000002"
    monkeypatch.setattr(sys, "argv", ["checkpoint", str(path), str(tmp_path / "exported")])
    assert checkpoints.main() == 0
    state = CTFMVisionModel.from_pretrained(tmp_path / "exported", dtype=torch.bfloat16).local_model.state_dict()
    teacher = load_file(path / "objective.safetensors")
    for name, tensor in state.items():
        assert torch.equal(tensor, teacher[f"teacher.backbone.{name}"].bfloat16()), name


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # PEFT asks for it
def test_adapters_alone_are_trained_in_a_pretrained_text_tower_and_merged_on_export(data: Path, tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(**{name: value for name, value in TEXT.items() if name != "model_type"})
    start = BertModel(config, add_pooling_layer=False)
    start.save_pretrained(tmp_path / "text")
    tiny_tokenizer().save_pretrained(tmp_path / "text")
    recipe = replace(only("alignment"), text_start=str(tmp_path / "text"), text_adapter_rank=2)
    out = train(tmp_path / "run", data, recipe)
    before, after = (weights(out, f"alignment-000000{step}") for step in (0, 4))
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    in_text = {name for name in changed if "text_model." in name}
    assert in_text
    assert all("lora_" in name for name in in_text)
    exported = CTFMModel.from_pretrained(out / "exported", dtype=torch.float32)
    names = exported.text_model.state_dict()
    assert not any("lora" in name for name in names)
    moved = [name for name, tensor in start.state_dict().items() if (names[name] - tensor).abs().max() > 0.02]
    assert all("attention.self" in name for name in moved)


@pytest.mark.parametrize("name", ["demo", "phantoms", "embedded"])
def test_recipes_make_models_of_their_phases(name: str, data: Path, tmp_path: Path) -> None:
    recipe = replace(RECIPES[name](), text_start="", text_adapter_rank=0)  # a pretrained tower is not everywhere
    assert recipe.name == name
    assert json.loads(json.dumps(recipe.model)) is not None
    small = {key: replace(phase, global_batch=2, micro_batch=2) for key, phase in recipe.phases.items()}
    recipe = replace(recipe, phases=small)
    first = next(iter(small))
    task = make_task(recipe, first, (SourceConfig(folder=str(data)),), tmp_path)
    batches = StepBatches(task.schedule, start_step=0, stop_step=1, batch_size=2)
    loss, _ = task.objective.train()(task.make_batch(next(iter(task.load(batches, 0)))))
    assert loss.isfinite()


def test_the_command_line_reaches_every_phase_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--recipe.phases.alignment.steps", "7", "--recipe.phases.segmentation.optimizer.learning-rate", "0.01"]
    run = loop.read_run(["demo", "--out", str(tmp_path), "--data", "prepared", *given])
    assert isinstance(run.recipe, Recipe)
    segmentation, alignment = run.recipe.phases["segmentation"], run.recipe.phases["alignment"]
    assert isinstance(segmentation, SegmentationPhase)
    assert segmentation.optimizer.learning_rate == 0.01
    assert alignment == replace(RECIPES["demo"]().phases["alignment"], steps=7)
    with pytest.raises(SystemExit):
        loop.read_run(["demo", "--help"])
    said = capsys.readouterr().out
    assert "--recipe.phases.self-supervision.micro-batch" in said
    assert "number of optimizer steps" in said


def test_a_phase_that_ends_before_its_warm_up_is_refused_with_both_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    demo = RECIPES["demo"]()
    short = demo.phases | {"alignment": replace(demo.phases["alignment"], steps=5)}
    with pytest.raises(
        ValueError, match=r"Phase alignment has 5 steps and a warm-up of 6; set optimizer.warmup_steps to 5"
    ):
        replace(demo, phases=short)
    with pytest.raises(SystemExit):
        finetune.read_run(["findings", "--out", "RUN", "--data", "D", "--recipe.start", "X", "--recipe.steps", "50"])
    assert "Phase findings has 50 steps and a warm-up of 100" in " ".join(
        capsys.readouterr().err.replace("│", "").split()
    )


def edit_table(folder: Path, name: str, edit: Callable[[int, dict[str, str]], dict[str, str]]) -> Path:
    """The phantoms of `tiny_data` prepared anew, with other rows in their table."""
    table = folder / "phantoms" / "table.csv"
    with table.open(newline="") as file:
        rows = [edit(number, row) for number, row in enumerate(csv.DictReader(file))]
    with table.with_name(f"{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    prepare(["csv", str(table.with_name(f"{name}.csv")), str(folder / name), "--num-workers", "0"])
    return folder / name


def test_alignment_draws_scans_that_have_a_report_and_knows_equal_ones(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = ["", "Normal chest.", "NORMAL  chest.", "A lung nodule."]
    some = edit_table(data.parent, "some", lambda number, row: row | {"report": texts[number % 4]})
    none = edit_table(data.parent, "none", lambda _, row: row | {"report": " "})
    recipe = only("alignment_of_all")
    sources = tuple(SourceConfig(folder=str(folder), split="train") for folder in (none, some))
    task = make_task(recipe, "alignment_of_all", sources, tmp_path)
    assert f"No scan in {none} has a report" in capsys.readouterr().out
    assert [source.folder for source in task.schedule.config.sources] == [str(some)]
    batches = StepBatches(task.schedule, start_step=0, stop_step=5, batch_size=4)
    for loaded in task.load(batches, 0):
        assert all(sample.report for sample in loaded)
        keys = task.make_batch(loaded).text_keys
        for i, j in itertools.product(range(4), range(4)):
            words = [" ".join(loaded[k].report.lower().split()) for k in (i, j)]
            assert bool((keys[i, 0] == keys[j, 0]).item()) is (words[0] == words[1])
    with pytest.raises(ValueError, match=r"No scan of split 'train' in .*none has a report"):
        make_task(recipe, "alignment_of_all", sources[:1], tmp_path)


def test_alignment_asks_about_parts_of_scans_whose_descriptors_are_cached(data: Path, tmp_path: Path) -> None:
    recipe = only("alignment")
    phase = replace(recipe.phases["alignment"], prompts="phantoms/ensemble", part_crops=3)
    task = make_task(
        replace(recipe, phases={"alignment": phase}), "alignment", (SourceConfig(folder=str(data)),), tmp_path
    )
    batches = StepBatches(task.schedule, start_step=0, stop_step=6, batch_size=4)
    asked = [task.make_batch(loaded) for loaded in task.load(batches, 0)]
    assert {batch.part_crops.shape[1] for batch in asked} <= {1, 2, 3}
    both = torch.cat([torch.stack((batch.part_labels, batch.labels), -1).flatten(0, 1) for batch in asked])
    known = both[~both.isnan().any(1)]
    assert (known[:, 0] <= known[:, 1]).all()  # a part has no finding that its scan does not have
    assert 0.01 < float(known[:, 0].mean()) < float(known[:, 1].mean())
    loss, metrics = task.objective.train()(asked[0])
    assert loss.isfinite()
    assert float(metrics["parts"]) > 0


def test_the_large_recipe_sees_as_much_as_spectre_in_batches_that_nodes_of_8_divide() -> None:
    phases = RECIPES["large"]().phases
    assert list(phases) == ["self_supervision", "alignment", "alignment_of_all"]
    crops, first, second = phases.values()
    assert (crops.steps, crops.global_batch) == (83_100, 1_536)
    assert (first.steps + second.steps) * first.global_batch == pytest.approx(59_000 * 144, rel=1e-3)
    assert first.steps / (first.steps + second.steps) == pytest.approx(0.1, abs=1e-3)
    for nodes in (1, 2, 4, 8, 16):
        assert all(
            phase.micro_batch % (8 * nodes) == phase.global_batch % (8 * nodes) == 0 for phase in phases.values()
        )


@pytest.mark.parametrize("name", ["self_supervision", "segmentation", "alignment_of_all"])
def test_counted_operations_are_those_that_are_done(name: str, data: Path, tmp_path: Path) -> None:
    recipe = without_drop_path(only(name))
    task = make_task(recipe, name, (SourceConfig(folder=str(data)),), tmp_path)
    batches = StepBatches(task.schedule, start_step=0, stop_step=8, batch_size=4)
    objective, done, steps = task.objective.train(), 0.0, 0
    for loaded in task.load(batches, 0):
        batch = task.make_batch(loaded)
        with FlopCounterMode(display=False) as counter:
            objective(batch)[0].backward()
        done, steps = done + without_text(counter), steps + 1
    # The formula leaves out the text tower and the projections; crops and hidden tokens are means of many scans.
    assert task.sample_flops * 4 == pytest.approx(done / steps, rel=0.15)


def without_text(counter: FlopCounterMode) -> float:
    counts = counter.get_flop_counts()
    total = sum(counts["Global"].values())
    text = [sum(ops.values()) for name, ops in counts.items() if name.endswith("text_model.encoder")]
    return total - sum(text)


def test_segmentation_batches_move(data: Path) -> None:
    batch = SegmentationBatch(pixel_values=torch.zeros(1), segmentation=torch.zeros(1))
    assert batch.to("meta").pixel_values.device.type == "meta"
    assert isinstance(RECIPES["embedded"]().phases["segmentation"], SegmentationPhase)
