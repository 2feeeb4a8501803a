"""The bytes of a message: vectors of small integers, each in whichever of three forms is the shortest.

A piece is a form (one byte), the number of bytes that follow (uint32, little-endian) and these:

    0  the integers packed (`packing`)
    1  the same, as a zstd frame
    2  byte planes (all lowest bytes, then all second ones …) as a zstd frame

Reading takes the number of integers and their bits from the experiment, never from the message, so a
frame that would give other than the one possible length is refused before anything is decompressed.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from federation.codec.packing import pack, packed_length, unpack
from federation.messages import Reason, WireError

_HEAD = struct.Struct("<BI")
_PACKED, _PACKED_ZSTD, _PLANES_ZSTD = range(3)


def largest_piece(count: int, bits: int) -> int:
    """Bytes that a piece of `count` integers takes at most."""
    return _HEAD.size + packed_length(count, bits)


def write(integers: NDArray[Any], bits: int, level: int) -> bytes:
    """The piece of the integers mod 2^bits; `level` is zstd's, 1 to 19."""
    packed = pack(integers, bits)
    forms = [packed, _compressed(packed, level)]
    if bits != 8:  # else they are the same bytes
        forms.append(_compressed(_planes(integers, bits), level))
    shortest = min(range(len(forms)), key=lambda form: len(forms[form]))
    return _HEAD.pack(shortest, len(forms[shortest])) + forms[shortest]


def read(blob: memoryview, count: int, bits: int) -> tuple[NDArray[np.uint32], memoryview]:
    """The integers mod 2^bits of the piece that a blob begins with, and what comes after it.

    Raises:
        WireError: not such a piece.
    """
    if len(blob) < _HEAD.size:
        raise WireError(Reason.MALFORMED)
    form, size = _HEAD.unpack(blob[: _HEAD.size])
    content, rest = blob[_HEAD.size : _HEAD.size + size], blob[_HEAD.size + size :]
    if len(content) != size:
        raise WireError(Reason.MALFORMED)
    if form == _PACKED:
        return unpack(content, bits, count), rest
    if form == _PACKED_ZSTD:
        packed = _decompressed(content, packed_length(count, bits))
        return unpack(packed, bits, count), rest
    if form == _PLANES_ZSTD:
        planes = _decompressed(content, count * _bytes_of(bits))
        return _from_planes(planes, bits, count), rest
    raise WireError(Reason.MALFORMED)


def _bytes_of(bits: int) -> int:
    return (bits + 7) // 8


def _planes(integers: NDArray[Any], bits: int) -> bytes:
    size = _bytes_of(bits)
    numbers = integers.astype(np.int64, copy=False).astype("<u4")
    if bits < 32:
        numbers &= np.uint32((1 << bits) - 1)
    return numbers.view(np.uint8).reshape(-1, 4)[:, :size].T.tobytes()


def _from_planes(planes: bytes, bits: int, count: int) -> NDArray[np.uint32]:
    size = _bytes_of(bits)
    by_number = np.zeros((count, 4), np.uint8)
    by_number[:, :size] = np.frombuffer(planes, np.uint8).reshape(size, count).T
    numbers: NDArray[np.uint32] = by_number.view("<u4").reshape(count)
    if bits < 32 and count and int(numbers.max()) >> bits:
        raise WireError(Reason.MALFORMED)
    return numbers


def _compressed(content: bytes, level: int) -> bytes:
    return zstandard.ZstdCompressor(level=level).compress(content)


def _decompressed(frame: memoryview, size: int) -> bytes:
    """A zstd frame of exactly `size` bytes; the memory it takes is bounded by that."""
    try:
        if zstandard.frame_content_size(frame) != size:
            raise WireError(Reason.MALFORMED)
        content = zstandard.ZstdDecompressor().decompress(
            frame, max_output_size=size, allow_extra_data=False
        )
    except zstandard.ZstdError as error:
        raise WireError(Reason.MALFORMED) from error
    if len(content) != size:
        raise WireError(Reason.MALFORMED)
    return content
