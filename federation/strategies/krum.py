"""Krum: w ← w + the one update that is nearest to its n − f − 2 nearest others
(Blanchard et al. 2017, "Machine Learning with Adversaries", section 3).

The score of an update is the sum of its squared distances to these; of equal scores the first by the
hospitals' names wins. One hospital's update is taken as it is and the others' work is lost, so among
hospitals that differ it serves the commonest kind: `multi_krum` loses less.

Distances are over parameters. Running statistics and counters, whose units are other ones, are the
coordinate median of all hospitals'.
"""

from __future__ import annotations

import numpy as np
from pydantic import Field

from federation.messages import Arrays
from federation.strategies import fedavg
from federation.strategies._single_updates import (
    Told,
    Updates,
    Weights,
    median,
    others,
    parameters,
    squared_distances,
)
from federation.strategies.fedavg import step

__all__ = ["Options", "combine", "least", "ranked", "step"]

SINGLE_UPDATES = True
ONE_VOTE = True


class Options(fedavg.Options):
    byzantine: int = Field(default=1, ge=0, le=500, description="f: most hospitals that may be bad")


def least(options: Options) -> int:
    """n ≥ 2f + 3."""
    return 2 * options.byzantine + 3


def combine(options: Options, updates: Updates, weights: Weights, told: Told) -> Arrays:
    trained = parameters(updates)
    chosen = trained[ranked(trained, options.byzantine)[0]]
    return {**chosen, **median(others(updates))}


def ranked(updates: Updates, byzantine: int) -> list[str]:
    """Hospitals by their score, the best first; needs n ≥ f + 3 of them."""
    distances = squared_distances(updates)
    np.fill_diagonal(distances, np.inf)
    nearest = np.sort(distances, axis=1)[:, : len(updates) - byzantine - 2]
    scores = dict(zip(sorted(updates), nearest.sum(axis=1), strict=True))
    return sorted(scores, key=lambda name: (scores[name], name))
