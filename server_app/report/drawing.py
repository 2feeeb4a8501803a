"""How a chart is drawn: lines over rounds, stacked bars a round, names beside the lines' ends."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, StrMethodFormatter

from server_app.report import svg, wording

WIDTH, HEIGHT = 6.6, 3.7  # inches at 72 dots: the text is as large as the page's captions
MOST_COLOURED = len(svg.SERIES)  # with more hospitals, all but the worst are drawn alike
MARKERS = "os^Dv<"
MOST_MARKED = 40  # points of a line beyond which markers would run together
LABEL = 13  # letters of a name beside a line

Cell = float | None
Lines = Mapping[str, Mapping[int, float]]


@dataclass(frozen=True)
class Chart:
    """A figure, what it shows in words, and its numbers as a table.

    `columns` name the cells of a row after its first, the round.
    """

    key: str
    title: str
    svg: Markup
    description: str
    columns: tuple[str, ...]
    rows: tuple[tuple[int, tuple[Cell, ...]], ...]
    show: Callable[[Cell], str]


def lines_chart(
    key: str,
    title: str,
    axis: str,
    lines: Lines,
    description: str,
    *,
    worst: str | None,
    worst_label: str = "",
    mean: Mapping[int, float] | None = None,
    mean_name: str = "mean",
) -> Chart:
    """One line a hospital over rounds; the worst hospital and the mean stand out."""
    mean = mean or {}
    rounds = sorted({r for line in (*lines.values(), mean) for r in line})
    drawn = [name for name in lines if lines[name]]
    others = [name for name in drawn if name != worst]
    figure, axes = canvas(HEIGHT, right=0.74)
    ends: list[tuple[float, str, str, str]] = []
    for index, name in enumerate(others):
        few = len(others) <= MOST_COLOURED
        colour = svg.SERIES[index] if few else svg.MUTED
        _line(axes, rounds, lines[name], colour, 1.4, MARKERS[index] if few else "", few)
        if few:
            ends.append((_last(lines[name]), short(name), colour, "normal"))
    if worst in drawn:
        _line(axes, rounds, lines[worst], svg.WORST, 2.4, "o", True)
        ends.append((_last(lines[worst]), f"{short(worst)}{worst_label}", svg.WORST, "bold"))
    if mean:
        _line(axes, rounds, mean, svg.INK, 2.4, "", True, dashes=(4, 1.6))
        ends.append((_last(mean), mean_name, svg.INK, "bold"))
    values = [value for line in (*lines.values(), mean) for value in line.values()]
    if min(values) > 0 and max(values) > 100 * min(values):
        axes.set_yscale("log")
    else:
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axes.set_ylabel(axis)
    axes.margins(x=0.02, y=0.08)
    _label_ends(figure, axes, ends)
    columns = (*drawn, mean_name) if mean else tuple(drawn)
    picked = [*(lines[name] for name in drawn), *([mean] if mean else [])]
    rows = tuple((r, tuple(line.get(r) for line in picked)) for r in rounds)
    drawing = svg.inline_svg(figure, key=key, label=f"{title}. {description}")
    return Chart(key, title, drawing, description, columns, rows, wording.decimal)


def bars_chart(
    key: str,
    title: str,
    axis: str,
    rounds: Sequence[int],
    stacks: Mapping[str, Sequence[float]],
    description: str,
    show: Callable[[Cell], str],
) -> Chart:
    """Two quantities on top of each other, one bar a round."""
    figure, axes = canvas(HEIGHT, right=0.98)
    below = [0.0] * len(rounds)
    for (name, values), colour in zip(stacks.items(), (svg.DOWN, svg.UP), strict=True):
        top = [b + v for b, v in zip(below, values, strict=True)]
        if len(rounds) <= MOST_MARKED:
            drawn = axes.bar(rounds, values, 0.72, below, color=colour, label=name)
            for bar in drawn:
                bar.set(edgecolor=svg.DOWN, linewidth=0.8)  # the soft colour alone is too faint
        else:  # one area in place of hundreds of bars
            area = axes.fill_between(rounds, below, top, step="mid", color=colour, label=name)
            area.set(edgecolor=svg.DOWN, linewidth=0.4)
        below = top
    axes.set_ylabel(axis)
    axes.set_ylim(0, (max(below) or 1) * 1.06)
    axes.set_xlim(min(rounds) - 0.6, max(rounds) + 0.6)
    if show is wording.size:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: wording.size(value)))
        axes.set_ylabel("")
    axes.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=2, borderaxespad=0.2)
    rows = tuple((r, tuple(values[i] for values in stacks.values())) for i, r in enumerate(rounds))
    drawing = svg.inline_svg(figure, key=key, label=f"{title}. {description}")
    return Chart(key, title, drawing, description, tuple(stacks), rows, show)


def canvas(height: float, *, right: float, left: float = 0.12) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), dpi=72)
    axes = figure.add_axes((left, 0.52 / height, right - left, 1 - 0.82 / height))
    axes.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
    axes.set_xlabel("round")
    return figure, axes


def _line(
    axes: Axes,
    rounds: Sequence[int],
    line: Mapping[int, float],
    colour: str,
    width: float,
    marker: str,
    above: bool,
    dashes: tuple[float, float] | None = None,
) -> None:
    """A line that breaks where a round has no value, so that a gap is seen as one."""
    values = [line.get(r, float("nan")) for r in rounds]
    alone = [
        i
        for i, r in enumerate(rounds)
        if r in line
        and (i == 0 or rounds[i - 1] not in line)
        and (i + 1 == len(rounds) or rounds[i + 1] not in line)
    ]
    marked = list(range(len(rounds))) if marker and len(rounds) <= MOST_MARKED else alone
    (drawn,) = axes.plot(rounds, values, color=colour, linewidth=width, zorder=3 if above else 2)
    drawn.set_marker(marker or "o")
    drawn.set_markevery(marked)
    drawn.set_markersize(4.2)
    drawn.set_markeredgewidth(0)
    if dashes is not None:
        drawn.set_dashes(dashes)
    if not above:
        drawn.set_alpha(0.45)


def _label_ends(
    figure: Figure, axes: Axes, ends: Iterable[tuple[float, str, str, str]], gap: float = 12.5
) -> None:
    """Names at the right of the lines' ends, moved apart vertically where they would touch."""
    axes.autoscale_view()
    ordered = sorted(ends, key=lambda end: (end[0], end[1]))
    heights = [float(axes.transData.transform((0, end[0]))[1]) for end in ordered]
    box = axes.get_window_extent()
    places = _spread(heights, gap, box.y0, box.y1)
    for (_, name, colour, weight), place in zip(ordered, places, strict=True):
        axes.annotate(
            name,
            xy=(1.015, (place - box.y0) / box.height),
            xycoords="axes fraction",
            color=colour,
            fontweight=weight,
            verticalalignment="center",
            annotation_clip=False,
        )


def _spread(heights: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Ascending places at least `gap` apart, near `heights`, within the limits if they fit."""
    places: list[float] = []
    for height in heights:
        places.append(max(height, places[-1] + gap if places else low))
    ceiling = max(high, low + gap * (len(places) - 1))
    for index in reversed(range(len(places))):
        places[index] = min(places[index], ceiling)
        ceiling = places[index] - gap
    return places


def _last(line: Mapping[int, float]) -> float:
    return line[max(line)]


def short(name: str) -> str:
    return name if len(name) <= LABEL else f"{name[: LABEL - 1]}…"
