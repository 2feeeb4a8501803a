"""What an evaluation says by group of patients: the key `fairness` of its row, read leniently.

It is `federation.fairness.table` as JSON. A row without a group's name, a metric without a value, is
passed over; nothing is guessed in its place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from server_app.report.lenient import (
    as_list,
    as_mapping,
    as_number,
    as_text,
    as_texts,
    as_whole,
)

Interval = tuple[float, float]

ALL = "all"
UNKNOWN = "unknown"
WITHHELD = "withheld"


@dataclass(frozen=True)
class Estimate:
    """A metric of some cases.

    Attributes:
        bound: most that counting in bins may have moved `value`.
        interval: 95 %, wider by the bound.
        cases: of those that the metric needs; where it needs both labels, of the rarer.
    """

    value: float
    bound: float | None = None
    interval: Interval | None = None
    cases: int | None = None


@dataclass(frozen=True)
class Group:
    """One group in one channel (a class against all others, or a structure).

    Attributes:
        name: `sex=female`, `sex=female & manufacturer=ge`; `all`.
        attributes: none of `all`.
        cases: of either label, answered or not.
        positive: of them, those of the channel's class; None in segmentation.
        unanswered: of them, those without a finite answer.
        known: false where a word of the group is unknown or withheld.
    """

    name: str
    attributes: tuple[str, ...] = ()
    channel: str = ""
    cases: int | None = None
    positive: int | None = None
    unanswered: int | None = None
    known: bool = True
    metrics: Mapping[str, Estimate] = field(default_factory=dict)

    @property
    def words(self) -> tuple[str, ...]:
        """`female`, `ge`: of each attribute; of a name that is not of this form, the name."""
        parts = [part.partition("=") for part in self.name.split(" & ")]
        if [part[0] for part in parts] != list(self.attributes):
            return (self.name,)
        return tuple(part[2] for part in parts)

    @property
    def withheld(self) -> bool:
        """Whether it is what hospitals put together, because it was of few patients each."""
        return WITHHELD in self.words

    def enough(self, metric: str | None, least: int) -> bool:
        """Whether it has so many of the cases that the metric needs.

        Rows of older runs do not tell how many these are: there it is cases of the rarer label, answered
        or not; in segmentation all.
        """
        estimate = self.metrics.get(metric or "")
        if estimate is None:
            return False
        cases = estimate.cases
        if cases is None and self.cases is not None:
            positive = self.positive
            cases = self.cases if positive is None else min(positive, self.cases - positive)
        return (cases or 0) >= least


@dataclass(frozen=True)
class Gap:
    """How far the groups of some attributes are apart; `worst` and `best` are groups' names."""

    attributes: tuple[str, ...]
    channel: str
    metric: str
    value: float
    bound: float | None = None
    interval: Interval | None = None
    worst: str | None = None
    best: str | None = None
    groups: int | None = None


@dataclass(frozen=True)
class WorstGroup:
    """The known group with enough cases that the model serves worst."""

    group: str
    channel: str
    metric: str
    value: float
    interval: Interval | None = None


@dataclass(frozen=True)
class AtHospital:
    """One hospital's rows of the group `all`, and the cases whose word it withheld, by attribute."""

    rows: tuple[Group, ...]
    withheld: Mapping[str, int]


@dataclass(frozen=True)
class ByGroup:
    """One evaluation by group.

    Attributes:
        withheld: cases in the total whose word hospitals withheld, by attribute.
        hospitals: empty where counts were summed in secret; one that sent none is absent.
    """

    rows: tuple[Group, ...]
    gaps: tuple[Gap, ...]
    withheld: Mapping[str, int]
    worst: WorstGroup | None
    hospitals: Mapping[str, AtHospital]

    @property
    def channels(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(row.channel for row in self.rows))

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names in the order of the first row that has them: the one groups are compared by leads."""
        return tuple(dict.fromkeys(name for row in self.rows for name in row.metrics))

    @property
    def headline(self) -> str | None:
        """The metric that groups are compared by."""
        return self.worst.metric if self.worst else next(iter(self.metrics), None)

    def total(self, channel: str) -> Group | None:
        """All cases."""
        return next((r for r in self.rows if r.name == ALL and r.channel == channel), None)

    def worst_hospital(self, channel: str, least: int) -> tuple[str, Group] | None:
        """Whose cases together have the lowest headline value, among those with enough of them."""
        if self.headline is None:
            return None
        found = {
            name: row
            for name, at in self.hospitals.items()
            for row in at.rows
            if row.name == ALL and row.channel == channel and row.enough(self.headline, least)
        }
        metric = self.headline
        return min(found.items(), key=lambda item: item[1].metrics[metric].value, default=None)


def by_group(value: object) -> ByGroup | None:
    """The key `fairness` of a row of kind `evaluation`; None where there is none."""
    told = as_mapping(value)
    if not told:
        return None
    return ByGroup(
        rows=_rows(told.get("rows")),
        gaps=tuple(gap for item in as_list(told.get("gaps")) if (gap := _gap(as_mapping(item)))),
        withheld=_counts(told.get("withheld")),
        worst=_worst(as_mapping(told.get("worst_group"))),
        hospitals={
            name: AtHospital(
                _rows(as_mapping(at).get("rows")), _counts(as_mapping(at).get("withheld"))
            )
            for name, at in sorted(as_mapping(told.get("hospitals")).items())
        },
    )


def _rows(value: object) -> tuple[Group, ...]:
    return tuple(row for item in as_list(value) if (row := _group(as_mapping(item))))


def _group(told: Mapping[str, Any]) -> Group | None:
    name = as_text(told.get("group"))
    if name is None:
        return None
    estimates = {
        metric: _estimate(as_mapping(item))
        for metric, item in as_mapping(told.get("metrics")).items()
    }
    return Group(
        name=name,
        attributes=as_texts(told.get("attributes")),
        channel=as_text(told.get("channel")) or "",
        cases=as_whole(told.get("cases")),
        positive=as_whole(told.get("positive")),
        unanswered=as_whole(told.get("unanswered")),
        known=told.get("known") is not False,
        metrics={metric: one for metric, one in estimates.items() if one is not None},
    )


def _estimate(told: Mapping[str, Any]) -> Estimate | None:
    value, cases = as_number(told.get("value")), as_whole(told.get("cases"))
    if value is None:
        return None
    return Estimate(value, as_number(told.get("bound")), _interval(told), cases)


def _interval(told: Mapping[str, Any]) -> Interval | None:
    low, high = as_number(told.get("low")), as_number(told.get("high"))
    return None if low is None or high is None else (low, high)


def _gap(told: Mapping[str, Any]) -> Gap | None:
    metric, value = as_text(told.get("metric")), as_number(told.get("value"))
    if metric is None or value is None:
        return None
    return Gap(
        attributes=as_texts(told.get("attributes")),
        channel=as_text(told.get("channel")) or "",
        metric=metric,
        value=value,
        bound=as_number(told.get("bound")),
        interval=_interval(told),
        worst=as_text(told.get("worst")),
        best=as_text(told.get("best")),
        groups=as_whole(told.get("groups")),
    )


def _worst(told: Mapping[str, Any]) -> WorstGroup | None:
    group, metric = as_text(told.get("group")), as_text(told.get("metric"))
    value = as_number(told.get("value"))
    if group is None or metric is None or value is None:
        return None
    return WorstGroup(group, as_text(told.get("channel")) or "", metric, value, _interval(told))


def _counts(value: object) -> dict[str, int]:
    pairs = ((name, as_whole(item)) for name, item in as_mapping(value).items())
    return {name: count for name, count in pairs if count is not None}
