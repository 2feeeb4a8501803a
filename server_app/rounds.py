"""A run, round by round: select → send → collect → sum → step → evaluate → save."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from federation.schema import Experiment
from federation.wire import Arrays, Evaluated, Reason, Request, Trained
from server_app.exchange import Exchange, Outcome, TooFewHospitals
from server_app.state import Checkpoint, RunFolder, now
from server_app.strategies import Strategy


@dataclass(frozen=True)
class Conductor:
    """Leads one run from its last committed round to its end.

    Attributes:
        parameters: names of the model's trainable arrays. The others (running means, counters) are
            averaged, whatever the strategy does to the parameters.
        wait: seconds that a round waits for hospitals that are not connected.
    """

    folder: RunFolder
    experiment: Experiment
    strategy: Strategy
    exchange: Exchange
    parameters: frozenset[str]
    headline: str
    wait: float = 90.0

    def conduct(self, start: Checkpoint) -> Checkpoint:
        """All rounds after `start`, and the evaluation of the last model.

        Raises:
            TooFewHospitals: fewer good answers than `participation.least` in a round.
        """
        done, rounds = start, self.experiment.rounds
        while done.round < rounds:
            done = self.round(done)
            self.folder.save(done)
            self.folder.write_status("running", done.round, rounds)
        self.final_evaluation(done)
        return done

    def round(self, done: Checkpoint) -> Checkpoint:
        """One round: the committed state in, the next one out."""
        number, began, started = done.round + 1, time.monotonic(), now()
        evaluate = done.round % self.experiment.evaluation.every == 0
        request = Request(self.folder.name, number, evaluate=evaluate, train=True)
        outcomes = self.exchange.ask(self._chosen(), request, done.model, wait=self.wait)
        self._leave_out_large_updates(outcomes)
        if evaluate:
            self._record_evaluation(done.round, outcomes)
        trained = {o.hospital: o.answer.trained for o in outcomes if _is_good(o) and o.answer}
        updates = {name: work for name, work in trained.items() if work is not None}
        self._require(len(updates), outcomes, number)
        mean = weighted_mean(updates, self.experiment.participation.weighting)
        model, memory = self.step(done, mean)
        self.folder.append_metrics(
            {
                "kind": "round",
                "round": number,
                "started": started,
                "seconds": round(time.monotonic() - began, 3),
                "norm": norm(mean),
                "hospitals": {o.hospital: _training_row(o) for o in outcomes},
            }
        )
        return Checkpoint(number, model, memory)

    def step(self, done: Checkpoint, mean: Arrays) -> tuple[Arrays, Arrays]:
        """The strategy on the parameters; the mean on everything else, integers kept integers."""
        parameters = {name: done.model[name] for name in done.model if name in self.parameters}
        update = {name: mean[name] for name in parameters}
        stepped, memory = self.strategy.step(parameters, update, done.strategy)
        model: Arrays = {}
        for name, array in done.model.items():
            value = stepped[name] if name in stepped else array + mean[name]
            whole = array.dtype.kind in "iu"
            # asarray: NumPy's arithmetic turns arrays without axes into scalars
            model[name] = np.asarray(np.rint(value) if whole else value).astype(array.dtype)
        return model, {name: np.asarray(array) for name, array in memory.items()}

    def final_evaluation(self, done: Checkpoint) -> None:
        """The last model on every hospital's held-out patients; nothing is trained."""
        request = Request(self.folder.name, done.round + 1, evaluate=True, train=False)
        outcomes = self.exchange.ask(self._chosen(), request, done.model, wait=self.wait)
        self._require(sum(map(_is_good, outcomes)), outcomes, done.round)
        self._record_evaluation(done.round, outcomes)

    def _chosen(self) -> list[str]:
        return self.experiment.participation.hospitals or self.exchange.roster.names()

    def _require(self, good: int, outcomes: list[Outcome], number: int) -> None:
        least = self.experiment.participation.least
        if good < least:
            why = ", ".join(f"{o.hospital}: {o.reason}" for o in outcomes if not _is_good(o))
            raise TooFewHospitals(
                f"round {number}: {good} good answers, participation.least is {least} ({why})"
            )

    def _leave_out_large_updates(self, outcomes: list[Outcome]) -> None:
        bound = self.experiment.participation.largest_update_norm
        for outcome in outcomes:
            trained = outcome.answer.trained if outcome.answer else None
            if bound is not None and trained is not None and norm(trained.update) > bound:
                outcome.reason = Reason.NORM_TOO_LARGE

    def _record_evaluation(self, number: int, outcomes: list[Outcome]) -> None:
        evaluated = {
            o.hospital: o.answer.evaluated
            for o in outcomes
            if _is_good(o) and o.answer and o.answer.evaluated
        }
        self.folder.append_metrics(
            {
                "kind": "evaluation",
                "round": number,
                "time": now(),
                "hospitals": {o.hospital: _evaluation_row(o) for o in outcomes},
                "overall": overall(evaluated),
                "worst": worst(evaluated, self.headline),
            }
        )


def weighted_mean(updates: dict[str, Trained], weighting: str) -> Arrays:
    """Σ wₖ·Δₖ / Σ wₖ, summed in float64 in the order of the hospitals' names.

    The mean has the updates' dtype; that of integer arrays (counters) stays float64.

    Args:
        weighting: `examples` (wₖ: training examples) or `equal`.
    """
    ordered = [updates[name] for name in sorted(updates)]
    weights = [float(work.examples) if weighting == "examples" else 1.0 for work in ordered]
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


def overall(evaluated: dict[str, Evaluated]) -> dict[str, float]:
    """Each metric's mean over hospitals, weighted by the patients it was measured on."""
    names = sorted({name for e in evaluated.values() for name in e.metrics})
    means = {}
    for name in names:
        having = [e for e in evaluated.values() if name in e.metrics]
        weight = sum(e.patients for e in having)
        means[name] = math.fsum(e.metrics[name] * e.patients for e in having) / weight
    return means


def worst(evaluated: dict[str, Evaluated], headline: str) -> dict[str, dict[str, Any]]:
    """The hospital where the headline metric (larger is better) is lowest."""
    having = {name: e.metrics[headline] for name, e in evaluated.items() if headline in e.metrics}
    if not having:
        return {}
    name = min(sorted(having), key=lambda hospital: having[hospital])
    return {headline: {"hospital": name, "value": having[name]}}


def _is_good(outcome: Outcome) -> bool:
    return outcome.answer is not None and outcome.reason is None


def _row(outcome: Outcome) -> dict[str, Any]:
    return {
        "status": "ok" if _is_good(outcome) else "left out",
        "reason": outcome.reason.value if outcome.reason else None,
        "attempts": outcome.attempts,
    }


def _training_row(outcome: Outcome) -> dict[str, Any]:
    row = _row(outcome) | {"bytes_down": outcome.bytes_down, "bytes_up": outcome.bytes_up}
    row["answered_after"] = round(outcome.seconds, 3)
    trained = outcome.answer.trained if outcome.answer else None
    if trained is not None:
        row |= {
            "examples": trained.examples,
            "patients": trained.patients,
            "loss": trained.loss,
            "seconds": round(trained.seconds, 3),
            "update_norm": norm(trained.update),
        }
    return row


def _evaluation_row(outcome: Outcome) -> dict[str, Any]:
    row = _row(outcome)
    evaluated = outcome.answer.evaluated if outcome.answer else None
    if evaluated is not None:
        row |= {
            "examples": evaluated.examples,
            "patients": evaluated.patients,
            "metrics": evaluated.metrics,
        }
    return row
