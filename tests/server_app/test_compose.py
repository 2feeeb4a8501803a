"""Overrides become an experiment, or one line that says what is wrong."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from federation import models, registry, tasks
from federation.schema import ConfigError, Experiment
from server_app.compose import CONFIGS, choices, experiment

DP = ["privacy=patient_dp"]


@pytest.mark.parametrize("name", choices("experiment"))
def test_every_experiment_file_composes(name: str) -> None:
    composed = experiment([f"experiment={name}"])
    assert composed.name == name.replace("_", "-") or composed.name == name


def test_every_task_and_model_has_a_config_and_the_other_way_round() -> None:
    assert choices("task") == registry.names(tasks)
    assert choices("model") == registry.names(models)


def test_groups_and_values_are_overridden() -> None:
    composed = experiment(
        ["task=hippocampus", "model=unet", "strategy=fedadam", "rounds=3", "training.batch_size=2"]
    )
    assert (composed.task.name, composed.model.name) == ("hippocampus", "unet")
    assert composed.strategy.options["beta_1"] == 0.9
    assert (composed.rounds, composed.training.batch_size) == (3, 2)


def test_fedprox_brings_its_term_and_an_experiment_may_choose_it() -> None:
    assert experiment(["strategy=fedprox"]).training.proximal_mu == 0.01
    assert experiment(["strategy=fedprox", "training.proximal_mu=0.5"]).training.proximal_mu == 0.5


def test_an_experiment_has_no_privacy_unless_it_is_chosen() -> None:
    assert experiment(["experiment=demo"]).privacy is None
    assert experiment(["experiment=private_demo", "privacy=none"]).privacy is None


def test_privacy_is_an_override_and_comes_with_its_noise() -> None:
    """The noise is in what is sent, and is that of which Google's accountant says it costs ε."""
    from dp_accounting import NeighboringRelation, dp_event
    from dp_accounting.pld import PLDAccountant

    composed = experiment(["experiment=demo", "privacy=patient_dp", "privacy.epsilon=3"])
    sent = Experiment.from_canonical(composed.canonical(), composed.sha256())
    assert sent.privacy is not None
    assert sent.privacy.noise_multiplier is not None
    peer = PLDAccountant(NeighboringRelation.ADD_OR_REMOVE_ONE)
    event = dp_event.GaussianDpEvent(sent.privacy.noise_multiplier)
    peer.compose(
        dp_event.PoissonSampledDpEvent(sent.privacy.sampling_rate, event),
        sent.rounds * sent.training.local_steps,
    )
    assert peer.get_epsilon(sent.privacy.delta) == pytest.approx(3.0, abs=0.02)


def test_noise_may_be_given_in_place_of_epsilon() -> None:
    composed = experiment([*DP, "privacy.epsilon=null", "privacy.noise_multiplier=1.5"])
    assert composed.privacy is not None
    assert (composed.privacy.noise_multiplier, composed.privacy.epsilon) == (1.5, None)


def test_noisy_metrics_of_a_task_without_a_tally_are_refused_by_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = tasks.build
    monkeypatch.setattr(tasks, "build", lambda c: dataclasses.replace(whole(c), tally=None))
    with pytest.raises(ConfigError, match=r"privacy\.metrics=noisy: task chest_xray"):
        experiment(
            [*DP, "privacy.epsilon=null", "privacy.noise_multiplier=9", "privacy.metrics=noisy"]
        )


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["strategy=fedadm"], ["strategy", "'fedadm'", "did you mean 'fedadam'"]),
        (["stratgy=fedavg"], ["'stratgy'", "did you mean 'strategy'"]),
        (["training.lr=0.1"], ["'lr'"]),
        (["+training.lr=0.1"], ["training.lr", "known:"]),
        (["training.local_step=3"], ["'local_step'", "did you mean 'local_steps'"]),
        (["rounds=0"], ["rounds is 0", "greater than or equal to 1"]),
        (["rounds=many"], ["rounds is 'many'", "integer"]),
        (["rounds"], ["'rounds'", "key=value"]),
        (["task.size=7"], ["tasks/chest_xray", "size is 7"]),
        (["experiment=demoo"], ["'demoo'", "did you mean 'demo'"]),
        (["training.learning_rate=[1"], ["key=value"]),
        (["model=unet", "model.chanels=[8]"], ["chanels"]),
        (["privacy=patient-dp"], ["'patient-dp'", "did you mean 'patient_dp'"]),
        (["privacy.epsilon=3"], ["'privacy.epsilon=3'", "privacy=patient_dp"]),
        (["privacy=none", "privacy.epsilon=3"], ["privacy=patient_dp"]),
        ([*DP, "privacy.epsilonn=3"], ["'epsilonn'", "did you mean 'epsilon'"]),
        ([*DP, "+privacy.epsilonn=3"], ["privacy.epsilonn", "did you mean 'epsilon'"]),
        ([*DP, "privacy.sampling_rate=2"], ["privacy.sampling_rate is 2", "equal to 1"]),
        ([*DP, "privacy.epsilon=null"], ["noise_multiplier, or epsilon"]),
        ([*DP, "privacy.noise_multiplier=1"], ["makes the run cost", "privacy.epsilon is 8"]),
        ([*DP, "privacy.metrics=noisy", "privacy.metrics_noise_multiplier=0.1"], ["metrics alone"]),
        ([*DP, "training.gradient_clipping_norm=1"], ["privacy.clipping_norm"]),
        (
            [*DP, "privacy.noise_multiplier=9", "model.norm=batch"],
            ["BatchNorm", "model.norm=group"],
        ),
    ],
)
def test_wrong_overrides_are_one_line(overrides: list[str], words: list[str]) -> None:
    with pytest.raises(ConfigError) as refused:
        experiment(overrides)
    for word in words:
        assert word in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_strategy_is_one_file_and_one_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What docs/researcher.md promises: drop in two files, choose it by name."""
    import shutil

    import numpy as np

    from federation import strategies

    code = tmp_path / "code"
    code.mkdir()
    (code / "half.py").write_text(
        "from federation.schema import Closed\n"
        "class Options(Closed):\n"
        "    factor: float = 0.5\n"
        "def step(options, model, update, state):\n"
        "    return {n: w + options.factor * update[n] for n, w in model.items()}, state\n"
    )
    configs = tmp_path / "configs"
    shutil.copytree(CONFIGS, configs)
    (configs / "strategy" / "half.yaml").write_text("name: half\nfactor: 0.25\n")
    monkeypatch.setattr(strategies, "__path__", [*strategies.__path__, str(code)])
    composed: Experiment = experiment(["strategy=half"], configs=configs)
    model, _ = strategies.build(composed).step({"w": np.ones(1)}, {"w": np.ones(1)}, {})
    assert model["w"][0] == 1.25
