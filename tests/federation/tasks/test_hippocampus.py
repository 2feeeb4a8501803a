"""Geometry and Dice of the hippocampus task, on real volumes and on small ones made here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from federation import tasks
from federation.schema import Component, ConfigError
from federation.tasks import Prediction, Task


@pytest.fixture(scope="module")
def task() -> Task:
    return tasks.build(Component(name="hippocampus"))


@pytest.fixture
def images(shared_data: Path) -> Path:
    return shared_data / "hippocampus"


def _read(folder: Path, case: str) -> dict[str, Any]:
    def volume(part: str) -> MetaTensor:
        file = nibabel.load(folder / part / f"hippocampus_{case}.nii.gz")
        voxels = torch.from_numpy(file.get_fdata(dtype=np.float32))
        return MetaTensor(voxels[None], affine=torch.from_numpy(file.affine))

    label = volume("labels")
    return {
        "image": volume("images"),
        "label": MetaTensor(label.as_tensor().to(torch.uint8), affine=label.affine),
        "attributes": {},
    }


def _item(image: np.ndarray, mask: np.ndarray, affine: np.ndarray | None = None) -> dict[str, Any]:
    turn = torch.from_numpy(np.eye(4) if affine is None else affine)
    return {
        "image": MetaTensor(torch.from_numpy(image)[None], affine=turn),
        "label": MetaTensor(torch.from_numpy(mask)[None], affine=turn),
        "attributes": {},
    }


def _made(*, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A random image and a mask whose two classes lie apart along every axis."""
    image = np.random.default_rng(seed).normal(500, 100, (32, 48, 32)).astype(np.float32)
    mask = np.zeros(image.shape, dtype=np.uint8)
    mask[2:9, 30:40, 4:12] = 1
    mask[20:30, 3:20, 15:31] = 2
    return image, mask


def test_a_real_case_keeps_its_grid_and_its_mask(task: Task, images: Path) -> None:
    item = _read(images, "001")
    mask = item["label"][0].numpy()  # RAS, 1 mm, 35 × 51 × 35
    loaded = task.load(dict(item))
    assert loaded["image"].shape == loaded["label"].shape == (1, 35, 51, 35)
    assert (loaded["image"].dtype, loaded["label"].dtype) == (torch.float32, torch.uint8)
    np.testing.assert_array_equal(loaded["label"][0].numpy(), mask)
    assert np.bincount(mask.ravel())[1:].tolist() == [1324, 1624]  # as cases.csv counts them


def test_hospitals_1000_times_apart_come_to_one_scale(task: Task, images: Path) -> None:
    table = (images / "cases.csv").read_text().splitlines()[1:]
    groups = {line.split(",")[2]: line.split(",")[0][-3:] for line in table}
    assert len(groups) == 3
    for case in groups.values():
        image = task.load(_read(images, case))["image"]
        assert abs(image.mean()) < 0.2  # padding, if any, holds zeros
        assert 0.7 < image.std() < 1.1
        assert image.abs().max() < 5


@pytest.mark.parametrize("flips", [(0,), (1,), (0, 1, 2)])
def test_any_voxel_order_of_one_body_gives_the_same_tensor(
    task: Task, flips: tuple[int, ...]
) -> None:
    image, mask = _made()
    affine = np.eye(4)
    for axis in flips:
        affine[axis, axis] = -1
        affine[axis, 3] = image.shape[axis] - 1
    flipped = _item(np.flip(image, flips).copy(), np.flip(mask, flips).copy(), affine)
    expected, actual = task.load(_item(image, mask)), task.load(flipped)
    torch.testing.assert_close(actual["image"], expected["image"], atol=1e-5, rtol=0)
    assert torch.equal(actual["label"], expected["label"])


def test_voxels_of_two_millimetres_become_one(task: Task) -> None:
    image, mask = _made()
    loaded = task.load(_item(image, mask, np.diag([2.0, 2.0, 2.0, 1.0])))
    # First to last voxel centre stays the same distance: (n - 1) × 2 mm.
    assert loaded["label"].shape[1:] == (63, 95, 63)
    assert set(loaded["label"].unique().tolist()) == {0, 1, 2}
    assert (loaded["label"] == 1).sum() / (mask == 1).sum() == pytest.approx(8, rel=0.2)


def test_a_small_volume_is_padded_to_the_patch(task: Task) -> None:
    image, mask = _made()
    loaded = task.load(_item(image[:20, :, :16], mask[:20, :, :16]))
    assert loaded["image"].shape == (1, *task.patch)
    assert (loaded["label"] == 1).sum() == (mask == 1).sum()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("value", "values other than 0 background, 1 anterior, 2 posterior"),
        ("shape", "differ in shape"),
        ("nan", "not finite"),
    ],
)
def test_what_cannot_be_learnt_from_is_refused(task: Task, wrong: str, message: str) -> None:
    image, mask = _made()
    if wrong == "value":
        mask[0, 0, 0] = 3
    elif wrong == "shape":
        mask = mask[:-1]
    else:
        image[0, 0, 0] = np.nan
    with pytest.raises(ValueError, match=message):
        task.load(_item(image, mask))


def test_augmentation_gives_patches_and_moves_image_and_mask_together() -> None:
    """An image that is its own mask stays so, but for intensities, whatever is drawn."""
    task = tasks.build(Component(name="hippocampus", patch=[16, 24, 16]))
    mask = torch.zeros(1, 30, 40, 30, dtype=torch.uint8)
    mask[:, 8:22, 8:22, 8:22] = 1
    task.augment.set_random_state(seed=3)  # type: ignore[attr-defined]
    for _ in range(10):
        sample = task.augment({"image": mask.float() * 10, "label": mask})
        assert sample["image"].shape == sample["label"].shape == (1, 16, 24, 16)
        assert type(sample["image"]) is torch.Tensor
        agree = (sample["image"] > 5) == (sample["label"] == 1)
        assert agree.float().mean() > 0.97


def _prediction(task: Task, patient: str, logits: torch.Tensor, target: torch.Tensor) -> Prediction:
    return Prediction(patient, task.outcome(logits, target), torch.empty(0))


def test_dice_is_what_a_hand_computes(task: Task) -> None:
    target = torch.zeros(1, 2, 2, 4, dtype=torch.uint8)
    target[0, 0] = 1  # 8 voxels anterior
    target[0, 1, 0] = 2  # 4 voxels posterior
    said = target[0].long().clone()
    said[0, 0] = 0  # 4 of the 8 anterior ones missed: 2·4 / (4 + 8)
    said[1, 1, :2] = 2  # 2 voxels too many posterior: 2·4 / (6 + 4)
    logits = torch.nn.functional.one_hot(said, 3).movedim(-1, 0).float() * 20
    measured = task.measure([_prediction(task, "p", logits, target)])
    assert measured["dice_anterior"] == pytest.approx(2 / 3)
    assert measured["dice_posterior"] == pytest.approx(0.8)
    assert measured["dice"] == pytest.approx((2 / 3 + 0.8) / 2)
    assert set(measured) == set(task.metrics)


def test_a_class_that_a_mask_lacks_is_left_out(task: Task) -> None:
    empty = torch.zeros(1, 2, 2, 4, dtype=torch.uint8)
    anterior = empty.clone()
    anterior[0, 0] = 1
    logits = torch.nn.functional.one_hot(anterior[0].long(), 3).movedim(-1, 0).float()
    measured = task.measure(
        [_prediction(task, "p", logits, anterior), _prediction(task, "q", logits, empty)]
    )
    assert measured["dice_anterior"] == measured["dice"] == 1.0
    assert "dice_posterior" not in measured
    assert set(task.measure([_prediction(task, "q", logits, empty)])) == {"loss"}
    assert task.measure([]) == {}


def test_a_samples_loss_does_not_depend_on_its_batch_mates(task: Task) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, 4, 4, generator=generator)
    target = torch.randint(0, 3, (2, 1, 4, 4, 4), generator=generator)
    together = task.loss(logits, target)
    apart = [task.loss(logits[i : i + 1], target[i : i + 1]) for i in range(2)]
    torch.testing.assert_close(together, torch.stack(apart).mean())


def test_windows_cover_volumes_larger_than_the_patch(task: Task) -> None:
    def thrice(patch: torch.Tensor) -> torch.Tensor:
        assert patch.shape[2:] == task.patch
        return patch.repeat(1, 3, 1, 1, 1)

    volume = torch.randn(1, 1, 40, 55, 33, generator=torch.Generator().manual_seed(0))
    logits = task.infer(thrice, volume)  # type: ignore[arg-type]
    torch.testing.assert_close(logits, volume.repeat(1, 3, 1, 1, 1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pach": [32, 32, 32]}, "did you mean 'patch'"),
        ({"spacing": 0}, "greater than or equal to 0.25"),
        ({"patch": [32, 32]}, "patch"),
    ],
)
def test_wrong_options_are_refused_by_name(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tasks.build(Component(name="hippocampus", **options))
