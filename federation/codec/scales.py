"""How all hospitals come to one scale for each segment, without anyone seeing one hospital's values.

A segment's quantisation step is 2^e, e an integer that the coordinator sends. Each hospital adds to its
integers, for each segment, a one-hot vote of how much e should change for its own values; the votes are
summed with the rest, in secret where the rest is. The next e is the largest that any voted for. It rises
at once; from the second round on it falls by half of what all would allow, because one quiet round says
little of the next. A hospital whose values are all 0 does not vote.

Votes are functions of what is sent and of the last rounds' rest: under patient-level privacy of noised
updates and public numbers alone, so they are post-processing. They are not bounded by anything but
`LOWEST` and `HIGHEST`: one hospital can make a scale too coarse, as it can spoil a sum. In the open, one
whose update is left out has no vote either.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from federation.codec.exchange import Segment
from federation.messages import Reason, WireError
from federation.schema import Training

FALL, RISE = -20, 11  # the changes that a vote can ask for
BINS = RISE - FALL + 1
LOWEST, HIGHEST = -100, 60  # exponents: all are exact in float32

# Times the expected largest change, so that few values are clipped before there is a vote.
_MARGIN = 4.0
# Of a buffer's change in the first round: BatchNorm's statistics of images of about unit variance.
_BUFFER = 2.0


def first(segments: Sequence[Segment], training: Training, most: int) -> NDArray[np.int16]:
    """A guess from the experiment alone, since nobody has seen an update; `most` the largest integer.

    Adam moves a value by about the learning rate a step. For SGD gradients are taken to be at most 1,
    or of the norm at which they are clipped.
    """
    reach = training.learning_rate * training.local_steps
    if training.optimizer == "sgd":
        reach *= min(1.0, training.gradient_clipping_norm or 1.0) / (1 - training.momentum)
    expected = [_BUFFER if s.buffer else reach * s.factor for s in segments]
    guesses = [math.ceil(math.log2(_MARGIN * size / most)) for size in expected]
    return np.clip(guesses, LOWEST, HIGHEST).astype(np.int16)


def vote(wanted: Sequence[int | None], kept: NDArray[np.int16]) -> NDArray[np.int64]:
    """One-hot votes (segments · BINS,) for the exponents that are wanted.

    Args:
        kept: the next round's exponents if nothing changes.
    """
    votes = np.zeros((len(wanted), BINS), np.int64)
    for of_segment, exponent, before in zip(votes, wanted, kept.tolist(), strict=True):
        if exponent is not None:
            of_segment[min(max(exponent - before, FALL), RISE) - FALL] = 1
    return votes.reshape(-1)


def following(
    kept: NDArray[np.int16], votes: NDArray[Any], *, gently: bool = True
) -> NDArray[np.int16]:
    """The next round's exponents.

    Args:
        votes: (segments · BINS,), summed with any positive weights.
        gently: fall by half.
    """
    given = votes.reshape(-1, BINS) > 0
    change = RISE - np.argmax(given[:, ::-1], axis=1)
    if gently:
        change = np.where(change < 0, change // 2, change)
    change = np.where(given.any(axis=1), change, 0)
    return np.clip(kept.astype(np.int64) + change, LOWEST, HIGHEST).astype(np.int16)


def to_bytes(scales: NDArray[np.int16]) -> bytes:
    """For `Request.scales`."""
    return scales.astype("<i2").tobytes()


def from_bytes(blob: bytes, segments: int) -> NDArray[np.int16]:
    """What `to_bytes` wrote.

    Raises:
        WireError: other than this many exponents, or one out of range.
    """
    if len(blob) != 2 * segments:
        raise WireError(Reason.MALFORMED)
    scales = np.frombuffer(blob, "<i2").astype(np.int16)
    if segments and not (scales.min() >= LOWEST and scales.max() <= HIGHEST):
        raise WireError(Reason.MALFORMED)
    return scales
