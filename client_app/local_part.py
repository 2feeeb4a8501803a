"""A strategy's local part in one request: what stays here goes in, and is kept again afterwards."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import nn

from client_app.local_state import LocalState
from client_app.received import (
    Asked,
    Received,
    counted_before,
    due,
    learning_rate,
    local_seed,
    update_of,
)
from client_app.training import local, loop
from client_app.training.local import Local, Worked, recalled
from federation import models, strategies, tasks
from federation.messages import Arrays, Evaluated
from federation.schema import Experiment, Training

Train = Callable[..., loop.Trained]
"""`loop.train` with all bound but `network`, `training`, `seed` and `correct`."""


@dataclass(frozen=True)
class LocalPart:
    """Of a request's model; what stays at the hospital is in the network from here on."""

    asked: Asked
    received: Received
    local: Local

    @classmethod
    def of(cls, asked: Asked, received: Received) -> LocalPart:
        """Raises ConfigError: the strategy refuses the experiment, or does not fit the network."""
        strategies.build(asked.experiment)
        request = asked.request
        state = LocalState.of(asked.site.state, request.run, asked.experiment.sha256())
        counted = request.counted if request.train else None
        memory = state.before(request.round) if counted is None else state.counted(counted)
        part = local.build(asked.experiment, received.network, memory, received.down)
        own = models.state_of(received.network)
        for name, array in part.kept.items():
            own[name].copy_(own[name].new_tensor(array))
        return cls(asked, received, part)

    def train(self, train: Train) -> loop.Trained:
        """The training that is sent, phase by phase where there are phases."""
        network, correct = self.received.network, self.local.correct
        done = [
            train(network, training=training, seed=seed, correct=correct)
            for training, seed in self.phases()
        ]
        if len(done) == 1:
            return done[0]
        steps = sum(one.steps for one in done)
        return loop.Trained(sum(one.loss * one.steps for one in done) / steps, steps)

    def phases(self) -> Iterator[tuple[Training, int]]:
        """Training and seed of each phase; until the next nothing but its parameters needs gradients.

        Together they have the steps that were asked for.
        """
        training, seed = self.asked.training, local_seed(self.asked)
        if not self.local.phases:
            yield training, seed
            return
        done, share = 0, 0.0
        for number, (names, own_share) in enumerate(self.local.phases):
            share += own_share
            steps = round(training.local_steps * share) - done
            if steps == 0:
                continue
            done += steps
            own_seed = tasks.seeded(seed, "phase", number).initial_seed() if number else seed
            with _moving_only(self.received.network, names):
                yield training.model_copy(update={"local_steps": steps}), own_seed

    def train_personal(self, train: Train) -> Arrays:
        """The personal model's arrays after its training; empty where there is none.

        Its steps are on the batches of the training that is sent, and without a proximal term: what
        holds it near the global model is the strategy's.
        """
        network, personal = self.personal_network(), self.local.personal
        if network is None or personal is None:
            return {}
        training = self.asked.training.model_copy(update={"proximal_mu": 0.0})
        train(network, training=training, seed=local_seed(self.asked), correct=personal.correct)
        return {name: array.copy() for name, array in models.arrays_of(network).items()}

    def with_personal(
        self, evaluated: Evaluated, measure: Callable[[nn.Module], dict[str, float]]
    ) -> Evaluated:
        """The same, with what the personal model measures as it was after the round before."""
        network = self.personal_network()
        if network is None:
            return evaluated
        own = measure(network)
        named = {strategies.PERSONAL + name: value for name, value in own.items()}
        return replace(evaluated, metrics=evaluated.metrics | named)

    def personal_network(self) -> nn.Module | None:
        """The personal model as it was after the round before; None where the strategy has none."""
        personal = self.local.personal
        if personal is None:
            return None
        network = copy.deepcopy(self.received.network)
        for name, own in models.state_of(network).items():
            own.copy_(own.new_tensor(personal.start[name]))
        return network

    def finish(self, steps: int, personal: Arrays) -> Arrays:
        """The update as it may leave: of what stays here it is 0; the memory is on the disk."""
        update = update_of(self.received)
        if self.local.remember is not None:
            worked = Worked(
                update=due(self.asked, self.received, update),
                model=models.arrays_of(self.received.network),
                personal=personal,
                steps=steps,
                learning_rate=learning_rate(self.asked),
                left_over=counted_before(self.asked, self.received),
            )
            request = self.asked.request
            state = LocalState.of(
                self.asked.site.state, request.run, self.asked.experiment.sha256()
            )
            state.keep(request.round, self.local.remember(worked), request.counted)
        return {
            name: np.zeros_like(array) if name in self.local.kept else array
            for name, array in update.items()
        }


def kept_here(state: Path, run: str, experiment: Experiment, network: nn.Module) -> Arrays | None:
    """What of a run's model is this hospital's own, after its newest round; None: nothing of it is here.

    That is layers, or all of a personal model's arrays where the strategy has one beside the global.

    Args:
        state: the hospital's folder.
    """
    own = models.arrays_of(network)
    if not strategies.has_personal_models(experiment):
        layers = strategies.kept_at_hospitals(experiment, network)
        own = {name: own[name] for name in sorted(layers)}
    return recalled(LocalState.of(state, run, experiment.sha256()).newest(), own) if own else None


@contextmanager
def _moving_only(network: nn.Module, names: frozenset[str]) -> Iterator[None]:
    """While in here, of what needed gradients only these parameters do."""
    others = [p for name, p in network.named_parameters() if p.requires_grad and name not in names]
    for parameter in others:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in others:
            parameter.requires_grad_(True)
