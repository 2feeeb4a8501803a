"""U-Net with residual units (Kerfoot et al. 2018, doi:10.1007/978-3-030-12029-0_40), by MONAI."""

from __future__ import annotations

from typing import Annotated

from monai.networks.nets import UNet
from pydantic import Field
from torch import nn

from federation.models._fit import Norm, replace_batch_norm, require_kind, require_multiple
from federation.schema import Closed
from federation.tasks import Task


class Options(Closed):
    """`channels`: features at each level; each level but the first halves the resolution."""

    channels: list[Annotated[int, Field(ge=4, le=1024, multiple_of=4)]] = Field(
        default=[16, 32, 64], min_length=2, max_length=7
    )
    residual_units: int = Field(default=1, ge=0, le=4)
    norm: Norm = "instance"
    dropout: float = Field(default=0.0, ge=0, lt=1)


def build(options: Options, task: Task) -> nn.Module:
    """Logits (B, classes, spatial) of images (B, channels, spatial).

    Raises:
        federation.schema.ConfigError: the task is no segmentation, or its patch cannot be halved as
            often as there are levels below the first.
    """
    require_kind(task, "segmentation", "unet")
    halvings = len(options.channels) - 1
    require_multiple(task, 2**halvings, "unet")
    network: nn.Module = UNet(
        spatial_dims=task.spatial_dims,
        in_channels=task.in_channels,
        out_channels=len(task.classes),
        channels=options.channels,
        strides=[2] * halvings,
        num_res_units=options.residual_units,
        norm="batch",
        dropout=options.dropout,
    )
    replace_batch_norm(network, options.norm, groups=4, spatial_dims=task.spatial_dims)
    return network
