"""`coordinator …`: provision a federation, serve it, run experiments, watch and stop them."""

from __future__ import annotations

import os
import re
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from federation.command_line import options, runs_as
from federation.processes import FLOWER_ENVIRONMENT
from federation.schema import ConfigError
from server_app import membership_commands as membership
from server_app.backup_commands import backup, restore
from server_app.compare_commands import compare
from server_app.home import HOME_VARIABLE, Home, read_federation
from server_app.review_commands import app as review_commands

app = typer.Typer(**options("The coordinator of a federation."))
certificate = typer.Typer(**options("The server's certificate."))
app.add_typer(certificate, name="certificate")
app.add_typer(review_commands, name="review")
console = Console()

HomeOption = Annotated[
    Path,
    typer.Option(
        "--home", envvar=HOME_VARIABLE, help="The coordinator's folder.", show_default=True
    ),
]
DEFAULT_HOME = Path("coordinator")


class Side(StrEnum):
    """Of the coordinator's two processes, one."""

    SUPERLINK = "superlink"
    SUPEREXEC = "superexec"


PassphraseOption = Annotated[
    Path | None,
    typer.Option(
        help="File with the passphrase of the authority's key; else CONSILIUM_CA_PASSPHRASE, or asked."
    ),
]
CaKeyOption = Annotated[
    Path | None,
    typer.Option(
        help="Where the authority's encrypted key lies, as on a medium that is taken out; "
        "else ca.p12 in the folder."
    ),
]


@app.command()
def provision(
    file: Annotated[Path, typer.Argument(help="federation.yaml: name, host, port, hospitals.")],
    identities: Annotated[
        Path | None,
        typer.Option(
            help="Folder with the NAME.identity.json of hospitals that made their keys before "
            "(hospital identity create): they are on the first roster. Without: each has an invitation."
        ),
    ] = None,
    passphrase_file: PassphraseOption = None,
    ca_key: CaKeyOption = None,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Make the authority, the server's certificate, and a kit for each hospital to join with.

    Example: coordinator provision federation.yaml --home coordinator
    """
    from server_app import authority
    from server_app.provision import provision as make

    federation = read_federation(file)
    passphrase = authority.passphrase(passphrase_file, new=True)
    place = Home(home)
    make(federation, place, identities, passphrase=passphrase, ca_key=ca_key)
    console.print(f"federation [bold]{federation.name}[/] is in {home}")
    if identities is None:
        membership.show_next_steps(place)
    else:
        membership.show_first_roster(place)


@certificate.command()
def renew(
    passphrase_file: PassphraseOption = None,
    ca_key: CaKeyOption = None,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """A new certificate for the server, by the same authority. Hospitals need do nothing.

    Example: coordinator certificate renew --home coordinator
    """
    from server_app import authority
    from server_app.provision import renew as make

    place = Home(home)
    place.federation()
    made = make(place, authority.passphrase(passphrase_file, new=False), ca_key=ca_key)
    console.print(
        f"{place.server_certificate} is valid until {made.not_valid_after_utc:%Y-%m-%d}. It counts from "
        "the next coordinator start (and of the proxy before it, if there is one): hospitals reconnect "
        "by themselves, and runs go on if that takes less than a minute.",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )


@app.command()
def start(
    only: Annotated[
        Side | None,
        typer.Option(help="One of the two processes alone, as in containers.", show_default=False),
    ] = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=65535,
            envvar="CONSILIUM_METRICS_PORT",
            help="Serve metrics for Prometheus on it, where the SuperLink is; else none are served.",
        ),
    ] = None,
    metrics_address: Annotated[
        str, typer.Option(envvar="CONSILIUM_METRICS_ADDRESS", help="That this port is bound on.")
    ] = "127.0.0.1",
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Run the SuperLink and the SuperExec in the foreground, and let the roster's hospitals in.

    Example: coordinator start --home coordinator
    """
    from server_app.services import serve, serve_superexec, serve_superlink

    federation = Home(home).federation()
    metrics_at = None if metrics_port is None else (metrics_address, metrics_port)
    where = f"{federation.listen}:{federation.bound_port}"
    if only is Side.SUPEREXEC:
        console.print(f"conducting the runs of {federation.name} for {where}")
        serve_superexec(Home(home))
        return
    console.print(f"serving {federation.name} on {where}; Ctrl-C ends")
    if only is Side.SUPERLINK:
        serve_superlink(Home(home), metrics_at)
    else:
        serve(Home(home), metrics_at)


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
        sha256 = str(folder.record()["code"]["bundle_sha256"])
        signed = len(place.bundles.signatures(sha256))
        console.print(
            f"run [bold]{folder.name}[/], experiment {folder.experiment().sha256()[:12]}, "
            f"code {sha256[:12]} signed by {signed or 'nobody'}"
        )
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
def status(
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, for programs.")] = False,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Who is connected, how far each run is, how long certificates hold, and what needs a person.

    Exits 0 when nothing does, and 1 otherwise: the SuperLink is down, a hospital that is neither
    suspended nor only invited is not connected, a certificate ends within 30 days, or the newest run
    failed or broke off.

    Example: coordinator status --json
    """
    import json

    from server_app import status as now

    found = now.look(Home(home))
    if as_json:
        typer.echo(json.dumps(found.as_json(), indent=1))
    else:
        now.show(found, console)
    raise typer.Exit(1 if found.attention else 0)


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


for command in (
    membership.hospitals,
    membership.invite,
    membership.admit,
    membership.suspend,
    membership.reinstate,
    membership.remove,
    membership.rotate,
    compare,
    backup,
    restore,
):
    app.command()(command)


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
