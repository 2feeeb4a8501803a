"""Rules against bad updates: each against an independent reference, and against what it promises."""

from __future__ import annotations

import itertools
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import trim_mean

from federation.messages import Arrays, Trained
from federation.strategies import NotCombined, Strategy, combine
from server_app.aggregation.plain import weighted_mean
from tests.federation.strategies.rounds import combined, rule, told

ROBUST = ("coordinate_median", "trimmed_mean", "krum", "multi_krum", "norm_bound")


def some(count: int, seed: int = 0, scale: float = 1.0) -> dict[str, Arrays]:
    """Updates of a network with a normalisation layer; names are not in the order of making."""
    rng = np.random.default_rng(seed)
    names = [f"h{k:02d}" for k in reversed(range(count))]
    return {
        name: {
            "conv.weight": rng.normal(size=(3, 2, 2)).astype(np.float32) * np.float32(scale),
            "norm.weight": rng.normal(size=3).astype(np.float32) * np.float32(scale),
            "norm.running_mean": rng.normal(100, 10, size=3).astype(np.float32),
            "norm.running_var": rng.uniform(0, 1000, size=3).astype(np.float32),
            "norm.num_batches_tracked": np.array(rng.integers(5, 50), np.int64),
        }
        for name in names
    }


def fedavg(updates: dict[str, Arrays], weights: dict[str, int] | None = None) -> Arrays:
    trained = {n: Trained(u, 1, examples=(weights or {}).get(n, 1)) for n, u in updates.items()}
    return weighted_mean(trained, "examples" if weights else "equal")


def same(one: Arrays, other: Arrays) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].dtype == other[name].dtype
        assert one[name].shape == other[name].shape
        np.testing.assert_array_equal(one[name], other[name])


def quorum(name: str, count: int, **options: object) -> Strategy:
    return rule(name, least=count, **options)


def column(updates: dict[str, Arrays], name: str, at: tuple[int, ...]) -> list[float]:
    return [float(update[name][at]) for update in updates.values()]


# --- against references --------------------------------------------------------------------------


@pytest.mark.parametrize("count", [3, 4, 7, 10])
def test_coordinate_median_is_pythons(count: int) -> None:
    updates = some(count)
    got = combined(quorum("coordinate_median", count), updates)
    for name, array in got.items():
        for at in np.ndindex(array.shape):
            expected = statistics.median(column(updates, name, at))
            assert float(array[at]) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("count", "byzantine"), [(3, 1), (7, 2), (10, 4), (11, 1)])
def test_trimmed_mean_is_scipys(count: int, byzantine: int) -> None:
    updates = some(count)
    got = combined(quorum("trimmed_mean", count, byzantine=byzantine), updates)
    for name, array in got.items():
        stacked = np.stack([u[name] for u in updates.values()]).astype(np.float64)
        # scipy cuts int(share · n) at each end
        expected = trim_mean(stacked, (byzantine + 0.5) / count, axis=0)
        np.testing.assert_allclose(array, expected, rtol=1e-5, atol=1e-6)


def brute_force_krum(updates: dict[str, Arrays], f: int) -> list[str]:
    """Blanchard et al. 2017, section 3, word for word; hospitals by their score."""
    vectors = {
        h: np.concatenate([u["conv.weight"].ravel(), u["norm.weight"].ravel()], dtype=np.float64)
        for h, u in updates.items()
    }
    scores = {}
    for i, v in vectors.items():
        apart = sorted(float(np.linalg.norm(v - u) ** 2) for j, u in vectors.items() if j != i)
        scores[i] = sum(apart[: len(vectors) - f - 2])
    return sorted(scores, key=lambda h: scores[h])


@pytest.mark.parametrize(("count", "f"), [(5, 1), (7, 2), (9, 1), (12, 4)])
@pytest.mark.parametrize("seed", range(4))
def test_krum_and_multi_krum_choose_whom_the_paper_does(count: int, f: int, seed: int) -> None:
    updates = some(count, seed)
    order = brute_force_krum(updates, f)
    got = combined(quorum("krum", count, byzantine=f), updates)
    np.testing.assert_array_equal(got["conv.weight"], updates[order[0]]["conv.weight"])
    for selected in (None, 1, 2):
        best = order[: selected or count - f - 2]
        got = combined(quorum("multi_krum", count, byzantine=f, selected=selected), updates)
        expected = np.mean([updates[h]["conv.weight"] for h in best], axis=0, dtype=np.float64)
        np.testing.assert_allclose(got["conv.weight"], expected, rtol=1e-6, atol=1e-7)


def test_norm_bound_is_the_mean_of_clipped_updates() -> None:
    updates = some(6)
    updates["h01"] = {n: a * 50 if a.dtype.kind == "f" else a for n, a in updates["h01"].items()}
    weights = {name: float(k + 1) for k, name in enumerate(sorted(updates))}
    for bound in (None, 0.5, 3.0):
        got = combined(
            rule("norm_bound", weighting="examples", least=6, bound=bound), updates, weights
        )
        vectors = {
            h: np.concatenate([u["conv.weight"].ravel(), u["norm.weight"]], dtype=np.float64)
            for h, u in updates.items()
        }
        limit = bound or float(np.median([np.linalg.norm(v) for v in vectors.values()]))
        clipped = {h: v * min(1, limit / np.linalg.norm(v)) for h, v in vectors.items()}
        mean = sum(weights[h] * v for h, v in clipped.items()) / sum(weights.values())
        np.testing.assert_allclose(got["conv.weight"].ravel(), mean[:12], rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(got["norm.weight"], mean[12:], rtol=1e-5, atol=1e-7)


# --- FedAvg, where it must be --------------------------------------------------------------------


def test_no_trimming_is_fedavg_to_the_bit() -> None:
    updates = some(9)
    same(combined(quorum("trimmed_mean", 9, byzantine=0), updates), fedavg(updates))


def test_a_bound_that_nobody_reaches_is_fedavg_on_the_parameters() -> None:
    updates = some(9)
    weights = {name: k + 1 for k, name in enumerate(sorted(updates))}
    strategy = rule("norm_bound", weighting="examples", bound=1e30)
    got, expected = combined(strategy, updates, weights), fedavg(updates, weights)
    for name in ("conv.weight", "norm.weight"):
        np.testing.assert_array_equal(got[name], expected[name])
    assert got["norm.running_var"].min() >= 0


@pytest.mark.parametrize("name", ROBUST)
def test_identical_updates_are_their_mean(name: str) -> None:
    one = some(1)["h00"]
    updates = {f"h{k}": {n: a.copy() for n, a in one.items()} for k in range(5)}
    same(combined(quorum(name, 5), updates), fedavg(updates))


@pytest.mark.parametrize(
    ("name", "options"),
    [("trimmed_mean", {"byzantine": 0}), ("norm_bound", {"bound": 1e30})],
)
def test_one_hospital_is_fedavg(name: str, options: dict[str, object]) -> None:
    updates = some(1)
    same(combined(rule(name, least=1, **options), updates), fedavg(updates))


# --- what they promise ---------------------------------------------------------------------------

finite = st.floats(-1e6, 1e6, width=32)


@settings(max_examples=60, deadline=None)
@given(
    honest=hnp.arrays(np.float32, (5, 4), elements=finite),
    bad=hnp.arrays(np.float32, (2, 4), elements=st.floats(-(2.0**100), 2.0**100, width=32)),
    places=st.permutations(range(7)),
    name=st.sampled_from(["coordinate_median", "trimmed_mean"]),
)
def test_each_coordinate_lies_between_honest_ones(
    honest: np.ndarray, bad: np.ndarray, places: list[int], name: str
) -> None:
    options = {"byzantine": 2} if name == "trimmed_mean" else {}
    rows = np.concatenate([honest, bad])
    updates = {f"h{place}": {"w": row} for place, row in zip(places, rows, strict=True)}
    got = combined(quorum(name, 7, **options), updates)["w"]
    slack = np.abs(honest).max(axis=0) * 1e-6
    assert (got >= honest.min(axis=0) - slack).all()
    assert (got <= honest.max(axis=0) + slack).all()


@settings(max_examples=60, deadline=None)
@given(
    rows=hnp.arrays(np.float32, (7, 5), elements=finite),
    order=st.permutations(range(7)),
    name=st.sampled_from(ROBUST),
)
def test_the_order_of_hospitals_does_not_change_a_bit(
    rows: np.ndarray, order: list[int], name: str
) -> None:
    strategy = quorum(name, 7)
    updates = {f"h{k}": {"w": row} for k, row in enumerate(rows)}
    shuffled = {f"h{k}": updates[f"h{k}"] for k in order}
    one, other = combined(strategy, updates), combined(strategy, shuffled)
    assert one["w"].tobytes() == other["w"].tobytes()


@settings(max_examples=60, deadline=None)
@given(
    rows=hnp.arrays(np.float32, (7, 5), elements=st.integers(-1000, 1000).map(float)),
    names=st.permutations(range(7)),
    name=st.sampled_from(["coordinate_median", "trimmed_mean", "norm_bound"]),
)
def test_names_do_not_matter(rows: np.ndarray, names: list[int], name: str) -> None:
    """Who is called what changes nothing but the order of sums. (Krum breaks ties by name.)"""
    strategy = quorum(name, 7)
    one = combined(strategy, {f"h{k}": {"w": row} for k, row in enumerate(rows)})
    other = combined(strategy, {f"h{k}": {"w": row} for k, row in zip(names, rows, strict=True)})
    np.testing.assert_allclose(one["w"], other["w"], rtol=1e-5, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(
    honest=hnp.arrays(np.float32, (5, 6), elements=st.floats(-1, 1, width=32)),
    bad=hnp.arrays(np.float32, (2, 6), elements=st.floats(-(2.0**50), 2.0**50, width=32)),
)
def test_norm_bound_bounds_what_a_minority_does(honest: np.ndarray, bad: np.ndarray) -> None:
    updates = {f"h{k}": {"w": row} for k, row in enumerate([*honest, *bad])}
    got = combined(quorum("norm_bound", 7), updates)["w"]
    largest = max(np.linalg.norm(row.astype(np.float64)) for row in honest)
    assert np.linalg.norm(got) <= largest * (1 + 1e-5) + 1e-12


def test_bad_statistics_beside_honest_parameters_do_not_get_in() -> None:
    """Krum's distances and the norm do not see them, so they must not ride along."""
    updates = some(7)
    honest = {n: u for n, u in updates.items() if n != "h03"}
    for update in updates.values():
        update["conv.weight"] = np.full((3, 2, 2), 0.5, np.float32)
    updates["h03"]["norm.running_var"] = np.full(3, 1e30, np.float32)
    updates["h03"]["norm.running_mean"] = np.full(3, -1e30, np.float32)
    updates["h03"]["norm.num_batches_tracked"] = np.array(2**40, np.int64)
    for name in ROBUST:
        got = combined(quorum(name, 7), updates)
        for array in ("norm.running_var", "norm.running_mean", "norm.num_batches_tracked"):
            rows = np.stack([u[array] for u in honest.values()])
            assert (got[array] >= rows.min(axis=0)).all(), (name, array)
            assert (got[array] <= rows.max(axis=0) * (1 + 1e-6)).all(), (name, array)


def test_distances_are_not_lost_beside_a_huge_update() -> None:
    """|a|² − 2ab + |b|² would round the honest ones' distances away."""
    updates = {f"h{k}": {"w": np.full(4, 1e8 + k, np.float64)} for k in range(6)}
    updates["h6"] = {"w": np.full(4, 1e12)}
    chosen = combined(quorum("krum", 7), updates)["w"][0] - 1e8
    # n = 7, f = 1: four neighbours; 2 and 3 have 1 + 1 + 4 + 4 (then 9), the first name wins
    assert chosen == 2


@pytest.mark.parametrize("name", ROBUST)
def test_blocks_are_put_together_as_they_were(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from federation.strategies import _single_updates

    whole = combined(quorum(name, 7), some(7))
    monkeypatch.setattr(_single_updates, "_BLOCK", 5)
    cut = combined(quorum(name, 7), some(7))
    same(whole, cut)


@pytest.mark.parametrize(("name", "value"), itertools.product(ROBUST, [np.nan, np.inf, -np.inf]))
def test_not_a_number_never_passes(name: str, value: float) -> None:
    updates = some(7)
    updates["h02"]["norm.weight"][1] = value
    with pytest.raises(NotCombined, match="h02"):
        combined(quorum(name, 7), updates)


def test_a_rule_for_the_mean_combines_nothing() -> None:
    with pytest.raises(ValueError, match="works on the mean"):
        combine(rule("fedavg"), some(3), dict.fromkeys(some(3), 1.0), told())
