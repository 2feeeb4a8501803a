"""Both vectors of a round come out as the exact sum of what hospitals encrypted, or not at all."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.messages import Reason, WireError
from federation.secure_aggregation import letters, linear_mac
from federation.secure_aggregation.ckks import Ckks
from federation.secure_aggregation.encryption import Vectors, run_of
from federation.secure_aggregation.keys import Occasion, derived
from tests.federation.secure_aggregation.ckks_sums import a_key
from tests.hospitals import content

pytest.importorskip("tenseal")
FOUR = ("a", "b", "c", "d")
KEY = bytes(range(32))
PRIME = 2305843009213693951


# --- the tag --------------------------------------------------------------------------------------


def test_a_tag_is_the_product_with_numbers_of_the_key() -> None:
    """By Python's integers, and AES in counter mode of another call."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    assert linear_mac.PRIME == PRIME == 2**61 - 1
    source = np.random.default_rng(0)
    values = source.integers(-(2**44) + 1, 2**44, 70_000)  # more than one piece
    values[:2] = -(2**44) + 1, 2**44 - 1
    key = derived(KEY, "mac of entries")
    stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor().update(bytes(8 * 70_000))
    numbers = [int.from_bytes(stream[8 * at : 8 * at + 8], "little") >> 3 for at in range(70_000)]
    wanted = sum(r * int(m) for r, m in zip(numbers, values, strict=True))
    wanted += int.from_bytes(derived(KEY, "mac of a hospital", "a"))
    assert linear_mac.expected(KEY, ["a"], values) == wanted % PRIME
    assert len(set(numbers)) == len(numbers)


@given(
    st.integers(2, 64),
    st.lists(
        st.lists(st.integers(-(2**30), 2**30), min_size=5, max_size=5), min_size=1, max_size=9
    ),
)
def test_tags_add_up_as_vectors_do(bits: int, vectors: list[list[int]]) -> None:
    names = [f"h{place}" for place in range(len(vectors))]
    rows = np.array(vectors, np.int64)
    tags = [linear_mac.tag(KEY, n, row, bits).tolist() for n, row in zip(names, rows, strict=True)]
    assert all(0 <= digit < 1 << (bits - 1) for one in tags for digit in one)
    assert {len(one) for one in tags} == {linear_mac.length(bits)}
    total = [sum(column) for column in zip(*tags, strict=True)]
    assert linear_mac.of_digits(np.array(total, object), bits) == linear_mac.expected(
        KEY, names, rows.sum(axis=0)
    )


def test_a_tag_is_for_one_vector_of_one_hospital_under_one_key() -> None:
    values = np.arange(-50, 50)
    mine = linear_mac.expected(KEY, ["a"], values)
    for place in (0, 57, 99):
        for by in (1, -1, 1000):
            other = values.copy()
            other[place] += by
            assert linear_mac.expected(KEY, ["a"], other) != mine
    swapped = values.copy()
    swapped[[3, 4]] = swapped[[4, 3]]
    assert linear_mac.expected(KEY, ["a"], swapped) != mine
    assert linear_mac.expected(KEY, ["b"], values) != mine
    assert linear_mac.expected(bytes(32), ["a"], values) != mine


def test_tags_of_one_vector_look_random_over_keys() -> None:
    """Uniform in the field: their top bits, over a thousand keys, by χ²."""
    from scipy.stats import chisquare

    values = np.arange(20)
    tags = [linear_mac.expected(number.to_bytes(32), ["a"], values) >> 57 for number in range(1600)]
    assert chisquare(np.bincount(tags, minlength=16)).pvalue > 1e-6


# --- both vectors ---------------------------------------------------------------------------------


def vectors(**changes: Any) -> Vectors:
    given: dict[str, Any] = {
        "occasion": Occasion("run", 1, 0, "0" * 64),
        "members": FOUR,
        "adverts": bytes(32),
        "least": 3,
        "length": 500,
        "bits": 8,
        "figures": 6,
    }
    return Vectors(**(given | changes))


def some(of: Vectors, seed: int) -> tuple[Any, Any]:
    source, most = np.random.default_rng(seed), (1 << (of.bits - 1)) - 1
    update = source.integers(-most, most + 1, of.length)
    return update, source.integers(-(2**52), 2**52, of.figures)


def summed(of: Vectors, names: tuple[str, ...]) -> tuple[bytes, ...]:
    totals = of.totals(a_key().public.to_bytes())
    for place, name in enumerate(names):
        blob = of.encrypt(a_key(), name, *some(of, place))
        assert len(blob) <= of.largest
        totals.add(name, blob)
    return totals.to_bytes()


@pytest.mark.parametrize("bits", [2, 4, 8, 16, 32])
def test_sums_are_those_of_the_plain_integers(bits: int) -> None:
    of = vectors(bits=bits)
    figures, update = summed(of, FOUR[:3])
    plain = [some(of, place) for place in range(3)]
    told, whose = of.figures_of(a_key(), figures)
    assert whose == FOUR[:3]
    assert told.tolist() == [sum(int(x) for x in col) for col in zip(*(f for _, f in plain))]  # noqa: B905
    told, whose = of.update_of(a_key(), update)
    assert whose == FOUR[:3]
    np.testing.assert_array_equal(told, np.sum([u for u, _ in plain], axis=0))


def test_a_round_without_training_has_figures_alone() -> None:
    of = vectors(length=0)
    (figures,) = summed(of, FOUR)
    assert of.figures_of(a_key(), figures)[1] == FOUR


@pytest.mark.parametrize("place", [0, 499, 500, 508])
def test_numbers_that_were_changed_are_refused(place: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a coordinator changes them, beneath the encryption: an entry, or a digit of the tag."""
    of = vectors()
    _, update = summed(of, FOUR)
    real = Ckks.partial_decrypt

    def shifted(self: Ckks, *args: Any) -> Any:
        opened = real(self, *args)
        opened.values[place] += 1
        return opened

    monkeypatch.setattr(Ckks, "partial_decrypt", shifted)
    with pytest.raises(WireError) as refusal:
        of.update_of(a_key(), update)
    assert refusal.value.reason is Reason.BAD_SIGNATURE


def test_one_sum_is_not_another_s() -> None:
    of = vectors(length=30, bits=17, figures=6)  # of one size and as many bits
    assert (of._figures.size, of._figures.bits) == (of._update.size, of._update.bits)
    figures, update = summed(of, FOUR)
    for open_, total in ((of.figures_of, update), (of.update_of, figures)):
        with pytest.raises(WireError) as refusal:
            open_(a_key(), total)
        assert refusal.value.reason is Reason.WRONG_ROUND
    for other in (
        vectors(length=30, bits=17, occasion=Occasion("run", 2, 0, "0" * 64)),
        vectors(length=30, bits=17, occasion=Occasion("other", 1, 0, "0" * 64)),
        vectors(length=30, bits=17, least=4),
        vectors(length=30, bits=17, adverts=b"w" * 32),
        vectors(length=30, bits=17, members=(*FOUR, "e")),
    ):
        with pytest.raises(WireError) as refusal:
            other.figures_of(a_key(), figures)
        assert refusal.value.reason is Reason.WRONG_ROUND


def test_half_a_message_adds_nothing() -> None:
    of = vectors()
    totals = of.totals(a_key().public.to_bytes())
    figures, update = letters.split(of.encrypt(a_key(), "a", *some(of, 0)), 2)
    for broken in (figures, letters.join(figures), letters.join(figures, update[:-1])):
        with pytest.raises(WireError):
            totals.add("a", broken)
    assert all(one.hospitals == () for one in totals.sums)
    totals.add("a", letters.join(figures, update))
    assert all(one.hospitals == ("a",) for one in totals.sums)


def test_a_run_s_name_stands_for_its_experiment() -> None:
    one, other = content(), content(seed=1)
    assert run_of("a", one) == run_of("a", content()) != run_of("a", other)
