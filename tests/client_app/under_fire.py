"""A hospital's ClientApp that answers one request after another until it is killed.

`python -m tests.client_app.under_fire FOLDER`: for each line `RUN ROUND` on standard input a process is
forked that serves this run from this round on. On standard output: its `pid`, a line `released RUN ROUND
SHA256` for each answer that has left `app.serve`, and `ended`.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import time
from itertools import count
from pathlib import Path

import opacus.accountants
import pytest
import torch._dynamo
from flwr.supercore.task_identity import TaskIdentity

from client_app import private_round
from client_app.site import SITE_VARIABLE
from federation import wire
from tests.client_app import canary
from tests.client_app.canary_hospital import Hospital, content, start, training


def say(*words: object) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())  # one write: whole or not at all


def main() -> None:
    folder = Path(sys.argv[1])
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    dropped_in = folder.parent / "under_fire"
    dropped_in.mkdir()
    canary.install(dropped_in, pytest.MonkeyPatch())
    hospital = Hospital(folder)
    os.environ[SITE_VARIABLE] = str(hospital.site_file)
    of = content(rounds=100_000, noise_multiplier=50.0)
    model = start(of)
    # imported once, before the forks
    assert private_round and opacus.accountants and torch._dynamo
    test = os.getppid()
    say("ready")
    for line in sys.stdin:
        run, first = line.split()
        child = os.fork()
        if child == 0:
            for round_ in count(int(first)):
                records = hospital.ask(of, training(round_, run), model)
                if records["head"]["refused"]:
                    say("refused", run, round_, records["head"]["refused"])
                    os._exit(1)
                say("released", run, round_, hashlib.sha256(wire.blob(records)).hexdigest())
        say("pid", child)
        while os.waitpid(child, os.WNOHANG) == (0, 0):
            if os.getppid() != test:  # the test itself was killed
                os.kill(child, signal.SIGKILL)
            time.sleep(0.005)
        say("ended")


if __name__ == "__main__":
    main()
