"""`hospital …`: look before the first round whether all is well, then serve."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from client_app.site import SITE_VARIABLE, read_kit, read_site
from federation.command_line import options, runs_as
from federation.processes import FLOWER_ENVIRONMENT
from federation.schema import ConfigError

app = typer.Typer(**options("A hospital of a federation."))
console = Console()

SiteOption = Annotated[
    Path, typer.Option("--site", envvar=SITE_VARIABLE, help="The hospital's own configuration.")
]
DEFAULT_SITE = Path("site.yaml")


@app.command()
def check(
    task: Annotated[
        str | None,
        typer.Option(help="A task: counts the patients and images that it would use."),
    ] = None,
    held_out: Annotated[float, typer.Option(help="Share of patients not trained on.")] = 0.25,
    site: SiteOption = DEFAULT_SITE,
) -> None:
    """Say what is missing before the first round. Exits 1 when something is.

    Example: hospital check --site site.yaml --task chest_xray
    """
    from client_app.checks import run_checks

    if not run_checks(read_site(site), task, held_out, console):
        raise ConfigError("not ready; mend the lines marked ✗")


@app.command()
def start(site: SiteOption = DEFAULT_SITE) -> None:
    """Connect to the coordinator and serve its requests, in the foreground. Only dials out.

    Example: hospital start --site site.yaml
    """
    from client_app.services import serve

    content = read_site(site)
    kit = read_kit(content)
    kit.roster()
    console.print(f"{kit.hospital} serves {kit.federation} at {kit.superlink}; Ctrl-C ends")
    serve(content, site, kit)


@app.command()
def phantom(
    task: Annotated[str, typer.Option(help="chest_xray or hippocampus.")],
    patients: Annotated[int, typer.Option(min=1, help="How many patients to make.")],
    out: Annotated[Path, typer.Option(help="Folder to fill; must not exist, or be empty.")],
    shift: Annotated[
        int, typer.Option(min=0, help="Which hospital's scanner, habits and patients to imitate.")
    ] = 0,
    seed: Annotated[int, typer.Option(help="The same seed makes the same images.")] = 0,
) -> None:
    """Make phantom images to rehearse with before real ones are mounted.

    Example: hospital phantom --task chest_xray --patients 60 --out phantoms
    """
    from client_app.imaging import phantoms

    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"{out} is not empty; choose another --out")
    phantoms.write(task, out, patients=patients, site=shift, seed=seed)
    console.print(f"{patients} phantom patients for {task} in {out}")


def main() -> None:
    """The `hospital` command."""
    os.environ.update(FLOWER_ENVIRONMENT)
    sys.exit(runs_as("hospital", app))
