"""This hospital's patients for one experiment: found, split, and ready as tensors."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from client_app.imaging.cache import CachedCases, prune
from client_app.imaging.cohort import Cohort, build_cohort
from client_app.imaging.pseudonym import open_key
from client_app.policy import Refused
from client_app.site import Site
from federation import harmonisation, tasks
from federation.messages import Reason
from federation.schema import Component, ConfigError, Experiment

Progress = Callable[[str, int, int], None]


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
        return load_patients(
            site,
            experiment.task,
            experiment.evaluation.held_out,
            harmonised=experiment.harmonisation,
            refresh=site.data.refresh,
        )
    except ConfigError as error:
        raise Refused(Reason.BAD_SITE) from error


def load_patients(
    site: Site,
    component: Component,
    held_out: float,
    *,
    harmonised: Sequence[Component] = (),
    refresh: float = 0.0,
    progress: Progress = lambda what, done, total: None,
) -> Patients:
    """As `find_patients`, for the hospital's own eyes.

    Args:
        harmonised: what is done to the images beside the task's own transforms.
        refresh: seconds for which the last look at the folders is trusted.
        progress: told what is being done, how much of it is, and how much there is.

    Raises:
        ConfigError: no such task, or tables and folders of the site that cannot be used; the text
            names them, so it stays at the hospital.
    """
    task = harmonisation.applied(tasks.build(component), harmonised)
    key = open_key(site.state)
    cohort = build_cohort(
        site.data,
        task,
        state=site.state,
        key=key,
        held_out=held_out,
        refresh=refresh,
        progress=partial(progress, "reading headers"),
    )
    fingerprint = _fingerprint(component, harmonisation.cached(harmonised))
    folder = site.state / "cache" / hashlib.sha256(fingerprint.encode()).hexdigest()[:16]

    cases = (*cohort.training, *cohort.held_out)
    cached = CachedCases(cases, task.load, folder, fingerprint)
    usable, failed = cached.prepare(
        workers=_decoding_processes(), progress=partial(progress, "preparing images")
    )
    first_held_out = len(cohort.training)
    training = cached.subset([position for position in usable if position < first_held_out])
    held_out_cases = cached.subset([position for position in usable if position >= first_held_out])
    cohort = replace(
        cohort,
        training=training.cases,
        held_out=held_out_cases.cases,
        set_aside=(*cohort.set_aside, *failed),
    )
    prune(folder, (training, held_out_cases))
    return Patients(cohort, training, held_out_cases)


def _fingerprint(component: Component, harmonised: Sequence[Component]) -> str:
    """Of all that decides what an image becomes: another one, another cache."""
    content: object = component.model_dump(mode="json")
    if harmonised:
        content = [content, [one.model_dump(mode="json") for one in harmonised]]
    return json.dumps(content, sort_keys=True)


def _decoding_processes() -> int:
    """Never fewer than two: in a process of its own, a decoder that crashes costs its file alone."""
    return max(2, min(8, len(os.sched_getaffinity(0))))
