"""What this hospital allows. Nothing that the coordinator sends can loosen it."""

from __future__ import annotations

from federation.schema import Experiment, Policy, Training
from federation.wire import Reason


class Refused(Exception):
    """The hospital does not do what it was asked, for a reason from the fixed list."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.value)
        self.reason = reason


def allow(policy: Policy, experiment: Experiment) -> Training:
    """The training that this hospital will do: the experiment's, or less where policy says so.

    Raises:
        Refused: task, model or number of rounds are beyond the policy.
    """
    if policy.tasks is not None and experiment.task.name not in policy.tasks:
        raise Refused(Reason.REFUSED_TASK)
    if policy.models is not None and experiment.model.name not in policy.models:
        raise Refused(Reason.REFUSED_MODEL)
    if policy.most_rounds is not None and experiment.rounds > policy.most_rounds:
        raise Refused(Reason.REFUSED_ROUNDS)
    training = experiment.training
    if policy.most_local_steps is not None:
        steps = min(training.local_steps, policy.most_local_steps)
        training = training.model_copy(update={"local_steps": steps})
    return training


def require_patients(policy: Policy, patients: int) -> None:
    """Raises Refused: fewer patients to train on than the policy allows."""
    if patients == 0:
        raise Refused(Reason.NO_DATA)
    if patients < policy.least_patients:
        raise Refused(Reason.TOO_FEW_PATIENTS)
