"""A run's bundle as nobody trusts it yet: a zip, looked at within bounds and never unpacked here.

Which code it holds is named by one hash over the files of `client_app` and `federation`, which a
hospital runs. It is the SHA-256 of what this prints in the folder that holds the two:

    find client_app federation -name '*.py' | LC_ALL=C sort | xargs sha256sum
"""

from __future__ import annotations

import hashlib
import re
import stat
import zipfile
from collections.abc import Mapping
from io import BytesIO
from pathlib import PurePosixPath

PACKAGES = ("client_app", "federation", "server_app")
NO_CODE = ("pyproject.toml", ".info/CONTENT")  # Flower's description of the bundle

_LARGEST_BUNDLE = 10 * 1024**2  # bytes; Flower builds none that is larger (FAB_MAX_SIZE)
_MOST_FILES, _LARGEST_CONTENT = 2000, 64 * 1024**2  # of a bundle, and bytes when unpacked
_LONGEST_NAME = 70  # letters of a file's name in a message
_CHUNK = 1 << 16  # bytes unpacked at once
_VERSION = re.compile(rb'^version = "([0-9][0-9A-Za-z.+-]{0,15})"$', re.MULTILINE)


class Unsound(Exception):
    """What is wrong with a bundle, in words that follow `the bundle`."""


def opened(bundle: bytes) -> zipfile.ZipFile:
    """The bundle with its list of contents looked at; to be closed.

    Raises:
        Unsound: too large now or when unpacked, or with names that could be more than files.
        zipfile.BadZipFile: not a zip; damaged ones raise many other kinds.
    """
    if len(bundle) > _LARGEST_BUNDLE:
        raise Unsound(f"has more than {_LARGEST_BUNDLE:,} bytes")
    archive = zipfile.ZipFile(BytesIO(bundle))
    entries = archive.infolist()
    if len(entries) > _MOST_FILES:
        raise Unsound(f"has more than {_MOST_FILES:,} files")
    if sum(entry.file_size for entry in entries) > _LARGEST_CONTENT:
        raise Unsound(f"has more than {_LARGEST_CONTENT:,} bytes when it is unpacked")
    if len({entry.filename for entry in entries}) < len(entries):
        raise Unsound("has two files of one name")
    for entry in entries:
        path = PurePosixPath(entry.filename)
        plain = (
            entry.filename == entry.orig_filename
            and str(path) == entry.filename.rstrip("/")
            and not path.is_absolute()
            and ".." not in path.parts
            and "\\" not in entry.filename
        )
        mode = entry.external_attr >> 16
        if not plain or stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise Unsound(f"has {shown(entry.filename)}, which is not a plain file inside it")
        # the other methods unpack all of a file at once, whatever it says of its size
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise Unsound(
                f"has {shown(entry.filename)} compressed in a way that Flower does not use"
            )
        if entry.flag_bits & 0x1:
            raise Unsound(f"has {shown(entry.filename)} encrypted")
    return archive


def content(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    """A file of an `opened` archive; no more is unpacked than its entry says it has.

    Raises:
        zipfile.BadZipFile: it has more or less; damaged ones raise many other kinds.
    """
    with archive.open(entry) as file:
        found = file.read(entry.file_size + 1)
    if len(found) != entry.file_size:
        raise zipfile.BadZipFile("a file has not the length that its entry says")
    return found


def digests(archive: zipfile.ZipFile) -> dict[str, str]:
    """SHA-256 of each file of an `opened` archive, hex, by name. Raises as reading damaged zips does."""
    found = {}
    for entry in archive.infolist():
        digest = hashlib.sha256()
        with archive.open(entry) as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
        found[entry.filename] = digest.hexdigest()
    return found


def code_sha256(files: Mapping[str, str]) -> str:
    """What names the code of `client_app` and `federation`, from `digests` of any files, hex."""
    lines = [
        f"{files[name]}  {name}\n"
        for name in sorted(files)
        if name.partition("/")[0] in PACKAGES[:2] and name.endswith(".py")
    ]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def version(archive: zipfile.ZipFile) -> str:
    """The version that a bundle claims to have, for a message; "unknown" where it says none."""
    try:
        with archive.open(NO_CODE[0]) as file:
            said = _VERSION.search(file.read(_CHUNK))
    except KeyError:
        said = None
    return said[1].decode() if said else "unknown"


def shown(name: str) -> str:
    """A name of somebody else's choosing, as a log may hold it."""
    quoted = ascii(name)
    return quoted if len(quoted) <= _LONGEST_NAME else f"{quoted[: _LONGEST_NAME - 1]}…"
