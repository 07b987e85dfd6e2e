"""Scores and truths -> metrics, for a sample and for every resample of its patients at once.

`weights` `(r, n)` says how much each of n scans counts in each resample; row 0 is the sample itself, all ones. A metric
returns `(r,)`: its first number is the value, the rest give the interval. Scans of one patient weigh alike, since they are not
independent. Resamples are those of the Bayesian bootstrap (Rubin 1981), in which every patient keeps some weight: what is
defined for the sample is defined in every resample, however rare the finding, so that no interval rests on fewer of them.

A label that is NaN, not stated, does not count. That is settled here, in each metric, and nowhere else.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import binary_erosion
from scipy.spatial import KDTree

MIN_SCANS = 5  # present and absent scans without which a finding is not measured
NEWTON_STEPS = 100
PRIOR_VARIANCE = 100.0  # of slope and intercept, so that a perfectly separated finding has a finite slope


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A metric, its 95 % interval and how many scans or questions it rests on."""

    value: float
    low: float
    high: float
    n: int


def resample_patients(patients: Sequence[str], num_resamples: int = 1000, seed: int = 0) -> np.ndarray:
    """`(1 + num_resamples, n)`: ones, then weights of scans, drawn for patients evenly from all that are 1 on average."""
    _, group = np.unique(np.asarray(patients), return_inverse=True)
    count = int(group.max()) + 1
    drawn = np.random.default_rng(seed).dirichlet(np.ones(count), size=num_resamples) * count
    return np.concatenate([np.ones((1, len(group))), drawn[:, group]])


def estimate(values: np.ndarray, n: int) -> Estimate:
    """The first of `values` with the 2.5th and 97.5th percentile of the rest; all NaN where the metric is undefined."""
    if np.isnan(values).any() and not np.isnan(values[0]):
        raise ValueError(
            f"{int(np.isnan(values).sum())} of {len(values) - 1} resamples lack a metric that the sample has."
        )
    low, high = np.percentile(values[1:], (2.5, 97.5)) if len(values) > 1 else (np.nan, np.nan)
    return Estimate(value=float(values[0]), low=float(low), high=float(high), n=n)


def divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a / b, NaN where b is 0."""
    return np.divide(a, b, out=np.full(np.shape(a), np.nan), where=b != 0)


def mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Over scans `(n,)`, or over scans and findings `(n, k)` together; NaN does not count."""
    table = values.reshape(len(values), -1)
    known = ~np.isnan(table)
    return divide(weights @ np.where(known, table, 0.0).sum(1), weights @ known.sum(1).astype(float))


# ---- findings ----


@dataclass(frozen=True, kw_only=True)
class FindingTable:
    """A column a finding, a row a scan (or a patch of one): scores, or labels of 1, 0 and NaN where nothing is stated.

    values: `(n, findings)`.

    Raises:
        ValueError: names and columns do not agree in number, or a name stands twice.
    """

    findings: tuple[str, ...]
    values: np.ndarray

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or self.values.shape[1] != len(self.findings):
            raise ValueError(f"{len(self.findings)} findings cannot name the columns of a {self.values.shape} array.")
        if len(set(self.findings)) != len(self.findings):
            raise ValueError(f"A finding stands twice among {', '.join(self.findings)}.")

    def __len__(self) -> int:
        return len(self.values)

    def select(self, findings: Sequence[str]) -> "FindingTable":
        columns = [self.findings.index(name) for name in findings]
        return FindingTable(findings=tuple(findings), values=self.values[:, columns])


Metric = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]  # scores (n,), labels (n,), weights (r, n) -> (r,)


def measure_findings(
    metric: Metric, scores: FindingTable, labels: FindingTable, weights: np.ndarray
) -> dict[str, np.ndarray]:
    """The metric of each finding that can be measured, `(r,)`.

    Raises:
        ValueError: scores and labels are not of the same findings in the same order.
    """
    if scores.findings != labels.findings or len(scores) != len(labels):
        raise ValueError(
            f"Scores of {len(scores)} scans for {', '.join(scores.findings)} cannot be measured by labels of {len(labels)} "
            f"for {', '.join(labels.findings)}."
        )
    return {
        name: metric(score, column, weights)
        for name, score, column in zip(scores.findings, scores.values.T, labels.values.T, strict=True)
        if can_be_measured(column)
    }


def macro_auroc(scores: FindingTable, labels: FindingTable) -> float:
    """Mean AUROC of the findings that can be measured, NaN without any."""
    found = measure_findings(auroc, scores, labels, np.ones((1, len(labels))))
    return float(np.mean(list(found.values()))) if found else float("nan")


def can_be_measured(labels: np.ndarray) -> bool:
    """Whether enough scans, NaN apart, have a finding and enough have not."""
    return min(int((labels == 1).sum()), int((labels == 0).sum())) >= MIN_SCANS


def count_by_score(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Present and absent scans at each distinct score, rising: `(r, scores)` each.

    Raises:
        ValueError: a score is NaN; as the highest of all, which sorting makes it, it would count as an answer.
    """
    if np.isnan(scores).any():
        raise ValueError(f"{int(np.isnan(scores).sum())} of {len(scores)} scores are NaN.")
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))
    present, absent = weights[:, order] * (labels[order] == 1), weights[:, order] * (labels[order] == 0)
    return np.add.reduceat(present, starts, 1), np.add.reduceat(absent, starts, 1)


def auroc(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Chance that a scan with the finding scores above one without, ties half."""
    present, absent = count_by_score(scores, labels, weights)
    won = (present * (np.cumsum(absent, 1) - absent / 2)).sum(1)
    return divide(won, present.sum(1) * absent.sum(1))


def average_precision(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Precision averaged over recall, one step a distinct score, without interpolation."""
    present, absent = (counts[:, ::-1] for counts in count_by_score(scores, labels, weights))
    found = np.cumsum(present, 1)
    precision = np.nan_to_num(divide(found, found + np.cumsum(absent, 1)))
    return divide((present * precision).sum(1), present.sum(1))


def f1(answers: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    answered, present = ((values == 1) & ~np.isnan(labels) for values in (answers, labels))
    right = weights @ (answered & present).astype(float)
    return divide(2 * right, weights @ answered.astype(float) + weights @ present.astype(float))


def choose_threshold(scores: np.ndarray, labels: np.ndarray) -> float:
    """The score at and above which to answer "present", for the largest F1 on these scans."""
    present, absent = (counts[0, ::-1] for counts in count_by_score(scores, labels, np.ones((1, len(scores)))))
    found, answered = np.cumsum(present), np.cumsum(present) + np.cumsum(absent)
    best = int(np.argmax(2 * found / (answered + present.sum())))
    return float(np.unique(scores)[::-1][best])


# ---- probabilities ----


def brier(probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean squared difference of probability and truth over scans and findings, `(n, k)` both."""
    return mean((probabilities - labels) ** 2, weights)


def bin_probabilities(probabilities: np.ndarray, num_bins: int) -> np.ndarray:
    return np.minimum((probabilities * num_bins).astype(int), num_bins - 1)


def calibration_error(
    probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray, num_bins: int = 10
) -> np.ndarray:
    """Expected calibration error (Naeini et al. 2015) over bins of equal width: |mean probability - share present|, weighted
    by how many of the answers `(n, k)` a bin holds."""
    known = ~np.isnan(labels)
    gap = np.where(known, probabilities - np.nan_to_num(labels), 0.0)
    bins = bin_probabilities(probabilities, num_bins)
    by_bin = np.stack([(gap * (bins == b)).sum(1) for b in range(num_bins)], 1)  # (n, bins)
    return divide(np.abs(weights @ by_bin).sum(1), weights @ known.sum(1).astype(float))


def reliability(probabilities: np.ndarray, labels: np.ndarray, num_bins: int = 10) -> list[dict[str, float]]:
    """Of every bin that is not empty: mean probability, share present, answers."""
    known = ~np.isnan(labels)
    p, y = probabilities[known], labels[known]
    bins = bin_probabilities(p, num_bins)
    filled = [bins == b for b in range(num_bins) if (bins == b).any()]
    return [{"probability": float(p[b].mean()), "present": float(y[b].mean()), "n": int(b.sum())} for b in filled]


def fit_calibration(x: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Logistic regression of one finding on one score, by Newton's method: probability = sigmoid(slope * x + intercept).

    Returns:
        slope, intercept, their variances and covariance (from the inverse Hessian), as `CTFMConfig.calibration` keeps them.
    """
    x, labels = x[~np.isnan(labels)], labels[~np.isnan(labels)]
    design = np.stack([x, np.ones_like(x)], 1).astype(float)
    prior, theta = np.eye(2) / PRIOR_VARIANCE, np.zeros(2)
    hessian = prior
    for _ in range(NEWTON_STEPS):
        p = sigmoid(design @ theta)
        hessian = (design * (p * (1 - p))[:, None]).T @ design + prior
        step = np.linalg.solve(hessian, design.T @ (labels - p) - prior @ theta)
        theta = theta + step * min(1.0, 4 / max(np.abs(step).max(), 1e-12))  # no leap where the curve is flat
        if np.abs(step).max() < 1e-10:
            break
    spread = np.linalg.inv(hessian)
    return {
        "slope": float(theta[0]),
        "intercept": float(theta[1]),
        "slope_variance": float(spread[0, 0]),
        "intercept_variance": float(spread[1, 1]),
        "covariance": float(spread[0, 1]),
    }


def choose_unsure(probabilities: np.ndarray, labels: np.ndarray, wrong_at_most: float) -> tuple[float, float]:
    """Probabilities between which the answer is "not sure": the narrowest band around 0.5 outside which, on these scans, at
    most this share of the "absent" and of the "present" answers is wrong."""
    probabilities, labels = probabilities[~np.isnan(labels)], labels[~np.isnan(labels)]
    order = np.argsort(probabilities)
    p, y = probabilities[order], labels[order]
    below, above = p < 0.5, p >= 0.5
    low = 0.0
    if below.any():
        wrong = np.cumsum(y[below]) / np.arange(1, below.sum() + 1)
        kept = np.flatnonzero(wrong <= wrong_at_most)
        if len(kept):
            last = int(kept[-1])
            low = 0.5 if last + 1 == below.sum() else float(p[last : last + 2].mean())
    high = 1.0
    if above.any():
        falling = 1 - y[above][::-1]
        kept = np.flatnonzero(np.cumsum(falling) / np.arange(1, above.sum() + 1) <= wrong_at_most)
        if len(kept):
            high = 0.5 if kept[-1] + 1 == above.sum() else float(p[above][::-1][kept[-1]])
    return low, high


def risk_coverage(confidence: np.ndarray, is_wrong: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Area under the risk-coverage curve: the share of wrong answers among the most confident, averaged over coverages
    (Geifman and El-Yaniv 2017). 0 is best; abstaining at random gives the error itself. `is_wrong` is 1, 0, or NaN."""
    order = np.argsort(-confidence, kind="stable")
    counted = weights[:, order] * ~np.isnan(is_wrong[order])
    risk = divide(np.cumsum(counted * np.nan_to_num(is_wrong[order]), 1), np.cumsum(counted, 1))
    return divide((np.nan_to_num(risk) * counted).sum(1), counted.sum(1))


def sigmoid(x: np.ndarray) -> np.ndarray:
    return np.where(x >= 0, 1 / (1 + np.exp(-np.abs(x))), 1 - 1 / (1 + np.exp(-np.abs(x))))


# ---- retrieval ----


def rank_own(similarity: np.ndarray) -> np.ndarray:
    """Of every row i of `(n, n)`: how many columns are at least as alike as column i, which belongs to it; 0 is found first.
    Ties count against it, so that features without meaning find nothing."""
    return (similarity >= np.diagonal(similarity)[:, None]).sum(1) - 1


def recall_in_pools(similarity: np.ndarray, pool: int, repeats: int, seed: int = 0) -> np.ndarray:
    """Of every row: how often its own column comes first when all are dealt into pools of this size, `repeats` times."""
    n, random = len(similarity), np.random.default_rng(seed)
    hits, counts = np.zeros(n), np.zeros(n)
    for _ in range(repeats):
        order = random.permutation(n)
        for start in range(0, n - pool + 1, pool):
            chosen = order[start : start + pool]
            hits[chosen] += rank_own(similarity[np.ix_(chosen, chosen)]) == 0
            counts[chosen] += 1
    return divide(hits, counts)


# ---- segmentation and places ----


def dice(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Overlap of two boolean arrays; NaN where both are empty."""
    size = int(predicted.sum()) + int(truth.sum())
    return 2 * int((predicted & truth).sum()) / size if size else float("nan")


def surface_distances(predicted: np.ndarray, truth: np.ndarray, spacing: Sequence[float]) -> tuple[float, float]:
    """Mean and 95th percentile, in mm, of the distances from each surface voxel of one to the other's surface, both ways
    together; infinite where one is empty, NaN where both are."""
    if not predicted.any() and not truth.any():
        return float("nan"), float("nan")
    if not predicted.any() or not truth.any():
        return float("inf"), float("inf")
    surfaces = [
        np.argwhere(mask > np.asarray(binary_erosion(mask))) * np.asarray(spacing) for mask in (predicted, truth)
    ]
    there = KDTree(surfaces[1]).query(surfaces[0])[0]
    back = KDTree(surfaces[0]).query(surfaces[1])[0]
    both = np.concatenate([there, back])
    return float(both.mean()), float(np.percentile(both, 95))


def distance_to(points: np.ndarray, voxels: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """From each point `(m, 3)` to the nearest of `voxels` `(n, 3)`, in mm along the axis on which they are farthest apart."""
    return KDTree(voxels * np.asarray(spacing)).query(points * np.asarray(spacing), p=np.inf)[0]
