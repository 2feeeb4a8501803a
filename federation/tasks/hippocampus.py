"""Anterior and posterior hippocampus in T1 MR volumes (NIfTI), a 3-D segmentation.

Masks hold 0 background, 1 anterior, 2 posterior, as in Task04 of the Medical Segmentation Decathlon
(Antonelli et al. 2022, doi:10.1038/s41467-022-30695-9).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import nibabel
import numpy as np
import torch
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer
from monai.losses import DiceCELoss
from monai.metrics import compute_dice
from monai.networks.utils import one_hot
from monai.transforms import (
    ClipIntensityPercentilesd,
    Compose,
    EnsureTyped,
    NormalizeIntensityd,
    Orientationd,
    RandAffined,
    RandFlipd,
    RandGaussianNoised,
    RandScaleIntensityd,
    RandShiftIntensityd,
    RandSpatialCropd,
    Spacingd,
    SpatialPadd,
)
from nibabel.funcs import squeeze_image
from pydantic import Field
from torch import Tensor

from federation.schema import Closed
from federation.tasks import Prediction, Task

CLASSES = ("background", "anterior", "posterior")
METRICS = ("dice", "dice_anterior", "dice_posterior", "loss")

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
        measure=partial(_measure, loss=loss),
        metrics=METRICS,
        headline="dice",
        patch=options.patch,
    )


def _load(item: dict[str, Any], *, prepare: Compose) -> dict[str, Any]:
    """Image and mask on one grid.

    Raises:
        ValueError: more than one volume in a file, a mask on another grid than its image or with
            other values than 0, 1 and 2, or an image with values that are not finite.
    """
    image, mask = _volume(item["image"]), _volume(item["label"])
    if image.shape != mask.shape or not np.allclose(image.affine, mask.affine, atol=1e-3):
        raise ValueError("mask and image differ in shape or affine: resample the mask first")
    if not torch.isfinite(image).all():
        raise ValueError("image has values that are not finite")
    if not set(mask.unique().tolist()) <= set(range(len(CLASSES))):
        raise ValueError("mask has values other than 0, 1 (anterior) and 2 (posterior)")
    prepared: dict[str, Any] = prepare({"image": image, "label": mask})
    return prepared


def _volume(path: str | Path) -> MetaTensor:
    """One NIfTI file, float32, (1, i, j, k) with its affine to RAS+ in millimetres.

    Not MONAI's LoadImage: it tries every other reader on a file that this one refuses, and keeps the
    path in what it returns.
    """
    file = squeeze_image(nibabel.load(path))
    if len(file.shape) != 3:
        raise ValueError(f"a file has shape {file.shape}: one 3-D volume is wanted")
    voxels = torch.from_numpy(file.get_fdata(dtype=np.float32))
    return MetaTensor(voxels[None], affine=torch.from_numpy(file.affine))


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


def _measure(
    predictions: Sequence[Prediction], *, loss: Callable[[Tensor, Tensor], Tensor]
) -> dict[str, float]:
    """Mean over cases of each class's Dice, 2|P ∩ T| / (|P| + |T|) (Dice 1945).

    A case whose mask lacks a class says nothing of that class's Dice. `dice` is the mean of the
    anterior and the posterior one, or the one of them that is known.
    """
    if not predictions:
        return {}
    by_case = torch.stack([_dice(case) for case in predictions])
    names = ("dice_anterior", "dice_posterior")
    means = zip(names, by_case.nanmean(dim=0).tolist(), strict=True)
    result = {name: mean for name, mean in means if np.isfinite(mean)}
    if result:
        result["dice"] = sum(result.values()) / len(result)
    losses = [loss(case.logits[None], case.target[None]).item() for case in predictions]
    result["loss"] = float(np.mean(losses))
    return result


def _dice(case: Prediction) -> Tensor:
    """Dice of anterior and posterior in one case; NaN where the mask lacks the class."""
    said = one_hot(case.logits.argmax(dim=0)[None, None], len(CLASSES))
    true = one_hot(case.target[None].long(), len(CLASSES))
    dice: Tensor = compute_dice(said, true, include_background=False, ignore_empty=True)[0]
    return dice
