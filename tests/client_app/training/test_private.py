"""The private loop as a whole: the paper's algorithm, what goes wrong, coins, and who is drawn."""

from __future__ import annotations

import copy
import dataclasses
import math
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from monai.transforms import Compose, RandGaussianNoised
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional

from client_app.training import private
from client_app.training.feed import Batch
from client_app.training.private import Done
from federation.privacy import fit
from federation.schema import ConfigError, PatientDP
from federation.tasks import Task
from tests.client_app.training.private_cases import (
    ENGINES,
    Coins,
    Items,
    flat,
    network_of,
    patients_of,
    privacy_of,
    run,
    task_of,
    training_of,
    weights,
)

# --- a whole run against arithmetic --------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("trainable", ["all", "head"])
def test_a_run_is_the_algorithm_of_the_paper(engine: str, trainable: str) -> None:
    """Samples, clip, noise, division by the public size, momentum, decay and proximal term."""
    task = task_of("chest_xray", augment=dict)
    items, patients = Items(8), patients_of([2, 2, 2, 2])
    network, twin = (network_of(task, "mlp") for _ in range(2))
    training = training_of(local_steps=4, momentum=0.5, weight_decay=0.1, proximal_mu=0.7)
    privacy = privacy_of(
        noise_multiplier=0.8, clipping_norm=0.3, engine=engine, trainable=trainable
    )
    done = run(
        network, items, patients, training=training, privacy=privacy, csprng=Coins(), public_size=6
    )
    assert done == Done(steps=4, zeroed=0)

    coins = Coins()
    parameters = list(twin.parameters())[-2 if trainable == "head" else 0 :]
    size = sum(p.numel() for p in parameters)
    start, velocity = flat(parameters), torch.zeros(size, dtype=torch.float64)
    samples = [coins.sample(4, 0.5) for _ in range(4)]
    assert len({len(sample) for sample in samples}) > 1
    for sample in samples:
        total = torch.zeros(size, dtype=torch.float64)
        for at in sample:
            positions = patients[at][1]
            loss = task.loss(twin(items.images[positions]), items.labels[positions])
            gradient = flat(torch.autograd.grad(loss, parameters))
            total += gradient * min(1.0, 0.3 / gradient.norm().item())
        noised = total + 0.8 * 0.3 * coins.gaussian(size)
        now = flat(parameters)
        gradient = noised / (0.5 * 6) + 0.7 * (now - start) + 0.1 * now
        velocity = gradient if not velocity.any() else 0.5 * velocity + gradient
        moved = now - 0.1 * velocity
        with torch.no_grad():
            for p, part in zip(
                parameters, moved.split([p.numel() for p in parameters]), strict=True
            ):
                p.copy_(part.view(p.shape))
    difference = (weights(network) - weights(twin)).norm()
    assert difference < 1e-5 * (weights(twin) - weights(network_of(task, "mlp"))).norm()
    assert all(p.grad is None and p.requires_grad for p in network.parameters())


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_what_is_frozen_stays_to_the_bit(optimizer: str) -> None:
    task = task_of("chest_xray", augment=dict)
    network = network_of(task, "resnet")
    before = copy.deepcopy(network.state_dict())
    training = training_of(optimizer=optimizer, weight_decay=0.1, proximal_mu=1.0)
    run(
        network,
        Items(4),
        patients_of([2, 2]),
        training=training,
        privacy=privacy_of(trainable="head"),
    )
    head = fit.head(network)
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]) == (name not in head)


# --- 7: what goes wrong does not show ------------------------------------------------------------


class Without(Coins):
    """The same coins, but one patient is never drawn."""

    def __init__(self, patient: int) -> None:
        super().__init__()
        self.patient = patient

    def sample(self, count: int, rate: float) -> list[int]:
        return [at for at in super().sample(count, rate) if at != self.patient]


def spoilt(kind: str) -> tuple[Items, Task]:
    """Patient 1 has images 2 and 3."""
    items = Items(8, raises=[3] if kind == "raises" else ())
    task = task_of("chest_xray", augment=dict)
    if kind in ("nan", "inf"):
        items.images[2, 0, 5, 5] = float(kind)
    if kind == "no such class":
        items.labels[3] = 9
    if kind == "other shape":
        made = items.__class__.__getitem__

        class Narrow(Items):
            def __getitem__(self, index: int) -> Mapping[str, Any]:
                item = made(self, index)
                return {**item, "image": item["image"][..., :20]} if index in (2, 3) else item

        items.__class__ = Narrow
    if kind == "loss raises":

        def loss(logits: Tensor, target: Tensor) -> Tensor:
            if target.numel() and (target == 7).any():
                raise ValueError("a class that there is not")
            return functional.cross_entropy(logits, target)

        items.labels[2] = 7
        task = dataclasses.replace(task, loss=loss)
    if kind == "loss is infinite":

        def infinite(logits: Tensor, target: Tensor) -> Tensor:
            per_image = functional.cross_entropy(logits, target.clamp(max=1), reduction="none")
            return torch.where(target == 7, math.inf, per_image).mean()

        items.labels[2] = 7
        task = dataclasses.replace(task, loss=infinite)
    return items, task


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "kind",
    [
        "nan",
        "inf",
        "raises",
        "no such class",
        "other shape",
        "loss raises",
        "loss is infinite",
    ],
)
def test_a_patient_that_goes_wrong_counts_as_zero_to_the_bit(kind: str, engine: str) -> None:
    privacy = privacy_of(engine=engine)
    training = training_of(local_steps=6, batch_size=2)  # a patient a pass: the same bits
    patients = patients_of([2, 2, 2, 2])
    items, task = spoilt(kind)
    networks = [network_of(task, "mlp") for _ in range(2)]
    done = run(
        networks[0], items, patients, task=task, training=training, privacy=privacy, csprng=Coins()
    )
    without = run(
        networks[1],
        Items(8),
        patients,
        task=task,
        training=training,
        privacy=privacy,
        csprng=Without(1),
    )
    coins = Coins()
    drawn = sum(1 in coins.sample(4, 0.5) for _ in range(6))
    assert drawn
    assert (done.zeroed, without.zeroed) == (drawn, 0)
    assert torch.equal(weights(networks[0]), weights(networks[1]))
    assert weights(networks[0]).isfinite().all()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("sizes", [[], [1], [3], [2, 2]])
def test_hospitals_of_few_patients_release_noise(sizes: list[int], engine: str) -> None:
    """Nobody drawn in any step, and nobody there at all: the steps are made of noise alone."""
    task = task_of("chest_xray", augment=dict)
    for rate in (1.0, 1e-9):
        moved = []
        for _ in range(2):
            network = network_of(task, "mlp")
            before = weights(network)
            privacy = privacy_of(sampling_rate=rate, engine=engine)
            training = training_of(learning_rate=rate * 10, local_steps=1)
            items = Items(sum(sizes))
            done = run(
                network,
                items,
                patients_of(sizes),
                training=training,
                privacy=privacy,
                learning_rate=rate * 10,
            )
            assert done == Done(steps=1, zeroed=0)
            assert bool(items.asked) == (rate == 1.0 and bool(sizes))
            moved.append(weights(network) - before)
        assert all(move.isfinite().all() for move in moved)
        assert (moved[0] != moved[1]).float().mean() > 0.99
        if rate < 1 or not sizes:
            # lr / (q · public size) = 10 / 10: the step is the noise itself.
            assert stats.kstest(moved[0].numpy(), "norm").pvalue > 1e-6


def test_too_little_memory_is_no_patients_fault() -> None:
    def none_left(sample: dict[str, Any]) -> dict[str, Any]:
        raise MemoryError

    def no_room(logits: Tensor, target: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    def no_room_here(logits: Tensor, target: Tensor) -> Tensor:
        return logits.new_empty(1 << 60).sum()

    for changes, error in (
        ({"augment": none_left}, MemoryError),
        ({"loss": no_room}, torch.OutOfMemoryError),
        ({"loss": no_room_here}, RuntimeError),
    ):
        task = task_of("chest_xray", **{"augment": dict, **changes})
        network = network_of(task, "mlp")
        with pytest.raises(error):
            run(
                network,
                Items(4),
                patients_of([2, 2]),
                task=task,
                privacy=privacy_of(sampling_rate=1),
            )
    assert not torch.are_deterministic_algorithms_enabled()


class Moving(nn.Module):
    """Counts the patients that it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))
        self.last = nn.Linear(32 * 32, 2)

    def forward(self, images: Tensor) -> Tensor:
        self.seen += len(images)
        logits: Tensor = self.last(images.flatten(1))
        return logits


def test_a_buffer_that_moves_stops_all() -> None:
    with pytest.raises(private.BuffersChanged):
        run(Moving(), Items(4), patients_of([2, 2]), privacy=privacy_of(sampling_rate=1))


def test_what_cannot_be_trained_is_refused() -> None:
    network = network_of(task_of("chest_xray"), "mlp")
    with pytest.raises(ConfigError, match="noise_multiplier"):
        run(network, Items(2), patients_of([2]), privacy=PatientDP(epsilon=1.0))
    with pytest.raises(ValueError, match="public_size"):
        run(network, Items(2), patients_of([2]), public_size=0)


# --- 8: coins ------------------------------------------------------------------------------------


def test_seeds_change_nothing_in_samples_and_noise() -> None:
    task = task_of("chest_xray", augment=dict)
    found = []
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)
        random.seed(0)
        network, items = network_of(task, "mlp"), Items(40)
        run(network, items, patients_of([1] * 40), training=training_of(local_steps=1))
        found.append((weights(network), sorted(set(items.asked))))
    assert (found[0][0] != found[1][0]).float().mean() > 0.99
    assert found[0][1] != found[1][1]


def test_the_process_and_the_task_are_left_as_they_were() -> None:
    augment = Compose([RandGaussianNoised("image", prob=1.0)])
    task = task_of("chest_xray", augment=augment)
    torch.manual_seed(3)
    np.random.seed(3)
    state, drawn = torch.random.get_rng_state(), augment.R.get_state()[1].tolist()
    network = network_of(task, "mlp", dropout=0.3)
    run(network, Items(4), patients_of([2, 2]), task=task)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert augment.R.get_state()[1].tolist() == drawn
    assert np.random.get_state()[1][0] == np.random.RandomState(3).get_state()[1][0]
    assert not torch.are_deterministic_algorithms_enabled()


class Recorded:
    """What each patient's batch was, by patient and step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps: list[list[tuple[int, Batch | None]]] = []
        original = private.add_patients

        def add(model: Any, parameters: Any, total: Any, batches: Any) -> None:
            self.steps.append(list(batches))
            original(model, parameters, total, self.steps[-1])

        monkeypatch.setattr(private, "add_patients", add)


def test_a_patients_images_and_coins_are_its_own_whoever_else_is_drawn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    task = task_of("chest_xray", augment=Compose([RandGaussianNoised("image", prob=1.0)]))
    recorded = Recorded(monkeypatch)
    seen = []
    for sizes in ([3, 3, 3], [3, 3]):  # the last patient is gone
        recorded.steps.clear()
        privacy = privacy_of(sampling_rate=1.0, augmentations=2)
        run(
            network_of(task, "mlp", dropout=0.5),
            Items(9),
            patients_of(sizes),
            task=task,
            privacy=privacy,
        )
        seen.append(list(recorded.steps))
    for more, fewer in zip(*seen, strict=True):
        assert len(more) == len(fewer) + 1
        for (one_seed, one), (other_seed, other) in zip(more[:2], fewer, strict=True):
            assert one is not None
            assert other is not None
            assert one_seed == other_seed
            assert torch.equal(one[0], other[0])
            assert torch.equal(one[1], other[1])
    seeds = [seed for step in seen[0] for seed, _ in step]
    assert len(set(seeds)) == len(seeds)
    images = torch.cat([batch[0] for step in seen[0] for _, batch in step if batch is not None])
    assert len(images.flatten(1).unique(dim=0)) == len(images)  # each is augmented anew


# --- 10: who is drawn, and what of them ----------------------------------------------------------


def test_each_patient_is_drawn_as_often_as_promised_whatever_it_has() -> None:
    """A patient with many images comes no more often than one with a single one."""
    sizes = [1, 1, 2, 3, 5, 8, 40]
    steps, rate = 600, 0.3
    task = task_of("chest_xray", augment=dict)
    patients, items = patients_of(sizes), Items(sum(sizes), size=32)
    network = nn.Sequential(nn.AvgPool2d(16), nn.Flatten(), nn.Linear(4, 2))
    privacy = privacy_of(sampling_rate=rate, images_per_patient=3)
    run(
        network,
        items,
        patients,
        task=task,
        training=training_of(local_steps=steps),
        privacy=privacy,
    )
    owner = {position: at for at, (_, own) in enumerate(patients) for position in own}
    batches = [items.asked[at : at + 3] for at in range(0, len(items.asked), 3)]
    counts = [0] * len(sizes)
    for batch in batches:
        (at,) = {owner[position] for position in batch}
        assert len(set(batch)) == min(3, sizes[at])  # at most k, all of them if there are fewer
        counts[at] += 1
    low, high = stats.binom.interval(1 - 1e-6, steps, rate)
    assert all(low <= count <= high for count in counts)
    assert set(items.asked) == set(range(sum(sizes)))
    shares = np.bincount(items.asked, minlength=sum(sizes))[-40:]
    assert stats.chisquare(shares).pvalue > 1e-6


@pytest.mark.parametrize(("k", "augmentations"), [(1, 1), (2, 3), (5, 2)])
@pytest.mark.parametrize("images", [1, 2, 3, 7])
def test_a_patients_batch_has_one_size(images: int, k: int, augmentations: int) -> None:
    privacy = privacy_of(images_per_patient=k, augmentations=augmentations)
    chosen = [private._choose("p", list(range(10, 10 + images)), privacy, 0, s) for s in range(50)]
    for one in chosen:
        assert len(one) == k * augmentations
        assert len(set(one)) == min(k, images)
        counts = [one.count(position) for position in set(one)]
        assert max(counts) - min(counts) <= augmentations
    assert set().union(*chosen) == set(range(10, 10 + images))


@pytest.mark.usefixtures("all_made_elsewhere")
def test_processes_that_make_batches_change_no_coin_and_no_bit() -> None:
    augment = Compose([RandGaussianNoised("image", prob=1.0)])
    task = task_of("chest_xray", augment=augment)
    patients = patients_of([1, 3, 2, 2])
    networks, done = [], []
    for workers in (0, 2):
        networks.append(network_of(task, "mlp", dropout=0.2))
        done.append(
            run(
                networks[-1],
                Items(8, raises=[5]),
                patients,
                task=task,
                csprng=Coins(),
                workers=workers,
                training=training_of(local_steps=5),
            )
        )
    assert torch.equal(weights(networks[0]), weights(networks[1]))
    assert done[0] == done[1]
    assert done[0].zeroed > 0
