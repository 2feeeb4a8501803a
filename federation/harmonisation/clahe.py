"""Contrast-limited adaptive histogram equalisation of radiographs (Zuiderveld 1994).

Graphics Gems IV, pages 474–485: a histogram for each tile, no bin of it above a limit; what is cut off
is shared by all bins; each pixel's value is interpolated between the maps of the four tiles about it.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from federation.harmonisation._tissue import Mask, Values, by_channel
from federation.schema import Closed, ConfigError
from federation.tasks import Task


class Options(Closed):
    """`tiles`: along each axis; `clip`: most that a bin may hold, in shares of an even histogram."""

    tiles: int = Field(default=8, ge=1, le=64)
    clip: float = Field(default=2.0, ge=1, le=100)
    bins: int = Field(default=256, ge=16, le=4096)


def check(options: Options, task: Task) -> None:
    if task.spatial_dims != 2:
        raise ConfigError(
            f"harmonisation=clahe is for radiographs; task {task.name} reads volumes: use histogram"
        )


def even(image: Tensor, *, options: Options, grey: tuple[float, float]) -> Tensor:
    """Equalised between the darkest and the brightest value of the patient's part.

    Padding and air stay as they are, and count in no histogram.

    Raises:
        ValueError: no part of the image stands out, or values that are not finite.
    """
    return by_channel(image, partial(_equalised, options=options))


def _equalised(values: Values, tissue: Mask, *, options: Options) -> Values:
    inside = values[tissue]
    low, high = inside.min(), inside.max()
    if not high > low:
        raise ValueError("the image is empty: nearly all its values are equal")
    share = np.clip((values - low) / (high - low), 0, 1)
    levels = np.rint(share * (options.bins - 1)).astype(np.int64)
    rows, columns = (np.flatnonzero(tissue.any(axis=axis)) for axis in (1, 0))
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    equalised = _interpolated(levels[box], tissue[box], options)
    result = values.copy()
    result[box][tissue[box]] = (low + equalised * (high - low))[tissue[box]]
    return result


def _interpolated(levels: NDArray[np.int64], tissue: Mask, options: Options) -> Values:
    """Grey levels (rows, columns) to [0, 1]."""
    rows, columns = (_edges(size, options.tiles) for size in levels.shape)
    maps = np.empty((rows.size - 1, columns.size - 1, options.bins))
    for i, j in np.ndindex(maps.shape[:2]):
        tile = slice(rows[i], rows[i + 1]), slice(columns[j], columns[j + 1])
        inside = levels[tile][tissue[tile]]
        maps[i, j] = _map(inside if inside.size else levels[tissue], options)
    (up, down, fall), (left, right, run) = _between(rows), _between(columns)
    fall, run = fall[:, None], run[None, :]
    upper = (1 - run) * maps[up[:, None], left, levels] + run * maps[up[:, None], right, levels]
    lower = (1 - run) * maps[down[:, None], left, levels] + run * maps[down[:, None], right, levels]
    between: Values = (1 - fall) * upper + fall * lower
    return between


def _edges(size: int, tiles: int) -> NDArray[np.int64]:
    return np.rint(np.linspace(0, size, min(tiles, size) + 1)).astype(np.int64)


def _map(levels: NDArray[np.int64], options: Options) -> Values:
    """What each level becomes: the cumulative histogram after the cut, float64 (bins,) up to 1."""
    counts = np.bincount(levels, minlength=options.bins).astype(np.float64)
    limit = options.clip * counts.sum() / options.bins
    excess = np.maximum(counts - limit, 0).sum()
    shared = np.minimum(counts, limit) + excess / options.bins
    rising: Values = shared.cumsum() / counts.sum()
    return rising


def _between(
    edges: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.int64], Values]:
    """For each pixel along an axis the tiles whose centres it lies between, and how far it is."""
    centres = (edges[:-1] + edges[1:] - 1) / 2
    place = np.interp(np.arange(edges[-1]), centres, np.arange(centres.size))
    first = np.floor(place).astype(np.int64)
    return first, np.minimum(first + 1, centres.size - 1), place - first
