"""How well two masks of one case agree, in volume and in millimetres between their surfaces.

Masks are bool (*spatial) on one grid. What is not defined is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from monai.metrics import compute_hausdorff_distance, compute_surface_dice
from torch import Tensor
from torch.nn import functional


def dice(said: Tensor, true: Tensor) -> float:
    """2|P ∩ T| / (|P| + |T|) (Dice 1945); NaN where both are empty."""
    sizes = int(said.sum()) + int(true.sum())
    return 2 * int((said & true).sum()) / sizes if sizes else math.nan


def hausdorff95(said: Tensor, true: Tensor, spacing: Sequence[float]) -> float:
    """mm: of the distances from one surface to the other, the 95th percentile, the larger of the two
    directions; NaN where one mask is empty.

    Surfaces are the voxels of a mask that have a neighbour by a face outside of it.
    """
    if not (said.any() and true.any()):
        return math.nan
    distance = compute_hausdorff_distance(
        *_one_hot(said, true),
        include_background=True,
        percentile=95,
        spacing=[float(mm) for mm in spacing],
    )
    return float(distance)


def surface_dice(
    said: Tensor, true: Tensor, spacing: Sequence[float], *, tolerance: float = 2.0
) -> float:
    """Share of the area of both surfaces that lies within `tolerance` mm of the other one
    (Nikolov et al. 2021, doi:10.2196/26151); 0 where one mask is empty, NaN where both are.

    Areas are those of the marching cubes' triangles, so voxels need not be cubes.
    """
    if not (said.any() or true.any()):
        return math.nan
    if not (said.any() and true.any()):
        return 0.0
    share = compute_surface_dice(
        *_one_hot(said, true),
        class_thresholds=[tolerance],
        include_background=True,
        spacing=[float(mm) for mm in spacing],
        use_subvoxels=True,
    )
    return float(share)


def _one_hot(*masks: Tensor) -> tuple[Tensor, ...]:
    """(1, 1, *spatial) each, cut to the box that holds all of them, with air all around it.

    The air closes the surface of what touches the image's edge.
    """
    together = torch.stack(masks).any(dim=0).nonzero()
    first, last = together.amin(dim=0), together.amax(dim=0)
    box = tuple(slice(int(a), int(b) + 1) for a, b in zip(first, last, strict=True))
    around = (2, 2) * masks[0].ndim
    return tuple(functional.pad(mask[box].cpu(), around)[None, None] for mask in masks)
