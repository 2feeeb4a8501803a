"""Pneumonia or not in one frontal chest radiograph, a 2-D classification."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from monai.transforms import (
    ClipIntensityPercentiles,
    Compose,
    EnsureType,
    EnsureTyped,
    NormalizeIntensity,
    RandAdjustContrastd,
    RandAffined,
    RandGaussianNoised,
    Resize,
    SpatialPad,
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

CLASSES = ("normal", "pneumonia")
METRICS = ("auroc", "balanced_accuracy", "sensitivity", "specificity", "loss")
SYNONYMS = {
    **dict.fromkeys(("no", "negative", "no finding", "no_finding", "healthy"), "normal"),
    **dict.fromkeys(("yes", "positive", "pneumonic"), "pneumonia"),
}


class Options(Closed):
    """`size`: pixels of the square image's edge."""

    size: int = Field(default=64, ge=32, le=1024)
    rotation: float = Field(default=0.1, ge=0, le=0.5, description="largest, radians")
    translation: float = Field(
        default=0.05, ge=0, le=0.25, description="largest, share of the edge"
    )
    scaling: float = Field(default=0.1, ge=0, le=0.5, description="largest, as a share of one")


def build(options: Options) -> Task:
    """The task; `load` gives `image` float32 (1, size, size) and `label` int64, a scalar."""
    return Task(
        name="chest_xray",
        kind="classification",
        spatial_dims=2,
        in_channels=1,
        classes=CLASSES,
        load=partial(_load, prepare=_deterministic(options)),
        augment=_random(options),
        loss=functional.cross_entropy,
        infer=infer,
        outcome=logits_of,
        measure=_measure,
        metrics=METRICS,
        headline="auroc",
        patch=(options.size, options.size),
        selection=Selection(
            modalities=frozenset({"CR", "DX", "DR", "RG"}),
            attributes={"view": frozenset({"pa", "ap", "unknown"})},
        ),
        synonyms=SYNONYMS,
        tally=Tally(_tallies.HISTOGRAM, _count, _measure_sums),
    )


def _load(item: dict[str, Any], *, prepare: Compose) -> dict[str, Any]:
    """One radiograph and its class index.

    Raises:
        ValueError: values that are not finite, or a label that is no class.
    """
    label = class_index(item, CLASSES)
    if not torch.isfinite(item["image"]).all():
        raise ValueError("image has values that are not finite")
    return {"image": prepare(item["image"]), "label": label}


def _deterministic(options: Options) -> Compose:
    return Compose(
        [
            EnsureType(dtype=torch.float32, track_meta=False),
            ClipIntensityPercentiles(lower=1, upper=99),
            Resize(options.size, size_mode="longest", mode="area"),  # keeps the heart's proportions
            NormalizeIntensity(),
            SpatialPad((options.size, options.size)),
            EnsureType(dtype=torch.float32, track_meta=False),
        ]
    )


def _random(options: Options) -> Compose:
    """No mirror image: the heart lies left, and situs inversus is a finding, not a variation."""
    edge = options.translation * options.size
    return Compose(
        [
            RandAffined(
                "image",
                prob=0.8,
                rotate_range=options.rotation,
                translate_range=[edge, edge],
                scale_range=[options.scaling, options.scaling],
                mode="bilinear",
                padding_mode="border",
            ),
            RandAdjustContrastd("image", prob=0.3, gamma=(0.7, 1.5), retain_stats=True),
            RandGaussianNoised("image", prob=0.25, std=0.1),
            EnsureTyped("image", dtype=torch.float32, track_meta=False),
        ]
    )


def _measure(predictions: Sequence[Prediction]) -> dict[str, float]:
    """A case is called pneumonia where its probability is at least one half.

    Sensitivity needs a case of pneumonia, specificity a normal one, AUROC and balanced accuracy
    (the mean of the two) both; what has none is left out.
    """
    if not predictions:
        return {}
    logits, target = collect(predictions)
    margin, truth = (logits[:, 1] - logits[:, 0]).numpy(), target.numpy()
    said = (margin >= 0).astype(np.int64)
    sensitivity, specificity = recall(said, truth, 1), recall(said, truth, 0)
    recalls = [value for value in (sensitivity, specificity) if value is not None]
    return known(
        {
            "auroc": auroc(margin, truth),
            "balanced_accuracy": sum(recalls) / 2 if len(recalls) == 2 else None,
            "sensitivity": sensitivity,
            "specificity": specificity,
            "loss": functional.cross_entropy(logits, target).item(),
        }
    )


def _count(predictions: Sequence[Prediction]) -> Tensor:
    """One patient's histogram of class and margin; its images share its mass."""
    logits, target = collect(predictions)
    return _tallies.of_scores((logits[:, 1] - logits[:, 0]).numpy(), target.numpy())


def _measure_sums(sums: NDArray[np.float64]) -> dict[str, float]:
    """As `_measure`, but with patients as weights. Sensitivity and specificity are those of the sums,
    since an edge of the bins lies at the threshold; the loss has no bound and is left out."""
    sensitivity, specificity = _tallies.recalls(sums)
    recalls = [value for value in (sensitivity, specificity) if value is not None]
    return _tallies.finite(
        {
            "auroc": _tallies.auroc(sums),
            "balanced_accuracy": sum(recalls) / 2 if len(recalls) == 2 else None,
            "sensitivity": sensitivity,
            "specificity": specificity,
        }
    )
