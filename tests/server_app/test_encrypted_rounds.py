"""Rounds whose sums only hospitals read: their model is that of sums in the open, and where it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from client_app.site import Policy
from federation.messages import Phase
from server_app.exchange import TooFewHospitals
from tests.encrypted import CKKS, all_hold, encrypted, plainly
from tests.hospitals import MASKS, Hospitals
from tests.masked import CRASH, rows, same, steps

pytest.importorskip("tenseal")

# --- the same model -------------------------------------------------------------------------------


def test_plain_masks_and_ckks_give_the_same_model(five: Hospitals) -> None:
    """Bit for bit, at the coordinator and at each hospital that holds it; real training."""
    of = encrypted(rounds=2)
    opened = five.conduct(plainly(of), "open")
    masked = five.conduct(encrypted(rounds=2, secure_aggregation=MASKS), "masked")
    done = five.conduct(of, "encrypted")
    assert done.round == 2
    assert not done.model
    same(masked.model, opened.model)
    all_hold(five, of, "encrypted", opened.model, 2)
    assert any(np.any(a) for name, a in opened.model.items() if "running_mean" in name)


def codec(bits: int, **stages: Any) -> dict[str, Any]:
    return {"quantise": {"name": "integers", "bits": bits}, "down": "full"} | stages


SERVER = {"server_learning_rate": 0.1}
CASES: dict[str, dict[str, Any]] = {
    "fedadam": {"strategy": {"name": "fedadam"} | SERVER},
    "fedyogi, rand_k": {
        "strategy": {"name": "fedyogi"} | SERVER,
        "codec": codec(8, sparsify={"name": "rand_k", "keep": 0.2}),
    },
    "fedadagrad": {"strategy": {"name": "fedadagrad"} | SERVER},
    "fedavgm, int4": {"strategy": {"name": "fedavgm"} | SERVER, "codec": codec(4)},
    "fedprox, int16": {
        "strategy": {"name": "fedprox"},
        "codec": codec(16),
        "training": {"local_steps": 1, "batch_size": 2, "learning_rate": 0.1, "proximal_mu": 0.01},
    },
    "fedavg, head": {"codec": codec(8, exchange={"name": "head"})},
}


@pytest.mark.parametrize("case", CASES)
def test_any_strategy_of_means_moves_the_same_model(
    case: str, five: Hospitals, trained: list[Any]
) -> None:
    of = encrypted(rounds=2, evaluation={"every": 1000}, **CASES[case])
    run = case.replace(", ", "-")
    opened = five.conduct(plainly(of), run + "-open", rounds=2)
    five.conduct(of, run, rounds=2)
    all_hold(five, of, run, opened.model, 2)


@pytest.mark.parametrize(
    "changes",
    [{"weighting": "examples"}, {"codec": codec(8, exchange={"name": "adapters", "rank": 2})}],
    ids=["by size", "adapters"],
)
def test_the_integers_are_those_under_masks(
    changes: dict[str, Any], five: Hospitals, trained: list[Any]
) -> None:
    """Where the order of rounding differs from that of single updates: weights, and B·A."""
    run = "like-masks-" + next(iter(changes))
    changes = changes | {"rounds": 2, "evaluation": {"every": 1000}}
    masked = five.conduct(encrypted(secure_aggregation=MASKS, **changes), run, rounds=2)
    of = encrypted(**changes)
    five.conduct(of, run + "-ckks", rounds=2)
    all_hold(five, of, run + "-ckks", masked.model, 2)


def test_figures_are_those_of_the_hospitals_together(five: Hospitals, trained: list[Any]) -> None:
    of = encrypted(weighting="examples", rounds=1)
    five.conduct(plainly(of), "figures-open")
    five.conduct(of, "figures")
    opened, hidden = (
        {row["kind"] + str(row["round"]): row for row in rows(five, run)}
        for run in ("figures-open", "figures")
    )
    each = opened["round1"]["hospitals"].values()
    summed = hidden["round1"]["summed"]
    examples = sum(row["examples"] for row in each)
    assert summed["examples"] == examples
    assert summed["patients"] == sum(row["patients"] for row in each)
    loss = sum(row["loss"] * row["examples"] for row in each) / examples
    assert summed["loss"] == pytest.approx(loss, abs=1e-6)
    for metric, value in opened["evaluation0"]["overall"].items():
        assert hidden["evaluation0"]["overall"][metric] == pytest.approx(value, abs=1e-5)
    assert hidden["evaluation1"]["overall"]  # the last model's, by hospitals that hold it
    assert hidden["evaluation1"]["summed_over"] == sorted(five.sites)
    # and of one alone nothing is told, nor of the update
    assert "norm" not in hidden["round1"]
    for row in hidden["round1"]["hospitals"].values():
        assert set(row) == {
            "status", "reason", "attempts", "bytes_down", "bytes_up", "answered_after"
        }  # fmt: skip


def test_after_the_first_round_there_are_three_exchanges(
    five: Hospitals, trained: list[Any]
) -> None:
    of = encrypted(rounds=2)
    five.conduct(of, "exchanges")
    three = [(phase, 5) for phase in (Phase.WORK, Phase.SIGN, Phase.OPEN)]
    assert steps(five) == [(Phase.ADVERTISE, 5), (Phase.SHARE, 1), *(3 * three)]
    # nobody is sent what it has: no model, no sum of an earlier round
    assert not any(blob for _, request, blob in five.asked if request.phase is Phase.WORK)


# --- who has the model ----------------------------------------------------------------------------

RELEASED = CKKS | {"release": "coordinator"}


@pytest.fixture
def willing(five: Hospitals, monkeypatch: pytest.MonkeyPatch) -> Hospitals:
    """Hospitals whose policy lets a final model go."""
    policy = Policy(code="any", least_patients=1, smallest_group=1, release="coordinator")
    for name, site in list(five.sites.items()):
        monkeypatch.setitem(five.sites, name, site.model_copy(update={"policy": policy}))
    return five


@pytest.mark.parametrize("metrics", [True, False])
def test_a_released_model_is_that_of_the_hospitals(
    metrics: bool,
    willing: Hospitals,
    trained: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where the coordinator was started anew after the last round, and knows not who holds it."""
    run, of = f"release-{metrics}", encrypted(secure_aggregation=RELEASED)
    wanted = willing.conduct(plainly(of), run + "-open", rounds=3)
    willing.asked.clear()
    if not metrics:
        monkeypatch.setattr(type(of), "evaluates", property(lambda self: False))
        willing.meddle["east"] = lambda request, records, answer: (
            CRASH if (request.phase, request.round) == (Phase.OPEN, 3) else answer(records)
        )
    last = willing.conduct(of, run, rounds=3)
    assert not last.model
    assert not any(request.phase is Phase.RELEASE for _, request, _ in willing.asked)
    done = willing.conduct(of, run)
    same(done.model, wanted.model)
    folder, _, start = willing.conductor(of, run)
    assert folder.experiment() == of
    assert start is not None
    same(start.model, wanted.model)
    all_ = [name for name, request, _ in willing.asked if request.phase is Phase.RELEASE]
    assert all_ == (["east"] if metrics else ["east", "hill"])


def test_hospitals_that_do_not_release_refuse_at_the_start(
    five: Hospitals, trained: list[Any]
) -> None:
    of = encrypted(secure_aggregation=RELEASED)
    with pytest.raises(TooFewHospitals, match="east: refused_release"):
        five.conduct(of, "unwilling")
    assert not trained
    assert not any(name for name, phase, _ in five.heard if phase is Phase.WORK)


def test_without_release_there_is_no_model_at_the_coordinator(
    willing: Hospitals, trained: list[Any]
) -> None:
    """Even where every hospital would give it: the run did not say so."""
    of = encrypted(rounds=1)
    done = willing.conduct(of, "kept")
    assert not done.model
    assert not done.strategy
    assert not any(request.phase is Phase.RELEASE for _, request, _ in willing.asked)
    files = {f.name for f in (willing.folder / "runs" / "kept").rglob("*") if f.is_file()}
    assert "keys.json" in files
    model = willing.folder / "runs" / "kept" / "model.safetensors"
    assert model.stat().st_size < 1000
