"""Packed integers against Python's own big integers, and bytes that nobody packed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.codec.packing import pack, packed_length, signed, unpack
from federation.messages import Reason, WireError


@st.composite
def integers(draw: st.DrawFn) -> tuple[int, list[int]]:
    bits = draw(st.integers(1, 32))
    values = st.integers(-(1 << 40), 1 << 40)
    return bits, draw(st.lists(values, max_size=300))


def as_one_number(values: list[int], bits: int) -> bytes:
    digits = "".join(f"{value % (1 << bits):0{bits}b}" for value in reversed(values))
    number = int(digits or "0", 2)
    return number.to_bytes((len(values) * bits + 7) // 8, "little")


@given(integers())
def test_the_bytes_are_those_of_one_large_number(case: tuple[int, list[int]]) -> None:
    bits, values = case
    packed = pack(np.array(values, np.int64), bits)
    assert packed == as_one_number(values, bits)
    assert len(packed) == packed_length(len(values), bits)
    assert unpack(packed, bits, len(values)).tolist() == [v % (1 << bits) for v in values]


@pytest.mark.parametrize("bits", [1, 3, 5, 11, 12, 13, 20, 27, 31, 32])
def test_long_vectors_over_several_parts(bits: int) -> None:
    length = 2 * 65_536 + 65  # more than the parts that are worked on at a time, and no whole group
    values = np.random.default_rng(bits).integers(0, 1 << bits, length)
    packed = pack(values, bits)
    assert packed == as_one_number(values.tolist(), bits)
    assert np.array_equal(unpack(packed, bits, length), values)


def test_known_answers() -> None:
    # 0b001 | 0b010 << 3 | 0b111 << 6, by hand
    assert pack(np.array([1, 2, 7]), 3) == bytes([0b11010001, 0b00000001])
    assert pack(np.array([0x123, 0x456, 0x789]), 12) == bytes.fromhex("236145 8907")
    assert pack(np.array([-1, 0, -2], np.int32), 4) == bytes([0x0F, 0x0E])
    assert pack(np.array([0xABCDE, 0x12345], np.uint32), 20) == bytes.fromhex("debc5a3412")
    assert pack(np.array([2**32 - 1, 1], np.uint32), 32) == bytes.fromhex("ffffffff01000000")


@given(st.integers(2, 32), st.data())
def test_signed_numbers_come_back(bits: int, data: st.DataObject) -> None:
    half = 1 << (bits - 1)
    values = data.draw(st.lists(st.integers(-half, half - 1), min_size=1, max_size=50))
    unpacked = unpack(pack(np.array(values, np.int64), bits), bits, len(values))
    assert signed(unpacked, bits).tolist() == values


@given(integers(), st.data())
def test_what_was_not_packed_is_refused(case: tuple[int, list[int]], data: st.DataObject) -> None:
    bits, values = case
    packed = pack(np.array(values, np.int64), bits)
    for wrong in (packed + b"\0", packed[:-1] if packed else b"\1"):
        with pytest.raises(WireError) as refused:
            unpack(wrong, bits, len(values))
        assert refused.value.reason is Reason.MALFORMED
    unused = 8 * len(packed) - bits * len(values)
    if unused:
        bit = data.draw(st.integers(8 - unused, 7))
        with pytest.raises(WireError):
            unpack(packed[:-1] + bytes([packed[-1] | 1 << bit]), bits, len(values))


@pytest.mark.parametrize("bits", [0, 33, -1])
def test_other_widths_are_refused(bits: int) -> None:
    with pytest.raises(ValueError, match="1 to 32"):
        pack(np.zeros(1, np.int32), bits)
    with pytest.raises(ValueError, match="1 to 32"):
        unpack(b"", bits, 0)
