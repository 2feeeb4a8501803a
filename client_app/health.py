"""Whether a hospital's container does its work, for its health check: exit status 0, or 1 and why.

Of a SuperNode: the SuperLink answered it within a minute, or it waits for a ClientApp at work; and its
Runtime API answers over TLS. Of a SuperExec: that Runtime API answered it within a minute.
"""

from __future__ import annotations

import os
import socket
import ssl
import sys
import tempfile
from pathlib import Path

from federation.heartbeat import age

_SILENT = 60.0  # seconds; Flower calls a hospital offline after as many


def heartbeat_of(role: str) -> Path:
    """Where the process of a role leaves its sign of life, when it is the container's only one."""
    return Path(tempfile.gettempdir()) / "consilium" / role


def unhealthy() -> str | None:
    """What is wrong here; None: nothing."""
    here = {role: seconds for role in ("supernode", "superexec") if (seconds := _silence(role))}
    if not here:
        return "nothing has answered yet"
    for role, seconds in here.items():
        whom = "SuperLink" if role == "supernode" else "SuperNode"
        if seconds > _SILENT:
            return f"the {whom} has not answered for {seconds:.0f} seconds"
    if "supernode" in here:
        try:
            _ask_runtime()
        except OSError as error:
            return f"the Runtime API does not answer: {error}"
    return None


def _silence(role: str) -> float | None:
    seconds = age(heartbeat_of(role))
    return None if seconds is None else max(seconds, 1e-3)


def _ask_runtime() -> None:
    from client_app.link import HOST, LINK_VARIABLE, PORT, Link

    certificate = Link(Path(os.environ[LINK_VARIABLE]) / "link").certificate
    context = ssl.create_default_context(cafile=str(certificate))
    with (
        socket.create_connection((HOST, PORT), timeout=5) as plain,
        context.wrap_socket(plain, server_hostname=HOST),
    ):
        pass


if __name__ == "__main__":
    wrong = unhealthy()
    sys.exit(wrong and f"unhealthy: {wrong}")
