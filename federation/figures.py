"""A hospital's counts and metrics as integers that can be added, and what their sum says.

Where updates are summed in secret, so are these: 64-bit integers, exact, in a fixed order. Numbers that
are not whole are in units of 2⁻²⁰, or of 2⁻⁴⁰ if at most 1; means travel as sums with their weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from federation import strategies
from federation.fairness.layout import Layout
from federation.messages import Answer, Tallied
from federation.schema import Experiment
from federation.tasks import Task

BITS = 64  # of each integer, signed

_UNIT = 1 << 20
_FINE = 1 << 40
_LARGEST = (
    1 << 52
)  # of a hospital's number: a thousand of them cannot overflow, and a float64 holds it


@dataclass(frozen=True)
class Summed:
    """Figures of all hospitals of a round together, where single ones are not told.

    Attributes:
        hospitals: whose figures are in it.
        patients: trained on; under patient-level privacy as many as the hospitals declare.
        loss: mean over training examples; None under patient-level privacy, as `examples` is.
        metrics: each one's mean over hospitals, weighted by held-out patients.
        held_out: patients that the metrics were measured on.
        tallied: the task's noisy tally, under patient-level privacy with metrics=noisy.
        counts: held-out cases by group, int64 (`Figures.counts`,); None where the run has none.
        normaliser: Σ sₖ·cₖ, with which the strategy's mean is shortened again (`weights.mean_of`);
            None where no hospital divides its update.
    """

    hospitals: tuple[str, ...]
    patients: int = 0
    examples: int | None = None
    loss: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    held_out: int = 0
    tallied: Tallied | None = None
    counts: NDArray[np.int64] | None = field(default=None, compare=False)
    normaliser: float | None = None


@dataclass(frozen=True)
class Figures:
    """Which figures a run has.

    Attributes:
        metrics: names, in an order that all share.
        tally: length of the task's noisy tally, where metrics come so; else 0.
        counts: how many counts by group; 0 where there are none.
        normalised: whether hospitals divide their updates (`strategies.normaliser`).
    """

    metrics: tuple[str, ...]
    tally: int = 0
    counts: int = 0
    normalised: bool = False

    @classmethod
    def of(cls, experiment: Experiment, task: Task) -> Figures:
        """An experiment's. Raises ConfigError: too many counts by group."""
        privacy = experiment.privacy
        noisy = privacy is not None and privacy.metrics == "noisy" and task.tally is not None
        layout = Layout.of_experiment(experiment, task)
        return cls(
            strategies.metric_names(experiment, task.metrics),
            tally=task.tally.size if noisy and task.tally else 0,
            counts=layout.size if layout is not None else 0,
            normalised=strategies.normaliser(experiment) is not None,
        )

    @property
    def length(self) -> int:
        return self._measured + self.counts

    @property
    def _measured(self) -> int:
        tallied = 1 + self.tally if self.tally else 0
        return 4 + 2 * len(self.metrics) + tallied + self.normalised

    def integers(self, answer: Answer, normaliser: float = 0.0) -> NDArray[np.int64]:
        """A hospital's figures, (length,); what it does not have is 0.

        Args:
            normaliser: sₖ·cₖ, at most 1: its weight in the sum times what it divided its update by.

        Raises:
            ValueError: a number that is not finite or too large to be added.
        """
        values = [0.0] * 4
        if (trained := answer.trained) is not None:
            values[0] = trained.patients
            values[1] = examples = trained.examples or 0
            values[2] = _fixed((trained.loss or 0.0) * examples)
        measured = [0.0] * (2 * len(self.metrics))
        if (evaluated := answer.evaluated) is not None:
            values[3] = evaluated.patients
            for place, name in enumerate(self.metrics):
                if name in evaluated.metrics:
                    measured[2 * place] = _fixed(evaluated.metrics[name] * evaluated.patients)
                    measured[2 * place + 1] = evaluated.patients
        tallied = [0.0] * (1 + self.tally) if self.tally else []
        if answer.tallied is not None:
            tallied = [_fixed(answer.tallied.noise**2), *map(_fixed, answer.tallied.values)]
        divided = [float(np.rint(normaliser * _FINE))] if self.normalised else []
        numbers = [*values, *measured, *tallied, *divided]
        if not all(math.isfinite(n) and abs(n) < _LARGEST for n in numbers):
            raise ValueError("a figure that cannot be added")
        counts = np.zeros(self.counts, np.int64)
        if answer.counts is not None:
            if answer.counts.shape != counts.shape or not _can_be_added(answer.counts):
                raise ValueError("counts that cannot be added")
            counts = answer.counts
        return np.concatenate([np.array(numbers, np.int64), counts])

    def summed(self, total: NDArray[np.int64], hospitals: tuple[str, ...]) -> Summed:
        """What the sum of hospitals' integers says."""
        numbers = [int(number) for number in total[: self._measured]]
        patients, examples, loss, held_out = numbers[:4]
        metrics = {}
        for place, name in enumerate(self.metrics):
            value, weight = numbers[4 + 2 * place : 6 + 2 * place]
            if weight > 0:
                metrics[name] = value / _UNIT / weight
        tallied = None
        if self.tally:
            first = 4 + 2 * len(self.metrics)
            squared, *values = numbers[first : first + 1 + self.tally]
            if squared > 0:
                tallied = Tallied(np.array(values, np.float64) / _UNIT, math.sqrt(squared / _UNIT))
        return Summed(
            hospitals=hospitals,
            patients=patients,
            examples=examples or None,
            loss=loss / _UNIT / examples if examples else None,
            metrics=metrics,
            held_out=held_out,
            tallied=tallied,
            counts=total[self._measured :].copy() if self.counts else None,
            normaliser=numbers[-1] / _FINE if self.normalised else None,
        )


def _can_be_added(counts: NDArray[np.int64]) -> bool:
    return bool(((counts < _LARGEST) & (counts > -_LARGEST)).all())


def _fixed(value: float) -> float:
    """In units of 2⁻²⁰, whole."""
    return float(np.rint(value * _UNIT))
