"""Cases as pictures: the image as a PNG, the masks' outlines as lines over it, scores as bars."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from contourpy import contour_generator
from markupsafe import Markup
from matplotlib.image import imsave
from numpy.typing import NDArray

Image = NDArray[np.floating]
Mask = NDArray[np.integer]


@dataclass(frozen=True)
class Sample:
    """One public or phantom case with what is true and what the model said.

    Attributes:
        caption: what a person reads under it. Never an identifier of a patient.
        image: (H, W), any range; shown from its darkest to its brightest value.
        truth, predicted: (H, W) class indices, 0 is background; for segmentation.
        scores: class name to probability; for classification.
        truth_name: name of the true class; for classification.
    """

    caption: str
    image: Image
    truth: Mask | None = None
    predicted: Mask | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    truth_name: str | None = None

    def __post_init__(self) -> None:
        if self.image.ndim != 2 or 0 in self.image.shape:
            raise ValueError(f"image has shape {self.image.shape}: one 2-D slice is wanted")
        for name, mask in (("truth", self.truth), ("predicted", self.predicted)):
            if mask is not None and mask.shape != self.image.shape:
                raise ValueError(
                    f"{name} has shape {mask.shape}, image {self.image.shape}: "
                    "both must lie on one grid"
                )

    @property
    def said(self) -> str | None:
        """The class with the highest score."""
        return max(self.scores, key=lambda name: self.scores[name]) if self.scores else None

    def dice(self) -> float | None:
        """2|P ∩ T| / (|P| + |T|) of the foreground of this slice; None without any."""
        if self.truth is None or self.predicted is None:
            return None
        truth, predicted = self.truth > 0, self.predicted > 0
        both = int(truth.sum()) + int(predicted.sum())
        return 2 * int((truth & predicted).sum()) / both if both else None


def description(sample: Sample) -> str:
    """The picture in words, for who cannot see it."""
    parts = [sample.caption]
    dice = sample.dice()
    if sample.truth is not None:
        parts.append(f"the true outline holds {int((sample.truth > 0).sum())} pixels")
    if sample.predicted is not None:
        parts.append(f"the model's outline {int((sample.predicted > 0).sum())}")
    if dice is not None:
        parts.append(f"Dice of this slice {dice:.2f}")
    if sample.said is not None:
        parts.append(f"the model says {sample.said} ({sample.scores[sample.said]:.0%})")
    if sample.truth_name is not None:
        parts.append(f"true is {sample.truth_name}")
    return "; ".join(parts)


def picture(sample: Sample, *, outlines: bool) -> Markup:
    """The image as an `<svg>` with a PNG inside and, if wanted, the masks' outlines over it."""
    height, width = sample.image.shape
    label = description(sample) if outlines else f"{sample.caption}, without outlines"
    masks = (("truth", sample.truth), ("predicted", sample.predicted)) if outlines else ()
    paths = Markup("").join(
        Markup('<path class="{}" d="{}"/>').format(name, line)
        for name, mask in masks
        if mask is not None
        for line in _outlines(mask)
    )
    return Markup(
        '<svg class="picture" role="img" aria-label="{}" viewBox="0 0 {} {}">'
        '<image href="{}" width="{}" height="{}"/>{}</svg>'
    ).format(label, width, height, _png(sample.image), width, height, paths)


def _png(image: Image) -> str:
    """Greyscale PNG as a data URI, from the 0.5th (black) to the 99.5th (white) percentile."""
    finite = image[np.isfinite(image)]
    low, high = np.percentile(finite, (0.5, 99.5)) if finite.size else (0.0, 1.0)
    filled = np.nan_to_num(image.astype(np.float64), nan=low, posinf=high, neginf=low)
    file = io.BytesIO()
    imsave(
        file,
        filled,
        vmin=low,
        vmax=high if high > low else low + 1,
        cmap="gray",
        format="png",
        metadata={"Software": ""},
        pil_kwargs={"optimize": True},
    )
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _outlines(mask: Mask) -> Iterator[str]:
    """SVG paths around each class, in pixels with (0, 0) at the image's upper left corner."""
    padded = np.pad(mask, 1)  # so that an outline at the border is closed
    for index in np.unique(mask[mask > 0]):
        lines = contour_generator(z=(padded == index).astype(np.float64)).lines(0.5)
        for line in lines:
            points = " ".join(f"{x - 0.5:.1f},{y - 0.5:.1f}" for x, y in np.asarray(line))
            yield f"M{points}Z"
