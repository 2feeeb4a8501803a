"""No exact metric that leaves a hospital is a figure of few patients of a class."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from client_app.held_out_figures import exact_metrics
from client_app.training.loop import metrics_of
from federation.tasks import Prediction, Task
from tests.federation.fairness import drawn

SMALLEST = 3


def of_classes(*patients: int) -> list[Prediction]:
    """So many patients of each class, two images each, none of them answered alike."""
    classes = len(patients)
    return [
        Prediction(f"{label}-{one}", torch.randn(classes), torch.tensor(label))
        for label, many in enumerate(patients)
        for one in range(many)
        for _ in range(2)
    ]


@pytest.mark.parametrize(
    ("task", "patients", "all_leave"),
    [
        (drawn.CHEST, (9, SMALLEST), True),
        (drawn.CHEST, (9, SMALLEST - 1), False),  # four images, but of two patients
        (drawn.CHEST, (1, 9), False),
        (drawn.CHEST, (9, 0), True),  # specificity of nine
        (drawn.ALZHEIMERS, (5, 5, 1), False),
        (drawn.ALZHEIMERS, (5, 5, 5), True),
    ],
)
def test_metrics_by_class_leave_if_each_class_has_enough_patients(
    task: Task, patients: tuple[int, ...], all_leave: bool
) -> None:
    cases = of_classes(*patients)
    whole = metrics_of(cases, task)
    assert whole.keys() > {"loss"}
    left = exact_metrics(cases, task, SMALLEST)
    assert left == (whole if all_leave else {"loss": whole["loss"]})
    assert exact_metrics(cases, task, 1) == whole


def test_a_structure_that_few_patients_have_takes_its_dice_along() -> None:
    def patient(number: int, *dices: float) -> Prediction:
        return replace(drawn.segmented(dices), patient=str(number))

    both = [patient(n, 0.8, 0.7) for n in range(SMALLEST)]
    assert "dice" in exact_metrics(both, drawn.HIPPOCAMPUS, SMALLEST)
    one = [*(patient(n, 0.8, float("nan")) for n in range(4)), patient(9, 0.8, 0.7)]
    assert exact_metrics(one, drawn.HIPPOCAMPUS, SMALLEST).keys() == {"loss"}
    nobody = [patient(n, 0.8, float("nan")) for n in range(4)]
    assert "dice" in exact_metrics(nobody, drawn.HIPPOCAMPUS, SMALLEST)
