"""`coordinator hospital …`: who is in the federation, and with which keys."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from federation.command_line import options
from federation.roster import Member
from server_app.home import HOME_VARIABLE, Home

if TYPE_CHECKING:
    from server_app.membership import Changed

app = typer.Typer(**options("Hospitals of the federation: add, remove, give new keys, list."))
console = Console()

HomeOption = Annotated[
    Path, typer.Option("--home", envvar=HOME_VARIABLE, help="The coordinator's folder.")
]
FileArgument = Annotated[
    Path, typer.Argument(metavar="FILE", help="NAME.identity.json, which the hospital sent.")
]
DEFAULT_HOME = Path("coordinator")


@app.command("list")
def list_hospitals(home: HomeOption = DEFAULT_HOME) -> None:
    """Who is on the roster, with fingerprints.

    Example: coordinator hospital list
    """
    roster = Home(home).roster()
    _print(f"federation {roster.federation}, version {roster.version}\nSHA-256 {roster.sha256()}")
    show_members(roster.members)


@app.command()
def add(file: FileArgument, home: HomeOption = DEFAULT_HOME) -> None:
    """Take a hospital in, by the public half of its keys. Its kit is made.

    Example: coordinator hospital add west.identity.json
    """
    from server_app import membership

    _show(Home(home), membership.add(Home(home), file))


@app.command()
def remove(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The hospital.")],
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Put a hospital out. Its keys can never be used again.

    Example: coordinator hospital remove west
    """
    from server_app import membership

    _show(Home(home), membership.remove(Home(home), name))


@app.command()
def rotate(
    file: FileArgument,
    lost: Annotated[
        bool,
        typer.Option(
            "--lost", help="The old keys are gone, so that they do not sign for the new ones."
        ),
    ] = False,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Put a hospital's new keys in the old ones' place.

    Example: coordinator hospital rotate west.identity.json
    """
    from server_app import membership

    _show(Home(home), membership.rotate(Home(home), file, lost=lost))


def show_members(members: Sequence[Member]) -> None:
    """Names and fingerprints."""
    for member in members:
        _print(f"{member.name}\n    {member.fingerprint()}")


def _show(home: Home, changed: Changed) -> None:
    _print(f"the roster has version {changed.roster.version}")
    show_members(changed.roster.members)
    known = "knows it now" if changed.registered else "is told at the next coordinator start"
    _print(
        f"the SuperLink {known}.\n"
        f"Send {home.roster_file} to every hospital; each compares and takes it with: hospital roster "
        f"accept roster.json. A hospital's kit is below {home.kits}. A run that is under way keeps its "
        "roster: start it anew."
    )


def _print(text: str) -> None:
    console.print(text, soft_wrap=True, highlight=False, markup=False)
