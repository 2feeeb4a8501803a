"""What a backup is made of while services go on writing: names that hold on to the files of one moment.

Files that have to last are replaced and not rewritten, so a hard link keeps one as it was, at once and
without a copy. Databases are copied by SQLite, which lets others write meanwhile. All lies in `.backup`
in the folder itself, as private as that is, and is gone afterwards, after a crash with the next backup.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from federation.schema import ConfigError
from federation.state_version import RESTORING

_STAGED, _UNPACKED = ".backup", ".restore"


@contextmanager
def alone(lock: Path, why_not: str) -> Iterator[None]:
    """Hold a lock file. Raises ConfigError, with these words: another process holds it."""
    try:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(f"{lock.parent} cannot be written to: {error.strerror}") from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(why_not) from None
        yield
    finally:
        os.close(handle)


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """An empty folder for a backup's files. Raises ConfigError: another backup is being made."""
    with (
        alone(folder / "backup.lock", f"another backup of {folder} is being made"),
        _fresh(folder / _STAGED) as stage,
    ):
        yield stage


@contextmanager
def unpacked(folder: Path) -> Iterator[Path]:
    """An empty folder for what comes out of an archive; services may not run meanwhile."""
    with _fresh(folder / _UNPACKED) as draft:
        yield draft


@contextmanager
def _fresh(folder: Path) -> Iterator[Path]:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def link(source: Path, target: Path) -> None:
    """Have `target` be the file that `source` is now. Raises FileNotFoundError: there is none."""
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)


def tree(source: Path, target: Path, skip: Callable[[Path], bool] = lambda path: False) -> None:
    """`link` all files below a folder, but for drafts and locks, which are nobody's state."""
    for path in sorted(source.iterdir()) if source.is_dir() else ():
        name = path.name
        if name.startswith(".") or name == "lock" or name.endswith(".lock") or skip(path):
            continue
        if path.is_dir():
            tree(path, target / name, skip)
        elif path.is_file():
            with suppress(FileNotFoundError):  # replaced under another name, or deleted, just now
                link(path, target / name)


def database(source: Path, target: Path) -> None:
    """A SQLite file as it is at one moment, whoever writes to it meanwhile.

    Raises:
        ConfigError: it cannot be read.
    """
    address = f"{source.absolute().as_uri()}?mode=ro"
    os.close(os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    try:
        with (
            closing(sqlite3.connect(address, uri=True, timeout=60)) as there,
            closing(sqlite3.connect(target)) as here,
        ):
            there.backup(here)
    except sqlite3.Error as error:
        raise ConfigError(f"{source} cannot be copied: {error}") from None


def files(folder: Path) -> list[tuple[str, Path]]:
    """Names with slashes, and paths, of all files below a folder."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return [(path.relative_to(folder).as_posix(), path) for path in found]


def unfinished(folder: Path, mark: str) -> bool:
    """Whether the restore of this very archive was broken off here.

    Raises:
        ConfigError: that of another archive was.
    """
    try:
        found = (folder / RESTORING).read_text()
    except FileNotFoundError:
        return False
    if found != mark:
        raise ConfigError(
            f"the restore of another backup into {folder} was broken off. Finish that one, or move the "
            "folder away and restore into an empty one"
        )
    return True


def place(folder: Path, mark: str, moves: dict[Path, Path], gone: tuple[Path, ...] = ()) -> None:
    """Move files from a draft to where they belong, each by one rename; `gone` are deleted before.

    From the first of them to the last, `RESTORING` in the folder has every command refuse it, so that
    after a crash nothing works on half of a state.
    """
    marker = folder / RESTORING
    handle = os.open(marker, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(mark)
        file.flush()
        os.fsync(handle)
    _sync(folder)
    for path in gone:
        path.unlink(missing_ok=True)
    for source, target in moves.items():
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        near = source
        if source.stat().st_dev != target.parent.stat().st_dev:
            near = target.with_name(f".{target.name}.restored")
            shutil.copyfile(source, near)
            near.chmod(0o600)
            _sync(near)
        near.replace(target)
    for parent in {target.parent for target in moves.values()}:
        _sync(parent)
    marker.unlink()
    _sync(folder)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
