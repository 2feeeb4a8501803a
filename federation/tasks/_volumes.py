"""What tasks on volumes share: checks, one orientation and spacing, and small transforms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Orientation, Spacing
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.nn import functional


def checked(item: dict[str, Any], classes: Sequence[str]) -> tuple[MetaTensor, MetaTensor]:
    """Image and mask of an item.

    Raises:
        ValueError: values that are not finite, a mask on another grid than its image, or one with
            values that are no class.
    """
    image, mask = item["image"], item["label"]
    require_finite(image)
    if image.shape[1:] != mask.shape[1:]:
        raise ValueError("mask and image differ in shape: resample the mask first")
    if (mask.numel() and int(mask.max()) >= len(classes)) or (mask < 0).any():
        meanings = ", ".join(f"{index} {name}" for index, name in enumerate(classes))
        raise ValueError(f"mask has values other than {meanings}")
    return image, mask


def require_finite(image: Tensor) -> None:
    """Raises: ValueError: NaN or infinite values."""
    if not torch.isfinite(image).all():
        raise ValueError("image has values that are not finite")


def upright(image: MetaTensor) -> MetaTensor:
    """Axes flipped and swapped so that they run nearest to right, anterior and superior."""
    turned: MetaTensor = Orientation(axcodes="RAS", labels=None)(image)
    return turned


def respaced(image: MetaTensor, spacing: Sequence[float]) -> MetaTensor:
    """Voxels of `spacing` mm by linear interpolation; for a coarser grid smoothed beforehand.

    Along an axis that grows coarser by a factor f the Gaussian has (f - 1) / 2 voxels of standard
    deviation, as in scikit-image's `resize`; without it fine structure comes back as noise. The first
    voxel's centre stays where it was.
    """
    factors = np.asarray(spacing) / voxel_size(image).numpy()
    sigmas = np.maximum(0, (factors - 1) / 2)
    if sigmas.max() > 0.01:
        smooth = gaussian_filter(image.numpy(), (0, *sigmas), mode="nearest")
        image = MetaTensor(torch.from_numpy(smooth), affine=image.affine)
    moved: MetaTensor = Spacing(pixdim=spacing, mode="bilinear", padding_mode="border")(image)
    return moved


def respaced_mask(mask: MetaTensor, spacing: Sequence[float]) -> MetaTensor:
    """Class indices on the grid that `respaced` gives: those of the nearest voxel."""
    moved: MetaTensor = Spacing(pixdim=spacing, mode="nearest", padding_mode="border")(mask)
    return moved


def voxel_size(image: MetaTensor) -> Tensor:
    """mm along each axis, float64 (3,)."""
    size: Tensor = image.affine[:3, :3].double().norm(dim=0)
    return size


def window(
    image: MetaTensor, centre: Sequence[float], shape: Sequence[int], value: float
) -> MetaTensor:
    """`shape` voxels of (channels, *spatial) about a voxel; outside the image they hold `value`."""
    starts = [round(c - (edge - 1) / 2) for c, edge in zip(centre, shape, strict=True)]
    pads: list[int] = []
    for start, edge, size in zip(starts, shape, image.shape[1:], strict=True):
        pads = [-start, start + edge - size, *pads]  # the last axis comes first; negative crops
    affine = image.affine.double().clone()
    affine[:3, 3] += affine[:3, :3] @ torch.tensor(starts, dtype=torch.float64)
    return MetaTensor(functional.pad(image.as_tensor(), pads, value=value), affine=affine)


def padded(image: MetaTensor, shape: Sequence[int], value: float) -> MetaTensor:
    """(channels, *spatial) with at least `shape` voxels, what is new evenly at both sides."""
    size = [max(edge, had) for edge, had in zip(shape, image.shape[1:], strict=True)]
    return window(image, [(had - 1) / 2 for had in image.shape[1:]], size, value)
