"""The plain local loop: a fixed number of optimiser steps, and evaluation on held-out cases."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from client_app.imaging.image import Case
from client_app.training.feed import Items, batches
from client_app.training.local import Correction
from federation.schema import Training
from federation.tasks import Prediction, Task, seeded


@dataclass(frozen=True)
class Trained:
    """`loss`: mean task loss over the steps, without the proximal term."""

    loss: float
    steps: int


class NonFiniteLoss(ArithmeticError):
    """Training reached a loss that is NaN or infinite; the network is of no use any more."""


def train(
    network: nn.Module,
    task: Task,
    items: Items,
    training: Training,
    *,
    device: torch.device,
    seed: int,
    learning_rate: float,
    workers: int = 0,
    correct: Correction | None = None,
) -> Trained:
    """Train `network` in place, on `device`, for exactly `training.local_steps` steps.

    For the batches see `feed.batches`. On the CPU the same seed, thread count and PyTorch give the
    same bits, whatever `workers` is; nothing is drawn from the process's random state. On a GPU the
    network runs in half precision.

    Args:
        learning_rate: of this round; `training.learning_rate` is the first round's.
        workers: processes that make batches ahead; with none they are made here, one at a time.
        correct: what a strategy adds to each gradient, after clipping.

    Raises:
        NonFiniteLoss: some step's loss was NaN or infinite.
        client_app.imaging.pool.Lost: a process that makes batches ended or was stuck.
        ValueError: no items.
    """
    if len(items) == 0:
        raise ValueError("there is nothing to train on: items is empty")
    network.to(device).train()
    optimizer = make_optimizer(network, training, learning_rate)
    parameters = [p for p in network.parameters() if p.requires_grad]
    start = [p.detach().clone() for p in parameters] if training.proximal_mu else []
    half = half_precision(device)
    scaler = torch.amp.GradScaler(device.type, enabled=half is torch.float16)
    losses: list[Tensor] = []

    feed = batches(
        task.augment,
        items,
        size=training.batch_size,
        steps=training.local_steps,
        seed=seed,
        workers=workers,
    )
    with (
        reproducible(device, seed),
        channels_last(network, task, device),
        contextlib.closing(feed),
    ):
        for images, labels in feed:
            with torch.autocast(device.type, dtype=half, enabled=half is not None):
                logits = network(send(images, device))
            loss = task.loss(logits.float(), send(labels, device))
            losses.append(loss.detach())
            if training.proximal_mu:
                loss = loss + training.proximal_mu / 2 * squared_distance(parameters, start)
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(scaler.scale(loss))
            if training.gradient_clipping_norm is not None or correct is not None:
                scaler.unscale_(optimizer)
            if training.gradient_clipping_norm is not None:
                nn.utils.clip_grad_norm_(parameters, training.gradient_clipping_norm)
            if correct is not None:
                add_corrections(network, correct)
            scaler.step(optimizer)
            scaler.update()
            if device.type == "cpu":  # on a GPU each look would wait for it: once, at the end
                _require_finite(losses[-1])
    mean = torch.stack(losses).mean()
    _require_finite(mean)
    return Trained(loss=mean.item(), steps=len(losses))


def mean_loss(
    network: nn.Module,
    task: Task,
    items: Items,
    training: Training,
    *,
    device: torch.device,
    seed: int,
    workers: int = 0,
) -> float:
    """The mean task loss of a network as it is, on the batches that `train` has with this seed.

    Dropout is off, normalisation layers use their running statistics, and nothing is changed.

    Raises:
        NonFiniteLoss, client_app.imaging.pool.Lost: as `train`.
    """
    half = half_precision(device)
    losses: list[Tensor] = []
    feed = batches(
        task.augment,
        items,
        size=training.batch_size,
        steps=training.local_steps,
        seed=seed,
        workers=workers,
    )
    with (
        reproducible(device, seed),
        predicting(network, device),
        contextlib.closing(feed),
    ):
        for images, labels in feed:
            with torch.autocast(device.type, dtype=half, enabled=half is not None):
                logits = network(send(images, device))
            losses.append(task.loss(logits.float(), send(labels, device)))
    mean = torch.stack(losses).mean()
    _require_finite(mean)
    return mean.item()


def evaluate(
    network: nn.Module,
    task: Task,
    cases: Sequence[Case],
    items: Items,
    *,
    device: torch.device,
) -> dict[str, float]:
    """The task's metrics on `items`: `metrics_of` the `predictions`."""
    return metrics_of(predictions(network, task, cases, items, device=device), task)


def predictions(
    network: nn.Module,
    task: Task,
    cases: Sequence[Case],
    items: Items,
    *,
    device: torch.device,
) -> list[Prediction]:
    """The network's answers on `items`, which are the loaded `cases` in the same order.

    Single precision on every device. The network is left in the mode it was in.
    """
    with predicting(network, device):
        return [
            predict(network, task, case, items[index], device)
            for index, case in zip(range(len(items)), cases, strict=True)
        ]


def metrics_of(predictions: Sequence[Prediction], task: Task) -> dict[str, float]:
    """The task's metrics, finite and named in `task.metrics`; what cannot be computed is left out."""
    with torch.inference_mode():
        measured = task.measure(predictions)
    return {
        name: measured[name] for name in task.metrics if math.isfinite(measured.get(name, math.nan))
    }


@torch.no_grad()
def add_corrections(network: nn.Module, correct: Correction) -> None:
    """A strategy's part of each gradient; a parameter without a gradient is not trained now."""
    for name, parameter in network.named_parameters():
        if parameter.grad is not None:
            parameter.grad += correct(name, parameter)


def squared_distance(parameters: Sequence[Tensor], start: Sequence[Tensor]) -> Tensor:
    """‖w − w₀‖²; half of it times μ is FedProx's term (Li et al. 2020, arXiv:1812.06127)."""
    return torch.stack(
        [(p - s).square().sum() for p, s in zip(parameters, start, strict=True)]
    ).sum()


@contextlib.contextmanager
def predicting(network: nn.Module, device: torch.device) -> Iterator[None]:
    """The network on the device, its dropout off and without gradients; afterwards in its mode again."""
    mode = network.training
    network.to(device).eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        network.train(mode)


def predict(
    network: nn.Module, task: Task, case: Case, item: Mapping[str, Any], device: torch.device
) -> Prediction:
    """One case's outcome, computed where its logits are, so that no volume of them is kept."""
    target = torch.as_tensor(item["label"])
    logits = task.infer(network, item["image"].float()[None].to(device))[0]
    outcome = task.outcome(logits.float(), target.to(device)).cpu()
    kept = target if task.kind == "classification" else target.new_empty(0)
    return Prediction(case.patient, outcome, kept, case.attributes)


def make_optimizer(network: nn.Module, training: Training, rate: float) -> torch.optim.Optimizer:
    parameters = [p for p in network.parameters() if p.requires_grad]
    decay = training.weight_decay
    match training.optimizer:
        case "sgd":
            return torch.optim.SGD(parameters, rate, momentum=training.momentum, weight_decay=decay)
        case "adam":
            return torch.optim.Adam(parameters, rate, weight_decay=decay)
        case "adamw":
            return torch.optim.AdamW(parameters, rate, weight_decay=decay)


def half_precision(device: torch.device) -> torch.dtype | None:
    """bfloat16 where the GPU has it, else float16 with scaled gradients; none on the CPU."""
    if device.type != "cuda":
        return None
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def send(batch: Tensor, device: torch.device) -> Tensor:
    """`batch` on the device; from pinned memory, so that a GPU need not be waited for."""
    if device.type != "cuda":
        return batch
    return batch.pin_memory().to(device, non_blocking=True)


def _require_finite(loss: Tensor) -> None:
    if not torch.isfinite(loss):
        raise NonFiniteLoss(
            "the loss became NaN or infinite: lower training.learning_rate or set "
            "training.gradient_clipping_norm"
        )


@contextlib.contextmanager
def reproducible(device: torch.device, seed: int) -> Iterator[None]:
    """Dropout and the like draw from `seed`; on the CPU, only algorithms that repeat to the bit.

    The process's random state and its choice of algorithms are as before afterwards. On a GPU
    several gradients of 3-D layers have no deterministic algorithm, so there none is asked for.
    """
    gpus = range(torch.cuda.device_count()) if device.type == "cuda" else []
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    with torch.random.fork_rng(devices=list(gpus)):
        torch.manual_seed(seeded(seed, "network").initial_seed())
        if device.type == "cpu":
            torch.use_deterministic_algorithms(True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before, warn_only=warn_only)


@contextlib.contextmanager
def channels_last(network: nn.Module, task: Task, device: torch.device) -> Iterator[None]:
    """The memory layout that a GPU's tensor cores read fastest; afterwards the usual one again."""
    layouts = {2: torch.channels_last, 3: torch.channels_last_3d}
    if device.type != "cuda" or task.spatial_dims not in layouts:
        yield
        return
    network.to(memory_format=layouts[task.spatial_dims])  # type: ignore[call-overload]
    try:
        yield
    finally:
        network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
