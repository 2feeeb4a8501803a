"""Layers and models that stay at the hospital: each rule against a computation of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from client_app.local_state import LocalState
from federation import strategies
from federation.messages import Arrays
from federation.schema import ConfigError, Experiment
from federation.strategies import fedbn
from tests.client_app.personal_rounds import (
    Federation,
    described,
    network,
    points,
    reference,
)

EQUAL = {"north": points(1), "south": points(2), "west": points(3)}
FLIPPED = {"north": points(1), "south": points(2), "west": points(3, flipped=True)}
SHIFTED = {"north": points(1), "south": points(2, shift=6.0), "west": points(3, shift=-6.0)}
with_norm = partial(network, norm=True)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def bits(arrays: Arrays) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in arrays.items()}


def own(federation: Federation, name: str) -> Arrays:
    """What the hospital keeps."""
    of = federation.of.sha256()
    return LocalState.of(federation.folder / name, federation.run, of).newest()


def worst(federation: Federation, metric: str = "accuracy") -> float:
    return min(metrics[metric] for metrics in federation.measured().values())


# --- against an independent computation -----------------------------------------------------------


def _in(*layers: str) -> Callable[[str], bool]:
    return lambda name: name.partition(".")[0] in layers


@pytest.mark.parametrize(
    ("name", "options", "build", "more"),
    [
        ("fedavg", {}, network, {}),
        ("fedper", {}, network, {"stays": _in("head")}),
        ("fedper", {"personal_layers": ("head", "body.b*")}, network,
         {"stays": lambda n: n.startswith("head") or n == "body.bias"}),
        ("fedrep", {}, network, {"stays": _in("head")}),
        ("fedbn", {}, with_norm, {"stays": _in("norm")}),
        ("local_only", {}, with_norm, {"stays": lambda n: True}),
        ("ditto", {"personal_weight": 0.7}, network, {"weight": 0.7}),
    ],
)  # fmt: skip
def test_each_rule_is_the_arithmetic_it_says(
    name: str, options: dict[str, Any], build: Any, more: Any, tmp_path: Path
) -> None:
    federation = Federation(tmp_path, FLIPPED, described(name, **options), build).rounds(3)
    model, hospitals = reference(name, FLIPPED, 3, build=build, **more)
    assert federation.model.keys() == model.keys()
    for key, array in federation.model.items():
        torch.testing.assert_close(torch.from_numpy(array), model[key], rtol=1e-4, atol=1e-5)
    for hospital, expected in hospitals.items():
        kept = own(federation, hospital)
        assert kept.keys() == expected.keys()
        for key, tensor in expected.items():
            torch.testing.assert_close(torch.from_numpy(kept[key]), tensor, rtol=1e-4, atol=1e-5)


def test_what_stays_is_never_in_an_update_nor_in_the_global_model(tmp_path: Path) -> None:
    for name, build, layer in (
        ("fedper", network, "head"),
        ("fedrep", network, "head"),
        ("fedbn", with_norm, "norm"),
    ):
        federation = Federation(tmp_path / name, EQUAL, described(name), build)
        before = bits(federation.model)
        federation.rounds(2)
        for update in federation.updates.values():
            for key, array in update.items():
                assert (np.count_nonzero(array) == 0) == key.startswith(layer), key
        for key, content in bits(federation.model).items():
            assert (content == before[key]) == key.startswith(layer), key
        heads = [bits(own(federation, hospital)) for hospital in EQUAL]
        assert heads[0] != heads[1]


# --- where a rule is another one ------------------------------------------------------------------


def test_with_nothing_kept_it_is_fedavg_to_the_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mean = Federation(tmp_path / "mean", FLIPPED, described("fedavg"), with_norm).rounds(3)
    of = described("fedper", personal_layers=())
    assert bits(Federation(tmp_path / "per", FLIPPED, of, with_norm).rounds(3).model) == bits(
        mean.model
    )
    monkeypatch.setattr(fedbn, "keeps", lambda options, network: frozenset())
    bn = Federation(tmp_path / "bn", FLIPPED, described("fedbn"), with_norm).rounds(3)
    assert bits(bn.model) == bits(mean.model)


def test_with_one_hospital_layers_that_stay_make_no_difference(tmp_path: Path) -> None:
    alone = {"north": EQUAL["north"]}
    mean = Federation(tmp_path / "mean", alone, described("fedavg")).rounds(4)
    per = Federation(tmp_path / "per", alone, described("fedper")).rounds(4)
    whole = per.model | own(per, "north")
    for key, array in mean.model.items():
        np.testing.assert_allclose(whole[key], array, rtol=1e-5, atol=1e-6)


def test_ditto_sends_what_fedavg_sends(tmp_path: Path) -> None:
    mean = Federation(tmp_path / "mean", FLIPPED, described("fedavg")).rounds(3)
    ditto = Federation(tmp_path / "ditto", FLIPPED, described("ditto")).rounds(3)
    assert bits(ditto.model) == bits(mean.model)


def test_without_its_pull_a_personal_model_is_training_alone_to_the_bit(tmp_path: Path) -> None:
    training = {"optimizer": "adam", "learning_rate": 0.05, "batch_size": 7, "proximal_mu": 0.0}
    of = described("local_only", training=training)
    alone = Federation(tmp_path / "alone", FLIPPED, of, with_norm).rounds(3)
    of = described("ditto", training=training, personal_weight=0.0)
    ditto = Federation(tmp_path / "ditto", FLIPPED, of, with_norm).rounds(3)
    for hospital in FLIPPED:
        assert bits(own(ditto, hospital)) == bits(own(alone, hospital))
    assert bits(alone.model) == bits(
        Federation(tmp_path, FLIPPED, of, with_norm).model
    )  # nothing was learnt together


def test_a_proximal_term_of_the_global_training_does_not_hold_the_personal_model(
    tmp_path: Path,
) -> None:
    held = described("ditto", training={"proximal_mu": 1.0}, personal_weight=0.3)
    free = described("ditto", personal_weight=0.3)
    one = Federation(tmp_path / "one", FLIPPED, held).rounds(1)
    other = Federation(tmp_path / "other", FLIPPED, free).rounds(1)
    assert bits(one.model) != bits(other.model)
    assert bits(own(one, "west")) == bits(own(other, "west"))


def test_a_strong_pull_keeps_the_personal_model_at_the_global_one(tmp_path: Path) -> None:
    """With η·λ = 1 each step is v ← w − η·∇F(v): never further from w than η·‖∇F‖."""

    def distance(rate: float, weight: float) -> float:
        of = described("ditto", training={"learning_rate": rate}, personal_weight=weight)
        federation = Federation(tmp_path / f"{rate}-{weight}", FLIPPED, of).rounds(2)
        before = federation.model
        federation.rounds(1)
        kept = own(federation, "west")
        return float(np.sqrt(sum(np.square(kept[k] - before[k]).sum() for k in kept)))

    assert distance(0.01, 100.0) < 0.01 * 2.0
    assert distance(0.001, 1000.0) < 0.001 * 2.0
    assert distance(0.01, 0.0) > 0.03


# --- hospitals that differ ------------------------------------------------------------------------


def test_where_labels_are_swapped_heads_and_models_of_ones_own_help(tmp_path: Path) -> None:
    def after(name: str, **options: Any) -> Federation:
        return Federation(tmp_path / name, FLIPPED, described(name, **options)).rounds(15)

    mean = worst(after("fedavg"))
    assert mean < 0.2  # two against one
    assert worst(after("fedper")) > 0.95
    assert worst(after("fedrep")) > 0.95
    ditto = after("ditto", personal_weight=0.1)
    assert worst(ditto) == mean
    assert worst(ditto, "personal_accuracy") > 0.95


def test_where_images_are_shifted_normalisation_of_ones_own_helps(tmp_path: Path) -> None:
    def after(name: str) -> Federation:
        return Federation(tmp_path / name, SHIFTED, described(name), with_norm).rounds(15)

    assert worst(after("fedavg")) < 0.75
    assert worst(after("fedbn")) > 0.95


# --- what is remembered ---------------------------------------------------------------------------


def _next_round(federation: Federation) -> Federation:
    torch.set_num_threads(1)
    return federation.rounds(1)


@pytest.mark.parametrize("name", ["fedper", "ditto"])
def test_a_new_process_goes_on_where_the_last_one_was(name: str, tmp_path: Path) -> None:
    there = Federation(tmp_path / "there", FLIPPED, described(name)).rounds(2)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        there = process.submit(_next_round, there).result()
    here = Federation(tmp_path / "here", FLIPPED, described(name)).rounds(3)
    assert bits(there.model) == bits(here.model)
    assert bits(own(there, "west")) == bits(own(here, "west"))


@pytest.mark.parametrize("name", ["fedper", "fedrep", "ditto", "local_only"])
def test_a_repeated_request_has_the_same_answer(name: str, tmp_path: Path) -> None:
    federation = Federation(tmp_path, FLIPPED, described(name)).rounds(2)
    first = federation.serve("west", 3)
    kept = own(federation, "west")
    again = federation.serve("west", 3)
    assert first[0] == again[0]
    assert bits(first[1]) == bits(again[1])
    assert bits(own(federation, "west")) == bits(kept)


def test_who_was_not_asked_goes_on_with_its_newest_and_who_joins_with_what_came(
    tmp_path: Path,
) -> None:
    federation = Federation(tmp_path, FLIPPED, described("fedper")).rounds(1)
    kept = own(federation, "west")
    federation.rounds(2, absent=frozenset({"west"}))
    assert bits(federation.part("west", 4).local.kept) == bits(kept)
    joining = Federation(tmp_path, EQUAL | {"east": points(9)}, federation.of)
    joining.model = federation.model
    fresh = joining.part("east", 4).local.kept
    assert bits(fresh) == bits({name: federation.model[name] for name in fresh})


def test_the_last_evaluation_is_of_the_newest_layers(tmp_path: Path) -> None:
    federation = Federation(tmp_path, FLIPPED, described("fedper")).rounds(2)
    part = federation.part("west", 3, train=False)
    state = {name: tensor.numpy() for name, tensor in part.received.network.state_dict().items()}
    assert bits(state) == bits(federation.model | own(federation, "west"))


@pytest.mark.parametrize("name", ["fedper", "ditto"])
def test_what_another_experiment_left_under_the_name_is_not_used(name: str, tmp_path: Path) -> None:
    """It may have been trained without the noise that this experiment promises."""
    first = Federation(tmp_path, FLIPPED, described(name)).rounds(1)
    of = described(name, training={"local_steps": 5})
    second = Federation(tmp_path, FLIPPED, of, model=first.model)
    local = second.part("west", 2).local
    fresh = local.kept or (local.personal.start if local.personal else {})
    assert fresh
    assert bits(fresh) == bits({key: first.model[key] for key in fresh})


def test_corrections_of_another_experiment_are_not_used_either(tmp_path: Path) -> None:
    """Made of updates without noise, they would leave with updates whose noise is charged."""

    def of(steps: int) -> Experiment:
        made = described("feddyn", alpha=0.5, training={"local_steps": steps})
        equal = made.participation.model_copy(update={"weighting": "equal"})
        return made.model_copy(update={"participation": equal})

    first, second = (Federation(tmp_path, FLIPPED, of(steps)) for steps in (6, 5))
    first.part("west", 1).finish(6, {})
    state = LocalState.of(tmp_path / "west", first.run, first.of.sha256())
    state.keep(1, {name: array + 1 for name, array in state.newest().items()})

    def corrected(federation: Federation) -> bool:
        part = federation.part("west", 2)
        parameters = dict(part.received.network.named_parameters())
        assert part.local.correct is not None
        return any(part.local.correct(n, p.detach()).any() for n, p in parameters.items())

    assert corrected(first)
    assert not corrected(second)


@pytest.mark.parametrize("damage", [b"", b"x", None])
def test_a_damaged_memory_gives_way_to_the_one_before(damage: bytes | None, tmp_path: Path) -> None:
    federation = Federation(tmp_path, FLIPPED, described("fedper")).rounds(1)
    kept = own(federation, "west")
    federation.rounds(1)
    state = LocalState.of(tmp_path / "west", federation.run, federation.of.sha256())
    file = state._file(2)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content) if damage is None else damage)
    assert bits(federation.part("west", 3).local.kept) == bits(kept)


# --- phases ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "share", "expected"),
    [(6, 0.5, [3, 3]), (10, 0.3, [3, 7]), (1, 0.5, [1]), (7, 0.9, [6, 1])],
)
def test_phases_share_the_steps(
    steps: int, share: float, expected: list[int], tmp_path: Path
) -> None:
    """A policy may allow fewer steps than the experiment asks for: one is enough for one phase."""
    of = described("fedrep", head_share=share, training={"local_steps": 10})
    part = Federation(tmp_path, EQUAL, of).part("west", 1)
    training = of.training.model_copy(update={"local_steps": steps})
    object.__setattr__(part.asked, "training", training)
    seen = []
    needs = {n: p.requires_grad for n, p in part.received.network.named_parameters()}
    for asked, seed in part.phases():
        moving = {n for n, p in part.received.network.named_parameters() if p.requires_grad}
        seen.append((asked.local_steps, seed, moving))
    assert [count for count, _, _ in seen] == expected
    assert sum(expected) == steps
    assert len({seed for _, seed, _ in seen}) == len(seen)
    if len(seen) == 2:
        assert seen[0][2] == {"head.weight", "head.bias"}
        assert seen[1][2] == {"body.weight", "body.bias"}
    assert needs == {n: p.requires_grad for n, p in part.received.network.named_parameters()}


def test_a_phase_that_fails_leaves_the_network_as_it_was(tmp_path: Path) -> None:
    part = Federation(tmp_path, EQUAL, described("fedrep")).part("west", 1)

    def failing(network: nn.Module, **_: Any) -> Any:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        part.train(failing)
    assert all(p.requires_grad for p in part.received.network.parameters())


def test_the_loss_of_phases_is_weighted_by_their_steps(tmp_path: Path) -> None:
    from client_app.training.loop import Trained

    of = described("fedrep", head_share=0.2, training={"local_steps": 10})
    part = Federation(tmp_path, EQUAL, of).part("west", 1)
    losses = iter([4.0, 1.0])

    def train(network: nn.Module, training: Any, **_: Any) -> Trained:
        return Trained(next(losses), training.local_steps)

    assert part.train(train) == Trained((4.0 * 2 + 1.0 * 8) / 10, 10)


# --- what is refused at the hospital --------------------------------------------------------------


def test_a_hospital_refuses_what_the_coordinator_should_have(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="normalisation layers at the hospitals"):
        Federation(tmp_path, EQUAL, described("fedbn")).part("west", 1)
    of = described("ditto")
    private = of.model_copy(update={"privacy": {"noise_multiplier": 1.0}})
    federation = Federation(tmp_path, EQUAL, of)
    federation.of = private
    with pytest.raises(ConfigError, match="strategy=ditto trains and measures a personal model"):
        federation.part("west", 1)


def test_each_local_part_belongs_to_a_strategy() -> None:
    from client_app.training import local
    from federation import registry

    assert set(registry.names(local)) <= set(registry.names(strategies))
