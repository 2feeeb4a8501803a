"""FedNova: updates are averaged per local step, so that who makes more steps pulls no harder
(Wang et al. 2020, "Tackling the Objective Inconsistency Problem", equations 6 and 8).

    w ← w + τ_eff · Σ pₖ·Δₖ/‖aₖ‖₁,   τ_eff = Σ pₖ·‖aₖ‖₁

pₖ the hospitals' weights and ‖aₖ‖₁ how far a hospital's optimiser goes with its steps along a constant
gradient: τₖ for SGD; momentum and the proximal term change it (section 4). With equal steps it is
FedAvg. Running statistics and counters are averaged.

A hospital's policy may cut `training.local_steps` (`policy.most_local_steps`), so τₖ is what it tells.

Both sums can be made in secret. With cₖ = ‖aₖ‖₁ / the largest ‖a‖₁ of as many steps as were asked for,
a hospital divides its parameters by its own cₖ, so that they are as long as after all steps and fill the
codec's range like the others'; Σ pₖ·cₖ is one of the summed figures, and shortens the mean again. It is
at most 1, so that no hospital's word makes a step longer than all steps would.

Under patient-level privacy a hospital does all steps or refuses, and this rule would be FedAvg.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from federation.messages import Arrays
from federation.schema import ConfigError, Experiment, Training
from federation.strategies._single_updates import (
    NotCombined,
    Told,
    Updates,
    Weights,
    figures,
    others,
    parameters,
    shares,
    weighted_sum,
)
from federation.strategies.fedavg import Options, step

__all__ = ["Options", "check", "combine", "normaliser", "reach", "step"]

SINGLE_UPDATES = True
NEEDS = ("steps",)


def check(experiment: Experiment) -> None:
    if experiment.training.optimizer != "sgd":
        raise ConfigError(
            "strategy=fednova knows how far SGD goes in a step, and training.optimizer is "
            f"{experiment.training.optimizer}: set training.optimizer=sgd, or choose strategy=fedavg"
        )
    training = experiment.training
    rates = {
        training.learning_rate * training.learning_rate_decay**gone
        for gone in range(experiment.rounds if training.proximal_mu else 1)
    }
    if min(reach for rate in rates for reach in _reaches(training, rate)) <= 0:
        raise ConfigError(
            f"training.proximal_mu={training.proximal_mu:g} throws local steps back to where they began "
            f"or further, and strategy=fednova divides by how far they get: lower training.proximal_mu, "
            f"or training.learning_rate={training.learning_rate:g}"
        )


def combine(options: Options, updates: Updates, weights: Weights, told: Told) -> Arrays:
    steps = figures(told.steps, weights)
    if any(not 1 <= count <= told.training.local_steps for count in steps.values()):
        raise NotCombined("a hospital tells of no steps, or of more than training.local_steps")
    reached = {
        name: reach(told.training, round(count), told.learning_rate)
        for name, count in steps.items()
    }
    parts = shares(weights)
    together = math.fsum(parts[name] * reached[name] for name in parts)
    per_step = {name: together * part / reached[name] for name, part in parts.items()}
    return {
        **weighted_sum(parameters(updates), per_step),
        **weighted_sum(others(updates), weights, math.fsum(weights.values())),
    }


def normaliser(training: Training, steps: int, learning_rate: float) -> float:
    """cₖ, above 0 and at most 1: what a hospital that did so many steps divides its update by.

    Raises:
        ValueError: no steps, or more than were asked for.
    """
    if not 1 <= steps <= training.local_steps:
        raise ValueError(f"{steps} steps, of {training.local_steps} that were asked for")
    reaches = list(_reaches(training, learning_rate))
    return reaches[steps - 1] / max(reaches)


def reach(training: Training, steps: int, learning_rate: float) -> float:
    """‖a‖₁: how far SGD gets along a constant unit gradient, in learning rates."""
    *_, last = _reaches(training.model_copy(update={"local_steps": steps}), learning_rate)
    return last


def _reaches(training: Training, learning_rate: float) -> Iterator[float]:
    """‖a‖₁ after each of the local steps."""
    gone = velocity = 0.0
    pull_back = learning_rate * training.proximal_mu
    for _ in range(training.local_steps):
        velocity = training.momentum * velocity + 1 - pull_back * gone
        gone += velocity
        yield gone
