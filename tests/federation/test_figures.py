"""Counts, losses and metrics as integers: what their sum says is what the numbers together say."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation import tasks
from federation.fairness.layout import Layout
from federation.figures import Figures
from federation.messages import Answer, Evaluated, Tallied, Trained
from federation.schema import Component
from tests.in_process import PRIVATE, experiment

PLAIN = Figures(("auc", "dice"))
COUNT = st.integers(1, 100_000)
HOSPITAL = st.tuples(
    COUNT,  # patients
    st.integers(1, 10_000),  # examples
    st.floats(0, 100),  # loss
    st.integers(1, 10_000),  # held-out patients
    st.dictionaries(st.sampled_from(["auc", "dice"]), st.floats(-1, 1)),
    st.booleans(),  # has held-out patients
)


def answer(patients: int, examples: int, loss: float, held: int, metrics: Any, has: bool) -> Answer:
    trained = Trained({}, patients, examples=examples, loss=loss, seconds=1.0)
    return Answer(1, trained=trained, evaluated=Evaluated(metrics, held, held) if has else None)


def total(figures: Figures, answers: list[Answer]) -> Any:
    """As under masks: mod 2^64."""
    added = np.zeros(figures.length, np.uint64)
    for one in answers:
        np.add(added, figures.integers(one).view(np.uint64), out=added)
    names = tuple(f"h{number}" for number in range(len(answers)))
    return figures.summed(added.view(np.int64), names)


@settings(max_examples=200, deadline=None)
@given(st.lists(HOSPITAL, min_size=1, max_size=12))
def test_the_sum_says_what_all_say_together(hospitals: list[Any]) -> None:
    summed = total(PLAIN, [answer(*one) for one in hospitals])
    assert summed.hospitals == tuple(f"h{number}" for number in range(len(hospitals)))
    assert summed.patients == sum(one[0] for one in hospitals)
    examples = sum(one[1] for one in hospitals)
    assert summed.examples == examples
    loss = math.fsum(one[1] * one[2] for one in hospitals) / examples
    assert summed.loss == pytest.approx(loss, abs=len(hospitals) * 2.0**-20)
    evaluated = [(one[3], one[4]) for one in hospitals if one[5]]
    assert summed.held_out == sum(held for held, _ in evaluated)
    assert set(summed.metrics) == {name for _, metrics in evaluated for name in metrics}
    for name, value in summed.metrics.items():
        having = [(held, metrics[name]) for held, metrics in evaluated if name in metrics]
        mean = math.fsum(h * m for h, m in having) / sum(h for h, _ in having)
        assert value == pytest.approx(mean, abs=len(having) * 2.0**-20)


def test_a_hospital_that_has_nothing_adds_nothing() -> None:
    assert not PLAIN.integers(Answer(1)).any()
    nothing = total(PLAIN, [Answer(1), Answer(1)])
    assert (nothing.patients, nothing.examples, nothing.loss, nothing.metrics) == (
        0,
        None,
        None,
        {},
    )


def test_noisy_tallies_add_up_and_so_do_their_variances() -> None:
    figures = Figures(("auc",), tally=3)
    tallied = [
        Tallied(np.array([1.25, -3.5, 1e6]), 3.0),
        Tallied(np.array([0.125, 2.0, -7.0]), 4.0),
    ]
    summed = total(figures, [Answer(1, tallied=one) for one in tallied])
    np.testing.assert_array_equal(summed.tallied.values, [1.375, -1.5, 1e6 - 7])
    assert summed.tallied.noise == 5.0
    assert total(figures, [Answer(1)]).tallied is None


def test_under_privacy_only_the_declared_size_is_told() -> None:
    summed = total(PLAIN, [Answer(1, trained=Trained({}, patients)) for patients in (100, 250)])
    assert (summed.patients, summed.examples, summed.loss) == (350, None, None)


@pytest.mark.parametrize("loss", [math.inf, -math.inf, math.nan, 1e12])
def test_a_number_that_cannot_be_added_is_refused(loss: float) -> None:
    with pytest.raises(ValueError, match="cannot be added"):
        PLAIN.integers(answer(5, 1000, loss, 1, {}, False))


def test_the_largest_numbers_of_a_thousand_hospitals_do_not_overflow() -> None:
    largest = answer((1 << 52) - 1, 1, 2.0**32 - 1, 1, {}, False)
    integers = PLAIN.integers(largest)
    assert int(integers[0]) == (1 << 52) - 1  # exactly
    added = np.zeros(PLAIN.length, np.int64)
    for _ in range(1000):
        added += integers
    assert int(added[0]) == 1000 * ((1 << 52) - 1)


def test_which_figures_a_run_has() -> None:
    task = tasks.build(Component(name="chest_xray"))
    assert task.tally is not None
    plain = Figures.of(experiment(), task)
    assert (plain.metrics, plain.tally) == (tuple(task.metrics), 0)
    noisy = Figures.of(experiment(privacy=PRIVATE | {"metrics": "noisy"}), task)
    assert noisy.tally == task.tally.size
    assert Figures.of(experiment(privacy=PRIVATE), task).tally == 0
    assert noisy.length == plain.length + 1 + noisy.tally
    untold: Any = SimpleNamespace(metrics={"dice": None}, tally=None)
    assert Figures.of(experiment(privacy=PRIVATE | {"metrics": "noisy"}), untold).tally == 0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.booleans())
def test_normalisers_add_up_beside_all_others(divided: list[float], tallying: bool) -> None:
    figures = Figures(("auc",), tally=2 if tallying else 0, counts=3, normalised=True)
    tallied = Tallied(np.array([1.5, -2.0]), 3.0) if tallying else None
    one = Answer(1, tallied=tallied, counts=np.arange(3))
    integers = [figures.integers(one, normaliser) for normaliser in divided]
    summed = figures.summed(np.sum(integers, axis=0), ("h",) * len(divided))
    assert summed.normaliser == pytest.approx(math.fsum(divided), abs=len(divided) * 2.0**-40)
    assert summed.counts.tolist() == [0, len(divided), 2 * len(divided)]
    if tallying:
        assert summed.tallied.values.tolist() == [1.5 * len(divided), -2.0 * len(divided)]
    assert total(PLAIN, [Answer(1)]).normaliser is None


# --- counts by group -------------------------------------------------------------------------------

COUNTING = Figures(("auc",), tally=2, counts=5)


@given(st.lists(st.lists(st.integers(-(2**50), 2**50), min_size=5, max_size=5), max_size=6))
def test_counts_add_up_exactly(hospitals: list[list[int]]) -> None:
    answers = [Answer(1, counts=np.array(own, np.int64)) for own in hospitals]
    summed = total(COUNTING, answers)
    wanted = [sum(column) for column in zip(*hospitals, strict=True)] or [0] * 5
    assert summed.counts.tolist() == wanted
    assert summed.tallied is None
    assert (summed.patients, summed.metrics) == (0, {})


def test_counts_and_other_figures_do_not_get_in_each_other_s_way() -> None:
    tallied = Tallied(np.array([1.5, -2.0]), 3.0)
    evaluated = Evaluated({"auc": 0.75}, 8, 4)
    whole = Answer(1, evaluated=evaluated, tallied=tallied, counts=np.arange(5))
    summed = total(COUNTING, [whole, Answer(1), whole])
    assert summed.counts.tolist() == [0, 2, 4, 6, 8]
    assert summed.tallied.values.tolist() == [3.0, -4.0]
    assert (summed.metrics, summed.held_out) == ({"auc": 0.75}, 8)
    assert total(PLAIN, [Answer(1)]).counts is None


@pytest.mark.parametrize(
    "counts", [np.arange(4), np.arange(6), np.full(5, -(2**63)), np.full(5, 2**52)]
)
def test_counts_that_cannot_be_added_are_refused(counts: Any) -> None:
    with pytest.raises(ValueError, match="counts that cannot be added"):
        COUNTING.integers(Answer(1, counts=counts))


def test_a_run_has_the_counts_of_its_experiment() -> None:
    task = tasks.build(Component(name="chest_xray"))
    exact = experiment(fairness={})
    layout = Layout.of_experiment(exact, task)
    assert layout is not None
    assert Figures.of(exact, task).counts == layout.size > 1000
    assert Figures.of(experiment(), task).counts == 0
    noisy = PRIVATE | {"metrics": "noisy"}
    assert Figures.of(experiment(privacy=noisy, fairness={}), task).counts == 0
    sigma = {"noise_multiplier": 5.0}
    assert Figures.of(experiment(privacy=noisy, fairness=sigma), task).counts == layout.size
