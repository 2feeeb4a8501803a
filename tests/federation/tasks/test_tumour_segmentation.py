"""Volumes with a tumour of known place and size: geometry, patches, windows and metrics by case."""

from __future__ import annotations

import math
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy import ndimage

from federation import tasks
from federation.schema import Component, ConfigError
from federation.tasks import Prediction, Task
from federation.tasks.tumour_segmentation import BY_CASE

# World, in mm, RAS+.
BODY, TUMOUR, RADIUS = np.array([0.0, 0.0, 0.0]), np.array([25.0, -15.0, 20.0]), 14.0
SPACING = (3.0, 3.0, 3.0)


@pytest.fixture(scope="module")
def task() -> Task:
    return tasks.build(Component(name="tumour_segmentation"))


@pytest.fixture(scope="module")
def mr() -> Task:
    return tasks.build(Component(name="tumour_segmentation", modality="mr"))


def _item(spacing: tuple[float, float, float] = (2.0, 2.0, 2.0)) -> dict[str, Any]:
    """A body of 40 HU and 70 mm radius in air, in it a tumour of 120 HU."""
    shape = tuple(round(180 / mm) for mm in spacing)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -90
    voxels = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    world = nibabel.affines.apply_affine(affine, voxels)
    inside = np.linalg.norm(world - TUMOUR, axis=-1) < RADIUS
    image = np.where(np.linalg.norm(world - BODY, axis=-1) < 70, 40.0, -1000.0)
    image = np.where(inside, 120.0, image).astype(np.float32)
    return _pair(image, inside.astype(np.uint8), affine)


def _pair(image: np.ndarray, mask: np.ndarray, affine: np.ndarray) -> dict[str, Any]:
    turn = torch.from_numpy(affine)
    return {
        "image": MetaTensor(torch.from_numpy(image.copy())[None], affine=turn),
        "label": MetaTensor(torch.from_numpy(mask.copy())[None], affine=turn),
        "attributes": {},
    }


def _logits(said: torch.Tensor) -> torch.Tensor:
    """So sure of a mask (*spatial) that cross-entropy is near zero where it is right."""
    return torch.stack([20.0 * ~said, 20.0 * said])


# --- geometry -----------------------------------------------------------------------------------


@pytest.mark.parametrize("spacing", [(2.0, 2.0, 2.0), (0.9, 0.9, 5.0), (3.0, 3.0, 3.0)])
def test_the_tumour_keeps_its_place_and_its_size(
    task: Task, spacing: tuple[float, float, float]
) -> None:
    item = _item(spacing)
    loaded = task.load(dict(item))
    image, label = loaded["image"], loaded["label"]
    assert (image.dtype, label.dtype) == (torch.float32, torch.uint8)
    assert type(image) is type(label) is torch.Tensor
    assert image.is_contiguous() and label.is_contiguous()
    volume = float(label.sum()) * math.prod(SPACING)
    assert volume == pytest.approx(4 / 3 * math.pi * RADIUS**3, rel=0.12)
    # `place` says where the voxels lie; the tumour is found there in the world.
    assert task.place is not None
    placed = task.place(item["image"])
    assert placed.shape == image.shape
    centre = ndimage.center_of_mass(label[0].numpy())
    world = nibabel.affines.apply_affine(placed.affine.numpy(), centre)
    np.testing.assert_allclose(world, TUMOUR, atol=1.5)
    assert np.diag(placed.affine[:3, :3]) == pytest.approx(SPACING)
    # Air is 0 of the window, the body (40 + 160) / 400.
    assert image.min() == 0
    assert float(image[0, 30, 30, 30]) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (1, 0, 2)])
def test_any_voxel_order_of_one_body_gives_the_same_tensors(
    task: Task, axes: tuple[int, int, int]
) -> None:
    item = _item((2.0, 3.0, 4.0))
    image, mask = item["image"][0].numpy(), item["label"][0].numpy()
    to_plain = np.zeros((4, 4))
    for new, old in enumerate(axes):
        to_plain[old, new], to_plain[old, 3] = -1, image.shape[old] - 1
    to_plain[3, 3] = 1
    affine = item["image"].affine.numpy() @ to_plain
    turned = _pair(
        image.transpose(axes)[::-1, ::-1, ::-1], mask.transpose(axes)[::-1, ::-1, ::-1], affine
    )
    expected, actual = task.load(item), task.load(turned)
    torch.testing.assert_close(actual["image"], expected["image"], atol=1e-4, rtol=0)
    assert torch.equal(actual["label"], expected["label"])


def test_a_small_volume_is_padded_with_air(task: Task) -> None:
    item = _item()
    small = _pair(
        item["image"][0, 40:60, 30:50, 45:60].numpy(),
        item["label"][0, 40:60, 30:50, 45:60].numpy(),
        item["image"].affine.numpy(),
    )
    loaded = task.load(dict(small))
    assert loaded["image"].shape == loaded["label"].shape == (1, *task.patch)
    assert task.place is not None
    placed = task.place(small["image"])
    first = nibabel.affines.apply_affine(placed.affine.numpy(), (0, 0, 0))
    assert (first < -90).all()  # the added voxels lie before the first


@pytest.mark.parametrize(
    ("wrong", "message"),
    [("value", "values other than"), ("shape", "differ in shape"), ("nan", "not finite")],
)
def test_what_cannot_be_learnt_from_is_refused(task: Task, wrong: str, message: str) -> None:
    item = _item((4.0, 4.0, 4.0))
    if wrong == "value":
        item["label"][0, 0, 0, 0] = 2
    elif wrong == "shape":
        item["label"] = item["label"][:, 1:]
    else:
        item["image"][0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match=message):
        task.load(item)


def test_ct_is_seen_in_its_window_and_mr_on_its_own_scale(task: Task, mr: Task) -> None:
    item = _item((3.0, 3.0, 3.0))
    plain = mr.load(dict(item))["image"]
    for scale, offset in ((100.0, 0.0), (1.0, 5000.0)):
        changed = MetaTensor(
            item["image"].as_tensor() * scale + offset, affine=item["image"].affine
        )
        loaded = mr.load({**item, "image": changed})["image"]
        torch.testing.assert_close(loaded, plain, atol=2e-3, rtol=0)
    narrow = tasks.build(Component(name="tumour_segmentation", window=[0.0, 80.0]))
    image = narrow.load(dict(item))["image"]
    assert float(image[0, 30, 30, 30]) == pytest.approx(0.5)
    assert (image.min(), image.max()) == (0, 1)
    assert (task.selection.modalities, mr.selection.modalities) == ({"CT"}, {"MR"})


# --- patches ------------------------------------------------------------------------------------


def test_augmentation_gives_patches_of_both_kinds_and_repeats(task: Task) -> None:
    """What is bright in the image is what the mask says, whatever is drawn."""
    mask = torch.zeros(1, 60, 70, 80, dtype=torch.uint8)
    mask[:, 5:13, 50:60, 30:38] = 1
    sample = {"image": mask.float() * 10, "label": mask}

    def draw() -> list[dict[str, torch.Tensor]]:
        task.augment.set_random_state(seed=3)  # type: ignore[attr-defined]
        return [task.augment(dict(sample)) for _ in range(30)]

    drawn, again = draw(), draw()
    for one, other in zip(drawn, again, strict=True):
        assert set(one) == {"image", "label"}
        assert one["image"].shape == one["label"].shape == (1, *task.patch)
        assert type(one["image"]) is torch.Tensor and one["label"].dtype == torch.uint8
        assert torch.equal(one["image"], other["image"])
        assert torch.equal(one["label"], other["label"])
        agree = (one["image"] > 5) == (one["label"] == 1)
        assert agree.float().mean() > 0.97
    with_tumour = sum(bool(one["label"].any()) for one in drawn)
    assert 10 <= with_tumour <= 29  # by volume alone it would be one or two of thirty


@pytest.mark.filterwarnings("ignore:.*foregrounds")
def test_a_volume_without_a_tumour_gives_patches_too(task: Task) -> None:
    empty = torch.zeros(1, 40, 40, 40, dtype=torch.uint8)
    patch = task.augment({"image": torch.randn(1, 40, 40, 40), "label": empty})
    assert patch["image"].shape == (1, *task.patch)


def test_windows_cover_volumes_larger_than_the_patch(task: Task) -> None:
    def twice(patch: torch.Tensor) -> torch.Tensor:
        assert patch.shape[2:] == task.patch
        return patch.repeat(1, 2, 1, 1, 1)

    volume = torch.randn(1, 1, 45, 70, 33, generator=torch.Generator().manual_seed(0))
    logits = task.infer(twice, volume)  # type: ignore[arg-type]
    torch.testing.assert_close(logits, volume.repeat(1, 2, 1, 1, 1), atol=1e-5, rtol=1e-5)


def test_a_samples_gradient_does_not_depend_on_its_batch_mates(task: Task) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 2, 4, 4, 4, generator=generator, requires_grad=True)
    target = torch.randint(0, 2, (3, 1, 4, 4, 4), generator=generator)
    (together,) = torch.autograd.grad(task.loss(logits, target), logits)
    for i in range(3):
        one = slice(i, i + 1)
        alone = logits[one].detach().requires_grad_()
        (gradient,) = torch.autograd.grad(task.loss(alone, target[one]), alone)
        torch.testing.assert_close(together[one] * 3, gradient)


# --- metrics ------------------------------------------------------------------------------------


def _case(task: Task, said: torch.Tensor, true: torch.Tensor) -> Prediction:
    outcome = task.outcome(_logits(said), true[None].to(torch.uint8))
    assert outcome.shape == (len(BY_CASE),)
    return Prediction("p", outcome, torch.empty(0))


def _box(start: int, stop: int) -> torch.Tensor:
    mask = torch.zeros(20, 20, 20, dtype=torch.bool)
    mask[start:stop, 5:15, 5:15] = True
    return mask


def test_metrics_are_means_over_cases(task: Task) -> None:
    right, shifted = _case(task, _box(5, 15), _box(5, 15)), _case(task, _box(7, 17), _box(5, 15))
    grown = _case(task, _box(5, 17), _box(5, 15))
    for cases, expected in (
        ([right], {"dice": 1, "surface_dice": 1, "hd95": 0, "volume_error": 0, "volume_bias": 0}),
        ([shifted], {"dice": 0.8, "hd95": 6, "volume_error": 0}),
        ([grown], {"dice": 2000 / 2200, "volume_error": 5.4, "volume_bias": 5.4}),
        ([right, shifted], {"dice": 0.9, "hd95": 3, "missed": 0}),
    ):
        measured = task.measure(cases)
        assert set(measured) == set(task.metrics)
        for name, value in expected.items():
            assert measured[name] == pytest.approx(value, abs=1e-6), name
    shrunk = _case(task, _box(5, 13), _box(5, 15))
    both = task.measure([grown, shrunk])
    assert (both["volume_error"], both["volume_bias"]) == pytest.approx((5.4, 0.0))


def test_what_empty_masks_say(task: Task) -> None:
    nothing, box = torch.zeros(20, 20, 20, dtype=torch.bool), _box(5, 15)
    missed = task.measure([_case(task, nothing, box)])
    assert set(missed) == set(task.metrics) - {"hd95"}
    assert (missed["dice"], missed["surface_dice"], missed["missed"]) == (0, 0, 1)
    assert missed["volume_bias"] == pytest.approx(-27)
    invented = task.measure([_case(task, box, nothing)])
    assert set(invented) == set(task.metrics) - {"hd95", "missed"}
    assert invented["dice"] == 0 and invented["volume_bias"] == pytest.approx(27)
    healthy = task.measure([_case(task, nothing, nothing)])
    assert set(healthy) == {"volume_error", "volume_bias", "loss"}
    both = task.measure([_case(task, nothing, nothing), _case(task, box, box)])
    assert both["dice"] == 1
    assert task.measure([]) == {}


def test_structures_have_their_usual_names(task: Task) -> None:
    from fnmatch import fnmatchcase

    patterns = task.structures["tumour"]
    assert set(task.structures) == set(task.classes[1:])
    for name in ("GTVp", "gtv_1", "Tumor bed", "Lesion 2", "Neoplasm, Primary", "Mass"):
        assert any(fnmatchcase(name.casefold(), pattern) for pattern in patterns), name
    for name in ("CTV", "PTV 60", "Heart", "BODY"):
        assert not any(fnmatchcase(name.casefold(), pattern) for pattern in patterns), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pach": [32, 32, 32]}, "did you mean 'patch'"),
        ({"modality": "pet"}, "'ct' or 'mr'"),
        ({"window": [100, 0]}, "its first value must be below its second"),
        ({"spacing": [1, 1]}, "spacing"),
    ],
)
def test_wrong_options_are_refused_by_name(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tasks.build(Component(name="tumour_segmentation", **options))
