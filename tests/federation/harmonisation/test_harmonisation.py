"""What is chosen becomes a task, or one line that says why not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from federation import harmonisation, models, registry, tasks
from federation.schema import Component, ConfigError
from server_app.compose import CONFIGS, choices, experiment
from tests.federation.harmonisation.images import SMALL, hippocampus_item, task, volume

NAMES = registry.names(harmonisation)
RANDOM = {"scanner_augmentation", "fourier_amplitude"}


def test_every_harmonisation_has_a_config_with_its_options() -> None:
    assert [name for name in choices("harmonisation") if name != "none"] == NAMES
    for name in NAMES:
        fits = "chest_xray" if name == "clahe" else "hippocampus"
        model = "resnet" if name == "clahe" else "unet"
        (chosen,) = experiment(
            [f"task={fits}", f"model={model}", f"harmonisation={name}"]
        ).harmonisation
        # what stands in the config is what the file has by default, all of it
        options = registry.find(harmonisation, Component(name=name))[1]
        assert chosen.name == name
        assert chosen.options == options.model_dump()


def test_with_none_the_task_is_the_same() -> None:
    plain = tasks.build(Component(name="hippocampus"))
    assert harmonisation.applied(plain, ()) is plain
    assert experiment([]).harmonisation == experiment(["harmonisation=none"]).harmonisation == ()


def test_only_the_deterministic_ones_are_cached() -> None:
    chosen = [Component(name=name) for name in NAMES]
    assert {one.name for one in harmonisation.cached(chosen)} == set(NAMES) - RANDOM
    plain, varied = task("hippocampus"), task("hippocampus", *sorted(RANDOM))
    assert varied.load.func is plain.load.func  # type: ignore[attr-defined]
    assert task("hippocampus", "z_score").augment is not None


def test_an_experiment_may_bring_its_own_and_be_overridden(tmp_path: Path) -> None:
    configs = tmp_path / "configs"
    shutil.copytree(CONFIGS, configs)
    (configs / "experiment" / "own.yaml").write_text(
        "# @package _global_\n"
        "defaults:\n  - override /harmonisation: [z_score, fourier_amplitude]\n"
        "harmonisation:\n  fourier_amplitude: { prob: 0.25 }\n"
    )
    found = experiment(["experiment=own"], configs=configs).harmonisation
    assert [one.name for one in found] == ["z_score", "fourier_amplitude"]
    assert found[1].options["prob"] == 0.25
    assert experiment(["experiment=own", "harmonisation=none"], configs=configs).harmonisation == ()


def test_chains_keep_the_order_of_the_choice_and_their_options_are_overridden() -> None:
    composed = experiment(
        ["harmonisation=[scanner_augmentation,clahe,percentile]", "harmonisation.percentile.low=2"]
    )
    assert [one.name for one in composed.harmonisation] == [
        "scanner_augmentation",
        "clahe",
        "percentile",
    ]
    assert composed.harmonisation[2].options["low"] == 2
    assert type(composed).from_canonical(composed.canonical(), composed.sha256()) == composed


MR = ["task=hippocampus", "model=unet"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["harmonisation=zscore"], ["'zscore'", "did you mean 'z_score'"]),
        (["harmonisation=n4"], ["n4", "chest_xray"]),
        (["task=mammography", "harmonisation=n4"], ["n4", "mammography"]),
        (["task=tumour_segmentation", "model=unet", "harmonisation=n4"], ["n4", "MR"]),
        ([*MR, "harmonisation=clahe"], ["clahe", "hippocampus", "volumes"]),
        (["harmonisation=[z_score,z_score]"], ["z_score", "twice"]),
        (["harmonisation=z_score,percentile"], ["brackets", "harmonisation=[z_score,percentile]"]),
        (["harmonisation=[none,z_score]"], ["harmonisation=none stands alone"]),
        (["harmonisation.percentile.low=2"], ["no harmonisation", "harmonisation=percentile"]),
        (["harmonisation=z_score", "harmonisation.percentile.low=2"], ["'percentile'", "add it"]),
        (["harmonisation=percentile", "harmonisation.percentile.low=60"], ["low is 60"]),
        (["harmonisation=percentile", "+harmonisation.percentile.lo=1"], ["did you mean 'low'"]),
        (
            ["harmonisation=percentile", "harmonisation.percentile.scale=[1,0]"],
            ["harmonisation/percentile", "scale"],
        ),
        (["harmonisation=z_score", "harmonisation.z_score=3"], ["harmonisation.0"]),
    ],
)
def test_wrong_choices_are_one_line(overrides: list[str], words: list[str]) -> None:
    with pytest.raises(ConfigError) as refused:
        experiment(overrides)
    for word in words:
        assert word in str(refused.value)
    assert "\n" not in str(refused.value)


def test_one_that_stands_there_twice_is_refused_whoever_sent_it() -> None:
    twice = [Component(name="z_score"), Component(name="z_score")]
    with pytest.raises(ConfigError, match="z_score stands there twice"):
        harmonisation.applied(tasks.build(Component(name="hippocampus")), twice)


def test_n4_without_simpleitk_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'consilium\[n4\]'"):
        task("hippocampus", "n4")


@pytest.mark.parametrize("name", sorted(SMALL))
def test_private_runs_may_have_any(name: str) -> None:
    flat = tasks.build(Component(name=name, **SMALL[name])).spatial_dims == 2
    chain = "clahe,percentile" if flat else "n4,percentile"
    overrides = [
        f"experiment={'demo' if name == 'chest_xray' else name}",
        f"harmonisation=[{chain},scanner_augmentation,fourier_amplitude]",
        "privacy=patient_dp",
        "privacy.epsilon=null",
        "privacy.noise_multiplier=9",
    ]
    if name == "tumour_segmentation":
        overrides.append("task.modality=mr")
    composed = experiment(overrides)
    assert len(composed.harmonisation) == 4
    assert tasks.of_experiment(composed).name == name


def test_a_harmonisation_is_one_file_and_one_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dropped in as docs/researcher.md promises."""
    code = tmp_path / "code"
    code.mkdir()
    (code / "halved.py").write_text(
        "from federation.schema import Closed\n"
        "class Options(Closed):\n"
        "    factor: float = 0.5\n"
        "def even(image, *, options, grey):\n"
        "    return options.factor * image\n"
    )
    configs = tmp_path / "configs"
    shutil.copytree(CONFIGS, configs)
    (configs / "harmonisation" / "halved.yaml").write_text("halved: { factor: 0.25 }\n")
    monkeypatch.setattr(harmonisation, "__path__", [*harmonisation.__path__, str(code)])
    composed = experiment([*MR, "harmonisation=[z_score,halved]"], configs=configs)
    made = tasks.of_experiment(composed)
    one, other = (
        own.load(hippocampus_item(volume()[0]))["image"]
        for own in (made, task("hippocampus", "z_score"))
    )
    assert torch.allclose(one, 0.25 * other)
    assert models.build(composed.model, made, seed=0) is not None
