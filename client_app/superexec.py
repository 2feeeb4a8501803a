"""Flower's SuperExec with ClientApps that start warm.

Flower starts a new Python process for every message, and each imports torch and MONAI again. Here
the processes are forked from one that has imported them already and has done nothing else: every
message still has a process of its own, and it is there in milliseconds. In that process, before any of
a run's code is imported, `code_approval` decides whether it may run; Flower's own executor would run
it without asking. The task's token is not on a command line, where `ps` would show it.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

from flwr.supercore.cli import flower_superexec
from flwr.supercore.constant import TaskType
from flwr.supercore.superexec import run_superexec as flower_superexec_loop
from flwr.supercore.superexec.executor import ExecutionSpec, LaunchResult

from client_app import task_process
from federation.heartbeat import Heartbeat
from federation.pace import Pace

_LONGEST_WAIT = 0.25  # seconds that a look for the next task may be put off by a working ClientApp


class WarmExecutor:
    """Starts each ClientApp by a fork of a process with the heavy imports done."""

    def __init__(self) -> None:
        self._context: ForkServerContext = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["client_app.warm", "client_app.task_process"])
        self._processes: list[ForkServerProcess] = []
        self._pace = Pace(shortest=0.0, longest=1.0)
        self._heart = Heartbeat()
        self._start(task_process.nothing)  # starting it starts the server, which does the imports

    def get_eligible_capacity(
        self,
        supported_task_types: set[TaskType],
        *,
        insecure: bool = False,
        root_certificates_path: str | None = None,
    ) -> tuple[set[TaskType], set[str]]:
        """A hospital runs ClientApps, one at a time, and nothing else that Flower could ask for."""
        return supported_task_types & {TaskType.CLIENT_APP}, set()

    def wait_for_capacity(self, *_: object, **__: object) -> None:
        """There is always room: the SuperNode handles one message at a time."""

    def launch(self, spec: ExecutionSpec) -> LaunchResult:
        certificates = (
            Path(spec.root_certificates_path).read_bytes() if spec.root_certificates_path else None
        )
        self._start(
            task_process.run_client_app,
            spec.runtime_api_address,
            spec.token,
            spec.insecure,
            certificates,
            os.getpid(),
        )
        return LaunchResult.accepted()

    def reconcile(self) -> None:
        """Collect the processes that have ended; Flower calls this before each look for a task.

        There is no other task while a ClientApp works, so its end is waited for.
        """
        self._heart.beat()  # the SuperNode answered the look before this one
        if self._processes:
            wait([process.sentinel for process in self._processes], timeout=_LONGEST_WAIT)
            self._pace.news()
        else:
            time.sleep(self._pace.pause())
        self._processes = [process for process in self._processes if process.is_alive()]

    def close(self) -> None:
        for process in self._processes:
            process.terminate()

    def _start(self, target: object, *arguments: object) -> None:
        process = self._context.Process(target=target, args=arguments, daemon=False)  # type: ignore[arg-type]
        process.start()
        self._processes.append(process)


def main() -> None:
    """`flower-superexec` with its own arguments.

    Raises:
        RuntimeError: flwr changed, and its own executor would run any code that arrives.
    """
    if "get_executor" not in flower_superexec_loop.run_superexec.__code__.co_names:
        raise RuntimeError("flwr changed: its SuperExec chooses its executor in another way")
    flower_superexec_loop.get_executor = lambda *_, **__: WarmExecutor()
    flower_superexec()


if __name__ == "__main__":
    main()
