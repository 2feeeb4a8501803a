"""This hospital's part in a sum that only hospitals read.

The arithmetic is in `federation.secure_aggregation.ckks`. A round's sum is opened here when enough
hospitals signed who is in it, which ciphertexts it is and which model they hold. Then the strategy moves
the model, at each hospital alike, and the round's figures are told: of one sum a round.

What the coordinator learns, whatever it sends: sizes, who takes part, and each round's figures summed
over more than two thirds of the hospitals; the final model, if experiment and policy let it go. It can
stop a run, leave hospitals out and have wrong figures in its own report. It reads no update, no sum of
updates and no model, and no other vector than the agreed sum moves the model. As under any secure sum,
two rounds' figures tell together of who was in one of them alone: counts, which do not change from round
to round, exactly.

That rests on: the hardness of ring-LWE at the parameters in `ckks`, HMAC-SHA-256, Ed25519, X25519 and
AES-GCM; a roster that names the true hospitals; fewer than a third of them corrupted or put back to an
older disk; and **no hospital that works together with the coordinator: any one that does can read every
other's update**, because each has the run's key. Against that only `masks` helps.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from torch import nn

from client_app import identity
from client_app.encrypted_state import EncryptedRun, Ring, State
from client_app.identity import Identity
from client_app.masked_sum import integers_of, own_size
from client_app.policy import Refused
from client_app.received import Asked, Received
from client_app.sessions import Session, Sessions
from federation import models, strategies, tasks, wire
from federation.codec import chain as chains
from federation.codec import scales
from federation.codec.chain import Chain, Scales
from federation.figures import Figures
from federation.messages import Answer, Phase, Protected, Reason
from federation.roster import Roster
from federation.schema import ConfigError
from federation.secure_aggregation import keys, letters, sealing
from federation.secure_aggregation.agreement import Agreement, Proposal, Signed
from federation.secure_aggregation.ckks import Ckks, HospitalKey
from federation.secure_aggregation.encryption import Vectors, run_of, vectors_of
from federation.secure_aggregation.keys import Occasion, derived
from federation.secure_aggregation.sealing import Meeting, SealingAdvert
from federation.secure_aggregation.stream import Signed as SignedIntegers
from federation.secure_aggregation.weights import mean_of, shares


@dataclass
class EncryptedSum:
    """One request of a run whose updates are summed encrypted.

    Attributes:
        identity: this hospital's, with the roster that it accepted.
    """

    asked: Asked
    identity: Identity
    sessions: Sessions
    run: EncryptedRun

    @classmethod
    @contextmanager
    def under_way(cls, asked: Asked) -> Iterator[EncryptedSum]:
        """Raises Refused: this hospital's keys, its roster, or what it remembers cannot be used."""
        site, run = asked.site, asked.request.run
        try:
            own = identity.load(site)
        except (ConfigError, OSError) as error:
            raise Refused(Reason.BAD_SITE) from error
        with Sessions.held(site.state, run) as sessions:
            yield cls(asked, own, sessions, EncryptedRun.of(site.state, run))

    def reply(self) -> Protected:
        """The answer to a step without work.

        Raises:
            Refused, WireError: the coordinator, or another hospital, does not keep to the protocol, or
                this hospital no longer has the keys or the model.
        """
        match self.asked.request.phase:
            case Phase.ADVERTISE:
                return Protected(self._advertise())
            case Phase.SHARE:
                return Protected(self._share_key())
            case Phase.SIGN:
                return Protected(self._sign())
            case Phase.OPEN:
                return Protected(self._open())
            case _:
                return Protected(b"", self._release())

    # --- the run's key ---------------------------------------------------------------------------

    def _advertise(self) -> bytes:
        if self.asked.request.letter != self._roster.sha256().encode():
            raise Refused(Reason.ROSTER_DIFFERS)
        ring = self._ring
        if not ring.advert:
            private, advert = sealing.advertise(
                self.identity.key, self._name, own_size(self.asked), self._meeting
            )
            ring = replace(ring, private=private.private_bytes_raw(), advert=advert.to_bytes())
            self.run.keep_ring(ring)
        return ring.advert

    def _share_key(self) -> bytes:
        """The run's key, sealed for each hospital that asks for it; made here if nobody has it yet."""
        public, adverts = letters.split(self.asked.request.letter, 2)
        ring = self._ring
        if not ring.key:
            if public:
                raise Refused(Reason.NO_KEYS)  # others have one, and it has to be that
            made = Ckks().make_key()
            ring = replace(ring, key=made.to_bytes(), public=made.public.to_bytes())
            self.run.keep_ring(ring)
        if public not in (b"", ring.public):
            raise Refused(Reason.BAD_KEY)
        boxes = sealing.seal_key(
            ring.key,
            ring.public,
            letters.sealing_adverts_from_bytes(adverts),
            self._roster.identities(),
            self.identity.key,
            self._name,
            self._meeting,
        )
        return letters.join(ring.public, letters.boxes_to_bytes(boxes))

    def _receive_key(self, public: bytes, sealer: str, box: bytes) -> None:
        """Take the run's key out of the box that another hospital sealed for this one.

        A key that was made here gives way as long as nothing was encrypted: who made it may have
        vanished before the others heard of it, and another hospital made theirs.
        """
        ring, identities = self._ring, self._roster.identities()
        if ring.key and ring.public == public:
            return
        if ring.key and (
            self._state.round or any(s.masked for s in self.sessions.sessions.values())
        ):
            raise Refused(Reason.BAD_KEY)
        if not ring.private:
            raise Refused(Reason.NO_KEYS)
        if sealer not in identities:
            raise Refused(Reason.ROSTER_DIFFERS)
        private = keys.private_key(ring.private)
        key = sealing.open_key(
            box, public, private, self._name, sealer, identities[sealer], self._meeting
        )
        HospitalKey.from_bytes(key, public)
        self.run.keep_ring(replace(ring, key=key, public=public))

    # --- work ------------------------------------------------------------------------------------

    def begin_work(self) -> Asked:
        """Take the key if it comes along, and open the rounds that this hospital missed.

        Raises:
            Refused, WireError: as `reply`; NO_MODEL, what came does not lead to the model of this round;
                NO_KEYS, the key was lost here and has to be sealed anew.
        """
        request = self.asked.request
        public, adverts, sealer, box = letters.split(request.letter, 4)
        self._receive_key(public, sealer.decode("ascii", "replace"), box)
        sizes = self._sizes(adverts)
        if request.round <= self.sessions.opened or self._name not in sizes:
            raise Refused(Reason.REPLAYED)
        self._catch_up(request.base if request.base is not None else 0)
        if self._state.round != request.round - 1:
            raise Refused(Reason.REPLAYED)
        session = self.sessions.sessions.get((request.round, 0))
        if session is None or (session.cohort != adverts and session.survivors is None):
            # others may have come before the round was done again: it is for another sum
            self.sessions.keep(Session(request.round, 0, b"", b"", cohort=adverts))
        elif session.cohort != adverts:
            raise Refused(Reason.REPLAYED)
        return self.working

    @property
    def working(self) -> Asked:
        """What is asked, with the model and the scales that are held here."""
        told = replace(self.asked.request, base=None, scales=scales.to_bytes(self._scales))
        return replace(self.asked, request=told, blob=self.packed)

    def _catch_up(self, base: int) -> None:
        """From the round that the coordinator believes to be held here to the last opened one."""
        missed = self.asked.request.round - 1 - base
        if base > self._state.round or missed < 0:
            raise Refused(Reason.NO_MODEL)
        opened = letters.split(self.asked.blob, 3 * missed)
        for place in range(missed):
            adverts, letter, sums = opened[3 * place : 3 * place + 3]
            if base + place + 1 > self._state.round:
                self._move(base + place + 1, adverts, Signed.from_bytes(letter), sums)

    @cached_property
    def share(self) -> float:
        """This hospital's weight in the sum, as all in it reckon it from the sizes they made known."""
        return self._shares(self._session.cohort)[self._name]

    @property
    def packed(self) -> bytes:
        """The model of this round as `wire.pack` writes it: no coordinator sent it."""
        return wire.pack(self._state.model)

    def of(self, received: Received) -> Encrypting:
        """What is done with the answer to the request; see `client_app.outbox.SecureSum`."""
        return Encrypting(self, received)

    def encrypted(self, update: SignedIntegers, counted: SignedIntegers) -> Protected:
        """Both vectors, encrypted for the hospitals.

        Raises:
            Refused: others were encrypted for this round before.
        """
        both = hashlib.sha256(update.tobytes() + counted.tobytes()).hexdigest()
        if self._session.masked not in ("", both):
            raise Refused(Reason.REPLAYED)
        self.sessions.keep(replace(self._session, masked=both))
        request = self.asked.request
        vectors = self._vectors(request.round, self._session.cohort, request.train)
        return Protected(b"", vectors.encrypt(self._key, self._name, update, counted))

    # --- opening ---------------------------------------------------------------------------------

    def _sign(self) -> bytes:
        session, letter = self._session, self.asked.request.letter
        if (before := session.reply(Phase.SIGN, letter, Reason.SURVIVORS_DIFFER)) is not None:
            return before
        if not session.masked:
            raise Refused(Reason.NO_KEYS)
        if self._state.round != session.round - 1:
            raise Refused(Reason.NO_MODEL)
        agreement = self._agreement(session.round, session.cohort, self._model)
        proposal = Proposal.from_bytes(letter)
        signature = agreement.sign(proposal, self._name, self.identity.key)
        reply = letters.join(agreement.model, signature)
        survivors = proposal.survivors
        self.sessions.keep(session.answers(Phase.SIGN, letter, reply, survivors=survivors))
        return reply

    def _open(self) -> bytes:
        """The round's figures; from here on the model is the next.

        The model is kept first. After a crash before the session is, the same letter brings the same
        figures, and the model stays as it is.
        """
        session, request = self._session, self.asked.request
        signed = Signed.from_bytes(request.letter)
        otherwise = Reason.SURVIVORS_DIFFER if session.opened is None else Reason.BOTH_SHARES
        mine = session.reply(Phase.SIGN, signed.proposal.to_bytes(), otherwise)
        if mine is None:
            raise Refused(otherwise)
        if session.opened is not None:
            return session.answered[Phase.OPEN][1]
        counted, _ = letters.split(self.asked.blob, 2)
        model, _ = letters.split(mine, 2)  # as it was when signed
        self._require(session.round, session.cohort, signed, model)
        vectors = self._vectors(session.round, session.cohort, request.train)
        figures = self._figures_in(vectors, signed.proposal, counted)
        if request.train and self._state.round == session.round - 1:
            self._move(session.round, session.cohort, signed, self.asked.blob)
        reply = figures.astype("<i8").tobytes()
        self.sessions.opened = max(self.sessions.opened, session.round)
        opened = signed.proposal.survivors
        self.sessions.keep(session.answers(Phase.OPEN, request.letter, reply, opened=opened))
        return reply

    def _figures_in(
        self, vectors: Vectors, proposal: Proposal, counted: bytes
    ) -> NDArray[np.int64]:
        """The figures of just the hospitals that were agreed on.

        Raises:
            Refused, WireError: other figures than these.
        """
        proposal.require_figures(counted)
        figures, whose = vectors.figures_of(self._key, counted)
        if whose != proposal.survivors:
            raise Refused(Reason.SURVIVORS_DIFFER)
        return figures

    def _move(self, round_: int, adverts: bytes, signed: Signed, sums: bytes) -> None:
        """Open a round's updates and let the strategy move the model by their mean.

        Args:
            sums: encrypted, of the figures and of the updates.

        Raises:
            Refused, WireError: not enough signatures on just this sum and this hospital's model.
        """
        if self._state.round != round_ - 1:
            raise Refused(Reason.NO_MODEL)
        self._require(round_, adverts, signed, self._model)
        counted, total = letters.split(sums, 2)
        signed.proposal.require_update(total)
        survivors, vectors = signed.proposal.survivors, self._vectors(round_, adverts, True)
        integers, whose = vectors.update_of(self._key, total)
        if whose != survivors:
            raise Refused(Reason.SURVIVORS_DIFFER)
        plain, after = self._chain.decode(integers, len(survivors), self._scales, round=round_)
        normaliser = None
        if self._figures.normalised:
            figures = self._figures_in(vectors, signed.proposal, counted)
            normaliser = self._figures.summed(figures, survivors).normaliser
        mean = mean_of(plain, survivors, self._shares(adverts), normaliser)
        held = self._state
        strategy = strategies.build(self.asked.experiment)
        parameters = frozenset(name for name, _ in self._network.named_parameters())
        model, memory = strategies.move(strategy, held.model, mean, held.strategy, parameters)
        self._keep(State(self._experiment, round_, model, memory, {"scales": after}))

    def _require(self, round_: int, adverts: bytes, signed: Signed, model: bytes) -> None:
        """That enough hospitals signed just this, of the model that is held here.

        Raises:
            ProtocolError: they did not.
            Refused: NO_MODEL, they did, and hold another one: what is here is forgotten.
        """
        agreement = self._agreement(round_, adverts, signed.model)
        agreement.require(signed.proposal, signed.signatures, self._roster.identities())
        if not hmac.compare_digest(signed.model, model):
            self.run.forget_state()
            raise Refused(Reason.NO_MODEL)

    def _release(self) -> bytes:
        """The final model, where experiment and policy let the coordinator have it."""
        held, experiment, policy = self._state, self.asked.experiment, self.asked.site.policy
        secure = experiment.secure_aggregation
        if secure is None or secure.release != "coordinator" or policy.release != "coordinator":
            raise Refused(Reason.REFUSED_RELEASE)
        if held.round != experiment.rounds:
            raise Refused(Reason.REFUSED_RELEASE)  # models on the way would tell of single rounds
        return self.packed

    # --- what is known here ----------------------------------------------------------------------

    @property
    def _name(self) -> str:
        return self.asked.site.hospital

    @property
    def _roster(self) -> Roster:
        return self.identity.roster

    @property
    def _meeting(self) -> Meeting:
        return Meeting(self._run, self._roster.sha256())

    @property
    def _experiment(self) -> str:
        return self.asked.experiment.sha256()

    @property
    def _run(self) -> str:
        return run_of(self.asked.request.run, self.asked.experiment)

    @property
    def _ring(self) -> Ring:
        return self.run.ring(self._experiment)

    @cached_property
    def _key(self) -> HospitalKey:
        ring = self._ring
        if not ring.key:
            raise Refused(Reason.NO_KEYS)
        return HospitalKey.from_bytes(ring.key, ring.public)

    @property
    def _session(self) -> Session:
        return self.sessions.find(self.asked.request.round, 0)

    @cached_property
    def _network(self) -> nn.Module:
        experiment = self.asked.experiment
        task = tasks.of_experiment(experiment)
        return models.build(experiment.model, task, seed=experiment.seed)

    @cached_property
    def _chain(self) -> Chain:
        experiment = self.asked.experiment
        if experiment.codec is None:
            raise Refused(Reason.BAD_EXPERIMENT)
        chain = chains.build(experiment.codec, self._network, seed=experiment.seed)
        if not chain.linear:
            raise Refused(Reason.BAD_EXPERIMENT)
        return chain

    @cached_property
    def _figures(self) -> Figures:
        experiment = self.asked.experiment
        return Figures.of(experiment, tasks.of_experiment(experiment))

    @property
    def _state(self) -> State:
        """The model held here; the untrained one, drawn from the experiment's seed, before the first."""
        if not hasattr(self, "_held"):
            fresh = {name: a.copy() for name, a in models.arrays_of(self._network).items()}
            held = self.run.state(self._experiment)
            self._held = held or State(self._experiment, 0, fresh)
        return self._held

    def _keep(self, state: State) -> None:
        self.run.keep_state(state)
        self._held = state

    @property
    def _model(self) -> bytes:
        """Stands for the model in signatures; without the run's key nobody can try guesses on it."""
        key = derived(self._key.run_key, "ckks model digest")
        return hmac.digest(key, self.packed, hashlib.sha256)

    @property
    def _scales(self) -> Scales:
        known = self._state.codec.get("scales")
        return self._chain.first_scales(self.asked.experiment.training) if known is None else known

    def _sizes(self, adverts: bytes) -> dict[str, int]:
        """By hospital, of adverts that each signed for this run."""
        identities = self._roster.identities()
        told: Mapping[str, SealingAdvert] = letters.sealing_adverts_from_bytes(adverts)
        for name, advert in told.items():
            if name not in identities:
                raise Refused(Reason.ROSTER_DIFFERS)
            advert.check(identities[name], self._meeting)
        return {name: advert.size for name, advert in told.items()}

    def _shares(self, adverts: bytes) -> dict[str, float]:
        return shares(self._sizes(adverts), self.asked.experiment.participation.weighting)

    def _vectors(self, round_: int, adverts: bytes, train: bool) -> Vectors:
        occasion = Occasion(self._run, round_, 0, self._roster.sha256())
        return vectors_of(
            self.asked.experiment,
            occasion,
            self._roster.names(),
            self._chain,
            self._figures,
            adverts=adverts,
            train=train,
        )

    def _agreement(self, round_: int, adverts: bytes, model: bytes) -> Agreement:
        vectors = self._vectors(round_, adverts, False)
        return Agreement(
            occasion=vectors.occasion,
            members=vectors.members,
            key_id=self._key.public.key_id,
            adverts=vectors.adverts,
            model=model,
            least=max(vectors.least, self.asked.site.policy.least_hospitals),
        )


@dataclass(frozen=True)
class Encrypting:
    """Turns an answer into integers, and encrypts them."""

    sum: EncryptedSum
    received: Received

    def protect(self, answer: Answer) -> Answer:
        """What the ledger says depends on no patient, and is told beside the encrypted work."""
        update, _, counted = integers_of(self.sum.working, self.received, answer, self.sum.share)
        protected = self.sum.encrypted(update, counted)
        return Answer(answer.round, protected=protected, spent=answer.spent)
