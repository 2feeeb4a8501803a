"""Who is in the sum, signed; and on enough signatures the shares that take the masks off it.

Of each hospital the share of its seed is given (it is in the sum) or that of its mask key (it dropped
out), never both: with both the coordinator could read that hospital's vector.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from federation.messages import Reason
from federation.secure_aggregation import shamir
from federation.secure_aggregation.keys import (
    Cohort,
    ProtocolError,
    Secrets,
    check_enough,
    check_listed,
    check_own,
    commitment,
    encoded,
    public_half,
)
from federation.secure_aggregation.sharing import Held


def sign_survivors(
    secrets: Secrets,
    cohort: Cohort,
    sharers: Sequence[str],
    survivors: Sequence[str],
    identity: Ed25519PrivateKey,
    *,
    least: int,
) -> bytes:
    """This hospital's signature on who is in the sum. It signs one list an occasion.

    Raises:
        ProtocolError: as `check_own` does; SURVIVORS_DIFFER, a list that is not a sorted part of the
            sharers with this hospital in it; TOO_FEW_HOSPITALS, fewer than t or `least`.
    """
    check_own(secrets, cohort)
    _check_survivors(cohort, sharers, survivors, secrets.hospital, least)
    return identity.sign(_survivors_statement(cohort, sharers, survivors))


def verify_survivors(
    cohort: Cohort,
    sharers: Sequence[str],
    survivors: Sequence[str],
    signer: str,
    signature: bytes,
    identities: Mapping[str, Ed25519PublicKey],
) -> None:
    """One signature on a survivor list: the coordinator on arrival, each hospital before it opens.

    Raises:
        ProtocolError: BAD_SIGNATURE, not by a survivor of the roster, or over anything else.
    """
    try:
        if signer not in survivors:
            raise KeyError
        statement = _survivors_statement(cohort, sharers, survivors)
        identities[signer].verify(signature, statement)
    except (KeyError, InvalidSignature):
        raise ProtocolError(Reason.BAD_SIGNATURE, signer) from None


@dataclass(frozen=True)
class Opening:
    """Shares that a hospital gives away: of each sharer either, never both.

    Attributes:
        seeds: shares of the survivors' seeds, by name.
        mask_keys: shares of the mask keys of those that dropped out.
    """

    seeds: Mapping[str, bytes] = field(repr=False)
    mask_keys: Mapping[str, bytes] = field(repr=False)


def open_shares(
    held: Held,
    secrets: Secrets,
    cohort: Cohort,
    survivors: Sequence[str],
    signatures: Mapping[str, bytes],
    identities: Mapping[str, Ed25519PublicKey],
    *,
    signed: Sequence[str],
    least: int,
    opened_before: Sequence[str] | None = None,
) -> Opening:
    """The shares with which the coordinator takes the masks off the survivors' sum.

    Args:
        signatures: of survivors over this list; at least t, all of them good.
        signed: the list that this hospital signed on this occasion.
        opened_before: the list it opened for on this occasion already; None: it did not.

    Raises:
        ProtocolError: as `check_own` does; NO_KEYS, shares of another cohort; BOTH_SHARES, opened for
            another list before; SURVIVORS_DIFFER, a list that it did not sign; BAD_SIGNATURE;
            TOO_FEW_HOSPITALS, fewer than t signatures, or than t or `least` survivors.
    """
    check_own(secrets, cohort)
    if held.cohort != cohort.sha256 or secrets.hospital not in held.sharers:
        raise ProtocolError(Reason.NO_KEYS)
    if opened_before is not None and tuple(opened_before) != tuple(survivors):
        raise ProtocolError(Reason.BOTH_SHARES)
    if tuple(signed) != tuple(survivors):
        raise ProtocolError(Reason.SURVIVORS_DIFFER)
    _check_survivors(cohort, held.sharers, survivors, secrets.hospital, least)
    if len(signatures) < cohort.threshold:
        raise ProtocolError(Reason.TOO_FEW_HOSPITALS)
    for signer, signature in signatures.items():
        verify_survivors(cohort, held.sharers, survivors, signer, signature, identities)
    there = set(survivors)
    return Opening(
        {name: share for name, share in held.seeds.items() if name in there},
        {name: share for name, share in held.mask_keys.items() if name not in there},
    )


@dataclass(frozen=True)
class Rebuilt:
    """What takes the masks off the sum of one occasion, all parts of it.

    Attributes:
        seeds: of the survivors.
        mask_keys: of the hospitals that dropped out after sharing, raw.
        doubted: hospitals whose opening did not fit the others': theirs, or the share that they were
            dealt, is wrong. The sum is right without them.
    """

    cohort: Cohort
    sharers: tuple[str, ...]
    survivors: tuple[str, ...]
    seeds: Mapping[str, bytes] = field(repr=False)
    mask_keys: Mapping[str, bytes] = field(repr=False)
    doubted: tuple[str, ...] = ()


def rebuild(
    cohort: Cohort,
    sharers: Sequence[str],
    survivors: Sequence[str],
    openings: Mapping[str, Opening],
) -> Rebuilt:
    """Seeds of the survivors and mask keys of the dropped, checked against what they advertised.

    Any t good openings are enough. Wrong ones are found and left out as far as `shamir.subsets` goes: a
    single one always, where t others are good.

    Args:
        openings: by the survivor whose they are.

    Raises:
        ProtocolError: SURVIVORS_DIFFER, lists that are not sorted parts of the cohort and of each other;
            TOO_FEW_HOSPITALS, fewer than t openings of this form; BAD_SHARE, a secret that the
            openings do not give (`hospital` is whose).
    """
    check_listed(sharers, cohort.names, None, Reason.SURVIVORS_DIFFER)
    check_listed(survivors, sharers, None, Reason.SURVIVORS_DIFFER)
    dropped = sorted(set(sharers) - set(survivors))
    doubted = {
        name for name, one in openings.items()
        if name not in survivors or not _is_opening(one, set(survivors), set(dropped))
    }  # fmt: skip
    openers = sorted(set(openings) - doubted)
    if len(openers) < cohort.threshold:
        raise ProtocolError(Reason.TOO_FEW_HOSPITALS)

    def secret(
        shares: Mapping[str, bytes], hospital: str, fits: Callable[[str, bytes], bool]
    ) -> bytes:
        first = sorted(openers, key=lambda name: (name in doubted, name))
        for part in shamir.subsets(first, cohort.threshold):
            points = [(cohort.positions[name], shares[name]) for name in part]
            found = shamir.join(points)
            if found is not None and fits(hospital, found):
                if part != tuple(first[: cohort.threshold]):
                    doubted.update(_unlike(cohort, points, shares))
                return found
        raise ProtocolError(Reason.BAD_SHARE, hospital)

    def is_seed(hospital: str, seed: bytes) -> bool:
        promised = cohort.members[hospital].seed_commitment
        return commitment(cohort.occasion, hospital, seed) == promised

    def is_mask_key(hospital: str, key: bytes) -> bool:
        return public_half(key) == cohort.members[hospital].mask_key

    seeds = {
        name: secret({o: openings[o].seeds[name] for o in openers}, name, is_seed)
        for name in survivors
    }
    mask_keys = {
        name: secret({o: openings[o].mask_keys[name] for o in openers}, name, is_mask_key)
        for name in dropped
    }
    found = tuple(sorted(doubted))
    return Rebuilt(cohort, tuple(sharers), tuple(survivors), seeds, mask_keys, found)


def _survivors_statement(cohort: Cohort, sharers: Sequence[str], survivors: Sequence[str]) -> bytes:
    return encoded("survivors", *cohort.bound_with(sharers), *survivors)


def _check_survivors(
    cohort: Cohort, sharers: Sequence[str], survivors: Sequence[str], own: str, least: int
) -> None:
    check_listed(sharers, cohort.names, own, Reason.SURVIVORS_DIFFER)
    check_listed(survivors, sharers, own, Reason.SURVIVORS_DIFFER)
    check_enough(survivors, cohort, least)


def _is_opening(opening: Opening, survivors: set[str], dropped: set[str]) -> bool:
    shares = [*opening.seeds.values(), *opening.mask_keys.values()]
    there = set(opening.seeds) == survivors and set(opening.mask_keys) == dropped
    return there and all(map(shamir.is_share, shares))


def _unlike(
    cohort: Cohort, points: Sequence[tuple[int, bytes]], shares: Mapping[str, bytes]
) -> set[str]:
    """Those whose share is not on the polynomial through `points`."""
    return {
        name for name, share in shares.items()
        if shamir.interpolate(points, cohort.positions[name]) != int.from_bytes(share)
    }  # fmt: skip
