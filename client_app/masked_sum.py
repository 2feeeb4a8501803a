"""This hospital's part in a sum under masks: one answer a step, each to one letter alone.

The arithmetic and what it promises are in `federation.secure_aggregation.masks`. Here is what it leaves
to whoever keeps the disk: keys serve one sum, a mask covers one vector, a round is opened once, with one
list of survivors, and the roster is this hospital's own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from client_app import identity
from client_app.identity import Identity
from client_app.patients import find_patients
from client_app.policy import Refused, require_patients
from client_app.received import Asked, Received, quantised
from client_app.sessions import Session, Sessions
from federation import figures, strategies
from federation.codec import packing
from federation.figures import Figures
from federation.messages import Answer, Phase, Protected, Reason, WireError
from federation.schema import ConfigError
from federation.secure_aggregation import letters, masks
from federation.secure_aggregation.masks import Cohort, Held, Occasion, Secrets
from federation.secure_aggregation.stream import Signed
from federation.secure_aggregation.weights import shares


@dataclass
class MaskedSum:
    """One request of a run whose updates are summed under masks.

    Attributes:
        identity: this hospital's, with the roster that it accepted.
        least: hospitals whose sum may be opened, by the stricter of experiment and policy.
    """

    asked: Asked
    identity: Identity
    sessions: Sessions
    least: int

    @classmethod
    @contextmanager
    def under_way(cls, asked: Asked) -> Iterator[MaskedSum]:
        """Raises Refused: this hospital's keys, its roster, or what it remembers cannot be used."""
        site, secure = asked.site, asked.experiment.secure_aggregation
        try:
            own = identity.load(site)
        except (ConfigError, OSError) as error:
            raise Refused(Reason.BAD_SITE) from error
        least = max(site.policy.least_hospitals, secure.least if secure is not None else 0)
        with Sessions.held(site.state, asked.request.run) as sessions:
            yield cls(asked, own, sessions, least)

    def reply(self) -> Protected:
        """The letter in answer to a step without work.

        Raises:
            Refused, WireError: the coordinator, or another hospital, does not keep to the protocol, or
                this hospital no longer has the keys.
        """
        match self.asked.request.phase:
            case Phase.ADVERTISE:
                return Protected(self._advertise())
            case Phase.SHARE:
                return Protected(self._share_keys())
            case Phase.SIGN:
                return Protected(self._sign())
            case Phase.OPEN:
                return Protected(self._open())
            case _:
                raise Refused(Reason.REFUSED_RELEASE)  # the coordinator has the model

    # --- keys ------------------------------------------------------------------------------------

    def _advertise(self) -> bytes:
        request = self.asked.request
        if request.letter != self.identity.roster.sha256().encode():
            raise Refused(Reason.ROSTER_DIFFERS)
        return self._advert(request.round, request.attempt)

    def _advert(self, round_: int, attempt: int, size: int | None = None) -> bytes:
        """The public keys of a sum to come; the same again when they are asked for again."""
        if (known := self.sessions.sessions.get((round_, attempt))) is not None:
            return known.advert
        secrets, advert = masks.advertise(
            self._occasion(round_, attempt),
            self.asked.site.hospital,
            own_size(self.asked) if size is None else size,
            self.identity.key,
        )
        written = letters.advert_to_bytes(advert)
        self.sessions.begin(Session(round_, attempt, secrets.to_bytes(), written))
        return written

    def _share_keys(self) -> bytes:
        session, adverts = self._session, self.asked.request.letter
        if (before := session.reply(Phase.SHARE, adverts, Reason.REPLAYED)) is not None:
            return before
        return self._shared(session, adverts)

    def _shared(self, session: Session, adverts: bytes) -> bytes:
        """Shares of this hospital's secrets, sealed for each hospital that gave keys."""
        secrets = self._secrets(session)
        reply = letters.sealed_to_bytes(masks.share(secrets, self._verified(adverts, secrets)))
        self.sessions.keep(session.answers(Phase.SHARE, adverts, reply, cohort=adverts))
        return reply

    # --- work ------------------------------------------------------------------------------------

    def begin_work(self) -> Asked:
        """Open the shares that came for this hospital, before it works for a sum it cannot join.

        Raises:
            Refused, WireError: as `reply`.
        """
        session, letter = self._session, self.asked.request.letter
        if session.reply(Phase.WORK, letter, Reason.REPLAYED) is not None:
            return self.asked
        if session.round <= self.sessions.opened:
            raise Refused(Reason.REPLAYED)
        secrets = self._secrets(session)
        cohort = self._verified(session.cohort, secrets)
        held = masks.receive(secrets, cohort, letters.sealed_from_bytes(letter), least=self.least)
        self.sessions.keep(session.answers(Phase.WORK, letter, b"", held=held.to_bytes()))
        return self.asked

    @cached_property
    def share(self) -> float:
        """This hospital's weight in the sum, as all in it reckon it from the sizes they made known."""
        _, cohort, held = self._joined
        weighting = self.asked.experiment.participation.weighting
        return shares(cohort.sizes(held.sharers), weighting)[self.asked.site.hospital]

    def of(self, received: Received) -> Masking:
        """What goes over the answer to the request; see `client_app.outbox.SecureSum`."""
        return Masking(self, received)

    def masked(self, update: Signed, bits: int, counted: Signed) -> Protected:
        """Both vectors under masks, and this hospital's keys for the next round.

        Args:
            update: signed, of so many `bits`; (0,) where nothing was trained.
            counted: int64.

        Raises:
            Refused: other vectors were masked for this sum before.
        """
        secrets, cohort, held = self._joined
        vectors = hashlib.sha256(update.tobytes())
        vectors.update(counted.tobytes())
        if self._session.masked not in ("", vectors.hexdigest()):
            raise Refused(Reason.REPLAYED)
        self.sessions.keep(replace(self._session, masked=vectors.hexdigest()))
        blobs = []
        for vector, width, part in (
            (update, masks.headroom(bits, len(held.sharers)), "update"),
            (counted, figures.BITS, "figures"),
        ):
            residues = masks.to_residues(vector, width)
            masks.mask(secrets, cohort, held.sharers, residues, width, part=part)
            packed = width <= packing.MOST_BITS
            blobs.append(packing.pack(residues, width) if packed else residues.tobytes())
        keys = self._advert(self.asked.request.round + 1, 0, secrets.size)
        return Protected(keys, b"".join(blobs))

    # --- opening ---------------------------------------------------------------------------------

    def _sign(self) -> bytes:
        session, letter = self._session, self.asked.request.letter
        if (before := session.reply(Phase.SIGN, letter, Reason.SURVIVORS_DIFFER)) is not None:
            return before
        if not session.masked:
            raise Refused(Reason.NO_KEYS)
        secrets, cohort, held = self._joined
        listed, adverts = letters.split(letter, 2)
        survivors = letters.names_from_bytes(listed)
        signature = masks.sign_survivors(
            secrets, cohort, held.sharers, survivors, self.identity.key, least=self.least
        )
        reply = letters.join(signature, self._shared_ahead(adverts))
        self.sessions.keep(session.answers(Phase.SIGN, letter, reply, survivors=survivors))
        return reply

    def _shared_ahead(self, adverts: bytes) -> bytes:
        """Shares for the next round's sum; nothing where it cannot be made of these keys."""
        coming = self.sessions.sessions.get((self.asked.request.round + 1, 0))
        if not adverts or coming is None:
            return b""
        try:
            before = coming.reply(Phase.SHARE, adverts, Reason.REPLAYED)
            return self._shared(coming, adverts) if before is None else before
        except (Refused, WireError):
            return b""  # fresh keys will be asked for; this sum need not suffer

    def _open(self) -> bytes:
        session = self._session
        secrets, cohort, held = self._joined
        listed, signed = letters.split(self.asked.request.letter, 2)
        survivors = letters.names_from_bytes(listed)
        opening = masks.open_shares(
            held,
            secrets,
            cohort,
            survivors,
            letters.signatures_from_bytes(signed),
            self.identity.roster.identities(),
            signed=session.survivors or (),
            least=self.least,
            opened_before=session.opened,
        )
        self.sessions.opened = max(self.sessions.opened, session.round)
        self.sessions.keep(replace(session, opened=survivors))
        return letters.opening_to_bytes(opening)

    # --- what is under way -----------------------------------------------------------------------

    @property
    def _session(self) -> Session:
        return self.sessions.find(self.asked.request.round, self.asked.request.attempt)

    @cached_property
    def _joined(self) -> tuple[Secrets, Cohort, Held]:
        session = self._session
        if not session.held:
            raise Refused(Reason.NO_KEYS)
        secrets = self._secrets(session)
        return secrets, self._verified(session.cohort, secrets), Held.from_bytes(session.held)

    def _secrets(self, session: Session) -> Secrets:
        """Raises Refused, ProtocolError: none, or another hospital's or run's, put here by somebody."""
        secrets = Secrets.from_bytes(session.secrets)
        own = (self.asked.site.hospital, self.asked.request.run, session.round, session.attempt)
        occasion = secrets.occasion
        if (secrets.hospital, occasion.run, occasion.round, occasion.attempt) != own:
            raise Refused(Reason.NO_KEYS)
        return secrets

    def _verified(self, adverts: bytes, own: Secrets) -> Cohort:
        return masks.cohort(
            letters.adverts_from_bytes(adverts),
            own.occasion,
            self.identity.roster.identities(),
            least=self.least,
            own=own,
        )

    def _occasion(self, round_: int, attempt: int) -> Occasion:
        return Occasion(self.asked.request.run, round_, attempt, self.identity.roster.sha256())


@dataclass(frozen=True)
class Masking:
    """Turns an answer into integers, and puts masks over them."""

    sum: MaskedSum
    received: Received

    def protect(self, answer: Answer) -> Answer:
        """What the ledger says depends on no patient, and is told beside the masked work."""
        update, bits, counted = integers_of(self.sum.asked, self.received, answer, self.sum.share)
        protected = self.sum.masked(update, bits, counted)
        return Answer(answer.round, protected=protected, spent=answer.spent)


def integers_of(
    asked: Asked, received: Received, answer: Answer, share: float
) -> tuple[Signed, int, Signed]:
    """An answer as what is summed: the update's integers and their bits, and the figures.

    A strategy may have the update divided first; a norm bound is of what is sent, so it comes after.

    Raises:
        Refused: an experiment whose updates cannot be added as integers.
    """
    chain, round_ = received.chain, asked.request.round
    if chain is None or not chain.linear:
        raise Refused(Reason.BAD_EXPERIMENT)
    update: Signed = np.empty(0, np.int32)
    divided = 0.0
    if (trained := answer.trained) is not None:
        arrays, normaliser = trained.update, strategies.normaliser(asked.experiment)
        if normaliser is not None:
            divisor = normaliser(round_, trained.steps or 0)
            arrays, divided = strategies.scale_parameters(arrays, 1 / divisor), share * divisor
        update = chain.integers(quantised(asked, received, arrays, share))
    counted = Figures.of(asked.experiment, received.task).integers(answer, divided)
    return update, chain.bits(round=round_), counted


def own_size(asked: Asked) -> int:
    """What this hospital's update weighs: public, and the same for a whole run."""
    experiment, site = asked.experiment, asked.site
    if experiment.participation.weighting == "equal":
        return 1
    if site.privacy is not None:
        return site.privacy.patients
    patients = find_patients(site, experiment).cohort.training_patients
    require_patients(site.policy, patients)
    return patients
