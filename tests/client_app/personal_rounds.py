"""Rounds of a small federation with the real local part of each strategy, on points instead of images.

`reference` computes the same rounds with nothing of ours: plain gradient descent, one strategy a branch.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from client_app.local_part import LocalPart
from client_app.received import Asked, Received, learning_rate
from client_app.site import Data, Site
from client_app.training import loop
from federation import models, strategies, tasks
from federation.messages import Arrays, Evaluated, Request, Shape, Trained
from federation.schema import Component, Experiment
from server_app.aggregation.plain import weighted_mean
from tests.in_process import experiment

CPU = torch.device("cpu")
Points = tuple[Tensor, Tensor]
"""Features (N, 2), labels (N,) of 0 and 1."""


def points(seed: int, *, flipped: bool = False, shift: float = 0.0, count: int = 40) -> Points:
    """Two classes on either side of x₁ = 0; at some hospitals called the other way round, or moved."""
    source = torch.Generator().manual_seed(seed)
    features = torch.randn(count, 2, generator=source)
    labels = (features[:, 0] > 0).long()
    features[:, 0] += torch.where(labels == 1, 0.5, -0.5)
    return features + shift, 1 - labels if flipped else labels


def network(*, norm: bool = False) -> nn.Module:
    """A body, a normalisation layer if wanted, and a head of two logits."""
    layers = [("body", nn.Linear(2, 4))]
    if norm:
        layers = [("norm", nn.BatchNorm1d(2)), *layers]  # type: ignore[list-item]
    layers += [("act", nn.Tanh()), ("head", nn.Linear(4, 2))]  # type: ignore[list-item]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = nn.Sequential()
        for name, layer in layers:
            layer.reset_parameters() if hasattr(layer, "reset_parameters") else None
            made.add_module(name, layer)
    return made


def a_task() -> tasks.Task:
    return dataclasses.replace(
        tasks.build(Component(name="chest_xray")),
        augment=dict,
        loss=functional.cross_entropy,
        patch=(2,),
    )


def described(
    name: str, *, training: Mapping[str, Any] | None = None, **options: Any
) -> Experiment:
    base = {"local_steps": 6, "batch_size": 40, "optimizer": "sgd", "learning_rate": 0.2}
    return experiment(
        rounds=100,
        strategy={"name": name, **options},
        training=base | dict(training or {}),
    )


@dataclass
class Federation:
    """Hospitals with a folder each; the coordinator's arithmetic is the real one.

    Attributes:
        model: the global model, after as many rounds as were done.
        updates: as the hospitals sent them in the last round.
    """

    folder: Path
    data: Mapping[str, Points]
    of: Experiment
    build: Callable[[], nn.Module] = network
    run: str = "monday"
    model: Arrays = field(default_factory=dict)
    updates: dict[str, Arrays] = field(default_factory=dict)
    done: int = 0

    def __post_init__(self) -> None:
        self.model = self.model or {
            name: array.copy() for name, array in models.arrays_of(self.build()).items()
        }

    def rounds(self, count: int, *, absent: frozenset[str] = frozenset()) -> Federation:
        for _ in range(count):
            self.done += 1
            asked = [name for name in self.data if name not in absent]
            self.updates = {name: self.serve(name, self.done)[1] for name in asked}
            told = {n: Trained(u, 1, 1, 0.0, 0.0) for n, u in self.updates.items()}
            parameters = frozenset(name for name, _ in self.build().named_parameters())
            mean = weighted_mean(told, "equal")
            strategy = strategies.build(self.of)
            self.model, _ = strategies.move(strategy, self.model, mean, {}, parameters)
        return self

    def part(self, name: str, round_: int, *, train: bool = True) -> LocalPart:
        """The local part of a request at this hospital."""
        own = self.build()
        for key, array in models.arrays_of(own).items():
            array[...] = self.model[key]
        arrays = {key: array.copy() for key, array in self.model.items()}
        received = Received(a_task(), own, arrays, b"", Shape.of(arrays), CPU, None)
        site = Site(
            hospital=name,
            kit=self.folder,
            state=self.folder / name,
            data=Data(root=self.folder),
        )
        request = Request(self.run, round_, evaluate=True, train=train)
        return LocalPart.of(Asked(request, self.of, self.of.training, site, b"", "", 0.0), received)

    def serve(self, name: str, round_: int) -> tuple[Evaluated, Arrays]:
        """What the hospital measures, and the update that it sends."""
        part = self.part(name, round_)
        evaluated = self._measured(name, part)
        features, labels = self.data[name]
        items = [{"image": x, "label": y} for x, y in zip(features, labels, strict=True)]
        train = partial(
            loop.train,
            task=part.received.task,
            items=items,
            device=CPU,
            learning_rate=learning_rate(part.asked),
        )
        personal = part.train_personal(train)
        done = part.train(train)
        return evaluated, part.finish(done.steps, personal)

    def measured(self) -> dict[str, dict[str, float]]:
        """By hospital, at the end of the run: nothing is trained."""
        last = self.done + 1
        return {n: self._measured(n, self.part(n, last, train=False)).metrics for n in self.data}

    def _measured(self, name: str, part: LocalPart) -> Evaluated:
        accuracy = partial(_accuracy, data=self.data[name])
        plain = Evaluated(accuracy(part.received.network), 1, 1)
        return part.with_personal(plain, accuracy)


def _accuracy(network: nn.Module, *, data: Points) -> dict[str, float]:
    features, labels = data
    with torch.no_grad():
        logits = copy.deepcopy(network).eval()(features)
    right = (logits.argmax(dim=1) == labels).float().mean()
    return {"accuracy": float(right), "loss": float(functional.cross_entropy(logits, labels))}


# --- the same, independently ----------------------------------------------------------------------


def reference(
    name: str,
    data: Mapping[str, Points],
    rounds: int,
    *,
    build: Callable[[], nn.Module] = network,
    steps: int = 6,
    rate: float = 0.2,
    stays: Callable[[str], bool] = lambda name: False,
    weight: float = 0.0,
) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """The global state after the rounds, and each hospital's own.

    Args:
        stays: which arrays a hospital keeps (fedbn, fedper, fedrep).
        weight: λ (ditto).
    """
    w = _state(build())
    own: dict[str, dict[str, Tensor]] = {
        k: dict(w) if name == "ditto" else {n: t for n, t in w.items() if stays(n)} for k in data
    }
    for _ in range(rounds):
        sent = []
        for k, (features, labels) in data.items():
            if name == "ditto":
                local = _descend(build, dict(w), features, labels, steps, rate)
                own[k] = _descend(
                    build, own[k], features, labels, steps, rate, near=w, weight=weight
                )
            elif name == "fedrep":
                head = _descend(build, w | own[k], features, labels, steps // 2, rate, moves=stays)
                local = _descend(
                    build, head, features, labels, steps - steps // 2, rate,
                    moves=lambda n: not stays(n),
                )  # fmt: skip
            else:
                local = _descend(build, w | own[k], features, labels, steps, rate)
            if name != "ditto":
                own[k] = {n: t for n, t in local.items() if stays(n)}
            sent.append(local)
        w = {
            n: t if stays(n) else torch.stack([s[n].double() for s in sent]).mean(0).to(t.dtype)
            for n, t in w.items()
        }
    return w, own


def _state(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


def _descend(
    build: Callable[[], nn.Module],
    start: Mapping[str, Tensor],
    features: Tensor,
    labels: Tensor,
    steps: int,
    rate: float,
    *,
    moves: Callable[[str], bool] = lambda name: True,
    near: Mapping[str, Tensor] | None = None,
    weight: float = 0.0,
) -> dict[str, Tensor]:
    """Full-batch gradient descent on F(v) + λ/2·‖v − near‖²."""
    network = build()
    network.load_state_dict(start)
    for _ in range(steps):
        loss = functional.cross_entropy(network(features), labels)
        for name, parameter in network.named_parameters():
            if near is not None:
                loss = loss + weight / 2 * (parameter - near[name]).square().sum()
        parameters = dict(network.named_parameters())
        gradients = torch.autograd.grad(loss, list(parameters.values()))
        with torch.no_grad():
            for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
                if moves(name):
                    parameter.sub_(rate * gradient)
    return _state(network)
