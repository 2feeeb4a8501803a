"""Who is in the federation: hospitals' public halves in, versions of the roster and kits out.

A hospital's keys are made at the hospital; here only their public half is ever read. Each change is a
new signed version of the roster. It counts from the moment at which `roster.json` is replaced; what
hangs on it (its copy in `rosters/`, the kits, `federation.yaml`) is made after that, and made again by
the next command where one was killed between.
"""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from federation import public_identity, roster
from federation.public_identity import SUFFIX, PublicIdentity
from federation.roster import MOST_MEMBERS, Member, Roster
from federation.schema import ConfigError
from server_app.control import Control, Unreachable
from server_app.home import Federation, Home
from server_app.state import write_atomically


@dataclass(frozen=True)
class Changed:
    """A new version of the roster. `registered`: whether the running SuperLink knows it already."""

    roster: Roster
    registered: bool


def read_identities(folder: Path, hospitals: list[str]) -> tuple[Member, ...]:
    """The public halves of these hospitals, from files NAME.identity.json.

    Raises:
        ConfigError: one is missing, is of another hospital or none of these, proves nothing, or has a
            key that another one has.
    """
    found = {path.name.removesuffix(SUFFIX) for path in folder.glob(f"*{SUFFIX}")}
    if missing := sorted(set(hospitals) - found):
        raise ConfigError(
            f"{folder} has no public half of {', '.join(missing)}: each of them runs hospital identity "
            f"create --site site.yaml and sends you the file NAME{SUFFIX} that it makes"
        )
    if extra := sorted(found - set(hospitals)):
        raise ConfigError(
            f"{str(folder / (extra[0] + SUFFIX))!r} is of no hospital in federation.yaml; add its name "
            "there, or take the file away"
        )
    members = []
    for name in sorted(hospitals):
        member = _read(folder / f"{name}{SUFFIX}").member
        if member.name != name:
            raise ConfigError(
                f"{folder / f'{name}{SUFFIX}'} is of {member.name!r}; a file has its hospital's name"
            )
        members.append(public_identity.without_succession(member))
    _distinct(tuple(members))
    return tuple(members)


def publish(home: Home, federation: Federation, version: Roster) -> None:
    """Make this version of the roster the federation's."""
    write_atomically(home.roster_file, roster.sign(version, home.identity()))
    _complete(home, federation)


def add(home: Home, file: Path) -> Changed:
    """Take a new hospital in.

    Raises:
        ConfigError: its public half cannot be used, or it is on the roster, or its keys were before.
    """
    with _changing(home) as old:
        new = _read(file)
        if old.member(new.member.name) is not None:
            raise ConfigError(
                f"{new.member.name} is on the roster already (its kit: {home.kit(new.member.name)}); "
                "for new keys: coordinator hospital rotate FILE"
            )
        if new.previous:
            raise ConfigError(
                f"{file} replaces keys of {new.member.name}, which is not on the roster; a new hospital "
                "sends what hospital identity create makes"
            )
        return _next(home, old, (*old.members, new.member), new.member)


def remove(home: Home, name: str) -> Changed:
    """Put a hospital out. Raises ConfigError: it is not on the roster, or the only one."""
    with _changing(home) as old:
        _known(old, name)
        members = tuple(member for member in old.members if member.name != name)
        if not members:
            raise ConfigError(f"{name} is the only hospital on the roster, which cannot be empty")
        return _next(home, old, members)


def rotate(home: Home, file: Path, *, lost: bool) -> Changed:
    """Put new keys in a hospital's old ones' place.

    Args:
        lost: the old identity is gone, so that it does not sign for the new one.

    Raises:
        ConfigError: the public half cannot be used, or the old identity did not sign it and is not
            said to be lost.
    """
    with _changing(home) as old:
        new = _read(file)
        before = _known(old, new.member.name)
        if new.member.same_keys(before):
            raise ConfigError(f"{file} has the keys that are on the roster already")
        signed = new.previous == before.identity_key
        if not signed and not lost:
            raise ConfigError(
                f"{file} is not signed by the identity of {before.name} that is on the roster. The "
                "hospital makes such a file with hospital identity rotate; where its old key is lost, "
                f"compare the fingerprint ({new.member.fingerprint()}) by telephone and add --lost"
            )
        after = new.member if signed else public_identity.without_succession(new.member)
        others = (member for member in old.members if member.name != before.name)
        return _next(home, old, (*others, after), after)


def _next(
    home: Home, old: Roster, members: tuple[Member, ...], new: Member | None = None
) -> Changed:
    if len(members) > MOST_MEMBERS:
        raise ConfigError(f"a federation has at most {MOST_MEMBERS} hospitals")
    _distinct(members)
    if new is not None:
        _never_used(home, new)
    ordered = tuple(sorted(members, key=lambda member: member.name))
    version = Roster(old.federation, ordered, old.version + 1, old.sha256())
    publish(home, home.federation(), version)
    return Changed(version, _register(home, version))


def _register(home: Home, version: Roster) -> bool:
    """Tell the SuperLink, if it runs; at its next start it hears of it anyway."""
    try:
        with Control(home) as control:
            control.register(version.members)
    except Unreachable:
        return False
    return True


def _complete(home: Home, federation: Federation) -> None:
    """What hangs on the newest version of the roster."""
    key = home.identity().public_key()
    content, current = roster.read_signed(home.roster_file, key)
    home.rosters.mkdir(exist_ok=True)
    write_atomically(home.rosters / f"{current.version}.json", content)
    names = current.names()
    public = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    for name in names:
        kit = home.kit(name)
        kit.mkdir(parents=True, exist_ok=True)
        about = {
            "federation": federation.name,
            "hospital": name,
            "superlink": f"{federation.host}:{federation.port}",
        }
        for file, what in (
            ("ca.crt", home.ca_certificate.read_bytes()),
            ("roster.json", content),
            ("coordinator.pub", public),
            ("kit.json", json.dumps(about, indent=1).encode() + b"\n"),
        ):
            write_atomically(kit / file, what)
    for kit in home.kits.iterdir():
        if kit.name not in names and (kit / "kit.json").exists():
            shutil.rmtree(kit)
    # In a new folder this comes last, so that one with this file is a whole one.
    told = federation.model_copy(update={"hospitals": names})
    write_atomically(
        home.path / "federation.yaml",
        yaml.safe_dump(told.model_dump(), sort_keys=False).encode(),
    )


@contextmanager
def _changing(home: Home) -> Iterator[Roster]:
    """The newest roster, complete, while nobody else changes it."""
    federation = home.federation()
    with (home.path / "membership.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        current = home.roster()
        _require_newest(home, current)
        _complete(home, federation)
        yield current


def _require_newest(home: Home, current: Roster) -> None:
    """Two different rosters of one version would set hospitals against each other."""
    key = home.identity().public_key()
    for file in home.rosters.glob("*.json"):
        other = roster.read(file, key)
        same = other.version != current.version or other.sha256() == current.sha256()
        if other.version > current.version or not same:
            raise ConfigError(
                f"{home.roster_file} is older than {file}, or another of its version: put the newest "
                "of rosters/ in its place, since hospitals take no older one"
            )


def _read(file: Path) -> PublicIdentity:
    try:
        return public_identity.read(file)
    except FileNotFoundError:
        raise ConfigError(
            f"there is no {file}; the hospital makes it with hospital identity create (or rotate)"
        ) from None


def _known(current: Roster, name: str) -> Member:
    member = current.member(name)
    if member is None:
        raise ConfigError(f"{name!r} is not on the roster: {', '.join(current.names())}")
    return member


def _distinct(members: tuple[Member, ...]) -> None:
    """Two hospitals with one key would be one hospital that counts twice."""
    for field, word in (("node_key", "node key"), ("identity_key", "identity")):
        seen: dict[str, str] = {}
        for member in members:
            other = seen.setdefault(getattr(member, field), member.name)
            if other != member.name:
                raise ConfigError(
                    f"{other} and {member.name} have the same {word}: one of the files is not that "
                    "hospital's own; compare the fingerprints by telephone"
                )


def _never_used(home: Home, new: Member) -> None:
    """A key that was put out stays out: whoever has a copy of it must not come back with it."""
    key = home.identity().public_key()
    for file in sorted(home.rosters.glob("*.json")):
        for member in roster.read(file, key).members:
            if new.node_key == member.node_key or new.identity_key == member.identity_key:
                raise ConfigError(
                    f"{new.name} comes with a key that {member.name} had in version {file.stem} of the "
                    "roster; keys are never used again: the hospital makes new ones"
                )
