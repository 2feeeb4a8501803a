"""`coordinator run -m`: the runs of a sweep one after the other, and their table at the end."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from federation.schema import ConfigError
from server_app import compare_commands, launch, sweep
from server_app.compare import compare
from server_app.control import Control, Unreachable
from server_app.home import Home
from server_app.launch import Launched
from server_app.progress import RoundsTable
from server_app.report.page import write_report
from server_app.state import RunFolder
from server_app.sweep import Planned, Sweep

console = Console()


def multirun(home: Home, own: dict[str, str], overrides: Sequence[str]) -> None:
    """Do all runs of a sweep that are not complete yet.

    Args:
        own: `run`, what to call a new sweep, or `resume`, which to go on with.

    Raises:
        ConfigError: before anything is sent, names the combination that is wrong; afterwards, runs
            that failed, or that Ctrl-C stopped the sweep.
    """
    home.federation()
    if "resume" in own:
        if overrides:
            raise ConfigError(
                f"resume takes no overrides, a sweep's runs are fixed: {overrides[0]}"
            )
        planned = sweep.read(home, own["resume"])
    else:
        planned = sweep.plan(overrides, name=own.get("run"))
    for one in planned.runs:
        launch.check_hospitals(home, one.experiment)
        sweep.state(home, one)
    with sweep.conducting(home, planned.name), Control(home) as control:
        control.check()
        sweep.write(home, planned)
        _say(f"sweep {planned.name}, {len(planned.runs)} runs")
        failed = conduct(home, control, planned)
    _compare(home, planned)
    if failed:
        raise ConfigError(
            f"{len(failed)} of {len(planned.runs)} runs failed: {', '.join(failed)}; coordinator run "
            f"-m resume={planned.name} goes on with them"
        )


def conduct(home: Home, control: Control, planned: Sweep) -> list[str]:
    """One run after the other; who is complete is not done again. Names of those that failed.

    Raises:
        ConfigError: Ctrl-C stopped the run under way, and with it the sweep.
        Unreachable: the SuperLink does not answer; it would not answer the next run either.
    """
    failed = []
    for number, one in enumerate(planned.runs, start=1):
        console.rule(f"{number} of {len(planned.runs)}  {' '.join(one.varied)}")
        try:
            why = _run(home, control, one)
        except Unreachable as error:
            raise Unreachable(f"{error}; then: {_go_on(planned)}") from None
        except ConfigError as error:
            why = str(error)
        except KeyboardInterrupt:
            _stop(control, RunFolder(home.runs / one.run))
            raise ConfigError(f"stopped in run {one.run}; {_go_on(planned)} goes on") from None
        if why is not None:
            failed.append(one.run)
            _say(f"run {one.run} failed: {why}")
    return failed


def _run(home: Home, control: Control, one: Planned) -> str | None:
    """Start a run, or go on with it, and follow it to its end; why it failed."""
    match sweep.state(home, one):
        case "completed":
            _say(f"run {one.run} is complete already")
            return None
        case "new":
            launched = launch.start(home, control, one.experiment, one.run)
        case "begun":
            launched = launch.resume(home, control, one.run)
        case "under way":
            launched = launch.attach(RunFolder(home.runs / one.run))
    return _follow(control, launched)


def _follow(control: Control, launched: Launched) -> str | None:
    folder = launched.folder
    _say(f"run {folder.name}, experiment {folder.experiment().sha256()[:12]}")
    with RoundsTable(folder, console) as table:
        ended = launch.follow(control, launched, table.show)
    _say(f"report   {write_report(folder.path)}")
    return launch.failure(folder, ended)


def _stop(control: Control, folder: RunFolder) -> None:
    """End the run that Ctrl-C came in; it may not have begun, or have ended just now."""
    if not folder.path.exists():
        return
    try:
        launch.stop(control, folder)
    except (ConfigError, IndexError) as error:  # not started yet
        _say(f"run {folder.name} was not stopped: {error}")


def _compare(home: Home, planned: Sweep) -> None:
    begun = [RunFolder(home.runs / one.run) for one in planned.runs]
    console.rule("comparison")
    try:
        compare_commands.show(compare([one for one in begun if one.path.exists()]), console)
    except ConfigError as error:
        _say(f"no table: {error}")


def _go_on(planned: Sweep) -> str:
    return f"coordinator run -m resume={planned.name}"


def _say(text: str) -> None:
    console.print(text, soft_wrap=True, highlight=False, markup=False)
