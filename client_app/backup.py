"""`hospital backup` and `hospital restore`: what cannot be made anew, in one encrypted file.

In it are the ledger and its head, the pseudonym key, the hospital's own keys, the accepted roster, the
audit log and the batches of counting by group; on request `local/`, with the residuals that its runs
need to go on, and `encrypted/`. Never in it are `secure/` (from an older copy masks would cover a second
update) and what is made of the images again.

A restore may lose what came after the backup, but it never takes anything newer away: into a state
folder that has more charges or other keys than the backup nothing is restored, and an audit log or a
roster that goes on from the backup's stays.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from client_app.audit import Audit, AuditError
from client_app.imaging.pseudonym import load_key
from client_app.ledger import LedgerError, cohort_id
from client_app.ledger_file import Chain, LedgerFile
from client_app.site import Site
from federation import archive, snapshot, state_version
from federation.archive import Manifest
from federation.metrics import rows
from federation.schema import ConfigError

_KIND: Literal["hospital"] = "hospital"
_LEDGER, _AUDIT, _KEY = "ledger.sqlite", "audit.jsonl", "pseudonym.key"
_ALWAYS = (_KEY, "roster.json", "identity", "counted", "audit.torn", state_version.FILE)
OPTIONAL = {"local": ("local", "residuals"), "encrypted": ("encrypted",)}
"""What a backup holds on request: folders by the first of them."""

_LOG = (_AUDIT, "audit.head")
_AWAY = "move the state folder away, keep it, and restore into an empty one"


@dataclass(frozen=True)
class Held:
    """What a backup holds, for whoever made or restored it."""

    manifest: Manifest
    charges: int | None
    entries: int


def back_up(site: Site, out: Path, passphrase: str, optional: tuple[str, ...] = ()) -> Held:
    """Write a backup; services may run meanwhile.

    Args:
        optional: names of `OPTIONAL`.

    Raises:
        ConfigError: there is nothing to back up, ledger or audit log are not whole, or the file cannot
            be written. No file is there then.
    """
    if not site.state.is_dir():
        raise ConfigError(f"there is no state folder {site.state}; nothing to back up")
    with snapshot.staged(site.state) as stage:
        _collect(site, stage, optional)
        charges, entries = _verify(stage, site)
        about = {"charges": charges, "entries": entries}
        with archive.writing(
            out, passphrase, kind=_KIND, name=site.hospital, about=about
        ) as writer:
            for name, path in snapshot.files(stage):
                writer.add(name, path)
        found = {name: (path.stat().st_size, "") for name, path in snapshot.files(stage)}
    with _audit_errors():
        digest = _sha256(out)
        Audit(site.state / _AUDIT).append("backup", sha256=digest, charges=charges, entries=entries)
    return Held(Manifest(_KIND, site.hospital, "", about, found), charges, entries)


def restore(site: Site, path: Path, passphrase: str) -> Held:
    """Put a backup into the state folder; killed anywhere, the same restore goes on.

    Raises:
        ConfigError: services run, the backup is damaged or another hospital's, or the state folder has
            something newer. Nothing was changed then.
    """
    site.state.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = site.state / "services.lock"
    with (
        snapshot.alone(lock, f"{site.state} is in use; end hospital start first"),
        snapshot.unpacked(site.state) as draft,
    ):
        manifest = archive.unpack(path, passphrase, draft, kind=_KIND)
        if manifest.name != site.hospital:
            raise ConfigError(
                f"{path} is the backup of {manifest.name!r}, not of {site.hospital!r}"
            )
        state_version.require(draft, _KIND)
        charges, entries = _verify(draft, site)
        mark = hashlib.sha256(json.dumps(sorted(manifest.files.items())).encode()).hexdigest()
        ledger = _ledger_of(site)
        moves = {path: _target(site, name) for name, path in snapshot.files(draft)}
        if not snapshot.unfinished(site.state, mark):
            _refuse_newer(site, draft, moves)
        for kept in _kept(site.state, draft):
            moves.pop(draft / kept, None)
        # A log of the ledger that was there would be played into the one that is put in its place.
        logs = tuple(ledger.with_name(ledger.name + end) for end in ("-wal", "-shm"))
        snapshot.place(site.state, mark, moves, gone=logs if charges is not None else ())
        state_version.settle(site.state, _KIND)
        with _audit_errors():
            Audit(site.state / _AUDIT).append(
                "restored", sha256=_sha256(path), charges=charges, entries=entries
            )
    return Held(manifest, charges, entries)


def _collect(site: Site, stage: Path, optional: tuple[str, ...]) -> None:
    """What belongs together, in the order in which the later of two may only be the newer."""
    ledger = _ledger_of(site)
    if ledger.exists():
        head = ledger.with_suffix(".head")
        if head.exists():  # before the rows: a head may be behind its ledger and never ahead
            snapshot.link(head, stage / "ledger.head")
        snapshot.database(ledger, stage / _LEDGER)
    elif ledger.with_suffix(".head").exists():
        raise ConfigError(f"{ledger} is gone, but its .head is there; a backup would hide that")
    with _audit_errors():
        Audit(site.state / _AUDIT).copy_to(stage / _AUDIT)
    for name in (*_ALWAYS, *(folder for chosen in optional for folder in OPTIONAL[chosen])):
        path = site.state / name
        if path.is_dir():
            snapshot.tree(path, stage / name)
        elif path.exists():
            snapshot.link(path, stage / name)


def _verify(folder: Path, site: Site) -> tuple[int | None, int]:
    """How many charges and entries a copy has, both chains verified; None: it has no ledger."""
    with _audit_errors():
        entries, _ = Audit(folder / _AUDIT).verify()
    if (folder / _LEDGER).exists():
        return _chain(folder, site).head.charges, entries
    return None, entries


def _chain(folder: Path, site: Site) -> Chain:
    if not (folder / _KEY).exists():
        raise ConfigError(f"the ledger is there, but not the {_KEY} of its patients")
    cohort = cohort_id(load_key(folder / _KEY), site.hospital)
    try:
        file = LedgerFile(folder / _LEDGER, cohort)
        try:
            return file.read()
        finally:
            file.close()
    except LedgerError as error:
        raise ConfigError(str(error)) from None


def _refuse_newer(site: Site, draft: Path, moves: Mapping[Path, Path]) -> None:
    """Nothing that is there may be lost by what comes."""
    if (draft / _LEDGER).exists():
        _refuse_newer_ledger(site, _chain(draft, site))
    elif _ledger_of(site).exists():
        raise ConfigError(f"{site.state} has a ledger and the backup has none; {_AWAY}")
    if (site.state / _AUDIT).exists():
        with _audit_errors():
            here, there = (_hashes(folder / _AUDIT) for folder in (site.state, draft))
        common = min(len(here), len(there))
        if here[:common] != there[:common]:
            raise ConfigError(f"the audit log here is another than the backup's; {_AWAY}")
    followed = {
        _LEDGER, "ledger.head", *_LOG, "audit.torn", "roster.json", state_version.FILE
    }  # fmt: skip
    for source, target in moves.items():
        name = source.relative_to(draft).as_posix()
        if name in followed or not target.exists():
            continue
        if target.read_bytes() != source.read_bytes():
            raise ConfigError(f"{target} is there and differs from the backup's; {_AWAY}")


def _kept(state: Path, draft: Path) -> list[str]:
    """What stays as it is, since it goes on from what the backup has."""
    kept = []
    if _roster_version(state / "roster.json") > _roster_version(draft / "roster.json"):
        kept.append("roster.json")
    try:
        here, there = (_hashes(folder / _AUDIT) for folder in (state, draft))
    except AuditError:  # half of a restore that was broken off
        return kept
    if len(here) > len(there):
        kept += [*_LOG, "audit.torn"]
    return kept


def _hashes(log: Path) -> list[str]:
    return [entry.hash for entry in Audit(log).entries()]


def _refuse_newer_ledger(site: Site, chain: Chain) -> None:
    """The ledger here, as far as it or its head can be read, has to be a part of the backup's."""
    ledger = _ledger_of(site)
    marks: list[tuple[int, str]] = []
    head = ledger.with_suffix(".head")
    try:
        found = rows(ledger, "SELECT position, hash FROM charges ORDER BY position DESC LIMIT 1")
        marks += [(int(position), str(digest)) for position, digest in found]
    except (sqlite3.Error, ValueError):  # a damaged ledger is what backups are for
        if not head.exists():
            raise ConfigError(
                f"{ledger} cannot be read, and no .head tells how far it was; {_AWAY}"
            ) from None
    if head.exists():
        try:
            said = json.loads(head.read_bytes())
            marks.append((int(said["charges"]), str(said["head"])))
        except (ValueError, KeyError, TypeError):
            raise ConfigError(f"{head} cannot be read; {_AWAY}") from None
    for charges, digest in marks:
        if charges >= len(chain.hashes) or chain.hashes[charges] != digest:
            raise ConfigError(
                f"the ledger here knows of {charges} charges and the backup's of {chain.head.charges}, "
                f"or of others: restoring it would forget what was spent; {_AWAY}"
            )


def _roster_version(path: Path) -> int:
    """As the file says; its signature is checked wherever it is used."""
    try:
        return int(json.loads(path.read_bytes())["roster"]["version"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _ledger_of(site: Site) -> Path:
    own = site.privacy.ledger if site.privacy is not None else None
    return own or site.state / _LEDGER


def _target(site: Site, name: str) -> Path:
    ledger = _ledger_of(site)
    return {_LEDGER: ledger, "ledger.head": ledger.with_suffix(".head")}.get(
        name, site.state / name
    )


@contextmanager
def _audit_errors() -> Iterator[None]:
    try:
        yield
    except AuditError as error:
        raise ConfigError(str(error)) from None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
