"""Metrics with intervals from the noisy sums that hospitals send (`federation.messages.Tallied`)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from federation.messages import Tallied
from federation.schema import ConfigError, Experiment
from federation.tasks import Tally, Task

Interval = list[float]  # [low, high]

_DRAWS = 400
_LEVEL = 0.95


def of_experiment(experiment: Experiment, task: Task) -> Tally | None:
    """What metrics are read from, where they come as noisy sums.

    Raises:
        ConfigError: they shall, and the task cannot tell them from sums.
    """
    if experiment.privacy is None or experiment.privacy.metrics != "noisy":
        return None
    if task.tally is None:
        raise ConfigError(
            f"privacy.metrics=noisy: task {experiment.task.name} has no metrics that sums over patients "
            "tell; use privacy.metrics=public or none"
        )
    return task.tally


def total(tallied: Sequence[Tallied]) -> Tallied:
    """The sum over hospitals; noises that are independent add up by their squares."""
    return Tallied(
        np.sum([one.values for one in tallied], axis=0),
        math.sqrt(math.fsum(one.noise**2 for one in tallied)),
    )


def measure(
    tally: Tally, tallied: Tallied, *seed: int
) -> tuple[dict[str, float], dict[str, Interval]]:
    """Metrics of one noisy sum, and how far the noise may have moved each.

    The intervals are approximate: the middle 95 % of the metrics when noise of the known size is added
    once more, to the noisy sum in place of the one without noise, which nobody has (a parametric
    bootstrap, Efron & Tibshirani 1993, section 6.5). They say nothing of the chance of who was held
    out. A metric that most draws leave undefined has none.

    Args:
        seed: of the draws, so that a run that is repeated has the same rows.
    """
    metrics = _finite(tally.measure(tallied.values))
    generator = np.random.default_rng(seed)
    noise = generator.normal(0.0, tallied.noise, (_DRAWS, tally.size))
    drawn = [_finite(tally.measure(tallied.values + one)) for one in noise]
    edges = [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2]
    intervals = {}
    for name in metrics:
        values = [draw[name] for draw in drawn if name in draw]
        if 2 * len(values) > _DRAWS:
            low, high = np.quantile(values, edges)
            # the draws' noise comes on top of noise: where a metric has bounds, they lean away
            intervals[name] = [min(float(low), metrics[name]), max(float(high), metrics[name])]
    return metrics, intervals


def _finite(metrics: dict[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
