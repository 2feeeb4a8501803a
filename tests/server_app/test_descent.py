"""The model on its way down, to real ClientApps: what changed, to who holds the last one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import RecordDict

from federation import wire
from federation.messages import Request
from federation.schema import Codec, Component
from server_app.descent import Descent
from server_app.state import Checkpoint
from tests.hospitals import MASKS, Hospitals, content, hospitals, train_quickly
from tests.masked import rows, same


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Hospitals:
    return hospitals(tmp_path_factory.mktemp("three"), 3, patients=6)


@pytest.fixture(autouse=True)
def trained(three: Hospitals, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    three.fresh()
    return train_quickly(monkeypatch)


def held(made: Hospitals, name: str) -> bytes:
    """The model that a hospital has on its disk, of its newest run."""
    folder = made.sites[name].state / "models"
    newest = max(folder.iterdir(), key=lambda file: file.stat().st_mtime_ns)
    return newest.read_bytes()[32 + 8 :]


def bytes_down(made: Hospitals, run: str) -> list[dict[str, int]]:
    return [
        {name: row["bytes_down"] for name, row in one["hospitals"].items()}
        for one in rows(made, run)
        if one["kind"] == "round"
    ]


@pytest.mark.parametrize("secure", [None, MASKS])
def test_differences_go_down_and_all_hold_one_model(
    secure: dict[str, Any] | None, three: Hospitals
) -> None:
    of = content(rounds=4, evaluation={"every": 1000}, secure_aggregation=secure)
    run = "masked" if secure else "plain"
    folder, conductor, done = three.conductor(of, run)
    for _ in range(4):
        sent = wire.pack(done.model)
        made = conductor.round(done)
        folder.save(made)
        for name in three.sites:
            assert held(three, name) == sent  # bit for bit the coordinator's
        done = made
    first, *later = bytes_down(three, run)
    for row in later:
        for name, size in row.items():
            assert size < 0.5 * first[name]


def test_who_lost_its_model_gets_the_whole_one_in_the_same_round(three: Hospitals) -> None:
    of = content(rounds=3, evaluation={"every": 1000})
    undisturbed = three.conduct(of, "whole", rounds=3)

    def lose(request: Request, records: RecordDict, answer: Any) -> Any:
        if request.round == 2 and request.base is not None:
            shutil.rmtree(three.sites["hill"].state / "models")
        return answer(records)

    three.meddle["hill"] = lose
    same(three.conduct(of, "lost", rounds=3).model, undisturbed.model)
    _, second, third = [row for row in rows(three, "lost") if row["kind"] == "round"]
    assert second["hospitals"]["hill"]["status"] == "ok"
    assert second["hospitals"]["hill"]["attempts"] == 2
    small, both = (second["hospitals"][name]["bytes_down"] for name in ("east", "hill"))
    whole = bytes_down(three, "lost")[0]["hill"]
    assert both == pytest.approx(small + whole, abs=200)
    assert third["hospitals"]["hill"]["bytes_down"] < 0.5 * whole


@pytest.mark.parametrize("damage", ["flipped", "cut off", "older"])
def test_a_held_model_that_is_not_right_is_not_believed(damage: str, three: Hospitals) -> None:
    of = content(rounds=3, evaluation={"every": 1000})
    undisturbed = three.conduct(of, f"sound-{damage}", rounds=3)
    folder, conductor, done = three.conductor(of, f"damaged-{damage}")
    older = b""
    for number in range(3):
        if number:
            files = (three.sites["lake"].state / "models").iterdir()
            file = max(files, key=lambda one: one.stat().st_mtime_ns)
            before = file.read_bytes()
            file.write_bytes(
                {
                    "flipped": before[:-1] + bytes([before[-1] ^ 1]),
                    "cut off": before[:-7],
                    "older": older or before,
                }[damage]
            )
            older = before
        done = conductor.round(done)
        folder.save(done)
    same(done.model, undisturbed.model)


def test_a_new_coordinator_sends_whole_models_and_goes_on(three: Hospitals) -> None:
    of = content(rounds=4, evaluation={"every": 1000})
    undisturbed = three.conduct(of, "calm", rounds=4)
    three.conduct(of, "restart", rounds=2)
    done = three.conduct(of, "restart", rounds=2)  # a new Descent, that knows of nothing
    same(done.model, undisturbed.model)
    first, second, third, fourth = (row["east"] for row in bytes_down(three, "restart"))
    assert third == pytest.approx(first, abs=200)
    assert max(second, fourth) < 0.5 * first


def test_down_full_sends_whole_models(three: Hospitals) -> None:
    codec = {"quantise": {"name": "integers", "bits": 8}, "down": "full"}
    of = content(rounds=2, evaluation={"every": 1000}, codec=codec)
    three.conduct(of, "full", rounds=2)
    first, second = bytes_down(three, "full")
    assert first == second
    assert not any(request.base is not None for _, request, _ in three.asked)


# --- without hospitals ----------------------------------------------------------------------------

CODEC = Codec(quantise=Component.model_validate({"name": "integers", "bits": 8}))


def checkpoint(round_: int, value: float, **codec: Any) -> Checkpoint:
    model = {"w": np.full(5000, value, np.float32) + np.arange(5000, dtype=np.float32) / 7}
    return Checkpoint(round_, model, {}, codec)


def asking(*names: str) -> dict[str, Request]:
    return dict.fromkeys(names, Request("run", 3, evaluate=False, train=True))


def test_only_who_has_the_last_model_gets_a_difference() -> None:
    descent = Descent(CODEC)
    one, two = checkpoint(1, 0.0), checkpoint(2, 0.25)
    descent.delivered("late", 0)
    descent.delivered("east", 1)
    settled = descent.settle(one, two)
    parcels = descent.parcels(asking("east", "late", "new"), settled)
    assert parcels["east"].request.base == 1
    assert parcels["east"].instead == parcels["late"]
    for name in ("late", "new"):
        assert parcels[name].request.base is None
        assert parcels[name].blob == wire.pack(settled.model)
    # a difference to another model than the one asked about is not sent
    assert descent.parcels(asking("east"), one)["east"].request.base is None


def test_what_a_difference_lacks_is_in_the_checkpoint_and_goes_with_the_next(
    tmp_path: Path,
) -> None:
    """Over many rounds the model does not drift from what was made: its error stays one step's."""
    descent = Descent(CODEC)
    source = np.random.default_rng(1)
    done = checkpoint(0, 0.0)
    wanted = done.model["w"].astype(np.float64)
    for number in range(1, 30):
        step = source.normal(0, 0.01, 5000)
        wanted += step
        made = Checkpoint(number, {"w": (done.model["w"] + step).astype("f4")}, {})
        done = descent.settle(done, made)
    assert np.abs(done.model["w"] - wanted).max() < 0.01
    without = Descent(None)
    assert without.settle(done, made) is made
