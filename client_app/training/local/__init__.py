"""What a strategy does at the hospital beside plain training: one file a rule, named like the strategy.

A file of `federation.strategies` moves the global model; the file of the same name here, where there
is one, has the part that only the hospital can do: a control variate, layers that stay, a personal
model. It offers

    build(experiment, network, memory, down) -> Local

with the network as it came, `memory` as this hospital kept it after the round before (empty before its
first) and `down` as the strategy sent it beside the model (`federation.strategies`). Nothing in a
memory leaves the hospital. Under patient-level privacy a correction is made of what had its noise
already, so it is post-processing; or the strategy's `check` refuses.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor, nn

from federation import registry
from federation.messages import Arrays, Shape
from federation.schema import Experiment

Correction = Callable[[str, Tensor], Tensor]
"""(name of a parameter, its value) to what is added to its gradient, after clipping and noise."""


@dataclass(frozen=True)
class Personal:
    """A model beside the global one, trained here with the same steps and never sent.

    Attributes:
        start: all its arrays, as it was after the round before.
    """

    start: Arrays
    correct: Correction | None = None


@dataclass(frozen=True)
class LeftOver:
    """What a codec left over of the update that counted last: it travels with this round's.

    Attributes:
        arrays: of parameters, by name.
        learning_rate: of the round that left it.
    """

    arrays: Arrays
    learning_rate: float


@dataclass(frozen=True)
class Worked:
    """What a round's training came to.

    Attributes:
        update: local minus received, of all arrays, those that stay here included; without what a norm
            bound has never leave (`client_app.received.due`).
        model: the network's arrays after training.
        personal: the personal model's, where there is one.
        steps: optimiser steps that were done.
        learning_rate: of this round.
        left_over: of an earlier round; None where nothing was, or where nobody keeps sums.
    """

    update: Arrays
    model: Arrays
    personal: Arrays
    steps: int
    learning_rate: float
    left_over: LeftOver | None = None


@dataclass(frozen=True)
class Local:
    """One round's local part.

    Attributes:
        kept: arrays that stay at the hospital, with the values to begin with, in place of those that
            came. Of them the update is 0.
        correct: on every step of the training that is sent.
        phases: names of the parameters that are trained, and the share of the steps; one after the
            other. None: all of them all the time.
        remember: what to keep for the next round.
    """

    kept: Arrays = field(default_factory=dict)
    correct: Correction | None = None
    phases: tuple[tuple[frozenset[str], float], ...] = ()
    personal: Personal | None = None
    remember: Callable[[Worked], Arrays] | None = None


def recalled(memory: Arrays, like: Arrays) -> Arrays | None:
    """What a memory holds; None where it is empty, or not of the same names, dtypes and shapes."""
    return memory if Shape.of(memory) == Shape.of(like) else None


def build(experiment: Experiment, network: nn.Module, memory: Arrays, down: Arrays) -> Local:
    """The strategy's local part of this round; one that does nothing for strategies without."""
    if experiment.strategy.name not in registry.names(sys.modules[__name__]):
        return Local()
    module = importlib.import_module(f"{__name__}.{experiment.strategy.name}")
    local: Local = module.build(experiment, network, memory, down)
    return local
