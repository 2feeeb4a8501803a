"""Tallies of held-out patients: what one patient can move, what fails, and the noise."""

from __future__ import annotations

import copy
import dataclasses
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor, nn

from client_app.imaging.header import Kind
from client_app.imaging.image import Case, Image
from client_app.training import loop
from client_app.training.tallies import tally
from federation import models, tasks
from federation.messages import Tallied
from federation.privacy.csprng import Csprng
from federation.schema import Component
from federation.tasks import Tally, Task

CPU = torch.device("cpu")
TASK = tasks.build(Component(name="chest_xray", size=32))
SIZE = TASK.tally.size if TASK.tally else 0
ALMOST_NONE = 1e-9
NAMES = ("alzheimers", "chest_xray", "hippocampus", "mammography", "tumour_segmentation")


def _cases(patients: Sequence[str]) -> list[Case]:
    return [Case(Image(Kind.RADIOGRAPH, p, (Path(),), (32, 32)), label=0) for p in patients]


def _item(margin: float, label: int) -> dict[str, Tensor]:
    """The image is the logits, for a network that changes nothing."""
    return {"image": torch.tensor([0.0, margin]), "label": torch.tensor(label)}


def _tally(
    patients: Sequence[str],
    items: Any,
    *,
    task: Task = TASK,
    network: nn.Module | None = None,
    noise: float = ALMOST_NONE,
    csprng: Csprng | None = None,
) -> Tallied:
    return tally(
        network or nn.Identity(),
        task,
        _cases(patients),
        items,
        device=CPU,
        noise_multiplier=noise,
        csprng=csprng,
    )


def _counting(task: Task, count: Any) -> Task:
    assert task.tally is not None
    return dataclasses.replace(task, tally=dataclasses.replace(task.tally, count=count))


# --- the sum -------------------------------------------------------------------------------------


def test_patients_are_counted_once_each_wherever_their_images_stand() -> None:
    items = [_item(0.2, 1), _item(-9.0, 0), _item(9.0, 1), _item(-9.0, 0)]
    found = _tally(["a", "b", "a", "c"], items)
    expected = np.zeros((2, 14))
    expected[1, 7] = expected[1, 13] = 0.5
    expected[0, 0] = 2
    assert found.values.dtype == np.float64
    assert found.values.shape == (28,)
    assert found.noise == ALMOST_NONE
    np.testing.assert_allclose(found.values.reshape(2, 14), expected, atol=1e-7)


@pytest.mark.parametrize("name", ["chest_xray", "hippocampus"])
def test_a_network_is_judged_as_evaluation_judges_it(name: str) -> None:
    options: dict[str, Any] = {"size": 32} if name == "chest_xray" else {"patch": [16, 16, 16]}
    task = tasks.build(Component(name=name, **options))
    network = models.build(
        Component(name="mlp" if name == "chest_xray" else "unet", dropout=0.5), task, seed=1
    )
    generator = torch.Generator().manual_seed(0)
    items = []
    for index in range(6):
        image = torch.randn(1, *task.patch, generator=generator)
        volume = torch.randint(0, 3, (1, *task.patch), generator=generator, dtype=torch.uint8)
        items.append(
            {"image": image, "label": torch.tensor(index % 2) if name == "chest_xray" else volume}
        )
    patients = [f"p{index}" for index in range(6)]
    before = copy.deepcopy(network.train().state_dict())
    found = _tally(patients, items, task=task, network=network)
    assert task.tally is not None
    measured = task.tally.measure(found.values)
    exact = loop.evaluate(network, task, _cases(patients), items, device=CPU)
    linear = {"sensitivity", "specificity", "dice", "dice_anterior", "dice_posterior"}
    assert task.headline in measured
    for metric in linear & measured.keys():
        assert measured[metric] == pytest.approx(exact[metric], abs=1e-6)
    assert network.training
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())


PATIENTS = st.lists(
    st.lists(st.tuples(st.floats(-20, 20), st.integers(0, 1)), min_size=1, max_size=5),
    min_size=1,
    max_size=5,
)
COUNTS: dict[str, Any] = {
    "as it should be": lambda count: count,
    "norm of 5": lambda count: lambda cases: 5 * count(cases),
    "a sum over images": lambda count: lambda cases: sum(count([case]) for case in cases),
    "negative": lambda count: lambda cases: -3 * count(cases),
    "all of it at once": lambda count: lambda cases: torch.ones(SIZE, dtype=torch.float64) * 1e300,
    "not a number": lambda count: lambda cases: count(cases) * math.nan,
    "another length": lambda count: lambda cases: torch.ones(SIZE + 1),
}


@pytest.mark.parametrize("mutant", COUNTS)
@settings(max_examples=25, deadline=None)
@given(patients=PATIENTS)
def test_one_patient_more_moves_the_sum_by_at_most_1(
    mutant: str, patients: list[list[tuple[float, int]]]
) -> None:
    assert TASK.tally is not None
    task = _counting(TASK, COUNTS[mutant](TASK.tally.count))
    names = [f"p{index}" for index, images in enumerate(patients) for _ in images]
    items = [_item(margin, label) for images in patients for margin, label in images]
    fewer = len(items) - len(patients[-1])
    all_of_them = _tally(names, items, task=task).values
    without = _tally(names[:fewer], items[:fewer], task=task).values
    assert np.linalg.norm(all_of_them - without) <= 1 + 1e-6
    if mutant == "as it should be":
        assert np.linalg.norm(all_of_them - without) > 0.1


# --- what fails ----------------------------------------------------------------------------------


class _Damaged:
    """Items of which some cannot be read."""

    def __init__(self, items: list[dict[str, Tensor]], error: BaseException, *at: int) -> None:
        self.items, self.error, self.at = items, error, at

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        if index in self.at:
            raise self.error
        return self.items[index]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_patient_with_an_answer_that_is_not_finite_counts_as_zero(bad: float) -> None:
    good = [_item(1.0, 1), _item(-1.0, 0)]
    found = _tally(["a", "b", "nan", "nan"], [*good, _item(bad, 1), _item(2.0, 1)])
    np.testing.assert_allclose(found.values, _tally(["a", "b"], good).values, atol=1e-7)


@pytest.mark.parametrize("error", [OSError("scan of Jane"), ValueError("x"), RuntimeError("y")])
def test_a_patient_that_cannot_be_read_counts_as_zero_and_nothing_is_said(
    error: Exception, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    items = [_item(1.0, 1), _item(-1.0, 0), _item(2.0, 1), _item(3.0, 1)]
    found = _tally(["a", "b", "bad", "bad"], _Damaged(items, error, 3))
    np.testing.assert_allclose(found.values, _tally(["a", "b"], items[:2]).values, atol=1e-7)
    assert not caplog.records
    assert capfd.readouterr() == ("", "")


def test_a_label_that_is_no_class_counts_as_zero() -> None:
    found = _tally(["a", "b", "c"], [_item(1.0, 1), _item(1.0, 7), _item(1.0, -1)])
    np.testing.assert_allclose(found.values, _tally(["a"], [_item(1.0, 1)]).values, atol=1e-7)


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError(), KeyboardInterrupt()])
def test_want_of_memory_is_not_hidden_and_the_network_is_as_before(error: BaseException) -> None:
    network = nn.Dropout().train()
    with pytest.raises(type(error)):
        _tally(["a"], _Damaged([_item(1.0, 1)], error, 0), network=network)
    assert network.training
    assert not torch.is_inference_mode_enabled()


def test_what_cannot_be_tallied_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match=r"privacy\.metrics"):
        _tally([], [], task=dataclasses.replace(TASK, tally=None))
    with pytest.raises(ValueError, match="as many"):
        _tally(["a"], [])
    for noise in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="noise_multiplier"):
            _tally([], [], noise=noise)


# --- the noise -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_nobody_held_out_is_noise_alone_of_the_same_length(name: str) -> None:
    task = tasks.build(Component(name=name))
    assert task.tally is not None
    found = _tally([], [], task=task, noise=10.0)
    assert found.values.shape == (task.tally.size,)
    assert found.noise == 10.0
    assert (found.values != 0).all()


@pytest.mark.parametrize("noise", [0.7, 10.0])
def test_the_noise_is_gaussian_with_the_standard_deviation_that_is_said(noise: float) -> None:
    items = [_item(1.0, 1), _item(-1.0, 0)]
    clean = _tally(["a", "b"], items).values
    drawn = [_tally(["a", "b"], items, noise=noise) for _ in range(150)]
    residues = np.concatenate([(found.values - clean) / found.noise for found in drawn])
    assert stats.kstest(residues, "norm").pvalue > 1e-6
    assert residues.std() == pytest.approx(1, abs=6 / math.sqrt(2 * residues.size))
    # The test can tell: half the noise would not pass.
    assert stats.kstest(residues / 2, "norm").pvalue < 1e-9
    assert all(found.noise == noise for found in drawn)


def test_seeds_change_nothing_in_the_noise() -> None:
    drawn = []
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)
        random.seed(0)
        state = torch.random.get_rng_state()
        drawn.append(_tally(["a"], [_item(1.0, 1)], noise=10.0).values)
        assert torch.equal(torch.random.get_rng_state(), state)
    assert (drawn[0] != drawn[1]).all()


def test_the_noise_is_that_of_the_generator_given() -> None:
    class Ones(Csprng):
        def gaussian(self, count: int, *device: Any) -> Tensor:
            return torch.ones(count, dtype=torch.float64)

    items = [_item(1.0, 1)]
    found = _tally(["a"], items, noise=10.0, csprng=Ones()).values
    np.testing.assert_allclose(found - 10, _tally(["a"], items).values, atol=1e-4)


def test_a_tally_of_any_task_may_be_given() -> None:
    """What a task's own file offers is enough: nothing here knows of the five tasks."""
    share = Tally(
        size=2,
        count=lambda cases: torch.tensor([0.6, 0.8], dtype=torch.float64),
        measure=lambda sums: {},
    )
    task = dataclasses.replace(TASK, tally=share)
    found = _tally(["a", "b", "b"], [_item(0.0, 0)] * 3, task=task)
    np.testing.assert_allclose(found.values, [1.2, 1.6], atol=1e-7)
