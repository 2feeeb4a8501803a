"""Training images as other scanners would have made them, by MONAI's random transforms.

Uneven brightness, contrast, histogram, blur, sharpening, noise, coarse sampling and, of MR, ringing:
strong variations of few kinds make a network look past the scanner (Zhang et al. 2020, BigAug,
doi:10.1109/TMI.2020.2973595). No image but the sample's own goes in.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any

import torch
from monai.data import MetaTensor
from monai.transforms import (
    Compose,
    RandAdjustContrast,
    RandBiasField,
    RandGaussianNoise,
    RandGaussianSharpen,
    RandGaussianSmooth,
    RandGibbsNoise,
    RandHistogramShift,
    Randomizable,
    RandSimulateLowResolution,
)
from pydantic import Field

from federation.schema import Closed
from federation.tasks import Task


class Options(Closed):
    """`prob`: chance of each kind; `strength`: from hardly to as far as scanners go."""

    prob: float = Field(default=0.3, gt=0, le=1)
    strength: float = Field(default=0.5, ge=0.05, le=1)


def vary(options: Options, task: Task) -> ScannerAugmentation:
    mr = task.selection.modalities == {"MR"}
    return ScannerAugmentation(_kinds(options, task.spatial_dims, mr=mr))


class ScannerAugmentation(Randomizable):  # type: ignore[misc]
    """Changes `image` (channels, *spatial) of a sample; its shape stays.

    The transforms see values between 0 and 1, the sample's own darkest and brightest, whatever the
    task's scale is. A sample of one value alone stays as it is.
    """

    def __init__(self, kinds: Compose) -> None:
        self.kinds = kinds

    def __call__(self, sample: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        image = torch.as_tensor(sample["image"])
        low, high = image.min(), image.max()
        if not high > low:
            return dict(sample)
        seen = self.kinds(MetaTensor((image - low) / (high - low)))
        changed = torch.as_tensor(seen).as_subclass(torch.Tensor)
        return {**sample, "image": (low + changed * (high - low)).to(image.dtype)}


def _kinds(options: Options, axes: int, *, mr: bool) -> Compose:
    """In the order in which they come about: coil, tissue, optics, detector, reconstruction."""
    prob, strength = options.prob, options.strength
    sigma = (0.25, 0.25 + 1.0 * strength)
    points = round(4 / strength)  # fewer control points move the histogram further
    steps: list[Callable[[Any], Any]] = [
        RandBiasField(prob=prob, coeff_range=(-0.3 * strength, 0.3 * strength)),
        RandAdjustContrast(prob=prob, gamma=(1 / (1 + strength), 1 + strength)),
        RandHistogramShift(prob=prob, num_control_points=(points, points + 4)),
        RandGaussianSmooth(prob=prob, sigma_x=sigma, sigma_y=sigma, sigma_z=sigma),
        RandGaussianSharpen(prob=prob, alpha=(0.5 * strength, 4 * strength)),
        RandSimulateLowResolution(
            prob=prob,
            upsample_mode="trilinear" if axes == 3 else "bilinear",
            zoom_range=(1 - 0.5 * strength, 1.0),
        ),
        RandGaussianNoise(prob=prob, std=0.1 * strength),
    ]
    if mr:
        steps.append(RandGibbsNoise(prob=prob, alpha=(0.0, 0.6 * strength)))
    return Compose(steps)
