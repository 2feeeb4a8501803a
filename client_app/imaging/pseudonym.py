"""The keyed pseudonym: the only name by which a patient is known past the reader of a file.

HMAC-SHA256 (RFC 2104) with a key that never leaves the hospital. Without the key nobody can test a
guessed identifier; with it, a patient has one pseudonym over all studies, runs and restarts.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
from pathlib import Path

from federation.schema import ConfigError

KEY_BYTES = 32
PSEUDONYM_BYTES = 16


def open_key(state: Path) -> bytes:
    """The pseudonym key of a state folder, made on the first use.

    Raises:
        ConfigError: it is gone or damaged, or others may read it.
    """
    file = state / "pseudonym.key"
    if not file.exists() and (state / "ledger.sqlite").exists():
        raise ConfigError(
            f"{file} is gone, but the ledger of its patients is there: restore the key from a backup. "
            "With a new key nobody knows whose privacy the ledger counts"
        )
    if not file.exists() and (state / "index.sqlite").exists():
        raise ConfigError(
            f"{file} is gone, but the index made with it is there: restore the key from a backup. "
            "A new key would hold out other patients; to accept that, delete index.sqlite too"
        )
    return load_key(file)


def load_key(path: Path) -> bytes:
    """The hospital's key, 32 bytes; made from the operating system's CSPRNG if there is none yet.

    A new key appears whole or not at all, and of several processes that make one at the same time
    all get the same.

    Raises:
        ConfigError: others than the owner may use the file, or it does not hold 32 bytes.
    """
    if not path.exists():
        _create(path)
    with path.open("rb") as file:
        mode = os.fstat(file.fileno()).st_mode & 0o777
        if mode & 0o077:
            raise ConfigError(
                f"the pseudonym key {path.name} has mode {mode:04o}: others than its owner may use "
                "it. Find out who could have read it, then set its mode to 0600"
            )
        key = file.read(KEY_BYTES + 1)
    if len(key) != KEY_BYTES:
        raise ConfigError(
            f"the pseudonym key {path.name} does not hold {KEY_BYTES} bytes. Restore it from a "
            "backup; a new key gives every patient a new pseudonym and a new place in the splits"
        )
    return key


def _create(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(os.urandom(KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        # A link, not a rename: it never replaces a key that another process has just made.
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
    finally:
        draft.unlink()
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Without this the key's name may be lost in a power cut after pseudonyms were handed out."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def normalised(patient_id: str) -> str:
    """The identifier without what DICOM holds to be padding; two that are equal so are one patient.

    PatientID is of value representation LO: leading and trailing spaces are not significant (DICOM
    PS3.5, table 6.2-1), case is. Trailing NULs are what some writers pad with instead.
    """
    return patient_id.rstrip(" \0").lstrip(" ")


def pseudonym(key: bytes, patient_id: str) -> str:
    """The patient's pseudonym: 32 hexadecimal digits.

    Raises:
        ValueError: the identifier is empty, which is no patient: all files without one would
            become a single person.
    """
    identifier = normalised(patient_id)
    if not identifier:
        raise ValueError("an empty patient identifier has no pseudonym")
    return keyed_hash(key, "patient", identifier)[:PSEUDONYM_BYTES].hex()


def keyed_hash(key: bytes, purpose: str, text: str) -> bytes:
    """HMAC-SHA256, 32 bytes. Different purposes give unrelated values for the same text."""
    message = f"{purpose}\0{text}".encode("utf-8", "surrogatepass")
    return hmac.new(key, message, hashlib.sha256).digest()


def uid_hash(key: bytes, purpose: str, uid: str) -> str:
    """A UID's keyed hash, 32 hexadecimal digits; of an absent one the empty string."""
    return keyed_hash(key, purpose, uid)[:16].hex() if uid else ""
