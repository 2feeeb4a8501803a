"""Whether this hospital is in: kit, roster, keys, the authority that it believes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from cryptography import x509

from client_app import identity
from client_app.checks.finding import Level, Seen
from client_app.kit import read_kit
from client_app.site import Site
from federation.schema import ConfigError

WARN_BEFORE = timedelta(days=30)


def kit(site: Site) -> Seen:
    found = read_kit(site)
    found.shipped()
    return Seen(
        f"{found.hospital} in federation {found.federation}, which it dials at {found.superlink}; "
        f"fingerprint {found.fingerprint()}"
    )


def roster(site: Site) -> Seen:
    """Signed, of this federation, and the same as the kit's of its version."""
    found = read_kit(site)
    first = not found.pinned.exists()
    pinned, shipped = found.pin(), found.shipped()
    said = (
        f"version {pinned.version}, signed by the coordinator, with {len(pinned.members)} hospitals"
    )
    if shipped is not None and shipped.version > pinned.version:
        newer = f"; the kit has a newer one: hospital roster accept {found.path / 'roster.json'}"
        return Seen(said + newer, Level.WARNING)
    if first:
        said += "; pinned now, so compare their fingerprints by telephone: hospital roster show"
    return Seen(said)


def keys(site: Site) -> Seen:
    own = identity.load(site)
    named = own.roster.member(site.hospital)
    said = f"as the roster names them, {named.fingerprint() if named else ''}"
    if len(identity.public_halves(site.state, site.hospital)) > 1:
        said += "; new ones wait for a roster that names them"
    return Seen(said)


def authority(site: Site) -> Seen:
    return until(read_kit(site).authority(), "ask the coordinator for a new kit")


def until(certificate: x509.Certificate, remedy: str) -> Seen:
    """How long it is valid. Raises ConfigError: it has ended."""
    left = certificate.not_valid_after_utc - datetime.now(UTC)
    if left < timedelta(0):
        raise ConfigError(f"it ended on {certificate.not_valid_after_utc:%Y-%m-%d}; {remedy}")
    if left < WARN_BEFORE:
        return Seen(f"it ends in {left.days} days; {remedy}", Level.WARNING)
    return Seen(f"valid for {left.days} days")
