"""IEEE 754 binary16: 11 significant bits; |x| > 65504 is clipped, |x| < 2^-14 loses bits.

Rounded to nearest, so the error is at most 2^-11·|x| for normal numbers, and biased by no more.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from federation.schema import Closed

LINEAR = False
_LARGEST = 65504.0


class Options(Closed):
    pass


def bits(options: Options, round: int) -> int:
    return 16


def encode(
    values: NDArray[np.float32], exponent: int, bits: int, source: np.random.Generator
) -> NDArray[np.int32]:
    halves = np.clip(values, -_LARGEST, _LARGEST).astype(np.float16)
    return halves.view(np.int16).astype(np.int32)


def decode(integers: NDArray[Any], exponent: int) -> NDArray[np.float64]:
    return integers.astype(np.int16).view(np.float16).astype(np.float64)
