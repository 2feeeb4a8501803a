"""The patients' budget: what is charged, what is refused, and what remains."""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any
from unittest.mock import patch

import dp_accounting
import pytest
from dp_accounting.pld import PLDAccountant
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client_app import ledger_file
from client_app.ledger import MOST_REMAINING, Budget, Ledger, LedgerError
from federation.messages import Lodged, Reason
from federation.privacy.accounting import Mechanism, epsilon
from tests.client_app.charging import COHORT, PRV, RDP, STEP, charge, charged, opened, refused


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "state" / "ledger.sqlite"
    Ledger.create(path, COHORT)
    return path


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    with Ledger.open(path, COHORT) as ledger:
        yield ledger


# --- charges -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("budget", "published"), [(RDP, 2.101), (PRV, 1.838)])
def test_rounds_compose_to_the_known_figure(
    ledger: Ledger, budget: Budget, published: float
) -> None:
    """σ = 1, q = 0.01, 1000 steps, δ = 1e-5: shared/privacy.md."""
    for round_ in range(1, 11):
        spent = charge(ledger, round_, Mechanism(1.0, 0.01, 100), budget=budget)
    assert spent.epsilon == pytest.approx(published, abs=1e-3)
    assert spent.run_epsilon == spent.epsilon
    assert (spent.budget, spent.delta) == (8.0, 1e-5)


def test_what_a_charge_says(ledger: Ledger, path: Path) -> None:
    tally = Mechanism(10.0, 1.0, 1)
    first = charge(ledger, 1, STEP, tally, audit_head="a" * 64)
    second = charge(ledger, 1, run="tuesday")
    one, two = ledger.charges()
    assert (one.position, one.run, one.round, one.request) == (1, "monday", 1, f"{1:064x}")
    assert (one.experiment, one.audit_head, one.delta) == ("e" * 64, "a" * 64, 1e-5)
    assert one.mechanisms == (STEP, tally)
    assert (one.epsilon, two.epsilon) == (first.epsilon, second.epsilon)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+00:00", one.time)
    assert (two.previous, two.run) == (one.hash, "tuesday")
    assert ledger.verify() == (2, two.hash)
    assert second.lodged == Lodged(2, two.hash)
    head = json.loads(path.with_name("ledger.head").read_text())
    assert head == {"charges": 2, "head": two.hash, "cohort": COHORT}


def test_runs_share_the_budget_and_are_told_apart(ledger: Ledger) -> None:
    charge(ledger, 1)
    spent = charge(ledger, 1, run="tuesday")
    assert spent.run_epsilon == pytest.approx(epsilon([STEP], 1e-5, "rdp"))
    assert spent.epsilon == pytest.approx(epsilon([STEP, STEP], 1e-5, "rdp"))
    free = ledger.spent("wednesday", RDP)
    assert (free.epsilon, free.run_epsilon) == (spent.epsilon, 0.0)
    assert free.lodged == spent.lodged
    assert ledger.verify()[0] == 2


def test_it_refuses_before_the_budget_would_be_passed(ledger: Ledger) -> None:
    first = charge(ledger, 1)
    both = epsilon([STEP, STEP], 1e-5, "rdp")
    little = replace(RDP, epsilon=both - 1e-9)
    refused(Reason.BUDGET_SPENT, lambda: charge(ledger, 2, budget=little))
    assert ledger.spent("monday", little).epsilon == first.epsilon
    assert charge(ledger, 2, budget=replace(RDP, epsilon=both)).epsilon == both
    refused(Reason.BUDGET_SPENT, lambda: charge(ledger, 3, budget=little))
    assert ledger.verify()[0] == 2


def test_it_refuses_before_a_runs_part_would_be_passed(ledger: Ledger) -> None:
    part = replace(RDP, most_epsilon_a_run=epsilon([STEP], 1e-5, "rdp"))
    charge(ledger, 1, budget=part)
    refused(Reason.BUDGET_SPENT, lambda: charge(ledger, 2, budget=part))
    charge(ledger, 1, budget=part, run="tuesday")


def test_what_no_accountant_can_bound_is_refused(ledger: Ledger) -> None:
    refused(Reason.BUDGET_SPENT, lambda: charge(ledger, 1, Mechanism(1e-3, 1.0, 10**6)))
    assert ledger.verify()[0] == 0


def test_a_request_that_costs_nothing_is_not_charged(ledger: Ledger) -> None:
    with pytest.raises(ValueError, match="nothing to charge"):
        ledger.charge(
            run="monday",
            round=1,
            request="0" * 64,
            experiment="e" * 64,
            mechanisms=[],
            budget=RDP,
            lodged=None,
            attempts=3,
        )


Asked = tuple[str, Mechanism]
ASKED = st.tuples(
    st.sampled_from(["monday", "tuesday"]),
    st.builds(
        Mechanism,
        noise_multiplier=st.sampled_from([0.8, 1.5, 4.0]),
        sampling_rate=st.sampled_from([0.02, 0.2]),
        steps=st.integers(1, 60),
    ),
)


@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(ASKED, min_size=1, max_size=5))
def test_the_budget_holds_whatever_is_asked(asked: list[Asked]) -> None:
    """Against Google's accountant, which works on privacy loss distributions."""
    budget = Budget(epsilon=2.0, delta=1e-5, accountant="prv")
    paid: list[Mechanism] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.sqlite"
        Ledger.create(path, COHORT)
        for round_, (run, mechanism) in enumerate(asked, start=1):
            true = google_epsilon([*paid, mechanism])
            with Ledger.open(path, COHORT) as ledger:
                try:
                    spent = charge(ledger, round_, mechanism, budget=budget, run=run)
                except LedgerError as error:
                    assert error.reason is Reason.BUDGET_SPENT
                    assert true > budget.epsilon - 0.05
                    continue
            paid.append(mechanism)
            assert true - 1e-3 <= spent.epsilon <= true + 0.05
            assert true <= budget.epsilon
        with Ledger.open(path, COHORT) as ledger:
            assert [m for c in ledger.charges() for m in c.mechanisms] == paid


def google_epsilon(mechanisms: list[Mechanism]) -> float:
    accountant = PLDAccountant(value_discretization_interval=1e-3)
    for m in mechanisms:
        sampled = dp_accounting.PoissonSampledDpEvent(
            m.sampling_rate, dp_accounting.GaussianDpEvent(m.noise_multiplier)
        )
        accountant.compose(sampled, m.steps)
    found: float = accountant.get_epsilon(1e-5)
    return found


# --- replays -------------------------------------------------------------------------------------


def test_a_run_only_goes_forward(ledger: Ledger) -> None:
    charge(ledger, 3)
    for other in ({"round_": 2}, {"round_": 2, "request": f"{3:064x}"}):
        refused(Reason.REPLAYED, lambda other=other: charge(ledger, **other))  # type: ignore[misc]
    refused(Reason.REPLAYED, lambda: charge(ledger, 3, request="f" * 64))
    charge(ledger, 2, run="tuesday")
    charge(ledger, 7)
    refused(Reason.REPLAYED, lambda: charge(ledger, 3))
    assert [c.round for c in ledger.charges()] == [3, 2, 7]


def test_a_retry_is_charged_anew_and_not_for_ever(ledger: Ledger) -> None:
    spent = [charge(ledger, 1, attempts=3).epsilon for _ in range(3)]
    assert spent == [epsilon([STEP] * n, 1e-5, "rdp") for n in (1, 2, 3)]
    refused(Reason.REPLAYED, lambda: charge(ledger, 1, attempts=3))
    assert ledger.verify()[0] == 3
    charge(ledger, 2, attempts=1)
    refused(Reason.REPLAYED, lambda: charge(ledger, 2, attempts=1))


# --- how many remain -----------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [None, 1.5])
def test_as_many_remain_as_can_be_charged(ledger: Ledger, limit: float | None) -> None:
    budget = Budget(2.0, 1e-5, "rdp", most_epsilon_a_run=limit)
    charge(ledger, 1, Mechanism(3.0, 0.1, 10), budget=budget, run="tuesday")
    step = Mechanism(4.0, 0.2, 12)
    remaining = ledger.remaining([step], budget, "monday")
    assert remaining > 1
    for round_ in range(1, remaining + 1):
        charge(ledger, round_, step, budget=budget)
        left = ledger.remaining([step], budget, "monday") if round_ == 2 else None
        assert left in (None, remaining - round_)
    assert ledger.remaining([step], budget, "monday") == 0
    refused(Reason.BUDGET_SPENT, lambda: charge(ledger, remaining + 1, step, budget=budget))


def test_hardly_anything_can_be_charged_for_ever(ledger: Ledger) -> None:
    assert ledger.remaining([Mechanism(1000.0, 0.001, 1)], RDP) == MOST_REMAINING


# --- several at once ------------------------------------------------------------------------------


def test_two_processes_cannot_both_spend_the_last(tmp_path: Path) -> None:
    rounds, processes = 8, 3
    budget = replace(RDP, epsilon=2.0 * STEP.steps)
    for number in range(rounds):
        Ledger.create(tmp_path / f"{number}.sqlite", COHORT)
        charged(tmp_path / f"{number}.sqlite", 1)
    context = get_context("spawn")
    barrier = context.Barrier(processes)
    ours, theirs = context.Pipe(duplex=False)
    racers = [
        context.Process(target=race, args=(barrier, theirs, tmp_path, rounds, budget, f"run-{n}"))
        for n in range(processes)
    ]
    for racer in racers:
        racer.start()
    theirs.close()
    outcomes: dict[int, list[str]] = {}
    for _ in range(rounds * processes):
        assert ours.poll(120)
        number, outcome = ours.recv()
        outcomes.setdefault(number, []).append(outcome)
    for racer in racers:
        racer.join()
    for number in range(rounds):
        assert sorted(outcomes[number]) == ["budget_spent", "budget_spent", "paid"]
        assert opened(tmp_path / f"{number}.sqlite")[0] == 2
    assert sorted(outcomes) == list(range(rounds))


def race(barrier: Barrier, pipe: Any, folder: Path, rounds: int, budget: Budget, run: str) -> None:
    patch("client_app.ledger.epsilon", slow_epsilon).start()
    for number in range(rounds):
        with Ledger.open(folder / f"{number}.sqlite", COHORT) as ledger:
            barrier.wait(120)
            try:
                charge(ledger, 1, budget=budget, run=run)
                pipe.send((number, "paid"))
            except LedgerError as error:
                pipe.send((number, error.reason.value))


def slow_epsilon(history: Iterable[Mechanism], *_: object) -> float:
    """An accountant that takes as long as a real one, and nothing to import."""
    time.sleep(0.05)
    return 1.0 * sum(m.steps for m in history)


def test_a_ledger_that_another_holds_too_long_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_file, "_PATIENCE", 0.1)
    with Ledger.open(path, COHORT) as one, Ledger.open(path, COHORT) as two:
        with one._file.locked():
            refused(Reason.LEDGER_UNUSABLE, lambda: charge(two, 1), "another process")
            assert two.verify()[0] == 0
        charge(two, 1)
        assert one.verify()[0] == 1
