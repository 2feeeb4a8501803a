"""A suspended hospital stays on the roster and is not asked, from a run's next round on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from federation.messages import Phase
from federation.schema import ConfigError
from server_app import launch, membership
from server_app.suspensions import Suspensions
from tests.hospitals import Hospitals, content, hospitals, train_quickly
from tests.masked import masked, rows


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Hospitals:
    return hospitals(tmp_path_factory.mktemp("four"), 4, patients=6)


@pytest.fixture
def four(made: Hospitals, monkeypatch: pytest.MonkeyPatch) -> Hospitals:
    train_quickly(monkeypatch)
    made.home.suspensions.path.unlink(missing_ok=True)
    return made.fresh()


@pytest.mark.parametrize("secret", [False, True], ids=["plain", "masks"])
def test_a_run_under_way_goes_on_without_it(four: Hospitals, secret: bool) -> None:
    of = masked(rounds=3) if secret else content(rounds=3)
    run = f"goes-on-{secret}"
    folder, conductor, done = four.conductor(of, run)
    exchange = conductor.aggregation.courier.exchange  # type: ignore[attr-defined]
    exchange.suspensions = four.home.suspensions
    for number in range(3):
        four.asked.clear()
        if number == 1:
            membership.suspend(four.home, "hill", "scanner")
        if number == 2:
            membership.reinstate(four.home, "hill")
        done = conductor.round(done)
        folder.save(done)
        assert ("hill" in {name for name, *_ in four.asked}) == (number != 1)
    told = [row["hospitals"]["hill"] for row in rows(four, run) if row["kind"] == "round"]
    assert [row["reason"] for row in told] == [None, "suspended", None]
    assert "hill" in four.home.roster().names()


def test_nobody_is_put_out_between_two_steps_of_a_sum(four: Hospitals) -> None:
    of = masked(rounds=1)
    _, conductor, done = four.conductor(of, "steps")
    conductor.aggregation.courier.exchange.suspensions = four.home.suspensions  # type: ignore[attr-defined]

    def suspending(request: Any, records: Any, answer: Any) -> Any:
        if request.phase is Phase.WORK and not four.home.suspensions.all():
            membership.suspend(four.home, "hill", "")
        return answer(records)

    four.meddle["hill"] = suspending
    conductor.round(done)
    steps = [request.phase for name, request, _ in four.asked if name == "hill"]
    assert steps[-1] is Phase.OPEN
    assert rows(four, "steps")[-1]["summed"]["hospitals"] == sorted(four.sites)


def test_a_new_run_neither_counts_nor_names_it(four: Hospitals) -> None:
    of = content(least=4)
    launch.check_hospitals(four.home, of)
    membership.suspend(four.home, "hill", "")
    with pytest.raises(ConfigError, match="3 hospitals that are not suspended"):
        launch.check_hospitals(four.home, of)
    with pytest.raises(ConfigError, match="coordinator reinstate hill"):
        launch.check_hospitals(four.home, content(least=2, hospitals=["hill", "east"]))


def test_wrong_use_is_said(tmp_path: Path) -> None:
    file = Suspensions(tmp_path / "suspended.json")
    file.add("north", "why")
    with pytest.raises(ConfigError, match="suspended already"):
        file.add("north", "again")
    assert file.all()["north"].reason == "why"
    with pytest.raises(ConfigError, match="east is not suspended"):
        file.lift("east")
    file.path.write_text("{")
    with pytest.raises(ConfigError, match="nobody can tell who is suspended"):
        file.all()


def test_where_nobody_can_tell_nobody_is_asked(four: Hospitals) -> None:
    four.home.suspensions.path.write_text("[]")
    _, conductor, done = four.conductor(content(rounds=1), "damaged")
    conductor.aggregation.courier.exchange.suspensions = four.home.suspensions  # type: ignore[attr-defined]
    with pytest.raises(ConfigError):
        conductor.round(done)
    assert not four.asked
