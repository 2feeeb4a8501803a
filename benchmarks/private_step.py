"""What an optimiser step with patient-level privacy costs: time and memory against the plain step.

    python benchmarks/private_step.py [--networks NAME ...] [--steps N] [--images N] [--size N]
                                      [--device auto] [--json FILE]

Each network is trained on random images by, in turn,

- *plain*: `client_app.training.loop.train`, the product without privacy;
- *loop, k*: `client_app.training.private.train`, one backward pass for each patient's k images;
- *per_sample, k*: the same with Opacus's gradients of single images, summed to patients';
- *Opacus*: `GradSampleModule` and `DPOptimizer` as its documentation has them, by hooks. It protects
  single images, and its noise comes from PyTorch's generator.

All of them see the same images a step (as many patients as images / k, each drawn with q = 1), use Adam,
run on one thread, and do not augment. A step is all between two updates of the weights; the first of a
call is not counted. The variants take turns, a call of `--steps` steps each, three times; what is
printed is the median, and the ratio is the median of each turn's ratio to *plain* of the same turn, so
that a machine that does other things too hurts all alike. Time is the processor's on a CPU and the
clock's on a GPU, and *clock* is the ratio by the clock.

- *clip*, *noise*: share of a call in which patients' gradients are clipped and added, and in which the
  sums are noised; from one more call.
- *start*: seconds until the first step, which each round pays: state copied, the engine's way tried.
- *memory*: largest amount beyond the imports, in a process of its own: network, optimiser, images, and
  all that two steps take. On a GPU its own memory, on a CPU anonymous memory.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import multiprocessing
import os
import platform
import re
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import torch
from opacus.grad_sample import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from client_app.training import feed, loop, private
from client_app.training.device import pick_device
from federation import models, tasks
from federation.privacy.mechanism import ClippedSum
from federation.schema import Component, PatientDP, Training
from federation.tasks import Task

TURNS = 3
RATE = 1e-4


@dataclass(frozen=True)
class Setting:
    model: str
    task: Component
    images: int  # of a step


SETTINGS = (
    Setting("resnet18", Component(name="chest_xray", size=128), 32),
    Setting("densenet121", Component(name="chest_xray", size=96), 16),
    Setting("unet", Component(name="hippocampus", patch=(48, 48, 48)), 4),
    Setting("segresnet", Component(name="tumour_segmentation", patch=(48, 48, 48)), 4),
)


@dataclass(frozen=True)
class Variant:
    name: str
    kind: Literal["plain", "loop", "per_sample", "opacus"]
    per_patient: int = 1


VARIANTS = (
    Variant("plain", "plain"),
    Variant("loop, k=1", "loop", 1),
    Variant("loop, k=2", "loop", 2),
    Variant("loop, k=4", "loop", 4),
    Variant("per_sample, k=2", "per_sample", 2),
    Variant("Opacus", "opacus"),
)


@dataclass
class Row:
    """Of a step: seconds, ratios to the plain one, shares of the step. Bytes of memory."""

    variant: str
    refused: str | None = None
    step: float = 0.0
    ratio: float = 1.0
    clock_ratio: float = 1.0
    clip: float | None = None
    noise: float | None = None
    start: float = 0.0
    memory: int = 0


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "Full backward hook is firing")  # Opacus
    chosen = [setting for setting in SETTINGS if setting.model in arguments.networks]
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, 1 thread, "
        f"{_in_new_process(_name_of, arguments.device)}; {arguments.steps} steps a turn, {TURNS} turns"
    )
    results: dict[str, list[dict[str, Any]]] = {}
    for default in chosen:
        setting = replace(default, images=arguments.images or default.images)
        if arguments.size and "size" in setting.task.options:
            task = Component(name=setting.task.name, size=arguments.size)
            setting = replace(setting, task=task)
        heading, rows = _in_new_process(_measure, setting, arguments.steps, arguments.device)
        for row, variant in zip(rows, VARIANTS, strict=True):
            if row.refused is None:
                row.memory = _in_new_process(_peak, setting, variant, arguments.device)
        _print(heading, rows)
        results[setting.model] = [asdict(row) for row in rows]
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2))


# --- time ----------------------------------------------------------------------------------------


def _measure(setting: Setting, steps: int, wanted: str) -> tuple[str, list[Row]]:
    device = pick_device(wanted)
    runs = _Runs(setting, device)
    rows = {variant: Row(variant.name) for variant in VARIANTS}
    for variant, row in rows.items():
        try:
            runs.train(variant, 1)
        except Exception as error:
            row.refused = _reason(error)
    able = [variant for variant, row in rows.items() if row.refused is None]
    turns = [{variant: runs.timed(variant, steps + 1) for variant in able} for _ in range(TURNS)]
    for variant in able:
        row, plain = rows[variant], VARIANTS[0]
        row.step = statistics.median(turn[variant].step for turn in turns)
        row.start = statistics.median(turn[variant].start for turn in turns)
        row.ratio = statistics.median(turn[variant].step / turn[plain].step for turn in turns)
        row.clock_ratio = statistics.median(
            turn[variant].clock_step / turn[plain].clock_step for turn in turns
        )
        if variant.kind in ("loop", "per_sample"):
            row.clip, row.noise = runs.shares(variant, steps + 1)
    return runs.heading(), list(rows.values())


@dataclass(frozen=True)
class _Turn:
    """Seconds of a median step, by processor or clock and by the clock, and before the first one."""

    step: float
    clock_step: float
    start: float


@dataclass
class _Split:
    """Seconds spent in a `ClippedSum`, over several of them."""

    clip: float = 0.0
    noise: float = 0.0


@dataclass
class _Runs:
    """The variants on one network and its images; each call trains a copy of the network."""

    setting: Setting
    device: torch.device
    task: Task = field(init=False)
    network: nn.Module = field(init=False)
    items: list[dict[str, Tensor]] = field(init=False)

    def __post_init__(self) -> None:
        task = tasks.build(self.setting.task)
        self.task = replace(task, augment=dict)  # a copy: the network's time is to be known
        self.network = models.build(Component(name=self.setting.model), self.task, seed=0)
        self.items = [_item(self.task, number) for number in range(self.setting.images)]

    def train(self, variant: Variant, steps: int) -> None:
        network = copy.deepcopy(self.network)
        images = self.setting.images
        training = Training(local_steps=steps, batch_size=images, learning_rate=RATE)
        if variant.kind == "plain":
            loop.train(
                network, self.task, self.items, training,
                device=self.device, seed=0, learning_rate=RATE,
            )  # fmt: skip
        elif variant.kind == "opacus":
            _train_by_opacus(network, self.task, self.items, training, self.device)
        else:
            k = variant.per_patient
            patients = [(str(at), range(at, at + k)) for at in range(0, images, k)]
            privacy = PatientDP(
                noise_multiplier=1.0, sampling_rate=1.0, images_per_patient=k, engine=variant.kind
            )
            done = private.train(
                network, self.task, self.items, patients, training, privacy,
                device=self.device, seed=0, learning_rate=RATE, public_size=len(patients),
            )  # fmt: skip
            if done.zeroed:
                raise RuntimeError(f"{variant.name}: {done.zeroed} patients counted as zero")

    def heading(self) -> str:
        count = sum(parameter.numel() for parameter in self.network.parameters())
        edges = "×".join(map(str, self.task.patch))
        return (
            f"{self.setting.model}, {count / 1e6:.2f} million parameters, "
            f"{self.setting.images} images of {edges}"
        )

    def timed(self, variant: Variant, steps: int) -> _Turn:
        ends: list[tuple[float, float]] = []

        def note(*_: object) -> None:
            ends.append((self._now(), time.perf_counter()))

        began = self._now()
        handle = register_optimizer_step_post_hook(note)
        try:
            self.train(variant, steps)
        finally:
            handle.remove()
        if len(ends) != steps:
            raise RuntimeError(f"{variant.name} made {len(ends)} of {steps} steps")
        spent, clock = (
            [b - a for a, b in itertools.pairwise(one)] for one in zip(*ends, strict=True)
        )
        step = statistics.median(spent)
        return _Turn(step, statistics.median(clock), max(0.0, ends[0][0] - began - step))

    def shares(self, variant: Variant, steps: int) -> tuple[float, float]:
        """Of a call's time, in clipping and adding, and in noise."""
        split = _Split()
        with _split_sums(split, self._now):
            began = self._now()
            self.train(variant, steps)
            spent = self._now() - began
        return split.clip / spent, split.noise / spent

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            return time.perf_counter()
        return time.process_time()


def _item(task: Task, number: int) -> dict[str, Tensor]:
    source = torch.Generator().manual_seed(number)
    image = torch.randn(task.in_channels, *task.patch, generator=source)
    if task.kind == "classification":
        return {"image": image, "label": torch.tensor(number % len(task.classes))}
    return {"image": image, "label": (image[:1] > 1).to(torch.uint8)}


def _train_by_opacus(
    network: nn.Module,
    task: Task,
    items: list[dict[str, Tensor]],
    training: Training,
    device: torch.device,
) -> None:
    hooked = GradSampleModule(network.to(device).train())
    optimizer = DPOptimizer(
        loop.make_optimizer(network, training, RATE),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        expected_batch_size=training.batch_size,
    )
    made = feed.batches(
        task.augment, items, size=training.batch_size, steps=training.local_steps, seed=0
    )
    for images, labels in made:
        optimizer.zero_grad()
        torch.autograd.backward(task.loss(hooked(images.to(device)), labels.to(device)))
        optimizer.step()


@contextmanager
def _split_sums(split: _Split, now: Callable[[], float]) -> Iterator[None]:
    class Timed(ClippedSum):
        def add(self, *given: Any) -> None:
            began = now()
            super().add(*given)
            split.clip += now() - began

        def noised(self, *given: Any) -> list[Tensor]:
            began = now()
            made = super().noised(*given)
            split.noise += now() - began
            return made

    with patch.object(private, "ClippedSum", Timed):
        yield


def _reason(error: Exception) -> str:
    # PyTorch writes an essay; what cannot be done is its first sentence.
    text = re.split(r"[.;] |\n", str(error).strip())[0]
    return f"{type(error).__name__}: {text}"


# --- memory --------------------------------------------------------------------------------------


def _peak(setting: Setting, variant: Variant, wanted: str) -> int:
    """Bytes; in a process that did nothing before."""
    device = pick_device(wanted)
    before = _status("RssAnon")
    _Runs(setting, device).train(variant, 2)
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Of the largest resident set, what is no file's: libraries are read in as they are used.
    return _status("VmHWM") - _status("RssFile") - before


def _status(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def _in_new_process(function: Callable[..., Any], *given: Any) -> Any:
    """In a fork of this process, which imported all and never computes, nor touches a GPU."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
        return pool.submit(function, *given).result()


def _name_of(wanted: str) -> str:
    device = pick_device(wanted)
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


# --- output --------------------------------------------------------------------------------------


def _print(heading: str, rows: list[Row]) -> None:
    print(f"\n{heading}")
    print(
        f"  {'':16}{'step':>9}{'ratio':>8}{'clock':>8}{'clip':>8}{'noise':>8}{'start':>9}"
        f"{'memory':>10}{'ratio':>8}"
    )
    for row in rows:
        if row.refused is not None:
            print(f"  {row.variant:16}refused: {row.refused}")
            continue
        clip, noise = ("-" if share is None else f"{share:.1%}" for share in (row.clip, row.noise))
        print(
            f"  {row.variant:16}{row.step:7.3f} s{row.ratio:8.2f}{row.clock_ratio:8.2f}"
            f"{clip:>8}{noise:>8}{row.start:7.2f} s{row.memory / 1e6:7,.0f} MB"
            f"{row.memory / rows[0].memory:8.2f}",
            flush=True,
        )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    names = [setting.model for setting in SETTINGS]
    parser.add_argument("--networks", nargs="+", choices=names, default=names)
    parser.add_argument("--steps", type=int, default=1, help="counted steps of a turn")
    parser.add_argument(
        "--images", type=int, help="of a step, a multiple of 4; default: 32, 16, 4, 4"
    )
    parser.add_argument("--size", type=int, help="edge of 2-D images; default: 128 and 96")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.steps < 1 or (arguments.images or 4) % 4 or (arguments.images or 4) < 4:
        parser.error("--steps must be at least 1, --images a multiple of 4")
    return arguments


if __name__ == "__main__":
    main()
