"""An experiment's codec: its stages in one object, the same at all hospitals and the coordinator."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from federation.codec import pieces, scales
from federation.codec.packing import signed
from federation.codec.stages import Positions, Stages, chunks
from federation.codec.sums import Sum
from federation.messages import Arrays, Reason, WireError
from federation.schema import Codec, Training

_VERSION = 1  # of a message's bytes
_VOTE_BITS = scales.BINS.bit_length()  # of a vote in a message: which change, or none

Scales = NDArray[np.int16]
"""One exponent a segment; empty where the codec has no scales."""


@dataclass(frozen=True)
class Encoded:
    """A hospital's update of one round.

    Attributes:
        values: int32 (n,), what is sent of the travelling vector, quantised.
        indices: int64 (n,), ascending: which values these are; None where that is known to all.
        wanted: int64, the votes for the next scales (`federation.codec.scales`).
        residual: float32, for the hospital alone: over the exchanged arrays, what should have been sent
            minus what was. None without error feedback, and where it came from bytes.
    """

    values: NDArray[np.int32]
    indices: NDArray[np.int64] | None
    wanted: NDArray[np.int64]
    residual: NDArray[np.float32] | None = None


def build(codec: Codec, network: nn.Module, *, seed: int) -> Chain:
    """The codec of an experiment for its network.

    Args:
        network: for names, shapes and layers; its numbers do not matter.
        seed: the experiment's, from which all that the sides share is drawn.

    Raises:
        federation.schema.ConfigError: an unknown stage or option, or one that leaves nothing to send.
    """
    return Chain(codec, network, seed)


class Chain:
    """Updates to integers to bytes, and back. Rounds count from 1.

    Attributes:
        linear: sums of hospitals' `integers` stand for sums of their updates.
        unshared: the stage that is in the way, as it is chosen; None where `linear`.
        voters: how many segments have a scale.
        residual_size: numbers in a residual.
    """

    def __init__(self, codec: Codec, network: nn.Module, seed: int) -> None:
        self.codec = codec
        self.stages = Stages(codec, network, seed)
        self.state = {
            name: (str(tensor.numpy(force=True).dtype), tuple(tensor.shape))
            for name, tensor in network.state_dict().items()
        }
        self.unshared = self.stages.unshared
        self.linear = self.unshared is None
        self.voters = len(self.stages.exchange.segments) if self.stages.scaled else 0
        self.residual_size = self.stages.whole_size()
        self._index_bits = self.stages.moving.bit_length()

    # --- sizes and scales, all public ------------------------------------------------------------

    def bits(self, *, round: int) -> int:
        """Bits of each value that is sent."""
        return self.stages.bits(round)

    def largest(self, *, round: int) -> int:
        """No integer of one hospital is further from 0. Only of a chain with scales."""
        return self.stages.most(self.bits(round=round))

    def length(self, *, round: int) -> int:
        """How many `integers` there are."""
        return self.stages.count + self.voters * scales.BINS

    def largest_blob(self, *, round: int) -> int:
        """Bytes that `to_bytes` gives at most."""
        count = self.stages.count
        size = 1 + pieces.largest_piece(count, self.bits(round=round))
        size += pieces.largest_piece(self.voters, _VOTE_BITS)
        return size if self.stages.shared else size + pieces.largest_piece(count, self._index_bits)

    def first_scales(self, training: Training) -> Scales:
        """The first round's."""
        if not self.voters:
            return np.empty(0, np.int16)
        return scales.first(self.stages.exchange.segments, training, self.largest(round=1))

    def next_scales(self, scales_: Scales, votes: NDArray[Any], *, round: int) -> Scales:
        """The scales after `round`, from the votes that it summed."""
        if not self.voters:
            return scales_
        return scales.following(self._kept(scales_, round), votes, gently=round > 1)

    def scales_from_bytes(self, blob: bytes) -> Scales:
        """Of a request (`scales.to_bytes` writes them). Raises WireError: not this chain's."""
        return scales.from_bytes(blob, self.voters)

    # --- a hospital's side -----------------------------------------------------------------------

    @contextlib.contextmanager
    def restrict(self, network: nn.Module, *, round: int) -> Iterator[None]:
        """Training in here moves only what will be sent, where the exchange sees to that.

        The network's parameters may be others inside; afterwards it has its own names again.
        """
        with self.stages.exchange.restrict(network, round=round):
            yield

    def encode(
        self,
        update: Arrays,
        residual: NDArray[np.float32] | None,
        scales_: Scales,
        *,
        round: int,
        seed: int,
        bound: float | None = None,
    ) -> Encoded:
        """An update, local minus global model, ready to be summed or sent.

        Args:
            residual: what the last `Encoded` had; None before there is one. Not used, and None again,
                without error feedback.
            seed: the hospital's own, of the stochastic rounding.
            bound: L2 norm over parameters of what is sent, before it is rounded. If that is longer,
                parameters are shortened, and what is cut off is not sent later either.

        Raises:
            WireError: names, shapes or numbers that an update of this network cannot have.
        """
        stages, feedback = self.stages, self.codec.error_feedback
        whole = self._whole(update, residual)
        moving, positions, chosen = self._chosen(whole, round)
        if (factor := self._factor(chosen, positions, bound)) < 1:
            self._shorten(whole, factor)
            moving, positions, chosen = self._chosen(whole, round)
        source = np.random.Generator(np.random.PCG64(seed))
        bits = self.bits(round=round)
        values = np.empty(len(chosen), np.int32)
        for part, _, exponent in stages.parts(positions, scales_):
            values[part] = stages.quantised(chosen[part], exponent, bits, source)
        # With error feedback what is not sent now is what will be.
        later = feedback and stages.shared
        wanted = self._votes(*((moving, None) if later else (chosen, positions)), scales_, round)
        rest = self._rest(whole, values, positions, scales_, round) if feedback else None
        return Encoded(values, None if stages.shared else positions, wanted, rest)

    def due(
        self,
        update: Arrays,
        residual: NDArray[np.float32] | None,
        *,
        round: int,
        bound: float | None = None,
    ) -> Arrays:
        """What `encode` sends of an update, now or later: all of it, but for what `bound` cuts.

        Over rounds its sum is that of what was sent, plus the last residual. What is cut of an earlier
        residual was due once and never comes: it is taken off here.

        Args: as of `encode`.

        Raises:
            WireError: as `encode`.
        """
        whole = self._whole(update, residual)
        _, positions, chosen = self._chosen(whole, round)
        if (factor := self._factor(chosen, positions, bound)) == 1:
            return update
        self._shorten(whole, factor)
        if self.codec.error_feedback and residual is not None:
            whole -= residual
        parameters = self._parameters(whole)
        return update | {name: own.astype(update[name].dtype) for name, own in parameters}

    def by_name(self, residual: NDArray[np.float32]) -> Arrays:
        """What was left over of each exchanged parameter."""
        return dict(self._parameters(residual))

    def integers(self, encoded: Encoded) -> NDArray[np.int32]:
        """What is summed: values, then votes; int32 (length,). Only of a linear chain."""
        self._require_linear()
        return np.concatenate([encoded.values, encoded.wanted.astype(np.int32)])

    def to_bytes(self, encoded: Encoded, *, round: int) -> bytes:
        """One hospital's message, for where nothing is summed in secret."""
        level = self.codec.zstd_level
        votes = encoded.wanted.reshape(-1, scales.BINS)
        which = np.where(votes.any(axis=1), votes.argmax(axis=1), scales.BINS)
        parts = [
            bytes([_VERSION]),
            pieces.write(encoded.values, self.bits(round=round), level),
            pieces.write(which, _VOTE_BITS, level),
        ]
        if encoded.indices is not None:
            gaps = np.diff(encoded.indices, prepend=-1) - 1
            parts.append(pieces.write(gaps, self._index_bits, level))
        return b"".join(parts)

    # --- the coordinator's side ------------------------------------------------------------------

    def from_bytes(self, blob: bytes, *, round: int) -> Encoded:
        """What `to_bytes` wrote, checked.

        Raises:
            WireError: too large, not such a message, or values that are not finite.
        """
        if len(blob) > self.largest_blob(round=round):
            raise WireError(Reason.TOO_LARGE)
        if not blob or blob[0] != _VERSION:
            raise WireError(Reason.MALFORMED)
        bits = self.bits(round=round)
        patterns, rest = pieces.read(memoryview(blob)[1:], self.stages.count, bits)
        which, rest = pieces.read(rest, self.voters, _VOTE_BITS)
        indices = None
        if not self.stages.shared:
            gaps, rest = pieces.read(rest, self.stages.count, self._index_bits)
            indices = np.cumsum(gaps.astype(np.int64) + 1) - 1
            if indices[-1] >= self.stages.moving:
                raise WireError(Reason.MALFORMED)
        if rest or (self.voters and which.max() > scales.BINS):
            raise WireError(Reason.MALFORMED)
        values = signed(patterns, bits)
        self._require_possible(values, bits)
        wanted = np.arange(scales.BINS) == which[:, None]
        return Encoded(values, indices, wanted.reshape(-1).astype(np.int64))

    def decode(
        self, total: NDArray[Any], weight: int, scales_: Scales, *, round: int
    ) -> tuple[Arrays, Scales]:
        """The weighted mean update, and the next round's scales, of a linear chain.

        Args:
            total: int (length,), Σ of the hospitals' `integers`, each times its weight; with its sign.
            weight: Σ of their weights, which are integers above 0.

        Returns:
            The update has the model's names, dtypes and shapes, and zeros where nothing was exchanged.

        Raises:
            WireError: a sum that integers of these hospitals cannot have.
        """
        self._require_linear()
        if total.shape != (self.length(round=round),):
            raise WireError(Reason.WRONG_SHAPE)
        values, votes = np.split(total, [self.stages.count])
        limit = weight * self.largest(round=round)
        by_segment = votes.reshape(-1, scales.BINS)
        if (
            values.min() < -limit
            or values.max() > limit
            or by_segment.min() < 0
            or by_segment.sum(axis=1).max() > weight
        ):
            raise WireError(Reason.MALFORMED)
        added = Sum(self, scales_, round=round)
        added.add_integers(values, votes, weight)
        return added.mean()

    def decode_one(self, encoded: Encoded, scales_: Scales, *, round: int) -> Arrays:
        """What one hospital's message stands for, of any chain."""
        added = Sum(self, scales_, round=round)
        added.add(encoded, 1)
        return added.mean()[0]

    # --- steps -----------------------------------------------------------------------------------

    def _whole(self, update: Arrays, residual: NDArray[np.float32] | None) -> NDArray[np.float32]:
        """Update and residual, which is what should be sent."""
        whole = self._flat(update)
        if self.codec.error_feedback and residual is not None:
            if residual.shape != whole.shape:
                raise WireError(Reason.WRONG_SHAPE)
            whole += residual
        if not np.isfinite(whole).all():
            raise WireError(Reason.NOT_FINITE)
        return whole

    def _flat(self, update: Arrays) -> NDArray[np.float32]:
        """The exchanged arrays, one after the other."""
        if update.keys() != self.state.keys():
            raise WireError(Reason.WRONG_NAMES)
        if any(update[name].shape != shape for name, (_, shape) in self.state.items()):
            raise WireError(Reason.WRONG_SHAPE)
        flat = np.empty(self.residual_size, np.float32)
        at = 0
        with np.errstate(over="ignore"):  # of float64; found to be not finite
            for name in self.stages.exchange.shapes:
                flat[at : at + update[name].size] = update[name].reshape(-1)
                at += update[name].size
        return flat

    def _chosen(
        self, whole: NDArray[np.float32], round: int
    ) -> tuple[NDArray[np.float32], Positions, NDArray[np.float32]]:
        """The travelling vector, which of it is sent, and that, not yet rounded."""
        moving = self.stages.exchange.project(whole, round=round)
        positions = self.stages.positions(round, moving)
        chosen = moving if positions is None else moving[positions]
        if not self.codec.error_feedback:
            chosen = self.stages.unbiased(chosen)
        return moving, positions, chosen

    def _factor(
        self, chosen: NDArray[np.float32], positions: Positions, bound: float | None
    ) -> float:
        """By what parameters have to be shortened for `chosen` to be sent; 1: they are short enough."""
        if bound is None or (norm := self._norm(chosen, positions)) <= bound:
            return 1.0
        return bound / norm

    def _norm(self, chosen: NDArray[np.float32], positions: Positions) -> float:
        """L2 norm of the update that `chosen` stands for, over parameters: adapters keep lengths."""
        parts = zip(self.stages.exchange.segments, self.stages.bounds(positions), strict=True)
        squares = (
            float(np.sum(np.square(chosen[first:last], dtype=np.float64)))
            for segment, (first, last) in parts
            if not segment.buffer
        )
        return math.sqrt(math.fsum(squares))

    def _shorten(self, whole: NDArray[np.float32], factor: float) -> None:
        """Scale the parameters among the exchanged arrays, in place."""
        for _, own in self._parameters(whole):
            own[...] *= np.float32(factor)

    def _parameters(self, whole: NDArray[np.float32]) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Views of the parameters among the exchanged arrays, by name."""
        at = 0
        for segment in self.stages.exchange.segments:
            shape = self.stages.exchange.shapes[segment.name]
            size = math.prod(shape)
            if not segment.buffer:
                yield segment.name, whole[at : at + size].reshape(shape)
            at += size

    def _votes(
        self, values: NDArray[np.float32], positions: Positions, scales_: Scales, round: int
    ) -> NDArray[np.int64]:
        if not self.voters:
            return np.empty(0, np.int64)
        bits = self.bits(round=round + 1)
        bounds = self.stages.bounds(positions)
        wanted = [self.stages.wanted(values[first:last], bits) for first, last in bounds]
        return scales.vote(wanted, self._kept(scales_, round))

    def _kept(self, scales_: Scales, round: int) -> Scales:
        """The next round's scales if each segment keeps its range: with fewer bits, larger steps."""
        shift = self.bits(round=round) - self.bits(round=round + 1)
        return (scales_ + shift).astype(np.int16)

    def _rest(
        self,
        whole: NDArray[np.float32],
        values: NDArray[np.int32],
        positions: Positions,
        scales_: Scales,
        round: int,
    ) -> NDArray[np.float32]:
        """What should have been sent minus what was, in the place of `whole`."""
        stages = self.stages
        rest = whole if stages.exchange.whole else np.zeros(stages.moving, np.float32)
        for part, where, exponent in stages.parts(positions, scales_):
            rest[where] -= stages.restored(values[part], exponent).astype(np.float32)
        if not stages.exchange.whole:
            whole += stages.exchange.expand(rest, round=round)
        return whole

    def _require_possible(self, values: NDArray[np.int32], bits: int) -> None:
        if self.stages.scaled:
            if values.min() < -self.stages.most(bits):
                raise WireError(Reason.MALFORMED)
            return
        for part in chunks(0, len(values)):
            if not np.isfinite(self.stages.restored(values[part], 0)).all():
                raise WireError(Reason.NOT_FINITE)

    def _require_linear(self) -> None:
        if self.unshared is not None:
            raise ValueError(f"with {self.unshared} sums of integers mean nothing")
