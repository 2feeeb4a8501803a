"""Random steps: drawn from the feed's seeds alone, of a sample's own image alone, shapes kept."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from client_app.training.feed import Draw, batches_of
from federation.harmonisation import fourier_amplitude
from tests.federation.harmonisation.images import SMALL, seeded, task

VARYING = ("scanner_augmentation", "fourier_amplitude")
TASKS = tuple(SMALL)


def loaded(name: str, seed: int = 0) -> dict[str, Any]:
    """Something like what the task's load gives, a little larger than a patch where it crops."""
    made = task(name)
    crops = made.kind == "segmentation"
    shape = tuple(edge + 4 * crops for edge in made.patch)
    source = torch.Generator().manual_seed(seed)
    axes = [torch.linspace(-2, 2, edge) for edge in shape]
    smooth = torch.stack(torch.meshgrid(*axes, indexing="ij")).square().sum(0).mul(-1).exp()
    image = smooth * 3 - 1 + 0.1 * torch.randn(shape, generator=source)
    label = (smooth > 0.3).to(torch.uint8)[None] if crops else torch.tensor(1)
    return {"image": image[None].float(), "label": label}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As in the feed."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Cases(list[dict[str, Any]]):
    """Items, as a hospital has them."""


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("chosen", VARYING)
def test_shapes_and_types_stay_and_images_change(name: str, chosen: str) -> None:
    plain, made = task(name), task(name, chosen, prob=1.0)
    item = loaded(name)
    for seed in range(3):
        before = seeded(plain.augment, seed)(dict(item))
        after = seeded(made.augment, seed)(dict(item))
        assert type(after["image"]) is Tensor
        assert after["image"].dtype == torch.float32
        assert after["image"].shape == (1, *made.patch)
        assert torch.isfinite(after["image"]).all()
        # the task's own part drew what it draws without
        assert torch.equal(torch.as_tensor(before["label"]), torch.as_tensor(after["label"]))
        change = (before["image"] - after["image"]).square().mean().sqrt()
        assert 0.005 < change / before["image"].std() < 2


def draws(*keys: int, position: int = 1) -> list[Draw]:
    return [Draw((key,), (position, position)) for key in keys]


@pytest.mark.parametrize("chosen", VARYING)
def test_a_sample_depends_on_its_own_image_seed_and_step_alone(chosen: str) -> None:
    """So a patient's clip holds all that the patient's images do: others may come, go or change."""
    augment = task("hippocampus", chosen, prob=1.0).augment
    cohort = Cases(loaded("hippocampus", seed) for seed in range(3))
    others = Cases([loaded("hippocampus", 77), cohort[1]])

    def made(items: Cases, drawn: list[Draw], seed: int = 5) -> list[Tensor]:
        batches = list(batches_of(augment, items, drawn, seed=seed))
        assert all(batch is not None for batch in batches)
        return [image for batch in batches if batch is not None for image in batch[0]]

    reference = made(cohort, draws(1, 2))
    np.random.seed(3)
    torch.manual_seed(3)
    before = Draw((9,), (0, 0))
    again = made(others, [before, *draws(1, 2)])[2:]
    assert all(torch.equal(a, b) for a, b in zip(reference, again, strict=True))
    assert not torch.equal(made(cohort, draws(1), seed=6)[0], reference[0])
    for one, other in itertools.combinations(reference, 2):
        assert not torch.equal(one, other)


@pytest.mark.parametrize("chosen", VARYING)
def test_other_processes_make_the_same(chosen: str) -> None:
    augment = task("chest_xray", chosen, prob=1.0).augment
    pickle.dumps(augment)
    items = Cases(loaded("chest_xray", seed) for seed in range(2))
    here, there = (
        list(batches_of(augment, items, draws(*range(4)), seed=1, workers=workers))
        for workers in (0, 1)
    )
    for one, other in zip(here, there, strict=True):
        assert one is not None and other is not None
        assert torch.equal(one[0], other[0])


@pytest.mark.parametrize("chosen", VARYING)
def test_an_even_patch_stays_even(chosen: str) -> None:
    made = task("chest_xray", chosen, prob=1.0)
    vary = made.augment.keywords["steps"][1]  # type: ignore[attr-defined]
    flat = {"image": torch.full((1, 64, 64), 2.5), "label": torch.tensor(0)}
    assert torch.allclose(seeded(vary, 0)(flat)["image"], flat["image"], atol=1e-6)


def test_strength_is_how_far_images_go() -> None:
    item = loaded("chest_xray")
    apart = []
    for strength in (0.1, 0.5, 1.0):
        made = task("chest_xray", "scanner_augmentation", prob=1.0, strength=strength)
        vary = made.augment.keywords["steps"][1]  # type: ignore[attr-defined]
        shown = [seeded(vary, seed)(dict(item))["image"] for seed in range(20)]
        apart.append(float((torch.stack(shown) - item["image"]).square().mean().sqrt()))
    assert 1.5 * apart[0] < apart[1] < 0.8 * apart[2]


@pytest.mark.parametrize(("shape", "share"), [((12, 9), 0.4), ((8, 7, 10), 0.6)])
def test_amplitudes_change_by_the_spectrum_and_phases_not(
    shape: tuple[int, ...], share: float
) -> None:
    """Against NumPy's full transform, frequency by frequency, with the symmetry written out."""
    options = fourier_amplitude.Options(prob=1.0, share=share)
    vary = fourier_amplitude.FourierAmplitude(options)
    vary.R = np.random.RandomState(2)
    image = torch.from_numpy(np.random.default_rng(0).normal(1, 1, (1, *shape)))
    changed = vary({"image": image})["image"]
    before, after = (np.fft.fftn(one[0].numpy()) for one in (image, changed))
    ratio = after / before
    assert np.abs(ratio.imag).max() < 1e-9 and ratio.real.min() > 0  # the phases are as they were
    assert ratio.real.flat[0] == pytest.approx(1)  # and so is the mean
    frequencies = np.stack(np.meshgrid(*map(np.fft.fftfreq, shape), indexing="ij"))
    outside = (np.abs(frequencies) >= share / 2).any(axis=0)
    assert np.allclose(ratio.real[outside], 1)
    assert np.abs(np.log(ratio.real[~outside])).max() > 0.01
    mirrored = ratio.real
    for axis, size in enumerate(shape):
        mirrored = mirrored.take(-np.arange(size) % size, axis=axis)
    assert np.allclose(ratio.real, mirrored)


def test_the_mix_is_between_the_image_and_its_perturbed_spectrum() -> None:
    """FACT's (1 - λ)A + λA', with λ and A' read off what was drawn."""
    vary = fourier_amplitude.FourierAmplitude(fourier_amplitude.Options(prob=1.0))
    vary.R = np.random.RandomState(0)
    image = torch.rand((1, 16, 16), dtype=torch.float64)
    changed = vary({"image": image})["image"]
    assert 0 < vary.mix < 1
    amplitude = np.abs(np.fft.rfftn(image[0].numpy()))
    perturbed = amplitude * fourier_amplitude.spectrum(vary.knots, (16, 16), 0.5)
    expected = (1 - vary.mix) * amplitude + vary.mix * perturbed
    assert np.allclose(np.abs(np.fft.rfftn(changed[0].numpy())), expected)
