"""Trimmed mean: of each coordinate the f largest and f smallest values are left out, the rest averaged
(Yin et al. 2018, "Byzantine-Robust Distributed Learning", definition 2 and algorithm 1, option II, with
f = βn). Each coordinate lies between those of honest updates as long as at most f are bad.

Running statistics and counters are treated as the parameters are. With f = 0 it is FedAvg with equal
weights.
"""

from __future__ import annotations

import numpy as np
from pydantic import Field

from federation.messages import Arrays
from federation.strategies import fedavg
from federation.strategies._single_updates import Matrix, Told, Updates, Weights, by_coordinate
from federation.strategies.fedavg import step

__all__ = ["Options", "combine", "least", "step"]

SINGLE_UPDATES = True
ONE_VOTE = True
BY_COORDINATE = True


class Options(fedavg.Options):
    byzantine: int = Field(default=1, ge=0, le=500, description="f: most hospitals that may be bad")


def least(options: Options) -> int:
    """n > 2f."""
    return 2 * options.byzantine + 1


def combine(options: Options, updates: Updates, weights: Weights, told: Told) -> Arrays:
    f = options.byzantine

    def trimmed(block: Matrix) -> Matrix:
        kept = np.sort(block, axis=0)[f : len(block) - f] if f else block
        mean: Matrix = kept.mean(axis=0)
        return mean

    return by_coordinate(updates, trimmed)
