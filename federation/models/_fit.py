"""What networks share: whether one fits a task, and which normalisation it has."""

from __future__ import annotations

from math import gcd
from typing import Any, Literal

from monai.networks.layers.utils import get_norm_layer
from torch import nn

from federation.schema import ConfigError
from federation.tasks import Task

Norm = Literal["group", "instance", "batch"]
NormLayer = str | tuple[str, dict[str, Any]]


def require_kind(task: Task, kind: Literal["classification", "segmentation"], model: str) -> None:
    """Raises: ConfigError: the task is of the other kind."""
    if task.kind != kind:
        raise ConfigError(
            f"model/{model} is for {kind}, but task/{task.name} is a {task.kind}: "
            + (
                "use unet or segresnet"
                if task.kind == "segmentation"
                else "use resnet, resnet18, densenet121 or mlp"
            )
        )


def require_multiple(task: Task, factor: int, model: str) -> None:
    """Raises: ConfigError: a patch that cannot be halved as often as the network does."""
    if any(edge % factor for edge in task.patch):
        raise ConfigError(
            f"model/{model} needs patches in multiples of {factor}, but task/{task.name} has "
            f"{'×'.join(map(str, task.patch))}: change the patch or the number of levels"
        )


def norm_layer(norm: Norm, groups: int) -> NormLayer:
    """MONAI's name for a normalisation with a learnt scale and shift."""
    if norm == "group":
        return ("group", {"num_groups": groups, "affine": True})
    return (norm, {"affine": True})


def replace_batch_norm(network: nn.Module, norm: Norm, groups: int, spatial_dims: int) -> None:
    """Put `norm` in the place of each BatchNorm, for networks whose own option does not reach all.

    MONAI 1.6's ResNet passes its `norm` to the first layer only, and its UNet normalises as many
    channels as there are classes, which groups need not divide.
    """
    if norm == "batch":
        return
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm2d | nn.BatchNorm3d):
                wanted = norm_layer(norm, gcd(groups, child.num_features))
                setattr(parent, name, get_norm_layer(wanted, spatial_dims, child.num_features))
