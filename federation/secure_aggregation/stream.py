"""Masks as streams of AES-256 in counter mode, on vectors of integers modulo 2**bits.

A mask is the stream's bytes (NIST SP 800-38A, the counter from 0) as little-endian words of the smallest
unsigned type that holds b bits, one a number, modulo 2**b.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

Unsigned = NDArray[np.unsignedinteger[Any]]
Signed = NDArray[np.signedinteger[Any]]

_AT_ONCE = 1 << 18  # bytes made at a time: they stay in the processor's cache
_BLOCK = 16  # bytes of AES
_MOST_THREADS = 8


@dataclass(frozen=True)
class Stream:
    """One mask: `key` serves one vector, ever."""

    key: bytes = field(repr=False)
    sign: Literal[1, -1]


def word(bits: int) -> np.dtype[Any]:
    """The smallest unsigned type that holds `bits` bits, 1 to 64."""
    if not 1 <= bits <= 64:
        raise ValueError("a number of a masked vector has 1 to 64 bits")
    return np.dtype(f"u{next(size for size in (1, 2, 4, 8) if 8 * size >= bits)}")


def headroom(bits: int, weight: int) -> int:
    """Bits of a sum of `bits`-bit numbers: bits + ceil(log2 weight).

    Args:
        weight: how many are added; with weights, what these add up to.
    """
    if weight < 1:
        raise ValueError("a sum has at least one term")
    return bits + (weight - 1).bit_length()


def to_residues(values: Signed, bits: int) -> Unsigned:
    """Signed numbers in [-2**(bits-1), 2**(bits-1)) modulo 2**bits, as a vector to be masked.

    Where their type is as wide as `word(bits)` it is the same memory, which is changed.
    """
    kind = word(bits)
    residues: Unsigned = (
        values.view(kind)
        if values.itemsize == kind.itemsize
        else values.astype(kind, casting="unsafe")
    )
    return _reduce(residues, bits)


def from_residues(residues: Unsigned, bits: int) -> Signed:
    """The signed numbers in [-2**(bits-1), 2**(bits-1)), in the same memory, which is changed."""
    _check(residues, bits)
    rest = 8 * residues.itemsize - bits
    signed: Signed = residues.view(f"i{residues.itemsize}")
    if rest:
        residues <<= residues.dtype.type(rest)
        signed >>= signed.dtype.type(rest)  # fills with the sign
    return signed


def add(vector: Unsigned, bits: int, streams: Sequence[Stream]) -> None:
    """vector ← vector ± each stream, modulo 2**bits, in place and piece by piece, on several threads.

    Args:
        vector: (length,), contiguous, of the type `word(bits)` or a wider unsigned one. Its numbers
            are reduced modulo 2**bits.

    Raises:
        ValueError: another vector.
    """
    _check(vector, bits)
    step = _AT_ONCE // word(bits).itemsize
    pieces = -(-len(vector) // step)
    threads = max(1, min(_threads(), pieces))
    per_thread = -(-pieces // threads) * step
    with ThreadPoolExecutor(threads) as pool:
        done = [
            pool.submit(_add_from, start, vector[start : start + per_thread], bits, streams)
            for start in range(0, len(vector), max(per_thread, 1))
        ]
        for one in done:
            one.result()


def _add_from(start: int, part: Unsigned, bits: int, streams: Sequence[Stream]) -> None:
    """`add` on the part of a vector that begins at number `start`, where a block of AES begins."""
    kind = word(bits).newbyteorder("<")
    counter = (start * kind.itemsize // _BLOCK).to_bytes(_BLOCK)
    ciphers = [
        Cipher(algorithms.AES(stream.key), modes.CTR(counter)).encryptor() for stream in streams
    ]
    zeros, made = memoryview(bytes(_AT_ONCE)), bytearray(_AT_ONCE)
    words = np.frombuffer(made, kind)
    for begin in range(0, len(part), len(words)):
        piece = part[begin : begin + len(words)]
        for stream, cipher in zip(streams, ciphers, strict=True):
            cipher.update_into(zeros[: len(piece) * kind.itemsize], made)
            if stream.sign > 0:
                piece += words[: len(piece)]
            else:
                piece -= words[: len(piece)]
        _reduce(piece, bits)


def _reduce(residues: Unsigned, bits: int) -> Unsigned:
    if bits < 8 * residues.itemsize:
        residues &= residues.dtype.type((1 << bits) - 1)
    return residues


def _check(vector: Unsigned, bits: int) -> None:
    fits = vector.dtype.kind == "u" and vector.itemsize >= word(bits).itemsize
    flat = vector.ndim == 1 and vector.flags.c_contiguous and vector.flags.writeable
    if not fits or not flat:
        raise ValueError(
            f"a vector of {bits}-bit numbers is flat, contiguous and at least {word(bits)}, "
            f"not {vector.dtype} of shape {vector.shape}"
        )


def _threads() -> int:
    mine = getattr(os, "sched_getaffinity", None)  # not on every system
    return min(_MOST_THREADS, len(mine(0)) if mine else os.cpu_count() or 1)
