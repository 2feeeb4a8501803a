"""Tables of groups and their gaps, against the same computed from the cases, and by hand."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import fairlearn.metrics
import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from federation.fairness import measures
from federation.fairness.cases import of_predictions
from federation.fairness.counts import as_array, count, sensitivity
from federation.fairness.suppression import withhold
from federation.fairness.table import FairnessTable, Gap, Row, of_counts, worst_hospital
from federation.tasks import Prediction
from tests.federation.fairness.drawn import (
    ALZHEIMERS,
    CHEST,
    HIPPOCAMPUS,
    binary,
    hospital,
    layout,
    segmented,
)


def table(images: list[Prediction], task: Any = CHEST, **options: Any) -> FairnessTable:
    made = layout(task, **options)
    return of_counts(count(of_predictions(images, task, made), made), made, seed=1)


def row(found: FairnessTable, group: str, channel: str = "pneumonia") -> Row:
    (one,) = [r for r in found.rows if (r.group, r.channel) == (group, channel)]
    return one


def gap(found: FairnessTable, metric: str, attributes: tuple[str, ...] = ("sex",)) -> Gap:
    (one,) = [g for g in found.gaps if (g.metric, g.attributes) == (metric, attributes)]
    return one


def arrays(images: list[Prediction]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    scores = np.array([float(case.outcome[1] - case.outcome[0]) for case in images])
    truth = np.array([int(case.target) for case in images])
    return scores, truth, np.array([case.attributes["sex"] for case in images])


def test_rows_are_the_groups_that_have_cases() -> None:
    images = hospital(np.random.default_rng(1), 120)
    found = table(images, pairs=True)
    groups = {"all"}
    for case in images:
        words = {a: "other" if w == "shimadzu" else w for a, w in case.attributes.items()}
        named = [f"{a}={w}" for a, w in words.items()]
        groups.update(named)
        groups.update(f"{a} & {b}" for i, a in enumerate(named) for b in named[i + 1 :])
    assert [r.group for r in found.rows].count("all") == 1
    assert {r.group for r in found.rows} == groups
    everyone = row(found, "all")
    assert (everyone.cases, everyone.attributes, everyone.known) == (120, (), True)
    assert everyone.positive == sum(int(case.target) for case in images)
    assert not row(found, "sex=unknown").known
    for one in found.rows:
        for estimate in one.metrics.values():
            assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1


@pytest.mark.parametrize("seed", range(5))
def test_differences_are_fairlearns(seed: int) -> None:
    images = hospital(np.random.default_rng(seed), 300)
    scores, truth, sex = arrays(images)
    known = np.isin(sex, ("female", "male"))
    said = {"y_true": truth[known], "y_pred": scores[known] >= 0, "sensitive_features": sex[known]}
    found = table(images, least_cases=1)
    parity = gap(found, "demographic_parity_difference")
    assert parity.value == pytest.approx(fairlearn.metrics.demographic_parity_difference(**said))
    odds = gap(found, "equalised_odds_difference")
    assert odds.value == pytest.approx(fairlearn.metrics.equalized_odds_difference(**said))
    rates = fairlearn.metrics.MetricFrame(
        metrics={
            "sensitivity": fairlearn.metrics.true_positive_rate,
            "specificity": fairlearn.metrics.true_negative_rate,
            "false_positive_rate": fairlearn.metrics.false_positive_rate,
        },
        **said,
    )
    for name, difference in rates.difference(method="between_groups").items():
        assert gap(found, name).value == pytest.approx(difference)
        worst = rates.by_group[name].agg("idxmax" if name == "false_positive_rate" else "idxmin")
        assert gap(found, name).worst == f"sex={worst}"


def test_gaps_of_areas_are_within_their_bounds() -> None:
    images = hospital(np.random.default_rng(7), 300)
    found = table(images, least_cases=1)
    scores, truth, sex = arrays(images)
    of_sex = {
        word: roc_auc_score(truth[sex == word], scores[sex == word]) for word in ("female", "male")
    }
    areas = gap(found, "auroc")
    assert abs(areas.value - (max(of_sex.values()) - min(of_sex.values()))) <= areas.bound
    assert areas.worst == f"sex={min(of_sex, key=lambda word: of_sex[word])}"
    odds = gap(found, "equalised_odds_difference")
    assert (odds.worst, odds.best, odds.groups, odds.bound) == (None, None, 2, 0)
    for one in found.gaps:
        assert 0 <= one.low <= one.value <= one.high <= 1


def test_the_worst_of_an_error_is_the_largest() -> None:
    images = [binary(3.0, 0, sex="male")] * 8 + [binary(-3.0, 0, sex="male")] * 2
    images += [binary(-3.0, 0, sex="female")] * 10
    found = table(images, least_cases=5)
    assert gap(found, "false_positive_rate").worst == "sex=male"
    assert gap(found, "false_positive_rate").value == pytest.approx(0.8)
    assert gap(found, "specificity").worst == "sex=male"
    assert gap(found, "calibration_error").worst == "sex=male"
    metrics = {one.metric for one in found.gaps}
    assert not {"auroc", "sensitivity", "equalised_odds_difference"} & metrics  # nobody is ill


def test_groups_of_few_are_shown_and_not_compared() -> None:
    """Two women, both called wrong, would be the worst group by far."""
    generator = np.random.default_rng(3)
    images = [
        binary(float(generator.normal(2 * y - 1)), y, sex="male", age_band=age)
        for age in ("40-59", "60-79")
        for y in (0, 1)
        for _ in range(30)
    ]
    images += [binary(-4.0, 1, sex="female"), binary(4.0, 0, sex="female")]
    few = table(images, least_cases=10)
    assert row(few, "sex=female").metrics["auroc"].value == 0
    assert not [one for one in few.gaps if one.attributes == ("sex",)]
    worst = few.worst("auroc", "pneumonia", 10)
    assert worst is not None
    assert worst.group != "sex=female"
    assert gap(few, "auroc", ("age_band",)).groups == 2
    many = table(images, least_cases=1)
    assert gap(many, "auroc").worst == "sex=female"
    named = many.worst("auroc", "pneumonia", 1)
    assert named is not None
    assert named.group == "sex=female"
    assert many.worst("auroc", "pneumonia", 1000) is None


def test_cases_without_an_answer_make_no_area_surer() -> None:
    """AUROC and calibration leave them out; to be called positive they would have needed an answer."""
    generator = np.random.default_rng(3)
    answered = [
        binary(float(generator.normal(2 * y - 1)), y, sex="male") for y in (0, 1) for _ in range(10)
    ]
    silent = [binary(math.nan, y, sex="male") for y in (0, 1) for _ in range(90)]
    alone, beside = (row(table(images), "all") for images in (answered, answered + silent))
    assert (beside.cases, beside.positive, beside.unanswered) == (200, 100, 180)
    assert beside.metrics["auroc"] == alone.metrics["auroc"]
    assert [beside.metrics[name].cases for name in ("auroc", "calibration_error")] == [10, 20]
    assert [beside.metrics[name].cases for name in ("sensitivity", "selection_rate")] == [100, 200]
    missed, seen = beside.metrics["sensitivity"], alone.metrics["sensitivity"]
    assert missed.value == pytest.approx(seen.value / 10)
    assert missed.high - missed.low < seen.high - seen.low


def test_groups_with_few_answers_are_not_compared_by_area() -> None:
    """One pair of women was answered, and wrong."""
    generator = np.random.default_rng(3)
    images = [
        binary(float(generator.normal(2 * y - 1)), y, sex="male") for y in (0, 1) for _ in range(30)
    ]
    images += [binary(-4.0, 1, sex="female"), binary(4.0, 0, sex="female")]
    images += [binary(math.nan, y, sex="female") for y in (0, 1) for _ in range(90)]
    found = table(images, least_cases=10)
    area = row(found, "sex=female").metrics["auroc"]
    assert (area.value, area.cases) == (0, 1)
    worst = found.worst("auroc", "pneumonia", 10)
    assert worst is not None
    assert worst.group == "sex=male"
    assert worst_hospital({"a": table(images[60:])}, "auroc", "pneumonia", 10) is None
    compared = {one.metric for one in found.gaps}
    assert not {"auroc", "calibration_error"} & compared
    assert gap(found, "sensitivity").worst == "sex=female", (
        "whom the model did not answer it missed"
    )


def test_unknown_and_withheld_are_shown_and_not_compared() -> None:
    generator = np.random.default_rng(3)
    images = [
        binary(float(generator.normal(shift * (2 * y - 1))), y, patient=f"{sex}{n}{y}", sex=sex)
        for sex, shift, size in (("male", 1, 40), ("female", 1, 30), ("unknown", -2, 40))
        for y in (0, 1)
        for n in range(size)
    ]
    made = layout(attributes=("sex", "view"))
    images += [binary(0.0, y, patient=f"o{y}", sex="unknown", view="pa") for y in (0, 1)]
    cases = withhold(of_predictions(images, CHEST, made), made, 5)
    found = of_counts(count(cases, made), made, seed=1)
    assert gap(found, "auroc").groups == 2
    assert row(found, "sex=unknown").metrics["auroc"].value < 0.3
    worst = found.worst("auroc", "pneumonia", 10)
    assert worst is not None
    assert worst.group in ("sex=male", "sex=female")
    assert found.withheld == {"view": 82}
    assert table(images).withheld == {}


def test_intervals_are_of_the_right_size() -> None:
    images = [
        binary(float(x), y, sex=s)
        for s in ("male", "female")
        for y in (0, 1)
        for x in np.random.default_rng(y + 2 * len(s)).normal(y, 1, 200)
    ]
    found = table(images)
    one = row(found, "sex=male").metrics["sensitivity"]
    wide = 2 * 1.96 * math.sqrt(one.value * (1 - one.value) / 200)
    assert one.high - one.low == pytest.approx(wide, rel=0.1)
    area = row(found, "all").metrics["auroc"]
    assert 0.03 < area.high - area.low - 2 * area.bound < 0.09
    error = row(found, "all").metrics["calibration_error"]
    assert error.low < error.value < error.high


def test_the_same_counts_and_seed_give_the_same_table() -> None:
    images = hospital(np.random.default_rng(1), 60)
    made = layout()
    vector = count(of_predictions(images, CHEST, made), made)
    first = of_counts(vector, made, seed=5)
    assert first == of_counts(vector, made, seed=5)
    assert first.gaps != of_counts(vector, made, seed=6).gaps
    json.dumps(dataclasses.asdict(first), allow_nan=False)


def test_a_threshold_of_all_for_each_group() -> None:
    made = layout()
    vector = count(of_predictions(hospital(np.random.default_rng(4), 400), CHEST, made), made)
    threshold = float(measures.threshold_at(as_array(vector, made)[0, 0], made.edges, 0.9))
    found = of_counts(vector, made, seed=1, threshold=threshold)
    assert row(found, "all").metrics["specificity"].value >= 0.9
    at_half = of_counts(vector, made, seed=1)
    assert row(at_half, "all").metrics["specificity"].value < 0.9


def test_segmentation_has_dice_by_structure() -> None:
    images = [segmented((0.9, 0.8), sex="male")] * 12 + [
        segmented((0.5, math.nan), sex="female")
    ] * 12
    found = table(images, HIPPOCAMPUS)
    anterior = row(found, "sex=female", "anterior").metrics
    assert set(anterior) == {"dice_mean", "dice_q10", "dice_median", "dice_q90"}
    assert anterior["dice_mean"].value == pytest.approx(0.525)
    assert anterior["dice_mean"].low <= 0.5 <= anterior["dice_mean"].high
    posterior = row(found, "sex=female", "posterior")
    assert (posterior.cases, posterior.positive, posterior.metrics) == (0, None, {})
    (mean,) = [g for g in found.gaps if g.metric == "dice_mean"]
    assert (mean.channel, mean.worst, mean.best) == ("anterior", "sex=female", "sex=male")
    assert abs(mean.value - 0.4) <= mean.bound


def test_several_classes_have_a_row_each() -> None:
    found = table(hospital(np.random.default_rng(4), 200, task=ALZHEIMERS), ALZHEIMERS)
    everyone = [one for one in found.rows if one.group == "all"]
    assert [one.channel for one in everyone] == list(ALZHEIMERS.classes)
    assert sum(one.positive or 0 for one in everyone) == 200
    assert {g.channel for g in found.gaps} == set(ALZHEIMERS.classes)


def test_an_empty_federation_has_an_empty_table() -> None:
    made = layout()
    assert of_counts(np.zeros(made.size, np.int64), made, seed=1) == FairnessTable((), (), {})
    with pytest.raises(ValueError, match="layout"):
        of_counts(np.zeros(7, np.int64), made, seed=1)


def test_the_worst_hospital_has_enough_cases() -> None:
    generator = np.random.default_rng(2)
    tables = {
        name: table(
            [binary(float(generator.normal(shift * y)), y) for y in (0, 1) for _ in range(n)]
        )
        for name, shift, n in (("good", 4, 40), ("poor", 1, 40), ("tiny", -3, 2))
    }
    assert worst_hospital(tables, "auroc", "pneumonia", 10) == "poor"
    assert worst_hospital(tables, "auroc", "pneumonia", 1) == "tiny"
    assert worst_hospital(tables, "auroc", "pneumonia", 99) is None


def test_noise_is_in_the_intervals() -> None:
    made = layout(attributes=("sex",), score_bins=8)
    images = hospital(np.random.default_rng(9), 1500)
    exact = count(of_predictions(images, CHEST, made).at_most(1), made)
    spread = 2.0 * sensitivity(made, 1).l2
    noise = np.rint(np.random.default_rng(1).normal(0, spread, exact.shape)).astype(np.int64)
    found = of_counts(exact + noise, made, seed=1, noise=spread)
    plain = of_counts(exact, made, seed=1)
    assert (exact + noise < 0).any()
    for metric in ("auroc", "sensitivity"):
        noisy, clean = (row(t, "sex=female").metrics[metric] for t in (found, plain))
        assert noisy.low <= clean.value <= noisy.high
        assert noisy.value == pytest.approx(clean.value, abs=0.05)
    scattered = count(of_predictions(images[:60], CHEST, made), made)
    wider = row(of_counts(scattered, made, seed=1, noise=3.0), "all").metrics["sensitivity"]
    narrow = row(of_counts(scattered, made, seed=1), "all").metrics["sensitivity"]
    assert wider.high - wider.low > narrow.high - narrow.low
