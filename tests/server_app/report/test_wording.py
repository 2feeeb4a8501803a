"""Names of metrics, for people."""

from __future__ import annotations

from server_app.report import wording


def test_a_metric_of_a_hospitals_own_model_is_named_as_such() -> None:
    assert wording.metric_label("personal_auroc") == f"{wording.metric_label('auroc')}, own model"
    assert wording.metric_label("personal_dice_anterior") == "Dice anterior, own model"
    meaning = wording.metric_meaning("dice")
    assert meaning
    assert meaning in (wording.metric_meaning("personal_dice_anterior") or "")
    assert wording.larger_is_better("personal_auroc") is True
    assert wording.larger_is_better("personal_loss") is False
