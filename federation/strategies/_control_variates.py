"""What rules share that keep a sum of the hospitals' corrections at the coordinator.

Each hospital keeps a correction made of its own updates, and the coordinator the mean of all of them,
made of the mean updates alone. The fixed point is the optimum only while both agree: a part of an update
that one side counts and the other does not pulls the model aside for good. So what would part them is
refused, what quantising loses has to come later (error feedback), and what a norm bound cuts away, of an
update or of what an earlier one lost, no side counts.
"""

from __future__ import annotations

from federation.schema import ConfigError, Experiment

_WHOLE = ("all", "head")  # exchanges that send all that was trained, under its own names


def require_same_sums(experiment: Experiment) -> None:
    """Raises ConfigError: the coordinator's mean would not be that of the hospitals' corrections."""
    name, codec = experiment.strategy.name, experiment.codec
    if experiment.participation.weighting != "equal":
        raise ConfigError(
            f"strategy={name} keeps a mean over all hospitals, absent ones too, whose sizes nobody "
            "tells: choose participation.weighting=equal"
        )
    if codec is None:
        return
    if codec.exchange.name not in _WHOLE:
        raise ConfigError(
            f"strategy={name} corrects all that is trained, and codec={codec.exchange.name} sends less "
            "than that: choose codec=head, or one without an exchange"
        )
    if codec.sparsify is not None:
        raise ConfigError(
            f"strategy={name} makes corrections of whole updates, and codec={codec.sparsify.name} sends "
            "most of an update rounds later: choose codec=int8 or int16"
        )
    if codec.quantise is not None and not codec.error_feedback:
        raise ConfigError(
            f"strategy={name} needs what quantising loses to come later: set codec.error_feedback=true"
        )
