"""How long to wait between two looks for something that arrives when it arrives."""

from __future__ import annotations

import time


class Pace:
    """A pause is a tenth of the time waited since the last news, within bounds.

    So looking adds at most a tenth to any wait, and costs next to nothing once a wait is long.
    """

    def __init__(self, *, shortest: float, longest: float = 3.0) -> None:
        """Bounds of a pause in seconds."""
        self._shortest, self._longest = shortest, longest
        self.news()

    def news(self) -> None:
        """Something arrived, or work is under way: look often again."""
        self._last = time.monotonic()

    def pause(self) -> float:
        """Seconds until the next look."""
        waited = time.monotonic() - self._last
        return min(max(waited / 10, self._shortest), self._longest)
