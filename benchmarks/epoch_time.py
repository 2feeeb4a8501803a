"""What an epoch takes: preparing images cold and warm, making batches, and training on them.

    python benchmarks/epoch_time.py [--patients N] [--epochs N] [--threads N] [--only TASK] [--json FILE]

Phantoms of each task are written to a temporary folder, indexed, and run through the cache and the
loop that a hospital runs: chest_xray (2-D, resnet, batches of 16), hippocampus (3-D, unet, batches
of 4), at the tasks' own defaults. For each task:

- *cold*: decoding and the deterministic transforms of every image, in this process and in others.
- *warm*: what a round costs when all is in the cache: looking at each file and each entry.
- *feed*: seconds to make an epoch's batches without training on them, with 0, 1, 2 … processes, once
  these are up; *start* is what they take for that, in which training makes its batches itself.
- *training*: seconds of an epoch of `client_app.training.loop.train`, and the share of them in which
  it waits for a batch. On a GPU that is the time between two events on its stream, one before and one
  after a batch was fetched: nothing while the GPU still has work, the wait where it has none.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from client_app.imaging import phantoms
from client_app.imaging.cache import CachedCases
from client_app.imaging.cohort import build_cohort
from client_app.training import feed, loop
from client_app.training.device import pick_device
from federation import models, tasks
from federation.schema import Component, Training


@dataclass(frozen=True)
class Setting:
    task: str
    model: str
    batch: int


SETTINGS = (Setting("chest_xray", "resnet", 16), Setting("hippocampus", "unet", 4))


@dataclass(frozen=True)
class Row:
    """Seconds; all but `start` of one epoch."""

    workers: int
    start: float
    feed: float
    training: float
    waiting: float


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    device = pick_device(arguments.device)
    gpu = f", {torch.cuda.get_device_name(device)}" if device.type == "cuda" else ""
    print(f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads{gpu}")
    results: dict[str, Any] = {}
    for setting in SETTINGS:
        if arguments.only in (None, setting.task):
            with tempfile.TemporaryDirectory() as folder:
                results[setting.task] = _measure(setting, arguments, device, Path(folder))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2))


def _measure(
    setting: Setting, arguments: argparse.Namespace, device: torch.device, folder: Path
) -> dict[str, Any]:
    task = tasks.build(Component(name=setting.task))
    data = phantoms.write(setting.task, folder, patients=arguments.patients, site=0, seed=0)
    cohort = build_cohort(data, task, state=folder / "state", key=bytes(32), held_out=0.0)
    cold, warm = {}, 0.0
    for workers in arguments.prepare:
        place = folder / f"cache-{workers}"
        dataset = CachedCases(cohort.training, task.load, place, "")
        cold[workers] = _seconds(lambda d=dataset, w=workers: d.prepare(workers=w))
        dataset = CachedCases(cohort.training, task.load, place, "")
        warm = _seconds(dataset.prepare)
    usable, set_aside = dataset.prepare()
    if set_aside:
        raise SystemExit(f"{len(set_aside)} phantoms were set aside: {set_aside[0].reason}")
    items = dataset.subset(usable)
    steps = math.ceil(len(items) / setting.batch) * arguments.epochs
    epochs = steps * setting.batch / len(items)
    print(f"\n{setting.task}: {len(items)} images, {steps} batches of {setting.batch}")
    for workers, seconds in cold.items():
        print(f"  cold, {workers} process{'es' * (workers > 1)}: {seconds:7.2f} s")
    print(f"  warm:              {warm:7.2f} s")
    print("  workers   start     feed an epoch   training   of it waiting   feed : training alone")
    rows = []
    for workers in arguments.workers:
        row = _row(setting, task, items, device, workers, steps, epochs)
        rows.append(row)
        ratio = row.feed / (row.training - row.waiting)
        print(
            f"  {row.workers:7d} {row.start:6.1f} s {row.feed:13.3f} s {row.training:8.3f} s"
            f" {row.waiting / row.training:14.1%} {ratio:14.2f}"
        )
    return {"images": len(items), "cold": cold, "warm": warm, "rows": [asdict(row) for row in rows]}


def _row(
    setting: Setting,
    task: tasks.Task,
    items: CachedCases,
    device: torch.device,
    workers: int,
    steps: int,
    epochs: float,
) -> Row:
    network = models.build(Component(name=setting.model), task, seed=0).to(device)

    def train(local_steps: int) -> tuple[float, float]:
        """Seconds in all, from the first batch, and of them waiting for one."""
        training = Training(
            local_steps=local_steps, batch_size=setting.batch, learning_rate=1e-3, optimizer="adam"
        )
        with _watched(device) as waits, _all_elsewhere():
            loop.train(
                network, task, items, training,
                device=device, seed=0, learning_rate=1e-3, workers=workers,
            )  # fmt: skip
            _finish(device)
            ended = time.perf_counter()
        seconds = waits.seconds()
        return ended - waits.first, seconds

    with _all_elsewhere():
        began = time.perf_counter()
        made = feed.batches(
            task.augment, items, size=setting.batch, steps=steps + 1, seed=0, workers=workers
        )
        next(made)
        start = time.perf_counter() - began
        spent = _seconds(lambda: [None for _ in made])
    train(3)  # the first steps choose algorithms and warm up
    training, waiting = train(steps + 1)
    return Row(workers, start, spent / epochs, training / epochs, waiting / epochs)


class _Waits:
    """How long training waited for each batch but the first, which the processes start in."""

    def __init__(self, device: torch.device) -> None:
        self.first = 0.0
        self._gpu = device.type == "cuda"
        self._pairs: list[tuple[Any, Any]] = []

    def through(self, made: Iterator[feed.Batch]) -> Iterator[feed.Batch]:
        yield next(made)
        while True:
            before = self._now()
            try:
                batch = next(made)
            except StopIteration:
                return
            self._pairs.append((before, self._now()))
            yield batch

    def seconds(self) -> float:
        if self._gpu:
            return sum(before.elapsed_time(after) for before, after in self._pairs) / 1e3
        return sum(after - before for before, after in self._pairs)

    def _now(self) -> Any:
        if not self._gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


@contextmanager
def _watched(device: torch.device) -> Iterator[_Waits]:
    """Training's batches, with the time that it waits for them."""
    waits, batches = _Waits(device), loop.batches

    def watched(*given: Any, **options: Any) -> Iterator[feed.Batch]:
        made = batches(*given, **options)
        for number, batch in enumerate(waits.through(made)):
            if number == 0:
                waits.first = time.perf_counter()
            yield batch

    loop.batches = watched
    try:
        yield waits
    finally:
        loop.batches = batches


@contextmanager
def _all_elsewhere() -> Iterator[None]:
    """Wait for the processes rather than make batches here meanwhile: their rate is to be known."""
    ready = feed.Pool.ready

    def wait(pool: feed.Pool[Any, Any]) -> bool:
        while not ready.fget(pool):
            time.sleep(0.01)
        return True

    feed.Pool.ready = property(wait)
    try:
        yield
    finally:
        feed.Pool.ready = ready


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _seconds(what: Callable[[], object]) -> float:
    began = time.perf_counter()
    what()
    return time.perf_counter() - began


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--patients", type=int, default=64, help="of each task")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--prepare", type=int, nargs="+", default=[1, 2], help="processes")
    parser.add_argument("--only", choices=[setting.task for setting in SETTINGS])
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
