"""Whether something failed for want of room on a disk."""

from __future__ import annotations

import errno
import sqlite3


def is_full(error: BaseException | None) -> bool:
    """Whether this, or what it came of, is that a disk or a quota had no room for what was written."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        # the lowest byte is the primary code, what is above it tells more of the same
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if isinstance(error, sqlite3.Error) and code == sqlite3.SQLITE_FULL:
            return True
        error = error.__cause__ or error.__context__
    return False
