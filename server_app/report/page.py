"""The report's page: a run's folder → one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import DictLoader, Environment, StrictUndefined

from server_app.report import card, fairness, pictures, privacy, sending, wording
from server_app.report.fairness_template import FAIRNESS
from server_app.report.figures import charts
from server_app.report.pictures import Sample
from server_app.report.privacy_template import PRIVACY, PROTECTION
from server_app.report.quality_template import QUALITY
from server_app.report.read import read_run
from server_app.report.run import Answer, Evaluation, Interval, Measured, Run
from server_app.report.sending_template import SENDING
from server_app.report.style import CSS
from server_app.report.template import TEMPLATE
from server_app.state import write_atomically

TEMPLATES = {
    "page": TEMPLATE,
    "quality": QUALITY,
    "fairness": FAIRNESS,
    "privacy": PRIVACY,
    "sending": SENDING,
    "protection": PROTECTION,
}
MOST_LISTED = 100  # rounds with a row for each hospital: more make the page slow to open


@dataclass(frozen=True)
class Absence:
    """The rounds that one hospital left for one reason."""

    hospital: str
    label: str
    sentence: str
    rounds: tuple[int, ...]


def write_report(folder: Path, *, samples: Sequence[Sample] = ()) -> Path:
    """Write `report.html` into a run's folder, finished or not, and return its path.

    Beside it stands `model_card.md` (`server_app.report.card`).

    The file holds its style and its figures, loads nothing and runs nothing. It replaces an earlier
    report at once: at no moment is there half a file. The same folder and samples give the same
    bytes.

    Raises:
        server_app.report.read.RunFolderError: this is not the folder of a run.
        OSError: the folder cannot be written.
    """
    page = render(read_run(folder), samples)
    target = folder / "report.html"
    write_atomically(target, page.encode())
    card.write_card(folder)
    return target


def render(run: Run, samples: Sequence[Sample] = ()) -> str:
    """The page as text. Whatever comes from the run is escaped."""
    environment = Environment(
        loader=DictLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "at_least": wording.at_least,
        "at_most": wording.at_most,
        "decimal": wording.decimal,
        "estimate": wording.estimate,
        "plain": wording.plain,
        "power": wording.power,
        "share_at_most": wording.share_at_most,
        "whole": wording.whole,
        "size": wording.size,
        "duration": wording.duration,
        "moment": wording.moment,
        "moment_short": wording.moment_short,
        "metric": wording.metric_label,
        "gap": wording.gap_label,
        "group": fairness.group_label,
        "percent": wording.percent,
        "reason": wording.reason_label,
    }
    headline = run.headline
    final = run.last_evaluation(headline)
    by_group = fairness.section(run)
    return environment.get_template("page").render(
        run=run,
        css=CSS,
        charts=charts(run),
        samples=samples,
        picture=pictures.picture,
        counted=wording.counted,
        label=_label(run),
        why=_why,
        headline=headline,
        final=final,
        own_models=run.own_models,
        personal=any(name.startswith(wording.PERSONAL) for name in run.metrics),
        untrained=_untrained(run, headline),
        worst=run.worst_hospital(),
        best=_best(final, headline),
        final_measured=_measured(final),
        sizes_known=run.metrics_from != "noisy",
        overall=wording.OVERALL[run.metrics_from],
        metrics_noise=run.metrics_noise,
        fairness=by_group,
        privacy=privacy.section(run),
        sending=sending.section(run),
        large_epsilon=privacy.LARGE_EPSILON,
        worst_by_metric=_worst_by_metric(run),
        meanings=[(wording.metric_label(m), wording.metric_meaning(m)) for m in run.metrics],
        summary=_summary(run, by_group),
        settings=_settings(run.experiment),
        absences=_absences(run),
        seconds=_sum(r.seconds for r in run.rounds),
        bytes_down=_sum(r.total("bytes_down") for r in run.rounds),
        bytes_up=_sum(r.total("bytes_up") for r in run.rounds),
        patients=_patients(run),
        listed=run.rounds[-MOST_LISTED:],
    )


def _label(run: Run) -> str:
    """What the headline metric is called."""
    return wording.metric_label(run.headline) if run.headline else "Quality"


def _summary(run: Run, by_group: fairness.Section) -> str:
    """The run in two or three sentences."""
    if not run.rounds and not run.evaluations:
        return "Nothing has been recorded yet: the first round has not come to its end."
    everyone = len(run.hospitals)
    took_part = len({a.hospital for r in run.rounds for a in r.answers if a.ok})
    who = wording.counted(everyone, "hospital")
    if run.rounds and took_part < everyone:
        who = f"{took_part} of {who}"
    done = wording.counted(run.rounds_done, "round")
    if run.planned_rounds is not None and run.planned_rounds != run.rounds_done:
        done = f"{run.rounds_done:,} of {wording.counted(run.planned_rounds, 'round')}"
    ending = {"completed": f" in {done}.", "failed": f"; the run failed with {done} done."}
    sentences = [f"{who} trained one model together" + ending.get(run.state, f", {done} so far.")]
    headline, final = run.headline, run.last_evaluation(run.headline)
    if headline is not None and final is not None and headline in final.overall:
        label, before = wording.metric_label(headline), _untrained(run, headline)
        mean = wording.estimate(final.overall[headline], final.overall_intervals.get(headline))
        where = "images that hospitals declare public"
        if run.metrics_from != "public":
            where = "patients held out from training"
        sentences.append(
            f"On {where} its {label} is {mean} {wording.OVERALL[run.metrics_from].over}"
            + (f"; untrained it was {wording.estimate(*before)}." if before else ".")
        )
    worst = run.worst_hospital()
    if worst is not None and len(run.hospitals) > 1:
        intervals = final.intervals(headline) if final is not None and headline is not None else {}
        value = wording.estimate(worst.value, intervals.get(worst.hospital))
        sentences.append(f"Lowest is {worst.hospital}, with {value}.")
    if by_group.worst is not None and by_group.worst.estimate is not None:
        found = by_group.worst.estimate
        sentences.append(
            f"{by_group.worst.title} ({by_group.worst.whose}): "
            f"{wording.estimate(found.value, found.interval)}."
        )
    known = [s.run_epsilon for s in run.spent().values() if s.run_epsilon is not None]
    if known:
        sentences.append(
            f"For one patient the run cost at most ε\u00a0=\u00a0{wording.at_most(max(known))}."
        )
    return " ".join(sentences)


def _untrained(run: Run, metric: str | None) -> tuple[float, Interval | None] | None:
    """The mean over hospitals, and its interval, before the first round."""
    for evaluation in run.evaluations:
        if evaluation.round == 0 and metric is not None and metric in evaluation.overall:
            return evaluation.overall[metric], evaluation.overall_intervals.get(metric)
    return None


def _best(evaluation: Evaluation | None, metric: str | None) -> tuple[str, float] | None:
    values = evaluation.values(metric) if evaluation is not None and metric is not None else {}
    return max(values.items(), key=lambda item: item[1], default=None)


def _measured(evaluation: Evaluation | None) -> tuple[Measured, ...]:
    return evaluation.measured if evaluation is not None else ()


def _worst_by_metric(run: Run) -> dict[str, str]:
    """Metric to the hospital with its worst value, where the hospitals' values differ."""
    found = {
        metric: run.worst_hospital()
        if metric == run.headline
        else run.worst_by(metric, larger_is_better=wording.larger_is_better(metric))
        for metric in run.metrics
    }
    return {name: worst.hospital for name, worst in found.items() if worst and _differs(run, name)}


def _differs(run: Run, metric: str) -> bool:
    evaluation = run.last_evaluation(metric)
    return evaluation is not None and len(set(evaluation.values(metric).values())) > 1


def _settings(experiment: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """The experiment as groups of (key, value), its own keys first, nested keys with a dot."""
    own = [(k, _written(v)) for k, v in experiment.items() if not isinstance(v, dict)]
    groups = [
        (name, [(key, _written(item)) for key, item in _flat(value)])
        for name, value in experiment.items()
        if isinstance(value, dict)
    ]
    return ([("experiment", sorted(own))] if own else []) + groups


def _flat(mapping: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    # A component's name says what the rest is about.
    for key in sorted(mapping, key=lambda key: (key != "name", key)):
        if isinstance(mapping[key], dict):
            yield from _flat(mapping[key], f"{prefix}{key}.")
        else:
            yield prefix + key, mapping[key]


def _written(value: Any) -> str:
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(_written(item) for item in value) or "none"
    return str(value)


def _absences(run: Run) -> list[Absence]:
    """Who left rounds and why: by hospital, then by the first such round."""
    rounds: dict[tuple[str, str | None], list[int]] = {}
    for r in run.rounds:
        for answer in r.answers:
            if not answer.ok:
                rounds.setdefault((answer.hospital, _why(answer)), []).append(r.number)
    ordered = sorted(rounds.items(), key=lambda item: (item[0][0], item[1]))
    return [
        Absence(hospital, wording.reason_label(code), wording.reason_sentence(code), tuple(numbers))
        for (hospital, code), numbers in ordered
    ]


def _why(answer: Answer) -> str | None:
    return answer.reason or (None if answer.status == "left out" else answer.status)


def _patients(run: Run) -> int | None:
    """Patients trained on: the most each hospital named in a round, summed; or of the largest sum."""
    together = [r.summed.patients for r in run.rounds if r.summed and r.summed.patients]
    if run.in_secret:
        return max(together, default=None)
    most: dict[str, int] = {}
    for r in run.rounds:
        for answer in r.answers:
            if answer.patients is not None:
                most[answer.hospital] = max(most.get(answer.hospital, 0), answer.patients)
    return sum(most.values()) if most else None


def _sum(values: Iterator[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None
