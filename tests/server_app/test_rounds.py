"""Rounds over Flower's Grid with hospitals that behave, and with those that do not."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Error, RecordDict
from flwr.common.constant import ErrorCode

from federation import messages, wire
from federation.messages import Answer, Reason, Trained
from federation.schema import Experiment
from server_app.aggregation.plain import norm, weighted_mean
from server_app.exchange import TooFewHospitals
from server_app.state import Checkpoint, RunFolder
from tests.in_process import START, UNREADABLE, InProcessGrid, Node, adding, conductor, experiment

FIRST = Checkpoint(0, START, {})


def new_run(path: Path, content: Experiment) -> RunFolder:
    folder = RunFolder.create(path / "run", content, {"experiment_sha256": content.sha256()})
    folder.save(FIRST)
    return folder


def sending(update: messages.Arrays) -> Callable[[RecordDict], RecordDict]:
    """A hospital that sends this update, whatever it was asked."""

    def handler(records: RecordDict) -> RecordDict:
        request = wire.request_from_records(records)
        if not request.train:
            return adding(1.0)(records)
        trained = Trained(update, 1, 1, 0.0, 0.0)
        return wire.answer_to_records(Answer(round=request.round, trained=trained))

    return handler


def test_a_run_is_the_arithmetic_it_says(tmp_path: Path) -> None:
    """Two hospitals with 1 and 3 examples: the mean update is a quarter and three quarters."""
    grid = InProcessGrid([Node("a", adding(1.0, 1)), Node("b", adding(5.0, 3))])
    folder = new_run(tmp_path, experiment(rounds=2))
    done = conductor(grid, folder).conduct(FIRST)
    w1 = 0.25 * 1 + 0.75 * 5  # from w = 0
    w2 = w1 + w1 / 10 + w1
    np.testing.assert_allclose(done.model["w"], w2, rtol=1e-6)
    # an integer buffer stays an integer: means of 1 and 3 weighted by 1 and 3 are 2.5, twice
    assert done.model["seen"].dtype == np.int64
    assert done.model["seen"] == 4  # 0 → rint(2.5) = 2 → rint(4.5) = 4, halves to even
    rows = folder.metrics()
    assert [(r["kind"], r["round"]) for r in rows] == [
        ("evaluation", 0), ("round", 1), ("evaluation", 1), ("round", 2), ("evaluation", 2),
    ]  # fmt: skip
    assert rows[2]["hospitals"]["a"]["metrics"]["score"] == pytest.approx(3 * w1)
    assert rows[-1]["worst"]["score"]["value"] == pytest.approx(3 * w2, rel=1e-6)


def test_weights_may_be_equal(tmp_path: Path) -> None:
    grid = InProcessGrid([Node("a", adding(1.0, 1)), Node("b", adding(5.0, 3))])
    folder = new_run(tmp_path, experiment(rounds=1, weighting="equal"))
    done = conductor(grid, folder).conduct(FIRST)
    np.testing.assert_allclose(done.model["w"], 3.0)


def test_the_order_of_answers_does_not_change_a_bit(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    updates = {
        name: Trained({"w": rng.normal(size=1000).astype(np.float32)}, 1, n, 0.0, 0.0)
        for n, name in enumerate("abcdef", start=1)
    }
    one = weighted_mean(updates, "examples")
    other = weighted_mean(dict(reversed(updates.items())), "examples")
    assert one["w"].tobytes() == other["w"].tobytes()
    expected = sum(u.examples * u.update["w"].astype(np.float64) for u in updates.values()) / 21
    np.testing.assert_allclose(one["w"], expected, atol=1e-6)


def late(records: RecordDict) -> None:
    return None


def raises(records: RecordDict) -> Error:
    return Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "/images/Smith_John.dcm is broken")


BAD: dict[str, tuple[Callable[[RecordDict], Any], Reason]] = {
    "silent": (late, Reason.LATE),
    "raising": (raises, Reason.CRASHED),
    "vanished": (lambda _: Error(ErrorCode.NODE_UNAVAILABLE, ""), Reason.UNAVAILABLE),
    "nan": (sending({**START, "w": np.full(3, np.nan, np.float32)}), Reason.NOT_FINITE),
    "shape": (sending({**START, "w": np.zeros((3, 1), np.float32)}), Reason.WRONG_SHAPE),
    "dtype": (sending({**START, "w": np.zeros(3, np.float64)}), Reason.WRONG_DTYPE),
    "name": (sending({"v": START["w"], "seen": START["seen"]}), Reason.WRONG_NAMES),
    "large": (sending({**START, "w": np.zeros(2**20, np.float32)}), Reason.TOO_LARGE),
    "norm": (sending({**START, "w": np.full(3, 1e6, np.float32)}), Reason.NORM_TOO_LARGE),
    "unreadable": (lambda _: UNREADABLE, Reason.MALFORMED),
    "empty": (lambda _: RecordDict(), Reason.MALFORMED),
    "refusing": (
        lambda _: wire.answer_to_records(Answer(round=1, refused=Reason.REFUSED_TASK)),
        Reason.REFUSED_TASK,
    ),
    "replayed": (
        lambda _: wire.answer_to_records(
            Answer(round=99, trained=Trained(START, 1, 1, 0.0, 0.0))
        ),
        Reason.WRONG_ROUND,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_answer_leaves_the_round_with_its_reason(kind: str, tmp_path: Path) -> None:
    handler, reason = BAD[kind]
    nodes = [Node("a", adding(1.0)), Node("b", adding(3.0)), Node("bad", handler)]
    content = experiment(rounds=1, deadline=1.0, largest_update_norm=1e3)
    folder = new_run(tmp_path, content)
    done = conductor(InProcessGrid(nodes), folder).conduct(FIRST)
    np.testing.assert_allclose(done.model["w"], 2.0)
    row = next(r for r in folder.metrics() if r["kind"] == "round")
    assert (row["hospitals"]["bad"]["status"], row["hospitals"]["bad"]["reason"]) == (
        "left out", reason.value,
    )  # fmt: skip
    assert "Smith" not in (folder.path / "metrics.jsonl").read_text()


def test_a_hospital_that_is_not_there_is_not_waited_for_ever(tmp_path: Path) -> None:
    nodes = [
        Node("a", adding(1.0)),
        Node("b", adding(3.0)),
        Node("gone", adding(9.0), online=False),
    ]
    folder = new_run(tmp_path, experiment(rounds=1, deadline=30.0))
    began = time.monotonic()
    conductor(InProcessGrid(nodes), folder).conduct(FIRST)
    assert time.monotonic() - began < 25  # the deadline is 30 s, the wait 0.3 s in each exchange
    row = next(r for r in folder.metrics() if r["kind"] == "round")
    assert row["hospitals"]["gone"]["reason"] == "absent"


def test_a_hospital_that_crashed_and_stays_away_is_not_waited_for_ever(tmp_path: Path) -> None:
    nodes = [Node("a", adding(1.0)), Node("b", adding(3.0))]

    def vanish(records: RecordDict) -> Error:
        nodes[2].online = False
        return Error(ErrorCode.NODE_UNAVAILABLE, "")

    nodes.append(Node("gone", vanish))
    folder = new_run(tmp_path, experiment(rounds=1, deadline=60.0, attempts=3))
    began = time.monotonic()
    conductor(InProcessGrid(nodes), folder).conduct(FIRST)
    assert time.monotonic() - began < 50  # the deadline is 60 s, the wait 0.3 s
    row = next(r for r in folder.metrics() if r["kind"] == "round")
    assert row["hospitals"]["gone"]["reason"] == "unavailable"


def test_a_hospital_that_crashed_is_asked_again(tmp_path: Path) -> None:
    answers = iter([Error(ErrorCode.CLIENT_APP_CRASHED, "")])

    def once(records: RecordDict) -> Any:
        return next(answers, None) or adding(3.0)(records)

    grid = InProcessGrid([Node("a", adding(1.0)), Node("b", once)])
    folder = new_run(tmp_path, experiment(rounds=1, attempts=2))
    done = conductor(grid, folder).conduct(FIRST)
    np.testing.assert_allclose(done.model["w"], 2.0)
    row = next(r for r in folder.metrics() if r["kind"] == "round")
    assert row["hospitals"]["b"]["attempts"] == 2


def test_too_few_answers_end_the_run_and_say_why(tmp_path: Path) -> None:
    nodes = [Node("a", adding(1.0)), Node("b", BAD["nan"][0])]
    folder = new_run(tmp_path, experiment(rounds=1))
    with pytest.raises(TooFewHospitals, match=r"1 good.*least is 2.*b: not_finite"):
        conductor(InProcessGrid(nodes), folder).conduct(FIRST)
    committed = folder.load()
    assert committed is not None
    assert committed.round == 0


def test_only_chosen_hospitals_are_asked(tmp_path: Path) -> None:
    grid = InProcessGrid([Node(name, adding(1.0)) for name in "abc"])
    folder = new_run(tmp_path, experiment(rounds=1, hospitals=["a", "c"]))
    conductor(grid, folder).conduct(FIRST)
    assert set(grid.asked) == {"a", "c"}


def test_a_stranger_on_the_grid_is_not_asked(tmp_path: Path) -> None:
    grid = InProcessGrid([Node("a", adding(1.0)), Node("b", adding(1.0)), Node("x", adding(1.0))])
    roster = grid.roster()
    members = tuple(m for m in roster.members if m.name != "x")
    grid.roster = lambda: type(roster)("test", members)  # type: ignore[method-assign]
    conductor(grid, new_run(tmp_path, experiment(rounds=1))).conduct(FIRST)
    assert set(grid.asked) == {"a", "b"}


def test_evaluation_may_be_rare_but_the_last_model_is_always_measured(tmp_path: Path) -> None:
    grid = InProcessGrid([Node("a", adding(1.0)), Node("b", adding(1.0))])
    folder = new_run(tmp_path, experiment(rounds=5, evaluation={"every": 2}))
    conductor(grid, folder).conduct(FIRST)
    assert [r["round"] for r in folder.metrics() if r["kind"] == "evaluation"] == [0, 2, 4, 5]


def test_norm_is_over_all_parameters() -> None:
    update = {"a": np.array([3.0]), "b": np.array([[4.0]]), "seen": np.array(20)}
    assert norm(update, frozenset("ab")) == 5.0


def test_a_counter_makes_no_update_too_long(tmp_path: Path) -> None:
    """Each hospital's grows by the number of its steps, whatever it learnt."""
    grid = InProcessGrid([Node(name, adding(1.0, examples=20)) for name in "ab"])
    folder = new_run(tmp_path, experiment(rounds=1, largest_update_norm=10.0))
    conductor(grid, folder).conduct(FIRST)
    told = next(row for row in folder.metrics() if row["kind"] == "round")
    assert [one["status"] for one in told["hospitals"].values()] == ["ok", "ok"]
    assert told["hospitals"]["a"]["update_norm"] == pytest.approx(3**0.5)
    assert told["norm"] == pytest.approx(3**0.5)
