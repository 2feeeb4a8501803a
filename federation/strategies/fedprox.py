"""FedProx: FedAvg here, and at the hospital a proximal term µ/2·‖w − w_global‖² in the loss
(Li et al. 2020, algorithm 2). The term is `training.proximal_mu`, which
configs/strategy/fedprox.yaml sets; this file refuses an experiment without it.
"""

from __future__ import annotations

from federation.schema import ConfigError, Experiment
from federation.strategies.fedavg import Options, step

__all__ = ["Options", "check", "step"]


def check(experiment: Experiment) -> None:
    if experiment.training.proximal_mu == 0:
        raise ConfigError(
            "strategy=fedprox needs training.proximal_mu above 0; with 0 it is fedavg. "
            "Set training.proximal_mu=0.01, or choose strategy=fedavg"
        )
