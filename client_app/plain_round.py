"""One request of a run without privacy: exact update, exact counts, exact metrics."""

from __future__ import annotations

import time

from flwr.app import RecordDict

from client_app.answers import place
from client_app.outbox import Outbox, SecureSum
from client_app.patients import Patients, find_patients
from client_app.policy import require_patients
from client_app.received import (
    Asked,
    Encoding,
    Received,
    learning_rate,
    local_seed,
    receive,
    trainable,
    update_of,
)
from client_app.training import loop
from client_app.training.device import feeding_processes
from federation import strategies
from federation.messages import Evaluated, Trained


def serve_plain(asked: Asked, outbox: Outbox, secure: SecureSum | None = None) -> RecordDict:
    """The answer: the received model evaluated, then trained, as far as was asked.

    Args:
        secure: of a run whose updates are summed in secret.
    """
    received = receive(asked)
    if secure is None:
        evaluated, trained = _work(asked, received)
        return outbox.answer(
            asked.request,
            trained=trained,
            evaluated=evaluated,
            shape=received.shape,
            metrics=frozenset(received.task.metrics),
            protection=Encoding(asked, received),
        )
    kept = place(asked, received)
    protection = secure.of(received)
    if (sent := kept.find()) is not None:
        return outbox.repeat(asked.request, sent, protection)
    evaluated, trained = _work(asked, received)
    return outbox.answer(
        asked.request,
        trained=trained,
        evaluated=evaluated,
        shape=received.shape,
        metrics=frozenset(received.task.metrics),
        keep=kept.keep,
        protection=protection,
    )


def _work(asked: Asked, received: Received) -> tuple[Evaluated | None, Trained | None]:
    request, policy = asked.request, asked.site.policy
    patients = find_patients(asked.site, asked.experiment)
    require_patients(policy, patients.cohort.training_patients)
    evaluated = trained = None
    if request.evaluate:
        evaluated = _evaluate(received, patients, policy.smallest_group)
    if request.train:
        trained = _train(asked, received, patients)
    return evaluated, trained


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
    before = _compared(asked, received, patients)
    with trainable(asked, received):
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
    after = _compared(asked, received, patients)
    return Trained(
        update=update_of(received),
        patients=patients.cohort.training_patients,
        examples=len(patients.training),
        loss=done.loss,
        seconds=time.monotonic() - began,
        steps=done.steps,
        loss_before=before,
        loss_after=after,
    )


def _compared(asked: Asked, received: Received, patients: Patients) -> float | None:
    """The loss of the model as it is, where the strategy compares hospitals by it."""
    if not strategies.figures_for(asked.experiment) & {"loss_before", "loss_after"}:
        return None
    return loop.mean_loss(
        received.network,
        received.task,
        patients.training,
        asked.training,
        device=received.device,
        seed=local_seed(asked),
        workers=feeding_processes(received.device, asked.site.workers),
    )
