"""The public half of a hospital's keys, `NAME.identity.json`: made there, read by the coordinator.

The keys themselves never leave the hospital. The file proves that who wrote it holds both: each signs a
statement that names the hospital and both public keys. One that replaces an older identity is signed by
that one too, and this signature goes on to the other hospitals with the roster, so that they can tell a
rotation from a swapped key.
"""

from __future__ import annotations

import base64
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from federation import roster
from federation.roster import Member
from federation.schema import ConfigError

SUFFIX = ".identity.json"
LARGEST = 1 << 14  # bytes of a file

_STATED = b"consilium public identity\n"


@dataclass(frozen=True)
class PublicIdentity:
    """What such a file says, all proofs of it checked.

    Attributes:
        member: as it goes on the roster.
        previous: the identity key that signed this one too, base64; empty without one.
    """

    member: Member
    previous: str


def statement(member: Member, previous: str) -> bytes:
    """What is signed: hospital, keys, and the identity key before, if there is one."""
    return _STATED + roster.canonical(
        {
            "hospital": member.name,
            "node_key": member.node_key,
            "identity_key": member.identity_key,
            "previous": previous,
        }
    )


def succeeds(new: Member, old: Member) -> bool:
    """Whether the identity of `old` signed that the keys of `new` replace it."""
    try:
        signature = roster.from_base64(new.succeeds, 64)
        old.identity().verify(signature, statement(new, old.identity_key))
    except (ValueError, InvalidSignature):
        return False
    return new.name == old.name


def write(
    hospital: str,
    identity: Ed25519PrivateKey,
    node: ec.EllipticCurvePrivateKey,
    previous: Ed25519PrivateKey | None = None,
) -> bytes:
    """The file's content. With `previous` it is a rotation from that identity to this one."""
    before = "" if previous is None else roster.identity_text(previous.public_key())
    member = Member(
        hospital,
        roster.node_line(node.public_key()),
        roster.identity_text(identity.public_key()),
    )
    stated = statement(member, before)
    content = {
        "hospital": hospital,
        "node_key": member.node_key,
        "identity_key": member.identity_key,
        "previous": before,
        "signature": _text(identity.sign(stated)),
        "node_signature": _text(node.sign(stated, ec.ECDSA(hashes.SHA384()))),
        "previous_signature": "" if previous is None else _text(previous.sign(stated)),
    }
    return json.dumps(content, indent=1).encode() + b"\n"


def read(path: Path) -> PublicIdentity:
    """The file at `path`.

    Raises:
        FileNotFoundError
        ConfigError: larger than `LARGEST`, not such a file, or one of its signatures is wrong.
    """
    content = roster.read_bounded(path, LARGEST)
    try:
        return parse(content)
    except InvalidSignature:
        raise ConfigError(
            f"{path}: a signature in it is wrong, so nobody proved to hold these keys; ask the "
            "hospital for the file again (hospital identity show --out .)"
        ) from None
    except ValueError:
        raise ConfigError(
            f"{path} is not the public half of a hospital's keys; it is made by: hospital join KIT"
        ) from None


def parse(content: bytes) -> PublicIdentity:
    """What `write` wrote.

    Raises:
        ValueError: it is anything else.
        InvalidSignature: one of its proofs does not hold.
    """
    said = roster.exactly(
        roster.from_json(content),
        {
            *("hospital", "node_key", "identity_key", "previous"),
            *("signature", "node_signature", "previous_signature"),
        },
    )
    if not all(isinstance(text, str) for text in said.values()):
        raise ValueError("not text")
    previous = said["previous"]
    member = Member(
        said["hospital"], said["node_key"], said["identity_key"], said["previous_signature"]
    )
    roster.check_members((member,))
    if bool(previous) != bool(member.succeeds) or previous == member.identity_key:
        raise ValueError("a rotation has an identity before, and its signature")
    stated = statement(member, previous)
    roster.identity_key(member.identity_key).verify(
        roster.from_base64(said["signature"], 64), stated
    )
    roster.node_key(member.node_key).verify(
        _der(said["node_signature"]), stated, ec.ECDSA(hashes.SHA384())
    )
    if previous:
        roster.identity_key(previous).verify(roster.from_base64(member.succeeds, 64), stated)
    return PublicIdentity(member, previous)


def without_succession(member: Member) -> Member:
    """As one that has no identity before it."""
    return Member(**(asdict(member) | {"succeeds": ""}))


def _text(signature: bytes) -> str:
    return base64.b64encode(signature).decode()


def _der(text: str) -> bytes:
    """An ECDSA signature's bytes, of which there are about a hundred."""
    if len(text) > 256:
        raise ValueError("too long for a signature")
    return base64.b64decode(text, validate=True)
