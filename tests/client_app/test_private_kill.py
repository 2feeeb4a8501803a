"""kill -9 at a hundred instants: whatever left was charged before."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

from client_app.audit import Audit
from tests.client_app.canary_hospital import Hospital, content, training

ROOT = Path(__file__).resolve().parents[2]
KILLS = 100


def test_charged_is_never_less_than_released(small: Hospital) -> None:
    small.edit(policy={"most_attempts": 100})
    of = content(rounds=100_000, noise_multiplier=50.0)
    small.ask(of, training(1, "warm"))  # fills the caches
    released: dict[tuple[str, int], set[str]] = defaultdict(set)
    instants = random.Random(4)
    firing = subprocess.Popen(
        [sys.executable, "-m", "tests.client_app.under_fire", str(small.folder)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, cwd=ROOT,
    )  # fmt: skip
    assert firing.stdin is not None
    assert firing.stdout is not None
    assert firing.stdout.readline() == "ready\n"
    unreleased, pace = 0, 0.0  # seconds that a process takes until its second answer
    try:
        for kill in range(KILLS):
            run = f"run-{kill // 25}"
            done = [round_ for name, round_ in released if name == run]
            firing.stdin.write(f"{run} {max(done, default=0) + 1}\n")
            firing.stdin.flush()
            began = time.monotonic()
            while (words := firing.stdout.readline().split())[0] != "pid":
                note(released, words)  # the child may be faster than the word of its birth
            child = int(words[1])
            if kill == 0:
                for _ in range(2):
                    note(released, firing.stdout.readline().split())
                pace = time.monotonic() - began
            before = sum(map(len, released.values()))
            time.sleep(instants.uniform(0, pace))
            os.kill(child, signal.SIGKILL)
            while (words := firing.stdout.readline().split()) != ["ended"]:
                note(released, words)
            # A machine's pace changes while others work on it: longer after a kill that came
            # before any answer, shorter after one that came late.
            answers_here = sum(map(len, released.values())) - before
            pace *= {0: 1.15, 1: 1.0}.get(answers_here, 0.9)
            charges: Counter[tuple[str, int]] = Counter()
            with small.ledger() as ledger:  # opening verifies the whole chain
                for charge in ledger.charges():
                    charges[charge.run, charge.round] += 1
            for which, answers in released.items():
                assert len(answers) <= charges[which]
            unreleased = sum(charges.values()) - sum(map(len, released.values()))
            Audit(small.state / "audit.jsonl").verify()
    finally:
        firing.kill()
        firing.wait()
    assert sum(map(len, released.values())) > 20  # the kills did not come before all work
    assert unreleased > 1  # and some of them came between charge and release


def note(released: dict[tuple[str, int], set[str]], words: list[str]) -> None:
    assert words[0] == "released", words
    released[words[1], int(words[2])].add(words[3])
