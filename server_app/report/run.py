"""A run as frozen dataclasses: what its folder tells, and what follows from that.

What is not known is `None`; nothing is guessed in its place.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from server_app.report.groups import ByGroup

Interval = tuple[float, float]

OWN_MODELS = ("fedbn", "fedper", "fedrep", "local_only")  # strategies


@dataclass(frozen=True)
class Spent:
    """What a hospital said of its ledger; see `federation.messages.Spent`.

    Attributes:
        epsilon: of all charges so far, over all runs.
        run_epsilon: of this run's charges.
        budget: ε that `epsilon` may not pass.
        delta: that all three go with.
        charges: how many the ledger has.
    """

    epsilon: float | None = None
    run_epsilon: float | None = None
    budget: float | None = None
    delta: float | None = None
    accountant: str | None = None
    charges: int | None = None

    @property
    def left(self) -> float | None:
        """ε between `epsilon` and `budget`."""
        if self.epsilon is None or self.budget is None:
            return None
        return max(0.0, self.budget - self.epsilon)


@dataclass(frozen=True)
class Answer:
    """One hospital's part in one training round.

    Attributes:
        status: `ok`, or in words what happened instead.
        reason: code from the fixed list of reasons, where the hospital left the round.
        examples, patients: trained on; of a private run the hospital's declared size alone.
        loss: mean training loss; not of a private run.
        seconds: of training at the hospital; not of a private run.
        bytes_down, bytes_up: size of the model it got and of the update it sent.
        update_norm: L2 norm of its update, over parameters.
        spent: its ledger after this round, of a private run.
    """

    hospital: str
    status: str
    reason: str | None = None
    attempts: int | None = None
    examples: int | None = None
    patients: int | None = None
    loss: float | None = None
    seconds: float | None = None
    bytes_down: int | None = None
    bytes_up: int | None = None
    update_norm: float | None = None
    spent: Spent | None = None

    @property
    def ok(self) -> bool:
        return self.status == "ok"


@dataclass(frozen=True)
class Summed:
    """What is known of hospitals together, where their work was summed under masks.

    Attributes:
        hospitals: whose work is in the sum.
        patients, examples: trained on; under privacy as many as the hospitals declare, and no examples.
        loss: mean over training examples; not of a private run.
    """

    hospitals: tuple[str, ...] = ()
    patients: int | None = None
    examples: int | None = None
    loss: float | None = None


@dataclass(frozen=True)
class Round:
    """One training round.

    Attributes:
        norm: L2 norm of the mean update, over parameters.
        summed: of a run under masks, whose answers then have no figures of their own.
        steps: seconds of each step of a sum under masks.
    """

    number: int
    started: datetime | None
    seconds: float | None
    norm: float | None
    answers: tuple[Answer, ...]
    summed: Summed | None = None
    steps: Mapping[str, float] = field(default_factory=dict)

    def total(self, quantity: str) -> float | None:
        """The sum of one of `Answer`'s quantities over hospitals; None where nobody told it."""
        known = [v for a in self.answers if (v := getattr(a, quantity)) is not None]
        return sum(known) if known else None

    def longest(self) -> float | None:
        """Seconds of the slowest hospital's training."""
        known = [answer.seconds for answer in self.answers if answer.seconds is not None]
        return max(known) if known else None


@dataclass(frozen=True)
class Measured:
    """The global model on one hospital's held-out patients, or on its public images.

    Attributes:
        intervals: how far noise may have moved a metric, 95 %; of noisy metrics alone.
    """

    hospital: str
    status: str
    reason: str | None
    examples: int | None
    patients: int | None
    metrics: Mapping[str, float]
    intervals: Mapping[str, Interval] = field(default_factory=dict)
    spent: Spent | None = None

    @property
    def ok(self) -> bool:
        return self.status == "ok"


@dataclass(frozen=True)
class Worst:
    """The hospital that a model serves worst by a metric."""

    hospital: str
    value: float


@dataclass(frozen=True)
class LeftOut:
    """The hospital that a model was evaluated at and never trained at.

    Attributes:
        reason: code, where it was not evaluated.
    """

    hospital: str
    metrics: Mapping[str, float]
    examples: int | None = None
    patients: int | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Evaluation:
    """The global model after a round (round 0: untrained) on all hospitals' held-out patients.

    Attributes:
        summed_over: of a run under masks, whose metrics are in `overall`; nobody has a figure alone.
        held_out: patients that these were measured on.
        groups: the same by group of patients, where the experiment counts by group.
        left_out: not among `measured`, and in no other figure.
    """

    round: int
    measured: tuple[Measured, ...]
    overall: Mapping[str, float]
    worst: Mapping[str, Worst]
    overall_intervals: Mapping[str, Interval] = field(default_factory=dict)
    summed_over: tuple[str, ...] | None = None
    held_out: int | None = None
    groups: ByGroup | None = None
    left_out: LeftOut | None = None

    def values(self, metric: str) -> dict[str, float]:
        """The metric by hospital, where it is known."""
        return {m.hospital: m.metrics[metric] for m in self.measured if metric in m.metrics}

    def intervals(self, metric: str) -> dict[str, Interval]:
        """The metric's interval by hospital, where it holds noise."""
        return {m.hospital: m.intervals[metric] for m in self.measured if metric in m.intervals}


@dataclass(frozen=True)
class Run:
    """All that a run's folder tells.

    Attributes:
        experiment: the experiment as plain JSON; empty if the file is missing.
        experiment_text: the same, character for character as it ran.
        experiment_sha256: what the run recorded; compare with `experiment_intact`.
        broken_lines: lines of metrics.jsonl that could not be read.
        model_bytes: of the model's arrays, which an update takes without a codec.
        parameters: numbers in the model's arrays of floats, running statistics with them.
        evaluations, rounds: by number; of a round that was repeated after a restart, the last.
    """

    name: str
    experiment: Mapping[str, Any] = field(default_factory=dict)
    experiment_text: str = ""
    experiment_sha256: str | None = None
    code_version: str | None = None
    code_commit: str | None = None
    code_dirty: bool | None = None
    code_bundle_sha256: str | None = None
    started: datetime | None = None
    updated: datetime | None = None
    user: str | None = None
    federation: str | None = None
    flower_runs: tuple[str, ...] = ()
    task_metrics: tuple[str, ...] = ()
    task_headline: str | None = None
    classes: tuple[str, ...] = ()
    state: str = "unknown"
    message: str | None = None
    planned_rounds: int | None = None
    rounds: tuple[Round, ...] = ()
    evaluations: tuple[Evaluation, ...] = ()
    broken_lines: int = 0
    model_bytes: int | None = None
    parameters: int | None = None

    @property
    def hospitals(self) -> tuple[str, ...]:
        """Every hospital that any line names, in alphabetical order."""
        trained = {answer.hospital for r in self.rounds for answer in r.answers}
        return tuple(sorted(trained | {m.hospital for e in self.evaluations for m in e.measured}))

    @property
    def metrics(self) -> tuple[str, ...]:
        """Metrics with at least one value: the task's in its order, headline first, then others."""
        seen = {name for e in self.evaluations for m in e.measured for name in m.metrics}
        seen |= {name for e in self.evaluations for name in e.overall}
        first = (self.task_headline, *self.task_metrics)
        first += tuple(f"personal_{name}" for name in first)
        known = [name for name in dict.fromkeys(first) if name in seen and name is not None]
        return (*known, *sorted(seen - set(known)))

    @property
    def headline(self) -> str | None:
        """The metric that models are compared by (larger is better)."""
        return self.task_headline or next(iter(self.metrics), None)

    @property
    def rounds_done(self) -> int:
        return self.rounds[-1].number if self.rounds else 0

    def last_evaluation(self, metric: str | None) -> Evaluation | None:
        """The last evaluation that has a value of the metric from anyone."""
        if metric is None:
            return None
        found = [e for e in self.evaluations if metric in e.overall or e.values(metric)]
        return found[-1] if found else None

    def last_by_group(self) -> Evaluation | None:
        """The last evaluation that says anything by group."""
        return next((e for e in reversed(self.evaluations) if e.groups and e.groups.rows), None)

    def worst_hospital(self) -> Worst | None:
        """Who is served worst by the last model, by the headline metric: larger is better."""
        return self.worst_by(self.headline, larger_is_better=True)

    def worst_by(self, metric: str | None, *, larger_is_better: bool | None) -> Worst | None:
        """Who is served worst by the last model, by a metric.

        What the run recorded, or else the extreme value; without a direction, nobody.
        """
        evaluation = self.last_evaluation(metric)
        if evaluation is None or metric is None:
            return None
        if metric in evaluation.worst:
            return evaluation.worst[metric]
        values = evaluation.values(metric)
        if larger_is_better is None or not values:
            return None
        extreme = min(values.values()) if larger_is_better else max(values.values())
        return Worst(min(name for name in values if values[name] == extreme), extreme)

    @property
    def private(self) -> bool | None:
        """Whether the run has patient-level privacy; None if no file tells."""
        if self.experiment:
            return bool(self.experiment.get("privacy"))
        return True if self.spent() else None

    @property
    def privacy(self) -> Mapping[str, Any]:
        """The experiment's privacy, empty without one."""
        chosen = self.experiment.get("privacy")
        return chosen if isinstance(chosen, dict) else {}

    @property
    def in_secret(self) -> bool:
        """Whether work was summed in secret: by the experiment, or where it is missing by the rows."""
        return bool(self.secure_aggregation) or any(
            r.summed is not None for r in self.rounds
        ) or any(e.summed_over is not None for e in self.evaluations)  # fmt: skip

    @property
    def encrypted(self) -> bool:
        """Whether hospitals alone can read the sums, and hold the model."""
        return self.secure_aggregation.get("name") == "ckks"

    @property
    def released(self) -> bool:
        """Whether the coordinator was given the final model of an encrypted run."""
        return self.encrypted and self.model_bytes is not None

    @property
    def secure_aggregation(self) -> Mapping[str, Any]:
        """The experiment's, empty without one."""
        chosen = self.experiment.get("secure_aggregation")
        return chosen if isinstance(chosen, dict) else {}

    @property
    def own_models(self) -> bool:
        """Whether the strategy leaves layers at hospitals, so that no two have the same model."""
        chosen = self.experiment.get("strategy")
        return isinstance(chosen, dict) and chosen.get("name") in OWN_MODELS

    @property
    def codec(self) -> Mapping[str, Any]:
        """The experiment's codec, empty without one."""
        chosen = self.experiment.get("codec")
        return chosen if isinstance(chosen, dict) else {}

    @property
    def metrics_from(self) -> str:
        """`exact`, or under privacy `none`, `noisy` or `public`."""
        return str(self.privacy.get("metrics") or "none") if self.private else "exact"

    @property
    def metrics_noise(self) -> float | None:
        """Standard deviation of the noise on the sums that noisy metrics come from, in patients."""
        noise = self.privacy.get("metrics_noise_multiplier")
        return float(noise) if isinstance(noise, int | float) else None

    def spent(self) -> dict[str, Spent]:
        """The last word on each hospital's ledger: that with most charges, as a ledger only grows."""
        told = [(a.hospital, a.spent) for r in self.rounds for a in r.answers]
        told += [(m.hospital, m.spent) for e in self.evaluations for m in e.measured]
        last: dict[str, Spent] = {}
        for hospital, spent in told:
            if spent is not None and (
                hospital not in last or (spent.charges or 0) > (last[hospital].charges or 0)
            ):
                last[hospital] = spent
        return last

    @property
    def experiment_intact(self) -> bool | None:
        """Whether experiment.json has the recorded SHA-256; None if either is missing."""
        if not self.experiment_text or self.experiment_sha256 is None:
            return None
        return hashlib.sha256(self.experiment_text.encode()).hexdigest() == self.experiment_sha256
