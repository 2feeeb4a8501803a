"""A sum under masks, led by the coordinator, who can read it and nothing in it.

    advertise, share    fresh keys; those for the next round ride on this one's letters
    work                masked updates and figures are added as they arrive
    sign                the survivors sign who is in the sum
    open                shares that take the masks off the sum, on enough signatures

What each step promises is in `federation.secure_aggregation.masks`. Nobody here is trusted: what is
asked of a hospital it checks itself. A hospital that vanishes at any step costs its own update alone.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from federation import figures
from federation.codec import packing, scales
from federation.codec.chain import Chain
from federation.figures import Figures, Summed
from federation.messages import Answer, Arrays, Expected, Phase, Reason, Request, WireError
from federation.roster import Roster
from federation.schema import Experiment, SecureAggregation
from federation.secure_aggregation import letters, masks
from federation.secure_aggregation.masks import Advert, Cohort, Occasion, Opening
from federation.secure_aggregation.weights import mean_of, shares
from server_app.aggregation.gathered import Gathered
from server_app.aggregation.plain import SCALES, scales_of
from server_app.aggregation.unopened import Unopened
from server_app.courier import Courier
from server_app.exchange import Outcome, Parcel, TooFewHospitals
from server_app.state import Checkpoint


class SumUnusable(TooFewHospitals):
    """Enough hospitals took part, and one or more of them gave what no sum can be opened or made of."""


@dataclass(frozen=True)
class Setup:
    """Keys and shares with which one sum can be made.

    Attributes:
        sealed: what each hospital of the cohort is to be given: by its name, by the sender's.
    """

    cohort: Cohort
    sealed: Mapping[str, Mapping[str, bytes]]

    @property
    def sharers(self) -> tuple[str, ...]:
        """Whose shares came: they alone can be in the sum."""
        return tuple(sorted({sender for given in self.sealed.values() for sender in given}))


@dataclass
class Masked:
    """The sums of one run."""

    courier: Courier
    experiment: Experiment
    secure: SecureAggregation
    expected: Expected
    chain: Chain
    figures: Figures
    roster: Roster
    _next: Setup | None = None
    _outcomes: dict[str, Outcome] = field(default_factory=dict)
    _seconds: dict[str, float] = field(default_factory=dict)

    def gather(self, hospitals: Sequence[str], request: Request, done: Checkpoint) -> Gathered:
        """Raises TooFewHospitals: too few took part for their sum to be opened, or it is none."""
        self._outcomes = self.courier.exchange.unanswered(hospitals, request.round)
        self._seconds = {}
        try:
            return self._gather(hospitals, request, done)
        except WireError as error:
            whose = getattr(error, "hospital", None)
            raise SumUnusable(
                f"round {request.round}: the hospitals' sum cannot be used: {error.reason}"
                + (f", by what {whose} gave" if whose else "")
            ) from error

    def _gather(self, hospitals: Sequence[str], request: Request, done: Checkpoint) -> Gathered:
        unopened = Unopened.load(self.courier.folder, request)
        if unopened is None:
            setup = self._setup(hospitals, request)
            unopened = self._work(setup, request, done)
            unopened.save(self.courier.folder)  # from here on a crash costs no hospital's work
        cohort = self._verified(unopened.adverts, unopened.occasion)
        openings = self._open(unopened, cohort, request)
        rebuilt = masks.rebuild(cohort, unopened.sharers, unopened.survivors, openings)
        masks.unmask(unopened.update, rebuilt, unopened.bits, part="update")
        masks.unmask(unopened.figures, rebuilt, figures.BITS, part="figures")
        summed = self.figures.summed(unopened.figures.view(np.int64), unopened.survivors)
        outcomes = self._rows(unopened)
        if not request.train:
            return Gathered(outcomes, None, done.codec, summed, self._seconds)
        mean, after = self._mean(unopened, cohort, request, done, summed)
        return Gathered(outcomes, mean, {SCALES: after}, summed, self._seconds)

    def release(self, done: Checkpoint) -> None:
        """The coordinator has the model."""

    # --- keys ------------------------------------------------------------------------------------

    def _setup(self, hospitals: Sequence[str], request: Request) -> Setup:
        """The keys that came with the round before; or fresh ones, where somebody is back without."""
        ready, self._next = self._next, None
        enough = ready is not None and len(ready.sharers) >= ready.cohort.threshold
        if ready is not None and enough and ready.cohort.occasion.round == request.round:
            online = self.courier.exchange.online()
            out = self.courier.exchange.suspended(request.round)
            there = {name for name in hospitals if name in online} - out
            if set(ready.sharers) >= there and not out & set(ready.sharers):
                return ready
        with self._timed("setup"):
            return self._fresh_setup(hospitals, request)

    def _fresh_setup(self, hospitals: Sequence[str], request: Request) -> Setup:
        attempt = self.courier.folder.next_attempt(request.round)
        occasion = self._occasion(request, attempt)
        adverts: dict[str, Advert] = {}

        def advertised(outcome: Outcome) -> None:
            advert = letters.advert_from_bytes(_letter(outcome))
            masks.verify(advert, occasion, outcome.hospital, self.roster.identities())
            adverts[outcome.hospital] = advert

        roster = self.roster.sha256().encode()
        asked = replace(request, phase=Phase.ADVERTISE, attempt=attempt, letter=roster)
        most = 2 * len(hospitals) // 3 + 1
        self._ask(dict.fromkeys(hospitals, asked), advertised, enough=most)
        self._require(len(adverts), self.secure.least, "gave keys", request)
        letter = letters.adverts_to_bytes(list(adverts.values()))
        cohort = self._verified(letter, occasion)
        sealed: dict[str, dict[str, bytes]] = {}

        def shared(outcome: Outcome) -> None:
            _deal(sealed, outcome.hospital, letters.sealed_from_bytes(_letter(outcome)), cohort)

        asked = replace(request, phase=Phase.SHARE, attempt=attempt, letter=letter)
        self._ask(dict.fromkeys(adverts, asked), shared, enough=cohort.threshold)
        setup = Setup(cohort, sealed)
        self._require(len(setup.sharers), cohort.threshold, "shared their keys", request)
        return setup

    # --- work ------------------------------------------------------------------------------------

    def _work(self, setup: Setup, request: Request, done: Checkpoint) -> Unopened:
        cohort, sharers = setup.cohort, setup.sharers
        length = self.chain.length(round=request.round) if request.train else 0
        bits = masks.headroom(self.chain.bits(round=request.round), len(sharers))
        update_bytes = packing.packed_length(length, bits)
        size = update_bytes + self.figures.length * figures.BITS // 8
        update = np.zeros(length, np.uint32)
        counted = np.zeros(self.figures.length, np.uint64)
        adverts: list[Advert] = []
        next_occasion = self._occasion(replace(request, round=request.round + 1), 0)

        def add(outcome: Outcome) -> None:
            protected = outcome.answer.protected if outcome.answer else None
            if outcome.answer is None or protected is None or len(protected.blob) != size:
                raise WireError(Reason.MALFORMED)
            advert = letters.advert_from_bytes(protected.letter)
            masks.verify(advert, next_occasion, outcome.hospital, self.roster.identities())
            values = packing.unpack(memoryview(protected.blob)[:update_bytes], bits, length)
            np.add(update, values, out=update)
            np.add(counted, np.frombuffer(protected.blob, "<u8", offset=update_bytes), out=counted)
            adverts.append(advert)
            outcome.answer = replace(outcome.answer, protected=None)  # it is in the sum: not kept

        before = scales_of(self.chain, done, self.experiment.training)
        asked = replace(request, attempt=cohort.occasion.attempt, scales=scales.to_bytes(before))
        requests = {
            name: replace(asked, letter=letters.sealed_to_bytes(setup.sealed.get(name, {})))
            for name in sharers
        }
        expected = replace(self.expected, protected=size)
        with self._timed("work"):
            outcomes = self.courier.work(requests, done, expected, taken=add)
        self._note(outcomes)
        survivors = tuple(o.hospital for o in outcomes if o.is_good)
        left_out = {o.hospital: o.reason for o in self._outcomes.values() if o.reason is not None}
        self._require(len(survivors), cohort.threshold, "sent their part", request)
        return Unopened(
            occasion=cohort.occasion,
            training=request.train,
            adverts=letters.adverts_to_bytes(list(cohort.adverts)),
            sharers=sharers,
            survivors=survivors,
            left_out=left_out,
            next_adverts=letters.adverts_to_bytes(adverts),
            bits=bits,
            update=update,
            figures=counted,
        )

    # --- opening ---------------------------------------------------------------------------------

    def _open(self, unopened: Unopened, cohort: Cohort, request: Request) -> dict[str, Opening]:
        """The shares that take the masks off: signatures first, from whom they came then shares."""
        asked = replace(request, attempt=unopened.occasion.attempt)
        signatures: dict[str, bytes] = {}
        openings: dict[str, Opening] = {}
        sealed: dict[str, dict[str, bytes]] = {}
        coming = self._coming(unopened, request)
        identities = self.roster.identities()

        def signed(outcome: Outcome) -> None:
            signature, shared = letters.split(_letter(outcome), 2)
            masks.verify_survivors(
                cohort,
                unopened.sharers,
                unopened.survivors,
                outcome.hospital,
                signature,
                identities,
            )
            signatures[outcome.hospital] = signature
            if coming is not None and shared:
                _deal(sealed, outcome.hospital, letters.sealed_from_bytes(shared), coming)

        survivors = letters.names_to_bytes(unopened.survivors)
        letter = letters.join(survivors, unopened.next_adverts if coming is not None else b"")
        with self._timed("sign"):
            to_sign = replace(asked, phase=Phase.SIGN, letter=letter)
            self._ask(dict.fromkeys(unopened.survivors, to_sign), signed, enough=cohort.threshold)
        if len(signatures) < cohort.threshold:
            Unopened.drop(self.courier.folder)  # the round can begin anew
        self._require(len(signatures), cohort.threshold, "signed who is in the sum", request)

        def opened(outcome: Outcome) -> None:
            openings[outcome.hospital] = letters.opening_from_bytes(_letter(outcome))

        letter = letters.join(survivors, letters.signatures_to_bytes(signatures))
        Unopened.opening(self.courier.folder)
        with self._timed("open"):
            to_open = replace(asked, phase=Phase.OPEN, letter=letter)
            self._ask(dict.fromkeys(signatures, to_open), opened, enough=cohort.threshold)
        self._require(len(openings), cohort.threshold, "opened the sum", request)
        if coming is not None:
            self._next = Setup(coming, sealed)
        return openings

    def _coming(self, unopened: Unopened, request: Request) -> Cohort | None:
        """The next sum's hospitals, if its keys came from enough of them."""
        occasion = self._occasion(replace(request, round=request.round + 1), 0)
        try:
            return self._verified(unopened.next_adverts, occasion)
        except WireError:
            return None

    def _mean(
        self,
        unopened: Unopened,
        cohort: Cohort,
        request: Request,
        done: Checkpoint,
        summed: Summed,
    ) -> tuple[Arrays, NDArray[np.int16]]:
        """The weighted mean of the survivors' updates, and the next round's scales."""
        before = scales_of(self.chain, done, self.experiment.training)
        total = packing.signed(unopened.update, unopened.bits)
        count = len(unopened.survivors)
        plain, after = self.chain.decode(total, count, before, round=request.round)
        sizes = cohort.sizes(unopened.sharers)
        part = shares(sizes, self.experiment.participation.weighting)
        return mean_of(plain, unopened.survivors, part, summed.normaliser), after

    # --- exchanges -------------------------------------------------------------------------------

    def _occasion(self, request: Request, attempt: int) -> Occasion:
        return Occasion(request.run, request.round, attempt, self.roster.sha256())

    def _verified(self, adverts: bytes, occasion: Occasion) -> Cohort:
        return masks.cohort(
            letters.adverts_from_bytes(adverts),
            occasion,
            self.roster.identities(),
            least=self.secure.least,
        )

    def _ask(
        self,
        requests: Mapping[str, Request],
        taken: Any,
        *,
        enough: int | None = None,
    ) -> None:
        expected = replace(self.expected, protected=0)
        parcels = {name: Parcel(request, b"") for name, request in requests.items()}
        outcomes = self.courier.letters(parcels, expected, taken=taken, enough=enough)
        for outcome in outcomes:
            outcome.answer = None  # a letter is not kept, and what the work said of a ledger is
        self._note(outcomes)

    def _note(self, outcomes: list[Outcome]) -> None:
        """A hospital's row of the round: its last word, with the bytes and seconds of all steps."""
        for outcome in outcomes:
            before = self._outcomes.get(outcome.hospital, Outcome(outcome.hospital))
            self._outcomes[outcome.hospital] = replace(
                outcome,
                answer=outcome.answer or before.answer,
                attempts=max(before.attempts, outcome.attempts),
                seconds=before.seconds + outcome.seconds,
                bytes_down=before.bytes_down + outcome.bytes_down,
                bytes_up=before.bytes_up + outcome.bytes_up,
            )

    def _rows(self, unopened: Unopened) -> list[Outcome]:
        """Whose work is in the sum is good, whatever became of its later letters."""
        for name, reason in unopened.left_out.items():
            self._outcomes.setdefault(name, Outcome(name)).reason = reason
        for name in unopened.survivors:
            row = self._outcomes.setdefault(name, Outcome(name))
            row.answer, row.reason = row.answer or Answer(0), None  # none, after a crash
        return [self._outcomes[name] for name in sorted(self._outcomes)]

    def _require(self, count: int, least: int, what: str, request: Request) -> None:
        least = max(least, self.secure.least, self.experiment.participation.least)
        if count < least:
            why = ", ".join(
                f"{o.hospital}: {o.reason}" for o in self._outcomes.values() if o.reason is not None
            )
            raise TooFewHospitals(
                f"round {request.round}: {count} hospitals {what}, {least} are needed ({why}); "
                "the sum stays closed"
            )

    @contextmanager
    def _timed(self, step: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self._seconds[step] = time.monotonic() - began


def _letter(outcome: Outcome) -> bytes:
    protected = outcome.answer.protected if outcome.answer else None
    if protected is None:
        raise WireError(Reason.MALFORMED)
    return protected.letter


def _deal(
    sealed: dict[str, dict[str, bytes]], sender: str, shared: Mapping[str, bytes], cohort: Cohort
) -> None:
    """Put what a hospital sealed for each of the others where they will be given it."""
    if set(shared) != set(cohort.names):
        raise WireError(Reason.BAD_SHARE)
    for recipient, box in shared.items():
        sealed.setdefault(recipient, {})[sender] = box
