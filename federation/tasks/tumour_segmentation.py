"""A tumour in CT or MR volumes, as radiotherapy outlines it (RTSTRUCT, SEG or NIfTI): a 3-D
segmentation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any, Literal, Self

import numpy as np
import torch
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer
from monai.losses import DiceCELoss
from monai.transforms import (
    Compose,
    EnsureTyped,
    RandAffined,
    RandCropByPosNegLabeld,
    RandFlipd,
    RandGaussianNoised,
    RandScaleIntensityd,
    RandShiftIntensityd,
)
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor, nn

from federation.schema import Closed
from federation.tasks import Prediction, Selection, Tally, Task, _tallies
from federation.tasks._classification import known
from federation.tasks._foreground import foreground
from federation.tasks._overlap import dice, hausdorff95, surface_dice
from federation.tasks._volumes import checked, padded, respaced, respaced_mask, upright

CLASSES = ("background", "tumour")
# By case, in the order of an outcome's numbers.
BY_CASE = ("dice", "surface_dice", "hd95", "volume_error", "volume_bias", "missed", "loss")
# Those that noisy sums tell, with their share of what a patient may add; see `_count`.
TALLIED = {"dice": 0.8, "missed": 0.6}
STRUCTURES = {"tumour": ("gtv*", "tumor*", "tumour*", "lesion*", "neoplasm*", "mass*")}

Voxels = Annotated[int, Field(ge=8, le=512)]
Millimetres = Annotated[float, Field(ge=0.3, le=10)]


class Options(Closed):
    """`patch`: voxels along R, A and S; `spacing`: a voxel's edges in mm along them."""

    modality: Literal["ct", "mr"] = "ct"
    patch: tuple[Voxels, Voxels, Voxels] = (32, 32, 32)
    spacing: tuple[Millimetres, Millimetres, Millimetres] = (3.0, 3.0, 3.0)
    window: tuple[float, float] = Field(
        default=(-160.0, 240.0), description="ct: HU that become 0 and 1"
    )
    positive: float = Field(
        default=0.5, ge=0, le=1, description="share of the patches whose centre is tumour"
    )
    overlap: float = Field(default=0.25, ge=0, lt=1, description="share two windows have in common")
    rotation: float = Field(default=0.2, ge=0, le=0.8, description="largest, radians, each axis")
    scaling: float = Field(default=0.1, ge=0, le=0.5, description="largest, as a share of one")

    @model_validator(mode="after")
    def _window_opens(self) -> Self:
        if self.window[0] >= self.window[1]:
            raise ValueError("window: its first value must be below its second")
        return self


def build(options: Options) -> Task:
    """The task; `load` gives `image` float32 and `label` uint8, both (1, R, A, S) in RAS+."""
    criterion = DiceCELoss(
        include_background=False,
        to_onehot_y=True,
        softmax=True,
        batch=False,  # no sample's gradient may depend on its batch mates: clipping is per patient
    )

    def loss(logits: Tensor, target: Tensor) -> Tensor:
        value: Tensor = criterion(logits, target.long())
        return value

    return Task(
        name="tumour_segmentation",
        kind="segmentation",
        spatial_dims=3,
        in_channels=1,
        classes=CLASSES,
        load=partial(_load, options=options),
        augment=_random(options),
        loss=loss,
        infer=partial(_infer, SlidingWindowInferer(options.patch, 4, options.overlap, "gaussian")),
        outcome=partial(_outcome, spacing=options.spacing, loss=loss),
        measure=_measure,
        metrics=BY_CASE,
        headline="dice",
        patch=options.patch,
        selection=Selection(modalities=frozenset({options.modality.upper()}), largest_spacing=10.0),
        structures=STRUCTURES,
        place=partial(_place, options=options),
        tally=Tally(2 * len(TALLIED), _count, _measure_sums),
        grey=(0.0, 1.0) if options.modality == "ct" else (-2.0, 2.0),
    )


def _load(item: dict[str, Any], *, options: Options) -> dict[str, Any]:
    """Image and mask on the task's grid.

    CT: the window's HU become 0 and 1, what lies beyond is cut. MR: cut at the patient's own
    percentiles 0.5 and 99.5, then their mean 0 and standard deviation 1. Volumes smaller than a patch
    are padded with the darkest value, evenly at both sides.

    Raises:
        ValueError: values that are not finite, a mask on another grid or with other values than 0
            and 1, or an MR image in which nothing stands out.
    """
    image, mask = checked(item, CLASSES)
    values = _place(image, options=options).as_tensor().float()
    if options.modality == "ct":
        low, high = options.window
        values = ((values - low) / (high - low)).clamp(0, 1)
    else:
        values = _standardised(values)
    drawn = padded(respaced_mask(upright(mask), options.spacing), options.patch, 0)
    return {"image": values, "label": drawn.as_tensor().to(torch.uint8)}


def _place(image: MetaTensor, *, options: Options) -> MetaTensor:
    """The image on the task's grid, padded with its darkest value; grey values are as they were."""
    moved = respaced(upright(image), options.spacing)
    return padded(moved, options.patch, float(moved.min()))


def _standardised(values: Tensor) -> Tensor:
    voxels = np.asarray(values[0])
    patient = foreground(voxels)
    low, high = np.percentile(voxels[patient], (0.5, 99.5))
    inside = voxels[patient].clip(low, high)
    deviation = inside.std()
    if not deviation > 0:
        raise ValueError("the image is empty: nearly all its values are equal")
    return (values.clamp(float(low), float(high)) - float(inside.mean())) / float(deviation)


def _random(options: Options) -> Compose:
    """A patch, about a tumour's voxel or about another one, in its variations.

    All three axes are mirrored, as in nnU-Net (Isensee et al. 2021, doi:10.1038/s41592-020-01008-z).
    """
    keys = ("image", "label")
    return Compose(
        [
            _with_centres,
            RandCropByPosNegLabeld(
                keys,
                "label",
                options.patch,
                pos=options.positive,
                neg=1 - options.positive,
                fg_indices_key="inside",
                bg_indices_key="outside",
            ),
            _only,
            RandAffined(
                keys,
                prob=0.5,
                rotate_range=[options.rotation] * 3,
                scale_range=[options.scaling] * 3,
                mode=("bilinear", "nearest"),
                padding_mode="border",
            ),
            *(RandFlipd(keys, prob=0.5, spatial_axis=axis) for axis in range(3)),
            RandScaleIntensityd("image", factors=0.1, prob=0.5),
            RandShiftIntensityd("image", offsets=0.1, prob=0.5),
            RandGaussianNoised("image", prob=0.25, std=0.05),
            EnsureTyped(keys, dtype=(torch.float32, torch.uint8), track_meta=False),
        ],
        map_items=False,
    )


def _with_centres(sample: dict[str, Any]) -> dict[str, Any]:
    """Where a patch's centre may lie, as positions in the flat mask: in the tumour or outside.

    MONAI would list all voxels each time, which takes longer than all else here; of those outside
    every 97th will do.
    """
    flat = np.asarray(sample["label"]).reshape(-1) != 0
    some = np.arange(0, flat.size, 97)
    return {**sample, "inside": np.flatnonzero(flat), "outside": some[~flat[some]]}


def _only(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Image and mask of the one patch that was cropped."""
    (sample,) = samples
    return {"image": sample["image"], "label": sample["label"]}


def _infer(windows: SlidingWindowInferer, network: nn.Module, images: Tensor) -> Tensor:
    logits: Tensor = windows(images, network)
    return logits


def _outcome(
    logits: Tensor,
    target: Tensor,
    *,
    spacing: Sequence[float],
    loss: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """`BY_CASE` of one case, float64, NaN where a number says nothing; see `_measure`."""
    said, true = logits.argmax(dim=0) == 1, target[0] == 1
    millilitres = math.prod(spacing) / 1000
    surplus = (int(said.sum()) - int(true.sum())) * millilitres
    drawn = bool(true.any())
    numbers = {
        "dice": dice(said, true),
        "surface_dice": surface_dice(said, true, spacing),
        "hd95": hausdorff95(said, true, spacing),
        "volume_error": abs(surplus),
        "volume_bias": surplus,
        "missed": float(not said.any()) if drawn else math.nan,
        "loss": loss(logits[None].float(), target[None]).item(),
    }
    return torch.tensor([numbers[name] for name in BY_CASE], dtype=torch.float64)


def _measure(predictions: Sequence[Prediction]) -> dict[str, float]:
    """Means over the cases that say something of a metric.

    - `dice`: 2|P ∩ T| / (|P| + |T|), the headline.
    - `surface_dice`: share of both surfaces that lies within 2 mm of the other (Nikolov et al. 2021,
      doi:10.2196/26151).
    - `hd95`: mm, the larger of the two directed 95th percentiles of the distances between surfaces.
    - `volume_error` and `volume_bias`: ml, |answer - truth| and answer - truth.
    - `missed`: share of the cases with a tumour for which the answer holds none at all.

    Where truth and answer are both empty, Dice and surface Dice are not defined and the case is left
    out of them; where one of the two is, they are 0. HD95 needs both, so read it together with
    `missed`: a model that answers nothing on hard cases would otherwise look precise.
    """
    if not predictions:
        return {}
    by_case = torch.stack([case.outcome for case in predictions]).double()
    means = zip(BY_CASE, by_case.nanmean(dim=0).tolist(), strict=True)
    return known({name: None if math.isnan(mean) else mean for name, mean in means})


def _count(predictions: Sequence[Prediction]) -> Tensor:
    """One patient's mean Dice, and share missed; float64 (4,).

    Dice alone would be 1.25 times as precise, but only together with what was missed does it tell a
    model that is poor everywhere from one that finds nothing in some. HD95, volumes and the loss have
    no bound, and surface Dice says too much the same as Dice to be worth its noise.
    """
    by_case = torch.stack([case.outcome for case in predictions])
    if not torch.isfinite(by_case[:, BY_CASE.index("loss")]).all():  # of logits that are not
        return torch.zeros(2 * len(TALLIED), dtype=torch.float64)
    columns = [BY_CASE.index(name) for name in TALLIED]
    return _tallies.of_values(by_case[:, columns], tuple(TALLIED.values()))


def _measure_sums(sums: NDArray[np.float64]) -> dict[str, float]:
    """As `_measure`, but with patients as weights."""
    pairs = zip(TALLIED, sums.reshape(-1, 2), strict=True)
    return _tallies.finite({name: _tallies.mean(pair) for name, pair in pairs})
