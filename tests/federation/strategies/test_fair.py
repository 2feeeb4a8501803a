"""Rules for fairness and for unequal work: each against an independent optimum on convex problems."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from federation.messages import Arrays, Trained
from federation.strategies import NotCombined, Told, combine, fednova
from federation.strategies.afl import project
from server_app.aggregation.plain import weighted_mean
from tests.federation.strategies.rounds import (
    Array,
    Quadratic,
    federate,
    rule,
    telling,  # noqa: F401
    told,
)

# Three alike and one that is far away and hard: what a mean forgets.
FOUR = {
    "a": Quadratic(np.array([0.0, 0.0]), np.array([1.0, 1.0])),
    "b": Quadratic(np.array([0.5, 0.0]), np.array([1.0, 0.5])),
    "c": Quadratic(np.array([0.0, 0.5]), np.array([0.5, 1.0])),
    "d": Quadratic(np.array([3.0, 2.0]), np.array([1.0, 2.0])),
}
START = np.array([5.0, -4.0])


def best(objective: object, start: Array = START) -> Array:
    found = minimize(
        objective,
        start,
        method="Nelder-Mead",
        options={"xatol": 1e-9, "fatol": 1e-12, "maxiter": 20000, "maxfev": 20000},
    )  # type: ignore[call-overload]
    at: Array = found.x
    return at


def worst(w: Array) -> float:
    return max(f.loss(w) for f in FOUR.values())


def updates(count: int = 4, seed: int = 0) -> dict[str, Arrays]:
    rng = np.random.default_rng(seed)
    return {
        f"h{k}": {
            "w": rng.normal(size=(3, 2)).astype(np.float32),
            "norm.running_mean": rng.normal(size=2).astype(np.float32),
            "norm.num_batches_tracked": np.array(k + 3, np.int64),
        }
        for k in reversed(range(count))
    }


def fedavg(of: dict[str, Arrays], weights: dict[str, float]) -> Arrays:
    trained = {name: Trained(update, 1, examples=int(weights[name])) for name, update in of.items()}
    return weighted_mean(trained, "examples")


WEIGHTS = {"h0": 1.0, "h1": 5.0, "h2": 2.0, "h3": 4.0}
LOSSES = {"h0": 0.3, "h1": 2.0, "h2": 0.7, "h3": 0.0}
ALL = {
    "loss": LOSSES,
    "loss_before": LOSSES,
    "loss_after": LOSSES,
    "steps": dict.fromkeys(LOSSES, 3),
}
FAIR = ("qfedavg", "afl", "fednova", "feddg_ga")


def close(one: Arrays, other: Arrays) -> None:
    for name in other:
        assert one[name].dtype == other[name].dtype
        np.testing.assert_allclose(one[name], other[name], rtol=1e-6, atol=1e-7)


# --- FedAvg, where it must be --------------------------------------------------------------------


@pytest.mark.usefixtures("telling")
@pytest.mark.parametrize(
    ("name", "options"), [("qfedavg", {"q": 0}), ("afl", {}), ("fednova", {}), ("feddg_ga", {})]
)
def test_where_nothing_is_unequal_it_is_fedavg(name: str, options: dict[str, float]) -> None:
    """q = 0, λ and a in the first round, and equal local steps."""
    got, _ = combine(
        rule(name, least=1, **options), updates(), WEIGHTS, told(training={"local_steps": 3}, **ALL)
    )
    close(got, fedavg(updates(), WEIGHTS))


@pytest.mark.usefixtures("telling")
@pytest.mark.parametrize("name", ["afl", "fednova", "feddg_ga"])
def test_one_hospital_is_fedavg(name: str) -> None:
    one, memory = updates(1), {}
    for round_ in (1, 2, 3):
        figures = told(round_, training={"local_steps": 3}, memory=memory, **ALL)
        got, memory = combine(rule(name, least=1), one, WEIGHTS, figures)
        close(got, fedavg(one, WEIGHTS))


@pytest.mark.usefixtures("telling")
@pytest.mark.parametrize("name", FAIR)
def test_the_order_of_hospitals_does_not_change_a_bit(name: str) -> None:
    strategy, memory = rule(name, least=1), {}
    for round_ in (1, 2):
        figures = told(round_, training={"local_steps": 3}, memory=memory, **ALL)
        one, after = combine(strategy, updates(), WEIGHTS, figures)
        shuffled = {n: updates()[n] for n in ("h2", "h0", "h3", "h1")}
        other, again = combine(strategy, shuffled, dict(reversed(WEIGHTS.items())), figures)
        assert {n: a.tobytes() for n, a in one.items()} == {n: other[n].tobytes() for n in one}
        assert {n: a.tobytes() for n, a in after.items()} == {n: again[n].tobytes() for n in after}
        memory = after


# --- q-FedAvg ------------------------------------------------------------------------------------


def paper_q(of: dict[str, Arrays], losses: dict[str, float], q: float, lipschitz: float) -> Array:
    """Li et al. 2020, algorithm 2, line by line: the model's change, of equal hospitals."""
    deltas, h = [], []
    for name in of:
        loss = losses[name]
        gradient = lipschitz * -of[name]["w"].astype(np.float64)
        deltas.append(loss**q * gradient)
        h.append(q * loss ** (q - 1) * float(np.sum(gradient**2)) + lipschitz * loss**q)
    change: Array = -sum(deltas) / sum(h)
    return change


@pytest.mark.parametrize("q", [0.0, 0.2, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("lipschitz", [None, 1.0, 30.0])
def test_qfedavg_is_the_papers_algorithm(q: float, lipschitz: float | None) -> None:
    losses = LOSSES | {"h3": 1.1}
    equal = dict.fromkeys(losses, 1.0)
    got, memory = combine(
        rule("qfedavg", least=1, q=q, lipschitz=lipschitz),
        updates(),
        equal,
        told(loss=losses, training={"learning_rate": 0.1}),
    )
    expected = paper_q(updates(), losses, q, lipschitz or 10.0)
    np.testing.assert_allclose(got["w"], expected, rtol=1e-5)
    assert memory == {}
    pull = {name: losses[name] ** q for name in losses}
    for name in ("norm.running_mean", "norm.num_batches_tracked"):
        mean = sum(pull[h] * u[name] for h, u in updates().items()) / sum(pull.values())
        np.testing.assert_allclose(got[name], mean, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("q", [0.5, 1.0, 3.0])
def test_qfedavg_finds_the_minimum_of_its_objective(q: float) -> None:
    weights = {"a": 3.0, "b": 1.0, "c": 2.0, "d": 1.0}
    parts = {name: w / 7 for name, w in weights.items()}
    got, _ = federate(
        rule("qfedavg", least=1, q=q),
        FOUR,
        START,
        rounds=1500,
        rate=0.2,
        weights=weights,
    )
    expected = best(lambda w: sum(parts[n] * f.loss(w) ** (q + 1) for n, f in FOUR.items()))
    np.testing.assert_allclose(got, expected, atol=2e-3)


def test_more_q_serves_the_worst_hospital_better() -> None:
    losses = [
        worst(federate(rule("qfedavg", least=1, q=q), FOUR, START, rounds=1000, rate=0.2)[0])
        for q in (0.0, 0.5, 2.0, 8.0)
    ]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.75 * losses[0]


@settings(max_examples=100, deadline=None)
@given(
    losses=st.lists(st.floats(-1e300, 1e300), min_size=4, max_size=4),
    q=st.floats(0, 20),
)
def test_no_loss_makes_qfedavg_not_a_number(losses: list[float], q: float) -> None:
    """And no convex combination is left: the step is never longer than the longest update."""
    of = updates()
    figures = told(loss=dict(zip(sorted(of), losses, strict=True)))
    got, _ = combine(rule("qfedavg", least=1, q=q), of, WEIGHTS, figures)
    longest = max(np.linalg.norm(u["w"]) for u in of.values())
    assert np.linalg.norm(got["w"]) <= longest * (1 + 1e-6)
    rows = np.stack([u["norm.running_mean"] for u in of.values()])
    assert (got["norm.running_mean"] >= rows.min(axis=0) - 1e-6).all()
    assert (got["norm.running_mean"] <= rows.max(axis=0) + 1e-6).all()


def test_the_loss_of_the_received_model_comes_before_that_of_the_steps() -> None:
    exact, along = {"h0": 1.0, "h1": 2.0}, {"h0": 0.5, "h1": 0.6}
    weights = {"h0": 1.0, "h1": 1.0}
    assert told(loss=along, loss_before=exact).received_loss(weights) == exact
    assert told(loss=along, loss_before={"h0": 1.0}).received_loss(weights) == along
    with pytest.raises(NotCombined, match="h1 did not tell"):
        told(loss={"h0": 0.5}).received_loss(weights)


# --- AFL -----------------------------------------------------------------------------------------


def test_afl_finds_the_model_whose_worst_hospital_is_best() -> None:
    """The averaged iterates of stochastic AFL come near min_w max_k F_k (its theorem 4)."""
    got, memory = federate(
        rule("afl", least=1, mixture_learning_rate=0.02), FOUR, START, rounds=4000, rate=0.05
    )
    expected = best(lambda w: worst(w))
    assert worst(got) == pytest.approx(worst(expected), rel=0.02)
    np.testing.assert_allclose(got, expected, atol=0.05)
    assert sum(float(part) for part in memory.values()) == pytest.approx(1)
    assert set(memory) == set(FOUR)


def test_the_mixture_moves_after_the_model() -> None:
    """Both steps of a round use w and λ from before it."""
    strategy = rule("afl", least=1, mixture_learning_rate=1.0)
    of = {"h0": {"w": np.array([1.0])}, "h1": {"w": np.array([0.0])}}
    losses, weights = {"h0": 0.2, "h1": 0.0}, {"h0": 1.0, "h1": 1.0}
    first, memory = combine(strategy, of, weights, told(1, loss=losses))
    assert first["w"] == 0.5
    assert (memory["h0"], memory["h1"]) == (pytest.approx(0.6), pytest.approx(0.4))
    second, _ = combine(strategy, of, weights, told(2, loss=losses, memory=memory))
    assert second["w"] == pytest.approx(0.6)


def test_who_is_absent_keeps_its_part_and_who_is_new_gets_one() -> None:
    strategy = rule("afl", least=1, mixture_learning_rate=1.0)
    memory = {"h0": np.array(0.2), "h1": np.array(0.5), "h2": np.array(0.3)}
    one = {"w": np.array([1.0])}
    _, after = combine(
        strategy, {"h0": one, "h2": one}, dict.fromkeys(("h0", "h2"), 1.0),
        told(2, loss={"h0": 0.1, "h2": 0.1}, memory=memory),
    )  # fmt: skip
    assert {n: float(a) for n, a in after.items()} == pytest.approx(
        {"h0": 0.2, "h1": 0.5, "h2": 0.3}
    )
    _, after = combine(strategy, {"h3": one}, {"h3": 1.0}, told(3, loss={"h3": 9.0}, memory=memory))
    assert {n: float(a) for n, a in after.items()} == pytest.approx(
        {"h0": 0.15, "h1": 0.375, "h2": 0.225, "h3": 0.25}
    )
    nothing = {"h0": np.array(0.0), "h1": np.array(1.0)}
    got, after = combine(
        strategy, {"h0": one}, {"h0": 1.0}, told(2, loss={"h0": 5.0}, memory=nothing)
    )
    assert got["w"] == 1.0
    assert float(after["h1"]) == 1.0


@settings(max_examples=150, deadline=None)
@given(
    values=st.lists(st.floats(-5, 5), min_size=1, max_size=8),
    mass=st.floats(0.01, 1),
    other=st.lists(st.floats(0.001, 1), min_size=8, max_size=8),
)
def test_the_projection_is_the_nearest_point(
    values: list[float], mass: float, other: list[float]
) -> None:
    """No other point of the simplex is nearer: (v − p)·(x − p) ≤ 0 for all x of it."""
    named = {f"h{k}": value for k, value in enumerate(values)}
    got = project(named, mass)
    p = np.array([got[name] for name in named])
    v = np.array(values)
    assert p.min() >= 0
    assert p.sum() == pytest.approx(mass)
    corners = np.eye(len(v)) * mass
    inside = np.array(other[: len(v)]) / sum(other[: len(v)]) * mass
    for x in [*corners, inside]:
        assert (v - p) @ (x - p) <= 1e-9


@given(loss=st.floats(1e3, 1e300))
def test_a_huge_loss_takes_all_of_the_mixture_and_breaks_nothing(loss: float) -> None:
    got = project({"h0": 0.5 + loss, "h1": 0.5}, 1.0)
    assert got == {"h0": 1.0, "h1": 0.0}


# --- FedNova -------------------------------------------------------------------------------------

TAUS = {"a": 1, "b": 2, "c": 4, "d": 30}


def optimum(weights: dict[str, float]) -> Array:
    """Of the weighted sum of quadratics, in closed form."""
    a = sum(weights[n] * f.a for n, f in FOUR.items())
    at: Array = sum(weights[n] * f.a * f.c for n, f in FOUR.items()) / a
    return at


@pytest.mark.usefixtures("telling")
@pytest.mark.parametrize(
    "training",
    [{}, {"momentum": 0.9}, {"proximal_mu": 5.0}, {"momentum": 0.5, "proximal_mu": 1.0}],
)
def test_fednova_removes_the_inconsistency_of_unequal_steps(training: dict[str, float]) -> None:
    """FedAvg's fixed point is that of a sum weighted by steps; FedNova's the optimum, as η → 0."""
    weights = {"a": 3.0, "b": 1.0, "c": 2.0, "d": 1.0}
    ours = {
        rate: federate(
            rule("fednova", least=1),
            FOUR,
            START,
            rounds=round(3 / rate),
            rate=rate,
            steps=TAUS,
            weights=weights,
            training=training,
        )[0]
        for rate in (1e-2, 2e-3)
    }
    away = {rate: float(np.linalg.norm(w - optimum(weights))) for rate, w in ours.items()}
    reach = {n: fednova.reach(told(training=training).training, t, 2e-3) for n, t in TAUS.items()}
    skewed = optimum({n: weights[n] * reach[n] for n in weights})
    assert np.linalg.norm(skewed - optimum(weights)) > 1  # what FedAvg would come to
    assert away[2e-3] < 0.08 * np.linalg.norm(skewed - optimum(weights))
    assert away[2e-3] < 0.4 * away[1e-2]  # vanishes with η


@pytest.mark.parametrize("steps", [1, 2, 7, 40])
@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_reach_is_the_papers_norm(steps: int, momentum: float) -> None:
    """Wang et al. 2020, section 4: with momentum (τ − ρ(1−ρ^τ)/(1−ρ))/(1−ρ), with µ (1−(1−ηµ)^τ)/ηµ."""
    plain = told(training={"momentum": momentum}).training
    expected = (steps - momentum * (1 - momentum**steps) / (1 - momentum)) / (1 - momentum)
    assert fednova.reach(plain, steps, 0.1) == pytest.approx(expected)
    proximal = told(training={"proximal_mu": 2.0}).training
    assert fednova.reach(proximal, steps, 0.1) == pytest.approx((1 - 0.8**steps) / 0.2)


@pytest.mark.usefixtures("telling")
def test_fednova_averages_what_is_no_parameter() -> None:
    figures = told(training={"local_steps": 9}, steps={"h0": 1, "h1": 9, "h2": 3, "h3": 2})
    got, _ = combine(rule("fednova", least=1), updates(), WEIGHTS, figures)
    expected = fedavg(updates(), WEIGHTS)
    for name in ("norm.running_mean", "norm.num_batches_tracked"):
        np.testing.assert_allclose(got[name], expected[name], rtol=1e-6)
    assert not np.allclose(got["w"], expected["w"])
    for steps in (0, 10):
        with pytest.raises(NotCombined, match=r"more than training\.local_steps"):
            lying = told(training={"local_steps": 9}, steps=dict.fromkeys(WEIGHTS, steps))
            combine(rule("fednova", least=1), updates(), WEIGHTS, lying)


# --- FedDG-GA ------------------------------------------------------------------------------------


def papers_adjustment(
    a: list[float], gaps: list[float], round_: int, rounds: int, d: float
) -> list[float]:
    """Zhang et al. 2023, section 3.3, in plain Python."""
    mu = sum(gaps) / len(gaps)
    largest = max(abs(g - mu) for g in gaps)
    moved = [
        x + (g - mu) * (1 - round_ / rounds) * d / largest for x, g in zip(a, gaps, strict=True)
    ]
    clipped = [min(max(x, 0.0), 1.0) for x in moved]
    return [x / sum(clipped) for x in clipped]


@pytest.mark.usefixtures("telling")
def test_feddg_ga_is_the_papers_rule_over_rounds() -> None:
    rng = np.random.default_rng(3)
    strategy, rounds, d = rule("feddg_ga", least=1, step_size=0.3), 8, 0.3
    equal = dict.fromkeys(WEIGHTS, 1.0)
    a, memory, last = [0.25] * 4, {}, None
    for round_ in range(1, rounds + 1):
        before = dict(zip(WEIGHTS, rng.uniform(0, 2, 4).tolist(), strict=True))
        after = dict(zip(WEIGHTS, rng.uniform(0, 1, 4).tolist(), strict=True))
        if last is not None:
            gaps = [before[n] - last[n] for n in WEIGHTS]
            a = papers_adjustment(a, gaps, round_, rounds, d)
        figures = told(round_, rounds, loss_before=before, loss_after=after, memory=memory)
        got, memory = combine(strategy, updates(), equal, figures)
        expected = sum(
            x * updates()[n]["w"].astype(np.float64) for x, n in zip(a, WEIGHTS, strict=True)
        )
        np.testing.assert_allclose(got["w"], expected, rtol=1e-5, atol=1e-7)
        assert [float(memory[f"weight/{n}"]) for n in WEIGHTS] == pytest.approx(a)
        last = after
    assert max(a) - min(a) > 0.1


@pytest.mark.usefixtures("telling")
def test_feddg_ga_gives_the_worst_hospital_more() -> None:
    got, memory = federate(
        rule("feddg_ga", least=1, step_size=0.2), FOUR, START, rounds=60, rate=0.1, steps=5
    )
    mean, _ = federate(
        rule("afl", least=1, mixture_learning_rate=1e-9), FOUR, START, rounds=60, rate=0.1, steps=5
    )
    assert worst(got) < 0.9 * worst(mean)
    weights = {n.removeprefix("weight/"): float(a) for n, a in memory.items() if "weight/" in n}
    assert max(weights, key=weights.__getitem__) == "d"
    assert sum(weights.values()) == pytest.approx(1)


@pytest.mark.usefixtures("telling")
def test_who_was_not_in_the_round_before_has_no_gap() -> None:
    strategy = rule("feddg_ga", least=1, step_size=0.2)
    memory = {
        "weight/h0": np.array(0.5), "weight/h1": np.array(0.3), "weight/h2": np.array(0.2),
        "loss_after/h0": np.array(0.1), "loss_after/h1": np.array(0.1),
    }  # fmt: skip
    one = {"w": np.array([1.0])}
    of = dict.fromkeys(("h0", "h1", "h2"), one)
    told_losses = {"h0": 0.1, "h1": 0.9, "h2": 50.0}
    _, after = combine(
        strategy,
        of,
        dict.fromkeys(of, 1.0),
        told(5, 10, loss_before=told_losses, loss_after=told_losses, memory=memory),
    )
    # d = 0.1, and h0 and h1 have 0.8 to share: 0.5 − 0.1 and 0.3 + 0.1
    assert {n: float(after[f"weight/{n}"]) for n in of} == pytest.approx(
        {"h0": 0.4, "h1": 0.4, "h2": 0.2}
    )
    assert {n for n in after if n.startswith("loss_after/")} == {f"loss_after/{n}" for n in of}


@pytest.mark.usefixtures("telling")
@settings(max_examples=60, deadline=None)
@given(losses=st.lists(st.floats(-1e307, 1e307), min_size=8, max_size=8))
def test_no_loss_makes_a_weight_not_a_number(losses: list[float]) -> None:
    names = sorted(WEIGHTS)
    memory: Arrays = {f"weight/{n}": np.array(0.25) for n in names}
    memory |= {f"loss_after/{n}": np.array(x) for n, x in zip(names, losses[:4], strict=True)}
    figures: Told = told(
        2, 10, loss_before=dict(zip(names, losses[4:], strict=True)),
        loss_after=dict.fromkeys(names, 0.0), memory=memory,
    )  # fmt: skip
    for name in ("feddg_ga", "afl"):
        mine = figures if name == "feddg_ga" else told(2, 10, loss=figures.loss_before)
        _, after = combine(rule(name, least=1), updates(), WEIGHTS, mine)
        parts = [float(a) for n, a in after.items() if "loss" not in n]
        assert min(parts) >= 0
        assert math.fsum(parts) == pytest.approx(1)


def test_the_learning_rate_is_the_rounds() -> None:
    """As at the hospital: q-FedAvg's L and FedNova's proximal term need it."""
    training = {
        "learning_rate": 0.8,
        "learning_rate_decay": 0.5,
        "proximal_mu": 2.0,
        "local_steps": 3,
    }
    assert told(1, training=training).learning_rate == 0.8
    assert told(4, training=training).learning_rate == pytest.approx(0.1)
