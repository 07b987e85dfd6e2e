"""Checkpoint -> model of which every weight was read. `from_pretrained` alone draws at random what a file lacks, and warns."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from safetensors.torch import load_file
from torch import Tensor

INDEX = "model.safetensors.index.json"


def load_complete(model_class: Any, source: str | os.PathLike, *, new: Sequence[str] = (), **loading: Any) -> Any:
    """`model_class.from_pretrained(source, **loading)` that reads every weight or raises.

    Args:
        model_class: a model class or an Auto class.
        source: folder or Hub id.
        new: beginnings of the names of parts that may be drawn at random, or have another shape in the checkpoint, because
            training them is what the model is loaded for: a head. transformers warns of each of them.

    Raises:
        OSError: weights are missing or of another shape that `new` does not name.
    """
    loading |= {"output_loading_info": True, "ignore_mismatched_sizes": bool(new)}
    model, report = model_class.from_pretrained(source, **loading)
    drawn = set(report["missing_keys"]) | {key for key, *_ in report["mismatched_keys"]}
    missing = sorted(name for name in drawn if not name.startswith(tuple(new)))
    if missing:
        raise OSError(
            f"{source} lacks {len(missing)} weights, {missing[0]} for one, which would be drawn at random. Save or download it "
            f"again, or load it as the class that it was saved as ({type(model).__name__} is asked for)."
        )
    return model


def list_weights(folder: Path) -> tuple[str, ...]:
    """Names of the files that hold the weights of a folder, sorted. A single file goes before an index, as in transformers."""
    if (folder / "model.safetensors").is_file() or not (folder / INDEX).is_file():
        return ("model.safetensors",)
    return tuple(sorted(set(json.loads((folder / INDEX).read_text())["weight_map"].values())))


def read_weights(source: str | os.PathLike) -> dict[str, Tensor]:
    """All tensors of a folder or Hub id by name, however many files they are split over.

    Raises:
        OSError: there is no such folder or repository, or it holds no weights.
    """
    folder = Path(source)
    if not folder.is_dir():
        folder = Path(snapshot_download(str(source), allow_patterns=["*.safetensors", INDEX]))
    return {name: tensor for file in list_weights(folder) for name, tensor in load_file(folder / file).items()}


def hash_weight_files(folder: Path) -> str:
    """SHA-256 of the files of `list_weights`, one after the other; of a single file it is that file's own.

    Raises:
        FileNotFoundError: the folder holds no weights.
    """
    digest = hashlib.sha256()
    for name in list_weights(folder):
        with (folder / name).open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
