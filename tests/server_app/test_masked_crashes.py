"""Coordinators that are killed amid a round under masks, and rounds that are done again."""

from __future__ import annotations

import os
import shutil
import signal
from collections import Counter
from typing import Any

import pytest
from flwr.app import RecordDict

from federation.messages import Phase, Request
from federation.schema import Experiment
from server_app.aggregation import Gathered
from server_app.aggregation.masked import Masked
from server_app.aggregation.unopened import Unopened
from server_app.courier import Courier
from server_app.exchange import TooFewHospitals
from server_app.state import Checkpoint, RunFolder
from tests.hospitals import Hospitals, train_quickly
from tests.masked import CRASH, STEPS, masked, same

# --- a coordinator that is killed -----------------------------------------------------------------


class Killed(BaseException):
    """As SIGKILL, for a test that goes on."""


MOMENTS = [
    *(f"after {step.value}" for step in STEPS),
    "amid work",
    "before signing",
    "sum saved",
    "opening marked",
    "unmasked",
    "stepped",
]


def kill_at(moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the second round's coordinator die there, once."""
    armed = {"at": moment}

    def dies(where: str, round_: int) -> None:
        if round_ == 2 and armed["at"] == where:
            armed["at"] = ""
            raise Killed

    asked, worked, gathered = Courier.letters, Courier.work, Masked._gather
    saved, opening = Unopened.save, Unopened.opening

    def letters(self: Courier, parcels: Any, *args: Any, **kwargs: Any) -> Any:
        request = next(iter(parcels.values())).request
        if request.phase is Phase.SIGN:
            dies("before signing", request.round)
        outcomes = asked(self, parcels, *args, **kwargs)
        dies(f"after {request.phase.value}", request.round)
        return outcomes

    def work(self: Courier, requests: Any, done: Checkpoint, expected: Any, *, taken: Any) -> Any:
        round_, seen = next(iter(requests.values())).round, []

        def counting(outcome: Any) -> None:
            taken(outcome)
            seen.append(outcome)
            if len(seen) == 3:
                dies("amid work", round_)

        outcomes = worked(self, requests, done, expected, taken=counting)
        dies("after work", round_)
        return outcomes

    def save(self: Unopened, folder: RunFolder) -> None:
        saved(self, folder)
        dies("sum saved", self.occasion.round)

    def mark(folder: RunFolder) -> None:
        opening(folder)
        done = folder.load()
        dies("opening marked", done.round + 1 if done else 1)

    def gather(self: Masked, hospitals: Any, request: Request, done: Checkpoint) -> Gathered:
        result = gathered(self, hospitals, request, done)
        dies("unmasked", request.round)
        return result

    appended = RunFolder.append_metrics

    def append(self: RunFolder, row: dict[str, Any]) -> None:
        appended(self, row)
        if row["kind"] == "round":
            dies("stepped", row["round"])

    monkeypatch.setattr(Courier, "letters", letters)
    monkeypatch.setattr(Courier, "work", work)
    monkeypatch.setattr(Unopened, "save", save)
    monkeypatch.setattr(Unopened, "opening", staticmethod(mark))
    monkeypatch.setattr(Masked, "_gather", gather)
    monkeypatch.setattr(RunFolder, "append_metrics", append)


@pytest.fixture(scope="module")
def undisturbed(_five: Hospitals) -> Checkpoint:
    with pytest.MonkeyPatch.context() as patch:
        train_quickly(patch)
        return _five.conduct(killable(), "undisturbed", rounds=3)


def killable() -> Experiment:
    """Error feedback and the scales of earlier rounds have to come through too."""
    return masked(weighting="examples", evaluation={"every": 1000})


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_coordinator_goes_on_to_the_same_model(
    moment: str,
    five: Hospitals,
    trained: list[tuple[str, int]],
    undisturbed: Checkpoint,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    of, run = killable(), "killed-" + moment.replace(" ", "-")
    if moment in ("after advertise", "after share"):  # keys that had to be made anew
        five.conduct(of, run, rounds=1)
        five.asked.clear()
        kill_at(moment, monkeypatch)
        with pytest.raises(Killed):
            five.conduct(of, run, rounds=2)
    else:
        kill_at(moment, monkeypatch)
        with pytest.raises(Killed):
            five.conduct(of, run, rounds=3)
    done = five.conduct(of, run)
    assert done.round == 3
    same(done.model, undisturbed.model)
    assert Counter(trained) == Counter((name, r) for name in five.sites for r in (1, 2, 3))


def test_a_coordinator_that_is_really_killed(
    five: Hospitals, trained: list[tuple[str, int]], undisturbed: Checkpoint
) -> None:
    """kill -9, in a process of its own, between the work and the signatures."""
    of, run = killable(), "really-killed"
    child = os.fork()
    if child == 0:
        with pytest.MonkeyPatch.context() as patch:
            asked = Courier.letters

            def letters(self: Courier, parcels: Any, *args: Any, **kwargs: Any) -> Any:
                request = next(iter(parcels.values())).request
                if request.round == 2 and request.phase is Phase.SIGN:
                    os.kill(os.getpid(), signal.SIGKILL)
                return asked(self, parcels, *args, **kwargs)

            patch.setattr(Courier, "letters", letters)
            try:
                five.conduct(of, run, rounds=2)
            finally:
                os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGKILL
    done = five.conduct(of, run)
    same(done.model, undisturbed.model)
    assert Counter(trained) == Counter((name, 3) for name in five.sites)


# --- error feedback -------------------------------------------------------------------------------


def test_a_round_that_is_done_again_starts_from_the_same_residual(
    five: Hospitals, trained: list[tuple[str, int]], undisturbed: Checkpoint
) -> None:
    """Also where the hospital lost what it had answered, so that it works again."""
    of, run = killable(), "again"
    five.conduct(of, run, rounds=1)
    residuals = {name: residual_files(five, name) for name in five.sites}

    def lose(request: Request, records: RecordDict, answer: Any) -> Any:
        reply = answer(records)
        if request.phase is Phase.WORK:
            for site in five.sites.values():
                shutil.rmtree(site.state / "answers", ignore_errors=True)
            return CRASH
        return reply

    five.meddle = dict.fromkeys(five.sites, lose)
    with pytest.raises(TooFewHospitals):
        five.conduct(of, run, rounds=1)
    five.meddle.clear()
    for name, before in residuals.items():
        assert before.items() <= residual_files(five, name).items()
    same(five.conduct(of, run).model, undisturbed.model)


def residual_files(made: Hospitals, name: str) -> dict[str, bytes]:
    folder = made.sites[name].state / "residuals"
    newest = max(folder.iterdir(), key=lambda run: run.stat().st_mtime_ns)
    return {file.name: file.read_bytes() for file in newest.glob("*.npy")}


def test_two_runs_at_once_do_not_mix(
    five: Hospitals, trained: list[tuple[str, int]], undisturbed: Checkpoint
) -> None:
    of, other = killable(), masked(seed=3, evaluation={"every": 1000})
    alone = five.conduct(other, "alone", rounds=3)
    for _ in range(2):
        five.conduct(of, "one", rounds=1)
        five.conduct(other, "two", rounds=1)
    same(five.conduct(of, "one", rounds=1).model, undisturbed.model)
    same(five.conduct(other, "two", rounds=1).model, alone.model)
