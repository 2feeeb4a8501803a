"""What tests of SCAFFOLD and FedDyn share: small experiments, and whether both sides' sums are equal."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from torch import nn

from client_app.local_state import LocalState
from client_app.residual import Residual
from federation import models, tasks
from federation.codec import chain as chains
from federation.messages import Arrays
from federation.schema import Experiment
from server_app.state import Checkpoint, RunFolder
from tests.hospitals import Hospitals, content

RATE, STEPS = 0.05, 2
TRAINING = {
    "local_steps": STEPS,
    "batch_size": 2,
    "optimizer": "sgd",
    "learning_rate": RATE,
}
CHOICES = {"scaffold": {"name": "scaffold"}, "feddyn": {"name": "feddyn", "alpha": 0.5}}


def of(name: str, **changes: Any) -> Experiment:
    base = {"strategy": CHOICES[name], "training": TRAINING, "rounds": 9}
    base["evaluation"] = {"every": 1000}
    return content(**(base | changes))


@cache
def network_of(experiment: Experiment) -> nn.Module:
    return models.build(experiment.model, tasks.build(experiment.task), seed=experiment.seed)


def parameters(experiment: Experiment) -> list[str]:
    return [name for name, _ in network_of(experiment).named_parameters()]


def state(made: Hospitals, name: str, run: str) -> LocalState:
    return LocalState.of(made.sites[name].state, run, sha256(made, run))


def sha256(made: Hospitals, run: str) -> str:
    return RunFolder(made.folder / "runs" / run).experiment().sha256()


def kept(made: Hospitals, name: str, run: str) -> Arrays:
    return state(made, name, run).newest()


def mean_kept(made: Hospitals, run: str, parameter: str) -> Any:
    own = [kept(made, name, run) for name in made.sites]
    return sum(arrays[parameter].astype(np.float64) if arrays else 0 for arrays in own) / len(own)


def kept_here(done: Checkpoint, experiment: Experiment, parameter: str) -> Any:
    """c, or h."""
    prefix = "down/" if experiment.strategy.name == "scaffold" else ""
    return done.strategy[prefix + parameter]


def require_agreement(made: Hospitals, done: Checkpoint, of: Experiment, run: str) -> Any:
    """What the coordinator keeps is the mean of what hospitals keep, but for what is still to come of
    the updates and of the model; how far apart they are."""
    chain = chains.build(of.codec, network_of(of), seed=of.seed) if of.codec else None
    missing, at, shapes = np.zeros(0), 0, {n: a.shape for n, a in done.model.items()}
    if chain is not None:
        left = [
            Residual.of(site.state, run, of.sha256()).before(99) for site in made.sites.values()
        ]
        missing = np.mean([part for part in left if part is not None], axis=0)
        shapes = chain.stages.exchange.shapes
    rate = of.training.learning_rate_decay ** (done.round - 1) * RATE  # of what is to come
    factor = 1 / (STEPS * rate) if of.strategy.name == "scaffold" else 0.5
    apart = []
    for array, shape in shapes.items():
        size = int(np.prod(shape))
        to_come, at = missing[at : at + size], at + size
        if array not in parameters(of):
            continue
        ours, mean = kept_here(done, of, array), mean_kept(made, run, array)
        expected = mean - done.codec.get("residual/down/" + array, np.float32(0))
        if chain is not None:
            expected = expected + factor * to_come.reshape(shape)
        np.testing.assert_allclose(ours, expected, atol=1e-4, err_msg=array)
        apart.append(np.abs(ours - mean).max())
    return max(apart)
