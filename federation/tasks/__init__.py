"""Applications, one file each: what goes in, what comes out, and how good it is.

A task's file offers `Options` (its closed configuration) and `build(options) -> Task`. It is found by
its file's name, see `federation.registry`; adding a task is adding
that file and `configs/task/NAME.yaml`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from federation import registry
from federation.schema import Component


@dataclass(frozen=True)
class Case:
    """One image of one patient with what is to be learnt from it.

    `patient` is the keyed pseudonym, never the identifier. `label` is a class index for
    classification, or the path of a mask for segmentation. `attributes` hold what fairness is
    measured by (`sex`, `age_band`, `manufacturer`, …), `unknown` where nothing usable was found.
    """

    patient: str
    image: Path
    label: int | Path
    attributes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Prediction:
    """What the model said of one case (logits, C × spatial or C) and what is true (target)."""

    patient: str
    logits: Tensor
    target: Tensor


@dataclass(frozen=True)
class Task:
    """An application, ready to use.

    Attributes:
        load: deterministic part: `{"image": path, "label": path or int}` to
            `{"image": float tensor (channels, *spatial), "label": tensor}`; its result is cached.
        augment: random part, drawn anew each time, on what `load` gave; keeps shapes fixed so that
            samples can be batched (patches are cropped here).
        loss: (logits, target batch) to a scalar.
        infer: (network, image batch) to logits; sliding windows where images are larger than patches.
        measure: predictions on held-out cases to metrics, each a finite float. A metric that cannot
            be computed (one class only) is left out.
        metrics: all names that `measure` may give: the only ones that may leave a hospital.
        headline: the metric by which models are compared; larger is better.
        patch: voxels or pixels along each axis of what `augment` gives, so of what a network sees.
    """

    name: str
    kind: Literal["classification", "segmentation"]
    spatial_dims: int
    in_channels: int
    classes: tuple[str, ...]
    load: Callable[[dict[str, Any]], dict[str, Any]]
    augment: Callable[[dict[str, Any]], dict[str, Any]]
    loss: Callable[[Tensor, Tensor], Tensor]
    infer: Callable[[nn.Module, Tensor], Tensor]
    measure: Callable[[Sequence[Prediction]], dict[str, float]]
    metrics: tuple[str, ...]
    headline: str
    patch: tuple[int, ...]


def build(component: Component) -> Task:
    """The task of this name and options.

    Raises:
        federation.schema.ConfigError: unknown name or option.
    """
    module, options = registry.find(sys.modules[__name__], component)
    task: Task = module.build(options)
    return task


def seeded(*parts: object) -> torch.Generator:
    """A CPU generator whose seed is a hash of the parts: the same parts, the same numbers."""
    import hashlib

    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
