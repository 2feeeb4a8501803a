"""The hospital's processes: Flower's SuperNode, which dials out, and the SuperExec beside it.

On a machine both run below one supervisor and meet on loopback. In containers each runs alone
(`--only`): the SuperNode with a way out and nothing of the hospital's but its node key, the SuperExec
with images and state and no way out; see client_app/link.py.
"""

from __future__ import annotations

import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from client_app import health
from client_app.audit import Audit, AuditError
from client_app.identity import Identity
from client_app.kit import Kit
from client_app.link import HOST, PORT, open_link
from client_app.metrics import parts as metrics_of
from client_app.site import SITE_VARIABLE, Site
from federation import journal, metrics, state_version
from federation.heartbeat import VARIABLE as HEARTBEAT_VARIABLE
from federation.processes import Child, Supervisor, free_port
from federation.schema import ConfigError


def serve(site: Site, site_file: Path, kit: Kit, identity: Identity) -> None:
    """Run the hospital's processes until SIGINT or SIGTERM.

    Raises:
        ConfigError: they run already for this state folder, newer code made it, or its audit log is
            damaged.
    """
    with _held(site):
        secret = site.state / "superexec.secret"
        secret.unlink(missing_ok=True)
        handle = os.open(secret, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(secrets.token_hex(32))
        # On loopback and protected by the secret: only this machine's SuperExec can take tasks.
        host, port = "127.0.0.1", free_port()
        logs, flower = site.state / "logs", site.state / "flower"
        supernode = Child(
            "supernode",
            _supernode(kit, identity.node_key, secret, host, port),
            _flower_home(flower / "supernode"),
            logs / "supernode.log",
        )
        superexec = Child(
            "superexec",
            [*_superexec(secret, host, port), "--insecure"],
            _flower_home(flower / "superexec") | _task_environment(site, site_file),
            logs / "superexec.log",
        )
        Supervisor([supernode, superexec]).run()


def serve_supernode(kit: Kit, node_key: Path, link: Path) -> None:
    """Run the SuperNode alone: it needs no file of the hospital's but its node key.

    Args:
        link: the folder that it shares with the SuperExec.

    Raises:
        ConfigError: the node key or the folder cannot be used.
    """
    if not os.access(node_key, os.R_OK):
        raise ConfigError(
            f"the node key {node_key} cannot be read; hospital identity create makes it, in the state "
            "folder's identity/"
        )
    files = open_link(link)
    command = [
        *_supernode(kit, node_key, files.secret, HOST, PORT),
        "--ssl-ca-certfile", str(files.certificate),
        "--ssl-certfile", str(files.certificate),
        "--ssl-keyfile", str(files.key),
    ]  # fmt: skip
    Supervisor([Child("supernode", command, _alone("supernode"), None)]).run()


def serve_superexec(site: Site, site_file: Path, link: Path) -> None:
    """Run the SuperExec alone.

    Args:
        link: the folder that it shares with the SuperNode.

    Raises:
        ConfigError: as `serve`, or the folder cannot be used.
    """
    with _held(site):
        files = open_link(link)
        command = [
            *_superexec(files.secret, HOST, PORT),
            "--root-certificates", str(files.certificate),
        ]  # fmt: skip
        environment = _alone("superexec") | _task_environment(site, site_file)
        Supervisor([Child("superexec", command, environment, None)]).run()


@contextmanager
def _held(site: Site) -> Iterator[None]:
    """The state folder, held by one service at a time, with the start recorded in its audit log."""
    site.state.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (site.state / "services.lock").open("w") as held:
        _lock(held.fileno(), site.state)
        state_version.settle(site.state, "hospital")
        journal.keep(site.state / "logs" / "hospital.log")
        _record_start(site)
        if site.metrics is not None:
            metrics.serve(metrics_of(site), site.metrics.address, site.metrics.port)
        yield


def _record_start(site: Site) -> None:
    """A hospital whose audit log cannot be written serves nothing: better said now than each round."""
    try:
        Audit(site.state / "audit.jsonl").append(
            "started", hospital=site.hospital, state_version=state_version.VERSION
        )
    except AuditError as error:
        raise ConfigError(str(error)) from None


def _supernode(kit: Kit, node_key: Path, secret: Path, host: str, port: int) -> list[str]:
    return [
        sys.executable, "-m", "client_app.supernode",
        "--superlink", kit.superlink,
        "--root-certificates", str(kit.ca_certificate),
        "--auth-supernode-private-key", str(node_key),
        "--isolation", "process",
        "--superexec-auth-secret-file", str(secret),
        "--host", host,
        "--port", str(port),
    ]  # fmt: skip


def _superexec(secret: Path, host: str, port: int) -> list[str]:
    return [
        # not -m: then each process that it forks would import the module again as its __main__
        sys.executable, "-c", "from client_app.superexec import main; main()",
        "--runtime-api-address", f"{host}:{port}",
        "--superexec-auth-secret-file", str(secret),
    ]  # fmt: skip


def _task_environment(site: Site, site_file: Path) -> dict[str, str]:
    environment = {
        SITE_VARIABLE: str(site_file.resolve()),
        # on top of this the warm executor waits when there is nothing to do
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.02",
    }
    if site.threads is not None:
        environment |= {"OMP_NUM_THREADS": str(site.threads), "MKL_NUM_THREADS": str(site.threads)}
    return environment


def _alone(role: str) -> dict[str, str]:
    """What a container's only process gets: what it writes here is gone with the container."""
    heartbeat = health.heartbeat_of(role)
    heartbeat.parent.mkdir(parents=True, exist_ok=True)
    heartbeat.unlink(missing_ok=True)
    return {**_flower_home(heartbeat.parent / f"{role}-flower"), HEARTBEAT_VARIABLE: str(heartbeat)}


def _flower_home(folder: Path) -> dict[str, str]:
    """One Flower home a process, empty at the start: Flower trusts what it finds installed there."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return {"FLWR_HOME": str(folder.resolve())}


def _lock(handle: int, state: Path) -> None:
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigError(f"the processes of {state} run already") from None
