"""Linear layers over the flattened image, by MONAI.

No good network for images; its size is set freely, which benchmarks of traffic and overhead want.
"""

from __future__ import annotations

from math import prod
from typing import Annotated

from monai.networks.nets import FullyConnectedNet
from pydantic import Field
from torch import nn

from federation.models._fit import require_kind
from federation.schema import Closed
from federation.tasks import Task


class Options(Closed):
    """`hidden`: features of each hidden layer; none of them makes logistic regression.

    On 64 × 64 pixels `hidden=[4096, 2000]` has 25 million parameters.
    """

    hidden: list[Annotated[int, Field(ge=1, le=65_536)]] = Field(default=[64], max_length=8)
    dropout: float = Field(default=0.0, ge=0, lt=1)


def build(options: Options, task: Task) -> nn.Module:
    """Logits (B, classes) of images (B, channels, spatial).

    Raises:
        federation.schema.ConfigError: the task is no classification.
    """
    require_kind(task, "classification", "mlp")
    network: nn.Module = FullyConnectedNet(
        in_channels=task.in_channels * prod(task.patch),
        out_channels=len(task.classes),
        hidden_channels=options.hidden,
        dropout=options.dropout or None,
    )
    return network
