"""`coordinator status`: how the federation is, and what of it needs a person.

A program reads `as_json`, and cron the exit code: 0 where nothing is in `attention`. The words of
`Attention.id` stay as they are; the texts beside them may change.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from server_app.control import Control, Unreachable
from server_app.home import Home
from server_app.state import RunFolder

WARN_BEFORE = timedelta(days=30)
_SETTLES = 120.0  # seconds after which a run that nobody conducts has broken off


@dataclass(frozen=True)
class Hospital:
    """Attributes:
    state: online, offline or registered (never seen), as Flower has it; suspended, invited; not let
        in (the SuperLink does not know it); unknown, while the SuperLink is down.
    connected: whether it is online; None: nobody knows.
    """

    name: str
    state: str
    connected: bool | None
    since: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Run:
    """Attributes:
    state: running, completed, failed, stopped, or waiting: nobody conducts it (yet, or any more).
    """

    name: str
    state: str
    round: int
    rounds: int
    message: str
    started: str
    idle: float = field(repr=False)


@dataclass(frozen=True)
class Certificate:
    """Attributes:
    until: ISO 8601, UTC.
    days: whole days left; negative: it has ended.
    """

    name: str
    until: str
    days: int


@dataclass(frozen=True)
class Attention:
    """Something that a person should look at.

    Attributes:
        id: superlink_down, hospital_offline, certificate_ends, run_failed, run_broken_off.
        about: the hospital, certificate or run.
        text: what is wrong and what to do.
    """

    id: str
    about: str
    text: str


@dataclass(frozen=True)
class Status:
    federation: str
    superlink: bool
    hospitals: list[Hospital]
    runs: list[Run]
    certificates: list[Certificate]

    @property
    def attention(self) -> list[Attention]:
        return [*self._superlink(), *self._hospitals(), *self._certificates(), *self._runs()]

    def as_json(self) -> dict[str, Any]:
        runs = [{k: v for k, v in asdict(run).items() if k != "idle"} for run in self.runs]
        return asdict(self) | {"runs": runs, "attention": [asdict(one) for one in self.attention]}

    def _superlink(self) -> list[Attention]:
        if self.superlink:
            return []
        text = "the SuperLink does not answer; start it with: coordinator start"
        return [Attention("superlink_down", self.federation, text)]

    def _hospitals(self) -> list[Attention]:
        return [
            Attention(
                "hospital_offline",
                one.name,
                f"{one.name} is not connected ({one.state}): its hospital start may have ended, or its "
                f"way out; ask it for hospital check. To go on without: coordinator suspend {one.name}",
            )
            for one in self.hospitals
            if one.connected is False and one.state not in ("suspended", "invited")
        ]

    def _certificates(self) -> list[Attention]:
        remedy = {
            "server": "make a new one: coordinator certificate renew",
            "authority": "plan a new federation: every hospital needs a new kit",
        }
        return [
            Attention(
                "certificate_ends",
                one.name,
                f"the {one.name}'s certificate "
                + (f"ends in {one.days} days" if one.days >= 0 else "has ended")
                + f" ({one.until[:10]}); {remedy[one.name]}",
            )
            for one in self.certificates
            if one.days < WARN_BEFORE.days
        ]

    def _runs(self) -> list[Attention]:
        """Of the newest run: who starts another, or resumes this one, has seen how it ended."""
        newest = max(self.runs, key=lambda run: run.started, default=None)
        if newest is None:
            return []
        if newest.state == "failed":
            text = (
                f"run {newest.name} failed: {newest.message}; resume={newest.name} goes on with it"
            )
            return [Attention("run_failed", newest.name, text)]
        if newest.state == "waiting" and newest.idle > _SETTLES:
            text = f"run {newest.name} broke off; resume={newest.name} goes on with it"
            return [Attention("run_broken_off", newest.name, text)]
        return []


def look(home: Home) -> Status:
    """Raises ConfigError: not a provisioned folder, or one that is damaged."""
    federation, members = home.federation(), home.members()
    try:
        with Control(home) as control:
            states: dict[str, str] | None = control.hospitals(members)
    except Unreachable:
        states = None
    suspended = home.suspensions.all()
    hospitals = []
    for member in members:
        state = "unknown" if states is None else states.get(member.name, "not let in")
        connected = None if states is None else state == "online"
        told = suspended.get(member.name)
        if told is None:
            hospitals.append(Hospital(member.name, state, connected))
        else:
            hospitals.append(Hospital(member.name, "suspended", connected, told.since, told.reason))
    hospitals += [Hospital(name, "invited", False) for name in home.invited()]
    return Status(
        federation.name,
        states is not None,
        sorted(hospitals, key=lambda one: one.name),
        [_run(path.parent) for path in sorted(home.runs.glob("[!.]*/status.json"))],
        [
            _certificate("server", home.server_certificate),
            _certificate("authority", home.ca_certificate),
        ],
    )


def show(found: Status, console: Console) -> None:
    """For a person at a terminal."""
    console.print(_hospitals_table(found))
    console.print(_runs_table(found.runs))
    until = ", ".join(f"{one.name} {one.days} days" for one in found.certificates)
    console.print(f"certificates: {until}", highlight=False)
    for one in found.attention:
        console.print(f"[red]![/] {escape(one.text)}", highlight=False, soft_wrap=True)


def _run(path: Path) -> Run:
    folder = RunFolder(path)
    status = folder.status()
    state, message = status["state"], status["message"] or ""
    if state == "running" and not folder.is_conducted():
        state = "waiting"
    flower_runs = folder.record().get("flower_runs", [])
    if state == "failed" and flower_runs and folder.was_stopped(flower_runs[-1]):
        state = "stopped"
    return Run(
        path.name,
        state,
        status["round"],
        status["rounds"],
        message,
        folder.record().get("started", ""),
        time.time() - (path / "status.json").stat().st_mtime,
    )


def _certificate(name: str, path: Path) -> Certificate:
    until = x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc
    return Certificate(name, until.isoformat(), (until - datetime.now(UTC)).days)


def _hospitals_table(found: Status) -> Table:
    table = Table(title="hospitals", box=None, title_justify="left", header_style="bold")
    for title in ("name", "status", "note"):
        table.add_column(title)
    for one in found.hospitals:
        note = f"since {one.since[:10]}" if one.since else ""
        note = f"{note}: {one.reason}" if one.reason else note
        state = "not known: the SuperLink is down" if one.state == "unknown" else one.state
        table.add_row(one.name, state, escape(note))
    return table


def _runs_table(runs: list[Run]) -> Table:
    table = Table(title="runs", box=None, title_justify="left", header_style="bold")
    for title in ("name", "state", "round", "note"):
        table.add_column(title)
    for run in runs:
        state = "waiting or broken off" if run.state == "waiting" else run.state
        table.add_row(run.name, state, f"{run.round}/{run.rounds}", escape(run.message))
    return table
