"""What private training takes, what it refuses and by which words; nothing else is touched."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from monai.losses import DiceCELoss, DiceLoss
from torch import Tensor, nn
from torch.nn import functional

from federation import models, registry, tasks
from federation.privacy import fit, per_sample
from federation.schema import Component, ConfigError, PatientDP
from federation.tasks import Task

SMALL: dict[str, dict[str, Any]] = {
    "alzheimers": {"shape": [32, 32, 32], "spacing": 3.0},
    "chest_xray": {"size": 32},
    "hippocampus": {"patch": [16, 16, 16]},
    "mammography": {"size": [64, 64]},
    "tumour_segmentation": {"patch": [16, 16, 16]},
}
VOLUMES = ("hippocampus", "tumour_segmentation")
# resnet18 and densenet121 in volumes take a GPU to be of use, and the tests too long.
PAIRS = [
    *((task, model) for task in SMALL if task not in VOLUMES for model in ("mlp", "resnet")),
    *((task, model) for task in VOLUMES for model in ("unet", "segresnet")),
    ("chest_xray", "resnet18"),
    ("chest_xray", "densenet121"),
]


def task_of(name: str) -> Task:
    return tasks.build(Component(name=name, **SMALL[name]))


def privacy(**changes: Any) -> PatientDP:
    return PatientDP(**{"noise_multiplier": 1.0, **changes})


def built(task: Task, model: str, **options: Any) -> nn.Module:
    return models.build(Component(name=model, **options), task, seed=0)


def radiographs(**changes: Any) -> Task:
    return dataclasses.replace(task_of("chest_xray"), **changes)


def convolution(*more: nn.Module, **options: Any) -> nn.Sequential:
    """Two logits from a radiograph."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, **options),
        *more,
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 2),
    )


# --- what fits -----------------------------------------------------------------------------------


def test_every_task_is_here() -> None:
    assert set(SMALL) == set(registry.names(tasks))
    assert {model for _, model in PAIRS} == set(registry.names(models))


@pytest.mark.parametrize("trainable", ["all", "head"])
@pytest.mark.parametrize(("task", "model"), PAIRS)
def test_every_network_fits_each_of_its_tasks(task: str, model: str, trainable: str) -> None:
    network = built(task_of(task), model)
    fit.require_private(network, task_of(task), privacy(trainable=trainable))
    if model not in ("resnet18", "densenet121"):
        chosen = privacy(trainable=trainable, engine="per_sample")
        fit.require_private(network, task_of(task), chosen)


@pytest.mark.parametrize(
    ("task", "model", "way"),
    [
        ("chest_xray", "mlp", "hooks"),
        ("hippocampus", "unet", "hooks"),
        ("chest_xray", "resnet", "functorch"),  # out += residual
        ("hippocampus", "segresnet", "functorch"),  # in-place activations
    ],
)
def test_hooks_where_they_are_right_and_vmap_elsewhere(task: str, model: str, way: str) -> None:
    found = fit.per_sample_way(built(task_of(task), model), task_of(task), privacy())
    assert found == way


def test_a_large_patch_is_tried_on_a_small_one_and_an_odd_one_whole() -> None:
    seen = []

    class Seen(nn.Module):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, images: Tensor) -> Tensor:
            seen.append(tuple(images.shape))
            return self.network(images)

    fit.require_private(Seen(convolution()), radiographs(patch=(512, 512)), privacy())
    assert set(seen) == {(2, 1, 32, 32)}
    seen.clear()
    flat = nn.Sequential(nn.Flatten(), nn.Linear(40 * 48, 2))
    fit.require_private(Seen(flat), radiographs(patch=(40, 48)), privacy())
    assert seen[1] == (2, 1, 40, 48)
    with pytest.raises(ConfigError, match=r"does not take two images .*\(64×64\)"):
        fit.require_private(Seen(flat), radiographs(patch=(64, 64)), privacy())


@pytest.mark.parametrize("engine", ["loop", "per_sample"])
def test_network_and_random_state_are_left_as_they_were(engine: str) -> None:
    task = task_of("chest_xray")
    network = built(task, "resnet").eval()
    before = copy.deepcopy(network.state_dict())
    torch.manual_seed(3)
    np.random.seed(3)
    states = torch.random.get_rng_state(), np.random.get_state()[1].tobytes()
    fit.require_private(network, task, privacy(engine=engine, trainable="head"))
    assert torch.equal(torch.random.get_rng_state(), states[0])
    assert np.random.get_state()[1].tobytes() == states[1]
    assert not network.training
    assert all(torch.equal(before[name], now) for name, now in network.state_dict().items())
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not any(m._forward_hooks or m._backward_hooks for m in network.modules())


# --- what does not, whatever the engine ----------------------------------------------------------


@pytest.mark.parametrize("engine", ["loop", "per_sample"])
@pytest.mark.parametrize(
    ("task", "model"),
    [
        ("chest_xray", "resnet"),
        ("chest_xray", "resnet18"),
        ("chest_xray", "densenet121"),
        ("hippocampus", "unet"),
        ("hippocampus", "segresnet"),
    ],
)
def test_batch_normalisation_is_refused(task: str, model: str, engine: str) -> None:
    network = built(task_of(task), model, norm="batch")
    with pytest.raises(ConfigError, match=r"BatchNorm.*use model\.norm=group"):
        fit.require_private(network, task_of(task), privacy(engine=engine))


@pytest.mark.parametrize("affine", [True, False])
def test_also_where_nothing_of_it_is_trained(affine: bool) -> None:
    """Opacus's validator looks at what is trained alone; statistics change all the same."""
    network = convolution(nn.BatchNorm2d(4, affine=affine))
    for parameter in network[1].parameters():
        parameter.requires_grad_(False)
    with pytest.raises(ConfigError, match="BatchNorm"):
        fit.require_private(network, radiographs(), privacy(trainable="head"))


def test_instance_normalisation_with_statistics_is_refused() -> None:
    fit.require_private(convolution(nn.InstanceNorm2d(4)), radiographs(), privacy())
    network = convolution(nn.InstanceNorm2d(4, track_running_stats=True))
    with pytest.raises(ConfigError, match=r"running statistics.*model\.norm=group"):
        fit.require_private(network, radiographs(), privacy())


class Counting(nn.Module):
    """A centre that moves with the data, kept in a buffer that is not even saved."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(()), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            self.centre = 0.9 * self.centre + 0.1 * images.detach().mean()
        return images - self.centre


def test_a_buffer_that_training_changes_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'1\.centre' without a gradient"):
        fit.require_private(convolution(Counting()), radiographs(), privacy())
    still = convolution(Counting().eval())
    assert still.train()[1].training  # `train` reaches it, so it is refused too
    with pytest.raises(ConfigError, match="without a gradient"):
        fit.require_private(still, radiographs(), privacy())


class Mixing(nn.Module):
    def __init__(self, mix: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.mix = mix

    def forward(self, images: Tensor) -> Tensor:
        return self.mix(images)


@pytest.mark.parametrize(
    "mix",
    [
        lambda x: x - 1e-9 * x.mean(0, keepdim=True),
        lambda x: x.softmax(0),
        lambda x: x / x.norm(),
        lambda x: x.flip(0),
        lambda x: x - x.amax(),
    ],
)
def test_a_network_that_mixes_samples_is_refused(mix: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(ConfigError, match="mixes the samples"):
        fit.require_private(convolution(Mixing(mix)), radiographs(), privacy())
    fit.require_private(convolution(Mixing(torch.sigmoid)), radiographs(), privacy())


# --- what the per-sample engine cannot do --------------------------------------------------------


class OnTheRoot(nn.Module):
    """As MONAI's ViT has its position embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.randn(1, 32, 32))
        self.inner = convolution()

    def forward(self, images: Tensor) -> Tensor:
        return self.inner(images + self.shift)


class Twice(nn.Module):
    """As MONAI's DynUNet registers its blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = convolution()
        self.again = nn.ModuleList([self.inner[0]])

    def forward(self, images: Tensor) -> Tensor:
        return self.inner(images)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.rest = nn.Sequential(nn.Flatten(), nn.Linear(4096, 2))

    def forward(self, images: Tensor) -> Tensor:
        before = torch.relu(self.first(images))
        out = self.second(before)
        out += before
        return self.rest(torch.relu_(out))


TRAPS = {
    "in place": lambda: convolution(nn.GroupNorm(2, 4), nn.ReLU(inplace=True)),
    "residual": Residual,
    "twice": Twice,
    "root": OnTheRoot,
    "padding": lambda: convolution(padding_mode="reflect"),
    "circular": lambda: convolution(padding_mode="circular"),
    "no grad sampler": lambda: convolution(nn.ConvTranspose2d(4, 4, 2, stride=2), nn.PReLU()),
    "shared": lambda: (lambda layer: convolution(layer, nn.ReLU(), layer))(
        nn.Conv2d(4, 4, 3, padding=1)
    ),
}


@pytest.mark.parametrize("trap", TRAPS)
def test_each_trap_of_the_hooks_is_found_and_the_gradients_are_right(trap: str) -> None:
    """Measured with hooks alone: an error, or gradients that are 38 % wrong (padding)."""
    torch.manual_seed(0)
    network = TRAPS[trap]().train()
    task = radiographs()
    fit.require_private(network, task, privacy(engine="per_sample"))
    way = fit.per_sample_way(network, task, privacy())
    if trap in ("in place", "residual", "padding", "circular"):
        assert way == "functorch"
    images, target = torch.randn(3, 1, 32, 32), torch.tensor([0, 1, 1])
    parameters = list(network.parameters())

    def objective(logits: Tensor) -> Tensor:
        return functional.cross_entropy(logits, target, reduction="sum")

    with per_sample.gradients_by(way, network, parameters) as of:
        found = of(images, objective)
    for at in range(3):
        loss = functional.cross_entropy(network(images[at : at + 1]), target[at : at + 1])
        true = torch.autograd.grad(loss, parameters)
        away = torch.stack([(f[at] - t).norm() for f, t in zip(found, true, strict=True)]).norm()
        assert away < 1e-5 * torch.stack([t.norm() for t in true]).norm()


def test_hooks_alone_would_be_wrong_with_padding() -> None:
    """So that the trap above can fail."""
    torch.manual_seed(0)
    network = convolution(padding_mode="reflect").train()
    parameters = list(network.parameters())
    images = torch.randn(1, 1, 32, 32)
    true = torch.autograd.grad(network(images).square().sum(), parameters)
    with per_sample.gradients_by("hooks", network, parameters) as of:
        found = of(images, lambda logits: logits.square().sum())
    assert (found[0][0] - true[0]).norm() > 0.01 * true[0].norm()


@pytest.mark.parametrize("way", ["hooks", "functorch"])
def test_the_network_is_freed_of_all_that_the_gradients_needed(way: per_sample.Way) -> None:
    network = convolution(nn.ReLU()).train()
    before = {id(module): set(vars(module)) for module in network.modules()}
    attributes = [set(dir(parameter)) for parameter in network.parameters()]
    parameters = list(network.parameters())
    images = torch.randn(2, 1, 32, 32)

    def broken(logits: Tensor) -> Tensor:
        raise ValueError("no loss")

    with per_sample.gradients_by(way, network, parameters) as of:
        first = of(images, lambda logits: logits.square().sum())
        with pytest.raises(ValueError, match="no loss"):
            of(torch.randn(5, 1, 32, 32), broken)
        again = of(images, lambda logits: logits.square().sum())
        assert all(map(torch.equal, first, again))
    assert {id(module): set(vars(module)) for module in network.modules()} == before
    assert [set(dir(parameter)) for parameter in parameters] == attributes
    assert all(parameter.grad is None for parameter in parameters)
    assert not any(m._forward_hooks or m._backward_hooks for m in network.modules())
    copy.deepcopy(network)


def test_dropout_is_for_the_loop() -> None:
    task = task_of("chest_xray")
    network = built(task, "mlp", dropout=0.2)
    fit.require_private(network, task, privacy())
    with pytest.raises(ConfigError, match=r"random numbers.*use privacy\.engine=loop"):
        fit.require_private(network, task, privacy(engine="per_sample"))


class Sequence(nn.Module):
    """Rows of the image one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.LSTM(32, 4, batch_first=True)
        self.last = nn.Linear(4, 2)

    def forward(self, images: Tensor) -> Tensor:
        output: Tensor = self.last(self.rows(images[:, 0])[0][:, -1])
        return output


def test_what_opacus_refuses_is_for_the_loop() -> None:
    fit.require_private(Sequence(), radiographs(), privacy())
    with pytest.raises(ConfigError, match=r"Opacus refuses.*use privacy\.engine=loop"):
        fit.require_private(Sequence(), radiographs(), privacy(engine="per_sample"))


def test_what_neither_way_can_follow_is_for_the_loop() -> None:
    def looks(images: Tensor) -> Tensor:
        return images * (2.0 if images[0, 0, 0, 0].item() > 0 else 1.0)

    class Looking(nn.Module):
        """Decides by a number, and has its parameters where no hook is."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(2, 1024))

        def forward(self, images: Tensor) -> Tensor:
            return torch.stack([looks(one[None])[0].flatten() for one in images]) @ self.weight.T

    fit.require_private(Looking(), radiographs(), privacy())
    with pytest.raises(ConfigError, match=r"neither.*use privacy\.engine=loop"):
        fit.require_private(Looking(), radiographs(), privacy(engine="per_sample"))


def weighted(logits: Tensor, target: Tensor) -> Tensor:
    return functional.cross_entropy(logits, target, weight=torch.tensor([1.0, 5.0]))


def batch_dice(logits: Tensor, target: Tensor) -> Tensor:
    loss: Tensor = DiceLoss(to_onehot_y=True, softmax=True, batch=True)(logits, target.long())
    return loss


@pytest.mark.parametrize(
    ("task", "model", "loss"),
    [("chest_xray", "mlp", weighted), ("hippocampus", "unet", batch_dice)],
)
def test_losses_that_couple_samples_are_for_the_loop(
    task: str, model: str, loss: Callable[[Tensor, Tensor], Tensor]
) -> None:
    coupled = dataclasses.replace(task_of(task), loss=loss)
    network = built(coupled, model)
    fit.require_private(network, coupled, privacy())
    with pytest.raises(ConfigError, match=r"couples the samples.*use privacy\.engine=loop"):
        fit.require_private(network, coupled, privacy(engine="per_sample"))


def test_a_loss_that_cannot_be_tried_is_for_the_loop() -> None:
    task = radiographs(loss=functional.binary_cross_entropy_with_logits)
    network = convolution()
    with pytest.raises(ConfigError, match=r"cannot be tried.*use privacy\.engine=loop"):
        fit.require_private(network, task, privacy(engine="per_sample"))
    separable = dataclasses.replace(task_of("hippocampus"), loss=DiceCELoss(to_onehot_y=True))
    unet = built(separable, "unet")
    fit.require_private(unet, separable, privacy(engine="per_sample"))


# --- the head ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "model", "layer"),
    [
        ("chest_xray", "mlp", "output"),
        ("chest_xray", "resnet", "fc"),
        ("chest_xray", "densenet121", "class_layers.out"),
        ("hippocampus", "unet", "model.2.1.conv.unit0.conv"),
        ("hippocampus", "segresnet", "conv_final.2.conv"),
    ],
)
def test_the_head_gives_the_logits(task: str, model: str, layer: str) -> None:
    made = task_of(task)
    network = built(made, model)
    assert fit.head(network) == (f"{layer}.weight", f"{layer}.bias")
    assert [name for name, _ in fit.trainable(network, privacy(trainable="head"))] == list(
        fit.head(network)
    )
    assert network.get_parameter(f"{layer}.bias").shape == (len(made.classes),)
    images = torch.randn(2, made.in_channels, *made.patch)
    before = network(images)
    with torch.no_grad():
        network.get_parameter(f"{layer}.bias").add_(torch.arange(float(len(made.classes))))
    moved = (network(images) - before).transpose(0, 1).flatten(1).mean(1)
    torch.testing.assert_close(moved, torch.arange(float(len(made.classes))), rtol=0, atol=1e-3)


def test_a_last_layer_that_is_not_the_head_is_refused() -> None:
    network = nn.Sequential(convolution(), nn.Linear(2, 2), nn.Tanh())
    fit.require_private(network, radiographs(), privacy())
    with pytest.raises(ConfigError, match=r"use privacy\.trainable=all"):
        fit.require_private(network, radiographs(), privacy(trainable="head"))


def test_what_is_not_trained_is_frozen_meanwhile() -> None:
    network = built(task_of("chest_xray"), "mlp")
    names = [name for name, _ in network.named_parameters()]
    assert [name for name, _ in fit.trainable(network, privacy())] == names
    with fit.frozen(network, privacy(trainable="head")) as parameters:
        assert parameters == list(network.output.parameters())  # type: ignore[union-attr]
        needing = [name for name, p in network.named_parameters() if p.requires_grad]
        assert needing == list(fit.head(network))
    assert all(parameter.requires_grad for parameter in network.parameters())
    with pytest.raises(ConfigError, match="no parameters"):
        fit.trainable(nn.ReLU(), privacy(trainable="head"))
