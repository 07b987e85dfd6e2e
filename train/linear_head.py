"""Frozen features and targets -> a linear head, its calibration and its few-shot curve.

The head is fitted on standardised features of split "train", its L2 penalty chosen on "validation", and then folded into
weights on the features themselves, so that `CTFMForImageClassification.classifier` holds it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.linear_model import Ridge

from ..evaluate.evaluate import calibrate
from ..evaluate.frozen import PENALTIES, fit_logistic, mean_and_spread, standardize
from ..evaluate.metrics import FindingTable, auroc, can_be_measured
from .survival import concordance, fit_cox
from .targets import Targets

FEW_SHOT_PENALTY = 1e-2
MAIN_METRIC = {"findings": "macro_auroc", "one_of": "balanced_accuracy", "value": "r2", "survival": "concordance"}


@dataclass(frozen=True, kw_only=True)
class LinearHead:
    """outputs = features @ weight.T + bias; `weight` `(k, f)`, `bias` `(k,)`."""

    weight: np.ndarray
    bias: np.ndarray
    penalty: float

    def __call__(self, features: np.ndarray) -> np.ndarray:
        return features @ self.weight.T + self.bias


def fit_head(features: np.ndarray, targets: Targets, rows: np.ndarray, penalty: float) -> LinearHead:
    """On the given rows. Classes weigh alike however rare they are; a finding of which the rows hold one kind alone gets the
    output 0."""
    values = targets.values[rows]
    middle, spread = mean_and_spread(features[rows])
    x = (features[rows] - middle) / spread
    outputs = 1 if targets.kind == "survival" else len(targets.names)
    weight, bias = np.zeros((outputs, features.shape[1])), np.zeros(outputs)
    if targets.kind == "findings":
        for k, column in enumerate(values.T):
            known = ~np.isnan(column)
            if len(np.unique(column[known])) == 2:
                regression = fit_logistic(x[known], column[known], penalty, "balanced")
                weight[k], bias[k] = regression.coef_[0], np.asarray(regression.intercept_)[0]
    elif targets.kind == "one_of":
        regression = fit_logistic(x, values[:, 0].astype(int), penalty, "balanced")
        bias[:] = -1e4  # of a class that the rows do not hold
        if len(regression.classes_) == 2:  # scikit-learn gives one row, of the second class
            weight[regression.classes_] = np.concatenate((-regression.coef_, regression.coef_)) / 2
            bias[regression.classes_] = np.concatenate((-regression.intercept_, regression.intercept_)) / 2
        else:
            weight[regression.classes_], bias[regression.classes_] = regression.coef_, regression.intercept_
    elif targets.kind == "value":
        for k, column in enumerate(values.T):
            known = ~np.isnan(column)
            if known.any():
                centre, scale = column[known].mean(), column[known].std() or 1.0
                ridge = Ridge(alpha=1 / penalty).fit(x[known], (column[known] - centre) / scale)
                weight[k] = ridge.coef_ * scale
                bias[k] = float(ridge.intercept_) * scale + centre
    else:
        weight[0] = fit_cox(x, values[:, 0], values[:, 1], penalty)
    weight = weight / spread  # of the features as they are, no longer standardised
    return LinearHead(weight=weight, bias=bias - weight @ middle, penalty=penalty)


def choose_head(features: np.ndarray, targets: Targets) -> LinearHead:
    """The penalty that does best on "validation"; the middle one where nothing can be measured there."""
    train, validation = targets.rows("train"), targets.rows("validation")
    heads = [fit_head(features, targets, train, penalty) for penalty in PENALTIES]
    reached = [
        measure(head(features[validation]), targets, validation).get(MAIN_METRIC[targets.kind]) for head in heads
    ]
    measured = [value for value in reached if value is not None]
    return heads[int(np.argmax(measured))] if len(measured) == len(heads) else heads[len(heads) // 2]


def measure(outputs: np.ndarray, targets: Targets, rows: np.ndarray) -> dict[str, float]:
    """What can be measured on the rows, for each name and together."""
    values, found = targets.values[rows], dict[str, float]()
    if targets.kind == "findings":
        for name, score, column in zip(targets.names, outputs.T, values.T, strict=True):
            if can_be_measured(column):
                found[f"{name}/auroc"] = float(auroc(score, column, np.ones((1, len(column))))[0])
        return found | ({"macro_auroc": float(np.mean(list(found.values())))} if found else {})
    if not len(values):
        return {}
    if targets.kind == "one_of":
        truth, answers = values[:, 0].astype(int), outputs.argmax(1)
        for number in np.unique(truth):
            found[f"{targets.names[number]}/recall"] = float((answers[truth == number] == number).mean())
        return found | {"balanced_accuracy": float(np.mean(list(found.values())))}
    if targets.kind == "value":
        shares = []
        for name, output, column in zip(targets.names, outputs.T, values.T, strict=True):
            known = ~np.isnan(column)
            if known.sum() > 1 and column[known].std() > 0:
                found[f"{name}/mean_absolute_error"] = float(np.abs(output - column)[known].mean())
                shares.append(1 - float(((output - column)[known] ** 2).mean() / column[known].var()))
                found[f"{name}/r2"] = shares[-1]
        return found | ({"r2": float(np.mean(shares))} if shares else {})
    agreed = concordance(outputs[:, 0], values[:, 0], values[:, 1])
    return {} if np.isnan(agreed) else {"concordance": agreed}


def calibrate_head(outputs: np.ndarray, targets: Targets, rows: np.ndarray) -> dict[str, dict[str, float]]:
    """`CTFMConfig.calibration` of the findings that the rows, of "validation", hold enough of."""
    if targets.kind != "findings":
        return {}
    labels = FindingTable(findings=targets.names, values=targets.values[rows])
    return calibrate(FindingTable(findings=targets.names, values=outputs), labels)


# ---- few patients ----


def few_shot(
    features: np.ndarray, targets: Targets, num_draws: int = 5, say: Callable[[str], None] = lambda line: None
) -> list[dict[str, Any]]:
    """What a head reaches that is fitted on 1, 2, 4, ... patients, `num_draws` times each: a row a draw.

    Of findings and classes these are patients of each kind, since one kind alone teaches nothing; of numbers and events
    patients in all, from four. Measured on "test", or on "validation" without one.
    """
    asked = targets.rows("test") if len(targets.rows("test")) else targets.rows("validation")
    train = targets.rows("train")
    patients = np.array(targets.patients)[train]
    count, rows = 1 if targets.kind in ("findings", "one_of") else 4, []
    while count < len(np.unique(patients)):
        for draw in range(num_draws):
            random = np.random.default_rng([count, draw])
            reached = measure_few(features, targets, train, patients, asked, count, random)
            if reached is not None:
                rows.append({"patients": count, "draw": draw, MAIN_METRIC[targets.kind]: round(reached, 4)})
        say(f"{count} patients")
        count *= 2
    return rows


def measure_few(
    features: np.ndarray,
    targets: Targets,
    train: np.ndarray,
    patients: np.ndarray,
    asked: np.ndarray,
    count: int,
    random: np.random.Generator,
) -> float | None:
    """None where there are not so many patients, or nothing can be measured."""
    if targets.kind != "findings":
        chosen = draw_patients(patients, targets.values[train, 0], count, random, of_each=targets.kind == "one_of")
        if chosen is None or (targets.kind == "survival" and not targets.values[train[chosen], 1].any()):
            return None
        head = fit_head(features, targets, train[chosen], FEW_SHOT_PENALTY)
        return measure(head(features[asked]), targets, asked).get(MAIN_METRIC[targets.kind])
    scores = []
    for k, column in enumerate(targets.values[asked].T):
        stated = np.flatnonzero(~np.isnan(targets.values[train, k]))
        chosen = draw_patients(patients[stated], targets.values[train[stated], k], count, random, of_each=True)
        if chosen is not None and can_be_measured(column):
            rows = train[stated[chosen]]
            x, (others,) = standardize(features[rows], [features[asked]])
            regression = fit_logistic(x, targets.values[rows, k], FEW_SHOT_PENALTY)
            scores.append(float(auroc(regression.decision_function(others), column, np.ones((1, len(column))))[0]))
    return float(np.mean(scores)) if scores else None


def draw_patients(
    patients: np.ndarray, kinds: np.ndarray, count: int, random: np.random.Generator, of_each: bool
) -> np.ndarray | None:
    """Rows of so many patients, or of each kind so many; None where there are fewer."""
    rows: list[np.ndarray] = []
    groups = [np.flatnonzero(kinds == kind) for kind in np.unique(kinds)] if of_each else [np.arange(len(patients))]
    if of_each and len(groups) < 2:
        return None
    for group in groups:
        there = np.unique(patients[group])
        if len(there) < count:
            return None
        drawn = random.choice(there, count, replace=False)
        rows.append(group[np.isin(patients[group], drawn)])
    return np.unique(np.concatenate(rows))
