"""Sums under one key for the tests of CKKS."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import pytest

from federation.messages import Reason, WireError
from federation.secure_aggregation import ciphertexts
from federation.secure_aggregation.ciphertexts import (
    Packing,
    pack_residues,
)
from federation.secure_aggregation.ckks import Ckks, HospitalKey
from federation.secure_aggregation.scheme import Integers, Opened, Scheme, Sum

SCHEME: Scheme[HospitalKey, Opened] = Ckks()


def a_sum(hospitals: int = 3, size: int = 100, bits: int = 16, **changes: Any) -> Sum:
    members = tuple(f"hospital-{number:04}" for number in range(hospitals))
    given: dict[str, Any] = {"run": "run", "round": 1, "name": "update", "least": 2}
    given["roster"] = "0" * 64
    return Sum(members=members, size=size, bits=bits, **(given | changes))


@lru_cache(maxsize=1)
def a_key() -> HospitalKey:
    return SCHEME.make_key()


def encrypted(of: Sum, values: Integers, hospital: int = 0) -> bytes:
    return SCHEME.encrypt(a_key(), of, of.members[hospital], values)


def summed(of: Sum, vectors: list[Integers]) -> bytes:
    total = SCHEME.total(a_key().public.to_bytes(), of)
    for hospital, values in zip(of.members, vectors, strict=False):
        total.add(hospital, SCHEME.encrypt(a_key(), of, hospital, values))
    return total.to_bytes()


def opened(of: Sum, total: bytes) -> Opened:
    return SCHEME.combine(of, [SCHEME.partial_decrypt(a_key(), of, total)])


def reason(function: Callable[..., object], *given: Any) -> Reason:
    with pytest.raises(WireError) as failure:
        function(*given)
    return failure.value.reason


@lru_cache(maxsize=1)
def three() -> tuple[Sum, list[bytes], bytes]:
    """A sum of three, its blobs and its total."""
    of = a_sum()
    blobs = [encrypted(of, np.arange(100) - 50, hospital) for hospital in range(3)]
    total = SCHEME.total(a_key().public.to_bytes(), of)
    for hospital, blob in zip(of.members, blobs, strict=True):
        total.add(hospital, blob)
    return of, blobs, total.to_bytes()


def with_c0(blob: bytes, of: Sum, change: Callable[[Any], Any]) -> bytes:
    parsed = ciphertexts.Blob.parse(blob, a_key().public, of)
    packing = Packing.of(of)
    c0 = change(parsed.residues(slice(0, packing.ciphertexts)))
    start = len(ciphertexts.head(a_key().public, of, 1))
    return blob[:start] + pack_residues(c0) + blob[start + packing.c0_bytes :]
