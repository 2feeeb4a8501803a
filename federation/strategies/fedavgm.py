"""FedAvgM: v ← β·v + Δ, w ← w + η·v (Hsu, Qi and Brown 2019, section 4.3)."""

from __future__ import annotations

from pydantic import Field

from federation.messages import Arrays
from federation.schema import Closed


class Options(Closed):
    server_learning_rate: float = Field(default=1.0, gt=0, le=10)
    server_momentum: float = Field(default=0.9, ge=0, lt=1)


def step(options: Options, model: Arrays, update: Arrays, state: Arrays) -> tuple[Arrays, Arrays]:
    beta, rate = options.server_momentum, options.server_learning_rate
    velocity = {
        name: beta * state[name] + delta if state else delta for name, delta in update.items()
    }
    return {name: w + rate * velocity[name] for name, w in model.items()}, velocity
