"""All but the normalisation layers, which stay as the global model has them.

Scales, shifts and running statistics of these layers tell most of how a hospital's images look. A
hospital still trains them, and what it trained is gone after the round: what FedBN (Li et al. 2021,
arXiv:2102.07623) keeps at home is kept by a strategy, not by a codec.
"""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from federation.codec.exchange import Exchange
from federation.schema import Closed

LINEAR = True
_LAYERS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)  # _NormBase: Batch and InstanceNorm


class Options(Closed):
    pass


def build(options: Options, network: nn.Module, seed: int) -> Exchange:
    own = normalisation(network)
    return Exchange(network, lambda name: name not in own)


def normalisation(network: nn.Module) -> set[str]:
    """Names, in the network's state, of all that its normalisation layers hold."""
    return {
        f"{name}.{own}" if name else own
        for name, layer in network.named_modules()
        if isinstance(layer, _LAYERS)
        for own in layer.state_dict()
    }
