"""`coordinator hospitals, invite, admit, suspend, reinstate, remove, rotate`: who is in."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from federation.roster import Member
from federation.schema import ConfigError
from server_app.home import HOME_VARIABLE, Home

if TYPE_CHECKING:
    from server_app.membership import Changed

console = Console()

HomeOption = Annotated[
    Path, typer.Option("--home", envvar=HOME_VARIABLE, help="The coordinator's folder.")
]
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The hospital.")]
FingerprintOption = Annotated[
    list[str] | None,
    typer.Option(
        "--fingerprint",
        help="What the hospital read out over the telephone, one for each FILE; then nobody is asked.",
        show_default=False,
    ),
]
DEFAULT_HOME = Path("coordinator")


def hospitals(
    home: HomeOption = DEFAULT_HOME,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Who is on the roster, with fingerprints; who is suspended, and who is invited.

    Example: coordinator hospitals
    """
    from server_app.membership import fingerprint_of_kits

    place = Home(home)
    roster, suspended = place.newest_roster(), place.suspensions.all()
    kits, invited = fingerprint_of_kits(place), place.invited()
    if as_json:
        shown = {
            "federation": place.federation().name,
            "kits": kits,
            "version": 0 if roster is None else roster.version,
            "sha256": None if roster is None else roster.sha256(),
            "hospitals": {
                m.name: {"fingerprint": m.fingerprint(), "suspended": m.name in suspended}
                for m in place.members()
            },
            "invited": invited,
        }
        typer.echo(json.dumps(shown, indent=1))
        return
    _print(f"federation {place.federation().name}; every kit has the fingerprint\n    {kits}")
    if roster is not None:
        _print(f"roster version {roster.version}, SHA-256 {roster.sha256()}")
        _show_members(roster.members)
    for name, told in suspended.items():
        _print(
            f"suspended since {told.since}: {name}" + (f" ({told.reason})" if told.reason else "")
        )
    for name in invited:
        _print(f"invited: {name}; its kit: {place.kit(name)}")


def invite(name: NameArgument, home: HomeOption = DEFAULT_HOME) -> None:
    """Make the kit of one more hospital that is to join. Nothing in it is secret.

    Example: coordinator invite west
    """
    from server_app import membership

    kit = membership.invite(Home(home), name)
    _print(f"its kit: {kit}")
    show_next_steps(Home(home))


def admit(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE…", help="NAME.identity.json, which the hospital sent."),
    ],
    fingerprint: FingerprintOption = None,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Take hospitals in, after comparing fingerprints. A running SuperLink lets them in at once.

    The fingerprint says that the file is what the hospital made: somebody between could have put keys
    of his own in their place. So telephone, have it read out there, and compare.

    Example: coordinator admit north.identity.json east.identity.json
    """
    from server_app import membership

    place = Home(home)
    place.federation()
    read = [membership.read_identity(file).member for file in files]
    told = fingerprint or _confirmed(read)
    _show_change(place, membership.admit(place, *files, fingerprints=told))


def suspend(
    name: NameArgument,
    reason: Annotated[str, typer.Option(help="Why, for yourself; shown by status.")] = "",
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Have runs not ask a hospital from their next round on. It stays on the roster, and connected.

    Example: coordinator suspend west --reason "scanner replaced"
    """
    from server_app import membership

    membership.suspend(Home(home), name, reason)
    _print(
        f"{name} is suspended: no run asks it from its next round on. Back: coordinator reinstate {name}"
    )


def reinstate(name: NameArgument, home: HomeOption = DEFAULT_HOME) -> None:
    """Have runs ask a suspended hospital again, from their next round on.

    Example: coordinator reinstate west
    """
    from server_app import membership

    membership.reinstate(Home(home), name)
    _print(f"{name} is asked again, by runs under way from their next round on")


def remove(name: NameArgument, home: HomeOption = DEFAULT_HOME) -> None:
    """Put a hospital out for good. Its keys can never be used again; for a while: suspend.

    Example: coordinator remove west
    """
    from server_app import membership

    changed = membership.remove(Home(home), name)
    if changed is None:
        _print(f"{name} is no longer invited, and its kit is gone")
        return
    _show_change(Home(home), changed)


def rotate(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="NAME.identity.json, which the hospital sent.")
    ],
    lost: Annotated[
        bool,
        typer.Option(
            "--lost",
            help="The old keys are gone and do not sign for the new ones: compare the fingerprint.",
        ),
    ] = False,
    fingerprint: FingerprintOption = None,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Put a hospital's new keys in the old ones' place.

    Example: coordinator rotate west.identity.json
    """
    from server_app import membership

    place = Home(home)
    told = fingerprint or []
    if lost and not told:
        place.federation()
        told = _confirmed([membership.read_identity(file).member])
    _show_change(place, membership.rotate(place, file, lost=lost, fingerprints=told))


def show_next_steps(home: Home) -> None:
    """What comes between kits that were made and hospitals that are in."""
    from server_app.membership import fingerprint_of_kits

    _print(
        "every kit has the fingerprint\n"
        f"    {fingerprint_of_kits(home)}\n"
        "Send each hospital its kit. There: hospital join KIT, which makes its keys and "
        "NAME.identity.json. It sends you that file and telephones: compare both fingerprints, then "
        "coordinator admit FILE."
    )


def show_first_roster(home: Home) -> None:
    """The hospitals of a roster that was made from public halves, and what is to be compared."""
    _show_members(home.members())
    _print(
        "have each hospital read its fingerprint to you over the telephone, and compare, before it "
        f"gets its kit from {home.kits} (nothing in a kit is secret)"
    )


def _confirmed(members: Sequence[Member]) -> list[str]:
    """The fingerprints, after somebody said that they are those that the hospitals read out."""
    _show_members(members)
    if not sys.stdin.isatty():
        raise ConfigError(
            "nobody is there to confirm; have each hospital read its fingerprint to you over the "
            "telephone, and give what you heard with --fingerprint"
        )
    question = "Has each of these hospitals read this fingerprint to you over the telephone?"
    if not typer.confirm(question, default=False):
        raise ConfigError("not admitted; nothing was changed")
    return [member.fingerprint() for member in members]


def _show_members(members: Sequence[Member]) -> None:
    for member in members:
        _print(f"{member.name}\n    {member.fingerprint()}")


def _show_change(home: Home, changed: Changed) -> None:
    _print(f"the roster has version {changed.roster.version}")
    _show_members(changed.roster.members)
    known = "knows it now" if changed.registered else "is told at the next coordinator start"
    _print(
        f"the SuperLink {known}.\n"
        f"Send {home.roster_file} to every hospital; each compares and takes it with: hospital roster "
        f"accept roster.json. A hospital's kit is below {home.kits}. A run that is under way keeps its "
        "roster: start it anew."
    )


def _print(text: str) -> None:
    console.print(text, soft_wrap=True, highlight=False, markup=False)
