"""A finished run -> the folder of its checkpoint: what from_pretrained reads, and run.json, which says where it comes from.

ctfm record runs/embedded checkpoints/default
"""

import argparse
import json
import math
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from ..weights import list_weights
from .code_files import write_model_code
from .split_weights import split_weights

ROOT = Path(__file__).parent.parent
WATTS_A_CORE = 15.0  # assumed, not measured: a server's core at work with its share of memory and cooling
CURVE_ROWS = 200


def hours(rows: list[dict[str, Any]], recipe: dict[str, Any]) -> float:
    """Time at work, from the log: every row's steps at the row's own rate. Idle time between two starts does not count."""
    seconds, last = 0.0, dict.fromkeys(recipe["phases"], 0)
    for row in rows:
        samples = (row["step"] - last[row["phase"]]) * recipe["phases"][row["phase"]]["global_batch"]
        seconds += samples / row["samples_per_s"]
        last[row["phase"]] = row["step"]
    return seconds / 3600


def name_hardware() -> str:
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    return f"{os.cpu_count()} CPU cores ({model}), shared with other work"


def count_parameters(folder: Path) -> int:
    count = 0
    for name in list_weights(folder):
        with safe_open(folder / name, framework="pt") as file:
            count += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    return count


def describe(run: Path) -> dict[str, Any]:
    """What run.json holds: recipe, commit, seed, hours, hardware, curve."""
    recipe = json.loads((run / "recipe.json").read_text())
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "loss" in row]
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
    worked = hours(rows, recipe)
    cores = os.cpu_count() or 1
    every = max(1, len(rows) // CURVE_ROWS)
    facts: dict[str, Any] = {
        "recipe": recipe["name"],
        "command": f"ctfm pretrain {recipe['name']}",
        "commit": commit,
        "seed": recipe["seed"],
        "data": "synthetic phantoms (phantom/make.py); no patient",
        "parameters": count_parameters(run / "exported"),
    }
    for name, phase in recipe["phases"].items():
        facts[f"{name}_steps"] = f"{phase['steps']} of {phase['global_batch']}"
    facts |= {"hours": round(worked, 2), "hardware": name_hardware()}
    if not torch.cuda.is_available():
        facts["energy"] = f"{worked * cores * WATTS_A_CORE / 1000:.2g} kWh, at an assumed {WATTS_A_CORE:g} W a core"
    kept = [{"phase": row["phase"], "step": row["step"], "loss": round(row["loss"], 4)} for row in rows]
    return facts | {"curve": kept[::every]}


def record(run: Path, out: Path) -> None:
    """Copies what the run exported, its text tower in a file of its own, with the package's code of today, and writes run.json.

    Raises:
        ValueError: the run is not finished.
    """
    if not (run / "finished").exists():
        raise ValueError(f"The run in {run} is not finished. Start its command again; it goes on by itself.")
    out.mkdir(parents=True, exist_ok=True)
    for path in (run / "exported").iterdir():
        if path.is_file() and path.suffix != ".py":
            shutil.copy(path, out)
    split_weights(out)
    write_model_code(out)
    (out / "run.json").write_text(json.dumps(describe(run), indent=1) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="ctfm record", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="OUT of ctfm pretrain")
    parser.add_argument("out", type=Path)
    given = parser.parse_args(arguments)
    record(given.run, given.out)
    print(given.out)
    return 0
