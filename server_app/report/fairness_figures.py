"""Figures by group: a dot and its interval for each group, Dice quantiles, gaps over rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from server_app.report import svg, wording
from server_app.report.drawing import Chart, canvas, lines_chart
from server_app.report.groups import ALL, ByGroup, Group, Interval
from server_app.report.run import Run

MOST_DRAWN = 30  # groups of a figure; with more, those with the lowest values
_LETTERS = 25  # of a group's name beside its dot
_QUANTILES = ("dice_q10", "dice_median", "dice_q90")


def by_group(
    groups: ByGroup, channel: str, title: str, least: int, *, key: str
) -> tuple[Chart, ...]:
    """The figures of one channel that there are numbers for.

    Args:
        title: of the channel; empty where there is one alone.
        least: cases of each label from which a group is compared.
        key: before the figures' ids.
    """
    metric = groups.headline
    rows = [row for row in groups.rows if row.channel == channel and row.name != ALL]
    rows = [r for r in rows if len(r.attributes) == 1] or rows
    total = groups.total(channel)
    if metric is None or not any(metric in row.metrics for row in rows):
        return ()
    with svg.style():
        found = [_dots(rows, total, metric, title, least, groups, key)]
        if all(any(q in row.metrics for row in rows) for q in _QUANTILES):
            found.append(_quantiles(rows, total, title, f"{key}-quantiles"))
    return tuple(found)


def gaps(run: Run) -> tuple[Chart, ...]:
    """Each kind of gap over rounds, a line for each attribute, with the last one's interval."""
    last = run.last_by_group()
    if last is None or last.groups is None:
        return ()
    single = [gap for gap in last.groups.gaps if len(gap.attributes) == 1] or last.groups.gaps
    wanted = [last.groups.headline, *wording.GAPS]
    charts = []
    with svg.style():
        for metric in wanted:
            shown = [gap for gap in single if gap.metric == metric]
            if metric is not None and shown:
                keys = [(gap.attributes, gap.channel) for gap in shown]
                charts.append(_gap_chart(run, metric, keys))
    return tuple(charts)


def _gap_chart(run: Run, metric: str, keys: Sequence[tuple[tuple[str, ...], str]]) -> Chart:
    several = len({channel for _, channel in keys}) > 1
    lines: dict[str, dict[int, float]] = {}
    bands: dict[str, dict[int, Interval]] = {}
    for attributes, channel in keys:
        name = ", ".join(a.replace("_", " ") for a in attributes) + several * f", {channel}"
        found = {
            e.round: gap
            for e in run.evaluations
            if e.groups is not None
            for gap in e.groups.gaps
            if (gap.attributes, gap.channel, gap.metric) == (attributes, channel, metric)
        }
        lines[name] = {r: gap.value for r, gap in found.items()}
        last = max(found)
        if found[last].interval is not None:
            bands[name] = {last: found[last].interval or (0.0, 0.0)}
    ends = {name: line[max(line)] for name, line in lines.items()}
    largest = max(ends, key=lambda name: ends[name])
    meaning = wording.gap_meaning(metric)
    said = (
        f"{meaning[0].upper()}{meaning[1:]}. Largest at the end: {largest}, "
        f"{wording.estimate(ends[largest], bands.get(largest, {}).get(max(lines[largest])))}. "
        "Bars: 95 % interval of the last value; chance alone parts groups a little."
    )
    return lines_chart(
        f"gap-{metric.replace('_', '-')}",
        wording.gap_label(metric),
        "difference between groups",
        lines,
        said,
        worst=largest,
        bands=bands,
        from_zero=True,
    )


def _dots(
    rows: Sequence[Group],
    total: Group | None,
    metric: str,
    title: str,
    least: int,
    groups: ByGroup,
    key: str,
) -> Chart:
    """A dot and its 95 % interval for each group, and a line for all cases."""
    label = wording.metric_label(metric)
    drawn = _drawn(rows, metric)
    worst = groups.worst
    figure, axes = _rows_canvas(drawn, label)
    for place, row in enumerate(drawn):
        if metric not in row.metrics:
            axes.annotate(
                "too few cases", (0.5, place), xycoords=("axes fraction", "data"), color=svg.MUTED,
                verticalalignment="center", horizontalalignment="center", fontsize=8.5,
            )  # fmt: skip
            continue
        estimate = row.metrics[metric]
        compared = row.known and row.enough(metric, least)
        is_worst = worst is not None and (worst.group, worst.channel) == (row.name, row.channel)
        colour = svg.WORST if is_worst else svg.DOWN if compared else svg.MUTED
        if estimate.interval is not None:
            axes.plot(estimate.interval, (place, place), color=colour, linewidth=1.8)
        (dot,) = axes.plot([estimate.value], [place], "o", color=colour, markersize=6.5, zorder=3)
        if not compared:
            dot.set(markerfacecolor="none", markeredgewidth=1.6)
    said = []
    if total is not None and metric in total.metrics:
        whole = total.metrics[metric]
        axes.axvline(whole.value, color=svg.INK, linewidth=1.6, dashes=(4, 1.6), zorder=1)
        said.append(f"Dashed: all cases together, {wording.estimate(whole.value, whole.interval)}.")
    if worst is not None and worst.channel == drawn[0].channel:
        said.append(
            f"Worst group: {_name(worst.group)}, {wording.estimate(worst.value, worst.interval)}."
        )
    said.append(
        f"Bars: 95 % intervals. Hollow: fewer than {least} cases of a label, not known or withheld, "
        "so not compared."
    )
    if len(drawn) < len(rows):
        said.append(f"The {len(drawn)} lowest of {len(rows)} groups; all are in the table.")
    heading = f"{label} by group" + (f": {title}" if title else "")
    cells = [
        (_name(row.name), _cell(row, metric), _count(row.cases), _count(row.positive))
        for row in drawn
    ]
    description = " ".join(said)
    return Chart(
        key,
        heading,
        svg.inline_svg(figure, key=key, label=f"{heading}. {description}"),
        description,
        (label, "Cases", "Positive"),
        tuple((name, tuple(rest)) for name, *rest in cells),
        first="Group",
    )


def _quantiles(rows: Sequence[Group], total: Group | None, title: str, key: str) -> Chart:
    """From the Dice that one case in ten does not exceed to the one that nine do not; the median."""
    drawn = _drawn(rows, "dice_q10")
    figure, axes = _rows_canvas(drawn, "Dice")
    for place, row in enumerate(drawn):
        values = [row.metrics[q].value for q in _QUANTILES if q in row.metrics]
        if len(values) == len(_QUANTILES):
            low, median, high = values
            axes.plot((low, high), (place, place), color=svg.UP, linewidth=6, zorder=2)
            axes.plot([median], [place], "|", color=svg.DOWN, markersize=11, mew=2.6, zorder=3)
    said = ["Band: all but the worst and the best tenth of the cases; stroke: the median."]
    if total is not None and "dice_median" in total.metrics:
        median = total.metrics["dice_median"].value
        axes.axvline(median, color=svg.INK, linewidth=1.6, dashes=(4, 1.6), zorder=1)
        said.append(f"Dashed: the median of all cases, {wording.decimal(median)}.")
    heading = "Dice of the worst and the best cases by group" + (f": {title}" if title else "")
    description = " ".join(said)
    return Chart(
        key,
        heading,
        svg.inline_svg(figure, key=key, label=f"{heading}. {description}"),
        description,
        tuple(wording.metric_label(q) for q in _QUANTILES),
        tuple((_name(r.name), tuple(_cell(r, q) for q in _QUANTILES)) for r in drawn),
        first="Group",
    )


def _drawn(rows: Sequence[Group], metric: str) -> list[Group]:
    """As they come; of too many those with the lowest values."""
    if len(rows) <= MOST_DRAWN:
        return list(rows)
    able = sorted(
        (row for row in rows if metric in row.metrics), key=lambda row: row.metrics[metric].value
    )
    kept = {row.name for row in able[:MOST_DRAWN]}
    return [row for row in rows if row.name in kept]


def _rows_canvas(drawn: Sequence[Group], label: str) -> tuple[Figure, Axes]:
    """A row for each group, names at the left, the metric from left to right."""
    figure, axes = canvas(0.95 + 0.27 * len(drawn), right=0.97, left=0.33)
    axes.set_ylim(len(drawn) - 0.4, -0.6)
    axes.set_yticks(range(len(drawn)), [_short(_name(row.name)) for row in drawn])
    axes.set_xlabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.grid(visible=False, axis="y")
    axes.grid(visible=True, axis="x")
    return figure, axes


def _cell(row: Group, metric: str) -> str:
    if metric not in row.metrics:
        return "too few cases"
    return wording.estimate(row.metrics[metric].value, row.metrics[metric].interval)


def _count(number: int | None) -> str:
    return wording.whole(number)


def _name(group: str) -> str:
    """`sex=female` → `sex: female`; of pairs the words alone."""
    parts: Mapping[str, str] = dict(
        part.split("=", 1) for part in group.split(" & ") if "=" in part
    )
    if not parts:
        return group
    if len(parts) == 1:
        return ": ".join(next(iter(parts.items()))).replace("_", " ")
    return ", ".join(parts.values())


def _short(name: str) -> str:
    return name if len(name) <= _LETTERS else f"{name[: _LETTERS - 1]}…"
