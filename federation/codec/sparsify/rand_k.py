"""Rand-k with coordinates that all share: one of each group of about 1 / keep neighbours.

A segment of n values is cut into k = keep·n groups (at least one) of sizes that differ by at most one;
the round's shared randomness takes one value of each. Value j is sent with chance 1 / mⱼ, mⱼ the size of
its group, so mⱼ times it is unbiased, E‖C(x) − x‖² = Σ (mⱼ − 1)·xⱼ², as rand-k of independent draws
has (Stich et al. 2018, arXiv:1809.07599; Wangni et al. 2018, arXiv:1710.09854). With error feedback
values are sent as they are, which contracts: E‖C(x) − x‖² = Σ (1 − 1 / mⱼ)·xⱼ².
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from federation.codec._shared import below
from federation.schema import Closed

LINEAR = True


class Options(Closed):
    keep: float = Field(default=0.1, gt=0, le=1, description="share of the values that are sent")


def count(options: Options, sizes: Sequence[int]) -> int:
    return sum(_groups(options, size) for size in sizes)


def choose(
    options: Options,
    sizes: Sequence[int],
    moving: NDArray[np.float32] | None,
    draw: Callable[[int], NDArray[np.uint64]],
) -> NDArray[np.int64]:
    starts, lengths = _cut(options, sizes)
    return starts + below(lengths, draw(len(lengths)))


def factors(options: Options, sizes: Sequence[int]) -> NDArray[np.float64] | None:
    return _cut(options, sizes)[1].astype(np.float64)


def _groups(options: Options, size: int) -> int:
    return max(1, round(options.keep * size))


def _cut(options: Options, sizes: Sequence[int]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Where each group starts, and how many values it has."""
    edges: list[NDArray[np.int64]] = []
    before = 0
    for size in sizes:
        groups = _groups(options, size)
        edges.append(before + np.arange(groups, dtype=np.int64) * size // groups)
        before += size
    starts = np.concatenate(edges)
    return starts, np.diff(starts, append=before)
