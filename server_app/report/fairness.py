"""How good the model is by group of patients, and where it is worst: what the section says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from federation.fairness.layout import listed
from federation.schema import ConfigError, Fairness, parse
from server_app.report import fairness_figures, heat, wording
from server_app.report.drawing import Chart
from server_app.report.groups import ALL, ByGroup, Estimate, Gap, Group
from server_app.report.heat import Heat
from server_app.report.run import Run

MOST_HOSPITALS_NAMED = 8
_LEAST = 10  # `Fairness.least_cases`, where the experiment is not known


@dataclass(frozen=True)
class Line:
    """A row of the table by group.

    Attributes:
        label: the group's words.
        note: what is special about it, in a few words; empty for most.
    """

    label: str
    group: Group
    note: str


@dataclass(frozen=True)
class Block:
    """The groups by the same attributes.

    Attributes:
        unreported: words of the attribute that no case was reported of.
    """

    label: str
    lines: tuple[Line, ...]
    unreported: tuple[str, ...] = ()


@dataclass(frozen=True)
class AtHospital:
    """A hospital's cases together, and what it withheld, by attribute."""

    hospital: str
    group: Group
    withheld: str


@dataclass(frozen=True)
class Channel:
    """A class against all others, or a structure, with its tables and figures.

    Attributes:
        title: empty where the task has one channel alone.
        single, pairs: groups by one attribute, by two.
        bounds: by metric the most that counting in bins has moved a value of the table.
    """

    name: str
    title: str
    metrics: tuple[str, ...]
    total: Group | None
    single: tuple[Block, ...]
    pairs: tuple[Block, ...]
    bounds: Mapping[str, float]
    hospitals: tuple[AtHospital, ...]
    charts: tuple[Chart, ...]

    @property
    def positive(self) -> bool:
        """Whether cases have labels, of which some are positive."""
        return self.total is None or self.total.positive is not None

    @property
    def width(self) -> int:
        """Columns of the table by group."""
        return 2 + self.positive + len(self.metrics)


@dataclass(frozen=True)
class Tile:
    """A headline figure."""

    title: str
    estimate: Estimate | None
    whose: str
    remark: str


@dataclass(frozen=True)
class Section:
    """What the report says by group.

    Attributes:
        why_nothing: in a sentence; None where there is something by group.
        round: after which.
        least: cases of each label that a group needs to be compared.
        silent: hospitals that were evaluated and sent no counts.
        withheld: cases whose word hospitals withheld, by attribute, in words; empty if none.
        gaps: of the last evaluation, the largest first within a channel's metric.
        heat: None where no hospital's own figures are known.
        why_no_heat: in a sentence.
    """

    why_nothing: str | None
    round: int | None = None
    metric: str | None = None
    attributes: tuple[str, ...] = ()
    unit: str = "cases"
    least: int = _LEAST
    noisy: bool = False
    threshold: float | None = None
    channels: tuple[Channel, ...] = ()
    tiles: tuple[Tile, ...] = ()
    worst: Tile | None = None
    silent: tuple[str, ...] = ()
    withheld: str = ""
    gaps: tuple[Gap, ...] = ()
    gap_charts: tuple[Chart, ...] = ()
    meanings: tuple[tuple[str, str], ...] = ()
    heat: Heat | None = None
    why_no_heat: str | None = None


def section(run: Run) -> Section:
    """The section of any run: without counts by group it says why, and still compares hospitals."""
    shown = heat.of(run)
    no_heat = None if shown else _why_no_heat(run)
    evaluation = run.last_by_group()
    groups = evaluation.groups if evaluation is not None else None
    if evaluation is None or groups is None:
        return Section(_why_nothing(run), heat=shown, why_no_heat=no_heat)
    options = _options(run)
    least = options.least_cases if options else _LEAST
    metric = groups.headline
    tiles = _tiles(run, groups, least)
    channels = tuple(
        _channel(name, groups, options, least, position)
        for position, name in enumerate(groups.channels)
    )
    return Section(
        why_nothing=None,
        round=evaluation.round,
        metric=metric,
        attributes=_attributes(groups),
        unit=_UNITS[options.unit] if options else "cases",
        least=least,
        noisy=bool(run.private),
        threshold=options.threshold if options and not _segments(groups) else None,
        channels=channels,
        tiles=tiles,
        worst=next((t for t in tiles if groups.worst and t.title.endswith("group")), None),
        silent=_silent(run, groups),
        withheld=withheld_words(groups.withheld),
        gaps=tuple(sorted(groups.gaps, key=lambda gap: (len(gap.attributes), -gap.value))),
        gap_charts=fairness_figures.gaps(run),
        meanings=tuple(
            (wording.metric_label(name), wording.metric_meaning(name) or "")
            for name in groups.metrics
        )
        + tuple((words[0], words[1]) for words in wording.GAPS.values() if not _segments(groups)),
        heat=shown,
        why_no_heat=no_heat,
    )


_UNITS = {
    "task": "cases as the task's own metrics count them (an image, or a breast)",
    "image": "images",
    "patient": "patients",
}


def attribute_label(attribute: str) -> str:
    return attribute.replace("_", " ").capitalize()


def group_label(name: str) -> str:
    """`sex=female & manufacturer=ge` → "sex female, manufacturer ge"."""
    if name == ALL:
        return "all"
    return ", ".join(
        f"{a.replace('_', ' ')} {word}"
        for a, _, word in (p.partition("=") for p in name.split(" & "))
    )


def withheld_words(withheld: Mapping[str, int]) -> str:
    """`age band of 12 cases, manufacturer of 1 case`; empty where nothing was."""
    some = {name: count for name, count in withheld.items() if count}
    return ", ".join(
        f"{name.replace('_', ' ')} of {wording.counted(count, 'case')}"
        for name, count in some.items()
    )


def channel_title(channel: str, groups: ByGroup) -> str:
    """What a table is about, where there are several; empty where there is one."""
    if len(groups.channels) == 1:
        return ""
    return channel if _segments(groups) else f"{channel} against all others"


def note(line: Group, groups: ByGroup, least: int) -> str:
    """What is special about a group, in a few words."""
    if line.withheld:
        return "withheld: small groups together"
    if not line.known:
        return "not known"
    if not line.enough(groups.headline, least):
        return "too few to compare"
    worst = groups.worst
    if worst is not None and (worst.group, worst.channel) == (line.name, line.channel):
        return "worst"
    return ""


def _segments(groups: ByGroup) -> bool:
    return all(row.positive is None for row in groups.rows)


def _attributes(groups: ByGroup) -> tuple[str, ...]:
    return tuple(dict.fromkeys(a for row in groups.rows for a in row.attributes))


def _options(run: Run) -> Fairness | None:
    """The experiment's; None where it is of another version or missing."""
    try:
        return parse(Fairness, run.experiment.get("fairness"))
    except ConfigError:
        return None


def _channel(
    name: str, groups: ByGroup, options: Fairness | None, least: int, position: int
) -> Channel:
    rows = [row for row in groups.rows if row.channel == name]
    metrics = tuple(m for m in groups.metrics if any(m in row.metrics for row in rows))
    tables: dict[tuple[str, ...], list[Line]] = {}
    for row in rows:
        if row.name != ALL:
            line = Line(", ".join(row.words), row, note(row, groups, least))
            tables.setdefault(row.attributes, []).append(line)
    for attribute in options.attributes if options else ():
        tables.setdefault((attribute,), [])
    blocks = {
        attributes: Block(
            " and ".join(attribute_label(a) if i == 0 else a.replace("_", " ")
                         for i, a in enumerate(attributes)),
            tuple(lines),
            _unreported(attributes, lines, options),
        )
        for attributes, lines in tables.items()
    }  # fmt: skip
    at_hospitals = [
        AtHospital(hospital, row, withheld_words(at.withheld))
        for hospital, at in groups.hospitals.items()
        for row in at.rows
        if row.channel == name and row.name == ALL
    ]
    shown = [*rows, *(at.group for at in at_hospitals)]
    title = channel_title(name, groups)
    return Channel(
        name=name,
        title=title,
        metrics=metrics,
        total=groups.total(name),
        single=tuple(b for attributes, b in blocks.items() if len(attributes) == 1),
        pairs=tuple(b for attributes, b in blocks.items() if len(attributes) > 1),
        bounds={m: bound for m in metrics if (bound := _largest_bound(m, shown)) is not None},
        hospitals=tuple(at_hospitals),
        charts=fairness_figures.by_group(groups, name, title, least, key=f"group-{position}"),
    )


def _unreported(
    attributes: tuple[str, ...], lines: Sequence[Line], options: Fairness | None
) -> tuple[str, ...]:
    """Words that no case was reported of; of an attribute that this version knows."""
    if options is None or len(attributes) != 1 or attributes[0] not in options.attributes:
        return ()
    seen = {line.label for line in lines}
    return tuple(word for word in listed(attributes[0], options) if word not in seen)


def _largest_bound(metric: str, rows: Iterable[Group]) -> float | None:
    found = [row.metrics[metric].bound for row in rows if metric in row.metrics]
    return max((bound for bound in found if bound is not None), default=None)


def _tiles(run: Run, groups: ByGroup, least: int) -> tuple[Tile, ...]:
    """All cases, the worst hospital and the worst group, by the same metric from the same counts."""
    metric, worst = groups.headline, groups.worst
    if metric is None:
        return ()
    label = wording.metric_label(metric)
    channel = worst.channel if worst else groups.channels[0]
    title = channel_title(channel, groups)
    total = groups.total(channel)
    tiles = [
        Tile(
            f"{label}, all cases together",
            total.metrics.get(metric) if total else None,
            title,
            "" if total is None or total.cases is None else f"{total.cases:,} cases",
        )
    ]
    at = groups.worst_hospital(channel, least)
    if groups.hospitals:
        tiles.append(
            Tile(
                f"{label} at the worst hospital",
                at[1].metrics[metric] if at else None,
                at[0] if at else "",
                "" if at is None or at[1].cases is None else f"{at[1].cases:,} cases",
            )
        )
    row = next(
        (r for r in groups.rows if worst and (r.name, r.channel) == (worst.group, worst.channel)),
        None,
    )
    tiles.append(
        Tile(
            f"{label} in the worst group",
            Estimate(worst.value, interval=worst.interval) if worst else None,
            group_label(worst.group) if worst else "",
            f"no group has {least} cases of each label"
            if worst is None
            else ", ".join(
                filter(None, (title, f"{row.cases:,} cases" if row and row.cases else ""))
            ),
        )
    )
    return tuple(tiles)


def _silent(run: Run, groups: ByGroup) -> tuple[str, ...]:
    """Evaluated hospitals that sent no counts; nothing is known of them under sums in secret."""
    evaluation = run.last_by_group()
    if run.in_secret or evaluation is None or not groups.hospitals:
        return ()
    counted = {name for name, at in groups.hospitals.items() if at.rows}
    return tuple(m.hospital for m in evaluation.measured if m.ok and m.hospital not in counted)


def _why_nothing(run: Run) -> str:
    if not run.experiment:
        return "Nothing by group is recorded, and experiment.json is missing, which would say why."
    chosen = run.experiment.get("fairness")
    if not isinstance(chosen, dict):
        return (
            "Nothing was counted by group: the experiment has no fairness. With it hospitals count "
            "their held-out patients by sex, age band, scanner and more."
        )
    if run.private and chosen.get("noise_multiplier") is None:
        return (
            "Nothing was counted by group: under patient-level privacy exact counts may not leave a "
            "hospital, and the experiment has no fairness.noise_multiplier, which would charge for "
            "noisy ones."
        )
    if not run.evaluations:
        return "Nothing by group is known yet: no evaluation has been recorded."
    return (
        "The experiment counts by group, but no counts came: hospitals hold them back where they have "
        "too few patients of a true class, or where who is held out has changed."
    )


def _why_no_heat(run: Run) -> str:
    if run.in_secret:
        return (
            "There is no map of hospitals: metrics were summed in secret, and of no single hospital is "
            "anything known."
        )
    if run.metrics_from == "none":
        return "There is no map of hospitals: no metric left them."
    return "There is no map of hospitals: no evaluation has been recorded."
