"""One request of a run without privacy: exact update, exact counts, exact metrics."""

from __future__ import annotations

import time
from functools import partial

from flwr.app import RecordDict
from torch import nn

from client_app.answers import place
from client_app.group_counts import Ints, group_counts
from client_app.held_out_figures import exact_metrics
from client_app.local_part import LocalPart
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
)
from client_app.training import loop
from client_app.training.device import feeding_processes
from federation import strategies
from federation.fairness.layout import Layout
from federation.messages import Evaluated, Trained
from federation.tasks import Prediction


def serve_plain(asked: Asked, outbox: Outbox, secure: SecureSum | None = None) -> RecordDict:
    """The answer: the received model evaluated, then trained, as far as was asked.

    Args:
        secure: of a run whose updates are summed in secret.
    """
    received = receive(asked)
    layout = Layout.of_experiment(asked.experiment, received.task)
    if secure is None:
        evaluated, counts, trained = _work(asked, received, layout)
        return outbox.answer(
            asked.request,
            trained=trained,
            evaluated=evaluated,
            counts=counts,
            layout=layout,
            shape=received.shape,
            metrics=frozenset(strategies.metric_names(asked.experiment, received.task.metrics)),
            protection=Encoding(asked, received),
        )
    kept = place(asked, received)
    protection = secure.of(received)
    if (sent := kept.find()) is not None:
        return outbox.repeat(asked.request, sent, protection)
    evaluated, counts, trained = _work(asked, received, layout)
    return outbox.answer(
        asked.request,
        trained=trained,
        evaluated=evaluated,
        counts=counts,
        layout=layout,
        shape=received.shape,
        metrics=frozenset(strategies.metric_names(asked.experiment, received.task.metrics)),
        keep=kept.keep,
        protection=protection,
    )


def _work(
    asked: Asked, received: Received, layout: Layout | None
) -> tuple[Evaluated | None, Ints | None, Trained | None]:
    request, policy = asked.request, asked.site.policy
    patients = find_patients(asked.site, asked.experiment)
    require_patients(policy, patients.cohort.training_patients)
    part = LocalPart.of(asked, received)
    evaluated = counts = trained = None
    if request.evaluate:
        evaluated, counts = _evaluate(asked, received, patients, part, layout)
    if request.train:
        trained = _train(asked, received, patients, part)
    return evaluated, counts, trained


def _evaluate(
    asked: Asked,
    received: Received,
    patients: Patients,
    part: LocalPart,
    layout: Layout | None,
) -> tuple[Evaluated | None, Ints | None]:
    """The received model on the held-out patients, and counts by group; None of too few of them."""
    held_out, smallest = patients.held_out, asked.site.policy.smallest_group
    if patients.cohort.held_out_patients < max(smallest, 1):
        return None, None
    task, cases, state = received.task, held_out.cases, asked.site.state

    def answers(network: nn.Module) -> list[Prediction]:
        return loop.predictions(network, task, cases, held_out, device=received.device)

    given = answers(received.network)
    metrics = exact_metrics(given, task, smallest)
    evaluated = part.with_personal(
        Evaluated(metrics, len(held_out), patients.cohort.held_out_patients),
        lambda personal: exact_metrics(answers(personal), task, smallest),
    )
    if layout is None:
        return evaluated, None
    return evaluated, group_counts(given, cases, task, layout, state=state, smallest=smallest)


def _train(asked: Asked, received: Received, patients: Patients, part: LocalPart) -> Trained:
    began = time.monotonic()
    before = _compared(asked, received, patients)
    train = partial(
        loop.train,
        task=received.task,
        items=patients.training,
        device=received.device,
        learning_rate=learning_rate(asked),
        workers=feeding_processes(received.device, asked.site.workers),
    )
    personal = part.train_personal(train)
    with trainable(asked, received):
        done = part.train(train)
    after = _compared(asked, received, patients)
    return Trained(
        update=part.finish(done.steps, personal),
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
