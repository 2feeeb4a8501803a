"""Masks over updates that have patient-level privacy."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from client_app.imaging.pseudonym import load_key
from client_app.ledger import Ledger, cohort_id
from federation import wire
from federation.messages import Phase, Request
from server_app.exchange import TooFewHospitals
from tests.hospitals import SMALL, Hospitals, hospitals
from tests.masked import crashing, kept, masked, rows, same

PRIVATE: dict[str, Any] = {
    "noise_multiplier": 1.0, "sampling_rate": 0.5, "metrics": "noisy", "metrics_noise_multiplier": 2.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def _private(tmp_path_factory: pytest.TempPathFactory) -> Hospitals:
    return hospitals(
        tmp_path_factory.mktemp("private"),
        4,
        patients=6,
        privacy=[{"patients": 20 * n, "epsilon": 900.0, "answer_every": 0} for n in (1, 2, 3, 9)],
    )


@pytest.fixture
def private(_private: Hospitals) -> Hospitals:
    return _private.fresh()


def charges(made: Hospitals, run: str) -> Counter[str]:
    counted: Counter[str] = Counter()
    for name, site in made.sites.items():
        key = load_key(site.state / "pseudonym.key")
        with Ledger.open(site.state / "ledger.sqlite", cohort_id(key, name)) as ledger:
            counted[name] = sum(charge.run == run for charge in ledger.charges())
    return counted


def test_masks_codec_and_patients_privacy_go_together(private: Hospitals) -> None:
    """Also a round whose largest hospital drops out at first, so that all weigh more in the second
    attempt: each is charged once, for noise that is drawn once."""
    of = masked(
        model=SMALL | {"norm": "group"}, weighting="examples", rounds=2, privacy=PRIVATE, least=4
    )
    private.meddle["north"] = crashing(Phase.SHARE)
    with pytest.raises(TooFewHospitals):
        private.conduct(of.model_copy(), "private", rounds=1)
    assert charges(private, "private") == Counter()

    few = of.model_copy(update={"participation": of.participation.model_copy(update={"least": 3})})
    private.meddle["north"] = crashing(Phase.ADVERTISE)
    private.meddle["lake"] = crashing(Phase.SIGN)
    with pytest.raises(TooFewHospitals):  # the sum of three, which two signed
        private.conduct(few, "twice", rounds=1)
    assert charges(private, "twice") == Counter(east=1, hill=1, lake=1)
    noised = {name: kept(private, name, few)[0] for name in ("east", "hill", "lake")}
    private.meddle.clear()
    private.conduct(few, "twice", rounds=1)
    assert charges(private, "twice") == Counter(east=1, hill=1, lake=1, north=1)
    for name, update in noised.items():
        same(kept(private, name, few)[0], update)

    row = next(row for row in rows(private, "twice") if row["kind"] == "round")
    assert row["summed"] == {"hospitals": ["east", "hill", "lake", "north"], "patients": 300}
    assert all(one["spent"]["charges"] for one in row["hospitals"].values())
    measured = next(row for row in rows(private, "twice") if row["kind"] == "evaluation")
    assert measured["summed_over"] == ["east", "hill", "lake", "north"]


def test_noisy_tallies_are_summed_with_their_noise(private: Hospitals) -> None:
    of = masked(model=SMALL | {"norm": "group"}, rounds=1, privacy=PRIVATE)
    folder, conductor, start = private.conductor(of, "tallies")
    request = Request(folder.name, 1, evaluate=True, train=True)
    gathered = conductor.aggregation.gather(conductor.hospitals, request, start)
    assert gathered.summed is not None
    assert gathered.summed.tallied is not None
    assert gathered.summed.tallied.noise == pytest.approx(2.0 * 2.0, rel=1e-6)  # σ·√4
    told = []
    for site in private.sites.values():
        files = sorted((site.state / "answers").iterdir(), key=lambda f: f.stat().st_mtime_ns)
        told.append(wire.records_from_bytes(files[-1].read_bytes())["head"]["tally"])
    np.testing.assert_allclose(
        gathered.summed.tallied.values, np.sum(told, axis=0), atol=len(told) * 2**-20
    )
