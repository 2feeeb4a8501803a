"""The coordinator's processes: Flower's SuperLink and the SuperExec that runs the ServerApp."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import TextIO

from federation import journal, metrics, state_version
from federation.processes import Child, Supervisor, listens, wait_until
from federation.schema import ConfigError
from server_app.control import Control
from server_app.home import HOME_VARIABLE, Home
from server_app.metrics import parts as metrics_of


def serve(home: Home, metrics_at: tuple[str, int] | None = None) -> None:
    """Run the services until SIGINT or SIGTERM.

    Args:
        metrics_at: address and port for Prometheus; None: nowhere.

    Raises:
        ConfigError: they run already, the port is taken, or they do not come up.
    """
    federation, members = home.federation(), home.roster().members
    held = _hold(home)
    if held is None:
        raise ConfigError(f"the services of {home.path} run already; coordinator stop ends them")
    state_version.settle(home.path, "coordinator")
    journal.keep(home.logs / "coordinator.log")
    if listens(federation.listen, federation.port):
        raise ConfigError(
            f"port {federation.port} on {federation.listen} is taken; "
            "end what listens there or provision with another port"
        )
    if metrics_at is not None:
        metrics.serve(metrics_of(home), *metrics_at)
    children = [_superlink(home), _superexec(home)]

    def ready() -> None:
        up = wait_until(
            lambda: listens(federation.listen, federation.port), seconds=60, children=children
        )
        if not up:
            raise ConfigError(f"the SuperLink did not come up; see {home.logs / 'superlink.log'}")
        with Control(home) as control:
            control.register(members)
        home.services.write_text(str(os.getpid()))

    try:
        Supervisor(children).run(ready=ready)
    finally:
        home.services.unlink(missing_ok=True)
        held.close()


def running(home: Home) -> int | None:
    """The process id of `coordinator start` for this folder, if it runs.

    The id alone would not tell: after a crash another process may have it.
    """
    if (held := _hold(home)) is not None:
        held.close()
        return None
    try:
        return int(home.services.read_text())
    except (FileNotFoundError, ValueError):
        return None


def _hold(home: Home) -> TextIO | None:
    """The lock that lasts as long as its file is open, if no living process has it."""
    file = (home.path / "services.lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def stop(home: Home) -> bool:
    """End the services; whether there were any."""
    pid = running(home)
    if pid is None:
        return False
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + 15
    while running(home) is not None and time.monotonic() < deadline:
        time.sleep(0.1)
    return True


def _superlink(home: Home) -> Child:
    federation = home.federation()
    command = [
        sys.executable, "-m", "server_app.superlink",
        "--host", federation.listen,
        "--port", str(federation.port),
        "--ssl-ca-certfile", str(home.ca_certificate),
        "--ssl-certfile", str(home.server_certificate),
        "--ssl-keyfile", str(home.server_key),
        "--enable-supernode-auth",
        "--isolation", "process",
        "--superexec-auth-secret-file", str(home.superexec_secret),
        "--disable-runtime-dependency-installation",
        "--database", str(home.database),
    ]  # fmt: skip
    return Child("superlink", command, _environment(home, "superlink"), home.logs / "superlink.log")


def _superexec(home: Home) -> Child:
    federation = home.federation()
    command = [
        _program("flower-superexec"),
        "--runtime-api-address", f"{federation.listen}:{federation.port}",
        "--root-certificates", str(home.ca_certificate),
        "--superexec-auth-secret-file", str(home.superexec_secret),
    ]  # fmt: skip
    environment = {**_environment(home, "superexec"), HOME_VARIABLE: str(home.path.resolve())}
    return Child("superexec", command, environment, home.logs / "superexec.log")


def _environment(home: Home, role: str) -> dict[str, str]:
    """One Flower home a process, empty at the start: Flower trusts what it finds installed there."""
    folder = home.flower / role
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return {"FLWR_HOME": str(folder.resolve()), "PATH": path}


def _program(name: str) -> str:
    return str(Path(sys.executable).parent / name)
