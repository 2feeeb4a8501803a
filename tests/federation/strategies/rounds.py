"""Rules and rounds of a small federation on arrays alone: each hospital has a convex loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from federation import strategies
from federation.messages import Arrays, Trained
from federation.schema import Experiment, parse
from federation.strategies import Strategy, Told
from tests.federation.test_schema import EXPERIMENT

Array = NDArray[Any]


def rule(
    name: str,
    *,
    training: Mapping[str, Any] | None = None,
    least: int = 30,
    weighting: str = "equal",
    **options: Any,
) -> Strategy:
    return strategies.build(described(name, training, least, weighting, **options))


def described(
    name: str,
    training: Mapping[str, Any] | None = None,
    least: int = 30,
    weighting: str = "equal",
    **options: Any,
) -> Experiment:
    content = EXPERIMENT | {
        "strategy": {"name": name, **options},
        "training": EXPERIMENT["training"] | {"optimizer": "sgd"} | dict(training or {}),
        "participation": {"least": least, "deadline": 10, "weighting": weighting},
    }
    return parse(Experiment, content)


def told(round_: int = 1, rounds: int = 10, **figures: Any) -> Told:
    training = described("fedavg", figures.pop("training", None)).training
    return Told(round_, rounds, training, **figures)


def combined(
    strategy: Strategy, updates: Mapping[str, Arrays], weights: Mapping[str, float] | None = None
) -> Arrays:
    """By a rule without memory and figures."""
    return strategies.combine(strategy, updates, weights or dict.fromkeys(updates, 1.0), told())[0]


@pytest.fixture
def telling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hospitals tell all that a rule may ask for, as they will."""

    @dataclass(frozen=True)
    class Telling(Trained):
        steps: int | None = None
        loss_before: float | None = None
        loss_after: float | None = None

    monkeypatch.setattr(strategies, "Trained", Telling)


@dataclass(frozen=True)
class Quadratic:
    """F(w) = ½ (w − c)ᵀ·diag(a)·(w − c)."""

    c: Array
    a: Array

    def loss(self, w: Array) -> float:
        return float(0.5 * np.sum(self.a * (w - self.c) ** 2))

    def gradient(self, w: Array) -> Array:
        gradient: Array = self.a * (w - self.c)
        return gradient


def descend(
    gradient: Callable[[Array], Array],
    w: Array,
    rate: float,
    steps: int,
    *,
    momentum: float = 0.0,
    mu: float = 0.0,
) -> Array:
    """Local steps as PyTorch's SGD does them; the update."""
    at, velocity = w.copy(), np.zeros_like(w)
    for _ in range(steps):
        velocity = momentum * velocity + gradient(at) + mu * (at - w)
        at = at - rate * velocity
    update: Array = at - w
    return update


def federate(
    strategy: Strategy,
    hospitals: Mapping[str, Quadratic],
    w: Array,
    *,
    rounds: int,
    rate: float,
    steps: Mapping[str, int] | int = 1,
    weights: Mapping[str, float] | None = None,
    training: Mapping[str, Any] | None = None,
) -> tuple[Array, Arrays]:
    """Rounds of full gradients; the last model, and what the rule remembers."""
    training = {"learning_rate": rate} | dict(training or {})
    options = {"momentum": training.get("momentum", 0.0), "mu": training.get("proximal_mu", 0.0)}
    taus = dict.fromkeys(hospitals, steps) if isinstance(steps, int) else dict(steps)
    training["local_steps"] = max(taus.values())
    model, state, memory = {"w": w}, {}, {}
    first = told(1, rounds, training=training)
    for round_ in range(1, rounds + 1):
        at = model["w"]
        updates = {
            name: {"w": descend(f.gradient, at, rate, taus[name], **options)}
            for name, f in hospitals.items()
        }
        losses = {name: f.loss(at) for name, f in hospitals.items()}
        after = {name: f.loss(at + updates[name]["w"]) for name, f in hospitals.items()}
        figures = replace(
            first,
            round=round_,
            loss=losses,
            loss_before=losses,
            loss_after=after,
            steps=taus,
            memory=memory,
        )
        mean, memory = strategies.combine(
            strategy, updates, weights or dict.fromkeys(hospitals, 1.0), figures
        )
        model, state = strategies.move(strategy, model, mean, state, frozenset({"w"}))
    return model["w"], memory
