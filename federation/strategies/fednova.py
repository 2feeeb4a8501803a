"""FedNova: updates are averaged per local step, so that who makes more steps pulls no harder
(Wang et al. 2020, "Tackling the Objective Inconsistency Problem", equations 6 and 8).

    w ← w + τ_eff · Σ pₖ·Δₖ/‖aₖ‖₁,   τ_eff = Σ pₖ·‖aₖ‖₁

pₖ the hospitals' weights and ‖aₖ‖₁ how far a hospital's optimiser goes with its steps along a constant
gradient: τₖ for SGD; momentum and the proximal term change it (section 4). With equal steps it is
FedAvg. Running statistics and counters are averaged.

A hospital's policy may cut `training.local_steps` (`policy.most_local_steps`), so τₖ is what it tells.
Under patient-level privacy a hospital does all steps or refuses, and this rule would be FedAvg.
"""

from __future__ import annotations

import math

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

__all__ = ["Options", "check", "combine", "reach", "step"]

SINGLE_UPDATES = True
NEEDS = ("steps",)


def check(experiment: Experiment) -> None:
    if experiment.training.optimizer != "sgd":
        raise ConfigError(
            "strategy=fednova knows how far SGD goes in a step, and training.optimizer is "
            f"{experiment.training.optimizer}: set training.optimizer=sgd, or choose strategy=fedavg"
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


def reach(training: Training, steps: int, learning_rate: float) -> float:
    """‖a‖₁: how far SGD gets along a constant unit gradient, in learning rates."""
    gone = velocity = 0.0
    pull_back = learning_rate * training.proximal_mu
    for _ in range(steps):
        velocity = training.momentum * velocity + 1 - pull_back * gone
        gone += velocity
    return gone
