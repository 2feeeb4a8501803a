"""The masks once more, from the papers and standards alone: nothing here comes from `federation`.

Slow, in whole numbers; AES is the library's, a block at a time, and checked against its standard.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

P = 2**255 - 19
SHAMIR = 2**256 + 297


def x25519(scalar: bytes, u: bytes) -> bytes:
    """RFC 7748, section 5: the ladder as it stands there."""
    raw = bytearray(scalar)
    raw[0] &= 248
    raw[31] = raw[31] & 127 | 64
    k = int.from_bytes(raw, "little")
    x1 = int.from_bytes(u, "little") & (2**255 - 1)
    x2, z2, x3, z3, swap = 1, 0, x1, 1, 0
    for t in reversed(range(255)):
        bit = k >> t & 1
        if swap ^ bit:
            x2, x3, z2, z3 = x3, x2, z3, z2
        swap = bit
        a, b, c, d = x2 + z2, x2 - z2, x3 + z3, x3 - z3
        aa, bb, da, cb = a * a, b * b, d * a, c * b
        e = aa - bb
        x3, z3 = (da + cb) ** 2 % P, x1 * (da - cb) ** 2 % P
        x2, z2 = aa * bb % P, e * (aa + 121665 * e) % P
    if swap:
        x2, z2 = x3, z3
    return (x2 * pow(z2, P - 2, P) % P).to_bytes(32, "little")


def hkdf(secret: bytes, info: bytes, salt: bytes = b"", length: int = 32) -> bytes:
    """RFC 5869 with SHA-256."""
    key = hmac.new(salt or bytes(32), secret, hashlib.sha256).digest()
    made, block = b"", b""
    for count in range(1, -(-length // 32) + 1):
        block = hmac.new(key, block + info + bytes([count]), hashlib.sha256).digest()
        made += block
    return made[:length]


def aes(key: bytes, block: bytes) -> bytes:
    return Cipher(algorithms.AES(key), modes.ECB()).encryptor().update(block)  # one block


def ctr(key: bytes, length: int, first: int = 0) -> bytes:
    """SP 800-38A, section 6.5, on zeros."""
    blocks = -(-length // 16)
    return b"".join(aes(key, (first + i).to_bytes(16, "big")) for i in range(blocks))[:length]


def words(key: bytes, count: int, bits: int) -> list[int]:
    size = next(size for size in (1, 2, 4, 8) if 8 * size >= bits)
    raw = ctr(key, size * count)
    return [int.from_bytes(raw[size * i : size * (i + 1)], "little") for i in range(count)]


def spelt(*values: str | int | bytes) -> bytes:
    """Each value behind its length in four bytes; numbers in eight."""
    out = b""
    for value in ("consilium masks 1", *values):
        if isinstance(value, str):
            value = value.encode("utf-8")
        elif isinstance(value, int):
            value = value.to_bytes(8, "big")
        out += len(value).to_bytes(4, "big") + value
    return out


class Sum:
    """One occasion from private keys alone: by name (mask key, seal key, seed), raw, and size."""

    def __init__(
        self,
        occasion: tuple[str, int, int, str],
        secrets: Mapping[str, tuple[bytes, bytes, bytes]],
        sizes: Mapping[str, int],
    ) -> None:
        base = (9).to_bytes(32, "little")
        self.secrets, self.names = secrets, sorted(secrets)
        self.occasion = spelt("occasion", *occasion)
        self.statements = {
            name: spelt(
                "advert", self.occasion, name, sizes[name],
                x25519(secrets[name][0], base), x25519(secrets[name][1], base),
                hashlib.sha256(spelt("seed", self.occasion, name, secrets[name][2])).digest(),
            )
            for name in self.names
        }  # fmt: skip
        self.public = {name: x25519(secrets[name][0], base) for name in self.names}
        self.seal_public = {name: x25519(secrets[name][1], base) for name in self.names}
        statements = [self.statements[name] for name in self.names]
        self.cohort = hashlib.sha256(spelt("cohort", *statements)).digest()

    def seal_key(self, sender: str, receiver: str) -> bytes:
        secret = x25519(self.secrets[sender][1], self.seal_public[receiver])
        return hkdf(secret, spelt("seal", self.occasion, self.cohort, sender, receiver))

    def survivors(self, sharers: Sequence[str], survivors: Sequence[str]) -> bytes:
        return spelt("survivors", *self._bound(sharers), *survivors)

    def private_mask(self, name: str, sharers: Sequence[str], part: str, bits: int, length: int):
        bound = (*self._bound(sharers), part, bits, length)
        key = hkdf(self.secrets[name][2], spelt("private mask", *bound, name))
        return words(key, length, bits)

    def pairwise_mask(
        self, one: str, other: str, sharers: Sequence[str], part: str, bits: int, length: int
    ) -> list[int]:
        bound = (*self._bound(sharers), part, bits, length)
        secret = x25519(self.secrets[one][0], self.public[other])
        return words(
            hkdf(secret, spelt("pairwise mask", *bound, *sorted((one, other)))), length, bits
        )

    def masked(
        self, name: str, sharers: Sequence[str], plain: Sequence[int], bits: int, part: str
    ) -> list[int]:
        length = len(plain)
        values = [
            x + y
            for x, y in zip(
                plain, self.private_mask(name, sharers, part, bits, length), strict=True
            )
        ]
        for peer in sharers:
            if peer != name:
                sign = 1 if name < peer else -1
                made = self.pairwise_mask(name, peer, sharers, part, bits, length)
                values = [x + sign * y for x, y in zip(values, made, strict=True)]
        return [x % 2**bits for x in values]

    def _bound(self, sharers: Sequence[str]) -> tuple[bytes, bytes, bytes]:
        whose = hashlib.sha256(spelt("sharers", *sharers)).digest()
        return self.occasion, self.cohort, whose


def interpolate(points: Mapping[int, int], at: int = 0) -> int:
    """Lagrange's polynomial, as in a textbook."""
    total = 0
    for x, y in points.items():
        term = y
        for other in points:
            if other != x:
                term = term * (at - other) * pow(x - other, SHAMIR - 2, SHAMIR)
        total += term
    return total % SHAMIR
