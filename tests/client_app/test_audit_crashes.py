"""The audit log under fire: killed, cut off, full, and written by many at once, it stays whole."""

from __future__ import annotations

import hashlib
import itertools
import multiprocessing
import os
import random
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from client_app.audit import Audit, AuditError
from tests.client_app.test_audit import deed

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def audit(tmp_path: Path) -> Audit:
    audit = Audit(tmp_path / "state" / "audit.jsonl")
    for number in range(1, 8):
        deed(audit, number)
    return audit


@pytest.mark.parametrize("before", [0, 2])
def test_a_line_cut_off_by_a_crash_is_set_aside_and_recorded(tmp_path: Path, before: int) -> None:
    """The first line as a later one, cut short in the middle, after one byte, and before its end."""
    audit = Audit(tmp_path / "audit.jsonl")
    head = audit.path.with_suffix(".head")
    for number in range(before):
        deed(audit, number)
    content, anchor = (p.read_bytes() if before else b"" for p in (audit.path, head))
    deed(audit, 5)
    line = audit.path.read_bytes()[len(content) :]
    for cut in (*range(1, len(line) - 1, 19), len(line) - 1):
        for path in tmp_path.iterdir():
            path.unlink()
        audit.path.write_bytes(content + line[:cut])
        if before:
            head.write_bytes(anchor)
        assert audit.verify()[0] == before
        deed(audit, 6)
        assert audit.verify()[0] == before + 2
        torn, last = list(audit.entries())[-2:]
        assert (torn.event, torn.fields["bytes"], last.fields["round"]) == ("torn", cut, 6)
        assert torn.fields["sha256"] == hashlib.sha256(line[:cut]).hexdigest()
        assert audit.path.with_suffix(".torn").read_bytes() == line[:cut]


def test_the_whole_line_of_a_crash_before_its_head_is_adopted(audit: Audit) -> None:
    head = audit.path.with_suffix(".head")
    before = head.read_bytes()
    eighth = deed(audit, 8)
    head.write_bytes(before)
    assert audit.verify() == (8, eighth)
    deed(audit, 9)
    assert audit.verify()[0] == 9
    assert [entry.fields["round"] for entry in audit.entries()] == list(range(1, 10))


def test_a_head_that_cannot_be_written_falls_behind_by_one_and_no_more(
    audit: Audit, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        for _ in range(3):
            with pytest.raises(AuditError, match="No space left"):
                deed(audit, 8)
            assert audit.verify()[0] == 8
    deed(audit, 9)
    assert [entry.fields["round"] for entry in audit.entries()] == list(range(1, 10))


def in_child(work: Callable[[], None]) -> int:
    """The exit status of a forked process that does this."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1]


CALLS = ("open", "write", "fsync", "ftruncate", "replace", "close")


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("torn", [False, True])
def test_dying_between_any_two_system_calls_breaks_nothing(
    tmp_path: Path, torn: bool, half: bool
) -> None:
    """The process dies before its k-th call, or in the middle of it where it is a write."""
    for k in itertools.count():
        audit = Audit(tmp_path / str(k) / "audit.jsonl")
        heads = [deed(audit, number) for number in (1, 2)]
        if torn:
            with audit.path.open("ab") as file:
                file.write(b'{"event":"ans')

        def die(audit: Audit = audit, left: int = k) -> None:
            def dying(real: Callable[..., Any], name: str) -> Callable[..., Any]:
                def call(*arguments: Any, **options: Any) -> Any:
                    nonlocal left
                    if left == 0:
                        if half and name == "write":
                            real(arguments[0], arguments[1][: len(arguments[1]) // 2])
                        os._exit(7)
                    left -= 1
                    return real(*arguments, **options)

                return call

            for name in CALLS:
                setattr(os, name, dying(getattr(os, name), name))
            deed(audit, 3)

        status = os.waitstatus_to_exitcode(in_child(die))
        assert audit.verify()[0] >= 2
        last = deed(audit, 4)
        entries = list(audit.entries())
        assert audit.verify() == (len(entries), last)
        assert [entry.hash for entry in entries][:2] == heads
        if status == 0:  # it needed no more than k calls
            assert [entry.fields.get("round") for entry in entries][-2:] == [3, 4]
            break
        assert status == 7
    assert k > (20 if torn else 10)


def work(path: Path, name: str, number: int, told: Any) -> None:
    audit = Audit(path)
    for n in range(number):
        told.send((name, n, audit.append("request", run=name, round=n)))
    told.close()


def test_four_processes_append_at_once(tmp_path: Path) -> None:
    path, number = tmp_path / "audit.jsonl", 60
    pipes = [FORK.Pipe(duplex=False) for _ in range(4)]
    workers = [
        FORK.Process(target=work, args=(path, f"run{n}", number, pipe[1]))
        for n, pipe in enumerate(pipes)
    ]
    for worker in workers:
        worker.start()
    seen: set[str] = set()
    while any(worker.is_alive() for worker in workers):  # readers see a right log all the while
        for entry in Audit(path).entries():
            seen.add(entry.hash)
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    entries = list(Audit(path).entries())
    assert len(entries) == 4 * number
    assert seen <= {entry.hash for entry in entries}
    for n in range(4):
        mine = [entry.fields["round"] for entry in entries if entry.fields["run"] == f"run{n}"]
        assert mine == list(range(number))


def test_killed_at_random_instants(tmp_path: Path) -> None:
    """After each `kill -9` of a writer the log is right, and has all that was acknowledged."""
    path = tmp_path / "audit.jsonl"
    draw = random.Random(0)
    acknowledged: list[str] = []
    for kill in range(40):
        ours, theirs = FORK.Pipe(duplex=False)
        writer = FORK.Process(target=work, args=(path, f"run{kill}", 10**6, theirs))
        writer.start()
        theirs.close()
        acknowledged.append(ours.recv()[2])
        time.sleep(draw.random() * 0.02)
        assert writer.pid is not None
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        while True:
            try:
                acknowledged.append(ours.recv()[2])
            except (EOFError, OSError):
                break
        found = {entry.hash for entry in Audit(path).entries()}
        assert set(acknowledged) <= found
        assert len(found) <= len(acknowledged) + kill + 1
    assert len(acknowledged) >= 40


def test_a_full_disk_loses_and_breaks_nothing(tmp_path: Path) -> None:
    """At every length at which the disk may be full: refused, and right again with room."""
    refused = 0
    for room in range(0, 420, 19):
        audit = Audit(tmp_path / str(room) / "audit.jsonl")
        deed(audit, 1)
        before = audit.path.stat().st_size

        def fill(audit: Audit = audit, limit: int = before + room) -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            try:
                deed(audit, 2)
            except AuditError as fault:
                assert "make room" in str(fault)
                os._exit(3)
            os._exit(0)

        status = os.waitstatus_to_exitcode(in_child(fill))
        assert status in (0, 3)
        refused += status == 3
        assert audit.verify()[0] == (2 if status == 0 else 1)
        assert audit.path.stat().st_size == before or status == 0  # no half of a line is left
        deed(audit, 3)
        assert audit.verify()[0] == (3 if status == 0 else 2)
        assert not audit.path.with_suffix(".torn").exists()
    assert 5 < refused < 23


@pytest.mark.parametrize("call", ["write", "fsync", "ftruncate", "open"])
@pytest.mark.parametrize("succeed", range(8))
def test_every_failing_call_is_an_error_and_not_a_broken_log(
    audit: Audit, call: str, succeed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From its n-th call on, it fails; a write may have written a half before."""
    with audit.path.open("ab") as file:
        file.write(b"{torn")
    real, done = getattr(os, call), 0

    def failing(*arguments: Any, **options: Any) -> Any:
        nonlocal done
        done += 1
        if done <= succeed:
            return real(*arguments, **options)
        if call == "write" and len(arguments[1]) > 1:
            real(arguments[0], arguments[1][: len(arguments[1]) // 2])
        raise OSError(28, "No space left on device", "/state/secret")

    monkeypatch.setattr(os, call, failing)
    told = None
    try:
        told = deed(audit, 8)
    except AuditError as fault:
        assert "No space left on device" in str(fault)
    assert (told is None) == (done > succeed)
    monkeypatch.undo()
    assert audit.verify()[0] >= 7
    last = deed(audit, 9)
    assert audit.verify()[1] == last
    assert [e.fields["round"] for e in audit.entries() if e.sequence <= 7] == list(range(1, 8))
