"""What a hospital remembers of a sum: each step is answered once, each round opened once."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from client_app.policy import Refused
from client_app.sessions import Session, Sessions
from federation.messages import Phase, Reason


def session(round_: int, attempt: int = 1) -> Session:
    return Session(round_, attempt, b"secrets %d %d" % (round_, attempt), b"\0\xff")


def reason(call: Any, *args: Any) -> Reason:
    with pytest.raises(Refused) as refused:
        call(*args)
    return refused.value.reason


def read(state: Path, run: str = "run") -> Sessions:
    with Sessions.held(state, run) as sessions:
        return sessions


def test_it_comes_back_as_it_was(tmp_path: Path) -> None:
    full = Session(
        3, 1, b"\0s", b"a\xff", b"c", b"h", {"sign": ("0" * 64, b"\1\2")}, "m", ("a", "b"), ("a",)
    )
    sessions = read(tmp_path)
    sessions.begin(full)
    sessions.begin(session(4, 0))
    sessions.opened = 2
    sessions.keep(full)
    again = read(tmp_path)
    assert again.opened == 2
    assert again.sessions == {(3, 1): full, (4, 0): session(4, 0)}
    assert read(tmp_path, "another run").sessions == {}


def test_one_letter_a_step() -> None:
    one = session(1)
    assert one.reply(Phase.SIGN, b"letter", Reason.REPLAYED) is None
    answered = one.answers(Phase.SIGN, b"letter", b"reply", survivors=("a",))
    assert answered.reply(Phase.SIGN, b"letter", Reason.REPLAYED) == b"reply"
    assert answered.survivors == ("a",)
    why = reason(answered.reply, Phase.SIGN, b"another", Reason.SURVIVORS_DIFFER)
    assert why is Reason.SURVIVORS_DIFFER
    assert answered.reply(Phase.OPEN, b"another", Reason.REPLAYED) is None


def test_attempts_only_rise(tmp_path: Path) -> None:
    sessions = read(tmp_path)
    sessions.begin(session(1, 2))
    for attempt in (0, 1, 2):
        assert reason(sessions.begin, session(1, attempt)) is Reason.REPLAYED
    sessions.begin(session(1, 5))
    assert set(read(tmp_path).sessions) == {(1, 5)}
    assert reason(sessions.find, 1, 2) is Reason.NO_KEYS


def test_an_opened_round_does_not_begin_again(tmp_path: Path) -> None:
    sessions = read(tmp_path)
    sessions.begin(session(4))
    sessions.opened = 4
    sessions.keep(sessions.find(4, 1))
    for round_ in (1, 3, 4):
        assert reason(read(tmp_path).begin, session(round_, 9)) is Reason.REPLAYED
    read(tmp_path).begin(session(5))


def test_secrets_of_older_rounds_are_gone(tmp_path: Path) -> None:
    """Opened or not: at most two rounds are there, however many begin."""
    for round_ in (1, 2, 3, 7, 8):
        read(tmp_path).begin(session(round_))
    assert set(read(tmp_path).sessions) == {(7, 1), (8, 1)}
    content = next((tmp_path / "secure").glob("*.json")).read_text()
    assert content.count('"secrets"') == 2
    assert reason(read(tmp_path).begin, session(6)) is Reason.REPLAYED


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b'{"opened": 1}',
        b'{"opened": "x", "sessions": []}',
        b'{"opened": 0, "sessions": [{}]}',
        b'{"opened": 0, "sessions": [3]}',
        b'{"opened": 0, "sessions": 3}',
        b'{"opened": null, "sessions": []}',
        b'{"opened": 0, "sessions": [], "cut',
        b"\xff\xfe",
    ],
)
def test_a_damaged_file_is_no_fresh_start(content: bytes, tmp_path: Path) -> None:
    read(tmp_path).begin(session(1))
    next((tmp_path / "secure").glob("*.json")).write_bytes(content)
    assert reason(read, tmp_path) is Reason.NO_KEYS


def test_others_may_not_read_it(tmp_path: Path) -> None:
    read(tmp_path).begin(session(1))
    folder = tmp_path / "secure"
    assert folder.stat().st_mode & 0o077 == 0
    assert all(file.stat().st_mode & 0o077 == 0 for file in folder.glob("*.json"))


def test_processes_take_turns(tmp_path: Path) -> None:
    """Twenty in four processes each begin the next attempt; none overwrites another's."""
    with multiprocessing.get_context("fork").Pool(4) as pool:
        got = pool.map(_begin_the_next, [str(tmp_path)] * 20)
    assert sorted(got) == list(range(1, 21))


def _begin_the_next(state: str) -> int:
    with Sessions.held(Path(state), "run") as sessions:
        attempt = max((attempt for _, attempt in sessions.sessions), default=0) + 1
        sessions.begin(session(1, attempt))
        return attempt
