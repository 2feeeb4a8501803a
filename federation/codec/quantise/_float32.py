"""No quantisation: the 32 bits of each value, as one integer. Chosen by leaving the stage out."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from federation.schema import Closed

LINEAR = False


class Options(Closed):
    pass


def bits(options: Options, round: int) -> int:
    return 32


def encode(
    values: NDArray[np.float32], exponent: int, bits: int, source: np.random.Generator
) -> NDArray[np.int32]:
    return values.view(np.int32)


def decode(integers: NDArray[Any], exponent: int) -> NDArray[np.float64]:
    return integers.astype(np.int32).view(np.float32).astype(np.float64)
