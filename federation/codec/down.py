"""The global model on its way down, as a difference to the one that a hospital holds.

    held, new → q = round((new + residual − held) / 2^e), e for each array → bytes
    held + q·2^e, rounded to the array's dtype = the new global model, at both sides

Each array's step 2^e is the smallest with which its largest difference has an integer of b bits, so no
value is off by more than half of it: 2^-(b−1) of the array's largest difference, or a little more. The
coordinator goes on from the same model that the hospitals get, so nothing drifts; what rounding left
over is the residual, and goes with the next difference. Integers (counters) travel exactly.

The bytes, after version and bits: SHA-256 of the new model (16 bytes of it), exponents, q, counters'
differences; `pieces` has the form of the last three. Names and shapes do not travel.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from federation.codec import pieces
from federation.codec.packing import signed
from federation.codec.stages import chunks
from federation.messages import Arrays, Reason, WireError

_VERSION = 1
_BITS = range(4, 17)
_CHECK = 16  # bytes of SHA-256
_EXPONENT_BITS = 12
_LOWEST = -1100  # exponents: below all of float64, and within 12 bits


def difference(
    held: Arrays, new: Arrays, residual: Arrays | None, *, bits: int, level: int
) -> tuple[bytes, Arrays, Arrays]:
    """What makes the new model of the one that the hospitals hold.

    Args:
        held, new: with the same names, dtypes (floats and integers) and shapes.
        residual: what the last call gave, float32 by the names of the float arrays; None at first.
        bits: 4 to 16; `level`: zstd's, 1 to 19.

    Returns:
        The bytes for `apply`; the model that it makes of them, which is the global model from here on;
        and the residual.

    Raises:
        WireError: a new value is not finite, or held and new are not alike.
    """
    _require_alike(held, new)
    exponents: list[int] = []
    integers: list[NDArray[np.int32]] = []
    counters: list[NDArray[np.int64]] = []
    made: Arrays = {}
    rest: Arrays = {}
    for name in sorted(held):
        old = held[name]
        if old.dtype.kind != "f":
            made[name] = new[name].copy()
            counters.append(_counter(new[name]) - _counter(old))
            continue
        change = _Change(old, new[name], None if residual is None else residual[name])
        exponent = _exponent(change.largest(), bits)
        made[name], rest[name], steps = change.taken(exponent)
        exponents.append(exponent)
        integers.append(steps)
    blob = b"".join(
        [
            bytes([_VERSION, bits]),
            _check(made),
            pieces.write(np.array(exponents, np.int32), _EXPONENT_BITS, level),
            pieces.write(_joined(integers, np.int32), bits, level),
            pieces.write(_joined(counters, np.int64).view(np.uint32), 32, level),
        ]
    )
    return blob, made, rest


def apply(held: Arrays, blob: bytes) -> Arrays:
    """The model that `difference` made, to the last bit; `held` is left as it is.

    Raises:
        WireError: not such bytes; `NO_MODEL`: they belong to another model than the one that is held.
    """
    if len(blob) > largest_blob(held):
        raise WireError(Reason.TOO_LARGE)
    if len(blob) < 2 + _CHECK or blob[0] != _VERSION or blob[1] not in _BITS:
        raise WireError(Reason.MALFORMED)
    bits = blob[1]
    floats = [name for name in sorted(held) if held[name].dtype.kind == "f"]
    others = [name for name in sorted(held) if held[name].dtype.kind != "f"]
    left = memoryview(blob)[2 + _CHECK :]
    exponents, left = pieces.read(left, len(floats), _EXPONENT_BITS)
    integers, left = pieces.read(left, sum(held[name].size for name in floats), bits)
    counters, left = pieces.read(left, 2 * sum(held[name].size for name in others), 32)
    if left:
        raise WireError(Reason.MALFORMED)
    made: Arrays = {}
    at = 0
    for name, exponent in zip(floats, signed(exponents, _EXPONENT_BITS).tolist(), strict=True):
        if not _LOWEST <= exponent <= -_LOWEST:
            raise WireError(Reason.MALFORMED)
        old, made[name] = held[name], np.empty(held[name].shape, held[name].dtype)
        before, after = old.reshape(-1), made[name].reshape(-1)
        for part in chunks(0, old.size):
            steps = signed(integers[at : at + old.size][part], bits)
            after[part] = _moved(before[part], steps, exponent)
        at += old.size
    at = 0
    for name in others:
        changes = counters[2 * at : 2 * (at + held[name].size)].view(np.int64)
        made[name] = _with_counter(held[name], changes)
        at += held[name].size
    if _check(made) != blob[2 : 2 + _CHECK]:
        raise WireError(Reason.NO_MODEL)
    return made


def largest_blob(held: Arrays) -> int:
    """Bytes that a difference to this model takes at most."""
    floats = [array.size for array in held.values() if array.dtype.kind == "f"]
    others = [array.size for array in held.values() if array.dtype.kind != "f"]
    return (
        2
        + _CHECK
        + pieces.largest_piece(len(floats), _EXPONENT_BITS)
        + pieces.largest_piece(sum(floats), _BITS[-1])
        + pieces.largest_piece(2 * sum(others), 32)
    )


def _exponent(largest: float, bits: int) -> int:
    """The smallest e with largest ≤ (2^(bits−1) − 1)·2^e."""
    if largest == 0:
        return 0
    fraction, exponent = math.frexp(largest / ((1 << (bits - 1)) - 1))
    exact = exponent - 1 if fraction == 0.5 else exponent
    return max(exact, _LOWEST)


@dataclass(frozen=True)
class _Change:
    """What is wanted of one array, worked on in parts that stay in the processor's cache.

    Attributes:
        residual: None: 0.
    """

    old: NDArray[Any]
    new: NDArray[Any]
    residual: NDArray[Any] | None

    def largest(self) -> float:
        """Of the values' changes. Raises WireError: one is not finite."""
        largest = 0.0
        for part in chunks(0, self.old.size):
            change = self._wanted(part) - self.old.reshape(-1)[part]
            if not np.isfinite(change).all():
                raise WireError(Reason.NOT_FINITE)
            largest = max(largest, float(np.max(np.abs(change))))
        return largest

    def taken(self, exponent: int) -> tuple[NDArray[Any], NDArray[np.float32], NDArray[np.int32]]:
        """The array that is made of the old one, what it lacks, and by how many steps it was moved."""
        shape, old = self.old.shape, self.old.reshape(-1)
        made, rest = np.empty(old.size, old.dtype), np.empty(old.size, np.float32)
        steps = np.empty(old.size, np.int32)
        for part in chunks(0, old.size):
            wanted = self._wanted(part)
            steps[part] = np.rint(np.ldexp(wanted - old[part], -exponent))
            made[part] = _moved(old[part], steps[part], exponent)
            rest[part] = wanted - made[part]
        return made.reshape(shape), rest.reshape(shape), steps

    def _wanted(self, part: slice) -> NDArray[np.float64]:
        wanted = self.new.reshape(-1)[part].astype(np.float64)
        if self.residual is not None:
            wanted += self.residual.reshape(-1)[part]
        return wanted


def _moved(old: NDArray[Any], steps: NDArray[np.int32], exponent: int) -> NDArray[Any]:
    """old + steps·2^exponent, rounded once from float64: the same bits on every machine."""
    with np.errstate(over="ignore"):
        return (old + np.ldexp(steps.astype(np.float64), exponent)).astype(old.dtype)


def _counter(array: NDArray[Any]) -> NDArray[np.int64]:
    return array.astype(np.int64).reshape(-1)


def _with_counter(old: NDArray[Any], changes: NDArray[np.int64]) -> NDArray[Any]:
    return (_counter(old) + changes).astype(old.dtype).reshape(old.shape)


def _joined(parts: list[NDArray[Any]], dtype: type) -> NDArray[Any]:
    return np.concatenate(parts) if parts else np.empty(0, dtype)


def _check(model: Arrays) -> bytes:
    digest = hashlib.sha256()
    for name in sorted(model):
        digest.update(np.ascontiguousarray(model[name]).data)
    return digest.digest()[:_CHECK]


def _require_alike(held: Arrays, new: Arrays) -> None:
    if held.keys() != new.keys():
        raise WireError(Reason.WRONG_NAMES)
    for name, array in held.items():
        if new[name].shape != array.shape:
            raise WireError(Reason.WRONG_SHAPE)
        if new[name].dtype != array.dtype:
            raise WireError(Reason.WRONG_DTYPE)
