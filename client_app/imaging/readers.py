"""Header readers as processes of their own, so that no file can take the service down with it.

A file may be made to hang its reader, to eat all memory, or to crash it. Each reader is a fresh
interpreter (not a fork: the service has threads and perhaps a GPU) with bounds on time and memory.
One that is killed by a file costs that file alone: its other files go to a new reader. What crosses
back is a `Record`, in which there is no identifier any more.

    service → reader   frames: length (4 bytes), then the content; the first is the setup as JSON,
                       each further one a batch of paths, joined by NUL
    reader → service   one line of JSON a path, in their order
    a shared file      how many files the reader has begun: the last is the one that killed it
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import resource
import selectors
import signal
import struct
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from client_app.imaging.layouts import open_layout
from client_app.imaging.record import Record
from client_app.imaging.set_aside import Reason
from client_app.site import Data

READER = "client_app.imaging.record:open_reader"
SECONDS = 5.0  # a file
MEMORY = 2 << 30  # bytes a reader
_BATCH = 64  # files handed over at once
_LONGEST_BATCH = 12_000  # bytes, unless one path is longer; two batches and more fit into a pipe
_GRACE = 3.0  # seconds after which the service ends a reader that did not end itself
_STARTING = 120.0  # seconds in which a reader must have begun its first file
_FAILED_STARTS = 3  # in a row
_FLUSH_BYTES, _FLUSH_SECONDS = 32_000, 0.1
_PR_SET_PDEATHSIG = 1
# Numerical libraries start threads when they are imported, each with its memory.
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class ReadersFailed(RuntimeError):
    """Readers end before they read anything: something is wrong with the installation."""


@dataclass
class _Reader:
    """A process and what it has been given: `begun` counts files, `answered` too."""

    process: subprocess.Popen[bytes]
    counter: int  # descriptor of the shared file
    given: deque[bytes] = field(default_factory=deque)  # and not answered
    answered: int = 0
    text: bytearray = field(default_factory=bytearray)
    progress: int = 0
    since: float = field(default_factory=time.monotonic)

    @property
    def begun(self) -> int:
        return int.from_bytes(os.pread(self.counter, 8, 0), "little")

    @property
    def output(self) -> int:
        assert self.process.stdout is not None
        return self.process.stdout.fileno()

    def give(self, content: bytes) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has died: that is seen when it is read from
            _write_all(self.process.stdin.fileno(), struct.pack(">I", len(content)) + content)

    def take(self) -> Iterator[tuple[bytes, Record]]:
        *lines, rest = bytes(self.text).split(b"\n")
        self.text[:] = rest
        for line in lines:
            self.answered += 1
            yield self.given.popleft(), Record(*json.loads(line))

    def hangs(self, seconds: float) -> bool:
        """Whether it has been over one file, or over its start, for too long."""
        begun, now = self.begun, time.monotonic()
        if begun != self.progress or not self.given:
            self.progress, self.since = begun, now
        allowed = seconds + _GRACE if begun > self.answered else _STARTING
        return now - self.since > allowed

    def end(self) -> int | None:
        """Its exit status; none where the system does not let it go (a disk that hangs)."""
        self.process.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()
        os.close(self.counter)
        try:
            return self.process.wait(timeout=_GRACE)
        except subprocess.TimeoutExpired:
            return None


class Readers:
    """Up to `workers` processes, started when there is work for them; a context manager."""

    def __init__(
        self,
        data: Data,
        key: bytes,
        *,
        workers: int | None = None,
        seconds: float = SECONDS,
        memory: int = MEMORY,
        reader: str = "",
    ) -> None:
        """Args:
        workers: none for one a usable core.
        seconds: wall-clock time for one file.
        memory: bytes that a process may allocate in all (RLIMIT_DATA).
        reader: `module:function` that makes the function from a path to its record;
            `READER` unless given.
        """
        self._setup = json.dumps(
            {
                "data": data.model_dump_json(),
                "key": key.hex(),
                "seconds": seconds,
                "memory": memory,
                "reader": reader or READER,
            }
        ).encode()
        self._seconds = seconds
        self._workers = workers or len(os.sched_getaffinity(0))
        self._readers: list[_Reader] = []
        self._again: deque[list[bytes]] = deque()
        self._deaths: Counter[bytes] = Counter()
        self._failed_starts = 0
        self._selector = selectors.DefaultSelector()

    def __enter__(self) -> Readers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for reader in self._readers:
            reader.process.kill()
        for reader in self._readers:
            reader.end()
        self._readers.clear()
        self._selector.close()

    def read(self, paths: Iterable[bytes]) -> Iterator[tuple[bytes, Record]]:
        """Each path, below the data's root, with its record; in no order.

        Raises:
            ReadersFailed: see there.
        """
        batches = _batches(paths)
        while True:
            self._hand_out(batches)
            if not any(reader.given for reader in self._readers):
                return
            ready = [choice.data for choice, _ in self._selector.select(timeout=0.5)]
            for reader in ready:
                content = os.read(reader.output, 1 << 18)
                reader.text += content
                reader.since = time.monotonic()
                yield from reader.take()
                if not content:
                    yield from self._bury(reader)
            for reader in list(self._readers):
                if reader not in ready and reader.hangs(self._seconds):
                    yield from self._bury(reader, hung=True)

    def _hand_out(self, batches: Iterator[list[bytes]]) -> None:
        """Give each reader a batch to work on, and then one to go on with."""
        for most in (0, _BATCH):
            for place in range(self._workers):
                if place < len(self._readers) and len(self._readers[place].given) > most:
                    continue
                batch = self._again.popleft() if self._again else next(batches, None)
                if batch is None:
                    return
                if place == len(self._readers):
                    self._start()
                self._readers[place].give(b"\0".join(batch))
                self._readers[place].given.extend(batch)

    def _start(self) -> None:
        counter = os.memfd_create("files begun")
        os.pwrite(counter, bytes(8), 0)
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__, str(os.getpid()), str(counter)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            pass_fds=(counter,),
            # the code that runs here, wherever it was imported from
            env={**os.environ, **_ONE_THREAD, "PYTHONPATH": os.pathsep.join(_absolute(sys.path))},
        )
        reader = _Reader(process, counter)
        self._readers.append(reader)
        self._selector.register(reader.output, selectors.EVENT_READ, reader)
        reader.give(self._setup)

    def _bury(self, reader: _Reader, *, hung: bool = False) -> Iterator[tuple[bytes, Record]]:
        """End a reader; the file that was the end of it gets its reason, its others another reader."""
        self._readers.remove(reader)
        self._selector.unregister(reader.output)
        begun = reader.begun
        status = reader.end()
        self._failed_starts = 0 if begun else self._failed_starts + 1
        if self._failed_starts >= _FAILED_STARTS:
            raise ReadersFailed("the processes that read headers end before they read any")
        left = list(reader.given)
        if begun > reader.answered:
            position = begun - reader.answered - 1
            path = left[position]
            self._deaths[path] += 1
            if hung or status == -signal.SIGALRM:
                del left[position]
                detail = f"its header was not read in {self._seconds:g} seconds"
                yield path, Record(Reason.TOO_SLOW, detail)
            elif self._deaths[path] > 1:  # the first may have been the system's doing
                del left[position]
                yield path, Record(Reason.CORRUPT, "reading it ended the program that did")
            else:
                self._again.append([left.pop(position)])
        if left:
            self._again.append(left)


def _batches(paths: Iterable[bytes]) -> Iterator[list[bytes]]:
    iterator = iter(paths)
    rest: list[bytes] = []
    while batch := rest + list(islice(iterator, _BATCH - len(rest))):
        length, fitting = 0, 0
        while fitting < len(batch) and (
            not fitting or length + len(batch[fitting]) < _LONGEST_BATCH
        ):
            length += len(batch[fitting])
            fitting += 1
        rest = batch[fitting:]
        yield batch[:fitting]


def _absolute(path: Iterable[str]) -> list[str]:
    return [str(Path(folder).absolute()) for folder in path]


def _serve(parent: int, counter: int) -> None:
    """A reader's life: ends with its service, whatever becomes of that."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the service's to handle
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    answers = os.dup(1)
    quiet = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # readers of files quote what they read
        os.dup2(quiet, stream)
    frames = sys.stdin.buffer
    setup = json.loads(_frame(frames) or b"{}")
    if not setup:
        return
    read = _open(setup)
    resource.setrlimit(resource.RLIMIT_DATA, (setup["memory"], setup["memory"]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump would hold identifiers
    begun = 0
    while batch := _frame(frames):
        lines: list[str] = []
        size, flushed = 0, time.monotonic()
        for path in batch.split(b"\0"):
            begun += 1
            os.pwrite(counter, begun.to_bytes(8, "little"), 0)
            signal.setitimer(signal.ITIMER_REAL, setup["seconds"])  # ends the process
            lines.append(json.dumps(read(path)))
            size += len(lines[-1])
            if size > _FLUSH_BYTES or time.monotonic() - flushed > _FLUSH_SECONDS:
                _write(answers, lines)
                size, flushed = 0, time.monotonic()
        _write(answers, lines)


def _open(setup: dict[str, Any]) -> Callable[[bytes], Record]:
    data = Data.model_validate_json(setup["data"])
    module, _, function = setup["reader"].partition(":")
    make = getattr(importlib.import_module(module), function)
    read: Callable[[bytes], Record] = make(
        data.root, open_layout(data), bytes.fromhex(setup["key"])
    )
    return read


def _frame(stream: BinaryIO) -> bytes:
    """The next one; empty at the end of the stream."""
    head = stream.read(4)
    if len(head) < 4:
        return b""
    (length,) = struct.unpack(">I", head)
    return stream.read(length)


def _write(descriptor: int, lines: list[str]) -> None:
    signal.setitimer(signal.ITIMER_REAL, 0)  # the service may take its time
    _write_all(descriptor, "".join(f"{line}\n" for line in lines).encode())
    lines.clear()


def _write_all(descriptor: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]


if __name__ == "__main__":
    _serve(int(sys.argv[1]), int(sys.argv[2]))
