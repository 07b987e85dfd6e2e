"""Weights of a folder -> a file of the text tower, a file of everything else, and their index.

    ctfm split-weights checkpoints/default

The text tower is frozen and seven times as large as the rest. In a file of its own it is stored once, in git and on the Hub,
and retrained weights add only the megabytes of the other file to the history. transformers reads the index as of any sharded
weights. The same weights give the same bytes.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from ..weights import INDEX, list_weights, read_weights

TEXT_TOWER = "text_model."
SHARDS = (
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
)  # of all but the text tower, of the text tower


def split_weights(folder: Path) -> None:
    """Leaves a folder whose model has no text tower, or that is split already, as it is.

    Raises:
        FileNotFoundError: the folder holds no weights.
    """
    names = list_weights(folder)
    weights = read_weights(folder)
    if names != SHARDS and any(name.startswith(TEXT_TOWER) for name in weights):
        write_shards(weights, folder)
        for name in names:
            (folder / name).unlink()


def write_shards(weights: Mapping[str, Tensor], folder: Path) -> None:
    parts: dict[str, dict[str, Tensor]] = {shard: {} for shard in SHARDS}
    for name, tensor in weights.items():
        parts[SHARDS[name.startswith(TEXT_TOWER)]][name] = tensor
    for shard, tensors in parts.items():
        save_file(tensors, folder / shard, metadata={"format": "pt"})
    index = {
        "metadata": {
            "total_parameters": sum(tensor.numel() for tensor in weights.values()),
            "total_size": sum(tensor.nbytes for tensor in weights.values()),
        },
        "weight_map": {name: SHARDS[name.startswith(TEXT_TOWER)] for name in sorted(weights)},
    }
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="ctfm split-weights", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="of a model with a text tower, as save_pretrained wrote it")
    folder = parser.parse_args(arguments).folder
    split_weights(folder)
    for name in list_weights(folder):
        print(f"{(folder / name).stat().st_size:>12,}  {folder / name}")
    return 0
