"""What a check found: a word for programs, a level, and a line for a person that says what to do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from rich.console import Console
from rich.markup import escape

from client_app.private_file import printable
from federation.command_line import said
from federation.schema import ConfigError

# what can be seen from one place and perhaps not from another, as from another container
PARTS = ("site", "connection", "device", "state", "data")


class Level(StrEnum):
    OK = "ok"
    WARNING = "warning"  # a round can be served; somebody should look at it
    PROBLEM = "problem"  # rounds fail, or a promise is broken
    UNSEEN = "unseen"  # nobody looked, or could from here


_MARKS = {
    Level.OK: "[green]✓[/]",
    Level.WARNING: "[yellow]![/]",
    Level.PROBLEM: "[red]✗[/]",
    Level.UNSEEN: "[dim]–[/]",
}


@dataclass(frozen=True)
class Seen:
    """What one look gave. A problem is raised, as ConfigError."""

    text: str
    level: Level = Level.OK


@dataclass(frozen=True)
class Check:
    """Attributes:
    id: stays as it is, for monitoring.
    part: one of `PARTS`.
    after: checks without whose success this one says nothing.
    """

    id: str
    part: str
    title: str
    look: Callable[[], Seen]
    after: tuple[str, ...] = ()


@dataclass(frozen=True)
class Finding:
    """Attributes:
    text: what was found and, where it is no success, what to do.
    """

    id: str
    part: str
    title: str
    level: Level
    text: str


def look(check: Check, before: Mapping[str, Finding]) -> Finding:
    """What the check says, or that something before it keeps it from saying anything."""
    missing = [
        before[name].title
        for name in check.after
        if before[name].level in (Level.PROBLEM, Level.UNSEEN)
    ]
    if missing:
        text = f"cannot be seen before this is well: {', '.join(missing)}"
        return Finding(check.id, check.part, check.title, Level.UNSEEN, text)
    try:
        seen = check.look()
    except (ConfigError, OSError, RuntimeError, ValueError) as error:
        seen = Seen(said(error), Level.PROBLEM)
    return Finding(check.id, check.part, check.title, seen.level, seen.text)


def show(finding: Finding, console: Console) -> None:
    """One line. What a disk may hold is printed as a terminal can show it."""
    line = f"{_MARKS[finding.level]} {escape(finding.title)}: {escape(printable(finding.text))}"
    console.print(line, highlight=False, soft_wrap=True)
