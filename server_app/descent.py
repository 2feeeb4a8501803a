"""The global model on its way down: whole, or as what changed since the one that a hospital holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from federation import strategies, wire
from federation.codec import down
from federation.messages import Arrays, Request
from federation.schema import Codec
from server_app import counting
from server_app.exchange import Parcel
from server_app.state import Checkpoint

_RESIDUAL = "residual/"


@dataclass
class Descent:
    """Knows which hospital holds which model; after a restart, that nobody holds any.

    Attributes:
        codec: None or `down=full`: every hospital gets the whole model each time.
    """

    codec: Codec | None
    _holds: dict[str, int] = field(default_factory=dict)
    _difference: tuple[int, bytes] | None = None  # since the model of which round, and what changed
    _packed: tuple[int, bytes] | None = None

    def settle(self, done: Checkpoint, made: Checkpoint) -> Checkpoint:
        """`made` with the model that hospitals will have who hold that of `done`.

        A difference is quantised, so they would have another model than the coordinator, and drift
        away from it; so theirs becomes the global one, and what it lacks goes into the next.
        """
        if self.codec is None or self.codec.down == "full":
            return made
        residual = {
            name.removeprefix(_RESIDUAL): array
            for name, array in done.codec.items()
            if name.startswith(_RESIDUAL)
        }
        blob, sent, residual = down.difference(
            _sent(done),
            _sent(made),
            residual or None,
            bits=self.codec.down_bits,
            level=self.codec.zstd_level,
        )
        self._difference = (done.round, blob)
        left = {_RESIDUAL + name: array for name, array in residual.items()}
        return replace(
            made,
            model={name: sent[name] for name in made.model},
            strategy=made.strategy | strategies.sent_down(sent),
            codec=made.codec | left,
        )

    def parcels(self, requests: Mapping[str, Request], done: Checkpoint) -> dict[str, Parcel]:
        """The model of `done` for each hospital, in as few bytes as it can be read from."""
        if self._packed is None or self._packed[0] != done.round:
            self._packed = (done.round, wire.pack(_sent(done)))
        if self._difference is not None and self._difference[0] + 1 != done.round:
            self._difference = None
        parcels = {}
        for name, asked in requests.items():
            request = replace(asked, counted=counting.last(done.strategy, name))
            parcels[name] = Parcel(request, self._packed[1])
            if self._difference is not None and self._holds.get(name) == self._difference[0]:
                base, blob = self._difference
                parcels[name] = Parcel(replace(request, base=base), blob, instead=parcels[name])
        return parcels

    def delivered(self, hospital: str, round_: int) -> None:
        """The hospital answered a request that came with the model of this round."""
        self._holds[hospital] = round_


def _sent(checkpoint: Checkpoint) -> Arrays:
    """The model, and what the strategy sends with it: a hospital has both of one round, or neither."""
    return checkpoint.model | strategies.sent_down(checkpoint.strategy)


def memory(arrays: Arrays) -> Arrays:
    """What of a checkpoint's codec memory is not the descent's."""
    return {name: array for name, array in arrays.items() if not name.startswith(_RESIDUAL)}
