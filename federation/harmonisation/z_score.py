"""Mean 0 and standard deviation 1 in the patient's part of each image.

The task has done something alike, but over padding and air as well where these are in its crop. What is
not the patient goes through the same map.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from federation.harmonisation._tissue import Mask, Values, by_channel
from federation.schema import Closed


class Options(Closed):
    """There are none."""


def even(image: Tensor, *, options: Options, grey: tuple[float, float]) -> Tensor:
    """Raises: ValueError: no part of the image stands out, or values that are not finite."""
    return by_channel(image, _standardised)


def _standardised(values: Values, tissue: Mask) -> Values:
    inside = values[tissue]
    deviation = inside.std()
    if not deviation > 1e-9 * np.abs(inside).max():
        raise ValueError("the image is empty: nearly all its values are equal")
    standardised: Values = (values - inside.mean()) / deviation
    return standardised
