"""Every parameter, and every buffer of real numbers."""

from __future__ import annotations

from torch import nn

from federation.codec.exchange import Exchange
from federation.schema import Closed

LINEAR = True


class Options(Closed):
    pass


def build(options: Options, network: nn.Module, seed: int) -> Exchange:
    return Exchange(network, lambda name: True)
