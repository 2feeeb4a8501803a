"""What hospitals agree on before they open an encrypted sum: who is in it, which numbers it is made of,
and the model it moves.

Above two thirds of the run's hospitals sign one statement a round, and each signs one alone, before
anybody decrypts. So while fewer than a third of the hospitals are corrupted, a round has one list of
hospitals and one pair of encrypted sums: the difference of two lists, which would be single hospitals'
work, cannot be opened, no two hospitals move their models by different sums, and a coordinator cannot
try altered sums one after the other and learn from which of them are refused (Cheon et al. 2024, eprint
2024/127). Hospitals that hold different models find out before they move them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from federation.messages import Reason
from federation.secure_aggregation import letters
from federation.secure_aggregation.keys import Occasion, ProtocolError, check_listed, encoded

_DIGEST = 32  # bytes


@dataclass(frozen=True)
class Proposal:
    """What the coordinator asks hospitals to sign.

    Attributes:
        survivors: whose work is in the sums, sorted.
        figures, update: SHA-256 of the encrypted sums as they will be sent; that of nothing where
            nothing was trained.
    """

    survivors: tuple[str, ...]
    figures: bytes
    update: bytes

    @classmethod
    def of(cls, survivors: Sequence[str], figures: bytes, update: bytes) -> Proposal:
        """Of the sums themselves."""
        return cls(tuple(survivors), digest(figures), digest(update))

    def to_bytes(self) -> bytes:
        return letters.join(letters.names_to_bytes(self.survivors), self.figures, self.update)

    @classmethod
    def from_bytes(cls, content: bytes) -> Proposal:
        """Raises ProtocolError: MALFORMED."""
        names, figures, update = letters.split(content, 3)
        if not len(figures) == len(update) == _DIGEST:
            raise ProtocolError(Reason.MALFORMED)
        return cls(letters.names_from_bytes(names), figures, update)

    def require_figures(self, total: bytes) -> None:
        """Raises ProtocolError: BAD_SIGNATURE, another sum than the one that was signed."""
        if digest(total) != self.figures:
            raise ProtocolError(Reason.BAD_SIGNATURE)

    def require_update(self, total: bytes) -> None:
        """As `require_figures`."""
        if digest(total) != self.update:
            raise ProtocolError(Reason.BAD_SIGNATURE)


@dataclass(frozen=True)
class Signed:
    """A proposal on its way back to hospitals, with what they said of it.

    Attributes:
        model: of those whose signatures are here, see `Agreement.model`.
    """

    proposal: Proposal
    model: bytes
    signatures: Mapping[str, bytes]

    def to_bytes(self) -> bytes:
        signatures = letters.signatures_to_bytes(self.signatures)
        return letters.join(self.proposal.to_bytes(), self.model, signatures)

    @classmethod
    def from_bytes(cls, content: bytes) -> Signed:
        """Nothing of it is verified yet. Raises ProtocolError: MALFORMED."""
        proposal, model, signatures = letters.split(content, 3)
        if len(model) != _DIGEST:
            raise ProtocolError(Reason.MALFORMED)
        told = letters.signatures_from_bytes(signatures)
        return cls(Proposal.from_bytes(proposal), model, told)


@dataclass(frozen=True)
class Agreement:
    """A round's, as one hospital sees it.

    Attributes:
        members: hospitals that the run asks, sorted; their number sets how many have to sign.
        key_id: SHA-256 of the run's key, see `ckks.PublicContext`.
        adverts: SHA-256 of the letter with all hospitals' adverts: their weights.
        model: what stands for the model that the round began with; the coordinator cannot tell from it
            which model it is.
        least: fewest hospitals whose sum may be opened.
    """

    occasion: Occasion
    members: tuple[str, ...]
    key_id: bytes
    adverts: bytes
    model: bytes
    least: int

    @property
    def threshold(self) -> int:
        """The smallest number above 2n/3."""
        return 2 * len(self.members) // 3 + 1

    def sign(self, proposal: Proposal, hospital: str, identity: Ed25519PrivateKey) -> bytes:
        """This hospital's signature; the caller sees to it that a round has one.

        Raises:
            ProtocolError: SURVIVORS_DIFFER, not a sorted part of the members with this hospital in it;
                TOO_FEW_HOSPITALS.
        """
        self._check(proposal)
        if hospital not in proposal.survivors:
            raise ProtocolError(Reason.SURVIVORS_DIFFER)
        return identity.sign(self._statement(proposal))

    def require(
        self,
        proposal: Proposal,
        signatures: Mapping[str, bytes],
        identities: Mapping[str, Ed25519PublicKey],
    ) -> None:
        """That enough survivors signed this very statement.

        Raises:
            ProtocolError: as `sign`; BAD_SIGNATURE, by somebody else or over something else, as of
                another model.
        """
        self._check(proposal)
        if len(signatures) < self.threshold:
            raise ProtocolError(Reason.TOO_FEW_HOSPITALS)
        for signer, signature in signatures.items():
            self.verify(proposal, signer, signature, identities)

    def verify(
        self,
        proposal: Proposal,
        signer: str,
        signature: bytes,
        identities: Mapping[str, Ed25519PublicKey],
    ) -> None:
        """One signature. Raises ProtocolError: BAD_SIGNATURE."""
        try:
            if signer not in proposal.survivors:
                raise KeyError
            identities[signer].verify(signature, self._statement(proposal))
        except (KeyError, InvalidSignature):
            raise ProtocolError(Reason.BAD_SIGNATURE, signer) from None

    def _check(self, proposal: Proposal) -> None:
        check_listed(proposal.survivors, self.members, None, Reason.SURVIVORS_DIFFER)
        if len(proposal.survivors) < max(self.threshold, self.least):
            raise ProtocolError(Reason.TOO_FEW_HOSPITALS)

    def _statement(self, proposal: Proposal) -> bytes:
        members = encoded("members", *self.members)
        bound = (self.occasion.encoded(), members, self.key_id, self.adverts, self.model)
        sums = (proposal.figures, proposal.update)
        return encoded("encrypted sum", *bound, *sums, *proposal.survivors)


def digest(content: bytes) -> bytes:
    """SHA-256."""
    return hashlib.sha256(content).digest()
