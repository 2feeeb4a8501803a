"""bfloat16: the upper half of a float32, 8 significant bits over its whole range.

Rounded to nearest, ties to even, so the error is at most 2^-8·|x| for normal numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from federation.schema import Closed

LINEAR = False
_LARGEST = np.uint32(0x7F7F)  # the largest finite one


class Options(Closed):
    pass


def bits(options: Options, round: int) -> int:
    return 16


def encode(
    values: NDArray[np.float32], exponent: int, bits: int, source: np.random.Generator
) -> NDArray[np.int32]:
    pattern = values.view(np.uint32)
    size = pattern & np.uint32(0x7FFF_FFFF)
    size += np.uint32(0x7FFF) + ((size >> np.uint32(16)) & np.uint32(1))
    size >>= np.uint32(16)
    np.minimum(size, _LARGEST, out=size)
    return (
        (size | (pattern >> np.uint32(31) << np.uint32(15)))
        .astype(np.uint16)
        .view(np.int16)
        .astype(np.int32)
    )


def decode(integers: NDArray[Any], exponent: int) -> NDArray[np.float64]:
    pattern = integers.astype(np.int16).view(np.uint16).astype(np.uint32) << np.uint32(16)
    return pattern.view(np.float32).astype(np.float64)
