"""The hospitals of a federation, as the coordinator signed them: one version after the other.

`roster.json` holds names and public keys: the node key by which Flower knows a hospital, and the
Ed25519 identity by which hospitals know each other. Nothing in it is secret. Versions count from 1 and
each names the SHA-256 of the one before, so that a hospital sees what changed since it last looked. The
coordinator's signature says who made a roster, not that the coordinator is honest: one that adds
hospitals of its own, or changes a key, would count all but one update of a secure sum itself and read
the remainder. So a hospital takes a new version only by hand (`hospital roster accept`).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_ssh_public_key,
)

from federation.schema import ConfigError

NAME = re.compile(r"[a-z][a-z0-9-]{0,40}")
LARGEST = 1 << 20  # bytes of a roster file
MOST_MEMBERS = 1000

_SIGNED = b"consilium roster\n"
_FINGERPRINT = b"consilium hospital\n"
_ORDER_FIELD = 2**255 - 19
# y of the points of small order (Bernstein et al. 2012): under such a key anybody can sign
_SMALL_ORDER = frozenset(
    {
        0, 1, _ORDER_FIELD - 1,
        0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826,
        0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7,
    }
)  # fmt: skip


@dataclass(frozen=True)
class Member:
    """One hospital.

    Attributes:
        node_key: an OpenSSH public key line, EC P-384, without a comment.
        identity_key: raw Ed25519, base64.
        succeeds: signature by the identity before this one, base64, over
            `federation.public_identity.statement`; empty for a first identity, and for one whose
            predecessor was lost.
    """

    name: str
    node_key: str
    identity_key: str
    succeeds: str = ""

    def identity(self) -> Ed25519PublicKey:
        return Ed25519PublicKey.from_public_bytes(base64.b64decode(self.identity_key))

    def fingerprint(self) -> str:
        """Of name and keys, to be read out over the telephone, see `in_groups`."""
        keys = {"name": self.name, "node_key": self.node_key, "identity_key": self.identity_key}
        return in_groups(hashlib.sha256(_FINGERPRINT + canonical(keys)))

    def same_keys(self, other: Member) -> bool:
        return (self.node_key, self.identity_key) == (other.node_key, other.identity_key)


@dataclass(frozen=True)
class Roster:
    """A federation's hospitals.

    Attributes:
        version: counts from 1.
        previous: `sha256` of the version before; empty for the first.
    """

    federation: str
    members: tuple[Member, ...]
    version: int = 1
    previous: str = ""

    def payload(self) -> bytes:
        """What is signed: canonical JSON."""
        return canonical(
            {
                "federation": self.federation,
                "version": self.version,
                "previous": self.previous,
                "members": [asdict(member) for member in sorted(self.members, key=_name)],
            }
        )

    def sha256(self) -> str:
        """Of the payload, hexadecimal: what secure aggregation binds its keys and signatures to."""
        return hashlib.sha256(self.payload()).hexdigest()

    def names(self) -> list[str]:
        return sorted(member.name for member in self.members)

    def member(self, name: str) -> Member | None:
        return next((member for member in self.members if member.name == name), None)

    def identities(self) -> dict[str, Ed25519PublicKey]:
        """The key by which each hospital's signatures are checked."""
        return {member.name: member.identity() for member in sorted(self.members, key=_name)}


@dataclass(frozen=True)
class Changes:
    """What a newer roster changes; `keys` has each hospital of both with its old and new keys."""

    added: tuple[Member, ...]
    removed: tuple[Member, ...]
    keys: tuple[tuple[Member, Member], ...]

    @classmethod
    def between(cls, old: Roster, new: Roster) -> Changes:
        before = {member.name: member for member in old.members}
        after = {member.name: member for member in new.members}
        return cls(
            added=tuple(after[name] for name in new.names() if name not in before),
            removed=tuple(before[name] for name in old.names() if name not in after),
            keys=tuple(
                (before[name], after[name])
                for name in new.names()
                if name in before and not after[name].same_keys(before[name])
            ),
        )


def sign(roster: Roster, key: Ed25519PrivateKey) -> bytes:
    """The roster file's content."""
    content = {
        "roster": json.loads(roster.payload()),
        "signature": base64.b64encode(key.sign(_SIGNED + roster.payload())).decode(),
    }
    return json.dumps(content, indent=1).encode() + b"\n"


def read(path: Path, key: Ed25519PublicKey) -> Roster:
    """The roster in a file.

    Raises:
        ConfigError: there is none, it is larger than `LARGEST`, or the coordinator's key did not sign
            it as it is.
    """
    return read_signed(path, key)[1]


def read_signed(path: Path, key: Ed25519PublicKey) -> tuple[bytes, Roster]:
    """As `read`, with the bytes of the file."""
    try:
        content = read_bounded(path, LARGEST)
    except FileNotFoundError:
        raise ConfigError(
            f"there is no roster at {path}; the coordinator makes it: coordinator provision"
        ) from None
    try:
        return content, parse(content, key)
    except (ValueError, InvalidSignature) as error:
        raise ConfigError(
            f"{path} is not a roster that this federation's coordinator signed; "
            "restore it from a copy, or ask the coordinator for it again"
        ) from error


def parse(content: bytes, key: Ed25519PublicKey) -> Roster:
    """What `sign` wrote.

    Raises:
        ValueError: it is anything else; two members share a name or a key, or a key is none.
        InvalidSignature: `key` did not sign it.
    """
    document = exactly(from_json(content), {"roster", "signature"})
    inner = exactly(document["roster"], {"federation", "version", "previous", "members"})
    listed = inner["members"]
    if not isinstance(listed, list) or not 0 < len(listed) <= MOST_MEMBERS:
        raise ValueError("a roster has 1 to 1000 hospitals")
    names = {field.name for field in fields(Member)}
    members = tuple(Member(**exactly(entry, names)) for entry in listed)
    roster = Roster(inner["federation"], members, inner["version"], inner["previous"])
    texts = [roster.federation, roster.previous, *(t for m in members for t in vars(m).values())]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("not text")
    if type(roster.version) is not int or not 0 < roster.version < 2**31:
        raise ValueError("a version counts from 1")
    # Before any key is parsed, so that only what the coordinator signed is looked at further.
    key.verify(from_base64(document["signature"], 64), _SIGNED + roster.payload())
    if not re.fullmatch(r"[0-9a-f]{64}" if roster.version > 1 else "", roster.previous):
        raise ValueError("not the SHA-256 of the version before")
    check_members(members)
    return roster


def check_members(members: tuple[Member, ...]) -> None:
    """Raises ValueError: a name or key that is none, or one that two hospitals share."""
    for member in members:
        if not NAME.fullmatch(member.name):
            raise ValueError("a hospital's name has letters a-z, digits and '-'")
        node_key(member.node_key)
        identity_key(member.identity_key)
        if member.succeeds:
            from_base64(member.succeeds, 64)
    for field in ("name", "node_key", "identity_key"):
        if len({getattr(member, field) for member in members}) != len(members):
            raise ValueError(f"two hospitals have the same {field}")


def node_key(line: str) -> ec.EllipticCurvePublicKey:
    """The key in an OpenSSH line. Raises ValueError: not EC P-384, or written in another way."""
    try:
        key = load_ssh_public_key(line.encode())
    except (UnsupportedAlgorithm, UnicodeEncodeError, NotImplementedError) as error:
        raise ValueError("not an OpenSSH key") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp384r1":
        raise ValueError("a node key is an EC key on P-384")
    if node_line(key) != line:
        raise ValueError("a node key has one spelling")
    return key


def node_line(key: ec.EllipticCurvePublicKey) -> str:
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def identity_key(text: str) -> Ed25519PublicKey:
    """The key in base64. Raises ValueError: not 32 bytes, or a point under which anybody can sign."""
    raw = from_base64(text, 32)
    y = int.from_bytes(raw, "little") % 2**255 % _ORDER_FIELD
    if y in _SMALL_ORDER:
        raise ValueError("a point of small order is no identity")
    return Ed25519PublicKey.from_public_bytes(raw)


def identity_text(key: Ed25519PublicKey) -> str:
    return base64.b64encode(key.public_bytes(Encoding.Raw, PublicFormat.Raw)).decode()


def in_groups(digest: hashlib._Hash) -> str:
    """The first 128 bits of a SHA-256 in eight groups of four letters.

    Who would pass for another needs keys of one given fingerprint, 2¹²⁸ tries; two of one's own that
    agree in it (2⁶⁴) pass for nobody. More would not be read out to its end.
    """
    text = digest.hexdigest()[:32]
    return " ".join(text[start : start + 4] for start in range(0, len(text), 4))


def same_fingerprint(one: str, other: str) -> bool:
    """Whether what a person typed is this fingerprint, however it is spaced."""
    return "".join(one.split()).lower() == "".join(other.split()).lower()


def canonical(content: Any) -> bytes:
    """JSON with sorted keys and no spaces, ASCII: one content, one string."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def read_bounded(path: Path, largest: int) -> bytes:
    """A file that somebody else wrote. Raises FileNotFoundError; ConfigError: too large, or no file."""
    if path.exists() and not path.is_file():
        raise ConfigError(f"{path} is not a file")
    with path.open("rb") as file:
        content = file.read(largest + 1)
    if len(content) > largest:
        raise ConfigError(f"{path} is larger than {largest:,} bytes: it is not what it should be")
    return content


def from_json(content: bytes) -> Any:
    """Raises ValueError: not JSON, however it is broken."""
    try:
        return json.loads(content)
    except RecursionError as error:
        raise ValueError("JSON that is nested too deeply") from error


def exactly(content: Any, keys: set[str]) -> dict[str, Any]:
    """The mapping, if it has these keys and no others. Raises ValueError: otherwise."""
    if not isinstance(content, dict) or content.keys() != keys:
        raise ValueError("not the keys that have to be there")
    return content


def from_base64(text: Any, length: int) -> bytes:
    """Raises ValueError: not so many bytes, or not their one spelling."""
    if not isinstance(text, str) or len(text) > 2 * length:
        raise ValueError("not base64")
    try:
        raw = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError("not base64") from error
    if len(raw) != length or base64.b64encode(raw).decode() != text:
        raise ValueError("not base64 of the right length")
    return raw


def _name(member: Member) -> str:
    return member.name
