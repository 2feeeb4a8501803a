"""Multi-Krum: w ← w + the mean of the m updates with the best scores of Krum
(Blanchard et al. 2017, "Machine Learning with Adversaries", section 4).

m is n − f − 2 unless `selected` says less: the most for which f bad hospitals are shown to be withstood
(Damaskinos et al. 2019, "AggregaThor", section 3). Running statistics and counters as in `krum`.
"""

from __future__ import annotations

from pydantic import Field

from federation.messages import Arrays
from federation.strategies import krum
from federation.strategies._single_updates import (
    Told,
    Updates,
    Weights,
    median,
    others,
    parameters,
    weighted_sum,
)
from federation.strategies.fedavg import step

__all__ = ["Options", "combine", "least", "step"]

SINGLE_UPDATES = True
ONE_VOTE = True


class Options(krum.Options):
    selected: int | None = Field(default=None, ge=1, le=1000, description="m; none: n − f − 2")


def least(options: Options) -> int:
    """n ≥ 2f + 3, and n ≥ m + f + 2."""
    return max(krum.least(options), (options.selected or 0) + options.byzantine + 2)


def combine(options: Options, updates: Updates, weights: Weights, told: Told) -> Arrays:
    trained = parameters(updates)
    m = options.selected or len(trained) - options.byzantine - 2
    best = {name: trained[name] for name in krum.ranked(trained, options.byzantine)[:m]}
    return {
        **weighted_sum(best, dict.fromkeys(best, 1.0), float(m)),
        **median(others(updates)),
    }
