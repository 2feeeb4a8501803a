"""Low frequencies of a training image made louder and softer by chance; their phases stay.

Scanners differ in the amplitudes of low frequencies, anatomy stands in the phases: Yang and Soatto 2020
(FDA, arXiv:2004.05498) put another image's amplitudes in their place, Xu et al. 2021 (FACT,
arXiv:2105.11120, section 3.2) mix them, (1 - λ)A + λA', λ drawn from U(0, η). There A' is another
patient's. Here it is the image's own times a smooth random spectrum: another patient's would travel into
this one's gradient, past the clip of patient-level privacy.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.transforms import RandomizableTransform
from numpy.typing import NDArray
from pydantic import Field
from scipy.ndimage import map_coordinates

from federation.schema import Closed
from federation.tasks import Task

# Random values along each axis from frequency 0 to where the change ends.
_KNOTS = 4


class Options(Closed):
    """`share`: of the frequencies along each axis, from 0, that change; `strength`: FACT's η."""

    prob: float = Field(default=0.5, gt=0, le=1, description="share of the samples")
    share: float = Field(default=0.5, gt=0, le=1)
    strength: float = Field(default=1.0, gt=0, le=1, description="largest λ")
    spread: float = Field(
        default=0.7, gt=0, le=2, description="standard deviation of an amplitude's logarithm"
    )


def vary(options: Options, task: Task) -> FourierAmplitude:
    return FourierAmplitude(options)


class FourierAmplitude(RandomizableTransform):  # type: ignore[misc]
    """Changes `image` (channels, *spatial) of a sample; its mean and its shape stay."""

    def __init__(self, options: Options) -> None:
        RandomizableTransform.__init__(self, options.prob)
        self.options = options
        self.mix = 0.0
        self.knots: NDArray[np.float64] = np.zeros(())

    def randomize(self, axes: int) -> None:
        """Draws λ and the logarithms of the spectrum, (_KNOTS,) * axes."""
        super().randomize(None)
        if self._do_transform:
            self.mix = float(self.R.uniform(0, self.options.strength))
            self.knots = self.R.normal(0, self.options.spread, size=(_KNOTS,) * axes)

    def __call__(self, sample: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        image = torch.as_tensor(sample["image"])
        self.randomize(image.ndim - 1)
        if not self._do_transform:
            return dict(sample)
        factors = 1 + self.mix * (spectrum(self.knots, image.shape[1:], self.options.share) - 1)
        axes = tuple(range(1, image.ndim))
        louder = torch.fft.rfftn(image.double(), dim=axes) * torch.from_numpy(factors)
        back = torch.fft.irfftn(louder, s=image.shape[1:], dim=axes)
        return {**sample, "image": back.to(image.dtype)}


def spectrum(knots: NDArray[np.float64], shape: Sequence[int], share: float) -> NDArray[np.float64]:
    """Positive factors on the frequencies of `torch.fft.rfftn` of an image of this shape.

    They depend on |frequency| along each axis alone, so the image stays real; are exp of the knots,
    linear between these; from half of `share` of an axis's largest frequency to all of it they fade to
    1 as a cosine; and they are 1 at frequency 0, the mean.
    """
    last = len(shape) - 1
    away = [
        np.abs((np.fft.rfftfreq if axis == last else np.fft.fftfreq)(size)) / (0.5 * share)
        for axis, size in enumerate(shape)
    ]
    grid = np.minimum(np.stack(np.meshgrid(*away, indexing="ij")), 1)
    drawn = map_coordinates(knots, grid * (_KNOTS - 1), order=1, mode="nearest")
    fading = np.prod((1 + np.cos(np.pi * np.maximum(2 * grid - 1, 0))) / 2, axis=0)
    factors: NDArray[np.float64] = np.exp(drawn * fading)
    factors[(0,) * len(shape)] = 1
    return factors
