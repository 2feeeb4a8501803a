"""Sums of SCAFFOLD and FedDyn at the coordinator and at the hospitals: equal, or a round is refused."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client_app.backup import back_up, restore
from client_app.residual import Residual
from federation import archive, state_version
from federation.messages import Reason
from tests.control_variates import CHOICES, TRAINING, of, require_agreement, sha256
from tests.hospitals import MASKS, Hospitals, hospitals
from tests.masked import rows, same


@pytest.fixture(scope="module")
def _three(tmp_path_factory: pytest.TempPathFactory) -> Hospitals:
    return hospitals(tmp_path_factory.mktemp("three"), 3, patients=[5, 8, 6])


@pytest.fixture
def three(_three: Hospitals) -> Iterator[Hospitals]:
    with _three.lent() as made:
        yield made


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
    done = three.conduct(experiment, run, rounds=2)
    same(done.model, through.model)
    same(done.strategy, through.strategy)


# --- updates that are shortened -------------------------------------------------------------------

BOUND = 0.05  # a tenth of an update, and less
WHERE: dict[str, dict[str, Any]] = {
    "masks": {"secure_aggregation": MASKS, "largest_update_norm": BOUND},
    "policy": {},
}


@pytest.mark.parametrize(
    ("bits", "where"),
    [(8, "masks"), (4, "masks"), (None, "policy"), (8, "policy"), (4, "policy")],
)
@pytest.mark.parametrize("name", CHOICES)
def test_what_a_bound_cuts_away_no_side_counts(
    name: str, bits: int | None, where: str, three: Hospitals
) -> None:
    """Round after round, and through a restart after other runs."""
    codec = None if bits is None else {"quantise": {"name": "integers", "bits": bits}}
    experiment, run = of(name, codec=codec, **WHERE[where]), f"cut-{name}-{bits}-{where}"
    if where == "policy":
        site = three.sites["hill"]
        own = site.policy.model_copy(update={"largest_update_norm": BOUND})
        three.sites["hill"] = site.model_copy(update={"policy": own})
    three.conduct(experiment, run, rounds=3)
    other_runs(three)
    done = three.conduct(experiment, run, rounds=2)
    assert all(o["status"] == "ok" for o in rows(three, run)[-1]["hospitals"].values())
    require_agreement(three, done, experiment, run)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", CHOICES)
def test_what_comes_later_comes_at_a_smaller_rate(name: str, bits: int, three: Hospitals) -> None:
    """SCAFFOLD divides by K·η: a codec's error is counted at one round's and sent at another's."""
    experiment = of(
        name,
        codec={"quantise": {"name": "integers", "bits": bits}},
        training=TRAINING | {"learning_rate_decay": 0.5},
    )
    done = three.conduct(experiment, f"decay-{name}-{bits}", rounds=4)
    require_agreement(three, done, experiment, f"decay-{name}-{bits}")
