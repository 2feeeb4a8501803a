"""`coordinator status` says what needs a person, by words and by its exit code."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from server_app import membership, status
from server_app.cli import app
from server_app.control import Control, Unreachable
from server_app.home import Federation, Home
from server_app.state import RunFolder
from tests.in_process import experiment
from tests.provisioned import provisioned


@pytest.fixture
def home(tmp_path: Path) -> Home:
    names = ["north", "east", "west"]
    content = Federation(name="a", host="127.0.0.1", port=1, hospitals=names)
    return provisioned(
        content, Home(tmp_path / "coordinator"), {name: tmp_path / name for name in names}
    )


@pytest.fixture
def states(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What the SuperLink says; empty: it is down."""
    said = {"north": "online", "east": "online", "west": "online"}

    def hospitals(*_: Any) -> dict[str, str]:
        if not said:
            raise Unreachable("down")
        return said

    monkeypatch.setattr(Control, "hospitals", hospitals)
    return said


def asked(home: Home) -> tuple[int, dict[str, Any]]:
    done = CliRunner().invoke(app, ["status", "--json", "--home", str(home.path)])
    return done.exit_code, json.loads(done.output)


def attention(home: Home) -> list[tuple[str, str]]:
    code, found = asked(home)
    needs = [(one["id"], one["about"]) for one in found["attention"]]
    assert code == (1 if needs else 0)
    text = CliRunner().invoke(app, ["status", "--home", str(home.path)])
    assert text.exit_code == code
    assert text.output.count("! ") == len(needs)
    return needs


def test_all_well(home: Home, states: dict[str, str]) -> None:
    assert attention(home) == []
    membership.invite(home, "south")
    assert attention(home) == []
    _, found = asked(home)
    assert {one["name"]: one["state"] for one in found["hospitals"]}["south"] == "invited"


def test_the_superlink_is_down(home: Home, states: dict[str, str]) -> None:
    states.clear()
    assert attention(home) == [("superlink_down", "a")]


def test_a_hospital_is_away_and_a_suspended_one_is_not_missed(
    home: Home, states: dict[str, str]
) -> None:
    states |= {"west": "offline"}
    del states["east"]
    assert attention(home) == [("hospital_offline", "east"), ("hospital_offline", "west")]
    membership.suspend(home, "west", "scanner")
    assert attention(home) == [("hospital_offline", "east")]
    told = next(one for one in asked(home)[1]["hospitals"] if one["name"] == "west")
    assert (told["state"], told["reason"], told["connected"]) == ("suspended", "scanner", False)


def test_certificates_are_told_of_thirty_days_before(
    home: Home, states: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    until = {one.name: one for one in status.look(home).certificates}

    class At(datetime):
        left = timedelta()

        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.fromisoformat(until["server"].until).astimezone(UTC) - cls.left

    monkeypatch.setattr(status, "datetime", At)
    for days, needs in ((31, []), (29, [("certificate_ends", "server")]), (-1, None)):
        At.left = timedelta(days=days, hours=1)
        assert attention(home) == (needs if needs is not None else [("certificate_ends", "server")])


def run(home: Home, name: str, state: str, started: str, message: str = "") -> Path:
    of = experiment()
    record = {
        "run": name, "experiment_sha256": of.sha256(), "started": started, "flower_runs": ["7"]
    }  # fmt: skip
    folder = RunFolder.create(home.runs / name, of, record)
    folder.write_status(state, 1, 3, message)
    return folder.path / "status.json"


def test_the_newest_run_failed_or_broke_off(home: Home, states: dict[str, str]) -> None:
    run(home, "first", "failed", "2026-01-01", "too few")
    assert attention(home) == [("run_failed", "first")]
    file = run(home, "second", "running", "2026-01-02")
    assert attention(home) == [], "it may be about to begin"
    os.utime(file, (0, 0))
    assert attention(home) == [("run_broken_off", "second")]
    run(home, "third", "failed", "2026-01-03", "stopped by the coordinator")
    assert attention(home) == [("run_failed", "third")], "words alone are no stop"
    RunFolder(home.runs / "third").note_stop("7")
    assert attention(home) == []
    assert status.look(home).runs[-1].state == "stopped"
