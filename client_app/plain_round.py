"""One request of a run without privacy: exact update, exact counts, exact metrics."""

from __future__ import annotations

import time

from flwr.app import RecordDict

from client_app.outbox import Outbox
from client_app.patients import Patients, find_patients
from client_app.policy import require_patients
from client_app.received import Asked, Received, learning_rate, local_seed, receive, update_of
from client_app.training import loop
from client_app.training.device import feeding_processes
from federation.messages import Evaluated, Trained


def serve_plain(asked: Asked, outbox: Outbox) -> RecordDict:
    """The answer: the received model evaluated, then trained, as far as was asked."""
    request, site = asked.request, asked.site
    received = receive(asked)
    patients = find_patients(site, asked.experiment)
    require_patients(site.policy, patients.cohort.training_patients)
    evaluated = None
    if request.evaluate:
        evaluated = _evaluate(received, patients, site.policy.smallest_group)
    trained = _train(asked, received, patients) if request.train else None
    return outbox.answer(
        request,
        trained=trained,
        evaluated=evaluated,
        shape=received.shape,
        metrics=frozenset(received.task.metrics),
    )


def _evaluate(received: Received, patients: Patients, smallest: int) -> Evaluated | None:
    """The received model on the held-out patients; None where there are too few of them."""
    held_out = patients.held_out
    if patients.cohort.held_out_patients < max(smallest, 1):
        return None
    metrics = loop.evaluate(
        received.network, received.task, held_out.cases, held_out, device=received.device
    )
    return Evaluated(metrics, len(held_out), patients.cohort.held_out_patients)


def _train(asked: Asked, received: Received, patients: Patients) -> Trained:
    began = time.monotonic()
    done = loop.train(
        received.network,
        received.task,
        patients.training,
        asked.training,
        device=received.device,
        seed=local_seed(asked),
        learning_rate=learning_rate(asked),
        workers=feeding_processes(received.device, asked.site.workers),
    )
    return Trained(
        update=update_of(received),
        patients=patients.cohort.training_patients,
        examples=len(patients.training),
        loss=done.loss,
        seconds=time.monotonic() - began,
    )
