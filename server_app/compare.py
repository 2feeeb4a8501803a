"""Runs side by side: what differs between their experiments, and what came of each.

    run folders → measured runs → rows, one a run or one for runs that differ in their seed alone

Of runs under way and of failed ones the figures are those of the last model that was evaluated.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from federation.schema import ConfigError, nearest
from server_app.report.wording import larger_is_better
from server_app.state import RunFolder

FIGURES = (
    "overall",
    "worst_hospital",
    "worst_group",
    "gap",
    "left_out",
    "rounds_to_95",
    "bytes_up",
    "bytes_down",
    "epsilon",
    "seconds",
)
NEAR = 0.95  # of the best run's final figure

_NO_DIFFERENCE = ("name",)  # what an experiment is called


@dataclass(frozen=True)
class Point:
    """A figure of one run, whose it is (a hospital, a group), and its interval where it has one."""

    value: float
    name: str | None = None
    low: float | None = None
    high: float | None = None
    metric: str | None = None


@dataclass(frozen=True)
class Measured:
    """One run.

    Attributes:
        experiment: by dotted key; of a component (`strategy`) its name, and its options below it.
        course: overall metric by round of the model.
        points: by name of `FIGURES`; what is not known is absent.
    """

    run: str
    task: str
    metric: str
    experiment: Mapping[str, Any]
    state: str
    done: int
    rounds: int
    course: Mapping[int, float] = field(default_factory=dict)
    points: Mapping[str, Point] = field(default_factory=dict)


@dataclass(frozen=True)
class Figure:
    """A figure of a row.

    Attributes:
        deviation: sample standard deviation (of n − 1) over runs; None of one run.
        n: runs that have the figure.
        names: whose it is, in each of them; a name once.
        low, high, metric: of one run alone.
    """

    mean: float
    deviation: float | None
    n: int
    names: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    metric: str | None = None


@dataclass(frozen=True)
class Row:
    """`done` is of the run that got least far; `differs` by key of the comparison."""

    runs: tuple[str, ...]
    states: tuple[str, ...]
    done: int
    rounds: int
    differs: dict[str, Any]
    figures: dict[str, Figure]


@dataclass(frozen=True)
class Comparison:
    """Attributes:
    keys: of experiments, that differ between rows.
    over: of experiments, that runs of one row differ in.
    """

    task: str
    metric: str
    keys: tuple[str, ...]
    over: tuple[str, ...]
    rows: tuple[Row, ...]


def compare(
    folders: Sequence[RunFolder],
    *,
    metric: str | None = None,
    by: Sequence[str] = (),
    over: Sequence[str] = ("seed",),
) -> Comparison:
    """A table over runs.

    Args:
        metric: of the task; None: its headline.
        by: keys of experiments; runs that agree in them are one row. Empty: a row is what agrees in
            all but `over`.
        over: keys that runs of one row may differ in; where none of them differs, each run is a row.

    Raises:
        ConfigError: nothing to compare, runs of different tasks or metrics, a metric or key that
            there is not, or folders that are no runs.
    """
    measured = [measure(folder, metric) for folder in folders]
    if not measured:
        raise ConfigError("there are no runs to compare")
    _require_alike(measured)
    known = sorted({key for one in measured for key in one.experiment})
    for key in (*by, *over):
        if key not in known and key not in ("seed", *_NO_DIFFERENCE):
            raise ConfigError(f"no experiment has {key!r}{nearest(key, known)}")
    differing = differing_keys([one.experiment for one in measured])
    if by:
        keys = tuple(by)
        averaged = tuple(key for key in differing if key not in by)
    else:
        averaged = tuple(key for key in over if key in differing)
        keys = tuple(key for key in differing if key not in averaged)
    groups: dict[str, list[Measured]] = {}
    for one in measured:
        agreed = [one.experiment.get(key) for key in keys] if by or averaged else one.run
        groups.setdefault(json.dumps(agreed), []).append(one)
    near = _near(measured)
    rows = tuple(_row(group, keys, near) for group in groups.values())
    return Comparison(measured[0].task, measured[0].metric, keys, averaged, rows)


def measure(folder: RunFolder, metric: str | None = None) -> Measured:
    """One run's figures.

    Raises:
        ConfigError: no such run, or its task has no such metric.
    """
    experiment, task, status = folder.experiment(), folder.record()["task"], folder.status()
    chosen = metric or task["headline"]
    if chosen not in task["metrics"]:
        raise ConfigError(
            f"run {folder.name!r} has no metric {chosen!r}{nearest(chosen, task['metrics'])}"
        )
    lines = folder.metrics()
    # of a run that ended as nobody answered any more, the one before is the last with a figure
    evaluations = [
        line for line in lines if line["kind"] == "evaluation" and chosen in line["overall"]
    ]
    rounds = [line for line in lines if line["kind"] == "round"]
    course = {line["round"]: line["overall"][chosen] for line in evaluations}
    found: dict[str, Point | None] = {**_costs(rounds, lines)}
    if evaluations:
        last = evaluations[-1]
        found |= _quality(last, chosen, experiment.evaluation.leave_out)
    return Measured(
        run=folder.name,
        task=experiment.task.name,
        metric=chosen,
        experiment=flat(experiment.model_dump(mode="json")),
        state=_state(folder, status),
        done=status["round"],
        rounds=experiment.rounds,
        course=course,
        points={name: point for name, point in found.items() if point is not None},
    )


def flat(content: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """An experiment by dotted key; a section is its name, `yes` where it has none, and its keys."""
    result: dict[str, Any] = {}
    for key, value in content.items():
        if above and key == "name":
            continue
        if isinstance(value, Mapping):
            result[above + key] = value.get("name", "yes")
            result |= flat(value, f"{above}{key}.")
        else:
            result[above + key] = value
    return result


def differing_keys(experiments: Iterable[Mapping[str, Any]]) -> list[str]:
    """Keys whose values differ among the experiments that have them, in the order of the first."""
    values: dict[str, set[str]] = {}
    for experiment in experiments:
        for key, value in experiment.items():
            values.setdefault(key, set()).add(json.dumps(value, sort_keys=True))
    return [key for key, seen in values.items() if len(seen) > 1 and key not in _NO_DIFFERENCE]


def _require_alike(measured: Sequence[Measured]) -> None:
    first = measured[0]
    for one in measured[1:]:
        if one.task != first.task:
            raise ConfigError(
                f"run {first.run!r} is of task {first.task}, {one.run!r} of {one.task}: their figures "
                "do not compare"
            )
        if one.metric != first.metric:
            raise ConfigError(
                f"run {first.run!r} is judged by {first.metric}, {one.run!r} by {one.metric}: name one "
                "with --metric"
            )


def _state(folder: RunFolder, status: Mapping[str, Any]) -> str:
    """As the run says; one that nobody conducts any more has no last word."""
    said: str = status["state"]
    return "not conducted" if said == "running" and not folder.is_conducted() else said


def _quality(
    line: Mapping[str, Any], metric: str, leave_out: str | None
) -> dict[str, Point | None]:
    """What one evaluation says."""
    outside = line.get("left_out")
    name = outside.get("hospital") if isinstance(outside, Mapping) else outside or leave_out
    values = {
        hospital: row["metrics"][metric]
        for hospital, row in line["hospitals"].items()
        if metric in row.get("metrics", {})
    }
    left_out = values.pop(name, None) if name else None
    if isinstance(outside, Mapping):
        left_out = outside.get("metrics", {}).get(metric, left_out)
    return {
        "overall": Point(line["overall"][metric]),
        "worst_hospital": _worst(values, metric),
        "left_out": None if left_out is None else Point(left_out, name),
        **_by_group(line.get("fairness")),
    }


def _worst(values: Mapping[str, float], metric: str) -> Point | None:
    larger = larger_is_better(metric)
    if not values or larger is None:
        return None
    name = (min if larger else max)(sorted(values), key=lambda hospital: values[hospital])
    return Point(values[name], name)


def _by_group(fairness: Mapping[str, Any] | None) -> dict[str, Point | None]:
    """The worst group, and the gap of the groups that it is one of; else the widest of its metric."""
    worst = fairness.get("worst_group") if fairness else None
    if not fairness or not worst:
        return {}
    same = [
        gap
        for gap in fairness["gaps"]
        if (gap["metric"], gap["channel"]) == (worst["metric"], worst["channel"])
    ]
    own = [gap for gap in same if gap["worst"] == worst["group"]] or same
    widest = max(own, key=lambda gap: gap["value"], default=None)
    return {
        "worst_group": Point(
            worst["value"], worst["group"], worst["low"], worst["high"], worst["metric"]
        ),
        "gap": widest
        and Point(
            widest["value"],
            " & ".join(widest["attributes"]),
            widest["low"],
            widest["high"],
            widest["metric"],
        ),
    }


def _costs(
    rounds: Sequence[Mapping[str, Any]], lines: Sequence[Mapping[str, Any]]
) -> dict[str, Point | None]:
    """Bytes of a hospital over all rounds, in the mean; ε where it is highest; seconds of all rounds."""
    hospitals = {name for line in rounds for name in line["hospitals"]}
    moved = {
        way: sum(row[way] for line in rounds for row in line["hospitals"].values())
        for way in ("bytes_up", "bytes_down")
    }
    spent = [
        row["spent"]["run_epsilon"]
        for line in lines
        for row in line["hospitals"].values()
        if "spent" in row
    ]
    return {
        **{way: Point(total / len(hospitals)) for way, total in moved.items() if hospitals},
        "epsilon": Point(max(spent)) if spent else None,
        "seconds": Point(sum(line["seconds"] for line in rounds)) if rounds else None,
    }


def _near(measured: Sequence[Measured]) -> float | None:
    """95 % of the best final figure; None for metrics of which less is better."""
    finals = [one.points["overall"].value for one in measured if "overall" in one.points]
    return NEAR * max(finals) if finals and larger_is_better(measured[0].metric) else None


def _row(group: Sequence[Measured], keys: tuple[str, ...], near: float | None) -> Row:
    points = [{**one.points, **_reached(one, near)} for one in group]
    figures = {}
    for name in FIGURES:
        having = [of_run[name] for of_run in points if name in of_run]
        if having:
            figures[name] = _figure(having)
    least = min(group, key=lambda one: one.done / one.rounds)
    return Row(
        runs=tuple(one.run for one in group),
        states=tuple(one.state for one in group),
        done=least.done,
        rounds=least.rounds,
        differs={key: group[0].experiment.get(key) for key in keys},
        figures=figures,
    )


def _reached(one: Measured, near: float | None) -> dict[str, Point]:
    rounds = [number for number, value in one.course.items() if near and value >= near]
    return {"rounds_to_95": Point(min(rounds))} if rounds else {}


def _figure(points: Sequence[Point]) -> Figure:
    values = [point.value for point in points]
    names = tuple(dict.fromkeys(point.name for point in points if point.name is not None))
    if len(points) > 1:
        return Figure(
            statistics.fmean(values), statistics.stdev(values), len(values), names,
            metric=points[0].metric,
        )  # fmt: skip
    only = points[0]
    return Figure(only.value, None, 1, names, only.low, only.high, only.metric)
