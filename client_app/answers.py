"""Answers as they were before codec and masks, kept for the case that they did not arrive.

A private answer cannot be made twice for one charge: the second has other noise, and two are more than
one. Nor may one mask hide two answers. So the same request gets the same work again, for nothing, also
where it has another weight in another sum.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from flwr.app import RecordDict

from client_app.private_file import write_private
from client_app.received import Asked, Received
from federation import strategies, wire
from federation.fairness.layout import Layout
from federation.messages import Answer, Expected, Request, WireError
from federation.schema import ConfigError

_KEPT = 4  # the newest: a coordinator asks again for the round that it has not finished


def digest(request: Request, experiment_sha256: str, model: bytes) -> str:
    """SHA-256 of all that decides what an answer may hold.

    What was lodged does not, nor how the model travelled, nor which masks go over the answer, nor its
    weight in a sum.

    Args:
        model: the whole model, as `federation.wire.pack` writes it.
    """
    content = {
        "run": request.run,
        "round": request.round,
        "evaluate": request.evaluate,
        "train": request.train,
        "scales": request.scales.hex(),
        "counted": request.counted,
        "experiment": experiment_sha256,
        "model": hashlib.sha256(model).hexdigest(),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Answers:
    """One file an answer, named by its request's digest, in a folder of the hospital's state."""

    folder: Path

    def keep(self, identity: str, records: RecordDict) -> None:
        """Have the answer on the disk before it leaves.

        Raises:
            ConfigError: the folder cannot be written to.
        """
        write_private(self.folder / identity, wire.records_to_bytes(records))
        files = sorted(self.folder.glob("[0-9a-f]*"), key=lambda file: file.stat().st_mtime_ns)
        for old in files[:-_KEPT]:
            old.unlink(missing_ok=True)

    def find(self, identity: str, request: Request, expected: Expected) -> Answer | None:
        """The answer that this request got, if it is still here and whole."""
        try:
            records = wire.records_from_bytes((self.folder / identity).read_bytes())
            return wire.answer_from_records(records, request, expected)
        except (OSError, ValueError, ConfigError, WireError):
            return None


@dataclass(frozen=True)
class Kept:
    """The place of one request's answer."""

    answers: Answers
    identity: str
    request: Request
    expected: Expected

    def keep(self, records: RecordDict) -> None:
        """As `Answers.keep`."""
        self.answers.keep(self.identity, records)

    def find(self) -> Answer | None:
        """As `Answers.find`."""
        return self.answers.find(self.identity, self.request, self.expected)


def place(asked: Asked, received: Received) -> Kept:
    """Where the answer to this request is kept."""
    identity = digest(asked.request, asked.experiment.sha256(), received.packed)
    privacy, task = asked.experiment.privacy, received.task
    noisy = privacy is not None and privacy.metrics == "noisy" and task.tally is not None
    expected = Expected(
        received.shape,
        frozenset(strategies.metric_names(asked.experiment, task.metrics)),
        private=privacy is not None,
        tally=task.tally.size if noisy and task.tally is not None else 0,
        counts=Layout.of_experiment(asked.experiment, task),
    )
    return Kept(Answers(asked.site.state / "answers"), identity, asked.request, expected)
