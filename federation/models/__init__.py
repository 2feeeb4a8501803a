"""MONAI networks, one file each: `Options` and `build(options, task) -> nn.Module`.

Found by file name, see `federation.registry`; adding a network is adding that file and
`configs/model/NAME.yaml`.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn

from federation import registry
from federation.messages import Arrays
from federation.schema import Component
from federation.tasks import Task


def build(component: Component, task: Task, *, seed: int) -> nn.Module:
    """The network of this name for the task, with weights drawn from `seed` alone.

    Raises:
        federation.schema.ConfigError: unknown name or option, or a network that does not fit the task.
    """
    module, options = registry.find(sys.modules[__name__], component)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network: nn.Module = module.build(options, task)
    return network


def arrays_of(network: nn.Module) -> Arrays:
    """All that a model is, on the CPU: parameters and buffers. They share the network's memory there."""
    return {name: tensor.detach().cpu().numpy() for name, tensor in network.state_dict().items()}


def state_of(network: nn.Module) -> dict[str, Tensor]:
    """The same on the processor where it is: detached, so writing into one changes the network."""
    return {name: tensor.detach() for name, tensor in network.state_dict().items()}
