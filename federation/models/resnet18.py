"""ResNet-18 (He et al. 2016, arXiv:1512.03385), by MONAI."""

from __future__ import annotations

from torch import nn

from federation.models import resnet
from federation.models._fit import Norm
from federation.schema import Closed
from federation.tasks import Task


class Options(Closed):
    norm: Norm = "group"


def build(options: Options, task: Task) -> nn.Module:
    """Logits (B, classes) of images (B, channels, spatial).

    Raises:
        federation.schema.ConfigError: the task is no classification.
    """
    return resnet.network(
        task, "resnet18", channels=[64, 128, 256, 512], blocks=[2, 2, 2, 2], norm=options.norm
    )
