"""Hospitals come, go and get new keys while the SuperLink runs; who may log in follows the roster."""

from __future__ import annotations

from pathlib import Path

import pytest

from federation.processes import wait_until
from federation.public_identity import SUFFIX
from server_app.control import Control
from tests.e2e.federation import Real, federation, hospital

pytestmark = pytest.mark.e2e


def registered(real: Real) -> dict[str, str]:
    with Control(real.home) as control:
        return control.hospitals(real.home.roster().members)


def test_the_superlink_follows_the_roster(tmp_path: Path) -> None:
    with federation(tmp_path, ("north", "east")) as real:
        assert wait_until(lambda: real.online() == {"north", "east"}, seconds=60)
        north = str(real.sites["north"] / "site.yaml")

        hospital("identity", "rotate", "--site", north, "--out", str(tmp_path))
        done = real.coordinator("hospital", "rotate", str(tmp_path / f"north{SUFFIX}"))
        assert "the SuperLink knows it now" in done.stdout, done.stdout + done.stderr
        # the old key's SuperNode is put out at once, the new key's has not dialled in yet
        assert registered(real)["north"] == "registered"

        roster = str(real.home.roster_file)
        hospital("roster", "accept", roster, "--yes", "--site", north)
        coordinator, old, _ = real.services
        old.terminate()
        old.wait(30)
        real.serve("north")
        assert wait_until(lambda: "north" in real.online(), seconds=60)

        done = real.coordinator("hospital", "remove", "east")
        assert "the SuperLink knows it now" in done.stdout, done.stdout + done.stderr
        assert set(registered(real)) == {"north"}

        # and with the next start nobody comes back: the roster decides
        coordinator.terminate()
        coordinator.wait(30)
        real.serve("coordinator")
        assert wait_until(real.home.services.exists, seconds=60)
        assert set(registered(real)) == {"north"}
        assert wait_until(lambda: real.online() == {"north"}, seconds=60)
