"""Ditto: FedAvg, and at each hospital a model of its own that is held near the global one
(Li et al. 2021, "Ditto: Fair and Robust Federated Learning Through Personalization", arXiv:2012.04221,
equation 1 and algorithm 1): v ← v − η·(∇F(v) + λ·(v − w)), w the global model as it came.

The personal model has as many steps a round, on the same batches, as the update that is sent. It is
measured beside the global one, under the names `personal_METRIC`. λ = 0 is training alone; a large λ
keeps v at w.
"""

from __future__ import annotations

from pydantic import Field

from federation.schema import ConfigError, Experiment
from federation.strategies import fedavg
from federation.strategies.fedavg import step

__all__ = ["Options", "check", "step"]

PERSONAL = True


class Options(fedavg.Options):
    personal_weight: float = Field(
        default=0.1, ge=0, le=1000, description="λ: of the distance to the global model"
    )


def check(experiment: Experiment) -> None:
    if experiment.privacy is not None:
        raise ConfigError(
            "strategy=ditto trains and measures a personal model on patients beside what "
            "privacy=patient_dp charges for: choose strategy=fedper, fedrep or fedbn, whose layers stay "
            "at the hospitals, or privacy=none"
        )
    training = experiment.training
    weight = Options.model_validate(experiment.strategy.options).personal_weight
    if training.optimizer == "sgd" and training.learning_rate * weight > 1:
        raise ConfigError(
            f"strategy.personal_weight={weight:g} times training.learning_rate="
            f"{training.learning_rate:g} is above 1: each step would take the personal model past the "
            "global one. Lower one of them"
        )
