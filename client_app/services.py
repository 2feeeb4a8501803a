"""The hospital's processes: Flower's SuperNode, which dials out, and the SuperExec beside it."""

from __future__ import annotations

import os
import secrets
import shutil
import sys
from pathlib import Path

from client_app.audit import Audit, AuditError
from client_app.identity import Identity
from client_app.kit import Kit
from client_app.metrics import parts as metrics_of
from client_app.site import SITE_VARIABLE, Site
from federation import journal, metrics, state_version
from federation.processes import Child, Supervisor, free_port
from federation.schema import ConfigError


def serve(site: Site, site_file: Path, kit: Kit, identity: Identity) -> None:
    """Run the hospital's processes until SIGINT or SIGTERM.

    Raises:
        ConfigError: they run already for this state folder, newer code made it, or its audit log is
            damaged.
    """
    site.state.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = site.state / "services.lock"
    with lock.open("w") as held:
        _lock(held.fileno(), site.state)
        state_version.settle(site.state, "hospital")
        journal.keep(site.state / "logs" / "hospital.log")
        _record_start(site)
        if site.metrics is not None:
            metrics.serve(metrics_of(site), site.metrics.address, site.metrics.port)
        secret = site.state / "superexec.secret"
        secret.unlink(missing_ok=True)
        handle = os.open(secret, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(secrets.token_hex(32))
        # On loopback and protected by the secret: only this machine's SuperExec can take tasks.
        runtime = f"127.0.0.1:{free_port()}"
        supernode = _supernode(site, kit, identity, runtime, secret)
        Supervisor([supernode, _superexec(site, site_file, runtime, secret)]).run()


def _record_start(site: Site) -> None:
    """A hospital whose audit log cannot be written serves nothing: better said now than each round."""
    try:
        Audit(site.state / "audit.jsonl").append(
            "started", hospital=site.hospital, state_version=state_version.VERSION
        )
    except AuditError as error:
        raise ConfigError(str(error)) from None


def _supernode(site: Site, kit: Kit, identity: Identity, runtime: str, secret: Path) -> Child:
    host, _, port = runtime.rpartition(":")
    command = [
        sys.executable, "-m", "client_app.supernode",
        "--superlink", kit.superlink,
        "--root-certificates", str(kit.ca_certificate),
        "--auth-supernode-private-key", str(identity.node_key),
        "--isolation", "process",
        "--superexec-auth-secret-file", str(secret),
        "--host", host,
        "--port", port,
    ]  # fmt: skip
    log = site.state / "logs" / "supernode.log"
    return Child("supernode", command, _environment(site, "supernode"), log)


def _superexec(site: Site, site_file: Path, runtime: str, secret: Path) -> Child:
    command = [
        # not -m: then each process that it forks would import the module again as its __main__
        sys.executable, "-c", "from client_app.superexec import main; main()",
        "--runtime-api-address", runtime,
        "--insecure",
        "--superexec-auth-secret-file", str(secret),
    ]  # fmt: skip
    environment = {
        **_environment(site, "superexec"),
        SITE_VARIABLE: str(site_file.resolve()),
        # on top of this the warm executor waits when there is nothing to do
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.02",
    }
    if site.threads is not None:
        environment |= {"OMP_NUM_THREADS": str(site.threads), "MKL_NUM_THREADS": str(site.threads)}
    return Child("superexec", command, environment, site.state / "logs" / "superexec.log")


def _environment(site: Site, role: str) -> dict[str, str]:
    """One Flower home a process, empty at the start: Flower trusts what it finds installed there."""
    folder = site.state / "flower" / role
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return {"FLWR_HOME": str(folder.resolve())}


def _lock(handle: int, state: Path) -> None:
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigError(f"the processes of {state} run already") from None
