"""Batches for training, made ahead by other processes where that keeps the processor busy.

What a batch holds is a function of the seed and the step alone: the random state of each sample's
augmentation comes from (seed, step, place in the batch), and everything runs on one thread. So any
number of processes, whichever of them is faster, gives the same bits as none.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from monai.transforms import Randomizable, Transform
from numpy.typing import NDArray
from torch import Tensor

from client_app.imaging.pool import Pool
from federation.tasks import seeded

Batch = tuple[Tensor, Tensor]
"""Images, float32 (B, C, *spatial), and labels."""

# Seconds that a batch may take before the process that makes it is given up.
_LONGEST_BATCH = 300.0
# Batches that each process is ahead of the training: bounds the memory, evens out slow samples.
_AHEAD = 2


class Items(Protocol):
    """Loaded cases by position, never changed: `image` (channels, *spatial) and `label`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Mapping[str, Any]: ...


def batches(
    augment: Callable[[dict[str, Any]], dict[str, Any]],
    items: Items,
    *,
    size: int,
    steps: int,
    seed: int,
    workers: int = 0,
) -> Generator[Batch, None, None]:
    """`steps` batches of `size` augmented samples, drawn from `seed` alone.

    They follow a seeded permutation of the items, and a new one when it is used up, so a batch may
    span two. Until the first process is up (importing PyTorch takes seconds) batches are made here.
    Close the iterator to end the processes; they also end when this process dies, however it does.

    Args:
        augment: draws from the `R` of MONAI's `Randomizable` alone: one, a composition, or a
            `functools.partial` over them. Pickles, and is left as it was.
        items: pickled to each process: `CachedCases` sends names, a list sends all that is in it.
        workers: processes; with none the batches are made here, one at a time.

    Raises:
        client_app.imaging.pool.Lost: a process ended, or was stuck over one batch.
        client_app.imaging.pool.NotStarted: it ended before that.
        Exception: whatever items and augmentation raise, wherever they run.
    """
    own = copy.deepcopy(augment)
    make = _Maker(own, tuple(_random_states(own)), items, seed)
    drawn = _drawn(len(items), size=size, steps=steps, seed=seed)
    made = _made_elsewhere(make, drawn, workers) if workers else (make(draw) for draw in drawn)
    with contextlib.closing(made):
        for images, labels in made:
            yield torch.from_numpy(images), torch.from_numpy(labels)


@dataclass(frozen=True)
class _Draw:
    """Which items make the batch of a step."""

    step: int
    indices: tuple[int, ...]


_Arrays = tuple[NDArray[np.float32], NDArray[Any]]


@dataclass(frozen=True)
class _Maker:
    """Makes batches, in this process or in another one."""

    augment: Callable[[dict[str, Any]], dict[str, Any]]
    random: tuple[np.random.RandomState, ...]  # those that `augment` draws from
    items: Items
    seed: int

    def __call__(self, draw: _Draw) -> _Arrays:
        with _one_thread():
            samples = [self._sample(draw, place) for place in range(len(draw.indices))]
            images = torch.stack([torch.as_tensor(sample["image"]) for sample in samples]).float()
            labels = torch.stack([torch.as_tensor(sample["label"]) for sample in samples])
        # Arrays, because tensors would travel through /dev/shm.
        return images.numpy(), labels.numpy()

    def _sample(self, draw: _Draw, place: int) -> dict[str, Any]:
        source = seeded(self.seed, "augment", draw.step, place)
        seeds = torch.randint(2**32, (len(self.random),), generator=source)
        # In place, because MONAI's `set_random_state` makes new states, which takes a millisecond.
        for state, seed in zip(self.random, seeds.tolist(), strict=True):
            state.seed(seed)
        return self.augment(dict(self.items[draw.indices[place]]))


def _random_states(thing: object) -> Iterator[np.random.RandomState]:
    """A random state of its own for all that draws in a transform or a composition of them."""
    if isinstance(thing, Randomizable):
        thing.R = np.random.RandomState()
        yield thing.R
    parts: Iterable[object] = ()
    if isinstance(thing, (Transform, Randomizable)):
        parts = vars(thing).values()
    elif isinstance(thing, functools.partial):
        parts = (thing.func, *thing.args, *thing.keywords.values())
    elif isinstance(thing, Mapping):
        parts = thing.values()
    elif isinstance(thing, (list, tuple)):
        parts = thing
    for part in parts:
        yield from _random_states(part)


def _drawn(count: int, *, size: int, steps: int, seed: int) -> Iterator[_Draw]:
    order = _order(count, seeded(seed, "order"))
    for step in range(steps):
        yield _Draw(step, tuple(itertools.islice(order, size)))


def _order(count: int, generator: torch.Generator) -> Iterator[int]:
    while True:
        yield from torch.randperm(count, generator=generator).tolist()


def _made_elsewhere(
    make: _Maker, drawn: Iterator[_Draw], workers: int
) -> Generator[_Arrays, None, None]:
    under_way: deque[Future[_Arrays]] = deque()
    with Pool(make, workers=workers, limit=_LONGEST_BATCH) as pool:
        for draw in drawn:
            if not pool.ready:
                yield make(draw)
                continue
            under_way.append(pool.submit(draw))
            if len(under_way) > _AHEAD * workers:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """On several threads a mean is summed in another order, and its last bits differ."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
