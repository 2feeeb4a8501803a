"""Hospitals of a sum under masks, and what passes between them, for tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from federation.secure_aggregation import masks
from federation.secure_aggregation.masks import (
    Advert,
    Cohort,
    Held,
    Occasion,
    Opening,
    Rebuilt,
    Secrets,
)
from federation.secure_aggregation.stream import Unsigned

OCCASION = Occasion("run-1", 3, 0, "ab" * 32)


def names(count: int) -> tuple[str, ...]:
    return tuple(f"hospital-{chr(ord('a') + place)}" for place in range(count))


def identities(hospitals: Sequence[str]) -> dict[str, Ed25519PrivateKey]:
    return {name: Ed25519PrivateKey.generate() for name in hospitals}


@dataclass
class Parties:
    """Honest hospitals of one occasion; a test does the coordinator's part."""

    private: dict[str, Ed25519PrivateKey]
    secrets: dict[str, Secrets]
    adverts: dict[str, Advert]
    cohort: Cohort
    sealed: dict[str, dict[str, bytes]] = field(default_factory=dict)  # by sender, by receiver

    @classmethod
    def of(
        cls,
        count: int,
        occasion: Occasion = OCCASION,
        private: dict[str, Ed25519PrivateKey] | None = None,
    ) -> Parties:
        keys = identities(names(count)) if private is None else private
        made = {
            name: masks.advertise(occasion, name, size, key)
            for size, (name, key) in enumerate(keys.items(), start=10)
        }
        secrets = {name: one for name, (one, _) in made.items()}
        adverts = {name: one for name, (_, one) in made.items()}
        public = {name: key.public_key() for name, key in keys.items()}
        cohort = masks.cohort(adverts.values(), occasion, public, least=3)
        parties = cls(keys, secrets, adverts, cohort)
        parties.sealed = {name: masks.share(secrets[name], cohort) for name in cohort.names}
        return parties

    @property
    def public(self) -> dict[str, Ed25519PublicKey]:
        return {name: key.public_key() for name, key in self.private.items()}

    def letter(self, receiver: str, sharers: Sequence[str]) -> dict[str, bytes]:
        """Sealed shares as the coordinator hands them to one hospital."""
        return {sender: self.sealed[sender][receiver] for sender in sharers}

    def receive(self, name: str, sharers: Sequence[str], *, least: int = 3) -> Held:
        return masks.receive(
            self.secrets[name], self.cohort, self.letter(name, sharers), least=least
        )

    def mask(
        self, name: str, sharers: Sequence[str], vector: Unsigned, bits: int, part: str = "update"
    ) -> Unsigned:
        masked = vector.copy()
        masks.mask(self.secrets[name], self.cohort, sharers, masked, bits, part=part)
        return masked

    def sign(
        self, name: str, sharers: Sequence[str], survivors: Sequence[str], *, least: int = 3
    ) -> bytes:
        return masks.sign_survivors(
            self.secrets[name], self.cohort, sharers, survivors, self.private[name], least=least
        )

    def open(
        self,
        name: str,
        sharers: Sequence[str],
        survivors: Sequence[str],
        signatures: dict[str, bytes] | None = None,
        *,
        signed: Sequence[str] | None = None,
        opened_before: Sequence[str] | None = None,
        least: int = 3,
    ) -> Opening:
        if signatures is None:
            signatures = {one: self.sign(one, sharers, survivors) for one in survivors}
        return masks.open_shares(
            self.receive(name, sharers),
            self.secrets[name],
            self.cohort,
            survivors,
            signatures,
            self.public,
            signed=survivors if signed is None else signed,
            least=least,
            opened_before=opened_before,
        )

    def openings(
        self, sharers: Sequence[str], survivors: Sequence[str], openers: Sequence[str]
    ) -> dict[str, Opening]:
        signatures = {name: self.sign(name, sharers, survivors) for name in survivors}
        return {name: self.open(name, sharers, survivors, signatures) for name in openers}

    def rebuild(self, sharers: Sequence[str], survivors: Sequence[str]) -> Rebuilt:
        openings = self.openings(sharers, survivors, survivors)
        return masks.rebuild(self.cohort, sharers, survivors, openings)


def vectors(
    hospitals: Sequence[str], length: int, bits: int, values: int | None = None
) -> dict[str, Unsigned]:
    """Reproducible plain vectors of numbers below 2**bits, or below `values`."""
    rng = np.random.default_rng(5)
    top = (1 << bits) - 1 if values is None else values - 1
    return {
        name: rng.integers(0, top, length, dtype=np.uint64, endpoint=True).astype(masks.word(bits))
        for name in hospitals
    }


def plain_sum(plain: Sequence[Unsigned], bits: int) -> list[int]:
    """By Python's own integers."""
    return [sum(int(x) for x in column) % (1 << bits) for column in zip(*plain, strict=True)]
