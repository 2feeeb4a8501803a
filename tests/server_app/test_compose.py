"""Overrides become an experiment, or one line that says what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from federation import models, registry, tasks
from federation.schema import ConfigError, Experiment
from server_app.compose import CONFIGS, choices, experiment


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

    from server_app import strategies

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
