"""What rules share that keep an array for each parameter, which begins as 0."""

from __future__ import annotations

import numpy as np
from torch import nn

from federation.messages import Arrays
from federation.schema import ConfigError


def of_parameters(network: nn.Module, memory: Arrays) -> Arrays:
    """What is kept of each parameter, by name, with its shape and dtype; 0 where nothing is kept yet.

    Raises:
        ConfigError: what is kept is of another network.
    """
    fresh = {
        name: np.zeros(tuple(parameter.shape), parameter.detach().cpu().numpy().dtype)
        for name, parameter in network.named_parameters()
    }
    if not memory:
        return fresh
    alike = {name: (array.shape, array.dtype) for name, array in fresh.items()}
    if alike != {name: (array.shape, array.dtype) for name, array in memory.items()}:
        raise ConfigError("what the strategy kept here is of another network: start a new run")
    return memory
