"""Dealing patients: everybody once, as skewed as asked, and every hospital can train."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client_app.imaging.skew import Positions, by_attribute, by_label, by_size, flipped, whole
from federation.schema import ConfigError

LABELS = ["normal"] * 600 + ["pneumonia"] * 300


def require_everybody_once(parts: Sequence[Positions], count: int) -> None:
    assert sorted(np.concatenate(parts).tolist()) == list(range(count))
    for part in parts:
        assert part.tolist() == sorted(part.tolist())


def mixes(parts: Sequence[Positions], labels: Sequence[str]) -> list[Counter[str]]:
    return [Counter(labels[at] for at in part) for part in parts]


@given(
    st.lists(st.sampled_from("abc"), max_size=60),
    st.integers(1, 6),
    st.floats(1e-3, 1e6),
    st.integers(0, 5),
    st.integers(0, 2**31),
)
def test_everybody_is_dealt_once_and_every_hospital_has_its_least(
    labels: list[str], hospitals: int, alpha: float, least: int, seed: int
) -> None:
    parts = by_label(labels, hospitals, alpha=alpha, seed=seed, least=least)
    assert len(parts) == hospitals
    require_everybody_once(parts, len(labels))
    for mix in mixes(parts, labels):
        for word, count in Counter(labels).items():
            assert mix[word] >= min(least, count // hospitals)
    again = by_label(labels, hospitals, alpha=alpha, seed=seed, least=least)
    assert all((a == b).all() for a, b in zip(parts, again, strict=True))


def test_a_large_alpha_gives_equal_shares() -> None:
    for mix in mixes(by_label(LABELS, 3, alpha=1e9, seed=0), LABELS):
        assert mix["normal"] == pytest.approx(200, abs=1)
        assert mix["pneumonia"] == pytest.approx(100, abs=1)


@pytest.mark.parametrize("alpha", [0.1, 1.0, 10.0])
def test_shares_vary_as_dirichlets_do(alpha: float) -> None:
    """Var of one of K shares is (K − 1) / (K² (K α + 1)); over 400 draws, within 20 %."""
    hospitals, labels = 4, ["a"] * 1000
    shares = [
        len(part) / 1000
        for seed in range(400)
        for part in by_label(labels, hospitals, alpha=alpha, seed=seed, least=0)
    ]
    expected = (hospitals - 1) / (hospitals**2 * (hospitals * alpha + 1))
    assert np.mean(shares) == pytest.approx(0.25)
    assert np.var(shares) == pytest.approx(expected, rel=0.2)


def test_classes_are_dealt_apart() -> None:
    """At a small α hospitals differ in their mix, not in their size alone."""
    parts = by_label(LABELS, 3, alpha=0.1, seed=1, least=20)
    ill = [mix["pneumonia"] / mix.total() for mix in mixes(parts, LABELS)]
    assert max(ill) - min(ill) > 0.3
    assert all(mix["normal"] >= 20 <= mix["pneumonia"] for mix in mixes(parts, LABELS))


def test_patients_are_shuffled_before_they_are_dealt() -> None:
    first = by_label(["a"] * 90, 3, alpha=1e9, seed=0)[0]
    assert first.max() - first.min() > 45


@given(
    st.lists(st.sampled_from("abc"), min_size=1, max_size=80),
    st.lists(st.floats(0.1, 10), min_size=1, max_size=5),
)
def test_sizes_are_as_asked(labels: list[str], sizes: list[float]) -> None:
    parts = by_size(labels, sizes, seed=0)
    require_everybody_once(parts, len(labels))
    classes = len(set(labels))
    for part, size in zip(parts, sizes, strict=True):
        assert abs(len(part) - len(labels) * size / sum(sizes)) < classes + 1


def test_sizes_differ_and_the_mix_does_not() -> None:
    parts = by_size(LABELS, (10, 3, 1), seed=0)
    assert [len(part) for part in parts] == [643, 193, 64]
    for mix in mixes(parts, LABELS):
        assert mix["pneumonia"] / mix.total() == pytest.approx(1 / 3, abs=0.02)


def test_each_hospital_has_scanners_of_its_own() -> None:
    scanners = ["siemens"] * 50 + ["ge"] * 30 + ["philips"] * 25 + ["canon"] * 10
    parts = by_attribute(scanners, 3, seed=0)
    require_everybody_once(parts, len(scanners))
    assert [set(mix) for mix in mixes(parts, scanners)] == [
        {"siemens"},
        {"ge"},
        {"philips", "canon"},
    ]
    mixed = mixes(by_attribute(scanners, 3, seed=0, purity=0.5), scanners)
    assert [mix["siemens"] for mix in mixed] == [34, 8, 8]
    with pytest.raises(ConfigError, match="there are 4"):
        by_attribute(scanners, 5, seed=0)
    equal = mixes(by_attribute(scanners, 2, seed=0, purity=0.0), scanners)
    assert equal[0] == equal[1] | Counter({"philips": 13})


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_so_many_labels_are_wrong(share: float) -> None:
    labels = ["a", "b", "c", "b", "a"] * 20
    wrong = flipped(labels, share, seed=3)
    differing = [(a, b) for a, b in zip(labels, wrong, strict=True) if a != b]
    assert len(differing) == round(100 * share)
    assert set(wrong) <= {"a", "b", "c"}
    if share == 1.0:
        assert len(set(differing)) == 6  # each class becomes each other one
    assert flipped(labels, share, seed=3) == wrong
    assert share in (0.0, 1.0) or flipped(labels, share, seed=4) != wrong


def test_what_makes_no_sense_is_refused() -> None:
    for alpha in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ConfigError, match="above 0"):
            by_label(LABELS, 3, alpha=alpha, seed=0)
    with pytest.raises(ConfigError, match="no hospitals"):
        by_label(LABELS, 0, alpha=1.0, seed=0)
    with pytest.raises(ConfigError, match="such as 10 3 1"):
        by_size(LABELS, (1, 0), seed=0)
    with pytest.raises(ConfigError, match="from 0 to 1"):
        by_attribute(LABELS, 2, seed=0, purity=1.5)
    with pytest.raises(ConfigError, match="two classes"):
        flipped(["a", "a"], 0.5, seed=0)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.integers(0, 1000))
def test_whole_numbers_add_up(weights: list[float], total: int) -> None:
    shares = np.array(weights) + 1e-6
    shares /= shares.sum()
    counts = whole(shares, total)
    assert counts.sum() == total
    assert (np.abs(counts - shares * total) < 1).all()
