"""The whole chain: sums, residuals, bytes, and what is refused."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.codec import scales
from federation.codec.chain import Chain, Encoded
from federation.codec.sums import Sum
from federation.messages import Arrays, Reason, WireError
from federation.schema import ConfigError
from tests.federation.codec.networks import (
    chain_of,
    integers,
    network,
    part,
    training,
    update_of,
)

EXCHANGES = [part("all"), part("all_but_normalisation"), part("adapters", rank=4), part("head")]
SPARSE = [None, part("rand_k", keep=0.2), part("top_k", keep=0.05)]
QUANTISED = [None, part("fp16"), part("bf16"), integers(16), integers(8), integers(5), integers(2)]
MODEL = network()


def chain(*choices: Any, feedback: bool = True) -> Chain:
    slots = dict(zip(("exchange", "sparsify", "quantise"), choices, strict=True))
    return chain_of(MODEL, **slots, error_feedback=feedback)


CHAINS = {
    "-".join(choice.name if choice else "none" for choice in choices): choices
    for choices in itertools.product(EXCHANGES, SPARSE, QUANTISED)
}
LINEAR = {name: choices for name, choices in CHAINS.items() if chain(*choices).linear}
SAMPLED = sorted(CHAINS)


def decoded_total(of: Chain, total: np.ndarray, current: np.ndarray, round: int) -> np.ndarray:
    """The travelling vector that a sum of integers stands for, by hand."""
    known = of.stages.positions(round, None)
    moving = np.zeros(of.stages.moving)
    at = 0
    for segment, (first, last) in enumerate(of.stages.bounds(known)):
        values = total[first:last].astype(np.float64) * 2.0 ** int(current[segment])
        size = of.stages.exchange.segments[segment].size
        where = slice(at, at + size) if known is None else known[first:last]
        moving[where] = values
        at += size
    return moving


@pytest.mark.parametrize("name", sorted(LINEAR))
def test_the_sum_of_integers_is_the_sum_of_updates_bit_for_bit(name: str) -> None:
    of = chain(*LINEAR[name])
    current = of.first_scales(training())
    for round in (1, 2):
        weights = [3, 1, 10]
        encoded = [
            of.encode(update_of(MODEL, seed), None, current, round=round, seed=seed)
            for seed in range(3)
        ]
        total = sum(
            w * of.integers(e).astype(np.int64) for w, e in zip(weights, encoded, strict=True)
        )
        assert isinstance(total, np.ndarray) and len(total) == of.length(round=round)
        singly = sum(
            w * decoded_total(of, of.integers(e), current, round)
            for w, e in zip(weights, encoded, strict=True)
        )
        assert np.array_equal(decoded_total(of, total, current, round), singly)
        in_any_order = []
        for order in ((0, 1, 2), (2, 0, 1)):
            added = Sum(of, current, round=round)
            for at in order:
                added.add(encoded[at], weights[at])
            in_any_order.append(added.mean())
        mean, following = of.decode(total, 14, current, round=round)
        for other, other_scales in in_any_order:
            assert np.array_equal(following, other_scales)
            assert all(np.array_equal(mean[n], other[n]) for n in mean)
        whole = of.stages.exchange.expand(decoded_total(of, total, current, round), round=round)
        flat = (whole / 14).astype(np.float32)
        assert np.array_equal(of._flat(mean), flat)
        current = following


@settings(max_examples=60)
@given(st.sampled_from(SAMPLED), st.integers(1, 4), st.integers(0, 2**31), st.floats(-9, 3))
def test_a_message_comes_back_and_is_no_longer_than_said(
    name: str, round: int, seed: int, magnitude: float
) -> None:
    of = chain(*CHAINS[name])
    current = of.first_scales(training())
    update = update_of(MODEL, seed, 10**magnitude)
    encoded = of.encode(update, None, current, round=round, seed=seed)
    blob = of.to_bytes(encoded, round=round)
    assert len(blob) <= of.largest_blob(round=round)
    read = of.from_bytes(blob, round=round)
    assert np.array_equal(read.values, encoded.values) and read.residual is None
    assert np.array_equal(read.wanted, encoded.wanted)
    if encoded.indices is None:
        assert read.indices is None
    else:
        assert np.array_equal(read.indices, encoded.indices)  # type: ignore[arg-type]
    again = of.encode(update, None, current, round=round, seed=seed)
    assert of.to_bytes(again, round=round) == blob


@settings(max_examples=60)
@given(st.sampled_from(SAMPLED), st.integers(1, 3), st.integers(0, 2**31), st.floats(-6, 3))
def test_what_was_sent_and_the_residual_are_what_should_have_been_sent(
    name: str, round: int, seed: int, magnitude: float
) -> None:
    of = chain(*CHAINS[name])
    current = of.first_scales(training())
    update = update_of(MODEL, seed, 10**magnitude)
    before = np.random.default_rng(seed).normal(0, 10**magnitude, of.residual_size)
    encoded = of.encode(update, before.astype(np.float32), current, round=round, seed=seed)
    sent = of._flat(of.decode_one(encoded, current, round=round)).astype(np.float64)
    assert encoded.residual is not None and encoded.residual.dtype == np.float32
    wanted = of._flat(update) + before.astype(np.float32)
    assert np.allclose(encoded.residual + sent, wanted, rtol=2e-6, atol=2e-6 * 10**magnitude)


@settings(max_examples=60)
@given(st.sampled_from(SAMPLED), st.integers(0, 2**31), st.floats(0.1, 3))
def test_what_is_due_has_been_sent_but_for_the_residual(name: str, seed: int, short: float) -> None:
    """Over rounds, some of which a bound cuts: nothing that it cut off is due, and all else is."""
    of = chain(*CHAINS[name])
    current, left = of.first_scales(training()), None
    difference = np.zeros(of.residual_size)
    for round in range(1, 6):
        update = update_of(MODEL, seed + round)
        bound = short * 0.01 * of.residual_size**0.5  # so long is the update
        due = of.due(update, left, round=round, bound=bound)
        encoded = of.encode(update, left, current, round=round, seed=seed, bound=bound)
        sent = of.decode_one(encoded, current, round=round)
        current = of.next_scales(current, encoded.wanted, round=round)
        left = encoded.residual
        difference += of._flat(due).astype(np.float64) - of._flat(sent)
    assert left is not None
    own = of.by_name(left)
    for key, apart in of._parameters(difference):
        assert np.allclose(apart, own[key], atol=2e-6), key


@pytest.mark.parametrize("sparse", [None, part("rand_k", keep=0.2)])
def test_without_feedback_the_mean_is_unbiased_within_the_range(sparse: Any) -> None:
    """500 rounds of one update: squared errors of the mean, each over its own variance, are 1.

    Value x is sent as m·x with chance 1 / m (m = 1: always), in steps s, up with f = frac(m·x / s):
    its variance is m·x² + s²·f·(1 − f) / m − x². A bias of 3 % of a step would make the mean 1.5.
    """
    of = chain(part("all"), sparse, integers(4), feedback=False)
    update = update_of(MODEL, 0)
    step = 2.0**-7
    wide = np.full(of.voters, -7, np.int16)  # ±0.055, and ±0.011 where it is multiplied by 5
    draws = []
    for round in range(2, 502):
        encoded = of.encode(update, None, wide, round=round, seed=round)
        assert encoded.residual is None
        draws.append(of._flat(of.decode_one(encoded, wide, round=round)))
    values = of._flat(update).astype(np.float64)
    group = np.ones(len(values))
    if sparse is not None:
        factors = of.stages.unbiased(np.ones(of.stages.count, np.float32)).astype(int)
        group = np.repeat(factors, factors).astype(float)
    part_up = np.mod(group * values / step, 1)
    variance = group * values**2 + step**2 * part_up * (1 - part_up) / group - values**2
    # those that are clipped, and those so near to a step that the law of rare events holds
    looked_at = (np.abs(group * values) < 7 * step) & (part_up * (1 - part_up) > 0.05)
    assert looked_at.sum() > 500
    scaled = ((np.mean(draws, axis=0) - values) / np.sqrt(variance / 500))[looked_at]
    assert np.square(scaled).mean() == pytest.approx(1, abs=5 * np.sqrt(2 / looked_at.sum()))


def test_hospitals_share_coordinates_but_not_their_coins() -> None:
    of = chain(part("all"), part("rand_k", keep=0.2), integers(8))
    assert of.stages.positions(4, None) is not None
    again = chain(part("all"), part("rand_k", keep=0.2), integers(8))
    other = chain_of(MODEL, seed=4, sparsify=part("rand_k", keep=0.2))

    def positions(one: Chain, round: int) -> list[int]:
        found = one.stages.positions(round, None)
        assert found is not None
        return found.tolist()

    assert positions(of, 4) == positions(again, 4)
    assert positions(of, 4) != positions(of, 5)
    assert positions(of, 4) != positions(other, 4)
    update, current = update_of(MODEL, 0), of.first_scales(training())
    first = of.encode(update, None, current, round=2, seed=1).values
    assert np.array_equal(first, of.encode(update, None, current, round=2, seed=1).values)
    assert not np.array_equal(first, of.encode(update, None, current, round=2, seed=2).values)


@pytest.mark.parametrize(
    ("choices", "stage"),
    [
        ((part("all"), None, None), "codec.quantise=none"),
        ((part("all"), None, part("fp16")), "codec.quantise=fp16"),
        ((part("all"), part("top_k"), integers(8)), "codec.sparsify=top_k"),
        ((part("all"), part("top_k"), part("bf16")), "codec.sparsify=top_k"),
        ((part("adapters"), part("rand_k"), integers(4)), None),
    ],
)
def test_what_cannot_be_summed_says_so(choices: Any, stage: str | None) -> None:
    of = chain(*choices)
    assert of.unshared == stage and of.linear is (stage is None)
    if stage is not None:
        current = of.first_scales(training())
        encoded = of.encode(update_of(MODEL, 0), None, current, round=1, seed=0)
        with pytest.raises(ValueError, match=stage):
            of.integers(encoded)
        with pytest.raises(ValueError, match=stage):
            of.decode(np.zeros(of.length(round=1), np.int64), 1, current, round=1)


def test_the_first_round_has_sixteen_bits_and_sizes_are_exact() -> None:
    of = chain(part("all"), part("rand_k", keep=0.2), integers(4))
    assert (of.bits(round=1), of.bits(round=2)) == (16, 4)
    assert (of.largest(round=1), of.largest(round=2)) == (32767, 7)
    sizes = [t.numel() for t in MODEL.state_dict().values() if t.is_floating_point()]
    assert of.voters == len(sizes) and of.residual_size == sum(sizes)
    sent = sum(max(1, round(0.2 * size)) for size in sizes)
    assert of.length(round=2) == sent + len(sizes) * scales.BINS


# --- what is refused -----------------------------------------------------------------------------


def wrong_updates() -> list[tuple[Arrays, Reason]]:
    right = update_of(MODEL, 0)
    longer = right | {"more": np.zeros(1, np.float32)}
    missing = {name: array for name, array in right.items() if name != "0.bias"}
    bent = right | {"0.bias": np.zeros((8, 1), np.float32)}
    spoilt = {name: array.copy() for name, array in right.items()}
    spoilt["3.weight"][1, 1, 1, 1] = np.nan
    endless = right | {"0.bias": np.full(8, 1e300)}
    return [
        (longer, Reason.WRONG_NAMES),
        (missing, Reason.WRONG_NAMES),
        (bent, Reason.WRONG_SHAPE),
        (spoilt, Reason.NOT_FINITE),
        (endless, Reason.NOT_FINITE),
    ]


def test_updates_of_another_network_are_refused() -> None:
    of = chain(part("all"), None, integers(8))
    current = of.first_scales(training())
    for update, reason in wrong_updates():
        with pytest.raises(WireError) as refused:
            of.encode(update, None, current, round=1, seed=0)
        assert refused.value.reason is reason
    with pytest.raises(WireError):
        of.encode(update_of(MODEL, 0), np.zeros(3, np.float32), current, round=1, seed=0)


def refused(of: Chain, blob: bytes, round: int = 2) -> Reason:
    with pytest.raises(WireError) as error:
        of.from_bytes(blob, round=round)
    return error.value.reason


def message(of: Chain, **changes: Any) -> bytes:
    current = of.first_scales(training())
    encoded = of.encode(update_of(MODEL, 0), None, current, round=2, seed=0)
    return of.to_bytes(Encoded(**{**vars(encoded), **changes}), round=2)


def test_messages_that_no_hospital_writes_are_refused() -> None:
    of = chain(part("all"), part("top_k", keep=0.05), integers(8))
    right = message(of)
    assert of.from_bytes(right, round=2).indices is not None
    assert refused(of, b"") is Reason.MALFORMED
    assert refused(of, b"\2" + right[1:]) is Reason.MALFORMED
    assert refused(of, right[:-1]) is Reason.MALFORMED
    assert refused(of, right + b"\0") in (Reason.MALFORMED, Reason.TOO_LARGE)
    assert refused(of, bytes(of.largest_blob(round=2) + 1)) is Reason.TOO_LARGE
    count = of.stages.count
    assert refused(of, message(of, values=np.full(count, -128, np.int32))) is Reason.MALFORMED
    beyond = np.arange(of.stages.moving - count, of.stages.moving) + 1
    assert refused(of, message(of, indices=beyond)) is Reason.MALFORMED
    assert refused(of, right, round=1) is Reason.MALFORMED  # of another round's length of values


@pytest.mark.parametrize(
    ("choice", "bits"), [(None, 0x7F800000), (part("fp16"), 0x7E00), (part("bf16"), 0x7F80)]
)
def test_values_that_are_not_finite_are_refused(choice: Any, bits: int) -> None:
    of = chain(part("all"), None, choice)
    values = np.zeros(of.stages.count, np.int32)
    values[-1] = bits
    assert refused(of, message(of, values=values)) is Reason.NOT_FINITE


@settings(max_examples=150)
@given(st.data())
def test_mutants_are_refused_or_are_messages(data: st.DataObject) -> None:
    name = data.draw(
        st.sampled_from(["all-none-integers", "head-top_k-integers", "head-none-fp16"])
    )
    of = chain(*CHAINS[name])
    blob = bytearray(message(of))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, min(len(blob), 400) - 1))
        match data.draw(st.sampled_from(["change", "cut", "insert"])):
            case "change":
                blob[at] = data.draw(st.integers(0, 255))
            case "cut":
                del blob[at : at + data.draw(st.integers(1, 50))]
            case "insert":
                blob[at:at] = data.draw(st.binary(max_size=20))
        if not blob:
            break
    try:
        read = of.from_bytes(bytes(blob), round=2)
    except WireError:
        return
    found = of.decode_one(read, of.first_scales(training()), round=2)
    assert all(np.isfinite(array).all() for array in found.values())


def test_sums_that_no_hospitals_have_are_refused() -> None:
    of = chain(part("all"), None, integers(8))
    current = of.first_scales(training())
    right = of.integers(of.encode(update_of(MODEL, 0), None, current, round=2, seed=0))
    of.decode(right.astype(np.int64) * 5, 5, current, round=2)
    votes = of.stages.count
    for at, value in ((0, 128), (0, -128), (votes, 2), (votes, -1)):
        wrong = right.astype(np.int64)
        wrong[at] = value
        with pytest.raises(WireError):
            of.decode(wrong, 1, current, round=2)
    twice = right.astype(np.int64)
    twice[votes : votes + 2] = 1
    with pytest.raises(WireError):
        of.decode(twice, 1, current, round=2)
    with pytest.raises(WireError):
        of.decode(right[:-1], 1, current, round=2)


def test_unknown_stages_are_named() -> None:
    with pytest.raises(ConfigError, match="did you mean 'rand_k'"):
        chain(part("all"), part("rand_q"), None)
    with pytest.raises(ConfigError, match="bits is 17"):
        chain(part("all"), None, integers(17))
    with pytest.raises(ValueError, match="name"):  # no name begins like this
        part("_float32")


def test_a_mean_of_nothing_is_refused() -> None:
    of = chain(part("all"), None, integers(8))
    with pytest.raises(ValueError, match="no updates"):
        Sum(of, of.first_scales(training()), round=1).mean()
