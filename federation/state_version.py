"""The format version of a folder that has to last: a hospital's state, a coordinator's home, a run.

`STATE_VERSION` in the folder says whose it is and which version of the format it has. Code opens what
older code made, and brings it up to date one version at a time before anything else writes there. What
newer code made is refused, since guessing at it could count a patient's budget or a round wrongly. So is
a folder into which a backup was being restored when the restore broke off.

| version | what it is |
|---|---|
| 1 | before there was this file |
| 2 | the same, with this file |

Files that are opened by themselves carry versions of their own as well: the ledger in its first row, the
index in SQLite's `user_version`.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from federation.schema import ConfigError

Kind = Literal["hospital", "coordinator", "run"]

VERSION = 2
FILE = "STATE_VERSION"
RESTORING = "RESTORING"  # there from a restore's first write to its last

_LARGEST = 4096  # bytes
_WHAT: Mapping[Kind, str] = {
    "hospital": "a hospital's state folder",
    "coordinator": "a coordinator's folder",
    "run": "a run's folder",
}
# What makes version N + 1 of version N, by N. A step may be cut off anywhere and is then done again, so
# each has to be harmless twice; the file is written after it.
_STEPS: Mapping[int, Callable[[Path], None]] = {1: lambda folder: None}


def require(folder: Path, kind: Kind) -> int:
    """The version of a folder that this code can open. Nothing is written.

    Raises:
        ConfigError: newer code made it, it is another kind of folder, its version cannot be read, or
            a restore into it was broken off.
    """
    if (folder / RESTORING).exists():
        raise ConfigError(
            f"a restore into {folder} was broken off: what is there is neither old nor new. Run the "
            "same restore again; it goes on where it was"
        )
    file = folder / FILE
    try:
        with file.open("rb") as opened:
            content = json.loads(opened.read(_LARGEST))
        found, version = content["kind"], content["version"]
        if type(version) is not int or version < 1:
            raise ValueError("not a version")
    except FileNotFoundError:
        return 1
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"{file} is damaged; bring it back from a backup") from None
    if found != kind:
        raise ConfigError(f"{folder} is {_WHAT.get(found, 'something else')}, not {_WHAT[kind]}")
    if version > VERSION:
        raise ConfigError(
            f"{folder} has format {version} and was written by a newer Consilium; this one knows "
            f"{VERSION} and would misread it. Install the newer one again, or restore the backup that "
            "was made before the upgrade into an empty folder"
        )
    return version


def settle(folder: Path, kind: Kind) -> None:
    """Bring a folder up to this code's version, or mark a new one; on the disk when this returns.

    Raises:
        ConfigError: as `require`; or it cannot be written to.
    """
    version = require(folder, kind)
    if (folder / FILE).exists() and version == VERSION:
        return
    for step in range(version, VERSION):
        _STEPS[step](folder)
    content = json.dumps({"kind": kind, "version": VERSION}).encode() + b"\n"
    try:
        _write(folder / FILE, content)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written to: {error.strerror}") from None


def _write(path: Path, content: bytes) -> None:
    handle, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(file.fileno(), 0o644)  # no secret; read by whoever reads a run
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(draft).replace(path)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
