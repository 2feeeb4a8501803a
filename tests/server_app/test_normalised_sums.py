"""FedNova where sums are secret: hospitals divide their own update, and the sum says by how much."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client_app import masked_sum, plain_round
from federation import models, strategies, tasks
from federation.codec import chain
from federation.messages import Arrays, Phase, Trained, WireError
from federation.schema import Experiment
from federation.secure_aggregation import letters
from federation.secure_aggregation.weights import mean_of
from federation.strategies import Told
from federation.strategies import fednova as fednova_rule
from federation.strategies._single_updates import is_parameter
from server_app.aggregation.masked import SumUnusable
from tests.encrypted import CKKS, Lead, all_hold, encrypted, held
from tests.hospitals import MASKS, Hospitals, content, hospitals, train_quickly
from tests.masked import gather, kept, same

INT16: dict[str, Any] = {"quantise": {"name": "integers", "bits": 16}}
TRAINING: dict[str, Any] = {
    "optimizer": "sgd",
    "local_steps": 8,
    "batch_size": 4,
    "learning_rate": 0.05,
    "momentum": 0.5,
}
STEPS = {"east": 8, "hill": 1, "lake": 3}


@pytest.fixture(scope="module")
def _three(tmp_path_factory: pytest.TempPathFactory) -> Hospitals:
    made = hospitals(tmp_path_factory.mktemp("three"), 3, patients=(6, 8, 10))
    for name, most in STEPS.items():
        site = made.sites[name]
        policy = site.policy.model_copy(update={"most_local_steps": most})
        made.sites[name] = site.model_copy(update={"policy": policy})
    return made


@pytest.fixture
def three(_three: Hospitals, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hospitals]:
    train_quickly(monkeypatch)
    with _three.lent() as made:
        yield made


def fednova(**changes: Any) -> Experiment:
    base = {
        "strategy": {"name": "fednova"},
        "training": TRAINING,
        "codec": INT16,
        "evaluation": {"every": 1000},
    }
    return content(**(base | changes))


def in_the_open(made: Hospitals, of: Experiment) -> tuple[Arrays, Arrays]:
    """FedNova's and the plain mean, of what the hospitals trained, by the open rule."""
    work = {name: kept(made, name, of) for name in made.sites}
    updates = {name: update for name, (update, _) in work.items()}
    by_size = of.participation.weighting == "examples"
    weights = {name: float(count) if by_size else 1.0 for name, (_, count) in work.items()}
    told = Told(1, of.rounds, of.training, steps=STEPS)
    opened = strategies.build(of.model_copy(update={"secure_aggregation": None}))
    combined, _ = strategies.combine(opened, updates, weights, told)
    return combined, strategies.weighted_sum(updates, weights, sum(weights.values()))


def step_of(of: Experiment) -> float:
    """The codec's coarsest step in the first round."""
    network = models.build(of.model, tasks.build(of.task), seed=0)
    assert of.codec is not None
    scales = chain.build(of.codec, network, seed=of.seed).first_scales(of.training)
    return float(2.0 ** scales.max())


@pytest.mark.parametrize("weighting", ["equal", "examples"])
def test_the_masked_sum_is_fednova_in_the_open(weighting: str, three: Hospitals) -> None:
    """To the codec's step, with 8, 1 and 3 of 8 steps; statistics and counters are averaged."""
    of = fednova(weighting=weighting, secure_aggregation=MASKS)
    mean = gather(three, of, f"masked-{weighting}").mean
    assert mean is not None
    expected, averaged = in_the_open(three, of)
    step, apart = step_of(of), 0.0
    for name, array in expected.items():
        if array.dtype.kind == "f":
            np.testing.assert_allclose(mean[name], array, atol=2 * step, err_msg=name)
            away = np.abs(array - averaged[name]).max()
            apart = max(apart, float(away))
            assert is_parameter(name, array) or away < step
    assert apart > 20 * step  # which the mean is not


def test_rounds_of_it_are_those_in_the_open(
    three: Hospitals, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With error feedback, whose rest is kept as it was divided; of numbers that no scale cuts off."""
    quick = plain_round._train

    def by_steps(asked: Any, received: Any, patients: Any, part: Any) -> Trained:
        trained = quick(asked, received, patients, part)
        gone = fednova_rule.normaliser(asked.experiment.training, trained.steps or 0, 0.05)
        signs = {n: np.sign(a) * a.dtype.type(0.01) for n, a in trained.update.items()}
        return replace(trained, update=strategies.scale_parameters(signs, gone))

    monkeypatch.setattr(plain_round, "_train", by_steps)
    hidden = three.conduct(fednova(secure_aggregation=MASKS), "hidden", rounds=3)
    opened = three.conduct(fednova(), "opened", rounds=3)
    averaged = three.conduct(fednova(strategy={"name": "fedavg"}), "averaged", rounds=3)
    for name, array in opened.model.items():
        np.testing.assert_allclose(hidden.model[name], array, atol=1e-3, err_msg=name)
    assert max(np.abs(averaged.model[n] - a).max() for n, a in opened.model.items()) > 5e-3


def test_with_equal_steps_it_is_fedavg_to_the_bit(three: Hospitals) -> None:
    for name, site in three.sites.items():
        policy = site.policy.model_copy(update={"most_local_steps": 8})
        three.sites[name] = site.model_copy(update={"policy": policy})
    nova = three.conduct(fednova(secure_aggregation=MASKS), "equal", rounds=2)
    mean = fednova(strategy={"name": "fedavg"}, secure_aggregation=MASKS)
    same(nova.model, three.conduct(mean, "mean", rounds=2).model)


# --- encrypted ------------------------------------------------------------------------------------

needs_tenseal = pytest.mark.skipif(
    importlib.util.find_spec("tenseal") is None, reason="needs TenSEAL"
)
WHOLE = INT16 | {"down": "full"}


@needs_tenseal
def test_encrypted_is_masked(three: Hospitals) -> None:
    """The hospitals read the sum of what they divided by, and all move the model alike."""
    masked = fednova(codec=WHOLE, secure_aggregation=MASKS)
    done = three.conduct(masked, "like-masked", rounds=2)
    of = fednova(codec=WHOLE, secure_aggregation=CKKS)
    three.conduct(of, "encrypted", rounds=2)
    all_hold(three, of, "encrypted", done.model, 2)


@needs_tenseal
def test_who_missed_a_round_divides_it_like_the_others(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_quickly(monkeypatch)
    four = hospitals(tmp_path_factory.mktemp("four"), 4, patients=6)
    site = four.sites["hill"]
    policy = site.policy.model_copy(update={"most_local_steps": 1})
    four.sites["hill"] = site.model_copy(update={"policy": policy})
    lead = Lead(four, encrypted(strategy={"name": "fednova"}, training=TRAINING), "missed")
    there = ("east", "hill", "lake")
    work = lead.work(there)
    signed = lead.sign(work.proposal())
    for name in there:
        lead.open(name, signed, work.parcel)
    lead.round = 2
    missed = letters.join(lead.adverts, signed.to_bytes(), work.parcel)
    lead.ask("north", Phase.WORK, lead.to_work("north"), missed, base=0)
    late, good = (held(four, name, lead.of, "missed") for name in ("north", "east"))
    assert late.round == 1
    same(late.model, good.model)


# --- who lies -------------------------------------------------------------------------------------


@pytest.mark.parametrize("lie", [4.0, -4.0])
def test_a_hospitals_word_makes_no_step_longer_than_all_steps(
    lie: float, three: Hospitals, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = masked_sum.Figures.integers

    def lying(self: Any, answer: Any, normaliser: float = 0.0) -> Any:
        return real(self, answer, lie if normaliser == 1.0 else normaliser)  # east, with all steps

    monkeypatch.setattr(masked_sum.Figures, "integers", lying)
    with pytest.raises(SumUnusable, match="the hospitals' sum cannot be used: malformed"):
        gather(three, fednova(secure_aggregation=MASKS), f"lie-{lie:.0f}")


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_no_sum_of_normalisers_lengthens_the_mean(normaliser: float) -> None:
    shares = {"a": 1.0, "b": 0.5, "c": 0.25}
    plain: Arrays = {"w": np.array([3.0], np.float32), "bn.running_mean": np.array([1.0])}
    whole = mean_of(plain, ("a", "b"), shares)
    try:
        mean = mean_of(plain, ("a", "b"), shares, normaliser)
    except WireError:
        assert not 0 < normaliser <= 1.5
    else:
        assert 0 <= mean["w"] <= whole["w"] * (1 + 1e-6)
        assert mean["bn.running_mean"] == whole["bn.running_mean"]


def test_rounding_of_honest_figures_is_no_lie() -> None:
    """Survivors who are thousands of times smaller than the hospital that dropped out."""
    shares = {"a": 12 / 60_000, "b": 12 / 60_000, "c": 12 / 60_000, "large": 1.0}
    told = sum(round(shares[name] * 2**40 + 0.5) for name in "abc") / 2**40
    plain = {"w": np.ones(3, np.float32)}
    mean = mean_of(plain, ("a", "b", "c"), shares, told)
    np.testing.assert_array_equal(mean["w"], mean_of(plain, ("a", "b", "c"), shares)["w"])
