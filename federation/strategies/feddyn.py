"""FedDyn: each hospital's loss gets a linear and a quadratic term, so that the optimum of their mean
becomes that of each (Acar et al. 2021, "Federated Learning Based on Dynamic Regularization",
arXiv:2111.04263, algorithm 1).

    at the hospital   y ← argmin Fₖ(y) − ⟨gₖ, y⟩ + α/2·‖y − w‖²,   gₖ ← gₖ − α·Δₖ    (Δₖ = y − w)
    here              h ← h − α·|S|/N·Δ,   w ← w + Δ − h/α

Δ the mean update; gₖ and h begin as 0, and h is the mean of all gₖ. Nothing comes down beside the model
and nothing goes up beside the update. The argmin is `training.local_steps` steps of any optimiser: the
fixed point, where no hospital moves and h = 0, is the optimum of the mean loss whatever their number.

It is not FedAvg, with no α: −h/α is the sum of the updates so far, so the model goes on the way that it
went, and the smaller α is beside the losses' curvature, the longer it swings. Noise, of patient-level
privacy too, is summed as the updates are: gₖ is made of these and costs no ε.
"""

from __future__ import annotations

import numpy as np
from pydantic import Field

from federation.messages import Arrays
from federation.schema import Closed, Experiment
from federation.strategies import Turn
from federation.strategies._control_variates import require_same_sums

__all__ = ["BY_TURN", "Options", "begin", "check", "step"]

BY_TURN = True


class Options(Closed):
    alpha: float = Field(
        default=0.1, gt=0, le=100, description="α: weight of the distance to the global model"
    )


def check(experiment: Experiment) -> None:
    require_same_sums(experiment)


def begin(options: Options, model: Arrays) -> Arrays:
    """h = 0."""
    return {name: np.zeros_like(w) for name, w in model.items()}


def step(
    options: Options, model: Arrays, update: Arrays, state: Arrays, turn: Turn
) -> tuple[Arrays, Arrays]:
    alpha = options.alpha
    h = {
        name: np.asarray(state[name] - alpha * turn.share * update[name]).astype(w.dtype)
        for name, w in model.items()
    }
    return {name: w + update[name] - h[name] / alpha for name, w in model.items()}, h
