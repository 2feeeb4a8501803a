"""Starts a run, or goes on with one, and follows it to its end."""

from __future__ import annotations

import getpass
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from federation.schema import ConfigError, Experiment, nearest
from server_app import bundle
from server_app.control import Control, RunState, Unreachable
from server_app.home import Home
from server_app.state import RunFolder, now

_LOOK = 0.5  # seconds between two looks at a run's folder
_ASK = 5.0  # seconds between two questions to the SuperLink
_LAST_WORD = 10.0  # seconds that a ServerApp may take to go when its run is stopped
_SILENCE = 120.0  # seconds that a SuperLink may be away, as when it is started again

STOPPED = "stopped by the coordinator"


@dataclass(frozen=True)
class Launched:
    folder: RunFolder
    flower_run: int


def new_name(experiment: str) -> str:
    """What a run is called if nobody says."""
    return f"{experiment}-{datetime.now(UTC):%Y%m%d-%H%M}-{secrets.token_hex(1)}"


def start(home: Home, control: Control, experiment: Experiment, name: str) -> Launched:
    """Start a new run, of the hospitals that are on the roster now.

    Raises:
        ConfigError: there is such a run, the experiment asks for hospitals nobody knows, or the
            SuperLink does not answer. Nothing is left behind then.
    """
    check_hospitals(home, experiment)
    control.check()
    code = bundle.build()
    record = {
        "run": name,
        "experiment_sha256": experiment.sha256(),
        "code": bundle.code_record(code),
        "started": now(),
        "user": getpass.getuser(),
        "federation": home.federation().name,
        "hospitals": list(experiment.participation.hospitals or home.roster().names()),
        "flower_runs": [],
        "task": _task_record(experiment),
    }
    folder = RunFolder.create(home.runs / name, experiment, record)
    return _launch(home, control, folder, experiment, code)


def resume(home: Home, control: Control, name: str) -> Launched:
    """Go on with a run from its last committed round, with the hospitals that it was started with.

    Raises:
        ConfigError: no such run, it is complete, it is still conducted, or the code has changed.
    """
    folder = RunFolder(home.runs / name)
    experiment = folder.experiment()
    if folder.status()["state"] == "completed":
        raise ConfigError(f"run {name!r} is complete; see {folder.path}")
    if folder.is_conducted():
        raise ConfigError(
            f"run {name!r} is still under way; end it first with: coordinator stop {name}"
        )
    for flower_run in folder.record()["flower_runs"][-1:]:
        # Its ServerApp is gone; Flower notices after a minute, and until then would wait for it.
        if not _finished(control, flower_run):
            control.stop_run(int(flower_run))
    code = bundle.build()
    recorded = folder.record()["code"]["bundle_sha256"]
    if bundle.code_record(code)["bundle_sha256"] != recorded:
        raise ConfigError(
            f"run {name!r} was started with other code (bundle {recorded[:12]}); check out "
            f"commit {folder.record()['code']['commit'] or 'of that version'} and resume again"
        )
    folder.write_status("running", folder.status()["round"], experiment.rounds)
    return _launch(home, control, folder, experiment, code)


def attach(folder: RunFolder) -> Launched:
    """A run under way, to follow it."""
    return Launched(folder, int(folder.record()["flower_runs"][-1]))


def follow(control: Control, launched: Launched, show: Callable[[RunFolder], None]) -> RunState:
    """Call `show` whenever there may be news, until the run has ended; how it ended.

    Raises:
        Unreachable: the SuperLink did not answer for two minutes.
    """
    folder, conducted, asked, answered = launched.folder, False, 0.0, time.monotonic()
    while True:
        show(folder)
        alive = folder.is_conducted()
        state = folder.status()["state"]  # after the look at the process: its last word
        if conducted and not alive and state == "running":
            return _died(folder, launched.flower_run)
        conducted |= alive
        if state != "running" or time.monotonic() - asked > _ASK:
            asked = time.monotonic()
            try:
                flower = control.run(launched.flower_run)
                answered = asked
            except Unreachable:
                if asked - answered > _SILENCE:
                    raise
            else:
                if flower.finished:
                    show(folder)
                    return flower
        time.sleep(_LOOK if state == "running" else 0.1)


def failure(folder: RunFolder, ended: RunState) -> str | None:
    """Why a run that has ended failed; None: it is complete."""
    status = folder.status()
    if ended.outcome == "completed" and status["state"] == "completed":
        return None
    return str(status["message"] or ended.details or f"it was {ended.outcome}")


def stop(control: Control, folder: RunFolder) -> int:
    """End a run under way; how many rounds are kept.

    Raises:
        ConfigError: there is no such run, or it has ended already.
    """
    folder.experiment()
    flower_run = folder.record()["flower_runs"][-1]
    if control.run(int(flower_run)).finished:
        raise _ended(folder)
    # Before: whoever follows the run may see its process gone before the next line is reached.
    folder.note_stop(flower_run)
    try:
        if not control.stop_run(int(flower_run)):
            raise _ended(folder)
    except BaseException:
        folder.note_stop(None)
        raise
    deadline = time.monotonic() + _LAST_WORD
    while folder.is_conducted() and time.monotonic() < deadline:
        time.sleep(0.1)
    status = folder.status()
    if status["state"] == "completed":  # all was done before the stop reached it
        raise _ended(folder)
    folder.write_status("failed", status["round"], status["rounds"], STOPPED)
    return int(status["round"])


def _ended(folder: RunFolder) -> ConfigError:
    return ConfigError(f"run {folder.name!r} has ended already: {folder.status()['state']}")


def _died(folder: RunFolder, flower_run: int) -> RunState:
    """The ServerApp's process ended without a word: a person ended it, or it was killed."""
    message = STOPPED if folder.was_stopped(str(flower_run)) else "its process was killed"
    status = folder.status()
    folder.write_status("failed", status["round"], status["rounds"], message)
    return RunState("finished", "failed", message)


def _launch(
    home: Home, control: Control, folder: RunFolder, experiment: Experiment, code: bytes
) -> Launched:
    config = {
        "run": folder.name,
        "experiment": experiment.canonical(),
        "experiment-sha256": experiment.sha256(),
    }
    flower_run = control.start_run(home.bundles.keep(code), config)
    record = folder.record()
    # as strings: Flower's run ids are above 2^53, where readers of JSON may round
    folder.write_record(record | {"flower_runs": [*record["flower_runs"], str(flower_run)]})
    return Launched(folder, flower_run)


def _finished(control: Control, flower_run: str) -> bool:
    try:
        return control.run(int(flower_run)).finished
    except KeyError:
        return True


def check_hospitals(home: Home, experiment: Experiment) -> None:
    """Raises ConfigError: the experiment asks for hospitals that are not on the roster, or too few."""
    known, suspended = home.roster().names(), home.suspensions.all()
    named = experiment.participation.hospitals
    for name in named or ():
        if name not in known:
            raise ConfigError(f"participation.hospitals: {name!r} is not on the roster: {known}")
        if name in suspended:
            raise ConfigError(
                f"participation.hospitals: {name} is suspended since {suspended[name].since}; "
                f"coordinator reinstate {name} ends that"
            )
    chosen = named or [name for name in known if name not in suspended]
    left_out = experiment.evaluation.leave_out
    if left_out is not None:
        if left_out not in known:
            raise ConfigError(
                f"evaluation.leave_out: {left_out!r} is not on the roster{nearest(left_out, known)}"
            )
        if left_out in suspended:
            raise ConfigError(f"evaluation.leave_out: {left_out} is suspended")
        chosen = [name for name in chosen if name != left_out]
        if len(chosen) < experiment.participation.least:
            raise ConfigError(
                f"participation.least is {experiment.participation.least}, but without "
                f"evaluation.leave_out={left_out} only {len(chosen)} train: {', '.join(chosen)}"
            )
    secure = experiment.secure_aggregation
    if secure is not None and len(chosen) < max(secure.least, 3):
        raise ConfigError(
            f"secure_aggregation={secure.name} needs {max(secure.least, 3)} hospitals, and there are "
            f"{len(chosen)}: {', '.join(chosen)}"
        )
    if len(chosen) < experiment.participation.least:
        raise ConfigError(
            f"participation.least is {experiment.participation.least}, but the roster has "
            f"{len(chosen)} hospitals that are not suspended: {', '.join(chosen)}"
        )


def _task_record(experiment: Experiment) -> dict[str, Any]:
    from federation import strategies, tasks

    task = tasks.of_experiment(experiment)
    return {
        "metrics": list(strategies.metric_names(experiment, task.metrics)),
        "headline": task.headline,
        "classes": list(task.classes),
    }
