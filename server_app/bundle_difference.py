"""What two bundles have that differs, for a reviewer to read before signing one of them."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from federation import bundle as archives
from federation.bundle import Unsound
from federation.schema import ConfigError


@dataclass(frozen=True)
class Contents:
    """A bundle, read whole.

    Attributes:
        files: by name; everything in it, also what is no code.
        code: SHA-256 of the code that a hospital runs, see `federation.bundle`.
    """

    files: dict[str, bytes]
    version: str
    code: str

    @classmethod
    def of(cls, bundle: bytes, where: str) -> Contents:
        """Raises ConfigError: no bundle, or one that a hospital would refuse to open."""
        try:
            with archives.opened(bundle) as archive:
                files = {
                    entry.filename: archives.content(archive, entry) for entry in archive.infolist()
                }
                digests = {name: hashlib.sha256(files[name]).hexdigest() for name in files}
                return cls(files, archives.version(archive), archives.code_sha256(digests))
        except Unsound as error:
            raise ConfigError(f"{where} {error}; no hospital opens it") from None
        except Exception as error:  # damaged zips raise many kinds, and zlib one of its own
            raise ConfigError(
                f"{where} is not a bundle ({type(error).__name__}); one is made by: coordinator "
                "review bundle"
            ) from None


@dataclass(frozen=True)
class Difference:
    """What `new` has otherwise than `old`; names of files."""

    old: Contents
    new: Contents

    @property
    def added(self) -> list[str]:
        return sorted(self.new.files.keys() - self.old.files.keys())

    @property
    def removed(self) -> list[str]:
        return sorted(self.old.files.keys() - self.new.files.keys())

    @property
    def changed(self) -> list[str]:
        both = self.new.files.keys() & self.old.files.keys()
        return sorted(name for name in both if self.new.files[name] != self.old.files[name])

    def lines(self) -> Iterator[str]:
        """A unified diff of all of it.

        Every letter that a terminal would not show as itself is written as its code: control codes
        could hide a line, and direction marks could turn one around.
        """
        for name in sorted([*self.added, *self.removed, *self.changed]):
            old, new = (_lines(contents.files.get(name, b"")) for contents in (self.old, self.new))
            shown = archives.shown(name)
            for line in difflib.unified_diff(old, new, f"old {shown}", f"new {shown}", lineterm=""):
                yield visible(line)


def visible(text: str) -> str:
    return "".join(
        letter
        if letter == "\t" or (letter.isprintable() and letter.isascii())
        else letter.encode("unicode_escape").decode()
        for letter in text
    )


def _lines(content: bytes) -> list[str]:
    # not splitlines, which takes more letters for the end of a line than Python's parser does
    return content.decode(errors="backslashreplace").split("\n")
