"""A residual network of any width and depth (He et al. 2016, arXiv:1512.03385), by MONAI.

The default, one narrow block a level, trains in seconds on a CPU.
"""

from __future__ import annotations

from typing import Annotated

from monai.networks.nets import ResNet
from pydantic import Field
from torch import nn

from federation.models._fit import Norm, replace_batch_norm, require_kind
from federation.schema import Closed
from federation.tasks import Task

Width = Annotated[int, Field(ge=8, le=1024, multiple_of=8)]
Depth = Annotated[int, Field(ge=1, le=36)]


class Options(Closed):
    """`channels` and `blocks`: features and residual blocks at each of four levels."""

    channels: list[Width] = Field(default=[8, 16, 32, 64], min_length=4, max_length=4)
    blocks: list[Depth] = Field(default=[1, 1, 1, 1], min_length=4, max_length=4)
    norm: Norm = "group"


def build(options: Options, task: Task) -> nn.Module:
    """Logits (B, classes) of images (B, channels, spatial).

    Raises:
        federation.schema.ConfigError: the task is no classification.
    """
    return network(task, "resnet", options.channels, options.blocks, options.norm)


def network(
    task: Task, model: str, channels: list[int], blocks: list[int], norm: Norm
) -> nn.Module:
    """The residual network with basic blocks that `model` names."""
    require_kind(task, "classification", model)
    built: nn.Module = ResNet(
        block="basic",
        layers=blocks,
        block_inplanes=channels,
        spatial_dims=task.spatial_dims,
        n_input_channels=task.in_channels,
        num_classes=len(task.classes),
        conv1_t_stride=2,
    )
    replace_batch_norm(built, norm, groups=8, spatial_dims=task.spatial_dims)
    return built
