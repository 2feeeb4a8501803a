"""Coordinate median: w ← w + median of the updates, of each coordinate by itself
(Yin et al. 2018, "Byzantine-Robust Distributed Learning", definition 1 and algorithm 1, option I).

Each coordinate lies between those of honest updates as long as fewer than half are bad. Hospitals that
differ pay for it: the median of skewed updates is not their mean, and does not come near it with more
rounds. Running statistics and counters are treated as the parameters are.
"""

from __future__ import annotations

from federation.messages import Arrays
from federation.strategies._single_updates import Told, Updates, Weights, median
from federation.strategies.fedavg import Options, step

__all__ = ["Options", "combine", "least", "step"]

SINGLE_UPDATES = True
ONE_VOTE = True
BY_COORDINATE = True


def least(options: Options) -> int:
    """Of two updates the median is the mean."""
    return 3


def combine(options: Options, updates: Updates, weights: Weights, told: Told) -> Arrays:
    return median(updates)
