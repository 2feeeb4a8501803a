"""The kit that the coordinator's provisioning made for this hospital, and the roster that is pinned.

A kit holds nothing secret: where to dial, the authority's certificate, the coordinator's public key, and
the roster as it was then, if there was one. One roster is pinned in the state folder and in force. A
person here takes each (`hospital roster accept`), the first too, after a look at who is on it, who was
added, who was removed and whose key changed, also where a newer kit brings it. The one exception is a
kit whose roster names this hospital: it was made from keys that were sent before, and is pinned at the
first `check` or `start`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from client_app.private_file import write_private
from client_app.site import Site
from federation import roster
from federation.invitation import Invitation
from federation.public_identity import SUFFIX
from federation.roster import Changes, Roster
from federation.schema import ConfigError

_LARGEST = 1 << 14  # bytes of kit.json and coordinator.pub


@dataclass(frozen=True)
class Kit:
    """What provisioning made for one hospital. `state` is this hospital's own folder."""

    path: Path
    invitation: Invitation
    state: Path

    @property
    def federation(self) -> str:
        return self.invitation.federation

    @property
    def hospital(self) -> str:
        return self.invitation.hospital

    @property
    def superlink(self) -> str:
        return self.invitation.superlink

    @property
    def ca_certificate(self) -> Path:
        return self.path / "ca.crt"

    @property
    def pinned(self) -> Path:
        """Where the roster lies that this hospital accepted; absent until it is first used."""
        return self.state / "roster.json"

    def authority(self) -> x509.Certificate:
        """Whose signature the coordinator's server shows. Raises ConfigError: it is no authority's."""
        file = self.ca_certificate
        try:
            found = x509.load_pem_x509_certificate(roster.read_bounded(file, _LARGEST))
            usage = found.extensions.get_extension_for_class(x509.BasicConstraints).value
            signs = usage.ca
        except (FileNotFoundError, ValueError, x509.ExtensionNotFound):
            signs = False
        if not signs:
            raise ConfigError(
                f"{file} is not an authority's certificate; ask the coordinator for the kit again"
            )
        return found

    def fingerprint(self) -> str:
        """To be compared with the coordinator's by telephone. Raises ConfigError: a damaged kit."""
        return self.invitation.fingerprint(self.authority(), self._coordinator())

    def roster(self) -> Roster:
        """The roster in force here: the pinned one, or the kit's where it names this hospital.

        Raises:
            ConfigError: there is none, it is of another federation, or this kit's coordinator did not
                sign it.
        """
        if self.pinned.exists():
            return self._read(self.pinned)[1]
        shipped = self.shipped()
        if shipped is None or shipped.member(self.hospital) is None:
            raise ConfigError(
                f"no roster is in force here yet. When the coordinator has admitted {self.hospital} it "
                "sends roster.json: take it with hospital roster accept roster.json"
            )
        return shipped

    def shipped(self) -> Roster | None:
        """The kit's own roster, if it has one. Raises ConfigError: as `roster`."""
        file = self.path / "roster.json"
        return self._read(file)[1] if file.exists() else None

    def pin(self) -> Roster:
        """The roster in force, pinned if it was not yet.

        Raises:
            ConfigError: as `roster`; or the kit has a roster of the pinned version that differs from it.
        """
        pinned, shipped = self.roster(), self.shipped()
        if not self.pinned.exists():
            self.put(self._read(self.path / "roster.json")[0])
        if shipped is not None:
            self._require_same(pinned, shipped)
        return pinned

    def _require_same(self, pinned: Roster, shipped: Roster) -> None:
        if pinned.version == shipped.version and pinned.sha256() != shipped.sha256():
            raise ConfigError(
                f"the kit has another roster of version {shipped.version} than the one pinned in "
                f"{self.pinned}: the coordinator told different hospitals different things, or the kit "
                "was changed. Ask the other hospitals for the SHA-256 that hospital roster show prints"
            )

    def offered(self, path: Path) -> Offered:
        """A roster that somebody here may accept in place of the one in force, or as the first.

        Raises:
            ConfigError: not signed by the coordinator whose key is in the kit, of another federation,
                not newer, or not made from the one in force; or a first one without this hospital.
        """
        content, new = self._read(path)
        shipped = self.shipped()
        named = shipped is not None and shipped.member(self.hospital) is not None
        if not self.pinned.exists() and (not named or shipped == new):
            if new.member(self.hospital) is None:
                raise ConfigError(
                    f"{path} does not name {self.hospital}: the coordinator has not admitted it yet. "
                    f"Send it {self.hospital}{SUFFIX}, and take the roster that comes then"
                )
            if shipped is not None:
                self._require_same(new, shipped)
            return Offered(Roster(self.federation, (), 0), new, content)
        old = self.pin()
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
    """A newer roster, not accepted yet.

    Attributes:
        old: the one in force; without hospitals, and of version 0, where there is none yet.
        content: the file.
    """

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
    kit = open_kit(site.kit, site.state)
    if kit.hospital != site.hospital:
        raise ConfigError(f"{site.kit} is the kit of {kit.hospital!r}, not of {site.hospital!r}")
    return kit


def open_kit(path: Path, state: Path) -> Kit:
    """The kit in a folder. Raises ConfigError: it is none, or damaged."""
    file = path / "kit.json"
    try:
        invitation = Invitation.from_bytes(roster.read_bounded(file, _LARGEST))
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(
            f"{path} is not a kit; it is a folder that the coordinator makes for each hospital "
            "(coordinator provision or invite) and hands over"
        ) from None
    except ValueError:
        raise ConfigError(f"{file} is damaged; ask the coordinator for the kit again") from None
    return Kit(path, invitation, state)


def sync_folder(folder: Path) -> None:
    """Without this a power cut may undo a rename after something else relied on it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
