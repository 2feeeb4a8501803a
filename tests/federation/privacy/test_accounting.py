"""ε against Google's accountant, published values and exact formulas: never below, and close above."""

from __future__ import annotations

import math
import random
from itertools import pairwise
from pathlib import Path

import pytest
from dp_accounting import NeighboringRelation, dp_event
from dp_accounting.pld import PLDAccountant
from scipy.optimize import brentq
from scipy.stats import norm

from federation.messages import Request
from federation.privacy.accounting import (
    Mechanism,
    epsilon,
    evaluations,
    merge,
    of_evaluation,
    of_run,
    of_training,
    with_noise,
)
from federation.schema import ConfigError, Experiment
from server_app.state import Checkpoint, RunFolder
from tests.in_process import (
    PRIVATE,
    SHARE,
    START,
    InProcessGrid,
    Node,
    conductor,
    experiment,
    private,
    sums,
)

DELTA = 1e-5
PUBLISHED = [Mechanism(1.0, 0.01, 1000)]


def google(history: list[Mechanism], delta: float) -> float:
    """ε by the privacy loss distributions of dp-accounting, whose grid rounds it up by up to 1e-3."""
    accountant = PLDAccountant(NeighboringRelation.ADD_OR_REMOVE_ONE)
    for mechanism in history:
        event: dp_event.DpEvent = dp_event.GaussianDpEvent(mechanism.noise_multiplier)
        if mechanism.sampling_rate < 1:
            event = dp_event.PoissonSampledDpEvent(mechanism.sampling_rate, event)
        accountant.compose(event, mechanism.steps)
    return float(accountant.get_epsilon(delta))


def gaussian(sigma: float, steps: int, delta: float) -> float:
    """ε of Gaussian mechanisms without sampling, exactly (Balle & Wang 2018, theorem 8)."""
    mu = math.sqrt(steps) / sigma

    def excess(eps: float) -> float:
        return float(
            norm.cdf(mu / 2 - eps / mu) - math.exp(eps + norm.logcdf(-mu / 2 - eps / mu)) - delta
        )

    if excess(0) <= 0:
        return 0.0
    high = 1.0
    while excess(high) > 0:
        high *= 2
    return float(brentq(excess, 0, high, xtol=1e-10))


def random_history(seed: int) -> tuple[list[Mechanism], float]:
    """One to three mechanisms, σ 0.6 to 8, q 0.005 to 1, 1 to 2000 steps; ε up to 15."""
    draw = random.Random(seed)

    def between(low: float, high: float) -> float:
        return math.exp(draw.uniform(math.log(low), math.log(high)))

    while True:
        history = [
            Mechanism(between(0.6, 8), min(between(0.005, 1.5), 1.0), int(between(1, 2000)))
            for _ in range(draw.randint(1, 3))
        ]
        delta = draw.choice([1e-3, 1e-5, 1e-6])
        if 0.05 < epsilon(history, delta, "rdp") < 15:
            return history, delta


@pytest.mark.parametrize("seed", range(30))
def test_epsilon_is_never_below_googles_and_within_two_hundredths(seed: int) -> None:
    history, delta = random_history(seed)
    peer, ours = google(history, delta), epsilon(history, delta)
    assert peer - 1e-3 <= ours <= peer + 0.02
    assert epsilon(history, delta, "rdp") >= ours


def test_published_values() -> None:
    """σ = 1, q = 0.01, 1000 steps, δ = 1e-5: what Opacus and Google print for it."""
    assert epsilon(PUBLISHED, DELTA, "rdp") == pytest.approx(2.101, abs=1e-3)
    assert epsilon(PUBLISHED, DELTA) == pytest.approx(1.838, abs=1e-3)
    assert google(PUBLISHED, DELTA) == pytest.approx(1.828, abs=1e-3)


@pytest.mark.parametrize("delta", [1e-3, 1e-5, 1e-7, 1e-9, 1e-12])
@pytest.mark.parametrize(
    ("sigma", "steps"), [(0.3, 1), (1.0, 1), (10.0, 100), (50.0, 1000), (1000.0, 10**5)]
)
def test_without_sampling_epsilon_is_above_the_exact_one(
    sigma: float, steps: int, delta: float
) -> None:
    """At small δ and many steps Opacus's PRV comes out too small: its Fourier transforms round off."""
    exact, ours = gaussian(sigma, steps, delta), epsilon([Mechanism(sigma, 1.0, steps)], delta)
    assert exact <= ours
    assert ours <= exact + 0.05 or delta < 1e-7 or exact > 20


def test_epsilon_grows_with_steps_and_with_anything_added() -> None:
    costs = [epsilon([Mechanism(1.2, 0.1, n)], DELTA) for n in (1, 2, 10, 11, 100, 101)]
    assert all(less < more for less, more in pairwise(costs))
    before = [Mechanism(1.2, 0.1, 20), Mechanism(3.0, 0.2, 5)]
    for added in (Mechanism(20.0, 1.0, 1), Mechanism(1.2, 0.1, 1), Mechanism(5.0, 0.01, 3)):
        assert epsilon([*before, added], DELTA) > epsilon(before, DELTA)


def test_epsilon_does_not_depend_on_order_or_on_how_charges_were_cut() -> None:
    one, other = Mechanism(1.2, 0.1, 20), Mechanism(3.0, 0.2, 5)
    whole = epsilon([one, other, one], DELTA)
    assert epsilon([other, one, one], DELTA) == whole
    assert epsilon([Mechanism(1.2, 0.1, 1)] * 40 + [other], DELTA) == whole
    assert merge([one, other, one]) == [Mechanism(1.2, 0.1, 40), other]


def test_nothing_costs_nothing() -> None:
    assert epsilon([], DELTA) == 0.0


@pytest.mark.parametrize("delta", [1e-3, 1e-5, 1e-15])
@pytest.mark.parametrize("rate", [1e-7, 0.2, 1.0])
@pytest.mark.parametrize(
    ("sigma", "steps"), [(1e-4, 1), (0.05, 10), (1e5, 1), (0.5, 10**7), (500, 10**8)]
)
def test_extreme_histories_cost_a_number(
    sigma: float, steps: int, rate: float, delta: float
) -> None:
    """Neither an exception nor a NaN, nor minutes; and no less than without sampling at that rate."""
    ours = epsilon([Mechanism(sigma, rate, steps)], delta)
    assert ours >= 0
    assert not math.isnan(ours)
    if rate == 1.0 and math.sqrt(steps) / sigma < 30:
        assert ours >= gaussian(sigma, steps, delta)
    if sigma < 0.1 and rate >= 0.2:
        assert ours > 10


def test_little_noise_is_not_taken_for_much() -> None:
    """Above ε = 40 RDP's figure stands: still above the true one, and not far."""
    history = [Mechanism(0.5, 0.5, 20)]
    exact, ours = google(history, DELTA), epsilon(history, DELTA)
    assert ours > 40
    assert exact <= ours <= 1.15 * exact


@pytest.mark.parametrize(
    "wrong",
    [
        (0.0, 0.1, 1),
        (math.inf, 0.1, 1),
        (math.nan, 0.1, 1),
        (1.0, 0.0, 1),
        (1.0, 1.1, 1),
        (1.0, 0.1, 0),
    ],
)
def test_what_is_no_mechanism_is_refused(wrong: tuple[float, float, int]) -> None:
    with pytest.raises(ValueError, match="must"):
        Mechanism(*wrong)


# --- experiments ---------------------------------------------------------------------------------


def planned(rounds: int, every: int = 1, **privacy: object) -> Experiment:
    return experiment(
        rounds=rounds,
        privacy={"sampling_rate": 0.1} | privacy,
        training={"local_steps": 5, "batch_size": 2, "learning_rate": 0.1},
        evaluation={"every": every},
    )


@pytest.mark.parametrize(
    ("target", "metrics", "rounds"),
    [(8.0, "none", 16), (1.0, "public", 4), (3.0, "noisy", 5), (90.0, "none", 40)],
)
def test_the_noise_for_an_epsilon_keeps_it_and_is_not_more_than_needed(
    target: float, metrics: str, rounds: int
) -> None:
    found = with_noise(planned(rounds, epsilon=target, metrics=metrics))
    assert found.privacy is not None
    sigma = found.privacy.noise_multiplier
    assert sigma is not None
    again = Experiment.from_canonical(found.canonical(), found.sha256())
    assert epsilon(of_run(again), DELTA) <= target
    less = found.privacy.model_copy(update={"noise_multiplier": sigma / 1.002})
    assert epsilon(of_run(found.model_copy(update={"privacy": less})), DELTA) > target


def test_no_noise_of_training_makes_up_for_metrics_that_cost_more() -> None:
    dear = planned(10, epsilon=1.0, metrics="noisy", metrics_noise_multiplier=0.5)
    with pytest.raises(ConfigError, match=r"metrics_noise_multiplier.*evaluation\.every.*none"):
        with_noise(dear)


def test_noise_that_is_given_is_left_alone() -> None:
    given = planned(3, noise_multiplier=1.5)
    assert with_noise(given) == given
    assert of_run(experiment()) == []
    with pytest.raises(ConfigError, match="noise_multiplier is missing"):
        of_run(planned(3, epsilon=1.0))


@pytest.mark.parametrize("metrics", ["none", "noisy", "public"])
@pytest.mark.parametrize(("rounds", "every"), [(1, 1), (4, 1), (5, 2), (6, 3), (2, 7)])
def test_a_run_costs_what_its_requests_charge(
    rounds: int, every: int, metrics: str, tmp_path: Path
) -> None:
    """Against the requests that `Conductor` really makes, charged one by one as a hospital does."""
    content = planned(rounds, every, **PRIVATE | {"metrics": metrics})
    folder = RunFolder.create(tmp_path / "run", content, {"experiment_sha256": content.sha256()})
    tally, sent = (SHARE, sums(3.0, 1.0, noise=1.0)) if metrics == "noisy" else (None, None)
    asked: list[Request] = []
    hospitals = [private(1.0, tally=sent, seen=asked), private(1.0, tally=sent)]
    grid = InProcessGrid([Node(name, each) for name, each in zip("ab", hospitals, strict=True)])
    conductor(grid, folder, tally=tally).conduct(Checkpoint(0, START, {}))

    charges: list[Mechanism] = []
    assert content.privacy is not None
    for request in asked:
        charges += of_evaluation(content) if request.evaluate else []
        charges += [of_training(content.privacy, content.training)] if request.train else []
    assert merge(charges) == merge(of_run(content))
    assert sum(request.evaluate for request in asked) == evaluations(content)
