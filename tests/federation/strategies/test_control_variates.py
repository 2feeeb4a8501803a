"""SCAFFOLD and FedDyn through the real step and the real local loop, against their papers and optima."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from client_app.training import local, loop
from client_app.training.local import Correction, Worked
from federation import models, strategies
from federation.messages import Arrays
from federation.schema import Codec, Component, ConfigError, Experiment, PatientDP, Training
from federation.strategies import Turn
from tests.client_app.training.test_loop import _regression
from tests.federation.strategies.rounds import Array, described

PARAMETERS = frozenset({"weight", "bias"})
RATE, STEPS = 0.1, 10
TRAINING = {"local_steps": STEPS, "learning_rate": RATE}


@dataclass(frozen=True)
class LeastSquares:
    """½·mean (x·w + b − y)², of a hospital's own points; w and b as one vector."""

    x: Array
    y: Array

    @classmethod
    def drawn(cls, seed: int, points: int) -> LeastSquares:
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(points, 2)) * rng.uniform(0.5, 1.5, 2) + rng.normal(size=2) / 2
        return cls(x, x @ rng.normal(size=2) * 2 + rng.normal() + rng.normal(size=points) / 10)

    @property
    def normal(self) -> tuple[Array, Array]:
        """H and v of the gradient H·w − v."""
        x = np.hstack([self.x, np.ones((len(self.x), 1))])
        return x.T @ x / len(x), x.T @ self.y / len(x)

    def gradient(self, w: Array) -> Array:
        hessian, target = self.normal
        gradient: Array = hessian @ w - target
        return gradient

    def items(self) -> list[dict[str, Tensor]]:
        return [
            {"image": torch.tensor(x).float(), "label": torch.tensor(y).float()}
            for x, y in zip(self.x, self.y, strict=True)
        ]


# of unequal sizes, and each with an optimum of its own
FOUR = {
    name: LeastSquares.drawn(seed, points)
    for seed, (name, points) in enumerate({"a": 3, "b": 9, "c": 5, "d": 6}.items())
}


def optimum(of: Mapping[str, LeastSquares], decay: float = 0.0) -> Array:
    """Of the mean loss, each hospital counting the same."""
    sides = [hospital.normal for hospital in of.values()]
    hessian = np.mean([h for h, _ in sides], axis=0) + decay * np.eye(3)
    at: Array = np.linalg.solve(hessian, np.mean([v for _, v in sides], axis=0))
    return at


def everybody(round_: int) -> tuple[str, ...]:
    return tuple(FOUR)


def some(round_: int) -> tuple[str, ...]:
    """About half of them, and at times one alone."""
    rng = np.random.default_rng(round_)
    present = tuple(name for name in FOUR if rng.random() < 0.5)
    return present or ("b",)


def vector(arrays: Arrays) -> Array:
    return np.concatenate([arrays["weight"][0], arrays["bias"]]).astype(np.float64)


@dataclass
class Ours:
    """Rounds as coordinator and hospitals do them, on arrays in memory.

    Attributes:
        cut: by hospital, the steps that its policy leaves.
        loop: the hospitals' own, which has a millisecond's work around each step; else the same
            optimiser on the same gradients.
        kept: by hospital, what `LocalState` would hold.
        walk: the model after each round.
    """

    experiment: Experiment
    hospitals: Mapping[str, LeastSquares] = field(default_factory=lambda: FOUR)
    loop: bool = False
    cut: Mapping[str, int] = field(default_factory=dict)
    kept: dict[str, Arrays] = field(default_factory=dict)
    walk: list[Array] = field(default_factory=list)
    memory: Arrays = field(default_factory=dict)

    def go(self, rounds: int, present: Callable[[int], Sequence[str]] = everybody) -> Array:
        self.network = nn.Linear(2, 1)
        model: Arrays = {
            "weight": np.array([[3.0, -2.0]], np.float32),
            "bias": np.array([1.0], np.float32),
        }
        self.memory = strategies.begin(self.experiment, model, PARAMETERS)
        strategy = strategies.build(self.experiment)
        for number in range(1, rounds + 1):
            names = present(number)
            turn = Turn(number, len(names) / len(self.hospitals), self.experiment.training)
            updates = [self._work(name, model, turn.learning_rate) for name in names]
            mean = {name: np.mean([u[name] for u in updates], axis=0) for name in model}
            model, self.memory = strategies.move(
                strategy, model, mean, self.memory, PARAMETERS, turn
            )
            self.walk.append(vector(model))
        return self.walk[-1]

    def _work(self, name: str, model: Arrays, rate: float) -> Arrays:
        own, training = self.hospitals[name], self.experiment.training
        for array, received in models.arrays_of(self.network).items():
            received[...] = model[array]
        part = local.build(
            self.experiment,
            self.network,
            self.kept.get(name, {}),
            strategies.sent_down(self.memory),
        )
        steps = self.cut.get(name, training.local_steps)
        cut = training.model_copy(update={"local_steps": steps, "batch_size": len(own.x)})
        if self.loop:
            loop.train(
                self.network,
                _regression(),
                own.items(),
                cut,
                device=torch.device("cpu"),
                seed=1,
                learning_rate=rate,
                correct=part.correct,
            )
        else:
            descend(self.network, own, cut, rate, part.correct)
        after = {n: array.copy() for n, array in models.arrays_of(self.network).items()}
        update = {n: array - model[n] for n, array in after.items()}
        if part.remember is not None:
            self.kept[name] = part.remember(Worked(update, after, {}, steps, rate))
        return update


def descend(
    network: nn.Linear,
    own: LeastSquares,
    training: Training,
    rate: float,
    correct: Correction | None,
) -> None:
    optimizer = loop.make_optimizer(network, training, rate)
    received = vector(models.arrays_of(network))
    for _ in range(training.local_steps):
        at = vector(models.arrays_of(network))
        slope = own.gradient(at) + training.proximal_mu * (at - received)
        gradient = torch.from_numpy(slope).float()
        network.weight.grad, network.bias.grad = gradient[None, :2].clone(), gradient[2:].clone()
        if correct is not None:
            loop.add_corrections(network, correct)
        optimizer.step()


def ours(name: str, training: Mapping[str, Any] | None = None, **options: Any) -> Ours:
    return Ours(described(name, TRAINING | dict(training or {}), **options))


# --- the papers, on vectors, with all that they have hospitals send ------------------------------


def scaffold_as_published(rounds: int, present: Callable[[int], Sequence[str]]) -> list[Array]:
    """Karimireddy et al. 2020, algorithm 1, option II, η_g = 1: (Δy, Δc) are communicated."""
    x, c = np.array([3.0, -2.0, 1.0]), np.zeros(3)
    clients = {name: np.zeros(3) for name in FOUR}
    walk = []
    for number in range(1, rounds + 1):
        delta_y, delta_c = [], []
        for name in present(number):
            y = x.copy()
            for _ in range(STEPS):
                y = y - RATE * (FOUR[name].gradient(y) - clients[name] + c)
            plus = clients[name] - c + (x - y) / (STEPS * RATE)
            delta_y.append(y - x)
            delta_c.append(plus - clients[name])
            clients[name] = plus
        x = x + np.mean(delta_y, axis=0)
        c = c + len(delta_c) / len(FOUR) * np.mean(delta_c, axis=0)
        walk.append(x)
    return walk


def feddyn_as_published(
    rounds: int, present: Callable[[int], Sequence[str]], alpha: float
) -> list[Array]:
    """Acar et al. 2021, algorithm 1: each device sends θₖ; the argmin is STEPS of gradient descent."""
    theta, h = np.array([3.0, -2.0, 1.0]), np.zeros(3)
    gradients = {name: np.zeros(3) for name in FOUR}  # ∇L_k(θ_k)
    walk = []
    for number in range(1, rounds + 1):
        sent = {}
        for name in present(number):
            at = theta.copy()
            for _ in range(STEPS):
                slope = FOUR[name].gradient(at) - gradients[name] + alpha * (at - theta)
                at = at - RATE * slope
            gradients[name] = gradients[name] - alpha * (at - theta)
            sent[name] = at
        h = h - alpha / len(FOUR) * sum(at - theta for at in sent.values())
        theta = np.mean(list(sent.values()), axis=0) - h / alpha
        walk.append(theta)
    return walk


@pytest.mark.parametrize("present", [everybody, some])
def test_scaffold_is_the_papers_with_nothing_more_sent_up(present: Any) -> None:
    mine = ours("scaffold")
    mine.loop = True
    mine.go(8, present)
    for at, published in zip(mine.walk, scaffold_as_published(8, present), strict=True):
        np.testing.assert_allclose(at, published, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("present", [everybody, some])
def test_feddyn_is_the_papers(present: Any) -> None:
    mine = ours("feddyn", alpha=0.5)
    mine.loop = True
    mine.go(8, present)
    for at, published in zip(mine.walk, feddyn_as_published(8, present, 0.5), strict=True):
        np.testing.assert_allclose(at, published, rtol=1e-4, atol=1e-5)


# --- fixed points ---------------------------------------------------------------------------------

FEW = {"a": 10, "b": 2, "c": 1, "d": 6}  # steps that policies leave


@pytest.mark.parametrize("present", [everybody, some])
@pytest.mark.parametrize(
    ("name", "options"), [("scaffold", {}), ("feddyn", {"alpha": 0.5})], ids=str
)
def test_they_reach_the_pooled_optimum(name: str, options: Any, present: Any) -> None:
    at = ours(name, **options).go(150, present)
    np.testing.assert_allclose(at, optimum(FOUR), atol=2e-4)


def test_fedavg_does_not() -> None:
    assert np.linalg.norm(ours("fedavg").go(150) - optimum(FOUR)) > 0.05


@pytest.mark.parametrize("name", ["scaffold", "feddyn"])
@pytest.mark.parametrize("present", [everybody, some])
def test_they_reach_it_where_policies_cut_steps(name: str, present: Any) -> None:
    mine = ours(name, **({"alpha": 0.5} if name == "feddyn" else {}))
    mine.cut = FEW
    np.testing.assert_allclose(mine.go(250, present), optimum(FOUR), atol=2e-3)
    biased = ours("fedavg")
    biased.cut = FEW
    assert np.linalg.norm(biased.go(150) - optimum(FOUR)) > 0.1


@pytest.mark.parametrize(
    "training",
    [
        {"momentum": 0.8, "learning_rate": 0.02},
        {"proximal_mu": 0.5},
        {"learning_rate_decay": 0.99},
        {"weight_decay": 0.1},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["scaffold", "feddyn"])
def test_they_reach_it_with_what_sgd_may_have(name: str, training: dict[str, float]) -> None:
    mine = ours(name, training, **({"alpha": 0.5} if name == "feddyn" else {}))
    np.testing.assert_allclose(
        mine.go(200, some), optimum(FOUR, training.get("weight_decay", 0.0)), atol=1e-3
    )


def test_feddyn_takes_any_optimiser() -> None:
    """Adam's steps do not shrink on their own: a decaying rate, and a wider mark."""
    changes = {"optimizer": "adam", "learning_rate": 0.05, "learning_rate_decay": 0.97}
    near = ours("feddyn", changes, alpha=0.5).go(150)
    assert np.linalg.norm(near - optimum(FOUR)) < 0.02


def test_a_hospital_that_never_comes_does_not_pull() -> None:
    three = {name: hospital for name, hospital in FOUR.items() if name != "d"}
    for name in ("scaffold", "feddyn"):
        mine = ours(name, **({"alpha": 0.5} if name == "feddyn" else {}))
        at = mine.go(250, lambda number: tuple(three))
        np.testing.assert_allclose(at, optimum(three), atol=2e-3)


# --- what both sides keep -------------------------------------------------------------------------


def test_the_coordinator_has_the_mean_of_what_hospitals_keep() -> None:
    for name, prefix in (("scaffold", "down/"), ("feddyn", "")):
        mine = ours(name, {"learning_rate_decay": 0.95})
        mine.cut = FEW
        mine.go(15, some)
        for parameter in PARAMETERS:
            mean = sum(kept[parameter] for kept in mine.kept.values()) / len(FOUR)
            np.testing.assert_allclose(mine.memory[prefix + parameter], mean, atol=1e-5)
            assert np.abs(mean).max() > 1e-3


def test_with_one_hospital_scaffold_is_fedavg() -> None:
    alone = {"a": FOUR["a"]}
    walks = []
    for name in ("scaffold", "fedavg"):
        mine = ours(name)
        mine.hospitals, mine.loop = alone, True
        mine.go(8, lambda number: ("a",))
        walks.append(mine.walk)
    np.testing.assert_allclose(walks[0], walks[1], atol=1e-6)
    assert (walks[0][0] == walks[1][0]).all()  # nothing is corrected yet: the same bits


def test_the_server_learning_rate_of_1_half_goes_half_way() -> None:
    whole, half = ours("scaffold"), ours("scaffold", server_learning_rate=0.5)
    whole.go(1)
    half.go(1)
    start = np.array([3.0, -2.0, 1.0])
    np.testing.assert_allclose(half.walk[0] - start, (whole.walk[0] - start) / 2, rtol=1e-5)
    np.testing.assert_array_equal(half.memory["down/weight"], whole.memory["down/weight"])


def test_corrections_kept_of_another_network_are_refused() -> None:
    for name in ("scaffold", "feddyn"):
        of = described(name, TRAINING)
        down = {"down/weight": np.zeros((1, 2)), "down/bias": np.zeros(1)}
        with pytest.raises(ConfigError, match="another network"):
            local.build(of, nn.Linear(2, 1), {"weight": np.zeros((1, 3), np.float32)}, down)


# --- what is refused ------------------------------------------------------------------------------

INT8 = Component(name="integers", **{"bits": 8})


@pytest.mark.parametrize("name", ["scaffold", "feddyn"])
@pytest.mark.parametrize(
    ("changes", "way_out"),
    [
        ({"codec": Codec(sparsify=Component(name="rand_k"))}, "codec=int8"),
        ({"codec": Codec(sparsify=Component(name="top_k"))}, "codec=int8"),
        ({"codec": Codec(exchange=Component(name="adapters"))}, "codec=head"),
        ({"codec": Codec(exchange=Component(name="all_but_normalisation"))}, "codec=head"),
        ({"codec": Codec(quantise=INT8, error_feedback=False)}, "codec.error_feedback=true"),
    ],
    ids=str,
)
def test_what_would_part_the_sums_is_refused(name: str, changes: Any, way_out: str) -> None:
    of = described(name, TRAINING)
    with pytest.raises(ConfigError, match=way_out):
        strategies.build(of.model_copy(update=changes))
    with pytest.raises(ConfigError, match=r"participation\.weighting=equal"):
        strategies.build(described(name, TRAINING, weighting="examples"))


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_scaffold_is_refused_with_adam(optimizer: str) -> None:
    with pytest.raises(ConfigError, match=r"training\.optimizer=sgd"):
        strategies.build(described("scaffold", {"optimizer": optimizer}))


@pytest.mark.parametrize("name", ["scaffold", "feddyn"])
def test_the_others_are_not(name: str) -> None:
    of = described(name, TRAINING)
    for changes in (
        {"codec": Codec(quantise=INT8)},
        {"codec": Codec(exchange=Component(name="head"), quantise=INT8)},
        {"privacy": PatientDP(noise_multiplier=1.0)},
    ):
        strategies.build(of.model_copy(update=changes))
