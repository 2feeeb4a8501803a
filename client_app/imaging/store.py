"""The SQLite file of the index: its tables, and how it is opened, changed and made anew."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

# Raise it when readers or the grouping learn something new: an index of another version is made anew.
_VERSION = 2
_SCHEMA = """
CREATE TABLE about (
    origin BLOB NOT NULL,         -- what the rows depend on besides the files
    walked REAL                   -- when the last complete look at the folders began; null if none
);
CREATE TABLE files (
    number INTEGER PRIMARY KEY,
    path BLOB NOT NULL UNIQUE,    -- below the data's root, as the file system spells it
    size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    ctime_ns INTEGER NOT NULL,
    reason TEXT NOT NULL,         -- the rest is a Record
    detail TEXT NOT NULL,
    kind TEXT NOT NULL,
    patient TEXT NOT NULL,
    study TEXT NOT NULL,
    series TEXT NOT NULL,
    instance TEXT NOT NULL,
    frame TEXT NOT NULL,
    content TEXT NOT NULL
);
CREATE INDEX members ON files (series) WHERE kind = 'planes';
CREATE INDEX singles ON files (patient, study, series, path) WHERE kind IN ('radiograph', 'nifti');
CREATE INDEX masks ON files (path) WHERE kind IN ('segmentation', 'structure_set', 'mask');
CREATE INDEX instances ON files (instance) WHERE instance != '';
CREATE INDEX bad ON files (path) WHERE reason != '';
CREATE TABLE volumes (            -- of series
    series TEXT NOT NULL,
    volume INTEGER NOT NULL,      -- position among those that can be used, from 0; or among the others
    volumes INTEGER NOT NULL,     -- how many can be used
    patient TEXT NOT NULL,
    study TEXT NOT NULL,
    reason TEXT NOT NULL,
    detail TEXT NOT NULL,
    path BLOB NOT NULL,           -- of the first file
    files TEXT NOT NULL,          -- their numbers as JSON
    content TEXT NOT NULL
);
CREATE INDEX usable ON volumes (patient, study, series, volume) WHERE reason = '';
CREATE INDEX unusable ON volumes (path) WHERE reason != '';
CREATE INDEX of_series ON volumes (series);
-- Series whose files are not those that their volumes were made of. That it is filled together with
-- the change, whatever makes it, is why an update may be killed at any moment.
CREATE TABLE stale (series TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TRIGGER came AFTER INSERT ON files WHEN NEW.kind = 'planes' BEGIN
    INSERT INTO stale SELECT NEW.series WHERE NEW.series NOT IN stale;
END;
CREATE TRIGGER went AFTER DELETE ON files WHEN OLD.kind = 'planes' BEGIN
    INSERT INTO stale SELECT OLD.series WHERE OLD.series NOT IN stale;
END;
CREATE TRIGGER changed AFTER UPDATE ON files WHEN 'planes' IN (OLD.kind, NEW.kind) BEGIN
    INSERT INTO stale SELECT OLD.series WHERE OLD.kind = 'planes' AND OLD.series NOT IN stale;
    INSERT INTO stale SELECT NEW.series WHERE NEW.kind = 'planes' AND NEW.series NOT IN stale;
END;
"""
# What a walk finds, in a file of its own: a million paths need not be held in memory, and the folder
# for temporary files is not as private as the state is.
_WALK = """
CREATE TABLE walk.found (path BLOB PRIMARY KEY, size, mtime_ns, ctime_ns, reason, detail) WITHOUT ROWID;
CREATE TABLE walk.changed (path BLOB, reason);
"""


def open_store(path: Path, origin: bytes) -> sqlite3.Connection:
    """The index of this origin; one of another origin or version is removed, and an empty one made."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    path.chmod(0o600)
    database = connect(path)
    try:
        (version,) = database.execute("PRAGMA user_version").fetchone()
        known = None
        if version == _VERSION:
            known = database.execute("SELECT origin FROM about").fetchone()
        if known == (origin,):
            return database
        empty = version == 0 and not database.execute("SELECT 1 FROM sqlite_schema").fetchone()
        if empty:
            with transaction(database):
                for statement in _statements(_SCHEMA):
                    database.execute(statement)
                database.execute("INSERT INTO about VALUES (?, NULL)", (origin,))
                database.execute(f"PRAGMA user_version = {_VERSION}")
            return database
    except BaseException:
        database.close()
        raise
    database.close()
    remove(path)
    return open_store(path, origin)


def connect(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=60, isolation_level=None)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = NORMAL")
    database.execute("PRAGMA temp_store = MEMORY")  # never into the system's temporary folder
    database.execute("PRAGMA cache_size = -32000")
    return database


def _statements(script: str) -> Iterator[str]:
    """`executescript` would commit before it begins."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


@contextlib.contextmanager
def transaction(database: sqlite3.Connection, mode: str = "IMMEDIATE") -> Iterator[None]:
    database.execute(f"BEGIN {mode}")
    try:
        yield
    except BaseException:
        if database.in_transaction:
            database.execute("ROLLBACK")
        raise
    database.execute("COMMIT")


@contextlib.contextmanager
def scratch(database: sqlite3.Connection, path: Path) -> Iterator[None]:
    """Tables for what a walk finds, in a file that lives as long as they are needed."""
    path.unlink(missing_ok=True)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    database.execute("ATTACH ? AS walk", (str(path),))
    try:
        database.execute("PRAGMA walk.journal_mode = OFF")
        database.execute("PRAGMA walk.synchronous = OFF")
        database.execute("PRAGMA walk.cache_size = -64000")
        for statement in _statements(_WALK):
            database.execute(statement)
        yield
    finally:
        path.unlink(missing_ok=True)
    database.execute("DETACH walk")


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Held by one at a time, and by nobody whose process has ended."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def is_damage(error: sqlite3.DatabaseError) -> bool:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def remove(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
