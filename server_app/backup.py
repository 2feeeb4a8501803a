"""`coordinator backup` and `coordinator restore`: the whole folder in one encrypted file.

Keys, rosters, kits, lodgings, sweeps and runs are in it, whatever else lies in the folder too, and with
`database` Flower's own state. Not in it are logs, locks, and what processes make for themselves.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from federation import archive, snapshot, state_version
from federation.archive import Manifest
from federation.schema import ConfigError
from server_app.home import Home

_KIND: Literal["coordinator"] = "coordinator"
_NEVER = frozenset({"logs", "flower", "services.pid", "runs"})  # runs are taken one by one
_OVERLOOKED = frozenset({"services.lock", "backup.lock", "lost+found"})
_TRIES = 20  # for a run whose rounds are committed while its files are looked at


@dataclass(frozen=True)
class Held:
    """What a backup holds, for whoever made or restored it."""

    manifest: Manifest
    runs: int
    roster: int


def back_up(home: Home, out: Path, passphrase: str, *, database: bool = False) -> Held:
    """Write a backup; services and runs may go on meanwhile.

    Raises:
        ConfigError: no provisioned folder, or the file cannot be written. No file is there then.
    """
    federation, roster = home.federation(), home.roster()
    with snapshot.staged(home.path) as stage:
        snapshot.tree(home.path, stage, skip=lambda path: _is_left(home, path))
        runs = [path for path in sorted(home.runs.iterdir()) if (path / "run.json").exists()]
        for run in runs:
            _stage_run(run, stage / "runs" / run.name)
        if database and home.database.exists():
            copied = stage / home.database.relative_to(home.path)
            copied.parent.mkdir(mode=0o700)
            snapshot.database(home.database, copied)
        about = {"runs": len(runs), "roster": roster.version}
        with archive.writing(
            out, passphrase, kind=_KIND, name=federation.name, about=about
        ) as writer:
            found = {}
            for name, path in snapshot.files(stage):
                found[name] = (path.stat().st_size, "")  # a run's metrics grow under this name
                writer.add(name, path, found[name][0])
    manifest = Manifest(_KIND, federation.name, "", about, found)
    return Held(manifest, len(runs), roster.version)


def restore(home: Home, path: Path, passphrase: str) -> Held:
    """Put a backup into an empty folder; killed anywhere, the same restore goes on.

    Raises:
        ConfigError: the folder is in use or holds something, or the backup is damaged or of another
            kind. Nothing was changed then.
    """
    home.path.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = home.path / "services.lock"
    with (
        snapshot.alone(lock, f"{home.path} is in use; end coordinator start first"),
        snapshot.unpacked(home.path) as draft,
    ):
        manifest = archive.unpack(path, passphrase, draft, kind=_KIND)
        state_version.require(draft, _KIND)
        unpacked = Home(draft)
        roster = unpacked.roster()
        runs = sum(1 for _ in unpacked.runs.glob("*/run.json"))
        mark = hashlib.sha256(json.dumps(sorted(manifest.files.items())).encode()).hexdigest()
        if not snapshot.unfinished(home.path, mark):
            _require_empty(home.path)
        moves = {file: home.path / name for name, file in snapshot.files(draft)}
        snapshot.place(home.path, mark, moves)
        for folder in (home.runs, home.database.parent):
            folder.mkdir(exist_ok=True)
        state_version.settle(home.path, _KIND)
    return Held(manifest, runs, roster.version)


def _is_left(home: Home, path: Path) -> bool:
    return path.parent == home.path and (path.name in _NEVER or path == home.database.parent)


def _stage_run(run: Path, stage: Path) -> None:
    """A run's files as they belong together: a round is committed by replacing its model.

    Raises:
        ConfigError: rounds are committed faster than files can be looked at.
    """
    model = run / "model.safetensors"
    for _ in range(_TRIES):
        before = _identity(model)
        snapshot.tree(run, stage)
        if _identity(model) == before:
            return
        shutil.rmtree(stage, ignore_errors=True)
    raise ConfigError(f"run {run.name!r} commits rounds too fast to be copied; try again")


def _identity(path: Path) -> tuple[int, int] | None:
    """What a replaced file differs in; None where there is none."""
    with suppress(FileNotFoundError):
        found = path.stat()
        return found.st_ino, found.st_mtime_ns
    return None


def _require_empty(folder: Path) -> None:
    held = sorted(
        path.name
        for path in folder.iterdir()
        if path.name not in _OVERLOOKED
        and not path.name.startswith(".")
        and not (path.is_dir() and not any(path.iterdir()))  # as a container's volume is
    )
    if held:
        raise ConfigError(
            f"{folder} is not empty ({', '.join(held[:3])} …): what is there may be newer. Move it "
            "away, keep it, and restore into an empty folder"
        )
