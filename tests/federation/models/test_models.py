"""Every network with every task: it fits and gives logits, or is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from federation import models, registry, tasks
from federation.schema import Component, ConfigError

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
FITTING = {
    "segmentation": {"unet", "segresnet"},
    "classification": {"densenet121", "mlp", "resnet", "resnet18"},
}
NORMED = ("unet", "segresnet", "densenet121", "resnet", "resnet18")


def _config(group: str, name: str) -> Component:
    return Component.model_validate(yaml.safe_load((CONFIGS / group / f"{name}.yaml").read_text()))


def _task(name: str) -> tasks.Task:
    return tasks.build(_config("task", name))


def _small_task(name: str) -> tasks.Task:
    """As its YAML has it; heads in coarser voxels, for 160 × 192 × 160 take a GPU."""
    small = {"alzheimers": {"shape": [64, 64, 64], "spacing": 3.0}}
    content = _config("task", name).model_dump() | small.get(name, {})
    return tasks.build(Component.model_validate(content))


def _task_for(model: str) -> tasks.Task:
    return _task("hippocampus" if model in FITTING["segmentation"] else "chest_xray")


def test_each_file_has_its_yaml_and_each_yaml_its_file() -> None:
    for group, package in (("task", tasks), ("model", models)):
        files = {path.stem for path in (CONFIGS / group).glob("*.yaml")}
        assert files == set(registry.names(package))
        for name in files:
            assert _config(group, name).name == name


def test_each_yaml_says_the_defaults() -> None:
    for group, package in (("task", tasks), ("model", models)):
        for name in registry.names(package):
            _, options = registry.find(package, _config(group, name))
            _, defaults = registry.find(package, Component(name=name))
            assert options == defaults


@pytest.mark.parametrize("task_name", registry.names(tasks))
@pytest.mark.parametrize("model_name", registry.names(models))
def test_a_model_gives_logits_or_is_refused(model_name: str, task_name: str) -> None:
    task, component = _small_task(task_name), _config("model", model_name)
    if model_name not in FITTING[task.kind]:
        with pytest.raises(ConfigError, match=f"model/{model_name} .* task/{task_name}"):
            models.build(component, task, seed=0)
        return
    network = models.build(component, task, seed=0)
    images = torch.randn(2, task.in_channels, *task.patch)
    logits = network(images)
    spatial = task.patch if task.kind == "segmentation" else ()
    assert logits.shape == (2, len(task.classes), *spatial)
    assert logits.isfinite().all()
    task.loss(logits, torch.zeros((2, 1, *spatial) if spatial else 2, dtype=torch.long)).backward()
    assert all(p.grad is not None for p in network.parameters() if p.requires_grad)


def test_segmentation_in_two_dimensions() -> None:
    import dataclasses

    task = dataclasses.replace(_task("hippocampus"), spatial_dims=2, patch=(32, 48))
    for name in FITTING["segmentation"]:
        network = models.build(Component(name=name), task, seed=0)
        assert network(torch.randn(1, 1, 32, 48)).shape == (1, 3, 32, 48)


@pytest.mark.parametrize("norm", ["group", "instance", "batch"])
@pytest.mark.parametrize("name", NORMED)
def test_the_normalisation_is_the_one_that_was_chosen(name: str, norm: str) -> None:
    network = models.build(Component(name=name, norm=norm), _task_for(name), seed=0)
    kinds = {
        "group": nn.GroupNorm,
        "instance": (nn.InstanceNorm2d, nn.InstanceNorm3d),
        "batch": (nn.BatchNorm2d, nn.BatchNorm3d),
    }
    layers = {key: [m for m in network.modules() if isinstance(m, k)] for key, k in kinds.items()}
    assert layers[norm]
    assert all(not found for key, found in layers.items() if key != norm)
    assert all(layer.weight is not None for layer in layers[norm])
    assert bool(list(network.buffers())) == (norm == "batch")
    counters = [value for value in network.state_dict().values() if value.dtype == torch.int64]
    assert bool(counters) == (norm == "batch")


@pytest.mark.parametrize("name", registry.names(models))
def test_weights_come_from_the_seed_alone(name: str) -> None:
    task = _task_for(name)
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = models.build(Component(name=name), task, seed=1).state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(6)
    again = models.build(Component(name=name), task, seed=1).state_dict()
    other = models.build(Component(name=name), task, seed=2).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_the_networks_for_traffic_have_25_million_parameters() -> None:
    component = Component(name="mlp", hidden=[4096, 2000])
    network = models.build(component, _task("chest_xray"), seed=0)
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(25e6, rel=0.01)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("unet", {"chanels": [16, 32]}, "did you mean 'channels'"),
        ("unet", {"norm": "layer"}, "'group', 'instance' or 'batch'"),
        ("unet", {"channels": [16]}, "at least 2"),
        ("unet", {"channels": [8, 8, 8, 8, 8, 8]}, r"multiples of 32, .* 32×48×32"),
        ("segresnet", {"blocks": [1] * 6}, "multiples of 32"),
        ("segresnet", {"filters": 12}, "multiple of 8"),
        ("densenet121", {"drop": 0.1}, "did you mean 'dropout'"),
        ("resnet", {"channels": [8, 16, 32]}, "at least 4"),
        ("resnet18", {"channels": [8, 16, 32, 64]}, "unknown key 'channels'"),
        ("mlp", {"hidden": [0]}, "greater than or equal to 1"),
        ("unett", {}, "did you mean 'unet'"),
    ],
)
def test_wrong_options_are_refused_by_name(
    name: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        models.build(Component(name=name, **options), _task_for(name.replace("tt", "t")), seed=0)
