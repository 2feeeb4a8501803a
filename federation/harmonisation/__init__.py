"""What is done to images so that scanners differ less: one file each.

A file offers `Options` (closed) and one of

    correct(image, *, options) -> MetaTensor     the image as it was read, before the task's `load`
    even(image, *, options, grey) -> Tensor      what `load` gave, float32 (channels, *spatial)
    vary(options, task) -> transform             in training only, after the task's `augment`

and may offer `check(options, task)`, which refuses a task it has no meaning for.

`correct` and `even` are functions of the one image: what they give is cached, and is what a model is
trained on, evaluated on and asked about. They raise ValueError of an image that has nothing to go by,
which is then set aside. `grey` is the task's (`federation.tasks.Task`). What `vary` gives keeps to the
contract of `Task.augment`: all that it draws comes from the `R` of MONAI's `Randomizable`. So nothing
here is fitted over patients, no patient's image enters another one's, and none of it costs a budget.

Adding one is adding its file and `configs/harmonisation/NAME.yaml`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from federation import registry
from federation.schema import Component, ConfigError
from federation.tasks import Task

Sample = dict[str, Any]
Transform = Callable[[Any], Any]


def applied(task: Task, chosen: Sequence[Component]) -> Task:
    """The task on harmonised images; with nothing chosen the very same task.

    Of each kind they follow one another as they were chosen.

    Raises:
        ConfigError: no such name or option, one that stands there twice, or one that the task has no
            use for.
    """
    if not chosen:
        return task
    before: list[Transform] = []
    after: list[Transform] = []
    varying: list[Transform] = []
    for component in chosen:
        if [other.name for other in chosen].count(component.name) > 1:
            raise ConfigError(f"harmonisation: {component.name} stands there twice; once is enough")
        module, options = registry.find(sys.modules[__name__], component)
        if hasattr(module, "check"):
            module.check(options, task)
        if hasattr(module, "correct"):
            before.append(partial(module.correct, options=options))
        elif hasattr(module, "even"):
            after.append(partial(module.even, options=options, grey=task.grey))
        else:
            varying.append(module.vary(options, task))
    load, augment = task.load, task.augment
    if before or after:
        load = partial(_load, before=tuple(before), load=load, after=tuple(after))
    if varying:
        augment = partial(_augment, steps=(augment, *varying))
    return replace(task, load=load, augment=augment)


def cached(chosen: Sequence[Component]) -> tuple[Component, ...]:
    """Those of the chosen that change what is cached: all but the random ones.

    Raises:
        ConfigError: no such name or option.
    """
    found = [(one, registry.find(sys.modules[__name__], one)[0]) for one in chosen]
    return tuple(one for one, module in found if _deterministic(module))


def _deterministic(module: ModuleType) -> bool:
    return hasattr(module, "correct") or hasattr(module, "even")


def _load(
    item: Sample,
    *,
    before: Sequence[Transform],
    load: Callable[[Sample], Sample],
    after: Sequence[Transform],
) -> Sample:
    image = item["image"]
    for step in before:
        image = step(image)
    loaded = load({**item, "image": image})
    made: Tensor = torch.as_tensor(loaded["image"])
    for step in after:
        made = step(made)
    return {**loaded, "image": made}


def _augment(sample: Sample, *, steps: Sequence[Callable[[Sample], Sample]]) -> Sample:
    for step in steps:
        sample = step(sample)
    return sample
