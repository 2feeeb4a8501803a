"""The kit that the coordinator's provisioning made for this hospital."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from client_app.site import Site
from federation import roster
from federation.roster import Roster
from federation.schema import ConfigError


@dataclass(frozen=True)
class Kit:
    """What provisioning made for one hospital."""

    path: Path
    federation: str
    hospital: str
    superlink: str

    @property
    def ca_certificate(self) -> Path:
        return self.path / "ca.crt"

    @property
    def node_key(self) -> Path:
        return self.path / "node.key"

    def roster(self) -> Roster:
        """Raises ConfigError: the roster is missing or the coordinator did not sign it."""
        key = load_pem_public_key((self.path / "coordinator.pub").read_bytes())
        if not isinstance(key, Ed25519PublicKey):
            raise ConfigError(f"{self.path / 'coordinator.pub'} is not an Ed25519 key")
        return roster.read(self.path / "roster.json", key)


def read_kit(site: Site) -> Kit:
    """The site's kit.

    Raises:
        ConfigError: not a kit, another hospital's kit, or a private key that others may read.
    """
    try:
        content = json.loads((site.kit / "kit.json").read_text())
        kit = Kit(site.kit, content["federation"], content["hospital"], content["superlink"])
    except (FileNotFoundError, KeyError, json.JSONDecodeError):
        raise ConfigError(
            f"{site.kit} is not a kit; ask the coordinator for the folder hospitals/{site.hospital}"
        ) from None
    if kit.hospital != site.hospital:
        raise ConfigError(f"{site.kit} is the kit of {kit.hospital!r}, not of {site.hospital!r}")
    if kit.node_key.stat().st_mode & 0o077:
        raise ConfigError(f"{kit.node_key} can be read by others; run chmod 600 on it")
    return kit
