"""Phantoms and planted scanners for the tests of harmonisation."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from numpy.typing import NDArray

from client_app.imaging.phantoms import hippocampus
from client_app.training.feed import _random_states
from federation import harmonisation, tasks
from federation.schema import Component
from federation.tasks import Task

SMALL: dict[str, dict[str, Any]] = {
    "alzheimers": {"shape": [40, 48, 40], "spacing": 4.0},
    "chest_xray": {"size": 64},
    "hippocampus": {"patch": [32, 48, 32]},
    "mammography": {"size": [64, 32]},
    "tumour_segmentation": {"modality": "mr", "patch": [24, 24, 24]},
}
Array = NDArray[np.float64]


def task(name: str = "hippocampus", *chosen: str, **options: Any) -> Task:
    """A small one; of the last of `chosen` the options are given."""
    components = [Component(name=one, **(options if one == chosen[-1] else {})) for one in chosen]
    return harmonisation.applied(tasks.build(Component(name=name, **SMALL[name])), components)


def volume(seed: int = 0) -> tuple[Array, Array]:
    """A phantom of the hippocampus before it is exposed, above 0, and its mask."""
    rng = np.random.default_rng(seed)
    tissue, mask = hippocampus.render(rng, (32, 40, 32))
    return 0.1 + tissue.astype(np.float64) + 0.01 * rng.random(tissue.shape), mask


def hippocampus_item(values: Array, mask: Array | None = None) -> dict[str, Any]:
    drawn = np.zeros(values.shape) if mask is None else mask
    return {
        "image": MetaTensor(torch.from_numpy(values.astype(np.float32))[None], affine=np.eye(4)),
        "label": MetaTensor(torch.from_numpy(drawn.astype(np.uint8))[None], affine=np.eye(4)),
        "attributes": {},
    }


def radiograph(seed: int = 0, shape: tuple[int, int] = (90, 70)) -> Array:
    """Something with ribs, above 0."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: shape[0], : shape[1]] / shape[0]
    ribs = 0.2 * np.sin(40 * rows) + np.exp(-8 * (columns - 0.4) ** 2)
    return np.asarray(1.0 + ribs + 0.05 * rng.random(shape))


def radiograph_item(values: Array) -> dict[str, Any]:
    image = MetaTensor(torch.from_numpy(values.astype(np.float32))[None], affine=np.eye(3))
    return {"image": image, "label": 1, "attributes": {}}


def seeded(augment: Callable[[Any], Any], seed: int) -> Callable[[Any], Any]:
    """A copy of it in the state in which the feed would bring it."""
    own = copy.deepcopy(augment)
    for number, state in enumerate(_random_states(own)):
        state.seed([seed, number])
    return own
