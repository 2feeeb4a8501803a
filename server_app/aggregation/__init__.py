"""How hospitals' updates become one: read each and average, or a sum that nobody can take apart.

A round asks an `Aggregation` and knows not which it has.
"""

from __future__ import annotations

from torch import nn

from federation import models, strategies
from federation.codec import chain
from federation.fairness.layout import Layout
from federation.figures import Figures
from federation.messages import Expected, Shape
from federation.schema import Experiment
from federation.secure_aggregation.combinations import require_summable
from federation.tasks import Task
from server_app.aggregation.encrypted import Encrypted
from server_app.aggregation.gathered import Aggregation, Gathered
from server_app.aggregation.masked import Masked
from server_app.aggregation.plain import Plain
from server_app.aggregation.sealed_sums import KeyRing
from server_app.courier import Courier
from server_app.descent import Descent
from server_app.state import Checkpoint

__all__ = ["Aggregation", "Gathered", "build", "descent_of", "untrained"]


def untrained(experiment: Experiment, network: nn.Module) -> Checkpoint:
    """Where a run begins: the network's numbers, or none where only hospitals hold the model."""
    if _at_home(experiment):
        return Checkpoint(0, {}, {})
    fresh = {name: array.copy() for name, array in models.arrays_of(network).items()}
    parameters = frozenset(name for name, _ in network.named_parameters())
    return Checkpoint(0, fresh, strategies.begin(experiment, fresh, parameters))


def descent_of(experiment: Experiment) -> Descent:
    """How the run's model goes down; it does not, where hospitals hold it."""
    return Descent(None if _at_home(experiment) else experiment.codec)


def _at_home(experiment: Experiment) -> bool:
    secure = experiment.secure_aggregation
    return secure is not None and secure.name == "ckks"


def build(experiment: Experiment, courier: Courier, network: nn.Module, task: Task) -> Aggregation:
    """The aggregation that the experiment names.

    Raises:
        ConfigError: stages of its codec that do not fit the network, or cannot be summed in secret.
    """
    figures = Figures.of(experiment, task)
    expected = Expected(
        Shape.of(models.arrays_of(network)),
        frozenset(strategies.metric_names(experiment, task.metrics)),
        private=experiment.privacy is not None,
        tally=figures.tally,
        counts=Layout.of_experiment(experiment, task),
    )
    codec = None
    if experiment.codec is not None:
        codec = chain.build(experiment.codec, network, seed=experiment.seed)
    if experiment.secure_aggregation is None:
        parameters = frozenset(name for name, _ in network.named_parameters())
        return Plain(courier, experiment, expected, parameters, codec)
    summable = require_summable(experiment, codec)
    roster = courier.exchange.roster
    if _at_home(experiment):
        ring = KeyRing.of(courier.folder)
        return Encrypted(
            courier,
            experiment,
            experiment.secure_aggregation,
            expected,
            summable,
            figures,
            roster,
            ring,
        )
    return Masked(
        courier, experiment, experiment.secure_aggregation, expected, summable, figures, roster
    )
