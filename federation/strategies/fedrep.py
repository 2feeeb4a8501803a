"""FedRep: a representation learnt together under heads of each hospital's own (Collins et al. 2021,
"Exploiting Shared Representations for Personalized Federated Learning", arXiv:2102.07078, algorithm 1).

In each round a hospital first trains its head under the representation that came, then the
representation under its new head; `head_share` of the local steps go to the head. The representation
moves as in FedAvg.
"""

from __future__ import annotations

from pydantic import Field
from torch import nn

from federation.schema import ConfigError, Experiment
from federation.strategies import fedavg
from federation.strategies._kept import chosen, require_body_trained, require_kept_apart
from federation.strategies.fedavg import step

__all__ = ["Options", "check", "keeps", "step"]


class Options(fedavg.Options):
    personal_layers: tuple[str, ...] | None = Field(
        default=None,
        min_length=1,
        description="layers or arrays by name, with * and ?; none: the last layer",
    )
    head_share: float = Field(
        default=0.5,
        gt=0,
        lt=1,
        description="of the local steps, spent on the head, which come first",
    )


def check(experiment: Experiment) -> None:
    require_kept_apart(experiment)
    require_body_trained(experiment)
    steps = experiment.training.local_steps
    options = Options.model_validate(experiment.strategy.options)
    if not 0 < round(steps * options.head_share) < steps:
        raise ConfigError(
            f"strategy.head_share={options.head_share:g} of training.local_steps={steps} leaves no step "
            "for the head, or none for all else: more steps, or another share"
        )


def keeps(options: Options, network: nn.Module) -> frozenset[str]:
    return chosen(network, options.personal_layers, strategy="fedrep")
