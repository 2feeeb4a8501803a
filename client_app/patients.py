"""This hospital's patients for one experiment: found, split, and ready as tensors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from client_app.imaging.cache import CachedCases, prune
from client_app.imaging.cohort import Cohort, build_cohort
from client_app.imaging.pseudonym import load_key
from client_app.imaging.set_aside import SetAside
from client_app.policy import Refused
from federation import tasks
from federation.schema import Component, ConfigError, Experiment, Site
from federation.tasks import Case
from federation.wire import Reason


@dataclass(frozen=True)
class Patients:
    """`cohort` has only the cases that could be loaded; the others are in its `set_aside`."""

    cohort: Cohort
    training: CachedCases
    held_out: CachedCases


def find_patients(site: Site, experiment: Experiment) -> Patients:
    """The cohort of an experiment with its tensors in the cache.

    Raises:
        Refused: the site's configuration cannot serve this task (`hospital check` says why).
    """
    try:
        return load_patients(site, experiment.task, experiment.evaluation.held_out)
    except ConfigError as error:
        raise Refused(Reason.BAD_SITE) from error


def load_patients(
    site: Site,
    component: Component,
    held_out: float,
    progress: Callable[[int, int], None] | None = None,
) -> Patients:
    """As `find_patients`, for the hospital's own eyes.

    Raises:
        ConfigError: no such task, or tables and folders of the site that cannot be used; the text
            names them, so it stays at the hospital.
    """
    task = tasks.build(component)
    key_file = site.state / "pseudonym.key"
    if not key_file.exists() and (site.state / "index.sqlite").exists():
        raise ConfigError(
            f"{key_file} is gone, but the index made with it is there: restore the key from a backup. "
            "A new key would hold out other patients; to accept that, delete index.sqlite too"
        )
    key = load_key(key_file)
    cohort = build_cohort(site.data, task, state=site.state, key=key, held_out=held_out)
    fingerprint = json.dumps(component.model_dump(mode="json"), sort_keys=True)
    folder = site.state / "cache" / hashlib.sha256(fingerprint.encode()).hexdigest()[:16]

    def ready(cases: tuple[Case, ...]) -> tuple[CachedCases, list[SetAside]]:
        usable, failed = CachedCases(cases, task.load, folder, fingerprint).prepare(
            workers=site.threads or 1, progress=progress
        )
        kept = [cases[position] for position in usable]
        return CachedCases(kept, task.load, folder, fingerprint), failed

    (training, failed), (kept_out, also_failed) = ready(cohort.training), ready(cohort.held_out)
    cohort = replace(
        cohort,
        training=training.cases,
        held_out=kept_out.cases,
        set_aside=(*cohort.set_aside, *failed, *also_failed),
    )
    prune(folder, (training, kept_out))
    return Patients(cohort, training, kept_out)


def set_aside_summary(cohort: Cohort, root: Path) -> list[tuple[str, int, str]]:
    """Reason, how many, and one example's path relative to the data's root; for the hospital only."""
    rows = []
    for reason, count in cohort.set_aside_reasons.items():
        first = next(item for item in cohort.set_aside if item.reason == reason)
        rows.append((str(reason), count, f"{first.path.relative_to(root)}: {first.detail}"))
    return rows
