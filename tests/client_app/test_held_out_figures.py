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


def test_who_is_well_by_patient_is_not_who_has_a_well_breast() -> None:
    """One woman is well; ten have an ill breast and a well one, so images of both classes abound."""

    def breast(patient: str, side: str, label: int) -> Prediction:
        words = {"laterality": side}
        return Prediction(patient, torch.randn(2), torch.tensor(label), words)

    ill = [
        breast(f"{n}", side, int(side == "left")) for n in range(10) for side in ("left", "right")
    ]
    well = [breast(f"well{n}", side, 0) for n in range(5) for side in ("left", "right")]
    assert exact_metrics(ill + well[:2], drawn.MAMMOGRAPHY, 5).keys() == {"loss"}
    assert "auroc_patient" in exact_metrics(ill + well, drawn.MAMMOGRAPHY, 5)


@pytest.mark.parametrize(
    ("drawn_", "found", "leave"), [(20, 20, True), (20, 1, False), (1, 20, False)]
)
def test_what_is_known_of_few_tumours_stays(drawn_: int, found: int, leave: bool) -> None:
    """The model finds one of twenty; or one of twenty has a tumour, and it marks something in each."""
    mask = torch.zeros(1, 6, 6, 6)
    mask[..., 2:4, 2:4, 2:4] = 1
    logits = torch.cat([0.5 - mask, mask - 0.5]) * 9
    nothing = torch.cat([torch.full_like(mask, 9.0), torch.full_like(mask, -9.0)])
    cases = []
    for number in range(20):
        truth = mask if number < drawn_ else torch.zeros_like(mask)
        outcome = drawn.TUMOUR.outcome(logits if number < found else nothing, truth)
        cases.append(Prediction(f"{number}", outcome, torch.empty(0)))
    assert metrics_of(cases, drawn.TUMOUR).keys() > {"dice", "hd95", "missed"}
    left = exact_metrics(cases, drawn.TUMOUR, 5)
    assert ("hd95" in left and "missed" in left) if leave else left.keys() == {"loss"}


def test_a_structure_that_few_patients_have_takes_its_dice_along() -> None:
    def patient(number: int, *dices: float) -> Prediction:
        return replace(drawn.segmented(dices), patient=str(number))

    both = [patient(n, 0.8, 0.7) for n in range(SMALLEST)]
    assert "dice" in exact_metrics(both, drawn.HIPPOCAMPUS, SMALLEST)
    one = [*(patient(n, 0.8, float("nan")) for n in range(4)), patient(9, 0.8, 0.7)]
    assert exact_metrics(one, drawn.HIPPOCAMPUS, SMALLEST).keys() == {"loss"}
    nobody = [patient(n, 0.8, float("nan")) for n in range(4)]
    assert "dice" in exact_metrics(nobody, drawn.HIPPOCAMPUS, SMALLEST)
