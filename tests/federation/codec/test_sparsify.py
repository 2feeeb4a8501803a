"""Which values are sent: shared, unbiased, and the largest."""

from __future__ import annotations

import hashlib
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.codec import _shared
from federation.codec.sparsify import rand_k, top_k

SIZES = st.lists(st.integers(1, 300), min_size=1, max_size=6)
KEEP = st.floats(0.001, 1.0)


def draw(*parts: object) -> partial[np.ndarray]:
    return partial(lambda count: _shared.words(count, *parts))


def philox(key: int, count: int) -> list[int]:
    """Philox 4×64 with 10 rounds, from the paper (Salmon et al. 2011, section 4.3) in plain integers."""
    mask = 2**64 - 1
    words: list[int] = []
    for block in range(1, count // 4 + 2):  # NumPy counts up before the first block
        counter = [block, 0, 0, 0]
        keys = [key & mask, key >> 64]
        for _ in range(10):
            left, right = 0xD2E7470EE14C6C93 * counter[0], 0xCA5A826395121157 * counter[2]
            counter = [
                (right >> 64) ^ counter[1] ^ keys[0],
                right & mask,
                (left >> 64) ^ counter[3] ^ keys[1],
                left & mask,
            ]
            keys = [(keys[0] + 0x9E3779B97F4A7C15) & mask, (keys[1] + 0xBB67AE8584CAA73B) & mask]
        words += counter
    return words[:count]


def test_the_shared_words_are_those_of_the_paper() -> None:
    key = int.from_bytes(hashlib.sha256(b"codec\x1fsparsify\x1f3\x1f12").digest()[:16], "little")
    assert _shared.words(11, "sparsify", 3, 12).tolist() == philox(key, 11)


@given(SIZES, KEEP, st.integers(0, 1000))
def test_rand_k_takes_one_of_each_group(sizes: list[int], keep: float, round: int) -> None:
    options = rand_k.Options(keep=keep)
    positions = rand_k.choose(options, sizes, None, draw("s", round))
    factors = rand_k.factors(options, sizes)
    assert factors is not None
    assert len(positions) == len(factors) == rand_k.count(options, sizes)
    assert (np.diff(positions) > 0).all() and positions[0] >= 0 and positions[-1] < sum(sizes)
    edges = np.cumsum([0, *sizes])
    per_segment = np.diff(np.searchsorted(positions, edges))
    assert per_segment.tolist() == [max(1, round_to(keep * size)) for size in sizes]
    assert factors.sum() == sum(sizes)  # the groups are all there is
    ends = np.cumsum(factors)
    assert ((ends - factors <= positions) & (positions < ends)).all()
    assert np.array_equal(positions, rand_k.choose(options, sizes, None, draw("s", round)))


def round_to(value: float) -> int:
    return int(np.round(value))


def test_rand_k_is_unbiased_and_as_noisy_as_said() -> None:
    """Over 4000 rounds, within 5 standard errors for each of 100 values."""
    values = np.random.default_rng(0).normal(size=100)
    options = rand_k.Options(keep=0.3)
    factors = rand_k.factors(options, [100])
    assert factors is not None
    rounds = 4000
    total, squares = np.zeros(100), 0.0
    for round in range(rounds):
        positions = rand_k.choose(options, [100], None, draw("unbiased", round))
        sent = np.zeros(100)
        sent[positions] = factors * values[positions]
        total += sent
        squares += float(np.square(sent - values).sum())
    group = np.repeat(factors, factors.astype(int))
    error = np.abs(values) * np.sqrt((group - 1) / rounds)
    assert (np.abs(total / rounds - values) <= 5 * error + 1e-12).all()
    assert squares / rounds == pytest.approx(((group - 1) * np.square(values)).sum(), rel=0.05)


@given(SIZES, KEEP, st.integers(0, 2**31))
def test_top_k_takes_the_largest_and_contracts(sizes: list[int], keep: float, seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=sum(sizes)).astype(np.float32)
    options = top_k.Options(keep=keep)
    positions = top_k.choose(options, sizes, values, draw())
    count = top_k.count(options, sizes)
    assert len(positions) == count >= 1 and (np.diff(positions) > 0).all()
    assert np.array_equal(
        np.sort(np.abs(values[positions])), np.sort(np.abs(values))[len(values) - count :]
    )
    rest = values.copy()
    rest[positions] = 0
    share = 1 - count / len(values)
    assert np.square(rest).sum() <= share * np.square(values).sum() * (1 + 1e-5)
    assert top_k.factors(options, sizes) is None
