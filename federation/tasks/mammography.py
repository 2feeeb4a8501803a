"""Cancer or none in one mammogram (DICOM), by breast and by patient: a 2-D classification.

The network reads one view. A breast's answer is the mean of its views' logits, a patient's the larger
of the breasts', as in McKinney et al. 2020 (doi:10.1038/s41586-019-1799-6) and Wu et al. 2020
(doi:10.1109/TMI.2019.2945514).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any

import numpy as np
import torch
from monai.transforms import (
    Compose,
    EnsureTyped,
    RandAdjustContrastd,
    RandAffined,
    RandFlipd,
    RandGaussianNoised,
    Randomizable,
)
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from federation.schema import Closed
from federation.tasks import Prediction, Selection, Tally, Task, _tallies
from federation.tasks._classification import (
    Scores,
    Truth,
    auroc,
    brier,
    calibration_error,
    class_index,
    collect,
    infer,
    known,
    logits_of,
    sensitivity_at,
)
from federation.tasks._foreground import foreground

CLASSES = ("no_cancer", "cancer")
METRICS = (
    "auroc",
    "auroc_patient",
    "sensitivity_at_90_specificity",
    "brier",
    "calibration_error",
    "loss",
)
SYNONYMS = {
    **dict.fromkeys(("0", "no", "false", "negative", "normal", "benign", "healthy"), "no_cancer"),
    **dict.fromkeys(("1", "yes", "true", "positive", "malignant", "malignancy"), "cancer"),
}
# A margin of 2 of at most 512 pixels along the image: some 1 mm, so that the skin stays.
_SKIN = 2
# Of the tissue in both outer quarters of the image, how much the chest wall's must have.
_CLEARLY = 0.55

Pixels = Annotated[int, Field(ge=32, le=4096)]


class Options(Closed):
    """`size`: rows and columns of the image that the network reads."""

    size: tuple[Pixels, Pixels] = (128, 64)
    processing: bool = Field(
        default=False, description="also images FOR PROCESSING, which look unlike those shown"
    )
    rotation: float = Field(default=0.15, ge=0, le=0.5, description="largest, radians")
    translation: float = Field(default=0.05, ge=0, le=0.25, description="largest, share of an edge")
    scaling: float = Field(default=0.1, ge=0, le=0.5, description="largest, as a share of one")


def build(options: Options) -> Task:
    """The task; `load` gives `image` float32 (1, rows, columns) in [0, 1], `label` int64, a scalar."""
    intents = {"presentation", "unknown"} | ({"processing"} if options.processing else set())
    return Task(
        name="mammography",
        kind="classification",
        spatial_dims=2,
        in_channels=1,
        classes=CLASSES,
        load=partial(_load, size=options.size),
        augment=_random(options),
        loss=functional.cross_entropy,
        infer=infer,
        outcome=logits_of,
        measure=_measure,
        metrics=METRICS,
        headline="auroc",
        patch=options.size,
        selection=Selection(
            modalities=frozenset({"MG"}),
            attributes={
                "view": frozenset({"cc", "mlo", "unknown"}),
                "intent": frozenset(intents),
            },
        ),
        synonyms=SYNONYMS,
        label_by=("laterality",),
        tally=Tally(_tallies.HISTOGRAM, _count, _measure_sums),
        grey=(0.0, 1.0),
    )


def _load(item: dict[str, Any], *, size: tuple[int, int]) -> dict[str, Any]:
    """The breast alone, its chest wall at the left edge, as large as it fits.

    All outside the breast (air, labels, markers) is 0, and the breast's 99.5th percentile is 1; the
    breast's proportions in mm are kept.

    Raises:
        ValueError: no breast stands out, values that are not finite, or a label that is no class.
    """
    label = class_index(item, CLASSES)
    image = item["image"]
    spacing = image.affine.double().norm(dim=0)[:2].tolist()
    pixels = np.asarray(image[0], dtype=np.float32)
    if not np.isfinite(pixels).all():
        raise ValueError("image has values that are not finite")
    breast = foreground(pixels, margin=_SKIN)
    if not _chest_wall_is_left(breast, item.get("attributes", {})):
        pixels, breast = pixels[:, ::-1], breast[:, ::-1]
    scaled = _scaled(pixels, breast)
    rows, columns = (np.flatnonzero(breast.any(axis=axis)) for axis in (1, 0))
    cropped = scaled[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return {"image": _fitted(cropped, spacing, size), "label": label}


def _chest_wall_is_left(breast: NDArray[np.bool_], attributes: Mapping[str, str]) -> bool:
    """Whether the breast hangs from the left edge.

    Where the tissue is says so: an image is stored in either direction, whichever breast it is of.
    Laterality is asked where that is undecided, when an implant or a magnification fills the image;
    a left breast's chest wall is then taken to be on the left, as images are usually hung.
    """
    quarter = max(1, breast.shape[1] // 4)
    left, right = int(breast[:, :quarter].sum()), int(breast[:, -quarter:].sum())
    side = attributes.get("laterality", "unknown")
    if max(left, right) >= _CLEARLY * (left + right) or side not in ("left", "right"):
        return left >= right
    return side == "left"


def _scaled(pixels: NDArray[np.float32], breast: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Values between the breast's own percentiles 0.5 and 99.5 to 0 and 1; 0 outside of it."""
    low, high = np.percentile(pixels[breast], (0.5, 99.5))
    if not high > low:
        raise ValueError("the breast is empty: nearly all its values are equal")
    scaled = np.clip((pixels - low) / (high - low), 0, 1)
    return np.where(breast, scaled, 0).astype(np.float32)


def _fitted(pixels: NDArray[np.float32], spacing: Sequence[float], size: tuple[int, int]) -> Tensor:
    """Resized with one scale in mm for both axes; air is added at the right, above and below."""
    extent = [edge * mm for edge, mm in zip(pixels.shape, spacing, strict=True)]
    scale = min(edge / mm for edge, mm in zip(size, extent, strict=True))
    rows, columns = (max(1, round(mm * scale)) for mm in extent)
    resized = functional.interpolate(
        torch.from_numpy(pixels.copy())[None, None],
        (rows, columns),
        mode="bilinear",
        antialias=True,
    )[0]
    above = (size[0] - rows) // 2
    return functional.pad(resized, (0, size[1] - columns, above, size[0] - rows - above))


def _random(options: Options) -> Compose:
    """Mirrored up and down only: `load` has laid both breasts to one side."""
    edges = [options.translation * edge for edge in options.size]
    return Compose(
        [
            _InAir(
                RandAffined(
                    "image",
                    prob=0.8,
                    rotate_range=options.rotation,
                    translate_range=edges,
                    scale_range=[options.scaling, options.scaling],
                    mode="bilinear",
                    padding_mode="zeros",
                )
            ),
            RandFlipd("image", prob=0.5, spatial_axis=0),
            RandAdjustContrastd("image", prob=0.5, gamma=(0.7, 1.5)),
            RandGaussianNoised("image", prob=0.25, std=0.02),
            EnsureTyped("image", dtype=torch.float32, track_meta=False),
        ]
    )


class _InAir(Randomizable):  # type: ignore[misc]
    """What comes in from beyond the edges is air, the darkest value, which harmonisation may move."""

    def __init__(self, move: RandAffined) -> None:
        self.move = move

    def set_random_state(
        self, seed: int | None = None, state: np.random.RandomState | None = None
    ) -> _InAir:
        self.move.set_random_state(seed, state)
        return self

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        air = sample["image"].min()
        moved = self.move({**sample, "image": sample["image"] - air})
        return {**moved, "image": moved["image"] + air}


def _measure(predictions: Sequence[Prediction]) -> dict[str, float]:
    """AUROC (the headline), sensitivity where 90 % of the healthy breasts are called healthy, Brier
    score and calibration error in ten bins, all by breast; AUROC by patient; loss by image.

    Sensitivity and AUROC need both classes; what has one only is left out.
    """
    if not predictions:
        return {}
    logits, target = collect(predictions)
    margins = (logits[:, 1] - logits[:, 0]).numpy()
    scores, truth, patients = _by_breast(predictions, margins, target.numpy())
    probability = 1 / (1 + np.exp(-scores.clip(-700, 700)))
    return known(
        {
            "auroc": auroc(scores, truth),
            "auroc_patient": auroc(*_by_patient(scores, truth, patients)),
            "sensitivity_at_90_specificity": sensitivity_at(0.9, scores, truth),
            "brier": brier(probability, truth),
            "calibration_error": calibration_error(probability, truth),
            "loss": functional.cross_entropy(logits, target).item(),
        }
    )


def _by_breast(
    predictions: Sequence[Prediction], margins: Scores, target: Truth
) -> tuple[Scores, Truth, list[str]]:
    """Each breast's mean margin over its images of all views, its truth, and whose it is.

    A breast has cancer if any of its images is labelled so. An image that does not say its side
    stands for a breast of its own, as it may be of either.
    """
    breasts: dict[tuple[str, str], list[int]] = defaultdict(list)
    for position, case in enumerate(predictions):
        side = case.attributes.get("laterality", "unknown")
        breasts[case.patient, side if side in ("left", "right") else f"{position}"].append(position)
    return (
        np.array([margins[images].mean() for images in breasts.values()]),
        np.array([target[images].max() for images in breasts.values()]),
        [patient for patient, _ in breasts],
    )


def _by_patient(scores: Scores, truth: Truth, patients: Sequence[str]) -> tuple[Scores, Truth]:
    """The larger score of a patient's breasts, and whether any of them has cancer."""
    _, owner = np.unique(patients, return_inverse=True)
    worst, ill = np.full(owner.max() + 1, -np.inf), np.zeros(owner.max() + 1, dtype=np.int64)
    np.maximum.at(worst, owner, scores)
    np.maximum.at(ill, owner, truth)
    return worst, ill


def _count(predictions: Sequence[Prediction]) -> Tensor:
    """One patient's histogram of class and margin; its breasts share its mass."""
    logits, target = collect(predictions)
    margins = (logits[:, 1] - logits[:, 0]).numpy()
    scores, truth, _ = _by_breast(predictions, margins, target.numpy())
    return _tallies.of_scores(scores, truth)


def _measure_sums(sums: NDArray[np.float64]) -> dict[str, float]:
    """As `_measure`, but a patient's breasts weigh 1 together.

    AUROC by patient would need a histogram of its own, which doubles the noise of all others; in a
    calibration error noise of either sign counts as error; the loss has no bound.
    """
    return _tallies.finite(
        {
            "auroc": _tallies.auroc(sums),
            "sensitivity_at_90_specificity": _tallies.sensitivity_at(0.9, sums),
            "brier": _tallies.brier(sums),
        }
    )
