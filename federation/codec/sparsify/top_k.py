"""Top-k: the k largest values of all (Aji & Heafield 2017, arXiv:1704.05021).

Each hospital has its own coordinates and sends them too, so sums of what is sent mean nothing. It is
biased, and contracts: ‖C(x) − x‖² ≤ (1 − k / n)·‖x‖² (Stich et al. 2018, arXiv:1809.07599); without
error feedback what is always small is never sent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from federation.schema import Closed

LINEAR = False


class Options(Closed):
    keep: float = Field(default=0.01, gt=0, le=1, description="share of the values that are sent")


def count(options: Options, sizes: Sequence[int]) -> int:
    return max(1, round(options.keep * sum(sizes)))


def choose(
    options: Options,
    sizes: Sequence[int],
    moving: NDArray[np.float32] | None,
    draw: Callable[[int], NDArray[np.uint64]],
) -> NDArray[np.int64]:
    if moving is None:
        raise ValueError("which values are the largest depends on the values")
    rest = len(moving) - count(options, sizes)
    return np.sort(np.argpartition(np.abs(moving), rest)[rest:]) if rest else np.arange(len(moving))


def factors(options: Options, sizes: Sequence[int]) -> NDArray[np.float64] | None:
    return None
