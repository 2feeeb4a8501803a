"""A sum that only hospitals read, led by the coordinator, who adds what it cannot decrypt.

    advertise, share    once a run, and for a hospital that comes later or lost it: the key goes round,
                        sealed
    work                encrypted updates and figures are added as they arrive
    sign                the survivors sign who is in the sum, which ciphertexts it is, and which model
                        they hold
    open                they are given the sum, move the model, and tell the round's figures

What all this promises is in `client_app.encrypted_sum`. The coordinator holds no model: what it keeps
are the encrypted sums of all rounds, so that a hospital that missed some can follow. A sum that anybody
may have signed is never made anew: each hospital signs one a round, and the round waits for the others.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from federation import wire
from federation.codec.chain import Chain
from federation.figures import Figures
from federation.messages import Arrays, Expected, Phase, Reason, Request, WireError
from federation.roster import Roster
from federation.schema import Experiment, SecureAggregation
from federation.secure_aggregation import letters
from federation.secure_aggregation.agreement import Agreement, Proposal, Signed
from federation.secure_aggregation.ciphertexts import PublicContext
from federation.secure_aggregation.encryption import Vectors, run_of, vectors_of
from federation.secure_aggregation.keys import Occasion
from federation.secure_aggregation.sealing import Meeting, SealingAdvert
from server_app.aggregation.gathered import Gathered
from server_app.aggregation.rows import Rows
from server_app.aggregation.sealed_sums import KeyRing, SealedSum
from server_app.courier import Courier, Taken
from server_app.exchange import Outcome, Parcel, TooFewHospitals
from server_app.state import Checkpoint

# a hospital that says so is sent all sums, or a key, and asked once more
_BEHIND = frozenset({Reason.NO_MODEL})
_WITHOUT_KEY = frozenset({Reason.NO_KEYS, Reason.BAD_SIGNATURE})


@dataclass
class Encrypted:
    """The sums of one run.

    Attributes:
        ring: who has the run's key.
    """

    courier: Courier
    experiment: Experiment
    secure: SecureAggregation
    expected: Expected
    chain: Chain
    figures: Figures
    roster: Roster
    ring: KeyRing
    _holds: dict[str, int] = field(default_factory=dict)  # by hospital, the round of its model
    _rows: Rows = field(default_factory=Rows)
    _seconds: dict[str, float] = field(default_factory=dict)

    def gather(self, hospitals: Sequence[str], request: Request, done: Checkpoint) -> Gathered:
        """The mean stays with the hospitals.

        Raises:
            TooFewHospitals: too few took part for their sum to be opened.
        """
        self._rows = Rows(self.courier.exchange.unanswered(hospitals, request.round))
        self._seconds = {}
        folder = self.courier.folder
        made = SealedSum.load(folder, request.round, training=request.train)
        if made is None:
            self._pass_the_key(hospitals, request)
            made = self._work(hospitals, request, done)
            made.save(folder)  # from here on a crash costs no hospital's work
        figures = self._open(made, request)
        summed = self.figures.summed(figures, made.survivors)
        left_out = {name: Reason(reason) for name, reason in made.left_out.items()}
        outcomes = self._rows.settled(made.survivors, left_out)
        return Gathered(outcomes, None, {}, summed, self._seconds)

    # --- the run's key ---------------------------------------------------------------------------

    def _pass_the_key(
        self, hospitals: Sequence[str], request: Request, avoid: Collection[str] = ()
    ) -> None:
        """Have a hospital seal the run's key for those without it; the first makes it.

        Args:
            avoid: whose boxes did not open; asked last.
        """
        out = self.courier.exchange.suspended(request.round)
        online = self.courier.exchange.online().keys() - out
        missing = [name for name in hospitals if name not in self.ring.boxes]
        if not missing or (self.ring.boxes and not any(name in online for name in missing)):
            return
        with self._timed("setup"):
            asking = self._adverts(missing, request)
            holders = [name for name in self.ring.boxes if name in online]
            for sealer in sorted(holders or asking, key=lambda name: (name in avoid, name)):
                if asking and self._sealed_by(sealer, asking, request):
                    return

    def _adverts(self, missing: Sequence[str], request: Request) -> dict[str, SealingAdvert]:
        identities, meeting = self.roster.identities(), self._meeting(request)
        asking: dict[str, SealingAdvert] = {}

        def advertised(outcome: Outcome) -> None:
            advert = SealingAdvert.from_bytes(_letter(outcome), outcome.hospital)
            advert.check(identities[outcome.hospital], meeting)
            asking[outcome.hospital] = advert

        letter = self.roster.sha256().encode()
        asked = replace(request, phase=Phase.ADVERTISE, letter=letter)
        self._ask(dict.fromkeys(missing, Parcel(asked, b"")), advertised)
        return asking

    def _sealed_by(self, sealer: str, asking: dict[str, SealingAdvert], request: Request) -> bool:
        """Whether this hospital sealed the key for the others."""
        adverts = letters.sealing_adverts_to_bytes(asking)
        done: list[bool] = []

        def sealed(outcome: Outcome) -> None:
            public, boxes = letters.split(_letter(outcome), 2)
            if self.ring.public not in (b"", public):
                raise WireError(Reason.BAD_KEY)
            found = letters.boxes_from_bytes(boxes)
            if set(found) != set(asking):
                raise WireError(Reason.BAD_SHARE)
            self.ring.public = public
            told = {name: advert.to_bytes() for name, advert in asking.items()}
            self.ring.adverts = told | self.ring.adverts  # a run's weights stay as they were
            self.ring.boxes |= {name: (sealer, box) for name, box in found.items()}
            self.ring.save()
            done.append(True)

        letter = letters.join(self.ring.public, adverts)
        asked = replace(request, phase=Phase.SHARE, letter=letter)
        self._ask({sealer: Parcel(asked, b"")}, sealed)
        return bool(done)

    # --- work ------------------------------------------------------------------------------------

    def _work(self, hospitals: Sequence[str], request: Request, done: Checkpoint) -> SealedSum:
        having = [name for name in hospitals if name in self.ring.boxes]
        self._require(len(having), self.secure.least, "have the run's key", request)
        told = {
            name: SealingAdvert.from_bytes(advert, name)
            for name, advert in self.ring.adverts.items()
        }
        adverts = letters.sealing_adverts_to_bytes(told)
        vectors = self._vectors(request, adverts)
        totals = vectors.totals(self.ring.public)

        def add(outcome: Outcome) -> None:
            protected = outcome.answer.protected if outcome.answer else None
            if outcome.answer is None or protected is None:
                raise WireError(Reason.MALFORMED)
            totals.add(outcome.hospital, protected.blob)
            outcome.answer = replace(outcome.answer, protected=None)  # it is in the sum: not kept

        expected = replace(self.expected, protected=vectors.largest)

        def carry(names: Sequence[str], held: Mapping[str, int]) -> list[Outcome]:
            parcels: dict[str, Parcel] = {}
            missed: dict[int, bytes] = {}
            for name in names:
                sealer, box = self.ring.boxes[name]
                letter = letters.join(self.ring.public, adverts, sealer.encode(), box)
                base = held.get(name, request.round - 1)
                if base not in missed:
                    missed[base] = self._missed(base, request.round)
                asked = replace(request, letter=letter, base=base)
                parcels[name] = Parcel(asked, missed[base])
            outcomes = self.courier.carry(parcels, request.round, expected, taken=add)
            self._rows.note(outcomes)
            return outcomes

        with self._timed("work"):
            outcomes = carry(having, self._holds)
            behind = [o.hospital for o in outcomes if o.reason in _BEHIND]
            lost = [o.hospital for o in outcomes if o.reason in _WITHOUT_KEY]
            if lost:
                sealers = {self.ring.boxes[name][0] for name in lost}
                self.ring.forget(lost)
                self._pass_the_key(lost, request, sealers)
            again = [name for name in (*behind, *lost) if name in self.ring.boxes]
            if again:
                outcomes += carry(sorted(again), dict.fromkeys(again, 0))
        survivors = tuple(sorted(o.hospital for o in outcomes if o.is_good))
        for name in survivors:
            self._holds[name] = request.round - 1
        self._require(len(survivors), self._threshold(vectors), "sent their part", request)
        figures, *update = totals.to_bytes()
        return SealedSum(
            round=request.round,
            training=request.train,
            adverts=adverts,
            survivors=survivors,
            left_out={name: reason.value for name, reason in self._rows.left_out().items()},
            figures=figures,
            update=update[0] if update else b"",
        )

    def _missed(self, held: int, round_: int) -> bytes:
        """The opened sums after the round whose model a hospital is believed to hold, in order."""
        parts: list[bytes] = []
        for number in range(held + 1, round_):
            opened = SealedSum.load(self.courier.folder, number, training=True)
            if opened is None or not opened.letter:
                raise TooFewHospitals(
                    f"round {round_}: the encrypted sum of round {number} is missing in the run's "
                    "folder, and a hospital needs it to follow: bring sums/ back from a backup"
                )
            sums = letters.join(opened.figures, opened.update)
            parts += [opened.adverts, opened.letter, sums]
        return letters.join(*parts)

    # --- opening ---------------------------------------------------------------------------------

    def _open(self, made: SealedSum, request: Request) -> NDArray[np.int64]:
        """Signatures first; who is given them with the sum tells its figures."""
        vectors, folder = self._vectors(request, made.adverts), self.courier.folder
        if not made.letter:
            made = self._signed(made, vectors, request)
            made.save(folder)
        told: Counter[bytes] = Counter()

        def opened(outcome: Outcome) -> None:
            figures = _letter(outcome)
            if len(figures) != 8 * self.figures.length:
                raise WireError(Reason.MALFORMED)
            told[figures] += 1
            self._holds[outcome.hospital] = request.round if request.train else request.round - 1

        blob = letters.join(made.figures, made.update)
        to_open = replace(request, phase=Phase.OPEN, letter=made.letter)
        threshold = self._threshold(vectors)
        with self._timed("open"):
            self._ask(dict.fromkeys(made.survivors, Parcel(to_open, blob)), opened, threshold)
        figures, agree = told.most_common(1)[0] if told else (b"", 0)
        self._require(agree, threshold, "opened the sum alike", request)
        return np.frombuffer(figures, "<i8").astype(np.int64)

    def _signed(self, made: SealedSum, vectors: Vectors, request: Request) -> SealedSum:
        """The sum with the signatures of those who hold one and the same model: of the most."""
        identities = self.roster.identities()
        proposal = Proposal.of(made.survivors, made.figures, made.update)
        by_model: dict[bytes, dict[str, bytes]] = {}

        def signed(outcome: Outcome) -> None:
            model, signature = letters.split(_letter(outcome), 2)
            agreement = self._agreement(made, vectors, model)
            agreement.verify(proposal, outcome.hospital, signature, identities)
            by_model.setdefault(model, {})[outcome.hospital] = signature

        to_sign = replace(request, phase=Phase.SIGN, letter=proposal.to_bytes())
        threshold = self._threshold(vectors)
        with self._timed("sign"):
            self._ask(dict.fromkeys(made.survivors, Parcel(to_sign, b"")), signed, threshold)
        model = max(by_model, key=lambda one: len(by_model[one]), default=b"")
        signatures = by_model.get(model, {})
        self._require(len(signatures), threshold, "signed who is in the sum", request)
        return replace(made, letter=Signed(proposal, model, signatures).to_bytes())

    def release(self, done: Checkpoint) -> Arrays | None:
        """The final model, from the first hospital that gives it; None where hospitals keep it.

        Raises:
            TooFewHospitals: nobody gave it.
        """
        if self.secure.release != "coordinator":
            return None
        shape = self.expected.update
        released: list[Arrays] = []

        def taken(outcome: Outcome) -> None:
            protected = outcome.answer.protected if outcome.answer else None
            released.append(wire.unpack(protected.blob if protected else b"", shape))

        asked = Request(self.courier.folder.name, done.round + 1, False, False, phase=Phase.RELEASE)
        expected = replace(self.expected, protected=shape.largest_blob(), private=False)
        online = self.courier.exchange.online().keys() - self.courier.exchange.suspended(
            asked.round
        )
        members = self.experiment.participation.hospitals or self.roster.names()
        likely = sorted(members, key=lambda name: (self._holds.get(name) != done.round, name))
        for name in likely:
            if name in online and not released:
                self.courier.letters({name: Parcel(asked, b"")}, expected, taken=taken)
        if not released:
            raise TooFewHospitals(
                "no hospital released the final model; resume the run when one that holds it is there"
            )
        return released[0]

    # --- what is public --------------------------------------------------------------------------

    def _vectors(self, request: Request, adverts: bytes) -> Vectors:
        run = run_of(request.run, self.experiment)
        occasion = Occasion(run, request.round, 0, self.roster.sha256())
        return vectors_of(
            self.experiment,
            occasion,
            self.roster.names(),
            self.chain,
            self.figures,
            adverts=adverts,
            train=request.train,
        )

    def _agreement(self, made: SealedSum, vectors: Vectors, model: bytes) -> Agreement:
        return Agreement(
            occasion=vectors.occasion,
            members=vectors.members,
            key_id=PublicContext.from_bytes(self.ring.public).key_id,
            adverts=vectors.adverts,
            model=model,
            least=self.secure.least,
        )

    def _threshold(self, vectors: Vectors) -> int:
        return 2 * len(vectors.members) // 3 + 1

    def _meeting(self, request: Request) -> Meeting:
        return Meeting(run_of(request.run, self.experiment), self.roster.sha256())

    # --- exchanges -------------------------------------------------------------------------------

    def _ask(self, parcels: Mapping[str, Parcel], taken: Taken, enough: int | None = None) -> None:
        expected = replace(self.expected, protected=0)
        outcomes = self.courier.letters(parcels, expected, taken=taken, enough=enough)
        self._rows.note(outcomes, letters=True)

    def _require(self, count: int, least: int, what: str, request: Request) -> None:
        least = max(least, self.secure.least, self.experiment.participation.least)
        if count < least:
            why = ", ".join(f"{n}: {reason}" for n, reason in self._rows.left_out().items())
            raise TooFewHospitals(
                f"round {request.round}: {count} hospitals {what}, {least} are needed ({why}); "
                "the sum stays closed"
            )

    @contextmanager
    def _timed(self, step: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self._seconds[step] = self._seconds.get(step, 0.0) + time.monotonic() - began


def _letter(outcome: Outcome) -> bytes:
    protected = outcome.answer.protected if outcome.answer else None
    if protected is None:
        raise WireError(Reason.MALFORMED)
    return protected.letter
