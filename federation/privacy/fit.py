"""Whether a network and a task can be trained with patient-level privacy, and which part is trained.

Asked by the coordinator when a run is composed and by each hospital before it charges its ledger. No
answer depends on anybody's data: what cannot be read off the network is tried on random numbers.

The loop engine takes each patient through the network alone, so neither layers that work in place nor
losses that couple the samples of a batch (a batch Dice) stand in its way: what is coupled there is one
patient's. The per-sample engine is exact for fewer, see `per_sample`.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from federation.privacy import per_sample
from federation.schema import ConfigError, PatientDP
from federation.tasks import Task

_LONGEST_EDGE = 32  # of the random images that are tried, where the network takes smaller ones
_TOLERANCE = 1e-4  # relative, of losses and logits in float32


def require_private(network: nn.Module, task: Task, privacy: PatientDP) -> None:
    """Refuse what cannot be trained with privacy. Network and random state are as before.

    Raises:
        ConfigError: names what does not fit, and the way out.
    """
    _require_norms(network)
    with _probed(network, task) as (probe, images, logits):
        _require_still_buffers(probe, network)
        _require_separate_samples(probe, images, logits)
        if privacy.trainable == "head":
            _require_head(probe, images)
        if privacy.engine == "per_sample":
            _way(probe, privacy, images, logits)
            _require_separable_loss(task, logits)


def per_sample_way(network: nn.Module, task: Task, privacy: PatientDP) -> per_sample.Way:
    """How the per-sample engine gets this network's gradients.

    Raises:
        ConfigError: neither way is right.
    """
    with _probed(network, task) as (probe, images, logits):
        return _way(probe, privacy, images, logits)


# --- what is trained -----------------------------------------------------------------------------


def head(network: nn.Module) -> tuple[str, ...]:
    """Names of the last layer's parameters: of the last registered module with parameters of its own.

    That it gives the logits is checked by `require_private`.
    """
    layers = [
        (name, layer)
        for name, layer in network.named_modules()
        if next(layer.parameters(recurse=False), None) is not None
    ]
    if not layers:
        raise ConfigError("the model has no parameters: there is nothing to train")
    name, layer = layers[-1]
    return tuple(
        f"{name}.{own}" if name else own for own, _ in layer.named_parameters(recurse=False)
    )


def trainable(network: nn.Module, privacy: PatientDP) -> list[tuple[str, nn.Parameter]]:
    """Names and parameters that private training moves; all others stay as they came.

    Raises:
        ConfigError: none of them.
    """
    chosen = set(head(network)) if privacy.trainable == "head" else None
    found = [
        (name, parameter)
        for name, parameter in network.named_parameters()
        if parameter.requires_grad and (chosen is None or name in chosen)
    ]
    if not found:
        raise ConfigError("the model has no parameters that may be trained")
    return found


@contextlib.contextmanager
def frozen(network: nn.Module, privacy: PatientDP) -> Iterator[list[nn.Parameter]]:
    """What is `trainable`, while all else needs no gradients."""
    chosen = [parameter for _, parameter in trainable(network, privacy)]
    kept = {id(parameter) for parameter in chosen}
    others = [p for p in network.parameters() if p.requires_grad and id(p) not in kept]
    for parameter in others:
        parameter.requires_grad_(False)
    try:
        yield chosen
    finally:
        for parameter in others:
            parameter.requires_grad_(True)


# --- what is read off the network ----------------------------------------------------------------


def _require_norms(network: nn.Module) -> None:
    for name, layer in network.named_modules():
        if isinstance(layer, _BatchNorm):
            raise ConfigError(
                f"privacy=patient_dp: the model's layer {name!r} is a BatchNorm, which mixes the "
                "samples of a batch and keeps their statistics, and these have no noise: use "
                "model.norm=group"
            )
        if isinstance(layer, _InstanceNorm) and layer.track_running_stats:
            raise ConfigError(
                f"privacy=patient_dp: the model's layer {name!r} is an InstanceNorm that keeps "
                "running statistics, and these have no noise: use model.norm=group, or build it "
                "with track_running_stats=False"
            )


def _refused_by_opacus(network: nn.Module) -> str | None:
    """What Opacus's validator says first; its per-sample gradients are not to be had then."""
    from opacus.validators import ModuleValidator

    errors = ModuleValidator.validate(network, strict=False)
    return str(errors[0]).split(". ")[0] if errors else None


# --- what is tried -------------------------------------------------------------------------------


@contextlib.contextmanager
def _probed(network: nn.Module, task: Task) -> Iterator[tuple[nn.Module, Tensor, Tensor]]:
    """A copy of the network on the CPU in training mode, two random images, and their logits.

    The images are as large as the task's patch, or smaller where the network takes that: what is asked
    does not depend on their size, and a volume's gradients take gigabytes.
    """
    probe = copy.deepcopy(network).cpu().train()
    whole = tuple(task.patch)
    small = tuple(min(edge, _LONGEST_EDGE) for edge in whole)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for shape in dict.fromkeys((small, whole)):
            images = torch.randn(2, task.in_channels, *shape)
            try:
                logits = probe(images)
            except Exception as error:
                if shape == whole:
                    edges = "×".join(map(str, whole))
                    raise ConfigError(
                        f"the model does not take two images of task/{task.name} ({edges}) in "
                        f"training: {type(error).__name__}"
                    ) from error
                continue
            break
        yield probe, images, logits.detach()


def _require_still_buffers(probe: nn.Module, network: nn.Module) -> None:
    """The copy has been through one forward pass, the network has not."""
    before = dict(_state(network))
    for name, tensor in _state(probe):
        if not torch.equal(tensor, before[name].to(tensor.device)):
            raise ConfigError(
                f"privacy=patient_dp: training changes the model's {name!r} without a gradient, so "
                "without noise: use a model that keeps no statistics (model.norm=group)"
            )


def _state(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """All tensors of a network: parameters and buffers, those that are not saved too."""
    yield from network.named_parameters()
    yield from network.named_buffers()


def _require_separate_samples(probe: nn.Module, images: Tensor, logits: Tensor) -> None:
    """NaN reaches whatever is computed from it, however small its share."""
    spoilt = images.clone()
    spoilt[1] = torch.nan
    with torch.no_grad():
        beside = probe(spoilt)
    if len(logits) != 2 or not (beside[0].isfinite() | ~logits[0].isfinite()).all():
        raise ConfigError(
            "privacy=patient_dp: the model mixes the samples of a batch, so that one sample's "
            "logits depend on another one: use model.norm=group, or a model that treats each alone"
        )


def _require_head(probe: nn.Module, images: Tensor) -> None:
    """What is added to the head's output is added to the logits: then nothing comes after it."""
    layer = probe.get_submodule(head(probe)[-1].rpartition(".")[0])
    shift = 0.0

    def shifted(_layer: nn.Module, _given: Any, output: Tensor) -> Tensor:
        return output + shift

    logits = []
    handle = layer.register_forward_hook(shifted)
    try:
        for shift in (0.0, 1.0):  # noqa: B007 - `shifted` reads it
            torch.manual_seed(1)  # the same dropout
            with torch.no_grad():
                logits.append(probe(images))
    finally:
        handle.remove()
    if not torch.allclose(logits[1] - logits[0], torch.ones(()), atol=1e-2):
        raise ConfigError(
            "privacy.trainable=head: the model's last layer does not give its logits: use "
            "privacy.trainable=all"
        )


def _way(probe: nn.Module, privacy: PatientDP, images: Tensor, logits: Tensor) -> per_sample.Way:
    refused = _refused_by_opacus(probe)
    if refused is not None:
        raise ConfigError(
            f"privacy.engine=per_sample: Opacus refuses the model ({refused}): use "
            "privacy.engine=loop"
        )
    before = torch.random.get_rng_state()
    with torch.no_grad():
        probe(images)
    if not torch.equal(torch.random.get_rng_state(), before):
        raise ConfigError(
            "privacy.engine=per_sample: the model draws random numbers in training (dropout), and "
            "in one pass these depend on which patients share it: use privacy.engine=loop or "
            "model.dropout=0"
        )
    with frozen(probe, privacy) as parameters:
        found = per_sample.way(probe, parameters, images, logits)
    if found is None:
        raise ConfigError(
            "privacy.engine=per_sample: neither Opacus's hooks nor vmap give the model's gradients "
            "of single samples: use privacy.engine=loop"
        )
    return found


def _require_separable_loss(task: Task, logits: Tensor) -> None:
    """A batch's loss and its gradient are the mean of its samples', for samples that differ much."""

    def joint(given: Tensor) -> Tensor:
        return task.loss(given, target)

    def mean(given: Tensor) -> Tensor:
        return (task.loss(given[:1], target[:1]) + task.loss(given[1:], target[1:])) / 2

    target = _targets(task, logits)
    given = torch.randn_like(logits).requires_grad_()
    try:
        found = [(loss, *torch.autograd.grad(loss, given)) for loss in (joint(given), mean(given))]
    except Exception as error:
        raise ConfigError(
            f"privacy.engine=per_sample: the loss of task/{task.name} cannot be tried on random "
            f"logits ({type(error).__name__}): use privacy.engine=loop"
        ) from error
    for one, other in zip(*found, strict=True):
        if not (one - other).norm() <= _TOLERANCE * other.norm():
            raise ConfigError(
                f"privacy.engine=per_sample: the loss of task/{task.name} couples the samples of a "
                "batch (it is not the mean of theirs): use privacy.engine=loop, for which a "
                "patient is a batch"
            )


def _targets(task: Task, logits: Tensor) -> Tensor:
    """Labels of two samples: other classes, or foregrounds of an eighth and of seven eighths."""
    classes = logits.shape[1]
    if task.kind == "classification":
        return torch.tensor([0, classes - 1])
    spatial = logits.shape[2:]
    place = torch.arange(spatial.numel())
    drawn = torch.stack([place % 8 == 0, place % 8 != 0])
    labels = drawn * (1 + place // 8 % (classes - 1))
    return labels.view(2, 1, *spatial).to(torch.uint8)
