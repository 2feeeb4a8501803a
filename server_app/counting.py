"""Which rounds' means have a hospital's update, for strategies that have hospitals remember their own.

A hospital cannot know whether its answer came in time. What it keeps of one that did not would stand
beside the coordinator's sums for good, so each request says which of its answers was the last to count.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from federation.messages import Arrays

_PREFIX = "counted/"  # in a checkpoint's memory of the strategy, before the hospitals' names


def noted(memory: Arrays, round_: int, hospitals: Iterable[str]) -> Arrays:
    """What is remembered after a round with these hospitals' updates."""
    known = {name: array for name, array in memory.items() if name.startswith(_PREFIX)}
    return known | {_PREFIX + name: np.array(round_, np.int64) for name in hospitals}


def last(memory: Arrays, hospital: str) -> int | None:
    """The last round that has the hospital's update, 0 if there is none; None where nobody notes it.

    Before the first round nobody has, and no hospital keeps anything.
    """
    if not any(name.startswith(_PREFIX) for name in memory):
        return None
    return int(memory.get(_PREFIX + hospital, np.array(0)))
