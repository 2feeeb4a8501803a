"""A task is one file and one config: dropped in, chosen by name, trained and measured."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from monai.data import MetaTensor

from client_app.site import Site
from federation import models, registry, tasks
from federation.schema import Component, ConfigError, parse
from federation.tasks import Prediction
from server_app.compose import CONFIGS, choices, experiment

FRACTURE = '''
"""Fractured or not, in one radiograph of a wrist."""

from functools import partial

import torch
from pydantic import Field
from torch.nn import functional

from federation.schema import Closed
from federation.tasks import Prediction, Selection, Task


class Options(Closed):
    size: int = Field(default=32, ge=8, le=1024)


def build(options: Options) -> Task:
    return Task(
        name="wrist_fracture",
        kind="classification",
        spatial_dims=2,
        in_channels=1,
        classes=("whole", "fractured"),
        load=partial(_load, size=options.size),
        augment=dict,
        loss=functional.cross_entropy,
        infer=lambda network, images: network(images),
        outcome=lambda logits, target: logits,
        measure=_measure,
        metrics=("accuracy",),
        headline="accuracy",
        patch=(options.size, options.size),
        selection=Selection(modalities=frozenset({"DX", "CR"})),
        synonyms={"broken": "fractured"},
    )


def _load(item, *, size):
    image = functional.interpolate(item["image"].as_tensor()[None], (size, size))[0]
    return {"image": image / image.max(), "label": torch.tensor(item["label"])}


def _measure(predictions):
    right = [float(case.outcome.argmax() == case.target) for case in predictions]
    return {"accuracy": sum(right) / len(right)} if right else {}
'''


def _config(name: str) -> Component:
    content = yaml.safe_load((CONFIGS / "task" / f"{name}.yaml").read_text())
    return Component.model_validate(content)


def test_a_task_is_one_file_and_one_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = tmp_path / "code"
    code.mkdir()
    (code / "wrist_fracture.py").write_text(FRACTURE)
    configs = tmp_path / "configs"
    shutil.copytree(CONFIGS, configs)
    (configs / "task" / "wrist_fracture.yaml").write_text("name: wrist_fracture\nsize: 64\n")
    monkeypatch.setattr(tasks, "__path__", [*tasks.__path__, str(code)])
    importlib.invalidate_caches()

    assert "wrist_fracture" in registry.names(tasks)
    composed = experiment(["task=wrist_fracture", "model=mlp", "task.size=16"], configs=configs)
    task = tasks.build(composed.task)
    assert task.patch == (16, 16)
    network = models.build(composed.model, task, seed=0)

    image = MetaTensor(torch.rand(1, 40, 30), affine=torch.eye(3, dtype=torch.float64))
    loaded = task.load({"image": image, "label": 1, "attributes": {}})
    sample = task.augment(loaded)
    task.loss(network(sample["image"][None]), sample["label"][None]).backward()
    outcome = task.outcome(task.infer(network, sample["image"][None])[0], sample["label"])
    measured = task.measure([Prediction("p", outcome, sample["label"])])
    assert set(measured) == set(task.metrics)

    with pytest.raises(ConfigError, match="did you mean 'wrist_fracture'"):
        experiment(["task=wrist_fractur"], configs=configs)
    with pytest.raises(ConfigError, match="tasks/wrist_fracture: size is 4"):
        experiment(["task=wrist_fracture", "task.size=4"], configs=configs)


def test_files_with_an_underscore_are_no_tasks() -> None:
    folder = Path(tasks.__file__).parent
    assert list(folder.glob("_[a-z]*.py"))
    assert not any(name.startswith("_") for name in registry.names(tasks))
    assert choices("task") == registry.names(tasks)


@pytest.mark.parametrize("name", registry.names(tasks))
def test_what_a_task_says_of_itself_fits_together(name: str) -> None:
    task = tasks.build(_config(name))
    assert task.headline in task.metrics
    assert len(task.patch) == task.spatial_dims
    assert set(task.synonyms.values()) <= set(task.classes)
    assert all(word == word.casefold() for word in task.synonyms)
    assert task.selection.modalities
    foreground = set(task.classes[1:]) if task.kind == "segmentation" else set()
    assert set(task.structures) == foreground
    assert (task.place is not None) == (task.kind == "segmentation")
    assert task.measure([]) == {}


@pytest.mark.parametrize("name", ["alzheimers", "mammography", "tumour_segmentation"])
def test_the_applications_experiments_build(name: str) -> None:
    composed = experiment([f"experiment={name}"])
    assert composed.task.name == name
    task = tasks.build(composed.task)
    network = models.build(composed.model, task, seed=0)
    with torch.inference_mode():
        logits = network(torch.randn(1, task.in_channels, *task.patch))
    assert logits.shape[:2] == (1, len(task.classes))


@pytest.mark.parametrize("name", ["alzheimers", "mammography", "tumour_segmentation"])
def test_the_applications_sites_are_valid(name: str) -> None:
    site = parse(Site, yaml.safe_load((CONFIGS / "site" / f"{name}.yaml").read_text()))
    assert site.policy.tasks == [name]
