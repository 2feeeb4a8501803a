"""What runs in a process forked for one ClientApp task. Light to import: `warm` has the heavy part."""

from __future__ import annotations

import sys

from federation.pace import hurry_flower

_OURS = ("client_app", "federation", "server_app")


def run_client_app(
    address: str, token: str, insecure: bool, certificates: bytes | None, parent: int
) -> None:
    """One ClientApp task by Flower's own runner; ends this process.

    Args:
        address: of the SuperNode's Runtime API.
        token: the task's, which is good for this task alone.
        parent: process without which this one ends.
    """
    from flwr.supernode.runtime.run_clientapp import run_clientapp

    hurry_flower()
    # The bundle brings our packages; those that this process was forked with must not shadow them.
    for name in [name for name in sys.modules if name.partition(".")[0] in _OURS]:
        del sys.modules[name]
    run_clientapp(
        runtime_api_address=address,
        token=token,
        insecure=insecure,
        certificates=certificates,
        parent_pid=parent,
    )


def nothing() -> None:
    """For the first fork, which only has the imports done."""
