"""A hospital's counts and metrics as integers that can be added, and what their sum says.

Where updates are summed in secret, so are these: 64-bit integers, exact, in a fixed order. Numbers that
are not whole are in units of 2⁻²⁰; means travel as sums with their weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from federation.messages import Answer, Tallied
from federation.schema import Experiment
from federation.tasks import Task

BITS = 64  # of each integer, signed

_UNIT = 1 << 20
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
    """

    hospitals: tuple[str, ...]
    patients: int = 0
    examples: int | None = None
    loss: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    held_out: int = 0
    tallied: Tallied | None = None


@dataclass(frozen=True)
class Figures:
    """Which figures a run has.

    Attributes:
        metrics: the task's names, in an order that all share.
        tally: length of the task's noisy tally, where metrics come so; else 0.
    """

    metrics: tuple[str, ...]
    tally: int = 0

    @classmethod
    def of(cls, experiment: Experiment, task: Task) -> Figures:
        """An experiment's."""
        privacy = experiment.privacy
        noisy = privacy is not None and privacy.metrics == "noisy" and task.tally is not None
        return cls(tuple(task.metrics), task.tally.size if noisy and task.tally else 0)

    @property
    def length(self) -> int:
        return 4 + 2 * len(self.metrics) + (1 + self.tally if self.tally else 0)

    def integers(self, answer: Answer) -> NDArray[np.int64]:
        """A hospital's figures, (length,); what it does not have is 0.

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
        numbers = [*values, *measured, *tallied]
        if not all(math.isfinite(n) and abs(n) < _LARGEST for n in numbers):
            raise ValueError("a figure that cannot be added")
        return np.array(numbers, np.int64)

    def summed(self, total: NDArray[np.int64], hospitals: tuple[str, ...]) -> Summed:
        """What the sum of hospitals' integers says."""
        numbers = [int(number) for number in total]
        patients, examples, loss, held_out = numbers[:4]
        metrics = {}
        for place, name in enumerate(self.metrics):
            value, weight = numbers[4 + 2 * place : 6 + 2 * place]
            if weight > 0:
                metrics[name] = value / _UNIT / weight
        tallied = None
        if self.tally:
            squared, *values = numbers[4 + 2 * len(self.metrics) :]
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
        )


def _fixed(value: float) -> float:
    """In units of 2⁻²⁰, whole."""
    return float(np.rint(value * _UNIT))
