"""What the codec left over of earlier rounds, and which of it a round starts from."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from client_app.local_state import LocalState
from client_app.policy import Refused
from client_app.residual import Residual
from federation.messages import Reason

SHA256 = "of one experiment"


def left(value: float) -> NDArray[np.float32]:
    return np.full(9, value, np.float32)


def value(found: NDArray[np.float32] | None) -> float | None:
    return None if found is None else float(found[0])


def test_a_round_starts_from_what_the_one_before_left(tmp_path: Path) -> None:
    residual = Residual.of(tmp_path, "run", SHA256)
    assert residual.before(1) is None
    for number in range(1, 5):
        assert value(residual.before(number)) == (number - 1 or None)
        residual.keep(number, left(number))
        # once more, after a crash: the same start, and then the same end
        assert value(Residual.of(tmp_path, "run", SHA256).before(number)) == (number - 1 or None)
        residual.keep(number, left(number))
    assert {file.name for file in residual.folder.iterdir()} == {"3.npy", "4.npy"}


def test_a_hospital_that_missed_rounds_goes_on_from_its_last(tmp_path: Path) -> None:
    residual = Residual.of(tmp_path, "run", SHA256)
    residual.keep(2, left(2))
    assert value(residual.before(9)) == 2


def test_rounds_after_one_that_is_done_again_are_forgotten(tmp_path: Path) -> None:
    """A coordinator that lost its newest rounds: what they left is of models that never were."""
    residual = Residual.of(tmp_path, "run", SHA256)
    for number in (1, 2, 3):
        residual.keep(number, left(number))
    residual.keep(3, left(3.5))
    residual.keep(2, left(2.5))
    assert value(residual.before(3)) == 2.5
    assert value(residual.before(4)) == 2.5


def test_runs_do_not_mix(tmp_path: Path) -> None:
    one, two = Residual.of(tmp_path, "one", SHA256), Residual.of(tmp_path, "two", SHA256)
    one.keep(1, left(1))
    assert two.before(2) is None
    two.keep(1, left(7))
    assert value(one.before(2)) == 1
    assert value(two.before(2)) == 7
    assert Residual.of(tmp_path, "one", "of another").before(2) is None


def test_a_damaged_file_is_as_none_and_a_draft_is_not_a_file(tmp_path: Path) -> None:
    residual = Residual.of(tmp_path, "run", SHA256)
    residual.keep(1, left(1))
    (residual.folder / ".draft-2").write_bytes(b"cut off by a crash")
    assert value(residual.before(2)) == 1
    whole = (residual.folder / "1.npy").read_bytes()
    for damaged in (b"", whole[:-3], b"nonsense", whole[:40]):
        (residual.folder / "1.npy").write_bytes(damaged)
        assert residual.before(2) is None
    np.save(residual.folder / "1.npy", np.zeros((3, 3)))
    assert residual.before(2) is None


def test_what_counts_is_of_just_that_round(tmp_path: Path) -> None:
    residual = Residual.of(tmp_path, "run", SHA256)
    assert residual.counted(0) is None
    for number in range(1, 6):
        residual.keep(number, left(number), counted=min(number - 1, 2))
    assert value(residual.counted(2)) == 2
    (residual.folder / "2.npy").write_bytes(b"nonsense")
    for number in (2, 3, 6):
        with pytest.raises(Refused) as refused:
            residual.counted(number)
        assert refused.value.reason is Reason.NO_STATE


def test_what_goes_with_something_kept_in_local_stays(tmp_path: Path) -> None:
    first, last = (Residual.of(tmp_path, run, SHA256) for run in ("run 0", "run 4"))
    LocalState.of(tmp_path, "run 0", SHA256).keep(1, {"weight": left(0)})
    for number in range(5):
        residual = Residual.of(tmp_path, f"run {number}", SHA256)
        residual.keep(1, left(number))
        os.utime(residual.folder, ns=(number, number))
    assert value(first.counted(1)) == 0
    shutil.rmtree(tmp_path / "local")
    last.keep(2, left(5))
    assert first.before(2) is None


def test_they_are_the_hospital_s_alone_and_of_three_runs(tmp_path: Path) -> None:
    for number in range(5):
        residual = Residual.of(tmp_path, f"run {number}", SHA256)
        residual.keep(1, left(number))
        os.utime(residual.folder, ns=(number, number))
    files = list((tmp_path / "residuals").rglob("*.npy"))
    assert len(files) == 3
    assert all(file.stat().st_mode & 0o077 == 0 for file in files)
    assert residual.before(2) is not None
