"""Each image's histogram brought to a public one, by landmarks (Nyúl, Udupa and Zhang 2000).

Percentiles of the patient's part become fixed values and what is between them is mapped linearly
(doi:10.1109/42.836373, section II). There the values are means over training images. Here they are
quantiles of a normal or of a uniform distribution, so that nothing is learnt of any patient: what any
monotone change of grey values does is removed, and with it what the histogram's shape says of disease.
"""

from __future__ import annotations

from functools import partial
from statistics import NormalDist
from typing import Literal

import numpy as np
from pydantic import Field
from torch import Tensor

from federation.harmonisation._tissue import Mask, Values, by_channel
from federation.schema import Closed


class Options(Closed):
    """`tail`: percentile of the first landmark, and of the last one from above; cut beyond."""

    reference: Literal["normal", "uniform"] = "normal"
    landmarks: int = Field(default=21, ge=3, le=256)
    tail: float = Field(default=1.0, gt=0, le=20)


def even(image: Tensor, *, options: Options, grey: tuple[float, float]) -> Tensor:
    """A normal reference has its mean in the middle of the task's scale and four deviations in it.

    Raises:
        ValueError: no part of the image stands out, or values that are not finite.
    """
    levels = np.linspace(options.tail, 100 - options.tail, options.landmarks)
    low, high = grey
    if options.reference == "normal":
        normal = NormalDist((low + high) / 2, (high - low) / 4)
        targets = np.array([normal.inv_cdf(level / 100) for level in levels])
    else:
        targets = np.linspace(low, high, options.landmarks)
    return by_channel(image, partial(_matched, levels=levels, targets=targets))


def _matched(values: Values, tissue: Mask, *, levels: Values, targets: Values) -> Values:
    landmarks = np.percentile(values[tissue], levels)
    # Where many voxels have one value, several landmarks are that value: it gets their targets' mean.
    known, which = np.unique(landmarks, return_inverse=True)
    if known.size < 2:
        raise ValueError("the image is empty: nearly all its values are equal")
    meant = np.bincount(which, weights=targets) / np.bincount(which)
    return np.interp(values, known, meant)
