"""What came with a request: the model, ready on the processor that works."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from client_app.policy import Refused
from client_app.site import Site
from client_app.training.device import pick_device
from federation import models, tasks, wire
from federation.messages import Arrays, Reason, Request, Shape
from federation.schema import ConfigError, Experiment, Training
from federation.tasks import Task


@dataclass(frozen=True)
class Asked:
    """A request that policy allows, before anything of the hospital's was looked at.

    Attributes:
        training: what policy left of the experiment's.
        model: the blob that came.
        audit_head: of the audit log, this request included; a charge is tied to it.
        began: `time.monotonic` when the request was there.
    """

    request: Request
    experiment: Experiment
    training: Training
    site: Site
    model: bytes
    audit_head: str
    began: float


@dataclass(frozen=True)
class Received:
    """The model that came: its arrays, and the network that holds them."""

    task: Task
    network: nn.Module
    arrays: Arrays
    shape: Shape
    device: torch.device


def receive(asked: Asked) -> Received:
    """Read the model.

    Raises:
        ConfigError: a task or model that is not known, or does not fit.
        WireError: not the arrays that the experiment's model has.
        Refused: the site names a processor that is not here.
    """
    experiment, site = asked.experiment, asked.site
    if site.threads is not None:
        torch.set_num_threads(site.threads)
    task = tasks.build(experiment.task)
    try:
        device = pick_device(site.device)
    except ConfigError as error:
        raise Refused(Reason.BAD_SITE) from error
    network = models.build(experiment.model, task, seed=experiment.seed)
    shape = Shape.of(arrays_of(network))
    arrays = wire.unpack(asked.model, shape)
    network.load_state_dict({name: torch.from_numpy(a.copy()) for name, a in arrays.items()})
    return Received(task, network.to(device), arrays, shape, device)


def arrays_of(network: nn.Module) -> Arrays:
    """All that a model is, on the CPU: parameters and buffers."""
    return {name: tensor.detach().cpu().numpy() for name, tensor in network.state_dict().items()}


def update_of(received: Received) -> Arrays:
    """What training changed: the network as it is minus the model as it came."""
    local = arrays_of(received.network)
    return {name: local[name] - array for name, array in received.arrays.items()}


def local_seed(asked: Asked) -> int:
    """The seed of a hospital's training in one round: the same after a crash as before it."""
    parts = (asked.experiment.seed, asked.site.hospital, asked.request.round)
    return tasks.seeded(*parts).initial_seed()


def learning_rate(asked: Asked) -> float:
    """Of this round; rounds count from 1."""
    training = asked.training
    return float(training.learning_rate * training.learning_rate_decay ** (asked.request.round - 1))
