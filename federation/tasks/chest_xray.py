"""Pneumonia or not in one chest radiograph (DICOM), a 2-D classification."""

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
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_modality_lut
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn import functional

from federation.schema import Closed
from federation.tasks import Prediction, Task

CLASSES = ("normal", "pneumonia")
METRICS = ("auroc", "balanced_accuracy", "sensitivity", "specificity", "loss")


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
        infer=_infer,
        measure=_measure,
        metrics=METRICS,
        headline="auroc",
        patch=(options.size, options.size),
    )


def _load(item: dict[str, Any], *, prepare: Compose) -> dict[str, Any]:
    """One radiograph and its class index.

    Raises:
        ValueError: a file with colours or several frames, or a label that is no class.
    """
    label = int(item["label"])
    if label not in range(len(CLASSES)):
        raise ValueError(f"label {label} is no class: use 0 for normal and 1 for pneumonia")
    image = prepare(brightness(dcmread(item["image"]))[None])
    return {"image": image, "label": torch.tensor(label)}


def brightness(dataset: Dataset) -> NDArray[np.float32]:
    """Pixels (rows, columns) of one radiograph, in which denser tissue is always brighter.

    The modality transform (rescale slope and intercept, or its table) is applied. The VOI window is
    not: it is what a workstation last showed, it differs by vendor, and percentiles do its work.
    Padding outside the collimator (PS3.3 C.7.5.1.1.2) takes the darkest value of the rest.

    Raises:
        ValueError: colours or several frames.
    """
    interpretation = str(dataset.get("PhotometricInterpretation", "MONOCHROME2"))
    stored = dataset.pixel_array
    if not interpretation.startswith("MONOCHROME") or stored.ndim != 2:
        raise ValueError(
            f"one greyscale frame is wanted, not {interpretation} of shape {stored.shape}"
        )
    pixels = np.asarray(apply_modality_lut(stored, dataset), dtype=np.float32)
    if interpretation == "MONOCHROME1":  # the lowest value is shown white
        pixels = pixels.max() + pixels.min() - pixels
    padding = _padding(stored, dataset)
    if padding.any() and not padding.all():
        pixels[padding] = pixels[~padding].min()
    return pixels


def _padding(stored: NDArray[Any], dataset: Dataset) -> NDArray[np.bool_]:
    """Where stored values lie between PixelPaddingValue and PixelPaddingRangeLimit, if given."""
    value = dataset.get("PixelPaddingValue")
    if value is None:
        return np.zeros(stored.shape, dtype=bool)
    low, high = sorted((int(value), int(dataset.get("PixelPaddingRangeLimit", value))))
    return (stored >= low) & (stored <= high)


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


def _infer(network: nn.Module, images: Tensor) -> Tensor:
    logits: Tensor = network(images)
    return logits


def _measure(predictions: Sequence[Prediction]) -> dict[str, float]:
    """A case is called pneumonia where its probability is at least one half.

    Sensitivity needs a case of pneumonia, specificity a normal one, AUROC and balanced accuracy
    (the mean of the two) both; what has none is left out.
    """
    if not predictions:
        return {}
    logits = torch.stack([case.logits for case in predictions]).double()
    target = torch.stack([case.target for case in predictions]).long()
    margin = logits[:, 1] - logits[:, 0]
    correct = (margin >= 0) == (target == 1)
    result = {"loss": functional.cross_entropy(logits, target).item()}
    for name, label in (("sensitivity", 1), ("specificity", 0)):
        if (target == label).any():
            result[name] = correct[target == label].double().mean().item()
    if "sensitivity" in result and "specificity" in result:
        result["balanced_accuracy"] = (result["sensitivity"] + result["specificity"]) / 2
        result["auroc"] = float(roc_auc_score(target.numpy(), margin.numpy()))
    return result
