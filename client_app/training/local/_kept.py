"""What rules share whose arrays stay here: how they are remembered.

Beside the arrays stands the experiment that they are of. What another experiment under the same run's
name left is not used: it may have been trained without the noise that this one promises.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from client_app.training.local import Worked
from federation.messages import Arrays, Shape
from federation.schema import Experiment

_OF = "of/experiment"


def remembered(arrays: Arrays, experiment: Experiment) -> Arrays:
    """A memory of these arrays."""
    return arrays | {_OF: _digest(experiment)}


def recalled(memory: Arrays, experiment: Experiment, like: Arrays) -> Arrays | None:
    """The arrays of a memory; None where there are none, or of another experiment or model.

    Args:
        like: arrays of the same names, dtypes and shapes.
    """
    arrays = {name: array for name, array in memory.items() if name != _OF}
    own = _OF in memory and np.array_equal(memory[_OF], _digest(experiment))
    return arrays if own and Shape.of(arrays) == Shape.of(like) else None


def remember(names: frozenset[str], experiment: Experiment) -> Callable[[Worked], Arrays]:
    """What the model has under these names after training."""
    return lambda worked: remembered({name: worked.model[name] for name in names}, experiment)


def _digest(experiment: Experiment) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    return np.frombuffer(bytes.fromhex(experiment.sha256()), np.uint8)
