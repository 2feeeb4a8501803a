"""Updates that the coordinator reads one by one, as arrays or as the codec wrote them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from federation.codec import scales
from federation.codec.chain import Chain, Scales
from federation.messages import Arrays, Expected, Reason, Request, Trained
from federation.schema import Experiment, Training
from server_app import descent
from server_app.aggregation.gathered import Gathered
from server_app.courier import Courier
from server_app.exchange import Outcome
from server_app.state import Checkpoint

SCALES = "scales"  # in a checkpoint's memory of the codec


@dataclass(frozen=True)
class Plain:
    """The weighted mean of updates.

    Attributes:
        chain: None: updates come as arrays.
        expected: what an answer may hold.
    """

    courier: Courier
    experiment: Experiment
    expected: Expected
    chain: Chain | None = None

    def gather(self, hospitals: Sequence[str], request: Request, done: Checkpoint) -> Gathered:
        """Raises nothing of its own: with no good answer there is no mean."""
        if self.chain is None or not request.train:
            outcomes = self.courier.work(dict.fromkeys(hospitals, request), done, self.expected)
            return Gathered(outcomes, self._mean(outcomes), descent.memory(done.codec))
        return self._gather_encoded(self.chain, hospitals, request, done)

    def release(self, done: Checkpoint) -> None:
        """The coordinator has the model."""

    def _gather_encoded(
        self, chain: Chain, hospitals: Sequence[str], request: Request, done: Checkpoint
    ) -> Gathered:
        before = scales_of(chain, done, self.experiment.training)
        votes: list[NDArray[np.int64]] = []

        def decode(outcome: Outcome) -> None:
            trained = outcome.answer.trained if outcome.answer else None
            if outcome.answer is None or trained is None or trained.encoded is None:
                return
            encoded = chain.from_bytes(trained.encoded, round=request.round)
            update = chain.decode_one(encoded, before, round=request.round)
            votes.append(encoded.wanted)
            decoded = replace(trained, update=update, encoded=None)
            outcome.answer = replace(outcome.answer, trained=decoded)

        outcomes = self.courier.work(
            dict.fromkeys(hospitals, replace(request, scales=scales.to_bytes(before))),
            done,
            replace(self.expected, encoded=chain.largest_blob(round=request.round)),
            taken=decode,
        )
        after = before
        if votes:
            total = np.stack(votes).sum(axis=0)
            after = chain.next_scales(before, total, round=request.round)
        return Gathered(outcomes, self._mean(outcomes), {SCALES: after})

    def _mean(self, outcomes: list[Outcome]) -> Arrays | None:
        self._leave_out_large_updates(outcomes)
        trained = {o.hospital: o.answer.trained for o in outcomes if o.is_good and o.answer}
        updates = {name: work for name, work in trained.items() if work is not None}
        return weighted_mean(updates, self.experiment.participation.weighting) if updates else None

    def _leave_out_large_updates(self, outcomes: list[Outcome]) -> None:
        bound = self.experiment.participation.largest_update_norm
        for outcome in outcomes:
            trained = outcome.answer.trained if outcome.answer else None
            if bound is not None and trained is not None and norm(trained.update) > bound:
                outcome.reason = Reason.NORM_TOO_LARGE


def scales_of(chain: Chain, done: Checkpoint, training: Training) -> Scales:
    """The scales for the round after this checkpoint."""
    known = done.codec.get(SCALES)
    return chain.first_scales(training) if known is None else known


def weighted_mean(updates: dict[str, Trained], weighting: str) -> Arrays:
    """Σ wₖ·Δₖ / Σ wₖ, summed in float64 in the order of the hospitals' names.

    The mean has the updates' dtype; that of integer arrays (counters) stays float64.

    Args:
        weighting: `examples` (wₖ: training examples, or the declared patients where these are not
            told, under patient-level privacy) or `equal`.
    """
    ordered = [updates[name] for name in sorted(updates)]
    sizes = [work.patients if work.examples is None else work.examples for work in ordered]
    weights = [float(size) if weighting == "examples" else 1.0 for size in sizes]
    total = math.fsum(weights)
    mean: Arrays = {}
    for name, like in ordered[0].update.items():
        weighted = np.zeros(like.shape, np.float64)
        for work, weight in zip(ordered, weights, strict=True):
            weighted += weight * work.update[name]
        weighted /= total
        mean[name] = weighted.astype(like.dtype) if like.dtype.kind == "f" else weighted
    return mean


def norm(arrays: Arrays) -> float:
    """L2 norm over all arrays."""
    return math.sqrt(
        math.fsum(float(np.sum(np.square(a, dtype=np.float64))) for a in arrays.values())
    )
