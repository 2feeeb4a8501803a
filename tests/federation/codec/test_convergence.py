"""Training over the codec reaches what float32 reaches; without the feedback it does not.

Logistic regression with L2 over five hospitals that differ, one gradient step a round. Their updates do
not vanish at the common optimum, only the mean does: what is lost of single updates shows.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import nn

from federation.codec.sums import Sum
from tests.federation.codec.networks import chain_of, integers, part, training

HOSPITALS, PATIENTS, FEATURES = 5, 200, 40
RATE, L2 = 0.5, 0.05
Hospital = tuple[NDArray[np.float64], NDArray[np.float64]]


@cache
def hospitals() -> list[Hospital]:
    random = np.random.default_rng(3)
    truth = random.normal(size=FEATURES)
    made = []
    for _ in range(HOSPITALS):
        x = random.normal(size=(PATIENTS, FEATURES)) + random.normal(0, 0.5, FEATURES)
        chance = 1 / (1 + np.exp(-(x @ truth + random.normal())))
        made.append((x, (random.random(PATIENTS) < chance).astype(float)))
    return made


def logits(weights: NDArray[np.float64], x: NDArray[np.float64]) -> NDArray[np.float64]:
    return x @ weights[:-1] + weights[-1]


def update(weights: NDArray[np.float64], hospital: Hospital) -> NDArray[np.float64]:
    x, y = hospital
    wrong = 1 / (1 + np.exp(-logits(weights, x))) - y
    return -RATE * (np.append(x.T @ wrong, wrong.sum()) / len(y) + L2 * weights)


def loss(weights: NDArray[np.float64]) -> float:
    losses = [np.logaddexp(0, logits(weights, x)) - y * logits(weights, x) for x, y in hospitals()]
    return float(np.mean(losses) + L2 / 2 * weights @ weights)


@cache
def least_loss() -> float:
    """By SciPy, which knows nothing of rounds or hospitals."""
    found = minimize(loss, np.zeros(FEATURES + 1), method="BFGS", options={"gtol": 1e-7})
    return float(found.fun)


def excess(rounds: int, *, remember: bool = True, **slots: Any) -> float:
    """Loss above the least after training over this codec."""
    chain = chain_of(nn.Linear(FEATURES, 1), **slots)
    scales = chain.first_scales(training(optimizer="sgd", learning_rate=RATE, local_steps=1))
    residuals: list[NDArray[np.float32] | None] = [None] * HOSPITALS
    weights = np.zeros(FEATURES + 1)
    for round in range(1, rounds + 1):
        total = Sum(chain, scales, round=round)
        for at, hospital in enumerate(hospitals()):
            made = update(weights, hospital).astype(np.float32)
            encoded = chain.encode(
                {"weight": made[None, :-1], "bias": made[-1:]},
                residuals[at],
                scales,
                round=round,
                seed=round * HOSPITALS + at,
            )
            residuals[at] = encoded.residual if remember else None
            total.add(encoded, 1)
        mean, scales = total.mean()
        weights = weights + np.append(mean["weight"][0], mean["bias"])
    return loss(weights) - least_loss()


@pytest.mark.parametrize(
    ("slots", "tolerance"),
    [
        ({"quantise": integers(8)}, 1e-6),
        ({"quantise": integers(4)}, 1e-4),
        ({"quantise": integers(2)}, 1e-3),
        ({"sparsify": part("rand_k", keep=0.2)}, 1e-9),
        ({"sparsify": part("rand_k", keep=0.2), "quantise": integers(8)}, 1e-4),
        ({"sparsify": part("top_k", keep=0.1)}, 2e-3),
        ({"sparsify": part("top_k", keep=0.1), "quantise": integers(4)}, 2e-3),
        ({"sparsify": part("rand_k", keep=0.2), "error_feedback": False}, 1e-9),
    ],
)
def test_the_optimum_is_reached(slots: dict[str, Any], tolerance: float) -> None:
    """To a loss of `tolerance` above the least, which is 0.37; at the start it is 0.32 above."""
    assert loss(np.zeros(FEATURES + 1)) - least_loss() > 0.3
    assert -1e-9 < excess(300, **slots) < tolerance


def test_without_the_feedback_top_k_ends_somewhere_else() -> None:
    slots = {"sparsify": part("top_k", keep=0.1)}
    forgetful = excess(300, remember=False, **slots)
    assert forgetful > 5e-3
    assert excess(600, remember=False, **slots) > 5e-3  # more rounds do not help
    assert excess(600, **slots) < forgetful / 10


def test_without_the_feedback_unscaled_rand_k_is_far_behind() -> None:
    slots = {"sparsify": part("rand_k", keep=0.2)}
    assert excess(300, remember=False, **slots) > 1e-5 > 1e4 * excess(300, **slots)
