"""Norm bound: w ← w + the weighted mean of Δₖ · min(1, B / ‖Δₖ‖)
(Sun et al. 2019, "Can You Really Backdoor Federated Learning?", section 4, norm thresholding).

B is `bound`, or the median of the round's norms: then up to half of the hospitals cannot move it past an
honest norm. What a bad hospital can do is bounded and not undone: it moves the model by at most B times
its share. With `participation.weighting=examples` its share is what it says of its size.

The norm is over parameters. Running statistics and counters, whose units are other ones, are the
coordinate median of all hospitals'. With a bound above all norms the parameters are FedAvg's.

Under a secure sum nobody sees a norm. With an explicit `bound` each hospital shortens its own update
(`client_app.norm_bound`) and the sum is of these; statistics are averaged. That binds hospitals with
honest software and bad data, not those that changed their code.
"""

from __future__ import annotations

import math
from statistics import median as middle

from pydantic import Field

from federation.messages import Arrays
from federation.strategies import fedavg
from federation.strategies._single_updates import (
    Told,
    Updates,
    Weights,
    median,
    norms,
    others,
    parameters,
    weighted_sum,
)
from federation.strategies.fedavg import step

__all__ = ["Options", "combine", "least", "step"]

SINGLE_UPDATES = True
AT_HOSPITALS = "bound"


class Options(fedavg.Options):
    bound: float | None = Field(
        default=None, gt=0, description="B: L2 norm of an update; none: the median of the round's"
    )


def least(options: Options) -> int:
    """Of two norms the median is the mean, which the larger one moves."""
    return 3 if options.bound is None else 1


def combine(options: Options, updates: Updates, weights: Weights, told: Told) -> Arrays:
    trained = parameters(updates)
    found = norms(trained)
    bound = middle(found.values()) if options.bound is None else options.bound
    factors = {
        name: weights[name] * (1.0 if norm <= bound else bound / norm)
        for name, norm in found.items()
    }
    return {
        **weighted_sum(trained, factors, math.fsum(weights.values())),
        **median(others(updates)),
    }
