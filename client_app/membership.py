"""`hospital join`, `identity …` and `roster …`: this hospital's keys, and whose else it believes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from client_app.site import SITE_VARIABLE, Site, read_site
from federation.command_line import options
from federation.schema import ConfigError

if TYPE_CHECKING:
    from client_app.kit import Offered
    from federation.roster import Member

identity_app = typer.Typer(
    **options("This hospital's own keys. They are made here and never leave; see docs/security.md.")
)
roster_app = typer.Typer(
    **options("The hospitals of the federation, and their keys, as this hospital accepted them.")
)
console = Console()

SiteOption = Annotated[
    Path, typer.Option("--site", envvar=SITE_VARIABLE, help="The hospital's own configuration.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="As JSON.")]
OutOption = Annotated[
    Path | None,
    typer.Option(help="Folder for the public half; without it, it stays in the state folder."),
]
DEFAULT_SITE = Path("site.yaml")


def join(
    kit: Annotated[
        Path | None,
        typer.Argument(
            metavar="[KIT]", help="The kit's folder; the site's without it.", show_default=False
        ),
    ] = None,
    site: Annotated[
        Path | None,
        typer.Option("--site", envvar=SITE_VARIABLE, help="The hospital's own configuration."),
    ] = None,
    state: Annotated[
        Path | None,
        typer.Option(help="The state folder, where there is no site configuration yet."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for NAME.identity.json.")] = Path(),
    as_json: JsonOption = False,
) -> None:
    """Check the coordinator's kit, make this hospital's keys, and say what to read out by telephone.

    The private keys stay in the state folder. NAME.identity.json is their public half, for the
    coordinator. Once more it makes nothing and shows the same.

    Example: hospital join kit --site site.yaml
    """
    from client_app import identity
    from client_app.kit import open_kit, read_kit

    if state is None:
        content = read_site(site or DEFAULT_SITE)
        content = content if kit is None else content.model_copy(update={"kit": kit})
        found = read_kit(content)
    elif kit is None:
        raise ConfigError("--state needs the kit's folder: hospital join KIT --state DIR")
    else:
        found = open_kit(kit, state)
    fingerprint = found.fingerprint()
    found.shipped()  # or a kit that is damaged is noticed after keys were made for it
    if not identity.folder_of(found.state).exists():
        member = identity.create(found.state, found.hospital)
        _record(found.state, "identity", what="created", identity_key=member.identity_key)
    _show_halves(found.state, found.hospital, out, as_json, fingerprint)
    if not as_json:
        _print(
            "compare the kit's fingerprint with the one that the coordinator reads to you. When it has "
            "admitted this hospital it sends roster.json: hospital roster accept roster.json"
        )


@identity_app.command()
def create(
    site: SiteOption = DEFAULT_SITE, out: OutOption = None, as_json: JsonOption = False
) -> None:
    """Make this hospital's keys, once; their public half is for the coordinator. Needs no kit.

    Example: hospital identity create --site site.yaml --out .
    """
    from client_app import identity

    content = read_site(site)
    member = identity.create(content.state, content.hospital)
    _record(content.state, "identity", what="created", identity_key=member.identity_key)
    _show_halves(content.state, content.hospital, out, as_json)


@identity_app.command("show")
def show_identity(
    site: SiteOption = DEFAULT_SITE, out: OutOption = None, as_json: JsonOption = False
) -> None:
    """Where the public half lies, and the fingerprint to read out to the coordinator.

    Example: hospital identity show --out .
    """
    content = read_site(site)
    _show_halves(content.state, content.hospital, out, as_json)


@identity_app.command("rotate")
def rotate_identity(
    site: SiteOption = DEFAULT_SITE, out: OutOption = None, as_json: JsonOption = False
) -> None:
    """Make new keys beside the old ones, which stay in force until an accepted roster names the new.

    Example: hospital identity rotate --out .
    """
    from client_app import identity

    content = read_site(site)
    member = identity.rotate(content)
    _record(content.state, "identity", what="rotated", identity_key=member.identity_key)
    _show_halves(content.state, content.hospital, out, as_json)


@roster_app.command("show")
def show_roster(site: SiteOption = DEFAULT_SITE, as_json: JsonOption = False) -> None:
    """Who is on the roster that is in force here, with fingerprints.

    Example: hospital roster show --site site.yaml
    """
    from client_app.kit import read_kit

    kit = read_kit(read_site(site))
    roster = kit.roster()
    if as_json:
        shown = {
            "federation": roster.federation,
            "version": roster.version,
            "sha256": roster.sha256(),
            "pinned": kit.pinned.exists(),
            "hospitals": {m.name: m.fingerprint() for m in roster.members},
        }
        typer.echo(json.dumps(shown, indent=1))
        return
    source = "pinned" if kit.pinned.exists() else "the kit's, pinned by hospital check or start"
    shipped = kit.shipped()
    _print(
        f"federation {roster.federation}, version {roster.version} ({source})\n"
        f"SHA-256 {roster.sha256()}"
    )
    for name in roster.names():
        if (member := roster.member(name)) is not None:
            _print(_line(name, member))
    if shipped is not None and shipped.version > roster.version:
        _print(
            f"the kit has a newer one: hospital roster accept {kit.path / 'roster.json'} --site {site}"
        )


@roster_app.command()
def accept(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The roster that came.")],
    site: SiteOption = DEFAULT_SITE,
    yes: Annotated[
        bool, typer.Option("--yes", help="Do not ask; for scripts of who has compared already.")
    ] = False,
) -> None:
    """Take the first roster or a newer one, after looking at who was added, removed, or has other keys.

    Nobody gets in without this: a coordinator that could add hospitals of its own, or change a key,
    would know all updates of a secure sum but one, and read that one as the remainder. Compare each
    fingerprint by telephone with the hospital that it is of, not with the coordinator.

    Example: hospital roster accept roster.json --site site.yaml
    """
    from client_app import identity
    from client_app.kit import read_kit

    content = read_site(site)
    kit = read_kit(content)
    offered = kit.offered(file)
    own = offered.new.member(content.hospital)
    if own is not None and not identity.holds(content.state, own):
        raise ConfigError(
            f"{file} names keys for {content.hospital} that are not here: whoever holds them would "
            "pass for this hospital. Do not accept it; ask the coordinator what was done"
        )
    _show_offer(offered, content)
    if not yes and not _confirmed():
        stays = f"version {offered.old.version}" if offered.old.version else "none"
        raise ConfigError(f"not accepted; {stays} stays in force")
    changes = offered.changes
    _record(
        content.state,
        "roster",
        version=offered.new.version,
        roster=offered.new.sha256(),
        previous=offered.old.sha256(),
        added=[member.name for member in changes.added],
        removed=[member.name for member in changes.removed],
        keys=[member.name for _, member in changes.keys],
    )
    kit.put(offered.content)
    replaced = identity.settle(content, offered.new)
    _print(f"version {offered.new.version} is in force")
    if replaced:
        _print("the new keys are in force and the old ones deleted; restart hospital start")


def _show_halves(
    state: Path, hospital: str, out: Path | None, as_json: bool, kit: str | None = None
) -> None:
    """What lies in the identity folder, and a copy of its newest public half in `out`.

    Args:
        kit: the kit's fingerprint, where it is to be compared too.
    """
    from client_app import identity
    from client_app.private_file import write_private

    halves = identity.public_halves(state, hospital)
    path, newest = halves[-1]
    if out is not None:
        content, path = path.read_bytes(), out / path.name
        write_private(path, content)
    if as_json:
        shown = {
            "hospital": hospital,
            "file": str(path),
            "fingerprint": newest.fingerprint(),
            "waiting": len(halves) > 1,
            **({} if kit is None else {"kit": kit}),
        }
        typer.echo(json.dumps(shown, indent=1))
        return
    for member in (member for _, member in halves):
        kind = "new keys, waiting for a roster" if member is not halves[0][1] else "keys"
        _print(f"{kind}\n{_line(hospital, member)}")
    if kit is not None:
        _print(f"the kit, and with it the coordinator\n    {kit}")
    _print(
        f"send {path} to the coordinator (nothing in it is secret), and read the fingerprint out over "
        "the telephone when asked"
    )


def _show_offer(offered: Offered, site: Site) -> None:
    from federation.public_identity import succeeds

    old, new, changes = offered.old, offered.new, offered.changes
    if not old.version:
        _print(
            f"federation {new.federation}: the first roster here, version {new.version}, SHA-256 "
            f"{new.sha256()}"
        )
    else:
        _print(
            f"federation {new.federation}: version {old.version} → {new.version}, SHA-256 {new.sha256()}"
        )
    if old.version and (skipped := list(offered.skipped)):
        which = f"version {skipped[0]} was"
        if len(skipped) > 1:
            which = f"versions {skipped[0]} to {skipped[-1]} were"
        _print(
            f"  {which} never seen here: that this one follows from version {old.version} is the "
            "coordinator's word alone. What is below is all that differs"
        )
    for member in changes.added:
        here = (
            "  (this hospital, with the keys that are here)" if member.name == site.hospital else ""
        )
        _print(f"  ADDED    {_line(member.name, member)}{here}")
    for member in changes.removed:
        here = (
            "  (this hospital: it can take no further part)" if member.name == site.hospital else ""
        )
        _print(f"  REMOVED  {member.name}{here}")
    for before, after in changes.keys:
        signed = (
            "signed by the key known here"
            if succeeds(after, before)
            else "NOT signed by the key known here, which is said to be lost"
        )
        _print(
            f"  NEW KEYS {_line(after.name, after)}\n    {signed}; was\n    {before.fingerprint()}"
        )
    if not (changes.added or changes.removed or changes.keys):
        _print("  the same hospitals with the same keys")


def _confirmed() -> bool:
    if not sys.stdin.isatty():
        raise ConfigError(
            "nobody is there to confirm; compare the fingerprints by telephone, then add --yes"
        )
    return typer.confirm(
        "Have you compared each fingerprint above with the hospital that it is of?", default=False
    )


def _record(state: Path, event: str, /, **fields: object) -> None:
    from client_app.audit import Audit, AuditError

    try:
        Audit(state / "audit.jsonl").append(event, **fields)
    except AuditError as error:
        raise ConfigError(str(error)) from None


def _line(name: str, member: Member) -> str:
    return f"{name}\n    {member.fingerprint()}"


def _print(text: str) -> None:
    console.print(text, soft_wrap=True, highlight=False, markup=False)
