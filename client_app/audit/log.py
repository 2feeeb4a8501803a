"""The audit log: one line a deed, never rewritten, and its end held fast by a second file.

`audit.jsonl` has the chained entries (see `entry.py`); `audit.head` names the last of them, so that
dropped last lines are found too. An entry is on the disk before its head is, and its head before
`append` returns. So after a crash the log is ahead of its head by one entry at most, which the next
`append` adopts, and never behind. Bytes after the last whole line are a write that was cut off: nobody
was told that it had happened, so the next `append` moves them to `audit.torn` and records that as an
entry.

Whoever may write to the state folder can write log and head anew from the first line on. No file in
that folder shows this; a head that is kept elsewhere does (`hospital audit verify --head`).
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path

from client_app.audit.entry import GENESIS, LARGEST, Entry, NotAnEntry, bounded, canonical
from federation import journal

record = getLogger("consilium")

EVENTS = frozenset(
    {
        *("started", "request", "charge", "answer", "letter", "repeat", "refusal", "code_refused"),
        *("identity", "roster", "backup", "restored"),
    }
)

_TORN = "torn"  # written by the log itself
_CHUNK = 1 << 16  # bytes read at once when looking for the last line
_KEEP = (
    "keep the state folder as it is, copy it, and find out who or what wrote there; nothing is served "
    "meanwhile"
)


class AuditError(Exception):
    """The log is not as it was written, or cannot be written; nothing may be served without it.

    Attributes:
        line: the first wrong line, from 1; None where the fault is of a whole file.
        what: what is wrong, as words after `line N of FILE`, or as a sentence.
        remedy: what to do.
    """

    def __init__(self, line: int | None, what: str, remedy: str = _KEEP) -> None:
        super().__init__(f"{what if line is None else f'line {line} {what}'}; {remedy}")
        self.line, self.what, self.remedy = line, what, remedy


@dataclass(frozen=True)
class _Head:
    """Which entry is the last one."""

    sequence: int
    hash: str


_START = _Head(0, GENESIS)


class Audit:
    """A hospital's audit log. Several processes may append at once, and at any length for the same."""

    def __init__(self, path: Path) -> None:
        """`path` is the log's; `.head` and `.torn` lie beside it. Nothing is opened or made yet."""
        self.path = path
        self._head_path, self._torn_path = path.with_suffix(".head"), path.with_suffix(".torn")

    def append(self, event: str, /, **fields: object) -> str:
        """Add an entry; it is on the disk when this returns.

        Args:
            event: one of `EVENTS`.
            fields: text (cut to 200 letters, escaped), finite numbers, bool, None, lists, dicts.

        Returns:
            The entry's hash, which stands for the whole log up to it.

        Raises:
            ValueError, TypeError: an unknown event, or a value that the log may not hold.
            AuditError: the log's end is not as it was written, or the disk is full or not writable.
                The entry may then be in the log all the same: it can only hold too much.
        """
        if event not in EVENTS:
            raise ValueError(f"unknown event; known: {', '.join(sorted(EVENTS))}")
        content = {name: bounded(value) for name, value in fields.items()}
        if len(canonical(content)) > LARGEST // 2:
            raise ValueError("an entry of more than half a MiB")
        try:
            with self._opened() as log:
                fcntl.flock(log, fcntl.LOCK_EX)
                head = self._head()
                last, end = self._last(log)
                self._check_end(last, head)
                if last is not None and last.sequence > head.sequence:
                    self._write_head(last)
                if end < os.fstat(log).st_size:
                    last = self._set_torn_aside(log, last, end)
                entry = Entry.after(last, event, content)
                self._write(log, entry)
                _tell(entry)
                return entry.hash
        except OSError as error:
            raise AuditError(
                None,
                f"{self.path} cannot be written: {error.strerror}",
                "make room on its disk, and let this user write there; nothing is served meanwhile",
            ) from error

    def entries(self) -> Iterator[Entry]:
        """The entries that are there now, oldest first, each checked against the one before it.

        Raises:
            AuditError: at the first line that is not as it was written, or after the last one where
                the end is not the one that the head names.
        """
        try:
            log = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            self._refuse_if_missing()
            return
        except OSError as error:
            raise self._unreadable(error) from error
        with os.fdopen(log, "rb") as file:
            fcntl.flock(log, fcntl.LOCK_SH)  # entries are appended later, but none of these changes
            end = self._last_whole(log)[1]
            head = self._head()
            fcntl.flock(log, fcntl.LOCK_UN)
            last: Entry | None = None
            number = 0
            while file.tell() < end:
                number += 1
                try:
                    entry = Entry.parse(file.readline(LARGEST + 1))
                    entry.follows(last)
                except NotAnEntry as fault:
                    raise AuditError(number, str(fault)) from None
                yield entry
                last = entry
            self._check_end(last, head)

    def copy_to(self, path: Path) -> None:
        """Copy log and head as they are together at one moment; appending waits only for a look.

        Raises:
            AuditError: it cannot be read.
            OSError: the copy cannot be written.
        """
        with self._opened() as log:
            fcntl.flock(log, fcntl.LOCK_SH)
            end, head = self._last_whole(log)[1], self._head()
            fcntl.flock(log, fcntl.LOCK_UN)
            with path.open("xb") as copy:
                for start in range(0, end, _CHUNK):
                    copy.write(os.pread(log, min(_CHUNK, end - start), start))
        if head != _START:
            path.with_suffix(".head").write_bytes(canonical(vars(head)))

    def verify(self) -> tuple[int, str]:
        """Check every line, the chain and the end.

        Returns:
            How many entries there are, and the hash of the last (64 zeros where there is none).

        Raises:
            AuditError: the log is not as it was written.
        """
        count, head = 0, GENESIS
        for entry in self.entries():
            count, head = entry.sequence, entry.hash
        return count, head

    @contextmanager
    def _opened(self) -> Iterator[int]:
        """The log for reading and appending; made where there has never been one."""
        flags = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC
        try:
            log = os.open(self.path, flags)
        except FileNotFoundError:
            self._refuse_if_missing()
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            log = os.open(self.path, flags | os.O_CREAT, 0o600)
            self._sync_folder()
        try:
            yield log
        finally:
            os.close(log)

    def _refuse_if_missing(self) -> None:
        # the log is looked for again, since another process may just have made both
        if self._head_path.exists() and not self.path.exists():
            raise AuditError(
                None,
                f"{self.path} is missing, and {self._head_path.name} tells that there was one",
                "put it back from a copy of the state folder; nothing is served meanwhile",
            )

    def _head(self) -> _Head:
        try:
            content = self._head_path.read_bytes()
        except FileNotFoundError:
            return _START
        except OSError as error:
            raise self._unreadable(error) from error
        try:
            head = _Head(**json.loads(content))
            if canonical(vars(head)) == content and type(head.sequence) is int:
                return head
        except (ValueError, TypeError, RecursionError):
            pass
        raise AuditError(None, f"{self._head_path} is damaged or was altered")

    def _check_end(self, last: Entry | None, head: _Head) -> None:
        """Whether the log ends where its head says, or one entry later."""
        sequence, last_hash = (last.sequence, last.hash) if last else (0, GENESIS)
        if sequence < head.sequence:
            raise AuditError(
                sequence + 1,
                f"is missing: the log ends after {sequence} of {head.sequence} entries",
            )
        if sequence > head.sequence + 1:
            raise AuditError(
                head.sequence + 1,
                f"and what follows are unknown to {self._head_path.name}: they were put in, or it is "
                "missing or an older copy",
            )
        joint = last_hash if last is None or sequence == head.sequence else last.previous
        if joint != head.hash:
            raise AuditError(
                max(head.sequence, 1),
                f"is not the one that {self._head_path.name} names: one of the two was rewritten",
            )

    def _last_whole(self, log: int) -> tuple[bytes, int]:
        """The last line that has an end, and the offset after it; both empty where there is none."""
        start = os.fstat(log).st_size
        tail = b""
        while start > 0 and tail.count(b"\n") < 2:
            if len(tail) > 2 * LARGEST + _CHUNK:
                raise AuditError(None, f"{self.path} does not end in lines: it was overwritten")
            step = min(_CHUNK, start)
            start -= step
            tail = os.pread(log, step, start) + tail
        newline = tail.rfind(b"\n")
        if newline < 0:
            return b"", 0
        return tail[tail.rfind(b"\n", 0, newline) + 1 : newline + 1], start + newline + 1

    def _last(self, log: int) -> tuple[Entry | None, int]:
        line, end = self._last_whole(log)
        if not line:
            return None, 0
        try:
            return Entry.parse(line), end
        except NotAnEntry as fault:
            raise AuditError(None, f"the last line of {self.path} {fault}") from None

    def _set_torn_aside(self, log: int, last: Entry | None, end: int) -> Entry:
        torn = os.pread(log, os.fstat(log).st_size - end, end)
        aside = os.open(
            self._torn_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600
        )
        try:
            _write_all(aside, torn)
            os.fsync(aside)
        finally:
            os.close(aside)
        os.ftruncate(log, end)
        content = {"bytes": len(torn), "sha256": hashlib.sha256(torn).hexdigest()}
        entry = Entry.after(last, _TORN, {name: bounded(value) for name, value in content.items()})
        self._write(log, entry)
        return entry

    def _write(self, log: int, entry: Entry) -> None:
        size = os.fstat(log).st_size
        try:
            _write_all(log, entry.line())
            os.fsync(log)
        except OSError:
            # leaves no half of a line; where this fails too, the next append sets it aside
            with suppress(OSError):
                os.ftruncate(log, size)
                os.fsync(log)
            raise
        # from here on nothing is taken back: the head may be on the disk even where writing it fails
        self._write_head(entry)

    def _write_head(self, entry: Entry) -> None:
        draft = self._head_path.with_suffix(".head.draft")
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            _write_all(handle, canonical({"sequence": entry.sequence, "hash": entry.hash}))
            os.fsync(handle)
        finally:
            os.close(handle)
        draft.replace(self._head_path)
        self._sync_folder()

    def _sync_folder(self) -> None:
        folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _unreadable(self, error: OSError) -> AuditError:
        return AuditError(
            None,
            f"{self.path} cannot be read: {error.strerror}",
            "run this as the user that the hospital's processes run as",
        )


def _tell(entry: Entry) -> None:
    """What the log that may leave learns of an entry: no more than the coordinator knows."""
    known = {name: entry.fields.get(name) for name in ("run", "round", "reason", "bytes")}
    record.info("an entry in the audit log", extra=journal.told(entry.event, **known))


def _write_all(handle: int, content: bytes) -> None:
    while content:
        content = content[os.write(handle, content) :]
