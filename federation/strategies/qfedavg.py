"""q-FedAvg: hospitals with a larger loss pull harder (Li et al. 2020, "Fair Resource Allocation in
Federated Learning", equation 2 and algorithm 2).

It minimises Σ pₖ/(q+1) · Fₖ(w)^(q+1), pₖ the hospitals' weights: q = 0 is FedAvg, a large q comes near
to the worst hospital alone. With Δₖ the update, so that the paper's Δwₖ is −L·Δₖ,

    w ← w + Σ pₖ·Fₖ^q·L·Δₖ / Σ pₖ·hₖ,   hₖ = q·Fₖ^(q−1)·‖L·Δₖ‖² + L·Fₖ^q

where L is the inverse of the step size that is best for q = 0: `lipschitz`, or one over the round's
learning rate. That is the paper's for SGD. Other optimisers step by about η whatever the gradient, so
that L·Δₖ is no gradient, hₖ is far too large, and the model hardly moves: they need a `lipschitz`.

The paper samples hospitals with chance pₖ; here all are asked and pₖ stands in the sums.

Fₖ is `Told.received_loss`: exact where hospitals tell it, else the mean loss of their local steps. A
loss that is not positive counts as 10⁻¹⁰. Running statistics and counters are averaged with weights
pₖ·Fₖ^q. A loss is a hospital's own word: one that overstates it takes the model, so this is no rule
against bad updates.
"""

from __future__ import annotations

import math

from pydantic import Field

from federation.messages import Arrays
from federation.schema import ConfigError, Experiment
from federation.strategies import fedavg
from federation.strategies._single_updates import (
    Told,
    Updates,
    Weights,
    norms,
    others,
    parameters,
    shares,
    weighted_sum,
)
from federation.strategies.fedavg import step

__all__ = ["Options", "check", "combine", "step"]

SINGLE_UPDATES = True
NEEDS = ("loss",)
PREFERS = ("loss_before",)
UNSUMMED = "weighs updates by powers of losses, which have no bound that integers could be made for"
_SMALLEST_LOSS = 1e-10


class Options(fedavg.Options):
    q: float = Field(default=1.0, ge=0, le=20, description="how much fairness; 0: FedAvg")
    lipschitz: float | None = Field(
        default=None, gt=0, description="L; none: one over the round's learning rate, of sgd"
    )


def check(experiment: Experiment) -> None:
    options = Options.model_validate(experiment.strategy.options)
    if experiment.training.optimizer != "sgd" and options.lipschitz is None:
        raise ConfigError(
            "strategy=qfedavg takes L for one over SGD's learning rate, and training.optimizer is "
            f"{experiment.training.optimizer}, with which the model would hardly move: set "
            "training.optimizer=sgd, or strategy.lipschitz=NUMBER"
        )


def combine(options: Options, updates: Updates, weights: Weights, told: Told) -> Arrays:
    q = options.q
    lipschitz = 1 / told.learning_rate if options.lipschitz is None else options.lipschitz
    losses = {name: max(loss, _SMALLEST_LOSS) for name, loss in told.received_loss(weights).items()}
    largest = max(losses.values())
    # Both sums divided by L and by the largest Fₖ^q, so that no power leaves the range of floats.
    relative = {name: loss / largest for name, loss in losses.items()}
    pull = {name: p * relative[name] ** q for name, p in shares(weights).items()}
    trained = parameters(updates)
    divisor = math.fsum(
        pull[name] * (1 + q * lipschitz * (norm / losses[name]) * norm)
        for name, norm in norms(trained).items()
    )
    return {
        **weighted_sum(trained, pull, divisor),
        **weighted_sum(others(updates), pull, math.fsum(pull.values())),
    }
