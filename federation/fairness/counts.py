"""Cases as one vector of integers, which hospitals' sums are made of.

A vector is `Layout.shape` laid flat, int64: by group, channel, row of true label, and bin. Vectors of
one layout add up to the vector of all their cases together, whoever adds them.

Noise. Under patient-level privacy each integer needs noise of an integer-valued kind (discrete Gaussian,
Canonne et al. 2020, arXiv:2004.00010), or real noise that is rounded afterwards, added by whoever calls
here; `sensitivity` says how far one patient moves the vector. Noise of standard deviation σ · `l2` on
each integer is one Gaussian mechanism of multiplier σ.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from federation.fairness.cases import Cases
from federation.fairness.layout import Layout

Ints = NDArray[np.int64]

CASES_A_PATIENT = 1  # counted with noise: more would need as much more of it


def count(cases: Cases | None, layout: Layout) -> Ints:
    """A hospital's vector (size,); zeros for None, which is what may leave of too few patients."""
    vector = np.zeros(layout.size, np.int64)
    if cases is None or not len(cases):
        return vector
    _, channels, rows, bins = layout.shape
    labels = cases.truth[:, None] * np.ones(channels, np.int64)
    if rows == 2:  # a class against all others
        positive = np.array([1] if channels == 1 else range(channels))
        labels = (labels == positive).astype(np.int64)
    within = (np.arange(channels) * rows + labels) * bins + cases.places
    for table in layout.tables:
        group = np.full(len(cases), table.first)
        if table.columns:
            group += np.ravel_multi_index(tuple(cases.words[:, list(table.columns)].T), table.shape)
        cells = group[:, None] * (channels * rows * bins) + within
        vector += np.bincount(cells.ravel(), minlength=layout.size)
    return vector


def as_array(
    vector: NDArray[np.integer] | NDArray[np.float64], layout: Layout
) -> NDArray[np.float64]:
    """A sum of vectors, float64 by (group, channel, row, bin).

    Raises:
        ValueError: it is not a vector of this layout.
    """
    if vector.shape != (layout.size,):
        raise ValueError(
            f"the counts are {vector.size} numbers, and not the layout's {layout.size}"
        )
    return vector.astype(np.float64).reshape(layout.shape)


def named(vector: Ints, layout: Layout) -> dict[str, dict[str, NDArray[np.int64]]]:
    """By name of group and channel, (rows, bins): what is on the wire, for people to read."""
    if vector.shape != (layout.size,):
        raise ValueError(
            f"the counts are {vector.size} numbers, and not the layout's {layout.size}"
        )
    by_group = zip(layout.groups, vector.reshape(layout.shape), strict=True)
    return {
        group.name: dict(zip(layout.channels, by_channel, strict=True))
        for group, by_channel in by_group
    }


@dataclass(frozen=True)
class Sensitivity:
    """What adding or removing one patient does to a vector, at most.

    Attributes:
        cells: how many integers change.
        most: by how much one of them does.
        l1, l2: norms of the change.
    """

    cells: int
    most: int
    l1: int
    l2: float


def sensitivity(layout: Layout, cases_per_patient: int) -> Sensitivity:
    """For vectors of `Cases.at_most(cases_per_patient)`, of which nothing was withheld.

    Each case adds 1 to one cell of each table and channel: k cases to at most k times as many cells,
    and all of them to the same where they agree, which makes the largest L2 norm.
    """
    if cases_per_patient < 1:
        raise ValueError("cases_per_patient must be 1 or more")
    each = len(layout.tables) * len(layout.channels)
    return Sensitivity(
        cells=each * cases_per_patient,
        most=cases_per_patient,
        l1=each * cases_per_patient,
        l2=cases_per_patient * math.sqrt(each),
    )


def noise(layout: Layout) -> float:
    """Standard deviation of the noise on each integer under patient-level privacy.

    That of `CASES_A_PATIENT` cases of a patient: one Gaussian mechanism of `Fairness.noise_multiplier`.

    Raises:
        ValueError: the experiment names no noise.
    """
    if layout.options.noise_multiplier is None:
        raise ValueError("counts leave with noise alone, and fairness.noise_multiplier is null")
    return layout.options.noise_multiplier * sensitivity(layout, CASES_A_PATIENT).l2


def nonnegative(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Noisy histograms (…, bins): the nearest ones without negative numbers and with the same sums.

    Least squares; all 0 where a sum is not positive. The projection of Duchi et al. 2008
    (doi:10.1145/1390156.1390191), figure 1. Counts without noise stay as they are.
    """
    total = values.sum(axis=-1, keepdims=True)
    ordered = -np.sort(-values, axis=-1)
    surplus = (np.cumsum(ordered, axis=-1) - total) / np.arange(1, values.shape[-1] + 1)
    last = np.maximum((ordered > surplus).sum(axis=-1, keepdims=True) - 1, 0)
    shifted = np.maximum(values - np.take_along_axis(surplus, last, axis=-1), 0)
    return np.where(
        total > 0, np.where((values < 0).any(axis=-1, keepdims=True), shifted, values), 0
    )
