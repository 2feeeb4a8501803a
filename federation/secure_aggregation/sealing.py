"""The run's key on its way from the hospital that made it to the others, through the coordinator.

Each hospital signs a fresh X25519 key for the run with its Ed25519 identity. The maker checks these
against the roster, seals the secret to each of them (ephemeral-static X25519, HKDF-SHA-256, AES-256-GCM;
the pattern of HPKE's base mode, RFC 9180), and signs what it sends. Everything is bound to run, roster,
maker, receiver and public context, so that nothing can be moved, replayed or swapped. The coordinator
relays letters; to have a key of its own sealed, it would need a place on the roster.

With the run's key hospitals also seal a model for one that missed rounds.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from federation.messages import Reason, WireError
from federation.secure_aggregation.keys import LARGEST_SIZE, agreed, derived, encoded

LARGEST_SECRET = 1 << 12  # bytes
KEY_BYTES = 96  # of the secret that `ckks` makes
LARGEST_MODEL = (1 << 31) - 64  # bytes that AES-GCM takes in one call

_ADVERT_MAGIC, _SEALED_MAGIC, _MODEL_MAGIC = b"CKKA1", b"CKKL1", b"CKKM1"
_POINT, _SIGNATURE, _NONCE, _GCM_TAG, _RUN_KEY, _SIZE = 32, 64, 12, 16, 32, 8
SEALED_KEY_BYTES = len(_SEALED_MAGIC) + _POINT + KEY_BYTES + _GCM_TAG + _SIGNATURE
ADVERT_BYTES = len(_ADVERT_MAGIC) + _SIZE + _POINT + _SIGNATURE


@dataclass(frozen=True)
class Meeting:
    """Where keys are passed: `roster` is the SHA-256 of the roster, hexadecimal."""

    run: str
    roster: str


@dataclass(frozen=True)
class SealingAdvert:
    """A hospital's raw X25519 key and its size for one run, signed by its identity.

    Attributes:
        size: the hospital's public weight, 1 to 2**40 - 1.
    """

    hospital: str
    size: int
    key: bytes
    signature: bytes

    def to_bytes(self) -> bytes:
        return _ADVERT_MAGIC + self.size.to_bytes(_SIZE) + self.key + self.signature

    @classmethod
    def from_bytes(cls, content: bytes, hospital: str) -> SealingAdvert:
        """`hospital`: who is said to have sent it. Raises WireError: MALFORMED."""
        if len(content) != ADVERT_BYTES:
            raise WireError(Reason.MALFORMED)
        magic, size, key, signature = _cut(content, len(_ADVERT_MAGIC), _SIZE, _POINT)
        weight = int.from_bytes(size)
        if magic != _ADVERT_MAGIC or not 0 < weight < LARGEST_SIZE:
            raise WireError(Reason.MALFORMED)
        return cls(hospital, weight, key, signature)

    def check(self, identity: Ed25519PublicKey, meeting: Meeting) -> None:
        """Raises WireError: BAD_SIGNATURE, this identity did not sign it for this run and roster."""
        _verify(identity, self.signature, _advertised(meeting, self.hospital, self.size, self.key))


def advertise(
    identity: Ed25519PrivateKey, hospital: str, size: int, meeting: Meeting
) -> tuple[X25519PrivateKey, SealingAdvert]:
    """A fresh key to receive the run's key with, and what is told of it.

    Raises:
        ValueError: a size out of range.
    """
    if not 0 < size < LARGEST_SIZE:
        raise ValueError("a size lies in 1 to 2**40 - 1")
    private = X25519PrivateKey.generate()
    key = private.public_key().public_bytes_raw()
    signature = identity.sign(_advertised(meeting, hospital, size, key))
    return private, SealingAdvert(hospital, size, key, signature)


def seal_key(
    secret: bytes,
    public: bytes,
    adverts: Mapping[str, SealingAdvert],
    identities: Mapping[str, Ed25519PublicKey],
    identity: Ed25519PrivateKey,
    maker: str,
    meeting: Meeting,
) -> dict[str, bytes]:
    """The secret for each hospital that advertised; only it can open its letter.

    Args:
        public: the public context, for all; letters are bound to it.
        identities: the roster's.
        identity: the maker's.

    Raises:
        WireError: ROSTER_DIFFERS, an advert of a hospital that is not on the roster; BAD_SIGNATURE;
            BAD_KEY, a point of small order. Nothing is sealed then.
        ValueError: a secret of more than `LARGEST_SECRET` bytes.
    """
    if not 0 < len(secret) <= LARGEST_SECRET:
        raise ValueError("a secret of 1 to 4096 bytes")
    for hospital, advert in adverts.items():
        if hospital not in identities or advert.hospital != hospital:
            raise WireError(Reason.ROSTER_DIFFERS)
        advert.check(identities[hospital], meeting)
    return {
        hospital: _seal(secret, public, advert, identity, maker, meeting)
        for hospital, advert in sorted(adverts.items())
    }


def open_key(
    letter: bytes,
    public: bytes,
    private: X25519PrivateKey,
    hospital: str,
    maker: str,
    maker_identity: Ed25519PublicKey,
    meeting: Meeting,
) -> bytes:
    """The secret that `maker` sealed for `hospital`.

    Args:
        private: what `advertise` gave.

    Raises:
        WireError: TOO_LARGE, MALFORMED; BAD_SIGNATURE, not by the maker for this run, roster, hospital
            and public context; BAD_KEY, sealed to another key.
    """
    fixed = len(_SEALED_MAGIC) + _POINT + _GCM_TAG + _SIGNATURE
    if len(letter) > fixed + LARGEST_SECRET:
        raise WireError(Reason.TOO_LARGE)
    if len(letter) <= fixed or not letter.startswith(_SEALED_MAGIC):
        raise WireError(Reason.MALFORMED)
    body, signature = letter[:-_SIGNATURE], letter[-_SIGNATURE:]
    _, ephemeral, sealed = _cut(body, len(_SEALED_MAGIC), _POINT)
    own = private.public_key().public_bytes_raw()
    bound = _sealed_to(public, own, ephemeral, hospital, maker, meeting)
    _verify(maker_identity, signature, bound + sealed)
    try:
        return _cipher(private, ephemeral, bound).decrypt(bytes(_NONCE), sealed, bound)
    except InvalidTag:
        raise WireError(Reason.BAD_KEY) from None


def _seal(
    secret: bytes,
    public: bytes,
    advert: SealingAdvert,
    identity: Ed25519PrivateKey,
    maker: str,
    meeting: Meeting,
) -> bytes:
    private = X25519PrivateKey.generate()
    ephemeral = private.public_key().public_bytes_raw()
    bound = _sealed_to(public, advert.key, ephemeral, advert.hospital, maker, meeting)
    # the key serves this one message, so the nonce may be fixed
    sealed = _cipher(private, advert.key, bound).encrypt(bytes(_NONCE), secret, bound)
    return _SEALED_MAGIC + ephemeral + sealed + identity.sign(bound + sealed)


def _cipher(private: X25519PrivateKey, point: bytes, bound: bytes) -> AESGCM:
    return AESGCM(derived(agreed(private, point), "ckks key", bound))


# --- models for hospitals that missed rounds ------------------------------------------------------


def seal_model(run_key: bytes, run: str, round: int, model: bytes) -> bytes:
    """A model under the run's key of 32 bytes, bound to run and round.

    Raises:
        ValueError: a model of more than `LARGEST_MODEL` bytes, or a key of another length.
    """
    if len(model) > LARGEST_MODEL:
        raise ValueError("a model too large to be sealed at once")
    cipher, bound = _for_models(run_key, run, round)
    nonce = os.urandom(_NONCE)
    return _MODEL_MAGIC + nonce + cipher.encrypt(nonce, model, bound)


def open_model(run_key: bytes, run: str, round: int, sealed: bytes) -> bytes:
    """What `seal_model` sealed.

    Raises:
        WireError: TOO_LARGE, MALFORMED; BAD_KEY, of another run, round or key, or altered.
    """
    least = len(_MODEL_MAGIC) + _NONCE + _GCM_TAG
    if len(sealed) > least + LARGEST_MODEL:
        raise WireError(Reason.TOO_LARGE)
    if len(sealed) < least or not sealed.startswith(_MODEL_MAGIC):
        raise WireError(Reason.MALFORMED)
    cipher, bound = _for_models(run_key, run, round)
    content = memoryview(sealed)[len(_MODEL_MAGIC) :]
    try:
        return cipher.decrypt(bytes(content[:_NONCE]), content[_NONCE:], bound)
    except InvalidTag:
        raise WireError(Reason.BAD_KEY) from None


def _for_models(run_key: bytes, run: str, round: int) -> tuple[AESGCM, bytes]:
    """One cipher a round: random nonces are far from colliding."""
    if len(run_key) != _RUN_KEY:
        raise ValueError("a run key has 32 bytes")
    bound = encoded("ckks model", run, round)
    return AESGCM(derived(run_key, "ckks model", run, round)), bound


# --- what is signed and bound ----------------------------------------------------------------------


def _advertised(meeting: Meeting, hospital: str, size: int, key: bytes) -> bytes:
    return encoded("ckks advert", meeting.run, meeting.roster, hospital, size, key)


def _sealed_to(
    public: bytes, own: bytes, ephemeral: bytes, hospital: str, maker: str, meeting: Meeting
) -> bytes:
    who = (meeting.run, meeting.roster, maker, hospital)
    return encoded("ckks letter", *who, hashlib.sha256(public).digest(), own, ephemeral)


def _verify(identity: Ed25519PublicKey, signature: bytes, content: bytes) -> None:
    try:
        identity.verify(signature, content)
    except InvalidSignature:
        raise WireError(Reason.BAD_SIGNATURE) from None


def _cut(content: bytes, *lengths: int) -> tuple[bytes, ...]:
    """Pieces of these lengths, and the rest."""
    pieces, start = [], 0
    for length in lengths:
        pieces.append(content[start : start + length])
        start += length
    return (*pieces, content[start:])
