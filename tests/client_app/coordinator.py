"""A coordinator of sums under masks that does as a test likes: each letter is made by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from client_app import app
from client_app.audit import Audit
from federation import models, tasks, wire
from federation.codec import chain, scales
from federation.messages import Answer, Arrays, Expected, Phase, Reason, Request, Shape
from federation.schema import Experiment
from federation.secure_aggregation import letters
from federation.secure_aggregation.opening import Opening
from tests.hospitals import Hospitals


class Refusal(Exception):
    """A hospital said no."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.value)
        self.reason = reason


@dataclass
class Coordinator:
    """Asks hospitals' ClientApps, without a Grid between.

    Attributes:
        run, round, attempt: of what is asked.
    """

    hospitals: Hospitals
    of: Experiment
    run: str
    round: int = 1
    attempt: int = 1
    model: Arrays = field(init=False)
    chain: chain.Chain = field(init=False)

    def __post_init__(self) -> None:
        assert self.of.codec is not None
        network = models.build(self.of.model, tasks.build(self.of.task), seed=self.of.seed)
        self.model = {name: array.copy() for name, array in models.arrays_of(network).items()}
        self.chain = chain.build(self.of.codec, network, seed=self.of.seed)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self.hospitals.sites))

    def ask(
        self,
        name: str,
        phase: Phase,
        letter: bytes,
        *,
        model: Arrays | None = None,
        **changes: object,
    ) -> tuple[bytes, bytes]:
        """Letter and blob of the answer. Raises Refusal."""
        request = Request(
            self.run, self.round, False, True, phase=phase, attempt=self.attempt, letter=letter
        )
        blob = b""
        if phase is Phase.WORK:
            blob = wire.pack(self.model if model is None else model)
            first = scales.to_bytes(self.chain.first_scales(self.of.training))
            request = replace(request, scales=first)
        request = replace(request, **changes)  # type: ignore[arg-type]
        records = wire.request_to_records(request, blob)
        config = {"experiment": self.of.canonical(), "experiment-sha256": self.of.sha256()}
        reply = app.respond(records, config, self.hospitals.sites[name])
        expected = Expected(Shape.of(self.model), frozenset(), protected=1 << 30)
        answer: Answer = wire.answer_from_records(reply, request, expected)
        if answer.refused is not None:
            assert set(reply) == {"head"}
            assert set(reply["head"]) == {"round", "refused"}  # and nothing else leaves
            raise Refusal(answer.refused)
        assert answer.protected is not None
        return answer.protected.letter, answer.protected.blob

    # --- as the protocol has it ------------------------------------------------------------------

    def advertise(self, names: Sequence[str] | None = None) -> bytes:
        """A letter with the adverts of these hospitals."""
        roster = self.hospitals.roster.sha256().encode()
        adverts = [
            letters.advert_from_bytes(self.ask(name, Phase.ADVERTISE, roster)[0])
            for name in names or self.names
        ]
        return letters.adverts_to_bytes(adverts)

    def share(self, adverts: bytes, names: Sequence[str] | None = None) -> dict[str, bytes]:
        """Each hospital's letter with what was sealed for it."""
        sealed: dict[str, dict[str, bytes]] = {}
        for name in names or self.names:
            letter, _ = self.ask(name, Phase.SHARE, adverts)
            for receiver, box in letters.sealed_from_bytes(letter).items():
                sealed.setdefault(receiver, {})[name] = box
        return {name: letters.sealed_to_bytes(boxes) for name, boxes in sealed.items()}

    def work(self, shares: Mapping[str, bytes]) -> dict[str, tuple[bytes, bytes]]:
        """Letter and blob of each."""
        return {name: self.ask(name, Phase.WORK, letter) for name, letter in shares.items()}

    def to_sign(self, survivors: Sequence[str], adverts: bytes = b"") -> bytes:
        return letters.join(letters.names_to_bytes(survivors), adverts)

    def sign(
        self, survivors: Sequence[str], names: Sequence[str] | None = None
    ) -> dict[str, bytes]:
        letter = self.to_sign(survivors)
        return {
            name: letters.split(self.ask(name, Phase.SIGN, letter)[0], 2)[0]
            for name in names or survivors
        }

    def to_open(self, survivors: Sequence[str], signatures: Mapping[str, bytes]) -> bytes:
        listed = letters.names_to_bytes(survivors)
        return letters.join(listed, letters.signatures_to_bytes(signatures))

    def open(self, name: str, letter: bytes) -> Opening:
        return letters.opening_from_bytes(self.ask(name, Phase.OPEN, letter)[0])

    # --- how far a round is to go before the test begins ------------------------------------------

    def worked(self) -> dict[str, tuple[bytes, bytes]]:
        return self.work(self.share(self.advertise()))

    def signed(self) -> dict[str, bytes]:
        self.worked()
        return self.sign(self.names)

    def opened(self) -> dict[str, Opening]:
        letter = self.to_open(self.names, self.signed())
        return {name: self.open(name, letter) for name in self.names}

    # --- what the hospitals say of it -------------------------------------------------------------

    def log(self, name: str) -> list[tuple[str, object]]:
        """The audit log of a hospital, which still holds: events, and why where they are refusals."""
        log = Audit(self.hospitals.sites[name].state / "audit.jsonl")
        log.verify()
        return [(entry.event, entry.fields.get("reason")) for entry in log.entries()]


def moved(model: Arrays) -> Arrays:
    """Another model of the same shape."""
    return {
        name: array + np.float32(0.5) if array.dtype.kind == "f" else array
        for name, array in model.items()
    }
