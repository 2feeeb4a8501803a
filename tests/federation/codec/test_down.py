"""The model on its way down: the same bits at both sides, and nothing that drifts."""

from __future__ import annotations

import copy
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.codec import down
from federation.messages import Arrays, Reason, WireError
from tests.federation.codec.networks import network, update_of

HELD = {name: tensor.numpy().copy() for name, tensor in network().state_dict().items()}


def moved(held: Arrays, seed: int, size: float) -> Arrays:
    update = update_of(network(), seed, size)
    return {name: np.asarray(array + update[name], array.dtype) for name, array in held.items()}


def same(one: Arrays, other: Arrays) -> bool:
    return one.keys() == other.keys() and all(
        np.array_equal(one[name], other[name])
        and one[name].dtype == other[name].dtype
        and one[name].shape == other[name].shape
        for name in one
    )


@settings(max_examples=60)
@given(
    st.integers(4, 16),
    st.floats(-12, 6),
    st.sampled_from(["float32", "float64", "float16"]),
    st.integers(0, 2**31),
)
def test_both_sides_have_the_same_bits_and_a_small_error(
    bits: int, magnitude: float, dtype: str, seed: int
) -> None:
    held = {n: a.astype(dtype) if a.dtype.kind == "f" else a for n, a in HELD.items()}
    size = 10 ** min(magnitude, 3.0) if dtype == "float16" else 10**magnitude
    new = moved(held, seed, size)
    before = copy.deepcopy(held)
    blob, made, residual = down.difference(held, new, None, bits=bits, level=1)
    assert len(blob) <= down.largest_blob(held)
    assert same(down.apply(held, blob), made)
    assert same(held, before)
    for name, array in new.items():
        if array.dtype.kind != "f":
            assert np.array_equal(made[name], array)
            continue
        change = array.astype(np.float64) - held[name]
        # half of the smallest step with which the largest difference is an integer, and one rounding
        step = 2 * np.abs(change).max() / (2 ** (bits - 1) - 1)
        rounded = np.abs(made[name].astype(np.float64)) * np.finfo(dtype).eps
        error = np.abs(made[name].astype(np.float64) - array)
        tiny = float(np.finfo(dtype).smallest_subnormal)
        assert (error <= step / 2 + rounded + tiny).all()
        rest = array.astype(np.float64) - made[name]
        assert np.allclose(residual[name], rest, rtol=1e-6, atol=1e-30)


def test_nothing_drifts_and_what_was_rounded_off_comes_later() -> None:
    """50 rounds of 4 bits: all that is missing of the exact sum is the last round's residual."""
    coordinator = hospital = HELD
    exact = {n: a.astype(np.float64) for n, a in HELD.items()}
    residual: Arrays | None = None
    for round in range(50):
        update = update_of(network(), round, 0.01)
        new = {n: np.asarray(a + update[n], a.dtype) for n, a in coordinator.items()}
        exact = {n: a + (new[n].astype(np.float64) - coordinator[n]) for n, a in exact.items()}
        blob, coordinator, residual = down.difference(coordinator, new, residual, bits=4, level=3)
        hospital = down.apply(hospital, blob)
        assert same(hospital, coordinator)
    assert residual is not None
    for name, array in exact.items():
        missing = array - coordinator[name]
        expected = residual.get(name, 0)
        assert np.allclose(missing, expected, atol=1e-5), name


def test_a_model_that_did_not_change_takes_next_to_nothing() -> None:
    blob, made, residual = down.difference(HELD, HELD, None, bits=8, level=3)
    assert same(made, HELD) and len(blob) < 150
    assert not any(array.any() for array in residual.values())


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_the_step_is_the_smallest_that_holds_the_largest_difference(bits: int) -> None:
    most = 2 ** (bits - 1) - 1
    for largest in (1.0, most * 0.25, most * 0.25 * 1.0000001, 3e-7):
        exponent = down._exponent(largest, bits)
        assert largest <= most * 2.0**exponent
        assert largest > most * 2.0 ** (exponent - 1)


def test_another_model_than_the_one_held_is_noticed() -> None:
    blob, _, _ = down.difference(HELD, moved(HELD, 1, 0.01), None, bits=8, level=3)
    other = copy.deepcopy(HELD)
    other["0.bias"][3] = np.nextafter(other["0.bias"][3], np.float32(9))
    with pytest.raises(WireError) as refused:
        down.apply(other, blob)
    assert refused.value.reason is Reason.NO_MODEL


def test_a_new_model_that_is_not_finite_or_another_one_is_refused() -> None:
    spoilt = moved(HELD, 1, 0.01)
    spoilt["3.weight"][0, 0, 0, 0] = np.inf
    cases = [
        (spoilt, Reason.NOT_FINITE),
        ({n: a for n, a in HELD.items() if n != "0.bias"}, Reason.WRONG_NAMES),
        (HELD | {"0.bias": np.zeros(9, np.float32)}, Reason.WRONG_SHAPE),
        (HELD | {"0.bias": np.zeros(8)}, Reason.WRONG_DTYPE),
    ]
    for new, reason in cases:
        with pytest.raises(WireError) as refused:
            down.difference(HELD, new, None, bits=8, level=3)
        assert refused.value.reason is reason


@settings(max_examples=150)
@given(st.data())
def test_mutants_are_refused(data: st.DataObject) -> None:
    """The check over the new model leaves a changed difference no way in."""
    right, made, _ = down.difference(HELD, moved(HELD, 2, 0.01), None, bits=5, level=3)
    blob = bytearray(right)
    at = data.draw(st.one_of(st.integers(0, 60), st.integers(0, len(blob) - 1)))
    match data.draw(st.sampled_from(["change", "cut", "insert"])):
        case "change":
            blob[at] = data.draw(st.integers(0, 255))
        case "cut":
            del blob[at : at + data.draw(st.integers(1, 50))]
        case "insert":
            blob[at:at] = data.draw(st.binary(max_size=20))
    try:
        found = down.apply(HELD, bytes(blob))
    except WireError:
        return
    assert same(found, made)


def test_what_is_too_large_is_refused_unread() -> None:
    tracemalloc.start()
    with pytest.raises(WireError) as refused:
        down.apply(HELD, bytes(down.largest_blob(HELD) + 1))
    assert refused.value.reason is Reason.TOO_LARGE
    assert tracemalloc.get_traced_memory()[1] < 4 * down.largest_blob(HELD)
    tracemalloc.stop()
    assert down.largest_blob(HELD) < 3 * sum(array.size for array in HELD.values())
