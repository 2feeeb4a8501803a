"""Sums of hospitals' messages, taken apart or added in secret: what they stand for, and their mean."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from federation.codec import scales
from federation.messages import Arrays

if TYPE_CHECKING:  # it imports this
    from federation.codec.chain import Chain, Encoded, Scales


class Sum:
    """Σ weight · update of hospitals' messages, one after the other, of any chain.

    With integers the sum is exact, so it is the same in any order, and the same that `Chain.decode`
    makes of summed integers. With floats add them in one order, if the last bit matters.
    """

    def __init__(self, chain: Chain, scales_: Scales, *, round: int) -> None:
        self._chain, self._scales, self._round = chain, scales_, round
        self._known = chain.stages.positions(round, None) if chain.stages.shared else None
        self._moving = np.zeros(chain.stages.moving)
        self._votes = np.zeros(chain.voters * scales.BINS, np.int64)
        self._weight = 0

    def add(self, encoded: Encoded, weight: int) -> None:
        """`weight`: an integer above 0."""
        self._add(encoded.values, encoded.indices, weight)
        self._votes += weight * encoded.wanted
        self._weight += weight

    def add_integers(self, values: NDArray[Any], votes: NDArray[Any], weight: int) -> None:
        """Values and votes that are sums already, of hospitals whose weights sum to `weight`."""
        self._add(values, None, 1)
        self._votes += votes.astype(np.int64)
        self._weight += weight

    def mean(self) -> tuple[Arrays, Scales]:
        """The weighted mean update, and the next round's scales. Raises ValueError: of nothing."""
        if self._weight < 1:
            raise ValueError("there is no mean of no updates")
        chain, exchange = self._chain, self._chain.stages.exchange
        whole = exchange.expand(self._moving, round=self._round)
        update: Arrays = {
            name: np.zeros(shape, dtype) for name, (dtype, shape) in chain.state.items()
        }
        at = 0
        for name, shape in exchange.shapes.items():
            size = math.prod(shape)
            update[name][...] = (whole[at : at + size] / self._weight).reshape(shape)
            at += size
        return update, chain.next_scales(self._scales, self._votes, round=self._round)

    def _add(self, values: NDArray[Any], indices: NDArray[np.int64] | None, weight: int) -> None:
        stages = self._chain.stages
        positions = self._known if indices is None else indices
        for part, where, exponent in stages.parts(positions, self._scales):
            self._moving[where] += weight * stages.restored(values[part], exponent)
