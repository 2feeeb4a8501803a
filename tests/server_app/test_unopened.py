"""A sum that waits to be opened: whole on the disk or not there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from federation.messages import Reason, Request
from federation.secure_aggregation.masks import Occasion
from server_app.aggregation.unopened import Unopened
from server_app.state import RunFolder
from tests.hospitals import content

REQUEST = Request("run", 3, evaluate=True, train=True)
SUM = Unopened(
    occasion=Occasion("run", 3, 2, "0" * 64),
    training=True,
    adverts=b"\0\n\xff adverts",
    sharers=("a", "b", "c", "d"),
    survivors=("a", "b", "d"),
    left_out={"c": Reason.LATE, "e": Reason.ABSENT},
    next_adverts=b"",
    bits=11,
    update=np.array([0, 10, 2**32 - 1], np.uint32),  # a byte of it is a line's end
    figures=np.array([2**64 - 1, 5], np.uint64),
)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    of = content()
    return RunFolder.create(tmp_path / "run", of, {"experiment_sha256": of.sha256()})


def equal(one: Unopened | None, other: Unopened) -> None:
    assert one is not None
    np.testing.assert_array_equal(one.update, other.update)
    np.testing.assert_array_equal(one.figures, other.figures)
    nothing = {"update": np.empty(0), "figures": np.empty(0)}
    assert str(replace(one, **nothing)) == str(replace(other, **nothing))  # type: ignore[arg-type]
    assert (one.update.flags.writeable, one.figures.flags.writeable) == (True, True)


def test_it_comes_back_as_it_was(folder: RunFolder) -> None:
    assert Unopened.load(folder, REQUEST) is None
    SUM.save(folder)
    equal(Unopened.load(folder, REQUEST), SUM)


@pytest.mark.parametrize("changes", [{"round": 2}, {"round": 4}, {"train": False}])
def test_it_is_for_its_request_alone(changes: dict[str, int], folder: RunFolder) -> None:
    SUM.save(folder)
    assert Unopened.load(folder, replace(REQUEST, **changes)) is None  # type: ignore[arg-type]


def test_each_byte_of_it_counts(folder: RunFolder) -> None:
    SUM.save(folder)
    file = folder.path / "sum.bin"
    whole = file.read_bytes()
    for at in range(len(whole)):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        assert Unopened.load(folder, REQUEST) is None
        file.write_bytes(whole[:at])
        assert Unopened.load(folder, REQUEST) is None


def test_a_sum_is_dropped_only_while_nobody_can_have_opened_it(folder: RunFolder) -> None:
    SUM.save(folder)
    Unopened.drop(folder)
    assert Unopened.load(folder, REQUEST) is None
    Unopened.drop(folder)
    SUM.save(folder)
    Unopened.opening(folder)
    Unopened.opening(folder)
    Unopened.drop(folder)
    equal(Unopened.load(folder, REQUEST), SUM)


def test_the_next_round_s_takes_its_place(folder: RunFolder) -> None:
    SUM.save(folder)
    Unopened.opening(folder)
    following = replace(SUM, occasion=replace(SUM.occasion, round=4), bits=7)
    following.save(folder)
    assert Unopened.load(folder, REQUEST) is None
    equal(Unopened.load(folder, replace(REQUEST, round=4)), following)
    assert {file.name for file in folder.path.glob("*.bin")} == {"sum.bin"}
