"""Metrics against scikit-learn, against counts by hand, and against values that a calculation on paper gives."""

import numpy as np
import pytest
from ctfm.evaluate.metrics import (
    FindingTable,
    Metric,
    auroc,
    average_precision,
    brier,
    calibration_error,
    choose_threshold,
    choose_unsure,
    dice,
    distance_to,
    estimate,
    f1,
    fit_calibration,
    macro_auroc,
    mean,
    measure_findings,
    rank_own,
    recall_in_pools,
    reliability,
    resample_patients,
    risk_coverage,
    sigmoid,
    surface_distances,
)
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, brier_score_loss, f1_score, roc_auc_score

ONE = np.ones((1, 200))


def scored(seed: int = 0, n: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Scores with ties, and labels that they tell something about."""
    random = np.random.default_rng(seed)
    labels = (random.random(n) < 0.3).astype(float)
    return np.round(labels + random.normal(0, 1.2, n), 1), labels


def test_weighted_metrics_equal_scikit_learn_in_every_resample() -> None:
    scores, labels = scored()
    weights = resample_patients([f"{i // 2}" for i in range(200)], 20, seed=3)
    for counted, area, precision, harmonic in zip(
        weights,
        auroc(scores, labels, weights),
        average_precision(scores, labels, weights),
        f1(scores > 0.5, labels, weights),
        strict=True,
    ):
        assert area == pytest.approx(roc_auc_score(labels, scores, sample_weight=counted), abs=1e-12)
        expected = average_precision_score(labels, scores, sample_weight=counted)
        assert precision == pytest.approx(expected, abs=1e-12)
        assert harmonic == pytest.approx(f1_score(labels, scores > 0.5, sample_weight=counted), abs=1e-12)


def test_scans_of_one_patient_are_drawn_together() -> None:
    weights = resample_patients(["a", "a", "b", "c"], 50, seed=1)
    assert (weights[0] == 1).all()
    assert (weights[:, 0] == weights[:, 1]).all()
    np.testing.assert_allclose(weights[:, 1:].sum(1), 3.0)  # of three patients
    assert (weights > 0).all()
    assert (weights == resample_patients(["a", "a", "b", "c"], 50, seed=1)).all()


def test_a_rare_finding_is_measured_in_every_resample() -> None:
    labels = np.array([1.0] * 5 + [0.0] * 200)
    scores = FindingTable(findings=("rare", "other"), values=np.random.default_rng(0).random((205, 2)))
    truth = FindingTable(findings=("rare", "other"), values=np.stack([labels, np.tile([0, 1, 0, 1, 0], 41)], 1))
    weights = resample_patients([str(number) for number in range(205)], 1000)
    found = measure_findings(auroc, scores, truth, weights)
    assert np.isfinite(list(found.values())).all()
    with pytest.raises(ValueError, match="1 of 2 resamples lack a metric that the sample has"):
        estimate(np.array([0.5, np.nan, 0.6]), 10)


@pytest.mark.parametrize("metric", [auroc, average_precision, lambda s, y, w: f1(s > 0.5, y, w), risk_coverage])
def test_what_is_not_stated_does_not_count(metric: Metric) -> None:
    scores, labels = scored()
    unstated = np.arange(200) % 3 == 0
    weights = resample_patients([f"{i}" for i in range(200)], 20)
    expected = metric(scores[~unstated], labels[~unstated], weights[:, ~unstated])
    np.testing.assert_allclose(metric(scores, np.where(unstated, np.nan, labels), weights), expected)


def test_scores_are_measured_by_labels_of_the_same_findings_alone() -> None:
    values = np.tile([[0.0, 1.0], [1.0, 0.0]], (10, 1))
    ab, ba = (FindingTable(findings=names, values=values) for names in (("a", "b"), ("b", "a")))
    assert macro_auroc(ab, ab) == 1.0
    with pytest.raises(ValueError, match=r"for a, b cannot be measured by labels of 20 for b, a"):
        macro_auroc(ab, ba)
    assert macro_auroc(ab, ba.select(("a", "b"))) == 0.0
    with pytest.raises(ValueError, match="3 findings cannot name the columns"):
        FindingTable(findings=("a", "b", "c"), values=values)
    with pytest.raises(ValueError, match="A finding stands twice"):
        FindingTable(findings=("a", "a"), values=values)


def test_a_finding_needs_five_scans_of_either_kind() -> None:
    labels = np.full((20, 2), np.nan)
    labels[:10, 0] = [1, 0] * 5
    labels[:9, 1] = [1, 0] * 4 + [1]
    table = FindingTable(findings=("a", "b"), values=labels)
    assert list(
        measure_findings(
            auroc, FindingTable(findings=("a", "b"), values=np.nan_to_num(labels, nan=9)), table, np.ones((1, 20))
        )
    ) == ["a"]


def test_a_score_that_is_no_number_is_an_error() -> None:
    with pytest.raises(ValueError, match="1 of 3 scores are NaN"):
        auroc(np.array([0.0, np.nan, 1.0]), np.array([0.0, 1.0, 1.0]), np.ones((1, 3)))


def test_an_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    random, covered = np.random.default_rng(0), 0
    for _ in range(200):
        values = random.normal(0.3, 1, 60)
        found = estimate(mean(values, resample_patients([str(i) for i in range(60)], 200)), 60)
        covered += found.low <= 0.3 <= found.high
    assert 0.89 <= covered / 200 <= 0.98


def test_the_best_threshold_has_the_best_f1_of_all() -> None:
    scores, labels = scored(seed=5)
    best = max(f1_score(labels, scores >= t) for t in np.unique(scores))
    assert f1_score(labels, scores >= choose_threshold(scores, labels)) == pytest.approx(best)


def test_brier_equals_scikit_learn_and_leaves_unknown_labels_out() -> None:
    scores, labels = scored()
    p = sigmoid(scores)
    assert brier(p[:, None], labels[:, None], ONE)[0] == pytest.approx(brier_score_loss(labels, p))
    two = np.stack([labels, np.full(200, np.nan)], 1)
    assert brier(np.stack([p, p], 1), two, ONE)[0] == pytest.approx(brier_score_loss(labels, p))


def test_calibration_error_by_hand() -> None:
    p = np.array([[0.1], [0.1], [0.9], [0.9]])
    labels = np.array([[0.0], [1.0], [1.0], [1.0]])
    # Bin 0.1: |0.1 - 0.5|, half of the answers; bin 0.9: |0.9 - 1|, the other half.
    assert calibration_error(p, labels, np.ones((1, 4)))[0] == pytest.approx(0.5 * 0.4 + 0.5 * 0.1)
    only_first = np.array([[2.0, 0, 0, 0]])
    assert calibration_error(p, labels, only_first)[0] == pytest.approx(0.1)
    assert [row["n"] for row in reliability(p, labels)] == [2, 2]


def test_a_calibration_equals_scikit_learn_and_its_variances_are_those_of_the_spread() -> None:
    scores, labels = scored()
    found = fit_calibration(scores, labels)
    fitted = LogisticRegression(C=100.0).fit(scores[:, None], labels)  # its penalty leaves the intercept out
    assert found["slope"] == pytest.approx(float(fitted.coef_[0, 0]), abs=1e-3)
    assert found["intercept"] == pytest.approx(float(fitted.intercept_[0]), abs=1e-3)
    random = np.random.default_rng(0)
    x = random.normal(0, 1, 400)
    slopes = [fit_calibration(x, (random.random(400) < sigmoid(x - 0.5)).astype(float))["slope"] for _ in range(200)]
    stated = fit_calibration(x, (random.random(400) < sigmoid(x - 0.5)).astype(float))["slope_variance"]
    assert np.std(slopes) == pytest.approx(stated**0.5, rel=0.25)


def test_a_perfectly_separated_finding_has_a_finite_slope() -> None:
    found = fit_calibration(np.array([-1.0, -2.0, 1.0, 2.0]), np.array([0.0, 0.0, 1.0, 1.0]))
    assert 1 < found["slope"] < 100


def test_the_unsure_band_keeps_wrong_answers_as_rare_as_asked() -> None:
    random = np.random.default_rng(0)
    p = random.random(2000)
    labels = (random.random(2000) < p).astype(float)
    low, high = choose_unsure(p, labels, 0.1)
    assert 0 < low <= 0.5 <= high < 1
    assert labels[p < low].mean() <= 0.1
    assert 1 - labels[p >= high].mean() <= 0.1
    assert choose_unsure(np.array([0.1, 0.9]), np.array([0.0, 1.0]), 0.05) == (0.5, 0.5)
    assert choose_unsure(np.array([0.1, 0.9]), np.array([1.0, 0.0]), 0.05) == (0.0, 1.0)


def test_risk_coverage_by_hand() -> None:
    confidence, wrong = np.array([0.9, 0.8, 0.7, 0.6]), np.array([0.0, 0.0, 1.0, 1.0])
    assert risk_coverage(confidence, wrong, np.ones((1, 4)))[0] == pytest.approx((0 + 0 + 1 / 3 + 2 / 4) / 4)


def test_ranks_and_pools_by_hand() -> None:
    similarity = np.array([[3.0, 1, 2], [5, 4, 0], [1, 1, 1]])
    assert rank_own(similarity).tolist() == [0, 1, 2]  # ties count against the own column
    assert recall_in_pools(np.eye(8), 4, 3).tolist() == [1.0] * 8
    random = np.random.default_rng(0).random((200, 200))
    assert np.mean(recall_in_pools(random, 10, 20)) == pytest.approx(0.1, abs=0.03)


def test_dice_and_surface_distances_of_two_boxes() -> None:
    a, b = np.zeros((9, 9, 9), bool), np.zeros((9, 9, 9), bool)
    a[2:6, 2:6, 2:6] = True
    b[2:6, 2:6, 3:7] = True
    assert dice(a, b) == pytest.approx(0.75)
    assert dice(a, a) == 1
    assert surface_distances(a, a, (3.0, 1.0, 1.0)) == (0.0, 0.0)
    near, far = surface_distances(a, b, (1.0, 1.0, 2.0))
    assert 0 < near < 2
    assert far == 2.0  # one voxel of 2 mm
    assert surface_distances(a, np.zeros_like(a), (1.0, 1.0, 1.0)) == (float("inf"), float("inf"))
    assert np.isnan(dice(np.zeros_like(a), np.zeros_like(a)))
    point = distance_to(np.array([[0, 0, 0]]), np.argwhere(a), (1.0, 2.0, 1.0))
    assert point[0] == 4.0  # two voxels of 2 mm; 2 mm along the other axes
