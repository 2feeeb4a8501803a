"""Which arrays travel, and training in a subspace that loses nothing on the way."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from client_app.training import loop
from federation import models, registry
from federation.codec import exchange, quantise, sparsify
from federation.codec.chain import Chain
from federation.codec.exchange import adapters
from federation.messages import Arrays
from federation.schema import Component, ConfigError
from tests.client_app.training.private_cases import (
    Items,
    patients_of,
    privacy_of,
    run,
    task_of,
    training_of,
)
from tests.federation.codec.networks import Tied, chain_of, integers, network, part, update_of

CPU = torch.device("cpu")


def sent(chain: Chain, update: Arrays, *, round: int = 1) -> Arrays:
    scales = chain.first_scales(training_of())
    encoded = chain.encode(update, None, scales, round=round, seed=0)
    return chain.decode_one(encoded, scales, round=round)


@pytest.mark.parametrize(
    ("choice", "missing"),
    [
        ("all", set()),
        (
            "all_but_normalisation",
            {"1.weight", "1.bias", "1.running_mean", "1.running_var", "4.weight", "4.bias"},
        ),
        (
            "head",
            {"0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var"}
            | {"3.weight", "3.bias", "4.weight", "4.bias"},
        ),
    ],
)
def test_what_is_not_exchanged_stays_as_it_was(choice: str, missing: set[str]) -> None:
    model = network()
    update = update_of(model, 1)
    found = sent(chain_of(model, exchange=part(choice)), update)
    counter = "1.num_batches_tracked"
    assert found.keys() == update.keys()
    assert found[counter].dtype == np.int64 and found[counter].shape == () and found[counter] == 0
    for name in update.keys() - {counter}:
        expected = np.zeros_like(update[name]) if name in missing else update[name]
        assert np.array_equal(found[name], expected), name
        assert found[name].dtype == update[name].dtype


def test_every_file_of_a_stage_has_what_the_stage_needs() -> None:
    needed = {
        exchange: {"LINEAR", "Options", "build"},
        sparsify: {"LINEAR", "Options", "count", "choose", "factors"},
        quantise: {"LINEAR", "Options", "bits", "encode", "decode"},
    }
    for package, attributes in needed.items():
        for name in registry.names(package):
            module, _ = registry.find(package, Component(name=name))
            assert attributes <= set(vars(module)), name
            if package is quantise and module.LINEAR:
                assert {"most", "wanted"} <= set(vars(module))


def test_a_model_without_anything_to_exchange_is_refused() -> None:
    with pytest.raises(ConfigError, match="use all"):
        chain_of(nn.Sequential(nn.GroupNorm(1, 4)), exchange=part("all_but_normalisation"))


def test_head_trains_the_last_layer_alone_and_leaves_the_rest_trainable() -> None:
    model = network()
    model[0].weight.requires_grad_(False)
    with chain_of(model, exchange=part("head")).restrict(model, round=1):
        trained = [name for name, p in model.named_parameters() if p.requires_grad]
        assert trained == ["7.weight", "7.bias"]
    others = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert others == ["0.weight"]


# --- adapters ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rank", "inputs"), [(1, 2), (4, 27), (8, 64), (16, 4608)])
def test_a_is_orthonormal_and_each_round_has_another(rank: int, inputs: int) -> None:
    matrix = adapters.basis(rank, inputs, 0, 1, "w").matrix()
    assert matrix.shape == (rank, inputs)
    assert np.allclose(matrix @ matrix.T, np.eye(rank), atol=1e-12)
    if inputs > 8:
        assert not np.array_equal(matrix, adapters.basis(rank, inputs, 0, 2, "w").matrix())


def test_the_projection_is_that_of_a_and_keeps_its_share_in_the_mean() -> None:
    weight = np.random.default_rng(0).normal(size=(5, 48))
    kept, mean = [], np.zeros_like(weight)
    for round in range(400):
        of = adapters.basis(6, 48, 0, round, "w")
        adapter = of.project(weight)
        inside = of.expand(adapter)
        assert np.allclose(adapter, weight @ of.matrix().T)
        assert np.allclose(inside, weight @ of.matrix().T @ of.matrix())
        assert np.allclose(of.project(inside), adapter)
        kept.append(np.square(inside).sum() / np.square(weight).sum())
        mean += inside / 400
    assert np.mean(kept) == pytest.approx(6 / 48, rel=0.05)
    assert np.allclose(mean * 48 / 6, weight, atol=0.8)  # E[AᵀA] = r / d


def test_only_large_weights_that_stand_alone_are_adapted() -> None:
    chain = chain_of(network(), exchange=part("adapters", rank=8))
    assert chain.stages.exchange.adapted == {"0.weight", "3.weight"}  # type: ignore[attr-defined]
    tied = chain_of(Tied(), exchange=part("adapters", rank=4))
    assert not tied.stages.exchange.adapted  # type: ignore[attr-defined]
    large = chain_of(network(), exchange=part("adapters", rank=30))
    assert large.stages.exchange.adapted == {"3.weight"}  # type: ignore[attr-defined]


def arrays(model: nn.Module) -> Arrays:
    return {name: tensor.detach().numpy().copy() for name, tensor in model.state_dict().items()}


def steps(model: nn.Module, count: int) -> None:
    model.train()
    torch.manual_seed(1)
    used = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 0.01)
    for _ in range(count):
        answer: Tensor = model(torch.randn(6, 3, 10, 10))
        loss = nn.functional.cross_entropy(answer, torch.arange(6))
        used.zero_grad()
        loss.backward()
        used.step()


@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_training_within_loses_nothing_and_the_names_are_back(scale: float) -> None:
    model = network()
    model[3].bias.requires_grad_(False)
    names, before, kinds = list(model.state_dict()), arrays(model), list(map(type, model))
    chain = chain_of(model, exchange=part("adapters", rank=4, scale=scale))
    with chain.restrict(model, round=5):
        inside = {name for name, p in model.named_parameters() if p.requires_grad}
        assert not any(name.endswith(("original", "3.bias")) for name in inside)
        assert {"0.bias", "1.weight", "7.weight"} <= inside
        steps(model, 5)
    assert list(model.state_dict()) == names and list(map(type, model)) == kinds
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert frozen == ["3.bias"]
    after = arrays(model)
    update = {name: after[name] - array for name, array in before.items()}
    assert np.linalg.matrix_rank(update["3.weight"].reshape(16, -1), tol=1e-4) == 4
    found = sent(chain, update, round=5)
    for name, array in update.items():
        if array.dtype.kind == "f":
            assert np.allclose(found[name], array, atol=1e-6, rtol=1e-5), name
    elsewhere = sent(chain, update, round=6)
    assert not np.allclose(elsewhere["3.weight"], update["3.weight"], atol=1e-4)


def test_what_raises_within_leaves_the_model_in_order() -> None:
    model = network()
    names, before = list(model.state_dict()), arrays(model)
    chain = chain_of(model, exchange=part("adapters"))
    with pytest.raises(ZeroDivisionError), chain.restrict(model, round=1):
        raise ZeroDivisionError
    assert list(model.state_dict()) == names
    assert all(np.array_equal(array, before[name]) for name, array in arrays(model).items())
    assert all(p.requires_grad for p in model.parameters())


def test_sums_of_adapters_are_sums_of_updates() -> None:
    """Which they are not where each hospital has an A of its own."""
    model = network()
    chain = chain_of(model, exchange=part("adapters", rank=4))
    updates = [update_of(model, seed) for seed in range(3)]
    exchanged = chain.stages.exchange
    moving = [exchanged.project(chain._flat(update), round=2) for update in updates]
    together = exchanged.project(sum(map(chain._flat, updates)), round=2)  # type: ignore[arg-type]
    assert np.allclose(np.sum(moving, axis=0), together, atol=1e-6)


def radiograph_network() -> nn.Module:
    return models.build(Component(name="resnet"), task_of("chest_xray"), seed=0)


def test_with_the_plain_loop() -> None:
    task = task_of("chest_xray", augment=dict)
    model = radiograph_network()
    before = arrays(model)
    chain = chain_of(model, exchange=part("adapters", rank=4))
    with chain.restrict(model, round=1):
        loop.train(model, task, Items(12), training_of(), device=CPU, seed=1, learning_rate=0.1)
    check_update(chain, before, arrays(model))


@pytest.mark.parametrize("trainable", ["all", "head"])
def test_with_the_private_loop(trainable: str) -> None:
    model = radiograph_network()
    before = arrays(model)
    chain = chain_of(model, exchange=part("adapters", rank=4))
    with chain.restrict(model, round=1):
        run(model, Items(12), patients_of([2] * 6), privacy=privacy_of(trainable=trainable))
    check_update(chain, before, arrays(model))


def check_update(chain: Chain, before: Arrays, after: Arrays) -> None:
    update = {name: after[name] - array for name, array in before.items()}
    found = sent(chain, update)
    moved = 0
    for name, array in update.items():
        if array.dtype.kind == "f":
            assert np.allclose(found[name], array, atol=1e-5, rtol=1e-4), name
            moved += bool(array.any())
    assert moved


def test_private_training_of_the_head_moves_the_head_alone() -> None:
    model = radiograph_network()
    before = arrays(model)
    with chain_of(model, exchange=part("head")).restrict(model, round=1):
        run(model, Items(12), patients_of([2] * 6))
    moved = {
        name for name, array in arrays(model).items() if not np.array_equal(array, before[name])
    }
    head = list(dict(model.named_parameters()))[-2:]
    assert moved == set(head)


def test_a_residual_of_adapters_is_what_the_subspace_lacks() -> None:
    model = network()
    chain = chain_of(model, exchange=part("adapters", rank=4), quantise=integers(8))
    update = update_of(model, 1)
    scales = chain.first_scales(training_of())
    encoded = chain.encode(update, None, scales, round=1, seed=0)
    decoded = chain._flat(chain.decode_one(encoded, scales, round=1))
    assert encoded.residual is not None
    assert np.allclose(encoded.residual + decoded, chain._flat(update), atol=1e-7)
    reached: dict[str, Any] = copy.deepcopy(update)
    total = chain._flat(update) * 0
    residual = None
    for round in range(1, 200):
        encoded = chain.encode(reached, residual, scales, round=round, seed=round)
        residual = encoded.residual
        total += chain._flat(chain.decode_one(encoded, scales, round=round))
        scales = chain.next_scales(scales, encoded.wanted, round=round)
        reached = {name: np.zeros_like(array) for name, array in update.items()}
    # one update, sent bit by bit over other and other subspaces
    lost = np.linalg.norm(total - chain._flat(update)) / np.linalg.norm(chain._flat(update))
    assert lost < 0.05
