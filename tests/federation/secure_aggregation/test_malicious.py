"""A coordinator, and hospitals on its side, that do not keep to the protocol: each is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from federation.messages import Reason, WireError
from federation.secure_aggregation import masks, shamir
from federation.secure_aggregation.keys import public_half
from federation.secure_aggregation.masks import Advert, Cohort, Occasion, ProtocolError
from tests.federation.secure_aggregation.parties import OCCASION, Parties, identities, names

A, B, C, D, E = names(5)
ALL = (A, B, C, D, E)


@pytest.fixture(scope="module")
def five() -> Parties:
    return Parties.of(5)


@contextmanager
def refused(reason: Reason) -> Iterator[None]:
    with pytest.raises(WireError) as error:
        yield
    assert isinstance(error.value, ProtocolError)
    assert error.value.reason is reason
    assert str(error.value) == reason.value


def see(parties: Parties, adverts: list[Advert], *, least: int = 3, own: str | None = A) -> Cohort:
    """What a hospital makes of the adverts that it is shown."""
    secrets = parties.secrets[own] if own else None
    return masks.cohort(adverts, OCCASION, parties.public, least=least, own=secrets)


def signed(parties: Parties, advert: Advert, occasion: Occasion = OCCASION) -> Advert:
    """Signed anew by the hospital itself: it is malicious."""
    signature = parties.private[advert.hospital].sign(advert.statement(occasion))
    return replace(advert, signature=signature)


def with_changed(parties: Parties, advert: Advert) -> list[Advert]:
    return list({**parties.adverts, advert.hospital: advert}.values())


# --- the cohort -------------------------------------------------------------------------------------


def test_the_honest_cohort_is_taken(five: Parties) -> None:
    assert see(five, list(five.adverts.values())) == five.cohort
    assert see(five, list(five.adverts.values())[::-1]).sha256 == five.cohort.sha256


FORGED: dict[str, Callable[[Advert], Advert]] = {
    "mask key": lambda one: replace(one, mask_key=public_half(b"\x07" * 32)),
    "seal key": lambda one: replace(one, seal_key=public_half(b"\x07" * 32)),
    "keys exchanged": lambda one: replace(one, mask_key=one.seal_key, seal_key=one.mask_key),
    "size": lambda one: replace(one, size=one.size + 1),
    "seed": lambda one: replace(one, seed_commitment=bytes(32)),
    "signature": lambda one: replace(one, signature=bytes(64)),
    "no signature": lambda one: replace(one, signature=b""),
    "long signature": lambda one: replace(one, signature=one.signature + b"\0"),
}


@pytest.mark.parametrize("what", FORGED)
def test_a_coordinator_that_changes_an_advert(five: Parties, what: str) -> None:
    with refused(Reason.BAD_SIGNATURE):
        see(five, with_changed(five, FORGED[what](five.adverts[B])))


def test_a_coordinator_that_signs_with_a_key_of_its_own(five: Parties) -> None:
    _, forged = masks.advertise(OCCASION, B, 11, Ed25519PrivateKey.generate())
    with refused(Reason.BAD_SIGNATURE):
        see(five, with_changed(five, forged))


def test_an_advert_of_one_hospital_under_the_name_of_another(five: Parties) -> None:
    with refused(Reason.BAD_SIGNATURE):
        see(five, with_changed(five, replace(five.adverts[C], hospital=B)))
    with refused(Reason.ROSTER_DIFFERS):
        masks.verify(five.adverts[C], OCCASION, B, five.public)
    masks.verify(five.adverts[C], OCCASION, C, five.public)


def test_an_extra_hospital(five: Parties) -> None:
    key = Ed25519PrivateKey.generate()
    _, extra = masks.advertise(OCCASION, "sybil", 1, key)
    with refused(Reason.ROSTER_DIFFERS):
        see(five, [*five.adverts.values(), extra])


def test_a_hospital_twice(five: Parties) -> None:
    _, second = masks.advertise(OCCASION, B, 11, five.private[B])
    for again in (five.adverts[B], second):
        with refused(Reason.ROSTER_DIFFERS):
            see(five, [*five.adverts.values(), again])


def test_more_than_any_roster_holds(five: Parties) -> None:
    many = [replace(five.adverts[A], hospital=f"h-{place}") for place in range(1001)]
    with refused(Reason.MALFORMED):
        see(five, many)


@pytest.mark.parametrize(
    "change", [{"round": 2}, {"attempt": 1}, {"run": "run-2"}, {"roster": "cd" * 32}]
)
def test_adverts_of_another_occasion(five: Parties, change: dict[str, object]) -> None:
    old = Parties.of(5, replace(OCCASION, **change), five.private)
    with refused(Reason.BAD_SIGNATURE):
        see(five, with_changed(five, old.adverts[B]))
    with refused(Reason.REPLAYED):  # all of them: valid, but not what this hospital has keys for
        masks.cohort(
            old.adverts.values(), old.cohort.occasion, five.public, least=3, own=five.secrets[A]
        )


def test_a_cohort_too_small(five: Parties) -> None:
    adverts = list(five.adverts.values())
    for count, least in ((0, 0), (1, 1), (2, 1), (2, 3), (4, 5), (5, 6)):
        with refused(Reason.TOO_FEW_HOSPITALS):
            see(five, adverts[:count], least=least)
    assert len(see(five, adverts[:3], least=1).adverts) == 3


def test_a_cohort_without_oneself(five: Parties) -> None:
    with refused(Reason.ROSTER_DIFFERS):
        see(five, list(five.adverts.values())[1:])


def test_a_cohort_with_another_advert_of_oneself(five: Parties) -> None:
    """Made in the hospital's name on the same occasion, and signed with its identity."""
    _, other = masks.advertise(OCCASION, A, 10, five.private[A])
    resized = signed(five, replace(five.adverts[A], size=1000))
    for instead in (other, resized):
        with refused(Reason.BAD_KEY):
            see(five, with_changed(five, instead))
        # and at each later step, should the check have been forgotten
        swapped = see(five, with_changed(five, instead), own=None)
        steps: list[Callable[[], object]] = [
            lambda c=swapped: masks.share(five.secrets[A], c),
            lambda c=swapped: masks.receive(five.secrets[A], c, five.letter(A, ALL), least=3),
            lambda c=swapped: masks.mask(
                five.secrets[A], c, ALL, np.zeros(3, np.uint32), 32, part="update"
            ),
            lambda c=swapped: masks.sign_survivors(
                five.secrets[A], c, ALL, ALL, five.private[A], least=3
            ),
        ]
        for step in steps:
            with refused(Reason.BAD_KEY):
                step()


# Points of small order on the curve and its twist (RFC 7748, section 7), and other spellings of them.
P = 2**255 - 19
SMALL = [0, 1, P - 1, P, P + 1, 2**255 - 1, 2**255, 2**255 + 1] + [
    int.from_bytes(bytes.fromhex(point), "little")
    for point in (
        "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
        "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
        "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b880",
        "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f11d7",
    )
]


@pytest.mark.parametrize("point", SMALL)
@pytest.mark.parametrize("key", ["mask_key", "seal_key"])
def test_a_hospital_with_a_key_of_small_order(five: Parties, point: int, key: str) -> None:
    bad = signed(five, replace(five.adverts[B], **{key: point.to_bytes(32, "little")}))
    with refused(Reason.BAD_KEY):
        see(five, with_changed(five, bad))


def test_a_hospital_with_the_key_of_another(five: Parties) -> None:
    """As it stands, in the other place, and in another spelling (the highest bit is not read)."""
    theirs = five.adverts[C]
    spelt = bytearray(theirs.mask_key)
    spelt[31] |= 128
    for change in (
        {"mask_key": theirs.mask_key},
        {"seal_key": theirs.mask_key},
        {"seal_key": five.adverts[B].mask_key},
        {"mask_key": bytes(spelt)},
    ):
        with refused(Reason.BAD_KEY):
            see(five, with_changed(five, signed(five, replace(five.adverts[B], **change))))


def test_a_coordinator_sees_one_key_at_both_places_on_arrival(five: Parties) -> None:
    one = five.adverts[B]
    with refused(Reason.BAD_KEY):
        masks.verify(signed(five, replace(one, seal_key=one.mask_key)), OCCASION, B, five.public)


@pytest.mark.parametrize("size", [0, -1, 2**40, 2**70])
def test_a_size_out_of_range(five: Parties, size: int) -> None:
    with refused(Reason.MALFORMED):
        see(five, with_changed(five, replace(five.adverts[B], size=size)))
    with pytest.raises(ValueError, match="size"):
        masks.advertise(OCCASION, B, size, five.private[B])


@pytest.mark.parametrize("what", ["mask_key", "seal_key", "seed_commitment"])
@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_key_of_another_length(five: Parties, what: str, length: int) -> None:
    bad = signed(five, replace(five.adverts[B], **{what: b"\x09" * length}))
    with refused(Reason.MALFORMED):
        see(five, with_changed(five, bad))


def test_a_name_that_no_roster_holds(five: Parties) -> None:
    for name in ("", "A", "a b", "é", "a" * 42):
        with pytest.raises(ValueError, match="roster"):
            masks.advertise(OCCASION, name, 1, five.private[A])
    with pytest.raises(ValueError, match="number"):
        Occasion("run", -1, 0, "")


# --- shares -----------------------------------------------------------------------------------------


def receive(parties: Parties, sealed: dict[str, bytes], *, least: int = 3) -> masks.Held:
    return masks.receive(parties.secrets[A], parties.cohort, sealed, least=least)


def flip(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_damaged_shares(five: Parties) -> None:
    good = five.letter(A, ALL)
    box = good[B]
    assert len(box) == 94
    damaged = [flip(box, bit) for bit in range(0, 8 * len(box), 5)]
    for bad in (*damaged, b"", box[:11], box[:12], box[:28], box[:-1], box + b"\0", bytes(94)):
        with refused(Reason.BAD_SHARE):
            receive(five, {**good, B: bad})


def test_shares_of_somebody_else_or_for_somebody_else(five: Parties) -> None:
    good = five.letter(A, ALL)
    for bad in (
        five.sealed[C][A],  # from another: two senders exchanged, or one twice
        five.sealed[B][C],  # for another
        five.sealed[A][B],  # one's own to this sender, sent back to it
        five.sealed[A][A],
    ):
        with refused(Reason.BAD_SHARE):
            receive(five, {**good, B: bad})
    with refused(Reason.BAD_SHARE):
        receive(five, {**good, A: five.sealed[A][B]})


@pytest.mark.parametrize(
    "change", [{"round": 2}, {"attempt": 1}, {"run": "run-2"}, {"roster": "cd" * 32}]
)
def test_shares_of_another_occasion(five: Parties, change: dict[str, object]) -> None:
    """Of the same keys even: a hospital's randomness stood still between two rounds."""
    other = replace(OCCASION, **change)
    secrets = {name: replace(one, occasion=other) for name, one in five.secrets.items()}
    adverts = [signed(five, one.body(), other) for one in secrets.values()]
    old = masks.cohort(adverts, other, five.public, least=3)
    assert [one.mask_key for one in old.adverts] == [one.mask_key for one in five.cohort.adverts]
    with refused(Reason.BAD_SHARE):
        receive(five, {**five.letter(A, ALL), B: masks.share(secrets[B], old)[A]})
    vector, again = np.zeros(1000, np.uint32), np.zeros(1000, np.uint32)
    masks.mask(five.secrets[A], five.cohort, ALL, vector, 32, part="update")
    masks.mask(secrets[A], old, ALL, again, 32, part="update")
    assert (vector == again).mean() < 0.01
    signature = masks.sign_survivors(secrets[B], old, ALL, ALL, five.private[B], least=3)
    with refused(Reason.BAD_SIGNATURE):
        masks.verify_survivors(five.cohort, ALL, ALL, B, signature, five.public)


def test_each_mask_is_bound_to_the_occasion(five: Parties) -> None:
    """Private and pairwise masks by themselves, for one key and one secret."""
    other = replace(OCCASION, round=OCCASION.round + 1)
    secrets = {name: replace(one, occasion=other) for name, one in five.secrets.items()}
    adverts = [signed(five, one.body(), other) for one in secrets.values()]
    later = masks.cohort(adverts, other, five.public, least=3)
    seed, key = five.secrets[A].seed, masks.private_key(five.secrets[A].mask_key)
    now, then = (masks._Masks(c, ALL, "update", 32, 10) for c in (five.cohort, later))
    assert now.private(A, seed).key != then.private(A, seed).key
    assert now.pairwise(A, key, B).key != then.pairwise(A, key, B).key
    fewer = masks._Masks(five.cohort, ALL[:4], "update", 32, 10)
    assert now.private(A, seed).key != fewer.private(A, seed).key
    assert now.pairwise(A, key, B).key != fewer.pairwise(A, key, B).key


def test_the_steps_refuse_secrets_of_another_occasion(five: Parties) -> None:
    old = replace(five.secrets[A], occasion=replace(OCCASION, round=2))
    vector = np.zeros(3, np.uint32)
    with refused(Reason.REPLAYED):
        masks.share(old, five.cohort)
    with refused(Reason.REPLAYED):
        masks.receive(old, five.cohort, five.letter(A, ALL), least=3)
    with refused(Reason.REPLAYED):
        masks.mask(old, five.cohort, ALL, vector, 32, part="update")
    assert not vector.any()
    with refused(Reason.REPLAYED):
        masks.sign_survivors(old, five.cohort, ALL, ALL, five.private[A], least=3)
    with refused(Reason.REPLAYED):
        masks.open_shares(
            five.receive(A, ALL), old, five.cohort, ALL, {}, five.public, signed=ALL, least=3
        )


def test_too_few_or_unknown_sharers(five: Parties) -> None:
    for sharers in ((A,), (A, B), (A, B, C)):
        with refused(Reason.TOO_FEW_HOSPITALS):
            receive(five, five.letter(A, sharers))
        with refused(Reason.TOO_FEW_HOSPITALS):
            five.mask(A, sharers, np.zeros(3, np.uint32), 32)
    with refused(Reason.TOO_FEW_HOSPITALS):
        receive(five, five.letter(A, (A, B, C, D)), least=5)
    with refused(Reason.ROSTER_DIFFERS):
        receive(five, five.letter(A, (B, C, D, E)))
    with refused(Reason.ROSTER_DIFFERS):
        receive(five, {**five.letter(A, ALL), "sybil": bytes(94)})
    with refused(Reason.ROSTER_DIFFERS):
        receive(five, {})


@pytest.mark.parametrize(
    "sharers", [(B, C, D, E), (E, D, C, B, A), (A, A, B, C, D), (A, B, C, D, "sybil")]
)
def test_a_mask_for_other_sharers(five: Parties, sharers: tuple[str, ...]) -> None:
    with refused(Reason.ROSTER_DIFFERS):
        five.mask(A, sharers, np.zeros(3, np.uint32), 32)


def test_a_share_out_of_the_field_is_no_share(
    five: Parties, monkeypatch: pytest.MonkeyPatch
) -> None:
    too_large = shamir.PRIME.to_bytes(33)
    monkeypatch.setattr(shamir, "split", lambda secret, threshold, count: [too_large] * count)
    sealed = masks.share(five.secrets[B], five.cohort)[A]
    with refused(Reason.BAD_SHARE):
        receive(five, {**five.letter(A, ALL), B: sealed})


# --- survivors --------------------------------------------------------------------------------------


LISTS: list[tuple[tuple[str, ...], Reason]] = [
    ((A,), Reason.TOO_FEW_HOSPITALS),
    ((A, B), Reason.TOO_FEW_HOSPITALS),
    ((A, B, C), Reason.TOO_FEW_HOSPITALS),
    ((), Reason.SURVIVORS_DIFFER),
    ((B, C, D, E), Reason.SURVIVORS_DIFFER),
    ((A, C, B, D), Reason.SURVIVORS_DIFFER),
    ((A, A, B, C, D), Reason.SURVIVORS_DIFFER),
    ((A, B, C, D, "sybil"), Reason.SURVIVORS_DIFFER),
]


@pytest.mark.parametrize(("survivors", "reason"), LISTS)
def test_lists_that_a_hospital_does_not_sign(
    five: Parties, survivors: tuple[str, ...], reason: Reason
) -> None:
    with refused(reason):
        five.sign(A, ALL, survivors)


def test_a_list_with_one_whose_shares_did_not_come(five: Parties) -> None:
    with refused(Reason.SURVIVORS_DIFFER):
        five.sign(A, (A, B, C, D), ALL)


def test_a_list_shorter_than_the_policy_allows(five: Parties) -> None:
    with refused(Reason.TOO_FEW_HOSPITALS):
        five.sign(A, ALL, (A, B, C, D), least=5)
    with refused(Reason.TOO_FEW_HOSPITALS):
        five.open(A, ALL, (A, B, C, D), least=5)


@pytest.mark.parametrize(("survivors", "reason"), LISTS)
def test_lists_that_a_hospital_does_not_open(
    five: Parties, survivors: tuple[str, ...], reason: Reason
) -> None:
    """Even if it had signed them, and everybody else had."""
    from federation.secure_aggregation.opening import _survivors_statement

    statement = _survivors_statement(five.cohort, ALL, survivors)
    signatures = {name: key.sign(statement) for name, key in five.private.items()}
    with refused(reason):
        five.open(A, ALL, survivors, signatures)


def test_two_lists_to_two_groups() -> None:
    """No split of the cohort gathers enough signatures on two lists, with f < n/3 that sign both."""
    for count in (4, 7, 10):
        parties = Parties.of(count)
        everybody = parties.cohort.names
        t = parties.cohort.threshold
        corrupted = everybody[: (count - 1) // 3]
        honest = [name for name in everybody if name not in corrupted]
        first, second = everybody, everybody[:-1]  # of the last hospital both shares are wanted
        both = 0
        for size in range(len(honest) + 1):
            for group in combinations(honest, size):
                one = {*corrupted, *group}
                other = {*corrupted, *honest} - set(group) - {everybody[-1]}
                both += len(one) >= t and len(other) >= t
        assert both == 0
        # the larger group's hospitals open; those of the other list do not
        signed_first = {name: parties.sign(name, first, first) for name in everybody[:t]}
        signed_second = {name: parties.sign(name, first, second) for name in everybody[t:-1]}
        signed_second |= {name: parties.sign(name, first, second) for name in corrupted}
        parties.open(everybody[-1], first, first, signed_first)
        with refused(Reason.TOO_FEW_HOSPITALS):
            parties.open(everybody[-2], first, second, signed_second)
        with refused(Reason.BAD_SIGNATURE):  # made up to the number with those of the first list
            parties.open(everybody[-2], first, second, {**signed_first, **signed_second})


def test_another_list_than_the_hospital_signed(five: Parties) -> None:
    """With signatures of all others on it."""
    signatures = {name: five.sign(name, ALL, (A, B, C, D)) for name in (A, B, C, D)}
    with refused(Reason.SURVIVORS_DIFFER):
        five.open(A, ALL, (A, B, C, D), signatures, signed=ALL)
    with refused(Reason.SURVIVORS_DIFFER):
        five.open(A, ALL, (A, B, C, D), signatures, signed=())


def test_both_shares_of_one_hospital(five: Parties) -> None:
    """Opened for one list, it does not open for the other on that occasion, whatever is signed."""
    four = (A, B, C, D)
    first = five.open(A, ALL, ALL)
    assert E in first.seeds and not first.mask_keys
    assert five.open(A, ALL, ALL, opened_before=ALL) == first
    with refused(Reason.BOTH_SHARES):
        five.open(A, ALL, four, opened_before=ALL)
    with refused(Reason.BOTH_SHARES):
        five.open(A, ALL, ALL, opened_before=four)


@pytest.mark.parametrize("survivors", [ALL, (A, B, C, D), (A, B, C, E)])
def test_an_opening_has_one_share_of_each(five: Parties, survivors: tuple[str, ...]) -> None:
    opening = five.open(A, ALL, survivors)
    held = five.receive(A, ALL)
    assert set(opening.seeds) == set(survivors)
    assert set(opening.mask_keys) == set(ALL) - set(survivors)
    assert all(opening.seeds[name] == held.seeds[name] for name in opening.seeds)
    assert all(opening.mask_keys[name] == held.mask_keys[name] for name in opening.mask_keys)


def test_too_few_or_bad_signatures(five: Parties) -> None:
    good = {name: five.sign(name, ALL, ALL) for name in ALL}
    three = {name: good[name] for name in (A, B, C)}
    five.open(A, ALL, ALL, {**three, D: good[D]})
    with refused(Reason.TOO_FEW_HOSPITALS):
        five.open(A, ALL, ALL, three)
    with refused(Reason.TOO_FEW_HOSPITALS):
        five.open(A, ALL, ALL, {})
    stranger = identities(["sybil"])["sybil"]
    for signer, bad in (
        (D, good[C]),
        (D, flip(good[D], 3)),
        (D, b""),
        (D, good[D][:-1]),
        (D, five.sign(D, ALL, (A, B, C, D))),
        (D, five.sign(D, (A, B, C, D), (A, B, C, D))),
        ("sybil", stranger.sign(b"")),
    ):
        with refused(Reason.BAD_SIGNATURE):
            five.open(A, ALL, ALL, {**three, signer: bad})


def test_the_signature_of_one_that_dropped_out_does_not_count(five: Parties) -> None:
    from federation.secure_aggregation.opening import _survivors_statement

    survivors = (A, B, C, D)
    signatures = {name: five.sign(name, ALL, survivors) for name in (A, B, C)}
    statement = _survivors_statement(five.cohort, ALL, survivors)
    with refused(Reason.BAD_SIGNATURE):
        five.open(A, ALL, survivors, {**signatures, E: five.private[E].sign(statement)})


def test_a_signature_binds_whose_shares_came(five: Parties) -> None:
    """Hospitals that were told of other sharers do not open for each other."""
    survivors = (A, B, C, D)
    signatures = {name: five.sign(name, survivors, survivors) for name in survivors}
    with refused(Reason.BAD_SIGNATURE):
        five.open(A, ALL, survivors, signatures)


def test_shares_of_another_cohort(five: Parties) -> None:
    other = Parties.of(5, OCCASION, five.private)
    with refused(Reason.NO_KEYS):
        masks.open_shares(
            other.receive(A, ALL),
            five.secrets[A],
            five.cohort,
            ALL,
            {},
            five.public,
            signed=ALL,
            least=3,
        )


def test_corrupted_hospitals_and_coordinator_cannot_rebuild_an_honest_seed(five: Parties) -> None:
    """One of five is corrupted: what it holds and what is opened for a dropped one is not enough."""
    survivors = (A, B, C, D)
    openings = five.openings(ALL, survivors, survivors)
    held = five.receive(A, ALL)  # A is corrupted and gives the coordinator everything
    seeds = [held.seeds[E]] + [o.seeds[E] for o in openings.values() if E in o.seeds]
    keys = [held.mask_keys[B]] + [o.mask_keys[B] for o in openings.values() if B in o.mask_keys]
    assert len(seeds) == len(keys) == 1 < five.cohort.threshold
