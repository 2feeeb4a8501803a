"""A run, round by round: select → send → collect → sum → step → evaluate → save."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from federation import strategies
from federation.figures import Summed
from federation.messages import Arrays, Evaluated, Request, Spent, Tallied
from federation.schema import Experiment
from federation.strategies import Strategy, Turn
from federation.tasks import Tally
from server_app import averaging, counting, tallies
from server_app.aggregation import Aggregation, Gathered
from server_app.aggregation.plain import norm
from server_app.descent import Descent
from server_app.exchange import Outcome, TooFewHospitals
from server_app.fairness import Counted
from server_app.state import Checkpoint, RunFolder, now

Figure = TypeVar("Figure")


@dataclass(frozen=True)
class Conductor:
    """Leads one run from its last committed round to its end.

    Attributes:
        parameters: names of the model's trainable arrays. The others (running means, counters) are
            averaged, whatever the strategy does to the parameters.
        hospitals: who is asked.
        tally: what noisy metrics are read from, if they are.
        counted: how counts by group are read; None where there are none.
    """

    folder: RunFolder
    experiment: Experiment
    strategy: Strategy
    aggregation: Aggregation
    descent: Descent
    hospitals: tuple[str, ...]
    parameters: frozenset[str]
    headline: str
    tally: Tally | None = None
    counted: Counted | None = None

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
        if self.experiment.evaluates:
            self.final_evaluation(done)
        released = self.aggregation.release(done)
        if released is not None:
            done = replace(done, model=released)
            self.folder.save(done)
        return done

    def round(self, done: Checkpoint) -> Checkpoint:
        """One round: the committed state in, the next one out."""
        number, began, started = done.round + 1, time.monotonic(), now()
        due = done.round % self.experiment.evaluation.every == 0
        evaluate = due and self.experiment.evaluates
        request = Request(self.folder.name, number, evaluate=evaluate, train=True)
        gathered = self.aggregation.gather(self.hospitals, request, done)
        if evaluate:
            self._record_evaluation(done.round, gathered)
        kept = f"; the {done.round} rounds before it are kept" if done.round else ""
        self._require(gathered.outcomes, f"round {number}", kept)
        model, memory = self.step(done, gathered)
        self.folder.append_metrics(
            {
                "kind": "round",
                "round": number,
                "started": started,
                "seconds": round(time.monotonic() - began, 3),
                **({} if gathered.mean is None else {"norm": norm(gathered.mean, self.parameters)}),
                "hospitals": {
                    o.hospital: _training_row(o, self.parameters) | self._role(o.hospital)
                    for o in gathered.outcomes
                },
                **_summed_row(gathered),
            }
        )
        made = self._released(Checkpoint(number, model, memory, gathered.codec), done)
        return self.descent.settle(done, made)

    def step(self, done: Checkpoint, gathered: Gathered) -> tuple[Arrays, Arrays]:
        """The strategy's, here; where hospitals hold the model, they moved it already."""
        if gathered.mean is None:
            return done.model, done.strategy
        memory = averaging.split(done.strategy)[0]
        number, who = done.round + 1, gathered.in_mean
        asked = set(self.hospitals) - {self.experiment.evaluation.leave_out}
        turn = Turn(number, len(who) / len(asked), self.experiment.training)
        model, after = strategies.move(
            self.strategy, done.model, gathered.mean, memory, self.parameters, turn
        )
        if self.strategy.by_turn:
            after |= counting.noted(memory, number, who)
        return model, after

    def final_evaluation(self, done: Checkpoint) -> None:
        """The last model on every hospital's held-out patients; nothing is trained."""
        request = Request(self.folder.name, done.round + 1, evaluate=True, train=False)
        gathered = self.aggregation.gather(self.hospitals, request, done)
        what = f"evaluation of the model of round {done.round}"
        self._require(gathered.outcomes, what, "; the model is kept")
        self._record_evaluation(done.round, gathered)

    def _released(self, made: Checkpoint, done: Checkpoint) -> Checkpoint:
        """Keep the mean over rounds, where the experiment has one; after the last it is the model."""
        privacy = self.experiment.privacy
        if privacy is None or privacy.ema == 0:
            return made
        mean = averaging.average(privacy.ema, done, made.model)
        last = made.round == self.experiment.rounds
        memory = made.strategy | averaging.remembered(mean)
        return Checkpoint(made.round, mean if last else made.model, memory, made.codec)

    def _require(self, outcomes: list[Outcome], what: str, kept: str) -> None:
        least = self.experiment.participation.least
        outcomes = [outcome for outcome in outcomes if not self._role(outcome.hospital)]
        good = sum(outcome.is_good for outcome in outcomes)
        if good < least:
            why = ", ".join(f"{o.hospital}: {o.reason}" for o in outcomes if not o.is_good)
            raise TooFewHospitals(
                f"{what}: {good} good answers, participation.least is {least} ({why}){kept}"
            )

    def _record_evaluation(self, number: int, gathered: Gathered) -> None:
        outcomes = gathered.outcomes
        good = {o.hospital: o.answer for o in outcomes if o.is_good and o.answer}
        rows = {o.hospital: _evaluation_row(o) | self._role(o.hospital) for o in outcomes}
        if gathered.summed is not None:
            summary: dict[str, Any] = self._together(gathered.summed, number)
        elif self.tally is None:
            evaluated = {name: a.evaluated for name, a in good.items() if a.evaluated}
            summary = {"overall": overall(self._of_trainers(evaluated))}
        else:
            tallied = {name: a.tallied for name, a in good.items() if a.tallied}
            summary = self._measure(self.tally, number, tallied, rows)
        metrics = {name: rows[name]["metrics"] for name in good if "metrics" in rows[name]}
        summary |= self._left_out(metrics)
        metrics = self._of_trainers(metrics)
        self.folder.append_metrics(
            {
                "kind": "evaluation",
                "round": number,
                "time": now(),
                "hospitals": rows,
                **summary,
                **self._by_group(number, gathered),
                "worst": worst(metrics, self.headline)
                | worst(metrics, strategies.PERSONAL + self.headline),
            }
        )

    def _role(self, hospital: str) -> dict[str, str]:
        """For a hospital's row: whether it is measured and never trains."""
        left_out = hospital == self.experiment.evaluation.leave_out
        return {"role": "left_out"} if left_out else {}

    def _of_trainers(self, figures: dict[str, Figure]) -> dict[str, Figure]:
        """Figures by hospital without those of the one that is left out."""
        return {name: figure for name, figure in figures.items() if not self._role(name)}

    def _left_out(self, metrics: dict[str, dict[str, float]]) -> dict[str, Any]:
        name = self.experiment.evaluation.leave_out
        if name is None:
            return {}
        return {"left_out": {"hospital": name, "metrics": metrics.get(name, {})}}

    def _by_group(self, number: int, gathered: Gathered) -> dict[str, Any]:
        """How good the model is by group of patients, where hospitals counted."""
        if self.counted is None:
            return {}
        if gathered.summed is not None:
            found = self.counted.of_sum(gathered.summed, number)
        else:
            answers = {o.hospital: o.answer for o in gathered.outcomes if o.is_good and o.answer}
            counts = {name: a.counts for name, a in answers.items() if a.counts is not None}
            found = self.counted.of_each(self._of_trainers(counts), number)
        return {} if found is None else {"fairness": found}

    def _together(self, summed: Summed, number: int) -> dict[str, Any]:
        """Metrics of a sum that cannot be taken apart."""
        told = {"summed_over": list(summed.hospitals), "held_out_patients": summed.held_out}
        if self.tally is None or summed.tallied is None:
            return {"overall": summed.metrics, **told}
        seed = (self.experiment.seed, number, 0)
        metrics, intervals = tallies.measure(self.tally, summed.tallied, *seed)
        return {"overall": metrics, "overall_intervals": intervals, **told}

    def _measure(
        self,
        tally: Tally,
        number: int,
        tallied: dict[str, Tallied],
        rows: dict[str, dict[str, Any]],
    ) -> dict[str, Any]:
        """Metrics of each hospital's noisy sums, into its row, and of the sum of these over all."""
        seed = (self.experiment.seed, number)
        for place, (name, one) in enumerate(tallied.items(), start=1):
            metrics, intervals = tallies.measure(tally, one, *seed, place)
            rows[name] |= {"metrics": metrics, "intervals": intervals}
        metrics, intervals = {}, {}
        if summed := list(self._of_trainers(tallied).values()):
            metrics, intervals = tallies.measure(tally, tallies.total(summed), *seed, 0)
        return {"overall": metrics, "overall_intervals": intervals}


def overall(evaluated: dict[str, Evaluated]) -> dict[str, float]:
    """Each metric's mean over hospitals, weighted by the patients it was measured on."""
    names = sorted({name for e in evaluated.values() for name in e.metrics})
    means = {}
    for name in names:
        having = [e for e in evaluated.values() if name in e.metrics]
        weight = sum(e.patients for e in having)
        means[name] = math.fsum(e.metrics[name] * e.patients for e in having) / weight
    return means


def worst(metrics: dict[str, dict[str, float]], headline: str) -> dict[str, dict[str, Any]]:
    """The hospital where the headline metric (larger is better) is lowest, of metrics by hospital."""
    having = {name: own[headline] for name, own in metrics.items() if headline in own}
    if not having:
        return {}
    name = min(sorted(having), key=lambda hospital: having[hospital])
    return {headline: {"hospital": name, "value": having[name]}}


def _row(outcome: Outcome) -> dict[str, Any]:
    return {
        "status": "ok" if outcome.is_good else "left out",
        "reason": outcome.reason.value if outcome.reason else None,
        "attempts": outcome.attempts,
    }


def _training_row(outcome: Outcome, parameters: frozenset[str]) -> dict[str, Any]:
    row = _row(outcome) | {"bytes_down": outcome.bytes_down, "bytes_up": outcome.bytes_up}
    row["answered_after"] = round(outcome.seconds, 3)
    trained = outcome.answer.trained if outcome.answer else None
    if trained is not None:
        row |= {"patients": trained.patients, "update_norm": norm(trained.update, parameters)}
        exact = {"examples": trained.examples, "loss": trained.loss, "seconds": trained.seconds}
        row |= {
            name: round(value, 3) if name == "seconds" else value
            for name, value in exact.items()
            if value is not None
        }
    return row | _spent_row(outcome)


def _evaluation_row(outcome: Outcome) -> dict[str, Any]:
    row = _row(outcome)
    evaluated = outcome.answer.evaluated if outcome.answer else None
    if evaluated is not None:
        row |= {
            "examples": evaluated.examples,
            "patients": evaluated.patients,
            "metrics": evaluated.metrics,
        }
    return row | _spent_row(outcome)


def _summed_row(gathered: Gathered) -> dict[str, Any]:
    """What is known of all hospitals of a round together, where it is not known of each."""
    summed = gathered.summed
    if summed is None:
        return {}
    exact = {"examples": summed.examples, "loss": summed.loss}
    figures = {name: value for name, value in exact.items() if value is not None}
    told = {"hospitals": list(summed.hospitals), "patients": summed.patients}
    steps = {step: round(seconds, 3) for step, seconds in gathered.seconds.items()}
    return {"summed": told | figures, "steps": steps}


def _spent_row(outcome: Outcome) -> dict[str, Any]:
    """What the hospital says of its ledger, in a private run."""
    spent: Spent | None = outcome.answer.spent if outcome.answer else None
    if spent is None:
        return {}
    told = {key: getattr(spent, key) for key in ("epsilon", "run_epsilon", "budget", "delta")}
    return {"spent": told | {"accountant": spent.accountant, "charges": spent.lodged.charges}}
