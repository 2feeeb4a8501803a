"""A reviewer's own key: made on the reviewer's machine, and encrypted wherever it lies.

It is an OpenSSH Ed25519 key, as `ssh-keygen -t ed25519` makes them too. The passphrase is stretched by
OpenSSH's bcrypt.
"""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PrivateFormat,
    load_ssh_private_key,
)

from federation import review
from federation.roster import read_bounded
from federation.schema import ConfigError
from server_app.state import sync_folder

SHORTEST = 12  # letters of a passphrase

_ROUNDS = 64  # of bcrypt, about a second; ssh-keygen takes 24
_LARGEST = 1 << 14  # bytes of a key's file


def create(path: Path, passphrase: str, comment: str) -> str:
    """Make a key at `path`, and beside it `.pub`; the public line.

    Raises:
        ConfigError: the passphrase is too short, or a file is there already: a key is never replaced.
    """
    if len(passphrase) < SHORTEST:
        raise ConfigError(f"a passphrase has {SHORTEST} letters or more; choose a longer one")
    public = path.with_name(f"{path.name}.pub")
    for taken in (path, public):
        if taken.exists():
            raise ConfigError(f"{taken} is there already; a key is never replaced")
    private = Ed25519PrivateKey.generate()
    encryption = (
        PrivateFormat.OpenSSH.encryption_builder().kdf_rounds(_ROUNDS).build(passphrase.encode())
    )
    line = f"{review.line(private.public_key())} {comment}"
    _write_new(path, private.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, encryption), 0o600)
    _write_new(public, f"{line}\n".encode(), 0o644)
    sync_folder(path.parent)
    return line


def load(path: Path, passphrase: str) -> Ed25519PrivateKey:
    """The key at `path`.

    Raises:
        ConfigError: there is none, it is another kind of key, it lies there unencrypted, or the
            passphrase is wrong.
    """
    try:
        content = read_bounded(path, _LARGEST)
    except FileNotFoundError:
        raise ConfigError(f"there is no {path}; make one with: coordinator review key") from None
    if _loaded(content, None) is not None:
        raise ConfigError(
            f"{path} is not encrypted, and who copied it could sign. Encrypt it with ssh-keygen -p -f "
            "FILE, or, where somebody may have read it, make another: coordinator review key"
        )
    key = _loaded(content, passphrase.encode())
    if key is None:
        raise ConfigError(f"{path}: the passphrase is wrong, or it is no OpenSSH private key")
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"{path} is not an Ed25519 key; make one with: coordinator review key")
    return key


def _loaded(content: bytes, passphrase: bytes | None) -> object | None:
    try:
        return load_ssh_private_key(content, passphrase)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return None


def _write_new(path: Path, content: bytes, mode: int) -> None:
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError:
        raise ConfigError(f"{path} is there already; a key is never replaced") from None
    except FileNotFoundError:
        raise ConfigError(f"there is no folder {path.parent}") from None
    with os.fdopen(handle, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
