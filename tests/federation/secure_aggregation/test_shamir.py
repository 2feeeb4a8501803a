"""Shares: enough of them give the secret, fewer are compatible with every secret."""

from __future__ import annotations

import secrets
from collections import Counter
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.secure_aggregation import shamir
from tests.federation.secure_aggregation import independent


def points(shares: list[bytes], xs: list[int]) -> list[tuple[int, bytes]]:
    return [(x, shares[x - 1]) for x in xs]


def is_prime(number: int) -> bool:
    """Miller-Rabin with the first 40 primes as bases."""
    bases = [p for p in range(2, 174) if all(p % q for q in range(2, p))]
    rest, twos = number - 1, 0
    while rest % 2 == 0:
        rest, twos = rest // 2, twos + 1
    for base in bases:
        x = pow(base, rest, number)
        if x not in (1, number - 1) and all(
            (x := x * x % number) != number - 1 for _ in range(twos - 1)
        ):
            return False
    return True


def test_the_field_is_the_first_prime_above_every_secret() -> None:
    assert shamir.PRIME == independent.SHAMIR
    assert is_prime(shamir.PRIME)
    assert not any(is_prime(number) for number in range(2**256, shamir.PRIME))


@settings(max_examples=60, deadline=None)
@given(st.binary(min_size=32, max_size=32), st.data())
def test_any_threshold_of_them_give_the_secret(secret: bytes, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 12))
    threshold = data.draw(st.integers(1, count))
    shares = shamir.split(secret, threshold, count)
    xs = data.draw(st.permutations(range(1, count + 1)))[:threshold]
    assert shamir.join(points(shares, xs)) == secret
    by_hand = independent.interpolate({x: int.from_bytes(shares[x - 1], "big") for x in xs})
    assert by_hand == int.from_bytes(secret, "big")


@pytest.mark.parametrize("secret", [bytes(32), b"\xff" * 32])
def test_the_ends_of_the_range(secret: bytes) -> None:
    assert shamir.join(points(shamir.split(secret, 4, 5), [1, 2, 4, 5])) == secret


def test_a_frozen_polynomial(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = iter([5, 7, shamir.PRIME - 1])
    monkeypatch.setattr(secrets, "randbelow", lambda top: next(drawn))
    secret = bytes(range(32))
    shares = shamir.split(secret, 4, 5)
    value = int.from_bytes(secret, "big")
    for x, share in enumerate(shares, start=1):
        wanted = (5 * x**3 + 7 * x**2 - x + value) % independent.SHAMIR
        assert share == wanted.to_bytes(33, "big")
    assert shares[1].hex() == FROZEN_SHARE


FROZEN_SHARE = "00000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e61"


@pytest.mark.parametrize(
    "other", [bytes(32), b"\xff" * 32, b"any secret fits with two of three"[:32]]
)
def test_one_share_too_few_fits_every_secret_equally(other: bytes) -> None:
    shares = shamir.split(bytes(range(32)), 4, 5)
    for xs in combinations(range(1, 6), 3):
        known = {x: int.from_bytes(shares[x - 1], "big") for x in xs}
        # One polynomial of degree 3 goes through three shares and any secret at all, and each is as
        # likely as the other, since the coefficients were drawn evenly.
        whole = {0: int.from_bytes(other, "big"), **known}
        missing = next(x for x in range(1, 6) if x not in xs)
        share = independent.interpolate(whole, missing).to_bytes(33, "big")
        assert shamir.is_share(share)
        assert shamir.join([*points(shares, list(xs)), (missing, share)]) == other


def test_a_share_says_nothing_of_the_secret() -> None:
    """A share's lowest byte is uniform for one secret: chi-square, one false alarm in a million."""
    from scipy import stats

    counts = Counter(shamir.split(bytes(32), 2, 2)[0][-1] for _ in range(5120))
    observed = [counts[value] for value in range(256)]
    assert stats.chisquare(observed).pvalue > 1e-6


def test_fewer_than_the_threshold_give_something_else() -> None:
    secret = secrets.token_bytes(32)
    shares = shamir.split(secret, 4, 5)
    for xs in combinations(range(1, 6), 3):
        assert shamir.join(points(shares, list(xs))) != secret


@pytest.mark.parametrize(
    ("secret", "threshold", "count"),
    [(b"", 2, 3), (bytes(33), 2, 3), (bytes(32), 0, 3), (bytes(32), 4, 3)],
)
def test_what_cannot_be_shared_is_refused(secret: bytes, threshold: int, count: int) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        shamir.split(secret, threshold, count)


@pytest.mark.parametrize("share", [b"", bytes(32), bytes(34), shamir.PRIME.to_bytes(33, "big")])
def test_what_is_no_share(share: bytes) -> None:
    assert not shamir.is_share(share)


@pytest.mark.parametrize(
    ("count", "size"), [(5, 4), (10, 7), (50, 34), (40, 34), (35, 34), (100, 67)]
)
def test_one_wrong_item_is_always_avoided(count: int, size: int) -> None:
    items = [str(number) for number in range(count)]
    for wrong in items:
        tried = 0
        for part in shamir.subsets(items, size):
            tried += 1
            assert len(set(part)) == size
            if wrong not in part:
                break
        else:
            pytest.fail("every part had it")
        assert tried <= count + 2
    assert sum(1 for _ in shamir.subsets(items, size)) < 5000
    assert list(shamir.subsets(items[:size], size)) == [tuple(items[:size])]
