"""What travels between coordinator and hospital, one dataclass each, to and from Flower's records.

A message is one Flower record with a few fields and a safetensors blob, whatever the number of tensors,
since each record is an object of its own to Flower and costs a request at every hop; a large blob
goes as an array, which Flower sends in chunks. There is nothing to unpickle. Whoever reads one says
first what it must hold; a message that holds anything else is refused before it is used.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import asdict
from typing import Any

import numpy as np
import safetensors.numpy
import zstandard
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from numpy.typing import NDArray

from federation.messages import (
    Answer,
    Arrays,
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

_LARGEST_INLINE = 1 << 20  # bytes of a blob among the fields: one request less at every hop


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


def records_to_bytes(records: RecordDict) -> bytes:
    """A message of ours for the disk: its fields as one line of JSON, then its blob."""
    fields = {key: value for key, value in _head(records).items() if key != "blob"}
    content = blob(records)
    head = {
        "fields": {key: value for key, value in fields.items() if not isinstance(value, bytes)},
        "bytes": {key: value.hex() for key, value in fields.items() if isinstance(value, bytes)},
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    return json.dumps(head).encode() + b"\n" + content


def records_from_bytes(stored: bytes) -> RecordDict:
    """Raises ValueError: not what `records_to_bytes` wrote, or not all of it."""
    line, _, content = stored.partition(b"\n")
    head = json.loads(line)
    if hashlib.sha256(content).hexdigest() != head["sha256"]:
        raise ValueError("the blob is not the one that was stored")
    fields = {key: bytes.fromhex(value) for key, value in head.get("bytes", {}).items()}
    return _message(head["fields"] | fields, content)


# --- the coordinator's request -------------------------------------------------------------------


def request_to_records(request: Request, model: bytes) -> RecordDict:
    """A request; `model` is packed once and shared by all hospitals' messages."""
    fields: dict[str, Any] = {key: getattr(request, key) for key in _REQUEST}
    if request.lodged is not None:
        fields |= asdict(request.lodged)
    if request.base is not None:
        fields["base"] = request.base
    if request.counted is not None:
        fields["counted"] = request.counted
    if request.scales:
        fields["scales"] = request.scales
    if request.letter or request.phase is not Phase.WORK:
        fields |= {"phase": request.phase.value, "attempt": request.attempt}
        fields["letter"] = request.letter
    return _message(fields, model)


def request_from_records(records: RecordDict) -> Request:
    """Raises WireError: not a request."""
    fields = {key: value for key, value in _head(records).items() if key != "blob"}
    rest = set(fields) - set(_REQUEST)
    for optional in (set(_LODGED), {"base"}, {"counted"}, {"scales"}, set(_PHASE)):
        if optional <= rest:
            rest -= optional
    if rest or not set(_REQUEST) <= set(fields):
        raise WireError(Reason.MALFORMED)
    phase = _typed(fields.get("phase", Phase.WORK.value), str)
    if phase not in set(Phase):
        raise WireError(Reason.MALFORMED)
    return Request(
        run=_text(fields["run"]),
        round=_typed(fields["round"], int),
        evaluate=_typed(fields["evaluate"], bool),
        train=_typed(fields["train"], bool),
        lodged=_lodged(fields) if "head" in fields else None,
        base=_whole(fields["base"]) if "base" in fields else None,
        counted=_whole(fields["counted"]) if "counted" in fields else None,
        scales=_bytes(fields.get("scales", b"")),
        phase=Phase(phase),
        attempt=_whole(fields.get("attempt", 0)),
        letter=_bytes(fields.get("letter", b"")),
    )


# --- the hospital's answer -----------------------------------------------------------------------

_REQUEST = ("run", "round", "evaluate", "train")
_LODGED = ("charges", "head")
_PHASE = ("phase", "attempt", "letter")
_MOST_NOISY = 1 << 50  # of a count with noise: a thousand of them can be added
_LARGEST_LETTER = 4 << 20  # bytes: a thousand hospitals' keys, shares or signatures
_TRAINED = {"patients", "blob"}
_EXACT = {"examples", "loss", "seconds"}  # beside what private training says
_STEPS, _COMPARED = {"steps"}, {"loss_before", "loss_after"}  # beside these, for some strategies
_EVALUATED = {"held_out_examples", "held_out_patients", "metrics", "values"}
_TALLIED = {"tally", "tally_noise"}
_COUNTED = {"counts"}
_SPENT = {"epsilon", "run_epsilon", "budget", "delta", "accountant", *_LODGED}


def answer_to_records(answer: Answer) -> RecordDict:
    """An answer; under privacy each has the same fields and the same number of bytes."""
    fields: dict[str, Any] = {
        "round": answer.round,
        "refused": answer.refused.value if answer.refused else "",
    }
    content = b""
    if answer.trained is not None:
        trained = answer.trained
        content = pack(trained.update) if trained.encoded is None else trained.encoded
        exact = {key: getattr(trained, key) for key in sorted(_EXACT | _STEPS | _COMPARED)}
        fields |= {"patients": trained.patients}
        fields |= {key: value for key, value in exact.items() if value is not None}
    if answer.evaluated is not None:
        evaluated = answer.evaluated
        fields |= {
            "held_out_examples": evaluated.examples,
            "held_out_patients": evaluated.patients,
            "metrics": list(evaluated.metrics),
            "values": list(evaluated.metrics.values()),
        }
    if answer.tallied is not None:
        fields |= {"tally": answer.tallied.values.tolist(), "tally_noise": answer.tallied.noise}
    if answer.counts is not None:
        fields["counts"] = _counts_to_bytes(answer.counts, exact=answer.spent is None)
    if answer.spent is not None:
        fields |= {key: getattr(answer.spent, key) for key in sorted(_SPENT - set(_LODGED))}
        fields |= asdict(answer.spent.lodged)
    if answer.protected is not None:
        fields["letter"], content = answer.protected.letter, answer.protected.blob
    return _message(fields, content)


def answer_from_records(records: RecordDict, request: Request, expected: Expected) -> Answer:
    """A hospital's answer to `request`, believed only as far as it can be checked.

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
    if expected.protected is not None:
        return _protected_answer(round_, fields, content, expected)
    if present not in _may_hold(request, expected):
        raise WireError(Reason.MALFORMED)
    return Answer(
        round=round_,
        trained=_trained(fields, content, expected) if request.train else None,
        evaluated=_evaluated(fields, expected.metrics) if present >= _EVALUATED else None,
        tallied=_tallied(fields, expected.tally) if present >= _TALLIED else None,
        spent=_spent(fields) if expected.private else None,
        counts=_counts(fields["counts"], expected) if present >= _COUNTED else None,
    )


def _protected_answer(
    round_: int, fields: dict[str, Any], content: bytes, expected: Expected
) -> Answer:
    spent = _SPENT if expected.private and expected.protected else set()
    if set(fields) - {"round", "refused"} != {"letter"} | spent:
        raise WireError(Reason.MALFORMED)
    if len(content) > (expected.protected or 0):
        raise WireError(Reason.TOO_LARGE)
    protected = Protected(_bytes(fields["letter"]), content)
    return Answer(round=round_, protected=protected, spent=_spent(fields) if spent else None)


def _may_hold(request: Request, expected: Expected) -> list[set[str]]:
    """The sets of fields that an answer to this request may have."""
    always = _SPENT if expected.private else set()
    if request.train:
        always = always | _TRAINED | (set() if expected.private else _EXACT)
    forms = [always]
    if request.train and not expected.private:
        forms = [always, always | _STEPS, always | _STEPS | _COMPARED]
    if not request.evaluate:
        return forms
    counted = set() if expected.counts is None else _COUNTED
    if expected.private:  # with noise, so they come whoever is counted
        forms = [form | counted for form in forms]
    if expected.tally:
        return [form | _TALLIED for form in forms]
    # A hospital without held-out patients (or public images) has nothing to evaluate on.
    return forms + [form | _EVALUATED | counted for form in forms]


def _trained(fields: dict[str, Any], content: bytes, expected: Expected) -> Trained:
    encoded = expected.encoded is not None
    if encoded and len(content) > (expected.encoded or 0):
        raise WireError(Reason.TOO_LARGE)
    return Trained(
        update={} if encoded else unpack(content, expected.update),
        encoded=content if encoded else None,
        patients=_count(fields["patients"]),
        examples=_count(fields["examples"]) if "examples" in fields else None,
        loss=_finite(fields["loss"]) if "loss" in fields else None,
        seconds=_finite(fields["seconds"]) if "seconds" in fields else None,
        steps=_count(fields["steps"]) if "steps" in fields else None,
        loss_before=_finite(fields["loss_before"]) if "loss_before" in fields else None,
        loss_after=_finite(fields["loss_after"]) if "loss_after" in fields else None,
    )


def _evaluated(fields: dict[str, Any], known: frozenset[str]) -> Evaluated:
    return Evaluated(
        metrics=_metrics(fields["metrics"], fields["values"], known),
        examples=_count(fields["held_out_examples"]),
        patients=_count(fields["held_out_patients"]),
    )


def _counts_to_bytes(counts: NDArray[np.int64], *, exact: bool) -> bytes:
    """int64 little-endian; as a zstd frame, except with noise, where all have the same size."""
    content = counts.astype("<i8").tobytes()
    return zstandard.ZstdCompressor().compress(content) if exact else content


def _counts(content: object, expected: Expected) -> NDArray[np.int64]:
    layout = expected.counts
    if layout is None:
        raise WireError(Reason.MALFORMED)
    content, size = _bytes(content), 8 * layout.size
    if not expected.private:
        try:
            if zstandard.frame_content_size(content) != size:
                raise WireError(Reason.WRONG_SHAPE)
            decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 23)
            content = decompressor.decompress(content, max_output_size=size, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise WireError(Reason.MALFORMED) from error
    if len(content) != size:
        raise WireError(Reason.WRONG_SHAPE)
    counts = np.frombuffer(content, "<i8").astype(np.int64)
    if expected.private:
        possible = bool(((counts < _MOST_NOISY) & (counts > -_MOST_NOISY)).all())
    else:
        possible = layout.adds_up(counts)
    if not possible:
        raise WireError(Reason.MALFORMED)
    return counts


def _tallied(fields: dict[str, Any], size: int) -> Tallied:
    values = fields["tally"]
    if not isinstance(values, list) or len(values) != size:
        raise WireError(Reason.WRONG_SHAPE)
    noise = _finite(fields["tally_noise"])
    if noise <= 0:
        raise WireError(Reason.MALFORMED)
    return Tallied(np.array([_finite(value) for value in values], np.float64), noise)


def _spent(fields: dict[str, Any]) -> Spent:
    numbers = {key: _finite(fields[key]) for key in ("epsilon", "run_epsilon", "budget", "delta")}
    if min(numbers.values()) < 0:
        raise WireError(Reason.MALFORMED)
    return Spent(**numbers, accountant=_text(fields["accountant"]), lodged=_lodged(fields))


def _lodged(fields: dict[str, Any]) -> Lodged:
    charges, head = _typed(fields["charges"], int), _typed(fields["head"], str)
    if not 0 <= charges < 1 << 40 or re.fullmatch(r"[0-9a-f]{64}", head) is None:
        raise WireError(Reason.MALFORMED)
    return Lodged(charges, head)


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


def _text(value: object) -> str:
    """Short and printable: it is shown to people."""
    text: str = _typed(value, str)
    if not 0 < len(text) <= 128 or not text.isprintable():
        raise WireError(Reason.MALFORMED)
    return text


def _bytes(value: object) -> bytes:
    content: bytes = _typed(value, bytes)
    if len(content) > _LARGEST_LETTER:
        raise WireError(Reason.TOO_LARGE)
    return content


def _whole(value: object) -> int:
    number: int = _typed(value, int)
    if not 0 <= number < 1 << 31:
        raise WireError(Reason.MALFORMED)
    return number


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
