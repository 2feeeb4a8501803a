# ruff: noqa: PTH116, PTH118 - pathlib cannot say names that are no text
"""Every file below some folders, as the operating system sees it, without reading any."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from client_app.imaging.set_aside import Reason


class Found(NamedTuple):
    """A path that is not a folder, or a folder that may not be listed.

    Attributes:
        path: below the root, as the file system spells it; names need not be text.
        size, mtime_ns, ctime_ns: the file's stamp, -1 where the system would not tell. The time of the
            last change of the inode cannot be set by a user: it gives away a file that was replaced
            under the same size and modification time.
        reason, detail: why it need not be opened; empty for a file that is to be read.
    """

    path: bytes
    size: int = -1
    mtime_ns: int = -1
    ctime_ns: int = -1
    reason: str = ""
    detail: str = ""


def walk(root: Path, tops: Iterable[str], *, without: Path | None = None) -> Iterator[Found]:
    """Find the files below `tops`, folders below the root of which `""` is the root itself.

    Links are followed, those to folders after all real folders, and no folder is entered twice: loops
    end, and a file below several names is found under its real one. Folders are taken in the order of
    their names, depth first; the files of one folder come in the order in which the disk gives them,
    so that a folder of a million files takes no memory.

    Args:
        without: a folder that is passed over wherever it lies: the program's own state.
    """
    base = os.fsencode(root)
    entered = set()
    if without is not None:
        with contextlib.suppress(OSError):
            entered.add(_identity(os.fsencode(without)))
    folders = [os.fsencode(top) for top in sorted(tops, reverse=True)]
    links: deque[bytes] = deque()
    while folders or links:
        folder = folders.pop() if folders else links.popleft()
        below: list[bytes] = []
        linked: list[bytes] = []
        try:
            identity = _identity(os.path.join(base, folder))
            if identity in entered:
                continue
            entered.add(identity)
            with os.scandir(os.path.join(base, folder)) as entries:
                for entry in entries:
                    path = os.path.join(folder, entry.name)
                    if entry.is_dir(follow_symlinks=False):
                        below.append(path)
                    elif _is_folder(entry):
                        linked.append(path)
                    else:
                        found = _look(entry, path)
                        if found is not None:
                            yield found
        except OSError as error:
            yield Found(folder, reason=Reason.UNREADABLE, detail=name_of(error))
        folders.extend(sorted(below, reverse=True))
        links.extend(sorted(linked))


def name_of(error: OSError) -> str:
    """The error's symbol, such as EACCES; its text would quote the path."""
    return errno.errorcode.get(error.errno or 0, type(error).__name__)


def _identity(folder: bytes) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _is_folder(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _look(entry: os.DirEntry[bytes], path: bytes) -> Found | None:
    """None for a file that was there a moment ago."""
    try:
        status = entry.stat()
    except FileNotFoundError as error:
        if not entry.is_symlink():
            return None
        return Found(path, reason=Reason.UNREADABLE, detail=name_of(error))
    except OSError as error:
        return Found(path, reason=Reason.UNREADABLE, detail=name_of(error))
    reason = ""
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
        reason = Reason.NOT_A_FILE
    elif status.st_size == 0:
        reason = Reason.EMPTY
    return Found(path, status.st_size, status.st_mtime_ns, status.st_ctime_ns, reason)
