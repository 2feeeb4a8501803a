"""The model that a hospital holds: the last one that came, or none."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from client_app.held_model import HeldModel
from client_app.policy import Refused
from federation import wire
from federation.codec import down
from federation.messages import Arrays, Reason, Request, Shape, WireError

ONE: Arrays = {"w": np.arange(40, dtype=np.float32), "n": np.array(3, np.int64)}
TWO: Arrays = {"w": np.arange(40, dtype=np.float32) * 1.5, "n": np.array(4, np.int64)}
SHAPE = Shape.of(ONE)


def asked(round_: int, base: int | None = None) -> Request:
    return Request("run", round_, evaluate=False, train=True, base=base)


def refused(held: HeldModel, request: Request, blob: bytes) -> Reason:
    with pytest.raises((Refused, WireError)) as error:
        held.whole(request, blob, SHAPE)
    return error.value.reason  # type: ignore[no-any-return]


@pytest.fixture
def held(tmp_path: Path) -> HeldModel:
    return HeldModel.of(tmp_path, "run")


def test_a_difference_makes_the_model_of_the_one_before(held: HeldModel) -> None:
    whole = wire.pack(ONE)
    assert held.whole(asked(1), whole, SHAPE)[1] == whole
    blob, made, _ = down.difference(ONE, TWO, None, bits=8, level=3)
    assert held.whole(asked(2, base=0), blob, SHAPE)[1] == wire.pack(made)
    # which is held now, so that the same difference does not fit once more
    assert refused(held, asked(2, base=0), blob) is Reason.NO_MODEL
    assert held.whole(asked(2), wire.pack(made), SHAPE)[1] == wire.pack(made)


def test_without_the_right_model_there_is_none(held: HeldModel, tmp_path: Path) -> None:
    blob, _, _ = down.difference(ONE, TWO, None, bits=8, level=3)
    assert refused(held, asked(2, base=0), blob) is Reason.NO_MODEL
    held.whole(asked(1), wire.pack(TWO), SHAPE)  # another model of the same round
    assert refused(held, asked(2, base=0), blob) is Reason.NO_MODEL
    held.whole(asked(1), wire.pack(ONE), SHAPE)
    assert refused(held, asked(3, base=1), blob) is Reason.NO_MODEL
    assert refused(HeldModel.of(tmp_path, "other"), asked(2, base=0), blob) is Reason.NO_MODEL


def test_a_damaged_file_is_none(held: HeldModel) -> None:
    blob, _, _ = down.difference(ONE, TWO, None, bits=8, level=3)
    held.whole(asked(1), wire.pack(ONE), SHAPE)
    whole = held.path.read_bytes()
    for at in (0, 33, 41, len(whole) - 1):
        held.path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert refused(held, asked(2, base=0), blob) is Reason.NO_MODEL
        held.path.write_bytes(whole[:at])
        assert refused(held, asked(2, base=0), blob) is Reason.NO_MODEL


def test_a_bad_difference_leaves_the_held_model(held: HeldModel) -> None:
    held.whole(asked(1), wire.pack(ONE), SHAPE)
    blob, made, _ = down.difference(ONE, TWO, None, bits=8, level=3)
    assert refused(held, asked(2, base=0), blob[:-3]) is Reason.MALFORMED
    assert held.whole(asked(2, base=0), blob, SHAPE)[1] == wire.pack(made)


def test_a_blob_that_is_no_model_is_not_held(held: HeldModel) -> None:
    """Else the next difference would fail for a reason that nobody understands."""
    held.whole(asked(1), wire.pack(ONE), SHAPE)
    assert refused(held, asked(1), b"nonsense") is Reason.MALFORMED
    blob, made, _ = down.difference(ONE, TWO, None, bits=8, level=3)
    assert held.whole(asked(2, base=0), blob, SHAPE)[1] == wire.pack(made)


def test_three_runs_are_held_and_nobody_else_may_read_them(tmp_path: Path) -> None:
    for number in range(5):
        one = HeldModel.of(tmp_path, f"run {number}")
        one.whole(asked(1), wire.pack(ONE), SHAPE)
        os.utime(one.path, ns=(number, number))
    files = sorted((tmp_path / "models").iterdir())
    assert len(files) == 3
    assert all(file.stat().st_mode & 0o077 == 0 for file in files)
