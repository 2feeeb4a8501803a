"""The stages of a codec with their options bound, and how the vectors between them are cut."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from federation import registry
from federation.codec import _shared, exchange, quantise, sparsify
from federation.codec.exchange import Exchange
from federation.codec.quantise import _float32
from federation.schema import Codec

_AT_ONCE = 1 << 18  # values worked on at a time: they stay in the processor's cache

Positions = NDArray[np.int64] | None
"""Where the values that are sent stand in the travelling vector, ascending; None: all are sent."""


class Stages:
    """What a codec's files do, of one network.

    Attributes:
        exchange: between the model's arrays and the travelling vector.
        count: how many values of the travelling vector are sent.
        moving: how many values it has.
        shared: everybody knows which of them are sent.
        scaled: each segment has a scale.
        unshared: the first stage after which sums mean nothing, as it is chosen; None: no such.
    """

    def __init__(self, codec: Codec, network: nn.Module, seed: int) -> None:
        """Raises: federation.schema.ConfigError: an unknown stage or option, or nothing to send."""
        self._seed = seed
        chosen, options = registry.find(exchange, codec.exchange)
        self.exchange: Exchange = chosen.build(options, network, seed)
        self._sparsify: ModuleType | None = None
        self._quantise: ModuleType = _float32
        self._sparsify_options: Any = None
        self._quantise_options: Any = _float32.Options()
        if codec.sparsify is not None:
            self._sparsify, self._sparsify_options = registry.find(sparsify, codec.sparsify)
        if codec.quantise is not None:
            self._quantise, self._quantise_options = registry.find(quantise, codec.quantise)
        self._sizes = [segment.size for segment in self.exchange.segments]
        self._edges = np.cumsum([0, *self._sizes])
        self.moving: int = sum(self._sizes)
        self.count: int = self.moving
        if self._sparsify is not None:
            self.count = int(self._sparsify.count(self._sparsify_options, self._sizes))
        self.shared = self._sparsify is None or bool(self._sparsify.LINEAR)
        self.scaled = bool(self._quantise.LINEAR)
        self.unshared: str | None = None
        if not chosen.LINEAR:
            self.unshared = f"codec.exchange={codec.exchange.name}"
        elif codec.sparsify is not None and not self.shared:
            self.unshared = f"codec.sparsify={codec.sparsify.name}"
        elif not self.scaled:
            name = "none" if codec.quantise is None else codec.quantise.name
            self.unshared = f"codec.quantise={name}"

    # --- which values ----------------------------------------------------------------------------

    def positions(self, round: int, moving: NDArray[np.float32] | None) -> Positions:
        """Which values are sent; `moving` may be None where that is `shared`."""
        if self._sparsify is None:
            return None
        positions: NDArray[np.int64] = self._sparsify.choose(
            self._sparsify_options,
            self._sizes,
            None if self.shared else moving,
            lambda count: _shared.words(count, "sparsify", self._seed, round),
        )
        return positions

    def unbiased(self, chosen: NDArray[np.float32]) -> NDArray[np.float32]:
        """Values that make up in the mean for those that are not sent."""
        if self._sparsify is None:
            return chosen
        factors = self._sparsify.factors(self._sparsify_options, self._sizes)
        return chosen if factors is None else (chosen * factors).astype(np.float32)

    def bounds(self, positions: Positions) -> list[tuple[int, int]]:
        """From where to where each segment's values stand in what is sent."""
        edges = self._edges if positions is None else np.searchsorted(positions, self._edges)
        return list(pairwise(map(int, edges)))

    def parts(
        self, positions: Positions, scales: NDArray[np.int16]
    ) -> Iterator[tuple[slice, slice | NDArray[np.int64], int]]:
        """What is sent, in order and in parts of one segment each.

        Yields: where the part stands in what is sent, where in the travelling vector, its exponent.
        """
        for segment, (first, last) in enumerate(self.bounds(positions)):
            exponent = int(scales[segment]) if self.scaled else 0
            for part in chunks(first, last):
                yield part, part if positions is None else positions[part], exponent

    # --- their integers --------------------------------------------------------------------------

    def bits(self, round: int) -> int:
        return int(self._quantise.bits(self._quantise_options, round))

    def most(self, bits: int) -> int:
        """No integer of so many bits is further from 0. Only where `scaled`."""
        return int(self._quantise.most(bits))

    def wanted(self, values: NDArray[np.float32], bits: int) -> int | None:
        """The exponent that would suit a segment's values. Only where `scaled`."""
        exponent: int | None = self._quantise.wanted(values, bits)
        return exponent

    def quantised(
        self, values: NDArray[np.float32], exponent: int, bits: int, source: np.random.Generator
    ) -> NDArray[np.int32]:
        integers: NDArray[np.int32] = self._quantise.encode(values, exponent, bits, source)
        return integers

    def restored(self, integers: NDArray[Any], exponent: int) -> NDArray[np.float64]:
        values: NDArray[np.float64] = self._quantise.decode(integers, exponent)
        return values

    def whole_size(self) -> int:
        """Numbers in the exchanged arrays."""
        return sum(map(math.prod, self.exchange.shapes.values()))


def chunks(first: int, last: int) -> Iterator[slice]:
    """The range in parts that stay in the processor's cache."""
    for at in range(first, last, _AT_ONCE):
        yield slice(at, min(at + _AT_ONCE, last))
