"""Frozen features and labels -> scores of other scans: nearest neighbours and a linear probe. What can be chosen (pooling,
neighbours, L2 penalty) is chosen on a split of its own, by macro AUROC, never on the scans that are reported."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from .metrics import auroc, can_be_measured

NEIGHBOURS = (5, 10, 20, 50)
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # scikit-learn's C, the inverse of L2
POOLINGS = ("scan", "crops", "joint")
Scorer = Callable[[np.ndarray, np.ndarray, Sequence[np.ndarray], float], list[np.ndarray]]


@dataclass(frozen=True, kw_only=True)
class Probed:
    """Scores `(n, findings)` of the test scans, and with what they were made."""

    scores: np.ndarray
    pooling: str
    setting: float
    chosen_auroc: float


def knn_scores(fit: np.ndarray, labels: np.ndarray, asked: Sequence[np.ndarray], neighbours: float) -> list[np.ndarray]:
    """Share of the most alike scans of `fit` (cosine) that have each finding, each weighted by its likeness; scans of which
    nothing is stated have no vote."""
    a = fit / np.linalg.norm(fit, axis=1, keepdims=True).clip(min=1e-12)
    known, present = ~np.isnan(labels), np.nan_to_num(labels)
    scores = []
    for rows in asked:
        similarity = (rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(min=1e-12)) @ a.T
        nearest = np.argsort(-similarity, axis=1, kind="stable")[:, : int(neighbours)]
        votes = np.take_along_axis(similarity, nearest, 1).clip(min=1e-6)[..., None] * known[nearest]
        scores.append((votes * present[nearest]).sum(1) / votes.sum(1).clip(min=1e-12))
    return scores


def linear_scores(fit: np.ndarray, labels: np.ndarray, asked: Sequence[np.ndarray], penalty: float) -> list[np.ndarray]:
    """Logit of a logistic regression a finding; 0 where `fit` does not hold both."""
    scores = [np.zeros((len(rows), labels.shape[1])) for rows in asked]
    for k, column in enumerate(labels.T):
        known = ~np.isnan(column)
        if len(np.unique(column[known])) == 2:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)  # 300 steps are a choice as good as another
                regression = LogisticRegression(C=penalty, max_iter=300).fit(fit[known], column[known])
            for score, rows in zip(scores, asked, strict=True):
                score[:, k] = regression.decision_function(rows)
    return scores


def macro(scores: np.ndarray, labels: np.ndarray) -> float:
    """Mean AUROC of the findings that can be measured, NaN without any."""
    found = []
    for score, column in zip(scores.T, labels.T, strict=True):
        if can_be_measured(column):
            known = ~np.isnan(column)
            found.append(auroc(score[known], column[known], np.ones((1, int(known.sum()))))[0])
    return float(np.mean(found)) if found else float("nan")


def probe_sets(
    fit: dict[str, np.ndarray],
    fit_labels: np.ndarray,
    choose: dict[str, np.ndarray],
    choose_labels: np.ndarray,
    test: dict[str, np.ndarray],
    scorer: Scorer,
    settings: Sequence[float],
) -> Probed:
    """The best pooling and setting on `choose`, asked on `test`. Features are standardised on `fit`."""
    best: Probed | None = None
    for pooling in POOLINGS:
        if pooling not in fit:
            continue
        middle, spread = fit[pooling].mean(0), fit[pooling].std(0) + 1e-6
        a, b, c = ((part[pooling] - middle) / spread for part in (fit, choose, test))
        for setting in settings:
            chosen, asked = scorer(a, fit_labels, (b, c), setting)
            reached = macro(chosen, choose_labels)
            if best is None or reached > best.chosen_auroc:
                best = Probed(scores=asked, pooling=pooling, setting=setting, chosen_auroc=reached)
    assert best is not None
    return best
