"""`hospital check`: each thing that a round will need, looked at before the first one."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from rich.console import Console

from client_app.checks import connection, machine, membership, patients, records
from client_app.checks.finding import PARTS as PARTS
from client_app.checks.finding import Check, Finding, Level, look
from client_app.checks.finding import show as show
from client_app.kit import read_kit
from client_app.site import Site
from federation.schema import ConfigError


def checks_of(site: Site, task: str | None, held_out: float, console: Console) -> list[Check]:
    """All of them, in the order in which one can be understood after the other.

    Args:
        console: where tables of patients go, and progress.
    """
    line = connection.Line(lambda: read_kit(site))
    listed = [
        Check("configuration", "site", "configuration and policy", partial(machine.policy, site)),
        Check("telemetry", "site", "telemetry off", machine.telemetry),
        Check("kit", "connection", "kit", partial(membership.kit, site)),
        Check("roster", "connection", "roster", partial(membership.roster, site), ("kit",)),
        Check("keys", "connection", "own keys", partial(membership.keys, site), ("roster",)),
        Check(
            "authority", "connection", "authority", partial(membership.authority, site), ("kit",)
        ),
        Check("proxy", "connection", "proxy", line.proxy, ("kit",)),
        Check("dns", "connection", "name resolution", line.dns, ("kit",)),
        Check("port", "connection", "way out", line.port, ("dns",)),
        Check(
            "certificate", "connection", "coordinator's certificate", line.certificate, ("port",)
        ),
        Check("clock", "connection", "clock", line.clock, ("certificate",)),
        Check(
            "registered",
            "connection",
            "let in by the coordinator",
            partial(line.registered, site),
            ("keys", "clock"),
        ),
        Check("device", "device", "device", partial(machine.device, site)),
        Check("state", "state", "state folder", partial(machine.state, site)),
        Check("disk", "state", "disk", partial(machine.disk, site), ("state",)),
        Check("audit", "state", "audit log", partial(records.audit, site), ("state",)),
        Check("ledger", "state", "privacy budget", partial(records.ledger, site), ("state",)),
        Check("images", "data", "image folder", partial(machine.images, site)),
        Check(
            "read_only", "data", "images read-only", partial(machine.read_only, site), ("images",)
        ),
    ]
    if task is not None:
        count = partial(patients.patients, site, task, held_out, console)
        listed.append(Check("patients", "data", f"patients for {task}", count, ("images",)))
    listed.append(Check("index", "data", "index", partial(machine.index, site), ("images",)))
    return listed


def run_checks(
    site: Site,
    task: str | None,
    held_out: float,
    console: Console,
    parts: Iterable[str] = PARTS,
) -> list[Finding]:
    """Look at each thing, and print a line as it is found.

    Args:
        parts: what can be seen from here; the others are said not to have been looked at.

    Raises:
        ConfigError: an unknown part.
    """
    wanted = set(parts)
    if unknown := wanted - set(PARTS):
        raise ConfigError(f"--part {unknown.pop()}: known are {', '.join(PARTS)}")
    found: dict[str, Finding] = {}
    for check in checks_of(site, task, held_out, console):
        if check.part in wanted:
            finding = look(check, found)
        else:
            text = f"not looked at: {check.part} is no --part of this call"
            finding = Finding(check.id, check.part, check.title, Level.UNSEEN, text)
        found[check.id] = finding
        show(finding, console)
    return list(found.values())
