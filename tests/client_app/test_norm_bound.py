"""Updates that the hospital itself shortens, with real ClientApps: in secret sums, and by its policy."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client_app import norm_bound
from client_app.imaging.pseudonym import load_key
from client_app.ledger import Ledger, cohort_id
from client_app.site import Site
from federation import models, strategies, tasks, wire
from federation.codec import chain
from federation.messages import Arrays, Request, Shape
from federation.schema import Experiment
from tests.hospitals import MASKS, SMALL, Hospitals, content, hospitals, train_quickly
from tests.masked import gather, kept, rows, same

INT16: dict[str, Any] = {"quantise": {"name": "integers", "bits": 16}}
GROUP = SMALL | {"norm": "group"}  # no statistics, of which norm_bound in the open takes the median
CKKS = {"name": "ckks", "least": 3}
SHORT = 0.3  # about half of what `train_quickly` moves


@pytest.fixture(scope="module")
def _three(tmp_path_factory: pytest.TempPathFactory) -> Hospitals:
    return hospitals(tmp_path_factory.mktemp("three"), 3, patients=(6, 8, 10))


@pytest.fixture
def three(_three: Hospitals, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hospitals]:
    train_quickly(monkeypatch)
    with _three.lent() as made:
        yield made


def policy(made: Hospitals, bound: float, *names: str) -> None:
    """Have these hospitals (or all) let nothing longer out."""
    for name in names or tuple(made.sites):
        site = made.sites[name]
        own = site.policy.model_copy(update={"largest_update_norm": bound})
        made.sites[name] = site.model_copy(update={"policy": own})


def bounded(bound: float | None = SHORT, **changes: Any) -> Experiment:
    strategy = {"name": "norm_bound"} | ({} if bound is None else {"bound": bound})
    base = {"strategy": strategy, "codec": INT16, "rounds": 2, "evaluation": {"every": 1000}}
    return content(**(base | changes))


def parameters(of: Experiment) -> frozenset[str]:
    network = models.build(of.model, tasks.build(of.task), seed=0)
    return frozenset(name for name, _ in network.named_parameters())


def norm(update: Arrays, names: frozenset[str]) -> float:
    """By NumPy's own norm, over the concatenated parameters."""
    flat = [update[name].astype(np.float64).ravel() for name in sorted(names)]
    return float(np.linalg.norm(np.concatenate(flat)))


# --- in secret sums -------------------------------------------------------------------------------


@pytest.mark.parametrize("weighting", ["equal", "examples"])
def test_the_sum_is_of_clipped_updates(weighting: str, three: Hospitals) -> None:
    """Reckoned here from what the hospitals trained; statistics are averaged as they are."""
    of = bounded(weighting=weighting, secure_aggregation=MASKS)
    mean = gather(three, of, f"clipped-{weighting}").mean
    assert mean is not None
    updates = {name: kept(three, name, of) for name in three.sites}
    names = parameters(of)
    assert all(norm(update, names) > 1.5 * SHORT for update, _ in updates.values())
    weights = {
        n: float(count if weighting == "examples" else 1) for n, (_, count) in updates.items()
    }
    for key, array in mean.items():
        if array.dtype.kind != "f":
            continue
        expected = sum(
            weights[n] * u[key].astype("f8") * (SHORT / norm(u, names) if key in names else 1)
            for n, (u, _) in updates.items()
        ) / sum(weights.values())
        np.testing.assert_allclose(array, expected, atol=5e-4, err_msg=key)
    assert norm(mean, names) <= SHORT * 1.02  # the rounding's


def test_masked_is_what_policies_of_this_bound_give_in_the_open(three: Hospitals) -> None:
    """Bit for bit, over rounds with error feedback: the hospital does the same, the sum is exact."""
    hidden = three.conduct(bounded(secure_aggregation=MASKS), "masked", rounds=2)
    largest = content(
        secure_aggregation=MASKS,
        codec=INT16,
        rounds=2,
        evaluation={"every": 1000},
        largest_update_norm=SHORT,
    )
    participation = three.conduct(largest, "participation", rounds=2)
    policy(three, SHORT)
    plain = content(codec=INT16, rounds=2, evaluation={"every": 1000})
    opened = three.conduct(plain, "opened", rounds=2)
    same(hidden.model, opened.model)
    same(participation.model, opened.model)


def test_masked_is_norm_bound_in_the_open(three: Hospitals) -> None:
    """Bit for bit where it cuts nothing, else to the rounding, which comes before the cut there."""
    for bound, exact in ((1e3, True), (SHORT, False)):
        changes = {"model": GROUP, "rounds": 1, "evaluation": {"held_out": 0}}
        opened = three.conduct(bounded(bound, **changes), f"open-{bound}", rounds=1)
        hidden = three.conduct(
            bounded(bound, secure_aggregation=MASKS, **changes), f"hidden-{bound}", rounds=1
        )
        if exact:
            same(hidden.model, opened.model)
        for name, array in opened.model.items():
            np.testing.assert_allclose(hidden.model[name], array, atol=5e-4, err_msg=name)
    _, _, start = three.conductor(bounded(model=GROUP), "start")
    moved = {name: array - start.model[name] for name, array in hidden.model.items()}
    assert 0.2 * SHORT < norm(moved, parameters(bounded(model=GROUP))) <= SHORT * 1.02


@pytest.mark.skipif(importlib.util.find_spec("tenseal") is None, reason="needs TenSEAL")
def test_encrypted_is_masked(three: Hospitals) -> None:
    from tests.encrypted import all_hold

    changes = {"codec": INT16 | {"down": "full"}, "rounds": 1}
    masked = three.conduct(bounded(secure_aggregation=MASKS, **changes), "like-masked", rounds=1)
    of = bounded(secure_aggregation=CKKS, **changes)
    three.conduct(of, "encrypted", rounds=1)
    all_hold(three, of, "encrypted", masked.model, 1)


def test_nobody_leaves_and_nothing_tells_whose_update_was_long(three: Hospitals) -> None:
    of = content(
        secure_aggregation=MASKS, codec=INT16, evaluation={"every": 1000}, largest_update_norm=0.01
    )
    three.conduct(of, "quiet", rounds=1)
    (row,) = (row for row in rows(three, "quiet") if row["kind"] == "round")
    assert {one["status"] for one in row["hospitals"].values()} == {"ok"}
    assert 0.005 < row["norm"] < 0.0101  # of three updates that were all too long
    assert not any("update_norm" in one for one in row["hospitals"].values())


# --- what leaves ----------------------------------------------------------------------------------

CODECS: dict[str, dict[str, Any] | None] = {
    "none": None,
    "int16": INT16,
    "int4": {"quantise": {"name": "integers", "bits": 4}},
    "fp16": {"quantise": {"name": "fp16"}},
    "rand_k": INT16 | {"sparsify": {"name": "rand_k", "keep": 0.1}},
    "rand_k, nothing fed back": INT16
    | {"sparsify": {"name": "rand_k", "keep": 0.1}, "error_feedback": False},
    "top_k": INT16 | {"sparsify": {"name": "top_k", "keep": 0.1}},
    "adapters": INT16 | {"exchange": {"name": "adapters", "rank": 2}},
}


@pytest.mark.parametrize("codec", CODECS)
def test_nothing_longer_than_the_policys_bound_leaves(codec: str, three: Hospitals) -> None:
    """Read off the wire, round after round, whatever the experiment says and feedback adds."""
    bound = SHORT / 2
    of = content(codec=CODECS[codec], rounds=3, evaluation={"every": 1000})
    policy(three, bound, "hill")
    names = parameters(of)
    network = models.build(of.model, tasks.build(of.task), seed=0)
    shape = Shape.of(models.arrays_of(network))
    built = None if of.codec is None else chain.build(of.codec, network, seed=of.seed)
    sent: dict[str, list[float]] = {name: [] for name in three.sites}

    def read(name: str) -> Any:
        def meddle(request: Request, records: Any, answer: Any) -> Any:
            reply = answer(records)
            if built is None:
                update = wire.unpack(wire.blob(reply), shape)
            else:
                encoded = built.from_bytes(wire.blob(reply), round=request.round)
                scales = built.scales_from_bytes(request.scales)
                update = built.decode_one(encoded, scales, round=request.round)
            sent[name].append(norm(update, names))
            return reply

        return meddle

    three.meddle |= {name: read(name) for name in three.sites}
    three.conduct(of, f"policy-{codec.replace(', ', '-')}".replace(" ", "-"), rounds=3)
    # four bits round by a seventh of the largest value
    slack = 1.5 if codec == "int4" else 1.03
    assert len(sent["hill"]) == 3
    assert max(sent["hill"]) <= bound * slack, sent
    assert min(sent["hill"]) > 0.1 * bound
    assert max(sent["east"] + sent["lake"]) > bound * slack  # where no policy says so
    if codec in ("none", "int16"):
        assert sent["hill"] == pytest.approx([bound] * 3, rel=0.01)


def test_what_is_cut_off_is_not_sent_later() -> None:
    """Of zeros after a cut update nothing but the rounding comes."""
    of = content(codec=INT16)
    assert of.codec is not None
    network = models.build(of.model, tasks.build(of.task), seed=0)
    built = chain.build(of.codec, network, seed=0)
    source = np.random.default_rng(0)
    update = {
        name: source.normal(0, 0.01, array.shape).astype(array.dtype)
        for name, array in models.arrays_of(network).items()
    }
    scales = built.first_scales(of.training)
    first = built.encode(update, None, scales, round=1, seed=1, bound=SHORT)
    whole = built.encode(update, None, scales, round=1, seed=1)
    names = parameters(of)
    assert norm(built.decode_one(whole, scales, round=1), names) > 1.5 * SHORT
    assert norm(built.decode_one(first, scales, round=1), names) == pytest.approx(SHORT, rel=0.02)
    assert first.residual is not None
    assert whole.residual is not None
    steps = float(np.linalg.norm(whole.residual))
    assert np.linalg.norm(first.residual) == pytest.approx(steps, rel=0.2)
    statistics = [n for n in update if n.endswith("running_mean")]
    decoded = built.decode_one(first, scales, round=1)
    for name in statistics:
        np.testing.assert_allclose(decoded[name], update[name], atol=5e-4)


def test_the_least_of_what_is_said_counts(three: Hospitals) -> None:
    site = three.sites["east"]

    def of(policy_: float | None, experiment: Experiment) -> float | None:
        own = site.policy.model_copy(update={"largest_update_norm": policy_})
        return norm_bound.of(site.model_copy(update={"policy": own}), experiment)

    secret = bounded(2.0, secure_aggregation=MASKS, largest_update_norm=3.0)
    assert of(None, secret) == 2.0
    assert of(1.0, secret) == 1.0
    assert of(9.0, secret) == 2.0
    assert of(None, content(secure_aggregation=MASKS, largest_update_norm=3.0)) == 3.0
    opened = bounded(2.0, largest_update_norm=3.0)  # the coordinator sees to these
    assert of(None, opened) is None
    assert of(5.0, opened) == 5.0
    assert strategies.needs_single_updates(opened)


# --- with patient-level privacy -------------------------------------------------------------------


def test_after_the_noise_and_at_no_charge(tmp_path: Path) -> None:
    """The ledger is charged the same; what leaves is the noised update, shortened."""
    promise = {"patients": 20, "epsilon": 900.0, "answer_every": 0}
    made = hospitals(tmp_path, 3, patients=6, privacy=[promise] * 3)
    of = content(
        model=GROUP,
        codec=INT16,
        privacy={"noise_multiplier": 1.0, "sampling_rate": 0.5},
        evaluation={"every": 1000},
        rounds=1,
    )
    made.conduct(of, "free", rounds=1)
    (free,) = rows(made, "free")
    update, _ = kept(made, "east", of)
    policy(made, 0.01)
    made.conduct(of, "short", rounds=1)
    (short,) = rows(made, "short")
    assert norm(update, parameters(of)) > 0.05
    for name in made.sites:
        assert free["hospitals"][name]["update_norm"] > 0.05
        assert short["hospitals"][name]["update_norm"] == pytest.approx(0.01, rel=0.05)
        charges = [c.mechanisms for c in ledger(made.sites[name])]
        assert len(charges) == 2
        assert charges[0] == charges[1]


def ledger(site: Site) -> list[Any]:
    key = load_key(site.state / "pseudonym.key")
    with Ledger.open(site.state / "ledger.sqlite", cohort_id(key, site.hospital)) as opened:
        return list(opened.charges())
