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
        return {
            name: np.asarray(-array - worked.update[name] / gone).astype(array.dtype)
            for name, array in towards.items()
        }

    return Local(correct=correct, remember=remember)
