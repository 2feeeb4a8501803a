"""What the tests of the private loop share: coins that repeat, small tasks, engines, runs."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from client_app.training.feed import Batch
from client_app.training.private import Done, Model, add_patients, add_samples, train
from federation import models, tasks
from federation.privacy import fit, per_sample
from federation.privacy.csprng import Csprng
from federation.privacy.mechanism import ClippedSum
from federation.schema import Component, PatientDP, Training
from federation.tasks import Task

CPU = torch.device("cpu")
Add = Callable[[ClippedSum, Iterable[tuple[int, Batch | None]]], None]
Batches = list[tuple[int, Batch | None]]


class Coins(Csprng):
    """The same coins each time, so that what else differs can be compared."""

    def __init__(self, seed: int = 7) -> None:
        self._random = np.random.default_rng(seed)

    def bytes(self, count: int) -> bytes:
        return self._random.bytes(count)


class Silent(Coins):
    """Noise of zeros, to see the sum."""

    def gaussian(self, count: int) -> Tensor:
        return torch.zeros(count, dtype=torch.float64)


SMALL: dict[str, dict[str, Any]] = {
    "alzheimers": {"shape": [32, 32, 32], "spacing": 3.0},
    "chest_xray": {"size": 32},
    "hippocampus": {"patch": [16, 16, 16]},
    "mammography": {"size": [64, 64]},
    "tumour_segmentation": {"patch": [16, 16, 16]},
}
VOLUMES = ("hippocampus", "tumour_segmentation")
PAIRS = [
    *((task, model) for task in SMALL if task not in VOLUMES for model in ("mlp", "resnet")),
    *((task, model) for task in VOLUMES for model in ("unet", "segresnet")),
    ("chest_xray", "resnet18"),
    ("chest_xray", "densenet121"),
]


def task_of(name: str, **changes: Any) -> Task:
    return dataclasses.replace(tasks.build(Component(name=name, **SMALL[name])), **changes)


def network_of(task: Task, model: str, **options: Any) -> nn.Module:
    return models.build(Component(name=model, **options), task, seed=0).train()


def privacy_of(**changes: Any) -> PatientDP:
    return PatientDP(**{"noise_multiplier": 1.0, "sampling_rate": 0.5, **changes})


def training_of(**changes: Any) -> Training:
    defaults = {"local_steps": 3, "batch_size": 3, "optimizer": "sgd", "learning_rate": 0.1}
    return Training(**{**defaults, **changes})


def images_of(task: Task, count: int, *, seed: int, scale: float = 1.0) -> Batch:
    """Random images and labels as a feed gives them."""
    generator = torch.Generator().manual_seed(seed)
    images = scale * torch.randn(count, task.in_channels, *task.patch, generator=generator)
    classes = len(task.classes)
    if task.kind == "classification":
        return images, torch.randint(classes, (count,), generator=generator)
    # Some with much foreground, some with little.
    often = torch.rand(count, generator=generator).view(-1, *[1] * (1 + len(task.patch)))
    inside = torch.rand(count, 1, *task.patch, generator=generator) < often
    drawn = torch.randint(1, classes, inside.shape, generator=generator) * inside
    return images, drawn.to(torch.uint8)


def batches_of(task: Task, patients: int, *, images: int = 2, scale: float = 1.0) -> Batches:
    return [
        (seed, images_of(task, images, seed=seed, scale=scale * (1 + seed)))
        for seed in range(patients)
    ]


def flat(parts: Iterable[Tensor]) -> Tensor:
    return torch.cat([part.detach().double().reshape(-1) for part in parts])


def summed(add: Add, network: nn.Module, batches: Batches, clipping_norm: float = 1.0) -> Tensor:
    total = ClippedSum(list(network.parameters()), clipping_norm)
    add(total, batches)
    return flat(total.noised(1e-12, Silent())).clone()


def loop(network: nn.Module, task: Task) -> Add:
    parameters = list(network.parameters())
    return lambda total, batches: add_patients(
        Model(network, task, CPU), parameters, total, batches
    )


def per_samples(network: nn.Module, task: Task, *, at_once: int = 3) -> Add:
    """Three images a pass and two or more a patient: most passes cut a patient in two."""
    parameters = list(network.parameters())
    way = fit.per_sample_way(network, task, privacy_of())

    def add(total: ClippedSum, batches: Iterable[tuple[int, Batch | None]]) -> None:
        with per_sample.gradients_by(way, network, parameters) as gradients:
            add_samples(
                Model(network, task, CPU),
                parameters,
                total,
                batches,
                gradients=gradients,
                at_once=at_once,
            )

    return add


ENGINES = {"loop": loop, "per_sample": per_samples}


# --- whole runs ----------------------------------------------------------------------------------


class Items:
    """Radiographs in memory; some cannot be made."""

    def __init__(self, count: int, size: int = 32, *, raises: Sequence[int] = ()) -> None:
        self.asked: list[int] = []
        self.raises = set(raises)
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(count, 1, size, size, generator=generator)
        self.labels = torch.arange(count) % 2

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        self.asked.append(index)
        if index in self.raises:
            raise OSError("no such image")
        return {"image": self.images[index].clone(), "label": self.labels[index]}


def patients_of(sizes: Sequence[int]) -> list[tuple[str, list[int]]]:
    """Pseudonyms and positions; a hospital of so many patients with so many images each."""
    ends = list(itertools.accumulate(sizes, initial=0))
    return [
        (f"p{at}", list(range(first, last)))
        for at, (first, last) in enumerate(itertools.pairwise(ends))
    ]


def run(
    network: nn.Module, items: Any, patients: Sequence[tuple[str, Sequence[int]]], **more: Any
) -> Done:
    task = more.pop("task", None) or task_of("chest_xray", augment=dict)
    given: dict[str, Any] = {"device": CPU, "seed": 1, "learning_rate": 0.1, "public_size": 10}
    training = more.pop("training", None) or training_of()
    privacy = more.pop("privacy", None) or privacy_of()
    return train(network, task, items, patients, training, privacy, **{**given, **more})


def weights(network: nn.Module) -> Tensor:
    return flat(network.parameters())
