"""The hospital's own keys: made here, kept here. Only their public half is ever handed over.

`identity/` in the state folder holds `identity.key` (Ed25519: signs what this hospital says to others),
`node.key` (EC P-384, OpenSSH: Flower's SuperNode logs in with it) and the public half. A rotation puts
new keys into `identity/next/`. In force are always the keys that the roster in force names, wherever
they lie; so accepting a roster switches over in one write, and a crash at any moment leaves the old
identity or the new one.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
    load_ssh_private_key,
)

from client_app.kit import read_kit, sync_folder
from client_app.site import Site
from federation import public_identity, roster
from federation.roster import Member, Roster
from federation.schema import ConfigError

_IDENTITY, _NODE, _NEXT = "identity.key", "node.key", "next"
_LARGEST = 1 << 14  # bytes of a key file


@dataclass(frozen=True)
class Identity:
    """The keys in force.

    Attributes:
        node_key: the file that flower-supernode reads.
        roster: the one that names these keys.
    """

    hospital: str
    key: Ed25519PrivateKey = field(repr=False)
    node_key: Path
    roster: Roster


def load(site: Site) -> Identity:
    """The keys that the roster in force names for this hospital.

    Raises:
        ConfigError: there are none, others may read them, the hospital is not on the roster, or the
            roster names other keys; with what to do.
    """
    on_roster = read_kit(site).roster()
    member = on_roster.member(site.hospital)
    if not folder_of(site.state).exists():
        raise ConfigError(_none(site.state))
    if member is None:
        raise ConfigError(
            f"{site.hospital} is not on the roster of version {on_roster.version} "
            f"({', '.join(on_roster.names())}); send what hospital identity show prints to the "
            "coordinator, and take the roster that comes back with hospital roster accept"
        )
    identity, node = _key_of(site.state, member), _node_of(site.state, member)
    if identity is None or node is None:
        raise ConfigError(
            f"the keys in {folder_of(site.state)} are not those that the roster of version "
            f"{on_roster.version} names for {site.hospital}. Where a newer roster names them, take it "
            "with hospital roster accept; else bring the keys back from a backup, or, where they are "
            f"lost, {_ANEW}"
        )
    return Identity(site.hospital, identity, node, on_roster)


def holds(state: Path, member: Member) -> bool:
    """Whether the private keys of this member lie here."""
    return _key_of(state, member) is not None and _node_of(state, member) is not None


def create(state: Path, hospital: str) -> Member:
    """Make a hospital's first keys in `state`; what it becomes on the roster.

    The folder appears whole or not at all.

    Raises:
        ConfigError: there are keys already.
    """
    target = folder_of(state)
    with _locked(state):
        if target.exists():
            raise ConfigError(
                f"{target} holds keys already, and they are never overwritten: hospital identity show "
                "prints their public half, hospital identity rotate makes new ones beside them. Where "
                f"they are lost or damaged: {_ANEW}"
            )
        return _make(target, state, hospital, None)


def rotate(site: Site) -> Member:
    """Make new keys beside those in force, which sign that the new ones replace them.

    Raises:
        ConfigError: as `load`; or new keys wait already.
    """
    with _locked(site.state):
        target = folder_of(site.state) / _NEXT
        if target.exists():
            raise ConfigError(
                f"new keys wait in {target} already for a roster that names them: hospital identity "
                "show --out . writes their public half for the coordinator; to drop them, delete that "
                "folder"
            )
        return _make(target, folder_of(site.state), site.hospital, load(site).key)


def settle(site: Site, in_force: Roster) -> bool:
    """After a roster was pinned that names waiting keys: put them in the old ones' place.

    Each move is one rename over an old key, and `load` finds the keys between any two of them.

    Returns:
        Whether old keys were replaced.
    """
    waiting, home = folder_of(site.state) / _NEXT, folder_of(site.state)
    member = in_force.member(site.hospital)
    if member is None or not waiting.exists():
        return False
    with _locked(site.state):
        settled = False
        for name, named in ((_IDENTITY, member.identity_key), (_NODE, member.node_key)):
            if _public(waiting / name) == named:
                (waiting / name).replace(home / name)
                settled = True
        if not any((waiting / name).exists() for name in (_IDENTITY, _NODE)):
            for rest in waiting.glob(f"*{public_identity.SUFFIX}"):
                rest.replace(home / rest.name)
            with suppress(OSError):
                waiting.rmdir()
        sync_folder(home)
        return settled


def public_halves(state: Path, hospital: str) -> list[tuple[Path, Member]]:
    """The files for the coordinator, and what each says: of the keys here, then of waiting ones.

    Raises:
        ConfigError: there are no keys, or a file is damaged or not of the keys beside it.
    """
    home = folder_of(state)
    if not home.exists():
        raise ConfigError(_none(state))
    found = []
    for folder in (home, home / _NEXT):
        if not folder.exists():
            continue
        path = folder / f"{hospital}{public_identity.SUFFIX}"
        member = Member(hospital, _public(folder / _NODE) or "", _public(folder / _IDENTITY) or "")
        try:
            said = public_identity.read(path).member
        except FileNotFoundError:
            raise ConfigError(
                f"{path} is missing: these keys are not of {hospital}, or it was deleted; bring "
                f"it back from a backup, or {_ANEW}"
            ) from None
        if not said.same_keys(member):
            raise ConfigError(
                f"{path} is not of the keys beside it; bring the folder back from a backup, or {_ANEW}"
            )
        found.append((path, said))
    return found


def folder_of(state: Path) -> Path:
    return state / "identity"


_ANEW = (
    "move that folder away, run hospital join, and ask the coordinator for coordinator rotate --lost, "
    "which the other hospitals have to confirm"
)


def _none(state: Path) -> str:
    return (
        f"there are no keys in {folder_of(state)}: make them with hospital join, and send the file that "
        "it names to the coordinator"
    )


def _make(target: Path, parent: Path, hospital: str, previous: Ed25519PrivateKey | None) -> Member:
    for left in parent.glob(".identity-*"):  # of a command that was killed: nobody knows these keys
        shutil.rmtree(left)
    identity, node = Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP384R1())
    public = public_identity.write(hospital, identity, node, previous)
    draft = Path(tempfile.mkdtemp(dir=parent, prefix=".identity-"))  # mode 0700
    try:
        pem = identity.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        ssh = node.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
        for name, content in (
            (_IDENTITY, pem), (_NODE, ssh), (f"{hospital}{public_identity.SUFFIX}", public)
        ):  # fmt: skip
            handle = os.open(draft / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        sync_folder(draft)
        draft.rename(target)  # onto a folder that holds something it fails
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    sync_folder(parent)
    return public_identity.parse(public).member


def _key_of(state: Path, member: Member) -> Ed25519PrivateKey | None:
    for folder in _folders(state):
        key = _identity(folder / _IDENTITY)
        if key is not None and roster.identity_text(key.public_key()) == member.identity_key:
            return key
    return None


def _node_of(state: Path, member: Member) -> Path | None:
    for folder in _folders(state):
        if _public(folder / _NODE) == member.node_key:
            return folder / _NODE
    return None


def _folders(state: Path) -> tuple[Path, Path]:
    """Waiting keys first: one that is gone from there has been moved to the other by then."""
    return folder_of(state) / _NEXT, folder_of(state)


def _public(path: Path) -> str | None:
    """The public half of a key file, as a roster has it; None where there is no file."""
    if path.name == _IDENTITY:
        key = _identity(path)
        return None if key is None else roster.identity_text(key.public_key())
    node = _node(path)
    return None if node is None else roster.node_line(node.public_key())


def _identity(path: Path) -> Ed25519PrivateKey | None:
    content = _private(path)
    if content is None:
        return None
    try:
        key = load_pem_private_key(content, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(_damaged(path))
    return key


def _node(path: Path) -> ec.EllipticCurvePrivateKey | None:
    content = _private(path)
    if content is None:
        return None
    try:
        key = load_ssh_private_key(content, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name != "secp384r1":
        raise ConfigError(_damaged(path))
    return key


def _private(path: Path) -> bytes | None:
    """What a key file holds; None where there is none."""
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & 0o077:
                raise ConfigError(
                    f"{path} can be read by others; run chmod 600 on it, and where somebody could have "
                    "read it make new keys with hospital identity rotate"
                )
            return file.read(_LARGEST)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _damaged(path: Path) -> str:
    return f"{path} is not the key that was made here; bring it back from a backup, or {_ANEW}"


@contextmanager
def _locked(state: Path) -> Iterator[None]:
    """One command at a time changes keys."""
    try:
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(state / "identity.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(f"{state} cannot be written to: {error.strerror}") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
