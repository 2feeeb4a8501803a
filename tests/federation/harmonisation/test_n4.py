"""N4 takes out a field that was planted, and little where there is none."""

from __future__ import annotations

import numpy as np
import torch
from monai.data import MetaTensor

from federation.harmonisation import n4
from tests.federation.harmonisation.images import Array, hippocampus_item, task


def head(seed: int = 0) -> tuple[Array, Array]:
    """A ball of two tissues in air, and where it is."""
    rng = np.random.default_rng(seed)
    x, y, z = np.mgrid[:48, :56, :48].astype(float)
    away = np.sqrt((x - 24) ** 2 + ((y - 28) / 1.2) ** 2 + (z - 24) ** 2)
    ball = away < 20
    grey = np.where(away < 10 + 3 * np.sin(x / 4) * np.cos(y / 5), 1000.0, 600.0)
    return np.where(ball, grey, 0) + rng.rayleigh(10, ball.shape), ball


def uneven(shape: tuple[int, ...], most: float = 0.5) -> Array:
    """A coil that sees the front brighter than the back: exp of a smooth field."""
    x, y, z = (np.linspace(-1, 1, size) for size in shape)
    return np.asarray(np.exp(most * (y[None, :, None] + 0.5 * x[:, None, None] * z - 0.2)))


def corrected(values: Array, **options: int) -> Array:
    image = MetaTensor(torch.from_numpy(values.astype(np.float32))[None], affine=np.eye(4))
    result = n4.correct(image, options=n4.Options(**options))
    assert isinstance(result, MetaTensor)
    assert result.dtype == torch.float32 and torch.equal(result.affine, image.affine)
    return np.asarray(result[0], dtype=np.float64)


def left(values: Array, truth: Array, where: Array) -> float:
    """Deviation of the logarithm of what is left of the field."""
    return float(np.log(values[where] / truth[where]).std())


def test_a_planted_field_is_taken_out() -> None:
    truth, ball = head()
    field = uneven(truth.shape)
    before = left(truth * field, truth, ball)
    after = left(corrected(truth * field), truth, ball)
    assert before > 0.15
    assert after < before / 5


def test_an_even_volume_stays() -> None:
    truth, ball = head()
    assert left(corrected(truth), truth, ball) < 0.03


def test_it_runs_before_the_task_cuts_and_scales() -> None:
    truth, _ = head()
    plain, mended = task("hippocampus"), task("hippocampus", "n4")

    def apart(load: object) -> float:
        one, other = (
            load(hippocampus_item(values))["image"]  # type: ignore[operator]
            for values in (truth, truth * uneven(truth.shape))
        )
        return float((one - other).square().mean().sqrt())

    assert apart(mended.load) < apart(plain.load) / 3


def test_threads_change_no_bit() -> None:
    import SimpleITK

    truth, _ = head()
    values = truth * uneven(truth.shape)
    threads = SimpleITK.ProcessObject.GetGlobalDefaultNumberOfThreads()
    made = []
    try:
        for count in (1, 4):
            SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(count)
            made.append(corrected(values, iterations=5, levels=2))
    finally:
        SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
    assert np.array_equal(made[0], made[1])
