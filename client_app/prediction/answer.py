"""What the model says of one image: probabilities of classes, or a class for each of its voxels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import grid_sample

from client_app.imaging.image import Image
from client_app.imaging.set_aside import Reason, Unfit, silenced
from client_app.imaging.voxels import read_image
from client_app.prediction.model import Model
from federation.schema import ConfigError
from federation.tasks import Task

# Voxels beyond the outermost centres of a grid that still belong to it: half a voxel, and rounding.
_EDGE = 0.5 + 1e-3


def classify(model: Model, image: Image) -> dict[str, float]:
    """Class to probability; they add up to one.

    Raises:
        Unfit: the image cannot be read, or the task refuses it.
    """
    _, logits = _logits(model, image)
    values = _probabilities(logits.reshape(-1, 1)).flatten().tolist()
    return dict(zip(model.task.classes, values, strict=True))


def segment(model: Model, image: Image) -> NDArray[np.uint8]:
    """The most probable class of each voxel of the image, of the image's own shape.

    Voxels that the task cut away are background.

    Raises:
        Unfit: the image cannot be read, or the task refuses it.
        ConfigError: the task does not say where the network's voxels lie, or says it wrongly.
    """
    place = require_place(model.task)
    source, logits = _logits(model, image)
    placed = place(source)
    if placed.shape[1:] != logits.shape[1:]:
        raise ConfigError(
            f"task {model.task.name} places {tuple(placed.shape[1:])} voxels where its network "
            f"answers for {tuple(logits.shape[1:])}: its `place` does not follow its `load`"
        )
    return onto(
        _probabilities(logits),
        placed.affine.numpy(),
        shape=tuple(source.shape[1:]),
        onto_affine=source.affine.numpy(),
    )


def require_place(task: Task) -> Callable[[MetaTensor], MetaTensor]:
    """Raises ConfigError: the task does not say where the network's voxels lie."""
    if task.place is None:
        raise ConfigError(
            f"task {task.name} cannot bring its answers back onto the image: it has no `place`"
        )
    return task.place


def onto(
    probabilities: Tensor,
    affine: NDArray[Any],
    *,
    shape: Sequence[int],
    onto_affine: NDArray[Any],
) -> NDArray[np.uint8]:
    """The most probable class at each voxel centre of another grid.

    Probabilities, not classes, are interpolated (trilinear, in mm), so that a boundary lies where the
    model saw it and not on the coarser of two grids. Beyond the given voxels there is background.

    Args:
        probabilities: (classes, *spatial), of three dimensions.
        affine: voxels of `probabilities` to mm.
        shape, onto_affine: the other grid, and its voxels to the same mm.

    Returns:
        Class indices of shape `shape`.
    """
    size = np.array(probabilities.shape[1:])
    lead = np.linalg.inv(affine.astype(np.float64)) @ onto_affine.astype(np.float64)
    result = np.zeros(tuple(shape), dtype=np.uint8)
    plane = np.stack(np.meshgrid(*map(np.arange, shape[:2]), indexing="ij"), axis=-1)
    for number in range(shape[2]):  # by planes, so that memory stays small
        voxels = plane @ lead[:3, :2].T + (lead[:3, 2] * number + lead[:3, 3])
        within = ((voxels >= -_EDGE) & (voxels <= size - 1 + _EDGE)).all(axis=-1)
        if not within.any():
            continue
        # grid_sample wants -1 and 1 at the outermost centres, and the last axis first.
        scaled = np.where(size > 1, 2 * voxels / np.maximum(size - 1, 1) - 1, 0.0)[..., ::-1]
        points = torch.from_numpy(scaled.astype(np.float32))[None, None]
        sampled = grid_sample(
            probabilities[None], points, padding_mode="border", align_corners=True
        )
        classes = sampled[0, :, 0].argmax(dim=0).numpy()
        result[..., number] = np.where(within, classes, 0)
    return result


def _logits(model: Model, image: Image) -> tuple[MetaTensor, Tensor]:
    """The image's voxels, and what the network says of what the task makes of them."""
    with silenced():
        source = read_image(image)
        # `load` wants a label, and prepares it along with the image; this one says nothing.
        label = 0 if model.task.kind == "classification" else _empty_mask(source)
        item = {"image": source.clone(), "label": label, "attributes": dict(image.attributes)}
        try:
            prepared = torch.as_tensor(model.task.load(item)["image"])
        except ValueError as error:  # a task's own words
            raise Unfit(Reason.LOAD_FAILED, str(error)) from error
    with torch.inference_mode():
        logits = model.task.infer(model.network, prepared[None].to(model.device))[0]
    logits = torch.as_tensor(logits).float().cpu()
    if not torch.isfinite(logits).all():
        raise Unfit(Reason.NOT_FINITE, "the network's answer")
    return source, logits


def _empty_mask(source: MetaTensor) -> MetaTensor:
    return MetaTensor(torch.zeros(source.shape, dtype=torch.uint8), affine=source.affine)


def _probabilities(logits: Tensor) -> Tensor:
    """Over the first axis; one logit alone is the second of two classes'."""
    if logits.shape[0] == 1:
        positive = torch.sigmoid(logits)
        return torch.cat((1 - positive, positive))
    return torch.softmax(logits, dim=0)
