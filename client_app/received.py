"""What came with a request: the model, ready on the processor that works."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from client_app import norm_bound
from client_app.held_model import HeldModel
from client_app.policy import Refused
from client_app.residual import Residual
from client_app.site import Site
from client_app.training.device import pick_device
from client_app.training.local import LeftOver
from federation import models, strategies, tasks, wire
from federation.codec.chain import Chain, Encoded, build
from federation.messages import Answer, Arrays, Reason, Request, Shape, Trained, WireError
from federation.schema import ConfigError, Experiment, Training
from federation.tasks import Task


@dataclass(frozen=True)
class Asked:
    """A request that policy allows, before anything of the hospital's was looked at.

    Attributes:
        training: what policy left of the experiment's.
        blob: that came with the request: the model, or what changed in it.
        audit_head: of the audit log, this request included; a charge is tied to it.
        began: `time.monotonic` when the request was there.
    """

    request: Request
    experiment: Experiment
    training: Training
    site: Site
    blob: bytes
    audit_head: str
    began: float


@dataclass(frozen=True)
class Received:
    """The model that came: its arrays, and the network that holds them.

    Attributes:
        packed: the whole model as `federation.wire.pack` writes it, whichever way it came.
        chain: how the update travels; None: as arrays.
        down: what the strategy sent beside the model; empty for most.
        left_over: what earlier updates lost in the codec, to be added to this round's; None: nothing.
    """

    task: Task
    network: nn.Module
    arrays: Arrays
    packed: bytes
    shape: Shape
    device: torch.device
    chain: Chain | None
    down: Arrays = field(default_factory=dict)
    left_over: NDArray[np.float32] | None = None


def receive(asked: Asked) -> Received:
    """Read the model.

    Raises:
        ConfigError: a task or model that is not known, or does not fit.
        WireError: not the arrays that the experiment's model has, or scales that are none.
        Refused: the site names a processor that is not here, what came is the difference to a model that
            is not held here, or what earlier updates lost in the codec is not here any more.
    """
    experiment, site = asked.experiment, asked.site
    if site.threads is not None:
        torch.set_num_threads(site.threads)
    task = tasks.of_experiment(experiment)
    try:
        device = pick_device(site.device)
    except ConfigError as error:
        raise Refused(Reason.BAD_SITE) from error
    network = models.build(experiment.model, task, seed=experiment.seed)
    own = models.arrays_of(network)
    shape = Shape.of(own)
    beside = _beside(experiment, network)
    secure = experiment.secure_aggregation
    at_home = secure is not None and secure.name == "ckks"  # no coordinator sent the model
    if experiment.codec is not None and experiment.codec.down == "differences" and not at_home:
        held = HeldModel.of(site.state, asked.request.run)
        arrays, packed = held.whole(asked.request, asked.blob, Shape.of(own | beside))
    elif asked.request.base is not None:
        raise WireError(Reason.MALFORMED)
    else:
        arrays, packed = wire.unpack(asked.blob, Shape.of(own | beside)), asked.blob
    down = {name: arrays.pop(name) for name in beside}
    for name, array in own.items():
        array[...] = arrays[name]
    chain = left = None
    if experiment.codec is not None:
        chain = build(experiment.codec, network, seed=experiment.seed)
        if asked.request.train:
            # refused before there is work, or a charge
            chain.scales_from_bytes(asked.request.scales)
            left = _left_over(asked, chain)
    return Received(task, network.to(device), arrays, packed, shape, device, chain, down, left)


def _beside(experiment: Experiment, network: nn.Module) -> Arrays:
    """Arrays as the strategy sends them beside the model."""
    parameters = frozenset(name for name, _ in network.named_parameters())
    memory = strategies.begin(experiment, models.arrays_of(network), parameters)
    return strategies.sent_down(memory)


def update_of(received: Received) -> Arrays:
    """What training changed: the network as it is minus the model as it came."""
    local = models.arrays_of(received.network)
    return {name: local[name] - array for name, array in received.arrays.items()}


def local_seed(asked: Asked) -> int:
    """The seed of a hospital's training in one round: the same after a crash as before it."""
    parts = (asked.experiment.seed, asked.site.hospital, asked.request.round)
    return tasks.seeded(*parts).initial_seed()


def learning_rate(asked: Asked, round_: int | None = None) -> float:
    """Of this round, or of another one; rounds count from 1."""
    training, number = asked.training, asked.request.round if round_ is None else round_
    return float(training.learning_rate * training.learning_rate_decay ** (number - 1))


@contextmanager
def trainable(asked: Asked, received: Received) -> Iterator[None]:
    """What of the network may change while it is trained: all, or what the codec exchanges."""
    if received.chain is None:
        yield
        return
    with received.chain.restrict(received.network, round=asked.request.round):
        yield


@dataclass(frozen=True)
class Encoding:
    """What is done to every answer's update on its way out: norm bound, and codec if there is one."""

    asked: Asked
    received: Received

    def protect(self, answer: Answer) -> Answer:
        """Raises WireError: an update that is not finite."""
        if answer.trained is None:
            return answer
        if self.received.chain is None:
            update = due(self.asked, self.received, answer.trained.update)
            return replace(answer, trained=replace(answer.trained, update=update))
        return replace(answer, trained=encode(self.asked, self.received, answer.trained))


def encode(asked: Asked, received: Received, trained: Trained) -> Trained:
    """The training with its update as the codec writes it; the same again for the same training.

    Raises:
        WireError: scales that are none, or an update that is not finite.
    """
    chain = _chain(received)
    encoded = quantised(asked, received, trained.update)
    return replace(trained, encoded=chain.to_bytes(encoded, round=asked.request.round))


def _left_over(asked: Asked, chain: Chain) -> NDArray[np.float32] | None:
    """Raises Refused: NO_STATE, the coordinator's sums wait for it and it is not here any more."""
    if not chain.codec.error_feedback:
        return None
    left, counted = _residual(asked), asked.request.counted
    # What the coordinator lacks of an answer that did not count is all of it, not what rounding left.
    return left.before(asked.request.round) if counted is None else left.counted(counted)


def _residual(asked: Asked) -> Residual:
    return Residual.of(asked.site.state, asked.request.run, asked.experiment.sha256())


def due(asked: Asked, received: Received, update: Arrays) -> Arrays:
    """What leaves of an update, now or with a later one: all of it but what the norm bound cuts away.

    Raises:
        WireError: an update that is not finite.
    """
    bound, chain = norm_bound.of(asked.site, asked.experiment), received.chain
    if bound is None:
        return update
    if chain is None:
        return norm_bound.shortened(update, received.network.named_parameters(), bound)
    return chain.due(update, received.left_over, round=asked.request.round, bound=bound)


def counted_before(asked: Asked, received: Received) -> LeftOver | None:
    """What of an earlier update is due by now and was not sent, where both sides count updates."""
    counted, chain, left = asked.request.counted, received.chain, received.left_over
    if not counted or chain is None or left is None:
        return None
    return LeftOver(chain.by_name(left), learning_rate(asked, counted))


def quantised(asked: Asked, received: Received, update: Arrays, share: float = 1.0) -> Encoded:
    """An update in the codec's integers, with what is left of it kept; the same again for the same one.

    Args:
        share: the update's weight in a sum, at most 1; error feedback is kept without it.

    Raises:
        WireError: scales that are none, or an update that is not finite.
    """
    chain, request, before = _chain(received), asked.request, received.left_over
    bound = norm_bound.of(asked.site, asked.experiment)
    if share != 1:
        update = {
            name: (array * share).astype(array.dtype, copy=False) for name, array in update.items()
        }
        before = None if before is None else before * np.float32(share)
    encoded = chain.encode(
        update,
        before,
        chain.scales_from_bytes(request.scales),
        round=request.round,
        seed=local_seed(asked),
        bound=None if bound is None else bound * share,
    )
    if encoded.residual is not None:
        rest = encoded.residual if share == 1 else encoded.residual / np.float32(share)
        _residual(asked).keep(request.round, rest, request.counted)
    return encoded


def _chain(received: Received) -> Chain:
    if received.chain is None:
        raise ValueError("an experiment without a codec")
    return received.chain
