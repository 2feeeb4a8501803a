"""Pieces of a message: the shortest form, and frames that lie about their length."""

from __future__ import annotations

import struct
import tracemalloc

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from federation.codec import pieces
from federation.codec.packing import pack
from federation.messages import WireError


def piece(form: int, content: bytes) -> memoryview:
    return memoryview(struct.pack("<BI", form, len(content)) + content)


@given(
    st.integers(1, 32),
    st.integers(0, 400),
    st.sampled_from([1, 3, 19]),
    st.floats(0, 1),
    st.integers(0, 2**32 - 1),
)
def test_integers_come_back_and_no_piece_is_larger_than_said(
    bits: int, count: int, level: int, zeros: float, seed: int
) -> None:
    random = np.random.default_rng(seed)
    values = random.integers(0, 1 << bits, count) * (random.random(count) >= zeros)
    written = pieces.write(values, bits, level)
    assert len(written) <= pieces.largest_piece(count, bits)
    read, rest = pieces.read(memoryview(written + b"next"), count, bits)
    assert np.array_equal(read, values)
    assert bytes(rest) == b"next"


@pytest.mark.parametrize(
    ("values", "bits", "form"),
    [
        (np.random.default_rng(0).integers(0, 1 << 12, 5000), 12, 0),  # nothing to be gained
        (np.random.default_rng(0).integers(0, 2, 5000), 4, 1),
        (np.random.default_rng(0).integers(0, 300, 5000), 20, 2),
    ],
)
def test_the_shortest_form_is_taken(values: np.ndarray, bits: int, form: int) -> None:
    assert pieces.write(values, bits, 3)[0] == form


def test_a_frame_that_would_grow_is_refused_before_it_is_read() -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(1 << 28))
    assert len(bomb) < 1 << 15
    tracemalloc.start()
    for form in (1, 2):
        with pytest.raises(WireError):
            pieces.read(piece(form, bomb), 1000, 8)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def lying_frame(said: int, size: int) -> bytes:
    """A frame whose header says another length than its content has."""
    frame = bytearray(zstandard.ZstdCompressor().compress(bytes(size)))
    header = zstandard.get_frame_parameters(bytes(frame))
    assert header.content_size == size and size >= 256 + 256
    at = bytes(frame).index(struct.pack("<H", size - 256))
    frame[at : at + 2] = struct.pack("<H", said - 256)
    return bytes(frame)


def test_frames_that_lie_are_refused() -> None:
    right = zstandard.ZstdCompressor().compress(bytes(1000))
    assert pieces.read(piece(1, right), 1000, 8)[0].tolist() == [0] * 1000
    unsaid = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(1000))
    for wrong in (
        lying_frame(1000, 60_000),
        lying_frame(1000, 600),
        unsaid,
        right + right,
        right[:-1],
        b"",
        b"not zstd",
    ):
        with pytest.raises(WireError):
            pieces.read(piece(1, wrong), 1000, 8)


def test_planes_with_bits_that_no_integer_has_are_refused() -> None:
    compressed = zstandard.ZstdCompressor().compress(bytes([0, 0, 0, 16]))
    assert pieces.read(piece(2, compressed), 2, 13)[0].tolist() == [0, 1 << 12]
    with pytest.raises(WireError):
        pieces.read(piece(2, compressed), 2, 12)


@given(st.binary(max_size=60), st.integers(0, 20), st.integers(1, 32))
def test_any_bytes_are_a_piece_or_refused(blob: bytes, count: int, bits: int) -> None:
    try:
        values, _ = pieces.read(memoryview(blob), count, bits)
    except WireError:
        return
    assert len(values) == count and int(values.max(initial=0)) < 1 << bits


def test_unknown_forms_and_short_heads_are_refused() -> None:
    packed = pack(np.arange(4), 8)
    assert pieces.read(piece(0, packed), 4, 8)[0].tolist() == [0, 1, 2, 3]
    for wrong in (piece(3, packed), piece(0, packed)[:-1], piece(0, packed)[:4], memoryview(b"")):
        with pytest.raises(WireError):
            pieces.read(wrong, 4, 8)
