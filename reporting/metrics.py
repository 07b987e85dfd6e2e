"""Gold and predicted items -> precision, recall, F1, with intervals, at the level of sentences and of articles.

The papers' protocol (Jiang et al. 2024, CONSORT-TM): every fold is scored on its own with a threshold of 0.5, an article
reports an item if a sentence of it is labelled so, and the five scores are averaged. `fold_mean` does that; the pooled
figures beside it count all folds together. Missing items, which are what the checker is for, are scored as a class of
their own: an item that no annotator found and no sentence was labelled with is a hit.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Flags = NDArray[np.bool_]
Scores = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Score:
    """Precision, recall and F1 of `support` gold labels."""

    precision: float
    recall: float
    f1: float
    support: int


def score(gold: Flags, predicted: Flags) -> Score:
    """All entries as one class.

    Example:
        >>> score(np.array([True, True, False]), np.array([True, False, False])).recall
        0.5
    """
    hits = int((gold & predicted).sum())
    precision = hits / max(int(predicted.sum()), 1)
    recall = hits / max(int(gold.sum()), 1)
    f1 = 2 * hits / max(int(gold.sum()) + int(predicted.sum()), 1)
    return Score(precision=precision, recall=recall, f1=f1, support=int(gold.sum()))


def micro_macro(gold: Flags, predicted: Flags) -> tuple[Score, float]:
    """Micro score of all items together, and the mean F1 of the items that occur or are predicted (the papers' macro)."""
    per_item = [score(gold[:, item], predicted[:, item]) for item in range(gold.shape[1])]
    seen = [s.f1 for item, s in enumerate(per_item) if s.support or predicted[:, item].any()]
    return score(gold, predicted), float(np.mean(seen)) if seen else 0.0


def fold_mean(gold: Sequence[Flags], predicted: Sequence[Flags]) -> dict[str, float]:
    """Mean over folds of micro and macro scores, as the papers report them."""
    pairs = [micro_macro(g, p) for g, p in zip(gold, predicted, strict=True)]
    return {
        "precision": float(np.mean([micro.precision for micro, _ in pairs])),
        "recall": float(np.mean([micro.recall for micro, _ in pairs])),
        "micro_f1": float(np.mean([micro.f1 for micro, _ in pairs])),
        "macro_f1": float(np.mean([macro for _, macro in pairs])),
    }


def missing(gold: Flags, predicted: Flags) -> Score:
    """Detection of missing items: precision is how often a warned author left the item out."""
    return score(~gold, ~predicted)


def score_intervals(
    articles: Sequence[tuple[Flags, Flags]], draws: int = 1000, level: float = 0.95, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Percentile intervals of precision, recall and F1 over articles drawn with replacement: sentences of one article are not
    independent. `articles` are pairs of gold and predicted flags."""
    counts = np.asarray([[(g & p).sum(), p.sum(), g.sum()] for g, p in articles], dtype=float)
    generator = np.random.default_rng(seed)
    hits, said, there = counts[generator.integers(len(articles), size=(draws, len(articles)))].sum(1).T
    values = {
        "precision": hits / said.clip(1),
        "recall": hits / there.clip(1),
        "f1": 2 * hits / (said + there).clip(1),
    }
    bounds = [(1 - level) / 2, (1 + level) / 2]
    return {name: tuple(np.quantile(drawn, bounds).tolist()) for name, drawn in values.items()}


def best_threshold(gold: Flags, scores: Scores, fallback: float, least_support: int = 8) -> float:
    """The threshold of the best F1 on the training folds; `fallback` where there are too few labels to choose one."""
    if int(gold.sum()) < least_support:
        return fallback
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(gold[order])
    f1 = 2 * hits / (np.arange(1, len(order) + 1) + gold.sum())
    values = scores[order]
    last_of_value = np.append(values[1:] != values[:-1], True)
    best = int(np.argmax(np.where(last_of_value, f1, -1)))
    below = values[best + 1] if best + 1 < len(values) else 0.0
    return float((values[best] + below) / 2)


def choose_thresholds(gold: Flags, scores: Scores, shrink: float = 0.5) -> NDArray[np.float64]:
    """A threshold per item, drawn half way (`shrink`) to the one that serves all items together best.

    Choosing 34 thresholds on 40 articles fits their noise; the common threshold has all labels behind it.
    """
    common = best_threshold(gold.ravel(), scores.ravel(), 0.5)
    own = [best_threshold(gold[:, item], scores[:, item], common) for item in range(gold.shape[1])]
    return np.asarray([shrink * common + (1 - shrink) * threshold for threshold in own])
