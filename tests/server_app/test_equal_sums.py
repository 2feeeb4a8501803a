"""Sums of SCAFFOLD and FedDyn at the coordinator and at the hospitals: equal, or a round is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from client_app.backup import back_up, restore
from client_app.residual import Residual
from federation import archive, state_version
from federation.messages import Reason
from tests.control_variates import CHOICES, of, require_agreement, sha256
from tests.hospitals import Hospitals, hospitals
from tests.masked import rows, same


@pytest.fixture(scope="module")
def _three(tmp_path_factory: pytest.TempPathFactory) -> Hospitals:
    return hospitals(tmp_path_factory.mktemp("three"), 3, patients=[5, 8, 6])


@pytest.fixture
def three(_three: Hospitals) -> Hospitals:
    return _three.fresh()


def other_runs(made: Hospitals) -> None:
    """What four later runs leave at each hospital."""
    for site in made.sites.values():
        for number in range(4):
            Residual.of(site.state, f"other {number}", "").keep(1, np.zeros(9, np.float32))


# --- what the codec left over ---------------------------------------------------------------------


@pytest.mark.parametrize("name", CHOICES)
def test_a_run_goes_on_after_others(name: str, three: Hospitals) -> None:
    experiment, run = of(name), f"goes-on-{name}"
    through = three.conduct(experiment, f"through-{name}", rounds=4)
    three.conduct(experiment, run, rounds=2)
    other_runs(three)
    done = three.conduct(experiment, run, rounds=2)
    same(done.model, through.model)
    same(done.strategy, through.strategy)
    require_agreement(three, done, experiment, run)


@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_a_hospital_that_lost_it_says_so_and_stays_out(damage: str, three: Hospitals) -> None:
    """What it lost of its updates is in its own sum alone, and would stay so for good."""
    experiment, run = of("scaffold", least=2), f"left-{damage}"
    three.conduct(experiment, run, rounds=2)
    residual = Residual.of(three.sites["lake"].state, run, sha256(three, run))
    if damage == "gone":
        shutil.rmtree(residual.folder)
    else:
        newest = residual.folder / "2.npy"
        newest.write_bytes(newest.read_bytes()[:-3])
    done = three.conduct(experiment, run, rounds=1)
    last = rows(three, run)[-1]["hospitals"]
    assert {h: row["reason"] for h, row in last.items()} == {
        "east": None, "hill": None, "lake": Reason.NO_STATE.value,
    }  # fmt: skip
    assert int(done.strategy["counted/lake"]) == 2


def test_a_hospital_goes_on_from_its_backup(
    tmp_path: Path, three: Hospitals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "_SCRYPT", {"n": 2, "r": 8, "p": 1})
    experiment, run = of("scaffold"), "moved"
    through = three.conduct(experiment, "stayed", rounds=4)
    three.conduct(experiment, run, rounds=2)
    site = three.sites["lake"]
    state_version.settle(site.state, "hospital")
    back_up(site, tmp_path / "backup", "words of a test", ("local",))
    moved = site.model_copy(update={"state": tmp_path / "state"})
    restore(moved, tmp_path / "backup", "words of a test")
    three.sites["lake"] = moved
    try:
        done = three.conduct(experiment, run, rounds=2)
    finally:
        three.sites["lake"] = site
    same(done.model, through.model)
    same(done.strategy, through.strategy)
