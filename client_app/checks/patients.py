"""The patients and images that a task would use here."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, TaskID
from rich.table import Table

from client_app.checks.finding import Seen
from client_app.imaging.cohort import Cohort
from client_app.imaging.image import Case
from client_app.patients import load_patients
from client_app.policy import Refused, require_patients
from client_app.private_file import printable
from client_app.site import Site
from federation import tasks
from federation.schema import Component, ConfigError
from federation.tasks import Task


def patients(site: Site, name: str, held_out: float, console: Console) -> Seen:
    """How many a task would use; tables by label and group, and of what is not used."""
    if site.policy.tasks is not None and name not in site.policy.tasks:
        raise ConfigError(f"policy.tasks does not allow it; allowed: {site.policy.tasks}")
    component = Component(name=name)
    with Progress(console=console, transient=True) as bar:
        jobs: dict[str, TaskID] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in jobs:
                jobs[what] = bar.add_task(what)
            bar.update(jobs[what], completed=done, total=total)

        found = load_patients(site, component, held_out, progress=show)
    cohort = found.cohort
    _print_left_out(cohort, site, console)
    _print_used(cohort, tasks.build(component), console)
    counted = site.privacy.patients if site.privacy is not None else cohort.training_patients
    try:
        require_patients(site.policy, counted)
    except Refused:
        raise ConfigError(
            f"{counted} patients to train on; policy.least_patients is {site.policy.least_patients}"
        ) from None
    return Seen(
        _compared(site, cohort)
        + f"{cohort.training_patients} to train on ({len(cohort.training)} images), "
        f"{cohort.held_out_patients} held out ({len(cohort.held_out)}), "
        f"{sum(left.count for left in cohort.left_out.values())} files or images set aside"
    )


def _compared(site: Site, cohort: Cohort) -> str:
    """A declared size that is far from the true one costs accuracy, and no privacy."""
    declared, found = site.privacy.patients if site.privacy else 0, cohort.training_patients
    if declared <= 0 or 2 / 3 <= found / declared <= 3 / 2:
        return ""
    return (
        f"privacy.patients declares {declared}, and {found} are here: updates are scaled by "
        f"{found / declared:.2g}; before the first run choose a nearer number. "
    )


def _print_left_out(cohort: Cohort, site: Site, console: Console) -> None:
    """What is not used, why, one example, and what would mend it."""
    if not cohort.left_out:
        return
    table = Table(title="set aside", box=SIMPLE, title_justify="left")
    for heading in ("number", "reason", "such as", "what would mend it"):
        table.add_column(heading, justify="right" if heading == "number" else "left")
    for reason, left in cohort.left_out.items():
        path = left.example.path
        shown = path.relative_to(site.data.root) if path.is_relative_to(site.data.root) else path
        example = f"{shown}: {left.example.detail}" if left.example.detail else str(shown)
        table.add_row(str(left.count), str(reason), escape(printable(example)), reason.remedy)
    console.print(table)


def _print_used(cohort: Cohort, task: Task, console: Console) -> None:
    """Patients and images to train on and held out, by label and by group."""
    training, held_out = (_by_group(part, task) for part in (cohort.training, cohort.held_out))
    table = Table(title="used", box=SIMPLE, title_justify="left")
    table.add_column("", no_wrap=True)
    for heading in ("patients to train on", "images", "patients held out", "images"):
        table.add_column(heading, justify="right")
    for name in sorted(training.keys() | held_out.keys(), key=lambda name: (name != "all", name)):
        row: list[str] = []
        for part in (training, held_out):
            patients = part.get(name, [])
            row += [str(len(set(patients))), str(len(patients))]
        table.add_row(name, *row)
    console.print(table)


def _by_group(cases: Sequence[Case], task: Task) -> dict[str, list[str]]:
    """For each label and each word of each attribute, the patient of each image."""
    groups: dict[str, list[str]] = defaultdict(list)
    for case in cases:
        groups["all"].append(case.patient)
        if isinstance(case.label, int):
            groups[f"label: {task.classes[case.label]}"].append(case.patient)
        for name, word in case.attributes.items():
            groups[f"{name}: {word}"].append(case.patient)
    return groups
