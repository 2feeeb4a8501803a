"""How hospitals' updates become one: read each and average, or a sum that nobody can take apart.

A round asks an `Aggregation` and knows not which it has.
"""

from __future__ import annotations

from torch import nn

from federation import models
from federation.codec import chain
from federation.figures import Figures
from federation.messages import Expected, Shape
from federation.schema import Experiment
from federation.secure_aggregation.combinations import require_summable
from federation.tasks import Task
from server_app.aggregation.gathered import Aggregation, Gathered
from server_app.aggregation.masked import Masked
from server_app.aggregation.plain import Plain
from server_app.courier import Courier

__all__ = ["Aggregation", "Gathered", "build"]


def build(experiment: Experiment, courier: Courier, network: nn.Module, task: Task) -> Aggregation:
    """The aggregation that the experiment names.

    Raises:
        ConfigError: stages of its codec that do not fit the network, or cannot be summed in secret.
    """
    figures = Figures.of(experiment, task)
    expected = Expected(
        Shape.of(models.arrays_of(network)),
        frozenset(task.metrics),
        private=experiment.privacy is not None,
        tally=figures.tally,
    )
    codec = None
    if experiment.codec is not None:
        codec = chain.build(experiment.codec, network, seed=experiment.seed)
    if experiment.secure_aggregation is None:
        return Plain(courier, experiment, expected, codec)
    summable = require_summable(experiment, codec)
    roster = courier.exchange.roster
    return Masked(
        courier, experiment, experiment.secure_aggregation, expected, summable, figures, roster
    )
