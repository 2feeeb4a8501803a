"""Ditto's personal model: each gradient gets λ·(v − w), w the global model as it came
(Li et al. 2021, arXiv:2012.04221, algorithm 1).
"""

from __future__ import annotations

from torch import Tensor, nn

from client_app.training.local import Local, Personal, Worked, recalled
from federation import models, strategies
from federation.messages import Arrays
from federation.schema import Experiment


def build(experiment: Experiment, network: nn.Module, memory: Arrays, down: Arrays) -> Local:
    """Before this hospital's first round its model is the global one as it came."""
    weight = strategies.options(experiment).personal_weight
    received = {name: p.detach().clone() for name, p in network.named_parameters()}
    came = {name: array.copy() for name, array in models.arrays_of(network).items()}
    own = recalled(memory, came)

    def pull(name: str, value: Tensor) -> Tensor:
        towards: Tensor = weight * (value - received[name].to(value.device))
        return towards

    def remember(worked: Worked) -> Arrays:
        return worked.personal

    return Local(personal=Personal(came if own is None else own, pull), remember=remember)
