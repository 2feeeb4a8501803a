"""Flower's SuperNode, looking for work more often than every three seconds.

Flower's loop sleeps three seconds when the SuperLink has no message and half a second while the
ClientApp works, and offers no setting for either (flwr 1.41, `supernode/start_client_internal.py`).
At one exchange a round that is most of what a round costs. This starts the unchanged SuperNode with
another clock for those two sleeps (see `federation.pace`): between 0.05 and 3 seconds, so that a busy
hospital answers at once and an idle one costs what it always did.
"""

from __future__ import annotations

import time
from types import ModuleType

from flwr.supernode import start_client_internal as flower_loop
from flwr.supernode.cli import flower_supernode

from federation.pace import Pace, hurry_flower

_WORKING = 0.5  # Flower's sleep while the ClientApp works; the other is for when there is nothing
_WORKING_PAUSE = 0.02


class Clock:
    """What Flower's loop sees of the module `time`."""

    def __init__(self) -> None:
        self._pace = Pace(shortest=0.05)

    def sleep(self, seconds: float) -> None:
        """Sleep, `seconds` being what Flower asked for and never exceeded."""
        if seconds == _WORKING:
            self._pace.news()
            time.sleep(_WORKING_PAUSE)
        else:
            time.sleep(min(self._pace.pause(), seconds))


def main() -> None:
    """`flower-supernode` with its own arguments."""
    if not isinstance(flower_loop.time, ModuleType):
        raise RuntimeError("flwr changed: its SuperNode loop has no module `time` to pace any more")
    flower_loop.time = Clock()
    hurry_flower()
    flower_supernode()


if __name__ == "__main__":
    main()
