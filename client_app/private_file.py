"""Files that a command writes for this hospital's eyes: whole or not at all, and nobody else's."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from federation.schema import ConfigError


def write_private(path: Path, content: bytes | memoryview, *, replace: bool = True) -> None:
    """Write a file with mode 0600 so that a reader, or a crash, sees all of it or none.

    Args:
        replace: whether a file of this name may be there.

    Raises:
        ConfigError: the file is there and may not be replaced, or its folder cannot be written to.
    """
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; name a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, draft_name = tempfile.mkstemp(dir=path.parent, prefix=".draft-")  # mode 0600
    except OSError as error:
        raise ConfigError(f"{path.parent} cannot be written to: {error.strerror}") from None
    draft = Path(draft_name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            draft.replace(path)
        else:
            os.link(draft, path)  # unlike a rename it never replaces
    except FileExistsError:
        raise ConfigError(f"{path} is there already") from None
    finally:
        draft.unlink(missing_ok=True)


def printable(text: object) -> str:
    """What a disk may hold as a terminal can show it: no control codes, no bytes that are not text.

    Escape codes in a file's name could rewrite what the screen says; direction marks could turn it
    around. Markup of rich is the caller's to escape.
    """
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in str(text)
    )
