"""Each image cut at percentiles of its patient's part, which become the ends of one scale.

The map is linear between the two, so it removes what a scanner's gain and offset do, and no more.
"""

from __future__ import annotations

from functools import partial
from typing import Self

import numpy as np
from pydantic import Field, model_validator
from torch import Tensor

from federation.harmonisation._tissue import Mask, Values, by_channel
from federation.schema import Closed


class Options(Closed):
    """`low` and `high`: percentiles that become the ends of the scale; what lies beyond is cut."""

    low: float = Field(default=1.0, ge=0, le=50)
    high: float = Field(default=99.0, ge=50, le=100)
    scale: tuple[float, float] | None = Field(
        default=None, description="none: the values that the task's random part expects"
    )

    @model_validator(mode="after")
    def _opens(self) -> Self:
        if self.low >= self.high:
            raise ValueError("low must be below high")
        if self.scale is not None and self.scale[0] >= self.scale[1]:
            raise ValueError("scale: its first value must be below its second")
        return self


def even(image: Tensor, *, options: Options, grey: tuple[float, float]) -> Tensor:
    """Raises: ValueError: no part of the image stands out, or values that are not finite."""
    return by_channel(image, partial(_scaled, options=options, scale=options.scale or grey))


def _scaled(
    values: Values, tissue: Mask, *, options: Options, scale: tuple[float, float]
) -> Values:
    low, high = np.percentile(values[tissue], (options.low, options.high))
    if not high > low:
        raise ValueError("the image is empty: nearly all its values are equal")
    share = np.clip((values - low) / (high - low), 0, 1)
    scaled: Values = scale[0] + share * (scale[1] - scale[0])
    return scaled
