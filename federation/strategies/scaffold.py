"""SCAFFOLD: local steps are corrected by what the hospital's gradients differ from all hospitals'
(Karimireddy et al. 2020, arXiv:1910.06378, algorithm 1, option II).

    at the hospital   y ← y − η·(g(y) + c − cₖ),   cₖ ← cₖ − c − Δₖ/(K·η)       (Δₖ = y − w)
    here              w ← w + η_g·Δ,   c ← c + |S|/N · (−c − Δ/(K·η))

c comes down with the model, cₖ stays at the hospital. The paper has the changes of cₖ sent up too; their
mean over S is −c − Δ/(K·η) with Δ the mean update, so nothing more travels and Δ may be a sum in secret.
All of c begins as 0. Of all hospitals that take part, ever, the fixed point is the optimum of their mean
loss, however they differ and however many local steps they do; with one hospital it is FedAvg.

K·η is that of the experiment for everybody: of plain SGD the steps times the round's learning rate, with
momentum or a proximal term how far these get along a constant gradient (`fednova.reach`). A hospital
whose policy cuts its steps to K′ keeps cₖ ← (1 − K′/K)·(cₖ − c) + K′/K·gₖ: it learns it slower, and the
sums stay equal, which they would not by its own K′. Weight decay counts as part of the loss; with
gradient clipping gₖ is the mean clipped gradient, and the fixed point is where these cancel.

Under patient-level privacy cₖ is made of updates that have their noise: it costs no ε, and has K steps'
noise in it, which mostly comes back with the other sign.
"""

from __future__ import annotations

import numpy as np

from federation.messages import Arrays
from federation.schema import ConfigError, Experiment, Training
from federation.strategies import DOWN, Turn, fedavg
from federation.strategies._control_variates import require_same_sums
from federation.strategies.fedavg import Options
from federation.strategies.fednova import reach

__all__ = ["BY_TURN", "Options", "begin", "check", "distance", "step"]

BY_TURN = True


def check(experiment: Experiment) -> None:
    if experiment.training.optimizer != "sgd":
        raise ConfigError(
            "strategy=scaffold reads mean gradients off SGD's steps, and training.optimizer is "
            f"{experiment.training.optimizer}: set training.optimizer=sgd, or choose strategy=feddyn"
        )
    require_same_sums(experiment)


def begin(options: Options, model: Arrays) -> Arrays:
    """c = 0."""
    return {DOWN + name: np.zeros_like(w) for name, w in model.items()}


def step(
    options: Options, model: Arrays, update: Arrays, state: Arrays, turn: Turn
) -> tuple[Arrays, Arrays]:
    gone = distance(turn.training, turn.learning_rate)
    after = {}
    for name in model:
        c = state[DOWN + name]
        moved = c + turn.share * (-c - update[name] / gone)
        after[DOWN + name] = np.asarray(moved).astype(c.dtype)
    return fedavg.step(options, model, update, {})[0], after


def distance(training: Training, learning_rate: float) -> float:
    """K·η: how far a round's steps get along a constant unit gradient.

    Args:
        training: the experiment's, not what a hospital's policy left of it.
    """
    return learning_rate * reach(training, training.local_steps, learning_rate)
