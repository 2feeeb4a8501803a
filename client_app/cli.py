"""`hospital …`: look before the first round whether all is well, then serve."""

from __future__ import annotations

import json
import os
import re
import sys
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
import yaml
from rich.console import Console

from client_app.audit.commands import app as audit_commands
from client_app.backup_commands import backup, restore
from client_app.budget.commands import app as ledger_commands
from client_app.encrypted_model import app as model_commands
from client_app.kit import read_kit
from client_app.link import LINK_VARIABLE
from client_app.membership import identity_app, join, roster_app
from client_app.site import SITE_VARIABLE, Site, read_site
from federation.command_line import options, runs_as
from federation.processes import FLOWER_ENVIRONMENT
from federation.schema import ConfigError

app = typer.Typer(**options("A hospital of a federation."))
app.add_typer(audit_commands, name="audit")
app.add_typer(ledger_commands, name="ledger")
app.add_typer(identity_app, name="identity")
app.add_typer(model_commands, name="model")
app.add_typer(roster_app, name="roster")
app.command()(backup)
app.command()(restore)
console = Console()

SiteOption = Annotated[
    Path, typer.Option("--site", envvar=SITE_VARIABLE, help="The hospital's own configuration.")
]
OptionalSite = Annotated[
    Path | None,
    typer.Option("--site", envvar=SITE_VARIABLE, help="The hospital's own configuration."),
]
DEFAULT_SITE = Path("site.yaml")


class Side(StrEnum):
    """Of a hospital's two processes, one."""

    SUPERNODE = "supernode"
    SUPEREXEC = "superexec"


app.command()(join)


@app.command()
def check(
    task: Annotated[
        str | None,
        typer.Option(help="A task: counts the patients and images that it would use."),
    ] = None,
    held_out: Annotated[float, typer.Option(help="Share of patients not trained on.")] = 0.25,
    part: Annotated[
        list[str] | None,
        typer.Option(
            envvar="CONSILIUM_CHECK_PARTS",
            help="Only what can be seen from here: site, connection, device, state, data (repeatable).",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, for monitoring.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit 1 for warnings too.")] = False,
    site: SiteOption = DEFAULT_SITE,
) -> None:
    """Say what is missing before the first round, and what to do about it.

    Exits 0 when a round can be served, also with warnings (!) or where something cannot be seen from
    here (–), and 1 when something has to be mended (✗).

    Example: hospital check --site site.yaml --task chest_xray
    """
    from client_app.checks import PARTS, run_checks
    from client_app.checks.finding import Finding, Level, show

    screen = Console(stderr=True) if as_json else console
    try:
        content = read_site(site)
    except ConfigError as error:
        if not as_json:
            raise
        found = [Finding("configuration", "site", "configuration", Level.PROBLEM, str(error))]
        show(found[0], screen)
    else:
        found = run_checks(content, task, held_out, screen, part or PARTS)
    bad = {Level.PROBLEM, Level.WARNING} if strict else {Level.PROBLEM}
    good = not any(finding.level in bad for finding in found)
    if as_json:
        typer.echo(json.dumps({"ok": good, "checks": [asdict(one) for one in found]}, indent=1))
        raise typer.Exit(0 if good else 1)
    if not good:
        raise ConfigError("not ready; mend the lines marked ✗" + (" and !" if strict else ""))


@app.command()
def start(
    only: Annotated[
        Side | None,
        typer.Option(help="One of the two processes alone, as in containers.", show_default=False),
    ] = None,
    link: Annotated[
        Path, typer.Option(envvar=LINK_VARIABLE, help="With --only: folder that both share.")
    ] = Path("link"),
    node_key: Annotated[
        Path | None,
        typer.Option(
            envvar="CONSILIUM_NODE_KEY",
            help="With --only supernode: its key; else the state folder's.",
            show_default=False,
        ),
    ] = None,
    site: SiteOption = DEFAULT_SITE,
) -> None:
    """Connect to the coordinator and serve its requests, in the foreground. Only dials out.

    With --only supernode what dials out runs alone, and needs neither images nor the state folder; with
    --only superexec what reads images, which needs no way out.

    Example: hospital start --site site.yaml
    """
    from client_app import identity
    from client_app.services import serve, serve_superexec, serve_supernode

    content = read_site(site)
    kit = read_kit(content)
    if only is Side.SUPERNODE:
        console.print(f"{kit.hospital} dials {kit.superlink} for {kit.federation}")
        serve_supernode(kit, node_key or identity.folder_of(content.state) / "node.key", link)
        return
    identity.settle(content, kit.pin())
    own = identity.load(content)
    console.print(
        f"{kit.hospital} serves {kit.federation} at {kit.superlink}, roster version "
        f"{own.roster.version}; Ctrl-C ends"
    )
    if only is Side.SUPEREXEC:
        serve_superexec(content, site, link)
    else:
        serve(content, site, kit, own)


@app.command()
def index(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="DIR",
            show_default=False,
            help="Folders to look at; without any, the site's data.",
        ),
    ] = None,
    site: OptionalSite = None,
    state: Annotated[
        Path, typer.Option(help="With folders and no site: where key and index lie.")
    ] = Path("state"),
    report: Annotated[
        Path | None,
        typer.Option(help="HTML overview with thumbnails, for this hospital's eyes only."),
    ] = None,
    thumbnails: Annotated[
        int, typer.Option(min=0, max=1000, help="Most images that the overview shows.")
    ] = 60,
    rejected: Annotated[
        Path | None, typer.Option(help="CSV with a row for each file that was set aside.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print counts as JSON, without any path.")
    ] = False,
) -> None:
    """Bring the index of the images up to date; say what there is, what was set aside, and why.

    Example: hospital index /mnt/archive --state state --report overview.html
    """
    from client_app.imaging.pseudonym import open_key
    from client_app.overview import roots, screen

    if folders:
        state = read_site(site).state if site is not None else state
        looked_at = roots.of_folders(folders, state)
    else:
        content = read_site(site or DEFAULT_SITE)
        looked_at, state = roots.of_site(content), content.state
    found = roots.look(
        looked_at,
        open_key(state),
        report=report,
        rejected=rejected,
        thumbnails=thumbnails,
        console=Console(stderr=True),
    )
    if as_json:
        typer.echo(json.dumps(found.as_json(), indent=1))
        return
    screen.show(found, console)
    for written in (report, rejected):
        if written is not None:
            console.print(f"written: {written}", highlight=False, markup=False, soft_wrap=True)


@app.command()
def predict(
    run: Annotated[
        Path, typer.Argument(help="Folder of a run: experiment.json and model.safetensors.")
    ],
    series: Annotated[
        list[str],
        typer.Argument(
            metavar="SERIES",
            help="Folders or files (DICOM, NIfTI), or SeriesInstanceUIDs that the site's index knows.",
        ),
    ],
    site: OptionalSite = None,
    out: Annotated[Path, typer.Option(help="Folder for the answers.")] = Path("predictions"),
    force: Annotated[bool, typer.Option("--force", help="Replace predictions in --out.")] = False,
    device: Annotated[
        str | None, typer.Option(help="auto, cpu, cuda or cuda:N; by default the site's, or auto.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="global, or personal: this hospital's own; by default the site's, or global."
        ),
    ] = None,
) -> None:
    """What a trained model says of images here. For research; not a medical device.

    With --model personal it is this hospital's own, or the global one with the layers that stayed here.

    Segmentations come as DICOM SEG and RTSTRUCT that refer to their series, or as NIfTI masks;
    classifications as CSV and JSON.

    Example: hospital predict runs/monday /mnt/archive/series-7 --out predictions
    """
    from client_app.prediction import screen

    content = read_site(site) if site is not None else None
    named = device or (content.device if content is not None else "auto")
    screen.run(
        run,
        series,
        site=content,
        out=out,
        force=force,
        device=named,
        console=console,
        state=_state_of_own_model(model, content),
    )


@app.command()
def phantom(
    task: Annotated[str, typer.Option(help="Which task's images to make.")],
    patients: Annotated[int, typer.Option(min=1, help="How many patients to make.")],
    out: Annotated[Path, typer.Option(help="Folder to fill; must not exist, or be empty.")],
    imitated: Annotated[
        str,
        typer.Option(
            "--site",
            help="Which hospital's scanner, habits and patients to imitate: A, B, … or 0, 1, …",
        ),
    ] = "A",
    layout: Annotated[
        str | None, typer.Option(help="dicom or nifti, for tasks that have both.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same seed makes the same images.")] = 0,
) -> None:
    """Make phantom images to rehearse with before real ones are mounted.

    Example: hospital phantom --task tumour_segmentation --patients 20 --site B --out phantoms
    """
    from client_app.imaging import phantoms

    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"{out} is not empty; choose another --out")
    data = phantoms.write(
        task, out.resolve(), patients=patients, site=_number(imitated), seed=seed, layout=layout
    )
    section = out / "site-data.yaml"
    section.write_text(
        "# Where these phantoms lie, as a site's configuration says it.\n"
        + yaml.safe_dump({"data": data.model_dump(mode="json", exclude_defaults=True)})
    )
    console.print(
        f"{patients} phantom patients for {task} in {out}; for site.yaml: {section}",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )


def _state_of_own_model(model: str | None, site: Site | None) -> Path | None:
    """The folder where this hospital's own model is; None: the global one is meant."""
    if model not in (None, "global", "personal"):
        raise ConfigError("--model is global or personal")
    if (model or (site.predict.model if site is not None else "global")) == "global":
        return None
    if site is None:
        raise ConfigError("--model personal needs --site, in whose state folder the model is")
    return site.state


def _number(imitated: str) -> int:
    if re.fullmatch(r"[A-Za-z]", imitated):
        return ord(imitated.upper()) - ord("A")
    if re.fullmatch(r"\d{1,4}", imitated):
        return int(imitated)
    raise ConfigError(f"--site {imitated}: write a letter A to Z or a number from 0")


def main() -> None:
    """The `hospital` command."""
    os.environ.update(FLOWER_ENVIRONMENT)
    sys.exit(runs_as("hospital", app))
