"""Each hospital alone: everything stays, nothing is learnt together. The baseline beside a federation,
with the same steps, the same held-out patients and the same report.
"""

from __future__ import annotations

from torch import nn

from federation.schema import Experiment
from federation.strategies import fedavg
from federation.strategies._kept import require_kept_apart
from federation.strategies.fedavg import step

__all__ = ["Options", "check", "keeps", "step"]


class Options(fedavg.Options):
    pass


def check(experiment: Experiment) -> None:
    require_kept_apart(experiment)


def keeps(options: Options, network: nn.Module) -> frozenset[str]:
    return frozenset(network.state_dict())
