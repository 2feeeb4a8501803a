"""Sums under secret-shared masks: Bonawitz et al. 2017, the variant for active adversaries.

    hospital                                     coordinator
    advertise: two fresh keys, signed      →     relays them; each hospital checks all (`cohort`)
    share: seed and mask key, sealed       →     relays them; each opens its own (`receive`)
    mask: vector + private mask
          + Σ ± pairwise masks, mod 2**b   →     adds what comes
    sign_survivors: who is in the sum      →     relays the signatures
    open_shares: of each hospital the seed's
          share or the mask key's          →     rebuild, unmask: the sum and nothing else

The graph is complete. Nothing here keeps state: the caller has on its disk what each step gave before
the answer leaves, answers a step of an occasion once, masks one vector a part, and opens one round of
a run once.

The guarantee. A coordinator that does as it likes, together with the hospitals that it has corrupted,
learns of the other hospitals' vectors nothing but their sum over at least max(t, `least`) survivors,
t the smallest number above 2n/3 (section 6.2 of the paper), if

- fewer than n/3 of the n hospitals of the cohort are corrupted. The coordinator picks the cohort out of
  the roster, so `least` has to be above three times the hospitals that may be corrupted;
- the roster and the identities in it are those that the hospitals accepted, and an honest hospital's
  private identity is its own;
- X25519, Ed25519, HKDF-SHA256, AES-256 and SHA-256 hold, and the operating system's randomness does.

Signatures bind: an advert to run, round, attempt, roster, hospital and size; a survivor list to these,
to the whole cohort and to whose shares came. Derived keys are bound to the same and to both names; those
of masks to the vector's part, bits and length besides. So nothing of one sum serves in another, and two
survivor lists cannot both gather t signatures: an honest hospital signs one alone.

Not promised: that the sum is right when a hospital lies about its vector (poisoning), or exists when
hospitals deal wrong shares (it fails, and says whose where that can be known); what the sum itself
tells, and sums of two rounds that differ by one hospital, whose update is then in their difference
(`federation.privacy` is for both); who took part, with which size, and when.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from federation.messages import Reason
from federation.secure_aggregation import stream
from federation.secure_aggregation.keys import (
    Advert,
    Cohort,
    Occasion,
    ProtocolError,
    Secrets,
    advertise,
    agreed,
    check_enough,
    check_listed,
    check_own,
    cohort,
    derived,
    private_key,
    verify,
)
from federation.secure_aggregation.opening import (
    Opening,
    Rebuilt,
    open_shares,
    rebuild,
    sign_survivors,
    verify_survivors,
)
from federation.secure_aggregation.sharing import Held, receive, share
from federation.secure_aggregation.stream import (
    Stream,
    Unsigned,
    from_residues,
    headroom,
    to_residues,
    word,
)

__all__ = [
    "Advert",
    "Cohort",
    "Held",
    "Occasion",
    "Opening",
    "ProtocolError",
    "Rebuilt",
    "Secrets",
    "advertise",
    "cohort",
    "from_residues",
    "headroom",
    "mask",
    "open_shares",
    "rebuild",
    "receive",
    "share",
    "sign_survivors",
    "to_residues",
    "unmask",
    "verify",
    "verify_survivors",
    "word",
]


def mask(
    secrets: Secrets,
    cohort: Cohort,
    sharers: Sequence[str],
    vector: Unsigned,
    bits: int,
    *,
    part: str,
) -> None:
    """vector ← vector + private mask + Σ ± pairwise masks, modulo 2**bits, in place.

    Args:
        sharers: `Held.sharers`.
        vector: (length,), contiguous, of the type `word(bits)` or a wider unsigned one; `bits` has room
            for the sum (`headroom`).
        part: which vector of the round this is. No two of a round may have the same: their difference
            could be read.

    Raises:
        ProtocolError: as `check_own` does; ROSTER_DIFFERS, sharers that are not a sorted part of the
            cohort with this hospital in it; TOO_FEW_HOSPITALS, fewer than t.
        ValueError: another type or shape of vector.
    """
    check_own(secrets, cohort)
    check_listed(sharers, cohort.names, secrets.hospital, Reason.ROSTER_DIFFERS)
    check_enough(sharers, cohort, 0)
    masks = _Masks(cohort, tuple(sharers), part, bits, len(vector))
    own = private_key(secrets.mask_key)
    streams = [masks.private(secrets.hospital, secrets.seed)]
    streams += [masks.pairwise(secrets.hospital, own, n) for n in sharers if n != secrets.hospital]
    stream.add(vector, bits, streams)


def unmask(total: Unsigned, rebuilt: Rebuilt, bits: int, *, part: str) -> None:
    """Take the masks off the sum of the survivors' masked vectors modulo 2**bits, in place.

    Args:
        total: (length,), contiguous, of the type `word(bits)` or a wider unsigned one.
        part: as it was masked; another, or another length or bits, gives noise.

    Raises:
        ValueError: another type or shape.
    """
    masks = _Masks(rebuilt.cohort, rebuilt.sharers, part, bits, len(total))
    streams = [Stream(masks.private(name, seed).key, -1) for name, seed in rebuilt.seeds.items()]
    for dropped, raw in rebuilt.mask_keys.items():
        key = private_key(raw)
        # what it would have added itself takes off what each survivor added for it
        streams += [masks.pairwise(dropped, key, name) for name in rebuilt.survivors]
    stream.add(total, bits, streams)


@dataclass(frozen=True)
class _Masks:
    """The streams of one part of one occasion."""

    cohort: Cohort
    sharers: tuple[str, ...]
    part: str
    bits: int
    length: int

    def private(self, hospital: str, seed: bytes) -> Stream:
        return Stream(derived(seed, "private mask", *self._bound(), hospital), 1)

    def pairwise(self, hospital: str, key: X25519PrivateKey, peer: str) -> Stream:
        """What `hospital`, whose mask key this is, adds for `peer`: the second by name takes off."""
        secret = agreed(key, self.cohort.members[peer].mask_key)
        first, second = sorted((hospital, peer))
        shared = derived(secret, "pairwise mask", *self._bound(), first, second)
        return Stream(shared, 1 if hospital == first else -1)

    def _bound(self) -> tuple[str | int | bytes, ...]:
        bound = self.cohort.bound_with(self.sharers)
        return (*bound, self.part, self.bits, self.length)
