"""Batches: the same bits whoever makes them, and no training that waits for the dead."""

from __future__ import annotations

import functools
import itertools
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from monai.transforms import Compose, RandAdjustContrastd, RandGaussianNoised, Randomizable
from torch import Tensor

from client_app.imaging.pool import Lost
from client_app.training import feed
from client_app.training.feed import Draw, batches, batches_of
from federation import tasks
from federation.schema import Component


class Ramps:
    """Items made from their position; in any process but `here` they fail, if so they shall."""

    def __init__(
        self,
        count: int,
        shape: tuple[int, ...] = (1, 64, 64),
        *,
        fails: Literal["raises", "killed"] | None = None,
    ) -> None:
        self.count, self.shape, self.fails, self.here = count, shape, fails, os.getpid()

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        if self.here != os.getpid():
            if self.fails == "raises":
                raise MemoryError("in the process")
            if self.fails == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
        image = torch.arange(float(np.prod(self.shape))).reshape(self.shape) * 1e-3 + index
        mask = (image[:1] > index + 2).byte() if len(self.shape) == 4 else torch.tensor(index)
        return {"image": image, "label": mask}


def same(one: list[feed.Batch], other: list[feed.Batch]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a, b)
        for a, b in zip(itertools.chain(*one), itertools.chain(*other), strict=True)
    )


def made(name: str, shape: tuple[int, ...], *, workers: int, seed: int = 1) -> list[feed.Batch]:
    task = tasks.build(Component(name=name))
    made = batches(task.augment, Ramps(5, shape), size=3, steps=7, seed=seed, workers=workers)
    return list(made)


@pytest.mark.parametrize(
    ("name", "shape"), [("chest_xray", (1, 64, 64)), ("hippocampus", (1, 40, 50, 36))]
)
@pytest.mark.usefixtures("all_made_elsewhere")
def test_any_number_of_processes_gives_the_same_bits(name: str, shape: tuple[int, ...]) -> None:
    reference = made(name, shape, workers=0)
    assert len(reference) == 7
    images, labels = reference[0]
    assert images.dtype == torch.float32
    assert images.shape == (3, 1, *tasks.build(Component(name=name)).patch)
    assert type(images) is type(labels) is Tensor
    assert not same(made(name, shape, workers=0, seed=2), reference)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert same(made(name, shape, workers=0), reference)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    for workers in (1, 3):
        assert same(made(name, shape, workers=workers), reference)


def test_batches_made_here_while_processes_start_are_the_same_too() -> None:
    augment = RandGaussianNoised("image", prob=1.0)
    reference, some = (
        batches(augment, Ramps(5), size=2, steps=3000, seed=0, workers=workers)
        for workers in (0, 1)
    )
    assert all(same([a], [b]) for a, b in zip(reference, some, strict=True))


def test_threads_do_not_change_the_last_bits() -> None:
    """Means over large images are summed in another order on several threads."""
    augment = RandAdjustContrastd("image", prob=1.0, gamma=(0.7, 1.5), retain_stats=True)
    threads = torch.get_num_threads()
    made = []
    try:
        for count in (1, 2, 4):
            torch.set_num_threads(count)
            made.append(list(batches(augment, Ramps(2, (1, 512, 512)), size=2, steps=2, seed=0)))
    finally:
        torch.set_num_threads(threads)
    assert same(made[0], made[1])
    assert same(made[0], made[2])


def test_each_sample_is_drawn_anew_and_by_its_place_alone() -> None:
    augment = Compose([RandGaussianNoised("image", prob=1.0)])
    (short,) = batches(augment, Ramps(1), size=4, steps=1, seed=0)
    long = list(batches(augment, Ramps(1), size=4, steps=3, seed=0))
    assert same([short], long[:1])
    samples = [sample for images, _ in long for sample in images]
    for one, other in itertools.combinations(samples, 2):
        assert not torch.equal(one, other)


def noisy(sample: dict[str, Any], *, steps: list[Any]) -> dict[str, Any]:
    for step in steps:
        sample = step(sample)
    return sample


def test_whatever_draws_is_seeded_however_deep_it_lies() -> None:
    """MONAI's own seeding stops at compositions; unseeded, its transforms share one random state."""
    parts = [RandGaussianNoised(["image", "label"], prob=1.0) for _ in range(2)]
    augment = functools.partial(noisy, steps=[Compose(parts[:1]), parts[1]])
    one, other = (
        list(batches(augment, Ramps(3, (1, 4, 4, 4)), size=2, steps=2, seed=seed))
        for seed in (1, 2)
    )
    np.random.seed(0)
    assert same(one, list(batches(augment, Ramps(3, (1, 4, 4, 4)), size=2, steps=2, seed=1)))
    assert not same(one, other)


def test_two_transforms_do_not_draw_the_same() -> None:
    sample = {"image": torch.zeros(1, 8, 8), "label": torch.tensor(0)}
    parts = [RandGaussianNoised("image", prob=1.0, sample_std=False) for _ in range(2)]
    ((twice, _),) = batches(Compose(parts), [sample], size=1, steps=1, seed=0)
    ((once, _),) = batches(parts[0], [sample], size=1, steps=1, seed=0)
    # Of independent draws the variance of the sum is that of two, and not of twice one (four).
    assert 1.2 < (twice.var() / once.var()).item() < 3.0


def test_the_augmentation_is_left_as_it_was() -> None:
    augment = Compose([RandGaussianNoised("image", prob=1.0)])
    before = augment.R.get_state()[1].tolist()
    list(batches(augment, Ramps(3), size=2, steps=2, seed=0))
    assert isinstance(augment, Randomizable)
    assert augment.R.get_state()[1].tolist() == before


@pytest.mark.parametrize(("fails", "error"), [("raises", MemoryError), ("killed", Lost)])
def test_what_fails_in_a_process_stops_the_training(
    fails: Literal["raises", "killed"], error: type[Exception]
) -> None:
    with pytest.raises(error):
        for _ in batches(dict, Ramps(2, fails=fails), size=1, steps=10**6, seed=0, workers=1):
            pass


@pytest.mark.usefixtures("all_made_elsewhere")
def test_a_process_that_is_stuck_does_not_hang_the_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(feed, "_LONGEST_BATCH", 0.5)
    with pytest.raises(Lost, match="stuck"):
        list(batches(stuck, Ramps(2), size=1, steps=2, seed=0, workers=1))


def stuck(sample: dict[str, Any]) -> dict[str, Any]:
    signal.pause()
    return sample


@pytest.mark.usefixtures("all_made_elsewhere")
def test_closing_ends_the_processes() -> None:
    made = batches(dict, Ids(), size=1, steps=10**9, seed=0, workers=2)
    pids = {int(labels[0]) for _, labels in itertools.islice(made, 8)}
    assert os.getpid() not in pids
    made.close()
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


class Ids(Ramps):
    """The label says which process made it."""

    def __init__(self) -> None:
        super().__init__(4)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return {"image": torch.zeros(1), "label": torch.tensor(os.getpid())}


# --- batches of draws ----------------------------------------------------------------------------

DRAWS = [Draw((step, patient), (0, 1)) for step in range(3) for patient in ("a", "b", "c")]


@pytest.mark.usefixtures("all_made_elsewhere")
def test_draws_are_made_by_their_key_alone_wherever_and_among_whichever() -> None:
    augment = Compose([RandGaussianNoised("image", prob=1.0)])
    here = list(batches_of(augment, Ramps(2), DRAWS, seed=0))
    there = list(batches_of(augment, Ramps(2), DRAWS, seed=0, workers=2))
    some = list(batches_of(augment, Ramps(2), DRAWS[::2], seed=0))
    assert same([made for made in here if made], [made for made in there if made])
    assert same([made for made in here[::2] if made], [made for made in some if made])
    assert len(here) == len(there) == len(DRAWS)
    samples = [sample for made in here if made for sample in made[0]]
    for one, other in itertools.combinations(samples, 2):
        assert not torch.equal(one, other)


class Poor(Ramps):
    """What is at position 1 cannot be made, in one way or another."""

    def __init__(self, how: str) -> None:
        super().__init__(3)
        self.how = how

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        item = super().__getitem__(index)
        if index == 1:
            if self.how == "raises":
                raise OSError("gone")
            if self.how == "killed" and self.here != os.getpid():
                os.kill(os.getpid(), signal.SIGKILL)
            if self.how == "stuck" and self.here != os.getpid():
                signal.pause()
            if self.how == "shape":
                return {**item, "image": item["image"][:, :3]}
        return item


@pytest.mark.parametrize(
    ("how", "workers"), [("raises", 0), ("raises", 1), ("shape", 0), ("killed", 1), ("stuck", 1)]
)
@pytest.mark.usefixtures("all_made_elsewhere")
def test_a_draw_that_cannot_be_made_ends_nothing(
    how: str, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "_LONGEST_BATCH", 1.0)
    draws = [Draw((0, "a"), (0, 2)), Draw((0, "b"), (0, 1)), Draw((1, "a"), (2, 0))]
    made = list(batches_of(dict, Poor(how), draws, seed=0, workers=workers))
    assert [one is None for one in made] == [False, True, False]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_lack_of_memory_is_raised(workers: int) -> None:
    def items() -> Ramps:
        return Ramps(2, fails="raises") if workers else Short()

    with pytest.raises(MemoryError):
        for _ in batches_of(dict, items(), DRAWS * 1000, seed=0, workers=workers):
            pass


class Short(Ramps):
    def __init__(self) -> None:
        super().__init__(2)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        raise MemoryError
