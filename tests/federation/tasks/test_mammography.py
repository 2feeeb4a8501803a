"""From a mammogram to the breast alone, on drawn ones whose geometry is known; metrics by breast and
patient against hand values and scikit-learn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy import ndimage
from sklearn.metrics import roc_auc_score

from federation import tasks
from federation.schema import Component, ConfigError
from federation.tasks import Prediction, Task

ROWS, COLUMNS, MM = 400, 320, 0.5
LESION = (230, 90)


@pytest.fixture(scope="module")
def task() -> Task:
    return tasks.build(Component(name="mammography"))


def _mammogram(*, label: bool = True, noise: float = 10.0) -> np.ndarray:
    """A half ellipse of 300 × 140 pixels that hangs from the left edge at rows 50 to 350, fat 1200
    with dense tissue 3000 in it and a lesion 4000, on air 100; a burnt-in label
    beside it, in the box that holds it."""
    y, x = np.mgrid[0:ROWS, 0:COLUMNS].astype(np.float64)
    image = np.full((ROWS, COLUMNS), 100.0)
    image[((y - 200) / 150) ** 2 + (x / 140) ** 2 < 1] = 1200
    image[((y - 190) / 80) ** 2 + ((x - 40) / 50) ** 2 < 1] = 3000
    image[(y - LESION[0]) ** 2 + (x - LESION[1]) ** 2 < 10**2] = 4000
    image = ndimage.gaussian_filter(image, 1)
    image += np.random.default_rng(0).normal(0, noise, image.shape)
    if label:
        image[60:78, 105:138] = 4095
    return image


def _item(pixels: np.ndarray, laterality: str = "unknown", **more: Any) -> dict[str, Any]:
    spacing = more.pop("spacing", (MM, MM))
    affine = torch.diag(torch.tensor([*spacing, 1.0], dtype=torch.float64))
    image = MetaTensor(torch.from_numpy(pixels.astype(np.float32).copy())[None], affine=affine)
    return {"image": image, "label": 1, "attributes": {"laterality": laterality}, **more}


def _image(task: Task, pixels: np.ndarray, **more: Any) -> np.ndarray:
    return task.load(_item(pixels, **more))["image"][0].numpy()


def test_the_breast_fills_the_image_from_the_left_edge(task: Task) -> None:
    loaded = task.load(_item(_mammogram()))
    image = loaded["image"]
    assert image.shape == (1, 128, 64) and image.dtype == torch.float32
    assert type(image) is torch.Tensor and image.is_contiguous()
    assert loaded["label"] == 1 and loaded["label"].dtype == torch.int64
    assert image.min() == 0 and 0.97 < image.max() <= 1
    rows, columns = (np.flatnonzero(image[0].numpy().max(axis=a) > 0.15) for a in (1, 0))
    # 300 × 140 pixels by the smaller of 128 / 300 and 64 / 140; both axes in one scale.
    assert rows[0] <= 3 and rows[-1] >= 124
    assert columns[0] == 0 and columns[-1] + 1 == pytest.approx(140 * 128 / 300, abs=3)


def test_a_lesion_lands_where_geometry_puts_it(task: Task) -> None:
    image = _image(task, _mammogram(noise=0))
    bright = image > 0.9
    found = ndimage.center_of_mass(bright)
    scale = 128 / 302  # a margin of one or two pixels is kept around the breast
    expected = ((LESION[0] - 50 + 1) * scale, LESION[1] * scale)
    np.testing.assert_allclose(found, expected, atol=1)


@pytest.mark.parametrize("laterality", ["left", "right", "unknown"])
def test_either_breast_comes_to_lie_on_the_left(task: Task, laterality: str) -> None:
    """Where the tissue is counts, whatever the tag says of which breast it is."""
    plain = _image(task, _mammogram())
    mirrored = _image(task, _mammogram()[:, ::-1], laterality=laterality)
    np.testing.assert_allclose(mirrored, plain, atol=0.05)


def test_laterality_decides_where_tissue_does_not(task: Task) -> None:
    """A magnified view that fills the image's width evenly, with one dense spot."""
    y, x = np.mgrid[0:ROWS, 0:COLUMNS]
    image = np.where((y > 40) & (y < 360), 1000.0, 0.0)
    image[(y - 200) ** 2 + (x - 60) ** 2 < 30**2] = 3000
    left, right = (_image(task, image, laterality=side) for side in ("left", "right"))
    np.testing.assert_allclose(left, right[:, ::-1][:, -left.shape[1] :], atol=0.05)
    assert left[:, :32].sum() > left[:, 32:].sum()
    assert right[:, :32].sum() < right[:, 32:].sum()


def test_a_burnt_in_label_leaves_no_trace(task: Task) -> None:
    with_label, without = _image(task, _mammogram()), _image(task, _mammogram(label=False))
    np.testing.assert_allclose(with_label, without, atol=0.03)
    assert (with_label[:10, 44:] == 0).all()


def test_scale_and_offset_of_grey_values_do_not_reach_the_network(task: Task) -> None:
    plain = _image(task, _mammogram())
    for scale, offset in ((16.0, 0.0), (1.0, -2048.0), (0.01, 3.0)):
        changed = _image(task, _mammogram() * scale + offset)
        np.testing.assert_allclose(changed, plain, atol=1e-3)


def test_proportions_are_those_in_millimetres(task: Task) -> None:
    """Every other row left out, at twice the spacing, is the same breast."""
    plain = _image(task, _mammogram(noise=0))
    sparse = _image(task, _mammogram(noise=0)[::2], spacing=(2 * MM, MM))
    assert np.abs(sparse - plain).mean() < 0.03


@pytest.mark.parametrize(("value", "message"), [(7.0, "empty"), (np.nan, "not finite")])
def test_what_shows_no_breast_is_refused(task: Task, value: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        task.load(_item(np.full((ROWS, COLUMNS), value)))


def test_what_serves(task: Task) -> None:
    assert task.selection.modalities == {"MG"}
    assert task.selection.attributes["intent"] == {"presentation", "unknown"}
    assert task.selection.attributes["view"] == {"cc", "mlo", "unknown"}
    with_raw = tasks.build(Component(name="mammography", processing=True))
    assert "processing" in with_raw.selection.attributes["intent"]
    assert task.label_by == ("laterality",)
    assert set(task.synonyms.values()) == set(task.classes)
    assert all(word == word.casefold() for word in task.synonyms)


def test_augmentation_keeps_shape_and_side_and_repeats(task: Task) -> None:
    image = torch.zeros(1, 128, 64)
    image[:, 30:100, :30] = 0.5
    sample = {"image": image, "label": torch.tensor(0)}

    def draw() -> list[torch.Tensor]:
        task.augment.set_random_state(seed=1)  # type: ignore[attr-defined]
        return [task.augment(dict(sample))["image"] for _ in range(20)]

    drawn, again = draw(), draw()
    assert all(torch.equal(one, other) for one, other in zip(drawn, again, strict=True))
    assert all(d.shape == (1, 128, 64) and type(d) is torch.Tensor for d in drawn)
    assert all(d[..., :32].sum() > 2 * d[..., 32:].abs().sum() for d in drawn)
    assert len({float(d.sum()) for d in drawn}) > 10
    assert image.sum() == 70 * 30 * 0.5


# --- metrics ------------------------------------------------------------------------------------


def _prediction(patient: str, side: str, margin: float, target: int) -> Prediction:
    outcome = torch.tensor([0.0, margin], dtype=torch.float64)
    return Prediction(patient, outcome, torch.tensor(target), {"laterality": side})


def test_views_are_averaged_and_breasts_compete(task: Task) -> None:
    predictions = [
        _prediction("a", "left", 3.0, 1),  # mean of the views 1
        _prediction("a", "left", -1.0, 1),
        _prediction("a", "right", -2.0, 0),
        _prediction("b", "left", 1.5, 0),
        _prediction("b", "right", -3.0, 0),
        _prediction("c", "right", 0.5, 1),
    ]
    measured = task.measure(predictions)
    assert set(measured) == set(task.metrics)
    # Breasts: 1 and 0.5 ill against -2, 1.5, -3 healthy: 4 of 6 pairs.
    assert measured["auroc"] == pytest.approx(4 / 6)
    # Patients: a 1 and c 0.5 ill, b 1.5 healthy.
    assert measured["auroc_patient"] == 0
    assert measured["sensitivity_at_90_specificity"] == 0
    p = 1 / (1 + np.exp(-np.array([1, 0.5, -2, 1.5, -3.0])))
    truth = np.array([1, 1, 0, 0, 0])
    assert measured["brier"] == pytest.approx(np.mean((p - truth) ** 2))
    margins = np.array([3.0, -1, -2, 1.5, -3, 0.5]) * np.array([1, 1, -1, -1, -1, 1])
    assert measured["loss"] == pytest.approx(np.log1p(np.exp(-margins)).mean())


def test_with_one_image_a_breast_it_is_scikit_learns(task: Task) -> None:
    generator = np.random.default_rng(0)
    truth = generator.integers(0, 2, 60)
    margins = (generator.normal(size=60) + truth).round(1)
    sides = ["left", "right"] * 30
    predictions = [
        _prediction(f"p{i // 2}", side, margin, int(t))
        for i, (side, margin, t) in enumerate(zip(sides, margins, truth, strict=True))
    ]
    measured = task.measure(predictions)
    assert measured["auroc"] == pytest.approx(roc_auc_score(truth, margins))
    by_patient = truth.reshape(-1, 2).max(axis=1), margins.reshape(-1, 2).max(axis=1)
    assert measured["auroc_patient"] == pytest.approx(roc_auc_score(*by_patient))


def test_an_image_of_unknown_side_stands_alone(task: Task) -> None:
    """Two unknown sides of one patient may be both breasts, so their answers are not averaged."""
    predictions = [
        _prediction("a", "unknown", 3.0, 1),
        _prediction("a", "unknown", -3.0, 0),
        _prediction("b", "unknown", 0.0, 0),
    ]
    assert task.measure(predictions)["auroc"] == 1.0


def test_one_class_alone_has_no_auroc(task: Task) -> None:
    measured = task.measure([_prediction("a", "left", 800.0, 0), _prediction("b", "left", -1.0, 0)])
    assert set(measured) == {"brier", "calibration_error", "loss"}
    assert all(np.isfinite(value) for value in measured.values())
    assert task.measure([]) == {}


def test_a_samples_gradient_does_not_depend_on_its_batch_mates(task: Task) -> None:
    generator = torch.Generator().manual_seed(0)
    logits, target = torch.randn(3, 2, generator=generator), torch.tensor([0, 1, 1])
    together = torch.autograd.functional.jacobian(lambda x: task.loss(x, target), logits)
    for i in range(3):
        one = slice(i, i + 1)
        alone = torch.autograd.functional.jacobian(
            lambda x, one=one: task.loss(x, target[one]), logits[one]
        )
        torch.testing.assert_close(together[one] * 3, alone)


def test_wrong_options_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="did you mean 'size'"):
        tasks.build(Component(name="mammography", sise=[64, 32]))
    with pytest.raises(ConfigError, match="greater than or equal to 32"):
        tasks.build(Component(name="mammography", size=[64, 8]))
