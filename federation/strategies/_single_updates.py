"""What rules share that look at each hospital's update, not at the mean of them.

Numbers are summed in float64, in the order of the hospitals' names, and a block of coordinates at a
time, so that what is needed beside the updates does not grow with the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from federation.messages import Arrays
from federation.schema import Training

Updates = Mapping[str, Arrays]
"""By hospital, in the order of their names; all with the same names, shapes and dtypes, all finite."""
Weights = Mapping[str, float]
"""By hospital, above 0: training examples, or 1 for each."""
Matrix = NDArray[np.float64]

_BLOCK = 1 << 16  # coordinates at a time: 26 MB of float64 for fifty hospitals
_STATISTICS = ("running_mean", "running_var")  # as PyTorch names them


class NotCombined(ArithmeticError):
    """The updates of a round cannot be combined. The text says why, in one line."""


@dataclass(frozen=True)
class Told:
    """What is known of a round beside its updates.

    Figures are by hospital and hold only who told them. They are a hospital's own word.

    Attributes:
        round: counted from 1, of `rounds`.
        training: as the experiment asks for it.
        loss: mean task loss over the local steps, each on its own batch and its own weights.
        steps: optimiser steps that were done.
        loss_before: mean task loss of the received model on the training cases.
        loss_after: of the model that was trained from it, on the same cases.
        memory: what the rule remembered after the round before; empty before the first.
    """

    round: int
    rounds: int
    training: Training
    loss: Mapping[str, float] = field(default_factory=dict)
    steps: Mapping[str, float] = field(default_factory=dict)
    loss_before: Mapping[str, float] = field(default_factory=dict)
    loss_after: Mapping[str, float] = field(default_factory=dict)
    memory: Arrays = field(default_factory=dict)

    @property
    def learning_rate(self) -> float:
        """Of the hospitals' optimisers in this round."""
        training = self.training
        return float(training.learning_rate * training.learning_rate_decay ** (self.round - 1))

    def received_loss(self, weights: Weights) -> dict[str, float]:
        """F_k(w), the loss of the received model w, of the hospitals that have a weight.

        Where not all tell it, the mean loss over the local steps stands for it, the same way for all:
        equal to it, up to the batch, with one local step, and below it as far as local training gets.

        Raises:
            NotCombined: a hospital tells neither.
        """
        exact = all(name in self.loss_before for name in weights)
        return figures(self.loss_before if exact else self.loss, weights)


def figures(told: Mapping[str, float], weights: Weights) -> dict[str, float]:
    """Raises NotCombined: a hospital that has a weight did not tell."""
    missing = sorted(set(weights) - set(told))
    if missing:
        raise NotCombined(f"the rule needs a figure that {', '.join(missing)} did not tell")
    return {name: float(told[name]) for name in weights}


def shares(weights: Weights) -> dict[str, float]:
    """The weights as parts of one."""
    total = math.fsum(weights.values())
    return {name: weight / total for name, weight in weights.items()}


def enter(known: Mapping[str, float], weights: Weights) -> dict[str, float]:
    """Parts of one, of all hospitals so far: first the weights; who is new begins with a fair part."""
    if not known:
        return shares(weights)
    new = [name for name in weights if name not in known]
    count = len(known) + len(new)
    kept = {name: part * len(known) / count for name, part in known.items()}
    return kept | dict.fromkeys(new, 1 / count)


# --- parameters, and what is averaged beside them ------------------------------------------------


def is_parameter(name: str, array: NDArray[Any]) -> bool:
    """Whether an array is trained: no counter, and no running statistic of a normalisation layer.

    Statistics are in the units of the images, not of the weights, so no norm or distance may have both.
    """
    return array.dtype.kind == "f" and name.rpartition(".")[2] not in _STATISTICS


def parameters(updates: Updates) -> dict[str, Arrays]:
    return {
        hospital: {name: a for name, a in update.items() if is_parameter(name, a)}
        for hospital, update in updates.items()
    }


def others(updates: Updates) -> dict[str, Arrays]:
    """Statistics and counters."""
    return {
        hospital: {name: a for name, a in update.items() if not is_parameter(name, a)}
        for hospital, update in updates.items()
    }


def scale_parameters(update: Arrays, factor: float) -> Arrays:
    """One update with its parameters times a factor; statistics and counters as they are."""
    return {
        name: np.asarray(a * factor).astype(a.dtype) if is_parameter(name, a) else a
        for name, a in update.items()
    }


# --- arithmetic ----------------------------------------------------------------------------------


def weighted_sum(updates: Updates, factors: Weights, divisor: float = 1.0) -> Arrays:
    """Σ cₖ·Δₖ / divisor. Integer arrays (counters) become float64, the others keep their dtype."""
    combined: Arrays = {}
    for name, like in next(iter(updates.values())).items():
        total = np.zeros(like.shape, np.float64)
        for hospital in sorted(updates):
            total += factors[hospital] * updates[hospital][name]
        total /= divisor
        combined[name] = _as_update(total, like)
    return combined


def by_coordinate(updates: Updates, rule: Callable[[Matrix], Matrix]) -> Arrays:
    """A rule on each coordinate: float64 (hospitals, coordinates) to (coordinates,)."""
    combined: Arrays = {}
    for name, like in next(iter(updates.values())).items():
        result = np.empty(like.size, np.float64)
        for start, block in _blocks(updates, name, like.size):
            result[start : start + block.shape[1]] = rule(block)
        combined[name] = _as_update(result.reshape(like.shape), like)
    return combined


def median(updates: Updates) -> Arrays:
    """The median of each coordinate; of an even number of hospitals the mean of the middle two."""
    return by_coordinate(updates, _median)


def _median(block: Matrix) -> Matrix:
    ordered = np.sort(block, axis=0)
    low, high = (len(block) - 1) // 2, len(block) // 2
    middle: Matrix = ordered[low] + (ordered[high] - ordered[low]) / 2
    return middle


def norms(updates: Updates) -> dict[str, float]:
    """L2 norm of each update, over all its arrays."""
    squares = {
        hospital: math.fsum(float(np.sum(np.square(a, dtype=np.float64))) for a in update.values())
        for hospital, update in updates.items()
    }
    return {hospital: math.sqrt(square) for hospital, square in squares.items()}


def squared_distances(updates: Updates) -> Matrix:
    """‖Δᵢ − Δⱼ‖² over all arrays, float64 (hospitals, hospitals) in the order of their names.

    From differences, not from products: no distance is lost in rounding beside one update that is huge.
    """
    count = len(updates)
    squares = np.zeros((count, count))
    for name, like in next(iter(updates.values())).items():
        for _, block in _blocks(updates, name, like.size):
            for i in range(count - 1):
                apart = block[i + 1 :] - block[i]
                squares[i, i + 1 :] += np.einsum("ij,ij->i", apart, apart)
    distances: Matrix = squares + squares.T
    return distances


def _blocks(updates: Updates, name: str, size: int) -> Iterator[tuple[int, Matrix]]:
    rows = [updates[hospital][name].reshape(-1) for hospital in sorted(updates)]
    for start in range(0, size, _BLOCK):
        cut = slice(start, start + _BLOCK)
        yield start, np.stack([row[cut] for row in rows]).astype(np.float64)


def _as_update(values: Matrix, like: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(values.astype(like.dtype) if like.dtype.kind == "f" else values)
