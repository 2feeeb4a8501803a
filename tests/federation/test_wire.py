"""What travels comes back as it was, and what is not what it has to be gets a reason."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from federation import messages, wire
from federation.fairness.cases import of_predictions
from federation.fairness.counts import count
from federation.messages import (
    Answer,
    Evaluated,
    Expected,
    Lodged,
    Phase,
    Protected,
    Reason,
    Request,
    Shape,
    Spent,
    Tallied,
    Trained,
    WireError,
)
from tests.federation.fairness import drawn

MODEL = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.array(7, dtype=np.int64)}
REQUEST = Request("run", 3, evaluate=True, train=True)
METRICS = frozenset({"dice", "loss"})


def answer(**changes: object) -> Answer:
    update = changes.pop("update", {name: a * 0 for name, a in MODEL.items()})
    trained = Trained(update, examples=5, patients=3, loss=0.5, seconds=1.0)  # type: ignore[arg-type]
    evaluated = Evaluated({"dice": 0.5}, examples=2, patients=1)
    return Answer(round=3, trained=trained, evaluated=evaluated)


EXPECTED = Expected(Shape.of(MODEL), METRICS)
PRIVATE = replace(EXPECTED, private=True)
NOISY = replace(PRIVATE, tally=3)
LODGED = Lodged(7, "0123456789abcdef" * 4)


def private_answer(**changes: Any) -> Answer:
    return Answer(
        round=3,
        trained=Trained({name: a * 0 for name, a in MODEL.items()}, patients=40),
        spent=Spent(1.5, 0.5, 8.0, 1e-5, "smaller of PRV and RDP (opacus 1.6.0)", LODGED),
        **changes,
    )


TALLIED = Tallied(np.array([1.5, -0.25, 30.0]), 10.0)


def read(
    records: wire.RecordDict, request: Request = REQUEST, expected: Expected = EXPECTED
) -> Answer:
    return wire.answer_from_records(records, request, expected)


@given(
    st.dictionaries(
        st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=8),
        hnp.arrays(
            st.sampled_from([np.float32, np.float16, np.int64]),
            hnp.array_shapes(min_dims=0, max_dims=3, min_side=0),
            elements=st.integers(-100, 100),
        ),
        max_size=4,
    )
)
def test_arrays_survive_the_wire_bit_for_bit(arrays: messages.Arrays) -> None:
    arrived = wire.unpack(wire.pack(arrays), Shape.of(arrays))
    assert arrived.keys() == arrays.keys()
    for name, array in arrays.items():
        assert arrived[name].dtype == array.dtype
        assert arrived[name].shape == array.shape
        assert arrived[name].tobytes() == array.tobytes()


def test_request_and_answer_survive() -> None:
    assert wire.request_from_records(wire.request_to_records(REQUEST, wire.pack(MODEL))) == REQUEST
    arrived = read(wire.answer_to_records(answer()))
    assert arrived.evaluated == answer().evaluated
    assert arrived.trained is not None
    assert (arrived.trained.examples, arrived.trained.patients) == (5, 3)


@pytest.mark.parametrize(
    ("update", "reason"),
    [
        ({"w": MODEL["w"]}, Reason.WRONG_NAMES),
        ({**MODEL, "x": MODEL["w"]}, Reason.WRONG_NAMES),
        ({**MODEL, "w": MODEL["w"].T}, Reason.WRONG_SHAPE),
        ({**MODEL, "w": MODEL["w"].astype(np.float64)}, Reason.WRONG_DTYPE),
        ({**MODEL, "w": MODEL["w"] * np.float32(np.nan)}, Reason.NOT_FINITE),
        ({**MODEL, "w": MODEL["w"] + np.float32(np.inf)}, Reason.NOT_FINITE),
        ({**MODEL, "w": np.zeros(2**20, np.float32)}, Reason.TOO_LARGE),
    ],
)
def test_a_wrong_update_has_a_reason(update: messages.Arrays, reason: Reason) -> None:
    with pytest.raises(WireError) as refused:
        read(wire.answer_to_records(answer(update=update)))
    assert refused.value.reason is reason


@pytest.mark.parametrize(
    "blob", [b"", b"\x80\x04K\x01.", b"\xff" * 64, b"\x10" + b"\0" * 7 + b"{}"]
)
def test_bytes_that_are_no_safetensors_are_malformed(blob: bytes) -> None:
    with pytest.raises(WireError) as refused:
        wire.unpack(blob, Shape.of(MODEL))
    assert refused.value.reason is Reason.MALFORMED


def test_a_large_model_goes_as_an_array(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "_LARGEST_INLINE", 50)
    records = wire.request_to_records(REQUEST, wire.pack(MODEL))
    assert set(records) == {"head", "blob"}
    arrived = wire.unpack(wire.blob(records), Shape.of(MODEL))
    assert all(arrived[name].tobytes() == a.tobytes() for name, a in MODEL.items())
    arrived_answer = read(wire.answer_to_records(answer()))
    assert arrived_answer.trained is not None
    records["head"]["blob"] = b"a second one"
    with pytest.raises(WireError) as refused:
        wire.blob(records)
    assert refused.value.reason is Reason.MALFORMED


def test_an_answer_to_another_round_is_not_one() -> None:
    with pytest.raises(WireError) as refused:
        read(wire.answer_to_records(answer()), Request("run", 4, evaluate=True, train=True))
    assert refused.value.reason is Reason.WRONG_ROUND


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("metrics", ["secret"], Reason.WRONG_NAMES),
        ("metrics", ["dice", "dice"], Reason.MALFORMED),
        ("metrics", "dice", Reason.MALFORMED),
        ("values", [float("nan")], Reason.NOT_FINITE),
        ("values", ["0.5"], Reason.MALFORMED),
        ("held_out_examples", 0, Reason.MALFORMED),
        ("examples", -1, Reason.MALFORMED),
        ("examples", 1.5, Reason.MALFORMED),
        ("loss", float("inf"), Reason.NOT_FINITE),
        ("loss", True, Reason.MALFORMED),
        ("blob", "text", Reason.MALFORMED),
        ("note", "Mr Smith", Reason.MALFORMED),
        ("refused", "because of Mr Smith", Reason.MALFORMED),
        ("round", "3", Reason.MALFORMED),
    ],
)
def test_what_does_not_belong_in_an_answer_is_refused(
    field: str, value: object, reason: Reason
) -> None:
    records = wire.answer_to_records(answer())
    records["head"][field] = value
    with pytest.raises(WireError) as refused:
        read(records)
    assert refused.value.reason is reason


@pytest.mark.parametrize(
    "extra",
    [
        {"note": ConfigRecord({"name": "Mr Smith"})},
        {"blob": ConfigRecord({"blob": b"", "name": "Mr Smith"})},
        {"blob": ArrayRecord({"image": Array(np.zeros(3))})},
        {"numbers": MetricRecord({"age": 73})},
        {"arrays": ArrayRecord({"image": Array(np.zeros(3))})},
    ],
)
def test_records_that_do_not_belong_in_an_answer_are_refused(extra: dict) -> None:
    records = wire.answer_to_records(answer())
    records.update(extra)
    with pytest.raises(WireError) as refused:
        read(records)
    assert refused.value.reason is Reason.MALFORMED


def test_a_refusal_needs_nothing_else() -> None:
    refusal = Answer(round=0, refused=Reason.TOO_FEW_PATIENTS)
    assert read(wire.answer_to_records(refusal)).refused is Reason.TOO_FEW_PATIENTS


# --- private runs --------------------------------------------------------------------------------


def test_what_is_lodged_goes_with_the_request_and_comes_back_in_the_answer() -> None:
    request = replace(REQUEST, lodged=LODGED)
    records = wire.request_to_records(request, wire.pack(MODEL))
    assert wire.request_from_records(records) == request
    arrived = read(wire.answer_to_records(private_answer(tallied=TALLIED)), expected=NOISY)
    assert arrived.spent == private_answer().spent
    assert arrived.spent is not None
    assert arrived.spent.lodged == LODGED
    assert arrived.trained is not None
    assert (arrived.trained.patients, arrived.trained.examples) == (40, None)
    assert (arrived.trained.loss, arrived.trained.seconds) == (None, None)
    assert arrived.tallied is not None
    assert arrived.tallied.values.tolist() == TALLIED.values.tolist()
    assert arrived.tallied.noise == 10.0


def test_a_private_answer_survives_the_disk_bit_for_bit() -> None:
    records = wire.answer_to_records(private_answer(tallied=TALLIED))
    again = wire.records_from_bytes(wire.records_to_bytes(records))
    assert wire.blob(again) == wire.blob(records)
    assert dict(again["head"]) == dict(records["head"])
    with pytest.raises(ValueError, match="not the one"):
        wire.records_from_bytes(wire.records_to_bytes(records)[:-1])


@pytest.mark.parametrize("exact", [{"examples": 5}, {"loss": 0.5}, {"seconds": 1.0}])
def test_a_private_answer_has_no_exact_figure(exact: dict[str, float]) -> None:
    answer = private_answer()
    assert answer.trained is not None
    told = replace(answer, trained=replace(answer.trained, **exact))  # type: ignore[arg-type]
    with pytest.raises(WireError) as refused:
        read(wire.answer_to_records(told), replace(REQUEST, evaluate=False), PRIVATE)
    assert refused.value.reason is Reason.MALFORMED


@pytest.mark.parametrize(
    ("answer", "request_", "expected"),
    [
        (private_answer(), REQUEST, EXPECTED),  # private, where nobody asked for it
        (answer(), REQUEST, PRIVATE),  # and the other way round
        (private_answer(), REQUEST, NOISY),  # sums are missing
        (private_answer(tallied=TALLIED), REQUEST, PRIVATE),  # sums that nobody asked for
        (private_answer(tallied=TALLIED), replace(REQUEST, evaluate=False), NOISY),
        (private_answer(evaluated=answer().evaluated), REQUEST, NOISY),  # exact in place of noisy
        (private_answer(evaluated=answer().evaluated), replace(REQUEST, evaluate=False), PRIVATE),
        (private_answer(tallied=TALLIED), replace(REQUEST, train=False), NOISY),
        (replace(private_answer(), spent=None), REQUEST, PRIVATE),
        (replace(private_answer(), trained=None), REQUEST, PRIVATE),
        (replace(private_answer(), refused=Reason.BUDGET_SPENT), REQUEST, PRIVATE),
    ],
)
def test_an_answer_holds_what_was_asked_and_nothing_else(
    answer: Answer, request_: Request, expected: Expected
) -> None:
    with pytest.raises(WireError) as refused:
        read(wire.answer_to_records(answer), request_, expected)
    assert refused.value.reason is Reason.MALFORMED


def test_public_metrics_come_with_private_training_or_not_at_all() -> None:
    evaluated = answer().evaluated
    told = wire.answer_to_records(private_answer(evaluated=evaluated))
    assert read(told, expected=PRIVATE).evaluated == evaluated
    assert read(wire.answer_to_records(private_answer()), expected=PRIVATE).evaluated is None
    last = replace(REQUEST, train=False)
    spent = private_answer().spent
    alone = wire.answer_to_records(Answer(round=3, tallied=TALLIED, spent=spent))
    assert read(alone, last, NOISY).tallied is not None


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("tally", [1.0, 2.0], Reason.WRONG_SHAPE),
        ("tally", [1.0, 2.0, 3.0, 4.0], Reason.WRONG_SHAPE),
        ("tally", 3.0, Reason.WRONG_SHAPE),
        ("tally", [1.0, float("nan"), 2.0], Reason.NOT_FINITE),
        ("tally", ["1", "2", "3"], Reason.MALFORMED),
        ("tally_noise", 0.0, Reason.MALFORMED),
        ("tally_noise", -1.0, Reason.MALFORMED),
        ("tally_noise", float("inf"), Reason.NOT_FINITE),
        ("epsilon", float("inf"), Reason.NOT_FINITE),
        ("run_epsilon", -0.5, Reason.MALFORMED),
        ("budget", "8", Reason.MALFORMED),
        ("delta", True, Reason.MALFORMED),
        ("accountant", "", Reason.MALFORMED),
        ("accountant", "Mr Smith\n" * 2, Reason.MALFORMED),
        ("accountant", "x" * 129, Reason.MALFORMED),
        ("charges", -1, Reason.MALFORMED),
        ("charges", 1 << 40, Reason.MALFORMED),
        ("charges", 7.0, Reason.MALFORMED),
        ("charges", True, Reason.MALFORMED),
        ("head", "0" * 63, Reason.MALFORMED),
        ("head", "G" * 64, Reason.MALFORMED),
        ("head", "0" * 64 + "\n", Reason.MALFORMED),
        ("head", b"0" * 64, Reason.MALFORMED),
        ("patients", 0, Reason.MALFORMED),
        ("patients", 4.5, Reason.MALFORMED),
        ("drawn", 17, Reason.MALFORMED),
    ],
)
def test_what_does_not_belong_in_a_private_answer_is_refused(
    field: str, value: object, reason: Reason
) -> None:
    records = wire.answer_to_records(private_answer(tallied=TALLIED))
    records["head"][field] = value
    with pytest.raises(WireError) as refused:
        read(records, expected=NOISY)
    assert refused.value.reason is reason


SCALARS = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.text(max_size=80),
    st.binary(max_size=80),
)
VALUES = st.one_of(
    SCALARS,
    st.lists(st.integers(-5, 5), max_size=4),
    st.lists(st.floats(), max_size=4),
    st.lists(st.text(max_size=4), max_size=4),
)
FIELDS = sorted(
    dict(
        wire.answer_to_records(private_answer(tallied=TALLIED, evaluated=answer().evaluated))[
            "head"
        ]
    )
)


@settings(max_examples=300, deadline=None)
@given(
    changes=st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=3),
    left_out=st.sets(st.sampled_from(FIELDS), max_size=2),
    train=st.booleans(),
    evaluate=st.booleans(),
    expected=st.sampled_from([EXPECTED, PRIVATE, NOISY]),
)
def test_whatever_the_fields_hold_an_answer_is_whole_or_refused(
    changes: dict[str, Any], left_out: set[str], train: bool, evaluate: bool, expected: Expected
) -> None:
    """Nothing but a WireError comes out, and what is read has no more than was asked for."""
    whole = private_answer(tallied=TALLIED if expected.tally else None)
    records = wire.answer_to_records(answer() if expected is EXPECTED else whole)
    for name in left_out & set(records["head"]):
        del records["head"][name]
    records["head"].update(changes)
    request = Request("run", 3, evaluate=evaluate, train=train)
    try:
        arrived = read(records, request, expected)
    except WireError:
        return
    if arrived.refused is not None:
        assert (arrived.trained, arrived.evaluated, arrived.tallied, arrived.spent) == (None,) * 4
        return
    assert (arrived.trained is not None) == train
    assert (arrived.tallied is not None) == bool(evaluate and expected.tally)
    assert (arrived.spent is not None) == expected.private
    if expected.private:
        assert arrived.trained is None or arrived.trained.loss is None
    # what a row of metrics is made of is JSON
    json.dumps([arrived.evaluated and arrived.evaluated.metrics, arrived.round], allow_nan=False)


@settings(max_examples=150, deadline=None)
@given(
    changes=st.dictionaries(
        st.sampled_from(["run", "round", "evaluate", "train", "charges", "head"]), VALUES
    ),
    left_out=st.sets(st.sampled_from(["run", "round", "train", "charges", "head"]), max_size=2),
)
def test_whatever_the_fields_hold_a_request_is_whole_or_refused(
    changes: dict[str, Any], left_out: set[str]
) -> None:
    records = wire.request_to_records(replace(REQUEST, lodged=LODGED), b"")
    for name in left_out:
        del records["head"][name]
    records["head"].update(changes)
    try:
        arrived = wire.request_from_records(records)
    except WireError:
        return
    present = {"charges", "head"} & set(records["head"])
    assert (arrived.lodged is not None) == (len(present) == 2)
    again = wire.request_to_records(arrived, b"")
    assert wire.request_from_records(again) == arrived


def test_half_of_what_is_lodged_is_no_request() -> None:
    for missing in ("charges", "head"):
        records = wire.request_to_records(replace(REQUEST, lodged=LODGED), b"")
        del records["head"][missing]
        with pytest.raises(WireError):
            wire.request_from_records(records)


# --- steps of a secure sum, differences, scales ---------------------------------------------------

STEP = replace(
    REQUEST, base=2, scales=b"\1\0\xff\xff", phase=Phase.SIGN, attempt=3, letter=b"\0letter\xff"
)
PROTECTED = Expected(Shape.of(MODEL), METRICS, protected=8)
SPENT_ON_IT = Spent(1.0, 0.5, 8.0, 1e-5, "rdp", LODGED)


@pytest.mark.parametrize("phase", list(Phase))
def test_a_step_s_request_comes_back_as_it_was(phase: Phase) -> None:
    for request in (replace(STEP, phase=phase), replace(STEP, phase=phase, base=None, scales=b"")):
        records = wire.request_to_records(request, b"blob")
        assert wire.request_from_records(records) == request
        assert wire.blob(records) == b"blob"


@pytest.mark.parametrize(
    "changes",
    [
        {"phase": "peek"},
        {"phase": 3},
        {"phase": ""},
        {"attempt": -1},
        {"attempt": 1 << 31},
        {"attempt": 1.0},
        {"attempt": True},
        {"letter": "text"},
        {"letter": b"x" * ((4 << 20) + 1)},
        {"base": -1},
        {"base": "1"},
        {"scales": [1, 2]},
        {"scales": b"x" * ((4 << 20) + 1)},
    ],
)
def test_a_step_that_is_none_is_refused(changes: dict[str, Any]) -> None:
    records = wire.request_to_records(STEP, b"")
    records["head"].update(changes)
    with pytest.raises(WireError) as refused:
        wire.request_from_records(records)
    assert refused.value.reason in {Reason.MALFORMED, Reason.TOO_LARGE}


def test_a_part_of_a_step_is_no_request() -> None:
    for missing in ("phase", "attempt", "letter"):
        records = wire.request_to_records(STEP, b"")
        del records["head"][missing]
        with pytest.raises(WireError):
            wire.request_from_records(records)


def protected(**changes: Any) -> RecordDict:
    made = Answer(3, protected=Protected(b"letter", b"12345678"))
    return wire.answer_to_records(replace(made, **changes))


def test_a_protected_answer_comes_back_as_it_was() -> None:
    arrived = wire.answer_from_records(protected(), STEP, PROTECTED)
    assert arrived == Answer(3, protected=Protected(b"letter", b"12345678"))
    spent = wire.answer_from_records(
        protected(spent=SPENT_ON_IT), STEP, replace(PROTECTED, private=True)
    )
    assert spent.spent == SPENT_ON_IT


def test_nothing_readable_comes_beside_what_is_protected() -> None:
    """A hospital's program that forgets itself is refused by the coordinator too."""
    trained = Trained({n: a * 0 for n, a in MODEL.items()}, 3, examples=5, loss=0.5, seconds=1.0)
    evaluated = Evaluated({"dice": 0.5}, examples=2, patients=1)
    for told in ({"trained": trained}, {"evaluated": evaluated}, {"spent": SPENT_ON_IT}):
        with pytest.raises(WireError) as refused:
            wire.answer_from_records(protected(**told), STEP, PROTECTED)
        assert refused.value.reason is Reason.MALFORMED
    readable = wire.answer_to_records(Answer(3, trained=trained))
    with pytest.raises(WireError):
        wire.answer_from_records(readable, STEP, PROTECTED)


@pytest.mark.parametrize(
    ("expected", "reason"),
    [
        (replace(PROTECTED, protected=7), Reason.TOO_LARGE),
        (replace(PROTECTED, protected=0), Reason.TOO_LARGE),
        (replace(PROTECTED, private=True), Reason.MALFORMED),  # says nothing of its ledger
        (replace(PROTECTED, protected=None), Reason.MALFORMED),  # a run without a secure sum
    ],
)
def test_a_protected_answer_where_another_is_expected(expected: Expected, reason: Reason) -> None:
    with pytest.raises(WireError) as refused:
        wire.answer_from_records(protected(), STEP, expected)
    assert refused.value.reason is reason


@settings(max_examples=150, deadline=None)
@given(
    changes=st.dictionaries(
        st.sampled_from(["phase", "attempt", "letter", "base", "scales", "round", "train"]),
        st.one_of(VALUES, st.binary(max_size=30), st.sampled_from(list(Phase))),
    ),
    left_out=st.sets(st.sampled_from(["phase", "attempt", "letter", "base", "scales"]), max_size=2),
    more=st.booleans(),
)
def test_whatever_the_fields_hold_a_step_is_whole_or_refused(
    changes: dict[str, Any], left_out: set[str], more: bool
) -> None:
    records = wire.request_to_records(STEP, b"")
    for name in left_out:
        del records["head"][name]
    records["head"].update({key: _plain(value) for key, value in changes.items()})
    if more:
        records["head"]["more"] = 1
    try:
        arrived = wire.request_from_records(records)
    except WireError:
        return
    assert not more
    assert wire.request_from_records(wire.request_to_records(arrived, b"")) == arrived
    assert 0 <= arrived.attempt < 1 << 31
    assert arrived.base is None or 0 <= arrived.base < 1 << 31


@settings(max_examples=150, deadline=None)
@given(
    changes=st.dictionaries(
        st.sampled_from(["letter", "round", "refused", "blob", "loss", "patients", "epsilon"]),
        st.one_of(VALUES, st.binary(max_size=30)),
    ),
    left_out=st.sets(st.sampled_from(["letter", "round", "blob"]), max_size=2),
    private=st.booleans(),
)
def test_whatever_the_fields_hold_a_protected_answer_is_whole_or_refused(
    changes: dict[str, Any], left_out: set[str], private: bool
) -> None:
    records = protected(spent=SPENT_ON_IT) if private else protected()
    for name in left_out:
        del records["head"][name]
    records["head"].update({key: _plain(value) for key, value in changes.items()})
    expected = replace(PROTECTED, private=private)
    try:
        arrived = wire.answer_from_records(records, STEP, expected)
    except WireError:
        return
    if arrived.refused is not None:
        assert arrived.protected is None
        return
    assert arrived.protected is not None
    assert len(arrived.protected.blob) <= 8
    assert (arrived.trained, arrived.evaluated, arrived.tallied) == (None, None, None)
    assert (arrived.spent is not None) == private


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Phase) else value


# --- counts by group -------------------------------------------------------------------------------

LAYOUT = drawn.layout(attributes=("sex",), score_bins=8)
COUNTING = replace(EXPECTED, counts=LAYOUT)
COUNTING_NOISILY = replace(NOISY, counts=LAYOUT)


def counts(seed: int = 0, patients: int = 30) -> np.ndarray[Any, Any]:
    predictions = drawn.hospital(np.random.default_rng(seed), patients)
    return count(of_predictions(predictions, drawn.CHEST, LAYOUT), LAYOUT)


def with_counts(vector: Any) -> Answer:
    return replace(answer(), counts=vector)


def test_counts_survive_the_wire_and_the_disk() -> None:
    records = wire.answer_to_records(with_counts(counts()))
    for arrived in (records, wire.records_from_bytes(wire.records_to_bytes(records))):
        found = read(arrived, expected=COUNTING).counts
        assert found is not None
        assert found.dtype == np.int64
        np.testing.assert_array_equal(found, counts())
    nothing = replace(answer(), evaluated=None)
    assert read(wire.answer_to_records(nothing), expected=COUNTING).counts is None


def test_counts_come_with_an_evaluation_or_not_at_all() -> None:
    sent = wire.answer_to_records(with_counts(counts()))
    for records, expected in (
        (sent, EXPECTED),
        (wire.answer_to_records(answer()), COUNTING),
        (wire.answer_to_records(replace(with_counts(counts()), evaluated=None)), COUNTING),
    ):
        with pytest.raises(WireError) as refused:
            read(records, expected=expected)
        assert refused.value.reason is Reason.MALFORMED
    with pytest.raises(WireError):
        read(sent, replace(REQUEST, evaluate=False), COUNTING)


def _moved(vector: Any) -> Any:
    """A case in another bin of one group alone: all totals stay as they were."""
    array = vector.copy().reshape(LAYOUT.shape)
    place = tuple(np.argwhere(array[1] > 0)[0])
    array[(1, *place)] -= 1
    array[(1, *place[:-1], (place[-1] + 1) % array.shape[-1])] += 1
    return array.reshape(-1)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda v: v[:-1], Reason.WRONG_SHAPE),
        (lambda v: np.append(v, 0), Reason.WRONG_SHAPE),
        (lambda v: np.zeros(1 << 22, np.int64), Reason.WRONG_SHAPE),
        (lambda v: -v, Reason.MALFORMED),
        (lambda v: v + np.eye(1, len(v), dtype=np.int64)[0], Reason.MALFORMED),
        (_moved, Reason.MALFORMED),
        (lambda v: v << 50, Reason.MALFORMED),
    ],
)
def test_counts_that_no_cases_make_are_refused(spoil: Any, reason: Reason) -> None:
    with pytest.raises(WireError) as refused:
        read(wire.answer_to_records(with_counts(spoil(counts()))), expected=COUNTING)
    assert refused.value.reason is reason


@given(st.binary(max_size=300), st.booleans())
def test_no_bytes_in_place_of_counts_get_past(content: bytes, private: bool) -> None:
    whole = private_answer(tallied=TALLIED, counts=counts()) if private else with_counts(counts())
    records = wire.answer_to_records(whole)
    records["head"]["counts"] = content
    with pytest.raises(WireError):
        read(records, expected=COUNTING_NOISILY if private else COUNTING)


@given(st.integers(0, 400), st.integers(1, 255))
def test_a_changed_byte_of_counts_is_refused_or_still_counts(place: int, by: int) -> None:
    records = wire.answer_to_records(with_counts(counts()))
    content = bytearray(records["head"]["counts"])  # type: ignore[arg-type]
    content[place % len(content)] ^= by
    records["head"]["counts"] = bytes(content)
    try:
        found = read(records, expected=COUNTING).counts
    except WireError:
        return
    assert found is not None
    assert LAYOUT.adds_up(found)


def test_noisy_counts_have_one_size_and_may_be_negative() -> None:
    sizes = set()
    for vector in (counts(), counts() * 0, counts(1) - 40, counts(2) * 1000):
        records = wire.answer_to_records(private_answer(tallied=TALLIED, counts=vector))
        found = read(records, expected=COUNTING_NOISILY).counts
        np.testing.assert_array_equal(found, vector)
        sizes.add(len(records["head"]["counts"]))  # type: ignore[arg-type]
    assert sizes == {8 * LAYOUT.size}
    for missing in (private_answer(tallied=TALLIED), private_answer(counts=counts())):
        with pytest.raises(WireError):
            read(wire.answer_to_records(missing), expected=COUNTING_NOISILY)
    with pytest.raises(WireError):
        huge = private_answer(tallied=TALLIED, counts=counts() + (1 << 60))
        read(wire.answer_to_records(huge), expected=COUNTING_NOISILY)
