"""Homomorphic encryption as the rounds see it: make a key, encrypt, add, decrypt in part, combine.

A scheme with one shared key (`federation.secure_aggregation.ckks`) decrypts in a single part. Under a
threshold scheme, whose key no hospital holds alone, each hospital would make its part and the parts of
enough of them would be combined; the steps are the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]

_LARGEST_SIZE = 1 << 36


@dataclass(frozen=True)
class Sum:
    """One sum that hospitals make together. All of it is public; both sides build it by themselves.

    Attributes:
        run, round, name: which vector this is; each hospital encrypts one vector for a sum.
        members: hospitals that may be in it, sorted; their number sets the headroom.
        least: fewest hospitals whose sum a hospital decrypts.
        roster: SHA-256 of the roster, hexadecimal.
        size: integers in the vector.
        bits: b, each integer lies in (-2**(b-1), 2**(b-1)).
    """

    run: str
    round: int
    name: str
    members: tuple[str, ...]
    least: int
    roster: str
    size: int
    bits: int

    def __post_init__(self) -> None:
        if list(self.members) != sorted(set(self.members)):
            raise ValueError("members must be sorted, each once")
        if not 2 <= self.least <= len(self.members) <= 1000:
            raise ValueError("least must lie in 2 … members, of which there are at most 1000")
        if not 0 < self.size <= _LARGEST_SIZE or not 2 <= self.bits <= 64:
            raise ValueError("size must be at least 1 and bits lie in 2 … 64")

    @property
    def width(self) -> int:
        """Bits, the sign among them, that hold the sum of all members: b + ceil(log2 n)."""
        return self.bits + (len(self.members) - 1).bit_length()

    def sha256(self) -> bytes:
        """What ciphertexts are bound to."""
        return hashlib.sha256(
            b"consilium sum\n" + json.dumps(asdict(self), sort_keys=True).encode()
        ).digest()


@dataclass(frozen=True)
class Opened:
    """A decrypted sum: exact integers int64 (size,), and the hospitals whose vectors it adds."""

    values: Integers
    hospitals: tuple[str, ...]


class Total(Protocol):
    """The coordinator's running sum of ciphertexts; it holds nothing that decrypts."""

    @property
    def hospitals(self) -> tuple[str, ...]: ...

    def add(self, hospital: str, blob: bytes) -> None:
        """Raises WireError: not one ciphertext by this hospital for this sum; the total is unchanged."""

    def to_bytes(self) -> bytes: ...


Key = TypeVar("Key")
Part = TypeVar("Part")


class Scheme(Protocol[Key, Part]):
    """Additively homomorphic encryption of vectors of signed integers; sums come out exact."""

    def make_key(self) -> Key:
        """At a hospital. What of it is public, and what is passed on sealed, is the key's to say."""

    def encrypt(self, key: Key, of: Sum, hospital: str, values: Integers) -> bytes:
        """One hospital's vector."""

    def total(self, public: bytes, of: Sum) -> Total:
        """At the coordinator: an empty sum, to which blobs are added as they arrive."""

    def partial_decrypt(self, key: Key, of: Sum, total: bytes) -> Part:
        """What this hospital's key makes of the total."""

    def combine(self, of: Sum, parts: Sequence[Part]) -> Opened:
        """The sum itself, at a hospital."""


# --- integers that are wider than a scheme carries ------------------------------------------------

LIMB_BITS = 17  # of each limb, signed
_RADIX = 1 << (LIMB_BITS - 1)
_LIMBS = 5  # 64 bits in digits of 16, and what the balanced digits carry over


def to_limbs(values: Integers) -> Integers:
    """64-bit integers (size,) as 5 digits each, int64 (5 * size,), in base 2**16 and least first.

    Digits lie in [-2**15, 2**15): they are summed as integers of `LIMB_BITS` bits.
    """
    rest = np.array(values, np.int64)
    limbs = np.empty((_LIMBS, rest.size), np.int64)
    for place in range(_LIMBS):
        low = rest & (_RADIX - 1)
        carry = low >= _RADIX // 2
        limbs[place] = low - carry * _RADIX
        rest = (rest >> (LIMB_BITS - 1)) + carry  # no overflow: after a shift there is room
    return limbs.reshape(-1)


def from_limbs(sums: Integers) -> list[int]:
    """The exact sums of what `to_limbs` took apart; they can be wider than 64 bits."""
    limbs = np.asarray(sums, np.int64).reshape(_LIMBS, -1)
    return [
        sum(int(limb) << ((LIMB_BITS - 1) * place) for place, limb in enumerate(column))
        for column in limbs.T
    ]
