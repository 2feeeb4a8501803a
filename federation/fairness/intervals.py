"""95 % intervals of metrics from counts.

They say how far chance may have moved a metric, given who could have been held out, and are wider by
what the bins may have moved it. They take cases for independent; several images of one patient are not,
so intervals of images are too narrow (`unit=patient` has none).
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from federation.fairness.counts import nonnegative

Floats = NDArray[np.float64]

LEVEL = 0.95
DRAWS = 1000

_Z = NormalDist().inv_cdf((1 + LEVEL) / 2)


def of_auroc(value: float, bound: float, negative: float, positive: float) -> tuple[float, float]:
    """From the areas at both ends of what bins allow, outwards as far as chance allows.

    The score interval of Newcombe 2006 (doi:10.1002/sim.2324), method 5: all areas A with
    |A - value| ≤ 1.96 s(A), with s(A)² the variance of Hanley & McNeil 1982
    (doi:10.1148/radiology.143.1.7063747) for m positive and n negative cases, in which (m + n) / 2
    stands for either in the factors but not in the product m n. It keeps its level in small groups and
    at an area of 1, where DeLong's variance, which from bins would not be exact anyway, is 0.
    """
    low, high = max(value - bound, 0.0), min(value + bound, 1.0)

    def far(area: float, seen: float) -> bool:
        mean = (negative + positive) / 2 - 1
        spread = 1 + mean * (1 - area) / (2 - area) + mean * area / (1 + area)
        variance = area * (1 - area) * spread / (negative * positive)
        return abs(area - seen) > _Z * math.sqrt(max(variance, 0.0))

    def solve(outside: float, seen: float) -> float:
        inside = seen
        for _ in range(60):
            middle = (outside + inside) / 2
            if far(middle, seen):
                outside = middle
            else:
                inside = middle
        return inside

    return solve(0.0, low), solve(1.0, high)


def of_share(value: float, bound: float, total: float) -> tuple[float, float]:
    """Wilson's score interval (1927) of a share of `total` cases, from both ends of what bins allow."""
    low, high = max(value - bound, 0.0), min(value + bound, 1.0)
    # rounding must not leave the share itself outside
    return min(_wilson(low, total, -1), low), max(_wilson(high, total, 1), high)


def _wilson(share: float, total: float, side: int) -> float:
    spread = _Z * math.sqrt(share * (1 - share) / total + _Z**2 / (4 * total**2))
    edge = (share + _Z**2 / (2 * total) + side * spread) / (1 + _Z**2 / total)
    return min(max(edge, 0.0), 1.0)


def draws(histogram: Floats, generator: np.random.Generator, noise: float = 0.0) -> Floats:
    """(DRAWS, rows, bins): what might have been counted in place of a histogram (rows, bins).

    The bootstrap (Efron & Tibshirani 1993) of cases within each true label: multinomial with as many
    cases as there are and their shares of the bins.

    Args:
        noise: standard deviation of the noise in each count, which is drawn once more and made
            nonnegative again.
    """
    rows = []
    for row in histogram:
        total = row.sum()
        if total > 0:
            rows.append(generator.multinomial(round(total), row / total, size=DRAWS).astype(float))
        else:
            rows.append(np.zeros((DRAWS, row.size)))
    drawn = np.stack(rows, axis=1)
    if noise > 0:
        drawn = nonnegative(drawn + generator.normal(0.0, noise, drawn.shape))
    return drawn


def of_draws(value: float, bound: float, drawn: Floats) -> tuple[float, float] | None:
    """The middle 95 % of draws (DRAWS,), and the value itself; None where most draws have none.

    For metrics in [0, 1], so cut to it.
    """
    found = drawn[np.isfinite(drawn)]
    if 2 * found.size <= drawn.size:
        return None
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return max(min(float(low), value) - bound, 0.0), min(max(float(high), value) + bound, 1.0)
