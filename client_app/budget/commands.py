"""`hospital ledger …`: make the ledger, look at it, check it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from click.core import ParameterSource
from rich.console import Console

from client_app.site import SITE_VARIABLE, Privacy, Site, read_site
from federation.command_line import options
from federation.schema import ConfigError

if TYPE_CHECKING:
    from client_app.ledger import Ledger

app = typer.Typer(
    **options("The privacy budget of this hospital's patients: what was spent, and what is left.")
    | {"no_args_is_help": False}
)
console = Console()

SiteOption = Annotated[
    Path, typer.Option("--site", envvar=SITE_VARIABLE, help="The hospital's own configuration.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="All figures as JSON.")]
DEFAULT_SITE = Path("site.yaml")


@app.callback(invoke_without_command=True)
def ledger(
    context: typer.Context, site: SiteOption = DEFAULT_SITE, as_json: JsonOption = False
) -> None:
    """The privacy budget of this hospital's patients. Without a command: show it."""
    if context.invoked_subcommand is None:
        show(site, as_json)
    elif any(
        context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        for name in ("site", "as_json")
    ):
        raise typer.BadParameter(f"write options after `{context.invoked_subcommand}`")


@app.command()
def create(site: SiteOption = DEFAULT_SITE) -> None:
    """Make the ledger, once, before the first private run.

    Example: hospital ledger create --site site.yaml
    """
    from client_app.ledger import Ledger, budget_of, file_of

    content = read_site(site)
    promise = _promise(content, site)
    file, cohort = file_of(content, promise), _cohort(content)
    Ledger.create(file, cohort)
    budget = budget_of(content, promise)
    console.print(
        f"made {file} for about {promise.patients:,} patients: over all private runs, for all time, "
        f"ε stays at or below {budget.epsilon:g} at δ = {budget.delta:g}.\n"
        f"Back up {file.name}, {file.with_suffix('.head').name} and pseudonym.key together, and "
        "after each run: an older copy is refused.",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )


@app.command("show")
def show_command(site: SiteOption = DEFAULT_SITE, as_json: JsonOption = False) -> None:
    """What was spent, by which run, and how many rounds of the present experiment remain.

    Example: hospital ledger show --site site.yaml
    """
    show(site, as_json)


@app.command()
def verify(site: SiteOption = DEFAULT_SITE) -> None:
    """Check that no charge was altered, removed or forgotten. Exits 1 when one was.

    Example: hospital ledger verify --site site.yaml
    """
    content = read_site(site)
    with _open(content, _promise(content, site)) as opened:
        charges, head = opened.verify()
    console.print(
        f"{charges:,} charges, unbroken; head {head}", soft_wrap=True, highlight=False, markup=False
    )


def show(site: Path, as_json: bool) -> None:
    from client_app.budget import screen
    from client_app.budget.figures import figures
    from client_app.ledger import budget_of

    content = read_site(site)
    promise = _promise(content, site)
    composing = Console(stderr=True).status("composing the charges")
    with composing, _open(content, promise) as opened:
        found = figures(opened, content.hospital, promise, budget_of(content, promise))
    if as_json:
        typer.echo(json.dumps(found.as_json(), indent=1))
    else:
        screen.show(found, console)


def _promise(site: Site, path: Path) -> Privacy:
    if site.privacy is None:
        raise ConfigError(
            f"{path.name} has no `privacy:`, so no private run is served and none is charged; to "
            "serve them, write `privacy:` with `patients:` (about how many train here) and "
            "`epsilon:` into it, then `hospital ledger create`"
        )
    return site.privacy


def _cohort(site: Site) -> str:
    from client_app.imaging.pseudonym import open_key
    from client_app.ledger import cohort_id

    return cohort_id(open_key(site.state), site.hospital)


@contextlib.contextmanager
def _open(site: Site, promise: Privacy) -> Iterator[Ledger]:
    """Raises ConfigError: the ledger cannot be used, with the way out."""
    from client_app.ledger import Ledger, LedgerError, file_of

    file, key = file_of(site, promise), site.state / "pseudonym.key"
    if file.exists() and not key.exists():  # looking makes no new one
        raise ConfigError(
            f"{key} is gone, and the ledger was made with it: restore it from a backup"
        )
    try:
        with Ledger.open(file, _cohort(site) if file.exists() else "") as opened:
            yield opened
    except LedgerError as error:
        raise ConfigError(str(error)) from None
