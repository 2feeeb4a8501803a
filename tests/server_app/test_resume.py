"""A run that is broken anywhere ends with the same bits as one that never was."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from federation.schema import ConfigError
from server_app.state import Checkpoint, RunFolder, write_atomically
from tests.in_process import (
    PRIVATE,
    SHARE,
    START,
    InProcessGrid,
    Node,
    adding,
    conductor,
    experiment,
    private,
    sums,
)

STRATEGIES = ["fedavg", "fedavgm", "fedadam", "fedyogi", "fedadagrad"]
PRIVATE_RUN = PRIVATE | {"ema": 0.7, "metrics": "noisy"}


def run_to_the_end(folder: RunFolder) -> Checkpoint:
    tally = None
    hospitals = [adding(0.3, 2), adding(-0.7, 5)]
    if folder.experiment().privacy is not None:
        tally, told = SHARE, sums(30, 10, noise=2.0)
        hospitals = [private(0.3, 2, tally=told), private(-0.7, 5, tally=told)]
    grid = InProcessGrid([Node(name, each) for name, each in zip("ab", hospitals, strict=True)])
    start = folder.load() or Checkpoint(0, START, {})
    folder.drop_metrics_after(start.round)
    lodgings = folder.path.with_name(f"{folder.name}-lodgings")
    return conductor(grid, folder, tally=tally, lodgings=lodgings).conduct(start)


def new(path: Path, strategy: str, privacy: dict[str, Any] | None = None) -> RunFolder:
    content = experiment(rounds=4, strategy={"name": strategy}, privacy=privacy)
    return RunFolder.create(path, content, {"experiment_sha256": content.sha256()})


def timeless(folder: RunFolder) -> list[dict]:
    rows = json.loads(json.dumps(folder.metrics()))
    for row in rows:
        for key in ("seconds", "started", "time"):
            row.pop(key, None)
        for hospital in row["hospitals"].values():
            hospital.pop("answered_after", None)
    return rows


class Broken(Exception):
    pass


def break_at_write(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process ends at its n-th write of the state, before that write."""
    left = [number]

    def breaking(path: Path, content: bytes) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise Broken
        write_atomically(path, content)

    for module in ("state", "lodgings"):
        monkeypatch.setattr(f"server_app.{module}.write_atomically", breaking)


def assert_same_end(folder: RunFolder, resumed: Checkpoint, expected: Checkpoint) -> None:
    assert resumed.model["w"].tobytes() == expected.model["w"].tobytes()
    assert resumed.strategy.keys() == expected.strategy.keys()
    for name, array in expected.strategy.items():
        assert resumed.strategy[name].tobytes() == array.tobytes()
    released = folder.load()
    assert released is not None
    assert released.model["w"].tobytes() == expected.model["w"].tobytes()


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("writes", range(1, 9))
def test_broken_at_any_write(
    strategy: str, writes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = new(tmp_path / "whole", strategy)
    expected = run_to_the_end(whole)
    broken = new(tmp_path / "broken", strategy)
    with monkeypatch.context() as patch:
        break_at_write(writes, patch)
        with pytest.raises(Broken):
            run_to_the_end(broken)
    assert_same_end(broken, run_to_the_end(broken), expected)
    assert timeless(broken) == timeless(whole)


@pytest.mark.parametrize("writes", [2, 3, 4, 5, 6, 7, 8, 12, *range(20, 28)])
def test_a_private_run_broken_at_any_write_releases_the_same_mean(
    writes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writes of a round: what was lodged, two of what is, the memory, the model, the status."""
    whole = new(tmp_path / "whole", "fedadam", PRIVATE_RUN)
    expected = run_to_the_end(whole)
    broken = new(tmp_path / "broken", "fedadam", PRIVATE_RUN)
    with monkeypatch.context() as patch:
        break_at_write(writes, patch)
        with pytest.raises(Broken):
            run_to_the_end(broken)
    assert_same_end(broken, run_to_the_end(broken), expected)
    assert timeless(broken) == timeless(whole)
    raw = new(tmp_path / "raw", "fedadam", PRIVATE_RUN | {"ema": 0.0})
    assert run_to_the_end(raw).model["w"].tobytes() != expected.model["w"].tobytes()


KILLED = """
import sys, os, signal, threading, time
from pathlib import Path
from flwr.supercore.task_identity import TaskIdentity
TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
from server_app.state import RunFolder
from tests.server_app.test_resume import run_to_the_end
def kill():
    time.sleep(float(sys.argv[2]))
    os.kill(os.getpid(), signal.SIGKILL)
print("ready", flush=True)
threading.Thread(target=kill, daemon=True).start()
run_to_the_end(RunFolder(Path(sys.argv[1])))
"""


@pytest.mark.parametrize("privacy", [None, PRIVATE_RUN], ids=["plain", "private"])
def test_killed_at_random_instants(privacy: dict[str, Any] | None, tmp_path: Path) -> None:
    expected = run_to_the_end(new(tmp_path / "whole", "fedadam", privacy))
    rng = np.random.default_rng(1)
    for attempt in range(4):
        folder = new(tmp_path / f"killed-{attempt}", "fedadam", privacy)
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(folder.path), str(rng.uniform(0.02, 0.3))],
            env={**os.environ, "PYTHONPATH": os.getcwd()},  # noqa: PTH109
        )
        assert process.wait(120) in (-signal.SIGKILL, 0)
        assert_same_end(folder, run_to_the_end(folder), expected)


def test_a_half_written_line_of_metrics_is_no_line(tmp_path: Path) -> None:
    folder = new(tmp_path / "run", "fedavg")
    folder.append_metrics({"kind": "round", "round": 1})
    with (folder.path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "rou')
    assert folder.metrics() == [{"kind": "round", "round": 1}]


def test_a_run_is_conducted_by_one_process(tmp_path: Path) -> None:
    folder = new(tmp_path / "run", "fedavg")
    assert not folder.is_conducted()
    with folder.conducting():
        assert folder.is_conducted()
        with pytest.raises(ConfigError, match="conducted already"), folder.conducting():
            pass
    assert not folder.is_conducted()


def test_a_run_is_not_overwritten_and_a_changed_experiment_not_resumed(tmp_path: Path) -> None:
    folder = new(tmp_path / "run", "fedavg")
    with pytest.raises(ConfigError, match="resume=run"):
        new(tmp_path / "run", "fedavg")
    path = folder.path / "experiment.json"
    path.write_text(path.read_text().replace('"rounds":4', '"rounds":5'))
    with pytest.raises(ConfigError, match="SHA-256"):
        folder.experiment()
