"""Secrets of one occasion in shares: dealt under seal to each hospital of the cohort, and received.

A sealed share is AES-256-GCM under a key that both ends alone can agree on, bound to the occasion, to
the cohort and to who sent it to whom.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from federation.messages import Reason
from federation.secure_aggregation import shamir
from federation.secure_aggregation.keys import (
    Cohort,
    ProtocolError,
    Secrets,
    agreed,
    check_enough,
    check_listed,
    check_own,
    derived,
    private_key,
)

_NONCE_BYTES = 12
_TAG_BYTES = 16
SEALED_BYTES = _NONCE_BYTES + 2 * shamir.SHARE_BYTES + _TAG_BYTES


def share(secrets: Secrets, cohort: Cohort) -> dict[str, bytes]:
    """Shares of the mask key and of the seed for each hospital of the cohort, this one too, sealed.

    Returns:
        94 bytes each, by the name of who can open them: AES-256-GCM of both shares, nonce first.

    Raises:
        ProtocolError: as `check_own` does.
    """
    check_own(secrets, cohort)
    count = len(cohort.adverts)
    keys = shamir.split(secrets.mask_key, cohort.threshold, count)
    seeds = shamir.split(secrets.seed, cohort.threshold, count)
    sealed = {}
    for name, of_key, of_seed in zip(cohort.names, keys, seeds, strict=True):
        nonce = os.urandom(_NONCE_BYTES)
        key = _seal_key(secrets, cohort, name, sender=secrets.hospital, receiver=name)
        sealed[name] = nonce + AESGCM(key).encrypt(nonce, of_key + of_seed, None)
    return sealed


@dataclass(frozen=True)
class Held:
    """Shares that a hospital holds: its own and those of the others whose shares came.

    Attributes:
        cohort: SHA-256 of the cohort that they are of.
        mask_keys, seeds: shares, 33 bytes each, by the hospital that dealt them, sorted.
    """

    cohort: bytes
    mask_keys: Mapping[str, bytes] = field(repr=False)
    seeds: Mapping[str, bytes] = field(repr=False)

    @property
    def sharers(self) -> tuple[str, ...]:
        """Those whose pairwise masks are in the sum."""
        return tuple(self.seeds)

    def to_bytes(self) -> bytes:
        """For the hospital's own disk."""
        shares = {name: [self.mask_keys[name].hex(), self.seeds[name].hex()] for name in self.seeds}
        return json.dumps({"cohort": self.cohort.hex(), "shares": shares}).encode()

    @classmethod
    def from_bytes(cls, content: bytes) -> Held:
        """Raises ProtocolError: NO_KEYS, these are no shares as `to_bytes` writes them."""
        try:
            fields = json.loads(content)
            shares = {
                str(name): (bytes.fromhex(of_key), bytes.fromhex(of_seed))
                for name, (of_key, of_seed) in sorted(fields["shares"].items())
            }
            if not all(shamir.is_share(one) for both in shares.values() for one in both):
                raise ValueError("not a share")
            return cls(
                bytes.fromhex(fields["cohort"]),
                {name: of_key for name, (of_key, _) in shares.items()},
                {name: of_seed for name, (_, of_seed) in shares.items()},
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ProtocolError(Reason.NO_KEYS) from None


def receive(secrets: Secrets, cohort: Cohort, sealed: Mapping[str, bytes], *, least: int) -> Held:
    """The shares that came for this hospital, by sender; its own is among them.

    Raises:
        ProtocolError: as `check_own` does; ROSTER_DIFFERS, from none of the cohort, or not from this
            hospital; TOO_FEW_HOSPITALS, fewer than t or `least`; BAD_SHARE, damaged, or sealed for
            another hospital, by another, or for another occasion.
    """
    check_own(secrets, cohort)
    sharers = tuple(sorted(sealed))
    check_listed(sharers, cohort.names, secrets.hospital, Reason.ROSTER_DIFFERS)
    check_enough(sharers, cohort, least)
    opened = {}
    for name in sharers:
        key = _seal_key(secrets, cohort, name, sender=name, receiver=secrets.hospital)
        nonce, content = sealed[name][:_NONCE_BYTES], sealed[name][_NONCE_BYTES:]
        try:
            both = AESGCM(key).decrypt(nonce, content, None)
        except (InvalidTag, ValueError):
            raise ProtocolError(Reason.BAD_SHARE, name) from None
        opened[name] = both[: shamir.SHARE_BYTES], both[shamir.SHARE_BYTES :]
        if not all(map(shamir.is_share, opened[name])):
            raise ProtocolError(Reason.BAD_SHARE, name)
    return Held(
        cohort.sha256,
        {name: of_key for name, (of_key, _) in opened.items()},
        {name: of_seed for name, (_, of_seed) in opened.items()},
    )


def _seal_key(secrets: Secrets, cohort: Cohort, peer: str, *, sender: str, receiver: str) -> bytes:
    shared = agreed(private_key(secrets.seal_key), cohort.members[peer].seal_key)
    return derived(shared, "seal", *cohort.bound(), sender, receiver)
