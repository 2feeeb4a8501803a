"""A run that a person ends is told apart from one whose process died, whoever notices first."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import cast

import pytest

from federation.schema import ConfigError
from server_app.control import Control, RunState, Unreachable
from server_app.launch import STOPPED, attach, follow, stop
from server_app.state import RunFolder
from tests.in_process import experiment


class Superlink:
    """Ends a run at once, and has somebody who follows it notice before `stop_run` has returned."""

    def __init__(self, folder: RunFolder, fault: Exception | None = None, success: bool = True):
        self.folder, self.fault, self.success = folder, fault, success
        self.process = ExitStack()
        self.process.enter_context(folder.conducting())
        self.followed = RunState("running", "", "")

    def run(self, run_id: int) -> RunState:
        return RunState("running", "", "")

    def stop_run(self, run_id: int) -> bool:
        assert run_id == 8
        if self.fault is not None:
            raise self.fault
        if self.success:
            # the follower sees the process alive at its first look, and gone at its second
            looks = iter([lambda: None, self.process.close, lambda: None])
            self.followed = follow(
                cast(Control, self), attach(self.folder), lambda _: next(looks)()
            )
        return self.success


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    of = experiment()
    record = {"run": "one", "experiment_sha256": of.sha256(), "flower_runs": ["7", "8"]}
    made = RunFolder.create(tmp_path / "one", of, record)
    made.write_status("running", 2, 5)
    return made


def test_the_follower_who_notices_first_says_that_it_was_stopped(folder: RunFolder) -> None:
    superlink = Superlink(folder)
    assert stop(cast(Control, superlink), folder) == 2
    assert superlink.followed.details == STOPPED
    assert (folder.status()["state"], folder.status()["message"]) == ("failed", STOPPED)


@pytest.mark.parametrize(
    ("fault", "success", "raised"),
    [(Unreachable("away"), True, Unreachable), (None, False, ConfigError)],
)
def test_a_stop_that_did_not_go_through_leaves_no_note(
    folder: RunFolder, fault: Exception | None, success: bool, raised: type[Exception]
) -> None:
    superlink = Superlink(folder, fault, success)
    with pytest.raises(raised):
        stop(cast(Control, superlink), folder)
    assert folder.status()["state"] == "running"
    looks = iter([lambda: None, superlink.process.close, lambda: None])
    died = follow(cast(Control, superlink), attach(folder), lambda _: next(looks)())
    assert died.details == "its process was killed"


def test_a_run_that_completes_before_the_stop_reaches_it_is_complete(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    superlink = Superlink(folder)

    def complete(_: int) -> bool:
        folder.write_status("completed", 5, 5)
        superlink.process.close()
        return True

    monkeypatch.setattr(superlink, "stop_run", complete)
    with pytest.raises(ConfigError, match="has ended already: completed"):
        stop(cast(Control, superlink), folder)
    assert folder.status()["state"] == "completed"


def test_a_run_that_was_stopped_once_and_resumed_can_die(folder: RunFolder) -> None:
    folder.note_stop("7")
    assert folder.was_stopped("7") and not folder.was_stopped("8")
