"""The coordinator's processes: Flower's SuperLink and the SuperExec that runs the ServerApp.

On a machine both run below one supervisor; in containers each runs alone (`--only`), writes its log
where its container does, and keeps nothing outside of the folders that this one is given.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from federation import journal, metrics, state_version
from federation.processes import Child, Supervisor, listens, wait_until
from federation.schema import ConfigError
from server_app.control import Control
from server_app.home import HOME_VARIABLE, Home
from server_app.metrics import parts as metrics_of

# seconds between looks for a run to begin; Flower looks once in one
_SOON = {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2"}


def serve(home: Home, metrics_at: tuple[str, int] | None = None) -> None:
    """Run the services until SIGINT or SIGTERM.

    Args:
        metrics_at: address and port for Prometheus; None: nowhere.

    Raises:
        ConfigError: they run already, the port is taken, or they do not come up.
    """
    home.members()
    held = _hold(_lock(home))
    if held is None:
        raise ConfigError(f"the services of {home.path} run already; coordinator stop ends them")
    state_version.settle(home.path, "coordinator")
    journal.keep(home.logs / "coordinator.log")
    if metrics_at is not None:
        metrics.serve(metrics_of(home), *metrics_at)
    try:
        with _database(home):
            superlink, superexec = (
                Child(
                    role,
                    command,
                    _flower_home(home.flower / role) | environment,
                    home.logs / f"{role}.log",
                )
                for role, command, environment in (
                    ("superlink", _superlink(home), _home_variable(home)),
                    ("superexec", _superexec(home), _home_variable(home) | _SOON),
                )
            )

            def ready() -> None:
                _let_in(home, superlink, f"see {home.logs / 'superlink.log'}")
                home.services.write_text(str(os.getpid()))

            Supervisor([superlink, superexec]).run(ready=ready)
    finally:
        home.services.unlink(missing_ok=True)
        held.close()


def serve_superlink(home: Home, metrics_at: tuple[str, int] | None = None) -> None:
    """Run the SuperLink alone. It writes into the database's folder and nowhere else.

    Args:
        metrics_at: as of `serve`.

    Raises:
        ConfigError: as `serve`.
    """
    journal.keep(None)
    if metrics_at is not None:
        metrics.serve(metrics_of(home), *metrics_at)
    with _database(home):
        environment = _alone("superlink") | _home_variable(home)
        superlink = Child("superlink", _superlink(home), environment, None)
        Supervisor([superlink]).run(ready=lambda: _let_in(home, superlink, "see the lines above"))


def serve_superexec(home: Home) -> None:
    """Run the SuperExec alone. It writes into the runs' and the lodgings' folders and nowhere else."""
    journal.keep(None)
    environment = _alone("superexec") | _home_variable(home) | _SOON
    Supervisor([Child("superexec", _superexec(home), environment, None)]).run()


def _let_in(home: Home, superlink: Child, where: str) -> None:
    """Wait for the SuperLink, and tell it the roster's hospitals."""
    federation = home.federation()
    up = wait_until(
        lambda: listens(federation.listen, federation.bound_port),
        seconds=60,
        children=[superlink],
    )
    if not up:
        raise ConfigError(f"the SuperLink did not come up; {where}")
    with Control(home) as control:
        control.register(home.members())


@contextmanager
def _database(home: Home) -> Iterator[None]:
    """The SuperLink's database, for one SuperLink at a time, and its port free.

    Raises:
        ConfigError: another has it, or something listens there.
    """
    federation = home.federation()
    home.database.parent.mkdir(exist_ok=True)
    held = _hold(home.database.with_name("superlink.lock"))
    if held is None:
        raise ConfigError(f"a SuperLink with the database {home.database} runs already")
    with held:
        if listens(federation.listen, federation.bound_port):
            raise ConfigError(
                f"port {federation.bound_port} on {federation.listen} is taken; "
                "end what listens there or provision with another port"
            )
        yield


def running(home: Home) -> int | None:
    """The process id of `coordinator start` for this folder, if it runs.

    The id alone would not tell: after a crash another process may have it.
    """
    if (held := _hold(_lock(home))) is not None:
        held.close()
        return None
    try:
        return int(home.services.read_text())
    except (FileNotFoundError, ValueError):
        return None


def _lock(home: Home) -> Path:
    return home.path / "services.lock"


def _hold(path: Path) -> TextIO | None:
    """The lock that lasts as long as its file is open, if no living process has it."""
    file = path.open("w")
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


def _superlink(home: Home) -> list[str]:
    federation = home.federation()
    return [
        sys.executable, "-m", "server_app.superlink",
        "--host", federation.listen,
        "--port", str(federation.bound_port),
        "--ssl-ca-certfile", str(home.ca_certificate),
        "--ssl-certfile", str(home.server_certificate),
        "--ssl-keyfile", str(home.server_key),
        "--enable-supernode-auth",
        "--isolation", "process",
        "--superexec-auth-secret-file", str(home.superexec_secret),
        "--disable-runtime-dependency-installation",
        "--database", str(home.database),
    ]  # fmt: skip


def _superexec(home: Home) -> list[str]:
    federation = home.federation()
    return [
        _program("flower-superexec"),
        "--runtime-api-address", f"{federation.listen}:{federation.bound_port}",
        "--root-certificates", str(home.ca_certificate),
        "--superexec-auth-secret-file", str(home.superexec_secret),
    ]  # fmt: skip


def _home_variable(home: Home) -> dict[str, str]:
    return {HOME_VARIABLE: str(home.path.resolve())}


def _alone(role: str) -> dict[str, str]:
    """What a container's only process gets: what it writes here is gone with the container."""
    return _flower_home(Path(tempfile.gettempdir()) / "consilium" / role)


def _flower_home(folder: Path) -> dict[str, str]:
    """One Flower home a process, empty at the start: Flower trusts what it finds installed there."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return {"FLWR_HOME": str(folder.resolve()), "PATH": path}


def _program(name: str) -> str:
    return str(Path(sys.executable).parent / name)
