"""The local part of rules whose layers stay here: they go in, are trained with all else, and stay."""

from __future__ import annotations

from torch import nn

from client_app.training.local import Local, Worked, recalled
from federation import models, strategies
from federation.messages import Arrays
from federation.schema import Experiment


def build(experiment: Experiment, network: nn.Module, memory: Arrays, down: Arrays) -> Local:
    """Before this hospital's first round its layers are as they came."""
    names = strategies.kept_at_hospitals(experiment, network)
    came = models.arrays_of(network)
    came = {name: came[name].copy() for name in sorted(names)}
    kept = recalled(memory, came)

    def remember(worked: Worked) -> Arrays:
        return {name: worked.model[name] for name in came}

    return Local(kept=came if kept is None else kept, remember=remember)
