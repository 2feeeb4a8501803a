"""What both sides of the comparison have in common: certificates, keys, and a measurement's form."""

from __future__ import annotations

import secrets
import shutil
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from client_app import identity
from federation.processes import free_port
from federation.public_identity import SUFFIX
from server_app.home import Federation, Home
from server_app.provision import provision

HOSPITALS = ("north", "south")
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Measured:
    """One system with one model.

    Attributes:
        rounds: seconds from one round's start to the next one's, without training, from round 1.
        bytes_down, bytes_up: of a hospital in a round.
        peaks: largest resident set of a process in each role, bytes.
    """

    system: str
    parameters: int
    rounds: tuple[float, ...]
    bytes_down: int
    bytes_up: int
    peaks: Mapping[str, int]

    @property
    def seconds(self) -> float:
        """Median over the rounds after the first, which starts caches and connections."""
        return statistics.median(self.rounds[1:])

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"median_seconds": self.seconds}


def make_home(folder: Path, hospitals: Sequence[str] = HOSPITALS) -> Home:
    """A provisioned coordinator's folder whose SuperLink will listen on a free port.

    Beside it each hospital has a folder with its keys, in NAME/state.
    """
    home, sent = Home(folder), folder.parent / "identities"
    sent.mkdir(parents=True)
    for name in hospitals:
        identity.create(folder.parent / name / "state", name)
        half = f"{name}{SUFFIX}"
        shutil.copy(identity.folder_of(folder.parent / name / "state") / half, sent / half)
    content = Federation(name="bench", host=LOOPBACK, port=free_port(), hospitals=list(hospitals))
    provision(content, home, sent, passphrase=secrets.token_hex(16))
    return home


def node_key(home: Home, hospital: str) -> Path:
    """By which this hospital's SuperNode logs in."""
    return identity.folder_of(home.path.parent / hospital / "state") / "node.key"
