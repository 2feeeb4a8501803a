"""Anterior and posterior hippocampus in T1 MR volumes, a 3-D segmentation.

Masks hold 0 background, 1 anterior, 2 posterior, as in Task04 of the Medical Segmentation Decathlon
(Antonelli et al. 2022, doi:10.1038/s41467-022-30695-9).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any

import numpy as np
import torch
from monai.inferers import SlidingWindowInferer
from monai.losses import DiceCELoss
from monai.metrics import compute_dice
from monai.networks.utils import one_hot
from monai.transforms import (
    ClipIntensityPercentilesd,
    Compose,
    EnsureTyped,
    NormalizeIntensityd,
    Orientation,
    Orientationd,
    RandAffined,
    RandFlipd,
    RandGaussianNoised,
    RandScaleIntensityd,
    RandShiftIntensityd,
    RandSpatialCropd,
    Spacing,
    Spacingd,
    SpatialPad,
    SpatialPadd,
)
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from federation.schema import Closed
from federation.tasks import Prediction, Selection, Tally, Task, _tallies
from federation.tasks._classification import known
from federation.tasks._volumes import checked

CLASSES = ("background", "anterior", "posterior")
METRICS = ("dice", "dice_anterior", "dice_posterior", "loss")
STRUCTURES = {
    "anterior": ("anterior*", "*hippocamp*ant*"),
    "posterior": ("posterior*", "*hippocamp*post*"),
}

Voxels = Annotated[int, Field(ge=8, le=256)]


class Options(Closed):
    """`patch`: voxels along R, A and S; `spacing`: edge of a voxel in millimetres."""

    patch: tuple[Voxels, Voxels, Voxels] = (32, 48, 32)
    spacing: float = Field(default=1.0, ge=0.25, le=4)
    overlap: float = Field(default=0.25, ge=0, lt=1, description="share two windows have in common")
    rotation: float = Field(default=0.2, ge=0, le=0.8, description="largest, radians, each axis")
    scaling: float = Field(default=0.1, ge=0, le=0.5, description="largest, as a share of one")


def build(options: Options) -> Task:
    """The task; `load` gives `image` float32 and `label` uint8, both (1, R, A, S) in RAS+."""
    criterion = DiceCELoss(
        # Dice of the background is near one and would drown the rest; cross-entropy covers it.
        include_background=False,
        to_onehot_y=True,
        softmax=True,
        batch=False,  # no sample's gradient may depend on its batch mates: clipping is per patient
    )

    def loss(logits: Tensor, target: Tensor) -> Tensor:
        value: Tensor = criterion(logits, target.long())
        return value

    return Task(
        name="hippocampus",
        kind="segmentation",
        spatial_dims=3,
        in_channels=1,
        classes=CLASSES,
        load=partial(_load, prepare=_deterministic(options)),
        augment=_random(options),
        loss=loss,
        infer=partial(_infer, SlidingWindowInferer(options.patch, 4, options.overlap, "gaussian")),
        outcome=partial(_outcome, loss=loss),
        measure=_measure,
        metrics=METRICS,
        headline="dice",
        patch=options.patch,
        selection=Selection(
            modalities=frozenset({"MR"}),
            attributes={"weighting": frozenset({"t1", "unknown"})},
        ),
        structures=STRUCTURES,
        place=_spatial(options),
        tally=Tally(4, _count, _measure_sums),
    )


def _load(item: dict[str, Any], *, prepare: Compose) -> dict[str, Any]:
    """Image and mask on one grid.

    Raises:
        ValueError: a mask of another shape than its image or with other values than 0, 1 and 2, or
            an image with values that are not finite.
    """
    image, mask = checked(item, CLASSES)
    prepared: dict[str, Any] = prepare({"image": image, "label": mask})
    return prepared


def _deterministic(options: Options) -> Compose:
    keys = ("image", "label")
    return Compose(
        [
            Orientationd(keys, axcodes="RAS", labels=None),
            Spacingd(keys, pixdim=options.spacing, mode=("bilinear", "nearest")),
            # Raw intensities differ by 1000 between hospitals; a few bright vessels reach 15 σ.
            ClipIntensityPercentilesd("image", lower=0.5, upper=99.5),
            # Over all voxels: crops hold no air, and `nonzero` would turn a true 0 into the mean.
            NormalizeIntensityd("image"),
            SpatialPadd(keys, options.patch),
            EnsureTyped(keys, dtype=(torch.float32, torch.uint8), track_meta=False),
        ]
    )


def _spatial(options: Options) -> Compose:
    """What `_deterministic` does to the grid of the image, and nothing to its grey values."""
    return Compose(
        [
            Orientation(axcodes="RAS", labels=None),
            Spacing(pixdim=options.spacing, mode="bilinear"),
            SpatialPad(options.patch),
        ]
    )


def _random(options: Options) -> Compose:
    keys = ("image", "label")
    return Compose(
        [
            RandAffined(
                keys,
                prob=0.5,
                rotate_range=[options.rotation] * 3,
                scale_range=[options.scaling] * 3,
                mode=("bilinear", "nearest"),
                padding_mode="border",
            ),
            RandSpatialCropd(keys, options.patch, random_size=False),
            # A left hippocampus in the mirror is a right one; the other axes have no such symmetry.
            RandFlipd(keys, prob=0.5, spatial_axis=0),
            RandScaleIntensityd("image", factors=0.15, prob=0.5),
            RandShiftIntensityd("image", offsets=0.15, prob=0.5),
            RandGaussianNoised("image", prob=0.25, std=0.1),
            EnsureTyped(keys, dtype=(torch.float32, torch.uint8), track_meta=False),
        ]
    )


def _infer(windows: SlidingWindowInferer, network: torch.nn.Module, images: Tensor) -> Tensor:
    logits: Tensor = windows(images, network)
    return logits


def _outcome(logits: Tensor, target: Tensor, *, loss: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Dice of anterior and posterior, NaN where the mask lacks the class, and the loss; float64."""
    said = one_hot(logits.argmax(dim=0)[None, None], len(CLASSES))
    true = one_hot(target[None].long(), len(CLASSES))
    dice = compute_dice(said, true, include_background=False, ignore_empty=True)[0]
    return torch.cat([dice, loss(logits[None], target[None])[None]]).double()


def _measure(predictions: Sequence[Prediction]) -> dict[str, float]:
    """Mean over cases of each class's Dice, 2|P ∩ T| / (|P| + |T|) (Dice 1945).

    A case whose mask lacks a class says nothing of that class's Dice. `dice` is the mean of the
    anterior and the posterior one, or the one of them that is known.
    """
    if not predictions:
        return {}
    by_case = torch.stack([case.outcome for case in predictions]).double()
    anterior, posterior, loss = (
        None if math.isnan(mean) else mean for mean in by_case.nanmean(dim=0).tolist()
    )
    return known({**_dices(anterior, posterior), "loss": loss})


def _dices(anterior: float | None, posterior: float | None) -> dict[str, float | None]:
    dices = [dice for dice in (anterior, posterior) if dice is not None]
    return {
        "dice": sum(dices) / len(dices) if dices else None,
        "dice_anterior": anterior,
        "dice_posterior": posterior,
    }


def _count(predictions: Sequence[Prediction]) -> Tensor:
    """One patient's mean Dice of either part, in equal shares; float64 (4,)."""
    by_case = torch.stack([case.outcome for case in predictions])
    if not torch.isfinite(by_case[:, 2]).all():  # the loss, of logits that are not
        return torch.zeros(4, dtype=torch.float64)
    return _tallies.of_values(by_case[:, :2], (math.sqrt(0.5), math.sqrt(0.5)))


def _measure_sums(sums: NDArray[np.float64]) -> dict[str, float]:
    """As `_measure`, but with patients as weights; the loss has no bound and is left out."""
    return _tallies.finite(_dices(_tallies.mean(sums[:2]), _tallies.mean(sums[2:])))
