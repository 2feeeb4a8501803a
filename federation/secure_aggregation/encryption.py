"""The two vectors of an encrypted round: the hospitals' updates, and their figures.

What `ckks` encrypts anybody can shift. So each vector has a tag beside it (`linear_mac`), and what is
opened here is the exact sum of what the hospitals in it encrypted for this very sum, or nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from federation.codec.chain import Chain
from federation.figures import Figures
from federation.messages import Reason, WireError
from federation.schema import Experiment
from federation.secure_aggregation import linear_mac
from federation.secure_aggregation.ciphertexts import Packing, RunningTotal
from federation.secure_aggregation.ckks import Ckks, HospitalKey
from federation.secure_aggregation.keys import Occasion, derived
from federation.secure_aggregation.letters import join, split
from federation.secure_aggregation.scheme import LIMB_BITS, Opened, Sum, from_limbs, to_limbs


@dataclass(frozen=True)
class Vectors:
    """A round's. Both sides build it by themselves of what is public.

    Attributes:
        members: hospitals that the run asks, sorted.
        adverts: SHA-256 of the letter with all hospitals' adverts: what is weighted by other sizes is of
            another sum.
        length, bits: of an update; a length of 0 where nothing is trained.
        figures: how many there are; each has 64 bits.
    """

    occasion: Occasion
    members: tuple[str, ...]
    adverts: bytes
    least: int
    length: int
    bits: int
    figures: int

    def encrypt(
        self, key: HospitalKey, hospital: str, update: NDArray[Any], counted: NDArray[np.int64]
    ) -> bytes:
        """One hospital's message."""
        parts = [_encrypted(key, self._figures, hospital, to_limbs(counted))]
        if self.length:
            parts.append(_encrypted(key, self._update, hospital, update.astype(np.int64)))
        return join(*parts)

    def totals(self, public: bytes) -> Totals:
        """At the coordinator: what is added to as messages arrive."""
        sums = [self._figures, *([self._update] if self.length else [])]
        return Totals(tuple(RunningTotal(public, one) for one in sums))

    def figures_of(
        self, key: HospitalKey, total: bytes
    ) -> tuple[NDArray[np.int64], tuple[str, ...]]:
        """The summed figures, int64 (figures,), and whose they are.

        Raises:
            WireError: see `Ckks.partial_decrypt`; BAD_SIGNATURE, not what these hospitals encrypted;
                MALFORMED, a sum beyond 64 bits.
        """
        opened = _opened(key, self._figures, total)
        numbers = from_limbs(opened.values)
        if any(abs(number) >= 1 << 63 for number in numbers):
            raise WireError(Reason.MALFORMED)
        return np.array(numbers, np.int64), opened.hospitals

    def update_of(
        self, key: HospitalKey, total: bytes
    ) -> tuple[NDArray[np.int64], tuple[str, ...]]:
        """The summed integers of the updates, (length,), and whose they are. Raises as above."""
        opened = _opened(key, self._update, total)
        return opened.values, opened.hospitals

    @property
    def largest(self) -> int:
        """Bytes of one hospital's message, at most."""
        sums = [self._figures, *([self._update] if self.length else [])]
        return sum(4 + Packing.of(one).blob_bytes(1) for one in sums)

    @property
    def _figures(self) -> Sum:
        return self._sum("figures", len(to_limbs(np.zeros(self.figures, np.int64))), LIMB_BITS)

    @property
    def _update(self) -> Sum:
        return self._sum("update", self.length, self.bits)

    def _sum(self, name: str, size: int, bits: int) -> Sum:
        where = self.occasion
        return Sum(
            run=where.run,
            round=where.round,
            name=f"{name} {self.adverts.hex()}",
            members=self.members,
            least=self.least,
            roster=where.roster,
            size=size + linear_mac.length(bits),
            bits=bits,
        )


@dataclass(frozen=True)
class Totals:
    """The coordinator's sums of one round: figures first, then the updates if there are any."""

    sums: tuple[RunningTotal, ...]

    def add(self, hospital: str, blob: bytes) -> None:
        """Raises WireError: not such a message; then nothing of it is in the sums."""
        parts = split(blob, len(self.sums))
        for one, part in zip(self.sums, parts, strict=True):
            one.check(hospital, part)
        for one, part in zip(self.sums, parts, strict=True):
            one.add(hospital, part)

    def to_bytes(self) -> tuple[bytes, ...]:
        """For the hospitals, one blob a sum."""
        return tuple(one.to_bytes() for one in self.sums)


def run_of(name: str, experiment: Experiment) -> str:
    """What keys, ciphertexts and signatures are bound to: a run's name stands for one experiment, so
    that nothing of it can be opened under another one's rules."""
    return f"{name}/{experiment.sha256()}"


def vectors_of(
    experiment: Experiment,
    occasion: Occasion,
    roster: Sequence[str],
    chain: Chain,
    figures: Figures,
    *,
    adverts: bytes,
    train: bool,
) -> Vectors:
    """A round's vectors, of what experiment and roster say.

    Args:
        roster: names of the federation's hospitals.
        adverts: the letter with all hospitals' adverts.
    """
    secure = experiment.secure_aggregation
    if secure is None:
        raise ValueError("nothing is summed in secret")
    return Vectors(
        occasion=occasion,
        members=tuple(sorted(experiment.participation.hospitals or roster)),
        adverts=hashlib.sha256(adverts).digest(),
        least=secure.least,
        length=chain.length(round=occasion.round) if train else 0,
        bits=chain.bits(round=occasion.round),
        figures=figures.length,
    )


def _encrypted(key: HospitalKey, of: Sum, hospital: str, values: NDArray[np.int64]) -> bytes:
    tag = linear_mac.tag(_mac_key(key, of), hospital, values, of.bits)
    return Ckks().encrypt(key, of, hospital, np.concatenate([values, tag]))


def _opened(key: HospitalKey, of: Sum, total: bytes) -> Opened:
    """Raises WireError: see `Vectors.figures_of`."""
    opened = Ckks().combine(of, [Ckks().partial_decrypt(key, of, total)])
    values, digits = np.split(opened.values, [of.size - linear_mac.length(of.bits)])
    wanted = linear_mac.expected(_mac_key(key, of), opened.hospitals, values)
    if linear_mac.of_digits(digits, of.bits) != wanted:
        raise WireError(Reason.BAD_SIGNATURE)
    return Opened(values, opened.hospitals)


def _mac_key(key: HospitalKey, of: Sum) -> bytes:
    return derived(key.run_key, "ckks mac", of.sha256())
