"""FedDyn's part at the hospital: gradients − gₖ + α·(y − w), and gₖ ← gₖ − α·Δₖ; see
`federation.strategies.feddyn`. Kept between rounds: gₖ, by the parameters' names.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn

from client_app.training.local import Local, Worked
from client_app.training.local._variates import of_parameters
from federation import strategies
from federation.messages import Arrays
from federation.schema import Experiment


def build(experiment: Experiment, network: nn.Module, memory: Arrays, down: Arrays) -> Local:
    alpha = strategies.options(experiment).alpha
    own = of_parameters(network, memory)
    parameters = dict(network.named_parameters())
    received = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    linear = {name: parameters[name].new_tensor(array) for name, array in own.items()}

    def correct(name: str, value: Tensor) -> Tensor:
        correction: Tensor = alpha * (value - received[name]) - linear[name]
        return correction

    def remember(worked: Worked) -> Arrays:
        return {
            name: np.asarray(array - alpha * worked.update[name]).astype(array.dtype)
            for name, array in own.items()
        }

    return Local(correct=correct, remember=remember)
