"""The hospitals of a federation, as the coordinator signed them at provisioning.

`roster.json` holds names and public keys: the node key by which Flower knows a hospital, and the
Ed25519 identity by which hospitals will know each other. Nothing in it is secret.
"""

from __future__ import annotations

import base64
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)

from federation.schema import ConfigError


@dataclass(frozen=True)
class Member:
    """One hospital. `node_key` is an OpenSSH public key line, `identity_key` raw base64 Ed25519."""

    name: str
    node_key: str
    identity_key: str


@dataclass(frozen=True)
class Roster:
    federation: str
    members: tuple[Member, ...]

    def payload(self) -> bytes:
        """What is signed: canonical JSON."""
        content = {
            "federation": self.federation,
            "members": [asdict(member) for member in sorted(self.members, key=lambda m: m.name)],
        }
        return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()

    def names(self) -> list[str]:
        return sorted(member.name for member in self.members)


def sign(roster: Roster, key: Ed25519PrivateKey) -> bytes:
    """The roster file's content."""
    content = {
        "roster": json.loads(roster.payload()),
        "signature": base64.b64encode(key.sign(roster.payload())).decode(),
    }
    return json.dumps(content, indent=1).encode()


def read(path: Path, key: Ed25519PublicKey) -> Roster:
    """The roster in a file.

    Raises:
        ConfigError: there is none, or the coordinator's key did not sign it as it is.
    """
    try:
        content = json.loads(path.read_text())
        members = tuple(Member(**member) for member in content["roster"]["members"])
        roster = Roster(content["roster"]["federation"], members)
        key.verify(base64.b64decode(content["signature"]), roster.payload())
    except FileNotFoundError:
        raise ConfigError(
            f"there is no roster at {path}; run coordinator provision first"
        ) from None
    except (KeyError, TypeError, ValueError, InvalidSignature) as error:
        raise ConfigError(
            f"{path} is not a roster that this federation's coordinator signed; "
            "restore it from a copy or provision anew"
        ) from error
    return roster
