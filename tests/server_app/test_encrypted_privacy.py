"""Encrypted sums of updates that have patient-level privacy."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from federation import models, strategies, tasks, wire
from federation.messages import Phase, Request
from server_app.exchange import TooFewHospitals
from tests.encrypted import all_hold, encrypted, held
from tests.hospitals import SMALL, Hospitals, hospitals
from tests.masked import crashing, kept, rows, same
from tests.server_app.test_masked_privacy import PRIVATE, charges
from tests.server_app.test_masked_rounds import plain_mean

pytest.importorskip("tenseal")


@pytest.fixture(scope="module")
def _private(tmp_path_factory: pytest.TempPathFactory) -> Hospitals:
    return hospitals(
        tmp_path_factory.mktemp("private"),
        4,
        patients=6,
        privacy=[{"patients": 20 * n, "epsilon": 900.0, "answer_every": 0} for n in (1, 2, 3, 4)],
    )


@pytest.fixture
def private(_private: Hospitals) -> Hospitals:
    return _private.fresh()


def test_ckks_codec_and_patients_privacy_go_together(private: Hospitals) -> None:
    """What is summed is the noised update, of declared sizes; a round that is done again costs nothing,
    and brings the noise that was drawn."""
    changes: dict[str, Any] = {"model": SMALL | {"norm": "group"}, "privacy": PRIVATE}
    of = encrypted(weighting="examples", rounds=2, least=3, **changes)
    private.meddle |= {name: crashing(Phase.SIGN) for name in ("hill", "lake")}
    with pytest.raises(
        TooFewHospitals, match=r"2 hospitals signed who is in the sum, 3 are needed"
    ):
        private.conduct(of, "private", rounds=1)
    assert charges(private, "private") == Counter(dict.fromkeys(private.sites, 1))
    noised = {name: kept(private, name, of)[0] for name in private.sites}
    private.meddle.clear()
    private.conduct(of, "private", rounds=1)
    assert charges(private, "private") == Counter(dict.fromkeys(private.sites, 1))
    for name, update in noised.items():
        same(kept(private, name, of)[0], update)
        assert any(np.any(array) for array in update.values())

    network = models.build(of.model, tasks.build(of.task), seed=of.seed)
    fresh = {name: array.copy() for name, array in models.arrays_of(network).items()}
    parameters = frozenset(name for name, _ in network.named_parameters())
    mean = mean_of(private, of)
    model, _ = strategies.move(strategies.build(of), fresh, mean, {}, parameters)
    all_hold(private, of, "private", model, 1)

    row = next(row for row in rows(private, "private") if row["kind"] == "round")
    assert row["summed"] == {"hospitals": sorted(private.sites), "patients": 200}
    private.conduct(of, "private")
    assert {held(private, name, of, "private").round for name in private.sites} == {2}
    measured = [row for row in rows(private, "private") if row["kind"] == "evaluation"]
    assert [row["round"] for row in measured] == [0, 1, 2]
    assert all(row["spent"]["charges"] for row in measured[1]["hospitals"].values())
    assert set(charges(private, "private").values()) == {3}  # two rounds, and the last evaluation


def mean_of(made: Hospitals, of: Any) -> Any:
    """Of what the hospitals kept, weighted by the sizes that they declare."""
    with pytest.MonkeyPatch.context() as patch:
        from tests.server_app import test_masked_rounds

        class Declared:
            def __init__(self, site: Any, _: Any) -> None:
                self.cohort = self
                self.training_patients = site.privacy.patients

        patch.setattr(test_masked_rounds, "find_patients", Declared)
        return plain_mean(made, of, made.sites)


def test_noisy_tallies_are_summed_with_their_noise(private: Hospitals) -> None:
    of = encrypted(model=SMALL | {"norm": "group"}, rounds=1, privacy=PRIVATE)
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
