"""Hospitals that vanish amid encrypted rounds, come back, or lose what they keep."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from flwr.app import RecordDict

from federation import wire
from federation.messages import Answer, Phase, Protected, Request
from federation.secure_aggregation import letters
from server_app.exchange import TooFewHospitals
from server_app.state import Checkpoint
from tests.encrypted import all_hold, encrypted, held, log, model_file, plainly, ring_file
from tests.hospitals import MASKS, Hospitals, train_quickly
from tests.masked import CRASH, crashing, rows

pytest.importorskip("tenseal")
Opened = Callable[..., Checkpoint]

# --- hospitals that vanish ------------------------------------------------------------------------


def in_round(number: int, meddler: Any) -> Any:
    def meddle(request: Request, records: RecordDict, answer: Any) -> Any:
        return meddler(request, records, answer) if request.round == number else answer(records)

    return meddle


def dies_after(at: Phase) -> Any:
    """It did what was asked, and vanished before anybody heard of it."""

    def meddle(request: Request, records: RecordDict, answer: Any) -> Any:
        reply = answer(records)
        return CRASH if request.phase is at else reply

    return meddle


@pytest.fixture(scope="module")
def opened(_five: Hospitals) -> Opened:
    """Three rounds in the open, in which one hospital's update is missing in some."""
    known: dict[tuple[tuple[int, ...], bool], Checkpoint] = {}

    def of(missing: tuple[int, ...], done: bool = False) -> Checkpoint:
        if (missing, done) not in known:
            with pytest.MonkeyPatch.context() as patch:
                train_quickly(patch)
                made = _five.fresh()

                def meddle(request: Request, records: RecordDict, answer: Any) -> Any:
                    if request.round not in missing:
                        return answer(records)
                    if done:  # what error feedback keeps is then the same too
                        answer(records)
                    return CRASH

                made.meddle["lake"] = meddle
                run = "without-" + "-".join(map(str, missing)) + "-done" * done
                known[missing, done] = made.conduct(plainly(three()), run, rounds=3)
                _five.fresh()
        return known[missing, done]

    return of


def three() -> Any:
    return encrypted(evaluation={"every": 1000})


DROPS: dict[str, tuple[int, Phase, bool, tuple[int, ...]]] = {
    "advertise": (1, Phase.ADVERTISE, False, (1,)),
    "work": (2, Phase.WORK, False, (2,)),
    "work done": (2, Phase.WORK, True, (2,)),
    "sign": (2, Phase.SIGN, False, ()),
    "sign done": (2, Phase.SIGN, True, ()),
    "open": (2, Phase.OPEN, False, ()),
    "open done": (2, Phase.OPEN, True, ()),
    "last open": (3, Phase.OPEN, False, ()),
}


@pytest.mark.parametrize("drop", DROPS)
def test_a_hospital_that_vanishes_costs_its_own_update_alone(
    drop: str,
    five: Hospitals,
    trained: list[Any],
    opened: Opened,
) -> None:
    """And it ends with the model that the others have, which is that of sums in the open."""
    round_, phase, done, missing = DROPS[drop]
    wanted = opened(missing, done and phase is Phase.WORK)
    meddler = dies_after(phase) if done else crashing(phase)
    five.meddle["lake"] = in_round(round_, meddler)
    of, run = three(), "drop-" + drop.replace(" ", "-")
    five.conduct(of, run, rounds=3)
    five.meddle.clear()
    if drop == "last open":
        assert held(five, "lake", of, run).round == 2
        five.conduct(of, run)  # the last evaluation takes it along
    all_hold(five, of, run, wanted.model)
    status = [r["hospitals"]["lake"]["status"] for r in rows(five, run) if r["kind"] == "round"]
    assert status == ["left out" if n in missing else "ok" for n in (1, 2, 3)]


@pytest.mark.parametrize("done", [False, True])
def test_the_key_s_maker_vanishes(
    done: bool,
    five: Hospitals,
    trained: list[Any],
    opened: Opened,
) -> None:
    """Before it made one, and after, when another hospital made the one that counts."""
    wanted = opened(())
    five.meddle["east"] = dies_after(Phase.SHARE) if done else crashing(Phase.SHARE)
    of, run = three(), f"maker-{done}"
    five.conduct(of, run, rounds=3)
    all_hold(five, of, run, wanted.model)
    assert [who for who, request, _ in five.asked if request.phase is Phase.SHARE] == [
        "east",
        "hill",
    ]


def test_one_falls_silent_amid_the_work(
    five: Hospitals,
    trained: list[Any],
    silent: set[str],
    opened: Opened,
) -> None:
    def meddle(request: Request, records: RecordDict, answer: Any) -> Any:
        if request.phase is Phase.WORK and request.round == 2:
            silent.add("lake")
            return None
        silent.discard("lake")
        return answer(records)

    wanted = opened((2,))
    five.meddle["lake"] = meddle
    of = three()
    five.conduct(of, "silent", rounds=3)
    all_hold(five, of, "silent", wanted.model)


@pytest.mark.parametrize("at", [Phase.WORK, Phase.SIGN, Phase.OPEN])
def test_nonsense_of_one_is_left_out(
    at: Phase,
    five: Hospitals,
    trained: list[Any],
    opened: Opened,
) -> None:
    def meddle(request: Request, records: RecordDict, answer: Any) -> Any:
        reply = answer(records)
        if request.phase is not at:
            return reply
        torn = Answer(request.round, protected=Protected(b"\1\2nonsense", wire.blob(reply)[:-1]))
        return wire.answer_to_records(torn)

    wanted = opened((2,), True) if at is Phase.WORK else opened(())
    five.meddle["lake"] = in_round(2, meddle)
    of, run = three(), f"nonsense-{at.value}"
    five.conduct(of, run, rounds=3)
    all_hold(five, of, run, wanted.model)


def test_who_missed_two_rounds_follows(five: Hospitals, trained: list[Any], opened: Opened) -> None:
    """From the start, so that it has no key either."""
    wanted = opened((1, 2))
    five.meddle["lake"] = lambda *_: CRASH
    five.conduct(three(), "late", rounds=2)
    five.meddle.clear()
    five.conduct(three(), "late", rounds=1)
    all_hold(five, three(), "late", wanted.model)


@pytest.mark.parametrize("at", [Phase.WORK, Phase.SIGN, Phase.OPEN])
def test_below_the_threshold_the_sum_stays_closed_and_a_resume_goes_on(
    at: Phase,
    five: Hospitals,
    trained: list[Any],
    opened: Opened,
) -> None:
    """Of five 4 are needed. A sum that some signed is kept: those would sign no other."""
    wanted = opened(())
    of, run = three(), f"few-{at.value}"
    five.conduct(of, run, rounds=1)
    five.meddle |= {"hill": crashing(at), "south": crashing(at)}
    with pytest.raises(TooFewHospitals, match=r"^round 2: 3 hospitals .*, 4 are needed \(") as few:
        five.conduct(of, run, rounds=1)
    assert "hill: crashed" in str(few.value)
    if at is not Phase.OPEN:
        assert held(five, "east", of, run).round == 1
    five.meddle.clear()
    five.conduct(of, run, rounds=2)
    all_hold(five, of, run, wanted.model)
    assert len(trained) == 15  # nobody worked twice


def test_the_largest_comes_while_a_round_is_done_again(five: Hospitals, trained: list[Any]) -> None:
    """Too few were there; with the others all weigh less, so that what the first gave is of no use."""
    of = encrypted(weighting="examples", evaluation={"every": 1000})
    for name in ("north", "south"):
        five.meddle[name] = crashing(Phase.ADVERTISE)
    with pytest.raises(TooFewHospitals, match="3 hospitals sent their part, 4 are needed"):
        five.conduct(of, "largest", rounds=1)
    five.meddle.clear()
    five.conduct(of, "largest", rounds=1)
    assert len(trained) == 5
    calm = encrypted(weighting="examples", evaluation={"every": 1000}, secure_aggregation=MASKS)
    all_hold(five, of, "largest", five.conduct(calm, "largest-masked", rounds=1).model, 1)


# --- hospitals that lose what they keep -----------------------------------------------------------


def lose(*files: Any) -> Callable[[Hospitals, str], None]:
    def act(made: Hospitals, run: str) -> None:
        for file in files:
            file(made, "lake", run).unlink()

    return act


def damage(made: Hospitals, run: str) -> None:
    file = model_file(made, "lake", run)
    whole = bytearray(file.read_bytes())
    whole[-3] ^= 1
    file.write_bytes(bytes(whole))


def older(made: Hospitals, run: str) -> None:
    """A backup of after the first round."""
    model_file(made, "lake", run).write_bytes((made.folder / "backup").read_bytes())


LOSSES: dict[str, Callable[[Hospitals, str], None]] = {
    "its model": lose(model_file),
    "a bit of its model": damage,
    "its newest model": older,
    "its keys": lose(ring_file),
    "all": lose(ring_file, model_file),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_a_hospital_that_lost_something_is_helped_in_the_same_round(
    loss: str,
    five: Hospitals,
    trained: list[Any],
    opened: Opened,
) -> None:
    wanted = opened(())
    of, run = three(), "lost-" + loss.replace(" ", "-")
    five.conduct(of, run, rounds=1)
    (five.folder / "backup").write_bytes(model_file(five, "lake", run).read_bytes())
    five.conduct(of, run, rounds=1)
    LOSSES[loss](five, run)
    five.conduct(of, run, rounds=1)
    all_hold(five, of, run, wanted.model)
    status = [r["hospitals"]["lake"]["status"] for r in rows(five, run) if r["kind"] == "round"]
    assert status == ["ok"] * 3
    said = [reason for event, reason in log(five, "lake") if event == "refusal"]
    assert said[-1] == ("no_model" if loss.endswith("model") else "no_keys")


def test_a_model_lost_after_signing_is_made_again(
    five: Hospitals, trained: list[Any], opened: Opened
) -> None:
    wanted = opened(())
    of, run = three(), "lost-amid"

    def meddle(request: Request, records: RecordDict, answer: Any) -> Any:
        if request.phase is Phase.OPEN and request.round == 2:
            model_file(five, "lake", run).unlink()
        return answer(records)

    five.meddle["lake"] = meddle
    five.conduct(of, run, rounds=3)
    all_hold(five, of, run, wanted.model)


def test_a_box_that_does_not_open_is_sealed_by_another(
    five: Hospitals, trained: list[Any], opened: Opened
) -> None:
    def meddle(request: Request, records: RecordDict, answer: Any) -> Any:
        reply = answer(records)
        if request.phase is not Phase.SHARE:
            return reply
        public, boxes = letters.split(bytes(reply["head"]["letter"]), 2)
        found = letters.boxes_from_bytes(boxes)
        found["lake"] = found["lake"][:-1] + bytes([found["lake"][-1] ^ 1])
        letter = letters.join(public, letters.boxes_to_bytes(found))
        return wire.answer_to_records(Answer(request.round, protected=Protected(letter)))

    wanted = opened(())
    five.meddle["east"] = meddle
    of = three()
    five.conduct(of, "bad-box", rounds=3)
    all_hold(five, of, "bad-box", wanted.model)
    sealers = [name for name, request, _ in five.asked if request.phase is Phase.SHARE]
    assert sealers == ["east", "hill"]


def test_without_any_key_the_run_ends_in_one_line(five: Hospitals, trained: list[Any]) -> None:
    of = three()
    five.conduct(of, "no-keys", rounds=1)
    for name in five.sites:
        ring_file(five, name, "no-keys").unlink()
    with pytest.raises(TooFewHospitals, match=r"^round 2: 0 hospitals sent their part") as few:
        five.conduct(of, "no-keys", rounds=1)
    assert "east: no_keys" in str(few.value)
    assert "\n" not in str(few.value)


def test_a_sum_that_the_coordinator_lost_is_named(five: Hospitals, trained: list[Any]) -> None:
    of, run = three(), "lost-sum"
    five.conduct(of, run, rounds=2)
    (five.folder / "runs" / run / "sums" / "1.bin").unlink()
    model_file(five, "lake", run).unlink()
    with pytest.raises(TooFewHospitals, match=r"round 1 is missing .*bring sums/ back"):
        five.conduct(of, run, rounds=1)
