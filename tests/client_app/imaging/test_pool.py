"""Processes beside this one: what they answer, and that none is left whatever happens."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from client_app.imaging.pool import Lost, NotStarted, Pool, each


def work(offset: int, number: int) -> int:
    """Adds; some numbers misbehave."""
    if number == 3:
        os.kill(os.getpid(), signal.SIGSEGV)
    if number == 4:
        time.sleep(600)
    if number == 5:
        raise Odd("a", "b")
    if number == 6:
        raise ZeroDivisionError("six")
    if number == 7:
        return torch.get_num_threads()
    return number + offset


class Odd(Exception):
    """Does not pickle: it takes two arguments and keeps one."""

    def __init__(self, one: str, other: str) -> None:
        super().__init__(one)


class Unreadable:
    """Pickles, and cannot be unpickled."""

    def __reduce__(self) -> tuple[type[Odd], tuple[str]]:
        return Odd, ("one",)

    def __call__(self, number: int) -> int:
        return number


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_what_kills_a_process_or_stops_it_costs_itself_alone() -> None:
    results = dict(each(partial(work, 100), range(5), workers=2, limit=5.0))
    assert {n: made for n, made in results.items() if n < 3} == {0: 100, 1: 101, 2: 102}
    assert isinstance(results[3], Lost)
    assert "ended" in str(results[3])
    assert isinstance(results[4], Lost)
    assert "stuck" in str(results[4])


def test_no_work_needs_no_process() -> None:
    assert list(each(Unreadable(), [], workers=2, limit=1.0)) == []


def test_exceptions_come_back_and_the_process_goes_on() -> None:
    with Pool(partial(work, 0), workers=1, limit=60.0) as pool:
        with pytest.raises(ZeroDivisionError, match="six"):
            pool.submit(6).result()
        with pytest.raises(RuntimeError, match="Odd"):
            pool.submit(5).result()
        assert pool.ready
        assert pool.submit(7).result() == 1  # thread
        assert pool.submit(1).result() == 1


def test_a_process_that_cannot_start_is_an_error_and_no_wait() -> None:
    with Pool(Unreadable(), workers=1, limit=60.0) as pool:
        with pytest.raises(NotStarted):
            pool.submit(1).result()
        with pytest.raises(NotStarted):
            _ = pool.ready
    with pytest.raises(NotStarted):
        dict(each(Unreadable(), range(3), workers=1, limit=60.0))


def big(number: int) -> bytes:
    """More than a pipe or socket holds, with which process made it in front."""
    return os.getpid().to_bytes(8, "big") + bytes(50_000_000)


def test_leaving_ends_processes_that_start_work_or_are_in_the_middle_of_an_answer() -> None:
    for seconds in (0.0, 0.3):
        with Pool(partial(work, 0), workers=2, limit=600.0) as pool:
            futures = [pool.submit(4) for _ in range(5)]
            time.sleep(seconds)
        assert all(future.done() for future in futures)
    with Pool(big, workers=1, limit=600.0) as several:
        answers = [several.submit(number) for number in range(50)]
        pid = int.from_bytes(answers[0].result()[:8], "big")
        assert alive(pid)
    assert not alive(pid)


_PARENT = """
import sys, time
from tests.client_app.imaging.test_pool import identify
from client_app.imaging.pool import Pool
if __name__ == "__main__":
    with Pool(identify, workers=2, limit=600.0) as pool:
        futures = [pool.submit(sys.argv[1]) for _ in range(4)]
        time.sleep(600)
"""


def identify(folder: str) -> None:
    """Says that it is there, and then is stuck."""
    Path(folder, str(os.getpid())).touch()
    time.sleep(600)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_no_process_outlives_a_parent_that_is_killed(tmp_path: Path, how: signal.Signals) -> None:
    script, pids = tmp_path / "parent.py", tmp_path / "pids"
    script.write_text(_PARENT)
    pids.mkdir()
    parent = subprocess.Popen(
        [sys.executable, str(script), str(pids)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3])},
    )
    try:
        _wait(lambda: len(list(pids.iterdir())) == 2)
    finally:
        parent.send_signal(how)
        parent.wait()
    _wait(lambda: not any(alive(int(path.name)) for path in pids.iterdir()))


def _wait(for_what: object) -> None:
    assert callable(for_what)
    end = time.monotonic() + 120
    while not for_what():
        assert time.monotonic() < end
        time.sleep(0.05)
