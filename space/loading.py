"""Checkpoint -> model, processor, the package's own functions, and what the checkpoint was trained and measured with.

Which checkpoint, the first that is there: the environment variable CTFM_MODEL (a folder or a Hub id; CTFM_REVISION beside it),
model.json beside this file (a release writes it), checkpoints/default of the repository. Where the package `ctfm` is
installed its code is used; on a Space the code comes with the weights, at the same pinned commit.
"""

import hashlib
import importlib
import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from transformers import AutoModel, AutoProcessor
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.utils import cached_file

from from_package import Gate, load_gate

HERE = Path(__file__).parent
REPOSITORY_CHECKPOINT = HERE.parent / "checkpoints" / "default"


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where the weights come from; `report` is the trial-report model's Hub id, at `report_revision`."""

    model: str
    revision: str | None = None
    report: str | None = None
    report_revision: str | None = None


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A checkpoint and the code that goes with it.

    `volume` is the module volume_ctfm (readers and their errors); `grade` the zero-shot pipeline around the loaded model;
    `digest` is the hash of the weights; `metrics` and `run` are the checkpoint's own files, empty where it has none.
    """

    model: Any
    processor: Any
    grade: Any
    volume: ModuleType
    drawing: ModuleType
    name: str
    digest: str
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)
    gate: Gate | None = None

    @property
    def trained_on(self) -> str:
        """What run.json says that the weights were trained on; empty where it says nothing."""
        return str(self.run.get("data", ""))

    @property
    def measured_on(self) -> str:
        """What the numbers beside a finding are measured on, in a word or two."""
        return "phantoms" if "phantom" in self.trained_on else self.trained_on

    @property
    def calibration(self) -> dict[str, dict[str, float]]:
        return getattr(self.model.config, "calibration", None) or {}


def find_source() -> Source:
    """Raises SystemExit with the cure where there is no checkpoint."""
    if model := os.environ.get("CTFM_MODEL"):
        return Source(model=model, revision=os.environ.get("CTFM_REVISION"))
    if (HERE / "model.json").is_file():
        return Source(**json.loads((HERE / "model.json").read_text()))
    if (REPOSITORY_CHECKPOINT / "config.json").is_file():
        return Source(model=str(REPOSITORY_CHECKPOINT))
    raise SystemExit("No checkpoint: set CTFM_MODEL to a folder or a Hub id.")


def load_weights(source: Source) -> Weights:
    """Loads a checkpoint in float32, into the memory of the CPU.

    Raises:
        OSError: there is no such checkpoint, or it lacks weights.
    """
    try:
        importlib.import_module("ctfm").CTFMModel  # noqa: B018 - which registers the Auto classes
        settings: dict[str, Any] = {"revision": source.revision}
    except ImportError:
        settings = {"revision": source.revision, "trust_remote_code": True}
    processor = AutoProcessor.from_pretrained(source.model, **settings)
    model, report = AutoModel.from_pretrained(source.model, dtype=torch.float32, output_loading_info=True, **settings)
    if report[
        "missing_keys"
    ]:  # which transformers draws at random, so that the page would show answers that mean nothing
        missing = sorted(report["missing_keys"])
        raise OSError(f"{source.model} lacks {len(missing)} weights, {missing[0]} for one. Save or download it again.")
    model.eval()
    reads = sys.modules[type(processor.image_processor).__module__].read_volume
    pipeline = load_module("pipeline_ctfm", "CTFMZeroShotPipeline", source).CTFMZeroShotPipeline
    return Weights(
        model=model,
        processor=processor,
        grade=pipeline(model=model, tokenizer=processor.tokenizer, image_processor=processor.image_processor),
        volume=sys.modules[reads.__module__],
        drawing=load_module("drawing_ctfm", "principal_components", source),
        name=source.model if "/" in source.model and not Path(source.model).exists() else "embedded checkpoint",
        digest=hash_weights(source),
        metrics=read_json(find_file("metrics.json", source)),
        run=read_json(find_file("run.json", source)),
        gate=load_gate(find_file("gate.safetensors", source)),
    )


def load_module(name: str, member: str, source: Source) -> ModuleType:
    """A module of the package, or of the model's repository where the package is not installed."""
    if "ctfm" in sys.modules and sys.modules["ctfm"] is not None:
        return importlib.import_module(f"ctfm.{name}")
    loaded = get_class_from_dynamic_module(f"{name}.{member}", source.model, revision=source.revision)
    return sys.modules[loaded.__module__]


def find_file(name: str, source: Source) -> Path | None:
    """A file of the checkpoint, or None where the checkpoint has none of that name."""
    path = cached_file(
        source.model,
        name,
        revision=source.revision,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if path is None else Path(path)


def read_json(path: Path | None) -> dict[str, Any]:
    return {} if path is None else json.loads(path.read_text())


def hash_weights(source: Source) -> str:
    """Of all files of the weights, as ctfm's hash_weight_files, which galleries hold; empty without safetensors."""
    index = read_json(find_file("model.safetensors.index.json", source))
    names = sorted(set(index["weight_map"].values())) if index else ["model.safetensors"]
    paths = [path for name in names if (path := find_file(name, source)) is not None]
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest() if paths else ""
