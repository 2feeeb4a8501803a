"""Counts by group end to end: real ClientApps, each way of summing, and the row that is written."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from client_app.site import Policy
from client_app.training import loop
from federation import tasks, wire
from federation.fairness.counts import count
from federation.fairness.layout import Layout
from federation.figures import Summed
from federation.messages import Expected, Phase, Shape
from federation.schema import Component
from federation.tasks import Prediction
from server_app import progress
from server_app.fairness import Counted
from tests.federation.fairness import drawn
from tests.hospitals import MASKS, Hospitals, content, hospitals
from tests.in_process import PRIVATE, experiment

BINS = 64
CKKS = {"name": "ckks", "least": 3}
CHEST = tasks.build(Component(name="chest_xray", size=32))


@pytest.fixture(scope="module")
def _made(tmp_path_factory: pytest.TempPathFactory) -> Hospitals:
    return hospitals(tmp_path_factory.mktemp("fairness"), 3, patients=24)


@pytest.fixture
def three(_made: Hospitals, monkeypatch: pytest.MonkeyPatch) -> Hospitals:
    for name, site in list(_made.sites.items()):
        policy = Policy(code="any", least_patients=1, smallest_group=1)
        monkeypatch.setitem(_made.sites, name, site.model_copy(update={"policy": policy}))
    return _made.fresh()


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[Prediction]:
    """All that the hospitals predicted, with scores that tell cases apart; a fresh network's do not."""
    real, made = loop.predictions, []

    def spread(*args: Any, **kwargs: Any) -> list[Prediction]:
        found = []
        for number, one in enumerate(real(*args, **kwargs)):
            seed = int.from_bytes(one.patient.encode()[:6], "big") + number
            noise = np.random.default_rng(seed).normal(float(one.target), 2.0)
            found.append(replace(one, outcome=torch.tensor([0.0, noise], dtype=torch.float64)))
        made.extend(found)
        return found

    monkeypatch.setattr(loop, "predictions", spread)
    return made


def of(**changes: Any) -> Any:
    fairness = {"score_bins": BINS, "least_cases": 1} | changes.pop("fairness", {})
    return content(fairness=fairness, evaluation={"held_out": 0.5}, **changes)


def evaluated(three: Hospitals, experiment: Any, run: str) -> dict[str, Any]:
    """The row of an evaluation alone."""
    folder, conductor, start = three.conductor(experiment, run)
    conductor.final_evaluation(start)
    row: dict[str, Any]
    (row,) = folder.metrics()
    return row


def found(row: dict[str, Any], group: str) -> dict[str, Any]:
    one: dict[str, Any]
    (one,) = (one for one in row["fairness"]["rows"] if one["group"] == group)
    return one


def test_auroc_is_scikit_learns_within_the_bound(
    three: Hospitals, answers: list[Prediction]
) -> None:
    row = evaluated(three, of(), "auroc")
    scores = np.array([float(one.outcome[1] - one.outcome[0]) for one in answers])
    truth = np.array([int(one.target) for one in answers])
    sexes = np.array([one.attributes["sex"] for one in answers])
    assert len(answers) > 30
    groups = {"all": np.ones(len(truth), bool)}
    groups |= {f"sex={sex}": sexes == sex for sex in ("female", "male")}
    for group, who in groups.items():
        told = found(row, group)
        assert (told["cases"], told["positive"]) == (who.sum(), truth[who].sum())
        auroc = told["metrics"]["auroc"]
        true = roc_auc_score(truth[who], scores[who])
        assert abs(auroc["value"] - true) <= auroc["bound"] + 1e-6
        assert 0 < auroc["bound"] < 0.05
        assert auroc["low"] <= auroc["value"] <= auroc["high"]
        called = (scores[who] >= 0) & (truth[who] == 1)
        sensitivity = called.sum() / truth[who].sum()
        assert told["metrics"]["sensitivity"]["value"] == pytest.approx(sensitivity, abs=1e-6)
    worst = row["fairness"]["worst_group"]
    known = [r for r in row["fairness"]["rows"] if r["known"] and r["group"] != "all"]
    having = [r["metrics"]["auroc"]["value"] for r in known if "auroc" in r["metrics"]]
    assert worst["value"] == min(having)
    assert worst["metric"] == "auroc"


def test_the_table_is_the_same_however_counts_are_summed(
    three: Hospitals, answers: list[Prediction]
) -> None:
    pytest.importorskip("tenseal")
    opened = evaluated(three, of(), "open")["fairness"]
    masked = evaluated(three, of(secure_aggregation=MASKS), "masked")["fairness"]
    closed = evaluated(three, of(secure_aggregation=CKKS), "encrypted")["fairness"]
    assert set(opened["hospitals"]) == set(three.sites)
    assert masked["hospitals"] == closed["hospitals"] == {}
    for name in ("rows", "gaps", "withheld", "worst_group"):
        assert masked[name] == opened[name]
        assert closed[name] == opened[name]
    assert opened["gaps"]
    assert any(gap["metric"] == "equalised_odds_difference" for gap in opened["gaps"])
    # under masks nothing of a hospital's counts stands beside the sum
    work = [records for _, phase, records in three.heard if phase is Phase.WORK]
    plain = [records for records in work if "letter" not in records["head"]]
    assert len(plain) == 3
    assert all(("counts" in records["head"]) is (records in plain) for records in work)


def test_a_hospital_s_row_is_of_its_own_cases(three: Hospitals, answers: list[Prediction]) -> None:
    row = evaluated(three, of(), "each")["fairness"]
    own = {name: part["rows"][0] for name, part in row["hospitals"].items()}
    assert {part["group"] for part in own.values()} == {"all"}
    assert sum(part["cases"] for part in own.values()) == len(answers)
    assert min(part["cases"] for part in own.values()) > 0
    assert json.loads(json.dumps(row, allow_nan=False)) == row


def test_groups_below_the_smallest_do_not_leave(
    three: Hospitals, answers: list[Prediction], monkeypatch: pytest.MonkeyPatch
) -> None:
    smallest = 4
    for name, site in list(three.sites.items()):
        policy = Policy(code="any", least_patients=1, smallest_group=smallest)
        monkeypatch.setitem(three.sites, name, site.model_copy(update={"policy": policy}))
    experiment = of()
    row = evaluated(three, experiment, "smallest")["fairness"]
    layout = Layout.of_experiment(experiment, CHEST)
    assert layout is not None
    assert sum(row["withheld"].values()) > 0
    reported = 0
    for name, phase, records in three.heard:
        assert phase is Phase.WORK
        answer = wire.answer_from_records(
            records,
            three.asked[0][1],
            Expected(Shape({}), frozenset(CHEST.metrics), counts=layout),
        )
        assert answer.counts is not None
        counts = answer.counts.reshape(layout.shape)
        for group in range(counts.shape[0]):
            by_class = counts[group, 0].sum(axis=-1)
            # images: a patient has one or more, so fewer images than `smallest` are fewer patients
            assert by_class.sum() == 0 or by_class.min() >= smallest, (name, layout.groups[group])
            reported += bool(by_class.sum())
    assert reported > 3
    assert (three.sites["east"].state / "counted").is_dir()


def test_metrics_of_a_class_with_few_patients_do_not_leave(
    three: Hospitals, answers: list[Prediction], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = Policy(code="any", least_patients=1, smallest_group=9)
    site = three.sites["east"].model_copy(update={"policy": policy})
    monkeypatch.setitem(three.sites, "east", site)
    told = {
        name: row["metrics"].keys()
        for name, row in evaluated(three, of(), "rare")["hospitals"].items()
    }
    assert told.pop("east") == {"loss"}  # of nine patients or more, but not of each class
    assert told and all(names > {"loss", "sensitivity", "auroc"} for names in told.values())


def test_fairness_none_asks_for_nothing(three: Hospitals, answers: list[Prediction]) -> None:
    row = evaluated(three, content(evaluation={"held_out": 0.5}), "without")
    assert "fairness" not in row
    assert all("counts" not in records["head"] for _, _, records in three.heard)


# --- arithmetic alone ------------------------------------------------------------------------------


def vectors(layout: Layout, hospitals: int, patients: int = 60) -> dict[str, Any]:
    from federation.fairness.cases import of_predictions

    made = {}
    for number in range(hospitals):
        predictions = drawn.hospital(np.random.default_rng(number), patients)
        made[f"h{number}"] = count(of_predictions(predictions, drawn.CHEST, layout), layout)
    return made


def test_the_same_run_has_the_same_row_and_another_seed_another() -> None:
    layout = drawn.layout()
    each = vectors(layout, 3)
    row = Counted(layout, 1).of_each(each, 4)
    assert row == Counted(layout, 1).of_each(each, 4)
    assert row != Counted(layout, 2).of_each(each, 4)
    assert row != Counted(layout, 1).of_each(each, 5)


def test_a_sum_that_no_cases_make_is_left_out() -> None:
    layout = drawn.layout()
    total = sum(vectors(layout, 2).values())
    counted = Counted(layout, 0)
    assert counted.of_sum(Summed(("a", "b"), counts=total), 1) is not None
    total[0] += 1  # in `all` and in no other table
    assert counted.of_sum(Summed(("a", "b"), counts=total), 1) is None
    assert counted.of_sum(Summed(("a", "b"), counts=total * 0), 1) is None
    assert counted.of_each({}, 1) is None


def test_noisy_counts_show_no_withheld_groups_and_wider_intervals() -> None:
    options = {"noise_multiplier": 0.5}
    private = experiment(
        privacy=PRIVATE | {"metrics": "noisy"}, fairness=options, task={"name": "chest_xray"}
    )
    counted = Counted.of(private, drawn.CHEST)
    assert counted is not None
    assert counted.noise == pytest.approx(0.5 * math.sqrt(4))  # four tables, one channel
    exact = Counted(counted.layout, 0)
    each = vectors(counted.layout, 3, 400)
    source = np.random.default_rng(0)
    noisy = {
        name: own + source.normal(0, counted.noise, own.shape).round().astype(np.int64)
        for name, own in each.items()
    }
    sure, unsure = exact.of_each(each, 1), counted.of_each(noisy, 1)
    assert sure is not None
    assert unsure is not None
    assert unsure["withheld"] == {}
    assert not any("withheld" in row["group"] for row in unsure["rows"])
    widths = [
        one["metrics"]["sensitivity"]["high"] - one["metrics"]["sensitivity"]["low"]
        for row in (sure, unsure)
        for one in row["rows"]
        if one["group"] == "all"
    ]
    assert widths[0] > 0
    assert abs(unsure["rows"][0]["cases"] - sure["rows"][0]["cases"]) < 100


def test_exact_counts_are_not_asked_for_under_privacy() -> None:
    assert Counted.of(experiment(privacy=PRIVATE, fairness={}), drawn.CHEST) is None
    assert Counted.of(experiment(fairness=None), drawn.CHEST) is None
    plain = Counted.of(experiment(fairness={}, seed=7), drawn.CHEST)
    assert plain is not None
    assert (plain.noise, plain.seed) == (0.0, 7)


def test_the_terminal_names_the_worst_group() -> None:
    row = {
        "fairness": Counted(drawn.layout(least_cases=1), 0).of_each(vectors(drawn.layout(), 2), 1)
    }
    assert row["fairness"] is not None
    told = row["fairness"]["worst_group"]
    wanted = f", worst group {told['group']}: auroc {told['value']:.3f}"
    assert progress._worst_group(row) == wanted
    for nothing in ({}, {"fairness": None}, {"fairness": {"worst_group": None}}):
        assert progress._worst_group(nothing) == ""
