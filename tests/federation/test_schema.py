"""Configurations are closed: what is misspelt or out of range is refused by name."""

from __future__ import annotations

import copy
import json

import pytest

from client_app.site import Site
from federation import registry, tasks
from federation.schema import Component, ConfigError, Experiment, parse

EXPERIMENT = {
    "name": "test",
    "rounds": 2,
    "task": {"name": "chest_xray"},
    "model": {"name": "resnet"},
    "strategy": {"name": "fedavg"},
    "training": {"local_steps": 1, "batch_size": 2, "learning_rate": 0.1},
    "participation": {"least": 1, "deadline": 10},
}


def changed(path: str, value: object) -> dict:
    content = copy.deepcopy(EXPERIMENT)
    *sections, key = path.split(".")
    at = content
    for section in sections:
        at = at[section]
    at[key] = value
    return content


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("training.lerning_rate", 0.1, ["training.lerning_rate", "did you mean 'learning_rate'"]),
        ("ronds", 3, ["ronds", "did you mean 'rounds'"]),
        ("rounds", 0, ["rounds is 0", "greater than or equal to 1"]),
        ("training.learning_rate", float("nan"), ["training.learning_rate", "finite"]),
        ("training.momentum", 1.0, ["training.momentum", "less than 1"]),
        ("training.optimizer", "lion", ["training.optimizer", "'sgd'"]),
        ("evaluation", {"held_out": 1.0}, ["evaluation.held_out", "less than 1"]),
        ("participation.least", "two", ["participation.least", "integer"]),
        ("participation.hospitals", [], ["participation.least is 1"]),
        ("task", {"name": "../secrets"}, ["task.name", "pattern"]),
        ("privacy", {"epsilonn": 8.0}, ["privacy.epsilonn", "did you mean 'epsilon'"]),
        ("privacy", {}, ["give noise_multiplier, or epsilon"]),
        ("privacy", {"noise_multiplier": 0.0}, ["privacy.noise_multiplier is 0", "equal to 0.1"]),
        ("privacy", {"noise_multiplier": 1.0, "delta": 0.1}, ["privacy.delta is 0.1"]),
        ("privacy", {"epsilon": 8.0, "sampling_rate": 0}, ["privacy.sampling_rate is 0"]),
        ("privacy", {"epsilon": 8.0, "clipping_norm": float("inf")}, ["clipping_norm", "finite"]),
        ("privacy", {"epsilon": 8.0, "metrics": "exact"}, ["privacy.metrics", "'noisy'"]),
        ("privacy", {"epsilon": 8.0, "ema": 1.0}, ["privacy.ema is 1", "less than 1"]),
        ("privacy", {"epsilon": 8.0, "name": "user_dp"}, ["privacy.name", "'patient_dp'"]),
    ],
)
def test_a_wrong_key_or_value_is_named(path: str, value: object, words: list[str]) -> None:
    with pytest.raises(ConfigError) as refused:
        parse(Experiment, changed(path, value))
    for word in words:
        assert word in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_missing_key_is_named() -> None:
    content = copy.deepcopy(EXPERIMENT)
    del content["training"]["batch_size"]
    with pytest.raises(ConfigError, match=r"training\.batch_size is missing"):
        parse(Experiment, content)


def test_the_canonical_string_does_not_depend_on_order_and_reads_back() -> None:
    one = parse(Experiment, EXPERIMENT)
    other = parse(Experiment, dict(reversed(EXPERIMENT.items())))
    assert one.canonical() == other.canonical()
    again = Experiment.from_canonical(one.canonical(), one.sha256())
    assert again == one
    assert json.loads(one.canonical())["training"]["proximal_mu"] == 0.0  # defaults are written out


def test_an_exact_clip_beside_privacy_is_refused() -> None:
    content = changed("privacy", {"epsilon": 8.0})
    content["training"]["gradient_clipping_norm"] = 1.0
    with pytest.raises(ConfigError, match=r"gradient_clipping_norm.*privacy\.clipping_norm"):
        parse(Experiment, content)


@pytest.mark.parametrize(
    ("privacy", "evaluates"),
    [
        (None, True),
        ({"epsilon": 8.0}, False),
        ({"epsilon": 8.0, "metrics": "noisy"}, True),
        ({"epsilon": 8.0, "metrics": "public"}, True),
    ],
)
def test_privacy_reads_back_and_says_whether_hospitals_are_asked_for_metrics(
    privacy: dict | None, evaluates: bool
) -> None:
    one = parse(Experiment, changed("privacy", privacy))
    assert one.evaluates is evaluates
    assert Experiment.from_canonical(one.canonical(), one.sha256()) == one
    if privacy is not None:
        assert json.loads(one.canonical())["privacy"]["clipping_norm"] == 1.0


def test_a_changed_experiment_is_noticed() -> None:
    one = parse(Experiment, EXPERIMENT)
    with pytest.raises(ConfigError, match="SHA-256"):
        Experiment.from_canonical(one.canonical().replace('"seed":0', '"seed":1'), one.sha256())


def test_options_of_a_component_are_closed_too() -> None:
    with pytest.raises(ConfigError, match=r"tasks/chest_xray: unknown key 'sise'.*'size'"):
        registry.find(tasks, Component.model_validate({"name": "chest_xray", "sise": 3}))
    with pytest.raises(ConfigError, match="did you mean 'chest_xray'"):
        registry.find(tasks, Component(name="chestxray"))


def test_a_site_refuses_what_it_does_not_know() -> None:
    site = {
        "hospital": "north", "kit": "k", "state": "s",
        "data": {"root": "r", "layout": "dicom"}, "policy": {"least_patient": 3},
    }  # fmt: skip
    with pytest.raises(
        ConfigError, match=r"site.yaml: unknown key 'policy.least_patient'.*'least_patients'"
    ):
        parse(Site, site, where="site.yaml")
