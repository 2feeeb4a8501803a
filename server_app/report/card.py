"""A model card in Markdown, made of a run's own records.

Its sections are those of Mitchell et al. 2019, "Model Cards for Model Reporting"
(doi:10.1145/3287560.3287596), with privacy among the ethical considerations.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from server_app import described
from server_app.report import fairness, wording
from server_app.report.groups import Group
from server_app.report.markdown import code, listing, table, text
from server_app.report.read import read_run
from server_app.report.run import Run
from server_app.state import write_atomically

# Task → what the model is made for, and what it is not for.
INTENDED = {
    "mammography": (
        "rank screening mammograms (CC and MLO views) by the suspicion of cancer, by breast",
        "diagnostic work-up, tomosynthesis, implants, men, or reading without a radiologist",
    ),
    "chest_xray": (
        "rank frontal chest radiographs by the suspicion of pneumonia",
        "lateral views, other findings, or ruling pneumonia out at the bedside",
    ),
    "alzheimers": (
        "tell cognitively normal, mild impairment and Alzheimer's disease apart in T1 volumes",
        "other dementias, prognosis, contrast-enhanced or other sequences, or telling a patient a "
        "diagnosis",
    ),
    "tumour_segmentation": (
        "outline the gross tumour volume as a proposal that a radiation oncologist corrects",
        "planning a treatment from outlines that nobody looked at, or other tumours and modalities "
        "than were trained on",
    ),
    "hippocampus": (
        "outline the anterior and posterior hippocampus in T1 crops for volumetry in studies",
        "whole-head images that were not cropped, resected or malformed hippocampi, or single-patient "
        "decisions",
    ),
}
_FEW = 50  # held-out patients of a hospital below which its figures are mostly chance


def write_card(folder: Path, out: Path | None = None) -> Path:
    """Write a run's card, `model_card.md` in its folder unless `out` says where; return its path.

    Raises:
        server_app.report.read.RunFolderError: this is not the folder of a run.
        OSError: it cannot be written.
    """
    target = out or folder / "model_card.md"
    write_atomically(target, model_card(read_run(folder)).encode())
    return target


def model_card(run: Run) -> str:
    """The card as Markdown. Names from the run are escaped; what is not known is left out."""
    by_group = fairness.section(run)
    parts = [
        f"# Model card: {text(run.name)}",
        "**For research. Not a medical device; not cleared or tested for the care of patients.**",
        "## Model details",
        _details(run),
        "## Intended use",
        _intended(run),
        "## Data",
        _data(run),
        "## Results",
        *_results(run),
        "## By group",
        *_groups(run, by_group),
        "## Privacy and secrecy",
        listing(_protection(run)),
        "## Limits",
        "\n".join(f"- {limit}" for limit in _limits(run, by_group)),
        "## How to reproduce",
        _reproduce(run),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _chosen(run: Run, part: str) -> str | None:
    """The name of a component with its options."""
    found = run.experiment.get(part)
    if not isinstance(found, dict) or "name" not in found:
        return None
    options = ", ".join(f"{k} = {v}" for k, v in found.items() if k != "name" and v is not None)
    return code(found["name"]) + (f" ({text(options)})" if options else "")


def _details(run: Run) -> str:
    done = wording.counted(run.rounds_done, "round")
    planned = "" if run.planned_rounds is None else f" of {run.planned_rounds:,}"
    dirty = ", **with changes that were not committed**" if run.code_dirty else ""
    intact = run.experiment_intact is False
    return listing(
        [
            ("Task", _chosen(run, "task")),
            ("Classes", text(", ".join(run.classes)) or None),
            ("Network", _chosen(run, "model")),
            ("Parameters", None if run.parameters is None else f"{run.parameters:,}"),
            ("Trained by", _chosen(run, "strategy")),
            ("Rounds", f"{done}{planned}, run {text(run.state)}"),
            ("Date", None if run.updated is None else text(wording.moment(run.updated))),
            ("Federation", None if run.federation is None else text(run.federation)),
            (
                "Code",
                None
                if run.code_version is None
                else f"version {text(run.code_version)}"
                + (f", commit {code(run.code_commit)}" if run.code_commit else "")
                + dirty,
            ),
            (
                "Code bundle, SHA-256",
                code(run.code_bundle_sha256) if run.code_bundle_sha256 else None,
            ),
            (
                "Experiment, SHA-256",
                None
                if run.experiment_sha256 is None
                else code(run.experiment_sha256)
                + (", **which experiment.json does not have**" if intact else ""),
            ),
        ]
    )


def _intended(run: Run) -> str:
    task = run.experiment.get("task")
    name = task.get("name") if isinstance(task, dict) else None
    purpose, outside = INTENDED.get(str(name), (None, None))
    return listing(
        [
            ("Meant for", f"research on models that {purpose}" if purpose else "research"),
            ("Users", "researchers, with the hospitals whose patients it learned from"),
            (
                "Out of scope",
                f"any clinical decision; {outside}" if outside else "any clinical decision",
            ),
        ]
    )


def _data(run: Run) -> str:
    evaluation = run.last_evaluation(run.headline)
    chosen = run.experiment.get("evaluation")
    share = chosen.get("held_out") if isinstance(chosen, dict) else None
    split = "by patient, with a keyed hash at each hospital"
    if isinstance(share, int | float):
        split += f"; {wording.percent(share)} of the patients are held out and never trained on"
    facts: list[tuple[str, str | None]] = [
        ("Where it is", "at the hospitals; no image left them"),
        ("Hospitals", f"{len(run.hospitals)}: {text(', '.join(run.hospitals)) or '–'}"),
        ("Split", split),
    ]
    if evaluation is not None and evaluation.left_out is not None:
        facts.append(("Never trained on", text(evaluation.left_out.hospital)))
    listed = listing(facts)
    if run.in_secret:
        return f"{listed}\n\nSizes of single hospitals are not in this card: they were summed in secret."
    trained: dict[str, int] = {}
    for made in run.rounds:
        for answer in made.answers:
            if answer.patients is not None:
                trained[answer.hospital] = max(trained.get(answer.hospital, 0), answer.patients)
    held = {m.hospital: m.patients for m in evaluation.measured} if evaluation else {}
    rows = [
        (text(name), wording.whole(trained.get(name)), wording.whole(held.get(name)))
        for name in run.hospitals
    ]
    declared = "Patients (declared)" if run.private else "Patients trained on"
    return f"{listed}\n\n{table(('Hospital', declared, 'Patients held out'), rows)}"


def _results(run: Run) -> Iterator[str]:
    evaluation = run.last_evaluation(run.headline)
    if evaluation is None:
        yield "No evaluation is recorded."
        return
    over = wording.OVERALL[run.metrics_from]
    yield (
        f"The model after round {evaluation.round}, {wording.MEASURED_ON[run.metrics_from]}. "
        f"{over.sentence}"
    )
    if run.own_models:
        yield "The strategy leaves layers at hospitals: the figures are of each hospital's own model."
    rows = []
    for metric in run.metrics:
        larger = wording.larger_is_better(metric)
        worst = run.worst_by(metric, larger_is_better=larger)
        interval = evaluation.overall_intervals.get(metric)
        lowest = "–"
        if worst is not None:
            own = evaluation.intervals(metric).get(worst.hospital)
            lowest = f"{wording.estimate(worst.value, own)} ({text(worst.hospital)})"
        row = [
            text(wording.metric_label(metric)),
            wording.estimate(evaluation.overall.get(metric), interval),
            lowest,
        ]
        if evaluation.left_out is not None:
            row.append(wording.decimal(evaluation.left_out.metrics.get(metric)))
        rows.append(row)
    columns = ["Metric", text(over.name).capitalize(), "Worst hospital"]
    if evaluation.left_out is not None:
        columns.append(f"{text(evaluation.left_out.hospital)}, never trained on")
    yield table(columns, rows)
    if run.in_secret:
        yield "Metrics were summed in secret: of no single hospital is any known."
    yield _meanings((wording.metric_label(m), wording.metric_meaning(m)) for m in run.metrics)


def _groups(run: Run, by_group: fairness.Section) -> Iterator[str]:
    if by_group.why_nothing is not None:
        yield by_group.why_nothing
        return
    yield (
        f"After round {by_group.round}, all cases together, with 95 % intervals. Groups with fewer than "
        f"{by_group.least} cases of a label are not compared."
    )
    yield listing(
        (
            text(tile.title),
            "–"
            if tile.estimate is None
            else wording.estimate(tile.estimate.value, tile.estimate.interval)
            + (f" ({text(tile.whose)})" if tile.whose else ""),
        )
        for tile in by_group.tiles
    )
    for channel in by_group.channels:
        if channel.title:
            yield f"### {text(channel.title)}"
        counted = ["Cases", "Positive"] if channel.positive else ["Cases"]
        columns = ["Group", *counted, *(text(wording.metric_label(m)) for m in channel.metrics)]
        rows = [_group_row("all", "", channel.total, channel)] if channel.total else []
        for block in (*channel.single, *channel.pairs):
            rows += [
                _group_row(f"{block.label}: {line.label}", line.note, line.group, channel)
                for line in block.lines
            ]
            if block.unreported:
                words = f"{block.label}: {', '.join(block.unreported)}"
                rows.append([f"{text(words)} (no case reported)"] + ["–"] * (len(columns) - 1))
        bounds = [wording.decimal(channel.bounds.get(m)) for m in channel.metrics]
        rows.append(["moved by bins, at most", *("" for _ in counted), *bounds])
        yield table(columns, rows)
    yield "Withheld: " + (
        f"{by_group.withheld}. Groups of few patients are put together by hospitals."
        if by_group.withheld
        else "nothing."
    )
    if by_group.gaps:
        yield table(
            ("Groups by", "Gap", "Difference", "Worst", "Best"),
            (
                (
                    text(
                        " and ".join(gap.attributes) + (f", {gap.channel}" if gap.channel else "")
                    ),
                    text(wording.gap_label(gap.metric)),
                    wording.estimate(gap.value, gap.interval),
                    text(fairness.group_label(gap.worst)) if gap.worst else "–",
                    text(fairness.group_label(gap.best)) if gap.best else "–",
                )
                for gap in by_group.gaps
            ),
        )
    yield _meanings(by_group.meanings)


def _group_row(name: str, note: str, group: Group, channel: fairness.Channel) -> list[str]:
    counts = [wording.whole(group.cases)]
    counts += [wording.whole(group.positive)] if channel.positive else []
    values = [
        wording.estimate(group.metrics[m].value, group.metrics[m].interval)
        if m in group.metrics
        else "too few"
        for m in channel.metrics
    ]
    return [text(name) + (f" ({text(note)})" if note else ""), *counts, *values]


def _meanings(words: Iterable[tuple[str, str | None]]) -> str:
    return listing((text(name), text(meaning) if meaning else None) for name, meaning in words)


def _protection(run: Run) -> Iterator[tuple[str, str | None]]:
    if run.private:
        known = [s for s in run.spent().values() if s.run_epsilon is not None]
        most = max(known, key=lambda spent: spent.run_epsilon or 0.0, default=None)
        told = "patient-level differential privacy, whose unit is the patient"
        if most is not None:
            told += (
                f"; of this run ε ≤ {wording.at_most(most.run_epsilon)} at δ = "
                f"{wording.power(most.delta)}, at the hospital where it cost most"
            )
        yield "Differential privacy", told
    elif run.private is None:
        yield "Differential privacy", "not known: experiment.json is missing"
    else:
        yield (
            "Differential privacy",
            "none: the model may tell of the patients that it learned from",
        )
    members = len(run.hospitals) or None
    yield "The coordinator reads", text(described.readable(run.secure_aggregation, members))
    yield "Secure aggregation", code(run.secure_aggregation.get("name") or "none")
    yield "Codec", text(" → ".join(described.chain(run.codec)) or "none: float32")


def _limits(run: Run, by_group: fairness.Section) -> Iterator[str]:
    yield "Nobody has tested it in care, prospectively, or on other populations than these hospitals'."
    if run.state != "completed":
        yield f"The run is not complete: its state is {text(run.state)}."
    if len(run.hospitals) == 1:
        yield "One hospital alone trained it: nothing says how it does elsewhere."
    evaluation = run.last_evaluation(run.headline)
    if evaluation is not None and evaluation.left_out is None:
        yield "It was measured at the hospitals that trained it; how it does at others is not known."
    few = [
        m.hospital
        for m in (evaluation.measured if evaluation else ())
        if m.patients is not None and m.patients < _FEW
    ]
    if few:
        yield (
            f"Fewer than {_FEW} held-out patients, so figures that are mostly chance, at: "
            f"{text(', '.join(few))}."
        )
    if by_group.why_nothing is not None:
        yield "How it does by group of patients is not known."
    if run.in_secret:
        yield "A hospital that is served badly does not show: only sums are known."
    if run.federation == "demo" or str(run.experiment.get("name", "")).endswith("demo"):
        yield "A demonstration, which runs on phantoms: it has learned nothing of patients."
    yield "Groups are by what headers and tables say, which may be missing or wrong."


def _reproduce(run: Run) -> str:
    parts = [
        f"{part}={run.experiment[part]['name']}"
        for part in ("task", "strategy")
        if isinstance(run.experiment.get(part), dict) and "name" in run.experiment[part]
    ]
    parts += [f"{k}={run.experiment[k]}" for k in ("rounds", "seed") if k in run.experiment]
    command = " ".join(["coordinator run", *parts, "…"])
    return (
        "`experiment.json`, beside this card, is the whole experiment. Check out the commit above, set "
        f"its values as overrides ({code_line(command)}), and compare the SHA-256 that the command "
        "prints with the one above: where they agree it is the same experiment. Over the same data the "
        "same code gives the same bits on CPUs. Without patient-level privacy, that is: its noise is "
        "not repeated."
    )


def code_line(command: str) -> str:
    """A command as code; one that holds a back quote or a line's end, as text."""
    return text(command) if any(c in command for c in "`\n\r|") else f"`{command}`"
