"""One patient moves the clipped sum by at most C; and the same check fails on what others ship."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable

import numpy as np
import pytest
import torch
from monai.losses import DiceCELoss, DiceLoss
from torch import Tensor, nn
from torch.nn import functional

from client_app.training.feed import Batch
from client_app.training.private import Model, add_patients
from federation.privacy import per_sample
from federation.privacy.mechanism import ClippedSum
from federation.tasks import Task
from tests.client_app.training.private_cases import (
    CPU,
    ENGINES,
    PAIRS,
    Add,
    Batches,
    batches_of,
    flat,
    images_of,
    loop,
    network_of,
    per_samples,
    summed,
    task_of,
)

# --- 1: gradients --------------------------------------------------------------------------------


def independent(network: nn.Module, task: Task, batches: Batches, clipping_norm: float) -> Tensor:
    """The clipped sum by PyTorch's usual way and NumPy, patient by patient."""
    total = np.zeros(sum(p.numel() for p in network.parameters()))
    for _, batch in batches:
        assert batch is not None
        images, labels = batch
        network.zero_grad()
        task.loss(network(images), labels).backward()
        gradient = np.concatenate([p.grad.double().numpy().ravel() for p in network.parameters()])  # type: ignore[union-attr]
        total += gradient * min(1.0, clipping_norm / float(np.sqrt((gradient**2).sum())))
    network.zero_grad()
    return torch.from_numpy(total)


@pytest.mark.parametrize(("name", "model"), PAIRS)
def test_the_sum_is_that_of_an_independent_autograd_loop(name: str, model: str) -> None:
    task = task_of(name)
    network = network_of(task, model)
    batches = batches_of(task, 3)
    for clipping_norm in (1e-2, 1e6):  # all are cut, or none
        expected = independent(network, task, batches, clipping_norm)
        found = summed(loop(network, task), network, batches, clipping_norm)
        assert (found - expected).norm() <= 1e-5 * expected.norm()
        assert clipping_norm > 1 or abs(expected.norm().item()) <= 3 * clipping_norm * (1 + 1e-5)
    assert all(p.grad is None for p in network.parameters())


@pytest.mark.parametrize(("name", "model"), PAIRS)
def test_both_engines_agree(name: str, model: str) -> None:
    """In float64: in float32 a ReLU at its edge makes DenseNet's gradients differ by 0.5 %."""
    task = task_of(name)
    network = network_of(task, model)
    way = per_samples(network, task)
    network.double()
    batches: Batches = [
        (seed, (batch[0].double(), batch[1]))
        for seed, batch in batches_of(task, 3, images=2)
        if batch is not None
    ]
    for clipping_norm in (1e-2, 1e6):
        one = summed(loop(network, task), network, batches, clipping_norm)
        other = summed(way, network, batches, clipping_norm)
        assert (one - other).norm() <= 1e-6 * one.norm()


@pytest.mark.parametrize("at_once", [1, 2, 5, 100])
def test_passes_of_any_size_give_the_same_sum(at_once: int) -> None:
    task = task_of("chest_xray")
    network = network_of(task, "mlp")
    batches = batches_of(task, 4, images=3)
    batches[1] = (1, None)
    whole = summed(loop(network, task), network, batches)
    cut = summed(per_samples(network, task, at_once=at_once), network, batches)
    assert (whole - cut).norm() <= 1e-5 * whole.norm()


# --- 2: one patient moves the sum by at most C ---------------------------------------------------


def furthest(make: Callable[[], Add], network: nn.Module, batches: Batches, norm: float) -> float:
    """The most that leaving one patient out moves the sum, in clipping norms."""
    whole = summed(make(), network, batches, norm)
    moves = [
        whole - summed(make(), network, batches[:at] + batches[at + 1 :], norm)
        for at in range(len(batches))
    ]
    return max(move.norm().item() for move in moves) / norm


CASES = [("chest_xray", "mlp"), ("hippocampus", "unet"), ("tumour_segmentation", "segresnet")]


@pytest.mark.parametrize("clipping_norm", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("scale", [0.1, 1.0, 1000.0])
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("name", "model"), CASES[:2])
def test_a_patient_moves_the_sum_by_at_most_the_norm(
    name: str, model: str, engine: str, scale: float, clipping_norm: float
) -> None:
    task = task_of(name)
    network = network_of(task, model)
    batches = batches_of(task, 3, scale=scale)
    add = ENGINES[engine](network, task)
    assert furthest(lambda: add, network, batches, clipping_norm) <= 1 + 1e-5


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("name", "model"),
    [("chest_xray", "mlp"), ("hippocampus", "unet"), ("hippocampus", "segresnet")],
)
def test_dropout_does_not_carry_one_patient_into_the_next(name: str, model: str, seed: int) -> None:
    task = task_of(name)
    network = network_of(task, model, dropout=0.5)
    batches = batches_of(task, 4)
    random.Random(seed).shuffle(batches)
    add = loop(network, task)
    assert furthest(lambda: add, network, batches, 1e-3) <= 1 + 1e-5
    # Without a clip too a patient's gradient is its own, whoever comes before it.
    alone = [summed(add, network, [one], 1e6) for one in batches]
    assert torch.allclose(sum(alone), summed(add, network, batches, 1e6), rtol=0, atol=1e-9)  # type: ignore[arg-type]
    again = (batches[0][0] + 100, batches[0][1])
    assert not torch.equal(summed(add, network, [again], 1e6), alone[0])


def test_losses_that_couple_images_are_kept_within_a_patient_by_the_loop() -> None:
    for name, model, loss in (
        ("chest_xray", "mlp", weighted),
        ("hippocampus", "unet", DiceOverBatch()),
    ):
        task = task_of(name, loss=loss)
        network = network_of(task, model)
        batches = unalike(task)
        add = loop(network, task)
        for norm in (1e-3, 1e3):
            assert furthest(lambda add=add: add, network, batches, norm) <= 1 + 1e-5  # type: ignore[misc]


# The same check on what others ship: it must fail.


def weighted(logits: Tensor, target: Tensor) -> Tensor:
    return functional.cross_entropy(logits, target, weight=torch.tensor([1.0, 200.0]))


class DiceOverBatch:
    def __init__(self) -> None:
        self.dice = DiceLoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        loss: Tensor = self.dice(logits, target.long())
        return loss


def unalike(task: Task) -> Batches:
    """Many patients without what is looked for, and one that has it."""
    made: Batches = []
    for seed in range(8):
        images, labels = images_of(task, 2, seed=seed, scale=0.1)
        labels = torch.full_like(labels, int(seed == 0))
        if task.kind == "segmentation" and seed:
            labels[..., 0, 0, 0] = 1
        made.append((seed, (images, labels)))
    return made


def clip_each_image(network: nn.Module, task: Task) -> Add:
    parameters = list(network.parameters())

    def add(total: ClippedSum, batches: Iterable[tuple[int, Batch | None]]) -> None:
        for seed, batch in batches:
            assert batch is not None
            for image, label in zip(*batch, strict=True):
                one = (seed, (image[None], label[None]))
                add_patients(Model(network, task, CPU), parameters, total, [one])

    return add


def clip_each_pass(network: nn.Module, task: Task) -> Add:
    """As Opacus's BatchMemoryManager does: a patient that spans two passes is clipped in each."""
    engine = per_samples(network, task)

    def add(total: ClippedSum, batches: Iterable[tuple[int, Batch | None]]) -> None:
        parts = []
        for seed, batch in batches:
            assert batch is not None
            images, labels = batch
            parts += [(seed, (images[:2], labels[:2])), (seed, (images[2:], labels[2:]))]
        engine(total, parts)

    return add


def joint_loss(network: nn.Module, task: Task) -> Add:
    """The loss of all patients together, then each patient's gradient of it, each clipped once."""
    parameters = list(network.parameters())

    def add(total: ClippedSum, batches: Iterable[tuple[int, Batch | None]]) -> None:
        owned = [batch for _, batch in batches if batch is not None]
        sizes = [len(images) for images, _ in owned]
        labels = torch.cat([labels for _, labels in owned])
        owners = torch.arange(len(owned)).repeat_interleave(torch.tensor(sizes))
        with per_sample.gradients_by("hooks", network, parameters) as gradients:
            of_images = gradients(
                torch.cat([images for images, _ in owned]),
                lambda logits: task.loss(logits, labels) * len(owned),
            )
        for owner in range(len(owned)):
            total.add([of_image[owners == owner].sum(0) for of_image in of_images])

    return add


@pytest.mark.parametrize(("mutant", "at_least"), [(clip_each_image, 2.0), (clip_each_pass, 1.5)])
def test_the_check_fails_where_a_patient_is_clipped_in_parts(
    mutant: Callable[[nn.Module, Task], Add], at_least: float
) -> None:
    task = task_of("chest_xray")
    network = network_of(task, "mlp")
    batches: Batches = []
    for seed in range(3):  # images of a patient are alike
        images, labels = images_of(task, 1, seed=seed, scale=10)
        batches.append((seed, (images.repeat(4, 1, 1, 1), labels.repeat(4))))
    assert furthest(lambda: loop(network, task), network, batches, 1e-2) <= 1 + 1e-5
    assert furthest(lambda: mutant(network, task), network, batches, 1e-2) > at_least


@pytest.mark.parametrize(
    ("name", "model", "loss"),
    [("chest_xray", "mlp", weighted), ("hippocampus", "unet", DiceOverBatch())],
)
def test_the_check_fails_where_patients_share_a_loss(
    name: str, model: str, loss: Callable[[Tensor, Tensor], Tensor]
) -> None:
    task = task_of(name, loss=loss)
    network = network_of(task, model)
    batches = unalike(task)
    norm = 0.1
    assert furthest(lambda: loop(network, task), network, batches, norm) <= 1 + 1e-5
    assert furthest(lambda: joint_loss(network, task), network, batches, norm) > 2


@pytest.mark.filterwarnings("ignore:Full backward hook")
def test_the_check_fails_with_ghost_clipping_of_a_loss_that_stays_a_scalar() -> None:
    """Opacus's fast gradient clipping with MONAI's DiceCELoss: nothing is clipped at all."""
    from opacus.grad_sample import GradSampleModuleFastGradientClipping
    from opacus.optimizers import DPOptimizerFastGradientClipping
    from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping

    task = task_of("hippocampus")
    norm = 1.0

    def fresh() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv3d(4, 3, 1)).train()

    def ghost(batches: Batches) -> Tensor:
        network = fresh()
        module = GradSampleModuleFastGradientClipping(
            network, max_grad_norm=norm, use_ghost_clipping=True, loss_reduction="mean"
        )
        optimizer = DPOptimizerFastGradientClipping(
            torch.optim.SGD(network.parameters(), 0.1),
            noise_multiplier=0.0,
            max_grad_norm=norm,
            expected_batch_size=len(batches),
            loss_reduction="mean",
        )
        loss = DPLossFastGradientClipping(
            module, optimizer, DiceCELoss(to_onehot_y=True, softmax=True), loss_reduction="mean"
        )
        owned = [batch for _, batch in batches if batch is not None]
        images, labels = (torch.cat(parts) for parts in zip(*owned, strict=True))
        loss(module(images), labels.long()).backward()
        return flat(p.grad for p in network.parameters() if p.grad is not None)

    # One whose gradient is large beside others whose gradients need no clip.
    scales = [1000.0, 0.1, 0.1, 0.1]
    batches: Batches = [(s, images_of(task, 1, seed=s, scale=scales[s])) for s in range(4)]
    whole = ghost(batches)
    moves = [(whole - ghost(batches[:at] + batches[at + 1 :])).norm().item() for at in range(4)]
    assert max(moves) > 10 * norm
    network = fresh()
    assert furthest(lambda: loop(network, task), network, batches, norm) <= 1 + 1e-5
