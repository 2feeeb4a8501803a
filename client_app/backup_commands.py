"""`hospital backup` and `hospital restore`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from client_app.site import SITE_VARIABLE, parse_site, read_site
from federation.command_line import passphrase

console = Console()

SiteOption = Annotated[
    Path, typer.Option("--site", envvar=SITE_VARIABLE, help="The hospital's own configuration.")
]
PassphraseOption = Annotated[
    Path | None,
    typer.Option("--passphrase-file", help="File whose first line it is; without it, it is asked."),
]
DEFAULT_SITE = Path("site.yaml")


def backup(
    out: Annotated[Path, typer.Argument(metavar="FILE", help="File to write; must not exist.")],
    site: SiteOption = DEFAULT_SITE,
    local: Annotated[
        bool,
        typer.Option("--local", help="Also what runs keep here: your layers, models, corrections."),
    ] = False,
    encrypted: Annotated[
        bool, typer.Option("--encrypted", help="Also models and keys of runs under ckks.")
    ] = False,
    passphrase_file: PassphraseOption = None,
) -> None:
    """Write what cannot be made anew into one encrypted file: keys, ledger, audit log. Services may run.

    Example: hospital backup north-2027-01-31.backup --passphrase-file backup.passphrase
    """
    from client_app.backup import back_up

    optional = (*(["local"] if local else []), *(["encrypted"] if encrypted else []))
    made = back_up(read_site(site), out, passphrase(passphrase_file, confirm=True), optional)
    _say(
        f"written: {out}, {len(made.manifest.files)} files, {_ledger(made.charges)}, "
        f"{made.entries} entries of the audit log. Without the passphrase it is worth nothing: keep "
        "that elsewhere"
    )


def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What hospital backup wrote.")],
    site: SiteOption = DEFAULT_SITE,
    passphrase_file: PassphraseOption = None,
) -> None:
    """Put a backup into the state folder, if nothing that is there is newer. End hospital start first.

    Example: hospital restore north-2027-01-31.backup --site site.yaml
    """
    from client_app.backup import restore as put_back

    content = parse_site(site)  # a restore that was broken off is gone on with
    held = put_back(content, file, passphrase(passphrase_file))
    _say(
        f"restored into {content.state} as of {held.manifest.made}: {_ledger(held.charges)}, "
        f"{held.entries} entries of the audit log. Index and cache are made anew, and of sums in "
        "secret fresh keys."
    )
    if held.charges is not None:
        _say(
            "If anything was charged after that backup, the coordinator knows of it, and private runs "
            "are refused here as ledger_unusable. Then look for a newer ledger; docs/hospital-it.md "
            "says what else can be done, under 'After an older backup'"
        )


def _ledger(charges: int | None) -> str:
    return "no ledger" if charges is None else f"a ledger of {charges} charges"


def _say(text: str) -> None:
    console.print(text, soft_wrap=True, highlight=False, markup=False)
