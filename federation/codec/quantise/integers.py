"""Integers of b bits on a scale that all hospitals share: clipped, and rounded up or down by chance.

A value x becomes q in −M … M, M = 2^(b−1) − 1, and stands for q·2^e, so that values, their sums and the
sums of the integers agree to the last bit in float64. |x| ≤ M·2^e is rounded up with a chance that is
its distance to the value below, so E[q·2^e] = x (to 2^-24 of a step), |q·2^e − x| < 2^e, and the
variance is at most 4^e / 4 (QSGD: Alistarh et al. 2017, arXiv:1610.02132, with one shared scale). What
is beyond is clipped, which is biased: error feedback sends the rest later.

In the first round nobody knows the scales, so b is 16 there: a guess that is 2^8 too large still leaves
8 bits.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from federation.schema import Closed

LINEAR = True
_FIRST_BITS = 16
_CLIPPED_AT_MOST = 6  # powers of two below the exponent that clips nothing
_SAMPLE = 1 << 14  # values of a segment that are looked at
_HOSPITALS = 2  # in a mean of at least so many, whose errors of rounding average out


class Options(Closed):
    bits: int = Field(default=8, ge=2, le=16)


def bits(options: Options, round: int) -> int:
    return max(options.bits, _FIRST_BITS) if round <= 1 else options.bits


def most(bits: int) -> int:
    """M: the largest integer of so many bits with a sign, so that −M is one too."""
    return (1 << (bits - 1)) - 1


def encode(
    values: NDArray[np.float32], exponent: int, bits: int, source: np.random.Generator
) -> NDArray[np.int32]:
    with np.errstate(over="ignore"):  # what overflows is clipped
        scaled = np.ldexp(values, np.int32(-exponent))
    np.clip(scaled, -most(bits), most(bits), out=scaled)
    below = np.floor(scaled)
    scaled -= below  # exact, and the chance to be rounded up
    return below.astype(np.int32) + (source.random(len(values), np.float32) < scaled)


def decode(integers: NDArray[Any], exponent: int) -> NDArray[np.float64]:
    return integers * math.ldexp(1.0, exponent)


def wanted(values: NDArray[np.float32], bits: int) -> int | None:
    """The exponent with the least mean squared error in a mean of two; None: all values are 0.

    There the variance of rounding counts half, and the bias of clipping in full. Asked are the exponent
    that clips nothing and those a little below it, of a large segment by a sample. The one that clips
    nothing would not do: with 2 bits and error feedback what was rounded off, up to a step, would ask
    for a larger step each round.
    """
    top = float(np.max(np.abs(values), initial=0.0))
    if top == 0:
        return None
    sample = np.abs(values[:: max(1, len(values) // _SAMPLE)]).astype(np.float64)
    limit = most(bits)
    nothing_clipped = math.ceil(math.log2(top / limit))
    errors = []
    for exponent in range(nothing_clipped, nothing_clipped - _CLIPPED_AT_MOST, -1):
        scaled = np.ldexp(sample, -exponent)
        part = scaled - np.floor(scaled)
        clipped = _HOSPITALS * np.square(scaled - limit)
        error = np.where(scaled > limit, clipped, part * (1 - part))
        errors.append(math.ldexp(float(error.mean()), 2 * exponent))
    return nothing_clipped - int(np.argmin(errors))
