"""FedPer: FedAvg of the base layers; the last ones are each hospital's own, trained together with them
(Arivazhagan et al. 2019, "Federated Learning with Personalization Layers", arXiv:1912.00818, section 3,
algorithms 1 and 2). With no personal layers, or one hospital, it is FedAvg.
"""

from __future__ import annotations

from pydantic import Field
from torch import nn

from federation.schema import Experiment
from federation.strategies import fedavg
from federation.strategies._kept import chosen, require_body_trained, require_kept_apart
from federation.strategies.fedavg import step

__all__ = ["Options", "check", "keeps", "step"]


class Options(fedavg.Options):
    personal_layers: tuple[str, ...] | None = Field(
        default=None, description="layers or arrays by name, with * and ?; none: the last layer"
    )


def check(experiment: Experiment) -> None:
    require_kept_apart(experiment)
    require_body_trained(experiment)


def keeps(options: Options, network: nn.Module) -> frozenset[str]:
    return chosen(network, options.personal_layers, strategy="fedper")
