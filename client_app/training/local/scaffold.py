"""SCAFFOLD's part at the hospital: gradients + c − cₖ, and cₖ ← cₖ − c − Δₖ/(K·η); see
`federation.strategies.scaffold`. Kept between rounds: cₖ, by the parameters' names.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn

from client_app.training.local import Local, Worked
from client_app.training.local._variates import of_parameters
from federation.messages import Arrays
from federation.schema import Experiment
from federation.strategies import DOWN, scaffold


def build(experiment: Experiment, network: nn.Module, memory: Arrays, down: Arrays) -> Local:
    own = of_parameters(network, memory)
    towards = {name: down[DOWN + name] - variate for name, variate in own.items()}
    parameters = dict(network.named_parameters())
    correction = {name: parameters[name].new_tensor(array) for name, array in towards.items()}

    def correct(name: str, value: Tensor) -> Tensor:
        return correction[name]

    def remember(worked: Worked) -> Arrays:
        gone = scaffold.distance(experiment.training, worked.learning_rate)
        update = _as_counted(worked, gone, experiment)
        return {
            name: np.asarray(-array - update[name] / gone).astype(array.dtype)
            for name, array in towards.items()
        }

    return Local(correct=correct, remember=remember)


def _as_counted(worked: Worked, gone: float, experiment: Experiment) -> Arrays:
    """The update, as over rounds it comes to what the coordinator divides by its own K·η.

    What a codec left over was counted here at the K·η of the round that left it, and arrives now, at
    this round's, which a decaying learning rate makes another one.
    """
    left = worked.left_over
    if left is None:
        return worked.update
    late = 1 - gone / scaffold.distance(experiment.training, left.learning_rate)
    return worked.update | {
        name: worked.update[name] + late * array for name, array in left.arrays.items()
    }
