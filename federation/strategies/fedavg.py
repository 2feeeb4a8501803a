"""FedAvg: w ← w + Δ, Δ the weighted mean update (McMahan et al. 2017, algorithm 1)."""

from __future__ import annotations

from pydantic import Field

from federation.messages import Arrays
from federation.schema import Closed


class Options(Closed):
    server_learning_rate: float = Field(default=1.0, gt=0, le=10)


def step(options: Options, model: Arrays, update: Arrays, state: Arrays) -> tuple[Arrays, Arrays]:
    rate = options.server_learning_rate
    return {name: w + rate * update[name] for name, w in model.items()}, state
