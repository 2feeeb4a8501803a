"""A tag that adds up as the vectors do, so that who adds ciphertexts cannot change what is in them.

Encryption hides numbers and lets anybody shift them. Hospital i therefore encrypts beside its vector m
the tag ⟨r, m⟩ + f(i) modulo p = 2⁶¹ - 1 (Agrawal & Boneh 2009, "Homomorphic MACs", section 4, with one
round's vectors alone). r, a number of the field for each entry, and f are drawn from a key that only
hospitals have, anew for every sum. Of a sum of vectors the tags' sum is ⟨r, Σ m⟩ + Σ f(i) over just
the hospitals in it. To shift entries by Δ ≠ 0 and the tag by t one has to have ⟨r, Δ⟩ = t: chance 1/p.
Nothing of r is ever in the open, since the tags themselves are encrypted.

Whoever has the run's key can make tags: this keeps out the coordinator, not a hospital.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from federation.secure_aggregation.keys import derived

PRIME = (1 << 61) - 1
_BITS = 61

_AT_ONCE = 1 << 16  # entries: sums of so many products of 2 * 23 bits fit in 63
_LIMB = 23  # bits; three hold a number of the field
_LIMBS = 3


def length(bits: int) -> int:
    """Entries that a tag takes beside a vector whose entries have so many bits, sign included."""
    return -(-_BITS // (bits - 1))


def tag(key: bytes, hospital: str, values: NDArray[np.int64], bits: int) -> NDArray[np.int64]:
    """A hospital's, as `length(bits)` digits in base 2**(bits - 1), least first.

    Args:
        key: 32 bytes; serves one sum.
        values: of magnitude below 2**45.
    """
    number = expected(key, [hospital], values)
    digits = [number >> (bits - 1) * place & (1 << (bits - 1)) - 1 for place in range(length(bits))]
    return np.array(digits, np.int64)


def expected(key: bytes, hospitals: Iterable[str], total: NDArray[np.int64]) -> int:
    """The tag modulo p that the sum of these hospitals' vectors has, if `total` is that sum."""
    own = sum(int.from_bytes(derived(key, "mac of a hospital", name)) for name in hospitals)
    return (_product(derived(key, "mac of entries"), total) + own) % PRIME


def of_digits(digits: NDArray[np.int64], bits: int) -> int:
    """A sum of tags modulo p, from the sums of their digits."""
    return sum(int(digit) << (bits - 1) * place for place, digit in enumerate(digits)) % PRIME


def _product(key: bytes, values: NDArray[np.int64]) -> int:
    """⟨r, values⟩ modulo p; r are the words of AES-256-CTR under `key`, modulo 2**61."""
    result = 0
    for numbers, piece in zip(_field(key, len(values)), _pieces(values), strict=True):
        low = piece & ((1 << _LIMB) - 1)
        parts = [low, piece >> _LIMB]  # the higher part has the sign
        for place in range(_LIMBS):
            limbs = numbers >> np.int64(_LIMB * place) & np.int64((1 << _LIMB) - 1)
            for at, part in enumerate(parts):
                result += int(np.dot(limbs, part)) << _LIMB * (place + at)
    return result % PRIME


def _field(key: bytes, count: int) -> Iterator[NDArray[np.int64]]:
    encryptor = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
    for start in range(0, count, _AT_ONCE):
        words = np.frombuffer(encryptor.update(bytes(8 * min(_AT_ONCE, count - start))), "<u8")
        yield (words >> np.uint64(64 - _BITS)).astype(np.int64)


def _pieces(values: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    for start in range(0, len(values), _AT_ONCE):
        yield values[start : start + _AT_ONCE]
