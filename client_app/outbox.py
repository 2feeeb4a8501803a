"""The one door: everything that leaves the hospital is built, checked and recorded here.

What may leave is a closed list: an update with exactly the model's names, dtypes and shapes, counts,
a loss, times, metrics whose names the task declares, or a reason from a fixed list. No text from the
hospital's side has a place in it.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from flwr.app import RecordDict

from federation import wire
from federation.wire import Answer, Evaluated, Reason, Request, Shape, Trained


@dataclass(frozen=True)
class Outbox:
    """Builds answers and writes down what leaves, in `sent.jsonl` of the hospital's state folder."""

    journal: Path

    def answer(
        self,
        request: Request,
        *,
        trained: Trained | None,
        evaluated: Evaluated | None,
        shape: Shape,
        metrics: frozenset[str],
    ) -> RecordDict:
        """The answer to a request.

        Args:
            shape: what the update has to be: the global model's names, dtypes and shapes.
            metrics: the names that the task declares.

        Raises:
            WireError: the update is not of that shape or not finite.
            ValueError: a metric that is not declared, or a number that is not finite.
        """
        if trained is not None:
            shape.check(trained.update)
            _check_numbers({"loss": trained.loss, "seconds": trained.seconds})
        if evaluated is not None:
            if not evaluated.metrics.keys() <= metrics:
                raise ValueError("a metric that the task does not declare")
            _check_numbers(evaluated.metrics)
        answer = Answer(round=request.round, trained=trained, evaluated=evaluated)
        records = wire.answer_to_records(answer)
        self._write(request, records, refused=None)
        return records

    def refusal(self, request: Request | None, reason: Reason) -> RecordDict:
        """A reason, and nothing else."""
        answer = Answer(round=request.round if request else 0, refused=reason)
        records = wire.answer_to_records(answer)
        self._write(request, records, refused=reason)
        return records

    def _write(self, request: Request | None, records: RecordDict, refused: Reason | None) -> None:
        blob = wire.blob(records)
        numbers = {k: v for k, v in records.config_records["head"].items() if k != "blob"}
        line = {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "run": request.run if request else None,
            "round": request.round if request else None,
            "refused": refused.value if refused else None,
            "bytes": len(blob),
            "sha256": hashlib.sha256(blob).hexdigest() if blob else None,
            "numbers": numbers,
        }
        with self.journal.open("a") as file:
            file.write(json.dumps(line) + "\n")


def last_resort(reason: Reason) -> RecordDict:
    """A reason, when not even the hospital's own journal can be written."""
    return wire.answer_to_records(Answer(round=0, refused=reason))


def describe(error: BaseException) -> list[str]:
    """An error for the hospital's own log: its type and where it rose.

    Its text is left out: a library's message may hold a file's name or a header's value.
    """
    lines = [type(error).__name__]
    trace: TracebackType | None = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        lines.append(f"{trace.tb_frame.f_globals.get('__name__')}:{code.co_name}:{trace.tb_lineno}")
        trace = trace.tb_next
    return lines


def _check_numbers(numbers: dict[str, float]) -> None:
    if not all(isinstance(n, (int, float)) and math.isfinite(n) for n in numbers.values()):
        raise ValueError("a number that is not finite")
