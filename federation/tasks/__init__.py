"""Applications, one file each: what goes in, what comes out, and how good it is.

A task's file offers `Options` (its closed configuration) and `build(options) -> Task`. It is found by
its file's name, see `federation.registry`; adding a task is adding
that file and `configs/task/NAME.yaml`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from monai.data import MetaTensor
from numpy.typing import NDArray
from torch import Tensor, nn

from federation import registry
from federation.schema import Component, Experiment


@dataclass(frozen=True)
class Selection:
    """Which images of a hospital serve a task. What is outside is set aside as `not_for_task`.

    Attributes:
        modalities: DICOM's codes (PS3.3 C.7.3.1.1.1). An image that states none (NIfTI) passes.
        attributes: for an attribute (`view`, `weighting` …) the words that pass; `unknown` passes only
            where it is listed.
        least_extent: mm that a volume must cover along each of its axes.
        largest_spacing: mm between voxels along a volume's coarsest axis.
        several_volumes: whether series of several volumes (4-D) serve, by their first one.
    """

    modalities: frozenset[str] = frozenset()
    attributes: Mapping[str, frozenset[str]] = field(default_factory=dict)
    least_extent: float = 0.0
    largest_spacing: float = math.inf
    several_volumes: bool = False


@dataclass(frozen=True)
class Prediction:
    """What is kept of the model's answer on one held-out case.

    Attributes:
        patient: the keyed pseudonym, never the identifier.
        outcome: what `Task.outcome` made of the logits: small, so that volumes need not be kept.
        target: the class index; for segmentation empty, the truth being in the outcome.
        attributes: what fairness is measured by (`sex`, `age_band`, …) and whatever else the images
            say (`laterality`, `view`).
    """

    patient: str
    outcome: Tensor
    target: Tensor
    attributes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Tally:
    """Metrics from sums over patients, for where nothing but sums may leave a hospital.

    Attributes:
        size: how many numbers a tally has.
        count: the predictions on one patient's held-out cases to float64 (size,), none of them
            negative and of an L2 norm of at most 1, so that one patient moves the sum by no more. All
            are 0 where an answer is not finite.
        measure: a sum over patients (size,) to metrics, names of `Task.metrics`. The sum may hold
            noise, so fractions and negative numbers; what cannot be computed is left out.
    """

    size: int
    count: Callable[[Sequence[Prediction]], Tensor]
    measure: Callable[[NDArray[np.float64]], dict[str, float]]


@dataclass(frozen=True)
class Task:
    """An application, ready to use.

    Attributes:
        classes: names by class index; a segmentation's first is the background.
        load: deterministic part, whose result is cached. Gets `{"image", "label", "attributes"}`:
            image a `MetaTensor` float32 (channels, *spatial) whose affine leads from voxels to RAS+ in
            mm (of a radiograph (1, rows, columns), its pixel spacing alone), denser tissue brighter;
            label a class index, or a `MetaTensor` uint8 of class indices on the image's grid;
            attributes the image's words. Gives `{"image": float tensor (channels, *spatial),
            "label": tensor}`.
        augment: random part, drawn anew each time, on what `load` gave; keeps shapes fixed so that
            samples can be batched (patches are cropped here). It pickles, and all that it draws comes
            from the `R` of MONAI's `Randomizable`: transforms, compositions and `functools.partial`
            over them, so that a sample is a function of seed and step.
        loss: (logits, target batch) to a scalar.
        infer: (network, image batch) to logits; sliding windows where images are larger than patches.
        outcome: (logits, target) of one case to what `measure` needs of it, a small tensor. A
            classification's are its logits. A segmentation's begin with the Dice of each structure, NaN
            where there is none, and end with the loss, which is finite where the logits are: fairness
            is counted from these (`federation.fairness.cases`).
        measure: predictions on held-out cases to metrics, each a finite float. A metric that cannot
            be computed (one class only) is left out.
        metrics: all names that `measure` may give: the only ones that may leave a hospital.
        headline: the metric by which models are compared; larger is better.
        patch: voxels or pixels along each axis of what `augment` gives, so of what a network sees.
        selection: which images serve.
        synonyms: other words for classes in tables, lower case, to the class's name.
        structures: for segmentation, foreground class to patterns (`gtv*`, any case) of the names that
            segments and regions of interest have by default; a site's `data.structures` comes first.
        place: the spatial part of `load` alone, of the same image: where the voxels of what the network
            sees lie. Its result has the shape of `load`'s image and an affine to RAS+ in mm, so that
            what the network says of a volume can be brought back onto the image's own voxels.
            Segmentation needs it to write predictions (`hospital predict`).
        label_by: what a row of the table of labels speaks of beside the patient: `laterality` tells
            the two breasts apart where the table has such a column.
        tally: how its metrics come from sums; a task without one has no noisy metrics.
        grey: where the values of tissue lie after `load`, which `augment`'s strengths are made for; of
            standard deviation 1, two of these about the mean.
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
    outcome: Callable[[Tensor, Tensor], Tensor]
    measure: Callable[[Sequence[Prediction]], dict[str, float]]
    metrics: tuple[str, ...]
    headline: str
    patch: tuple[int, ...]
    selection: Selection = Selection()
    synonyms: Mapping[str, str] = field(default_factory=dict)
    structures: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    label_by: tuple[str, ...] = ()
    place: Callable[[MetaTensor], MetaTensor] | None = None
    tally: Tally | None = None
    grey: tuple[float, float] = (-2.0, 2.0)


def build(component: Component) -> Task:
    """The task of this name and options.

    Raises:
        federation.schema.ConfigError: unknown name or option.
    """
    module, options = registry.find(sys.modules[__name__], component)
    task: Task = module.build(options)
    return task


def of_experiment(experiment: Experiment) -> Task:
    """The experiment's task on images harmonised as the experiment says.

    Raises:
        federation.schema.ConfigError: unknown name or option, or a harmonisation that the task has no
            use for.
    """
    from federation import harmonisation  # which builds on this package

    return harmonisation.applied(build(experiment.task), experiment.harmonisation)


def seeded(*parts: object) -> torch.Generator:
    """A CPU generator whose seed is a hash of the parts: the same parts, the same numbers."""
    import hashlib

    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
