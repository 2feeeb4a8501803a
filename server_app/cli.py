"""`coordinator …`: provision a federation, serve it, run experiments, watch and stop them."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from federation.command_line import options, runs_as
from federation.processes import FLOWER_ENVIRONMENT
from federation.schema import ConfigError
from server_app.backup_commands import backup, restore
from server_app.compare_commands import compare
from server_app.home import HOME_VARIABLE, Home, read_federation
from server_app.hospital_commands import app as hospital_commands
from server_app.hospital_commands import show_members

app = typer.Typer(**options("The coordinator of a federation."))
app.add_typer(hospital_commands, name="hospital")
console = Console()

HomeOption = Annotated[
    Path,
    typer.Option(
        "--home", envvar=HOME_VARIABLE, help="The coordinator's folder.", show_default=True
    ),
]
DEFAULT_HOME = Path("coordinator")


@app.command()
def provision(
    file: Annotated[Path, typer.Argument(help="federation.yaml: name, host, port, hospitals.")],
    identities: Annotated[
        Path, typer.Option(help="Folder with the NAME.identity.json that each hospital sent.")
    ] = Path("identities"),
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Make the authority, the server's certificate, the first roster, and a kit for each hospital.

    Each hospital runs `hospital identity create` before, and sends the file that it makes.

    Example: coordinator provision federation.yaml --identities identities --home coordinator
    """
    from server_app.provision import provision as make

    made = make(read_federation(file), Home(home), identities)
    console.print(f"federation [bold]{made.federation}[/] is in {home}")
    show_members(made.members)
    console.print(
        "have each hospital read its fingerprint to you over the telephone, and compare, before it "
        f"gets its kit from {Home(home).kits} (nothing in a kit is secret)",
        soft_wrap=True,
        highlight=False,
    )


@app.command()
def start(
    home: HomeOption = DEFAULT_HOME,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=65535,
            envvar="CONSILIUM_METRICS_PORT",
            help="Serve metrics for Prometheus on it; else none are served.",
        ),
    ] = None,
    metrics_address: Annotated[
        str, typer.Option(envvar="CONSILIUM_METRICS_ADDRESS", help="That this port is bound on.")
    ] = "127.0.0.1",
) -> None:
    """Run the SuperLink and the SuperExec in the foreground, and let the roster's hospitals in.

    Example: coordinator start --home coordinator
    """
    from server_app.services import serve

    federation = Home(home).federation()
    console.print(
        f"serving {federation.name} on {federation.listen}:{federation.port}; Ctrl-C ends"
    )
    serve(Home(home), None if metrics_port is None else (metrics_address, metrics_port))


@app.command()
def run(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Hydra overrides, run=NAME, or resume=RUN.", show_default=False),
    ] = None,
    multirun: Annotated[
        bool,
        typer.Option(
            "--multirun", "-m", help="Sweep: a,b or range(0,3) as a value is a run for each."
        ),
    ] = False,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Run an experiment, follow it, and write its report. Exits 1 when the run fails.

    Example: coordinator run experiment=demo rounds=5 training.learning_rate=0.002

    Example: coordinator run resume=demo-20261123-2101-3f

    Example: coordinator run -m experiment=demo strategy=fedavg,fedprox seed=0,1,2
    """
    from server_app import launch
    from server_app.control import Control
    from server_app.progress import RoundsTable, cost_lines, plan_lines

    own, hydra = _split(overrides or [])
    place = Home(home)
    if multirun:
        from server_app.sweep_commands import multirun as sweep

        sweep(place, own, hydra)
        return
    with Control(place) as control:
        control.check()
        if "resume" in own:
            if hydra:
                raise ConfigError(
                    f"resume takes no overrides, a run's experiment is fixed: {hydra[0]}"
                )
            launched = launch.resume(place, control, own["resume"])
        else:
            from server_app.compose import experiment as compose

            experiment = compose(hydra)
            asked = experiment.participation.hospitals or place.roster().members
            for line in (*plan_lines(experiment, len(asked)), *cost_lines(experiment)):
                console.print(line, soft_wrap=True, highlight=False, markup=False)
            name = own.get("run") or launch.new_name(experiment.name)
            launched = launch.start(place, control, experiment, name)
        folder = launched.folder
        console.print(f"run [bold]{folder.name}[/], experiment {folder.experiment().sha256()[:12]}")
        with RoundsTable(folder, console) as table:
            try:
                ended = launch.follow(control, launched, table.show)
            except KeyboardInterrupt:
                raise ConfigError(
                    f"no longer following; the run goes on. coordinator stop {folder.name} ends it"
                ) from None
    path = _report(folder.path)
    console.print(
        f"results  {folder.path}\nreport   {path}", soft_wrap=True, highlight=False, markup=False
    )
    if why := launch.failure(folder, ended):
        raise ConfigError(f"run {folder.name} failed: {why}; resume={folder.name} goes on with it")


@app.command()
def status(home: HomeOption = DEFAULT_HOME) -> None:
    """Who is connected, and how far each run is.

    Example: coordinator status --home coordinator
    """
    from server_app.control import Control, Unreachable
    from server_app.progress import hospitals_table, runs_table

    place = Home(home)
    members = place.roster().members
    try:
        with Control(place) as control:
            states: dict[str, str] | None = control.hospitals(members)
    except Unreachable:
        states = None
    console.print(hospitals_table([m.name for m in members], states))
    console.print(runs_table(place.runs))


@app.command()
def stop(
    name: Annotated[str | None, typer.Argument(metavar="[RUN]", help="A run to stop.")] = None,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Stop a run, or without a name the services.

    Example: coordinator stop demo-20261123-2101-3f
    """
    from server_app import launch, services
    from server_app.control import Control
    from server_app.state import RunFolder

    place = Home(home)
    place.federation()
    if name is None:
        console.print("stopped" if services.stop(place) else "nothing was running")
        return
    folder = RunFolder(place.runs / name)
    folder.experiment()
    with Control(place) as control:
        done = launch.stop(control, folder)
    console.print(f"stopped after round {done}; go on by resume={name}")


@app.command()
def report(
    name: Annotated[str, typer.Argument(metavar="RUN", help="The run.")],
    samples: Annotated[
        Path | None,
        typer.Option(
            help="Folder of images that may be shown, read as the task reads a hospital's."
        ),
    ] = None,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Write a run's report anew: one HTML file that opens anywhere.

    Example: coordinator report demo-20261123-2101-3f --samples phantoms
    """
    from server_app.state import RunFolder

    folder = RunFolder(Home(home).runs / name)
    folder.experiment()
    console.print(str(_report(folder.path, samples)), soft_wrap=True, highlight=False, markup=False)


@app.command()
def card(
    name: Annotated[str, typer.Argument(metavar="RUN", help="The run.")],
    out: Annotated[
        Path | None, typer.Option(help="Where to write it; model_card.md in the run's folder.")
    ] = None,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Write a run's model card: what the model is for, how good it is for whom, and its limits.

    Example: coordinator card demo-20261123-2101-3f --out model_card.md
    """
    from server_app.report.card import write_card
    from server_app.state import RunFolder

    folder = RunFolder(Home(home).runs / name)
    folder.experiment()
    console.print(str(write_card(folder.path, out)), soft_wrap=True, highlight=False, markup=False)


app.command()(compare)
app.command()(backup)
app.command()(restore)


def _report(folder: Path, samples: Path | None = None) -> Path:
    from server_app.report.page import write_report

    if samples is None:
        return write_report(folder)
    from server_app.report.samples import ModelAtHospitals, find_examples, predict_samples

    try:
        return write_report(folder, samples=predict_samples(folder, find_examples(folder, samples)))
    except ModelAtHospitals as error:
        console.print(
            f"no sample predictions: {error}", soft_wrap=True, highlight=False, markup=False
        )
        return write_report(folder)


def _split(overrides: list[str]) -> tuple[dict[str, str], list[str]]:
    """`run=` and `resume=` are the command's own; the rest is Hydra's."""
    own, hydra = {}, []
    for override in overrides:
        key, _, value = override.partition("=")
        if key in ("run", "resume"):
            if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,80}", value):
                raise ConfigError(
                    f"{override!r}: a run's name has letters a-z, digits, '.', '-', '_'"
                )
            own[key] = value
        else:
            hydra.append(override)
    return own, hydra


def main() -> None:
    """The `coordinator` command."""
    os.environ.update(FLOWER_ENVIRONMENT)
    sys.exit(runs_as("coordinator", app))
