"""Processes of a benchmark: started, their memory watched, and taken down whatever happens."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)  # loaded here, since nothing may be loaded between fork and exec
_LOOK = 0.1  # seconds between two looks at the processes
_TICKS = os.sysconf("SC_CLK_TCK")
_GRACE = 12.0  # seconds between asking to end and killing; a supervisor gives its children 8

PROJECT = Path(__file__).resolve().parents[1]

QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "PYTHONUNBUFFERED": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    # what is measured is the checkout that this file lies in, whatever is installed
    "PYTHONPATH": os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")])),
}


class BenchmarkFailed(RuntimeError):
    """A process of the benchmark did not do what it was started for."""


@dataclass
class Processes:
    """A group of process trees; leaving the context ends every process that was ever in one.

    `peaks` has the largest resident set (VmHWM, bytes) seen of any process in each role, `seconds` the
    processor time of all that were in it; `count_anew` begins both again. A process is in the trees
    when it descends from one that `start` made, whoever adopted it since.
    """

    logs: Path
    role: Callable[[Sequence[str]], str | None]
    peaks: dict[str, int] = field(default_factory=dict)
    _used: dict[tuple[int, str], tuple[str, float]] = field(
        default_factory=dict
    )  # role and seconds
    _before: dict[tuple[int, str], float] = field(default_factory=dict)
    _started: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _may_end: set[str] = field(default_factory=set)
    _seen: dict[int, str] = field(default_factory=dict)  # process id → when it began
    _over: threading.Event = field(default_factory=threading.Event)
    _looking: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> Processes:
        self.logs.mkdir(parents=True, exist_ok=True)
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with _interrupts_later():
            self._end()

    def _end(self) -> None:
        self._over.set()
        self._watcher.join()
        self._look()
        for process in reversed(self._started.values()):
            if process.poll() is None:
                process.terminate()
        deadline = time.monotonic() + _GRACE
        while self._living() and time.monotonic() < deadline:
            for process in self._started.values():
                process.poll()
            time.sleep(0.05)
        for number in self._living():
            _send(number, signal.SIGKILL)
        for process in self._started.values():
            process.wait()

    def start(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        *,
        may_end: bool = False,
    ) -> None:
        """Start a process whose output goes to `logs/NAME.log`; `wait` fails when it ends, or not."""
        if may_end:
            self._may_end.add(name)
        with (self.logs / f"{name}.log").open("ab") as output:
            self._started[name] = subprocess.Popen(
                list(command),
                env={**os.environ, **QUIET, **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C comes to the benchmark, which ends the others
                preexec_fn=_die_with_parent,  # noqa: PLW1509 - one system call, no lock
            )

    def wait(self, done: Callable[[], bool], what: str, *, seconds: float) -> None:
        """Wait for `done`.

        Raises:
            BenchmarkFailed: it takes longer, or a process ends that may not.
        """
        deadline = time.monotonic() + seconds
        while not done():
            for name, process in self._started.items():
                if process.poll() is not None and name not in self._may_end:
                    raise BenchmarkFailed(f"{name} ended ({process.returncode}): {self.tail(name)}")
            if time.monotonic() > deadline:
                tails = "\n".join(f"--- {name}\n{self.tail(name)}" for name in self._started)
                raise BenchmarkFailed(f"{what}: not there after {seconds:.0f} s\n{tails}")
            time.sleep(0.1)

    @property
    def seconds(self) -> dict[str, float]:
        """Processor seconds by role. What a process used in its last tenth of a second is not seen."""
        self._look()
        total: dict[str, float] = {}
        for process, (role, used) in list(self._used.items()):
            total[role] = total.get(role, 0.0) + used - self._before.get(process, 0.0)
        return total

    def count_anew(self) -> None:
        """From here on `peaks` and `seconds` tell of what comes; of memory, of no less than is held."""
        self._look()
        self._before = {process: used for process, (_, used) in self._used.items()}
        for number in self._living():
            with contextlib.suppress(OSError):
                Path(f"/proc/{number}/clear_refs").write_text("5")  # proc(5): VmHWM
        self.peaks.clear()

    def ended(self, name: str) -> int | None:
        """A process's exit code, None while it runs."""
        return self._started[name].poll()

    def tail(self, name: str) -> str:
        return (self.logs / f"{name}.log").read_text(errors="replace")[-3000:]

    def _watch(self) -> None:
        while not self._over.wait(_LOOK):
            self._look()

    def _look(self) -> None:
        with self._looking:
            self._look_once()

    def _look_once(self) -> None:
        table = _process_table()
        members = {process.pid for process in list(self._started.values())} | {
            number for number, began in self._seen.items() if _began(table, number) == began
        }
        grown = True
        while grown:
            more = {n for n, (parent, *_) in table.items() if parent in members} - members
            members |= more
            grown = bool(more)
        for number in members & table.keys():
            self._seen[number] = table[number][1]
            command, peak = _command(number), _peak(number)
            role = self.role(command)
            if role is not None and peak is not None:
                self.peaks[role] = max(self.peaks.get(role, 0), peak)
            if role is not None:
                # of a process that becomes another by exec, all counts for what it became
                self._used[number, table[number][1]] = role, table[number][2]

    def _living(self) -> list[int]:
        table = _process_table()
        return [n for n, began in self._seen.items() if _began(table, n) == began]


@contextlib.contextmanager
def _interrupts_later() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait until the context is left: taking processes down is not broken off."""
    came: list[int] = []
    before = {
        number: signal.signal(number, lambda received, _frame: came.append(received))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        raise KeyboardInterrupt


def _process_table() -> dict[int, tuple[int, str, float]]:
    """Parent, start time and processor seconds of every process that is no zombie."""
    table = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] != "Z":
            used = (int(fields[11]) + int(fields[12])) / _TICKS
            table[int(entry.name)] = (int(fields[1]), fields[19], used)
    return table


def _began(table: Mapping[int, tuple[int, str, float]], number: int) -> str | None:
    return table[number][1] if number in table else None


def _command(number: int) -> list[str]:
    try:
        return Path(f"/proc/{number}/cmdline").read_text().split("\0")
    except OSError:
        return []


def _peak(number: int) -> int | None:
    """VmHWM in bytes."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{number}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return None


def _send(number: int, what: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(number, what)


def _die_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
