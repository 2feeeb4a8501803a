"""The one door: everything that leaves the hospital is built, checked and recorded here.

What may leave is a closed list: an update with exactly the model's names, dtypes and shapes, counts,
a loss, times, metrics whose names the task declares, cases by the experiment's groups, or a reason from
a fixed list. No text from the hospital's side has a place in it. Under patient-level privacy the list
is shorter: the noised update, sums and counts with noise, metrics of public images, the hospital's
declared size, and what its ledger says.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from flwr.app import RecordDict
from numpy.typing import NDArray

from client_app import code_approval
from client_app.audit import Audit
from client_app.policy import Refused
from federation import wire
from federation.messages import (
    Answer,
    Evaluated,
    Protected,
    Reason,
    Request,
    Shape,
    Spent,
    Tallied,
    Trained,
)
from federation.privacy.accounting import Mechanism
from federation.schema import PatientDP

if TYPE_CHECKING:  # it imports torch, and a refusal needs none
    from client_app.received import Asked, Received
    from federation.fairness.layout import Layout

Keep = Callable[[RecordDict], None]


class Unfit(ValueError):
    """Something that may not leave; a fault of ours, not of the data."""


class Protection(Protocol):
    """What is done to an answer on its way out: the codec, and masks that nobody can read under."""

    def protect(self, answer: Answer) -> Answer:
        """The answer as it leaves."""


class SecureSum(Protocol):
    """A sum under way, of which this hospital's answer is to be a part."""

    def reply(self) -> Protected:
        """The answer to a step without work."""

    def begin_work(self) -> Asked:
        """What is to be done, on which model, once it is sure that the sum can be joined."""

    def of(self, received: Received) -> Protection:
        """What protects the answer to the request."""


@dataclass(frozen=True)
class Outbox:
    """Builds answers, and writes into the hospital's audit log what was asked and what leaves.

    An answer that cannot be written down does not leave: `Audit.append` raises.
    """

    audit: Audit

    def require_approved_code(self) -> None:
        """Record a bundle that this hospital does not run, and refuse.

        Raises:
            Refused: the run brought such a bundle; this is the hospital's own code speaking for it.
        """
        if code_approval.refused():
            self.audit.append("code_refused", **code_approval.described())
            raise Refused(Reason.REFUSED_CODE)

    def asked(self, request: Request, experiment_sha256: str, model: bytes) -> str:
        """Record a request before anything is done about it; gives the log's head."""
        code = code_approval.described()
        return self.audit.append(
            "request",
            run=request.run,
            round=request.round,
            evaluate=request.evaluate,
            train=request.train,
            phase=request.phase.value,
            letter=_sha256(request.letter) if request.letter else None,
            experiment=experiment_sha256,
            bytes=len(model),
            sha256=_sha256(model),
            code=code.get("bundle"),
            reviewers=code.get("reviewers"),
        )

    def charged(self, request: Request, mechanisms: list[Mechanism], spent: Spent) -> None:
        """Record what the ledger was charged for a request."""
        self.audit.append(
            "charge",
            run=request.run,
            round=request.round,
            mechanisms=[[m.noise_multiplier, m.sampling_rate, m.steps] for m in mechanisms],
            epsilon=spent.epsilon,
            run_epsilon=spent.run_epsilon,
            budget=spent.budget,
            delta=spent.delta,
            charges=spent.lodged.charges,
            head=spent.lodged.head,
        )

    def answer(
        self,
        request: Request,
        *,
        trained: Trained | None,
        evaluated: Evaluated | None,
        shape: Shape,
        metrics: frozenset[str],
        counts: NDArray[np.int64] | None = None,
        layout: Layout | None = None,
        keep: Keep = lambda content: None,
        protection: Protection | None = None,
    ) -> RecordDict:
        """The answer to a request of a run without privacy.

        Args:
            shape: what the update has to be: the global model's names, dtypes and shapes.
            metrics: the names that the task declares.
            layout: of the counts by group; None where none may leave.
            keep: given the answer before the codec and whatever protects it.

        Raises:
            WireError: the update is not of that shape or not finite.
            Unfit: a metric that is not declared, a number that is missing or not finite, or counts that
                are not the layout's.
        """
        if trained is not None:
            shape.check(trained.update)
            _check_numbers([trained.loss, trained.seconds, trained.examples])
            compared = [trained.steps, trained.loss_before, trained.loss_after]
            _check_numbers([number for number in compared if number is not None])
        _check_metrics(evaluated, metrics)
        if (counts is None) is not (evaluated is None or layout is None):
            raise Unfit("counts come with an evaluation, where the experiment counts")
        if counts is not None and (layout is None or not layout.adds_up(counts)):
            raise Unfit("counts that are not of the experiment's groups")
        answer = Answer(request.round, trained=trained, evaluated=evaluated, counts=counts)
        return self._send(request, answer, keep, protection)

    def private_answer(
        self,
        request: Request,
        privacy: PatientDP,
        *,
        trained: Trained | None,
        evaluated: Evaluated | None,
        tallied: Tallied | None,
        spent: Spent,
        shape: Shape,
        parameters: frozenset[str],
        metrics: frozenset[str],
        counts: NDArray[np.int64] | None = None,
        layout: Layout | None = None,
        keep: Keep = lambda content: None,
        protection: Protection | None = None,
    ) -> RecordDict:
        """The answer to a request of a private run: its fields and its size depend on no patient.

        Args:
            evaluated: on public images.
            parameters: names of what was trained with noise; everything else must be unchanged.
            counts: by group, with noise. layout: theirs; None where none may leave.

        Raises:
            WireError: the update is not of that shape or not finite.
            Unfit: something exact is in it.
        """
        if trained is not None:
            shape.check(trained.update)
            exact = (trained.examples, trained.loss, trained.seconds, trained.steps)
            if {*exact, trained.loss_before, trained.loss_after} != {None}:
                raise Unfit("private training has no exact figures")
            changed = {name for name, array in trained.update.items() if np.any(array)}
            if not changed <= parameters:
                raise Unfit("something that has no noise was changed")
        if evaluated is not None and privacy.metrics != "public":
            raise Unfit("exact metrics leave of public images alone")
        if tallied is not None and privacy.metrics != "noisy":
            raise Unfit("sums that were not charged")
        _check_metrics(evaluated, metrics)
        if (counts is None) is not (layout is None or not request.evaluate):
            raise Unfit("counts come with each evaluation, where the experiment counts")
        if counts is not None and (layout is None or counts.shape != (layout.size,)):
            raise Unfit("counts that are not of the experiment's groups")
        answer = Answer(
            request.round,
            trained=trained,
            evaluated=evaluated,
            tallied=tallied,
            spent=spent,
            counts=counts,
        )
        return self._send(request, answer, keep, protection)

    def repeat(
        self, request: Request, answer: Answer, protection: Protection | None = None
    ) -> RecordDict:
        """The bytes that the same request got before."""
        return self._leave("repeat", request, answer, protection)

    def letter(self, request: Request, letter: Protected) -> RecordDict:
        """Keys, shares or signatures of a secure sum; at its end, a model that may be released."""
        return self._leave("letter", request, Answer(request.round, protected=letter))

    def refusal(self, request: Request | None, reason: Reason) -> RecordDict:
        """A reason, and nothing else."""
        self.audit.append(
            "refusal",
            run=request.run if request else None,
            round=request.round if request else None,
            reason=reason.value,
        )
        return wire.answer_to_records(Answer(round=request.round if request else 0, refused=reason))

    def _send(
        self, request: Request, answer: Answer, keep: Keep, protection: Protection | None
    ) -> RecordDict:
        keep(wire.answer_to_records(answer))
        return self._leave("answer", request, answer, protection)

    def _leave(
        self, event: str, request: Request, answer: Answer, protection: Protection | None = None
    ) -> RecordDict:
        """Write down what leaves; under masks no figure of this hospital's stands beside it."""
        if protection is not None:
            answer = protection.protect(answer)
        records = wire.answer_to_records(answer)
        self._record(event, request, records)
        return records

    def _record(self, event: str, request: Request, records: RecordDict) -> None:
        blob = wire.blob(records)
        head = records.config_records["head"]
        numbers = {k: v for k, v in head.items() if not isinstance(v, bytes)}
        letter, counts = head.get("letter"), head.get("counts")
        self.audit.append(
            event,
            run=request.run,
            round=request.round,
            phase=request.phase.value,
            bytes=len(blob),
            sha256=_sha256(blob) if blob else None,
            letter=_sha256(letter) if isinstance(letter, bytes) else None,
            counts=_sha256(counts) if isinstance(counts, bytes) else None,
            numbers=numbers,
        )


def last_resort(reason: Reason) -> RecordDict:
    """A reason, when not even the hospital's own log can be written."""
    return wire.answer_to_records(Answer(round=0, refused=reason))


def _sha256(blob: bytes) -> str:
    return hashlib.sha256(blob).hexdigest()


def _check_metrics(evaluated: Evaluated | None, known: frozenset[str]) -> None:
    if evaluated is None:
        return
    if not evaluated.metrics.keys() <= known:
        raise Unfit("a metric that the task does not declare")
    _check_numbers(list(evaluated.metrics.values()))


def _check_numbers(numbers: list[float | None]) -> None:
    if not all(isinstance(n, (int, float)) and math.isfinite(n) for n in numbers):
        raise Unfit("a number that is missing or not finite")
