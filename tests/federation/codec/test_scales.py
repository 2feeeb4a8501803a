"""How scales are found: within a few rounds, from sums of votes alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from federation.codec import scales
from federation.codec.chain import Chain
from federation.codec.sums import Sum
from federation.messages import Arrays, WireError
from tests.federation.codec.networks import chain_of, integers, network, training, update_of

KEPT = np.array([-10, 0, 5], np.int16)


def votes(*wanted: int | None) -> np.ndarray:
    return scales.vote(list(wanted), KEPT)


def test_the_largest_that_anybody_wants_is_taken() -> None:
    summed = 3 * votes(-9, None, 5) + 5 * votes(-4, 2, 5) + 7 * votes(-10, None, 3)
    assert scales.following(KEPT, summed).tolist() == [-4, 2, 5]


def test_a_scale_falls_by_half_and_in_the_first_round_at_once() -> None:
    assert scales.following(KEPT, votes(-18, -1, None)).tolist() == [-14, -1, 5]
    assert scales.following(KEPT, votes(-18, -1, 2), gently=False).tolist() == [-18, -1, 2]


def test_no_votes_change_nothing_and_far_ones_go_to_the_edge() -> None:
    assert scales.following(KEPT, votes(None, None, None)).tolist() == KEPT.tolist()
    far = scales.following(KEPT, votes(100, -100, 5), gently=False)
    assert far.tolist() == [-10 + scales.RISE, scales.FALL, 5]
    low = np.full(3, scales.LOWEST, np.int16)
    assert scales.following(low, scales.vote([-200] * 3, low)).tolist() == low.tolist()
    high = np.full(3, scales.HIGHEST, np.int16)
    assert scales.following(high, scales.vote([200] * 3, high)).tolist() == high.tolist()


@given(st.lists(st.integers(scales.LOWEST, scales.HIGHEST), max_size=5))
def test_scales_travel(exponents: list[int]) -> None:
    sent = scales.to_bytes(np.array(exponents, np.int16))
    assert scales.from_bytes(sent, len(exponents)).tolist() == exponents
    with pytest.raises(WireError):
        scales.from_bytes(sent + b"\0\0", len(exponents))


def test_scales_out_of_range_are_refused() -> None:
    for exponent in (scales.LOWEST - 1, scales.HIGHEST + 1):
        with pytest.raises(WireError):
            scales.from_bytes(scales.to_bytes(np.array([exponent], np.int16)), 1)


def relative_errors(found: Arrays, true: Arrays) -> dict[str, float]:
    return {
        name: float(np.linalg.norm(found[name] - array) / np.linalg.norm(array))
        for name, array in true.items()
        if array.dtype.kind == "f" and array.any()
    }


def rounds(chain: Chain, updates: list[list[Arrays]], **more: Any) -> list[dict[str, float]]:
    """The errors of the mean, segment by segment, in each round, without feedback."""
    current = chain.first_scales(training(**more))
    errors = []
    for round, of_hospitals in enumerate(updates, 1):
        total = Sum(chain, current, round=round)
        for seed, update in enumerate(of_hospitals):
            total.add(chain.encode(update, None, current, round=round, seed=seed), 1)
        mean, current = total.mean()
        true = {n: np.mean([u[n] for u in of_hospitals], axis=0) for n in mean}
        true = {n: array for n, array in true.items() if mean[n].dtype.kind == "f"}
        errors.append(relative_errors(mean, true))
    return errors


@pytest.mark.parametrize("size", [1e-5, 1e-3, 1.0, 300.0])
def test_any_magnitude_is_found_by_the_third_round(size: float) -> None:
    """The guess is for 0.01; 8 bits then leave 1 % of error, and one segment is all zeros."""
    model = network()
    chain = chain_of(model, quantise=integers(8), error_feedback=False)
    hospitals = [update_of(model, seed, size) for seed in range(2)]
    for update in hospitals:
        update["0.bias"][:] = 0
        update["7.weight"] *= 1e-3
    errors = rounds(chain, [hospitals] * 4)
    assert max(errors[2].values()) < 0.03
    assert max(errors[3].values()) < 0.03


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_feedback_does_not_drive_the_scales_up(bits: int) -> None:
    """A residual of a step asks for a larger step: with 2 bits that would never end."""
    model = nn.Linear(50, 20)
    chain = chain_of(model, quantise=integers(bits))
    current, residual = chain.first_scales(training()), None
    for round in range(1, 200):
        update = update_of(model, round, 1.0)
        encoded = chain.encode(update, residual, current, round=round, seed=round)
        residual = encoded.residual
        current = chain.next_scales(current, encoded.wanted, round=round)
        assert current.max() <= 2
    assert residual is not None and np.abs(residual).max() < 8


@pytest.mark.parametrize(
    ("optimizer", "more"), [("adam", {}), ("adamw", {}), ("sgd", {"momentum": 0.9})]
)
def test_real_training_is_on_scale_from_the_second_round(
    optimizer: str, more: dict[str, float]
) -> None:
    """Images of mean 100 and deviation 30, so that BatchNorm's statistics move far more than weights."""
    given: dict[str, Any] = {
        "optimizer": optimizer,
        "learning_rate": 0.01 if optimizer == "sgd" else 0.001,
        **more,
    }
    model = network()
    chain = chain_of(model, quantise=integers(8), error_feedback=False)
    updates = []
    for round in range(4):
        before = {n: t.numpy().copy() for n, t in model.state_dict().items()}
        torch.manual_seed(round)
        make = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
        used = make[optimizer](model.parameters(), given["learning_rate"], **more)
        for _ in range(10):
            loss = nn.functional.cross_entropy(
                model(100 + 30 * torch.randn(8, 3, 12, 12)), torch.arange(8)
            )
            used.zero_grad()
            loss.backward()
            used.step()
        after = {n: t.numpy() for n, t in model.state_dict().items()}
        updates.append([{n: after[n] - a for n, a in before.items()}])
    errors = rounds(chain, updates, **given)
    assert max(errors[0]["1.running_mean"], errors[0]["3.weight"]) < 1
    for of_round in errors[1:]:
        assert np.median(list(of_round.values())) < 0.05
        assert max(of_round.values()) < 0.5


def test_a_segment_that_nobody_votes_for_keeps_its_range_when_the_bits_change() -> None:
    """From ±32767·2^e in the first round to ±7·2^(e + 12), which is 0.9 of it."""
    model = network()
    chain = chain_of(model, quantise=integers(4))
    nothing = {name: array * 0 for name, array in update_of(model, 0).items()}
    before = chain.first_scales(training())
    encoded = chain.encode(nothing, None, before, round=1, seed=0)
    assert not encoded.wanted.any()
    after = chain.next_scales(before, encoded.wanted, round=1)
    assert (after - before).tolist() == [12] * chain.voters
    assert chain.next_scales(after, encoded.wanted, round=2).tolist() == after.tolist()
