"""Coordinators and hospitals that are killed amid an encrypted round, and rounds that go on."""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from flwr.app import RecordDict

from client_app.audit import Audit
from client_app.encrypted_state import EncryptedRun, State
from client_app.sessions import Session, Sessions
from federation.messages import Phase, Request
from federation.schema import Experiment
from server_app.aggregation import Gathered
from server_app.aggregation.encrypted import Encrypted
from server_app.aggregation.sealed_sums import KeyRing, SealedSum
from server_app.courier import Courier
from server_app.state import Checkpoint, RunFolder
from tests.encrypted import all_hold, encrypted, held, log, model_file, plainly
from tests.hospitals import Hospitals, train_quickly
from tests.masked import CRASH

pytest.importorskip("tenseal")


class Killed(BaseException):
    """As SIGKILL, for a test that goes on."""


SETUP = ("after advertise", "after share", "key kept")  # of the first round
MOMENTS = (
    *SETUP,
    "amid work",
    "after work",
    "sum saved",
    "amid sign",
    "after sign",
    "signatures saved",
    "amid open",
    "after open",
    "gathered",
    "stepped",
)


def kill_at(moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a coordinator die there, once: in the first round's setup, or in the second round."""
    armed = {"at": moment}
    in_round = 1 if moment in SETUP else 2

    def dies(where: str, round_: int) -> None:
        if round_ == in_round and armed["at"] == where:
            armed["at"] = ""
            raise Killed

    asked, worked, gathered = Courier.letters, Courier.carry, Encrypted.gather
    saved, kept, appended = SealedSum.save, KeyRing.save, RunFolder.append_metrics

    def letters(
        self: Courier, parcels: Any, expected: Any, *, taken: Any, enough: Any = None
    ) -> Any:
        request, seen = next(iter(parcels.values())).request, []

        def counting(outcome: Any) -> None:
            taken(outcome)
            seen.append(outcome)
            if len(seen) == 2:
                dies(f"amid {request.phase.value}", request.round)

        outcomes = asked(self, parcels, expected, taken=counting, enough=enough)
        dies(f"after {request.phase.value}", request.round)
        return outcomes

    def carry(self: Courier, parcels: Any, round_: int, expected: Any, *, taken: Any) -> Any:
        seen: list[Any] = []

        def counting(outcome: Any) -> None:
            taken(outcome)
            seen.append(outcome)
            if len(seen) == 3:
                dies("amid work", round_)

        outcomes = worked(self, parcels, round_, expected, taken=counting)
        dies("after work", round_)
        return outcomes

    def save(self: SealedSum, folder: RunFolder) -> None:
        saved(self, folder)
        dies("signatures saved" if self.letter else "sum saved", self.round)

    def keep(self: KeyRing) -> None:
        kept(self)
        dies("key kept", 1)

    def gather(self: Encrypted, hospitals: Any, request: Request, done: Checkpoint) -> Gathered:
        result = gathered(self, hospitals, request, done)
        dies("gathered", request.round)
        return result

    def append(self: RunFolder, row: dict[str, Any]) -> None:
        appended(self, row)
        if row["kind"] == "round":
            dies("stepped", row["round"])

    monkeypatch.setattr(Courier, "letters", letters)
    monkeypatch.setattr(Courier, "carry", carry)
    monkeypatch.setattr(SealedSum, "save", save)
    monkeypatch.setattr(KeyRing, "save", keep)
    monkeypatch.setattr(Encrypted, "gather", gather)
    monkeypatch.setattr(RunFolder, "append_metrics", append)


def killable() -> Experiment:
    return encrypted(evaluation={"every": 1000})


@pytest.fixture(scope="module")
def undisturbed(_five: Hospitals) -> Checkpoint:
    """The same rounds in the open."""
    with pytest.MonkeyPatch.context() as patch:
        train_quickly(patch)
        return _five.conduct(plainly(killable()), "undisturbed", rounds=3)


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_coordinator_goes_on_to_the_same_model(
    moment: str,
    five: Hospitals,
    trained: list[tuple[str, int]],
    undisturbed: Checkpoint,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    of, run = killable(), "killed-" + moment.replace(" ", "-")
    kill_at(moment, monkeypatch)
    with pytest.raises(Killed):
        five.conduct(of, run, rounds=3)
    done = five.conduct(of, run)
    assert done.round == 3
    all_hold(five, of, run, undisturbed.model)
    assert Counter(trained) == Counter((name, r) for name in five.sites for r in (1, 2, 3))
    assert not [entry for name in five.sites for entry in refusals(five, name, run)]


def refusals(made: Hospitals, name: str, run: str) -> list[object]:
    """Why it refused something in the run whose audit entries come last."""
    entries = Audit(made.sites[name].state / "audit.jsonl").entries()
    return [
        entry.fields["reason"]
        for entry in entries
        if entry.event == "refusal" and entry.fields.get("run") == run
    ]


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
    five.conduct(of, run)
    all_hold(five, of, run, undisturbed.model)
    assert Counter(trained) == Counter((name, 3) for name in five.sites)


# --- hospitals ------------------------------------------------------------------------------------


def dying(name: str, monkeypatch: pytest.MonkeyPatch, moment: str) -> Any:
    """Between the hospital and Flower: its process ends once amid the opening of round 2."""
    armed = {"at": moment}
    keep_state, keep = EncryptedRun.keep_state, Sessions.keep

    def dies(where: str, path: Path, round_: int) -> None:
        if armed["at"] == where and round_ == 2 and name in path.parts:
            armed["at"] = ""
            raise Killed

    def state_kept(self: EncryptedRun, state: State) -> None:
        dies("before the model", self.folder, state.round)
        keep_state(self, state)
        dies("between the model and the session", self.folder, state.round)

    def session_kept(self: Sessions, session: Session) -> None:
        keep(self, session)
        if session.opened is not None:
            dies("after the session", self.path, session.round)

    monkeypatch.setattr(EncryptedRun, "keep_state", state_kept)
    monkeypatch.setattr(Sessions, "keep", session_kept)

    def meddle(request: Request, records: RecordDict, answer: Any) -> Any:
        try:
            return answer(records)
        except Killed:
            return CRASH

    return meddle


DEATHS = {
    "before the model": (1, False),
    "between the model and the session": (2, False),
    "after the session": (2, True),
}


@pytest.mark.parametrize("again", [False, True], ids=["not asked again", "asked again"])
@pytest.mark.parametrize("moment", DEATHS)
def test_a_hospital_that_is_killed_amid_the_opening(
    moment: str,
    again: bool,
    five: Hospitals,
    trained: list[Any],
    undisturbed: Checkpoint,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It moves its model once, whatever is on its disk, whether the opening is asked of it again, as
    Flower's engine or a resumed coordinator does, or the next round finds it so."""
    of = encrypted(evaluation={"every": 1000}, attempts=2 if again else 1)
    run = f"died-{moment.replace(' ', '-')}-{again}"
    five.conduct(of, run, rounds=1)
    five.meddle["lake"] = dying("lake", monkeypatch, moment)
    five.conduct(of, run, rounds=1)
    five.meddle.clear()
    if not again:
        round_, marked = DEATHS[moment]
        assert held(five, "lake", of, run).round == round_
        with Sessions.held(five.sites["lake"].state, run) as sessions:
            assert (sessions.opened == 2) is marked
    else:
        assert held(five, "lake", of, run).round == 2
    five.conduct(of, run, rounds=1)
    all_hold(five, of, run, undisturbed.model)


def test_the_reverse_order_is_mended_too(
    five: Hospitals, trained: list[Any], undisturbed: Checkpoint
) -> None:
    """A session that says opened, with the model of before it, as no crash leaves them but a backup
    that was put back does."""
    of, run = killable(), "reverse"
    five.conduct(of, run, rounds=1)
    before = model_file(five, "lake", run).read_bytes()
    five.conduct(of, run, rounds=1)
    model_file(five, "lake", run).write_bytes(before)
    five.conduct(of, run, rounds=1)
    all_hold(five, of, run, undisturbed.model)
    assert ("refusal", "no_model") in log(five, "lake")


def test_two_runs_at_once_do_not_mix(
    five: Hospitals, trained: list[Any], undisturbed: Checkpoint
) -> None:
    of, other = killable(), encrypted(seed=3, evaluation={"every": 1000})
    alone = five.conduct(plainly(other), "alone", rounds=2)
    for _ in range(2):
        five.conduct(of, "one", rounds=1)
        five.conduct(other, "two", rounds=1)
    five.conduct(of, "one", rounds=1)
    all_hold(five, of, "one", undisturbed.model)
    all_hold(five, other, "two", alone.model, 2)
