"""Brings requests with the global model to hospitals, and what they say of it back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

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
        lodged = self.lodgings.of(requests) if self.lodgings is not None else {}
        first: dict[str, Lodged | None] = {}
        if self.lodgings is not None:
            asked = {name: lodged.get(name) for name in requests}
            first = self.folder.first_asked(done.round + 1, asked)
        heard: dict[str, Lodged] = {}

        def check(outcome: Outcome) -> None:
            spent = outcome.answer.spent if outcome.answer else None
            if spent is not None:
                if not agrees(spent.lodged, first.get(outcome.hospital)):
                    raise WireError(Reason.LEDGER_UNUSABLE)
                heard[outcome.hospital] = spent.lodged
            taken(outcome)
            self.descent.delivered(outcome.hospital, done.round)

        addressed = {
            name: replace(request, lodged=lodged.get(name)) for name, request in requests.items()
        }
        parcels = self.descent.parcels(addressed, done)
        outcomes = self.exchange.ask(parcels, expected, wait=self.wait, taken=check)
        if self.lodgings is not None:
            self.lodgings.keep(heard)
        return outcomes

    def letters(
        self,
        requests: Mapping[str, Request],
        expected: Expected,
        *,
        taken: Taken,
        enough: int | None = None,
    ) -> list[Outcome]:
        """Send requests without a model.

        Args:
            taken, enough: as in `Exchange.ask`.
        """
        parcels = {name: Parcel(request, b"") for name, request in requests.items()}
        return self.exchange.ask(parcels, expected, wait=self.wait, taken=taken, enough=enough)
