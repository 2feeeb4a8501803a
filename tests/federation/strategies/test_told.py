"""What real hospitals tell of their training, for rules that compare them by it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from federation.schema import Experiment
from server_app.state import RunFolder
from tests.hospitals import Hospitals, content, hospitals

TRAINING = {"optimizer": "sgd", "local_steps": 4, "batch_size": 4, "learning_rate": 0.05}


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Hospitals:
    made = hospitals(tmp_path_factory.mktemp("told"), 3, patients=6)
    site = made.sites["hill"]
    policy = site.policy.model_copy(update={"most_local_steps": 1})
    made.sites["hill"] = site.model_copy(update={"policy": policy})
    return made


def of(name: str) -> Experiment:
    return content(strategy={"name": name}, least=3, training=TRAINING, rounds=3)


@pytest.mark.parametrize("name", ["fednova", "feddg_ga", "qfedavg", "afl"])
def test_rules_get_what_they_need(name: str, three: Hospitals) -> None:
    three.fresh()
    done = three.conduct(of(name), name, rounds=2)
    assert done.round == 2
    heads = [records.config_records["head"] for _, _, records in three.heard]
    told = {hospital: head for (hospital, _, _), head in zip(three.heard, heads, strict=True)}
    assert {hospital: head["steps"] for hospital, head in told.items()} == {
        "east": 4, "hill": 1, "lake": 4,
    }  # fmt: skip
    compared = {"loss_before", "loss_after"}
    for head in heads:
        assert (compared & set(head) == set()) if name == "fednova" else compared <= set(head)
    if name == "feddg_ga":
        weights = [float(a) for n, a in done.codec.items() if "/weight/" in n]
        assert len(set(weights)) > 1
        assert sum(weights) == pytest.approx(1)


def test_training_lowers_the_loss_that_is_told(three: Hospitals, tmp_path: Path) -> None:
    three.fresh()
    three.conduct(of("feddg_ga"), "lowers", rounds=1)
    for hospital, _, records in three.heard:
        head = records.config_records["head"]
        assert head["loss_after"] != head["loss_before"], hospital
        assert head["loss_after"] > 0


def test_other_strategies_cost_no_comparison(three: Hospitals) -> None:
    three.fresh()
    three.conduct(of("fedavg"), "plain", rounds=1)
    for _, _, records in three.heard:
        assert "loss_before" not in records.config_records["head"]


@pytest.mark.parametrize(
    ("name", "figures"), [("fednova", ["steps"]), ("feddg_ga", ["loss_before", "loss_after"])]
)
def test_an_answer_without_a_figure_that_the_rule_needs_leaves_the_round(
    name: str, figures: list[str], three: Hospitals
) -> None:
    """One hospital's silence does not end the run either."""
    three.fresh()

    def withhold(request: Any, records: Any, answer: Any) -> Any:
        reply = answer(records)
        for figure in figures:
            del reply.config_records["head"][figure]
        return reply

    three.meddle["lake"] = withhold
    experiment = content(strategy={"name": name}, least=2, training=TRAINING, rounds=3)
    run = f"untold-{name}"
    done = three.conduct(experiment, run, rounds=1)
    assert done.round == 1
    row = RunFolder(three.folder / "runs" / run).metrics()[-1]
    reasons = {hospital: told["reason"] for hospital, told in row["hospitals"].items()}
    assert reasons == {"east": None, "hill": None, "lake": "malformed"}


def test_more_steps_than_were_asked_for_leave_the_round(three: Hospitals) -> None:
    """One hospital's lie does not end the run."""
    three.fresh()

    def boast(request: Any, records: Any, answer: Any) -> Any:
        reply = answer(records)
        reply.config_records["head"]["steps"] = 5
        return reply

    three.meddle["lake"] = boast
    experiment = content(strategy={"name": "fednova"}, least=2, training=TRAINING, rounds=3)
    three.conduct(experiment, "boast", rounds=1)
    row = RunFolder(three.folder / "runs" / "boast").metrics()[-1]
    assert row["hospitals"]["lake"]["reason"] == "malformed"
    assert row["hospitals"]["east"]["status"] == "ok"
