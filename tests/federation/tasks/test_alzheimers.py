"""Heads drawn in millimetres, so that every grid of one head must give one tensor; metrics against
scikit-learn."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy import ndimage
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from federation import tasks
from federation.schema import Component
from federation.tasks import Prediction, Task

# World, in mm, RAS+: a head with a bright spot on its right, in front and above, and a neck.
HEAD = np.array([10.0, -20.0, 30.0])
RADII = np.array([70.0, 90.0, 75.0])
SPOT = HEAD + np.array([30.0, 20.0, 10.0])


@pytest.fixture(scope="module")
def task() -> Task:
    return tasks.build(Component(name="alzheimers", shape=[64, 64, 64], spacing=3.0))


def _head(affine: np.ndarray, shape: tuple[int, int, int], *, neck: bool = False) -> MetaTensor:
    """The head on a grid; edges are as soft as 2 mm voxels make them."""
    voxels = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    world = nibabel.affines.apply_affine(affine, voxels)
    distance = np.sqrt((((world - HEAD) / RADII) ** 2).sum(axis=-1))
    image = 600 / (1 + np.exp((distance - 1) * 40))
    spot = np.linalg.norm(world - SPOT, axis=-1)
    image += 500 / (1 + np.exp((spot - 18) * 1.5))
    if neck:
        aside = np.linalg.norm((world - HEAD)[..., :2], axis=-1)
        below = 1 / (1 + np.exp(world[..., 2] - HEAD[2]))
        image = np.maximum(image, 500 * below / (1 + np.exp(aside - 50)))
    return MetaTensor(
        torch.from_numpy(image.astype(np.float32))[None], affine=torch.from_numpy(affine)
    )


def _grid(spacing: float, *, low: float = -130.0) -> tuple[np.ndarray, tuple[int, int, int]]:
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = low
    edge = round(260 / spacing)
    return affine, (edge, edge, edge)


def _item(image: MetaTensor, label: int = 2) -> dict[str, Any]:
    return {"image": image, "label": label, "attributes": {"weighting": "t1"}}


def _image(task: Task, image: MetaTensor) -> torch.Tensor:
    tensor: torch.Tensor = task.load(_item(image))["image"]
    return tensor


def test_the_head_is_in_the_middle_in_millimetres(task: Task) -> None:
    loaded = task.load(_item(_head(*_grid(2.0))))
    image = loaded["image"]
    assert image.shape == (1, 64, 64, 64) and image.dtype == torch.float32
    assert type(image) is torch.Tensor and image.is_contiguous()
    assert loaded["label"] == 2 and loaded["label"].shape == ()
    bright = image[0].numpy() > 0.6 * float(image.max())
    found = np.array(ndimage.center_of_mass(bright))
    # Voxel 31.5 is the centre; the spot lies at +30, +20, +10 mm of it along R, A, S.
    np.testing.assert_allclose((found - 31.5) * 3, SPOT - HEAD, atol=3)
    head = image[0].numpy() > 0.5 * float(image.min())
    extent = [np.ptp(np.flatnonzero(head.any(axis=a))) * 3 for a in ((1, 2), (0, 2), (0, 1))]
    np.testing.assert_allclose(extent, 2 * RADII, atol=7)


def test_where_the_head_lies_in_the_volume_does_not_matter(task: Task) -> None:
    plain = _image(task, _head(*_grid(2.0)))
    moved = _image(task, _head(*_grid(2.0, low=-130.0 + 9.0)))
    torch.testing.assert_close(moved, plain, atol=0.5, rtol=0)
    assert (moved - plain).abs().mean() < 0.02


@pytest.mark.parametrize("axes", list(permutations(range(3)))[1:])
def test_any_voxel_order_of_one_head_gives_the_same_tensor(
    task: Task, axes: tuple[int, int, int]
) -> None:
    """Axes swapped, and the first two of them run backwards."""
    affine, shape = _grid(2.6)
    plain = _head(affine, shape)
    turned = plain[0].numpy().transpose(axes)[::-1, ::-1].copy()
    to_plain = np.zeros((4, 4))
    for new, old in enumerate(axes):
        to_plain[old, new] = -1 if new < 2 else 1
        to_plain[old, 3] = shape[old] - 1 if new < 2 else 0
    to_plain[3, 3] = 1
    other = MetaTensor(torch.from_numpy(turned)[None], affine=torch.from_numpy(affine @ to_plain))
    torch.testing.assert_close(_image(task, other), _image(task, plain), atol=1e-4, rtol=0)


def test_thick_slices_show_the_same_head(task: Task) -> None:
    fine = _image(task, _head(*_grid(2.0)))
    affine = np.diag([1.3, 1.3, 3.5, 1.0])
    affine[:3, 3] = -130
    thick = _image(task, _head(affine, (200, 200, 75)))
    assert (thick - fine).abs().mean() < 0.1
    assert torch.corrcoef(torch.stack([thick.flatten(), fine.flatten()]))[0, 1] > 0.99


def test_a_neck_does_not_draw_the_head_up(task: Task) -> None:
    """The field of view reaches 100 mm further down; the head stays where it was within 5 mm."""
    affine, (x, y, _) = _grid(2.0)
    affine[2, 3] = -230
    heights = []
    for image in (_head(*_grid(2.0), neck=True), _head(affine, (x, y, 180), neck=True)):
        tensor = _image(task, image)[0].numpy()
        heights.append(ndimage.center_of_mass(tensor > 0.6 * tensor.max())[2])
    assert abs(heights[0] - heights[1]) * 3 < 5


def test_scale_and_offset_of_grey_values_do_not_reach_the_network(task: Task) -> None:
    image = _head(*_grid(2.0))
    plain = _image(task, image)
    assert plain[0, 32, 32, 32].abs() < 1 and plain.abs().max() < 20
    for scale, offset in ((1000.0, 0.0), (0.001, 0.0), (1.0, -1024.0)):
        changed = MetaTensor(image.as_tensor() * scale + offset, affine=image.affine)
        torch.testing.assert_close(_image(task, changed), plain, atol=2e-3, rtol=0)


@pytest.mark.parametrize(("value", "message"), [(3.0, "empty"), (np.nan, "not finite")])
def test_what_shows_no_head_is_refused(task: Task, value: float, message: str) -> None:
    image = MetaTensor(torch.full((1, 60, 60, 60), value), affine=torch.diag(torch.ones(4)) * 3)
    with pytest.raises(ValueError, match=message):
        task.load(_item(image))


def test_a_label_that_is_no_class_is_refused(task: Task) -> None:
    with pytest.raises(ValueError, match="label 3 is no class: use 0 for cognitively_normal"):
        task.load(_item(_head(*_grid(4.0)), label=3))


def test_a_real_volume_of_a_head_fits(task: Task, shared_data: Any) -> None:
    """Real hippocampus crops are no heads, yet 1 mm voxels of real tissue come through finite."""
    path = sorted((shared_data / "hippocampus" / "images").glob("*.nii.gz"))[0]
    file = nibabel.load(path)
    voxels = torch.from_numpy(file.get_fdata(dtype=np.float32))[None]
    image = _image(task, MetaTensor(voxels, affine=torch.from_numpy(file.affine)))
    assert image.isfinite().all() and image.std() > 0


def test_what_serves(task: Task) -> None:
    assert task.selection.modalities == {"MR"}
    assert task.selection.attributes["weighting"] == {"t1", "unknown"}
    assert (task.selection.least_extent, task.selection.largest_spacing) == (100, 3.5)
    assert {task.synonyms[word] for word in ("cn", "mci", "ad")} == set(task.classes)
    assert all(word == word.casefold() for word in task.synonyms)


def test_augmentation_keeps_shape_and_repeats(task: Task) -> None:
    sample = task.load(_item(_head(*_grid(3.0))))
    before = sample["image"].clone()

    def draw() -> list[torch.Tensor]:
        task.augment.set_random_state(seed=1)  # type: ignore[attr-defined]
        return [task.augment(dict(sample))["image"] for _ in range(6)]

    drawn, again = draw(), draw()
    assert all(torch.equal(one, other) for one, other in zip(drawn, again, strict=True))
    assert all(d.shape == (1, 64, 64, 64) and type(d) is torch.Tensor for d in drawn)
    assert len({float(d.sum()) for d in drawn}) == 6
    assert torch.equal(sample["image"], before)


# --- metrics ------------------------------------------------------------------------------------


def _predictions(logits: np.ndarray, truth: np.ndarray) -> list[Prediction]:
    return [
        Prediction(f"p{i}", torch.from_numpy(row), torch.tensor(int(t)))
        for i, (row, t) in enumerate(zip(logits, truth, strict=True))
    ]


def test_metrics_are_scikit_learns(task: Task) -> None:
    generator = np.random.default_rng(0)
    truth = generator.integers(0, 3, 80)
    logits = generator.normal(size=(80, 3)).round(1)
    logits[np.arange(80), truth] += 0.7
    measured = task.measure(_predictions(logits, truth))
    assert set(measured) == set(task.metrics)
    probability = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    for index, name in enumerate(task.classes):
        expected = roc_auc_score(truth == index, probability[:, index])
        assert measured[f"auroc_{name}"] == pytest.approx(expected)
    macro = roc_auc_score(truth, probability, multi_class="ovr", average="macro")
    assert measured["auroc"] == pytest.approx(macro)
    balanced = balanced_accuracy_score(truth, logits.argmax(axis=1))
    assert measured["balanced_accuracy"] == pytest.approx(balanced)
    loss = -np.log(probability[np.arange(80), truth]).mean()
    assert measured["loss"] == pytest.approx(loss)


def test_a_class_that_is_absent_is_left_out(task: Task) -> None:
    logits = np.array([[2.0, 1, 0], [0, 2, 1], [1, 2, 0]])
    measured = task.measure(_predictions(logits, np.array([0, 1, 0])))
    assert set(measured) == {
        "auroc_cognitively_normal",
        "auroc_mild_impairment",
        "balanced_accuracy",
        "loss",
    }
    assert measured["balanced_accuracy"] == pytest.approx(0.75)
    assert set(task.measure(_predictions(logits, np.array([0, 0, 0])))) == {"loss"}
    assert task.measure([]) == {}


def test_a_samples_gradient_does_not_depend_on_its_batch_mates(task: Task) -> None:
    generator = torch.Generator().manual_seed(0)
    logits, target = torch.randn(3, 3, generator=generator), torch.tensor([0, 1, 2])
    together = torch.autograd.functional.jacobian(lambda x: task.loss(x, target), logits)
    for i in range(3):
        one = slice(i, i + 1)
        alone = torch.autograd.functional.jacobian(
            lambda x, one=one: task.loss(x, target[one]), logits[one]
        )
        torch.testing.assert_close(together[one] * 3, alone)
