"""Which of a model's arrays travel, and in which coordinates: one file a choice.

A file offers `LINEAR` (whether sums of what travels stand for sums of updates), `Options` (closed) and

    build(options, network, seed) -> Exchange

which both sides call with the same network and seed. Integers (counters) never travel: they stay as the
global model has them. Adding a choice is adding its file here and `configs/codec/NAME.yaml`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from federation.schema import ConfigError


@dataclass(frozen=True)
class Segment:
    """What travels of one array; its values share one scale.

    Attributes:
        size: numbers that travel.
        buffer: kept by the network without a gradient, such as BatchNorm's statistics.
        factor: how much larger than a weight's its changes are expected to be.
    """

    name: str
    size: int
    buffer: bool = False
    factor: float = 1.0


class Exchange:
    """Arrays that travel whole. Other choices override what they do otherwise.

    `whole` vectors are the exchanged arrays, flat, one after the other; `moving` ones hold what travels
    of them, segment by segment. Here both are the same.
    """

    whole = True

    def __init__(self, network: nn.Module, keep: Callable[[str], bool]) -> None:
        """Raises: ConfigError: no array is left."""
        parameters = dict(network.named_parameters())
        self.shapes: dict[str, tuple[int, ...]] = {
            name: tuple(tensor.shape)
            for name, tensor in network.state_dict().items()
            if tensor.is_floating_point() and tensor.numel() and keep(name)
        }
        if not self.shapes:
            raise ConfigError("codec.exchange leaves no array of the model to exchange: use all")
        self.segments: tuple[Segment, ...] = tuple(
            Segment(name, int(np.prod(shape, dtype=np.int64)), buffer=name not in parameters)
            for name, shape in self.shapes.items()
        )

    def project(self, whole: NDArray[np.float32], *, round: int) -> NDArray[np.float32]:
        """What travels of the arrays."""
        return whole

    def expand(self, moving: NDArray[Any], *, round: int) -> NDArray[Any]:
        """The arrays that what travels stands for, in its dtype; the same bits at every place."""
        return moving

    @contextlib.contextmanager
    def restrict(self, network: nn.Module, *, round: int) -> Iterator[None]:
        """Training in here moves only what travels, as far as the choice sees to it."""
        yield
