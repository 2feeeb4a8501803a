"""Updates that the coordinator reads one by one, as arrays or as the codec wrote them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from federation import strategies
from federation.codec import scales
from federation.codec.chain import Chain, Scales
from federation.messages import Arrays, Expected, Reason, Request, Trained
from federation.schema import Experiment, Training
from federation.strategies import NotCombined, Strategy, Told
from server_app import descent
from server_app.aggregation.gathered import Gathered
from server_app.courier import Courier
from server_app.exchange import Outcome, TooFewHospitals
from server_app.state import Checkpoint

SCALES = "scales"  # in a checkpoint's memory of the codec
COMBINATION = "combination/"  # there too, before what a rule for single updates remembers


@dataclass(frozen=True)
class Plain:
    """The weighted mean of updates, or what a strategy makes of them that looks at each.

    Attributes:
        chain: None: updates come as arrays.
        expected: what an answer may hold.
        parameters: names of the model's trainable arrays.
    """

    courier: Courier
    experiment: Experiment
    expected: Expected
    parameters: frozenset[str]
    chain: Chain | None = None

    def gather(self, hospitals: Sequence[str], request: Request, done: Checkpoint) -> Gathered:
        """With no good answer there is no mean.

        Raises:
            TooFewHospitals: the strategy cannot combine what came.
        """
        if self.chain is None or not request.train:
            outcomes = self.courier.work(self._requests(hospitals, request), done, self.expected)
            mean, memory = self._mean(outcomes, done)
            return Gathered(outcomes, mean, _of_codec(done) | memory)
        return self._gather_encoded(self.chain, hospitals, request, done)

    def release(self, done: Checkpoint) -> None:
        """The coordinator has the model."""

    def _requests(self, hospitals: Sequence[str], request: Request) -> dict[str, Request]:
        """One a hospital; who is left out is asked for figures alone, or not at all."""
        requests = dict.fromkeys(hospitals, request)
        left_out = self.experiment.evaluation.leave_out
        if left_out in requests:
            requests[left_out] = replace(request, train=False)
            if not request.evaluate:
                del requests[left_out]
        return requests

    def _gather_encoded(
        self, chain: Chain, hospitals: Sequence[str], request: Request, done: Checkpoint
    ) -> Gathered:
        before = scales_of(chain, done, self.experiment.training)
        votes: dict[str, NDArray[np.int64]] = {}

        def decode(outcome: Outcome) -> None:
            trained = outcome.answer.trained if outcome.answer else None
            if outcome.answer is None or trained is None or trained.encoded is None:
                return
            encoded = chain.from_bytes(trained.encoded, round=request.round)
            update = chain.decode_one(encoded, before, round=request.round)
            votes[outcome.hospital] = encoded.wanted
            decoded = replace(trained, update=update, encoded=None)
            outcome.answer = replace(outcome.answer, trained=decoded)

        outcomes = self.courier.work(
            self._requests(hospitals, replace(request, scales=scales.to_bytes(before))),
            done,
            replace(self.expected, encoded=chain.largest_blob(round=request.round)),
            taken=decode,
        )
        mean, memory = self._mean(outcomes, done)
        counted = [votes[o.hospital] for o in outcomes if o.is_good and o.hospital in votes]
        after = before
        if counted:
            total = np.stack(counted).sum(axis=0)
            after = chain.next_scales(before, total, round=request.round)
        return Gathered(outcomes, mean, {SCALES: after} | memory)

    def _mean(self, outcomes: list[Outcome], done: Checkpoint) -> tuple[Arrays | None, Arrays]:
        """Of the updates, and what the strategy remembers if it looks at each of them."""
        strategy, participation = strategies.build(self.experiment), self.experiment.participation
        self._leave_out_impossible(outcomes, strategy)
        trained = {o.hospital: o.answer.trained for o in outcomes if o.is_good and o.answer}
        updates = {name: work for name, work in trained.items() if work is not None}
        if strategy.combine is None:
            return (weighted_mean(updates, participation.weighting) if updates else None), {}
        if len(updates) < participation.least:
            return None, {}  # the round ends with this, and says whose answer was no good
        told = self._told(updates, done)
        weights = weights_of(updates, participation.weighting)
        arrays = {name: work.update for name, work in updates.items()}
        try:
            combined, memory = strategies.combine(strategy, arrays, weights, told)
        except NotCombined as error:
            raise TooFewHospitals(f"round {told.round}: {error}") from error
        return combined, {COMBINATION + name: array for name, array in memory.items()}

    def _told(self, updates: Mapping[str, Trained], done: Checkpoint) -> Told:
        def figure(name: str) -> dict[str, float]:
            told = {hospital: getattr(work, name, None) for hospital, work in updates.items()}
            return {hospital: float(value) for hospital, value in told.items() if value is not None}

        return Told(
            done.round + 1,
            self.experiment.rounds,
            self.experiment.training,
            loss=figure("loss"),
            steps=figure("steps"),
            loss_before=figure("loss_before"),
            loss_after=figure("loss_after"),
            memory={
                name.removeprefix(COMBINATION): array
                for name, array in done.codec.items()
                if name.startswith(COMBINATION)
            },
        )

    def _leave_out_impossible(self, outcomes: list[Outcome], strategy: Strategy) -> None:
        bound = self.experiment.participation.largest_update_norm
        for outcome in outcomes:
            trained = outcome.answer.trained if outcome.answer else None
            if trained is None:
                continue
            if bound is not None and norm(trained.update, self.parameters) > bound:
                outcome.reason = Reason.NORM_TOO_LARGE
            untold = any(getattr(trained, figure) is None for figure in strategy.needs)
            if untold or (trained.steps or 0) > self.experiment.training.local_steps:
                outcome.reason = Reason.MALFORMED


def _of_codec(done: Checkpoint) -> Arrays:
    kept = descent.memory(done.codec).items()
    return {name: array for name, array in kept if not name.startswith(COMBINATION)}


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
    weights = weights_of(updates, weighting)
    arrays = {name: work.update for name, work in updates.items()}
    return strategies.weighted_sum(arrays, weights, math.fsum(weights.values()))


def weights_of(updates: Mapping[str, Trained], weighting: str) -> dict[str, float]:
    """wₖ as in `weighted_mean`."""
    if weighting == "equal":
        return dict.fromkeys(updates, 1.0)
    return {
        name: float(work.patients if work.examples is None else work.examples)
        for name, work in updates.items()
    }


def norm(update: Arrays, parameters: frozenset[str]) -> float:
    """L2 norm over parameters, as hospitals take it (`client_app.norm_bound`).

    Running statistics are in the units of the images, and a counter grows by the number of steps.
    """
    trained = (array for name, array in update.items() if name in parameters)
    return math.sqrt(math.fsum(float(np.sum(np.square(a, dtype=np.float64))) for a in trained))
