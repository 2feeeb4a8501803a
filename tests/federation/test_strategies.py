"""Each rule against two steps computed by hand, and FedAvg and FedAvgM against Flower's own."""

from __future__ import annotations

import math

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from flwr.serverapp import strategy as flower

from federation import strategies
from federation.schema import ConfigError, Experiment, parse
from server_app.compose import choices
from tests.federation.test_schema import EXPERIMENT

W, FIRST, SECOND = 1.0, 0.5, -0.25  # one weight, and its mean updates in two rounds


def rule(name: str, **options: float) -> strategies.Strategy:
    content = EXPERIMENT | {"strategy": {"name": name, **options}}
    if name == "fedprox":
        content["training"] = EXPERIMENT["training"] | {"proximal_mu": 0.1}
    return strategies.build(parse(Experiment, content))


def two_steps(strategy: strategies.Strategy) -> tuple[float, float]:
    model, state = {"w": np.array([W])}, {}
    seen = []
    for update in (FIRST, SECOND):
        model, state = strategy.step(model, {"w": np.array([update])}, state)
        seen.append(float(model["w"][0]))
    return seen[0], seen[1]


def test_fedavg_and_fedprox_add_the_mean() -> None:
    for name in ("fedavg", "fedprox"):
        assert two_steps(rule(name)) == (1.5, 1.25)
        assert two_steps(rule(name, server_learning_rate=0.5)) == (1.25, 1.125)


def test_fedavgm() -> None:
    # v1 = .5, w1 = 1.5; v2 = .9·.5 − .25 = .2, w2 = 1.7
    assert two_steps(rule("fedavgm")) == pytest.approx((1.5, 1.7))


def adaptive(
    second_moment: list[float], rate: float = 0.1, tau: float = 0.01
) -> tuple[float, float]:
    m1 = 0.1 * FIRST
    m2 = 0.9 * m1 + 0.1 * SECOND
    w1 = W + rate * m1 / (math.sqrt(second_moment[0]) + tau)
    return w1, w1 + rate * m2 / (math.sqrt(second_moment[1]) + tau)


@pytest.mark.parametrize(
    ("name", "second_moment"),
    [
        ("fedadagrad", lambda v, square: v + square),
        ("fedadam", lambda v, square: 0.99 * v + 0.01 * square),
        ("fedyogi", lambda v, square: v - 0.01 * square * math.copysign(1, v - square)),
    ],
)
def test_adaptive_rules(name: str, second_moment) -> None:  # type: ignore[no-untyped-def]
    v1 = second_moment(0.01**2, FIRST**2)
    v2 = second_moment(v1, SECOND**2)
    strategy = rule(name, server_learning_rate=0.1, beta_1=0.9, beta_2=0.99, tau=0.01)
    assert two_steps(strategy) == pytest.approx(adaptive([v1, v2]), rel=1e-12)


def test_yogi_shrinks_the_second_moment_only_additively() -> None:
    """Where Δ² < v Yogi subtracts (1 − β₂)·Δ², Adam a share of v: the rules must differ there."""
    small = {"w": np.array([1e-4])}
    state = {"m/w": np.array([0.0]), "v/w": np.array([1.0])}
    _, yogi = rule("fedyogi").step({"w": np.array([W])}, small, state)
    _, adam = rule("fedadam").step({"w": np.array([W])}, small, state)
    assert yogi["v/w"][0] == pytest.approx(1.0 - 0.01 * 1e-8, abs=1e-12)
    assert adam["v/w"][0] == pytest.approx(0.99, abs=1e-9)


def test_fedavgm_is_flowers() -> None:
    """Flower's rule sees models, ours updates: the same two rounds must give the same weights."""
    theirs = flower.FedAvgM(server_learning_rate=0.7, server_momentum=0.9)
    ours = rule("fedavgm", server_learning_rate=0.7, server_momentum=0.9)
    rng = np.random.default_rng(0)
    model, state = {"w": rng.normal(size=5)}, {}
    theirs.current_arrays = ArrayRecord({"w": Array(model["w"])})
    for _ in range(3):
        update = {"w": rng.normal(size=5)}
        local = ArrayRecord({"w": Array(model["w"] + update["w"])})
        expected = flower_step(theirs, local)
        model, state = ours.step(model, update, state)
        np.testing.assert_allclose(model["w"], expected, rtol=1e-6)


def flower_step(theirs: flower.FedAvgM, local: ArrayRecord) -> np.ndarray:
    """FedAvgM's aggregation for one reply, through Flower's own message path."""
    from flwr.app import Message, MetricRecord, RecordDict

    question = Message(RecordDict(), dst_node_id=1, message_type="train")
    question.metadata.__dict__["_message_id"] = "1"
    content = RecordDict({"arrays": local, "metrics": MetricRecord({"num-examples": 1})})
    aggregated, _ = theirs.aggregate_train(1, [Message(content, reply_to=question)])
    assert aggregated is not None
    theirs.current_arrays = aggregated
    return aggregated["w"].numpy()


def test_every_strategy_has_a_config_and_the_other_way_round() -> None:
    from federation import registry

    assert choices("strategy") == registry.names(strategies)


def test_fedprox_without_its_term_is_refused_with_the_way_out() -> None:
    content = EXPERIMENT | {"strategy": {"name": "fedprox"}}
    with pytest.raises(ConfigError, match=r"training\.proximal_mu.*strategy=fedavg"):
        strategies.build(parse(Experiment, content))
