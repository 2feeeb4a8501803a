"""`coordinator backup` and `coordinator restore`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from federation.command_line import passphrase
from server_app.home import HOME_VARIABLE, Home

console = Console()

HomeOption = Annotated[
    Path,
    typer.Option(
        "--home", envvar=HOME_VARIABLE, help="The coordinator's folder.", show_default=True
    ),
]
PassphraseOption = Annotated[
    Path | None,
    typer.Option("--passphrase-file", help="File whose first line it is; without it, it is asked."),
]
DEFAULT_HOME = Path("coordinator")


def backup(
    out: Annotated[Path, typer.Argument(metavar="FILE", help="File to write; must not exist.")],
    home: HomeOption = DEFAULT_HOME,
    database: Annotated[
        bool, typer.Option("--database", help="Also Flower's database; it may be large.")
    ] = False,
    passphrase_file: PassphraseOption = None,
) -> None:
    """Write keys, rosters, lodgings and runs into one encrypted file. Services and runs may go on.

    Example: coordinator backup 2027-01-31.backup --passphrase-file backup.passphrase
    """
    from server_app.backup import back_up

    words = passphrase(passphrase_file, confirm=True)
    made = back_up(Home(home), out, words, database=database)
    _say(
        f"written: {out}, {len(made.manifest.files)} files, {made.runs} runs, roster version "
        f"{made.roster}. Without the passphrase it is worth nothing: keep that elsewhere"
    )


def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What coordinator backup wrote.")],
    home: HomeOption = DEFAULT_HOME,
    passphrase_file: PassphraseOption = None,
) -> None:
    """Put a backup into an empty folder.

    Example: coordinator restore 2027-01-31.backup --home coordinator
    """
    from server_app.backup import restore as put_back

    held = put_back(Home(home), file, passphrase(passphrase_file))
    _say(
        f"restored into {home} as of {held.manifest.made}: {held.runs} runs, roster version "
        f"{held.roster}. Start again what ran then: hospitals do not answer twice for a private round "
        "that they served after the backup (replayed). Hospitals that accepted a newer roster keep it: "
        "make the same changes again before the next run with secure aggregation"
    )


def _say(text: str) -> None:
    console.print(text, soft_wrap=True, highlight=False, markup=False)
