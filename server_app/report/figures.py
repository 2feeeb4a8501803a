"""A run's figures, each with the words and the table that say the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from server_app.report import svg, wording
from server_app.report.drawing import (
    Chart,
    Lines,
    bars_chart,
    canvas,
    lines_chart,
    short,
)
from server_app.report.run import Answer, Round, Run

MOST_NAMED = 5  # hospitals that a description names before it counts the others


def charts(run: Run) -> tuple[Chart, ...]:
    """The figures that the run has numbers for."""
    with svg.style():
        found = [
            _metric(run, run.headline, "headline"),
            _metric(run, "loss", "held-out-loss") if run.headline != "loss" else None,
            _summed_loss(run)
            if run.in_secret
            else _of_answers(run, "loss", "training-loss", "Training loss", "mean loss of a round"),
            _update_norms(run),
            _time(run),
            _bytes(run),
            _participation(run),
        ]
    return tuple(chart for chart in found if chart is not None)


def _metric(run: Run, metric: str | None, key: str) -> Chart | None:
    """A metric on held-out patients or public images: each hospital, and the mean over them."""
    if run.last_evaluation(metric) is None or metric is None:
        return None
    lines = {
        hospital: {
            e.round: v for e in run.evaluations if (v := e.values(metric).get(hospital)) is not None
        }
        for hospital in run.hospitals
    }
    bands = {
        hospital: {
            e.round: interval
            for e in run.evaluations
            if (interval := e.intervals(metric).get(hospital)) is not None
        }
        for hospital in run.hospitals
    }
    mean = {e.round: e.overall[metric] for e in run.evaluations if metric in e.overall}
    mean_band = {
        e.round: e.overall_intervals[metric]
        for e in run.evaluations
        if metric in e.overall_intervals
    }
    label = wording.metric_label(metric)
    worst = _worst(run, metric)
    overall = wording.OVERALL[run.metrics_from]
    said = []
    if mean:
        first, last = min(mean), max(mean)
        said.append(
            f"{overall.moves} from "
            f"{wording.estimate(mean[first], mean_band.get(first))} {_after(first)} to "
            f"{wording.estimate(mean[last], mean_band.get(last))} {_after(last)}."
        )
    if worst is not None and lines.get(worst):
        last = max(lines[worst])
        value = wording.estimate(lines[worst][last], bands[worst].get(last))
        said.append(f"Worst at the end: {worst}, {value}.")
    if mean_band or any(bands.values()):
        said.append("Shades and thin bars: how far noise may have moved a figure (95 %).")
    return lines_chart(
        key,
        f"{label} {wording.MEASURED_ON[run.metrics_from]}",
        label,
        lines,
        " ".join(said),
        worst=worst,
        worst_label=" (worst)",
        mean=mean,
        mean_name=overall.line,
        bands={hospital: band for hospital, band in bands.items() if band},
        mean_band=mean_band,
    )


def _of_answers(run: Run, quantity: str, key: str, title: str, axis: str) -> Chart | None:
    lines = _by_hospital(run, lambda answer: getattr(answer, quantity))
    if not any(lines.values()):
        return None
    worst = _worst(run, run.headline)
    said = _ends(lines) + _bold(run, worst if lines.get(worst or "") else None)
    return lines_chart(key, title, axis, lines, said, worst=worst)


def _summed_loss(run: Run) -> Chart | None:
    mean = {r.number: r.summed.loss for r in run.rounds if r.summed and r.summed.loss is not None}
    if not mean:
        return None
    first, last = (wording.decimal(mean[number]) for number in (min(mean), max(mean)))
    said = f"From {first} to {last}, over all hospitals of each sum; of none alone it is known."
    return lines_chart(
        "training-loss", "Training loss", "mean loss of a round", {}, said, worst=None, mean=mean
    )


def _update_norms(run: Run) -> Chart | None:
    lines = _by_hospital(run, lambda answer: answer.update_norm)
    step = {r.number: r.norm for r in run.rounds if r.norm is not None}
    if not any(lines.values()) and not step:
        return None
    worst = _worst(run, run.headline)
    said = _ends(lines) + _bold(run, worst if lines.get(worst or "") else None)
    if step:
        said += " The dashed line is the mean update."
    if run.private:
        said += " Most of an update's size may be noise."
    if run.in_secret:
        said = "The change of the global model. How large single updates were is not known."
    return lines_chart(
        "update-norm",
        "Size of the step" if run.in_secret else "Size of the updates",
        "L2 norm",
        lines,
        said,
        worst=worst,
        mean=step,
        mean_name="mean update",
    )


def _time(run: Run) -> Chart | None:
    rounds = [r for r in run.rounds if r.seconds is not None]
    if not rounds:
        return None
    seconds = [r.seconds or 0.0 for r in rounds]
    total = sum(seconds)
    said = (
        f"{wording.counted(len(rounds), 'round')} took {wording.duration(total)}, "
        f"{wording.duration(total / len(rounds))} on average"
    )
    stacks = {"from request to last answer": seconds}
    if any("work" in r.steps for r in rounds):
        work = [min(r.steps.get("work", 0.0), r.seconds or 0.0) for r in rounds]
        rest = [whole - part for whole, part in zip(seconds, work, strict=True)]
        stacks = {"evaluation, training, protection": work, "keys, signing, opening": rest}
        said += f"; {sum(rest) / total if total else 0:.0%} of it was keys, signing and opening"
    elif any(r.longest() is not None for r in rounds):  # a private round does not tell
        stacks, part = _of_the_slowest(rounds, seconds)
        said += f"; {part / total if total else 0:.0%} of it was the slowest hospital's training"
    return bars_chart(
        "time",
        "Time of a round",
        "seconds",
        [r.number for r in rounds],
        stacks,
        said + ".",
        wording.decimal,
    )


def _of_the_slowest(
    rounds: Sequence[Round], seconds: Sequence[float]
) -> tuple[dict[str, list[float]], float]:
    """Each round's time in two: the slowest hospital's training and the rest; sum of the first."""
    work = [min(r.longest() or 0.0, whole) for r, whole in zip(rounds, seconds, strict=True)]
    rest = [whole - part for whole, part in zip(seconds, work, strict=True)]
    return {"slowest hospital's training": work, "evaluation, sending, waiting": rest}, sum(work)


def _bytes(run: Run) -> Chart | None:
    rounds = [
        (r.number, r.total("bytes_down") or 0.0, r.total("bytes_up") or 0.0)
        for r in run.rounds
        if r.total("bytes_down") is not None or r.total("bytes_up") is not None
    ]
    if not rounds:
        return None
    numbers, down, up = zip(*rounds, strict=True)
    return bars_chart(
        "bytes",
        "Data moved in a round",
        "bytes",
        numbers,
        {"models to hospitals": down, "updates from hospitals": up},
        f"{wording.size(sum(down))} went to hospitals and {wording.size(sum(up))} came back, "
        f"summed over all hospitals and {wording.counted(len(rounds), 'round')}.",
        wording.size,
    )


def _participation(run: Run) -> Chart | None:
    """Who took part when: a bar for rounds taken part in, a cross for each round left."""
    if not run.rounds:
        return None
    hospitals = sorted({answer.hospital for r in run.rounds for answer in r.answers})
    if not hospitals:
        return None
    figure, axes = canvas(0.9 + 0.3 * len(hospitals), right=0.97, left=0.2)
    part = {name: [r.number for r in run.rounds if _ok(r.answers, name)] for name in hospitals}
    left = {
        name: [r.number for r in run.rounds if _ok(r.answers, name) is False] for name in hospitals
    }
    for row, name in enumerate(hospitals):
        spans = [(first - 0.5, last - first + 1) for first, last in _runs(part[name])]
        axes.broken_barh(spans, (row - 0.28, 0.56), facecolor=svg.UP, edgecolor=svg.DOWN)
        axes.plot(
            left[name], [row] * len(left[name]), "x", color=svg.WORST, markersize=6, mew=2, zorder=3
        )
    axes.set_ylim(len(hospitals) - 0.4, -0.6)
    axes.set_yticks(range(len(hospitals)), [short(name) for name in hospitals])
    axes.set_xlim(run.rounds[0].number - 0.7, run.rounds[-1].number + 0.7)
    axes.grid(False)
    away = {name: len(numbers) for name, numbers in left.items() if numbers}
    often = sorted(away, key=lambda name: (-away[name], name))
    absences = ", ".join(f"{name} ({away[name]})" for name in often[:MOST_NAMED])
    if len(often) > MOST_NAMED:
        absences += f", and {len(often) - MOST_NAMED} other hospitals"
    description = (
        f"A cross marks a round that a hospital was asked for and left. Rounds left: {absences}."
        if away
        else "Every hospital that was asked gave a good answer in every round."
    )
    words = {None: "not asked", True: "took part", False: "left"}
    rows = tuple(
        (
            r.number,
            tuple(words[_ok(r.answers, name)] for name in hospitals),
        )
        for r in run.rounds
    )
    title = "Who took part"
    drawn = svg.inline_svg(figure, key="participation", label=f"{title}. {description}")
    return Chart("participation", title, drawn, description, tuple(hospitals), rows)


def _by_hospital(run: Run, quantity: Callable[[Answer], float | None]) -> Lines:
    return {
        hospital: {
            r.number: value
            for r in run.rounds
            for answer in r.answers
            if answer.hospital == hospital and (value := quantity(answer)) is not None
        }
        for hospital in run.hospitals
    }


def _worst(run: Run, metric: str | None) -> str | None:
    if metric is None or metric == run.headline:
        found = run.worst_hospital()
    else:
        found = run.worst_by(metric, larger_is_better=wording.larger_is_better(metric))
    return found.hospital if found else None


def _ends(lines: Lines) -> str:
    """Range of the lines' first and last values, in words."""
    present = [line for line in lines.values() if line]
    if not present:
        return ""
    first = [line[min(line)] for line in present]
    last = [line[max(line)] for line in present]
    return (
        f"Between {wording.decimal(min(first))} and {wording.decimal(max(first))} at first, "
        f"between {wording.decimal(min(last))} and {wording.decimal(max(last))} at the end."
    )


def _bold(run: Run, worst: str | None) -> str:
    label = wording.metric_label(run.headline or "")
    return f" Bold: {worst}, worst by {label}." if worst is not None else ""


def _ok(answers: Sequence[Answer], hospital: str) -> bool | None:
    """Whether the hospital's answer was used; None if it was not asked."""
    return next((answer.ok for answer in answers if answer.hospital == hospital), None)


def _runs(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """First and last of each stretch of consecutive numbers."""
    stretches: list[tuple[int, int]] = []
    for number in numbers:
        if stretches and stretches[-1][1] == number - 1:
            stretches[-1] = (stretches[-1][0], number)
        else:
            stretches.append((number, number))
    return stretches


def _after(round_: int) -> str:
    return "untrained" if round_ == 0 else f"after round {round_}"
