"""How long to wait between two looks for something that arrives when it arrives."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from flwr.supercore.inflatable import inflatable_utils

_FIRST_RETRY, _LONGEST_RETRY = 0.02, 0.2  # seconds


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


def hurry_flower(longest: float = 7200.0) -> None:
    """Let this process ask again soon for a part of a message that is still being uploaded.

    Flower announces a message before its parts are there, and a reader that comes too early waits a
    second or more before it asks again (flwr 1.41, `inflatable_utils.py`; no setting).

    Args:
        longest: seconds that an upload may take; Flower's two hours.

    Raises:
        RuntimeError: flwr changed, and this no longer does what it says.
    """
    functions: list[Callable[..., Any]] = [
        inflatable_utils.pull_objects,
        inflatable_utils.pull_and_inflate_object_from_tree,
    ]
    faster: dict[str, float | None] = {
        "initial_backoff": _FIRST_RETRY,
        "backoff_cap": _LONGEST_RETRY,
        "max_tries_per_object": None,
        "max_time": longest,
    }
    for function in functions:
        defaults = function.__kwdefaults__ or {}
        if not faster.keys() <= defaults.keys():
            raise RuntimeError(f"flwr changed: {function.__name__} has other retries; see pace.py")
        defaults.update(faster)
