"""The mean over rounds of the global model: less noise than the last of them has, and no more ε.

w̄ ← d·w̄ + (1 − d)·w with d = min(decay, (1 + t) / (10 + t)), t counting from 0 (De et al. 2022,
arXiv:2204.13650, section 3), from the untrained model on. Rounds go on from w; w̄ is what a run releases.
"""

from __future__ import annotations

import numpy as np

from federation.messages import Arrays
from server_app.state import Checkpoint

_PREFIX = "mean/"


def split(memory: Arrays) -> tuple[Arrays, Arrays]:
    """What a run remembers: the strategy's part, and the mean by the model's names, if there is one."""
    strategy = {name: a for name, a in memory.items() if not name.startswith(_PREFIX)}
    mean = {name.removeprefix(_PREFIX): a for name, a in memory.items() if name not in strategy}
    return strategy, mean


def average(decay: float, done: Checkpoint, model: Arrays) -> Arrays:
    """The mean after the round that made `model` of `done`. Integers (counters) are the model's."""
    before = split(done.strategy)[1] or done.model
    d = min(decay, (1 + done.round) / (10 + done.round))
    mean: Arrays = {}
    for name, array in model.items():
        mean[name] = array
        if array.dtype.kind == "f":
            step = d * before[name].astype(np.float64) + (1 - d) * array.astype(np.float64)
            mean[name] = np.asarray(step).astype(array.dtype)
    return mean


def remembered(mean: Arrays) -> Arrays:
    """The mean under names that no strategy uses."""
    return {_PREFIX + name: array for name, array in mean.items()}
