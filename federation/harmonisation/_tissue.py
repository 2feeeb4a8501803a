"""Where in a loaded image the patient is, and maps of grey values that are learnt there."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Values = NDArray[np.float64]
Mask = NDArray[np.bool_]

# Share of the range by which what was one value may have come apart on the way (float32, resizing).
_ROUNDING = 1e-4


def tissue(values: Values) -> Mask:
    """All but padding and air, of one channel.

    Padding is what at the edges are whole planes (or rows) of one and the same value. Of what is left,
    air is all that has the darkest value: tasks cut off at a dark value, or blank, what is not the
    patient. So a monotone change of the grey values changes nothing here.

    Raises:
        ValueError: values that are not finite, or all equal.
    """
    if not np.isfinite(values).all():
        raise ValueError("image has values that are not finite")
    box = [slice(0, size) for size in values.shape]
    for axis in range(values.ndim):
        rest = tuple(other for other in range(values.ndim) if other != axis)
        inside = values[tuple(box)]
        plain = inside.min(axis=rest) == inside.max(axis=rest)
        kept = np.flatnonzero(~plain)
        if kept.size == 0:
            raise ValueError("the image is empty: nothing in it stands out from its background")
        box[axis] = slice(int(kept[0]), int(kept[-1]) + 1)
    found = np.zeros(values.shape, dtype=bool)
    inside = values[tuple(box)]
    low, high = inside.min(), inside.max()
    found[tuple(box)] = inside > low + _ROUNDING * (high - low)
    return found


def by_channel(image: Tensor, change: Callable[[Values, Mask], Values]) -> Tensor:
    """`change(values, tissue)` of each channel; float32 (channels, *spatial).

    Raises:
        ValueError: see `tissue`.
    """
    channels = [np.asarray(channel, dtype=np.float64) for channel in image]
    changed = [change(values, tissue(values)) for values in channels]
    return torch.from_numpy(np.stack(changed).astype(np.float32))
