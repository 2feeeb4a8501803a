"""What travels comes back as it was, and what is not what it has to be gets a reason."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from federation import wire
from federation.wire import Answer, Evaluated, Reason, Request, Shape, Trained, WireError

MODEL = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.array(7, dtype=np.int64)}
REQUEST = Request("run", 3, evaluate=True, train=True)
METRICS = frozenset({"dice", "loss"})


def answer(**changes: object) -> Answer:
    update = changes.pop("update", {name: a * 0 for name, a in MODEL.items()})
    trained = Trained(update, examples=5, patients=3, loss=0.5, seconds=1.0)  # type: ignore[arg-type]
    evaluated = Evaluated({"dice": 0.5}, examples=2, patients=1)
    return Answer(round=3, trained=trained, evaluated=evaluated)


def read(records: wire.RecordDict, request: Request = REQUEST) -> Answer:
    return wire.answer_from_records(records, request, Shape.of(MODEL), METRICS)


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
def test_arrays_survive_the_wire_bit_for_bit(arrays: wire.Arrays) -> None:
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
def test_a_wrong_update_has_a_reason(update: wire.Arrays, reason: Reason) -> None:
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
