"""What a strategy's local part kept, which of it a round starts from, and what a crash does to it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client_app.local_state import LocalState
from client_app.policy import Refused
from federation.messages import Arrays, Reason

SHA256 = "of one experiment"


def arrays(value: float) -> Arrays:
    return {"weight": np.full((2, 3), value, np.float32), "seen": np.array(int(value))}


def value(found: Arrays) -> float | None:
    return float(found["weight"][0, 0]) if found else None


@pytest.fixture
def state(tmp_path: Path) -> LocalState:
    return LocalState.of(tmp_path, "run", SHA256)


def test_a_round_starts_from_what_the_one_before_left(state: LocalState, tmp_path: Path) -> None:
    assert state.before(1) == {}
    for number in range(1, 5):
        for _ in range(2):  # once more, after a crash: the same start, and then the same end
            assert value(LocalState.of(tmp_path, "run", SHA256).before(number)) == (
                number - 1 or None
            )
            state.keep(number, arrays(number))
    assert state.rounds() == [3, 4]
    assert value(state.newest()) == 4
    np.testing.assert_equal(state.newest(), arrays(4))
    assert LocalState.of(tmp_path, "other", SHA256).newest() == {}
    assert LocalState.of(tmp_path, "run", "of another").newest() == {}


def test_rounds_after_one_that_is_done_again_are_forgotten(state: LocalState) -> None:
    for number in (1, 2, 3):
        state.keep(number, arrays(number))
    state.keep(2, arrays(20))
    assert state.rounds() == [2]
    assert value(state.before(3)) == 20


def test_what_did_not_count_is_passed_over_however_often(state: LocalState) -> None:
    state.keep(1, arrays(1), counted=0)
    for number in range(2, 7):  # trained, and each time too late
        assert value(state.counted(1)) == 1
        state.keep(number, arrays(number), counted=1)
    assert value(state.counted(1)) == 1
    assert len(state.rounds()) <= 3
    state.keep(7, arrays(7), counted=1)
    assert value(state.counted(7)) == 7
    assert state.counted(0) == {}


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), max_size=12))
def test_what_counts_is_always_there(rounds: list[tuple[bool, bool, bool]]) -> None:
    """Rounds that are done twice, in which this hospital has no part, or whose answer is late."""
    with tempfile.TemporaryDirectory() as folder:
        state, counted = LocalState.of(Path(folder), "run", SHA256), 0
        for number, (twice, present, in_time) in enumerate(rounds, start=1):
            for _ in range(1 + twice):
                if present:
                    assert value(state.counted(counted)) == (counted or None)
                    state.keep(number, arrays(number), counted)
            if present and in_time:
                counted = number
        assert value(state.counted(counted)) == (counted or None)


@pytest.mark.parametrize("damage", ["gone", "cut", "flipped", "nan"])
def test_a_damaged_memory_is_not_believed(damage: str, state: LocalState) -> None:
    state.keep(1, arrays(1), counted=0)
    diverged = {"weight": np.full((2, 3), np.nan, np.float32)}
    state.keep(2, diverged if damage == "nan" else arrays(2), counted=1)
    file = state.folder / "2.safetensors"
    content = file.read_bytes()
    match damage:
        case "gone":
            file.unlink()
        case "cut":
            file.write_bytes(content[:-1])
        case "flipped":
            file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(Refused) as refused:
        state.counted(2)
    assert refused.value.reason is Reason.NO_STATE
    assert value(state.before(3)) == 1


_KEEPING = """
import sys, numpy as np
from pathlib import Path
from client_app.local_state import LocalState
state = LocalState.of(Path(sys.argv[1]), "run", "of one experiment")
print("ready", flush=True)
number = 1
while True:
    number += 1
    state.keep(number, {"weight": np.full(200_000, number, np.float32)}, number - 1)
    print(number, flush=True)
"""


def test_kill_9_leaves_what_was_kept(tmp_path: Path) -> None:
    LocalState.of(tmp_path, "run", SHA256).keep(1, {"weight": np.full(200_000, 1, np.float32)})
    writer = subprocess.Popen(
        [sys.executable, "-c", _KEEPING, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    try:
        assert writer.stdout.readline() == "ready\n"
        time.sleep(0.3)
    finally:
        os.kill(writer.pid, signal.SIGKILL)
    said = [int(line) for line in writer.stdout.read().split()]
    writer.wait()
    state, last = LocalState.of(tmp_path, "run", SHA256), max(said, default=1)
    for number in {last, max(last - 1, 1)}:
        weight = state.counted(number)["weight"]
        assert weight.shape == (200_000,)
        assert (weight == number).all()
