"""What FedAdagrad, FedAdam and FedYogi share (Reddi et al. 2021, "Adaptive Federated Optimization",
algorithm 2): m ← β₁·m + (1 − β₁)·Δ, a second moment v by each rule's own line, w ← w + η·m/(√v + τ).

As in the paper m starts at 0, v at τ², and neither is corrected for bias.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from federation.messages import Arrays
from federation.schema import Closed

Array = NDArray[Any]


class Options(Closed):
    server_learning_rate: float = Field(default=0.01, gt=0, le=10)
    beta_1: float = Field(default=0.9, ge=0, lt=1)
    beta_2: float = Field(default=0.99, ge=0, lt=1)
    tau: float = Field(default=1e-3, gt=0, le=1, description="degree of adaptivity")


def adaptive_step(
    options: Options,
    model: Arrays,
    update: Arrays,
    state: Arrays,
    second_moment: Callable[[Array, Array], Array],
) -> tuple[Arrays, Arrays]:
    """One step; `second_moment(v, Δ²)` gives the new v, elementwise."""
    stepped: Arrays = {}
    remembered: Arrays = {}
    for name, w in model.items():
        delta = update[name]
        m = state.get(f"m/{name}", np.zeros_like(w))
        v = state.get(f"v/{name}", np.full_like(w, options.tau**2))
        m = options.beta_1 * m + (1 - options.beta_1) * delta
        v = second_moment(v, np.square(delta))
        stepped[name] = w + options.server_learning_rate * m / (np.sqrt(v) + options.tau)
        remembered[f"m/{name}"], remembered[f"v/{name}"] = m, v
    return stepped, remembered
