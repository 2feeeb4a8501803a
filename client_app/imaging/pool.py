"""Processes that work on images beside this one, and never outlive it.

They are forked from a server that has imported the libraries and done nothing else: this process may
hold threads and a GPU, neither of which survives a fork. So they share what they imported, and only
the first start takes seconds. Each runs PyTorch on one thread. What they are given and what they
answer goes through sockets and not through /dev/shm, of which a container has 64 MB unless it is told
otherwise.

Not `concurrent.futures.ProcessPoolExecutor`: all its processes answer through one pipe, so that one
which is killed in the middle of an answer leaves the reader waiting for ever, and takes what the
others do with it.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from client_app.imaging.set_aside import silenced

Given = TypeVar("Given")
Made = TypeVar("Made")

# Seconds that a process may take to come up: PyTorch and MONAI from a cold disk.
_LONGEST_START = 300.0
_CONTEXT = multiprocessing.get_context("forkserver")
_LIBRARIES = ["monai.transforms", "nibabel", "pydicom", "torch"]


class Lost(RuntimeError):
    """A process ended in the middle of its work, or was stuck in it for longer than its limit."""


class NotStarted(RuntimeError):
    """A process ended before it had any work."""


class Pool(Generic[Given, Made]):
    """Processes that do one kind of work. Use it in a `with`: leaving it ends them at once."""

    def __init__(self, work: Callable[[Given], Made], *, workers: int, limit: float) -> None:
        """Args:
        work: what to do; pickled once, so it is the place of what all calls have in common.
        limit: seconds that one call may take; a process that is stuck for longer is ended.
        """
        pickled = pickle.dumps(work)
        self._limit = limit
        self._processes = [_Process(pickled) for _ in range(workers)]
        self._idle: SimpleQueue[_Process] = SimpleQueue()
        self._threads = ThreadPoolExecutor(workers)  # each waits for one process
        self._starts = [self._threads.submit(self._start, one) for one in self._processes]

    @property
    def ready(self) -> bool:
        """Whether a process is up. Importing PyTorch takes seconds, which need not be lost.

        Raises:
            NotStarted: one of them never will be.
        """
        done = [start for start in self._starts if start.done()]
        for start in done:
            start.result()
        return bool(done)

    def submit(self, given: Given) -> Future[Made]:
        """Have it done by the first process that is free.

        The future raises what the work raises, and `Lost`, after which another process takes the
        place of the one that was lost, or `NotStarted`.
        """
        return self._threads.submit(self._do, given)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        for process in self._processes:
            process.close()  # which also wakes the thread that waits for it
        # A thread that waits for the server has nothing to end.
        self._threads.shutdown(wait=all(start.done() for start in self._starts))

    def _start(self, process: _Process) -> None:
        try:
            process.start()
        finally:
            self._idle.put(process)

    def _do(self, given: Given) -> Made:
        process = self._idle.get()
        try:
            if not process.up:
                process.start()
            made: Made = process.do(given, self._limit)
            return made
        finally:
            self._idle.put(process)


def each(
    work: Callable[[Given], Made], given: Sequence[Given], *, workers: int, limit: float
) -> Iterator[tuple[int, Made | Lost]]:
    """The position of each of `given` and what `work` makes of it, in the order of completion.

    Work that ends its process (a decoder in C that crashes, memory that runs out) gives `Lost` and
    costs nothing but itself. Any other exception is raised.
    """
    if not given:
        return
    with Pool(work, workers=min(workers, len(given)), limit=limit) as pool:
        positions = {pool.submit(one): position for position, one in enumerate(given)}
        for future in as_completed(positions):
            try:
                made: Made | Lost = future.result()
            except Lost as lost:
                made = lost
            yield positions[future], made


class _Process:
    """One process and the socket to it, whose other end no other process has: its end is heard."""

    def __init__(self, work: bytes) -> None:
        self.up = False
        self._work = work
        self._closed = False
        self._lock = threading.Lock()  # nothing starts after the end
        self._process: ForkServerProcess | None = None
        self._socket: Connection

    def start(self) -> None:
        """Start it, and wait until it is up; seconds."""
        _await_server()
        with self._lock:
            if self._closed:
                raise NotStarted("the pool is closed")
            self._socket, theirs = _CONTEXT.Pipe()
            # The work as bytes: they are read before what they mean is imported.
            self._process = _CONTEXT.Process(target=_serve, args=(theirs, self._work), daemon=True)
            self._process.start()
            theirs.close()
        with contextlib.suppress(EOFError, OSError):
            self.up = self._socket.poll(_LONGEST_START) and self._socket.recv() == "up"
        if not self.up:
            self._end()
            raise NotStarted(
                "a process that prepares images did not start: see whether memory ran out, or use none"
            )

    def do(self, given: Any, limit: float) -> Any:
        try:
            self._socket.send(given)
            if not self._socket.poll(limit):
                raise Lost(f"a process that prepares images was stuck for {limit:.0f} s")
            well, answer = self._socket.recv()
        except Lost:
            self._end()
            raise
        except (EOFError, OSError):
            self._end()
            raise Lost(
                "a process that prepares images ended: see whether memory ran out, or use none"
            ) from None
        if not well:
            raise answer
        return answer

    def close(self) -> None:
        """End it at once, whatever it does, and for good."""
        with self._lock:
            self._closed = True
        self._end()

    def _end(self) -> None:
        with self._lock:
            self.up = False
            if self._process is not None:
                self._process.kill()
                self._process.join()


def _await_server() -> None:
    """Return when a process can be forked at once: outside of any lock, for it may take seconds."""
    _CONTEXT.set_forkserver_preload(_LIBRARIES)
    probe = _CONTEXT.Process(target=int, daemon=True)
    probe.start()
    probe.join()


# --- in the processes ---------------------------------------------------------------------------


def _serve(socket: Connection, work: bytes) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    threading.Thread(target=_end_with_parent, daemon=True).start()
    do = pickle.loads(work)  # noqa: S301 - our parent's own

    import torch

    torch.set_num_threads(1)
    with contextlib.suppress(EOFError, OSError):  # the parent has gone
        socket.send("up")
        while True:
            given = socket.recv()
            socket.send(_answer(do, given))


def _answer(do: Callable[[Any], Any], given: Any) -> tuple[bool, Any]:
    try:
        with silenced():
            return True, do(given)
    except Exception as error:
        try:
            return False, pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
        except Exception:
            return False, RuntimeError(type(error).__name__)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
