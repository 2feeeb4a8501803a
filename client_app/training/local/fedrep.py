"""FedRep: the head stays; it is trained first, and the representation after it under the new head
(Collins et al. 2021, arXiv:2102.07078, algorithm 1).
"""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from client_app.training.local import Local, _layers
from federation import strategies
from federation.messages import Arrays
from federation.schema import Experiment


def build(experiment: Experiment, network: nn.Module, memory: Arrays, down: Arrays) -> Local:
    local = _layers.build(experiment, network, memory, down)
    share = strategies.options(experiment).head_share
    parameters = frozenset(name for name, _ in network.named_parameters())
    head = parameters & local.kept.keys()
    return replace(local, phases=((head, share), (parameters - head, 1 - share)))
