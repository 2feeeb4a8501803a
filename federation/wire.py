"""What travels between coordinator and hospital, one dataclass each, to and from Flower's records.

A message is one Flower record with a few fields and a safetensors blob, whatever the number of tensors,
since each record is an object of its own to Flower and costs a request at every hop; a large blob
goes as an array, which Flower sends in chunks. There is nothing to unpickle. Whoever reads one says
first what it must hold; a message that holds anything else is refused before it is used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import safetensors.numpy
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]

_LARGEST_INLINE = 1 << 20  # bytes of a blob among the fields: one request less at every hop
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


def pack(arrays: Arrays) -> bytes:
    """Arrays as one safetensors blob. Raises ValueError for dtypes it lacks."""
    # not np.ascontiguousarray, which gives counters without axes an axis
    ordered = {name: np.require(arrays[name], requirements="C") for name in sorted(arrays)}
    blob: bytes = safetensors.numpy.save(ordered)
    return blob


def unpack(blob: bytes, expected: Shape) -> Arrays:
    """The arrays of a blob made by `pack`.

    Raises:
        WireError: no such blob, one larger than `expected` allows, or one that holds something else.
    """
    if len(blob) > expected.largest_blob():
        raise WireError(Reason.TOO_LARGE)
    try:
        arrays: Arrays = safetensors.numpy.load(blob)
    except Exception as error:
        raise WireError(Reason.MALFORMED) from error
    expected.check(arrays)
    return arrays


def blob(records: RecordDict) -> bytes:
    """The blob in a message, empty if there is none.

    Raises:
        WireError: records that no message of ours has.
    """
    if set(records) == {"head"}:
        content = records.config_records.get("head", {}).get("blob", b"")
    elif set(records) == {"head", "blob"} and "blob" in records.array_records:
        arrays = records.array_records["blob"]
        if set(arrays) != {"blob"} or "blob" in records.config_records.get("head", {}):
            raise WireError(Reason.MALFORMED)
        content = arrays["blob"].data
    else:
        raise WireError(Reason.MALFORMED)
    return bytes(_typed(content, bytes))


def _message(fields: dict[str, Any], blob: bytes) -> RecordDict:
    """Fields and a blob: a small one among the fields, a large one as an array, which Flower cuts up."""
    if len(blob) > _LARGEST_INLINE:
        array = Array(dtype="uint8", shape=(len(blob),), stype="consilium.safetensors", data=blob)
        return RecordDict({"head": ConfigRecord(fields), "blob": ArrayRecord({"blob": array})})
    return RecordDict({"head": ConfigRecord(fields | ({"blob": blob} if blob else {}))})


# --- the coordinator's request -------------------------------------------------------------------


def request_to_records(request: Request, model: bytes) -> RecordDict:
    """A request; `model` is packed once and shared by all hospitals' messages."""
    return _message(asdict(request), model)


def request_from_records(records: RecordDict) -> Request:
    """Raises WireError: not a request."""
    try:
        fields = _head(records)
        return Request(
            run=_typed(fields["run"], str),
            round=_typed(fields["round"], int),
            evaluate=_typed(fields["evaluate"], bool),
            train=_typed(fields["train"], bool),
        )
    except KeyError as error:
        raise WireError(Reason.MALFORMED) from error


# --- the hospital's answer -----------------------------------------------------------------------

_TRAINED = {"examples", "patients", "loss", "seconds", "blob"}
_EVALUATED = {"held_out_examples", "held_out_patients", "metrics", "values"}


def answer_to_records(answer: Answer) -> RecordDict:
    fields: dict[str, Any] = {
        "round": answer.round,
        "refused": answer.refused.value if answer.refused else "",
    }
    content = b""
    if answer.trained is not None:
        trained = answer.trained
        content = pack(trained.update)
        fields |= {
            "examples": trained.examples,
            "patients": trained.patients,
            "loss": trained.loss,
            "seconds": trained.seconds,
        }
    if answer.evaluated is not None:
        evaluated = answer.evaluated
        fields |= {
            "held_out_examples": evaluated.examples,
            "held_out_patients": evaluated.patients,
            "metrics": list(evaluated.metrics),
            "values": list(evaluated.metrics.values()),
        }
    return _message(fields, content)


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
    content = blob(records)
    fields: dict[str, Any] = {k: v for k, v in _head(records).items() if k != "blob"}
    present = set(fields) - {"round", "refused"} | ({"blob"} if content else set())
    if not {"round", "refused"} <= set(fields):
        raise WireError(Reason.MALFORMED)
    round_, refused = _typed(fields["round"], int), _typed(fields["refused"], str)
    if refused:
        if present or refused not in set(Reason):
            raise WireError(Reason.MALFORMED)
        return Answer(round=round_, refused=Reason(refused))
    if round_ != request.round:
        raise WireError(Reason.WRONG_ROUND)
    wanted = _TRAINED if request.train else set()
    # A hospital without held-out patients has nothing to evaluate on.
    if present not in ([wanted, wanted | _EVALUATED] if request.evaluate else [wanted]):
        raise WireError(Reason.MALFORMED)
    trained = evaluated = None
    if request.train:
        trained = Trained(
            update=unpack(content, expected),
            examples=_count(fields["examples"]),
            patients=_count(fields["patients"]),
            loss=_finite(fields["loss"]),
            seconds=_finite(fields["seconds"]),
        )
    if present >= _EVALUATED:
        evaluated = Evaluated(
            metrics=_metrics(fields["metrics"], fields["values"], metrics),
            examples=_count(fields["held_out_examples"]),
            patients=_count(fields["held_out_patients"]),
        )
    return Answer(round=round_, trained=trained, evaluated=evaluated)


def _head(records: RecordDict) -> ConfigRecord:
    if "head" not in records.config_records:
        raise WireError(Reason.MALFORMED)
    return records.config_records["head"]


def _metrics(names: object, values: object, known: frozenset[str]) -> dict[str, float]:
    if not isinstance(names, list) or not isinstance(values, list) or len(names) != len(values):
        raise WireError(Reason.MALFORMED)
    if not set(names) <= known or len(set(names)) != len(names):
        raise WireError(Reason.WRONG_NAMES)
    return {name: _finite(value) for name, value in sorted(zip(names, values, strict=True))}


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
