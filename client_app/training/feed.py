"""Batches for training, made ahead by other processes where that keeps the processor busy.

What a batch holds is a function of the seed and its key alone, which is the step, or the step and the
patient: the random state of each sample's augmentation comes from (seed, key, place in the batch), and
everything runs on one thread. So any number of processes, whichever of them is faster, gives the same
bits as none.
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
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from monai.transforms import Randomizable, Transform
from numpy.typing import NDArray
from torch import Tensor

from client_app.imaging.pool import Lost, Pool
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
    make = _maker(augment, items, seed)
    drawn = _drawn(len(items), size=size, steps=steps, seed=seed)
    made = _made_elsewhere(make, drawn, workers) if workers else (make(draw) for draw in drawn)
    with contextlib.closing(made):
        for images, labels in made:
            yield torch.from_numpy(images), torch.from_numpy(labels)


@dataclass(frozen=True)
class Draw:
    """Which items make a batch.

    Attributes:
        key: with the seed it decides the random state of each sample; one draw, one key.
    """

    key: tuple[int | str, ...]
    indices: tuple[int, ...]


def batches_of(
    augment: Callable[[dict[str, Any]], dict[str, Any]],
    items: Items,
    draws: Iterable[Draw],
    *,
    seed: int,
    workers: int = 0,
) -> Generator[Batch | None, None, None]:
    """For each draw its batch of augmented samples, as `batches` makes them.

    A batch that cannot be made is None and ends nothing: because an item or its augmentation raises,
    samples differ in shape, or the process that made it ended or was stuck.

    Raises:
        MemoryError, RuntimeError: `out_of_memory`, wherever it was.
        client_app.imaging.pool.NotStarted: a process ended before it had any work.
    """
    make = _Forgiving(_maker(augment, items, seed))
    drawn = iter(draws)
    made = (
        _made_elsewhere(make, drawn, workers, _unless_lost)
        if workers
        else (make(draw) for draw in drawn)
    )
    with contextlib.closing(made):
        for arrays in made:
            if arrays is None:
                yield None
            else:
                images, labels = arrays
                yield torch.from_numpy(images), torch.from_numpy(labels)


_Arrays = tuple[NDArray[np.float32], NDArray[Any]]
_Made = TypeVar("_Made")


@dataclass(frozen=True)
class _Maker:
    """Makes batches, in this process or in another one."""

    augment: Callable[[dict[str, Any]], dict[str, Any]]
    random: tuple[np.random.RandomState, ...]  # those that `augment` draws from
    items: Items
    seed: int

    def __call__(self, draw: Draw) -> _Arrays:
        with _one_thread():
            samples = [self._sample(draw, place) for place in range(len(draw.indices))]
            images = torch.stack([torch.as_tensor(sample["image"]) for sample in samples]).float()
            labels = torch.stack([torch.as_tensor(sample["label"]) for sample in samples])
        # Arrays, because tensors would travel through /dev/shm.
        return images.numpy(), labels.numpy()

    def _sample(self, draw: Draw, place: int) -> dict[str, Any]:
        source = seeded(self.seed, "augment", *draw.key, place)
        seeds = torch.randint(2**32, (len(self.random),), generator=source)
        # In place, because MONAI's `set_random_state` makes new states, which takes a millisecond.
        for state, seed in zip(self.random, seeds.tolist(), strict=True):
            state.seed(seed)
        return self.augment(dict(self.items[draw.indices[place]]))


def _maker(augment: Callable[[dict[str, Any]], dict[str, Any]], items: Items, seed: int) -> _Maker:
    own = copy.deepcopy(augment)
    return _Maker(own, tuple(_random_states(own)), items, seed)


@dataclass(frozen=True)
class _Forgiving:
    """Makes batches, and None of what cannot be made."""

    make: _Maker

    def __call__(self, draw: Draw) -> _Arrays | None:
        try:
            return self.make(draw)
        except Exception as error:
            if out_of_memory(error):
                raise
            return None


def _unless_lost(batch: Future[_Arrays | None]) -> _Arrays | None:
    """What ends a process may be the images of one patient, so it ends no more than its batch."""
    try:
        return batch.result()
    except Lost:
        return None


def out_of_memory(error: Exception) -> bool:
    """Whether it says that this machine has too little memory, and nothing of a patient's images."""
    # PyTorch has a type of error for a GPU's memory, but none for the CPU's.
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    )


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


def _drawn(count: int, *, size: int, steps: int, seed: int) -> Iterator[Draw]:
    order = _order(count, seeded(seed, "order"))
    for step in range(steps):
        yield Draw((step,), tuple(itertools.islice(order, size)))


def _order(count: int, generator: torch.Generator) -> Iterator[int]:
    while True:
        yield from torch.randperm(count, generator=generator).tolist()


def _made_elsewhere(
    make: Callable[[Draw], _Made],
    drawn: Iterator[Draw],
    workers: int,
    result: Callable[[Future[_Made]], _Made] = Future.result,
) -> Generator[_Made, None, None]:
    under_way: deque[Future[_Made]] = deque()
    with Pool(make, workers=workers, limit=_LONGEST_BATCH) as pool:
        for draw in drawn:
            if not pool.ready:
                yield make(draw)
                continue
            under_way.append(pool.submit(draw))
            if len(under_way) > _AHEAD * workers:
                yield result(under_way.popleft())
        while under_way:
            yield result(under_way.popleft())


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """On several threads a mean is summed in another order, and its last bits differ."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
