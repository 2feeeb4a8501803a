"""Exact metrics of held-out patients, as far as they are of enough of them to leave."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch

from client_app.training.loop import metrics_of
from federation.tasks import Prediction, Task

OF_ALL = "loss"  # the one metric that is no class's


def exact_metrics(predictions: Sequence[Prediction], task: Task, smallest: int) -> dict[str, float]:
    """The task's metrics; only the loss where one of them would be a figure of few patients.

    A sensitivity is a figure of the patients who have the disease, an AUROC tells where each of them
    ranks, a Dice is of those who have the structure. So with fewer than `smallest` patients of a true
    class, or of a structure, that the hospital has at all, no metric by class leaves it. The loss is a
    mean over everybody held out, of whom the caller sees that there are enough.

    Args:
        predictions: on all held-out cases.
        smallest: group of the site's policy.
    """
    metrics = metrics_of(predictions, task)
    if all(len(patients) >= smallest for patients in _patients_by_class(predictions, task)):
        return metrics
    return {name: value for name, value in metrics.items() if name == OF_ALL}


def _patients_by_class(predictions: Sequence[Prediction], task: Task) -> list[set[str]]:
    """Who is of each true class that somebody is of; in segmentation, who has each structure's Dice."""
    found: dict[int, set[str]] = defaultdict(set)
    for case in predictions:
        if task.kind == "classification":
            found[int(case.target)].add(case.patient)
        else:
            dice = case.outcome[: len(task.classes) - 1]
            for structure in torch.nonzero(~torch.isnan(dice)).flatten().tolist():
                found[structure].add(case.patient)
    return list(found.values())
