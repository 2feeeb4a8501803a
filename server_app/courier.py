"""Brings requests with the global model to hospitals, and what they say of it back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from federation.messages import Expected, Lodged, Reason, Request, WireError
from server_app.descent import Descent
from server_app.exchange import Exchange, Outcome, Parcel
from server_app.lodgings import Lodgings, agrees
from server_app.state import Checkpoint, RunFolder

Taken = Callable[[Outcome], None]


@dataclass(frozen=True)
class Courier:
    """The exchanges of one run.

    Attributes:
        lodgings: what is kept of the hospitals' ledgers; None for runs without privacy.
        wait: seconds that a round waits for hospitals that are not connected.
    """

    folder: RunFolder
    exchange: Exchange
    descent: Descent
    lodgings: Lodgings | None = None
    wait: float = 90.0

    def work(
        self,
        requests: Mapping[str, Request],
        done: Checkpoint,
        expected: Expected,
        *,
        taken: Taken = lambda outcome: None,
    ) -> list[Outcome]:
        """Send the model of `done`; of a private run, only whose ledger goes on has a good answer.

        Args:
            taken: as in `Exchange.ask`.
        """
        parcels = self.descent.parcels(requests, done)

        def delivered(outcome: Outcome) -> None:
            taken(outcome)
            self.descent.delivered(outcome.hospital, done.round)

        return self.carry(parcels, done.round + 1, expected, taken=delivered)

    def carry(
        self, parcels: Mapping[str, Parcel], round_: int, expected: Expected, *, taken: Taken
    ) -> list[Outcome]:
        """A round's work, whatever is sent for it; with the checks that `work` promises."""
        if self.lodgings is None:
            return self.exchange.ask(parcels, expected, wait=self.wait, taken=taken)
        lodged = self.lodgings.of(parcels)
        first = self.folder.first_asked(round_, {name: lodged.get(name) for name in parcels})
        heard: dict[str, Lodged] = {}

        def check(outcome: Outcome) -> None:
            spent = outcome.answer.spent if outcome.answer else None
            if spent is not None:
                if not agrees(spent.lodged, first.get(outcome.hospital)):
                    raise WireError(Reason.LEDGER_UNUSABLE)
                heard[outcome.hospital] = spent.lodged
            taken(outcome)

        addressed = {name: parcel.lodging(lodged.get(name)) for name, parcel in parcels.items()}
        outcomes = self.exchange.ask(addressed, expected, wait=self.wait, taken=check)
        self.lodgings.keep(heard)
        return outcomes

    def letters(
        self,
        parcels: Mapping[str, Parcel],
        expected: Expected,
        *,
        taken: Taken,
        enough: int | None = None,
    ) -> list[Outcome]:
        """A step without work.

        Args:
            taken, enough: as in `Exchange.ask`.
        """
        return self.exchange.ask(parcels, expected, wait=self.wait, taken=taken, enough=enough)
