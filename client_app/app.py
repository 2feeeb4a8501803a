"""Flower's entry point at the hospital: the story of one request.

Nothing heavy is imported before the request is there, and nothing may leave but through the outbox:
whatever goes wrong, with whatever text, becomes a reason code.
"""

from __future__ import annotations

import json
import os
import time
import warnings
from logging import CRITICAL, getLogger
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client_app.outbox import Outbox, describe, last_resort
from client_app.policy import Refused, allow, require_patients
from client_app.site import SITE_VARIABLE, read_site
from federation import wire
from federation.schema import ConfigError, Experiment, Site, Training
from federation.wire import Arrays, Evaluated, Reason, Request, Shape, Trained, WireError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from client_app.patients import Patients
    from federation.tasks import Task

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """One exchange: evaluate the model that came, train it, answer."""
    return Message(serve(message.content, dict(context.run_config)), reply_to=message)


def serve(records: RecordDict, run_config: dict[str, Any]) -> RecordDict:
    """The records to send back, whatever happens.

    Flower sends the text of an exception to the coordinator. So none gets past here: not of a site
    configuration that cannot be read, and not of a log that cannot be written.
    """
    try:
        _keep_libraries_quiet()
        try:
            site = read_site(Path(os.environ[SITE_VARIABLE]))
        except (ConfigError, OSError):
            return last_resort(Reason.BAD_SITE)
        site.state.mkdir(parents=True, exist_ok=True)
        return respond(records, run_config, site)
    except Exception:
        return last_resort(Reason.INTERNAL_ERROR)


def respond(records: RecordDict, run_config: dict[str, Any], site: Site) -> RecordDict:
    """The records to send back for the records that came."""
    outbox = Outbox(site.state / "sent.jsonl")
    request: Request | None = None
    try:
        request = wire.request_from_records(records)
        experiment = Experiment.from_canonical(
            str(run_config["experiment"]), str(run_config["experiment-sha256"])
        )
        return _work(records, request, experiment, site, outbox)
    except Refused as refused:
        return outbox.refusal(request, refused.reason)
    except WireError as error:
        return outbox.refusal(request, error.reason)
    except ConfigError as error:
        _log(site, error)
        return outbox.refusal(request, Reason.BAD_EXPERIMENT)
    except Exception as error:
        _log(site, error)
        return outbox.refusal(request, _reason(error))


def _work(
    records: RecordDict, request: Request, experiment: Experiment, site: Site, outbox: Outbox
) -> RecordDict:
    training = allow(site.policy, experiment)

    import torch

    from client_app.patients import find_patients
    from client_app.training.device import feeding_processes, pick_device
    from federation import models, tasks

    if site.threads is not None:
        torch.set_num_threads(site.threads)
    task = tasks.build(experiment.task)
    try:
        device = pick_device(site.device)
    except ConfigError as error:
        raise Refused(Reason.BAD_SITE) from error
    patients = find_patients(site, experiment)
    require_patients(site.policy, patients.cohort.training_patients)
    network = models.build(experiment.model, task, seed=experiment.seed)
    shape = Shape.of(_arrays(network))
    received = wire.unpack(wire.blob(records), shape)
    network.load_state_dict({name: torch.from_numpy(a.copy()) for name, a in received.items()})
    network.to(device)
    evaluated = _evaluate(network, task, patients, device) if request.evaluate else None
    trained = None
    if request.train:
        seed = local_seed(experiment.seed, site.hospital, request.round)
        rate = decayed(training, request.round)
        workers = feeding_processes(device, site.workers)
        trained = _train(network, task, patients, training, device, seed, rate, received, workers)
    return outbox.answer(
        request, trained=trained, evaluated=evaluated, shape=shape, metrics=frozenset(task.metrics)
    )


def _evaluate(
    network: nn.Module, task: Task, patients: Patients, device: torch.device
) -> Evaluated | None:
    """The received model on the held-out patients; None where there are none."""
    from client_app.training.loop import evaluate

    held_out = patients.held_out
    if len(held_out) == 0:
        return None
    metrics = evaluate(network, task, held_out.cases, held_out, device=device)
    return Evaluated(metrics, len(held_out), patients.cohort.held_out_patients)


def _train(
    network: nn.Module,
    task: Task,
    patients: Patients,
    training: Training,
    device: torch.device,
    seed: int,
    rate: float,
    received: Arrays,
    workers: int,
) -> Trained:
    """Local training, and what it changed: local minus received model."""
    from client_app.training.loop import train as train_locally

    began = time.monotonic()
    done = train_locally(
        network,
        task,
        patients.training,
        training,
        device=device,
        seed=seed,
        learning_rate=rate,
        workers=workers,
    )
    local = _arrays(network)
    return Trained(
        update={name: local[name] - received[name] for name in received},
        examples=len(patients.training),
        patients=patients.cohort.training_patients,
        loss=done.loss,
        seconds=time.monotonic() - began,
    )


def local_seed(seed: int, hospital: str, round_: int) -> int:
    """The seed of a hospital's training in one round: the same after a crash as before it."""
    from federation.tasks import seeded

    return seeded(seed, hospital, round_).initial_seed()


def decayed(training: Training, round_: int) -> float:
    """The learning rate of a round, from 1."""
    return float(training.learning_rate * training.learning_rate_decay ** (round_ - 1))


def _arrays(network: nn.Module) -> Arrays:
    return {name: tensor.detach().cpu().numpy() for name, tensor in network.state_dict().items()}


def _reason(error: Exception) -> Reason:
    import torch

    from client_app.training.loop import NonFiniteLoss

    if isinstance(error, NonFiniteLoss):
        return Reason.DIVERGED
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return Reason.OUT_OF_MEMORY
    return Reason.INTERNAL_ERROR


def _log(site: Site, error: Exception) -> None:
    """For the hospital's eyes: what failed and where, without the error's text."""
    with (site.state / "errors.jsonl").open("a") as file:
        file.write(json.dumps({"time": time.time(), "error": describe(error)}) + "\n")


def _keep_libraries_quiet() -> None:
    """Readers of images warn with the values they read; this process's output is a log."""
    warnings.simplefilter("ignore")
    for name in ("pydicom", "nibabel", "highdicom", "monai", "py.warnings"):
        getLogger(name).setLevel(CRITICAL)
