"""The clipped sum: no contribution is longer than it may be, and the noise is what was promised."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from federation.privacy.csprng import Csprng
from federation.privacy.mechanism import ClippedSum

SHAPES = [(3, 5), (), (40,), (2, 3, 4)]
NO_NOISE = 1e-12  # of one clipping norm: what is left is the sum


class Silent(Csprng):
    """Noise of zeros, to see the sum itself."""

    def gaussian(self, count: int) -> Tensor:
        return torch.zeros(count, dtype=torch.float64)


def contribution(seed: int, size: float = 1.0, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [size * torch.randn(shape, generator=generator, dtype=dtype) for shape in SHAPES]


def flat(parts: list[Tensor]) -> Tensor:
    return torch.cat([part.double().reshape(-1) for part in parts])


def summed(contributions: list[list[Tensor]], clipping_norm: float = 1.0) -> Tensor:
    like = contributions[0] if contributions else contribution(0)
    total = ClippedSum(like, clipping_norm)
    for parts in contributions:
        total.add(parts)
    return flat(total.noised(NO_NOISE, Silent()))


# --- clipping ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1e-30, 1e-3, 0.1, 1.0, 30.0, 1e6, 1e18, 1e30])
def test_the_sum_is_that_of_contributions_scaled_down_to_the_norm(
    size: float, dtype: torch.dtype
) -> None:
    parts = [contribution(seed, size * (1 + seed), dtype) for seed in range(4)]
    expected = np.zeros(flat(parts[0]).numel())
    for one in parts:
        vector = flat(one).numpy()
        expected += vector * min(1.0, 2.5 / math.sqrt(sum(float(x) ** 2 for x in vector)))
    found = summed(parts, clipping_norm=2.5).numpy()
    away = np.linalg.norm(found - expected)
    assert away <= 1e-5 * np.linalg.norm(expected) + 1e-16


def test_what_is_short_enough_is_not_changed() -> None:
    short = [part / 100 for part in contribution(1)]
    torch.testing.assert_close(summed([short]), flat(short), rtol=0, atol=1e-16)


@pytest.mark.parametrize("fill", ["constant", "random", "spike"])
def test_millions_of_numbers_stay_within_the_norm(fill: str) -> None:
    """PyTorch's norm in float32 is up to 7e-4 too small for constants: that much would be too long."""
    shape = (512, 512, 3, 3)
    made = {
        "constant": torch.full(shape, 0.3),
        "random": torch.rand(shape, generator=torch.Generator().manual_seed(0)),
        "spike": torch.full(shape, 1e-3).index_fill_(0, torch.tensor([7]), 5.0),
    }[fill]
    total = ClippedSum([made], 1.0)
    total.add([made])
    length = flat(total.noised(NO_NOISE, Silent())).norm().item()
    assert 1 - 1e-5 < length <= 1 + 1e-9
    if fill == "constant":
        naive = made.double() * (1 / torch.linalg.vector_norm(made)).double()
        assert naive.norm() > 1 + 1e-5


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.floats(-20, 20), min_size=1, max_size=6),
    without=st.integers(0, 5),
    clipping_norm=st.sampled_from([0.01, 1.0, 50.0]),
)
def test_removing_one_moves_the_sum_by_at_most_the_norm(
    sizes: list[float], without: int, clipping_norm: float
) -> None:
    parts = [contribution(at, 10.0**size) for at, size in enumerate(sizes)]
    gone = without % len(parts)
    moved = summed(parts, clipping_norm) - summed(parts[:gone] + parts[gone + 1 :], clipping_norm)
    assert moved.norm() <= clipping_norm * (1 + 1e-5)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf, 3e38])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_not_finite_counts_as_zero(wrong: float, dtype: torch.dtype) -> None:
    total = ClippedSum(contribution(0), 1.0)
    total.add(contribution(1, dtype=dtype))
    spoilt = contribution(2, dtype=dtype)
    spoilt[2][3] = wrong
    total.add(spoilt)
    total.add(None)
    infinite = not math.isfinite(float(spoilt[2][3]))
    assert total.zeroed == 1 + infinite
    found = flat(total.noised(NO_NOISE, Silent()))
    if infinite:
        assert torch.equal(found, summed([contribution(1, dtype=dtype)]))
    assert found.isfinite().all()


def test_a_gpus_way_of_adding_is_the_same() -> None:
    """It asks the device nothing; here it is run on the CPU."""
    parts = [contribution(seed, size) for seed, size in enumerate((1e-20, 0.01, 1.0, 1e10))]
    spoilt = contribution(9)
    spoilt[0][1, 1] = math.nan
    ways = []
    for name in ("_add_part_by_part", "_add_without_waiting"):
        total = ClippedSum(parts[0], 1.0)
        for one in (*parts, spoilt):
            getattr(total, name)(one)
        assert total.zeroed == 1
        ways.append(flat(total.noised(NO_NOISE, Silent())))
    assert (ways[0] - ways[1]).norm() < 1e-5 * ways[1].norm()


def test_gradients_that_are_not_contiguous() -> None:
    turned = torch.randn(8, 600, 2).permute(2, 1, 0)
    total = ClippedSum([turned.contiguous()], 1.0)
    total.add([turned])
    (found,) = total.noised(NO_NOISE, Silent())
    torch.testing.assert_close(
        found, turned.double() / turned.double().norm(), rtol=1e-5, atol=1e-12
    )


def test_other_shapes_are_refused() -> None:
    total = ClippedSum(contribution(0), 1.0)
    with pytest.raises(ValueError, match="other shapes"):
        total.add(contribution(0)[:-1])
    with pytest.raises(ValueError, match="other shapes"):
        total.add([part.reshape(-1) for part in contribution(0)])


@pytest.mark.parametrize("norm", [0.0, -1.0, math.nan, math.inf])
def test_a_norm_that_bounds_nothing_is_refused(norm: float) -> None:
    with pytest.raises(ValueError, match="clipping_norm"):
        ClippedSum(contribution(0), norm)


# --- noise ---------------------------------------------------------------------------------------


def ks(numbers: Tensor, spread: float) -> float:
    return float(stats.kstest(numbers.numpy(), "norm", args=(0, spread)).pvalue)


@pytest.mark.parametrize(("noise_multiplier", "clipping_norm"), [(1.0, 1.0), (0.7, 30.0)])
def test_the_noise_has_the_promised_spread(noise_multiplier: float, clipping_norm: float) -> None:
    big = torch.zeros(150_000)
    total = ClippedSum([big[:1000], big[1000:]], clipping_norm)
    total.add([torch.full((1000,), math.nan), big[1000:]])
    noise = flat(total.noised(noise_multiplier, Csprng()))
    spread = noise_multiplier * clipping_norm
    assert ks(noise, spread) > 1e-6
    assert ks(noise, spread / 2) < 1e-12
    assert ks(noise, spread * 2) < 1e-12


def test_the_noise_is_added_to_the_sum() -> None:
    parts = [contribution(seed, 10.0) for seed in range(3)]
    csprng = Csprng()
    found = []
    for _ in range(4000):
        total = ClippedSum(parts[0], 1.0)
        for one in parts:
            total.add(one)
        found.append(flat(total.noised(2.0, csprng)))
    noise = torch.stack(found) - summed(parts)
    assert ks(noise.flatten(), 2.0) > 1e-6
    # Neither coordinates nor releases share noise.
    among = torch.corrcoef(noise.T) - torch.eye(noise.shape[1])
    assert among.abs().max() < 6 / math.sqrt(len(noise))
    between = torch.corrcoef(torch.stack([noise[1:].flatten(), noise[:-1].flatten()]))[0, 1]
    assert abs(between.item()) < 5 / math.sqrt(noise.numel())


def test_seeds_do_not_reach_the_noise() -> None:
    released = []
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)
        released.append(flat(ClippedSum(contribution(0), 1.0).noised(1.0, Csprng())))
    assert not (released[0] == released[1]).any()


def test_what_can_be_released_lies_on_a_lattice_that_does_not_depend_on_the_sum() -> None:
    """Floating point near zero is finer, so which values occur would tell what was added."""
    cell = 2.0 * 3.0 * 2.0**-20
    for parts in ([], [contribution(1, 1e-9)], [contribution(1, 100.0)]):
        total = ClippedSum(contribution(0), 3.0)
        for one in parts:
            total.add(one)
        cells = flat(total.noised(2.0, Csprng())) / cell
        torch.testing.assert_close(cells, cells.round(), rtol=0, atol=1e-8)


@pytest.mark.parametrize("noise_multiplier", [0.0, -1.0, math.nan, math.inf])
def test_no_sum_without_noise(noise_multiplier: float) -> None:
    with pytest.raises(ValueError, match="noise_multiplier"):
        ClippedSum(contribution(0), 1.0).noised(noise_multiplier, Csprng())


def test_a_sum_is_given_out_once() -> None:
    total = ClippedSum(contribution(0), 1.0)
    given_out = total.noised(1.0, Csprng())
    assert [part.shape for part in given_out] == [torch.Size(shape) for shape in SHAPES]
    assert {part.dtype for part in given_out} == {torch.float64}
    with pytest.raises(ValueError, match="given out once"):
        total.noised(1.0, Csprng())
