"""Small networks with all kinds of layers, and updates of them."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from federation.codec.chain import Chain, build
from federation.messages import Arrays
from federation.schema import Codec, Component, Training


class Tied(nn.Module):
    """Two layers that share one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(32, 32)
        self.second = nn.Linear(32, 32)
        self.second.weight = self.first.weight
        self.last = nn.Linear(32, 2)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.last(self.second(self.first(values)))
        return answer


def network() -> nn.Sequential:
    """Images (B, 3, H, W) to 10 logits."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3),
            nn.GroupNorm(4, 16),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(64, 10),
        )


def update_of(model: nn.Module, seed: int, size: float = 0.01) -> Arrays:
    """Of all arrays, normal with this standard deviation; counters went up."""
    random = np.random.default_rng(seed)
    return {
        name: random.normal(0, size, tuple(tensor.shape)).astype(np.float32)
        if tensor.is_floating_point()
        else np.full(tuple(tensor.shape), 7, np.int64)
        for name, tensor in model.state_dict().items()
    }


def part(name: str, **options: object) -> Component:
    return Component.model_validate({"name": name, **options})


def integers(bits: int) -> Component:
    return part("integers", bits=bits)


def chain_of(model: nn.Module, *, seed: int = 3, **slots: object) -> Chain:
    return build(Codec.model_validate(slots), model, seed=seed)


def training(**changes: object) -> Training:
    given = {"local_steps": 10, "batch_size": 4, "learning_rate": 0.001, **changes}
    return Training.model_validate(given)
