"""The index: what lies below the data's root, and what was set aside and why.

A SQLite file in the site's state folder that spares reading headers again. It holds paths, so it
stays on this hospital's disk, but no identifier read from a file: the patient is a pseudonym and an
image's UID is a keyed hash. It can be deleted at any time; the next `update` makes it anew.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import sqlite3
import stat
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from client_app.imaging import dicom, nifti
from client_app.imaging.header import Header
from client_app.imaging.pseudonym import keyed_hash, normalised, pseudonym
from client_app.imaging.set_aside import Reason, SetAside, Unfit, silenced
from federation.schema import ConfigError, Data

Progress = Callable[[int, int], None]
"""Called with how many are done and how many there are."""

# Raise it when readers learn something new: rows of another version are read again.
_VERSION = 1
_BATCH = 256  # files a transaction: what a kill can lose
# Reading headers from a hospital's file server is mostly waiting.
_READERS = 8
_TABLE = """
CREATE TABLE files (
    path BLOB PRIMARY KEY,  -- below the data's root, as the file system spells it
    size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    reason TEXT,            -- why it was set aside; null for a usable file
    detail TEXT,
    patient TEXT,
    instance TEXT,
    shape TEXT,
    affine TEXT,
    attributes TEXT
) WITHOUT ROWID
"""


@dataclass(frozen=True)
class Entry:
    """A usable file.

    Attributes:
        path: below the data's root.
        patient: pseudonym; empty for a mask.
        instance: keyed hash of the image's UID, the same for every copy of it; may be empty.
        shape, affine: see `header.Header`.
    """

    path: PurePosixPath = field(repr=False)
    patient: str
    instance: str
    shape: tuple[int, ...]
    affine: tuple[tuple[float, ...], ...] | None
    attributes: Mapping[str, str]


@dataclass(frozen=True)
class Index:
    """All files below the data's root in the order of their paths, and how many had to be read."""

    entries: tuple[Entry, ...]
    set_aside: tuple[SetAside, ...]
    read: int


@dataclass(frozen=True)
class _Found:
    """A path below the root; `status` is none where the operating system would not tell."""

    path: PurePosixPath
    status: os.stat_result | None
    error: str = ""

    @property
    def stamp(self) -> tuple[int, int]:
        return (self.status.st_size, self.status.st_mtime_ns) if self.status else (-1, -1)

    @property
    def key(self) -> bytes:
        return os.fsencode(str(self.path))


_Row = tuple[object, ...]


def update(data: Data, *, state: Path, key: bytes, progress: Progress | None = None) -> Index:
    """Bring the index up to date with the disk and give what it holds.

    Only files whose path, size or modification time is new are read, and of them only the header. A
    bad file gets a row with its reason and stops nothing. May be killed at any moment: what was
    committed is not read again.

    Args:
        state: the site's state folder; the index is `index.sqlite` in it.
        key: the hospital's pseudonym key. Under another key everything is read again.
        progress: told about files that had to be read.

    Raises:
        ConfigError: the root is not a folder, lacks `images/` (nifti), or `data.patients` is wrong.
    """
    if not data.root.is_dir():
        raise ConfigError("data.root: there is no such folder")
    if data.layout == "nifti" and not (data.root / nifti.IMAGES).is_dir():
        raise ConfigError(f"data.root: layout nifti needs a folder {nifti.IMAGES}/ in it")
    read = _reader(data, key)
    path = state / "index.sqlite"
    state.mkdir(parents=True, exist_ok=True, mode=0o700)

    def attempt() -> Index:
        with closing(_open(path)) as database, silenced():
            return _update(database, data, key, read, progress)

    try:
        return attempt()
    except sqlite3.DatabaseError as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code not in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    return attempt()


def _open(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=60)
    path.chmod(0o600)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("PRAGMA synchronous=NORMAL")
    with database:
        database.execute("BEGIN IMMEDIATE")
        if database.execute("PRAGMA user_version").fetchone()[0] != _VERSION:
            database.execute("DROP TABLE IF EXISTS files")
            database.execute("DROP TABLE IF EXISTS origin")
            database.execute(_TABLE)
            database.execute("CREATE TABLE origin (fingerprint BLOB NOT NULL)")
            database.execute(f"PRAGMA user_version={_VERSION}")
    return database


def _update(
    database: sqlite3.Connection,
    data: Data,
    key: bytes,
    read: Callable[[_Found], _Row],
    progress: Progress | None,
) -> Index:
    _forget_other_origin(database, _fingerprint(data, key))
    # Leave to read is given without a trace in size or time, so those files are tried each time.
    known = {
        path: (size, mtime)
        for path, size, mtime in database.execute(
            "SELECT path, size, mtime_ns FROM files WHERE reason IS NULL OR reason != ?",
            (Reason.UNREADABLE,),
        )
    }
    found = list(_walk_layout(data))
    changed = [file for file in found if known.get(file.key) != file.stamp]
    present = {file.key for file in found}
    stored = database.execute("SELECT path FROM files").fetchall()
    with database:
        database.executemany(
            "DELETE FROM files WHERE path = ?", [row for row in stored if row[0] not in present]
        )
    with ThreadPoolExecutor(_READERS) as readers:
        for start in range(0, len(changed), _BATCH):
            rows = list(readers.map(read, changed[start : start + _BATCH]))
            with database:
                database.executemany(
                    f"INSERT OR REPLACE INTO files VALUES ({','.join('?' * 10)})",  # noqa: S608
                    rows,
                )
            if progress is not None:
                progress(start + len(rows), len(changed))
    return _contents(database, data, len(changed))


def _contents(database: sqlite3.Connection, data: Data, read: int) -> Index:
    entries, set_aside = [], []
    columns = "path, reason, detail, patient, instance, shape, affine, attributes"
    for row in database.execute(f"SELECT {columns} FROM files ORDER BY path"):  # noqa: S608
        path, reason, detail, patient, instance, shape, affine, attributes = row
        relative = PurePosixPath(os.fsdecode(path))
        if reason is not None:
            set_aside.append(SetAside(data.root / relative, Reason(reason), detail))
            continue
        rows = json.loads(affine)
        entries.append(
            Entry(
                path=relative,
                patient=patient,
                instance=instance,
                shape=tuple(json.loads(shape)),
                affine=None if rows is None else tuple(map(tuple, rows)),
                attributes=json.loads(attributes),
            )
        )
    return Index(tuple(entries), tuple(set_aside), read)


def _fingerprint(data: Data, key: bytes) -> bytes:
    """Keyed hash of all that rows depend on besides the files themselves."""
    origin = [str(data.root.resolve()), data.layout]
    if data.layout == "nifti" and data.patients is not None:
        origin.append(hashlib.sha256(data.patients.read_bytes()).hexdigest())
    return keyed_hash(key, "index", json.dumps(origin))


def _forget_other_origin(database: sqlite3.Connection, fingerprint: bytes) -> None:
    with database:
        if database.execute("SELECT fingerprint FROM origin").fetchall() != [(fingerprint,)]:
            database.execute("DELETE FROM files")
            database.execute("DELETE FROM origin")
            database.execute("INSERT INTO origin VALUES (?)", (fingerprint,))


def _reader(data: Data, key: bytes) -> Callable[[_Found], _Row]:
    """A function from a file to its row that never raises."""
    people = None
    if data.layout == "nifti" and data.patients is not None:
        people = nifti.read_people(data.patients)

    def header(relative: PurePosixPath) -> Header:
        path = data.root / relative
        if data.layout == "dicom":
            return dicom.read_header(path)
        return nifti.read_header(path, relative=relative, people=people)

    def read(file: _Found) -> _Row:
        row = (file.key, *file.stamp)
        try:
            if file.status is None:
                raise Unfit(Reason.UNREADABLE, file.error)
            if not stat.S_ISREG(file.status.st_mode):  # opening a pipe would wait for ever
                raise Unfit(Reason.NOT_A_FILE)
            if file.status.st_size == 0:
                raise Unfit(Reason.EMPTY)
            return (*row, *_usable(header(file.path), file.path, data, key))
        except Unfit as unfit:
            return (*row, unfit.reason, unfit.detail, *[None] * 5)
        except OSError as error:  # gzip's complaints are OSErrors without a number
            reason = Reason.UNREADABLE if error.errno else Reason.CORRUPT
            return (*row, reason, _name(error), *[None] * 5)
        except Exception as error:
            # The text of a reader's exception may quote the file; its type cannot.
            return (*row, Reason.CORRUPT, type(error).__name__, *[None] * 5)

    return read


def _usable(header: Header, path: PurePosixPath, data: Data, key: bytes) -> _Row:
    """The columns from `reason` on; here the raw identifiers end."""
    is_mask = data.layout == "nifti" and path.parts[0] == nifti.MASKS
    if not is_mask and not normalised(header.patient_id or ""):
        raise Unfit(Reason.NO_PATIENT, "its patient identifier is empty")
    uid = header.instance_uid
    return (
        None,
        "",
        "" if is_mask else pseudonym(key, header.patient_id or ""),
        "" if uid is None else keyed_hash(key, "instance", uid)[:16].hex(),
        json.dumps(header.shape),
        json.dumps(header.affine),
        json.dumps(dict(header.attributes)),
    )


def _walk_layout(data: Data) -> Iterator[_Found]:
    tops = [PurePosixPath()]
    if data.layout == "nifti":
        tops = [PurePosixPath(name) for name in (nifti.IMAGES, nifti.MASKS)]
    yield from _walk(data.root, (top for top in tops if (data.root / top).is_dir()))


def _walk(root: Path, tops: Iterable[PurePosixPath]) -> Iterator[_Found]:
    """Every path below the tops that is not a folder, and folders that may not be read.

    Links to folders are followed after all real folders were, and no folder is entered twice, so
    loops end and a file is found under its real path if it has one below the root.
    """
    folders, links = deque(tops), deque[PurePosixPath]()
    entered: set[tuple[int, int]] = set()
    while folders or links:
        folder = folders.popleft() if folders else links.popleft()
        try:
            status = (root / folder).stat()
            if (status.st_dev, status.st_ino) in entered:
                continue
            entered.add((status.st_dev, status.st_ino))
            names = sorted(path.name for path in (root / folder).iterdir())
        except OSError as error:
            yield _Found(folder, None, _name(error))
            continue
        for name in names:
            path = folder / name
            try:
                status = (root / path).stat()
            except OSError as error:
                yield _Found(path, None, _name(error))
                continue
            if not stat.S_ISDIR(status.st_mode):
                yield _Found(path, status)
            else:
                (links if (root / path).is_symlink() else folders).append(path)


def _name(error: OSError) -> str:
    """The error's symbol, such as EACCES; its text would quote the path."""
    return errno.errorcode.get(error.errno or 0, type(error).__name__)
