"""The ledger's file: rows in a hash chain, in SQLite, to which one can only add.

A row's hash is SHA-256 over the hash before it and the row's own text: the last stands for all. Row 0
says whose ledger it is; each other row is a charge. Beside the file lies `ledger.head`, which tells how
far the ledger was: a copy of the file that was restored from an earlier day is behind it.

A row is on the disk when `append`'s transaction ends (write-ahead log, `synchronous=FULL`). Whatever is
missing, damaged, of others, open to others, or cannot be written ends in a `LedgerError`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import sqlite3
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

from client_app.private_file import write_private
from federation.messages import Lodged, Reason
from federation.schema import ConfigError

_FORMAT = 1
_PATIENCE = 120.0  # seconds to wait for another process: longer than any accountant takes
_SCHEMA = (
    """CREATE TABLE charges (
    position INTEGER PRIMARY KEY,  -- from 0, without gaps
    content TEXT NOT NULL,         -- canonical JSON
    hash TEXT NOT NULL             -- SHA-256 of the previous row's hash and this row's content
) STRICT""",
    # Without this one INSERT OR REPLACE would get past the other two.
    """CREATE TRIGGER only_the_next BEFORE INSERT ON charges
WHEN NEW.position IS NOT (SELECT coalesce(max(position) + 1, 0) FROM charges)
BEGIN SELECT RAISE(ABORT, 'a charge is only added at the end'); END""",
    """CREATE TRIGGER no_update BEFORE UPDATE ON charges
BEGIN SELECT RAISE(ABORT, 'a charge is never changed'); END""",
    """CREATE TRIGGER no_delete BEFORE DELETE ON charges
BEGIN SELECT RAISE(ABORT, 'a charge is never removed'); END""",
)
_RESTORE = (
    "Restore the newest backup of it and of its .head file. Without one nobody knows what was spent: "
    "then serve no more private runs on these patients"
)


class LedgerError(Exception):
    """The ledger does not pay. `reason` may leave; the text is for the hospital's eyes alone."""

    def __init__(self, reason: Reason, text: str) -> None:
        super().__init__(text)
        self.reason = reason


@dataclass(frozen=True)
class Chain:
    """A ledger's rows as they were read, every hash found right."""

    contents: list[str]
    hashes: list[str]

    @property
    def head(self) -> Lodged:
        """Row 0 is no charge, so the last position is also the number of charges."""
        return Lodged(len(self.hashes) - 1, self.hashes[-1])

    def holds(self, mark: Lodged) -> bool:
        """Whether the ledger once ended so."""
        return 0 <= mark.charges < len(self.hashes) and self.hashes[mark.charges] == mark.head


class LedgerFile:
    """An open ledger. One process at a time adds to it; others wait."""

    def __init__(self, path: Path, cohort: str) -> None:
        """Open it; `read` and `locked` verify it.

        Raises:
            LedgerError: it is not there, or cannot be used.
        """
        self.path, self.cohort = path, cohort
        self.head_path = path.with_suffix(".head")
        self._require_private()
        with self._failing_closed():
            self._database = sqlite3.connect(
                f"{path.absolute().as_uri()}?mode=rw",
                uri=True,
                timeout=_PATIENCE,
                isolation_level=None,
            )
        try:
            with self._failing_closed():
                self._require_schema()
                self._database.execute("PRAGMA journal_mode = WAL")
                self._database.execute("PRAGMA synchronous = FULL")
        except BaseException:
            self.close()
            raise

    @classmethod
    def create(cls, path: Path, cohort: str) -> None:
        """Make an empty ledger. It appears whole or not at all, and replaces nothing.

        Raises:
            ConfigError: there is one, or was one; or the folder cannot be written to.
        """
        head_path = path.with_suffix(".head")
        if head_path == path:
            raise ConfigError(f"{path}: the ledger cannot end in .head, as its mark does")
        if path.exists():
            raise ConfigError(f"{path} is there already; a ledger is made once, for all time")
        for trace in (head_path, path.with_name(path.name + "-wal")):
            if trace.exists():
                raise ConfigError(
                    f"{path} is gone, but {trace.name} shows that there was one. {_RESTORE}"
                )
        first = {
            "cohort": cohort,
            "created": datetime.now(UTC).isoformat(timespec="microseconds"),
            "format": _FORMAT,
        }
        content = json.dumps(first, sort_keys=True)
        draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}.draft")
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.close(os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
            try:
                _write_first(draft, content)
                os.link(draft, path)  # unlike a rename it never replaces
            except FileExistsError:
                raise ConfigError(f"{path} is there already: another process made it") from None
            finally:
                draft.unlink(missing_ok=True)
            _sync(path.parent)
            _write_head(head_path, Lodged(0, _hash("", content)), cohort)
        except (OSError, sqlite3.Error) as error:
            why = error.strerror if isinstance(error, OSError) else str(error)
            raise ConfigError(f"{path} cannot be made: {why}") from None

    def close(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            self._database.close()

    def read(self, lodged: Lodged | None = None) -> Chain:
        """All rows, verified.

        Raises:
            LedgerError: tampered with, cut, of another cohort, or older than `ledger.head` or `lodged`.
        """
        head = self._head()  # before the rows: a process that adds meanwhile moves both
        with self._failing_closed():
            rows = self._database.execute(
                "SELECT position, content, hash FROM charges ORDER BY position"
            ).fetchall()
        chain = self._verified(rows)
        self._require_cohort(chain.contents[0])
        if head is None and chain.head.charges:
            head = self._head()  # it came while the rows were read
        if head is None and chain.head.charges:
            self._unusable(
                f"its {self.head_path.name} is gone. Restore that file from the newest backup; if you "
                "are certain that no charge is missing here, write into it: "
                + _head_text(chain.head, self.cohort)
            )
        if head is not None and not chain.holds(head):
            self._unusable(
                f"{self.head_path.name} knows of {head.charges} charges and the ledger of "
                f"{chain.head.charges}, or of others: it is an older copy. {_RESTORE}"
            )
        if lodged is not None and not chain.holds(lodged):
            self._unusable(
                f"the coordinator was told of {lodged.charges} charges and the ledger knows of "
                f"{chain.head.charges}, or of others: it is an older copy. {_RESTORE}"
            )
        return chain

    @contextlib.contextmanager
    def locked(self, lodged: Lodged | None = None) -> Iterator[Chain]:
        """The verified rows, while nobody else can add to them; what was appended is then synced.

        If the body raises, nothing was appended.

        Raises:
            LedgerError: as `read`; or the disk does not take what was appended.
        """
        with self._transaction():
            chain = self.read(lodged)
            if not self.head_path.exists():  # killed while the ledger was made
                self._note(chain.head)
            yield chain

    def append(self, chain: Chain, content: str) -> Lodged:
        """Add a row after those of `chain`, inside `locked`; the new head."""
        head = Lodged(len(chain.hashes), _hash(chain.hashes[-1], content))
        self._database.execute(
            "INSERT INTO charges VALUES (?, ?, ?)", (head.charges, content, head.head)
        )
        return head

    def note_head(self) -> None:
        """Have `ledger.head` say how far the ledger is.

        Under the lock: a slower process could else put an older head over a newer one.
        """
        with self._transaction():
            ((charges, head),) = self._database.execute(
                "SELECT position, hash FROM charges ORDER BY position DESC LIMIT 1"
            )
            self._note(Lodged(charges, head))

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._failing_closed():
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._database.execute("COMMIT")
            finally:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")

    def _verified(self, rows: list[tuple[Any, Any, Any]]) -> Chain:
        hashes: list[str] = []
        previous = ""
        for expected, (position, content, found) in enumerate(rows):
            previous = _hash(previous, content)
            if (position, found) != (expected, previous):
                self._unusable(f"the chain breaks at charge {expected}: it was altered. {_RESTORE}")
            hashes.append(previous)
        if not hashes:
            self._unusable(f"it has lost its first row. {_RESTORE}")
        return Chain([content for _, content, _ in rows], hashes)

    def _require_private(self) -> None:
        # Looked at, never opened here: closing any descriptor of a file drops all locks that SQLite
        # holds on it for this process (fcntl(2)).
        try:
            mode = self.path.stat().st_mode
        except FileNotFoundError:
            was_there = self.head_path.exists()
            raise LedgerError(
                Reason.NO_LEDGER,
                f"{self.path} is gone, but {self.head_path.name} shows that there was one. {_RESTORE}"
                if was_there
                else f"there is no ledger {self.path}; `hospital ledger create` makes it, once",
            ) from None
        except OSError as error:
            self._unusable(f"it cannot be looked at: {error.strerror}")
        if not stat.S_ISREG(mode):
            self._unusable("it is not a file")
        if mode & 0o077:
            self._unusable(
                f"it has mode {stat.S_IMODE(mode):04o}: others than its owner may use it. Find out who "
                "could have changed it, then set its mode to 0600"
            )

    def _require_schema(self) -> None:
        """That it is a ledger of ours, with its triggers; nothing is written before this is known."""
        found = [sql for (sql,) in self._database.execute("SELECT sql FROM sqlite_schema")]
        if found != list(_SCHEMA):
            self._unusable(f"it is empty, is no ledger, or has lost its triggers. {_RESTORE}")

    def _require_cohort(self, first: str) -> None:
        try:
            content = json.loads(first)
            cohort, version = content["cohort"], content["format"]
        except (ValueError, KeyError, TypeError):
            self._unusable(f"its first row cannot be read. {_RESTORE}")
        if version != _FORMAT:
            self._unusable(f"it has format {version}; this Consilium reads format {_FORMAT}")
        if cohort != self.cohort:
            self._unusable(
                "it belongs to other patients: to another pseudonym.key or another hospital's name. "
                "Restore the key that it was made with, or name this hospital's own ledger in the "
                "site configuration"
            )

    def _head(self) -> Lodged | None:
        try:
            content = json.loads(self.head_path.read_bytes()[:4096])
            return Lodged(int(content["charges"]), str(content["head"]))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError):
            self._unusable(
                f"{self.head_path.name} cannot be read. Restore it from the newest backup"
            )

    def _note(self, head: Lodged) -> None:
        try:
            _write_head(self.head_path, head, self.cohort)
        except (OSError, ConfigError):
            self._unusable(f"{self.head_path} cannot be written; look at its folder and the disk")

    def _unusable(self, what: str) -> NoReturn:
        raise LedgerError(Reason.LEDGER_UNUSABLE, f"{self.path}: {what}") from None

    @contextlib.contextmanager
    def _failing_closed(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, UnicodeError) as error:
            match getattr(error, "sqlite_errorcode", 0) & 0xFF:
                case sqlite3.SQLITE_BUSY:
                    self._unusable(
                        f"another process has held it for {_PATIENCE:.0f} s; look for it"
                    )
                case sqlite3.SQLITE_FULL:
                    self._unusable("the disk is full; free some space")
                case sqlite3.SQLITE_IOERR:
                    self._unusable("the disk does not answer; look at it and at the space left")
                case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM:
                    self._unusable("it cannot be written to; look at its owner and its folder's")
                case _:
                    self._unusable(f"it is damaged, or no ledger. {_RESTORE}")


def _hash(previous: str, content: str) -> str:
    return hashlib.sha256(f"{previous}\n{content}".encode()).hexdigest()


def _write_first(path: Path, content: str) -> None:
    """The tables and row 0, on the disk and without a log beside it when this returns."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        database.execute("BEGIN IMMEDIATE")
        for statement in _SCHEMA:
            database.execute(statement)
        database.execute("INSERT INTO charges VALUES (0, ?, ?)", (content, _hash("", content)))
        database.execute("COMMIT")
    _sync(path)


def _write_head(path: Path, head: Lodged, cohort: str) -> None:
    write_private(path, _head_text(head, cohort).encode())
    _sync(path.parent)  # or its new name is lost in a power cut


def _head_text(head: Lodged, cohort: str) -> str:
    return json.dumps({"charges": head.charges, "cohort": cohort, "head": head.head})


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
