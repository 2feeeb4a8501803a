"""A sign of life that a health check can read: a file that a loop touches each time it got through.

Light to import, since a container's health is asked every half minute by a process of its own.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

VARIABLE = "CONSILIUM_HEARTBEAT"  # path of the file, in the environment of the process that beats
_SHORTEST = 1.0  # seconds between two touches; loops turn up to fifty times a second


class Heartbeat:
    """Beats where the environment names a file, and does nothing elsewhere."""

    def __init__(self) -> None:
        named = os.environ.get(VARIABLE)
        self._file = Path(named) if named else None
        self._last = -_SHORTEST

    def beat(self) -> None:
        if self._file is None or time.monotonic() - self._last < _SHORTEST:
            return
        self._file.touch()
        self._last = time.monotonic()


def age(file: Path) -> float | None:
    """Seconds since the last beat; None: there was none."""
    try:
        return time.time() - file.stat().st_mtime
    except FileNotFoundError:
        return None
