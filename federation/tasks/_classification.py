"""How good scores of held-out cases are: the arithmetic that classifications share.

Scores are logits or their differences, larger for the positive class; truth is 0 or 1. What cannot be
computed, because one of the two classes is absent, is None.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from federation.tasks import Prediction

Scores = NDArray[np.float64]
Truth = NDArray[np.int64]


def class_index(item: Mapping[str, Any], classes: Sequence[str]) -> Tensor:
    """The item's label, int64 without axes.

    Raises:
        ValueError: it is no class.
    """
    label = int(item["label"])
    if label not in range(len(classes)):
        known = ", ".join(f"{index} for {name}" for index, name in enumerate(classes))
        raise ValueError(f"label {label} is no class: use {known}")
    return torch.tensor(label)


def infer(network: nn.Module, images: Tensor) -> Tensor:
    """Logits (B, classes) of whole images."""
    logits: Tensor = network(images)
    return logits


def logits_of(logits: Tensor, target: Tensor) -> Tensor:
    """A classification's outcome is its logits (classes,): they are few already."""
    return logits.double()


def collect(predictions: Sequence[Prediction]) -> tuple[Tensor, Tensor]:
    """Logits (cases, classes) in double precision, and targets (cases,) int64."""
    return (
        torch.stack([case.outcome for case in predictions]).double(),
        torch.stack([case.target for case in predictions]).long(),
    )


def known(metrics: Mapping[str, float | None]) -> dict[str, float]:
    """Those that could be computed."""
    return {name: value for name, value in metrics.items() if value is not None}


def auroc(scores: Scores, truth: Truth) -> float | None:
    """Chance that a positive case scores above a negative one, a tie counting one half."""
    if truth.min() == truth.max():
        return None
    return float(roc_auc_score(truth, scores))


def sensitivity_at(specificity: float, scores: Scores, truth: Truth) -> float | None:
    """The largest sensitivity that a threshold with at least this specificity reaches.

    A case is called positive where its score is at or above the threshold, and thresholds are the
    observed scores (or none is called positive), so cases of one score share a fate and nothing is
    interpolated. The threshold is chosen on the cases that it is judged by: with few negative cases
    this flatters, as any operating point read off a curve does.
    """
    positive, negative = scores[truth == 1], np.sort(scores[truth == 0])[::-1]
    if not (positive.size and negative.size):
        return None
    # Rounded, as (1 - 0.9) * 10 must allow one false positive in floating point too.
    false_positives = math.floor(round((1 - specificity) * negative.size, 9))
    if false_positives >= negative.size:
        return 1.0
    # Whatever scores above the first negative case that is one too many.
    return float((positive > negative[false_positives]).mean())


def brier(probability: Scores, truth: Truth) -> float:
    """Mean squared difference of probability and truth (Brier 1950); 0 is best, 1 worst."""
    return float(np.square(probability - truth).mean())


def calibration_error(probability: Scores, truth: Truth, bins: int = 10) -> float:
    """Expected calibration error of a binary answer (Naeini et al. 2015), in [0, 1].

    Cases fall in bins of equal width by the probability of the positive class; the differences
    between mean probability and share of positive cases are averaged with the cases as weights. An
    edge belongs to the bin above it, and 1 to the last.
    """
    place = np.minimum((probability * bins).astype(int), bins - 1)
    surplus = np.bincount(place, weights=probability - truth, minlength=bins)
    return float(np.abs(surplus).sum() / probability.size)


def recall(said: Truth, truth: Truth, label: int) -> float | None:
    """Share of the cases of a class that were called so."""
    of_class = truth == label
    return float((said[of_class] == label).mean()) if of_class.any() else None
