"""Patient-level privacy with real processes: charged before, counted over runs, refused when spent."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from client_app.audit import Audit
from federation.privacy.accounting import Mechanism, epsilon
from federation.processes import wait_until
from server_app.state import RunFolder
from tests.e2e.federation import TINY, Real, federation, hospital, kill
from tests.e2e.test_federation import last_round

pytestmark = pytest.mark.e2e

BUDGET, DELTA = 3.0, 1e-5
NOISE, RATE, STEPS = 4.0, 0.5, 2
PRIVATE = [
    *TINY, "privacy=patient_dp", f"privacy.noise_multiplier={NOISE}", "privacy.epsilon=null",
    f"privacy.sampling_rate={RATE}", "privacy.metrics=noisy", "model.norm=group",
]  # fmt: skip
EVALUATION = Mechanism(10.0, 1.0, 1)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Real]:
    promise = {"patients": 12, "epsilon": BUDGET, "delta": DELTA, "answer_every": 1.0}
    with federation(tmp_path_factory.mktemp("private"), privacy=promise) as running:
        assert wait_until(lambda: running.online() == {"north", "east"}, seconds=90)
        yield running


def ledger(real: Real, name: str) -> dict[str, object]:
    shown = hospital("ledger", "show", "--json", "--site", str(real.sites[name] / "site.yaml"))
    content: dict[str, object] = json.loads(shown.stdout)
    return content


def events(real: Real, name: str) -> Counter[str]:
    log = Audit(real.sites[name] / "state" / "audit.jsonl")
    log.verify()
    return Counter(entry.event for entry in log.entries())


def spent(real: Real, run: str, name: str) -> dict[str, float]:
    rows = [r for r in RunFolder(real.home.runs / run).metrics() if r["kind"] == "round"]
    found: dict[str, float] = rows[-1]["hospitals"][name]["spent"]
    return found


def test_a_private_run_is_charged_at_each_hospital(real: Real) -> None:
    done = real.coordinator("run", *PRIVATE, "rounds=3", "run=first")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = RunFolder(real.home.runs / "first").metrics()
    exact = {"examples", "loss", "seconds"}
    for row in rows:
        for told in row["hospitals"].values():
            assert told["status"] == "ok", row
            assert not exact & told.keys()
    three_rounds = [Mechanism(NOISE, RATE, 3 * STEPS), EVALUATION, EVALUATION, EVALUATION]
    for name in real.sites:
        assert spent(real, "first", name)["epsilon"] == pytest.approx(
            epsilon(three_rounds, DELTA), abs=1e-9
        )
        hospital("ledger", "verify", "--site", str(real.sites[name] / "site.yaml"))
        hospital("audit", "verify", "--site", str(real.sites[name] / "site.yaml"))
        # Three rounds and the last evaluation.
        assert events(real, name) == Counter(started=1, request=4, charge=4, answer=4)
    assert (real.home.runs / "first" / "report.html").stat().st_size > 10_000


def test_a_killed_hospital_never_sends_more_than_was_charged(real: Real) -> None:
    """kill -9 of what runs the ClientApp, in the middle; the run goes on, and the books agree."""
    before = events(real, "north")
    following = real.begin(
        "run", *PRIVATE, "rounds=4", "participation.deadline=400", "run=broken"
    )  # fmt: skip
    assert wait_until(lambda: last_round(real.home, "broken") >= 1, seconds=120)
    time.sleep(0.7)
    kill("client_app.superexec", str(real.sites["north"]))
    out, _ = following.communicate(timeout=500)
    assert following.returncode == 0, out
    now = events(real, "north") - before
    assert now["charge"] >= now["answer"] >= 5
    for name in real.sites:
        hospital("ledger", "verify", "--site", str(real.sites[name] / "site.yaml"))
    assert spent(real, "broken", "north")["epsilon"] > spent(real, "first", "north")["epsilon"]


def test_when_the_budget_is_spent_the_run_ends_and_says_so(real: Real) -> None:
    done = real.coordinator("run", *PRIVATE, "rounds=60", "run=too-much")
    assert done.returncode == 1
    assert "budget_spent" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    kept = RunFolder(real.home.runs / "too-much")
    assert kept.status()["state"] == "failed"
    assert last_round(real.home, "too-much") >= 1
    for name in real.sites:
        assert spent(real, "too-much", name)["epsilon"] <= BUDGET
        assert events(real, name)["refusal"] >= 1
    again = real.coordinator("run", *PRIVATE, "rounds=1", "run=another")
    assert again.returncode == 1
    assert "budget_spent" in again.stderr


def test_an_exact_run_is_refused_beside_a_budget(real: Real) -> None:
    done = real.coordinator("run", *TINY, "rounds=1", "run=exact")
    assert done.returncode == 1
    assert "north: privacy_required" in done.stderr
