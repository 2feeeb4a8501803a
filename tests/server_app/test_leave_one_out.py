"""A hospital that is measured and never trains: its images move nothing, and its figures stand alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from flwr.app import RecordDict

from client_app import plain_round
from client_app.policy import Refused, require_trainer
from federation import wire
from federation.messages import Reason, Request
from federation.schema import ConfigError, Experiment
from server_app import compose, launch
from server_app.home import Federation, Home
from server_app.state import Checkpoint, RunFolder
from tests.hospitals import Hospitals, content, hospitals, train_quickly
from tests.in_process import (
    PRIVATE,
    SHARE,
    START,
    InProcessGrid,
    Node,
    adding,
    conductor,
    experiment,
    private,
    sums,
)
from tests.masked import rows, same
from tests.provisioned import provisioned

FIRST = Checkpoint(0, START, {})
AWAY = "north"


@pytest.fixture(scope="module")
def _four(tmp_path_factory: pytest.TempPathFactory) -> Hospitals:
    return hospitals(tmp_path_factory.mktemp("four"), 4, patients=(8, 6, 10, 12))


@pytest.fixture
def four(_four: Hospitals) -> Hospitals:
    return _four.fresh()


def left_out(**changes: Any) -> Experiment:
    evaluation = {"leave_out": AWAY} | changes.pop("evaluation", {})
    return content(**({"evaluation": evaluation, "rounds": 2, "weighting": "examples"} | changes))


def others(made: Hospitals, folder: Path) -> Hospitals:
    """The same federation without it."""
    sites = {name: site for name, site in made.sites.items() if name != AWAY}
    return Hospitals(folder, made.home, sites, made.roster)


def evaluations(made: Hospitals, run: str) -> list[dict[str, Any]]:
    return [row for row in rows(made, run) if row["kind"] == "evaluation"]


# --- with real ClientApps -------------------------------------------------------------------------


@pytest.mark.parametrize("codec", [None, content().codec], ids=["arrays", "int8"])
def test_the_model_is_that_of_the_other_hospitals_alone(
    codec: Any, four: Hospitals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real training; bit for bit, with what goes down as a difference, and its trainer never runs."""
    of = left_out(codec=codec)
    trainers = []
    train = plain_round._train

    def noted(asked: Any, *rest: Any) -> Any:
        trainers.append(asked.site.hospital)
        return train(asked, *rest)

    monkeypatch.setattr(plain_round, "_train", noted)
    kind = "arrays" if codec is None else "int8"
    done = four.conduct(of, f"with-{kind}")
    alone = others(four, tmp_path).conduct(
        of.model_copy(update={"evaluation": of.evaluation.model_copy(update={"leave_out": None})}),
        "without",
    )
    same(done.model, alone.model)
    same(done.codec, alone.codec)
    assert set(trainers) == {"east", "hill", "lake"}
    asked = [request for name, request, _ in four.asked if name == AWAY]
    assert [(request.evaluate, request.train) for request in asked] == [(True, False)] * 3
    assert not any(wire.blob(reply) for name, _, reply in four.heard if name == AWAY)


def test_its_figures_stand_alone(four: Hospitals, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the mean and not in it; and they are those that it would have in an ordinary run."""
    train_quickly(monkeypatch)
    of = left_out(rounds=1)
    four.conduct(of, "alone")
    found = evaluations(four, "alone")
    assert [row["round"] for row in found] == [0, 1]
    for row in found:
        own = row["hospitals"][AWAY]
        assert own["role"] == "left_out"
        assert row["left_out"] == {"hospital": AWAY, "metrics": own["metrics"]}
        training = {name: one for name, one in row["hospitals"].items() if name != AWAY}
        assert not any("role" in one for one in training.values())
        measured = [one for one in training.values() if "metrics" in one]
        assert len(measured) >= 2
        for metric, value in row["overall"].items():
            having = [one for one in measured if metric in one["metrics"]]
            mean = sum(one["metrics"][metric] * one["patients"] for one in having)
            assert value == pytest.approx(mean / sum(one["patients"] for one in having))
        assert row["worst"]["auroc"]["hospital"] != AWAY
    (trained,) = (row for row in rows(four, "alone") if row["kind"] == "round")
    assert trained["hospitals"][AWAY]["role"] == "left_out"
    assert "update_norm" not in trained["hospitals"][AWAY]
    usual = of.model_copy(
        update={"evaluation": of.evaluation.model_copy(update={"leave_out": None})}
    )
    four.conduct(usual, "usual")
    first = evaluations(four, "usual")[0]
    assert first["hospitals"][AWAY]["metrics"] == found[0]["left_out"]["metrics"]
    assert "left_out" not in first


def test_the_hospital_itself_does_not_train(four: Hospitals) -> None:
    """Whatever the coordinator asks: the experiment says so, and comes with each request."""
    of = left_out()
    _, _, start = four.conductor(of, "asks")
    request = Request("asks", 1, evaluate=False, train=True)
    records = wire.request_to_records(request, wire.pack(start.model))
    reply: RecordDict = four.serve(AWAY, of)(records)
    assert reply["head"]["refused"] == Reason.BAD_EXPERIMENT
    with pytest.raises(Refused):
        require_trainer(four.sites[AWAY], request, of)
    require_trainer(four.sites["east"], request, of)


# --- rounds ---------------------------------------------------------------------------------------


def three(**changes: Any) -> tuple[Experiment, InProcessGrid]:
    of = experiment(
        evaluation={"leave_out": "c"} | changes.pop("evaluation", {}), rounds=3, **changes
    )
    nodes = [Node("a", adding(0.3, 2)), Node("b", adding(-0.7, 5)), Node("c", adding(100.0, 9))]
    return of, InProcessGrid(nodes)


def new(path: Path, of: Experiment) -> RunFolder:
    folder = RunFolder.create(path, of, {"experiment_sha256": of.sha256()})
    folder.save(FIRST)
    return folder


def test_a_run_that_is_gone_on_with_is_the_same(tmp_path: Path) -> None:
    """Broken after each round, and in the last evaluation: the same model and the same rows."""
    of, grid = three()
    whole = new(tmp_path / "whole", of)
    done = conductor(grid, whole).conduct(FIRST)
    broken = new(tmp_path / "broken", of)
    for _ in range(3):
        start = broken.load()
        assert start is not None
        broken.drop_metrics_after(start.round)
        again = conductor(three()[1], broken)
        again.round(start)  # and killed before it is saved
        broken.drop_metrics_after(start.round)
        broken.save(again.round(start))
    start = broken.load()
    assert start is not None
    broken.drop_metrics_after(start.round)
    same(conductor(three()[1], broken).conduct(start).model, done.model)
    assert timeless(broken) == timeless(whole)
    assert [row["left_out"]["hospital"] for row in timeless(whole) if "left_out" in row] == [
        "c"
    ] * 4


def timeless(folder: RunFolder) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(json.dumps(folder.metrics()))
    for row in found:
        for key in ("seconds", "started", "time"):
            row.pop(key, None)
        for hospital in row["hospitals"].values():
            hospital.pop("answered_after", None)
    return found


def test_it_is_not_asked_in_rounds_without_evaluation(tmp_path: Path) -> None:
    of, grid = three(evaluation={"every": 2})
    conductor(grid, new(tmp_path / "run", of)).conduct(FIRST)
    assert grid.asked.count("a") == 4
    assert grid.asked.count("c") == 3  # of rounds 0, 2 and the last


def test_it_is_nobody_of_the_least(tmp_path: Path) -> None:
    """It may be away; and two that train are needed though it is there."""
    of, grid = three()
    grid.nodes[3].online = False
    folder = new(tmp_path / "away", of)
    done = conductor(grid, folder).conduct(FIRST)
    assert done.round == 3
    last = folder.metrics()[-1]
    assert last["left_out"] == {"hospital": "c", "metrics": {}}
    assert last["hospitals"]["c"] == {
        "status": "left out",
        "reason": "absent",
        "attempts": 0,
        "role": "left_out",
    }
    of, grid = three()
    grid.nodes[2].online = False
    with pytest.raises(Exception, match=r"round 1: 1 good answers, participation.least is 2 \(b:"):
        conductor(grid, new(tmp_path / "few", of)).conduct(FIRST)


def test_noisy_sums_of_a_private_run(tmp_path: Path) -> None:
    """Its tally alone, measured alone."""
    of = experiment(
        rounds=1,
        privacy=PRIVATE | {"metrics": "noisy"},
        evaluation={"leave_out": "c"},
    )
    told = {"a": sums(30, 10, noise=2.0), "b": sums(10, 30, noise=2.0), "c": sums(7, 1, noise=2.0)}
    nodes = [Node(name, private(1.0, 10, tally=tally)) for name, tally in told.items()]
    folder = new(tmp_path / "run", of)
    conductor(InProcessGrid(nodes), folder, tally=SHARE).conduct(FIRST)
    for row in folder.metrics():
        if row["kind"] == "evaluation":
            assert row["overall"] == {"score": 0.5}
            assert row["left_out"] == {"hospital": "c", "metrics": {"score": 0.875}}
            assert row["worst"] == {"score": {"hospital": "b", "value": 0.25}}
            assert row["hospitals"]["c"]["intervals"]


# --- before anything is sent ----------------------------------------------------------------------


def test_a_hospital_that_nobody_knows(tmp_path: Path) -> None:
    names = ["north", "east", "west"]
    states = {name: tmp_path / name for name in names}
    for state in states.values():
        state.mkdir()
    home = Home(tmp_path / "coordinator")
    provisioned(Federation(name="a", host="127.0.0.1", port=1, hospitals=names), home, states)

    def check(*overrides: str) -> None:
        launch.check_hospitals(home, compose.experiment(["experiment=leave_one_out", *overrides]))

    check("evaluation.leave_out=north")
    with pytest.raises(ConfigError, match=r"'nort' is not on the roster, did you mean 'north'\?"):
        check("evaluation.leave_out=nort")
    with pytest.raises(
        ConfigError, match=r"least is 3, but without .*=north only 2 train: east, w"
    ):
        check("evaluation.leave_out=north", "participation.least=3")


def test_its_images_train_nothing_even_if_they_are_changed(four: Hospitals, tmp_path: Path) -> None:
    """With other images and labels there, the model has the same bits."""
    of = left_out(rounds=1)
    before = four.conduct(of, "before", rounds=1)
    mutant = others(four, tmp_path)
    mutant.sites[AWAY] = four.sites[AWAY].model_copy(
        update={"data": four.sites["hill"].data, "state": tmp_path / "state"}
    )
    for name in ("identity", "pseudonym.key", "roster.json"):
        source = four.sites[AWAY].state / name
        (tmp_path / "state").mkdir(exist_ok=True)
        (tmp_path / "state" / name).symlink_to(source)
    after = mutant.conduct(of, "after", rounds=1)
    same(before.model, after.model)
    told = [evaluations(made, run)[0] for made, run in ((four, "before"), (mutant, "after"))]
    assert told[0]["left_out"]["metrics"] != told[1]["left_out"]["metrics"]
    assert told[0]["overall"] == told[1]["overall"]
