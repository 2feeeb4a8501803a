"""The local loop on toys small enough to be checked by hand, and on both real tasks."""

from __future__ import annotations

import copy
import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from client_app.imaging.header import Kind
from client_app.imaging.image import Case, Image
from client_app.training.loop import NonFiniteLoss, Trained, evaluate, squared_distance, train
from federation import models, tasks
from federation.schema import Component, Training
from federation.tasks import Task

CPU = torch.device("cpu")


def _training(**changes: Any) -> Training:
    defaults = {"local_steps": 4, "batch_size": 2, "optimizer": "sgd", "learning_rate": 0.1}
    return Training(**{**defaults, **changes})


def _regression(**changes: Any) -> Task:
    """Least squares on two features, no augmentation: what a hand can follow."""
    task = tasks.build(Component(name="chest_xray"))
    plain: dict[str, Any] = {
        "augment": dict,
        "loss": lambda logits, target: (logits[:, 0] - target).square().mean() / 2,
        "patch": (2,),
    }
    return dataclasses.replace(task, **{**plain, **changes})


def _line(weights: list[float]) -> nn.Linear:
    network = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        network.weight.copy_(torch.tensor([weights]))
    return network


def _point(features: list[float], label: float) -> dict[str, Tensor]:
    return {"image": torch.tensor(features), "label": torch.tensor(label)}


def _radiographs(count: int, *, size: int = 32) -> list[dict[str, Tensor]]:
    """Half of them with a bright opacity low on the left: an easy task."""
    generator = torch.Generator().manual_seed(0)
    items = []
    for index in range(count):
        image = torch.randn(1, size, size, generator=generator)
        image[:, size // 2 : size * 3 // 4, 4:12] += 3.0 * (index % 2)
        items.append({"image": image, "label": torch.tensor(index % 2)})
    return items


def _cases(count: int) -> list[Case]:
    return [
        Case(Image(Kind.RADIOGRAPH, f"p{index}", (Path(),), (32, 32)), label=index % 2)
        for index in range(count)
    ]


def _same(one: nn.Module, other: nn.Module) -> bool:
    states = one.state_dict(), other.state_dict()
    return all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def _step(network: nn.Module, task: Task, items: Any, training: Training, **more: Any) -> Trained:
    arguments: dict[str, Any] = {"device": CPU, "seed": 1, "learning_rate": training.learning_rate}
    return train(network, task, items, training, **{**arguments, **more})


# --- against arithmetic -------------------------------------------------------------------------


def test_one_step_of_sgd_is_gradient_descent() -> None:
    network, point = _line([1.0, -1.0]), _point([2.0, 1.0], 3.0)
    trained = _step(network, _regression(), [point], _training(local_steps=1, batch_size=1))
    # w·x - y = -2: the loss is 2, the gradient -2·x = (-4, -2).
    assert trained == Trained(loss=2.0, steps=1)
    torch.testing.assert_close(network.weight.data, torch.tensor([[1.4, -0.8]]))


def test_the_learning_rate_is_the_rounds_and_not_the_experiments() -> None:
    network = _line([1.0, -1.0])
    training = _training(local_steps=1, batch_size=1, learning_rate=5.0)
    _step(network, _regression(), [_point([2.0, 1.0], 3.0)], training, learning_rate=0.1)
    torch.testing.assert_close(network.weight.data, torch.tensor([[1.4, -0.8]]))


def test_the_proximal_term_pulls_back_with_mu_times_the_distance() -> None:
    network, point = _line([1.0, -1.0]), _point([2.0, 1.0], 3.0)
    training = _training(local_steps=2, batch_size=1, proximal_mu=0.5)
    trained = _step(network, _regression(), [point], training)
    # Step 1 starts at the global model, where the term and its gradient are 0: w = (1.4, -0.8).
    # Step 2: w·x - y = -1, so g = (-2, -1) + 0.5·(0.4, 0.2) = (-1.8, -0.9).
    torch.testing.assert_close(network.weight.data, torch.tensor([[1.58, -0.71]]))
    assert trained.loss == pytest.approx((2.0 + 0.5) / 2)  # without the term


def test_the_gradient_of_the_squared_distance() -> None:
    parameters = [
        torch.tensor([3.0, 1.0], requires_grad=True),
        torch.tensor(2.0, requires_grad=True),
    ]
    start = [torch.tensor([1.0, 1.5]), torch.tensor(2.0)]
    distance = squared_distance(parameters, start)
    distance.backward()
    assert distance.item() == pytest.approx(4.25)
    torch.testing.assert_close(parameters[0].grad, torch.tensor([4.0, -1.0]))
    torch.testing.assert_close(parameters[1].grad, torch.tensor(0.0))


def test_a_stronger_proximal_term_stays_nearer_to_the_global_model() -> None:
    distances = []
    for mu in (0.0, 1.0, 5.0):
        network = _line([0.0, 0.0])
        points = [_point([1.0, 2.0], 4.0), _point([-1.0, 0.5], 1.0)]
        _step(network, _regression(), points, _training(local_steps=50, proximal_mu=mu))
        distances.append(network.weight.norm().item())
    assert distances[0] > distances[1] > distances[2] > 0


def test_frozen_parameters_stay_and_are_outside_the_proximal_term() -> None:
    network = nn.Sequential(_line([1.0, -1.0]), nn.Linear(1, 1))
    for parameter in network[0].parameters():
        parameter.requires_grad_(False)
    before = copy.deepcopy(network)
    points = [_point([2.0, 1.0], 3.0)]
    _step(network, _regression(), points, _training(proximal_mu=1.0, learning_rate=0.01))
    assert _same(network[0], before[0])
    assert not _same(network[1], before[1])


def test_clipping_bounds_the_step() -> None:
    network = _line([1.0, -1.0])
    training = _training(local_steps=1, batch_size=1, gradient_clipping_norm=0.5)
    _step(network, _regression(), [_point([2.0, 1.0], 3.0)], training)
    step = network.weight.data - torch.tensor([[1.0, -1.0]])
    assert step.norm().item() == pytest.approx(0.1 * 0.5, rel=1e-4)
    assert step[0, 0] / step[0, 1] == pytest.approx(2)


def test_momentum_and_weight_decay_are_used() -> None:
    network, point = _line([1.0, -1.0]), _point([2.0, 1.0], 3.0)
    _step(network, _regression(), [point], _training(local_steps=2, batch_size=1, momentum=0.5))
    # g1 = (-4, -2); at (1.4, -0.8) g2 = (-2, -1) + 0.5·g1 = (-4, -2).
    torch.testing.assert_close(network.weight.data, torch.tensor([[1.8, -0.6]]))
    network = _line([1.0, -1.0])
    _step(network, _regression(), [point], _training(local_steps=1, batch_size=1, weight_decay=0.5))
    # g = (-4, -2) + 0.5·w = (-3.5, -2.5).
    torch.testing.assert_close(network.weight.data, torch.tensor([[1.35, -0.75]]))


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_each_optimizer_is_the_one_of_its_name(optimizer: str) -> None:
    network, twin = _line([1.0, -1.0]), _line([1.0, -1.0])
    kinds = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    stepper = kinds[optimizer](twin.parameters(), lr=0.1, weight_decay=0.25)  # type: ignore[operator]
    point = _point([2.0, 1.0], 3.0)
    for _ in range(3):
        stepper.zero_grad()
        ((twin(point["image"][None])[:, 0] - point["label"]).square().mean() / 2).backward()
        stepper.step()
    training = _training(local_steps=3, batch_size=1, optimizer=optimizer, weight_decay=0.25)
    _step(network, _regression(), [point], training)
    torch.testing.assert_close(network.weight, twin.weight)


# --- batches -------------------------------------------------------------------------------------


class _Recorder:
    """Items that remember which of them were asked for."""

    def __init__(self, count: int) -> None:
        self.asked: list[int] = []
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        self.asked.append(index)
        return _point([float(index), 1.0], 0.0)


@pytest.mark.parametrize(("count", "batch", "steps"), [(5, 2, 10), (3, 8, 3), (1, 4, 2), (6, 6, 2)])
def test_every_permutation_is_used_up_before_the_next(count: int, batch: int, steps: int) -> None:
    items = _Recorder(count)
    training = _training(local_steps=steps, batch_size=batch, learning_rate=1e-3)
    assert _step(_line([0.0, 0.0]), _regression(), items, training).steps == steps
    assert len(items.asked) == steps * batch
    epochs = [items.asked[at : at + count] for at in range(0, len(items.asked), count)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs if len(epoch) == count)
    assert all(len(set(epoch)) == len(epoch) for epoch in epochs)


def test_another_seed_gives_another_order() -> None:
    orders = []
    for seed in (1, 1, 2):
        items = _Recorder(20)
        _step(_line([0.0, 0.0]), _regression(), items, _training(learning_rate=1e-3), seed=seed)
        orders.append(items.asked)
    assert orders[0] == orders[1] != orders[2]


def test_nothing_to_train_on_is_refused() -> None:
    with pytest.raises(ValueError, match="items is empty"):
        _step(_line([0.0, 0.0]), _regression(), [], _training())


# --- to the bit ----------------------------------------------------------------------------------


def _trained(model: str, *, seed: int, global_seed: int) -> tuple[nn.Module, Trained]:
    task = tasks.build(Component(name="chest_xray", size=32))
    network = models.build(Component(name=model, dropout=0.3), task, seed=0)
    torch.manual_seed(global_seed)
    trained = _step(network, task, _radiographs(6), _training(optimizer="adam"), seed=seed)
    return network, trained


@pytest.mark.parametrize("model", ["mlp", "densenet121"])
def test_one_seed_gives_one_set_of_bits_whatever_the_process_drew_before(model: str) -> None:
    one, first = _trained(model, seed=7, global_seed=1)
    two, second = _trained(model, seed=7, global_seed=2)
    other, _ = _trained(model, seed=8, global_seed=1)
    assert first == second
    assert _same(one, two)
    assert not _same(one, other)


def test_three_dimensional_training_repeats_to_the_bit() -> None:
    task = tasks.build(Component(name="hippocampus", patch=[16, 16, 16]))
    generator = torch.Generator().manual_seed(0)
    items = [
        {
            "image": torch.randn(1, 18, 20, 17, generator=generator),
            "label": torch.randint(0, 3, (1, 18, 20, 17), generator=generator, dtype=torch.uint8),
        }
        for _ in range(3)
    ]
    networks = []
    for _ in range(2):
        networks.append(models.build(Component(name="unet", dropout=0.2), task, seed=0))
        _step(networks[-1], task, items, _training(optimizer="adam", learning_rate=1e-3))
    assert _same(*networks)


@pytest.mark.usefixtures("all_made_elsewhere")
def test_processes_that_make_batches_change_no_bit_of_the_weights() -> None:
    """Here augmentation runs where only deterministic algorithms may, there where all may."""
    task = tasks.build(Component(name="chest_xray", size=32))
    networks, losses = [], []
    for workers in (0, 2):
        networks.append(models.build(Component(name="mlp"), task, seed=0))
        training = _training(local_steps=9, batch_size=4, learning_rate=1e-3)
        trained = _step(networks[-1], task, _radiographs(6), training, workers=workers)
        losses.append(trained)
    assert _same(*networks)
    assert losses[0] == losses[1]


def test_the_process_and_the_task_are_left_as_they_were() -> None:
    task = tasks.build(Component(name="chest_xray", size=32))
    items = _radiographs(4)
    before = copy.deepcopy(items)
    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    drawn = task.augment.R.get_state()[1].tolist()  # type: ignore[attr-defined]
    _step(models.build(Component(name="mlp"), task, seed=0), task, items, _training())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert task.augment.R.get_state()[1].tolist() == drawn  # type: ignore[attr-defined]
    assert not torch.are_deterministic_algorithms_enabled()
    for item, old in zip(items, before, strict=True):
        assert torch.equal(item["image"], old["image"])


# --- what goes wrong, and what goes well ---------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_and_says_what_to_do() -> None:
    network = _line([1.0, 1.0])
    points = [_point([1e3, 1e3], 1.0)]
    with pytest.raises(NonFiniteLoss, match=r"training\.learning_rate"):
        _step(network, _regression(), points, _training(local_steps=500, learning_rate=10.0))
    assert not torch.are_deterministic_algorithms_enabled()
    with pytest.raises(NonFiniteLoss):
        _step(_line([1.0, 1.0]), _regression(), [_point([math.nan, 1.0], 1.0)], _training())


def test_training_learns_an_easy_task_and_evaluation_sees_it() -> None:
    task = tasks.build(Component(name="chest_xray", size=32))
    network = models.build(Component(name="resnet"), task, seed=0)
    items, cases = _radiographs(24), _cases(24)
    before = evaluate(network, task, cases[16:], items[16:], device=CPU)
    training = _training(local_steps=40, batch_size=8, optimizer="adam", learning_rate=3e-3)
    first = _step(network, task, items[:16], training)
    second = _step(network, task, items[:16], training, seed=2)
    after = evaluate(network, task, cases[16:], items[16:], device=CPU)
    assert second.loss < first.loss < 0.7
    assert after["loss"] < before["loss"]
    assert after["auroc"] > 0.95


def test_evaluation_gives_the_declared_metrics_and_changes_nothing() -> None:
    task = tasks.build(Component(name="chest_xray", size=32))
    network = models.build(Component(name="resnet", norm="batch"), task, seed=0).train()
    before = copy.deepcopy(network)
    measured = evaluate(network, task, _cases(6), _radiographs(6), device=CPU)
    assert tuple(measured) == task.metrics
    assert measured == evaluate(network, task, _cases(6), _radiographs(6), device=CPU)
    assert _same(network, before)  # BatchNorm's running statistics as well
    assert network.training


def test_evaluation_leaves_out_what_is_not_finite_or_not_declared() -> None:
    task = _regression(measure=lambda _: {"loss": math.inf, "auroc": 0.5, "smallest_patient": 1.0})
    measured = evaluate(_line([0.0, 0.0]), task, _cases(1), [_point([1.0, 1.0], 0.0)], device=CPU)
    assert measured == {"auroc": 0.5}


def test_cases_and_items_must_be_as_many() -> None:
    with pytest.raises(ValueError, match="zip"):
        evaluate(_line([0.0, 0.0]), _regression(), _cases(2), [_point([1.0, 1.0], 0.0)], device=CPU)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
def test_training_on_a_gpu_learns_and_leaves_contiguous_weights() -> None:
    device = torch.device("cuda", 0)
    task = tasks.build(Component(name="chest_xray", size=32))
    network = models.build(Component(name="resnet"), task, seed=0)
    training = _training(local_steps=80, batch_size=8, optimizer="adam", learning_rate=3e-3)
    _step(network, task, _radiographs(16), training, device=device)
    assert evaluate(network, task, _cases(16), _radiographs(16), device=device)["auroc"] > 0.95
    assert all(value.is_contiguous() for value in network.state_dict().values())
