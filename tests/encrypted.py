"""What tests of encrypted rounds share: an experiment, what hospitals hold, and a coordinator that does
as a test likes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from client_app import app
from client_app.audit import Audit
from client_app.encrypted_state import EncryptedRun, State
from federation import models, tasks, wire
from federation.codec import chain
from federation.figures import Figures
from federation.messages import Answer, Arrays, Expected, Phase, Reason, Request, Shape
from federation.schema import Experiment
from federation.secure_aggregation import letters
from federation.secure_aggregation.agreement import Proposal, Signed
from federation.secure_aggregation.encryption import Totals, Vectors, run_of, vectors_of
from federation.secure_aggregation.keys import Occasion
from federation.secure_aggregation.sealing import SealingAdvert
from tests.client_app.coordinator import Refusal
from tests.hospitals import Hospitals, content
from tests.masked import same

CKKS = {"name": "ckks", "least": 3}
WHOLE = {"quantise": {"name": "integers", "bits": 8}, "down": "full"}


def encrypted(**changes: Any) -> Experiment:
    return content(**({"codec": WHOLE, "secure_aggregation": CKKS} | changes))


def plainly(of: Experiment) -> Experiment:
    """The same with a coordinator that reads every update."""
    return of.model_copy(update={"secure_aggregation": None})


def home(made: Hospitals, name: str, run: str) -> EncryptedRun:
    return EncryptedRun.of(made.sites[name].state, run)


def held(made: Hospitals, name: str, of: Experiment, run: str) -> State:
    state = home(made, name, run).state(of.sha256())
    assert state is not None
    return state


def all_hold(made: Hospitals, of: Experiment, run: str, model: Arrays, round_: int = 3) -> None:
    """Each hospital has just this model, bit for bit."""
    for name in made.sites:
        state = held(made, name, of, run)
        assert state.round == round_, name
        same(state.model, model)


def log(made: Hospitals, name: str) -> list[tuple[str, object]]:
    """The audit log of a hospital, which still holds: events, and why where they are refusals."""
    audit = Audit(made.sites[name].state / "audit.jsonl")
    audit.verify()
    return [(entry.event, entry.fields.get("reason")) for entry in audit.entries()]


def ring_file(made: Hospitals, name: str, run: str) -> Path:
    return home(made, name, run).folder / "ring.json"


def model_file(made: Hospitals, name: str, run: str) -> Path:
    return home(made, name, run).folder / "model.bin"


@dataclass(frozen=True)
class Work:
    """A round's, on its way to be signed: both sums, and whose blobs are in them."""

    blobs: Mapping[str, bytes]
    figures: bytes
    update: bytes

    def proposal(self, survivors: Sequence[str] | None = None) -> Proposal:
        return Proposal.of(tuple(survivors or sorted(self.blobs)), self.figures, self.update)

    @property
    def parcel(self) -> bytes:
        return letters.join(self.figures, self.update)


@dataclass
class Lead:
    """Asks hospitals' ClientApps, without a Grid between, as a coordinator of encrypted sums.

    Attributes:
        missed: by round, what hospitals that missed it are sent: adverts, letter, both sums.
    """

    hospitals: Hospitals
    of: Experiment
    run: str
    round: int = 1
    public: bytes = b""
    adverts: bytes = b""
    boxes: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    missed: dict[int, tuple[bytes, bytes, bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert self.of.codec is not None
        task = tasks.build(self.of.task)
        network = models.build(self.of.model, task, seed=self.of.seed)
        self.model = {name: array.copy() for name, array in models.arrays_of(network).items()}
        self.chain = chain.build(self.of.codec, network, seed=self.of.seed)
        self.figures = Figures.of(self.of, task)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self.hospitals.sites))

    def request(self, phase: Phase, letter: bytes, **changes: Any) -> Request:
        made = Request(self.run, self.round, False, True, phase=phase, letter=letter)
        return replace(made, **changes)

    def ask(
        self,
        name: str,
        phase: Phase,
        letter: bytes,
        blob: bytes = b"",
        *,
        of: Experiment | None = None,
        **changes: Any,
    ) -> tuple[bytes, bytes]:
        """Letter and blob of the answer. Raises Refusal."""
        experiment = of or self.of
        if phase is Phase.WORK:
            changes = {"base": self.round - 1} | changes
        request = self.request(phase, letter, **changes)
        config = {"experiment": experiment.canonical(), "experiment-sha256": experiment.sha256()}
        records = wire.request_to_records(request, blob)
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

    @property
    def roster(self) -> bytes:
        return self.hospitals.roster.sha256().encode()

    def advertise(self) -> bytes:
        told = {
            name: SealingAdvert.from_bytes(self.ask(name, Phase.ADVERTISE, self.roster)[0], name)
            for name in self.names
        }
        self.adverts = letters.sealing_adverts_to_bytes(told)
        return self.adverts

    def share(self, maker: str = "east") -> None:
        letter, _ = self.ask(maker, Phase.SHARE, letters.join(b"", self.adverts))
        self.public, boxes = letters.split(letter, 2)
        self.boxes = {name: (maker, box) for name, box in letters.boxes_from_bytes(boxes).items()}

    def to_work(self, name: str) -> bytes:
        sealer, box = self.boxes[name]
        return letters.join(self.public, self.adverts, sealer.encode(), box)

    def work(self, names: Sequence[str] | None = None) -> Work:
        if not self.boxes:
            self.advertise()
            self.share()
        blobs = {
            name: self.ask(name, Phase.WORK, self.to_work(name))[1] for name in names or self.names
        }
        return self.summed(blobs)

    def summed(self, blobs: Mapping[str, bytes], round_: int | None = None) -> Work:
        totals: Totals = self.vectors(round_).totals(self.public)
        for name, blob in blobs.items():
            totals.add(name, blob)
        return Work(blobs, *totals.to_bytes())

    def vectors(self, round_: int | None = None) -> Vectors:
        run = run_of(self.run, self.of)
        occasion = Occasion(run, round_ or self.round, 0, self.hospitals.roster.sha256())
        names = self.hospitals.roster.names()
        return vectors_of(
            self.of, occasion, names, self.chain, self.figures, adverts=self.adverts, train=True
        )

    def sign(self, proposal: Proposal, names: Sequence[str] | None = None) -> Signed:
        told = {
            name: letters.split(self.ask(name, Phase.SIGN, proposal.to_bytes())[0], 2)
            for name in names or proposal.survivors
        }
        (model,) = {model for model, _ in told.values()}
        return Signed(proposal, model, {name: signature for name, (_, signature) in told.items()})

    def open(self, name: str, signed: Signed, parcel: bytes, **changes: Any) -> bytes:
        return self.ask(name, Phase.OPEN, signed.to_bytes(), parcel, **changes)[0]

    def whole_round(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """By the protocol; the figures, which all tell alike."""
        work = self.work()
        signed = self.sign(work.proposal())
        (told,) = {self.open(name, signed, work.parcel) for name in self.names}
        self.missed[self.round] = (self.adverts, signed.to_bytes(), work.parcel)
        self.round += 1
        return np.frombuffer(told, "<i8").astype(np.int64)


def refused(lead: Lead, name: str, reason: Reason, ask: Any) -> None:
    """The hospital says no, for this reason; its log says so too, and still holds."""
    before = len(log(lead.hospitals, name))
    try:
        ask()
    except Refusal as refusal:
        assert refusal.reason is reason
    else:
        raise AssertionError("it was answered")
    assert log(lead.hospitals, name)[before:] == [("request", None), ("refusal", reason.value)]
