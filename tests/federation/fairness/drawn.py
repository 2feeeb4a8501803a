"""Predictions that nobody's images are behind, for the tests of this package."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from federation import tasks
from federation.fairness.layout import Layout
from federation.schema import Component, Fairness
from federation.tasks import Prediction, Task

CHEST, MAMMOGRAPHY, ALZHEIMERS, HIPPOCAMPUS, TUMOUR = (
    tasks.build(Component(name=name))
    for name in ("chest_xray", "mammography", "alzheimers", "hippocampus", "tumour_segmentation")
)
SEXES = ("female", "male", "unknown")
AGES = ("0-17", "18-39", "40-59", "60-79", "80+", "unknown")
MAKERS = ("siemens", "ge", "shimadzu", "unknown")


def layout(task: Task = CHEST, **options: Any) -> Layout:
    return Layout.of(Fairness(**options), task)


def binary(log_odds: float, label: int, patient: str = "p", **attributes: str) -> Prediction:
    """An image with these log odds of the second class."""
    logits = torch.tensor([0.0, log_odds], dtype=torch.float64)
    return Prediction(patient, logits, torch.tensor(label), attributes)


def hospital(
    generator: np.random.Generator, count: int, *, task: Task = CHEST, images: int = 1
) -> list[Prediction]:
    """Patients of random groups and labels, whose scores say something of their labels."""
    predictions = []
    for number in range(count):
        words = {
            "sex": str(generator.choice(SEXES, p=(0.5, 0.45, 0.05))),
            "age_band": str(generator.choice(AGES)),
            "manufacturer": str(generator.choice(MAKERS)),
        }
        for _ in range(int(generator.integers(1, images + 1))):
            label = int(generator.integers(len(task.classes)))
            logits = generator.normal(0, 1.5, len(task.classes))
            logits[label] += 1.0
            predictions.append(
                Prediction(f"p{number}", torch.tensor(logits), torch.tensor(label), words)
            )
    return predictions


def segmented(dices: Sequence[float], loss: float = 0.3, **attributes: str) -> Prediction:
    outcome = torch.tensor([*dices, loss], dtype=torch.float64)
    return Prediction("p", outcome, torch.empty(0), attributes)
