"""Secrets of 32 bytes in shares: `threshold` of them give the secret, fewer nothing (Shamir 1979).

The field is that of the integers modulo 2²⁵⁶ + 297, the smallest prime above 2²⁵⁶: every string of 32
bytes is an element of it, so that keys are shared as they are. A share is the polynomial's value at a
whole number from 1 on.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import combinations
from math import comb
from random import Random

PRIME = 2**256 + 297
SECRET_BYTES = 32
SHARE_BYTES = 33


def split(secret: bytes, threshold: int, count: int) -> list[bytes]:
    """Shares at 1 to `count`, 33 bytes each, big-endian.

    Raises:
        ValueError: not 32 bytes, or a threshold that `count` shares do not reach.
    """
    if len(secret) != SECRET_BYTES or not 1 <= threshold <= count < PRIME:
        raise ValueError("a secret has 32 bytes, and a threshold from 1 to the number of shares")
    polynomial = [secrets.randbelow(PRIME) for _ in range(threshold - 1)]
    polynomial.append(int.from_bytes(secret))  # the highest power comes first
    return [_at(polynomial, x).to_bytes(SHARE_BYTES) for x in range(1, count + 1)]


def interpolate(points: Sequence[tuple[int, bytes]], at: int = 0) -> int:
    """The value at `at` of the polynomial through `points`, (x, share) each, no x twice."""
    weights = _weights(tuple(x for x, _ in points), at)
    return sum(
        w * int.from_bytes(share) for w, (_, share) in zip(weights, points, strict=True)
    ) % PRIME  # fmt: skip


def join(points: Sequence[tuple[int, bytes]]) -> bytes | None:
    """The secret; None where these shares are not of any 32 bytes."""
    value = interpolate(points)
    return value.to_bytes(SECRET_BYTES) if value < 1 << 8 * SECRET_BYTES else None


def subsets(items: Sequence[str], size: int) -> Iterator[tuple[str, ...]]:
    """Parts of `items` to try in turn where some of them may be wrong.

    The first `size` come first. One wrong item is always avoided by a later part, where there is an
    item to spare; several are where the parts are few enough to try all, and else by chance.
    """
    yield tuple(items[:size])
    spare = len(items) - size
    if spare < 1:
        return
    for start in range(0, len(items), spare):
        block = min(start, size)  # the last block overlaps the one before
        yield (*items[:block], *items[block + spare :])
    if comb(len(items), size) <= _MOST_PARTS:
        yield from combinations(items, size)
        return
    shuffled = Random(0)
    for _ in range(max(50, _MOST_PRODUCTS // size**2)):
        yield tuple(shuffled.sample(items, size))


_MOST_PARTS = 2000
_MOST_PRODUCTS = 2_000_000  # some seconds


def is_share(share: bytes) -> bool:
    return len(share) == SHARE_BYTES and int.from_bytes(share) < PRIME


def _at(polynomial: Sequence[int], x: int) -> int:
    value = 0
    for coefficient in polynomial:
        value = (value * x + coefficient) % PRIME
    return value


@lru_cache(maxsize=64)
def _weights(xs: tuple[int, ...], at: int) -> tuple[int, ...]:
    """Lagrange's weights of the values at `xs` in that at `at`: the secrets of a round share them."""
    weights = []
    for x in xs:
        above, below = 1, 1
        for other in xs:
            if other != x:
                above = above * (at - other) % PRIME
                below = below * (x - other) % PRIME
        weights.append(above * pow(below, -1, PRIME) % PRIME)
    return tuple(weights)
