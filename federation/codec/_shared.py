"""Randomness that all hospitals and the coordinator share: a function of the experiment's seed."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray


def words(count: int, *parts: object) -> NDArray[np.uint64]:
    """uint64 (count,): Philox 4×64 (Salmon et al. 2011) keyed by a hash of the parts.

    Words as they come from the bit generator, because NumPy promises that these stay the same over its
    versions; what it makes of them (permutations, choices) it does not.
    """
    digest = hashlib.sha256("\x1f".join(map(str, ("codec", *parts))).encode()).digest()
    source = np.random.Philox(key=int.from_bytes(digest[:16], "little"))
    return source.random_raw(count)


def below(bounds: NDArray[Any], words: NDArray[np.uint64]) -> NDArray[np.int64]:
    """For each bound (up to 2^32) an integer from 0 to it, itself left out; uniform to 2^-32."""
    high = words >> np.uint64(32)
    return ((high * bounds.astype(np.uint64)) >> np.uint64(32)).astype(np.int64)
