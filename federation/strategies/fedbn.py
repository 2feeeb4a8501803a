"""FedBN: FedAvg of all but the normalisation layers, which each hospital trains and keeps
(Li et al. 2021, "FedBN: Federated Learning on Non-IID Features via Local Batch Normalization",
arXiv:2102.07623, section 3.2 and algorithm 1).

What stays is all that these layers hold: scales, shifts, running statistics and counters, of batch,
group, layer and instance normalisation.
"""

from __future__ import annotations

from torch import nn

from federation.codec.exchange.all_but_normalisation import normalisation
from federation.schema import ConfigError, Experiment
from federation.strategies._kept import require_kept_apart
from federation.strategies.fedavg import Options, step

__all__ = ["Options", "check", "keeps", "step"]


def check(experiment: Experiment) -> None:
    require_kept_apart(experiment)


def keeps(options: Options, network: nn.Module) -> frozenset[str]:
    """Raises ConfigError: the network normalises nothing, or only without numbers of its own."""
    found = frozenset(normalisation(network))
    if not found:
        raise ConfigError(
            "strategy=fedbn keeps normalisation layers at the hospitals, and the model has none that "
            "learn: choose strategy=fedavg, or a model with model.norm=group or batch"
        )
    return found
