"""What a sum of hospitals' counts says of a model, by group, and how far groups are apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from federation.fairness import intervals, measures
from federation.fairness.counts import as_array, nonnegative
from federation.fairness.layout import ALL, WITHHELD, Group, Layout
from federation.fairness.measures import Metric

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]

EQUALISED_ODDS = "equalised_odds_difference"
DEMOGRAPHIC_PARITY = "demographic_parity_difference"


@dataclass(frozen=True)
class Estimate:
    """A metric of some cases.

    Attributes:
        bound: most that bins may have moved `value`.
        low, high: 95 % interval, wider by the bound; see `intervals`.
        cases: how many there are of those that it needs; where it needs both labels, of the rarer.
    """

    value: float
    bound: float
    low: float
    high: float
    cases: int


@dataclass(frozen=True)
class Row:
    """One group in one channel.

    Attributes:
        group: `sex=female`; `all`.
        attributes: of the group; none of `all`.
        cases: with a score or Dice, or without an answer; of either label. With noise, rounded.
        positive: of them, those of the channel's class; None in segmentation.
        unanswered: of them, those that the model gave no finite answer for.
        metrics: by name; those that cannot be computed are left out.
        known: false where a word of the group is unknown or withheld.
    """

    group: str
    attributes: tuple[str, ...]
    channel: str
    cases: int
    positive: int | None
    unanswered: int
    metrics: dict[str, Estimate]
    known: bool


@dataclass(frozen=True)
class Gap:
    """How far the groups of a table are apart in a metric: the largest value less the smallest.

    Attributes:
        metric: one of `Row.metrics`, or `equalised_odds_difference`.
        worst, best: groups; where neither end is better, the lowest and the highest. None where it is
            about two metrics.
        groups: how many had enough cases to be compared.
    """

    attributes: tuple[str, ...]
    channel: str
    metric: str
    value: float
    bound: float
    low: float
    high: float
    worst: str | None
    best: str | None
    groups: int


@dataclass(frozen=True)
class FairnessTable:
    """`withheld`: cases in the total whose word hospitals withheld, by attribute."""

    rows: tuple[Row, ...]
    gaps: tuple[Gap, ...]
    withheld: dict[str, int]

    def worst(self, metric: str, channel: str, least: int) -> Row | None:
        """The known group with the lowest value among those with enough of the cases it needs."""
        able = [
            row
            for row in self.rows
            if row.channel == channel
            and row.group != ALL
            and row.known
            and metric in row.metrics
            and row.metrics[metric].cases >= least
        ]
        return min(able, key=lambda row: row.metrics[metric].value, default=None)


def of_counts(
    vector: Counts,
    layout: Layout,
    *,
    seed: int,
    threshold: float | None = None,
    noise: float = 0.0,
) -> FairnessTable:
    """All groups that have cases, and the gaps in each table of groups.

    Gaps are between known groups with at least `least_cases` of each label that a metric needs (answered
    ones, where it leaves out the others). With them fairlearn's differences (Bird et al. 2020; method
    `between_groups`) are

    - `demographic_parity_difference`: of `selection_rate`;
    - `equalised_odds_difference`: the larger one of the gaps of `sensitivity` and of
      `false_positive_rate` (agg `worst_case`). fairlearn counts a rate of no cases as 0; here such a
      group is left out.

    A gap's interval is the bootstrap's, by groups, and leans upwards: chance alone parts groups. One
    table's groups have no case in common, so they are drawn independently.

    Args:
        vector: a sum of `counts.count` over hospitals, or one hospital's.
        seed: of the bootstrap: the same counts and seed, the same table.
        threshold: probability from which a case is called positive; None: the experiment's.
        noise: standard deviation of the noise in each count of the sum. With it all intervals are
            the bootstrap's.

    Raises:
        ValueError: counts of another layout.
    """
    counts = as_array(vector, layout)
    if noise > 0 or (counts < 0).any():
        counts = nonnegative(counts)
    columns = measures.metrics(layout, threshold)
    rows: list[Row] = []
    gaps: list[Gap] = []
    for table in layout.tables:
        for channel, name in enumerate(layout.channels):
            found: list[_Found] = []
            for at in range(table.first, table.first + table.size):
                histogram = counts[at, channel]
                if histogram.sum() > 0:
                    generator = np.random.default_rng([seed, at, channel])
                    drawn = intervals.draws(histogram, generator, noise)
                    found.append(_measured(layout.groups[at], histogram, drawn, columns, layout))
            rows += [one.row(name, layout, noise > 0) for one in found]
            if table.columns:
                attributes = tuple(layout.attributes[c] for c in table.columns)
                gaps += _gaps(attributes, name, found, columns, layout.options.least_cases)
    return FairnessTable(tuple(rows), tuple(gaps), _withheld(rows, layout))


def worst_hospital(
    tables: Mapping[str, FairnessTable], metric: str, channel: str, least: int
) -> str | None:
    """Whose `all` has the lowest value, among hospitals with enough of the cases that it needs."""
    overall = {
        hospital: row
        for hospital, table in tables.items()
        for row in table.rows
        if row.group == ALL
        and row.channel == channel
        and metric in row.metrics
        and row.metrics[metric].cases >= least
    }
    return min(overall, key=lambda hospital: overall[hospital].metrics[metric].value, default=None)


@dataclass(frozen=True)
class _Found:
    """A group's metrics, on what was counted and on what might have been.

    Attributes:
        cases, answered: (rows,); see `measures`.
    """

    group: Group
    cases: Floats
    answered: Floats
    values: dict[str, tuple[float, float]]
    drawn: dict[str, Floats]
    columns: tuple[Metric, ...]

    def enough(self, metric: Metric, least: float) -> bool:
        return self._needed(metric) >= least and np.isfinite(self.values[metric.name][0])

    def _entering(self, metric: Metric) -> Floats:
        return self.answered if metric.answered else self.cases

    def _needed(self, metric: Metric) -> float:
        cases = self._entering(metric)
        match metric.needs:
            case "positive":
                return float(cases[1])
            case "negative":
                return float(cases[0])
            case "both":
                return float(cases.min())
            case "any":
                return float(cases.sum())

    def row(self, channel: str, layout: Layout, noisy: bool) -> Row:
        estimates = {}
        for metric in self.columns:
            value, bound = self.values[metric.name]
            interval: tuple[float, float] | None
            if not np.isfinite(value):
                continue
            if metric.share and not noisy:
                interval = intervals.of_share(value, bound, self._needed(metric))
            elif metric.name == "auroc" and not noisy:
                interval = intervals.of_auroc(value, bound, *self._entering(metric))
            else:
                interval = intervals.of_draws(value, bound, self.drawn[metric.name])
            if interval is not None:
                needed = round(self._needed(metric))
                estimates[metric.name] = Estimate(value, bound, *interval, needed)
        return Row(
            group=self.group.name,
            attributes=self.group.attributes,
            channel=channel,
            cases=round(self.cases.sum()),
            positive=round(self.cases[1]) if layout.rows == 2 else None,
            unanswered=round(self.cases.sum() - self.answered.sum()),
            metrics=estimates,
            known=self.group.known,
        )


def _measured(
    group: Group, histogram: Floats, drawn: Floats, columns: tuple[Metric, ...], layout: Layout
) -> _Found:
    values, of_draws = {}, {}
    for metric in columns:
        found = metric.of(histogram)
        values[metric.name] = (float(found.value), float(found.bound))
        of_draws[metric.name] = metric.of(drawn).value
    cases, answered = measures.cases(histogram, layout), measures.answered(histogram, layout)
    return _Found(group, cases, answered, values, of_draws, columns)


def _gaps(
    attributes: tuple[str, ...],
    channel: str,
    found: list[_Found],
    columns: tuple[Metric, ...],
    least: int,
) -> list[Gap]:
    gaps: list[Gap] = []
    spreads: dict[str, Floats] = {}
    for metric in columns:
        able = [one for one in found if one.group.known and one.enough(metric, least)]
        if len(able) < 2:
            continue
        ordered = sorted((one.values[metric.name][0], one.group.name) for one in able)
        (smallest, lowest), (largest, highest) = ordered[0], ordered[-1]
        value = largest - smallest
        # the largest and the smallest value are each off by at most the largest bound
        bound = 2 * max(one.values[metric.name][1] for one in able)
        drawn = np.stack([one.drawn[metric.name] for one in able])
        spreads[metric.name] = drawn.max(axis=0) - drawn.min(axis=0)
        interval = intervals.of_draws(value, bound, spreads[metric.name])
        if interval is not None:
            ends = (highest, lowest) if metric.better == "lower" else (lowest, highest)
            name = DEMOGRAPHIC_PARITY if metric.name == "selection_rate" else metric.name
            gaps.append(Gap(attributes, channel, name, value, bound, *interval, *ends, len(able)))
    odds = [gap for gap in gaps if gap.metric in ("sensitivity", "false_positive_rate")]
    if len(odds) == 2:
        value, bound = max(gap.value for gap in odds), max(gap.bound for gap in odds)
        drawn = np.maximum(spreads["sensitivity"], spreads["false_positive_rate"])
        interval = intervals.of_draws(value, bound, drawn)
        if interval is not None:
            groups = min(gap.groups for gap in odds)
            name = EQUALISED_ODDS
            gaps.append(Gap(attributes, channel, name, value, bound, *interval, None, None, groups))
    return gaps


def _withheld(rows: list[Row], layout: Layout) -> dict[str, int]:
    return {
        row.attributes[0]: row.cases
        for row in rows
        if row.channel == layout.channels[0]
        and len(row.attributes) == 1
        and row.group == f"{row.attributes[0]}={WITHHELD}"
    }
