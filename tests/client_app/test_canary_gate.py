"""What leaves a real ClientApp, read off its bytes: the noise that was promised, and no less."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from scipy import stats
from torch import Tensor

from client_app.site import SITE_VARIABLE
from client_app.training import private, tallies
from federation import wire
from federation.messages import Request, Shape
from federation.privacy.csprng import Csprng
from federation.privacy.mechanism import ClippedSum
from federation.schema import Experiment
from tests.client_app.canary_hospital import (
    CLIP,
    LEARNING_RATE,
    NOISE,
    PATIENTS,
    PUBLIC_SIZE,
    RATE,
    STEPS,
    Hospital,
    content,
    make,
    read,
    start,
    training,
)  # fmt: skip


def scores(hospital: Hospital, of: Experiment) -> np.ndarray[Any, Any]:
    """Σ over all steps of the noised sums, one coordinate a patient, read off the bytes that left."""
    moved = np.zeros(PATIENTS)
    for round_ in range(1, of.rounds + 1):
        answer = read(hospital.ask(of, training(round_)), of, training(round_))
        assert answer.trained is not None, answer.refused
        moved += answer.trained.update["layer.weight"].ravel().astype(np.float64)
    return moved / LEARNING_RATE * RATE * PUBLIC_SIZE


def p_value(found: np.ndarray[Any, Any], steps: int) -> float:
    """Against C·Bin(T, q) + N(0, T σ² C²): Kolmogorov and Smirnov's test, and one of the spread.

    The first sees any other shape or place, the second a little noise more or less.
    """
    drawn = np.arange(steps + 1)
    chance = stats.binom.pmf(drawn, steps, RATE)
    spread = math.sqrt(steps) * NOISE * CLIP

    def exact(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return stats.norm.cdf((np.asarray(values)[:, None] - CLIP * drawn) / spread) @ chance

    shape = float(stats.kstest(found, exact).pvalue)
    variance = spread**2 + steps * RATE * (1 - RATE) * CLIP**2
    below = float(stats.chi2.cdf((len(found) - 1) * found.var(ddof=1) / variance, len(found) - 1))
    return 2 * min(shape, 2 * min(below, 1 - below))


def test_what_leaves_is_canaries_in_exactly_the_promised_noise(canary_hospital: Hospital) -> None:
    of = content()
    found = scores(canary_hospital, of)
    assert p_value(found, of.rounds * STEPS) > 1e-4
    assert found.std() < 10  # in clipped gradients: nobody counts as STRENGTH
    with canary_hospital.ledger() as ledger:
        charged = [mechanism for charge in ledger.charges() for mechanism in charge.mechanisms]
    assert {(m.noise_multiplier, m.sampling_rate, m.steps) for m in charged} == {
        (NOISE, RATE, STEPS)
    }
    assert len(charged) == of.rounds


def half_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    gaussian = Csprng.gaussian
    monkeypatch.setattr(Csprng, "gaussian", lambda self, count: gaussian(self, count) * 0.5)


def more_often(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = Csprng.sample
    monkeypatch.setattr(Csprng, "sample", lambda self, count, rate: sample(self, count, 2 * rate))


def twice_the_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    add = ClippedSum.add

    def twice(self: ClippedSum, contribution: list[Tensor]) -> None:
        add(self, contribution)
        add(self, contribution)

    monkeypatch.setattr(ClippedSum, "add", twice)


def one_noise_for_all_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    fixed = Csprng().gaussian(PATIENTS)
    monkeypatch.setattr(Csprng, "gaussian", lambda self, count: fixed.clone())


@pytest.mark.parametrize(
    "break_it", [half_noise, more_often, twice_the_clip, one_noise_for_all_steps]
)
def test_the_gate_closes_on_less_than_was_promised(
    break_it: Callable[[pytest.MonkeyPatch], None],
    canary_hospital: Hospital,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    break_it(monkeypatch)
    of = content()
    assert p_value(scores(canary_hospital, of), of.rounds * STEPS) < 1e-7


class Coins(Csprng):
    """The same coins each time, for comparing what else differs."""

    def __init__(self) -> None:
        self._random = np.random.default_rng(7)

    def bytes(self, count: int) -> bytes:
        return self._random.bytes(count)


@pytest.mark.parametrize("metrics", ["none", "noisy"])
@pytest.mark.parametrize("engine", ["loop", "per_sample"])
def test_of_two_hospitals_only_what_has_noise_differs(
    metrics: str, engine: str, canaries: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One patient's image is another, all coins are the same: every other field is equal."""
    monkeypatch.setattr(private, "Csprng", Coins)
    monkeypatch.setattr(tallies, "Csprng", Coins)
    of = content(
        metrics=metrics, engine=engine, sampling_rate=0.5, held_out=0.3 if metrics == "noisy" else 0
    )
    request = Request("run", 1, evaluate=True, train=True)
    fields, blobs = [], []
    for name, patients in (("one", list(range(20))), ("other", [*range(19), 77])):
        made = make(tmp_path / name, patients)
        rename_last_patient(made)
        monkeypatch.setenv(SITE_VARIABLE, str(made.site_file))
        records = made.ask(of, request)
        assert read(records, of, request).refused is None
        head = dict(records["head"])
        head.pop("head")  # of the ledger: the time of the charge is in it
        blobs.append(wire.blob(records))
        head.pop("blob", None)
        fields.append(head)
    noised = {"tally"}
    assert fields[0].keys() == fields[1].keys()
    assert {k: v for k, v in fields[0].items() if k not in noised} == {
        k: v for k, v in fields[1].items() if k not in noised
    }
    assert len(blobs[0]) == len(blobs[1])
    one, other = (wire.unpack(blob, Shape.of(start(of))) for blob in blobs)
    differ = {name for name in one if one[name].tobytes() != other[name].tobytes()}
    assert differ <= {"layer.weight"}


def rename_last_patient(made: Hospital) -> None:
    """Patient 77 is patient 19 with another image."""
    for path in (made.folder / "data/images").glob("00077-*.dcm"):
        header = pydicom.dcmread(path)
        header.PatientID = "P00019"
        header.save_as(path)
    labels = made.folder / "data/labels.csv"
    labels.write_text(labels.read_text().replace("P00077", "P00019"))
