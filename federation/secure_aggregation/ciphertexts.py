"""CKKS ciphertexts on the wire, and their sum: all that the coordinator does with them.

A ciphertext of a symmetric key is a pair of polynomials (c0, c1) modulo the prime q, c1 uniform and
c0 = m + e - c1·s. SEAL can write c1 as the 64 bytes it was expanded from (`Serializable`, SEAL 3.4
and later), which halves it. Here this holds for the sum too: the coordinator adds the c0, which is
addition modulo q of their coefficients whatever basis they are in, and passes on each hospital's
seeds, from which the hospitals add the c1 themselves. So it needs neither SEAL nor a key, and no
parser of SEAL's ever sees bytes from the wire: they are 60-bit residues, each checked to be below q,
and seeds, which may be any bytes.

    head      "CKKS1", SHA-256 of the key (32), SHA-256 of the sum (32), hospitals n (2)
    c0        for each ciphertext 4096 residues of 60 bits, two in 15 bytes, little-endian
    n parts   which member (2), tag (32), for each ciphertext its seed (64)

A single hospital's blob is the same with n = 1. The tag is an HMAC, under a key that only hospitals
hold, over the sum, the member and the seeds. Since each seed's ciphertext has to be in c0 for anything
but noise to come out, hospitals decrypt only what adds at least `Sum.least` vectors made for this very
sum: a coordinator cannot show one hospital's update to the others, nor mix in those of other rounds.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from federation.messages import Reason, WireError
from federation.schema import ConfigError
from federation.secure_aggregation.scheme import Sum

RING = 4096  # N, degree of the polynomials
MODULUS = 1152921504606830593  # q, the largest 60-bit prime that is 1 mod 2N
SEED_BYTES = 64
TAG_BYTES = 32
AT_ONCE = 64  # ciphertexts worked on at a time: bounds the memory

# A decrypted number further than this from an integer is no sum; noise gets there at 8 deviations.
FURTHEST = 0.25
_DEVIATIONS = 8
_ERROR, _ROUNDING = 10.5, 1 / 12  # variances: SEAL's centred binomial error, rounding to an integer
_FLOAT = 2.0**-51  # relative error of SEAL's transforms in float64, measured

_MAGIC = b"CKKS1"
_HEAD = struct.Struct("<5s32s32sH")
_PART = struct.Struct(f"<H{TAG_BYTES}s")
_PUBLIC = struct.Struct("<5sIQ32s")
_PUBLIC_MAGIC = b"CKKP1"
_C0_BYTES = RING * 15 // 2
_MASK = np.uint64((1 << 60) - 1)
_Q = np.uint64(MODULUS)

Residues = NDArray[np.uint64]


@dataclass(frozen=True)
class Packing:
    """How a vector lies in ciphertexts: k integers side by side in each of 4096 numbers.

    A number of k digits of `width` bits is an exact integer of k·width bits; its place is the real or
    the imaginary part of one of 2048 slots.

    Attributes:
        digits: k.
        width: bits of a digit, w.
        scale: Δ. Coefficients of a sum are at most √2 Δ 2**(kw-1), which stays below q / 2.
        ciphertexts: how many hold the vector.
    """

    digits: int
    width: int
    scale: float
    ciphertexts: int

    @classmethod
    def of(cls, of: Sum) -> Packing:
        """Raises:
        ConfigError: integers too wide for q and the noise of so many ciphertexts.
        """
        most = precision(len(of.members))
        digits = most // of.width
        if digits == 0:
            raise ConfigError(
                f"secure_aggregation=ckks carries sums of {most} bits for {len(of.members)} "
                f"hospitals, and {of.bits}-bit values need {of.width}: use fewer bits, or limbs"
            )
        return cls(digits, of.width, _scale(digits * of.width), -(-of.size // (digits * RING)))

    @property
    def c0_bytes(self) -> int:
        return self.ciphertexts * _C0_BYTES

    @property
    def part_bytes(self) -> int:
        return _PART.size + self.ciphertexts * SEED_BYTES

    def blob_bytes(self, hospitals: int) -> int:
        """Exact length of a sum over so many hospitals; of a single one's blob for 1."""
        return _HEAD.size + self.c0_bytes + hospitals * self.part_bytes

    def chunks(self) -> Iterator[slice]:
        """The ciphertexts in runs of at most `AT_ONCE`."""
        for start in range(0, self.ciphertexts, AT_ONCE):
            yield slice(start, min(start + AT_ONCE, self.ciphertexts))

    def pack(self, values: NDArray[np.int64]) -> NDArray[np.int64]:
        """Integers of some ciphertexts, the last padded with 0, as numbers (ciphertexts, 4096)."""
        rows = -(-values.size // (self.digits * RING))
        padded = np.zeros((rows, self.digits, RING), np.int64)
        padded.reshape(-1)[: values.size] = values
        numbers = padded[:, 0].copy()
        for place in range(1, self.digits):
            numbers += padded[:, place] << (place * self.width)
        return numbers

    def unpack(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """What `pack` took, still padded. Raises WireError: numbers of more digits."""
        rest = numbers.copy()
        digits = np.empty((len(numbers), self.digits, RING), np.int64)
        half = 1 << (self.width - 1)
        for place in range(self.digits):
            digits[:, place] = ((rest + half) & (2 * half - 1)) - half
            rest = (rest - digits[:, place]) >> self.width
        if rest.any():
            raise WireError(Reason.MALFORMED)
        return digits.reshape(-1)


def precision(hospitals: int) -> int:
    """Most bits, sign included, of a number in a sum: 46 for 2 hospitals, 45 for 10, 43 for 100."""
    return max(b for b in range(2, 59) if deviation(b, hospitals) * _DEVIATIONS <= FURTHEST)


def deviation(bits: int, hospitals: int) -> float:
    """Standard deviation of a decrypted number of so many bits, for the least favourable vectors.

    Half of the errors of 4096 coefficients is in the real part, half in the imaginary one. Where all
    hospitals have the same vector, they round its coefficients by the same amounts.
    """
    noise = math.sqrt(RING / 2 * (hospitals * _ERROR + hospitals**2 * _ROUNDING)) / _scale(bits)
    return math.hypot(noise, _FLOAT * 2.0 ** (bits - 1))


def _scale(bits: int) -> float:
    """The largest scale, to some percent, for numbers of so many bits: √2·21/16 < 2."""
    return math.ldexp(21 / 16, 59 - bits)


@dataclass(frozen=True)
class PublicContext:
    """What the coordinator is given: which key, for which ring. Nothing encrypts or decrypts with it.

    Attributes:
        key_id: SHA-256 of the secret key, which has over 4096 bits of entropy.
    """

    key_id: bytes

    def to_bytes(self) -> bytes:
        return _PUBLIC.pack(_PUBLIC_MAGIC, RING, MODULUS, self.key_id)

    @classmethod
    def from_bytes(cls, content: bytes) -> PublicContext:
        """Raises WireError: anything but what `to_bytes` writes."""
        if len(content) != _PUBLIC.size:
            raise WireError(Reason.MALFORMED)
        magic, ring, modulus, key_id = _PUBLIC.unpack(content)
        if (magic, ring, modulus) != (_PUBLIC_MAGIC, RING, MODULUS):
            raise WireError(Reason.MALFORMED)
        return cls(key_id)


@dataclass(frozen=True)
class Part:
    """One hospital's share in a sum. `seeds` has 64 bytes for each ciphertext."""

    hospital: str
    tag: bytes
    seeds: bytes


@dataclass(frozen=True)
class Blob:
    """A blob whose form was checked: residues, members, lengths. `c0` is still packed."""

    c0: memoryview
    parts: tuple[Part, ...]

    @classmethod
    def parse(cls, content: bytes, public: PublicContext, of: Sum) -> Blob:
        """Raises:
        WireError: TOO_LARGE; BAD_KEY under another key; WRONG_ROUND for another sum; REPLAYED if a
            hospital is in it twice; else MALFORMED.
        """
        packing = Packing.of(of)
        if len(content) > packing.blob_bytes(len(of.members)):
            raise WireError(Reason.TOO_LARGE)
        if len(content) < _HEAD.size:
            raise WireError(Reason.MALFORMED)
        magic, key_id, digest, count = _HEAD.unpack_from(content)
        if magic != _MAGIC or count == 0 or len(content) != packing.blob_bytes(count):
            raise WireError(Reason.MALFORMED)
        if key_id != public.key_id:
            raise WireError(Reason.BAD_KEY)
        if digest != of.sha256():
            raise WireError(Reason.WRONG_ROUND)
        view = memoryview(content).toreadonly()
        end = _HEAD.size + packing.c0_bytes
        parts = []
        for start in range(end, len(content), packing.part_bytes):
            member, tag = _PART.unpack_from(view, start)
            if member >= len(of.members):
                raise WireError(Reason.MALFORMED)
            seeds = bytes(view[start + _PART.size : start + packing.part_bytes])
            parts.append(Part(of.members[member], tag, seeds))
        if len({part.hospital for part in parts}) != len(parts):
            raise WireError(Reason.REPLAYED)
        blob = cls(view[_HEAD.size : end], tuple(parts))
        for chunk in packing.chunks():
            if blob.residues(chunk).max() >= _Q:
                raise WireError(Reason.MALFORMED)
        return blob

    def residues(self, chunk: slice) -> Residues:
        """c0 of some ciphertexts, (ciphertexts, 4096)."""
        packed = self.c0[chunk.start * _C0_BYTES : chunk.stop * _C0_BYTES]
        pairs = np.zeros((len(packed) // 15, 16), np.uint8)
        pairs[:, :15] = np.frombuffer(packed, np.uint8).reshape(-1, 15)
        words = pairs.view("<u8")
        residues = np.empty_like(words)
        residues[:, 0] = words[:, 0] & _MASK
        residues[:, 1] = words[:, 0] >> np.uint64(60) | words[:, 1] << np.uint64(4)
        return residues.reshape(-1, RING)


def pack_residues(residues: Residues) -> bytes:
    """Two residues in 15 bytes."""
    pairs = residues.reshape(-1, 2)
    words = np.empty(pairs.shape, "<u8")
    words[:, 0] = pairs[:, 0] | pairs[:, 1] << np.uint64(60)
    words[:, 1] = pairs[:, 1] >> np.uint64(4)
    return words.view(np.uint8)[:, :15].tobytes()


def head(public: PublicContext, of: Sum, hospitals: int) -> bytes:
    return _HEAD.pack(_MAGIC, public.key_id, of.sha256(), hospitals)


def part_bytes(part: Part, of: Sum) -> bytes:
    return _PART.pack(of.members.index(part.hospital), part.tag) + part.seeds


class RunningTotal:
    """The coordinator's sum of ciphertexts: c0 as uint64, 8 bytes a residue, and the parts."""

    def __init__(self, public: bytes, of: Sum) -> None:
        """Raises:
        WireError: not a public context of ours.
        ConfigError: the sum needs more bits than CKKS carries.
        """
        self._public = PublicContext.from_bytes(public)
        self._of = of
        self._packing = Packing.of(of)
        self._c0 = np.zeros((self._packing.ciphertexts, RING), np.uint64)
        self._parts: dict[str, Part] = {}

    @property
    def hospitals(self) -> tuple[str, ...]:
        return tuple(sorted(self._parts))

    def check(self, hospital: str, blob: bytes) -> Blob:
        """What `add` would add.

        Raises:
            WireError: see `Blob.parse`; also BAD_KEY for a blob in another's name, and REPLAYED for a
                second one.
        """
        if len(blob) > self._packing.blob_bytes(1):
            raise WireError(Reason.TOO_LARGE)
        parsed = Blob.parse(blob, self._public, self._of)
        part = parsed.parts[0]
        if part.hospital != hospital:
            raise WireError(Reason.BAD_KEY)
        if hospital in self._parts:
            raise WireError(Reason.REPLAYED)
        return parsed

    def add(self, hospital: str, blob: bytes) -> None:
        """Add one hospital's blob; one that is refused leaves the total as it was. Raises as `check`."""
        parsed = self.check(hospital, blob)
        for chunk in self._packing.chunks():
            rows = self._c0[chunk]
            rows += parsed.residues(chunk)
            np.minimum(rows, rows - _Q, out=rows)  # below q the difference wraps and is larger
        self._parts[hospital] = parsed.parts[0]

    def to_bytes(self) -> bytes:
        """The sum for the hospitals. Raises ValueError: nothing was added."""
        if not self._parts:
            raise ValueError("nothing was added")
        parts = [self._parts[name] for name in self.hospitals]
        return b"".join(
            [
                head(self._public, self._of, len(parts)),
                *(pack_residues(self._c0[chunk]) for chunk in self._packing.chunks()),
                *(part_bytes(part, self._of) for part in parts),
            ]
        )
