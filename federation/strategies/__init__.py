"""How the mean of the hospitals' updates moves the global model: one file a rule.

A rule is arithmetic on arrays and knows no network. Its file offers `Options` (closed) and

    step(options, model, update, state) -> (model, state)

where all three are dicts of float arrays with the model's parameter names, `update` is the weighted
mean of local minus global parameters, and `state` is what the rule remembers between rounds: empty
before the first, any arrays afterwards (saved with the run, so a resumed run goes on exactly).
`check(experiment)` may refuse an experiment the rule cannot serve. A rule that has to look at each
hospital's update says `SINGLE_UPDATES = True`, and is refused where nobody can. Adding a rule is adding
its file and `configs/strategy/NAME.yaml`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from federation import registry
from federation.messages import Arrays
from federation.schema import Experiment


@dataclass(frozen=True)
class Strategy:
    """A rule with its options bound."""

    name: str
    step: Callable[[Arrays, Arrays, Arrays], tuple[Arrays, Arrays]]


def move(
    strategy: Strategy, model: Arrays, mean: Arrays, memory: Arrays, parameters: frozenset[str]
) -> tuple[Arrays, Arrays]:
    """The strategy on the parameters; the mean on everything else, integers kept integers.

    Args:
        mean: of the hospitals' updates, for all of the model's arrays.
        memory: what the strategy remembers.
        parameters: names of the trainable arrays.
    """
    own = {name: model[name] for name in model if name in parameters}
    stepped, after = strategy.step(own, {name: mean[name] for name in own}, memory)
    moved: Arrays = {}
    for name, array in model.items():
        value = stepped[name] if name in stepped else array + mean[name]
        whole = array.dtype.kind in "iu"
        # asarray: NumPy's arithmetic turns arrays without axes into scalars
        moved[name] = np.asarray(np.rint(value) if whole else value).astype(array.dtype)
    return moved, {name: np.asarray(array) for name, array in after.items()}


def needs_single_updates(experiment: Experiment) -> bool:
    """Whether the rule works on the hospitals' updates one by one, not on their mean."""
    module, _ = registry.find(sys.modules[__name__], experiment.strategy)
    return bool(getattr(module, "SINGLE_UPDATES", False))


def build(experiment: Experiment) -> Strategy:
    """The strategy that the experiment names.

    Raises:
        federation.schema.ConfigError: unknown name or option, or an experiment the rule refuses.
    """
    module, options = registry.find(sys.modules[__name__], experiment.strategy)
    if hasattr(module, "check"):
        module.check(experiment)
    return Strategy(experiment.strategy.name, partial(module.step, options))
