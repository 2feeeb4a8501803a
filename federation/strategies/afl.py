"""Agnostic federated learning: the mean is weighted for the mixture of hospitals that is worst
(Mohri et al. 2019, "Agnostic Federated Learning", equation 4 and figure 3, stochastic AFL).

    w ← w + Σ λₖ·Δₖ,   λ ← projection of λ + γ·F(w) onto the simplex

with Fₖ(w) the loss of the model that was sent: both sides of a round use w and λ from before it. It
comes near to min_w max_k Fₖ(w). With one local step of SGD this is the paper's algorithm; with more, Δₖ
stands for the gradient as in FedAvg. λ begins as the hospitals' weights.

Who is absent keeps its λ, and the others share what is left; who comes later begins with a fair part.
If all who came have λ = 0 they are averaged by their weights.

Fₖ is `Told.received_loss`: exact where hospitals tell it, else the mean loss of their local steps. It is
a hospital's own word: one that overstates it takes the model, so this is no rule against bad updates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from pydantic import Field

from federation.messages import Arrays
from federation.strategies import fedavg
from federation.strategies._single_updates import Told, Updates, Weights, enter, weighted_sum
from federation.strategies.fedavg import step

__all__ = ["Options", "combine", "project", "remember", "step"]

SINGLE_UPDATES = True
NEEDS = ("loss",)
PREFERS = ("loss_before",)


class Options(fedavg.Options):
    mixture_learning_rate: float = Field(
        default=0.1, gt=0, le=100, description="γ: step of λ, per unit of loss"
    )


def combine(options: Options, updates: Updates, weights: Weights, told: Told) -> Arrays:
    mixture = _mixture(weights, told)
    present = {name: mixture[name] for name in weights}
    mass = math.fsum(present.values())
    if mass == 0:
        present, mass = dict(weights), math.fsum(weights.values())
    return weighted_sum(updates, present, mass)


def remember(options: Options, weights: Weights, told: Told) -> Arrays:
    mixture = _mixture(weights, told)
    losses = told.received_loss(weights)
    climbed = {
        name: mixture[name] + options.mixture_learning_rate * losses[name] for name in weights
    }
    mixture |= project(climbed, math.fsum(mixture[name] for name in weights))
    return {name: np.array(part) for name, part in mixture.items()}


def _mixture(weights: Weights, told: Told) -> dict[str, float]:
    """λ before this round, of all hospitals that ever sent an update."""
    return enter({name: float(part) for name, part in told.memory.items()}, weights)


def project(values: Mapping[str, float], mass: float) -> dict[str, float]:
    """The nearest point without negative parts whose sum is `mass` (Duchi et al. 2008, figure 1)."""
    names = sorted(values)
    shifted = np.array([values[name] for name in names], np.float64)
    shifted -= shifted.max()  # the point is the same, and no large value swallows `mass`
    ordered = np.sort(shifted)[::-1]
    surplus = (np.cumsum(ordered) - mass) / np.arange(1, len(names) + 1)
    threshold = surplus[np.flatnonzero(ordered - surplus >= 0)[-1]]
    return dict(zip(names, np.maximum(shifted - threshold, 0).tolist(), strict=True))
