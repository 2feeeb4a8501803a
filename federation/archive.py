"""A backup: one file, encrypted and authenticated under a passphrase, with a manifest of what is in it.

    magic ‖ header length (2 bytes) ‖ header (JSON) ‖ chunks

The key comes from the passphrase by scrypt, with a salt of the archive's own. The chunks are a tar
stream in pieces of 1 MiB, each under AES-256-GCM with a nonce that counts them and says which is the
last, and with the header as associated data (the STREAM construction; Hoang et al. 2015, "Online
authenticated encryption"). So nothing can be altered, reordered, repeated, dropped or cut off unseen,
and nothing is believed before its chunk was authenticated. Memory does not grow with the archive.

The tar's last member is the manifest: each file's size and SHA-256, whose backup it is, and when.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import struct
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from federation.schema import ConfigError

SHORTEST = 12  # letters of a passphrase

_MAGIC = b"consilium backup 1\n"
_CHUNK = 1 << 20  # bytes of plain text in a chunk
_TAG = 16
_SCRYPT = {"n": 1 << 17, "r": 8, "p": 1}  # 128 MiB and half a second a guess
_MANIFEST = "MANIFEST.json"
_LARGEST_MANIFEST = 64 << 20  # bytes
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,200}")
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Manifest:
    """What an archive holds.

    Attributes:
        kind: whose backup it is: hospital or coordinator.
        name: of that hospital, or of the federation.
        made: when, UTC.
        about: what else its maker noted, such as how far a ledger was.
        files: size and SHA-256 by name.
    """

    kind: str
    name: str
    made: str
    about: Mapping[str, Any]
    files: Mapping[str, tuple[int, str]]


@dataclass
class Writer:
    """An archive being written; `add` files, and it is whole when `writing` ends."""

    _tar: tarfile.TarFile
    _files: dict[str, tuple[int, str]] = field(default_factory=dict)

    def add(self, name: str, path: Path, size: int | None = None) -> None:
        """Add a file under a name with slashes.

        Args:
            size: only so many bytes from its start, of a file that others append to.
        """
        with path.open("rb") as file:
            wanted = os.fstat(file.fileno()).st_size if size is None else size
            self._put(name, file, wanted)

    def _put(self, name: str, file: BinaryIO, size: int) -> None:
        if not _is_safe(name) or name in self._files:
            raise ValueError("not a name for an archive, or there already")
        member = tarfile.TarInfo(name)
        member.size, member.mode = size, 0o600
        reader = _Hashing(file, size)
        try:
            self._tar.addfile(member, reader)
        except OSError:
            raise ConfigError(f"{name} became shorter while it was read; try again") from None
        self._files[name] = (size, reader.hash.hexdigest())


class _Hashing:
    """A file of which `size` bytes are read, and hashed on the way."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._left, self.hash = file, size, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        block = self._file.read(self._left if size < 0 else min(size, self._left))
        self._left -= len(block)
        self.hash.update(block)
        return block


@contextmanager
def writing(
    path: Path, passphrase: str, *, kind: str, name: str, about: dict[str, Any]
) -> Iterator[Writer]:
    """Write an archive to a new file of mode 0600, which appears whole or not at all.

    Args:
        about: is read when all files were added.

    Raises:
        ConfigError: the passphrase is too short, the file is there, or its folder cannot be written to.
    """
    if len(passphrase) < SHORTEST:
        raise ConfigError(
            f"the passphrase needs {SHORTEST} letters or more: it guards private keys"
        )
    if path.exists():
        raise ConfigError(f"{path} is there already; name a new file")
    draft = path.with_name(f".{path.name}.draft")  # one name, so that a killed one is written over
    try:
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "wb") as file:
            os.fchmod(handle, 0o600)
            chunks = _Encrypting(file, passphrase)
            with tarfile.open(fileobj=chunks, mode="w|", format=tarfile.PAX_FORMAT) as tar:  # type: ignore[call-overload]
                writer = Writer(tar)
                yield writer
                now = datetime.now(UTC).isoformat(timespec="seconds")
                manifest = {
                    "kind": kind, "name": name, "made": now, "about": about, "files": writer._files
                }  # fmt: skip
                content = json.dumps(manifest, indent=1).encode()
                writer._put(_MANIFEST, io.BytesIO(content), len(content))
            chunks.finish()
            file.flush()
            os.fsync(handle)
        os.link(draft, path)  # unlike a rename it never replaces
        _sync(path.parent)
    except FileExistsError:
        raise ConfigError(f"{path} is there already; name a new file") from None
    except OSError as error:
        raise ConfigError(
            f"{error.filename or path}: {error.strerror}; no backup was made"
        ) from None
    finally:
        draft.unlink(missing_ok=True)


def unpack(path: Path, passphrase: str, folder: Path, *, kind: str) -> Manifest:
    """Put an archive's files below an empty folder, each found to be what the manifest says.

    Raises:
        ConfigError: no archive, another kind of backup, a wrong passphrase, or an archive that was
            altered or cut off. What was unpacked until then lies in the folder and is not to be used.
    """
    try:
        with path.open("rb") as file:
            chunks = _Decrypting(file, passphrase, path)
            found, content = _extract(chunks, folder, path)
            chunks.require_end()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or 'cannot be read'}") from None
    manifest = _manifest(content, path)
    if dict(manifest.files) != found:
        raise ConfigError(f"{path} does not hold what its manifest lists; take another backup")
    if manifest.kind != kind:
        raise ConfigError(f"{path} is the backup of a {manifest.kind}, not of a {kind}")
    return manifest


def _extract(
    chunks: _Decrypting, folder: Path, path: Path
) -> tuple[dict[str, tuple[int, str]], bytes | None]:
    """Sizes and hashes of the files written, and the manifest, if it is the last."""
    found: dict[str, tuple[int, str]] = {}
    try:
        with tarfile.open(fileobj=chunks, mode="r|") as tar:  # type: ignore[call-overload]
            for member in tar:
                source = tar.extractfile(member) if member.isreg() else None
                if source is None or not _is_safe(member.name) or member.name in found:
                    raise ConfigError(f"{path} holds what no backup of ours holds: not unpacked")
                if member.name == _MANIFEST:
                    if member.size > _LARGEST_MANIFEST:
                        raise ConfigError(f"{path}: its manifest is too large")
                    return found, source.read()
                target = folder / member.name
                target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                found[member.name] = _copy(source, target)
    except tarfile.TarError:
        raise ConfigError(f"{path} is damaged; take another backup") from None
    return found, None


def _copy(source: Any, target: Path) -> tuple[int, str]:
    handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    size, digest = 0, hashlib.sha256()
    with os.fdopen(handle, "wb") as file:
        while block := source.read(_BLOCK):
            size += len(block)
            digest.update(block)
            file.write(block)
        file.flush()
        os.fsync(handle)
    return size, digest.hexdigest()


def _manifest(content: bytes | None, path: Path) -> Manifest:
    try:
        said = json.loads(content or b"")
        files = {name: (int(size), str(digest)) for name, (size, digest) in said["files"].items()}
        return Manifest(said["kind"], said["name"], said["made"], dict(said["about"]), files)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ConfigError(f"{path} has no manifest that can be read; take another backup") from None


class _Encrypting:
    """What tarfile writes to."""

    def __init__(self, file: BinaryIO, passphrase: str) -> None:
        salt = os.urandom(32)
        self._header = json.dumps({"salt": salt.hex(), "scrypt": _SCRYPT}).encode()
        self._cipher, self._file = AESGCM(_key(passphrase, salt)), file
        self._plain, self._count = bytearray(), 0
        file.write(_MAGIC + struct.pack(">H", len(self._header)) + self._header)

    def write(self, content: bytes) -> int:
        self._plain += content
        while len(self._plain) > _CHUNK:  # one chunk is left: the last is marked as such
            self._chunk(bytes(self._plain[:_CHUNK]), last=False)
            del self._plain[:_CHUNK]
        return len(content)

    def finish(self) -> None:
        self._chunk(bytes(self._plain), last=True)

    def _chunk(self, plain: bytes, *, last: bool) -> None:
        self._file.write(self._cipher.encrypt(_nonce(self._count, last), plain, self._header))
        self._count += 1


class _Decrypting:
    """What tarfile reads from: chunks that were authenticated, and no others."""

    def __init__(self, file: BinaryIO, passphrase: str, path: Path) -> None:
        self._file, self._path = file, path
        if file.read(len(_MAGIC)) != _MAGIC:
            raise ConfigError(f"{path} is not a backup, or one of a newer Consilium")
        try:
            (length,) = struct.unpack(">H", file.read(2))
            self._header = file.read(length)
            said = json.loads(self._header)
            # An archive cannot ask for more memory than ours do.
            if said["scrypt"] != _SCRYPT:
                raise ValueError("other parameters")
            key = _key(passphrase, bytes.fromhex(said["salt"]))
        except (struct.error, ValueError, KeyError, TypeError):
            raise ConfigError(f"{path} is damaged: its header cannot be read") from None
        self._cipher = AESGCM(key)
        self._plain, self._count, self._last = b"", 0, False
        self._ahead = file.read(_CHUNK + _TAG)

    def read(self, size: int) -> bytes:
        parts = []
        while size > 0 and (self._plain or not self._last):
            if not self._plain:
                self._chunk()
            parts.append(self._plain[:size])
            self._plain = self._plain[size:]
            size -= len(parts[-1])
        return b"".join(parts)

    def require_end(self) -> None:
        """Read to the end. Raises ConfigError: it was cut off, or something follows."""
        while not self._last:
            self._chunk()

    def _chunk(self) -> None:
        sealed, self._ahead = self._ahead, self._file.read(_CHUNK + _TAG)
        self._last = not self._ahead
        try:
            nonce = _nonce(self._count, self._last)
            self._plain = self._cipher.decrypt(nonce, sealed, self._header)
        except (InvalidTag, ValueError):
            raise ConfigError(
                f"{self._path} does not open: the passphrase is wrong, or it was altered or cut off"
                if self._count == 0
                else f"{self._path} was altered or cut off; take another backup"
            ) from None
        self._count += 1


def _key(passphrase: str, salt: bytes) -> bytes:
    return Scrypt(salt=salt, length=32, **_SCRYPT).derive(passphrase.encode())


def _nonce(count: int, last: bool) -> bytes:
    return struct.pack(">3xQ?", count, last)


def _is_safe(name: str) -> bool:
    """Whether it names a file below a folder, on any system."""
    parts = name.split("/")
    return all(_NAME.fullmatch(part) and part not in (".", "..") for part in parts)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
