"""What travels between coordinator and hospital, one dataclass each, to and from Flower's records.

A model or an update is one safetensors blob inside one Flower array: one object on the wire whatever
the number of tensors, names and shapes inside it, nothing to unpickle. Whoever reads one says first
what it must hold; a blob that holds anything else is refused before it is used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import safetensors.numpy
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]

_BLOB = "consilium.safetensors"
_HEADER_ALLOWANCE = 1 << 20  # bytes of names and shapes that a safetensors header may take


class Reason(StrEnum):
    """Why a hospital's answer is not part of a round. Fixed words: none can hold data."""

    # said by the hospital
    REFUSED_TASK = "refused_task"
    REFUSED_MODEL = "refused_model"
    REFUSED_ROUNDS = "refused_rounds"
    TOO_FEW_PATIENTS = "too_few_patients"
    NO_DATA = "no_data"
    BAD_EXPERIMENT = "bad_experiment"
    BAD_SITE = "bad_site"
    BAD_MODEL = "bad_model"
    DIVERGED = "diverged"
    OUT_OF_MEMORY = "out_of_memory"
    INTERNAL_ERROR = "internal_error"
    # found by the coordinator
    ABSENT = "absent"
    UNAVAILABLE = "unavailable"
    CRASHED = "crashed"
    LATE = "late"
    MALFORMED = "malformed"
    WRONG_ROUND = "wrong_round"
    WRONG_NAMES = "wrong_names"
    WRONG_SHAPE = "wrong_shape"
    WRONG_DTYPE = "wrong_dtype"
    TOO_LARGE = "too_large"
    NOT_FINITE = "not_finite"
    NORM_TOO_LARGE = "norm_too_large"


class WireError(Exception):
    """Something that arrived is not what it has to be."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.value)
        self.reason = reason


@dataclass(frozen=True)
class Request:
    """What the coordinator asks of a hospital in one exchange.

    The hospital evaluates the model that it receives (if `evaluate`), then trains it (if `train`);
    one exchange serves both, because each costs seconds on Flower's engine.
    """

    run: str
    round: int
    evaluate: bool
    train: bool


@dataclass(frozen=True)
class Trained:
    """A hospital's training of one round: `update` is local model minus global model."""

    update: Arrays
    examples: int
    patients: int
    loss: float
    seconds: float


@dataclass(frozen=True)
class Evaluated:
    """The received model on a hospital's held-out patients."""

    metrics: dict[str, float]
    examples: int
    patients: int


@dataclass(frozen=True)
class Answer:
    """What a hospital sends back: its round's work, or a reason why there is none."""

    round: int
    trained: Trained | None = None
    evaluated: Evaluated | None = None
    refused: Reason | None = None


@dataclass(frozen=True)
class Shape:
    """Names, dtypes and shapes that a model or an update must have."""

    entries: Mapping[str, tuple[str, tuple[int, ...]]]

    @classmethod
    def of(cls, arrays: Arrays) -> Shape:
        return cls({name: (str(array.dtype), array.shape) for name, array in arrays.items()})

    def largest_blob(self) -> int:
        """Bytes that a blob of this shape can take at most."""
        sizes = (
            np.dtype(dtype).itemsize * math.prod(shape) for dtype, shape in self.entries.values()
        )
        return sum(sizes) + _HEADER_ALLOWANCE

    def check(self, arrays: Arrays) -> None:
        """Raises:
        WireError: other names, dtypes or shapes than these, or a value that is not finite.
        """
        if arrays.keys() != self.entries.keys():
            raise WireError(Reason.WRONG_NAMES)
        for name, (dtype, shape) in self.entries.items():
            array = arrays[name]
            if str(array.dtype) != dtype:
                raise WireError(Reason.WRONG_DTYPE)
            if array.shape != shape:
                raise WireError(Reason.WRONG_SHAPE)
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise WireError(Reason.NOT_FINITE)


def pack(arrays: Arrays) -> ArrayRecord:
    """Arrays as one record that holds one blob. Raises ValueError for dtypes safetensors lacks."""
    # not np.ascontiguousarray, which gives counters without axes an axis
    ordered = {name: np.require(arrays[name], requirements="C") for name in sorted(arrays)}
    blob = safetensors.numpy.save(ordered)
    return ArrayRecord({"blob": Array(dtype="uint8", shape=(len(blob),), stype=_BLOB, data=blob)})


def unpack(record: ArrayRecord, expected: Shape) -> Arrays:
    """The arrays of a record made by `pack`.

    Raises:
        WireError: the record is not such a blob, is larger than `expected` allows, or holds
            something else than `expected`.
    """
    if set(record) != {"blob"} or record["blob"].stype != _BLOB:
        raise WireError(Reason.MALFORMED)
    blob = record["blob"].data
    if len(blob) > expected.largest_blob():
        raise WireError(Reason.TOO_LARGE)
    try:
        arrays: Arrays = safetensors.numpy.load(blob)
    except Exception as error:
        raise WireError(Reason.MALFORMED) from error
    expected.check(arrays)
    return arrays


def size(record: RecordDict) -> int:
    """Bytes of the blobs in a record; what is beside them is a few hundred bytes."""
    return sum(
        len(array.data) for arrays in record.array_records.values() for array in arrays.values()
    )


# --- the coordinator's request -------------------------------------------------------------------


def request_to_records(request: Request, model: ArrayRecord) -> RecordDict:
    """A request; `model` is packed once and shared by all hospitals' messages."""
    return RecordDict(
        {
            "model": model,
            "request": ConfigRecord(
                {
                    "run": request.run,
                    "round": request.round,
                    "evaluate": request.evaluate,
                    "train": request.train,
                }
            ),
        }
    )


def request_from_records(records: RecordDict) -> Request:
    """Raises WireError: not a request."""
    try:
        fields = records.config_records["request"]
        return Request(
            run=_typed(fields["run"], str),
            round=_typed(fields["round"], int),
            evaluate=_typed(fields["evaluate"], bool),
            train=_typed(fields["train"], bool),
        )
    except KeyError as error:
        raise WireError(Reason.MALFORMED) from error


# --- the hospital's answer -----------------------------------------------------------------------


def answer_to_records(answer: Answer) -> RecordDict:
    records = RecordDict(
        {
            "answer": ConfigRecord(
                {"round": answer.round, "refused": answer.refused.value if answer.refused else ""}
            )
        }
    )
    if answer.trained is not None:
        trained = answer.trained
        records["update"] = pack(trained.update)
        records["trained"] = MetricRecord(
            {
                "examples": trained.examples,
                "patients": trained.patients,
                "loss": trained.loss,
                "seconds": trained.seconds,
            }
        )
    if answer.evaluated is not None:
        evaluated = answer.evaluated
        records["evaluated"] = MetricRecord(
            {"examples": evaluated.examples, "patients": evaluated.patients}
        )
        records["metrics"] = MetricRecord(dict(evaluated.metrics))
    return records


def answer_from_records(
    records: RecordDict, request: Request, expected: Shape, metrics: frozenset[str]
) -> Answer:
    """A hospital's answer to `request`, believed only as far as it can be checked.

    Args:
        expected: what the update must hold.
        metrics: the names that the task knows.

    Raises:
        WireError: not an answer to this request, or values that cannot be used.
    """
    try:
        head = records.config_records["answer"]
        round_, refused = _typed(head["round"], int), _typed(head["refused"], str)
    except KeyError as error:
        raise WireError(Reason.MALFORMED) from error
    if refused:
        if refused not in set(Reason):
            raise WireError(Reason.MALFORMED)
        return Answer(round=round_, refused=Reason(refused))
    if round_ != request.round:
        raise WireError(Reason.WRONG_ROUND)
    present = set(records)
    wanted = {"answer"}
    wanted |= {"update", "trained"} if request.train else set()
    wanted |= {"evaluated", "metrics"} if request.evaluate else set()
    # A hospital without held-out patients has nothing to evaluate on.
    if present != wanted and present != wanted - {"evaluated", "metrics"}:
        raise WireError(Reason.MALFORMED)
    return Answer(
        round=round_,
        trained=_trained(records, expected) if request.train else None,
        evaluated=_evaluated(records, metrics) if "evaluated" in present else None,
    )


def _trained(records: RecordDict, expected: Shape) -> Trained:
    try:
        update = records.array_records["update"]
        numbers = records.metric_records["trained"]
        return Trained(
            update=unpack(update, expected),
            examples=_count(numbers["examples"]),
            patients=_count(numbers["patients"]),
            loss=_finite(numbers["loss"]),
            seconds=_finite(numbers["seconds"]),
        )
    except KeyError as error:
        raise WireError(Reason.MALFORMED) from error


def _evaluated(records: RecordDict, known: frozenset[str]) -> Evaluated:
    try:
        numbers, metrics = records.metric_records["evaluated"], records.metric_records["metrics"]
        if not set(metrics) <= known:
            raise WireError(Reason.WRONG_NAMES)
        return Evaluated(
            metrics={name: _finite(value) for name, value in sorted(metrics.items())},
            examples=_count(numbers["examples"]),
            patients=_count(numbers["patients"]),
        )
    except KeyError as error:
        raise WireError(Reason.MALFORMED) from error


def _typed(value: object, kind: type) -> Any:
    if type(value) is not kind:
        raise WireError(Reason.MALFORMED)
    return value


def _count(value: object) -> int:
    number: int = _typed(value, int)
    if not 0 < number < 1 << 40:
        raise WireError(Reason.MALFORMED)
    return number


def _finite(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise WireError(Reason.MALFORMED)
    if not math.isfinite(value):
        raise WireError(Reason.NOT_FINITE)
    return float(value)
