"""How a chart is drawn: lines over rounds, stacked bars a round, names beside the lines' ends."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, StrMethodFormatter

from server_app.report import svg, wording
from server_app.report.run import Interval

WIDTH, HEIGHT = 6.6, 3.7  # inches at 72 dots: the text is as large as the page's captions
MOST_COLOURED = len(svg.SERIES)  # with more hospitals, all but the worst are drawn alike
MARKERS = "os^Dv<"
MOST_MARKED = 40  # points of a line beyond which markers would run together
MOST_BARRED = 80  # intervals of a chart beyond which they would hide the lines
MOST_LIMITS = 4  # limits with a name beside them
LABEL = 13  # letters of a name beside a line

Line = Mapping[int, float]
Lines = Mapping[str, Line]
Band = Mapping[int, Interval]


@dataclass(frozen=True)
class Chart:
    """A figure, what it shows in words, and its numbers as a table.

    `columns` name the cells of a row after its first, which `first` names; cells are text as it is
    shown.
    """

    key: str
    title: str
    svg: Markup
    description: str
    columns: tuple[str, ...]
    rows: tuple[tuple[int | str, tuple[str, ...]], ...]
    first: str = "Round"


def lines_chart(
    key: str,
    title: str,
    axis: str,
    lines: Lines,
    description: str,
    *,
    worst: str | None,
    worst_label: str = "",
    mean: Line | None = None,
    mean_name: str = "mean",
    bands: Mapping[str, Band] | None = None,
    mean_band: Band | None = None,
    limits: Mapping[str, float] | None = None,
    from_zero: bool = False,
    show: Callable[[float | None], str] = wording.decimal,
) -> Chart:
    """One line a hospital over rounds; the worst hospital and the mean stand out.

    Args:
        bands: intervals of the lines' values, as shades and bars.
        limits: name to a value that lines may not pass, drawn from left to right.
        from_zero: whether the axis begins at 0, so that heights compare.
    """
    mean, mean_band, bands, limits = mean or {}, mean_band or {}, bands or {}, limits or {}
    rounds = sorted({r for line in (*lines.values(), mean) for r in line})
    drawn = [name for name in lines if lines[name]]
    others = [name for name in drawn if name != worst]
    few = len(others) <= MOST_COLOURED
    barred = few and sum(len(bands.get(name, {})) for name in others) <= MOST_BARRED
    figure, axes = canvas(HEIGHT, right=0.74)
    ends: list[tuple[float, str, str, str]] = []
    for index, name in enumerate(others):
        colour = svg.SERIES[index] if few else svg.MUTED
        _line(axes, rounds, lines[name], colour, 1.4, MARKERS[index] if few else "", few)
        if barred:
            # beside each other, not on top of each other
            aside = (index - (len(others) - 1) / 2) * 0.4 / max(len(others), 4)
            _bars(axes, lines[name], bands.get(name, {}), colour, aside)
        if few:
            ends.append((_last(lines[name]), short(name), colour, "normal"))
    if worst is not None and worst in drawn:
        _shade(axes, rounds, bands.get(worst, {}), svg.WORST)
        _line(axes, rounds, lines[worst], svg.WORST, 2.4, "o", True)
        ends.append((_last(lines[worst]), f"{short(worst)}{worst_label}", svg.WORST, "bold"))
    if mean:
        _shade(axes, rounds, mean_band, svg.INK)
        _line(axes, rounds, mean, svg.INK, 2.4, "", True, dashes=(4, 1.6))
        ends.append((_last(mean), mean_name, svg.INK, "bold"))
    for name, limit in limits.items():
        axes.axhline(limit, color=svg.MUTED, linewidth=1.2, dashes=(1.5, 2), zorder=1)
        if len(limits) <= MOST_LIMITS:
            ends.append((limit, name, svg.MUTED, "normal"))
    values = [value for line in (*lines.values(), mean) for value in line.values()]
    if not (bands or from_zero) and min(values) > 0 and max(values) > 100 * min(values):
        axes.set_yscale("log")
    else:
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axes.set_ylabel(axis)
    axes.margins(x=0.02, y=0.08)
    if from_zero:
        tops = [high for band in bands.values() for _, high in band.values()] if barred else []
        axes.set_ylim(0, max((*values, *tops, *limits.values())) * 1.08 or 1)
    _label_ends(figure, axes, ends)
    columns = (*drawn, mean_name) if mean else tuple(drawn)
    picked = [(lines[name], bands.get(name, {})) for name in drawn]
    picked += [(mean, mean_band)] if mean else []
    rows = tuple((r, tuple(_cell(r, line, band, show) for line, band in picked)) for r in rounds)
    drawing = svg.inline_svg(figure, key=key, label=f"{title}. {description}")
    return Chart(key, title, drawing, description, columns, rows)


def _cell(r: int, line: Line, band: Band, show: Callable[[float | None], str]) -> str:
    return wording.estimate(line.get(r), band[r]) if r in band else show(line.get(r))


def bars_chart(
    key: str,
    title: str,
    axis: str,
    rounds: Sequence[int],
    stacks: Mapping[str, Sequence[float]],
    description: str,
    show: Callable[[float | None], str],
) -> Chart:
    """One quantity, or two on top of each other, one bar a round."""
    figure, axes = canvas(HEIGHT, right=0.98)
    below = [0.0] * len(rounds)
    for (name, values), colour in zip(stacks.items(), (svg.DOWN, svg.UP), strict=False):
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
    rows = tuple(
        (r, tuple(show(values[i]) for values in stacks.values())) for i, r in enumerate(rounds)
    )
    drawing = svg.inline_svg(figure, key=key, label=f"{title}. {description}")
    return Chart(key, title, drawing, description, tuple(stacks), rows)


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


def _bars(axes: Axes, line: Line, band: Band, colour: str, aside: float) -> None:
    """Each value's interval as a thin upright bar, moved aside a little."""
    numbers = [r for r in line if r in band]
    if not numbers:
        return
    lows, highs = zip(*(band[r] for r in numbers), strict=True)
    bars = axes.vlines([r + aside for r in numbers], lows, highs, color=colour, linewidth=1.1)
    bars.set(alpha=0.55, zorder=2)


def _shade(axes: Axes, rounds: Sequence[int], band: Band, colour: str) -> None:
    """The intervals as an area behind the line, broken where a round has none."""
    if not band:
        return
    nowhere = (float("nan"), float("nan"))
    lows, highs = zip(*(band.get(r, nowhere) for r in rounds), strict=True)
    area = axes.fill_between(rounds, lows, highs, color=colour, alpha=0.13, linewidth=0)
    area.set_zorder(1)
    if len(band) == 1:  # an area needs two rounds
        _bars(axes, dict.fromkeys(band, 0.0), band, colour, 0.0)


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
