"""Cognitively normal, mildly impaired or Alzheimer's, in one T1 MR volume: a 3-D classification."""

from __future__ import annotations

from collections.abc import Sequence
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
)
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from federation.schema import Closed
from federation.tasks import Prediction, Selection, Tally, Task, _tallies
from federation.tasks._classification import (
    auroc,
    class_index,
    collect,
    infer,
    known,
    logits_of,
    recall,
)
from federation.tasks._foreground import foreground
from federation.tasks._volumes import require_finite, respaced, upright, window

CLASSES = ("cognitively_normal", "mild_impairment", "alzheimers")
METRICS = ("auroc", *(f"auroc_{name}" for name in CLASSES), "balanced_accuracy", "loss")
SYNONYMS = {
    **dict.fromkeys(
        ("0", "cn", "nc", "nl", "hc", "normal", "control", "healthy", "cognitively normal", "smc"),
        "cognitively_normal",
    ),
    **dict.fromkeys(
        ("1", "mci", "emci", "lmci", "mild cognitive impairment", "mild impairment"),
        "mild_impairment",
    ),
    **dict.fromkeys(
        ("2", "ad", "dementia", "alzheimer", "alzheimer's", "alzheimer's disease"), "alzheimers"
    ),
}
# From the crown to below the cerebellum, in mm: what FSL's robustfov keeps. Necks differ in length
# with the field of view and would draw the centre down.
_HEAD = 170.0

Voxels = Annotated[int, Field(ge=16, le=512)]


class Options(Closed):
    """`shape`: voxels along R, A and S about the head's centre; `spacing`: edge of a voxel in mm."""

    shape: tuple[Voxels, Voxels, Voxels] = (160, 192, 160)
    spacing: float = Field(default=1.0, ge=0.5, le=6)
    rotation: float = Field(default=0.1, ge=0, le=0.5, description="largest, radians, each axis")
    translation: float = Field(default=5.0, ge=0, le=30, description="largest, mm, each axis")
    scaling: float = Field(default=0.05, ge=0, le=0.5, description="largest, as a share of one")


def build(options: Options) -> Task:
    """The task; `load` gives `image` float32 (1, R, A, S) in RAS+ and `label` int64, a scalar."""
    return Task(
        name="alzheimers",
        kind="classification",
        spatial_dims=3,
        in_channels=1,
        classes=CLASSES,
        load=partial(_load, options=options),
        augment=_random(options),
        loss=functional.cross_entropy,
        infer=infer,
        outcome=logits_of,
        measure=_measure,
        metrics=METRICS,
        headline="balanced_accuracy",
        patch=options.shape,
        selection=Selection(
            modalities=frozenset({"MR"}),
            attributes={"weighting": frozenset({"t1", "unknown"})},
            least_extent=100.0,
            largest_spacing=3.5,
        ),
        synonyms=SYNONYMS,
        tally=Tally(2 * len(CLASSES), _count, _measure_sums),
    )


def _load(item: dict[str, Any], *, options: Options) -> dict[str, Any]:
    """The head on the task's grid, its own mean 0 and its own standard deviation 1.

    Intensities are cut at the head's percentiles 0.5 and 99.5; nothing is fitted on other images.
    What lies outside the volume has the darkest value.

    Raises:
        ValueError: no head stands out, values that are not finite, or a label that is no class.
    """
    label = class_index(item, CLASSES)
    require_finite(item["image"])
    image = respaced(upright(item["image"]), [options.spacing] * 3)
    voxels = np.asarray(image[0], dtype=np.float32)
    head = _upper(foreground(voxels), _HEAD / options.spacing)
    low, high = np.percentile(voxels[head], (0.5, 99.5))
    inside = voxels[head].clip(low, high)
    deviation = inside.std()
    if not deviation > 0:
        raise ValueError("the head is empty: nearly all its values are equal")
    centre = np.argwhere(head).mean(axis=0)
    cropped = window(image, centre, options.shape, float(low)).as_tensor().clamp(low, high)
    return {"image": ((cropped - inside.mean()) / deviation).float(), "label": label}


def _upper(head: NDArray[np.bool_], height: float) -> NDArray[np.bool_]:
    """What lies at most `height` voxels below the crown."""
    crown = int(np.flatnonzero(head.any(axis=(0, 1)))[-1])
    upper = head.copy()
    upper[:, :, : max(0, crown + 1 - round(height))] = False
    return upper


def _random(options: Options) -> Compose:
    shift = options.translation / options.spacing
    return Compose(
        [
            RandAffined(
                "image",
                prob=0.8,
                rotate_range=[options.rotation] * 3,
                translate_range=[shift] * 3,
                scale_range=[options.scaling] * 3,
                mode="bilinear",
                padding_mode="border",
            ),
            # Left and right: atrophy is read on both sides alike.
            RandFlipd("image", prob=0.5, spatial_axis=0),
            RandAdjustContrastd("image", prob=0.3, gamma=(0.8, 1.25), retain_stats=True),
            RandGaussianNoised("image", prob=0.25, std=0.05),
            EnsureTyped("image", dtype=torch.float32, track_meta=False),
        ]
    )


def _measure(predictions: Sequence[Prediction]) -> dict[str, float]:
    """Metrics by volume, as a diagnosis may change between a patient's visits.

    `balanced_accuracy`, the headline, is the mean recall of the classes that occur, at least two, a
    case being called by its largest logit: small hospitals rarely hold out all three diagnoses.
    `auroc_CLASS` ranks by the class's probability, that class against both others; `auroc` is their
    plain mean, and there only if all three are.
    """
    if not predictions:
        return {}
    logits, target = collect(predictions)
    truth, said = target.numpy(), logits.argmax(dim=1).numpy()
    probability = logits.softmax(dim=1).numpy()
    one_vs_rest = [
        auroc(probability[:, index], (truth == index).astype(np.int64))
        for index in range(len(CLASSES))
    ]
    metrics = {f"auroc_{name}": value for name, value in zip(CLASSES, one_vs_rest, strict=True)}
    if None not in one_vs_rest:
        metrics["auroc"] = float(np.mean([value for value in one_vs_rest if value is not None]))
    recalls = [value for i in range(len(CLASSES)) if (value := recall(said, truth, i)) is not None]
    if len(recalls) > 1:
        metrics["balanced_accuracy"] = float(np.mean(recalls))
    metrics["loss"] = functional.cross_entropy(logits, target).item()
    return known(metrics)


def _count(predictions: Sequence[Prediction]) -> Tensor:
    """One patient's volumes by class, called right or not; they share its mass. float64 (6,)"""
    logits, target = collect(predictions)
    if not torch.isfinite(logits).all():
        return torch.zeros(2 * len(CLASSES), dtype=torch.float64)
    wrong = logits.argmax(dim=1) != target
    return _tallies.of_cases((2 * target + wrong).numpy(), 2 * len(CLASSES))


def _measure_sums(sums: NDArray[np.float64]) -> dict[str, float]:
    """Balanced accuracy as in `_measure`, but with patients as weights. Three AUROCs would need three
    histograms, which would leave little of any of them, or of the headline, above the noise."""
    found = [_tallies.mean(pair) for pair in sums.reshape(-1, 2)]
    occurring = [recall for recall in found if recall is not None]
    headline = sum(occurring) / len(occurring) if len(occurring) > 1 else None
    return _tallies.finite({"balanced_accuracy": headline})
