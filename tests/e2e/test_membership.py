"""Hospitals come, go and get new keys while the SuperLink runs; who may log in follows the roster."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from federation.processes import wait_until
from federation.public_identity import SUFFIX
from server_app.control import Control
from tests.e2e.federation import PROGRAMS, Real, federation, hospital

pytestmark = pytest.mark.e2e


def registered(real: Real) -> dict[str, str]:
    with Control(real.home) as control:
        return control.hospitals(real.home.roster().members)


def let_in(site: str) -> str:
    """What `hospital check` says of the login, beside a SuperNode that is or is not connected."""
    done = subprocess.run(
        [str(PROGRAMS / "hospital"), "check", "--json", "--part", "connection", "--site", site],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    found = {one["id"]: one["level"] for one in json.loads(done.stdout)["checks"]}
    assert found["clock"] == found["certificate"] == "ok"
    assert (done.returncode == 0) == (found["registered"] == "ok")
    level: str = found["registered"]
    return level


def test_the_superlink_follows_the_roster(tmp_path: Path) -> None:
    with federation(tmp_path, ("north", "east")) as real:
        assert wait_until(lambda: real.online() == {"north", "east"}, seconds=60)
        north = str(real.sites["north"] / "site.yaml")

        east = str(real.sites["east"] / "site.yaml")
        assert let_in(east) == "ok"
        assert real.online() == {"north", "east"}, "the look disturbs nobody"

        # one more joins while all others are served
        made = real.coordinator("invite", "west")
        assert made.returncode == 0, made.stdout + made.stderr
        west = tmp_path / "west"
        shutil.copytree(real.home.kit("west"), west / "kit")
        (west / "site.yaml").write_text("hospital: west\nkit: kit\nstate: state\ndata: {root: .}\n")
        site = str(west / "site.yaml")
        told = json.loads(hospital("join", "--site", site, "--out", str(tmp_path), "--json").stdout)
        done = real.coordinator("admit", told["file"], "--fingerprint", told["fingerprint"])
        assert "the SuperLink knows it now" in done.stdout, done.stdout + done.stderr
        hospital("roster", "accept", str(real.home.roster_file), "--yes", "--site", site)
        assert let_in(site) == "ok"
        done = real.coordinator("remove", "west")
        assert "the SuperLink knows it now" in done.stdout, done.stdout + done.stderr
        assert let_in(site) == "problem"
        again = real.coordinator("admit", told["file"], "--fingerprint", told["fingerprint"])
        assert again.returncode == 1 and "keys are never used again" in again.stderr

        # a suspended one stays connected, and nobody has to look after it
        assert real.coordinator("status").returncode == 0
        real.coordinator("suspend", "east", "--reason", "scanner")
        status = json.loads(real.coordinator("status", "--json").stdout)
        assert ["suspended", True] in [[h["state"], h["connected"]] for h in status["hospitals"]]
        assert let_in(east) == "ok"
        assert real.coordinator("reinstate", "east").returncode == 0

        hospital("identity", "rotate", "--site", north, "--out", str(tmp_path))
        done = real.coordinator("rotate", str(tmp_path / f"north{SUFFIX}"))
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

        done = real.coordinator("remove", "east")
        assert "the SuperLink knows it now" in done.stdout, done.stdout + done.stderr
        assert set(registered(real)) == {"north"}

        # and with the next start nobody comes back: the roster decides
        coordinator.terminate()
        coordinator.wait(30)
        real.serve("coordinator")
        assert wait_until(real.home.services.exists, seconds=60)
        assert set(registered(real)) == {"north"}
        assert wait_until(lambda: real.online() == {"north"}, seconds=60)
