"""A run's folder: what a run must never lose, written so that `kill -9` at any moment loses nothing.

    experiment.json    the canonical experiment
    run.json           who ran which code, when, and the hospitals that are asked to the run's end
    model.safetensors  the global model; its header names the round that made it
    strategy-R.safetensors  what strategy and codec remember after round R (absent where they have none)
    asked.json         of a private run: what was lodged when its newest round was first asked
    attempt.json, sum.bin, opening.bin  of a run under masks: setups of the newest round, and its sum
    metrics.jsonl      one line a round and one an evaluation
    status.json        running, completed or failed, for whoever watches
    STATE_VERSION      see federation/state_version.py
    lock               held by the process that conducts the run; the kernel lets go when it dies

A round is committed by the one atomic replacement of model.safetensors. All that belongs to it is
written before and is ignored, or dropped on resuming, when the replacement did not happen. All random
states are functions of the experiment's seed, the round and the hospital, so none needs saving.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from logging import getLogger
from pathlib import Path
from typing import Any, TextIO

import safetensors
import safetensors.numpy

from federation import journal, state_version
from federation.messages import Arrays, Lodged
from federation.schema import ConfigError, Experiment

record = getLogger("consilium")

_CODEC = "codec/"  # before the names of the codec's memory in the strategy's file


def now() -> str:
    """The time as ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def write_atomically(path: Path, content: bytes, *, mode: int = 0o640) -> None:
    """Replace a file so that a reader, or a crash, sees the old or the new one, whole and on disk."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(mode)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Have the names in a folder on the disk."""
    directory = os.open(path, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _locked(file: TextIO) -> bool:
    """Whether this process got the lock on an open file; it lasts until the file is closed."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@dataclass(frozen=True)
class Checkpoint:
    """The global model after `round` rounds (0: as initialised), and what goes on with it.

    Attributes:
        strategy: what the strategy remembers.
        codec: the scales of updates, and what the last difference lacked.
    """

    round: int
    model: Arrays
    strategy: Arrays
    codec: Arrays = field(default_factory=dict)


class RunFolder:
    """The files of one run. Reading needs no lock; conducting the run does, see `conducting`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def name(self) -> str:
        return self.path.name

    @classmethod
    def create(cls, path: Path, experiment: Experiment, record: dict[str, Any]) -> RunFolder:
        """A new run's folder with its experiment and the record of who runs which code.

        It has all of these or is not there.

        Raises:
            ConfigError: there is such a run already.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        made = cls(Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.")))
        made.path.chmod(0o755)
        state_version.settle(made.path, "run")
        write_atomically(made.path / "experiment.json", experiment.canonical().encode())
        made.write_record(record)
        made.write_status("running", 0, experiment.rounds)
        try:
            made.path.rename(path)  # onto nothing, or a folder with nothing in it
        except OSError as error:
            shutil.rmtree(made.path)
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                raise
            raise ConfigError(
                f"there is a run {path.name!r} already; go on with it by resume={path.name}, "
                "or choose another run=NAME"
            ) from None
        sync_folder(path.parent)
        return cls(path)

    def experiment(self) -> Experiment:
        """Raises ConfigError: no such run, newer code made it, or its experiment was changed by hand."""
        state_version.require(self.path, "run")
        try:
            text = (self.path / "experiment.json").read_text()
        except FileNotFoundError:
            raise ConfigError(f"there is no run {self.name!r}") from None
        return Experiment.from_canonical(text, self.record()["experiment_sha256"])

    def record(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.path / "run.json").read_text())
        return content

    def write_record(self, record: dict[str, Any]) -> None:
        write_atomically(self.path / "run.json", json.dumps(record, indent=1).encode())

    def status(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.path / "status.json").read_text())
        return content

    def write_status(
        self, state: str, round_: int, rounds: int, message: str | None = None
    ) -> None:
        content = {
            "state": state, "round": round_, "rounds": rounds, "message": message, "updated": now()
        }  # fmt: skip
        write_atomically(self.path / "status.json", json.dumps(content).encode())
        record.info(
            "a run's status", extra=journal.told(f"run_{state}", run=self.name, round=round_)
        )

    def note_stop(self, flower_run: str | None) -> None:
        """Which of Flower's runs a person is ending; None: the stop did not go through."""
        write_atomically(self.path / "stop.json", json.dumps({"flower_run": flower_run}).encode())

    def was_stopped(self, flower_run: str) -> bool:
        """Whether a person ended this one of Flower's runs, so that its process did not just die."""
        path = self.path / "stop.json"
        return path.exists() and json.loads(path.read_text())["flower_run"] == flower_run

    @contextmanager
    def conducting(self) -> Iterator[None]:
        """Hold the run for this process.

        Raises:
            ConfigError: another living process holds it.
        """
        with (self.path / "lock").open("w") as file:
            # a moment's patience: `is_conducted` holds the lock while it looks
            deadline = time.monotonic() + 1.0
            while not _locked(file):
                if time.monotonic() > deadline:
                    raise ConfigError(f"run {self.name!r} is being conducted already")
                time.sleep(0.02)
            yield

    def is_conducted(self) -> bool:
        """Whether a living process conducts this run."""
        with (self.path / "lock").open("w") as file:
            return not _locked(file)

    # --- the committed state ---------------------------------------------------------------------

    def save(self, checkpoint: Checkpoint) -> None:
        """Commit a round."""
        strategy = self._strategy_file(checkpoint.round)
        codec = {_CODEC + name: array for name, array in checkpoint.codec.items()}
        if checkpoint.strategy or codec:
            write_atomically(strategy, safetensors.numpy.save(checkpoint.strategy | codec))
        metadata = {"round": str(checkpoint.round)}
        write_atomically(
            self.path / "model.safetensors", safetensors.numpy.save(checkpoint.model, metadata)
        )
        for old in self.path.glob("strategy-*.safetensors"):
            if old != strategy:
                old.unlink(missing_ok=True)

    def load(self) -> Checkpoint | None:
        """The last committed round, or None before the first commit."""
        path = self.path / "model.safetensors"
        if not path.exists():
            return None
        with safetensors.safe_open(path, framework="numpy") as file:
            round_ = int(file.metadata()["round"])
            model = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        strategy = self._strategy_file(round_)
        remembered = safetensors.numpy.load_file(strategy) if strategy.exists() else {}
        codec = {name: array for name, array in remembered.items() if name.startswith(_CODEC)}
        return Checkpoint(
            round_,
            model,
            {name: array for name, array in remembered.items() if name not in codec},
            {name.removeprefix(_CODEC): array for name, array in codec.items()},
        )

    def _strategy_file(self, round_: int) -> Path:
        return self.path / f"strategy-{round_}.safetensors"

    def first_asked(
        self, round_: int, lodged: Mapping[str, Lodged | None]
    ) -> dict[str, Lodged | None]:
        """What was lodged when each of these was first asked for this round: `lodged`, or what stands
        there already.

        A hospital answers a request that comes again with the bytes that it sent before, and these tell
        of the ledger as it was then, whatever other runs charged meanwhile.

        Args:
            lodged: by hospital; None: its ledger was not heard of.
        """
        path = self.path / "asked.json"
        told: dict[str, Any] = {}
        if path.exists():
            asked = json.loads(path.read_text())
            told = asked["lodged"] if asked["round"] == round_ else {}
        first = {name: None if one is None else asdict(one) for name, one in lodged.items()} | told
        if first != told:
            write_atomically(path, json.dumps({"round": round_, "lodged": first}).encode())
        return {name: None if one is None else Lodged(**one) for name, one in first.items()}

    def next_attempt(self, round_: int) -> int:
        """A number that no fresh setup of this round's masks had, from 1 on; it is on the disk."""
        path = self.path / "attempt.json"
        attempt = 1
        if path.exists():
            last = json.loads(path.read_text())
            attempt = last["attempt"] + 1 if last["round"] == round_ else 1
        write_atomically(path, json.dumps({"round": round_, "attempt": attempt}).encode())
        return attempt

    # --- metrics ---------------------------------------------------------------------------------

    def append_metrics(self, row: dict[str, Any]) -> None:
        """Add one line and see it on the disk."""
        line = json.dumps(row, allow_nan=False) + "\n"
        with (self.path / "metrics.jsonl").open("a") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    def metrics(self) -> list[dict[str, Any]]:
        """All whole lines; a line cut off by a crash is not one."""
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return []
        rows = []
        for line in path.read_text().splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
        return rows

    def drop_metrics_after(self, round_: int) -> None:
        """Forget what belongs to work that was not committed.

        A round's line comes before its commit; the evaluation of a model comes in the round after
        the one that made it, so that of the last committed model is measured again.
        """
        kept = [
            row
            for row in self.metrics()
            if row["round"] <= (round_ if row["kind"] == "round" else round_ - 1)
        ]
        content = "".join(json.dumps(row) + "\n" for row in kept)
        write_atomically(self.path / "metrics.jsonl", content.encode())
