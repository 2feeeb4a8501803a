"""Long-running child processes: started, logged, started again when they die, taken down together.

Both sides run Flower's own processes (SuperLink, SuperNode, SuperExec) below one supervisor. A child
dies with its supervisor, even when that is killed, so that nothing is left behind on a machine.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from logging import Handler, getLogger
from pathlib import Path
from types import FrameType

from federation import child_output, journal

_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 30.0  # seconds before a child that died is started again
_HEALTHY_AFTER = 60.0  # seconds after which a child counts as having started well
_GRACE = 8.0  # seconds between asking children to end and killing them

log = getLogger("consilium")

FLOWER_ENVIRONMENT: Mapping[str, str] = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "PYTHONUNBUFFERED": "1",
}


@dataclass
class Child:
    """A process to keep alive: its command line, what it adds to the environment, its log.

    The log holds records alone, see `federation.journal`; in a container, and without a log, they go to
    standard output.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    log: Path | None
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    pause: float = _FIRST_PAUSE
    due: float = 0.0
    _sink: Handler | None = field(default=None, repr=False)

    def start(self) -> None:
        """Start it, from the main thread: a child ends with the thread that started it."""
        if self._sink is None:
            self._sink = journal.sink(self.log)
        self.process = subprocess.Popen(
            list(self.command),
            env={**os.environ, **FLOWER_ENVIRONMENT, **self.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a group of its own, to be ended with what it started
            preexec_fn=_die_with_parent,  # noqa: PLW1509 - takes no lock that a thread could hold
        )
        if self.process.stdout is not None:
            child_output.follow(self.process.stdout, self.name, self._sink)
        self.started = time.monotonic()


@dataclass
class Supervisor:
    """Keeps children alive until it is told to end by SIGINT or SIGTERM."""

    children: Sequence[Child]
    _ending: bool = field(default=False, init=False)

    def run(self, *, ready: Callable[[], None] | None = None) -> None:
        """Start the children, call `ready` once they are up, and supervise until a signal."""
        previous = {s: signal.signal(s, self._end) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            for child in self.children:
                child.start()
            if ready is not None:
                ready()
            while not self._ending:
                self._look()
                time.sleep(0.2)
        finally:
            self.stop()
            for number, handler in previous.items():
                signal.signal(number, handler)

    def stop(self) -> None:
        """Ask the children and all that they started to end, and kill what does not."""
        groups = [child.process.pid for child in reversed(self.children) if child.process]
        for group in groups:
            _signal_group(group, signal.SIGTERM)
        deadline = time.monotonic() + _GRACE
        while self._remain(groups) and time.monotonic() < deadline:
            time.sleep(0.05)
        for group in groups:
            _signal_group(group, signal.SIGKILL)
        for child in self.children:
            if child.process:
                child.process.wait()

    def _remain(self, groups: Sequence[int]) -> bool:
        """Whether any process of these groups is left."""
        for child in self.children:
            if child.process:
                child.process.poll()  # or one that has ended would still count
        return any(map(_group_exists, groups))

    def _look(self) -> None:
        for child in self.children:
            now = time.monotonic()
            if child.process is not None:
                code = child.process.poll()
                if code is None:
                    continue
                if now - child.started > _HEALTHY_AFTER:
                    child.pause = _FIRST_PAUSE
                log.warning(
                    "%s ended (%s); starting it again in %.0f s",
                    child.name,
                    code,
                    child.pause,
                    extra=journal.told("process_ended", process=child.name, exit=code),
                )
                child.process, child.due = None, now + child.pause
                child.pause = min(child.pause * 2, _LONGEST_PAUSE)
            elif now >= child.due:
                child.start()

    def _end(self, _signal: int, _frame: FrameType | None) -> None:
        self._ending = True


def _signal_group(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)


def _group_exists(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def wait_until(
    condition: Callable[[], bool], *, seconds: float, children: Sequence[Child] = ()
) -> bool:
    """Whether `condition` became true in time; gives up early when a child has ended."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        if any(child.process and child.process.poll() is not None for child in children):
            return False
        time.sleep(0.1)
    return False


def listens(host: str, port: int) -> bool:
    """Whether something accepts connections there."""
    try:
        with socket.create_connection((host, port), timeout=1.0):
            return True
    except OSError:
        return False


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port nothing listens on now.

    Below the range from which Linux takes ports for outgoing connections, where another process
    could be given it before ours binds it.
    """
    for port in random.SystemRandom().sample(range(20_000, 32_000), 100):
        with socket.socket() as probe:
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return port
    raise OSError(f"no free port on {host} between 20000 and 32000")


def _die_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
