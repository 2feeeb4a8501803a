"""The generator of noise and samples: unpredictable, unrepeatable, and distributed as it says."""

from __future__ import annotations

import os
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from scipy import stats
from torch import Tensor

from federation.privacy.csprng import Csprng

# Of a right generator one run in a million fails.
ONE_IN_A_MILLION = 1e-6


def ks(numbers: Tensor) -> float:
    """p of the hypothesis that these are standard normal, two-sided."""
    return float(stats.kstest(numbers.numpy(), "norm").pvalue)


# --- nobody can repeat it ------------------------------------------------------------------------


def test_seeding_the_usual_generators_changes_nothing() -> None:
    seen = set()
    for _ in range(3):
        torch.manual_seed(1)
        np.random.seed(1)
        random.seed(1)
        csprng = Csprng()
        seen |= {csprng.bytes(16), csprng.gaussian(2).numpy().tobytes()}
    assert len(seen) == 6


def test_it_draws_nothing_from_the_usual_generators() -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    states = torch.random.get_rng_state(), np.random.get_state()[1].tobytes(), random.getstate()
    Csprng().gaussian(1000)
    Csprng().sample(1000, 0.5)
    assert torch.equal(torch.random.get_rng_state(), states[0])
    assert np.random.get_state()[1].tobytes() == states[1]
    assert random.getstate() == states[2]


def test_a_forked_child_draws_something_else() -> None:
    csprng = Csprng()
    csprng.bytes(8)  # keyed before the fork
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.write(writer, csprng.bytes(32))
        os._exit(0)
    os.wait()
    childs = os.read(reader, 32)
    assert len(childs) == 32
    assert csprng.bytes(32) != childs


def test_another_start_draws_something_else() -> None:
    code = "from federation.privacy.csprng import Csprng; print(Csprng().bytes(32).hex())"
    drawn = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": "0"},
            capture_output=True,
            check=True,
        ).stdout
        for _ in range(2)
    }
    assert len(drawn) == 2


def test_the_stream_is_aes_256_in_counter_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    """Block n is AES of the number n: the counter of SP 800-38A, from zero."""
    asked = []

    def urandom(count: int) -> bytes:
        asked.append(count)
        return bytes(range(count))

    monkeypatch.setattr(os, "urandom", urandom)
    csprng = Csprng()
    stream = csprng.bytes(40) + csprng.bytes(24)
    blocks = Cipher(algorithms.AES(bytes(range(32))), modes.ECB()).encryptor()
    assert stream == blocks.update(b"".join(n.to_bytes(16, "big") for n in range(4)))
    assert asked == [32]


# --- distributions -------------------------------------------------------------------------------


def test_uniform_numbers_are_uniform() -> None:
    numbers = Csprng().uniform(200_000)
    assert numbers.dtype == torch.float64
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert stats.kstest(numbers.numpy(), "uniform").pvalue > ONE_IN_A_MILLION
    low = (numbers * 2**52) % 256  # the last bits too
    assert torch.equal(low, low.round())
    counts = torch.bincount(low.long(), minlength=256).numpy()
    assert stats.chisquare(counts).pvalue > ONE_IN_A_MILLION


def test_gaussian_numbers_are_standard_normal() -> None:
    numbers = Csprng().gaussian(300_001)
    assert ks(numbers) > ONE_IN_A_MILLION
    # The same test sees half and twice the noise, and a twentieth more or less of it.
    for wrong in (0.5, 2.0, 1.05, 0.95):
        assert ks(numbers * wrong) < ONE_IN_A_MILLION
    tail = int((numbers.abs() > 4).sum())
    assert stats.binomtest(tail, len(numbers), 2 * stats.norm.sf(4)).pvalue > ONE_IN_A_MILLION


def test_gaussian_numbers_do_not_depend_on_each_other() -> None:
    """Neighbours, the two of a Box-Muller pair, and the next call; as they are and in size."""
    csprng = Csprng()
    count = 200_000
    numbers, later = csprng.gaussian(count), csprng.gaussian(count)
    pairs = [
        (numbers[1:], numbers[:-1]),
        (numbers[: count // 2], numbers[count // 2 :]),
        (numbers, later),
    ]
    for one, other in pairs:
        for power in (1, 2):
            together = torch.corrcoef(torch.stack([one**power, other**power]))[0, 1]
            assert abs(together.item()) < 5 / np.sqrt(len(one))


@pytest.mark.parametrize("count", [0, 1, 2, 3, (1 << 18) + 1])
def test_any_count_is_given(count: int) -> None:
    csprng = Csprng()
    assert csprng.gaussian(count).shape == csprng.uniform(count).shape == (count,)
    assert len(csprng.gaussian(count).unique()) == count


# --- Poisson samples -----------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.01, 0.2, 0.5])
def test_each_patient_is_drawn_as_often_as_the_rate_says(rate: float) -> None:
    csprng = Csprng()
    patients, steps = 60, 4000
    drawn = torch.zeros(steps, patients)
    for step in range(steps):
        sample = csprng.sample(patients, rate)
        assert sorted(set(sample)) == sample
        drawn[step, sample] = 1
    low, high = stats.binom.interval(1 - ONE_IN_A_MILLION / patients, steps, rate)
    counts = drawn.sum(0)
    assert low <= counts.min()
    assert counts.max() <= high
    # A rate that is a fifth off would be seen.
    total = int(drawn.sum())
    assert stats.binomtest(total, steps * patients, rate).pvalue > ONE_IN_A_MILLION
    assert stats.binomtest(total, steps * patients, rate * 0.8).pvalue < ONE_IN_A_MILLION


def test_patients_and_steps_are_drawn_independently() -> None:
    csprng = Csprng()
    patients, steps, rate = 40, 5000, 0.3
    drawn = torch.zeros(steps, patients)
    for step in range(steps):
        drawn[step, csprng.sample(patients, rate)] = 1
    sizes = drawn.sum(1)
    # Samples of a fixed size would have no variance, one coin for all would have 40 times as much.
    spread = sizes.var() / (patients * rate * (1 - rate))
    assert 0.9 < spread < 1.1
    together = torch.corrcoef(drawn.T)
    assert (together - torch.eye(patients)).abs().max() < 6 / np.sqrt(steps)
    later = torch.corrcoef(torch.stack([drawn[1:].flatten(), drawn[:-1].flatten()]))[0, 1]
    assert abs(later.item()) < 5 / np.sqrt(drawn.numel())


def test_rates_of_one_and_no_patients() -> None:
    csprng = Csprng()
    assert csprng.sample(5, 1.0) == [0, 1, 2, 3, 4]
    assert csprng.sample(0, 0.5) == []
    assert csprng.sample(0, 1.0) == []
