"""Is a scan like those that the weights were trained on? What a map and a sentence are compared with.

gate.safetensors, beside the weights, holds what space/measure_gate.py measured on reference scans like those of the training. A
scan that is further from them than nearly all of them are from each other gets no verdict: nothing is known about an answer.
"""

import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

NEIGHBOURS = 5
COMMON_WORDS = frozenset({
    *("a", "an", "and", "are", "around", "at", "be", "by", "can", "has", "have", "in", "inside", "is", "it", "its", "no"),
    *("not", "of", "on", "or", "seen", "show", "shown", "shows", "some", "that", "the", "there", "this", "to", "was", "were"),
    *("with", "without"),
})  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Whether questions about a scan are answered; else `reason` is a key of texts.py. `distance` is in units of `threshold`
    in the texts."""

    answers: bool
    reason: str | None
    distance: float | None = None
    threshold: float | None = None


@dataclass(frozen=True, kw_only=True)
class Gate:
    """What was measured on n reference scans.

    `features` `(n, f)` and `embeddings` `(n, e)` are of the scans; `threshold` is the distance that 19 of 20 other scans of
    the same kind stay within; `map_levels` holds the map value that a finding's strongest patch stays below in 95 of 100
    scans without it, and `map_top` how many times that level the strongest patch of scans with a finding reaches (95 of 100);
    `sentences` are what reports of such scans say, and `data` says what the scans are.
    """

    features: Tensor
    embeddings: Tensor
    threshold: float
    map_levels: dict[str, float]
    map_top: float
    sentences: tuple[str, ...]
    data: str
    measured: dict[str, float]

    @cached_property
    def words(self) -> frozenset[str]:
        """What the sentences are made of."""
        return frozenset(word for sentence in self.sentences for word in words_of(sentence))

    def distance(self, features: Tensor) -> float:
        """To the nearest reference scans: see `distances`."""
        return float(distances(features[None], self.features))

    def judge(self, features: Tensor) -> Judged:
        distance = self.distance(features)
        is_like = distance <= self.threshold
        return Judged(
            answers=is_like,
            reason=None if is_like else "unlike_training",
            distance=distance,
            threshold=self.threshold,
        )

    def unknown_words(self, text: str) -> list[str]:
        """The words of a question that no report of the reference scans uses."""
        return [word for word in dict.fromkeys(words_of(text)) if word not in self.words and word not in COMMON_WORDS]

    def save(self, path: Path) -> None:
        facts = {
            "threshold": self.threshold,
            "map_levels": self.map_levels,
            "map_top": self.map_top,
            "sentences": self.sentences,
            "data": self.data,
            "measured": self.measured,
        }
        tensors = {"features": self.features.half().contiguous(), "embeddings": self.embeddings.half().contiguous()}
        save_file(tensors, path, metadata={"gate": json.dumps(facts)})


def load_gate(path: Path | None) -> Gate | None:
    """None where the checkpoint has none: then nothing is known about any scan."""
    if path is None:
        return None
    with safe_open(path, framework="pt") as file:
        facts = json.loads(file.metadata()["gate"])
        tensors = {name: file.get_tensor(name).float() for name in ("features", "embeddings")}
    return Gate(**tensors, **facts | {"sentences": tuple(facts["sentences"])})


def scan_features(vision: object, body: Tensor) -> Tensor:
    """What the model makes of a scan, `(f,)`: mean and spread of the patch features inside the body.

    Args:
        vision: of `get_image_features(..., output_dense_features=True)` for one scan.
        body: `(g, d, h, w)`, which patches lie in the body.
    """
    dense = vision.dense_features[0].float()  # type: ignore[attr-defined]
    inside = dense[body] if body.sum() > 1 else dense.flatten(0, 3)
    return torch.cat([inside.mean(0), inside.std(0)])


def distances(features: Tensor, reference: Tensor, leave_one_out: bool = False) -> Tensor:
    """`(m, f)`, `(n, f)` -> `(m,)`: mean distance to the nearest five, each feature in units of the reference's spread.

    Sun et al. 2022 (arXiv:2204.06507): nearest neighbours tell what is out of distribution without assuming a shape.
    """
    scale = reference.std(0).clamp(min=1e-6)
    pairs = torch.cdist(features / scale, reference / scale) / reference.shape[1] ** 0.5
    if leave_one_out:
        pairs.fill_diagonal_(torch.inf)
    return pairs.topk(min(NEIGHBOURS, len(reference) - leave_one_out), largest=False).values.mean(1)


def words_of(text: str) -> list[str]:
    """Lower-case words, a plural "s" taken off."""
    return [word.removesuffix("s") for word in re.findall(r"[a-z]+", text.lower()) if len(word) > 1]
