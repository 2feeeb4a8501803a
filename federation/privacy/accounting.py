"""What a run costs a patient: ε of Gaussian mechanisms on Poisson samples, composed.

A history is the list of mechanisms that were applied to one set of patients. Its ε comes from Opacus's
accountants: RDP (Mironov 2017, arXiv:1702.07476) first, because it never fails, then PRV (Gopi et al.
2021, arXiv:2106.02848), which is tighter; both bound the true ε from above, so the smaller one counts.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from federation.schema import ConfigError, Experiment, PatientDP, Training

Accountant = Literal["prv", "rdp"]

# Above it ε says nothing any more and PRV's grid takes minutes: RDP's figure is given.
_LARGEST_FOR_PRV = 40.0
# PRV's ε is too large by its error, which sets the points of its grid: seconds for a million of them.
_PRV_ERROR = 0.01
_LARGEST_PRV_ERROR = 0.3
_LARGEST_GRID = 1 << 20
_LEAST_NOISE, _MOST_NOISE = 0.1, 1000.0  # the schema's range
_RDP_ORDERS = (
    [1 + x / 10 for x in range(1, 100)] + list(range(11, 64)) + [2**n for n in range(6, 14)]
)


@dataclass(frozen=True, order=True)
class Mechanism:
    """`steps` sums over Poisson samples of the patients, each with Gaussian noise.

    Attributes:
        noise_multiplier: σ, the noise's standard deviation over the most that one patient adds.
        sampling_rate: q in (0, 1], each patient's chance to be in a step, independent of the others.
    """

    noise_multiplier: float
    sampling_rate: float
    steps: int

    def __post_init__(self) -> None:
        if not 0 < self.noise_multiplier < math.inf:
            raise ValueError("noise_multiplier must be finite and above 0")
        if not 0 < self.sampling_rate <= 1:
            raise ValueError("sampling_rate must lie in (0, 1]")
        if self.steps < 1:
            raise ValueError("steps must be at least 1")


def epsilon(history: Iterable[Mechanism], delta: float, accountant: Accountant = "prv") -> float:
    """ε of all mechanisms in `history` together, at `delta`; 0 for none of them.

    `prv` gives the smaller of PRV's and RDP's upper bounds, `rdp` RDP's. RDP's also holds where the
    mechanisms were chosen by looking at earlier outcomes (Feldman & Zrnic 2021, arXiv:2008.11193); for
    PRV that is proven only where they were fixed beforehand.
    """
    merged = merge(history)
    if not merged:
        return 0.0
    triples = [(m.noise_multiplier, m.sampling_rate, m.steps) for m in merged]
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        bound = _rdp(triples, delta)
        if accountant == "prv" and bound <= _LARGEST_FOR_PRV:
            bound = min(bound, _prv(triples, delta, bound))
    return max(bound, 0.0)


def merge(history: Iterable[Mechanism]) -> list[Mechanism]:
    """The same history with equal (σ, q) taken together, in a fixed order; ε does not depend on it."""
    steps: Counter[tuple[float, float]] = Counter()
    for mechanism in history:
        steps[mechanism.noise_multiplier, mechanism.sampling_rate] += mechanism.steps
    return [Mechanism(sigma, q, count) for (sigma, q), count in sorted(steps.items())]


def accountant_name(accountant: Accountant) -> str:
    """For the report: which bound, by which library."""
    bound = {"prv": "smaller of PRV and RDP", "rdp": "RDP"}[accountant]
    return f"{bound} (opacus {version('opacus')})"


# --- what an experiment costs --------------------------------------------------------------------


def of_training(privacy: PatientDP, training: Training) -> Mechanism:
    """One round's training. Raises ConfigError: the noise was not found yet."""
    if privacy.noise_multiplier is None:
        raise ConfigError("privacy.noise_multiplier is missing; it is found before a run is sent")
    return Mechanism(privacy.noise_multiplier, privacy.sampling_rate, training.local_steps)


def of_evaluation(experiment: Experiment) -> list[Mechanism]:
    """One evaluation: noisy sums over all held-out patients, and noisy counts by group.

    Whichever of the two the experiment has; nothing is to be paid without privacy.
    """
    privacy, counted = experiment.privacy, experiment.counted
    if privacy is None:
        return []
    noises = [privacy.metrics_noise_multiplier] if privacy.metrics == "noisy" else []
    if counted is not None and counted.noise_multiplier is not None:
        noises.append(counted.noise_multiplier)
    return [Mechanism(noise, 1.0, 1) for noise in noises]


def of_run(experiment: Experiment) -> list[Mechanism]:
    """All that a whole run charges at a hospital, if no round has to be trained anew.

    Training and held-out patients are charged alike, although each is touched by one of the two: a run
    with another share of held-out patients moves some of them over.
    """
    if experiment.privacy is None:
        return []
    training = of_training(experiment.privacy, experiment.training)
    every_round = Mechanism(
        training.noise_multiplier, training.sampling_rate, training.steps * experiment.rounds
    )
    return [every_round, *(of_evaluation(experiment) * evaluations(experiment))]


def evaluations(experiment: Experiment) -> int:
    """How often a run asks for metrics: before every so many rounds, and of the last model."""
    if not experiment.evaluates:
        return 0
    return math.ceil(experiment.rounds / experiment.evaluation.every) + 1


def with_noise(experiment: Experiment) -> Experiment:
    """The experiment with its noise: the least σ, to 0.1 %, for which the run costs at most `epsilon`.

    Raises:
        ConfigError: no noise is enough, because the metrics alone cost more.
    """
    privacy = experiment.privacy
    if privacy is None or privacy.noise_multiplier is not None or privacy.epsilon is None:
        return experiment
    target = privacy.epsilon

    def noised(sigma: float) -> Experiment:
        found = privacy.model_copy(update={"noise_multiplier": round(sigma, 6)})
        return experiment.model_copy(update={"privacy": found})

    def excess(log_sigma: float) -> float:
        cost = epsilon(of_run(noised(math.exp(log_sigma))), privacy.delta)
        return math.log(min(max(cost, 1e-12), 1e12) / target)

    low, high = math.log(_LEAST_NOISE), math.log(_MOST_NOISE)
    if excess(high) > 0:
        raise ConfigError(
            f"privacy.epsilon={target:g} cannot be kept by any noise: the metrics alone cost more; "
            "raise privacy.metrics_noise_multiplier, fairness.noise_multiplier or evaluation.every, or "
            "use privacy.metrics=none"
        )
    if excess(low) <= 0:
        return noised(_LEAST_NOISE)
    found = float(brentq(excess, low, high, xtol=3e-4))
    while excess(found) > 0:  # brentq stops on either side of it
        found += 3e-4
    return noised(math.exp(found))


def _rdp(triples: list[tuple[float, float, int]], delta: float) -> float:
    from opacus.accountants.analysis.rdp import get_privacy_spent

    total = sum(count * _rdp_of_step(sigma, q) for sigma, q, count in triples)
    bound, _ = get_privacy_spent(orders=_RDP_ORDERS, rdp=total, delta=delta)
    return float(bound) if bound == bound else math.inf


@lru_cache(maxsize=1024)
def _rdp_of_step(sigma: float, q: float) -> NDArray[np.float64]:
    """At `_RDP_ORDERS`; takes some 50 ms, and a ledger asks for the same ones again and again."""
    from opacus.accountants.analysis.rdp import compute_rdp

    of_orders: NDArray[np.float64] = compute_rdp(
        q=q, noise_multiplier=sigma, steps=1, orders=_RDP_ORDERS
    )
    return of_orders


def _prv(triples: list[tuple[float, float, int]], delta: float, bound: float) -> float:
    """PRV's upper bound, or infinity where its grid cannot hold the history; `bound` is RDP's."""
    from opacus.accountants import PRVAccountant

    points = _grid(triples, delta, bound)
    error = _PRV_ERROR * max(1.0, points / _LARGEST_GRID)
    # What its Fourier transforms round off comes to parts of this in δ, up or down.
    rounding = float(np.finfo(np.float64).eps) * max(
        min(points, _LARGEST_GRID), sum(count for _, _, count in triples)
    )
    if error > _LARGEST_PRV_ERROR or 4 * rounding > delta:
        return math.inf
    accountant = PRVAccountant()
    accountant.history = list(triples)
    try:
        found = float(accountant.get_epsilon(delta=delta - rounding, eps_error=error))
    except (ValueError, RuntimeError, ArithmeticError, IndexError, MemoryError):
        return math.inf
    return found if found >= 0 else math.inf


def _grid(triples: list[tuple[float, float, int]], delta: float, bound: float) -> float:
    """About how many points PRV's grid has at `_PRV_ERROR` (Gopi et al. 2021, theorem 5.5).

    It reaches to about the ε that goes with δ / 4000: by a conversion at the same order α of RDP that
    is log(4000) / (α - 1) above `bound`.
    """
    steps = sum(count for _, _, count in triples)
    mesh = _PRV_ERROR / math.sqrt(steps * math.log(12_000 / delta) / 2)
    return 2 * (bound + math.log(4000) + 3) / mesh
