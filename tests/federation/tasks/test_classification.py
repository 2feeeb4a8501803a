"""Metrics that classifications share, against scikit-learn and hand values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, roc_auc_score, roc_curve

from federation.tasks._classification import (
    auroc,
    brier,
    calibration_error,
    recall,
    sensitivity_at,
)

CASES = st.lists(st.tuples(st.integers(-5, 5), st.integers(0, 1)), min_size=1, max_size=60)


def _arrays(cases: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    scores, truth = zip(*cases, strict=True)
    return np.array(scores, dtype=np.float64), np.array(truth)


@given(CASES)
def test_auroc_is_scikit_learns(cases: list[tuple[int, int]]) -> None:
    scores, truth = _arrays(cases)
    if len(set(truth)) == 1:
        assert auroc(scores, truth) is None
    else:
        assert auroc(scores, truth) == pytest.approx(roc_auc_score(truth, scores))


@given(CASES, st.sampled_from([0.0, 0.5, 0.8, 0.9, 0.95, 1.0]))
def test_sensitivity_is_the_best_point_of_the_curve(
    cases: list[tuple[int, int]], specificity: float
) -> None:
    scores, truth = _arrays(cases)
    if len(set(truth)) == 1:
        assert sensitivity_at(specificity, scores, truth) is None
        return
    false_positives, sensitivity, _ = roc_curve(truth, scores, drop_intermediate=False)
    expected = sensitivity[false_positives <= 1 - specificity + 1e-9].max()
    assert sensitivity_at(specificity, scores, truth) == pytest.approx(expected)


def test_ties_share_a_fate() -> None:
    # Ten healthy: one may be called ill. Two of them have the score 3, so neither may be.
    scores = np.array([3, 3, *range(-8, 0), 4, 3, 2], dtype=np.float64)
    truth = np.array([0] * 10 + [1] * 3)
    assert sensitivity_at(0.9, scores, truth) == pytest.approx(1 / 3)
    scores[0] = 5  # now one of the ten is above all, the other is still at 3
    assert sensitivity_at(0.9, scores, truth) == pytest.approx(1 / 3)
    scores[1] = 2.5
    assert sensitivity_at(0.9, scores, truth) == pytest.approx(2 / 3)


@pytest.mark.parametrize("seed", range(5))
def test_calibration_error_is_the_reliability_diagrams(seed: int) -> None:
    generator = np.random.default_rng(seed)
    probability = generator.uniform(size=200)
    truth = (generator.uniform(size=200) < probability**2).astype(np.int64)
    share, mean = calibration_curve(truth, probability, n_bins=10, strategy="uniform")
    weight, _ = np.histogram(probability, bins=10, range=(0, 1))
    expected = (np.abs(share - mean) * weight[weight > 0]).sum() / 200
    assert calibration_error(probability, truth) == pytest.approx(expected)
    assert brier(probability, truth) == pytest.approx(brier_score_loss(truth, probability))


def test_calibration_error_at_its_ends() -> None:
    truth = np.array([0, 0, 1, 1])
    assert calibration_error(truth.astype(np.float64), truth) == 0
    assert calibration_error(1.0 - truth, truth) == 1
    # 0.25 and 0.25 in one bin, one of two positive: |0.25 - 0.5|
    assert calibration_error(np.array([0.25, 0.25]), np.array([0, 1])) == pytest.approx(0.25)


def test_recall_needs_a_case_of_the_class() -> None:
    said, truth = np.array([1, 0, 1]), np.array([1, 1, 1])
    assert recall(said, truth, 1) == pytest.approx(2 / 3)
    assert recall(said, truth, 0) is None
