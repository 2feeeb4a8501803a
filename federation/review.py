"""Reviewers' signatures of the code that a run brings, as Flower carries them with its bundle.

A reviewer signs, with an Ed25519 key, eight bytes of time (big-endian seconds since 1970) and the
SHA-256 of the whole bundle: Flower's message, of which its own functions make the bytes here. So a
signature is of every byte of one bundle and of no other. It says nothing of how a run is configured.

A reviewer is known by an `ssh-ed25519` line, and a key by `fpk_` and the first 32 hex digits of the
SHA-256 of its 32 bytes. (Flower's own hub hands out such names; here a name follows from the key, so
that nobody can give one key two names.)
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_ssh_public_key,
)

from federation import roster
from federation.schema import ConfigError

SUFFIX = ".signature.json"
LARGEST = 1 << 12  # bytes of a signature's file, and of what Flower carries for one
MOST = 64  # signatures of a bundle

_SHA256 = re.compile(r"[0-9a-f]{64}")
_LATEST = 1 << 40  # seconds since 1970; a later time is none


@dataclass(frozen=True)
class Signature:
    """One reviewer's signature of one bundle.

    Attributes:
        bundle: SHA-256 of its bytes, hex.
        reviewer: the key, as `line` writes it.
        signed_at: seconds since 1970, by the reviewer's clock.
        signature: 64 bytes, base64url without padding.
    """

    bundle: str
    reviewer: str
    signed_at: int
    signature: str

    @property
    def key_id(self) -> str:
        return key_id(key(self.reviewer))

    def content(self) -> bytes:
        """The file's content."""
        return json.dumps(asdict(self), indent=1).encode() + b"\n"

    def verification(self) -> dict[str, str | int]:
        """As Flower's SuperLink takes it from a hub."""
        return {
            "public_key_id": self.key_id,
            "signed_at": self.signed_at,
            "signature": self.signature,
        }


def line(public: Ed25519PublicKey) -> str:
    """The `ssh-ed25519` line, without a comment."""
    return public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def key(text: str) -> Ed25519PublicKey:
    """The key in an `ssh-ed25519` line; a comment after it is let pass.

    Raises:
        ValueError: another kind of line, or a key under which anybody can sign.
    """
    text = text.strip()
    # a certificate's line has a key as well, and an expiry that nobody would look at; of two lines
    # the second would pass for a comment
    if not text.startswith("ssh-ed25519 ") or "\n" in text:
        raise ValueError("not a line of the form 'ssh-ed25519 AAAA…'")
    try:
        public = load_ssh_public_key(text.encode())
    except (UnsupportedAlgorithm, ValueError) as error:
        raise ValueError("not a line of the form 'ssh-ed25519 AAAA…'") from error
    if not isinstance(public, Ed25519PublicKey):
        raise ValueError("not an Ed25519 key, whose line begins with 'ssh-ed25519'")
    return roster.identity_key(roster.identity_text(public))


def key_id(public: Ed25519PublicKey) -> str:
    """What Flower calls the key."""
    raw = public.public_bytes(Encoding.Raw, PublicFormat.Raw)
    return f"fpk_{hashlib.sha256(raw).hexdigest()[:32]}"


def sign(bundle: bytes, private: Ed25519PrivateKey, at: int) -> Signature:
    """A reviewer's signature; `at` is now, in seconds since 1970."""
    digest = hashlib.sha256(bundle).digest()
    raw = private.sign(_signed(digest, at))
    text = base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
    return Signature(digest.hex(), line(private.public_key()), at, text)


def _signed(digest: bytes, at: int) -> bytes:
    """What Flower signs of a bundle, without what importing Flower costs each command."""
    return at.to_bytes(8, "big") + digest


def read(path: Path) -> Signature:
    """The signature in a file, which holds for the bundle and the key that it names.

    Raises:
        ConfigError: there is no such file, it is another kind of file, or the signature is wrong.
    """
    try:
        return parse(roster.read_bounded(path, LARGEST))
    except FileNotFoundError:
        raise ConfigError(f"there is no {path}") from None
    except ConfigError:  # itself a ValueError
        raise
    except InvalidSignature:
        raise ConfigError(
            f"{path}: the signature in it is wrong; ask the reviewer for it again"
        ) from None
    except ValueError:
        raise ConfigError(
            f"{path} is not a reviewer's signature; one is made by: coordinator review sign"
        ) from None


def parse(content: bytes) -> Signature:
    """What `Signature.content` gave.

    Raises:
        ValueError: it is anything else.
        InvalidSignature: it is of another bundle, or by another key.
    """
    said = Signature(
        **roster.exactly(
            roster.from_json(content), {"bundle", "reviewer", "signed_at", "signature"}
        )
    )
    if not (isinstance(said.bundle, str) and _SHA256.fullmatch(said.bundle)):
        raise ValueError("not the SHA-256 of a bundle")
    if not isinstance(said.reviewer, str) or line(key(said.reviewer)) != said.reviewer:
        raise ValueError("a reviewer's key has one spelling")
    _verify(said.bundle, key(said.reviewer), said.signed_at, said.signature)
    return said


def signed_by(
    sha256: str, verifications: Mapping[str, str], reviewers: Mapping[str, Ed25519PublicKey]
) -> dict[str, bool]:
    """Whose signature came with a bundle, and whether it is one of this bundle; never raises.

    Args:
        sha256: of the bundle, hex, computed by whoever asks.
        verifications: what Flower brought with the bundle: JSON with signed_at and signature, by
            `key_id`. Others than the reviewers' are not looked at.
        reviewers: who is trusted, by name; each has another key.
    """
    found = {}
    for name, public in reviewers.items():
        text = verifications.get(key_id(public))
        if text is not None:
            found[name] = _holds(sha256, public, text)
    return found


def _holds(sha256: str, public: Ed25519PublicKey, text: str) -> bool:
    try:
        if len(text) > LARGEST:
            return False
        said = roster.from_json(text.encode())
        _verify(sha256, public, said["signed_at"], said["signature"])
    except (ValueError, TypeError, KeyError, AttributeError, InvalidSignature):
        return False
    return True


def _verify(sha256: str, public: Ed25519PublicKey, signed_at: Any, signature: Any) -> None:
    """Raises ValueError: no time or no signature; InvalidSignature: not of this bundle by this key."""
    if type(signed_at) is not int or not 0 <= signed_at < _LATEST:
        raise ValueError("not a time")
    if not isinstance(signature, str) or not re.fullmatch(r"[A-Za-z0-9_-]{86}", signature):
        raise ValueError("not a signature of 64 bytes")
    raw = base64.urlsafe_b64decode(f"{signature}==")
    public.verify(raw, _signed(bytes.fromhex(sha256), signed_at))
