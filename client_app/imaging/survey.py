# ruff: noqa: S608 - what is put into statements are constants of this file
"""Bringing the index up to date: walk, compare, read what changed, group the series that it concerns."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from client_app.imaging.layouts import Layout
from client_app.imaging.readers import Readers
from client_app.imaging.set_aside import Reason
from client_app.imaging.store import scratch, transaction
from client_app.imaging.volumes import LARGEST, Member, Volume, too_large, volumes
from client_app.imaging.walk import walk
from client_app.site import Data

Progress = Callable[[int, int], None]
"""Called with how many are done and how many there are."""

_BATCH = 256  # files a transaction: what a kill can lose
# Leave to read is given without a trace in a file's stamp, so what may not be read is tried each time.
_CHANGED = f"""
INSERT INTO walk.changed SELECT found.path, found.reason
FROM walk.found AS found LEFT JOIN files ON files.path = found.path
WHERE files.path IS NULL OR files.reason = '{Reason.UNREADABLE}'
   OR (files.size, files.mtime_ns, files.ctime_ns) != (found.size, found.mtime_ns, found.ctime_ns)
"""
_GONE = "FROM files WHERE NOT EXISTS (SELECT 1 FROM walk.found AS f WHERE f.path = files.path)"
_RECORD = "reason, detail, kind, patient, study, series, instance, frame, content"
_REPLACE = (
    "ON CONFLICT (path) DO UPDATE SET (size, mtime_ns, ctime_ns, "
    + _RECORD
    + ") = ("
    + (
        ", ".join(f"excluded.{name}" for name in f"size, mtime_ns, ctime_ns, {_RECORD}".split(", "))
        + ")"
    )
)
# The stamp is the walk's, taken before the file was read: if it changes meanwhile it is read again.
_STORE = f"""
INSERT INTO files (path, size, mtime_ns, ctime_ns, {_RECORD})
SELECT path, size, mtime_ns, ctime_ns, ?,?,?,?,?,?,?,?,? FROM walk.found WHERE path = ? {_REPLACE}
"""
_STORE_UNREAD = f"""
INSERT INTO files (path, size, mtime_ns, ctime_ns, {_RECORD})
SELECT path, size, mtime_ns, ctime_ns, reason, detail, '', '', '', '', '', '', '' FROM walk.found
WHERE path IN (SELECT path FROM walk.changed WHERE reason != '') {_REPLACE}
"""


@dataclass(frozen=True)
class Survey:
    """One look at the folders."""

    data: Data
    layout: Layout
    state: Path
    key: bytes
    progress: Progress
    workers: int | None

    def run(self, database: sqlite3.Connection) -> int:
        """Walk, read what changed, group what that concerns; how many files had to be read."""
        began = time.time()
        with scratch(database, self.state / "index.walk"):
            found = walk(self.data.root, self.layout.tops, without=self.state)
            with transaction(database, "DEFERRED"):
                database.executemany("INSERT OR IGNORE INTO walk.found VALUES (?,?,?,?,?,?)", found)
                database.execute(_CHANGED)
            self._widen(database)
            with transaction(database):
                database.execute("UPDATE about SET walked = NULL")
                database.execute(f"DELETE {_GONE}")
                database.execute(_STORE_UNREAD)
            read = self._read_changed(database)
        _group_stale(database)
        with transaction(database):
            database.execute("UPDATE about SET walked = ?", (began,))
        return read

    def _widen(self, database: sqlite3.Connection) -> None:
        """In BIDS, what a file is depends on files beside it and elsewhere: one changed, all are new."""
        if self.layout.name != "bids":
            return
        changed = database.execute(
            f"SELECT EXISTS (SELECT 1 FROM walk.changed) OR EXISTS (SELECT 1 {_GONE})"
        ).fetchone()[0]
        if changed:
            with transaction(database, "DEFERRED"):
                database.execute("DELETE FROM walk.changed")
                database.execute("INSERT INTO walk.changed SELECT path, reason FROM walk.found")

    def _read_changed(self, database: sqlite3.Connection) -> int:
        wanted = "FROM walk.changed WHERE reason = ''"
        (total,) = database.execute(f"SELECT count(*) {wanted}").fetchone()
        if not total:
            return 0
        done = 0
        paths = (path for (path,) in database.execute(f"SELECT path {wanted}"))
        with Readers(self.data, self.key, workers=self.workers) as readers:
            answers = readers.read(paths)
            while batch := list(islice(answers, _BATCH)):
                with transaction(database):
                    database.executemany(_STORE, ((*record, path) for path, record in batch))
                done += len(batch)
                self.progress(done, total)
        return int(total)


def _group_stale(database: sqlite3.Connection) -> None:
    """Make the volumes of each series that changed anew, one series a transaction."""
    some = f"SELECT series FROM stale ORDER BY series LIMIT {_BATCH}"
    while batch := database.execute(some).fetchall():
        for (series,) in batch:
            made = _volumes_of(database, series)
            usable = sum(not volume.reason for volume in made)
            with transaction(database):
                database.execute("DELETE FROM volumes WHERE series = ?", (series,))
                database.executemany(
                    "INSERT INTO volumes SELECT ?,?,?,?,?,?,?, path, ?,? FROM files WHERE number = ?",
                    _rows_of(series, made, usable),
                )
                database.execute("DELETE FROM stale WHERE series = ?", (series,))


def _rows_of(series: str, made: Iterable[Volume], usable: int) -> Iterator[tuple[object, ...]]:
    counts = {True: 0, False: 0}
    for volume in made:
        position = counts[bool(volume.reason)]
        counts[bool(volume.reason)] += 1
        yield (
            *(series, position, usable, volume.patient, volume.study, volume.reason, volume.detail),
            *(json.dumps(volume.files, separators=(",", ":")), volume.content, volume.files[0]),
        )


def _volumes_of(database: sqlite3.Connection, series: str) -> list[Volume]:
    which = "FROM files WHERE kind = 'planes' AND series = ? ORDER BY path"
    columns = "number, patient, study, instance, frame, kind"
    (files,) = database.execute(f"SELECT count(*) {which}", (series,)).fetchone()
    if files > LARGEST:
        rows = database.execute(f"SELECT {columns}, '' {which}", (series,))
        return [too_large([Member(*row) for row in rows], files)]
    rows = database.execute(f"SELECT {columns}, content {which}", (series,))
    members = [Member(*row) for row in rows]
    return volumes(members) if members else []
