"""Integers of b bits in as few bytes as they need.

The bytes are those of the number Σ xᵢ·2^(b·i), little-endian: integer i takes the bits b·i to
b·i + b − 1, and bit j is bit j mod 8 of byte ⌊j / 8⌋. The bits after the last integer are 0.
"""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from federation.messages import Reason, WireError

MOST_BITS = 32
_GROUP = 64  # integers that fill whole words of 64 bits, whatever b is
_AT_ONCE = 1 << 10  # groups worked on at a time: they stay in the processor's cache


def packed_length(count: int, bits: int) -> int:
    """Bytes that `count` integers of `bits` bits take."""
    return (count * bits + 7) // 8


def pack(integers: NDArray[Any], bits: int) -> bytes:
    """The integers mod 2^bits, one after the other.

    Args:
        integers: (n,) of any integer type; negative ones count as 2^bits + them.
        bits: 1 to 32.
    """
    _require_bits(bits)
    count = len(integers)
    kind = _word(bits)
    if bits == 8 * kind.itemsize:
        return integers.astype(kind, copy=False).tobytes()
    packed = BytesIO()  # whose content is handed over without a copy
    for first in range(0, count, _AT_ONCE * _GROUP):
        part = integers[first : first + _AT_ONCE * _GROUP]
        rows = -(-len(part) // _GROUP)
        padded = np.zeros(rows * _GROUP, kind)
        padded[: len(part)] = part.astype(kind, copy=False)
        packed.write(np.ascontiguousarray(_to_words(*_joined(padded, bits), rows), "<u8").data)
    packed.truncate(packed_length(count, bits))
    return packed.getvalue()


def unpack(packed: bytes | memoryview, bits: int, length: int) -> NDArray[np.uint32]:
    """What `pack` was given, mod 2^bits: uint32 (length,).

    Raises:
        WireError: other than the exact number of bytes, or a bit behind the last integer is not 0.
    """
    _require_bits(bits)
    size = packed_length(length, bits)
    if len(packed) != size:
        raise WireError(Reason.MALFORMED)
    if length == 0:
        return np.empty(0, np.uint32)
    unused = 8 * size - bits * length
    if packed[-1] >> (8 - unused):
        raise WireError(Reason.MALFORMED)
    if bits == 8 * _word(bits).itemsize:
        return np.frombuffer(packed, _word(bits)).astype(np.uint32)
    groups = -(-length // _GROUP)
    unpacked = np.empty((groups, _GROUP), np.uint32)
    group_bytes = 8 * bits
    for first in range(0, groups, _AT_ONCE):
        part = bytes(packed[first * group_bytes : (first + _AT_ONCE) * group_bytes])
        rows = -(-len(part) // group_bytes)
        words = np.frombuffer(part.ljust(rows * group_bytes, b"\0"), "<u8").reshape(rows, bits)
        unpacked[first : first + rows] = _parted(_from_words(words, bits), bits).reshape(rows, -1)
    return unpacked.reshape(-1)[:length]


def signed(integers: NDArray[np.uint32], bits: int) -> NDArray[np.int32]:
    """Numbers mod 2^bits as those nearest to 0: −2^(bits−1) to 2^(bits−1) − 1."""
    shift = np.int32(MOST_BITS - bits)
    return (integers.astype(np.uint32).view(np.int32) << shift) >> shift


def _word(bits: int) -> np.dtype[Any]:
    """The smallest unsigned type for integers of so many bits, little-endian."""
    return np.dtype(f"<u{next(size for size in (1, 2, 4) if 8 * size >= bits)}")


def _joined(integers: NDArray[Any], bits: int) -> tuple[NDArray[np.uint64], int]:
    """Neighbours in one word of 64 bits, without room between them, and how many bits they take."""
    while (size := integers.itemsize) < 8:
        kind = np.dtype(f"<u{2 * size}")
        low = kind.type((1 << bits) - 1)
        pairs = integers.view(kind)
        integers = pairs >> kind.type(8 * size - bits)
        integers &= low << kind.type(bits)
        integers |= pairs & low
        bits *= 2
    return integers, bits


def _parted(words: NDArray[np.uint64], bits: int) -> NDArray[Any]:
    """What `_joined` was given, with all other bits 0."""
    kind = _word(bits)
    integers: NDArray[Any] = words
    while (half := integers.itemsize // 2) >= kind.itemsize:
        wide = integers.dtype.type
        held = bits * (half // kind.itemsize)  # bits of what goes into each half
        low = wide((1 << held) - 1)
        upper = integers >> wide(held)
        upper &= low
        upper <<= wide(8 * half)
        integers = integers & low
        integers |= upper
        integers = integers.view(f"<u{half}")
    return integers


def _to_words(integers: NDArray[np.uint64], bits: int, rows: int) -> NDArray[np.uint64]:
    """Integers of up to 64 bits, so many in each row, with no room between them."""
    columns = np.ascontiguousarray(integers.reshape(rows, -1).T)
    words = np.zeros((len(columns) * bits // 64, rows), np.uint64)
    for at, column in enumerate(columns):
        word, offset = divmod(at * bits, 64)
        words[word] |= column << np.uint64(offset)
        if offset + bits > 64:
            words[word + 1] |= column >> np.uint64(64 - offset)
    return words.T


def _from_words(words: NDArray[np.uint64], bits: int) -> NDArray[np.uint64]:
    """(rows, bits) to (integers,): joined as `_joined` gives them; the bits above may be any."""
    together = 8 // _word(bits).itemsize
    wide = bits * together
    columns = np.ascontiguousarray(words.T)
    joined = np.empty((_GROUP // together, len(words)), np.uint64)
    for at in range(len(joined)):
        word, offset = divmod(at * wide, 64)
        np.right_shift(columns[word], np.uint64(offset), out=joined[at])
        if offset + wide > 64:
            joined[at] |= columns[word + 1] << np.uint64(64 - offset)
    return np.ascontiguousarray(joined.T).reshape(-1)


def _require_bits(bits: int) -> None:
    if not 1 <= bits <= MOST_BITS:
        raise ValueError(f"integers of {bits} bits cannot be packed: 1 to {MOST_BITS}")
