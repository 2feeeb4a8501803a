"""How the mean of the hospitals' updates moves the global model: one file a rule.

A rule is arithmetic on arrays and knows no network. Its file offers `Options` (closed) and

    step(options, model, update, state) -> (model, state)

where all three are dicts of float arrays with the model's parameter names, `update` is the weighted
mean of local minus global parameters, and `state` is what the rule remembers between rounds: empty
before the first, any arrays afterwards (saved with the run, so a resumed run goes on exactly).
`check(experiment)` may refuse an experiment the rule cannot serve. Beside these it may offer

    begin(options, model) -> state           before the first round, in place of nothing
    keeps(options, network) -> names         arrays that stay at the hospital and are never sent
    PERSONAL = True                          hospitals have a model of their own beside the global one
    BY_TURN = True                           `step` has a fifth argument, the `Turn`

What of the state is named `down/PARAMETER` travels to the hospitals with the model. The part of a rule
that only hospitals can do is in `client_app.training.local`, in a file of the same name. Adding a rule
is adding its file (or both) and `configs/strategy/NAME.yaml`.

A rule that has to look at each hospital's update, or at its figures, says `SINGLE_UPDATES = True`, and
is refused where nobody can. In place of the weighted mean it offers

    combine(options, updates, weights, told) -> update

which `step` then gets as the mean, and says with it, where they hold,

    least(options) -> int    fewest updates that it can combine (else 1)
    NEEDS = ("loss",)        figures of `Told` without which it cannot
    PREFERS = ("loss_before",)    figures that make it exact
    ONE_VOTE = True          it does not weigh hospitals by what they say of their size
    BY_COORDINATE = True     it compares the same coordinate of all hospitals
    AT_HOSPITALS = "bound"   with this option, a norm, hospitals do its part where sums are secret
    normaliser(training, steps, learning_rate) -> c    its update is Σ pₖ·cₖ · Σ pₖ·Δₖ/cₖ, so that
                             hospitals that divide by their own c can be summed in secret; 0 < c ≤ 1
    UNSUMMED = "why not"     where it is another reason than that it looks at single updates
    remember(options, weights, told) -> memory    arrays by hospital, `told.memory` in the next round
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from federation import registry
from federation.codec import sparsify
from federation.messages import Arrays, Trained
from federation.schema import ConfigError, Experiment, Training
from federation.strategies._single_updates import (
    NotCombined,
    Told,
    Updates,
    Weights,
    scale_parameters,
    weighted_sum,
)

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "DOWN",
    "PERSONAL",
    "NotCombined",
    "Strategy",
    "Told",
    "Turn",
    "Updates",
    "Weights",
    "begin",
    "bound_at_hospitals",
    "build",
    "combine",
    "figures_for",
    "has_personal_models",
    "kept_at_hospitals",
    "metric_names",
    "move",
    "moves_by_turn",
    "needs_single_updates",
    "normaliser",
    "options",
    "scale_parameters",
    "sent_down",
    "weighted_sum",
    "why_unsummed",
]


DOWN = "down/"
PERSONAL = "personal_"  # before the metrics of a hospital's own model


@dataclass(frozen=True)
class Turn:
    """What a step may have to know of its round.

    Attributes:
        number: counted from 1.
        share: |S| / N: the part of the hospitals asked whose updates are in the mean.
        training: as the experiment asks for it.
    """

    number: int
    share: float
    training: Training

    @property
    def learning_rate(self) -> float:
        """Of the hospitals' optimisers in this round."""
        training = self.training
        return float(training.learning_rate * training.learning_rate_decay ** (self.number - 1))


@dataclass(frozen=True)
class Strategy:
    """A rule with its options bound.

    Attributes:
        combine: None: it works on the weighted mean of the updates.
        remember: None: its `combine` needs no memory.
        least: fewest updates that `combine` takes.
        needs: figures of each of them, by their names in `Trained`, without which it takes none.
    """

    name: str
    step: Callable[..., tuple[Arrays, Arrays]]
    combine: Callable[[Updates, Weights, Told], Arrays] | None = None
    remember: Callable[[Weights, Told], Arrays] | None = None
    least: int = 1
    needs: tuple[str, ...] = ()
    by_turn: bool = False


def combine(
    strategy: Strategy, updates: Updates, weights: Weights, told: Told
) -> tuple[Arrays, Arrays]:
    """What the strategy makes of the hospitals' updates, and what it remembers of the round.

    Nothing depends on the order of the hospitals. Arrays of floats keep their dtype, integer ones
    (counters) become float64.

    Raises:
        NotCombined: fewer updates than the rule needs, a figure that a hospital did not tell, or NaN or
            infinite numbers, which never get into a model.
        ValueError: a strategy that works on the mean.
    """
    if strategy.combine is None:
        raise ValueError(f"{strategy.name} works on the mean of the updates")
    if len(updates) < strategy.least:
        raise NotCombined(
            f"strategy={strategy.name} needs {strategy.least} hospitals, and {len(updates)} sent an "
            f"update: set participation.least={strategy.least}, and ask more hospitals"
        )
    ordered = {name: updates[name] for name in sorted(updates)}
    wrong = [name for name, update in ordered.items() if not _finite(update)]
    if wrong:
        raise NotCombined(f"NaN or infinite numbers in the update of {', '.join(wrong)}")
    weighed = {name: float(weights[name]) for name in ordered}
    combined = strategy.combine(ordered, weighed, told)
    memory = strategy.remember(weighed, told) if strategy.remember else {}
    if not (_finite(combined) and _finite(memory)):
        raise NotCombined(
            f"strategy={strategy.name} made NaN or infinite numbers of finite updates: lower "
            "strategy.server_learning_rate or training.learning_rate"
        )
    return combined, memory


def _finite(arrays: Arrays) -> bool:
    return all(np.isfinite(array).all() for array in arrays.values() if array.dtype.kind == "f")


def move(
    strategy: Strategy,
    model: Arrays,
    mean: Arrays,
    memory: Arrays,
    parameters: frozenset[str],
    turn: Turn | None = None,
) -> tuple[Arrays, Arrays]:
    """The strategy on the parameters; the mean on everything else, integers kept integers.

    Args:
        mean: of the hospitals' updates, for all of the model's arrays.
        memory: what the strategy remembers.
        parameters: names of the trainable arrays.
        turn: strategies that are `by_turn` cannot do without.
    """
    own = {name: model[name] for name in model if name in parameters}
    more = (turn,) if strategy.by_turn else ()
    stepped, after = strategy.step(own, {name: mean[name] for name in own}, memory, *more)
    moved: Arrays = {}
    for name, array in model.items():
        value = stepped[name] if name in stepped else array + mean[name]
        whole = array.dtype.kind in "iu"
        # asarray: NumPy's arithmetic turns arrays without axes into scalars
        moved[name] = np.asarray(np.rint(value) if whole else value).astype(array.dtype)
    return moved, {name: np.asarray(array) for name, array in after.items()}


def begin(experiment: Experiment, model: Arrays, parameters: frozenset[str]) -> Arrays:
    """What the strategy remembers before the first round; empty for most."""
    module, chosen = registry.find(sys.modules[__name__], experiment.strategy)
    if not hasattr(module, "begin"):
        return {}
    own = {name: array for name, array in model.items() if name in parameters}
    memory: Arrays = module.begin(chosen, own)
    return memory


def sent_down(memory: Arrays) -> Arrays:
    """What of a strategy's memory travels to the hospitals with the model."""
    return {name: array for name, array in memory.items() if name.startswith(DOWN)}


def moves_by_turn(experiment: Experiment) -> bool:
    """Whether a step has to know of its round more than the mean update."""
    module, _ = registry.find(sys.modules[__name__], experiment.strategy)
    return bool(getattr(module, "BY_TURN", False))


def kept_at_hospitals(experiment: Experiment, network: nn.Module) -> frozenset[str]:
    """Names of the model's arrays that never leave a hospital; empty for most strategies."""
    module, chosen = registry.find(sys.modules[__name__], experiment.strategy)
    return frozenset(module.keeps(chosen, network)) if hasattr(module, "keeps") else frozenset()


def has_personal_models(experiment: Experiment) -> bool:
    """Whether each hospital has a model of its own beside the global one."""
    module, _ = registry.find(sys.modules[__name__], experiment.strategy)
    return bool(getattr(module, "PERSONAL", False))


def metric_names(experiment: Experiment, task_metrics: Sequence[str]) -> tuple[str, ...]:
    """What hospitals measure: the task's metrics, and the same of their own models, if they have any."""
    personal = has_personal_models(experiment)
    return (*task_metrics, *(PERSONAL + name for name in task_metrics if personal))


def options(experiment: Experiment) -> Any:
    """The strategy's own options, checked."""
    return registry.find(sys.modules[__name__], experiment.strategy)[1]


def needs_single_updates(experiment: Experiment) -> bool:
    """Whether the rule works on the hospitals' updates one by one, not on their mean."""
    module, _ = registry.find(sys.modules[__name__], experiment.strategy)
    return bool(getattr(module, "SINGLE_UPDATES", False))


def bound_at_hospitals(experiment: Experiment) -> float | None:
    """The L2 norm to which each hospital shortens its update by itself under a secure sum."""
    module, chosen = registry.find(sys.modules[__name__], experiment.strategy)
    option = getattr(module, "AT_HOSPITALS", None)
    return None if option is None else getattr(chosen, option)


def normaliser(experiment: Experiment) -> Callable[[int, int], float] | None:
    """From a round's number and the local steps that a hospital did in it to what, in (0, 1], it divides
    its update by before a secure sum; None: the rule has nothing divided.
    """
    module, _ = registry.find(sys.modules[__name__], experiment.strategy)
    if not hasattr(module, "normaliser"):
        return None

    def of(number: int, steps: int) -> float:
        turn = Turn(number, 1.0, experiment.training)
        return float(module.normaliser(turn.training, steps, turn.learning_rate))

    return of


def why_unsummed(experiment: Experiment) -> str | None:
    """What is in the way of a secure sum, to follow the rule's name; None: nothing is."""
    module, _ = registry.find(sys.modules[__name__], experiment.strategy)
    by_hospitals = (normaliser(experiment), bound_at_hospitals(experiment))
    if not needs_single_updates(experiment) or any(one is not None for one in by_hospitals):
        return None
    return getattr(module, "UNSUMMED", "looks at single updates, which nobody has there")


def figures_for(experiment: Experiment) -> frozenset[str]:
    """What hospitals should tell beside what they always do, for the rule's sake: names of `Told`."""
    module, _ = registry.find(sys.modules[__name__], experiment.strategy)
    return frozenset((*getattr(module, "NEEDS", ()), *getattr(module, "PREFERS", ())))


def build(experiment: Experiment) -> Strategy:
    """The strategy that the experiment names.

    Raises:
        federation.schema.ConfigError: unknown name or option, or an experiment the rule refuses.
    """
    module, chosen = registry.find(sys.modules[__name__], experiment.strategy)
    if hasattr(module, "check"):
        module.check(experiment)
    name, step = experiment.strategy.name, partial(module.step, chosen)
    by_turn = bool(getattr(module, "BY_TURN", False))
    if not getattr(module, "SINGLE_UPDATES", False):
        return Strategy(name, step, by_turn=by_turn)
    least: int = module.least(chosen) if hasattr(module, "least") else 1
    _require_its_needs(experiment, module, least)
    return Strategy(
        name,
        step,
        partial(module.combine, chosen),
        partial(module.remember, chosen) if hasattr(module, "remember") else None,
        least,
        tuple(getattr(module, "NEEDS", ())),
        by_turn,
    )


_FIGURES = {
    "loss": "training loss",
    "steps": "number of local steps",
    "loss_before": "loss of the model that it received",
    "loss_after": "loss of the model that it trained",
}


def _require_its_needs(experiment: Experiment, module: Any, least: int) -> None:
    """What a rule that looks at single updates declares, against what the experiment has."""
    name, participation = experiment.strategy.name, experiment.participation
    told = {field.name for field in fields(Trained)}
    for need in getattr(module, "NEEDS", ()):
        if experiment.privacy is not None:
            raise ConfigError(
                f"strategy={name} needs each hospital's {_FIGURES[need]}, which has no noise and is not "
                "told under privacy=patient_dp: choose strategy=fedavg, or privacy=none"
            )
        if need not in told:
            raise ConfigError(
                f"strategy={name} needs each hospital's {_FIGURES[need]}, which hospitals do not tell "
                "yet: choose strategy=fedavg"
            )
    if participation.least < least:
        raise ConfigError(
            f"strategy={name} needs {least} hospitals in each round, and participation.least is "
            f"{participation.least}: set participation.least={least}"
        )
    if getattr(module, "ONE_VOTE", False) and participation.weighting != "equal":
        raise ConfigError(
            f"strategy={name} gives each hospital one vote, since its word for its size may be as bad "
            "as what it trained: choose participation.weighting=equal"
        )
    if getattr(module, "BY_COORDINATE", False) and _own_coordinates(experiment):
        raise ConfigError(
            f"strategy={name} compares hospitals coordinate by coordinate, and with codec=top_k each "
            "sends its own, so that most are compared with zeros: choose codec=rand_k, int8 or none"
        )


def _own_coordinates(experiment: Experiment) -> bool:
    """Whether hospitals choose which coordinates of an update they send."""
    codec = experiment.codec
    if codec is None or codec.sparsify is None:
        return False
    return not registry.find(sparsify, codec.sparsify)[0].LINEAR
