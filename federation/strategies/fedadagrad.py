"""FedAdagrad: v ← v + Δ² (Reddi et al. 2021, algorithm 2)."""

from __future__ import annotations

from federation.messages import Arrays
from federation.strategies._adaptive import Array, Options, adaptive_step


def step(options: Options, model: Arrays, update: Arrays, state: Arrays) -> tuple[Arrays, Arrays]:
    def second_moment(v: Array, squared: Array) -> Array:
        moment: Array = v + squared
        return moment

    return adaptive_step(options, model, update, state, second_moment)
