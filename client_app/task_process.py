"""What runs in a process forked for one ClientApp task. Light to import: `warm` has the heavy part."""

from __future__ import annotations

from client_app.code_approval import forget_packages
from federation import journal
from federation.pace import hurry_flower


def run_client_app(
    address: str, token: str, insecure: bool, certificates: bytes | None, parent: int
) -> None:
    """One ClientApp task by Flower's own runner, with approved code alone; ends this process.

    Args:
        address: of the SuperNode's Runtime API.
        token: the task's, which is good for this task alone.
        parent: process without which this one ends.

    Raises:
        RuntimeError: flwr changed, so that its runner cannot be guarded; nothing has run.
    """
    from flwr.supernode.runtime import run_clientapp as flower

    hurry_flower()
    journal.to_supervisor()
    # What is installed may have been updated since the process that this was forked from began; what
    # is compared with a bundle and what runs have to be the same files.
    forget_packages()
    from client_app import code_approval

    code_approval.guard(flower)
    flower.run_clientapp(
        runtime_api_address=address,
        token=token,
        insecure=insecure,
        certificates=certificates,
        parent_pid=parent,
        runtime_dependency_install=False,
    )


def nothing() -> None:
    """For the first fork, which only has the imports done."""
