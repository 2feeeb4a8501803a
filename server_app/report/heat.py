"""Hospital × metric: who is served how well, by every metric at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from server_app.report import wording
from server_app.report.run import Run

SHADES = 5


@dataclass(frozen=True)
class Cell:
    """A value, and how far it is from the column's best: 0 (best) … `SHADES` (worst).

    `shade` is None where neither end is better, and where the column has one value alone.
    """

    value: float
    shade: int | None


@dataclass(frozen=True)
class Row:
    """One hospital.

    Attributes:
        never_trained: it was left out of training, to see how the model does elsewhere.
        reason: code, where it was not evaluated.
    """

    hospital: str
    cells: Mapping[str, Cell]
    never_trained: bool = False
    reason: str | None = None


@dataclass(frozen=True)
class Heat:
    """The map after a round; `spread`: largest minus smallest value of each metric."""

    round: int
    metrics: tuple[str, ...]
    rows: tuple[Row, ...]
    spread: Mapping[str, float]


def of(run: Run) -> Heat | None:
    """The last evaluation's hospitals; None where nothing of a single hospital is known."""
    evaluation = run.last_evaluation(run.headline)
    if evaluation is None or run.in_secret:
        return None
    told = {m.hospital: m.metrics for m in evaluation.measured}
    reasons = {m.hospital: m.reason or m.status for m in evaluation.measured if not m.ok}
    out = evaluation.left_out
    if out is not None:
        told[out.hospital] = out.metrics
        if out.reason is not None:
            reasons[out.hospital] = out.reason
    metrics = tuple(m for m in run.metrics if any(m in values for values in told.values()))
    if not metrics:
        return None
    columns = {
        metric: {name: values[metric] for name, values in told.items() if metric in values}
        for metric in metrics
    }
    shades = {metric: _shades(metric, column) for metric, column in columns.items()}
    rows = tuple(
        Row(
            name,
            {m: Cell(v, shades[m].get(name)) for m, v in values.items() if m in columns},
            never_trained=out is not None and name == out.hospital,
            reason=None if values else reasons.get(name),
        )
        for name, values in told.items()
    )
    spread = {metric: max(c.values()) - min(c.values()) for metric, c in columns.items()}
    return Heat(evaluation.round, metrics, rows, spread)


def _shades(metric: str, column: Mapping[str, float]) -> dict[str, int]:
    """How far each value is from the best one, in steps of the way to the worst one."""
    stem, larger = metric.removeprefix(wording.PERSONAL), wording.larger_is_better(metric)
    if larger is not None:
        loss = {name: -value if larger else value for name, value in column.items()}
    elif stem in wording.NEAREST_TO_ZERO_IS_BETTER:
        loss = {name: abs(value) for name, value in column.items()}
    else:
        return {}
    best, worst = min(loss.values()), max(loss.values())
    if worst == best:
        return {}
    return {name: round(SHADES * (one - best) / (worst - best)) for name, one in loss.items()}
