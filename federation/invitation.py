"""What a kit says to a hospital, `kit.json`, and the fingerprint by which both sides compare it.

A kit has no secret, but a hospital dials whom its kit names, and believes rosters that the kit's
coordinator signed. So what has to arrive unchanged has a fingerprint, which a hospital reads out over
the telephone together with its own.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import asdict, dataclass

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from federation import roster

_FINGERPRINT = b"consilium kit\n"


@dataclass(frozen=True)
class Invitation:
    """Attributes:
    superlink: where the hospital dials, `HOST:PORT`.
    """

    federation: str
    hospital: str
    superlink: str

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self), indent=1).encode() + b"\n"

    @classmethod
    def from_bytes(cls, content: bytes) -> Invitation:
        """What `to_bytes` wrote. Raises ValueError: it is anything else."""
        said = roster.exactly(roster.from_json(content), {"federation", "hospital", "superlink"})
        if not all(isinstance(text, str) for text in said.values()):
            raise ValueError("not text")
        host, _, port = said["superlink"].rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
            raise ValueError("not HOST:PORT")
        return cls(**said)

    def fingerprint(self, authority: x509.Certificate, coordinator: Ed25519PublicKey) -> str:
        """The same for all hospitals of a federation: of its name, where it is, and its two keys."""
        key = coordinator.public_bytes(Encoding.Raw, PublicFormat.Raw)
        content = {
            "federation": self.federation,
            "superlink": self.superlink,
            "authority": hashlib.sha256(authority.public_bytes(Encoding.DER)).hexdigest(),
            "coordinator": base64.b64encode(key).decode(),
        }
        return roster.in_groups(hashlib.sha256(_FINGERPRINT + roster.canonical(content)))
