"""What rounding does: unbiased, bounded, and as others do it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from federation.codec.quantise import _float32, bf16, fp16, integers

REAL = st.floats(-(2.0**100), 2.0**100, width=32)
SOURCE = np.random.default_rng


@given(
    st.lists(REAL, min_size=1, max_size=40),
    st.integers(2, 16),
    st.integers(-100, 60),
    st.integers(0, 2**31),
)
def test_within_the_range_the_error_is_below_one_step(
    values: list[float], bits: int, exponent: int, seed: int
) -> None:
    array = np.array(values, np.float32)
    quantised = integers.encode(array, exponent, bits, SOURCE(seed))
    most = integers.most(bits)
    assert quantised.dtype == np.int32 and np.abs(quantised).max() <= most
    step = math.ldexp(1.0, exponent)
    inside = np.abs(array.astype(np.float64)) <= most * step
    error = integers.decode(quantised, exponent) - array
    assert (np.abs(error[inside]) < step).all()
    outside = np.sign(array[~inside]) * most
    assert np.array_equal(quantised[~inside], outside)


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_rounding_is_unbiased(bits: int) -> None:
    """The mean of n draws is within 5 standard errors of the value, each of which a step / 2 bounds."""
    draws = 40_000
    exponent = -7
    step = 2.0**exponent
    for share in (-1.0, -0.77, -0.001, 0.0, 0.3, 0.5, 0.9):
        value = np.float32(share * integers.most(bits) * step)
        quantised = integers.encode(np.full(draws, value), exponent, bits, SOURCE(bits))
        mean = integers.decode(quantised, exponent).mean()
        part = value / step - math.floor(value / step)
        error = step * math.sqrt(part * (1 - part) / draws)
        assert abs(mean - value) <= 5 * error + step * 2**-23


def test_integers_on_the_scale_stay_as_they_are() -> None:
    values = np.arange(-7, 8, dtype=np.float32) * np.float32(2**-5)
    assert integers.encode(values, -5, 4, SOURCE(0)).tolist() == list(range(-7, 8))


def expected_error(values: np.ndarray, exponent: int, bits: int) -> float:
    """Of a mean of two: the variance of rounding halved, the bias of clipping squared."""
    step, most = 2.0**exponent, 2 ** (bits - 1) - 1
    error = 0.0
    for value in map(abs, map(float, values)):
        if value > most * step:
            error += (value - most * step) ** 2
        else:
            up = value / step - math.floor(value / step)
            error += (up * (step * (1 - up)) ** 2 + (1 - up) * (step * up) ** 2) / 2
    return error


@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=30), st.integers(2, 10))
def test_the_wanted_exponent_has_the_least_error(values: list[float], bits: int) -> None:
    array = np.array(values, np.float32)
    wanted = integers.wanted(array, bits)
    if not array.any():
        assert wanted is None
        return
    assert wanted is not None
    top = math.ceil(math.log2(np.abs(array).max() / (2 ** (bits - 1) - 1)))
    errors = {e: expected_error(array, e, bits) for e in range(top - 5, top + 3)}
    assert errors[wanted] <= min(errors.values()) * (1 + 1e-9) + 1e-300


def test_a_normal_distribution_is_clipped_where_that_pays() -> None:
    """4 bits: a range of 2 to 4 standard deviations, whatever the largest of a million is."""
    values = np.random.default_rng(1).normal(0, 1, 1_000_000).astype(np.float32)
    wanted = integers.wanted(values, 4)
    assert wanted is not None and 2 <= 7 * 2.0**wanted <= 4 < np.abs(values).max()


PATTERNS = st.integers(0, 2**32 - 1).map(lambda bits: np.uint32(bits).view(np.float32).item())
TIES = st.integers(0, 2**16 - 1).map(lambda b: np.uint32(b << 16 | 0x8000).view(np.float32).item())


@given(st.lists(st.one_of(PATTERNS, TIES).filter(np.isfinite), min_size=1))
def test_half_precisions_are_those_of_numpy_and_torch(values: list[float]) -> None:
    array = np.array(values, np.float32)
    inside = np.clip(array, -65504, 65504)
    halves = fp16.decode(fp16.encode(array, 0, 16, SOURCE(0)), 0)
    assert np.array_equal(halves, inside.astype(np.float16).astype(np.float64))
    brains = bf16.decode(bf16.encode(array, 0, 16, SOURCE(0)), 0)
    torchs = torch.from_numpy(array).bfloat16().double().numpy()
    finite = np.isfinite(torchs)
    assert np.array_equal(brains[finite], torchs[finite])
    assert np.isfinite(brains).all()
    exact = _float32.decode(_float32.encode(array, 0, 32, SOURCE(0)), 0)
    assert np.array_equal(exact, array)
