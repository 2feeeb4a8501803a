"""Who is in one secure sum and by which keys: adverts, the cohort they make, and keys derived from them.

Every signature and every derived key is bound to the sum's `Occasion`, so that nothing of one sum can be
played again in another.
"""

from __future__ import annotations

import hashlib
import json
import secrets as randomness
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from federation.messages import Reason, WireError
from federation.roster import MOST_MEMBERS, NAME

LARGEST_SIZE = 1 << 40
KEY_BYTES = 32
SIGNATURE_BYTES = 64

_VERSION = "consilium masks 1"
_FIELD_25519 = 2**255 - 19
_ANY_KEY = X25519PrivateKey.from_private_bytes(bytes(range(32)))


class ProtocolError(WireError):
    """Something in a secure sum is not what it has to be, so nothing more is done.

    Attributes:
        hospital: the one whose contribution it is, where that is known; never part of the text.
    """

    def __init__(self, reason: Reason, hospital: str | None = None) -> None:
        super().__init__(reason)
        self.hospital = hospital


def encoded(purpose: str, *fields: str | int | bytes) -> bytes:
    """One byte string for one meaning: version, purpose and fields, each behind its length (uint32).

    Text is UTF-8, a number uint64; all numbers are big-endian.
    """
    parts = [
        value.encode() if isinstance(value, str)
        else value.to_bytes(8) if isinstance(value, int)
        else value
        for value in (_VERSION, purpose, *fields)
    ]  # fmt: skip
    return b"".join(len(part).to_bytes(4) + part for part in parts)


def derived(secret: bytes, purpose: str, *fields: str | int | bytes) -> bytes:
    """A key of 32 bytes for one purpose: HKDF-SHA256 (RFC 5869) without a salt, `encoded` as info."""
    return HKDF(SHA256(), KEY_BYTES, salt=None, info=encoded(purpose, *fields)).derive(secret)


def agreed(private: X25519PrivateKey, public: bytes) -> bytes:
    """The secret shared with the owner of `public` (X25519, RFC 7748).

    Raises:
        ProtocolError: BAD_KEY, a point of small order, with which every secret is zero.
    """
    try:
        return private.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        raise ProtocolError(Reason.BAD_KEY) from None


def private_key(raw: bytes) -> X25519PrivateKey:
    return X25519PrivateKey.from_private_bytes(raw)


def public_half(raw: bytes) -> bytes:
    return private_key(raw).public_key().public_bytes_raw()


@dataclass(frozen=True)
class Occasion:
    """One attempt at one round's sum.

    Attributes:
        roster: SHA-256 of the signed roster's payload, hexadecimal.
    """

    run: str
    round: int
    attempt: int
    roster: str

    def __post_init__(self) -> None:
        if not (0 <= self.round < 1 << 31 and 0 <= self.attempt < 1 << 31):
            raise ValueError("a round and an attempt are numbers from 0 to 2**31 - 1")

    def encoded(self) -> bytes:
        return encoded("occasion", self.run, self.round, self.attempt, self.roster)


@dataclass(frozen=True)
class Advert:
    """What a hospital makes known of itself for one occasion. All of it is public.

    Attributes:
        size: the hospital's public weight, 1 to 2**40 - 1.
        mask_key: X25519; agrees on the pairwise masks.
        seal_key: X25519; agrees on the keys under which shares travel.
        seed_commitment: `commitment` to the seed of the private mask.
        signature: Ed25519 by the hospital's identity over `statement`.
    """

    hospital: str
    size: int
    mask_key: bytes
    seal_key: bytes
    seed_commitment: bytes
    signature: bytes

    def statement(self, occasion: Occasion) -> bytes:
        return encoded(
            "advert",
            occasion.encoded(),
            self.hospital,
            self.size,
            self.mask_key,
            self.seal_key,
            self.seed_commitment,
        )


def commitment(occasion: Occasion, hospital: str, seed: bytes) -> bytes:
    """By which a rebuilt seed is known to be the right one; the seed's 256 random bits stay hidden."""
    return hashlib.sha256(encoded("seed", occasion.encoded(), hospital, seed)).digest()


@dataclass(frozen=True)
class Secrets:
    """A hospital's private side of one occasion. It never leaves the hospital.

    Attributes:
        mask_key, seal_key: X25519 private keys, raw.
        seed: of the private mask, 32 bytes.
    """

    occasion: Occasion
    hospital: str
    size: int
    mask_key: bytes = field(repr=False)
    seal_key: bytes = field(repr=False)
    seed: bytes = field(repr=False)

    def body(self) -> Advert:
        """The advert that goes with these secrets, without its signature."""
        return Advert(
            self.hospital,
            self.size,
            public_half(self.mask_key),
            public_half(self.seal_key),
            commitment(self.occasion, self.hospital, self.seed),
            b"",
        )

    def to_bytes(self) -> bytes:
        """For the hospital's own disk; `client_app.private_file` writes such."""
        keys = {key: getattr(self, key).hex() for key in _PRIVATE}
        content = {**vars(self.occasion), "hospital": self.hospital, "size": self.size, **keys}
        return json.dumps(content).encode()

    @classmethod
    def from_bytes(cls, content: bytes) -> Secrets:
        """Raises ProtocolError: NO_KEYS, these are no secrets as `to_bytes` writes them."""
        try:
            fields: dict[str, Any] = json.loads(content)
            keys = {key: bytes.fromhex(fields.pop(key)) for key in _PRIVATE}
            hospital, size = str(fields.pop("hospital")), int(fields.pop("size"))
            if any(len(key) != KEY_BYTES for key in keys.values()):
                raise ValueError("a key has 32 bytes")
            return cls(Occasion(**fields), hospital, size, **keys)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ProtocolError(Reason.NO_KEYS) from None


_PRIVATE = ("mask_key", "seal_key", "seed")


def advertise(
    occasion: Occasion, hospital: str, size: int, identity: Ed25519PrivateKey
) -> tuple[Secrets, Advert]:
    """Fresh keys for one occasion, which must not have been advertised for before.

    Raises:
        ValueError: a name no roster holds, or a size out of range.
    """
    if not NAME.fullmatch(hospital) or not 0 < size < LARGEST_SIZE:
        raise ValueError("a hospital has its name on the roster and a size from 1 to 2**40 - 1")
    fresh = [randomness.token_bytes(KEY_BYTES) for _ in _PRIVATE]
    secrets = Secrets(occasion, hospital, size, *fresh)
    body = secrets.body()
    return secrets, replace(body, signature=identity.sign(body.statement(occasion)))


def verify(
    advert: Advert,
    occasion: Occasion,
    hospital: str,
    identities: Mapping[str, Ed25519PublicKey],
) -> None:
    """One advert by itself: the coordinator on arrival, each hospital within `cohort`.

    Args:
        hospital: whose it has to be.

    Raises:
        ProtocolError: ROSTER_DIFFERS, another's, or not a hospital of the roster; MALFORMED, a size or
            length out of range; BAD_SIGNATURE, not signed by it for this occasion; BAD_KEY, a key of
            small order or with another spelling, or one key twice.
    """

    def refuse(reason: Reason) -> ProtocolError:
        return ProtocolError(reason, hospital)

    if advert.hospital != hospital or hospital not in identities:
        raise ProtocolError(Reason.ROSTER_DIFFERS)
    keys = (advert.mask_key, advert.seal_key)
    lengths = {len(part) for part in (*keys, advert.seed_commitment)}
    if lengths != {KEY_BYTES} or not 0 < advert.size < LARGEST_SIZE:
        raise refuse(Reason.MALFORMED)
    try:
        identities[hospital].verify(advert.signature, advert.statement(occasion))
    except InvalidSignature:
        raise refuse(Reason.BAD_SIGNATURE) from None
    if keys[0] == keys[1]:
        raise refuse(Reason.BAD_KEY)
    for key in keys:
        if int.from_bytes(key, "little") >= _FIELD_25519:
            raise refuse(Reason.BAD_KEY)
        try:
            agreed(_ANY_KEY, key)
        except ProtocolError as error:
            raise refuse(error.reason) from None


@dataclass(frozen=True)
class Cohort:
    """The hospitals of one occasion; made by `cohort`, which checks them.

    Attributes:
        adverts: sorted by hospital.
    """

    occasion: Occasion
    adverts: tuple[Advert, ...]

    @cached_property
    def members(self) -> dict[str, Advert]:
        return {advert.hospital: advert for advert in self.adverts}

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(advert.hospital for advert in self.adverts)

    @cached_property
    def positions(self) -> dict[str, int]:
        """The whole number at which each hospital's shares are taken, from 1 on."""
        return {name: place for place, name in enumerate(self.names, start=1)}

    def sizes(self, names: Iterable[str]) -> dict[str, int]:
        """The public weights of some of them."""
        return {name: self.members[name].size for name in names}

    @property
    def threshold(self) -> int:
        """Shares needed to rebuild a secret: the smallest t with t > 2n/3.

        Above two thirds, a coordinator that shows two halves of the cohort different survivor lists
        cannot collect t shares of both the seed and the mask key of one hospital
        (Bonawitz et al. 2017, section 6.2).
        """
        return 2 * len(self.adverts) // 3 + 1

    @cached_property
    def sha256(self) -> bytes:
        """Of the occasion and all adverts: two hospitals that have it in common see one cohort."""
        statements = [advert.statement(self.occasion) for advert in self.adverts]
        return hashlib.sha256(encoded("cohort", *statements)).digest()

    def bound(self) -> tuple[bytes, bytes]:
        """What all keys and signatures among these hospitals are bound to."""
        return self.occasion.encoded(), self.sha256

    def bound_with(self, sharers: Sequence[str]) -> tuple[bytes, bytes, bytes]:
        """The same and whose shares came, once that is known."""
        return (*self.bound(), hashlib.sha256(encoded("sharers", *sharers)).digest())


def cohort(
    adverts: Iterable[Advert],
    occasion: Occasion,
    identities: Mapping[str, Ed25519PublicKey],
    *,
    least: int,
    own: Secrets | None = None,
) -> Cohort:
    """The cohort that these adverts make.

    Args:
        identities: by name, of the roster whose SHA-256 `occasion` has: the hospital's own copy.
        least: fewest hospitals, the stricter of the experiment and this hospital's policy; never
            fewer than 3.
        own: the hospital's secrets; None at the coordinator, who has none.

    Raises:
        ProtocolError: what `verify` raises, and ROSTER_DIFFERS, a hospital twice, or this one
            not among them; BAD_KEY, one key at two places, or not this hospital's own advert;
            TOO_FEW_HOSPITALS; MALFORMED, more than a roster can hold.
    """
    made = Cohort(occasion, tuple(sorted(adverts, key=lambda advert: advert.hospital)))
    if len(made.adverts) > MOST_MEMBERS:
        raise ProtocolError(Reason.MALFORMED)
    if len(made.members) != len(made.adverts):
        raise ProtocolError(Reason.ROSTER_DIFFERS)
    if len(made.adverts) < max(least, 3):
        raise ProtocolError(Reason.TOO_FEW_HOSPITALS)
    for advert in made.adverts:
        verify(advert, occasion, advert.hospital, identities)
    keys = Counter(key for one in made.adverts for key in (one.mask_key, one.seal_key))
    if max(keys.values()) > 1:
        raise ProtocolError(Reason.BAD_KEY)
    if own is not None:
        check_own(own, made)
    return made


def check_own(own: Secrets, cohort: Cohort) -> None:
    """That a hospital's secrets belong to this cohort.

    Raises:
        ProtocolError: REPLAYED, they are of another occasion; ROSTER_DIFFERS, the hospital is not in
            the cohort; BAD_KEY, with another advert than the one it made.
    """
    if own.occasion != cohort.occasion:
        raise ProtocolError(Reason.REPLAYED)
    advert = cohort.members.get(own.hospital)
    if advert is None:
        raise ProtocolError(Reason.ROSTER_DIFFERS)
    if replace(advert, signature=b"") != own.body():
        raise ProtocolError(Reason.BAD_KEY)


def check_listed(
    names: Sequence[str], among: Sequence[str], own: str | None, reason: Reason
) -> None:
    """Raises ProtocolError: not sorted, a name twice or not among those, or without one's own."""
    if list(names) != sorted(set(names)) or not set(names) <= set(among):
        raise ProtocolError(reason)
    if own is not None and own not in names:
        raise ProtocolError(reason)


def check_enough(names: Sequence[str], cohort: Cohort, least: int) -> None:
    if len(names) < max(cohort.threshold, least):
        raise ProtocolError(Reason.TOO_FEW_HOSPITALS)
