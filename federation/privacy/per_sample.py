"""The gradient of each sample of a batch by itself, in one pass.

By Opacus's hooks on the layers where these are right, else by PyTorch's vmap of the gradient of the
whole network (both exact, and nothing is clipped here). Hooks cannot follow what changes a layer's
output in place (`out += residual`), parameters on the root, or padding other than zeros; whether they
can is not looked up but tried: `way` compares both with the gradients of single samples.
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

Way = Literal["hooks", "functorch"]
Objective = Callable[[Tensor], Tensor]
"""Logits (B, …) to the sum of B losses, each of one sample alone."""
Gradients = Callable[[Tensor, Objective], list[Tensor]]
"""Images (B, …) and the objective to (B, *shape) for each trained parameter."""

# Relative differences from true gradients that are rounding. Hooks see the same forward pass, so they
# agree to 1e-6; vmap's rounds in another way, and a ReLU at its edge then changes a layer by a percent.
_TOLERANCES: dict[Way, float] = {"hooks": 1e-4, "functorch": 0.05}


def way(
    network: nn.Module, parameters: Sequence[nn.Parameter], images: Tensor, logits: Tensor
) -> Way | None:
    """Which way gives these samples' true gradients; None if neither does.

    Args:
        network: in training mode, without random layers.
        logits: of `images`.
    """
    direction = torch.linspace(-1, 1, logits.numel()).view(logits.shape).cos()

    def objective(logits: Tensor) -> Tensor:
        return (logits * direction).sum()

    losses = (network(images) * direction).flatten(1).sum(1)
    single = [
        torch.autograd.grad(
            loss, parameters, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        for loss in losses
    ]
    true = [torch.stack(of_samples) for of_samples in zip(*single, strict=True)]
    for candidate, tolerance in _TOLERANCES.items():
        try:
            with gradients_by(candidate, network, parameters) as gradients:
                found = gradients(images, objective)
        except Exception:  # noqa: S112 - whatever it cannot follow
            continue
        if _same(found, true, tolerance):
            return candidate
    return None


@contextlib.contextmanager
def gradients_by(
    way: Way, network: nn.Module, parameters: Sequence[nn.Parameter]
) -> Iterator[Gradients]:
    """Gradients of each sample; afterwards the network is as it was, without hooks and gradients.

    Whatever the network or the objective raises comes through, and the next call is not touched by it.
    """
    if way == "hooks":
        with _hooks(network, parameters) as gradients:
            yield gradients
    else:
        yield _functorch(network, parameters)


@contextlib.contextmanager
def _hooks(network: nn.Module, parameters: Sequence[nn.Parameter]) -> Iterator[Gradients]:
    from opacus.grad_sample import GradSampleModule

    def gradients(images: Tensor, objective: Objective) -> list[Tensor]:
        try:
            with warnings.catch_warnings():
                # Images need no gradient, which is as it should be.
                warnings.filterwarnings("ignore", "Full backward hook is firing")
                torch.autograd.backward(objective(network(images)))
            return [_of_samples(parameter, len(images)) for parameter in parameters]
        finally:
            _forget(network)

    hooked = GradSampleModule(network, loss_reduction="sum")
    try:
        yield gradients
    finally:
        hooked.to_standard_module()
        _forget(network)


def _of_samples(parameter: Any, count: int) -> Tensor:
    if parameter.grad_sample is None:  # the logits do not depend on it
        return torch.zeros(count, *parameter.shape, device=parameter.device)
    made: Tensor = parameter.grad_sample
    return made


def _forget(network: nn.Module) -> None:
    """Drop what a pass leaves on layers and parameters, above all one that was broken off."""
    for layer in network.modules():
        for name in ("activations", "max_batch_len"):
            vars(layer).pop(name, None)
    for parameter in network.parameters():
        parameter.grad = None
        left = vars(parameter)
        left.pop("_current_grad_sample", None)
        if "grad_sample" in left:
            left.update(grad_sample=None, _forward_counter=0)


def _functorch(network: nn.Module, parameters: Sequence[nn.Parameter]) -> Gradients:
    # A copy without numbers: on the network itself a layer that is registered twice would keep tensors
    # of the transformation.
    skeleton = copy.deepcopy(network).to("meta")
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    trained = [names[id(parameter)] for parameter in parameters]

    def weighted(
        values: dict[str, Tensor], others: dict[str, Tensor], image: Tensor, weight: Tensor
    ) -> Tensor:
        logits: Tensor = functional_call(skeleton, {**others, **values}, (image[None],))
        return (logits * weight[None]).sum()

    of_each = vmap(grad(weighted), in_dims=(None, None, 0, 0))

    def gradients(images: Tensor, objective: Objective) -> list[Tensor]:
        # The losses' own derivatives are taken outside, so that any loss will do.
        with torch.no_grad():
            logits = network(images)
        logits.requires_grad_()
        (weights,) = torch.autograd.grad(objective(logits), logits)
        state = {**dict(network.named_parameters()), **dict(network.named_buffers())}
        values = {name: state.pop(name).detach() for name in trained}
        others = {name: tensor.detach() for name, tensor in state.items()}
        found = of_each(values, others, images, weights)
        return [found[name] for name in trained]

    return gradients


def _same(found: Sequence[Tensor], true: Sequence[Tensor], tolerance: float) -> bool:
    """Whether each parameter's gradients agree; where they vanish, to a share of all."""
    size = torch.stack([of_samples.norm() for of_samples in true]).norm()
    return all(
        one.shape == other.shape
        and bool((one - other).norm() <= tolerance * (other.norm() + size / 100))
        for one, other in zip(found, true, strict=True)
    )
