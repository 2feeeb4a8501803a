"""Who gets which patients, for rehearsals of hospitals that differ in labels, scanners or sizes.

Each function deals patients, of phantoms or of a table of real ones, to hospitals: it takes what is
known of each patient, in one order, and gives each hospital's positions in that order, ascending. Every
position is dealt once. A patient with several images is dealt once, with one label.

Everything is drawn from `seed`.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from federation.schema import ConfigError

Positions = NDArray[np.int64]

ALPHA = 0.3  # of Dirichlet's draw, unless another is named
NOISY = 0.4  # share of labels that are wrong at a hospital with noisy ones
_SIZES = (10, 3, 1)


def unequal(hospitals: int) -> tuple[int, ...]:
    """Sizes 10 : 3 : 1 to each other; further hospitals are as small as the third."""
    return (*_SIZES, *[_SIZES[-1]] * hospitals)[:hospitals]


def by_label(
    labels: Sequence[Hashable], hospitals: int, *, alpha: float, seed: int, least: int = 1
) -> list[Positions]:
    """Label skew: each class is shared out by a draw from Dirichlet(α, …, α) over the hospitals.

    A large α gives equal shares, a small one gives nearly all of a class to one hospital (Yurochkin et
    al. 2019, arXiv:1905.12022, section 4; Hsu et al. 2019, arXiv:1909.06335, draw each hospital's mix of
    classes with the same α instead, so that sizes stay equal).

    Args:
        alpha: above 0.
        least: patients of each class that every hospital gets before the rest is dealt, so that it can
            train; of a class that has not so many for all, an equal number.

    Raises:
        ConfigError: no hospitals, or an α that is not above 0.
    """
    _require_hospitals(hospitals)
    if not 0 < alpha < math.inf:
        raise ConfigError(f"alpha is {alpha}: Dirichlet's α is above 0, such as 0.3")
    rng = np.random.default_rng([seed, 1])
    parts: list[list[Positions]] = [[] for _ in range(hospitals)]
    for members in _classes(labels):
        shuffled = rng.permutation(members)
        reserved = min(least, len(members) // hospitals)
        shares = rng.dirichlet(np.full(hospitals, alpha))
        counts = reserved + whole(shares, len(members) - reserved * hospitals)
        _deal(parts, shuffled, counts)
    return _joined(parts)


def by_size(labels: Sequence[Hashable], sizes: Sequence[float], *, seed: int) -> list[Positions]:
    """Size skew: sizes as 10 : 3 : 1 are to each other, with the same mix of classes everywhere.

    Raises:
        ConfigError: no hospitals, or a size that is not above 0.
    """
    _require_hospitals(len(sizes))
    if not all(size > 0 for size in sizes):
        raise ConfigError(f"sizes are {list(sizes)}: each is above 0, such as 10 3 1")
    rng = np.random.default_rng([seed, 2])
    shares = np.array(sizes, np.float64) / sum(sizes)
    classes = _classes(labels)
    wanted, dealt = whole(shares, len(labels)), np.zeros(len(sizes), np.int64)
    parts: list[list[Positions]] = [[] for _ in sizes]
    for number, members in enumerate(classes, start=1):
        # the last class makes up for what the others' rounding gave or took
        last = number == len(classes)
        counts = wanted - dealt if last else whole(shares, len(members))
        if (counts < 0).any():
            counts = whole(shares, len(members))
        _deal(parts, rng.permutation(members), counts)
        dealt += counts
    return _joined(parts)


def by_attribute(
    attributes: Sequence[str], hospitals: int, *, seed: int, purity: float = 1.0
) -> list[Positions]:
    """Scanner skew: each hospital has its own values of an attribute (manufacturer, detector).

    Values go to hospitals whole, the most frequent first, each to the hospital with the fewest patients
    so far.

    Args:
        purity: share of a value's patients that its own hospital gets; the rest is dealt equally to all.

    Raises:
        ConfigError: fewer values than hospitals, or a purity outside 0 to 1.
    """
    _require_hospitals(hospitals)
    if not 0 <= purity <= 1:
        raise ConfigError(f"purity is {purity}: a share from 0 to 1")
    values = sorted(_classes(attributes), key=len, reverse=True)
    if len(values) < hospitals:
        raise ConfigError(
            f"{hospitals} hospitals cannot each have a value of their own: there are {len(values)}"
        )
    rng = np.random.default_rng([seed, 3])
    parts: list[list[Positions]] = [[] for _ in range(hospitals)]
    sizes = np.zeros(hospitals, np.int64)
    for members in values:
        shuffled = rng.permutation(members)
        own = int(sizes.argmin())
        kept = round(purity * len(members))
        counts = whole(np.full(hospitals, 1 / hospitals), len(members) - kept)
        counts[own] += kept
        _deal(parts, shuffled, counts)
        sizes[own] += len(members)
    return _joined(parts)


def flipped(labels: Sequence[str], share: float, *, seed: int) -> list[str]:
    """Wrong labels: a share of them, rounded to whole ones, is another class, drawn equally.

    Raises:
        ConfigError: fewer than two classes, or a share outside 0 to 1.
    """
    classes = sorted(set(labels))
    if len(classes) < 2 or not 0 <= share <= 1:
        raise ConfigError(
            f"{share:g} of labels of {len(classes)} classes cannot be wrong: give a share from 0 to 1 "
            "and two classes"
        )
    rng = np.random.default_rng([seed, 4])
    result = list(labels)
    for position in rng.permutation(len(labels))[: round(share * len(labels))]:
        others = [name for name in classes if name != labels[position]]
        result[position] = others[int(rng.integers(len(others)))]
    return result


def whole(shares: NDArray[np.float64], total: int) -> NDArray[np.int64]:
    """Whole numbers (like `shares`, whose sum is 1) whose sum is `total`, by largest remainder."""
    exact = shares * total
    counts = np.floor(exact).astype(np.int64)
    order = np.argsort(-(exact - counts), kind="stable")
    counts[order[: total - counts.sum()]] += 1
    return counts


def _classes(values: Sequence[Hashable]) -> list[Positions]:
    """Positions of each value, values in the order of their words."""
    places: dict[Hashable, list[int]] = {}
    for position, value in enumerate(values):
        places.setdefault(value, []).append(position)
    return [np.array(places[value], np.int64) for value in sorted(places, key=str)]


def _deal(parts: list[list[Positions]], shuffled: Positions, counts: NDArray[np.int64]) -> None:
    for part, dealt in zip(parts, np.split(shuffled, np.cumsum(counts)[:-1]), strict=True):
        part.append(dealt)


def _joined(parts: list[list[Positions]]) -> list[Positions]:
    empty = np.empty(0, np.int64)
    return [np.sort(np.concatenate([empty, *part])) for part in parts]


def _require_hospitals(hospitals: int) -> None:
    if hospitals < 1:
        raise ConfigError("there are no hospitals to deal patients to")
