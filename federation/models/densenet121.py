"""DenseNet-121 (Huang et al. 2017, arXiv:1608.06993), by MONAI."""

from __future__ import annotations

from monai.networks.nets import DenseNet121
from pydantic import Field
from torch import nn

from federation.models._fit import Norm, norm_layer, require_kind, require_multiple
from federation.schema import Closed
from federation.tasks import Task


class Options(Closed):
    norm: Norm = "group"
    dropout: float = Field(default=0.0, ge=0, lt=1)


def build(options: Options, task: Task) -> nn.Module:
    """Logits (B, classes) of images (B, channels, spatial).

    Raises:
        federation.schema.ConfigError: the task is no classification, or its images are no multiple
            of 32, the factor by which the network shrinks them.
    """
    require_kind(task, "classification", "densenet121")
    require_multiple(task, 32, "densenet121")
    network: nn.Module = DenseNet121(
        spatial_dims=task.spatial_dims,
        in_channels=task.in_channels,
        out_channels=len(task.classes),
        norm=norm_layer(options.norm, groups=32),
        dropout_prob=options.dropout,
    )
    return network
