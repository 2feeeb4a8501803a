"""Error feedback: what a round's update lost in the codec, kept here and added to the next one.

    residuals/RUN/ROUND.npy   float32, over the values that the codec exchanges

RUN stands for the run and its experiment: of another experiment under the same run's name nothing is
added, since its updates may have had less noise.

A round that is done again starts from what the rounds before it left, as it did the first time; so the
two newest are kept. The files hold what was left over of updates, and never leave.

To most strategies a residual that is lost costs a little of one update. Where the coordinator must agree
with what a strategy keeps in `local/`, it is a part of an update that one side alone has counted: it
stays as long as that does, and a round that lacks it is refused (`Residual.counted`).
"""

from __future__ import annotations

import hashlib
import io
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from client_app.policy import Refused
from client_app.private_file import write_private
from federation.messages import Reason

_KEPT = 2
_RUNS = 3  # of those that nothing in `local/` goes with


def run_folder(run: str, experiment_sha256: str) -> str:
    """The name of a folder for what a hospital keeps of one run of one experiment."""
    return hashlib.sha256(f"{experiment_sha256}{run}".encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Residual:
    """The files of one run of one experiment."""

    folder: Path

    @classmethod
    def of(cls, state: Path, run: str, experiment_sha256: str) -> Residual:
        return cls(state / "residuals" / run_folder(run, experiment_sha256))

    def before(self, round_: int) -> NDArray[np.float32] | None:
        """What the newest round before this one left; None where there was none, or it is damaged.

        What is gone is never sent: without sums to agree with, that costs a little accuracy, once.
        """
        rounds = [number for number in self._rounds() if number < round_]
        return self._read(max(rounds)) if rounds else None

    def counted(self, round_: int) -> NDArray[np.float32] | None:
        """What this round left, none before it and none after it; None for round 0.

        Raises:
            Refused: NO_STATE, it is not here any more.
        """
        if round_ == 0:
            return None
        left = self._read(round_)
        if left is None:
            raise Refused(Reason.NO_STATE)
        return left

    def keep(self, round_: int, left: NDArray[np.float32], counted: int | None = None) -> None:
        """Keep what a round left; that of `counted` stays as long as the round may not count.

        Raises:
            ConfigError: the folder cannot be written to.
        """
        content = io.BytesIO()
        np.save(content, left, allow_pickle=False)
        write_private(self._file(round_), content.getbuffer())
        later = [number for number in self._rounds() if number > round_]
        before = [number for number in self._rounds() if number < round_ and number != counted]
        for number in later + before[: len(before) + 1 - _KEPT]:
            self._file(number).unlink(missing_ok=True)
        self._forget_old_runs()

    def _forget_old_runs(self) -> None:
        residuals = self.folder.parent
        local = residuals.with_name("local")
        alone = [run for run in residuals.iterdir() if not (local / run.name).exists()]
        for old in sorted(alone, key=lambda run: run.stat().st_mtime_ns)[:-_RUNS]:
            shutil.rmtree(old, ignore_errors=True)

    def _read(self, round_: int) -> NDArray[np.float32] | None:
        try:
            left: NDArray[np.float32] = np.load(self._file(round_), allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        usable = left.dtype == np.float32 and left.ndim == 1 and np.isfinite(left).all()
        return left if usable else None

    def _rounds(self) -> list[int]:
        return sorted(int(file.stem) for file in self.folder.glob("*.npy") if file.stem.isdigit())

    def _file(self, round_: int) -> Path:
        return self.folder / f"{round_}.npy"
