"""kill -9 of a process that charges: what was said to be paid for is paid for, always."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from client_app import ledger_file
from client_app.ledger import Budget, Ledger, cohort_id
from client_app.ledger_file import LedgerFile
from federation.privacy.accounting import Mechanism

COHORT = cohort_id(bytes(range(32)), "north")
KILLS = 40


def charge(ledger: Ledger, number: int) -> int:
    """How many charges there are, as the hospital would tell the coordinator."""
    spent = ledger.charge(
        run="monday",
        round=number,
        request=f"{number:064x}",
        experiment="e" * 64,
        mechanisms=[Mechanism(2.0, 0.1, 1)],
        budget=Budget(8.0, 1e-5, "rdp"),
        lodged=None,
        attempts=1000,
    )
    return spent.lodged.charges


def charge_for_ever(path: Path, pipe: Connection, seed: int) -> None:
    """Charges as fast as the disk takes them, now and then with a ledger opened anew."""
    # No accountant: with one nearly every kill would hit arithmetic, and none the disk.
    patch("client_app.ledger.epsilon", return_value=1.0).start()
    chance = random.Random(seed)
    pipe.send(0)
    while True:
        with Ledger.open(path, COHORT) as ledger:
            number = ledger.verify()[0]
            for _ in range(chance.randrange(1, 6)):
                number += 1
                pipe.send(charge(ledger, number))


def test_charged_is_never_less_than_reported(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    Ledger.create(path, COHORT)
    context = get_context("forkserver")
    context.set_forkserver_preload(["client_app.ledger"])
    chance = random.Random(0)
    reported = in_the_log = 0
    for kill in range(KILLS):
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=charge_for_ever, args=(path, theirs, kill))
        process.start()
        theirs.close()
        assert ours.poll(120)  # it has started
        time.sleep(chance.uniform(0.0, 0.15))
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        reported = max([reported, *everything_in(ours)])
        in_the_log += path.with_name("ledger.sqlite-wal").exists()
        with Ledger.open(path, COHORT) as ledger:
            charges, _ = ledger.verify()
            assert [charge.position for charge in ledger.charges()] == list(range(1, charges + 1))
        assert reported <= charges
        # one charge more may be on the disk than was told, and no more than one a kill
        assert charges <= reported + 1
        reported = charges
    assert reported > KILLS
    assert in_the_log > KILLS // 2  # most kills left something that SQLite had to recover


def everything_in(pipe: Connection) -> list[int]:
    """What was sent before the end; a message that the kill cut is nothing."""
    found = []
    try:
        while True:
            found.append(pipe.recv())
    except (EOFError, OSError):
        return found


def die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def before_insert() -> None:
    patch.object(LedgerFile, "append", die).start()


def after_insert() -> None:
    append = LedgerFile.append

    def then_die(self: LedgerFile, *arguments: Any) -> None:
        append(self, *arguments)
        die()

    patch.object(LedgerFile, "append", then_die).start()


def after_commit() -> None:
    patch.object(LedgerFile, "note_head", die).start()


def before_the_head_is_in_place() -> None:
    patch.object(Path, "replace", die).start()


def after_the_head_is_in_place() -> None:
    patch.object(ledger_file, "_sync", die).start()


@pytest.mark.parametrize(
    ("where", "counts"),
    [
        (before_insert, False),
        (after_insert, False),
        (after_commit, True),
        (before_the_head_is_in_place, True),
        (after_the_head_is_in_place, True),
    ],
)
def test_killed_at_each_step(tmp_path: Path, where: Callable[[], None], counts: bool) -> None:
    """Before the commit nothing is charged, after it everything; the next one can charge at once."""
    path = tmp_path / "ledger.sqlite"
    Ledger.create(path, COHORT)
    context = get_context("forkserver")
    context.set_forkserver_preload(["client_app.ledger"])
    process = context.Process(target=charge_and_die, args=(path, where))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    free = patch("client_app.ledger.epsilon", return_value=1.0)
    with free, Ledger.open(path, COHORT) as ledger:
        charges, head = ledger.verify()
        assert charges == 1 + counts
        assert charge(ledger, 3) == charges + 1
        assert ledger.charges()[-1].previous == head


def charge_and_die(path: Path, where: Callable[[], None]) -> None:
    patch("client_app.ledger.epsilon", return_value=1.0).start()
    with Ledger.open(path, COHORT) as ledger:
        charge(ledger, 1)
        where()
        charge(ledger, 2)
