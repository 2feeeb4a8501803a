"""What a person types wrongly ends in one line that says what to do, and exit code 1 or 2."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from federation.processes import free_port
from server_app.home import Federation, Home
from tests.provisioned import provisioned

PROGRAMS = Path(sys.executable).parent


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A provisioned federation whose SuperLink is not up."""
    folder = tmp_path_factory.mktemp("cli")
    content = Federation(name="a", host="127.0.0.1", port=free_port(), hospitals=["north"])
    return provisioned(content, Home(folder / "coordinator"), {"north": folder / "state"})


def call(*command: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    program = str(PROGRAMS / command[0])
    return subprocess.run(
        [program, *command[1:]], capture_output=True, text=True, cwd=cwd, timeout=120, check=False
    )


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["coordinator", "status"], "not a coordinator's folder"),
        (["coordinator", "start"], "coordinator provision FILE"),
        (["coordinator", "run", "rounds=3"], "not a coordinator's folder"),
        (["coordinator", "run", "--home", "HOME"], "does not answer; start it with"),
        (["coordinator", "run", "run=Bad/Name", "--home", "HOME"], "letters a-z"),
        (["coordinator", "run", "resume=none", "--home", "HOME"], "does not answer"),
        (["coordinator", "report", "none", "--home", "HOME"], "there is no run 'none'"),
        (["coordinator", "card", "none", "--home", "HOME"], "there is no run 'none'"),
        (["coordinator", "compare", "none", "--home", "HOME"], "no run or sweep 'none'"),
        (["coordinator", "run", "-m", "resume=none", "--home", "HOME"], "no sweep 'none'"),
        (
            ["coordinator", "run", "-m", "strategy=fedavg,fedprx", "--home", "HOME"],
            "did you mean 'fedprox'?",
        ),
        (["coordinator", "stop", "none", "--home", "HOME"], "there is no run 'none'"),
        (["coordinator", "provision", "none.yaml"], "there is no none.yaml"),
        (["coordinator", "admit", "none", "--home", "HOME"], "hospital join"),
        (["coordinator", "rotate", "none", "--home", "HOME"], "hospital join"),
        (["coordinator", "remove", "mars", "--home", "HOME"], "not on the roster: north"),
        (["coordinator", "suspend", "mars", "--home", "HOME"], "not on the roster: north"),
        (["coordinator", "reinstate", "north", "--home", "HOME"], "north is not suspended"),
        (["coordinator", "invite", "Bad Name", "--home", "HOME"], "hospitals.0"),
        (["coordinator", "hospitals"], "not a coordinator's folder"),
        (["coordinator", "certificate", "renew", "--home", "HOME"], "CONSILIUM_CA_PASSPHRASE"),
        (["coordinator", "certificate", "renew"], "not a coordinator's folder"),
        (["hospital", "join", "none", "--state", "s"], "none is not a kit"),
        (["hospital", "join"], "copy one from configs/site/"),
        (["hospital", "join", "--state", "s"], "hospital join KIT --state DIR"),
        (["hospital", "identity", "create"], "copy one from configs/site/"),
        (["hospital", "roster", "show", "--site", "none.yaml"], "no site configuration"),
        (["hospital", "check"], "copy one from configs/site/"),
        (["hospital", "start", "--site", "none.yaml"], "no site configuration none.yaml"),
        (
            ["hospital", "phantom", "--task", "mars", "--patients", "3", "--out", "x"],
            "known: alzheimers",
        ),
    ],
)
def test_wrong_input_is_one_line(
    command: list[str], words: str, home: Home, tmp_path: Path
) -> None:
    done = call(*[str(home.path) if part == "HOME" else part for part in command], cwd=tmp_path)
    assert done.returncode == 1
    assert words in done.stderr
    assert done.stderr.startswith(f"{command[0]}: ")
    assert len(done.stderr.splitlines()) == 1
    assert "Traceback" not in done.stdout + done.stderr
    assert list(home.runs.iterdir()) == []  # nothing is left of a run that could not start


@pytest.mark.parametrize("program", ["coordinator", "hospital"])
def test_help_has_an_example_for_each_command(program: str) -> None:
    shown = call(program, "--help").stdout
    commands = {
        "coordinator": [
            *("provision", "start", "run", "status", "stop", "report", "compare"),
            *("hospitals", "invite", "admit", "suspend", "reinstate", "remove", "rotate"),
            "certificate renew",
        ],
        "hospital": [
            *("join", "check", "start", "phantom", "roster show", "roster accept"),
            *("identity create", "identity show", "identity rotate"),
        ],
    }[program]
    for command in commands:
        assert command.split()[0] in shown
        assert f"Example: {program} {command}" in call(program, *command.split(), "--help").stdout
