"""What a round's steps say of each hospital, in one row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from federation.messages import Answer, Reason
from server_app.exchange import Outcome


@dataclass
class Rows:
    """One outcome a hospital: its last word, with the bytes and seconds of all steps."""

    outcomes: dict[str, Outcome] = field(default_factory=dict)

    def note(self, outcomes: Sequence[Outcome], *, letters: bool = False) -> None:
        """Args:
        letters: their answers are not kept; what the work said of a ledger is.
        """
        for outcome in outcomes:
            before = self.outcomes.get(outcome.hospital, Outcome(outcome.hospital))
            self.outcomes[outcome.hospital] = replace(
                outcome,
                answer=before.answer if letters else outcome.answer or before.answer,
                attempts=max(before.attempts, outcome.attempts),
                seconds=before.seconds + outcome.seconds,
                bytes_down=before.bytes_down + outcome.bytes_down,
                bytes_up=before.bytes_up + outcome.bytes_up,
            )

    def left_out(self) -> dict[str, Reason]:
        return {o.hospital: o.reason for o in self.outcomes.values() if o.reason is not None}

    def settled(self, survivors: Sequence[str], left_out: Mapping[str, Reason]) -> list[Outcome]:
        """Whose work is in the sum is good, whatever became of its later letters."""
        for name, reason in left_out.items():
            self.outcomes.setdefault(name, Outcome(name)).reason = reason
        for name in survivors:
            row = self.outcomes.setdefault(name, Outcome(name))
            row.answer, row.reason = row.answer or Answer(0), None  # none, after a crash
        return [self.outcomes[name] for name in sorted(self.outcomes)]
