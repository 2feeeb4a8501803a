"""Folders of older code are opened and brought up to date; those of newer code are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from federation import state_version
from federation.schema import ConfigError
from federation.state_version import FILE, RESTORING, VERSION, require, settle


def test_a_new_folder_and_one_of_before_are_marked(tmp_path: Path) -> None:
    assert require(tmp_path, "hospital") == 1
    (tmp_path / "ledger.sqlite").write_bytes(b"of before")
    settle(tmp_path, "hospital")
    assert require(tmp_path, "hospital") == VERSION
    assert json.loads((tmp_path / FILE).read_text()) == {"kind": "hospital", "version": VERSION}
    assert sorted(path.name for path in tmp_path.iterdir()) == [FILE, "ledger.sqlite"]


def test_what_newer_code_made_is_refused_and_not_touched(tmp_path: Path) -> None:
    content = json.dumps({"kind": "run", "version": VERSION + 1, "new": "field"})
    (tmp_path / FILE).write_text(content)
    for look in (require, settle):
        with pytest.raises(ConfigError, match="newer Consilium") as refused:
            look(tmp_path, "run")
        assert "\n" not in str(refused.value)
    assert (tmp_path / FILE).read_text() == content


def test_another_kind_of_folder_is_refused(tmp_path: Path) -> None:
    settle(tmp_path, "coordinator")
    with pytest.raises(ConfigError, match="is a coordinator's folder, not a hospital's state"):
        require(tmp_path, "hospital")


@pytest.mark.parametrize("content", ["", "2", "{}", '{"kind": "run", "version": "2"}', "\0"])
def test_a_damaged_version_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(content)
    with pytest.raises(ConfigError, match="damaged"):
        require(tmp_path, "run")


def test_a_restore_that_was_broken_off_is_refused(tmp_path: Path) -> None:
    (tmp_path / RESTORING).touch()
    with pytest.raises(ConfigError, match="Run the same restore again"):
        settle(tmp_path, "hospital")


def test_a_step_that_was_cut_off_is_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A version that does not exist yet, with a step that fails half way, as a crash would end it."""
    done: list[str] = []

    def failing(folder: Path) -> None:
        done.append("tried")
        raise OSError("cut off")

    def step(name: str) -> Callable[[Path], None]:
        return lambda folder: done.append(name)

    monkeypatch.setattr(state_version, "VERSION", VERSION + 1)
    monkeypatch.setattr(state_version, "_STEPS", {1: step("first"), VERSION: failing})
    with pytest.raises(OSError, match="cut off"):
        settle(tmp_path, "hospital")
    assert require(tmp_path, "hospital") == 1
    monkeypatch.setattr(state_version, "_STEPS", {1: step("first"), VERSION: step("second")})
    settle(tmp_path, "hospital")
    assert done == ["first", "tried", "first", "second"]
    assert require(tmp_path, "hospital") == VERSION + 1
