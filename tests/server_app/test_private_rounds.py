"""Rounds of private runs: public weights, no exact figures, what is lodged, the mean over rounds."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import RecordDict

from federation import messages, wire
from federation.messages import Answer, Lodged, Reason, Request
from federation.schema import ConfigError, Experiment
from federation.strategies import Strategy
from server_app.exchange import TooFewHospitals
from server_app.lodgings import Lodgings
from server_app.state import Checkpoint, RunFolder
from tests.in_process import (
    PRIVATE,
    SHARE,
    START,
    InProcessGrid,
    Node,
    adding,
    conductor,
    experiment,
    ledger_of,
    private,
    sums,
)

FIRST = Checkpoint(0, START, {})


def planned(rounds: int = 2, metrics: str = "none", **changes: Any) -> Experiment:
    privacy = PRIVATE | {"metrics": metrics} | changes.pop("privacy", {})
    return experiment(rounds=rounds, privacy=privacy, **changes)


def new_run(path: Path, content: Experiment, name: str = "run") -> RunFolder:
    folder = RunFolder.create(path / name, content, {"experiment_sha256": content.sha256()})
    folder.save(FIRST)
    return folder


def rows(folder: RunFolder, kind: str) -> list[dict[str, Any]]:
    return [row for row in folder.metrics() if row["kind"] == kind]


def test_weights_are_the_public_sizes_and_no_row_has_an_exact_figure(tmp_path: Path) -> None:
    seen: list[Request] = []
    grid = InProcessGrid([Node("a", private(1.0, 100, seen=seen)), Node("b", private(5.0, 300))])
    folder = new_run(tmp_path, planned())
    done = conductor(grid, folder).conduct(FIRST)
    w1 = 0.25 * 1 + 0.75 * 5
    np.testing.assert_allclose(done.model["w"], w1 + w1 / 10 + w1, rtol=1e-6)
    assert [(r.round, r.evaluate, r.train) for r in seen] == [(1, False, True), (2, False, True)]
    assert [row["kind"] for row in folder.metrics()] == ["round", "round"]
    told = rows(folder, "round")[1]["hospitals"]["b"]
    assert set(told) == {
        "status", "reason", "attempts", "bytes_down", "bytes_up", "answered_after", "patients",
        "update_norm", "spent",
    }  # fmt: skip
    assert told["spent"] == {
        "epsilon": 1.0, "run_epsilon": 1.0, "budget": 8.0, "delta": 1e-5, "accountant": "rdp",
        "charges": 2,
    }  # fmt: skip


def test_weights_may_be_equal(tmp_path: Path) -> None:
    grid = InProcessGrid([Node("a", private(1.0, 100)), Node("b", private(5.0, 300))])
    done = conductor(grid, new_run(tmp_path, planned(1, weighting="equal"))).conduct(FIRST)
    np.testing.assert_allclose(done.model["w"], 3.0)


def test_metrics_of_public_images_have_the_rows_of_exact_ones(tmp_path: Path) -> None:
    grid = InProcessGrid([Node("a", private(1.0)), Node("b", private(5.0))])
    folder = new_run(tmp_path, planned(2, "public"))
    conductor(grid, folder).conduct(FIRST)
    evaluations = rows(folder, "evaluation")
    assert [row["round"] for row in evaluations] == [0, 1, 2]
    told = evaluations[1]["hospitals"]["a"]
    assert (told["examples"], told["patients"]) == (2, 1)
    assert told["metrics"]["score"] == evaluations[1]["overall"]["score"] == 9.0
    assert "overall_intervals" not in evaluations[1]


def test_noisy_sums_are_added_up_before_they_are_measured(tmp_path: Path) -> None:
    """30 of 40 and 10 of 160 patients: 40 of 200 in all, not the mean of the two shares."""
    one, other = sums(30, 10, noise=1.0), sums(10, 150, noise=1.0)
    grid = InProcessGrid([Node("a", private(1.0, tally=one)), Node("b", private(1.0, tally=other))])
    folder = new_run(tmp_path, planned(1, "noisy"))
    conductor(grid, folder, tally=SHARE).conduct(FIRST)
    row = rows(folder, "evaluation")[-1]
    assert row["overall"]["score"] == pytest.approx(0.2)
    told = {name: hospital["metrics"]["score"] for name, hospital in row["hospitals"].items()}
    assert told == {"a": pytest.approx(0.75), "b": pytest.approx(10 / 160)}
    assert row["worst"] == {"score": {"hospital": "b", "value": pytest.approx(10 / 160)}}
    low, high = row["overall_intervals"]["score"]
    # the delta method: var(x / n) = s²((1 - p)² + p²) / n², s² = 1 + 1
    spread = 1.96 * np.sqrt(2 * (0.8**2 + 0.2**2)) / 200
    assert (low, high) == (
        pytest.approx(0.2 - spread, abs=0.003),
        pytest.approx(0.2 + spread, abs=0.003),
    )
    low, high = row["hospitals"]["a"]["intervals"]["score"]
    assert low < 0.75 < high
    assert "patients" not in row["hospitals"]["a"]
    assert row["hospitals"]["a"]["spent"]["charges"] == 2


def test_sums_that_say_nothing_leave_the_row_without_the_metric(tmp_path: Path) -> None:
    empty = sums(-3, 1, noise=0.1)
    grid = InProcessGrid([Node(n, private(1.0, tally=empty)) for n in "ab"])
    folder = new_run(tmp_path, planned(1, "noisy"))
    conductor(grid, folder, tally=SHARE).conduct(FIRST)
    row = rows(folder, "evaluation")[-1]
    assert (row["overall"], row["overall_intervals"], row["worst"]) == ({}, {}, {})


def exact(records: RecordDict) -> RecordDict:
    """A hospital that adds its loss, which has no noise."""
    answer = private(9.0)(records)
    answer["head"]["loss"] = 0.25
    return answer


@pytest.mark.parametrize("handler", [exact, adding(9.0)])
def test_an_answer_with_an_exact_figure_leaves_the_round(handler: Any, tmp_path: Path) -> None:
    grid = InProcessGrid([Node("a", private(1.0)), Node("b", private(3.0)), Node("bad", handler)])
    folder = new_run(tmp_path, planned(1))
    done = conductor(grid, folder).conduct(FIRST)
    np.testing.assert_allclose(done.model["w"], 2.0)
    told = rows(folder, "round")[0]["hospitals"]["bad"]
    assert (told["status"], told["reason"]) == ("left out", "malformed")
    assert "loss" not in told


# --- budgets -------------------------------------------------------------------------------------


def test_a_run_goes_on_without_a_hospital_whose_budget_is_spent(tmp_path: Path) -> None:
    nodes = [Node("a", private(1.0)), Node("b", private(3.0)), Node("c", private(5.0, budget=0.5))]
    folder = new_run(tmp_path, planned(3))
    conductor(InProcessGrid(nodes), folder).conduct(FIRST)
    reasons = [row["hospitals"]["c"]["reason"] for row in rows(folder, "round")]
    assert reasons == [None, "budget_spent", "budget_spent"]
    assert rows(folder, "round")[1]["hospitals"]["c"].get("spent") is None


def test_too_few_budgets_end_the_run_with_names_reasons_and_what_is_kept(tmp_path: Path) -> None:
    nodes = [
        Node("a", private(1.0)),
        Node("b", private(3.0, budget=1.0)),
        Node("c", lambda r: refusing(r)),
    ]
    folder = new_run(tmp_path, planned(4))
    with pytest.raises(TooFewHospitals) as ended:
        conductor(InProcessGrid(nodes), folder).conduct(FIRST)
    assert str(ended.value) == (
        "round 3: 1 good answers, participation.least is 2 (b: budget_spent, c: privacy_required); "
        "the 2 rounds before it are kept"
    )
    kept = folder.load()
    assert kept is not None
    assert kept.round == 2


def refusing(records: RecordDict) -> RecordDict:
    round_ = wire.request_from_records(records).round
    return wire.answer_to_records(Answer(round_, refused=Reason.PRIVACY_REQUIRED))


# --- what is lodged ------------------------------------------------------------------------------


def test_each_hospital_is_told_what_its_own_ledger_said_before(tmp_path: Path) -> None:
    seen: dict[str, list[Request]] = {"a": [], "b": []}
    handlers = {
        "a": private(1.0, seen=seen["a"]),
        "b": private(1.0, seen=seen["b"], charges=lambda r: 2 + 2 * r.round),
    }
    grid = InProcessGrid([Node(name, handler) for name, handler in handlers.items()])
    conductor(grid, new_run(tmp_path, planned(3))).conduct(FIRST)
    assert [r.lodged for r in seen["a"]] == [None, ledger_of(1), ledger_of(2)]
    assert [r.lodged for r in seen["b"]] == [None, ledger_of(4), ledger_of(6)]
    # and another run goes on from there
    handlers["a"] = private(1.0, seen=seen["a"], charges=lambda r: 3 + r.round)
    handlers["b"] = private(1.0, seen=seen["b"], charges=lambda r: 8 + r.round)
    grid = InProcessGrid([Node(name, handler) for name, handler in handlers.items()])
    conductor(grid, new_run(tmp_path, planned(1), "later")).conduct(FIRST)
    assert (seen["a"][-1].lodged, seen["b"][-1].lodged) == (ledger_of(3), ledger_of(8))


def test_runs_without_privacy_lodge_nothing(tmp_path: Path) -> None:
    seen: list[Request] = []

    def noted(records: RecordDict) -> RecordDict:
        seen.append(wire.request_from_records(records))
        return adding(1.0)(records)

    grid = InProcessGrid([Node("a", noted), Node("b", adding(1.0))])
    Lodgings(tmp_path / "lodgings").keep({"a": ledger_of(3)})
    folder = new_run(tmp_path, experiment(rounds=2))
    conductor(grid, folder).conduct(FIRST)
    assert {request.lodged for request in seen} == {None}
    assert not (folder.path / "asked.json").exists()


@pytest.mark.parametrize(
    "said",
    [ledger_of(4), replace(ledger_of(5), head="0" * 64)],
    ids=["fewer charges", "as many, another ledger"],
)
def test_a_ledger_that_does_not_go_on_from_what_was_lodged_is_not_trusted(
    said: Lodged, tmp_path: Path
) -> None:
    def restored(records: RecordDict) -> RecordDict:
        answer = private(9.0)(records)
        answer["head"]["charges"], answer["head"]["head"] = said.charges, said.head
        return answer

    lodgings = Lodgings(tmp_path / "lodgings")
    lodgings.keep({"bad": ledger_of(5)})
    nodes = [Node("a", private(1.0)), Node("b", private(3.0)), Node("bad", restored)]
    folder = new_run(tmp_path, planned(2))
    done = conductor(InProcessGrid(nodes), folder).conduct(FIRST)
    np.testing.assert_allclose(done.model["w"], 2 + 0.2 + 2, rtol=1e-6)
    for row in rows(folder, "round"):
        told = row["hospitals"]["bad"]
        assert (told["status"], told["reason"]) == ("left out", "ledger_unusable")
        assert "spent" not in told
    assert lodgings.of(["bad"]) == {"bad": ledger_of(5)}


def test_what_was_heard_is_kept_before_the_round_is_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = new_run(tmp_path, planned(2))
    monkeypatch.setattr(RunFolder, "save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    grid = InProcessGrid([Node("a", private(1.0)), Node("b", private(1.0))])
    with pytest.raises(KeyboardInterrupt):
        conductor(grid, folder).conduct(FIRST)
    known = Lodgings(tmp_path / "lodgings").of(["a", "b", "c"])
    assert known == {"a": ledger_of(1), "b": ledger_of(1)}


class Remembering:
    """A hospital with a ledger and the answers that it sent: the same request gets the same bytes."""

    def __init__(self) -> None:
        self.charges = 0
        self.sent: dict[bytes, RecordDict] = {}
        self.asked: list[tuple[Request, bytes]] = []

    def __call__(self, records: RecordDict) -> RecordDict:
        request, model = wire.request_from_records(records), wire.blob(records)
        self.asked.append((request, model))
        identity = repr(replace(request, lodged=None)).encode() + model
        if identity not in self.sent:
            self.charges += 1
            self.sent[identity] = private(1.0, charges=lambda _: self.charges)(records)
        return self.sent[identity]


def test_a_resumed_round_asks_for_the_same_and_takes_the_answer_of_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken after the answers, before the commit; then another run charges; then it goes on."""
    hospitals = {"a": Remembering(), "b": Remembering()}
    grid = InProcessGrid([Node(name, hospital) for name, hospital in hospitals.items()])
    folder = new_run(tmp_path, planned(3))
    save = RunFolder.save

    def broken(self: RunFolder, checkpoint: Checkpoint) -> None:
        if checkpoint.round == 2:
            raise KeyboardInterrupt
        save(self, checkpoint)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save", broken)
        with pytest.raises(KeyboardInterrupt):
            conductor(grid, folder).conduct(FIRST)
    conductor(grid, new_run(tmp_path, planned(2), "other")).conduct(FIRST)
    start = folder.load()
    assert start is not None
    assert start.round == 1
    folder.drop_metrics_after(1)
    conductor(grid, folder).conduct(start)

    for hospital in hospitals.values():
        first, again = [(r, m) for r, m in hospital.asked if (r.run, r.round) == ("run", 2)]
        assert replace(first[0], lodged=None) == replace(again[0], lodged=None)
        assert (first[0].lodged, again[0].lodged) == (ledger_of(1), ledger_of(4))
        assert first[1] == again[1]
        assert hospital.charges == 5  # three rounds of one run and two of the other
    assert [row["hospitals"]["a"]["status"] for row in rows(folder, "round")] == ["ok"] * 3


def test_who_joins_a_round_late_is_told_what_was_lodged_then(tmp_path: Path) -> None:
    """Under masks a round is asked of those who gave keys; in its next attempt there may be more."""
    folder = new_run(tmp_path, planned(3))
    first: dict[str, Lodged | None] = {"a": ledger_of(2), "b": None}
    assert folder.first_asked(4, first) == first
    late = {"a": ledger_of(9), "b": ledger_of(9), "c": ledger_of(5)}
    assert folder.first_asked(4, late) == first | {"c": ledger_of(5)}
    again = RunFolder(folder.path).first_asked(4, {"c": ledger_of(8)})
    assert again == first | {"c": ledger_of(5)}
    assert folder.first_asked(5, late) == late


# --- the files of what is lodged -----------------------------------------------------------------


def test_a_count_never_falls(tmp_path: Path) -> None:
    lodgings = Lodgings(tmp_path / "lodgings")
    lodgings.keep({})
    assert not (tmp_path / "lodgings").exists()
    lodgings.keep({"a": ledger_of(5)})
    lodgings.keep({"a": ledger_of(4), "b": ledger_of(1)})
    lodgings.keep({"a": replace(ledger_of(5), head="0" * 64)})
    assert lodgings.of(["a", "b"]) == {"a": ledger_of(5), "b": ledger_of(1)}
    lodgings.keep({"a": ledger_of(6)})
    assert lodgings.of(["a"]) == {"a": ledger_of(6)}


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", '{"charges": 1}', '{"charges": -1, "head": "' + "0" * 64 + '"}',
     '{"charges": 1.5, "head": "' + "0" * 64 + '"}', '{"charges": 1, "head": "x"}'],
)  # fmt: skip
def test_a_damaged_file_is_not_taken_for_none(content: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ConfigError, match=r"a\.json is damaged.*backup.*delete"):
        Lodgings(tmp_path).of(["a"])
    with pytest.raises(ConfigError, match="damaged"):
        Lodgings(tmp_path).keep({"a": ledger_of(1)})


WRITER = """
import sys
from pathlib import Path
from server_app.lodgings import Lodgings
from tests.in_process import ledger_of
for charges in range(int(sys.argv[2]), 30, 2):
    Lodgings(Path(sys.argv[1])).keep({"a": ledger_of(charges)})
"""


def test_two_processes_that_keep_at_once_end_with_the_highest(tmp_path: Path) -> None:
    folder = tmp_path / "lodgings"
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(folder), str(first)])
        for first in (1, 2)
    ]
    assert [writer.wait(120) for writer in writers] == [0, 0]
    assert Lodgings(folder).of(["a"]) == {"a": ledger_of(29)}
    assert json.loads((folder / "a.json").read_text())["charges"] == 29


# --- the mean over rounds ------------------------------------------------------------------------


def test_the_released_model_is_the_mean_and_rounds_go_on_from_the_raw_one(tmp_path: Path) -> None:
    """Against the recursion written out for numbers: w grows by w / 10 + 2 a round."""
    models: list[float] = []

    def noted(records: RecordDict) -> RecordDict:
        models.append(float(wire.unpack(wire.blob(records), messages.Shape.of(START))["w"][0]))
        return private(1.0)(records)

    grid = InProcessGrid([Node("a", noted), Node("b", private(3.0))])
    folder = new_run(tmp_path, planned(6, "public", privacy={"ema": 0.3}))
    done = conductor(grid, folder).conduct(FIRST)
    raw, mean, expected = 0.0, 0.0, []
    for t in range(6):
        expected.append(raw)
        raw += raw / 10 + 2
        decay = min(0.3, (1 + t) / (10 + t))
        mean = decay * mean + (1 - decay) * raw
    assert models == pytest.approx([*expected, mean], rel=1e-6)
    assert mean < raw - 0.5
    np.testing.assert_allclose(done.model["w"], mean, rtol=1e-6)
    released = folder.load()
    assert released is not None
    assert released.model["w"].tobytes() == done.model["w"].tobytes()
    assert released.model["seen"].dtype == np.int64
    assert rows(folder, "evaluation")[-1]["overall"]["score"] == pytest.approx(3 * mean, rel=1e-6)


def test_without_a_decay_nothing_is_remembered(tmp_path: Path) -> None:
    grid = InProcessGrid([Node("a", private(1.0)), Node("b", private(3.0))])
    done = conductor(grid, new_run(tmp_path, planned(2))).conduct(FIRST)
    assert done.strategy == {}


def test_the_strategy_remembers_its_own_and_does_not_see_the_mean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[set[str]] = []

    def step(model: messages.Arrays, update: messages.Arrays, state: messages.Arrays) -> Any:
        given.append(set(state))
        return {n: w + update[n] for n, w in model.items()}, {"mine": np.ones(1)}

    monkeypatch.setattr("federation.strategies.build", lambda _: Strategy("spy", step))
    grid = InProcessGrid([Node("a", private(1.0)), Node("b", private(3.0))])
    conductor(grid, new_run(tmp_path, planned(3, privacy={"ema": 0.9}))).conduct(FIRST)
    assert given == [set(), {"mine"}, {"mine"}]


def test_a_mean_does_not_change_the_way_of_the_rounds(tmp_path: Path) -> None:
    seen: dict[str, list[bytes]] = {}
    for name, ema in (("plain", 0.0), ("mean", 0.9)):
        models = seen.setdefault(name, [])

        def noted(records: RecordDict, models: list[bytes] = models) -> RecordDict:
            models.append(wire.blob(records))
            return private(1.0)(records)

        grid = InProcessGrid([Node("a", noted), Node("b", private(3.0))])
        content = planned(4, strategy={"name": "fedadam"}, privacy={"ema": ema})
        conductor(grid, new_run(tmp_path / name, content)).conduct(FIRST)
    assert seen["plain"] == seen["mean"]
