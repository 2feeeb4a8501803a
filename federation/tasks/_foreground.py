"""Where in an image the patient is: bright against the air around."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

_BINS = 256
# Elements along the longest axis that the search looks at, by dimensions: filling holes in whole
# mammograms (12 million pixels) takes seconds and finds the same.
_COARSE = {2: 512, 3: 128}


def foreground(values: NDArray[np.float32], *, margin: int = 0) -> NDArray[np.bool_]:
    """The largest connected bright part of a 2-D or 3-D image, its holes filled.

    The threshold is the image's own: Otsu's twice, the second time with all above the first cut down
    to it. Once alone would, where bright tissue is plentiful, split bright tissue from dim tissue
    instead of tissue from air. An opening parts what hangs together by a thread, such as a burnt-in
    label or the frame of a film. Found on every n-th element, so that the longest axis has at most
    512 (2-D) or 128 (3-D) of them.

    Args:
        margin: how many of those n-th elements the part is grown by.

    Raises:
        ValueError: all values are equal, or nothing is left of what is bright.
    """
    step = math.ceil(max(values.shape) / _COARSE[values.ndim])
    coarse = values[(slice(None, None, step),) * values.ndim]
    low, high = np.percentile(coarse, (0.1, 99.9))
    if not high > low:
        raise ValueError("the image is empty: nearly all its values are equal")
    first = otsu(np.clip(coarse, low, high))
    bright = coarse > otsu(np.clip(coarse, low, first))
    parts, count = ndimage.label(ndimage.binary_opening(bright))
    if count == 0:
        raise ValueError("the image is empty: nothing in it stands out from its background")
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    found = ndimage.binary_fill_holes(parts == sizes.argmax())
    if margin:
        found = ndimage.binary_dilation(found, iterations=margin)
    for axis, size in enumerate(values.shape):
        found = np.repeat(found, step, axis=axis).take(range(size), axis=axis)
    return np.asarray(found, dtype=bool)


def otsu(values: NDArray[Any]) -> float:
    """The threshold that parts two classes with the largest variance between them (Otsu 1979).

    It is the upper edge of one of 256 bins of equal width.
    """
    counts, edges = np.histogram(values, _BINS)
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)[:-1]
    above = counts.sum() - below
    total = np.cumsum(counts * centres)
    # The first and last bins hold the extremes, so neither class is ever empty.
    between = below * above * (total[:-1] / below - (total[-1] - total[:-1]) / above) ** 2
    return float(edges[int(between.argmax()) + 1])
