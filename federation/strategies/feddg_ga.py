"""FedDG-GA: weight goes to hospitals whose loss averaging raised more than the others'
(Zhang et al. 2023, "Federated Domain Generalization with Generalization Adjustment", section 3.3).

The gap of a hospital in round r is its loss of the global model that it receives, minus its loss of the
model that it had trained in the round before:  Gₖ = Fₖ(w^r) − Fₖ(wₖ^(r−1)).  With μ their mean,

    aₖ ← aₖ + d^r · (Gₖ − μ) / max_j |G_j − μ|,   d^r = (1 − r/R)·d

clipped to [0, 1] and divided by their sum; R is the number of rounds, and a begins equal (by the
hospitals' weights, which `configs/strategy/feddg_ga.yaml` makes equal). w ← w + Σ aₖ·Δₖ.

Who was not in the round before has no gap: its weight waits, and only the others share theirs anew. Who
is new begins with a fair part. A loss is a hospital's own word: one that overstates it gains weight.
"""

from __future__ import annotations

import math

import numpy as np
from pydantic import Field

from federation.messages import Arrays
from federation.strategies import fedavg
from federation.strategies._single_updates import (
    Told,
    Updates,
    Weights,
    enter,
    figures,
    weighted_sum,
)
from federation.strategies.fedavg import step

__all__ = ["Options", "combine", "remember", "step"]

SINGLE_UPDATES = True
NEEDS = ("loss_before", "loss_after")

_WEIGHT, _LOSS = "weight/", "loss_after/"  # in its memory, before the hospitals' names


class Options(fedavg.Options):
    step_size: float = Field(default=0.2, gt=0, lt=1, description="d: of the weights, at first")


def combine(options: Options, updates: Updates, weights: Weights, told: Told) -> Arrays:
    adjusted = _adjusted(options, weights, told)
    present = {name: adjusted[name] for name in weights}
    mass = math.fsum(present.values())
    if mass == 0:
        present, mass = dict(weights), math.fsum(weights.values())
    return weighted_sum(updates, present, mass)


def remember(options: Options, weights: Weights, told: Told) -> Arrays:
    after = figures(told.loss_after, weights)
    adjusted = _adjusted(options, weights, told)
    return {_WEIGHT + name: np.array(weight) for name, weight in adjusted.items()} | {
        _LOSS + name: np.array(loss) for name, loss in after.items()
    }


def _adjusted(options: Options, weights: Weights, told: Told) -> dict[str, float]:
    """a of this round, of all hospitals that ever sent an update."""
    a = enter(_remembered(told, _WEIGHT), weights)
    after, before = _remembered(told, _LOSS), figures(told.loss_before, weights)
    compared = [name for name in weights if name in after]
    if not compared:
        return a
    scale = max(1.0, *(abs(loss) for name in compared for loss in (before[name], after[name])))
    gaps = np.array([before[name] / scale - after[name] / scale for name in compared])
    apart = gaps - gaps.mean()
    if not apart.any():
        return a
    step_size = (1 - told.round / told.rounds) * options.step_size
    old = np.array([a[name] for name in compared])
    moved = np.clip(old + step_size * apart / np.abs(apart).max(), 0, 1)
    if moved.any():
        moved *= old.sum() / moved.sum()
        a |= dict(zip(compared, moved.tolist(), strict=True))
    return a


def _remembered(told: Told, prefix: str) -> dict[str, float]:
    return {
        name.removeprefix(prefix): float(array)
        for name, array in told.memory.items()
        if name.startswith(prefix)
    }
