"""Flower's SuperLink with a database that keeps less in memory, and waits longer for its turn.

Flower lets SQLite cache and map hundreds of megabytes a connection, and opens many; models pass
through once and gain nothing by it. With 25 M float32 parameters this takes a third off the
SuperLink's peak memory and costs no time (benchmarks/round_overhead.py). Where large updates arrive
together a write may wait for longer than Flower's five seconds, and its caller is told of a failure.
"""

from __future__ import annotations

from flwr.supercore import sql_mixin
from flwr.superlink.cli import flower_superlink

_OURS = {  # SQLite reads a negative size as KiB, and the time in milliseconds
    "cache_size": "-4000",
    "mmap_size": "0",
    "busy_timeout": "60000",
}


def main() -> None:
    """`flower-superlink` with its own arguments."""
    pragmas = dict(sql_mixin.SQLITE_PRAGMAS)
    if not _OURS.keys() <= pragmas.keys():
        raise RuntimeError("flwr changed: its SQLite settings are not where superlink.py sets them")
    sql_mixin.SQLITE_PRAGMAS = tuple((pragmas | _OURS).items())
    flower_superlink()


if __name__ == "__main__":
    main()
