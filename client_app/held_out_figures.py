"""Exact metrics of held-out patients, as far as they are of enough of them to leave."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch

from client_app.training.loop import metrics_of
from federation.tasks import Prediction, Task

_OF_ALL = "loss"  # the one metric that is no class's


def exact_metrics(predictions: Sequence[Prediction], task: Task, smallest: int) -> dict[str, float]:
    """The task's metrics; only the loss where one of them would be a figure of few patients.

    A sensitivity is a figure of the patients who have the disease, an AUROC tells where each of them
    ranks, a surface distance is of those whose structure was found. So with fewer than `smallest`
    patients, but some, of a true class or of what a metric of structures is known of, no metric but the
    loss leaves. That is a mean over everybody held out, of whom the caller sees that there are enough.

    Args:
        predictions: on all held-out cases.
        smallest: group of the site's policy.
    """
    metrics = metrics_of(predictions, task)
    parts = _classes(predictions) if task.kind == "classification" else _known(predictions)
    if all(len(patients) >= smallest for patients in parts):
        return metrics
    return {name: value for name, value in metrics.items() if name == _OF_ALL}


def _classes(predictions: Sequence[Prediction]) -> list[set[str]]:
    """Who has an image of each class, and whose highest class each is, as metrics by patient count."""
    of_images: dict[int, set[str]] = defaultdict(set)
    highest: dict[str, int] = {}
    for case in predictions:
        label = int(case.target)
        of_images[label].add(case.patient)
        highest[case.patient] = max(label, highest.get(case.patient, label))
    of_patients: dict[int, set[str]] = defaultdict(set)
    for patient, label in highest.items():
        of_patients[label].add(patient)
    return [*of_images.values(), *of_patients.values()]


def _known(predictions: Sequence[Prediction]) -> list[set[str]]:
    """Of whom each number of a segmentation's outcome is known; none of whom nobody's is."""
    found: dict[int, set[str]] = defaultdict(set)
    for case in predictions:
        for column in torch.nonzero(~torch.isnan(case.outcome)).flatten().tolist():
            found[column].add(case.patient)
    return list(found.values())
