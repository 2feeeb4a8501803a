"""The sum is the plain integer sum whoever drops out at which step; one masked vector tells nothing."""

from __future__ import annotations

import tracemalloc
from functools import cache
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from federation.messages import Reason, WireError
from federation.secure_aggregation import masks, shamir, stream
from federation.secure_aggregation.masks import Opening, ProtocolError, Rebuilt
from federation.secure_aggregation.stream import Unsigned
from tests.federation.secure_aggregation.parties import OCCASION, Parties, plain_sum, vectors

BITS = 20
LENGTH = 33
ONE_IN_A_MILLION = 1e-6

# How far a hospital comes before it vanishes.
STEPS = ("share", "mask", "sign", "open", "stays")


# --- drop-outs --------------------------------------------------------------------------------------


class Cached:
    """A sum whose steps are computed once for each of the many patterns that have them in common."""

    def __init__(self, count: int) -> None:
        self.parties = Parties.of(count)
        self.names = self.parties.cohort.names
        self.plain = vectors(self.names, LENGTH, BITS)
        self.masked = cache(self._masked)
        self.signature = cache(self.parties.sign)
        self.opening = cache(self._opening)
        self.rebuilt = cache(self._rebuilt)

    def play(self, fates: tuple[str, ...]) -> list[int]:
        """The opened sum, each hospital vanishing before the step that is its fate."""
        reached = dict(zip(self.names, map(STEPS.index, fates), strict=True))

        def there(step: str) -> tuple[str, ...]:
            return tuple(name for name in self.names if reached[name] > STEPS.index(step))

        sharers, survivors, signers, openers = map(there, STEPS[:-1])
        total = np.zeros(LENGTH, masks.word(BITS))
        for name in sharers:  # whoever still masks refuses where too few shared
            if name in survivors:
                total += self.masked(name, sharers)
        for name in signers:
            self.signature(name, sharers, survivors)
        rebuilt = self.rebuilt(sharers, survivors, signers, openers)
        masks.unmask(total, rebuilt, BITS, part="update")
        return [int(x) for x in total]

    def wanted(self, fates: tuple[str, ...]) -> list[int]:
        inside = [
            self.plain[name]
            for name, fate in zip(self.names, fates, strict=True)
            if STEPS.index(fate) > STEPS.index("mask")
        ]
        return plain_sum(inside, BITS)

    def _masked(self, name: str, sharers: tuple[str, ...]) -> Unsigned:
        assert self.parties.receive(name, sharers).sharers == sharers
        return self.parties.mask(name, sharers, self.plain[name], BITS)

    def _opening(
        self, name: str, sharers: tuple[str, ...], survivors: tuple[str, ...],
        signers: tuple[str, ...],
    ) -> Opening:  # fmt: skip
        signatures = {one: self.signature(one, sharers, survivors) for one in signers}
        return self.parties.open(name, sharers, survivors, signatures)

    def _rebuilt(
        self, sharers: tuple[str, ...], survivors: tuple[str, ...],
        signers: tuple[str, ...], openers: tuple[str, ...],
    ) -> Rebuilt:  # fmt: skip
        openings = {name: self.opening(name, sharers, survivors, signers) for name in openers}
        return masks.rebuild(self.parties.cohort, sharers, survivors, openings)


def test_every_pattern_of_drop_outs_of_five() -> None:
    sums = Cached(5)
    assert sums.parties.cohort.threshold == 4
    opened = 0
    for fates in product(STEPS, repeat=5):
        if fates.count("stays") >= 4:
            assert sums.play(fates) == sums.wanted(fates), fates
            opened += 1
        else:
            with pytest.raises(ProtocolError) as refused:
                sums.play(fates)
            assert refused.value.reason is Reason.TOO_FEW_HOSPITALS, fates
    assert opened == 1 + 5 * 4


def test_every_pattern_of_up_to_two_drop_outs_of_seven() -> None:
    sums = Cached(7)
    assert sums.parties.cohort.threshold == 5
    patterns = [f for f in product(STEPS, repeat=7) if f.count("stays") >= 5]
    assert len(patterns) == 1 + 7 * 4 + 21 * 16
    for fates in patterns:
        assert sums.play(fates) == sums.wanted(fates), fates


@pytest.mark.parametrize("count", [3, 4, 6, 10])
@pytest.mark.parametrize("bits", [8, 11, 16, 32, 64])
def test_the_sum_is_exact_for_every_width(count: int, bits: int) -> None:
    parties = Parties.of(count)
    sharers = parties.cohort.names
    survivors = sharers[: parties.cohort.threshold]
    plain = vectors(sharers, LENGTH, bits)
    total = np.zeros(LENGTH, masks.word(bits))
    for name in survivors:
        total += parties.mask(name, sharers, plain[name], bits)
    masks.unmask(total, parties.rebuild(sharers, survivors), bits, part="update")
    assert total.tolist() == plain_sum([plain[name] for name in survivors], bits)


def test_one_rebuild_serves_all_parts_and_only_with_their_names() -> None:
    parties = Parties.of(4)
    sharers = survivors = parties.cohort.names
    rebuilt = parties.rebuild(sharers, survivors)
    for part, bits in (("update", 20), ("figures", 64)):
        plain = vectors(sharers, 300, bits)
        total = sum(parties.mask(n, sharers, plain[n], bits, part) for n in sharers)
        assert isinstance(total, np.ndarray)
        right, wrong = total.copy(), total.copy()
        masks.unmask(right, rebuilt, bits, part=part)
        masks.unmask(wrong, rebuilt, bits, part="another")
        assert right.tolist() == plain_sum(list(plain.values()), bits)
        assert (right == wrong).mean() < 0.02


def test_no_vector_is_a_vector() -> None:
    parties = Parties.of(3)
    sharers = parties.cohort.names
    nothing = parties.mask(sharers[0], sharers, np.zeros(0, np.uint32), BITS)
    assert len(nothing) == 0


def test_adverts_of_fewer_make_a_smaller_cohort() -> None:
    parties = Parties.of(6)
    five = list(parties.adverts.values())[:5]
    cohort = masks.cohort(five, OCCASION, parties.public, least=3)
    assert (cohort.threshold, parties.cohort.threshold) == (4, 5)
    assert cohort.sha256 != parties.cohort.sha256
    assert cohort.sizes(["hospital-b", "hospital-a"]) == {"hospital-b": 11, "hospital-a": 10}


@pytest.mark.parametrize(
    ("hospitals", "threshold"),
    [(3, 3), (4, 3), (5, 4), (6, 5), (7, 5), (9, 7), (10, 7), (50, 34), (100, 67)],
)
def test_the_threshold_is_the_smallest_above_two_thirds(hospitals: int, threshold: int) -> None:
    advert = Parties.of(3).cohort.adverts[0]
    assert masks.Cohort(OCCASION, (advert,) * hospitals).threshold == threshold
    assert threshold * 3 > 2 * hospitals >= (threshold - 1) * 3


# --- what a single vector tells ---------------------------------------------------------------------


def uniform(vector: Unsigned) -> float:
    """p of the hypothesis that the bytes are uniform."""
    seen = np.bincount(np.frombuffer(vector.tobytes(), np.uint8), minlength=256)
    return float(stats.chisquare(seen).pvalue)


def uncorrelated(one: Unsigned, other: Unsigned) -> bool:
    """As independent vectors are, with one false alarm in a million (4.9 standard errors)."""
    both = np.corrcoef(one.astype(np.float64), other.astype(np.float64))[0, 1]
    return bool(abs(both) * np.sqrt(len(one)) < 4.9)


@pytest.mark.parametrize("bits", [8, 16, 32, 64])
@pytest.mark.parametrize("kind", ["zeros", "small", "ramp"])
def test_a_masked_vector_is_uniform_and_unlike_the_plain_one(bits: int, kind: str) -> None:
    parties = Parties.of(4)
    sharers = parties.cohort.names
    length = 300_000
    plain = {
        "zeros": np.zeros(length, masks.word(bits)),
        "small": vectors(["x"], length, bits, values=5)["x"],
        "ramp": (np.arange(length) % 251).astype(masks.word(bits)),
    }[kind]
    seen = []
    for name in sharers[:2]:
        masked = parties.mask(name, sharers, plain, bits)
        assert uniform(masked) > ONE_IN_A_MILLION
        if kind != "zeros":
            assert uncorrelated(masked, plain)
        seen.append(masked)
    assert uncorrelated(seen[0], seen[1])
    assert uniform(seen[0] - seen[1]) > ONE_IN_A_MILLION


def test_the_statistics_would_see_a_mask_that_is_one_number() -> None:
    """As others' masks were: the check can fail."""
    plain = vectors(["x"], 300_000, 32, values=1000)["x"]
    assert not uncorrelated(plain + np.uint32(123_456_789), plain)
    assert uniform(plain + np.uint32(123_456_789)) < ONE_IN_A_MILLION


def test_who_knows_all_pairwise_masks_still_meets_the_private_one() -> None:
    """A late vector of a hospital whose mask key was opened is padded still (the second mask)."""
    parties = Parties.of(5)
    sharers = parties.cohort.names
    late, survivors = sharers[0], sharers[1:]
    plain = np.zeros(100_000, np.uint32)
    masked = parties.mask(late, sharers, plain, 32)
    opened = parties.rebuild(sharers, survivors)
    key = opened.mask_keys[late]
    assert key == parties.secrets[late].mask_key
    known = masks._Masks(parties.cohort, sharers, "update", 32, len(plain))
    private = masks.private_key(key)
    taken_off = [known.pairwise(late, private, peer) for peer in survivors]
    inverse = [stream.Stream(one.key, -1 if one.sign > 0 else 1) for one in taken_off]
    stream.add(masked, 32, inverse)
    assert not (masked == plain).all()
    assert uniform(masked) > ONE_IN_A_MILLION
    own = known.private(late, parties.secrets[late].seed)
    stream.add(masked, 32, [stream.Stream(own.key, -1)])
    assert (masked == plain).all()


def test_two_parts_of_a_round_are_padded_by_two_streams() -> None:
    parties = Parties.of(4)
    sharers = parties.cohort.names
    plain = np.zeros(100_000, np.uint32)
    one = parties.mask(sharers[0], sharers, plain, 32, part="update")
    other = parties.mask(sharers[0], sharers, plain, 32, part="figures")
    assert uniform(one - other) > ONE_IN_A_MILLION
    assert uncorrelated(one, other)


def test_no_two_masks_of_a_round_have_one_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each key pads two vectors at most: those of its pair, once with each sign."""
    parties = Parties.of(5)
    made: list[stream.Stream] = []
    add = stream.add

    def noted(vector: Unsigned, bits: int, streams: list[stream.Stream]) -> None:
        made.extend(streams)
        add(vector, bits, streams)

    monkeypatch.setattr(stream, "add", noted)
    sharers = parties.cohort.names
    for name in sharers:
        for part in ("update", "figures"):
            for bits in (20, 21):
                parties.mask(name, sharers, np.zeros(4, np.uint32), bits, part)
    by_key: dict[bytes, list[int]] = {}
    for one in made:
        by_key.setdefault(one.key, []).append(one.sign)
    private = [signs for signs in by_key.values() if len(signs) == 1]
    pairwise = [signs for signs in by_key.values() if len(signs) == 2]
    assert len(private) == 5 * 4
    assert len(pairwise) == 10 * 4
    assert all(sorted(signs) == [-1, 1] for signs in pairwise)


# --- below the threshold ----------------------------------------------------------------------------


@pytest.mark.parametrize("left", range(4))
def test_below_the_threshold_nothing_can_be_rebuilt(left: int) -> None:
    parties = Parties.of(5)
    names = parties.cohort.names
    openings = parties.openings(names, names, names[:left])
    with pytest.raises(ProtocolError) as refused:
        masks.rebuild(parties.cohort, names, names, openings)
    assert refused.value.reason is Reason.TOO_FEW_HOSPITALS
    points = [
        (parties.cohort.positions[name], one.seeds[names[0]]) for name, one in openings.items()
    ]
    assert shamir.join(points) != parties.secrets[names[0]].seed


# --- wrong shares at the coordinator ----------------------------------------------------------------


def spoilt(opening: Opening, *, whose: str | None = None) -> Opening:
    """The opening with its shares changed: all of them, or those of one hospital."""

    def change(shares: dict[str, bytes]) -> dict[str, bytes]:
        return {
            name: share if whose not in (None, name) else (int.from_bytes(share) ^ 1).to_bytes(33)
            for name, share in shares.items()
        }

    return Opening(change(dict(opening.seeds)), change(dict(opening.mask_keys)))


@pytest.mark.parametrize("count", [5, 7, 10])
def test_one_wrong_opening_is_found_and_left_out(count: int) -> None:
    parties = Parties.of(count)
    names = parties.cohort.names
    openings = parties.openings(names, names, names)
    for liar in names[:3]:
        rebuilt = masks.rebuild(
            parties.cohort, names, names, {**openings, liar: spoilt(openings[liar])}
        )
        assert rebuilt.doubted == (liar,)
        assert rebuilt.seeds == {name: parties.secrets[name].seed for name in names}


def test_one_wrong_share_of_a_dropped_key_is_found() -> None:
    parties = Parties.of(7)
    names = parties.cohort.names
    survivors = names[1:]
    openings = parties.openings(names, survivors, survivors)
    liar = survivors[0]
    openings[liar] = spoilt(openings[liar], whose=names[0])
    rebuilt = masks.rebuild(parties.cohort, names, survivors, openings)
    assert rebuilt.mask_keys == {names[0]: parties.secrets[names[0]].mask_key}
    assert rebuilt.doubted == (liar,)


def test_several_liars_at_several_secrets() -> None:
    parties = Parties.of(13)  # t = 9: four can be spared
    names = parties.cohort.names
    openings = parties.openings(names, names, names)
    for liar, whose in zip(names[:4], (None, names[5], names[6], names[12]), strict=True):
        openings[liar] = spoilt(openings[liar], whose=whose)
    rebuilt = masks.rebuild(parties.cohort, names, names, openings)
    assert rebuilt.doubted == names[:4]
    assert rebuilt.seeds == {name: parties.secrets[name].seed for name in names}


def test_a_wrong_opening_that_nobody_can_replace_fails_by_whose_secret() -> None:
    parties = Parties.of(5)
    names = parties.cohort.names
    openings = parties.openings(names, names, names[:4])
    openings[names[2]] = spoilt(openings[names[2]], whose=names[3])
    with pytest.raises(ProtocolError) as refused:
        masks.rebuild(parties.cohort, names, names, openings)
    assert (refused.value.reason, refused.value.hospital) == (Reason.BAD_SHARE, names[3])
    assert names[3] not in str(refused.value)


def test_an_opening_of_another_form_is_left_out() -> None:
    parties = Parties.of(5)
    names = parties.cohort.names
    good = parties.openings(names, names, names)
    one = good[names[0]]
    without = dict(list(one.seeds.items())[1:])
    for bad in (
        Opening(without, {}),
        Opening(one.seeds, {names[0]: one.seeds[names[0]]}),
        Opening({**one.seeds, "stranger": one.seeds[names[0]]}, {}),
        Opening({name: share[1:] for name, share in one.seeds.items()}, {}),
        Opening({}, {}),
    ):
        rebuilt = masks.rebuild(parties.cohort, names, names, {**good, names[0]: bad})
        assert rebuilt.doubted == (names[0],)
    stranger = masks.rebuild(parties.cohort, names, names, {**good, "stranger": one})
    assert stranger.doubted == ("stranger",)


def test_lists_that_do_not_fit_each_other_are_refused_by_the_coordinator_too() -> None:
    parties = Parties.of(5)
    names = parties.cohort.names
    openings = parties.openings(names, names, names)
    for sharers, survivors in (
        (names[::-1], names),
        (names, (*names, "stranger")),
        (names[:4], names),
        (names, names[:1] * 5),
    ):
        with pytest.raises(ProtocolError) as refused:
            masks.rebuild(parties.cohort, sharers, survivors, openings)
        assert refused.value.reason is Reason.SURVIVORS_DIFFER


# --- arithmetic -------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 64), st.data())
def test_signed_numbers_go_there_and_back(bits: int, data: st.DataObject) -> None:
    low, high = -(1 << bits - 1), (1 << bits - 1) - 1
    numbers = data.draw(st.lists(st.integers(low, high), max_size=20))
    residues = masks.to_residues(np.array([*numbers, low, high], np.int64), bits)
    assert residues.tolist() == [x % 2**bits for x in [*numbers, low, high]]
    assert residues.dtype == masks.word(bits)
    assert masks.from_residues(residues, bits).tolist() == [*numbers, low, high]


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 32), st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=40))
def test_headroom_is_enough_and_not_too_much(bits: int, numbers: list[int]) -> None:
    terms = [x % 2**bits for x in numbers]
    wide = masks.headroom(bits, len(terms))
    assert sum(terms) < 2**wide
    assert len(terms) * 2**bits > 2 ** (wide - 1)
    assert wide == bits + next(k for k in range(10) if 2**k >= len(terms))


def test_signed_sums_with_weights() -> None:
    rng = np.random.default_rng(0)
    parties = Parties.of(5)
    names = parties.cohort.names
    sizes = parties.cohort.sizes(names)
    bits = masks.headroom(8, sum(sizes.values()))
    plain = {name: rng.integers(-128, 128, 500) for name in names}
    total = np.zeros(500, masks.word(bits))
    for name in names:
        total += parties.mask(name, names, masks.to_residues(plain[name] * sizes[name], bits), bits)
    masks.unmask(total, parties.rebuild(names, names), bits, part="update")
    wanted = [sum(int(plain[n][i]) * sizes[n] for n in names) for i in range(500)]
    assert masks.from_residues(total, bits).tolist() == wanted


@pytest.mark.parametrize("bits", [8, 12, 16, 32, 64])
def test_pieces_and_threads_give_the_same_bits(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [stream.Stream(bytes([k]) * 32, 1 if k % 2 else -1) for k in range(3)]
    plain = vectors(["x"], 10_007, bits)["x"]
    whole = plain.copy()
    monkeypatch.setattr(stream, "_threads", lambda: 1)
    stream.add(whole, bits, keys)
    monkeypatch.setattr(stream, "_AT_ONCE", 256)
    for threads in (1, 2, 3, 5):
        monkeypatch.setattr(stream, "_threads", lambda n=threads: n)
        made = plain.copy()
        stream.add(made, bits, keys)
        assert made.tobytes() == whole.tobytes()


def test_memory_stays_within_the_vector_and_little_more() -> None:
    parties = Parties.of(10)
    names = parties.cohort.names
    vector = np.zeros(4_000_000, np.uint32)
    tracemalloc.start()
    masks.mask(parties.secrets[names[0]], parties.cohort, names, vector, 32, part="update")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < vector.nbytes / 2


@pytest.mark.parametrize(
    "vector",
    [
        np.zeros(4, np.int32),
        np.zeros(4, np.uint16),
        np.zeros(4, np.float32),
        np.zeros((2, 2), np.uint32),
        np.zeros(8, np.uint32)[::2],
        np.frombuffer(bytes(16), np.uint32),
    ],
)
def test_other_vectors_are_refused(vector: Unsigned) -> None:
    with pytest.raises(ValueError, match="flat, contiguous"):
        stream.add(vector, BITS, [])


@pytest.mark.parametrize("bits", [0, -1, 65])
def test_other_widths_are_refused(bits: int) -> None:
    with pytest.raises(ValueError, match="1 to 64 bits"):
        masks.word(bits)


# --- the hospital's disk ----------------------------------------------------------------------------


def test_secrets_and_shares_go_to_disk_and_back() -> None:
    parties = Parties.of(4)
    name = parties.cohort.names[0]
    secrets = parties.secrets[name]
    assert masks.Secrets.from_bytes(secrets.to_bytes()) == secrets
    held = parties.receive(name, parties.cohort.names)
    assert masks.Held.from_bytes(held.to_bytes()) == held
    assert masks.Held.from_bytes(held.to_bytes()).sharers == parties.cohort.names


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_damaged_file_is_no_keys(data: st.DataObject) -> None:
    parties = _FOUR
    name = parties.cohort.names[0]
    kind, good = data.draw(
        st.sampled_from(
            [
                (masks.Secrets, parties.secrets[name].to_bytes()),
                (masks.Held, parties.receive(name, parties.cohort.names).to_bytes()),
            ]
        )
    )
    cut = data.draw(st.integers(0, len(good) - 1))
    junk = data.draw(st.one_of(st.just(good[:cut]), st.binary(max_size=40), st.just(b"[]")))
    with pytest.raises(WireError) as refused:
        kind.from_bytes(junk)
    assert refused.value.reason is Reason.NO_KEYS


_FOUR = Parties.of(4)


def test_nothing_secret_shows() -> None:
    parties = Parties.of(3)
    name = parties.cohort.names[0]
    secrets, held = parties.secrets[name], parties.receive(name, parties.cohort.names)
    opening = parties.open(name, parties.cohort.names, parties.cohort.names)
    rebuilt = parties.rebuild(parties.cohort.names, parties.cohort.names)
    shown = repr(secrets) + repr(held) + repr(opening) + repr(rebuilt)
    shown += repr(stream.Stream(secrets.seed, 1))
    for secret in (secrets.seed, secrets.mask_key, secrets.seal_key, *held.seeds.values()):
        assert repr(secret)[2:-1] not in shown
        assert secret.hex() not in shown
