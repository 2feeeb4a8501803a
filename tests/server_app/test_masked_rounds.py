"""Rounds under masks with real ClientApps, and a coordinator that keeps to the protocol."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
from flwr.app import RecordDict
from numpy.typing import NDArray

from client_app.patients import find_patients
from federation import models, tasks, wire
from federation.codec import chain
from federation.messages import Answer, Arrays, Phase, Protected, Request
from federation.schema import Experiment
from server_app.aggregation import Gathered
from server_app.aggregation.masked import SumUnusable
from server_app.exchange import TooFewHospitals
from tests.hospitals import Hospitals, content
from tests.masked import STEPS, crashing, gather, kept, masked, rows, same, steps

# --- the sum, reckoned here from what the hospitals kept ------------------------------------------


def integers(
    made: Hospitals, of: Experiment, name: str, share: float, round_: int = 1
) -> NDArray[np.int64]:
    """A hospital's update as the codec's integers."""
    codec = codec_of(of)
    update, _ = kept(made, name, of)
    weighted = {key: (array * share).astype(array.dtype) for key, array in update.items()}
    seed = tasks.seeded(of.seed, name, round_).initial_seed()
    scales = codec.first_scales(of.training)
    encoded = codec.encode(weighted, None, scales, round=round_, seed=seed)
    return np.concatenate([encoded.values, encoded.wanted]).astype(np.int64)


def codec_of(of: Experiment) -> chain.Chain:
    assert of.codec is not None
    return chain.build(of.codec, models.build(of.model, tasks.build(of.task), seed=0), seed=of.seed)


def plain_mean(made: Hospitals, of: Experiment, survivors: Iterable[str]) -> Arrays:
    """Σ integers of the survivors, in the open, and what they stand for."""
    names, weights = sorted(survivors), {}
    for name in made.sites:
        site = made.sites[name]
        weights[name] = find_patients(site, of).cohort.training_patients
    largest = max(weights.values())
    if of.participation.weighting == "equal":
        weights, largest = dict.fromkeys(weights, 1), 1
    total = sum(
        (integers(made, of, name, weights[name] / largest) for name in names),
        np.zeros(codec_of(of).length(round=1), np.int64),
    )
    codec = codec_of(of)
    mean, _ = codec.decode(total, len(names), codec.first_scales(of.training), round=1)
    factor = len(names) / sum(weights[name] / largest for name in names)
    return {key: (array * factor).astype(array.dtype) for key, array in mean.items()}


CODECS: dict[str, dict[str, Any]] = {
    "int16": {"quantise": {"name": "integers", "bits": 16}},
    "int8": {"quantise": {"name": "integers", "bits": 8}},
    "int4": {"quantise": {"name": "integers", "bits": 4}},
    "rand_k": {
        "sparsify": {"name": "rand_k", "keep": 0.1},
        "quantise": {"name": "integers", "bits": 8},
    },
    "adapters": {
        "exchange": {"name": "adapters", "rank": 2},
        "quantise": {"name": "integers", "bits": 8},
    },
}


@pytest.mark.parametrize("weighting", ["equal", "examples"])
@pytest.mark.parametrize("codec", CODECS)
def test_the_masked_mean_is_the_plain_integer_sum(
    codec: str, weighting: str, five: Hospitals, trained: list[tuple[str, int]]
) -> None:
    of = masked(codec=CODECS[codec], weighting=weighting)
    gathered = gather(five, of, f"sum-{codec}-{weighting}")
    assert gathered.mean is not None
    same(gathered.mean, plain_mean(five, of, five.sites))
    assert any(np.any(array) for array in gathered.mean.values())


def test_the_mean_is_the_mean_of_what_the_hospitals_trained(
    five: Hospitals, trained: list[tuple[str, int]]
) -> None:
    """By no code of ours: within a quantisation step of Σ nₖΔₖ / Σ nₖ in float64."""
    of = masked(codec=CODECS["int16"], weighting="examples")
    gathered = gather(five, of, "float")
    assert gathered.mean is not None
    updates = {name: kept(five, name, of) for name in five.sites}
    patients = sum(count for _, count in updates.values())
    assert len({count for _, count in updates.values()}) > 1
    for key, array in gathered.mean.items():
        if array.dtype.kind == "f":
            wanted = sum(update[key].astype("f8") * n for update, n in updates.values()) / patients
            np.testing.assert_allclose(array, wanted, atol=5e-4, err_msg=key)
    assert gathered.summed is not None
    assert gathered.summed.patients == patients


def test_three_rounds_are_those_of_sums_in_the_open(five: Hospitals) -> None:
    """Real training, BatchNorm and all: bit for bit the same global model as without masks."""
    opened = five.conduct(content(), "open")
    hidden = five.conduct(masked(), "masked")
    assert hidden.round == opened.round == 3
    same(hidden.model, opened.model)
    moved = [n for n, a in opened.model.items() if "running_mean" in n and np.any(a)]
    assert moved  # its statistics were averaged too


def test_figures_are_those_of_the_hospitals_together(
    five: Hospitals, trained: list[tuple[str, int]]
) -> None:
    in_the_open = content(weighting="examples", rounds=1)
    five.conduct(in_the_open, "figures-open")
    five.conduct(masked(weighting="examples", rounds=1), "figures-masked")
    opened, hidden = ({r["kind"] + str(r["round"]): r for r in rows(five, run)}
                      for run in ("figures-open", "figures-masked"))  # fmt: skip
    each = opened["round1"]["hospitals"].values()
    summed = hidden["round1"]["summed"]
    examples = sum(row["examples"] for row in each)
    assert summed["examples"] == examples
    assert summed["patients"] == sum(row["patients"] for row in each)
    loss = sum(row["loss"] * row["examples"] for row in each) / examples
    assert summed["loss"] == pytest.approx(loss, abs=1e-6)
    for metric, value in opened["evaluation0"]["overall"].items():
        assert hidden["evaluation0"]["overall"][metric] == pytest.approx(value, abs=1e-5)
    # and of one alone nothing is told
    for row in hidden["round1"]["hospitals"].values():
        assert set(row) == {
            "status", "reason", "attempts", "bytes_down", "bytes_up", "answered_after"
        }  # fmt: skip


# --- hospitals that vanish ------------------------------------------------------------------------


def falling_silent(at: Phase, silent: set[str]) -> Callable[[str], Any]:
    def of(name: str) -> Any:
        def meddle(request: Request, records: RecordDict, answer: Any) -> Any:
            if name in silent or request.phase is at:
                silent.add(name)
                return None
            return answer(records)

        return meddle

    return of


@pytest.mark.parametrize("at", STEPS)
def test_one_of_seven_falls_silent(
    at: Phase, seven: Hospitals, trained: list[tuple[str, int]], silent: set[str]
) -> None:
    seven.meddle["lake"] = falling_silent(at, silent)("lake")
    of = masked()
    gathered = gather(seven, of, f"silent-{at.value}")
    counted = set(seven.sites) - ({"lake"} if at in STEPS[:3] else set())
    check(gathered, seven, of, counted, "late")


@pytest.mark.parametrize("at", STEPS)
def test_two_of_seven_crash(at: Phase, seven: Hospitals, trained: list[tuple[str, int]]) -> None:
    seven.meddle |= {"east": crashing(at), "south": crashing(at)}
    of = masked()
    gathered = gather(seven, of, f"crash-{at.value}")
    counted = set(seven.sites) - ({"east", "south"} if at in STEPS[:3] else set())
    check(gathered, seven, of, counted, "crashed")


def test_two_of_seven_vanish_at_different_steps(
    seven: Hospitals, trained: list[tuple[str, int]]
) -> None:
    """After sharing, and after working: its mask key is opened, and its seed."""
    seven.meddle |= {"east": crashing(Phase.WORK), "vale": crashing(Phase.SIGN)}
    of = masked()
    check(gather(seven, of, "both"), seven, of, set(seven.sites) - {"east"}, "crashed")


@pytest.mark.parametrize("at", STEPS)
def test_one_of_seven_talks_nonsense(
    at: Phase, seven: Hospitals, trained: list[tuple[str, int]]
) -> None:
    def meddle(request: Request, records: RecordDict, answer: Any) -> Any:
        reply = answer(records)
        if request.phase is not at:
            return reply
        blob = wire.blob(reply)
        torn = Answer(request.round, protected=Protected(b"\1\2nonsense", blob))
        return wire.answer_to_records(torn)

    seven.meddle["hill"] = meddle
    of = masked()
    gathered = gather(seven, of, f"nonsense-{at.value}")
    counted = set(seven.sites) - ({"hill"} if at in STEPS[:3] else set())
    check(gathered, seven, of, counted, "malformed")


def check(
    gathered: Gathered, made: Hospitals, of: Experiment, counted: set[str], reason: str
) -> None:
    """The sum is that of those who are in it, and the rows of the others say why they are not."""
    outcomes = {outcome.hospital: outcome for outcome in gathered.outcomes}
    assert set(outcomes) == set(made.sites)
    assert {name for name, one in outcomes.items() if one.is_good} == counted
    assert all(outcomes[name].reason == reason for name in set(made.sites) - counted)
    assert gathered.mean is not None
    same(gathered.mean, plain_mean(made, of, counted))
    assert gathered.summed is not None
    assert gathered.summed.hospitals == tuple(sorted(counted))


@pytest.mark.parametrize("at", STEPS[1:])
def test_below_the_threshold_nothing_is_opened_and_a_resume_goes_on(
    at: Phase, seven: Hospitals, trained: list[tuple[str, int]]
) -> None:
    """Of seven 5 are needed."""
    of = masked(rounds=1, evaluation={"every": 1000})
    for name in ("hill", "south", "west"):
        seven.meddle[name] = crashing(at)
    run = f"few-{at.value}"
    with pytest.raises(TooFewHospitals, match=r"^round 1: 4 hospitals .*, 5 are needed \(") as few:
        seven.conduct(of, run, rounds=1)
    assert "\n" not in str(few.value)
    assert "hill: crashed" in str(few.value)
    openings = [name for name, phase, _ in seven.heard if phase is Phase.OPEN]
    assert len(openings) == (4 if at is Phase.OPEN else 0)
    before = len(trained)
    seven.meddle.clear()
    done = seven.conduct(of, run, rounds=1)
    same(done.model, seven.conduct(of, run + "-calm", rounds=1).model)
    if at is not Phase.SHARE:  # nobody who had worked does so again
        assert len(trained) - before == 7 + (3 if at is Phase.WORK else 0)


def test_a_sum_that_may_be_open_is_kept_when_signatures_are_missing(
    seven: Hospitals, trained: list[tuple[str, int]]
) -> None:
    """Those who opened a round never open another sum of it: so this one must not be forgotten."""
    of = masked(rounds=1, evaluation={"every": 1000})
    lost = ("hill", "south", "west")
    for at in (Phase.OPEN, Phase.SIGN):
        for name in lost:
            seven.meddle[name] = crashing(at)
        with pytest.raises(TooFewHospitals):
            seven.conduct(of, "kept", rounds=1)
    seven.meddle.clear()
    done = seven.conduct(of, "kept", rounds=1)
    same(done.model, seven.conduct(of, "kept-calm", rounds=1).model)


def test_wrong_openings_end_the_run_in_one_line(
    five: Hospitals, trained: list[tuple[str, int]]
) -> None:
    """Four are needed of five; two give wrong shares, whose errors do not cancel out."""

    def off_by(bit: int) -> Any:
        def meddle(request: Request, records: RecordDict, answer: Any) -> Any:
            reply = answer(records)
            if request.phase is not Phase.OPEN:
                return reply
            letter = bytes(reply["head"]["letter"])
            broken = letter[:-1] + bytes([letter[-1] ^ bit])
            return wire.answer_to_records(Answer(request.round, protected=Protected(broken)))

        return meddle

    five.meddle |= {"east": off_by(1), "hill": off_by(4)}
    with pytest.raises(
        SumUnusable, match=r"^round 1: the hospitals' sum cannot be used: bad_share"
    ):
        gather(five, masked(), "wrong")
    five.meddle.clear()
    assert gather(five, masked(), "wrong").mean is not None  # asked again, they give the right ones


# --- keys ride along ------------------------------------------------------------------------------


def test_after_the_first_round_there_are_three_exchanges(
    five: Hospitals, trained: list[tuple[str, int]]
) -> None:
    five.conduct(masked(rounds=3), "riding")
    setup, round_ = STEPS[:2], STEPS[2:]
    four = 3 + 1  # rounds, and the last evaluation
    assert steps(five) == [(phase, 5) for phase in setup + four * round_]


def test_a_hospital_that_comes_back_has_fresh_keys_made(
    five: Hospitals, trained: list[tuple[str, int]]
) -> None:
    of = masked(rounds=4, evaluation={"every": 1000})
    folder, conductor, start = five.conductor(of, "back")
    grid: Any = conductor.aggregation.courier.exchange.grid  # type: ignore[attr-defined]
    south = next(node for node in grid.nodes.values() if node.name == "south")
    counts = []
    for online in (True, False, True, True):
        south.online = online
        start = conductor.round(start)
        folder.save(start)
        counts.append(steps(five))
        five.asked.clear()
    setup, round_ = STEPS[:2], STEPS[2:]
    assert counts[0] == [(phase, 5) for phase in setup + round_]
    # its keys came with the first round, so its masks have to come off: it is asked, and not there
    assert counts[1] == [(phase, 4) for phase in round_]
    assert counts[2] == [(phase, 5) for phase in setup + round_]
    assert counts[3] == [(phase, 5) for phase in round_]
    told = [row["hospitals"]["south"] for row in rows(five, "back") if row["kind"] == "round"]
    assert [row["status"] for row in told] == ["ok", "left out", "ok", "ok"]
    assert told[1]["reason"] == "absent"


def test_who_never_came_has_a_row_all_the_same(
    five: Hospitals, trained: list[tuple[str, int]]
) -> None:
    of = masked(rounds=2, evaluation={"every": 1000})
    folder, conductor, start = five.conductor(of, "never")
    grid: Any = conductor.aggregation.courier.exchange.grid  # type: ignore[attr-defined]
    next(node for node in grid.nodes.values() if node.name == "south").online = False
    for _ in range(2):
        folder.save(start := conductor.round(start))
    assert steps(five) == [(phase, 4) for phase in STEPS + STEPS[2:]]
    told = [row["hospitals"]["south"] for row in rows(five, "never") if row["kind"] == "round"]
    assert [row["reason"] for row in told] == ["absent", "absent"]
