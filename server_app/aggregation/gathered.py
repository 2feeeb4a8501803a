"""What a round gets from its hospitals, whichever way it was added up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from federation.figures import Summed
from federation.messages import Arrays, Request
from server_app.exchange import Outcome
from server_app.state import Checkpoint


@dataclass(frozen=True)
class Gathered:
    """What came of a round's exchange.

    Attributes:
        outcomes: one a hospital that was asked.
        mean: weighted mean of the updates; None where none was asked for or none came.
        codec: for the next checkpoint, what the codec remembers.
        summed: None where each hospital's figures stand in its outcome.
        seconds: that the steps of a secure sum took.
    """

    outcomes: list[Outcome]
    mean: Arrays | None
    codec: Arrays = field(default_factory=dict)
    summed: Summed | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def in_mean(self) -> tuple[str, ...]:
        """The hospitals whose updates `mean` is of."""
        if self.summed is not None:
            return self.summed.hospitals
        good = {o.hospital: o.answer for o in self.outcomes if o.is_good and o.answer}
        return tuple(name for name, answer in good.items() if answer.trained is not None)


class Aggregation(Protocol):
    def gather(self, hospitals: Sequence[str], request: Request, done: Checkpoint) -> Gathered:
        """Ask hospitals for a round's work on the model of `done`.

        Raises:
            TooFewHospitals: a sum cannot be opened.
        """

    def release(self, done: Checkpoint) -> Arrays | None:
        """The final model, where hospitals hold it and let the coordinator have it; else None."""
