"""Who is in the federation: hospitals' public halves in, versions of the roster and kits out.

A hospital's keys are made at the hospital; here only their public half is ever read. Each change is a
new signed version of the roster. It counts from the moment at which `roster.json` is replaced; what
hangs on it (its copy in `rosters/`, the kits, `federation.yaml`) is made after that, and made again by
the next command where one was killed between. Hospitals that `federation.yaml` names beyond the roster
are invited: they have a kit, and are not admitted yet.
"""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import yaml
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from federation import public_identity, roster
from federation.invitation import Invitation
from federation.public_identity import SUFFIX, PublicIdentity
from federation.roster import MOST_MEMBERS, Member, Roster
from federation.schema import ConfigError, parse
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
            f"create --site site.yaml and sends you the file NAME{SUFFIX} that it makes; or provision "
            "without --identities, and admit each when it has joined"
        )
    if extra := sorted(found - set(hospitals)):
        raise ConfigError(
            f"{str(folder / (extra[0] + SUFFIX))!r} is of no hospital in federation.yaml; add its name "
            "there, or take the file away"
        )
    members = []
    for name in sorted(hospitals):
        member = read_identity(folder / f"{name}{SUFFIX}").member
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
    complete(home, federation)


def invite(home: Home, name: str) -> Path:
    """The kit of a hospital that is to join.

    Raises:
        ConfigError: it is on the roster or invited already, or it is no name for a hospital.
    """
    with _changing(home) as old:
        federation = home.federation()
        if name in federation.hospitals:
            state = "invited" if old is None or old.member(name) is None else "on the roster"
            raise ConfigError(f"{name} is {state} already; its kit: {home.kit(name)}")
        named = {"hospitals": sorted([*federation.hospitals, name])}
        content = federation.model_dump() | named
        complete(home, parse(Federation, content, where="coordinator invite"))
    return home.kit(name)


def admit(home: Home, *files: Path, fingerprints: Sequence[str] = ()) -> Changed:
    """Take hospitals in, in one new version of the roster.

    Args:
        files: the public half of each one's keys.
        fingerprints: of each, in the order of the files, as they were told; none: nothing is compared.

    Raises:
        ConfigError: a public half cannot be used or is another than was told; or its hospital is on
            the roster, or its keys were before.
    """
    with _changing(home) as old:
        members = () if old is None else old.members
        admitted = tuple(_as_told(files, fingerprints))
        for file, new in zip(files, admitted, strict=True):
            name = new.member.name
            if any(member.name == name for member in members):
                raise ConfigError(
                    f"{name} is on the roster already (its kit: {home.kit(name)}); "
                    "for new keys: coordinator rotate FILE"
                )
            if new.previous:
                raise ConfigError(
                    f"{file} replaces keys of {name}, which is not on the roster; a new hospital "
                    "sends what hospital join makes"
                )
        fresh = tuple(new.member for new in admitted)
        if len({member.name for member in fresh}) < len(fresh):
            raise ConfigError("two of these files are of the same hospital")
        return _next(home, old, (*members, *fresh), *fresh)


def remove(home: Home, name: str) -> Changed | None:
    """Put a hospital out; None where it was only invited.

    Raises:
        ConfigError: nobody knows it, or it is the only one on the roster.
    """
    with _changing(home) as old:
        federation = home.federation()
        others = [hospital for hospital in federation.hospitals if hospital != name]
        invited = name in federation.hospitals and (old is None or old.member(name) is None)
        if not invited:
            _known(old, name)
        members = tuple(member for member in _of(old) if member.name != name)
        if not invited and not members:
            raise ConfigError(f"{name} is the only hospital on the roster, which cannot be empty")
        if not others:
            raise ConfigError(f"{name} is the only hospital, and a federation has one at least")
        told = federation.model_copy(update={"hospitals": others})
        if invited:
            complete(home, told)
            return None
        # First, or a kill after the roster's would leave it among those that are invited.
        _write_federation(home, told)
        changed = _next(home, old, members)
        home.suspensions.forget(name)
        return changed


def rotate(home: Home, file: Path, *, lost: bool, fingerprints: Sequence[str] = ()) -> Changed:
    """Put new keys in a hospital's old ones' place.

    Args:
        lost: the old identity is gone, so that it does not sign for the new one.
        fingerprints: as in `admit`.

    Raises:
        ConfigError: the public half cannot be used or is another than was told, or the old identity did
            not sign it and is not said to be lost.
    """
    with _changing(home) as old:
        (new,) = _as_told([file], fingerprints)
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
        others = (member for member in _of(old) if member.name != before.name)
        return _next(home, old, (*others, after), after)


def suspend(home: Home, name: str, reason: str) -> None:
    """Have runs not ask a hospital from their next round on. It stays on the roster, and connected.

    Raises:
        ConfigError: it is not on the roster, or suspended already.
    """
    _known(home.newest_roster(), name)
    home.suspensions.add(name, reason)


def reinstate(home: Home, name: str) -> None:
    """Have runs ask a suspended hospital again. Raises ConfigError: it is not suspended."""
    home.federation()
    home.suspensions.lift(name)


def fingerprint_of_kits(home: Home) -> str:
    """What the coordinator tells hospitals, who compare it with what `hospital join` prints."""
    authority = x509.load_pem_x509_certificate(home.ca_certificate.read_bytes())
    invitation = _invitation(home.federation(), "")
    return invitation.fingerprint(authority, home.identity().public_key())


def _as_told(files: Sequence[Path], fingerprints: Sequence[str]) -> Iterator[PublicIdentity]:
    """What is in the files, each with the fingerprint that was told of it, if any were."""
    if fingerprints and len(fingerprints) != len(files):
        raise ConfigError(
            f"{len(fingerprints)} fingerprints for {len(files)} files: give one for each, in their order"
        )
    for number, file in enumerate(files):
        new = read_identity(file)
        found = new.member.fingerprint()
        if fingerprints and not roster.same_fingerprint(fingerprints[number], found):
            raise ConfigError(
                f"{file} has the fingerprint {found}, and {new.member.name}'s is said to be another: "
                "the file is not what that hospital made. Ask it for the file again, on another way"
            )
        yield new


def _next(home: Home, old: Roster | None, members: tuple[Member, ...], *new: Member) -> Changed:
    if len(members) > MOST_MEMBERS:
        raise ConfigError(f"a federation has at most {MOST_MEMBERS} hospitals")
    _distinct(members)
    for member in new:
        _never_used(home, member)
    federation = home.federation()
    ordered = tuple(sorted(members, key=lambda member: member.name))
    version = Roster(federation.name, ordered)
    if old is not None:
        version = replace(version, version=old.version + 1, previous=old.sha256())
    publish(home, federation, version)
    return Changed(version, _register(home, version))


def _register(home: Home, version: Roster) -> bool:
    """Tell the SuperLink, if it runs; at its next start it hears of it anyway."""
    try:
        with Control(home) as control:
            control.register(version.members)
    except Unreachable:
        return False
    return True


def complete(home: Home, federation: Federation) -> None:
    """What hangs on the newest version of the roster, and on who else is named in `federation`."""
    key = home.identity().public_key()
    home.rosters.mkdir(exist_ok=True)
    content, admitted = None, []
    if home.roster_file.exists():
        content, current = roster.read_signed(home.roster_file, key)
        write_atomically(home.rosters / f"{current.version}.json", content)
        admitted = current.names()
    named = sorted({*admitted, *federation.hospitals})
    public = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    for name in named:
        kit = home.kit(name)
        kit.mkdir(parents=True, exist_ok=True)
        parts = {
            "ca.crt": home.ca_certificate.read_bytes(),
            "coordinator.pub": public,
            "kit.json": _invitation(federation, name).to_bytes(),
        }
        if content is not None:
            parts["roster.json"] = content
        for file, what in parts.items():
            write_atomically(kit / file, what)
    for kit in home.kits.iterdir():
        if kit.name not in named and (kit / "kit.json").exists():
            shutil.rmtree(kit)
    # In a new folder this comes last, so that one with this file is a whole one.
    _write_federation(home, federation.model_copy(update={"hospitals": named}))


def _write_federation(home: Home, federation: Federation) -> None:
    content = yaml.safe_dump(federation.model_dump(), sort_keys=False)
    write_atomically(home.path / "federation.yaml", content.encode())


def _invitation(federation: Federation, hospital: str) -> Invitation:
    return Invitation(federation.name, hospital, f"{federation.host}:{federation.port}")


@contextmanager
def _changing(home: Home) -> Iterator[Roster | None]:
    """The newest roster, complete, while nobody else changes it; None before the first."""
    home.federation()
    with (home.path / "membership.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        current = home.newest_roster()
        if current is not None:
            _require_newest(home, current)
        complete(home, home.federation())
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


def read_identity(file: Path) -> PublicIdentity:
    """A hospital's public half, its proofs checked. Raises ConfigError: there is none, or it is bad."""
    try:
        return public_identity.read(file)
    except FileNotFoundError:
        raise ConfigError(
            f"there is no {file}; the hospital makes it with hospital join (or identity rotate)"
        ) from None


def _known(current: Roster | None, name: str) -> Member:
    member = None if current is None else current.member(name)
    if member is None:
        known = ", ".join(member.name for member in _of(current)) or "nobody is yet"
        raise ConfigError(f"{name!r} is not on the roster: {known}")
    return member


def _of(current: Roster | None) -> tuple[Member, ...]:
    return () if current is None else current.members


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
