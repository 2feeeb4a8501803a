"""One request of a run with patient-level privacy: first the charge, then the patients.

What leaves is the noised update and noised sums, whose cost stands in the ledger before an image is
looked at; all else in the answer is the same for every set of patients. A failure after the charge has
one word, whatever it was, and the answer leaves at a fixed pace.
"""

from __future__ import annotations

import math
import time
from itertools import groupby

from flwr.app import RecordDict

from client_app.answers import place
from client_app.group_counts import Ints, noisy_group_counts
from client_app.imaging.pseudonym import open_key
from client_app.ledger import Ledger, LedgerError, budget_of, cohort_id, file_of
from client_app.local_part import LocalPart
from client_app.outbox import Outbox, SecureSum
from client_app.patients import Patients, find_patients, load_patients
from client_app.policy import Refused
from client_app.received import (
    Asked,
    Encoding,
    Received,
    learning_rate,
    receive,
    trainable,
)
from client_app.site import Privacy
from client_app.training import loop, private
from client_app.training.device import feeding_processes
from client_app.training.tallies import tally
from federation.fairness.layout import Layout
from federation.messages import Evaluated, Reason, Spent, Tallied, Trained
from federation.privacy import accounting, fit
from federation.privacy.accounting import Mechanism
from federation.schema import ConfigError, PatientDP


class FailedAfterCharge(Exception):
    """Something went wrong with the patients' images at hand; its cause stays here."""


def serve_private(
    asked: Asked,
    privacy: PatientDP,
    promise: Privacy,
    outbox: Outbox,
    secure: SecureSum | None = None,
) -> RecordDict:
    """The answer to a private request; the same request gets the same work again.

    What the codec does comes after the noise. So does its error feedback: what it adds is what earlier
    updates, which had their noise, lost in the codec; it asks nothing of the patients' data.

    Args:
        secure: of a run whose updates are summed in secret.

    Raises:
        Refused: the ledger cannot or may not pay for it.
        FailedAfterCharge: it was paid for, and there is no answer.
    """
    request = asked.request
    received = receive(asked)
    kept = place(asked, received)
    protection = Encoding(asked, received) if secure is None else secure.of(received)
    sent = kept.find()
    if sent is not None:
        return outbox.repeat(request, sent, protection)
    fit.require_private(received.network, received.task, privacy)
    layout = Layout.of_experiment(asked.experiment, received.task)
    part = LocalPart.of(asked, received)
    evaluated = _on_public_images(asked, received, privacy, promise)
    spent = _charge(asked, privacy, promise, kept.identity, outbox)
    try:
        tallied, counts, trained = _touch_patients(asked, received, part, privacy, promise, layout)
        records = outbox.private_answer(
            request,
            privacy,
            trained=trained,
            evaluated=evaluated,
            tallied=tallied,
            spent=spent,
            shape=received.shape,
            parameters=frozenset(name for name, _ in received.network.named_parameters()),
            metrics=frozenset(received.task.metrics),
            counts=counts,
            layout=layout,
            keep=kept.keep,
            protection=protection,
        )
    except Exception as error:
        raise FailedAfterCharge from error
    finally:
        _wait_for_next_departure(asked.began, promise.answer_every)
    return records


def _charge(
    asked: Asked, privacy: PatientDP, promise: Privacy, identity: str, outbox: Outbox
) -> Spent:
    """Have the ledger charged for this request, on the disk, before a patient's data are touched."""
    request, site = asked.request, asked.site
    budget = budget_of(site, promise)
    mechanisms: list[Mechanism] = []
    if request.evaluate:
        mechanisms += accounting.of_evaluation(asked.experiment)
    if request.train:
        mechanisms.append(accounting.of_training(privacy, asked.training))
    try:
        cohort = cohort_id(open_key(site.state), site.hospital)
        with Ledger.open(file_of(site, promise), cohort) as ledger:
            if not mechanisms:
                return ledger.spent(request.run, budget, request.lodged)
            spent = ledger.charge(
                run=request.run,
                round=request.round,
                request=identity,
                experiment=asked.experiment.sha256(),
                mechanisms=mechanisms,
                budget=budget,
                lodged=request.lodged,
                attempts=site.policy.most_attempts,
                audit_head=asked.audit_head,
            )
    except LedgerError as error:
        raise Refused(error.reason) from error
    except ConfigError as error:  # the pseudonym key is gone: whose patients these are is not known
        raise Refused(Reason.LEDGER_UNUSABLE) from error
    outbox.charged(request, mechanisms, spent)
    return spent


def _touch_patients(
    asked: Asked,
    received: Received,
    part: LocalPart,
    privacy: PatientDP,
    promise: Privacy,
    layout: Layout | None,
) -> tuple[Tallied | None, Ints | None, Trained | None]:
    """All that is made of the patients' images; each part is what the charge was for."""
    patients = find_patients(asked.site, asked.experiment)
    tallied = counts = trained = None
    if asked.request.evaluate and privacy.metrics == "noisy":
        held_out = patients.held_out
        tallied = tally(
            received.network,
            received.task,
            held_out.cases,
            held_out,
            device=received.device,
            noise_multiplier=privacy.metrics_noise_multiplier,
        )
    if asked.request.evaluate and layout is not None:
        counts = noisy_group_counts(
            received.network,
            received.task,
            layout,
            patients.held_out.cases,
            patients.held_out,
            device=received.device,
        )
    if asked.request.train:
        with trainable(asked, received):
            for training, seed in part.phases():
                private.train(
                    received.network,
                    received.task,
                    patients.training,
                    _by_patient(patients),
                    training,
                    privacy,
                    device=received.device,
                    seed=seed,
                    learning_rate=learning_rate(asked),
                    public_size=promise.patients,
                    workers=feeding_processes(received.device, asked.site.workers),
                    correct=part.local.correct,
                )
        update = part.finish(asked.training.local_steps, {})
        trained = Trained(update=update, patients=promise.patients)
    return tallied, counts, trained


def _on_public_images(
    asked: Asked, received: Received, privacy: PatientDP, promise: Privacy
) -> Evaluated | None:
    """The received model on the images that the site declares public, of all their patients."""
    if not asked.request.evaluate or privacy.metrics != "public" or promise.public is None:
        return None
    site = asked.site.model_copy(
        update={"data": promise.public, "state": asked.site.state / "public"}
    )
    try:
        images = load_patients(
            site,
            asked.experiment.task,
            0.0,
            harmonised=asked.experiment.harmonisation,
            refresh=site.data.refresh,
        )
    except ConfigError as error:
        raise Refused(Reason.BAD_SITE) from error
    if len(images.training) == 0:
        return None
    metrics = loop.evaluate(
        received.network,
        received.task,
        images.training.cases,
        images.training,
        device=received.device,
    )
    return Evaluated(metrics, len(images.training), images.cohort.training_patients)


def _by_patient(patients: Patients) -> list[tuple[str, list[int]]]:
    """Pseudonyms, and where each patient's cases stand."""
    cases = enumerate(patients.training.cases)
    grouped = groupby(cases, key=lambda case: case[1].patient)  # cases are in the patients' order
    return [(patient, [position for position, _ in own]) for patient, own in grouped]


def _wait_for_next_departure(began: float, every: float) -> None:
    """How long the work took depends on who was drawn; the answer leaves at a multiple of `every`."""
    if every > 0:
        taken = time.monotonic() - began
        time.sleep(math.ceil(taken / every) * every - taken)
