"""Flower's SuperLink with a hub of ours, and with a database that keeps less in memory.

The hub (`server_app.hub`) gives it each run's bundle and the reviewers' signatures. Without one Flower
would look for both on the internet.

Flower lets SQLite cache and map hundreds of megabytes a connection, and opens many; models pass
through once and gain nothing by it. With 25 M float32 parameters this takes a third off the
SuperLink's peak memory and costs no time (benchmarks/round_overhead.py). Where large updates arrive
together a write may wait for longer than Flower's five seconds, and its caller is told of a failure.
"""

from __future__ import annotations

import os
from pathlib import Path

from flwr.supercore import sql_mixin
from flwr.superlink.cli import flower_superlink
from flwr.superlink.servicer.control import control_handlers

from server_app import hub
from server_app.home import HOME_VARIABLE, Home

_OURS = {  # SQLite reads a negative size as KiB, and the time in milliseconds
    "cache_size": "-4000",
    "mmap_size": "0",
    "busy_timeout": "60000",
}
_HUB = "FLWR_SUPERGRID_API_URL"  # where Flower's handlers look for the address


def main() -> None:
    """`flower-superlink` with its own arguments; the coordinator's folder is in the environment.

    Raises:
        RuntimeError: flwr changed, and this no longer does what it says.
    """
    with hub.served(Home(Path(os.environ[HOME_VARIABLE])).bundles) as address:
        _settle(address)
        flower_superlink()


def _settle(address: str) -> None:
    pragmas = dict(sql_mixin.SQLITE_PRAGMAS)
    if not _OURS.keys() <= pragmas.keys():
        raise RuntimeError("flwr changed: its SQLite settings are not where superlink.py sets them")
    if _HUB not in control_handlers._get_remote_fab.__code__.co_names:
        raise RuntimeError("flwr changed: its SuperLink takes its hub's address from elsewhere")
    sql_mixin.SQLITE_PRAGMAS = tuple((pragmas | _OURS).items())
    setattr(control_handlers, _HUB, address)
    os.environ |= {"NO_PROXY": "*", "no_proxy": "*"}  # the hub is all that a SuperLink asks


if __name__ == "__main__":
    main()
