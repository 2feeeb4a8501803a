"""Metrics from sums over patients, against the exact metrics, scikit-learn, and their own bounds."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy.stats import norm, rankdata
from sklearn.metrics import roc_auc_score

from federation import tasks
from federation.schema import Component
from federation.tasks import Prediction, Tally, Task, _tallies

NAMES = ("alzheimers", "chest_xray", "hippocampus", "mammography", "tumour_segmentation")
TASKS = {name: tasks.build(Component(name=name)) for name in NAMES}
TALLIED = {
    "alzheimers": {"balanced_accuracy"},
    "chest_xray": {"auroc", "balanced_accuracy", "sensitivity", "specificity"},
    "hippocampus": {"dice", "dice_anterior", "dice_posterior"},
    "mammography": {"auroc", "sensitivity_at_90_specificity", "brier"},
    "tumour_segmentation": {"dice", "missed"},
}
# With one case a patient these follow from sums with nothing lost.
EXACT = {
    "alzheimers": TALLIED["alzheimers"],
    "chest_xray": {"balanced_accuracy", "sensitivity", "specificity"},
    "hippocampus": TALLIED["hippocampus"],
    "mammography": set(),
    "tumour_segmentation": TALLIED["tumour_segmentation"],
}
Sums = NDArray[np.float64]


def _tally(task: Task) -> Tally:
    assert task.tally is not None
    return task.tally


def _sums(task: Task, predictions: Sequence[Prediction]) -> Sums:
    patients: dict[str, list[Prediction]] = defaultdict(list)
    for case in predictions:
        patients[case.patient].append(case)
    counted = [_tally(task).count(cases) for cases in patients.values()]
    return torch.stack(counted).sum(dim=0).numpy()


def _from_sums(task: Task, predictions: Sequence[Prediction]) -> dict[str, float]:
    return _tally(task).measure(_sums(task, predictions))


def _case(
    task: Task, numbers: Sequence[float], target: int, patient: str = "p", **attributes: str
) -> Prediction:
    outcome = torch.tensor(numbers, dtype=torch.float64)
    kind = torch.tensor(target) if task.kind == "classification" else torch.empty(0)
    return Prediction(patient, outcome, kind, attributes)


def _random(task: Task, count: int, seed: int) -> list[Prediction]:
    """Cases of as many patients; of the segmentations some numbers are not defined."""
    generator = np.random.default_rng(seed)
    cases = []
    for index in range(count):
        target = int(generator.integers(len(task.classes)))
        if task.kind == "classification":
            numbers = generator.normal(size=len(task.classes))
            numbers[target] += 1
        elif task.name == "hippocampus":
            numbers = generator.uniform(size=3)
            numbers[:2][generator.uniform(size=2) < 0.2] = math.nan
        else:  # BY_CASE: drawn or not, found or not
            drawn, found = generator.uniform(size=2) < (0.8, 0.9)
            dice = generator.uniform() if drawn and found else 0.0 if drawn or found else math.nan
            missed = float(not found) if drawn else math.nan
            numbers = np.array([dice, dice, math.nan, 3.0, -3.0, missed, 1.5])
        cases.append(_case(task, numbers.tolist(), target, f"p{index}"))
    return cases


def _binary(scores: Sequence[float], truth: Sequence[int]) -> list[Prediction]:
    task = TASKS["chest_xray"]
    pairs = enumerate(zip(scores, truth, strict=True))
    return [_case(task, [0.0, score], label, f"p{index}") for index, (score, label) in pairs]


# --- what every task owes ------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_tally_gives_declared_metrics_and_the_headline_among_them(name: str) -> None:
    task = TASKS[name]
    measured = _from_sums(task, _random(task, 60, seed=0))
    assert set(measured) == TALLIED[name]
    assert task.headline in measured
    assert set(measured) <= set(task.metrics)


def test_no_task_is_forgotten() -> None:
    from federation import registry

    assert set(registry.names(tasks)) == set(NAMES)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("name", NAMES)
def test_what_is_linear_is_exact(name: str, seed: int) -> None:
    task = TASKS[name]
    predictions = _random(task, 40, seed)
    exact, tallied = task.measure(predictions), _from_sums(task, predictions)
    assert {key: tallied[key] for key in EXACT[name]} == pytest.approx(
        {key: exact[key] for key in EXACT[name]}, rel=1e-12
    )


@pytest.mark.parametrize("name", NAMES)
def test_patients_weigh_alike_however_many_cases_they_have(name: str) -> None:
    task = TASKS[name]
    cases = _random(task, 12, seed=3)
    often = [case for index, case in enumerate(cases) for _ in range(index + 1)]
    np.testing.assert_allclose(_sums(task, often), _sums(task, cases), rtol=1e-12)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("sum_", [0.0, -3.0])
def test_nobody_has_no_metrics(name: str, sum_: float) -> None:
    tally = _tally(TASKS[name])
    assert tally.measure(np.full(tally.size, sum_)) == {}


NUMBERS = st.one_of(
    st.floats(-5, 5),
    st.sampled_from([math.nan, math.inf, -math.inf, 0.0, 1.0, 1e38, -1e38, 1e308, -1e308, 1e-320]),
    st.floats(),
)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_patient_counts_at_most_once_whatever_the_answers_are(
    name: str, data: st.DataObject
) -> None:
    task = TASKS[name]
    length = {"hippocampus": 3, "tumour_segmentation": 7}.get(name, len(task.classes))
    cases = [
        _case(task, numbers, target, "p", laterality=side)
        for numbers, target, side in data.draw(
            st.lists(
                st.tuples(
                    st.lists(NUMBERS, min_size=length, max_size=length),
                    st.integers(0, len(task.classes) - 1),
                    st.sampled_from(["left", "right", "unknown"]),
                ),
                min_size=1,
                max_size=9,
            )
        )
    ]
    with np.errstate(all="ignore"):
        counted = _tally(task).count(cases)
    assert counted.dtype == torch.float64
    assert counted.shape == (_tally(task).size,)
    assert bool((counted >= 0).all())
    assert float(counted.norm()) <= 1 + 1e-12


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("cases", [1, 7])
def test_a_plain_patient_is_not_lost(name: str, cases: int) -> None:
    """A count of nothing but zeros would pass the test before."""
    task = TASKS[name]
    numbers = {"hippocampus": [0.0, 1.0, 0.3], "tumour_segmentation": [1.0, 1, 1, 0, 0, 0.0, 0.3]}
    counted = _tally(task).count(
        [_case(task, numbers.get(name, [0.0] * len(task.classes)), 0)] * cases
    )
    assert float(counted.norm()) == pytest.approx(1)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_patient_with_an_answer_that_is_not_finite_counts_as_zero(name: str, bad: float) -> None:
    task = TASKS[name]
    good = _random(task, 1, seed=1)[0]
    numbers = good.outcome.tolist()
    numbers[-1] = bad  # a logit, or a segmentation's loss
    broken = _case(task, numbers, 0, good.patient)
    assert not _tally(task).count([good, broken]).any()
    assert not _tally(task).count([broken]).any()


@pytest.mark.parametrize("name", ["alzheimers", "chest_xray", "mammography"])
@pytest.mark.parametrize("target", [-40, -1, 3, 40])
def test_a_target_that_is_no_class_is_refused(name: str, target: int) -> None:
    task = TASKS[name]
    with pytest.raises((ValueError, IndexError)):
        _tally(task).count([_case(task, [0.0] * len(task.classes), target)])


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_sums_give_finite_metrics_between_0_and_1(name: str, data: st.DataObject) -> None:
    task = TASKS[name]
    finite = st.floats(allow_nan=False, allow_infinity=False) | st.floats(-50, 50)
    sums = data.draw(arrays(np.float64, _tally(task).size, elements=finite))
    before = sums.copy()
    with np.errstate(all="ignore"):
        measured = _tally(task).measure(sums)
    assert set(measured) <= TALLIED[name]
    assert all(type(value) is float and 0 <= value <= 1 for value in measured.values())
    np.testing.assert_array_equal(sums, before)


# --- histograms ----------------------------------------------------------------------------------


def _scores(count: int, seed: int, scale: float) -> tuple[Sums, NDArray[np.int64]]:
    generator = np.random.default_rng(seed)
    truth = (generator.uniform(size=count) < 0.4).astype(np.int64)
    return scale * (generator.normal(size=count) + truth), truth


@pytest.mark.parametrize("scale", [0.1, 1.0, 3.0])
@pytest.mark.parametrize("seed", range(5))
def test_auroc_is_that_of_the_bins_and_near_that_of_the_scores(seed: int, scale: float) -> None:
    scores, truth = _scores(120, seed, scale)
    found = _from_sums(TASKS["chest_xray"], _binary(scores.tolist(), truth.tolist()))["auroc"]
    bins = np.digitize(scores, _tallies.EDGES)
    assert found == pytest.approx(roc_auc_score(truth, bins), rel=1e-12)
    tied = np.equal.outer(bins[truth == 0], bins[truth == 1]).mean()
    assert abs(found - roc_auc_score(truth, scores)) <= tied / 2 + 1e-12


def test_auroc_with_several_images_weighs_them_by_patient() -> None:
    scores, truth = _scores(90, seed=5, scale=1.0)
    cases = _binary(scores.tolist(), truth.tolist())
    owners = [f"p{index % 3 if index < 30 else index}" for index in range(90)]
    cases = [Prediction(owner, c.outcome, c.target) for owner, c in zip(owners, cases, strict=True)]
    weights = [1 / owners.count(owner) for owner in owners]
    bins = np.digitize(scores, _tallies.EDGES)
    assert _from_sums(TASKS["chest_xray"], cases)["auroc"] == pytest.approx(
        roc_auc_score(truth, bins, sample_weight=weights), rel=1e-12
    )


@pytest.mark.parametrize("seed", range(10))
def test_sensitivity_at_a_specificity_is_off_by_less_than_one_bin(seed: int) -> None:
    scores, truth = _scores(150, seed, 1.5)
    cases = _binary(scores.tolist(), truth.tolist())
    exact = TASKS["mammography"].measure(cases)["sensitivity_at_90_specificity"]
    found = _from_sums(TASKS["mammography"], cases)["sensitivity_at_90_specificity"]
    positive = np.bincount(np.digitize(scores[truth == 1], _tallies.EDGES))
    assert abs(found - exact) <= positive.max() / positive.sum() + 1e-12


def test_sensitivity_where_an_edge_lies_at_the_specificity() -> None:
    # One of ten healthy reaches the edges 1 and 0.5: at the lower one 3 of 4 ill are called so.
    cases = _binary([*[-1.0] * 9, 1.0, -1, 0.5, 1, 3], [*[0] * 10, *[1] * 4])
    found = _from_sums(TASKS["mammography"], cases)
    assert found["sensitivity_at_90_specificity"] == pytest.approx(0.75)


def test_sensitivity_does_not_pass_1_by_rounding() -> None:
    sums = np.zeros(28)
    sums[[0, 15, 16]] = 41.0, 0.8, 1.0
    assert _tally(TASKS["mammography"]).measure(sums)["sensitivity_at_90_specificity"] == 1


@pytest.mark.parametrize("seed", range(10))
def test_brier_from_bins(seed: int) -> None:
    generator = np.random.default_rng(seed)
    probability = generator.uniform(0.001, 0.999, size=400)
    scores, truth = np.log(probability / (1 - probability)), generator.uniform(size=400) < 0.5
    cases = _binary(scores.tolist(), truth.astype(int).tolist())
    exact = TASKS["mammography"].measure(cases)["brier"]
    assert _from_sums(TASKS["mammography"], cases)["brier"] == pytest.approx(exact, abs=0.01)


@pytest.mark.parametrize("label", [0, 1])
def test_brier_is_off_by_at_most_what_is_stated(label: int) -> None:
    worst = 0.0
    for score in np.linspace(-12, 12, 2001).tolist():
        cases = _binary([score], [label])
        exact = TASKS["mammography"].measure(cases)["brier"]
        worst = max(worst, abs(_from_sums(TASKS["mammography"], cases)["brier"] - exact))
    assert 0.07 < worst <= 0.08


def test_breasts_share_a_patients_mass() -> None:
    """Left in two views, of which the mean counts; right; and one that does not say its side."""
    task = TASKS["mammography"]
    cases = [
        _case(task, [0.0, 0.5], 1, laterality="left"),
        _case(task, [0.0, -0.1], 1, laterality="left"),
        _case(task, [0.0, -5.0], 0, laterality="right"),
        _case(task, [0.0, 5.0], 0),
    ]
    histogram = _tally(task).count(cases).reshape(2, _tallies.BINS)
    expected = torch.zeros(2, _tallies.BINS, dtype=torch.float64)
    expected[1, 7] = 1 / 3  # 0.2 lies in [0, 0.5), the eighth bin
    expected[0, 0] = expected[0, 13] = 1 / 3
    torch.testing.assert_close(histogram, expected)


def test_a_score_at_the_threshold_is_called_positive() -> None:
    cases = _binary([0.0, -1e-9, 0.0], [1, 1, 0])
    assert _from_sums(TASKS["chest_xray"], cases) == pytest.approx(
        {"auroc": 0.25, "balanced_accuracy": 0.25, "sensitivity": 0.5, "specificity": 0.0}
    )


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_only(label: int) -> None:
    cases = _binary([-1.0, 2.0, 0.3], [label] * 3)
    only = {0: {"specificity": 1 / 3}, 1: {"sensitivity": 2 / 3}}[label]
    assert _from_sums(TASKS["chest_xray"], cases) == pytest.approx(only)
    assert set(_from_sums(TASKS["mammography"], cases)) == {"brier"}


def test_one_diagnosis_only_has_no_balanced_accuracy_and_two_have() -> None:
    task = TASKS["alzheimers"]
    right, wrong = [0.0, 3.0, 1.0], [3.0, 0.0, 1.0]
    cases = [_case(task, right, 1, "a"), _case(task, wrong, 1, "b")]
    assert _from_sums(task, cases) == {}
    cases.append(_case(task, right, 2, "c"))
    assert _from_sums(task, cases) == pytest.approx({"balanced_accuracy": 0.25})


@given(arrays(np.float64, 14, elements=st.floats(-1e3, 1e3)))
def test_the_nearest_counts_are_the_nearest(noisy: Sums) -> None:
    """The conditions of Karush, Kuhn and Tucker, which only the nearest point fulfils."""
    nearest = _tallies._counts(noisy)
    if noisy.sum() <= 1e-6:
        return
    assert (nearest >= 0).all()
    assert nearest.sum() == pytest.approx(noisy.sum(), rel=1e-6, abs=1e-9)
    moved = (nearest - noisy)[nearest > 0]
    assert np.ptp(moved) <= 1e-9
    assert (nearest - noisy >= moved.min() - 1e-9).all()


# --- with noise ----------------------------------------------------------------------------------


def _noisy(
    task: Task, sums: Sums, *, times: int, noise: float = 10.0, seed: int = 0
) -> list[dict[str, float]]:
    generator = np.random.default_rng(seed)
    measure: Any = _tally(task).measure
    return [measure(sums + noise * generator.normal(size=sums.size)) for _ in range(times)]


@pytest.mark.parametrize("name", ["alzheimers", "hippocampus", "tumour_segmentation"])
def test_means_are_not_moved_by_noise(name: str) -> None:
    task = TASKS[name]
    sums = _sums(task, _random(task, 1200, seed=2))
    clean = _tally(task).measure(sums)
    noisy = _noisy(task, sums, times=3000)
    for metric in EXACT[name]:
        values = np.array([found[metric] for found in noisy])
        error = values.std() / math.sqrt(len(values))
        assert abs(values.mean() - clean[metric]) < 4 * error + 1e-3


def test_sensitivity_and_specificity_are_not_moved_by_noise() -> None:
    scores, truth = _scores(2000, seed=2, scale=1.0)
    task = TASKS["chest_xray"]
    sums = _sums(task, _binary(scores.tolist(), truth.tolist()))
    clean, noisy = _tally(task).measure(sums), _noisy(task, sums, times=2000)
    for metric in ("sensitivity", "specificity"):
        values = np.array([found[metric] for found in noisy])
        assert abs(values.mean() - clean[metric]) < 4 * values.std() / math.sqrt(2000) + 1e-3


def test_the_noise_of_a_mean_is_what_its_code_promises() -> None:
    """The ratio's first-order error: σ √((1 - m)² + m²) / n, over the weight."""
    task, patients = TASKS["tumour_segmentation"], 1000
    cases = [
        _case(task, [0.8, 0.8, 1.0, 0.0, 0.0, 0.0, 0.1], 0, f"p{index}")
        for index in range(patients)
    ]
    dices = [found["dice"] for found in _noisy(task, _sums(task, cases), times=4000)]
    expected = 10 * math.hypot(0.2, 0.8) / (0.8 * patients)
    assert np.std(dices) == pytest.approx(expected, rel=0.05)


def _auroc_error(noise: float, patients: int) -> float:
    """RMS over scores whose middle and spread differ as those of models do."""
    generator = np.random.default_rng(7)
    squares = []
    for _ in range(600):
        prevalence = generator.choice([0.05, 0.1, 0.3, 0.5, 0.7])
        usual = math.log(prevalence / (1 - prevalence))
        middle = usual * generator.choice([1, 1, 0]) + 0.7 * generator.normal()
        spread = math.exp(generator.uniform(math.log(0.2), math.log(4)))
        apart = norm.ppf(generator.choice([0.6, 0.75, 0.85, 0.95])) * math.sqrt(2) * spread
        truth = (generator.uniform(size=patients) < prevalence).astype(np.int64)
        if truth.min() == truth.max():
            continue
        scores = middle + spread * generator.normal(size=patients)
        scores += apart * (truth - prevalence)
        sums = _tallies.of_scores(scores, truth).numpy() * patients
        found = _tallies.auroc(sums + noise * generator.normal(size=sums.size))
        ill = int(truth.sum())
        above = rankdata(scores)[truth == 1].sum() - ill * (ill + 1) / 2
        exact = above / (ill * (patients - ill))  # scikit-learn's takes ten times as long
        squares.append(((0.5 if found is None else found) - exact) ** 2)
    return math.sqrt(np.mean(squares))


def _with_edges(patch: pytest.MonkeyPatch, edges: Sums) -> None:
    patch.setattr(_tallies, "EDGES", edges)
    patch.setattr(_tallies, "BINS", edges.size + 1)
    patch.setattr(_tallies, "HISTOGRAM", 2 * edges.size + 2)


@pytest.mark.parametrize(
    ("noise", "patients", "stated"),
    [(0, 1000, 0.04), (10, 5000, 0.04), (10, 2000, 0.06), (10, 600, 0.14), (10, 200, 0.22)],
)
def test_the_bins_are_as_good_as_stated_and_better_than_more_or_fewer(
    noise: float, patients: int, stated: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = _auroc_error(noise, patients)
    assert error == pytest.approx(stated, abs=0.006)
    _with_edges(monkeypatch, np.arange(-4, 4.1, 2))
    assert _auroc_error(noise, patients) > error
    if noise and patients <= 2000:
        _with_edges(monkeypatch, np.arange(-4, 4.1, 0.25))
        assert _auroc_error(noise, patients) > error
