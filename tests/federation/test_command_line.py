"""What a person reads at a terminal where a command cannot go on."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import typer

from federation import command_line
from federation.schema import ConfigError


def ended_with(
    error: BaseException, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> tuple[int, str]:
    app = typer.Typer()

    @app.command()
    def fail() -> None:
        raise error

    monkeypatch.setattr(sys, "argv", ["hospital"])
    return command_line.runs_as("hospital", app), capfd.readouterr().err


def test_a_file_that_this_user_may_not_reach_is_told_with_its_remedy(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    error = PermissionError(13, "Permission denied", str(Path("/kit/kit.json")))
    code, told = ended_with(error, capfd, monkeypatch)
    assert code == 1 and "Errno" not in told
    assert told.startswith(f"hospital: user {os.geteuid()} has no leave for /kit/kit.json; ")
    assert "the user that owns it" in told and "give this user leave" in told


@pytest.mark.parametrize("error", [ConfigError("say no [red]"), PermissionError("say no [red]")])
def test_what_has_words_of_its_own_keeps_them(
    error: Exception, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ended_with(error, capfd, monkeypatch) == (1, "hospital: say no [red]\n")
