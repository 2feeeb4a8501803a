"""The last layer alone: for a network that was trained before, or for few patients.

All else stays as the global model has it, statistics of BatchNorm too, and is not trained.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn

from federation.codec.exchange import Exchange
from federation.privacy import fit
from federation.schema import Closed

LINEAR = True


class Options(Closed):
    pass


class _Head(Exchange):
    @contextlib.contextmanager
    def restrict(self, network: nn.Module, *, round: int) -> Iterator[None]:
        others = [
            parameter
            for name, parameter in network.named_parameters()
            if name not in self.shapes and parameter.requires_grad
        ]
        for parameter in others:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in others:
                parameter.requires_grad_(True)


def build(options: Options, network: nn.Module, seed: int) -> Exchange:
    own = set(fit.head(network))
    return _Head(network, own.__contains__)
