"""What rules share whose layers stay at the hospitals.

Of such a layer a hospital sends the update 0, so the global model has it as it was drawn from the seed,
and means nothing there: the model is the global layers with a hospital's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

from torch import nn

from federation.privacy import fit
from federation.schema import ConfigError, Experiment

_NOT_WITH = {
    "adapters": "trains large weights in a subspace of each round's own, layers that stay among them",
    "head": "trains the last layer alone",
}


def require_kept_apart(experiment: Experiment) -> None:
    """Raises ConfigError: something that trains, or measures, other layers than the strategy means."""
    how = f"strategy={experiment.strategy.name}"
    exchange = experiment.codec.exchange.name if experiment.codec is not None else "all"
    if exchange in _NOT_WITH:
        raise ConfigError(
            f"{how} keeps layers at the hospitals, and codec.exchange={exchange} {_NOT_WITH[exchange]}: "
            "choose codec.exchange=all, or strategy=fedavg"
        )
    if experiment.evaluation.leave_out is not None:
        raise ConfigError(
            f"{how} keeps layers at the hospitals, and evaluation.leave_out names one that never trains "
            "and has none: choose strategy=fedavg, or leave out nobody"
        )


def require_body_trained(experiment: Experiment) -> None:
    """Raises ConfigError: privacy trains just the layers that stay: nothing is learnt together."""
    if experiment.privacy is not None and experiment.privacy.trainable == "head":
        raise ConfigError(
            f"strategy={experiment.strategy.name} keeps the head at the hospitals, and "
            "privacy.trainable=head trains nothing else: choose privacy.trainable=all, or "
            "strategy=local_only"
        )


def chosen(network: nn.Module, layers: Sequence[str] | None, *, strategy: str) -> frozenset[str]:
    """Names of the arrays in some layers.

    Args:
        layers: names of layers or arrays, with `*` and `?`; None: the last layer.

    Raises:
        ConfigError: a name that fits none, or names that leave nothing to learn together.
    """
    names = list(network.state_dict())
    found = set(fit.head(network)) if layers is None else set()
    for pattern in layers or ():
        fitting = {n for n in names if fnmatchcase(n, pattern) or fnmatchcase(n, f"{pattern}.*")}
        if not fitting:
            known = sorted({name.rpartition(".")[0] or name for name in names})
            close = get_close_matches(pattern, known, n=1)
            hint = (
                f"did you mean {close[0]!r}?" if close else f"its last is {fit.head(network)[0]!r}"
            )
            raise ConfigError(
                f"strategy.personal_layers: the model has no layer {pattern!r}, {hint}"
            )
        found |= fitting
    if not {name for name, _ in network.named_parameters()} - found:
        raise ConfigError(
            f"strategy={strategy}: strategy.personal_layers leaves no layer of the model to learn "
            "together: name fewer, or choose strategy=local_only"
        )
    return frozenset(found)
