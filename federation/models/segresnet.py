"""SegResNet without its variational branch (Myronenko 2018, arXiv:1810.11654), by MONAI."""

from __future__ import annotations

from typing import Annotated

from monai.networks.nets import SegResNet
from pydantic import Field
from torch import nn

from federation.models._fit import Norm, norm_layer, require_kind, require_multiple
from federation.schema import Closed
from federation.tasks import Task


class Options(Closed):
    """`filters`: features at full resolution, doubled at each level; `blocks`: of each level."""

    filters: int = Field(default=8, ge=8, le=128, multiple_of=8)
    blocks: list[Annotated[int, Field(ge=1, le=8)]] = Field(
        default=[1, 2, 2], min_length=2, max_length=6
    )
    norm: Norm = "group"
    dropout: float = Field(default=0.0, ge=0, lt=1)


def build(options: Options, task: Task) -> nn.Module:
    """Logits (B, classes, spatial) of images (B, channels, spatial).

    Raises:
        federation.schema.ConfigError: the task is no segmentation, or its patch cannot be halved as
            often as there are levels below the first.
    """
    require_kind(task, "segmentation", "segresnet")
    halvings = len(options.blocks) - 1
    require_multiple(task, 2**halvings, "segresnet")
    network: nn.Module = SegResNet(
        spatial_dims=task.spatial_dims,
        init_filters=options.filters,
        in_channels=task.in_channels,
        out_channels=len(task.classes),
        dropout_prob=options.dropout or None,
        norm=norm_layer(options.norm, groups=8),
        blocks_down=tuple(options.blocks),
        blocks_up=(1,) * halvings,
    )
    return network
