"""Metrics from bins against scikit-learn and NumPy on the cases themselves, within the stated bounds."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import binomtest, norm
from sklearn.metrics import confusion_matrix, recall_score, roc_auc_score

from federation.fairness import intervals, measures
from federation.fairness.cases import of_predictions
from federation.fairness.counts import as_array, count
from federation.fairness.layout import Layout
from federation.fairness.measures import Bounded
from federation.tasks._classification import sensitivity_at
from tests.federation.fairness.drawn import (
    ALZHEIMERS,
    CHEST,
    HIPPOCAMPUS,
    binary,
    hospital,
    layout,
    segmented,
)

Floats = NDArray[np.float64]

SCORES = st.lists(
    st.tuples(
        st.one_of(
            st.floats(-60, 60), st.sampled_from([0.0, -0.25, 0.25, 3.0]), st.floats(-0.5, 0.5)
        ),
        st.booleans(),
    ),
    min_size=1,
    max_size=60,
)


def within(found: Bounded, true: float) -> bool:
    return abs(float(found.value) - true) <= float(found.bound) + 1e-9


def histogram(scores: list[tuple[float, bool]], made: Layout, hospitals: int = 1) -> Floats:
    """Of all cases, counted at several hospitals and summed."""
    images = [binary(score, int(label)) for score, label in scores]
    vectors = [
        count(of_predictions(images[first::hospitals], CHEST, made), made)
        for first in range(hospitals)
    ]
    total: NDArray[np.int64] = np.sum(vectors, axis=0)
    return as_array(total, made)[0, 0]


def split(scores: list[tuple[float, bool]]) -> tuple[Floats, NDArray[np.int64]]:
    return np.array([x for x, _ in scores]), np.array([int(y) for _, y in scores])


# --- scores --------------------------------------------------------------------------------------


@pytest.mark.parametrize("bins", [8, 32])
@settings(max_examples=100, deadline=None)
@given(scores=SCORES, hospitals=st.integers(1, 4))
def test_auroc_is_within_its_bound_of_scikit_learns(
    bins: int, scores: list[tuple[float, bool]], hospitals: int
) -> None:
    made = layout(score_bins=bins)
    found = measures.auroc(histogram(scores, made, hospitals))
    values, truth = split(scores)
    if truth.min() == truth.max():
        assert math.isnan(found.value)
        return
    assert within(found, roc_auc_score(truth, values))


def test_aurocs_bound_is_no_larger_than_it_must_be() -> None:
    """In one bin, cases may be in either order: both are reached."""
    made = layout()
    for first, area in ((0.01, 1.0), (0.09, 0.0)):
        found = measures.auroc(histogram([(0.05, False), (0.1 - first, True)], made))
        assert (found.value, found.bound) == (0.5, 0.5)
        assert area == pytest.approx(found.value + (0.5 if area else -0.5))


def test_aurocs_bound_is_small_where_a_model_is_sure_of_itself() -> None:
    """All probabilities are beyond 0.9: bins of equal width of probability would see one or two."""
    generator = np.random.default_rng(4)
    scores = [(float(generator.normal(4 + y, 0.8)), bool(y)) for y in (0, 1) for _ in range(400)]
    found = measures.auroc(histogram(scores, layout()))
    values, truth = split(scores)
    assert within(found, roc_auc_score(truth, values))
    assert found.bound < 0.12
    equal = np.digitize(1 / (1 + np.exp(-values)), np.arange(1, 32) / 32)
    negative, positive = (np.bincount(equal[truth == y], minlength=32) / 400 for y in (0, 1))
    assert negative @ positive / 2 > 0.25


def test_each_class_against_the_rest_as_scikit_learn() -> None:
    made = layout(ALZHEIMERS)
    images = hospital(np.random.default_rng(8), 300, task=ALZHEIMERS)
    counts = as_array(count(of_predictions(images, ALZHEIMERS, made), made), made)[0]
    probability = np.stack([case.outcome.softmax(0).numpy() for case in images])
    truth = np.array([int(case.target) for case in images])
    found = measures.auroc(counts)
    assert found.value.shape == (3,)
    for k in range(3):
        one = Bounded(found.value[k], found.bound[k])
        assert within(one, roc_auc_score(truth == k, probability[:, k]))
        assert one.bound < 0.03


@settings(max_examples=100, deadline=None)
@given(scores=SCORES, threshold=st.one_of(st.just(0.5), st.floats(0.01, 0.99)))
def test_rates_at_a_threshold(scores: list[tuple[float, bool]], threshold: float) -> None:
    made = layout(score_bins=16)
    counts = histogram(scores, made)
    values, truth = split(scores)
    with np.errstate(over="ignore"):
        said = (1 / (1 + np.exp(-values)) >= threshold).astype(int)
    if threshold == 0.5:
        said = (values >= 0).astype(int)
    at = (counts, made.edges, threshold)
    selected = measures.selection_rate(*at)
    assert within(selected, said.mean())
    if truth.any():
        assert within(measures.sensitivity(*at), recall_score(truth, said))
    else:
        assert math.isnan(measures.sensitivity(*at).value)
    if not truth.all():
        (negative, false_positive), _ = confusion_matrix(truth, said, labels=[0, 1])
        of = negative + false_positive
        assert within(measures.specificity(*at), negative / of)
        assert within(measures.false_positive_rate(*at), false_positive / of)
    if threshold == 0.5:
        assert selected.bound == 0


def test_the_default_threshold_and_all_edges_have_no_error() -> None:
    made = layout()
    counts = histogram([(float(x), x > 0) for x in np.linspace(-5, 5, 41)], made)
    for edge in made.edges[1:-1]:
        assert measures.selection_rate(counts, made.edges, float(edge)).bound == 0


def test_what_is_unanswered_is_neither_called_positive_nor_negative() -> None:
    made = layout()
    scores = [(2.0, True), (math.nan, True), (-2.0, False), (-2.0, False), (math.nan, False)]
    counts = histogram(scores, made)
    at = (counts, made.edges, 0.5)
    assert measures.sensitivity(*at).value == 1 / 2
    assert measures.specificity(*at).value == pytest.approx(2 / 3)
    assert measures.false_positive_rate(*at).value == 0
    assert measures.selection_rate(*at).value == 1 / 5
    assert measures.auroc(counts).value == 1
    assert measures.cases(counts, made).tolist() == [3, 2]
    assert measures.sensitivity_at(counts, 0.6).value == 1 / 2
    assert math.isnan(
        measures.sensitivity_at(counts, 0.7).value
    )  # a third cannot be called negative


@settings(max_examples=100, deadline=None)
@given(scores=SCORES, point=st.sampled_from([0.5, 0.8, 0.9, 0.95]))
def test_operating_points(scores: list[tuple[float, bool]], point: float) -> None:
    """Sensitivity against the tasks' own; specificity against all thresholds tried out."""
    made = layout(score_bins=16)
    counts = histogram(scores, made)
    values, truth = split(scores)
    found = measures.sensitivity_at(counts, point)
    expected = sensitivity_at(point, values, truth)
    assert math.isnan(found.value) if expected is None else within(found, expected)
    turned = measures.specificity_at(counts, point)
    if expected is None:
        assert math.isnan(turned.value)
        return
    best = max(
        (values[truth == 0] < threshold).mean()
        for threshold in values
        if round((values[truth == 1] >= threshold).mean() - point, 9) >= 0
    )
    assert within(turned, best)


def test_a_threshold_for_all_groups() -> None:
    made = layout()
    generator = np.random.default_rng(6)
    scores = [
        (float(generator.normal(2 * y - 1, 1.5)), bool(y)) for y in (0, 1) for _ in range(500)
    ]
    counts = histogram(scores, made)
    threshold = float(measures.threshold_at(counts, made.edges, 0.9))
    below = threshold - np.diff(made.edges)[np.searchsorted(made.edges, threshold) - 1]
    assert measures.specificity(counts, made.edges, threshold).value >= 0.9
    assert measures.specificity(counts, made.edges, below).value < 0.9
    assert math.isnan(measures.threshold_at(histogram([(math.nan, False)], made), made.edges, 0.9))


@settings(max_examples=100, deadline=None)
@given(scores=SCORES)
def test_calibration_error_with_the_same_bins(scores: list[tuple[float, bool]]) -> None:
    made = layout(score_bins=16)
    values, truth = split(scores)
    probability = 1 / (1 + np.exp(-values))
    found = measures.calibration_error(histogram(scores, made), made.edges)
    inner = np.log(made.edges[1:-1] / (1 - made.edges[1:-1]))
    place = np.searchsorted(inner, values, side="right")
    error = sum(
        abs(probability[place == b].mean() - truth[place == b].mean()) * (place == b).mean()
        for b in np.unique(place)
    )
    assert within(found, error)
    assert found.bound <= 1 / 16


# --- Dice ----------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(
    dices=st.lists(st.one_of(st.floats(0, 1), st.just(math.nan)), min_size=1, max_size=40),
    share=st.sampled_from([0.1, 0.25, 0.5, 0.9, 1.0]),
)
def test_dice(dices: list[float], share: float) -> None:
    made = layout(HIPPOCAMPUS, dice_bins=10)
    images = [segmented((dice, 0.5)) for dice in dices]
    counts = as_array(count(of_predictions(images, HIPPOCAMPUS, made), made), made)[0, 0]
    known = np.array([dice for dice in dices if not math.isnan(dice)])
    mean = measures.dice_mean(counts, made.edges)
    quantile = measures.dice_quantile(counts, made.edges, share)
    assert measures.cases(counts, made).tolist() == [known.size]
    if not known.size:
        assert math.isnan(mean.value)
        assert math.isnan(quantile.value)
        return
    assert within(mean, known.mean())
    assert within(quantile, np.quantile(known, share, method="inverted_cdf"))
    assert mean.bound == pytest.approx(0.05)
    assert quantile.bound == pytest.approx(0.05)


def test_an_unanswered_volume_is_a_dice_of_nothing() -> None:
    made = layout(HIPPOCAMPUS)
    images = [segmented((0.925, 0.9)), segmented((0.9, 0.9), loss=math.nan)]
    counts = as_array(count(of_predictions(images, HIPPOCAMPUS, made), made), made)[0, 0]
    assert measures.dice_mean(counts, made.edges).value == pytest.approx(0.925 / 2)
    lowest = measures.dice_quantile(counts, made.edges, 0.1)
    assert (lowest.value, lowest.bound) == (0, 0)
    assert measures.dice_quantile(counts, made.edges, 0.9).value == pytest.approx(0.925)


# --- many at a time ------------------------------------------------------------------------------


@pytest.mark.parametrize("task", [CHEST, HIPPOCAMPUS], ids=lambda task: task.name)
def test_leading_axes_are_computed_as_one_by_one(task: Any) -> None:
    made = layout(task)
    generator = np.random.default_rng(3)
    counts = generator.poisson(0.7, (4, 3, made.rows, made.shape[-1])).astype(float)
    counts[0, 0] = 0
    counts[1, 1, 0] = 0
    for metric in measures.metrics(made):
        together = metric.of(counts)
        assert together.value.shape == (4, 3)
        for at in np.ndindex(4, 3):
            alone = metric.of(counts[at])
            np.testing.assert_allclose(together.value[at], alone.value, rtol=1e-12)
            np.testing.assert_allclose(together.bound[at], alone.bound, rtol=1e-12)


def test_nothing_counted_is_no_metric() -> None:
    for task in (CHEST, HIPPOCAMPUS):
        made = layout(task)
        for metric in measures.metrics(made):
            assert math.isnan(metric.of(np.zeros(made.shape[2:])).value)


# --- intervals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("called", "total"), [(0, 5), (3, 7), (50, 60), (12, 12)])
def test_wilsons_interval_is_scipys(called: int, total: int) -> None:
    expected = binomtest(called, total).proportion_ci(0.95, method="wilson")
    found = intervals.of_share(called / total, 0.0, total)
    np.testing.assert_allclose(found, (expected.low, expected.high), atol=1e-12)
    wider = intervals.of_share(called / total, 0.1, total)
    assert wider[0] <= found[0] <= found[1] <= wider[1]


def test_the_interval_of_hanley_and_mcneils_example() -> None:
    """An area of 0.893 with 58 normal and 51 abnormal cases has a standard error of 0.032 (1982)."""
    low, high = intervals.of_auroc(0.893, 0.0, 58, 51)
    assert (high - low) / 2 / norm.ppf(0.975) == pytest.approx(0.032, rel=0.1)
    assert 0.893 - low > high - 0.893  # it leans to one half, as a score interval does


@pytest.mark.parametrize(
    ("value", "negative", "positive"), [(0.7, 12, 40), (0.95, 30, 8), (0.5, 9, 9)]
)
def test_an_interval_ends_where_the_distance_is_as_far_as_chance_allows(
    value: float, negative: int, positive: int
) -> None:
    def deviation(area: float) -> float:
        """Hanley & McNeil's, in its terms Q1 and Q2, with the mean of both numbers in the factors."""
        first, second, mean = area / (2 - area), 2 * area**2 / (1 + area), (negative + positive) / 2
        terms = (mean - 1) * (first - area**2) + (mean - 1) * (second - area**2)
        return math.sqrt((area * (1 - area) + terms) / (negative * positive))

    for end in intervals.of_auroc(value, 0.0, negative, positive):
        assert abs(end - value) == pytest.approx(norm.ppf(0.975) * deviation(end), rel=1e-6)


@pytest.mark.parametrize(
    ("shift", "negative", "positive"), [(0.0, 15, 15), (1.2, 40, 10), (2.5, 20, 12)]
)
def test_aurocs_interval_covers(shift: float, negative: int, positive: int) -> None:
    """Normal scores, small groups: about 95 % of intervals hold the true area, bins and all."""
    made = layout()
    inner = np.log(made.edges[1:-1] / (1 - made.edges[1:-1]))
    generator = np.random.default_rng(9)
    true, covered = norm.cdf(shift / math.sqrt(2)), 0
    for _ in range(400):
        counts = np.zeros((2, made.shape[-1]))
        for label, number in enumerate((negative, positive)):
            scores = generator.normal(shift * label, 1, number)
            np.add.at(counts[label], np.searchsorted(inner, scores, side="right"), 1)
        area = measures.auroc(counts)
        low, high = intervals.of_auroc(float(area.value), 0.0, negative, positive)
        covered += low <= true <= high
        wide = intervals.of_auroc(float(area.value), float(area.bound), negative, positive)
        assert wide[0] <= low <= high <= wide[1]
    assert 0.92 <= covered / 400 <= 0.99


def test_a_perfect_area_has_an_interval() -> None:
    low, high = intervals.of_auroc(1.0, 0.0, 10, 10)
    assert high == 1.0
    assert 0.7 < low < 0.95


def test_draws_keep_each_labels_cases_and_vary_as_they_should() -> None:
    made = layout()
    counts = np.zeros((2, made.shape[-1]))
    counts[0, [3, 10]] = 30, 10
    counts[1, [12, 20]] = 15, 45
    drawn = intervals.draws(counts, np.random.default_rng(1))
    assert (drawn.sum(axis=-1) == [40, 60]).all()
    assert not drawn[..., counts.sum(axis=0) == 0].any()
    sensitivities = measures.sensitivity(drawn, made.edges, 0.5).value
    assert sensitivities.mean() == pytest.approx(0.75, abs=0.01)
    assert sensitivities.std() == pytest.approx(math.sqrt(0.75 * 0.25 / 60), rel=0.1)
    again = intervals.draws(counts, np.random.default_rng(1))
    np.testing.assert_array_equal(drawn, again)
    noisy = intervals.draws(counts, np.random.default_rng(1), noise=5.0)
    assert (noisy >= 0).all()
    spread = np.nanstd(measures.sensitivity(noisy, made.edges, 0.5).value)
    assert spread > 1.2 * sensitivities.std()


def test_metrics_that_most_draws_lack_have_no_interval() -> None:
    drawn = np.full(100, np.nan)
    assert intervals.of_draws(0.5, 0.1, drawn) is None
    drawn[:60] = np.linspace(0.4, 0.45, 60)
    low, high = intervals.of_draws(0.5, 0.1, drawn) or (0, 0)
    assert low == pytest.approx(0.30125)
    assert high == pytest.approx(0.6)
