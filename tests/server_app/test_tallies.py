"""Metrics read off noisy sums: added up, measured, and with intervals that hold."""

from __future__ import annotations

import numpy as np
import pytest

from federation import tasks
from federation.messages import Tallied
from federation.schema import Component, ConfigError
from federation.tasks import Tally
from server_app import tallies
from tests.in_process import PRIVATE, SHARE, experiment


def test_sums_and_noises_add_up() -> None:
    summed = tallies.total(
        [Tallied(np.array([1.0, 2.0]), 3.0), Tallied(np.array([10.0, -4.0]), 4.0)]
    )
    assert summed.values.tolist() == [11.0, -2.0]
    assert summed.noise == pytest.approx(5.0)


def test_the_same_seed_gives_the_same_row_and_another_seed_another() -> None:
    told = Tallied(np.array([30.0, 10.0]), 2.0)
    assert tallies.measure(SHARE, told, 0, 1) == tallies.measure(SHARE, told, 0, 1)
    assert tallies.measure(SHARE, told, 0, 1) != tallies.measure(SHARE, told, 0, 2)


@pytest.mark.parametrize("task", ["chest_xray", "tumour_segmentation", "hippocampus"])
@pytest.mark.parametrize(("patients", "noise"), [(2000, 10.0), (200, 3.0)])
def test_intervals_hold_the_value_without_noise(task: str, patients: int, noise: float) -> None:
    """Of 60 noisy sums of one true sum, nearly 95 % of the intervals; 84 % allows for chance."""
    tally = tasks.build(Component(name=task)).tally
    assert tally is not None
    rng = np.random.default_rng(0)
    # patients spread over the tally's places so that no metric is undefined or extreme
    values = rng.dirichlet(np.full(tally.size, 3.0)) * patients
    truth = tally.measure(values)
    assert truth
    held = dict.fromkeys(truth, 0)
    for draw in range(60):
        noisy = Tallied(values + rng.normal(0, noise, tally.size), noise)
        _, intervals = tallies.measure(tally, noisy, draw)
        for name, value in truth.items():
            low, high = intervals[name]
            held[name] += low <= value <= high
    assert min(held.values()) >= 0.84 * 60, held


def test_a_metric_that_is_mostly_undefined_has_no_interval_and_infinities_leave() -> None:
    edge = Tally(
        1,
        SHARE.count,
        lambda sums: {"rare": 1.0, "wild": float("inf")} if sums[0] > 5 else {"wild": float("nan")},
    )
    assert tallies.measure(edge, Tallied(np.array([5.1]), 1000.0), 0)[0] == {"rare": 1.0}
    metrics, intervals = tallies.measure(edge, Tallied(np.array([-50.0]), 1.0), 0)
    assert (metrics, intervals) == ({}, {})


def test_a_task_without_a_tally_is_refused_by_name() -> None:
    import dataclasses

    task = dataclasses.replace(tasks.build(Component(name="chest_xray")), tally=None)
    noisy = experiment(privacy=PRIVATE | {"metrics": "noisy"})
    with pytest.raises(ConfigError, match=r"chest_xray.*privacy\.metrics=public or none"):
        tallies.of_experiment(noisy, task)
    for metrics in ("none", "public"):
        assert (
            tallies.of_experiment(experiment(privacy=PRIVATE | {"metrics": metrics}), task) is None
        )
    assert tallies.of_experiment(experiment(), task) is None
