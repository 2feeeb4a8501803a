"""The kit that the coordinator's provisioning made for this hospital, and the roster that is pinned.

A kit holds nothing secret: where to dial, the authority's certificate, the coordinator's public key, and
the roster as it was then. The first roster that this hospital used is pinned in its state folder. From
then on a newer one is in force only after a person here has looked at who was added, who was removed and
whose key changed (`hospital roster accept`), also where a newer kit brings it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from client_app.private_file import write_private
from client_app.site import Site
from federation import roster
from federation.roster import Changes, Roster
from federation.schema import ConfigError

_LARGEST = 1 << 14  # bytes of kit.json and coordinator.pub


@dataclass(frozen=True)
class Kit:
    """What provisioning made for one hospital. `state` is this hospital's own folder."""

    path: Path
    federation: str
    hospital: str
    superlink: str
    state: Path

    @property
    def ca_certificate(self) -> Path:
        return self.path / "ca.crt"

    @property
    def pinned(self) -> Path:
        """Where the roster lies that this hospital accepted; absent until it is first used."""
        return self.state / "roster.json"

    def roster(self) -> Roster:
        """The roster in force here: the pinned one, or the kit's where none is pinned yet.

        Raises:
            ConfigError: it is missing, of another federation, or this kit's coordinator did not sign it.
        """
        return self._read(self.pinned if self.pinned.exists() else self.path / "roster.json")[1]

    def shipped(self) -> Roster:
        """The kit's own roster. Raises ConfigError: as `roster`."""
        return self._read(self.path / "roster.json")[1]

    def pin(self) -> Roster:
        """The roster in force, pinned if it was not yet.

        Raises:
            ConfigError: as `roster`; or the kit has a roster of the pinned version that differs from it.
        """
        if not self.pinned.exists():
            self.put(self._read(self.path / "roster.json")[0])
        pinned, shipped = self.roster(), self.shipped()
        if pinned.version == shipped.version and pinned.sha256() != shipped.sha256():
            raise ConfigError(
                f"the kit has another roster of version {shipped.version} than the one pinned in "
                f"{self.pinned}: the coordinator told different hospitals different things, or the kit "
                "was changed. Ask the other hospitals for the SHA-256 that hospital roster show prints"
            )
        return pinned

    def offered(self, path: Path) -> Offered:
        """A roster that somebody here may accept in place of the one in force.

        Raises:
            ConfigError: not signed by the coordinator whose key is in the kit, of another federation,
                not newer, or not made from the one in force.
        """
        content, new = self._read(path)
        old = self.roster()
        if new.version <= old.version:
            known = new.sha256() == old.sha256()
            raise ConfigError(
                f"{path} is the roster that is pinned here already (version {old.version})"
                if known
                else f"{path} has version {new.version} and is not newer than version {old.version}, "
                "which is pinned here; a roster never goes back. Ask the coordinator for the newest"
            )
        if new.version == old.version + 1 and new.previous != old.sha256():
            raise ConfigError(
                f"{path} does not follow from the roster pinned here: it was made from another version "
                f"{old.version} (SHA-256 {new.previous[:16]}…, here {old.sha256()[:16]}…). Do not "
                "accept it; ask the coordinator and the other hospitals which one is right"
            )
        return Offered(old, new, content)

    def put(self, content: bytes) -> None:
        """Pin this roster; it is on the disk when this returns."""
        write_private(self.pinned, content)
        sync_folder(self.pinned.parent)

    def _read(self, path: Path) -> tuple[bytes, Roster]:
        content, found = roster.read_signed(path, self._coordinator())
        if found.federation != self.federation:
            raise ConfigError(
                f"{path} is a roster of federation {found.federation!r}, and this kit is of "
                f"{self.federation!r}"
            )
        return content, found

    def _coordinator(self) -> Ed25519PublicKey:
        file = self.path / "coordinator.pub"
        try:
            key = load_pem_public_key(roster.read_bounded(file, _LARGEST))
        except (FileNotFoundError, ValueError, UnsupportedAlgorithm):
            key = None
        if not isinstance(key, Ed25519PublicKey):
            raise ConfigError(
                f"{file} is not an Ed25519 key; ask the coordinator for the kit again"
            )
        return key


@dataclass(frozen=True)
class Offered:
    """A newer roster, not accepted yet. `content` is the file."""

    old: Roster
    new: Roster
    content: bytes

    @property
    def changes(self) -> Changes:
        return Changes.between(self.old, self.new)

    @property
    def skipped(self) -> range:
        """Versions that this hospital never saw: what they changed back and forth does not show."""
        return range(self.old.version + 1, self.new.version)


def read_kit(site: Site) -> Kit:
    """The site's kit.

    Raises:
        ConfigError: not a kit, or another hospital's kit.
    """
    file = site.kit / "kit.json"
    try:
        content = roster.from_json(roster.read_bounded(file, _LARGEST))
        federation, hospital, superlink = (
            content[key] for key in ("federation", "hospital", "superlink")
        )
        if not all(isinstance(text, str) for text in (federation, hospital, superlink)):
            raise ValueError("not text")
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(
            f"{site.kit} is not a kit; the coordinator makes it from what hospital identity create "
            f"writes, and hands over the folder hospitals/{site.hospital}"
        ) from None
    except (KeyError, TypeError, ValueError):
        raise ConfigError(f"{file} is damaged; ask the coordinator for the kit again") from None
    kit = Kit(site.kit, federation, hospital, superlink, site.state)
    if kit.hospital != site.hospital:
        raise ConfigError(f"{site.kit} is the kit of {kit.hospital!r}, not of {site.hospital!r}")
    return kit


def sync_folder(folder: Path) -> None:
    """Without this a power cut may undo a rename after something else relied on it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
