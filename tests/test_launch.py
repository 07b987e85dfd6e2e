"""The files that start a run on a cluster: read by what reads them there, their commands by the program they start."""

import os
import re
import shlex
import stat
import subprocess
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.utils import DistributedType
from ctfm import modeling_ctfm
from ctfm.train.pretrain import read_run
from torch.distributed.run import get_args_parser

ROOT = Path(__file__).parent.parent
LAUNCH = ROOT / "train" / "launch"
SBATCH = LAUNCH / "slurm.sbatch"


def read_config(name: str) -> ClusterConfig:
    config = load_config_from_file(str(LAUNCH / name))
    assert isinstance(config, ClusterConfig)
    return config


def test_one_node_runs_8_processes_of_ddp() -> None:
    config = read_config("accelerate_1x8.yaml")
    assert (config.num_machines, config.num_processes, config.distributed_type) == (1, 8, DistributedType.MULTI_GPU)
    assert config.mixed_precision == "bf16"


def test_four_nodes_run_32_processes_of_fsdp_over_the_models_layers() -> None:
    config = read_config("accelerate_4x8.yaml")
    assert (config.num_machines, config.num_processes, config.distributed_type) == (4, 32, DistributedType.FSDP)
    assert config.fsdp_config["fsdp_version"] == 2
    assert hasattr(modeling_ctfm, config.fsdp_config["fsdp_transformer_layer_cls_to_wrap"])


@pytest.mark.parametrize("name", ["accelerate_1x8.yaml", "accelerate_4x8.yaml", "slurm.sbatch"])
def test_the_command_in_a_header_names_files_that_exist_and_arguments_that_are_known(name: str) -> None:
    lines = (LAUNCH / name).read_text().splitlines()
    command = " ".join(line.strip("# \\") for line in lines if line.startswith("#     "))
    for file in re.findall(r"train/launch/\S+", command):
        assert (ROOT / file).is_file(), file
    run = read_run(["large", *shlex.split(command.partition(" large ")[2])])
    assert (run.recipe.name, run.out, run.data) == ("large", Path("RUN"), ("PREPARED",))
    assert run.compile_layers


# --- slurm.sbatch, in bash, with the cluster's two commands played ---------------------------------------------------------


def submit(folder: Path, *arguments: str, srun: str) -> subprocess.CompletedProcess:
    """Runs the script as a job of two nodes; `srun` is what the processes leave behind."""
    programs = folder / "bin"
    programs.mkdir()
    for program, text in {
        "srun": f'printf "%s\\n" "$@" > {folder}/asked; {srun}',
        "scontrol": f'if [ "$1" = show ]; then printf "node7\\nnode8\\n"; else echo "$@" >> {folder}/requeued; fi',
    }.items():
        (programs / program).write_text(f"#!/bin/sh\n{text}\n")
        (programs / program).chmod(stat.S_IRWXU)
    environment = {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "31",
        "SLURM_NNODES": "2",
        "SLURM_JOB_NODELIST": "node[7-8]",
        "SLURM_JOB_END_TIME": "99999999999",
    }
    return subprocess.run(["bash", SBATCH, *arguments], cwd=folder, env=environment, capture_output=True, text=True)


ARGUMENTS = ("large", "--out", "RUN", "--data", "PREPARED")


def test_the_job_starts_8_processes_a_node_and_goes_back_into_the_queue_while_checkpoints_come(tmp_path: Path) -> None:
    done = submit(tmp_path, *ARGUMENTS, srun="mkdir -p RUN/checkpoints/alignment-0000500; exit 1")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "requeued").read_text() == "requeue 31\n"
    asked = (tmp_path / "asked").read_text().splitlines()
    for option, value in {"--num_machines": "2", "--num_processes": "16", "--main_process_ip": "node7"}.items():
        assert asked[asked.index(option) + 1] == value
    config = asked[asked.index("--config_file") + 1]
    assert (ROOT / config).is_file()
    run = read_run(asked[asked.index("ctfm.train.pretrain") + 1 :])
    assert run.out == Path("RUN")
    assert 9e10 < run.stop_after < 1e11


def test_the_launcher_is_told_of_the_signal_that_slurm_sends(tmp_path: Path) -> None:
    submit(tmp_path, *ARGUMENTS, srun=f"env > {tmp_path}/environment; exit 1")
    environment = dict(line.partition("=")[::2] for line in (tmp_path / "environment").read_text().splitlines())
    (sent,) = re.findall(r"^#SBATCH --signal=(\w+)@(\d+)$", SBATCH.read_text(), re.MULTILINE)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("PET_SIGNALS_TO_HANDLE", "PET_SHUTDOWN_TIMEOUT"):
            patch.setenv(name, environment[name])
        launcher = get_args_parser().parse_args(["script"])  # accelerate's launcher takes its settings from here, too
    assert {f"SIG{sent[0]}", "SIGTERM"} <= set(launcher.signals_to_handle.split(","))
    assert 30 < launcher.shutdown_timeout < int(sent[1])


def test_a_finished_run_is_not_started_again(tmp_path: Path) -> None:
    done = submit(tmp_path, *ARGUMENTS, srun="mkdir -p RUN/checkpoints/a-0000500; touch RUN/finished")
    assert done.returncode == 0
    assert "finished, RUN/exported" in done.stdout
    assert not (tmp_path / "requeued").exists()


def test_a_run_that_fails_before_a_new_checkpoint_is_not_started_again(tmp_path: Path) -> None:
    (tmp_path / "RUN" / "checkpoints" / "alignment-0000500").mkdir(parents=True)
    done = submit(tmp_path, *ARGUMENTS, srun="exit 1")
    assert done.returncode == 1
    assert "no new checkpoint" in done.stderr
    assert not (tmp_path / "requeued").exists()


def test_a_job_without_out_is_refused(tmp_path: Path) -> None:
    done = submit(tmp_path, "large", "--data", "PREPARED", srun="exit 1")
    assert done.returncode == 2
    assert not (tmp_path / "asked").exists()


def test_the_script_for_one_gpu_trains_what_there_is_and_leaves_weights_in_parts(tmp_path: Path) -> None:
    """Run with a python that writes down how it is called, and makes the files that a training leaves."""
    stub = tmp_path / "bin" / "python"
    stub.parent.mkdir()
    stub.write_text(
        '#!/usr/bin/env bash\nprintf "%s\\n" "$*" >> "$CALLS"\n'
        'if [ "$2" = ctfm.train.pretrain ]; then mkdir -p "$5/exported"; echo "{}" > "$5/log.jsonl"; touch "$5/finished"\n'
        'head -c 20000000 /dev/zero > "$5/exported/model.safetensors"; fi\n'
    )
    stub.chmod(stub.stat().st_mode | stat.S_IXUSR)
    calls, out = tmp_path / "calls", tmp_path / "out"
    environment = os.environ | {"PATH": f"{stub.parent}:{os.environ['PATH']}", "CALLS": str(calls)}
    subprocess.run(["bash", str(LAUNCH / "one_gpu.sh"), str(out), "3", "text"], check=True, env=environment, cwd=ROOT)
    tests, training = calls.read_text().splitlines()
    assert tests == "-m pytest -q -m gpu tests"
    run = read_run(shlex.split(training.removeprefix("-m ctfm.train.pretrain ")))
    assert (run.recipe.name, run.out, run.stop_after) == ("trunk", out / "run", 180.0)
    parts = sorted(file.name for file in (out / "exported").iterdir())
    assert parts == ["model.safetensors.part-aa", "model.safetensors.part-ab"]
