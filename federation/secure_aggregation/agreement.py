"""What hospitals agree on before they open an encrypted sum: who is in it, and the model it moves.

Above two thirds of the run's hospitals sign one statement a round. Each signs one alone. So no two lists
of one round gather enough signatures while fewer than a third of the hospitals are corrupted, and
hospitals that hold different models find out before they move them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from federation.messages import Reason
from federation.secure_aggregation.keys import Occasion, ProtocolError, check_listed, encoded


@dataclass(frozen=True)
class Agreement:
    """A round's, as one hospital sees it.

    Attributes:
        members: hospitals that the run asks, sorted; their number sets how many have to sign.
        key_id: SHA-256 of the run's key, see `ckks.PublicContext`.
        adverts: SHA-256 of the letter with all hospitals' adverts: their weights.
        model: SHA-256 of the model that the round began with.
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

    def sign(self, survivors: Sequence[str], hospital: str, identity: Ed25519PrivateKey) -> bytes:
        """This hospital's signature on who is in the sum; one list a round.

        Raises:
            ProtocolError: SURVIVORS_DIFFER, not a sorted part of the members with this hospital in it;
                TOO_FEW_HOSPITALS.
        """
        self._check(survivors)
        if hospital not in survivors:
            raise ProtocolError(Reason.SURVIVORS_DIFFER)
        return identity.sign(self._statement(survivors))

    def require(
        self,
        survivors: Sequence[str],
        signatures: Mapping[str, bytes],
        identities: Mapping[str, Ed25519PublicKey],
    ) -> None:
        """That enough survivors signed this very statement.

        Raises:
            ProtocolError: as `sign`; BAD_SIGNATURE, by somebody else or over something else, as of
                another model.
        """
        self._check(survivors)
        if len(signatures) < self.threshold:
            raise ProtocolError(Reason.TOO_FEW_HOSPITALS)
        for signer, signature in signatures.items():
            self.verify(survivors, signer, signature, identities)

    def verify(
        self,
        survivors: Sequence[str],
        signer: str,
        signature: bytes,
        identities: Mapping[str, Ed25519PublicKey],
    ) -> None:
        """One signature. Raises ProtocolError: BAD_SIGNATURE."""
        try:
            if signer not in survivors:
                raise KeyError
            identities[signer].verify(signature, self._statement(survivors))
        except (KeyError, InvalidSignature):
            raise ProtocolError(Reason.BAD_SIGNATURE, signer) from None

    def _check(self, survivors: Sequence[str]) -> None:
        check_listed(survivors, self.members, None, Reason.SURVIVORS_DIFFER)
        if len(survivors) < max(self.threshold, self.least):
            raise ProtocolError(Reason.TOO_FEW_HOSPITALS)

    def _statement(self, survivors: Sequence[str]) -> bytes:
        members = encoded("members", *self.members)
        bound = (self.occasion.encoded(), members, self.key_id, self.adverts, self.model)
        return encoded("encrypted sum", *bound, *survivors)
