"""`hospital audit …`: read the log, check it, hand it to somebody else."""

from __future__ import annotations

import json
import re
from collections import deque
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from client_app.audit.entry import Entry, Value
from client_app.audit.log import Audit, AuditError
from client_app.private_file import printable, write_private
from client_app.site import SITE_VARIABLE, read_site
from federation.command_line import options
from federation.schema import ConfigError

app = typer.Typer(**options("What was asked of this hospital, answered, refused and charged."))
console = Console()

SiteOption = Annotated[
    Path, typer.Option("--site", envvar=SITE_VARIABLE, help="The hospital's own configuration.")
]
_SITE = Path("site.yaml")
_NAME = "audit.jsonl"
_SHOWN = 4  # items of a list in the table
_HOW_TO_CHECK = (
    "Each entry follows the one before it: its `previous` is the other's `hash` (64 zeros for the "
    "first). `hash` is SHA-256 of the 32 bytes of `previous` and then the JSON of event, fields, "
    "sequence and time, with sorted keys, no spaces and only ASCII. `sequence` counts from 1; times "
    "are UTC."
)


@app.command()
def show(
    site: SiteOption = _SITE,
    last: Annotated[int, typer.Option(min=0, help="How many, the newest; 0: all.")] = 50,
    as_json: Annotated[bool, typer.Option("--json", help="Print the entries as JSON.")] = False,
) -> None:
    """Print the newest entries, oldest of them first. Exits 1 when the log is not as it was written.

    Example: hospital audit show --last 20
    """
    entries, fault = _read(_audit(site), last or None)
    if as_json:
        typer.echo(json.dumps([asdict(entry) for entry in entries], indent=1))
    elif entries:
        console.print(_table(entries))
    elif fault is None:
        console.print("nothing has been asked of this hospital yet")
    if fault is not None:
        raise ConfigError(f"{fault} (entries before it are shown)")


@app.command()
def verify(
    site: SiteOption = _SITE,
    head: Annotated[
        str | None,
        typer.Option(help="A head that was noted earlier; says whether it is still in the log."),
    ] = None,
) -> None:
    """Check every line of the log. Exits 1 when one was altered, dropped, moved or put in.

    Example: hospital audit verify
    """
    first: Entry | None = None
    entry: Entry | None = None
    holds: int | None = None
    try:
        for entry in _audit(site).entries():
            first = first or entry
            holds = entry.sequence if entry.hash == head else holds
    except AuditError as error:
        raise ConfigError(str(error)) from None
    if head is not None and holds is None:
        raise ConfigError(
            f"the log is whole in itself, but no entry has the head {printable(head)}: it is an older "
            "copy, or another log was put in its place"
        )
    if first is None or entry is None:
        console.print("0 entries: nothing has been asked of this hospital yet")
        return
    noted = "" if holds is None else f"; the head that was noted is that of entry {holds}"
    console.print(
        f"{entry.sequence} entries, from {first.time} to {entry.time}, head {entry.hash}{noted}",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )


@app.command()
def export(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="File to write; must not exist.")],
    site: SiteOption = _SITE,
) -> None:
    """Write the log to one JSON file with what its check found. Exits 1 when that is bad.

    Example: hospital audit export audit-2027.json
    """
    entries, fault = _read(_audit(site), None)
    content: dict[str, Any] = {
        "about": _HOW_TO_CHECK,
        "exported": datetime.now(UTC).isoformat(timespec="seconds"),
        "verified": fault is None,
        "fault": None if fault is None else str(fault),
        "head": entries[-1].hash if entries else None,
        "entries": [asdict(entry) for entry in entries],
    }
    write_private(out, json.dumps(content, indent=1).encode() + b"\n", replace=False)
    console.print(f"written: {out}", highlight=False, markup=False, soft_wrap=True)
    if fault is not None:
        raise ConfigError(f"{fault} (written are the entries before it)")


def _audit(site: Path) -> Audit:
    return Audit(read_site(site).state / _NAME)


def _read(audit: Audit, most: int | None) -> tuple[list[Entry], AuditError | None]:
    """The newest entries, and what is wrong with the log, if anything is."""
    entries: deque[Entry] = deque(maxlen=most)
    try:
        entries.extend(audit.entries())
    except AuditError as fault:
        return list(entries), fault
    return list(entries), None


def _table(entries: list[Entry]) -> Table:
    table = Table(box=SIMPLE)
    for heading in ("time (UTC)", "event", "run", "round"):
        table.add_column(heading, no_wrap=True)
    table.add_column("what", overflow="fold")
    for entry in entries:
        fields = dict(entry.fields)
        run, round_ = (_word(fields.pop(name, None)) for name in ("run", "round"))
        what = ", ".join(f"{name} {_word(value)}" for name, value in fields.items())
        row = (entry.time.removesuffix("+00:00").replace("T", " "), entry.event, run, round_, what)
        table.add_row(*(escape(printable(cell)) for cell in row))
    return table


def _word(value: Value) -> str:
    """A value for the table, shortened; `--json` and `export` have all of it."""
    if isinstance(value, dict):
        return "; ".join(f"{name} {_word(item)}" for name, item in value.items())
    if isinstance(value, list):
        more = [f"… {len(value)} in all"] if len(value) > _SHOWN else []
        return f"[{', '.join([_word(item) for item in value[:_SHOWN]] + more)}]"
    if isinstance(value, str):
        return f"{value[:12]}…" if re.fullmatch("[0-9a-f]{64}", value) else value
    if isinstance(value, float):
        return f"{value:.6g}"
    return "" if value is None else json.dumps(value)
