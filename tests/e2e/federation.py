"""A federation of real processes on loopback: SuperLink, SuperExecs, SuperNodes, TLS, a database."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from client_app.imaging import phantoms
from federation.processes import free_port, wait_until
from server_app.control import Control, Unreachable
from server_app.home import Federation, Home
from tests.provisioned import provisioned

PROGRAMS = Path(sys.executable).parent
TINY = [
    "task=chest_xray", "task.size=32", "model=resnet", "training.local_steps=2",
    "training.batch_size=4", "participation.deadline=120", "participation.attempts=3",
]  # fmt: skip


@dataclass
class Real:
    """A running federation. `sites` are the hospitals' folders."""

    home: Home
    sites: dict[str, Path]
    services: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def coordinator(
        self, *arguments: str, timeout: float = 300
    ) -> subprocess.CompletedProcess[str]:
        """The `coordinator` command to its end."""
        return subprocess.run(
            self._command(*arguments), capture_output=True, text=True, timeout=timeout, check=False
        )

    def begin(self, *arguments: str) -> subprocess.Popen[str]:
        """The `coordinator` command, not waited for."""
        return subprocess.Popen(
            self._command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def serve(self, who: str) -> subprocess.Popen[bytes]:
        """Start a hospital's services, or the "coordinator"'s; they end with the federation."""
        if who == "coordinator":
            folder, command = self.home.path.parent, ["start", "--home", str(self.home.path)]
        else:
            folder = self.sites[who]
            command = ["start", "--site", str(folder / "site.yaml")]
        role = "coordinator" if who == "coordinator" else "hospital"
        with (folder / f"{role}.log").open("ab") as output:
            service = subprocess.Popen(
                [str(PROGRAMS / role), *command],
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )
        self.services.append(service)
        return service

    def _command(self, *arguments: str) -> list[str]:
        return [str(PROGRAMS / "coordinator"), *arguments, "--home", str(self.home.path)]

    def online(self) -> set[str]:
        try:
            with Control(self.home) as control:
                states = control.hospitals(self.home.roster().members)
        except Unreachable:
            return set()
        return {name for name, state in states.items() if state == "online"}


@contextmanager
def federation(
    folder: Path,
    hospitals: tuple[str, ...] = ("north", "east"),
    *,
    dial: dict[str, int] | None = None,
    privacy: dict[str, Any] | None = None,
) -> Iterator[Real]:
    """Provision, make phantoms, start everything, and take it down.

    Args:
        dial: a port to dial instead of the SuperLink's, by hospital.
        privacy: that section of the sites; with it each gets a ledger.
    """
    port = free_port()
    home = Home(folder / "coordinator")
    states = {name: folder / name / "state" for name in hospitals}
    content = Federation(name="test", host="127.0.0.1", port=port, hospitals=list(hospitals))
    provisioned(content, home, states)
    sites = {name: _site(folder, home, name, n, privacy) for n, name in enumerate(hospitals)}
    for name, other in (dial or {}).items():
        kit = sites[name] / "kit" / "kit.json"
        kit.write_text(kit.read_text().replace(f":{port}", f":{other}"))
    real = Real(home, sites)
    try:
        real.serve("coordinator")
        assert wait_until(home.services.exists, seconds=60), (
            folder / "coordinator.log"
        ).read_text()
        for name in sites:
            real.serve(name)
        yield real
    finally:
        for service in reversed(real.services):
            service.terminate()
        for service in real.services:
            try:
                service.wait(20)
            except subprocess.TimeoutExpired:
                service.kill()


def _site(folder: Path, home: Home, name: str, shift: int, privacy: dict[str, Any] | None) -> Path:
    path = folder / name
    phantoms.write("chest_xray", path / "data", patients=12, site=shift, seed=shift)
    home.kit(name).rename(path / "kit")
    content: dict[str, Any] = {
        "hospital": name,
        "kit": "kit",
        "state": "state",
        "device": "cpu",
        "threads": 1,
        "data": {"root": "data/images", "layout": "dicom", "labels": "data/labels.csv"},
        "policy": {"least_patients": 3, "smallest_group": 1},
        "privacy": privacy,
    }
    site = path / "site.yaml"
    site.write_text(yaml.safe_dump(content))
    if privacy is not None:
        hospital("ledger", "create", "--site", str(site))
    return path


def hospital(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The `hospital` command to its end, which must be a good one."""
    done = subprocess.run(
        [str(PROGRAMS / "hospital"), *arguments],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def caught(moment: Callable[[], bool], *, seconds: float) -> bool:
    """`wait_until` for what may be over a tenth of a second later."""
    deadline = time.monotonic() + seconds
    while not moment():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.002)
    return True


def processes(*words: str) -> list[int]:
    """Living processes whose command line has all of the words."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            state = (entry / "stat").read_text().rsplit(")", 1)[1].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state != "Z" and all(word in command for word in words):
            found.append(int(entry.name))
    return found


def kill(*words: str) -> None:
    """`kill -9` of the processes with these words on their command line; there must be one."""
    victims = processes(*words)
    assert victims, f"nothing to kill: {words}"
    for victim in victims:
        os.kill(victim, signal.SIGKILL)
