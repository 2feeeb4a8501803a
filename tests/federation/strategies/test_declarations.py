"""What rules for single updates need is checked when an experiment is composed, and said in one line."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from federation import strategies
from federation.schema import ConfigError, Experiment, PatientDP
from federation.strategies import NotCombined, combine
from server_app import compose
from tests.federation.strategies.rounds import described, rule, telling, told  # noqa: F401

ROBUST = ("coordinate_median", "trimmed_mean", "krum", "multi_krum", "norm_bound")
RUNS = (*ROBUST, "qfedavg", "afl")
SINGLE = (*RUNS, "fednova", "feddg_ga")


def refused(*overrides: str) -> str:
    with pytest.raises(ConfigError) as error:
        compose.experiment(overrides)
    said = str(error.value)
    assert "\n" not in said
    return said


def private(name: str) -> Experiment:
    return described(name).model_copy(update={"privacy": PatientDP(noise_multiplier=1.0)})


@pytest.mark.parametrize("name", RUNS)
def test_each_is_chosen_by_its_name_alone(name: str) -> None:
    composed = compose.experiment([f"strategy={name}"])
    assert strategies.needs_single_updates(composed)
    assert strategies.build(composed).least <= composed.participation.least


@pytest.mark.usefixtures("telling")
@pytest.mark.parametrize("name", ["fednova", "feddg_ga"])
def test_so_are_those_for_which_hospitals_must_tell_more(name: str) -> None:
    assert strategies.build(compose.experiment([f"strategy={name}"])).combine is not None


@pytest.mark.parametrize(
    ("name", "words"),
    [("fednova", "number of local steps"), ("feddg_ga", "loss of the model that")],
)
def test_what_hospitals_do_not_tell_is_said(
    name: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    @dataclass(frozen=True)
    class Silent:
        loss: float | None = None

    monkeypatch.setattr(strategies, "Trained", Silent)
    said = refused(f"strategy={name}")
    assert words in said
    assert "do not tell yet: choose strategy=fedavg" in said


@pytest.mark.usefixtures("telling")
@pytest.mark.parametrize("name", sorted({*SINGLE} - {"fednova"}))
@pytest.mark.parametrize("secure", ["masks", "ckks"])
def test_under_secure_aggregation_they_are_refused_by_name(name: str, secure: str) -> None:
    said = refused(f"strategy={name}", f"secure_aggregation={secure}")
    why = "weighs updates by powers of losses" if name == "qfedavg" else "looks at single updates"
    assert f"secure_aggregation={secure} cannot do strategy={name}, which {why}" in said
    assert "choose a strategy that needs the updates' mean alone, such as fedavg" in said


@pytest.mark.usefixtures("telling")
@pytest.mark.parametrize("name", ["qfedavg", "afl", "fednova", "feddg_ga"])
def test_figures_without_noise_are_not_told_under_privacy(name: str) -> None:
    with pytest.raises(ConfigError) as error:
        strategies.build(private(name))
    said = str(error.value)
    assert f"strategy={name} needs each hospital's" in said
    assert "not told under privacy=patient_dp: choose strategy=fedavg" in said


@pytest.mark.parametrize("name", ROBUST)
def test_updates_with_noise_are_combined_as_others(name: str) -> None:
    assert strategies.build(private(name)).combine is not None


@pytest.mark.parametrize(
    ("name", "byzantine", "needs"),
    [("trimmed_mean", 2, 5), ("trimmed_mean", 7, 15), ("krum", 2, 7), ("multi_krum", 3, 9)],
)
def test_the_fewest_hospitals(name: str, byzantine: int, needs: int) -> None:
    asked = (f"strategy={name}", f"strategy.byzantine={byzantine}")
    said = refused(*asked)
    assert f"needs {needs} hospitals in each round" in said
    assert f"set participation.least={needs}" in said
    least = f"participation.least={needs}"
    assert compose.experiment([*asked, least]).participation.least == needs
    names = ",".join(f"h{k}" for k in range(needs - 1))
    assert f"names only {needs - 1}" in refused(*asked, least, f"participation.hospitals=[{names}]")
    # and once more in the round itself
    strategy = rule(name, least=needs, byzantine=byzantine)
    updates = {f"h{k}": {"w": np.ones(2)} for k in range(needs - 1)}
    with pytest.raises(NotCombined, match=rf"needs {needs} hospitals, and {needs - 1} sent"):
        combine(strategy, updates, dict.fromkeys(updates, 1.0), told())


def test_so_many_selected_need_more() -> None:
    assert rule("multi_krum", byzantine=1).least == 5
    assert rule("multi_krum", byzantine=1, selected=2).least == 5
    assert rule("multi_krum", byzantine=1, selected=4).least == 7
    assert rule("norm_bound").least == 3
    assert rule("norm_bound", bound=1.0).least == 1


@pytest.mark.parametrize("name", ["coordinate_median", "trimmed_mean", "krum", "multi_krum"])
def test_one_vote_each(name: str) -> None:
    said = refused(f"strategy={name}", "participation.weighting=examples")
    assert f"strategy={name} gives each hospital one vote" in said
    assert "choose participation.weighting=equal" in said
    assert compose.experiment(["strategy=norm_bound", "participation.weighting=examples"])


@pytest.mark.parametrize("name", ["coordinate_median", "trimmed_mean"])
def test_coordinates_that_each_chooses_are_not_compared(name: str) -> None:
    """The median of values of which most are zeros is zero: nothing would be learnt."""
    said = refused(f"strategy={name}", "codec=[top_k,int8]")
    assert f"strategy={name} compares hospitals coordinate by coordinate" in said
    assert "choose codec=rand_k, int8 or none" in said
    for codec in ("[rand_k,int8]", "int8"):
        assert compose.experiment([f"strategy={name}", f"codec={codec}"])


def test_fednova_is_for_sgd() -> None:
    assert "set training.optimizer=sgd" in refused("strategy=fednova", "training.optimizer=adam")


def test_fednova_does_not_divide_by_steps_that_get_nowhere() -> None:
    """With ηµ = 2 the second step undoes the first."""
    asked = ("strategy=fednova", "training.learning_rate=0.1", "training.proximal_mu=20")
    assert "lower training.proximal_mu" in refused(*asked)
    assert compose.experiment([*asked[:-1], "training.proximal_mu=5"])
    later = [f"training.{part}" for part in ("local_steps=3", "momentum=0.9", "proximal_mu=28.5")]
    assert compose.experiment([*asked[:-1], *later])
    assert "lower training.proximal_mu" in refused(
        *asked[:-1], *later, "training.learning_rate_decay=0.84"
    ), "in the second round a step goes back"


def test_qfedavg_is_for_sgd_unless_it_is_told_its_constant() -> None:
    """One over Adam's learning rate is no Lipschitz constant: the model would hardly move."""
    assert compose.experiment(["strategy=qfedavg"]).training.optimizer == "sgd"
    adam = ("strategy=qfedavg", "training.optimizer=adam", "training.learning_rate=0.001")
    said = refused(*adam)
    assert "training.optimizer is adam" in said
    assert "set training.optimizer=sgd, or strategy.lipschitz=NUMBER" in said
    assert compose.experiment([*adam, "strategy.lipschitz=1.0"]).training.optimizer == "adam"


@pytest.mark.parametrize("name", SINGLE)
def test_an_option_that_is_misspelt_is_named(name: str) -> None:
    with pytest.raises(ConfigError, match=r"server_learning_rat"):
        strategies.build(described(name, server_learning_rat=1.0))
