"""What cannot be had together with sums that nobody can take apart; refused before anything is sent."""

from __future__ import annotations

from importlib.util import find_spec

from federation import strategies
from federation.codec.chain import Chain
from federation.schema import ConfigError, Experiment


def require_summable(experiment: Experiment, chain: Chain | None) -> Chain:
    """The codec, if hospitals' updates in it can be summed in secret.

    Raises:
        ConfigError: what is in the way, and the way out.
    """
    secure = experiment.secure_aggregation
    if secure is None:
        raise ValueError("nothing is summed in secret")
    how = f"secure_aggregation={secure.name}"
    if chain is None:
        raise ConfigError(
            f"{how} adds integers, and codec=none has none: choose codec=int16 or int8"
        )
    if chain.unshared is not None:
        raise ConfigError(
            f"{how} cannot add up what {chain.unshared} sends, since its numbers do not mean the same "
            "at all hospitals: choose codec=int16, int8 or int4, with rand_k or adapters before it"
        )
    if (why := strategies.why_unsummed(experiment)) is not None:
        raise ConfigError(
            f"{how} cannot do strategy={experiment.strategy.name}, which {why}: choose a strategy that "
            "needs the updates' mean alone, such as fedavg or fednova, or norm_bound with "
            "strategy.bound=NUMBER, to which hospitals keep by themselves, or secure_aggregation=none"
        )
    if experiment.evaluation.leave_out is not None:
        raise ConfigError(
            f"evaluation.leave_out asks one hospital for its figures, and {how} tells sums of at least "
            f"{max(secure.least, 3)}: leave it null, or choose secure_aggregation=none"
        )
    if secure.name == "ckks":
        _require_encryptable(experiment, how)
    elif secure.release != "hospitals":
        raise ConfigError(
            f"secure_aggregation.release says who has the final model, which under {how} the "
            "coordinator has: leave it out, or choose secure_aggregation=ckks"
        )
    hospitals = experiment.participation.hospitals
    if hospitals is not None and len(hospitals) < max(secure.least, 3):
        raise ConfigError(
            f"{how} needs {max(secure.least, 3)} hospitals, and participation.hospitals names "
            f"{len(hospitals)}: name more, or lower secure_aggregation.least (never below 3)"
        )
    return chain


def _require_encryptable(experiment: Experiment, how: str) -> None:
    """What only the coordinator could do, with a model that it does not have."""
    if experiment.privacy is not None and experiment.privacy.ema:
        raise ConfigError(
            f"privacy.ema averages the models of the rounds, which {how} keeps from the coordinator: "
            "set privacy.ema=0"
        )
    if strategies.moves_by_turn(experiment):
        raise ConfigError(
            f"strategy={experiment.strategy.name} counts at the coordinator who takes part, and {how} "
            "has the hospitals move the model: choose secure_aggregation=masks, or strategy=fedavg"
        )
    if find_spec("tenseal") is None:
        raise ConfigError(
            f"{how} needs TenSEAL, which is not installed here: install requirements.lock, or choose "
            "secure_aggregation=masks"
        )
