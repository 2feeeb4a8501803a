"""The coordinator's backup: whole while rounds are committed, and into an empty folder alone."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from typer.testing import CliRunner

from federation import archive, state_version
from federation.messages import Lodged
from federation.schema import ConfigError
from federation.state_version import RESTORING
from server_app.backup import back_up, restore
from server_app.cli import app
from server_app.home import Federation, Home
from server_app.state import Checkpoint, RunFolder
from tests.in_process import experiment
from tests.provisioned import provisioned

WORDS = "correct horse battery"
FORK = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "_SCRYPT", {"n": 2, "r": 8, "p": 1})


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = provisioned(
        Federation(name="a", host="127.0.0.1", port=1, hospitals=["north"]),
        Home(tmp_path / "coordinator"),
        {"north": tmp_path / "north"},
    )
    state_version.settle(made.path, "coordinator")
    made.lodgings.keep({"north": Lodged(7, "a" * 64)})
    of = experiment(rounds=4)
    run = RunFolder.create(made.runs / "monday", of, {"experiment_sha256": of.sha256()})
    commit(run, 1)
    for name in ("logs", "flower"):
        (made.path / name).mkdir()
        (made.path / name / "file").write_text("CANARY")
    with closing(sqlite3.connect(made.database)) as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("CREATE TABLE node (id)")
        database.execute("INSERT INTO node VALUES (1)")
        database.commit()
    return made


def commit(run: RunFolder, number: int) -> None:
    """A round whose model and memory have to be of one and the same round."""
    array = {"w": np.full(1000, number, "f4")}
    run.append_metrics({"kind": "round", "round": number, "seconds": 1.0, "hospitals": {}})
    run.save(Checkpoint(number, array, array))


def digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.endswith(("lock", "-wal", "-shm"))
    }


def test_everything_but_logs_and_processes_comes_back(home: Home, tmp_path: Path) -> None:
    (home.path / "reviewers.yaml").write_text("what later code keeps here")
    made = back_up(home, tmp_path / "b", WORDS)
    new = Home(tmp_path / "new")
    held = restore(new, tmp_path / "b", WORDS)
    assert (held.runs, held.roster, made.runs) == (1, 1, 1)
    before = {
        name: digest
        for name, digest in digests(home.path).items()
        if not name.startswith(("logs/", "flower/", "database/"))
    }
    assert digests(new.path) == before and "lodgings/north.json" in before
    assert new.roster() == home.roster()
    assert new.lodgings.of(["north"]) == {"north": Lodged(7, "a" * 64)}
    assert RunFolder(new.runs / "monday").load() is not None
    assert {path.stat().st_mode & 0o77 for path in new.path.glob("*.key")} == {0}


def test_the_database_comes_on_request_while_it_is_written_to(home: Home, tmp_path: Path) -> None:
    with closing(sqlite3.connect(home.database, isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("INSERT INTO node VALUES (2)")  # not committed: not in the backup
        back_up(home, tmp_path / "b", WORDS, database=True)
        writer.execute("ROLLBACK")
    new = Home(tmp_path / "new")
    restore(new, tmp_path / "b", WORDS)
    with closing(sqlite3.connect(new.database)) as database:
        assert database.execute("SELECT id FROM node").fetchall() == [(1,)]


def test_a_run_in_a_backup_is_of_one_round(home: Home, tmp_path: Path) -> None:
    """Another process commits rounds without a pause."""
    run = RunFolder(home.runs / "monday")

    def busy() -> None:
        for number in range(2, 100_000):
            commit(run, number)

    at_work = FORK.Process(target=busy)
    at_work.start()
    try:
        for number in range(6):
            back_up(home, tmp_path / f"b{number}", WORDS)
            new = Home(tmp_path / f"new{number}")
            restore(new, tmp_path / f"b{number}", WORDS)
            found = RunFolder(new.runs / "monday").load()
            assert found is not None and set(found.model["w"]) == {found.round}
            assert set(found.strategy["w"]) == {found.round}
            rounds = [row["round"] for row in RunFolder(new.runs / "monday").metrics()]
            assert rounds[: found.round] == list(range(1, found.round + 1))
    finally:
        at_work.kill()
        at_work.join()
    assert load_file(home.runs / "monday" / "model.safetensors")


def test_only_into_an_empty_folder_that_nobody_uses(home: Home, tmp_path: Path) -> None:
    back_up(home, tmp_path / "b", WORDS)
    before = digests(home.path)
    with pytest.raises(ConfigError, match="is not empty"):
        restore(home, tmp_path / "b", WORDS)
    assert digests(home.path) == before
    altered = bytearray((tmp_path / "b").read_bytes())
    altered[-1] ^= 1
    (tmp_path / "c").write_bytes(altered)
    with pytest.raises(ConfigError, match="cut off"):
        restore(Home(tmp_path / "new"), tmp_path / "c", WORDS)
    assert not (tmp_path / "new" / "identity.key").exists()
    restore(Home(tmp_path / "new"), tmp_path / "b", WORDS)


def killed_at(step: int, what: Callable[[], object]) -> bool:
    """Whether a process was killed at its `step`-th step onto the disk; it ends by itself otherwise."""

    def dying() -> None:
        left = step

        def look(event: str, _: object) -> None:
            nonlocal left
            if event in {"os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "open"}:
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(look)
        what()
        os._exit(0)

    process = FORK.Process(target=dying)
    process.start()
    process.join(60)
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def test_killed_anywhere_the_same_restore_ends_it(home: Home, tmp_path: Path) -> None:
    back_up(home, tmp_path / "b", WORDS)
    restore(Home(tmp_path / "whole"), tmp_path / "b", WORDS)
    whole, step, unfinished = digests(tmp_path / "whole"), 1, 0
    while True:
        new = Home(tmp_path / f"new-{step}")
        killed = killed_at(step, lambda new=new: restore(new, tmp_path / "b", WORDS))  # type: ignore[misc]
        if (new.path / RESTORING).exists():
            unfinished += 1
            with pytest.raises(ConfigError, match="Run the same restore again"):
                new.federation()
        if not killed:
            break
        if (new.path / "identity.key").exists() and not (new.path / RESTORING).exists():
            assert digests(new.path) == whole  # it was done but for its drafts
        else:
            restore(new, tmp_path / "b", WORDS)
            assert digests(new.path) == whole
        step += 6
    assert unfinished > 2


def test_the_commands_as_a_person_types_them(home: Home, tmp_path: Path) -> None:
    runner, out = CliRunner(), tmp_path / "b"
    (tmp_path / "words").write_text(WORDS)
    given = ["--passphrase-file", str(tmp_path / "words"), "--home"]
    done = runner.invoke(app, ["backup", str(out), *given, str(home.path), "--database"])
    assert done.exit_code == 0 and "1 runs, roster version 1" in done.output, done.output
    done = runner.invoke(app, ["restore", str(out), *given, str(tmp_path / "new")])
    assert done.exit_code == 0 and "replayed" in done.output, done.output
    assert json.loads((tmp_path / "new" / state_version.FILE).read_text())["kind"] == "coordinator"
    done = runner.invoke(app, ["backup", str(out), *given, str(tmp_path / "new")])
    assert isinstance(done.exception, ConfigError) and "already" in str(done.exception)
