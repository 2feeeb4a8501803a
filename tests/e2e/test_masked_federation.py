"""Sums under masks between real processes: five hospitals, one of which is killed at each step."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from federation.processes import wait_until
from tests.e2e.federation import TINY, Real, federation, hospital, kill

pytestmark = pytest.mark.e2e

STEADY = ("east", "hill", "lake", "north")
# who is killed with kill -9, all processes at once, as soon as its audit log has this
VICTIMS = {
    "keys": ("request", "advertise"),
    "shares": ("letter", "advertise"),
    "work": ("request", "work"),
    "signature": ("answer", "work"),
    "opening": ("letter", "sign"),
}
MASKED = [
    *TINY, "secure_aggregation=masks", "codec=int8", "rounds=2", "participation.least=4",
    "participation.attempts=1", "participation.deadline=120",
]  # fmt: skip


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Real]:
    folder = tmp_path_factory.mktemp("masked")
    with federation(folder, (*STEADY, *VICTIMS)) as running:
        everybody = {*STEADY, *VICTIMS}
        assert wait_until(lambda: running.online() == everybody, seconds=240), running.online()
        yield running


def rows(real: Real, run: str, kind: str) -> list[dict[str, Any]]:
    lines = (real.home.runs / run / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == kind]


def logged(real: Real, name: str, event: str, phase: str) -> bool:
    log = real.sites[name] / "state" / "audit.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []
    wanted = (f'"event":"{event}"', f'"phase":"{phase}"')
    return any(all(word in line for word in wanted) for line in lines)


def test_all_are_in_the_sum(real: Real) -> None:
    """Nobody drops out of nine; it also has everybody's processes warm for what follows."""
    done = real.coordinator("run", "run=all", *MASKED, "participation.deadline=240")
    assert done.returncode == 0, done.stdout + done.stderr
    for row in rows(real, "all", "round"):
        assert row["summed"]["hospitals"] == sorted((*STEADY, *VICTIMS))
        assert row["summed"]["patients"] > 5
        assert math.isfinite(row["summed"]["loss"])
        for told in row["hospitals"].values():
            assert told["status"] == "ok"
            assert not {"loss", "patients", "examples", "update_norm"} & told.keys()
    evaluated = rows(real, "all", "evaluation")[-1]
    assert "auroc" in evaluated["overall"] or evaluated["overall"]
    for name in STEADY:
        hospital("audit", "verify", "--site", str(real.sites[name] / "site.yaml"))


@pytest.mark.parametrize("victim", VICTIMS)
def test_a_hospital_killed_at_a_step_costs_its_own_update_alone(real: Real, victim: str) -> None:
    event, phase = VICTIMS[victim]
    already = real.sites[victim] / "state" / "audit.jsonl"
    before = len(already.read_text().splitlines())
    chosen = f"participation.hospitals=[{','.join((*STEADY, victim))}]"
    begun = real.begin("run", f"run=without-{victim}", *MASKED, chosen)

    def reached() -> bool:
        lines = already.read_text().splitlines()[before:]
        return any(f'"event":"{event}"' in x and f'"phase":"{phase}"' in x for x in lines)

    deadline = time.monotonic() + 120
    while not reached():
        assert time.monotonic() < deadline and begun.poll() is None, begun.communicate()[0]
        time.sleep(0.002)
    kill(str(real.sites[victim]))
    output, _ = begun.communicate(timeout=240)
    assert begun.returncode == 0, output
    first, second = rows(real, f"without-{victim}", "round")
    assert set(STEADY) <= set(first["summed"]["hospitals"])
    assert second["summed"]["hospitals"] == sorted(STEADY)
    if victim in ("keys", "shares", "work"):
        assert first["summed"]["hospitals"] == sorted(STEADY)
    model = safetensors.numpy.load_file(real.home.runs / f"without-{victim}" / "model.safetensors")
    assert all(np.isfinite(a).all() for a in model.values())
    # masks that did not come off would leave numbers of the order of the modulus
    assert second["norm"] < 10
