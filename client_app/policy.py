"""What this hospital allows. Nothing that the coordinator sends can loosen it."""

from __future__ import annotations

from datetime import time

from client_app.site import Policy, Privacy, Site
from federation.messages import Reason, Request
from federation.schema import Experiment, PatientDP, Training


class Refused(Exception):
    """The hospital does not do what it was asked, for a reason from the fixed list."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.value)
        self.reason = reason


def allow(site: Site, experiment: Experiment, at: time) -> Training:
    """The training that this hospital will do: the experiment's, or less where policy says so.

    Where the site keeps a budget for its patients, private runs alone are served; where it keeps none,
    only the others are: a private run that nobody counts, or an exact one beside it, breaks the promise.

    Args:
        at: the hospital's local time of day.

    Raises:
        Refused: something in the experiment is beyond the policy.
    """
    policy = site.policy
    if policy.hours and not any(_within(at, hours) for hours in policy.hours):
        raise Refused(Reason.OUTSIDE_HOURS)
    if policy.tasks is not None and experiment.task.name not in policy.tasks:
        raise Refused(Reason.REFUSED_TASK)
    if policy.models is not None and experiment.model.name not in policy.models:
        raise Refused(Reason.REFUSED_MODEL)
    if policy.experiments is not None and experiment.sha256() not in policy.experiments:
        raise Refused(Reason.REFUSED_EXPERIMENT)
    if policy.most_rounds is not None and experiment.rounds > policy.most_rounds:
        raise Refused(Reason.REFUSED_ROUNDS)
    secure = experiment.secure_aggregation
    if policy.secure_aggregation == "required" and secure is None:
        raise Refused(Reason.SECURE_AGGREGATION_REQUIRED)
    if secure is not None and secure.least < policy.least_hospitals:
        raise Refused(Reason.TOO_FEW_HOSPITALS)
    if secure is not None and secure.release == "coordinator" and policy.release == "hospitals":
        raise Refused(Reason.REFUSED_RELEASE)
    if experiment.privacy is not None:
        return _allow_private(policy, site.privacy, experiment.privacy, experiment)
    if site.privacy is not None:
        raise Refused(Reason.PRIVACY_REQUIRED)
    training = experiment.training
    if policy.most_local_steps is not None:
        steps = min(training.local_steps, policy.most_local_steps)
        training = training.model_copy(update={"local_steps": steps})
    return training


def _allow_private(
    policy: Policy, promise: Privacy | None, privacy: PatientDP, experiment: Experiment
) -> Training:
    """The training as it was asked: under privacy it is done so or not at all.

    Whether enough patients are here is asked of the public size: the true number is one of the things
    that may not show.
    """
    if promise is None:
        raise Refused(Reason.NO_LEDGER)
    if promise.patients < policy.least_patients:
        raise Refused(Reason.TOO_FEW_PATIENTS)
    if privacy.noise_multiplier is None:
        raise Refused(Reason.BAD_EXPERIMENT)
    training, noises = experiment.training, [privacy.noise_multiplier]
    if privacy.metrics == "noisy":
        noises.append(privacy.metrics_noise_multiplier)
    if experiment.counted is not None and experiment.counted.noise_multiplier is not None:
        noises.append(experiment.counted.noise_multiplier)
    most_steps = policy.most_local_steps
    if (
        min(noises) < policy.least_noise_multiplier
        or privacy.sampling_rate > policy.most_sampling_rate
        or privacy.clipping_norm > policy.most_clipping_norm
        or privacy.images_per_patient > policy.most_images_per_patient
        or (most_steps is not None and training.local_steps > most_steps)
    ):
        raise Refused(Reason.REFUSED_PRIVACY)
    return training


def require_round(request: Request, experiment: Experiment) -> None:
    """Raises Refused: a round that the experiment does not have, the last evaluation aside."""
    last = experiment.rounds if request.train else experiment.rounds + 1
    if not 1 <= request.round <= last:
        raise Refused(Reason.REFUSED_ROUNDS)


def require_trainer(site: Site, request: Request, experiment: Experiment) -> None:
    """Raises Refused: the experiment measures at this hospital, and was not to train here."""
    if request.train and experiment.evaluation.leave_out == site.hospital:
        raise Refused(Reason.BAD_EXPERIMENT)


def require_patients(policy: Policy, patients: int) -> None:
    """Raises Refused: fewer patients to train on than the policy allows. For exact runs alone."""
    if patients == 0:
        raise Refused(Reason.NO_DATA)
    if patients < policy.least_patients:
        raise Refused(Reason.TOO_FEW_PATIENTS)


def _within(at: time, hours: str) -> bool:
    """Whether `19:00-07:00` has this time: the first minute is in it, the last is not."""
    first, last = (time.fromisoformat(part) for part in hours.split("-"))
    return first <= at < last if first < last else at >= first or at < last
