"""Frozen features and labels -> scores of other scans: nearest neighbours and a linear probe. What can be chosen (pooling,
neighbours, L2 penalty) is chosen on a split of its own, by macro AUROC, never on the scans that are reported."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from .metrics import FindingTable, macro_auroc

NEIGHBOURS = (5, 10, 20, 50)
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # scikit-learn's C, the inverse of L2
POOLINGS = ("scan", "crops", "joint")
Scorer = Callable[[np.ndarray, FindingTable, Sequence[np.ndarray], float], list[FindingTable]]


@dataclass(frozen=True, kw_only=True)
class Probed:
    """Scores of the test scans, and with what they were made."""

    scores: FindingTable
    pooling: str
    setting: float
    validation_auroc: float


def mean_and_spread(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation `(f,)` of features `(n, f)`; the latter never 0, so that one may divide by it."""
    return features.mean(0), features.std(0) + 1e-6


def standardize(train: np.ndarray, others: Sequence[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Features `(n, f)` of mean 0 and spread 1 over `train`."""
    middle, spread = mean_and_spread(train)
    return (train - middle) / spread, [(rows - middle) / spread for rows in others]


def knn_scores(
    train: np.ndarray, labels: FindingTable, asked: Sequence[np.ndarray], neighbours: float = 20
) -> list[FindingTable]:
    """Share of the most alike scans of `train` (cosine of standardised features) that have each finding, each weighted by its
    likeness; scans of which nothing is stated have no vote."""
    a, others = standardize(train, asked)
    a = a / np.linalg.norm(a, axis=1, keepdims=True).clip(min=1e-12)
    known, present = ~np.isnan(labels.values), np.nan_to_num(labels.values)
    scores = []
    for rows in others:
        similarity = (rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(min=1e-12)) @ a.T
        nearest = np.argsort(-similarity, axis=1, kind="stable")[:, : int(neighbours)]
        votes = np.take_along_axis(similarity, nearest, 1).clip(min=1e-6)[..., None] * known[nearest]
        shares = (votes * present[nearest]).sum(1) / votes.sum(1).clip(min=1e-12)
        scores.append(FindingTable(findings=labels.findings, values=shares))
    return scores


def fit_logistic(
    features: np.ndarray, labels: np.ndarray, penalty: float, class_weight: Literal["balanced"] | None = None
) -> LogisticRegression:
    """With "balanced", classes weigh alike however rare they are."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # 300 steps are a choice as good as another
        return LogisticRegression(C=penalty, max_iter=300, class_weight=class_weight).fit(features, labels)


def linear_scores(
    train: np.ndarray, labels: FindingTable, asked: Sequence[np.ndarray], penalty: float = 1e-2
) -> list[FindingTable]:
    """Logit of a logistic regression a finding over standardised features; 0 where `train` does not hold both."""
    a, others = standardize(train, asked)
    scores = [np.zeros((len(rows), len(labels.findings))) for rows in others]
    for k, column in enumerate(labels.values.T):
        known = ~np.isnan(column)
        if len(np.unique(column[known])) == 2:
            regression = fit_logistic(a[known], column[known], penalty)
            for score, rows in zip(scores, others, strict=True):
                score[:, k] = regression.decision_function(rows)
    return [FindingTable(findings=labels.findings, values=score) for score in scores]


def probe_sets(
    train: Mapping[str, np.ndarray],
    train_labels: FindingTable,
    validation: Mapping[str, np.ndarray],
    validation_labels: FindingTable,
    test: Mapping[str, np.ndarray],
    scorer: Scorer,
    settings: Sequence[float],
) -> Probed:
    """The best pooling and setting on `validation`, asked on `test`."""
    best: Probed | None = None
    for pooling in POOLINGS:
        if pooling not in train:
            continue
        for setting in settings:
            chosen, asked = scorer(train[pooling], train_labels, (validation[pooling], test[pooling]), setting)
            reached = macro_auroc(chosen, validation_labels)
            if best is None or reached > best.validation_auroc:
                best = Probed(scores=asked, pooling=pooling, setting=setting, validation_auroc=reached)
    assert best is not None
    return best
