"""What a strategy's local part remembers between rounds: control variates, layers, a personal model.

    local/RUN/ROUND.safetensors   with its SHA-256 in front; written atomically, never sent

RUN stands for the run and its experiment. What another experiment left under the same run's name is not
used: it may have been trained without the noise that this one promises.

A round that is done again starts from what the rounds before it left, as it did the first time; so the
two newest are kept. Where the coordinator must agree with what is kept, a round starts from the last one
that is in its mean (`Request.counted`), and what was kept of answers that came too late is forgotten.
Unlike error feedback it is nothing to throw away: the newest of each run stays, as a personal model is
what `hospital predict` may use.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.numpy

from client_app.policy import Refused
from client_app.private_file import write_private
from client_app.residual import run_folder
from federation import wire
from federation.messages import Arrays, Reason

_KEPT = 2
_DIGEST = 32


@dataclass(frozen=True)
class LocalState:
    """The files of one run of one experiment."""

    folder: Path

    @classmethod
    def of(cls, state: Path, run: str, experiment_sha256: str) -> LocalState:
        return cls(state / "local" / run_folder(run, experiment_sha256))

    def before(self, round_: int) -> Arrays:
        """What the newest whole file of a round before this one holds; empty where there is none."""
        for number in sorted(self.rounds(), reverse=True):
            if number < round_ and (arrays := self._read(number)) is not None:
                return arrays
        return {}

    def counted(self, round_: int) -> Arrays:
        """What this round left, none before it and none after it; empty for round 0.

        Raises:
            Refused: NO_STATE, it is not here any more.
        """
        if round_ == 0:
            return {}
        arrays = self._read(round_)
        if arrays is None:
            raise Refused(Reason.NO_STATE)
        return arrays

    def newest(self) -> Arrays:
        """What the newest whole file holds; empty where there is none."""
        return self.before(1 << 62)

    def keep(self, round_: int, arrays: Arrays, counted: int | None = None) -> None:
        """Keep what a round left; that of `counted` stays as long as the round may not count.

        Raises:
            ConfigError: the folder cannot be written to.
        """
        blob = wire.pack(arrays)
        write_private(self._file(round_), hashlib.sha256(blob).digest() + blob)
        later = [number for number in self.rounds() if number > round_]
        before = [number for number in self.rounds() if number < round_ and number != counted]
        for number in later + before[: len(before) + 1 - _KEPT]:
            self._file(number).unlink(missing_ok=True)

    def rounds(self) -> list[int]:
        files = self.folder.glob("*.safetensors")
        return sorted(int(file.stem) for file in files if file.stem.isdigit())

    def _read(self, round_: int) -> Arrays | None:
        try:
            content = self._file(round_).read_bytes()
        except OSError:
            return None
        digest, blob = content[:_DIGEST], content[_DIGEST:]
        if hashlib.sha256(blob).digest() != digest:
            return None
        arrays: Arrays = safetensors.numpy.load(blob)
        finite = all(np.isfinite(a).all() for a in arrays.values() if a.dtype.kind == "f")
        return arrays if finite else None

    def _file(self, round_: int) -> Path:
        return self.folder / f"{round_}.safetensors"
