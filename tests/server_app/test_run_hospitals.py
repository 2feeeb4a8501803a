"""A run keeps the hospitals that it was started with, whoever comes or goes before it is resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from client_app import identity
from federation.schema import Experiment
from server_app import app, launch, membership
from server_app.control import Control
from server_app.exchange import TooFewHospitals
from server_app.home import Home
from server_app.state import Checkpoint, RunFolder
from tests.hospitals import Hospitals, content, hospitals
from tests.in_process import InProcessGrid
from tests.masked import CRASH, same
from tests.provisioned import send

CORRECTING = [{"name": "scaffold"}, {"name": "feddyn", "alpha": 0.5}]
TRAINING = {"local_steps": 2, "batch_size": 2, "optimizer": "sgd", "learning_rate": 0.05}


class Superlink:
    """Takes runs; the test conducts them."""

    def check(self) -> None: ...

    def start_run(self, bundle: bytes, config: dict[str, str]) -> int:
        return 1


@pytest.fixture
def three(tmp_path: Path) -> Hospitals:
    return hospitals(tmp_path, 3, patients=5)


def started(home: Home, of: Experiment, run: str) -> RunFolder:
    return launch.start(home, cast(Control, Superlink()), of, run).folder


def conduct(made: Hospitals, of: Experiment, folder: RunFolder) -> Checkpoint:
    """As the ServerApp does, at a start of its process."""
    connected = [name for name in made.sites if name in made.home.roster().names()]
    grid = InProcessGrid(made._node(name, of) for name in connected)
    app._conduct(grid, made.home, folder, of)
    done = folder.load()
    assert done is not None
    return done


def broken_off(made: Hospitals, of: Experiment, run: str) -> RunFolder:
    """A run that failed in its third round."""
    folder = started(made.home, of, run)

    def crashing(request: Any, records: Any, answer: Any) -> Any:
        return CRASH if request.round == 3 else answer(records)

    made.meddle.update(dict.fromkeys(made.sites, crashing))
    with pytest.raises(TooFewHospitals, match="the 2 rounds before it are kept"):
        conduct(made, of, folder)
    made.fresh()
    return folder


def experiment(strategy: dict[str, Any]) -> Experiment:
    options = {"strategy": strategy, "training": TRAINING, "evaluation": {"every": 1000}}
    return content(rounds=4, least=2, **options)


@pytest.mark.parametrize("strategy", CORRECTING, ids=lambda strategy: strategy["name"])
def test_who_is_admitted_meanwhile_waits_for_the_next_run(
    strategy: dict[str, Any], three: Hospitals, tmp_path: Path
) -> None:
    """c and h stay means over as many hospitals as they began with: the run ends with the same bits."""
    of = experiment(strategy)
    through = conduct(three, of, started(three.home, of, "through"))
    folder = broken_off(three, of, "broken")
    identity.create(tmp_path / "north", "north")
    membership.admit(three.home, send(tmp_path / "north", "north", tmp_path))
    assert "north" in three.home.roster().names()
    done = conduct(three, of, folder)
    same(done.model, through.model)
    same(done.strategy, through.strategy)
    assert {name for row in folder.metrics() for name in row["hospitals"]} == set(three.sites)
    assert "north" in started(three.home, of, "next").record()["hospitals"]


def test_who_is_removed_meanwhile_is_absent(three: Hospitals) -> None:
    """As one that stays away: N is what it was."""
    of = experiment({"name": "scaffold"})
    away = broken_off(three, of, "away")
    three.meddle["lake"] = lambda *_: CRASH
    expected = conduct(three, of, away)
    three.fresh()
    folder = broken_off(three, of, "removed")
    membership.remove(three.home, "lake")
    done = conduct(three, of, folder)
    same(done.model, expected.model)
    same(done.strategy, expected.strategy)
    assert folder.metrics()[-1]["hospitals"]["lake"]["reason"] == "absent"
