"""From a radiograph to the network's square, and the metrics of the chest X-ray task; on real images
too."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from PIL import Image
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from federation import models, tasks
from federation.schema import Component, ConfigError
from federation.tasks import Prediction, Task


@pytest.fixture(scope="module")
def task() -> Task:
    return tasks.build(Component(name="chest_xray"))


def _phantom(rows: int = 96, columns: int = 80, top: int = 4095) -> np.ndarray:
    """Bright body with two dark lungs of different size, and some noise; values 0…top."""
    y, x = np.mgrid[0:rows, 0:columns] / np.array([rows, columns]).reshape(2, 1, 1)
    image = 0.8 - 0.5 * (((x - 0.3) / 0.15) ** 2 + ((y - 0.5) / 0.3) ** 2 < 1)
    image -= 0.4 * (((x - 0.7) / 0.12) ** 2 + ((y - 0.45) / 0.25) ** 2 < 1)
    image += np.random.default_rng(0).uniform(-0.02, 0.02, image.shape)
    return np.round(image.clip(0, 1) * top)


def _item(pixels: np.ndarray, label: int = 1, spacing: float = 0.2) -> dict[str, Any]:
    affine = torch.diag(torch.tensor([spacing, spacing, 1.0], dtype=torch.float64))
    image = MetaTensor(torch.from_numpy(pixels.astype(np.float32))[None], affine=affine)
    return {"image": image, "label": label, "attributes": {"view": "pa"}}


def _image(task: Task, pixels: np.ndarray) -> torch.Tensor:
    loaded = task.load(_item(pixels))
    assert loaded["label"].shape == () and loaded["label"] == 1
    image: torch.Tensor = loaded["image"]
    return image


def test_a_radiograph_becomes_a_square_of_one_scale(task: Task) -> None:
    image = _image(task, _phantom())
    assert image.shape == (1, 64, 64)
    assert image.dtype == torch.float32
    assert type(image) is torch.Tensor
    assert image.mean() == pytest.approx(0, abs=1e-3)
    # 96 × 80 keeps its proportions: 64 × 53, and what was added at both sides is the mean, zero.
    assert (image[0, :, :5] == 0).all() and (image[0, :, 59:] == 0).all()
    assert (image[0, :, 6:58] != 0).all()


def test_scale_and_offset_of_grey_values_do_not_reach_the_network(task: Task) -> None:
    plain = _image(task, _phantom())
    for scale, offset in ((16, 0), (1, -2048), (0.01, 7)):
        changed = _image(task, _phantom() * scale + offset)
        torch.testing.assert_close(changed, plain, atol=1e-4, rtol=0)


def test_frontal_views_serve(task: Task) -> None:
    assert task.selection.modalities == {"CR", "DX", "DR", "RG"}
    assert task.selection.attributes["view"] == {"pa", "ap", "unknown"}
    assert set(task.synonyms.values()) <= set(task.classes)


def test_values_that_are_not_finite_are_refused(task: Task) -> None:
    pixels = _phantom()
    pixels[3, 4] = np.inf
    with pytest.raises(ValueError, match="not finite"):
        task.load(_item(pixels))


def test_a_label_that_is_no_class_is_refused(task: Task) -> None:
    with pytest.raises(ValueError, match="label 2 is no class: use 0 for normal, 1 for pneumonia"):
        task.load(_item(_phantom(), label=2))


def test_augmentation_keeps_shape_and_side(task: Task) -> None:
    image = torch.zeros(1, 64, 64)
    image[:, 20:40, 8:20] = 5.0  # on one side only
    task.augment.set_random_state(seed=1)  # type: ignore[attr-defined]
    drawn = [task.augment({"image": image, "label": torch.tensor(0)})["image"] for _ in range(20)]
    assert all(sample.shape == (1, 64, 64) for sample in drawn)
    assert all(sample[..., :32].sum() > 2 * sample[..., 32:].abs().sum() for sample in drawn)
    assert any(not torch.equal(sample, image) for sample in drawn)
    assert image.sum() == 20 * 12 * 5  # what came in stays as it was


def _predictions(margins: list[float], targets: list[int]) -> list[Prediction]:
    return [
        Prediction("p", torch.tensor([0.0, margin]), torch.tensor(target))
        for margin, target in zip(margins, targets, strict=True)
    ]


def test_metrics_are_what_a_hand_computes(task: Task) -> None:
    margins, targets = [2.0, 0.5, -1.0, 0.1, -2.0, -0.5], [1, 1, 1, 0, 0, 0]
    measured = task.measure(_predictions(margins, targets))
    assert measured["sensitivity"] == pytest.approx(2 / 3)
    assert measured["specificity"] == pytest.approx(2 / 3)
    assert measured["auroc"] == pytest.approx(7 / 9)  # of 9 pairs, -1.0 loses to 0.1 and to -0.5
    assert measured["loss"] == pytest.approx(
        np.mean([np.log1p(np.exp(-m if t else m)) for m, t in zip(margins, targets, strict=True)])
    )
    assert set(measured) == set(task.metrics)


def test_metrics_agree_with_scikit_learn(task: Task) -> None:
    generator = np.random.default_rng(0)
    targets = generator.integers(0, 2, 50)
    margins = (generator.normal(size=50) + targets).round(1)  # with ties
    measured = task.measure(_predictions(margins.tolist(), targets.tolist()))
    assert measured["auroc"] == pytest.approx(roc_auc_score(targets, margins))
    expected = balanced_accuracy_score(targets, np.float32(margins) >= 0)
    assert measured["balanced_accuracy"] == pytest.approx(expected)


def test_one_class_alone_has_no_auroc(task: Task) -> None:
    assert set(task.measure(_predictions([1.0, -1.0], [1, 1]))) == {"loss", "sensitivity"}
    assert set(task.measure(_predictions([1.0], [0]))) == {"loss", "specificity"}
    assert task.measure([]) == {}


def test_wrong_options_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="did you mean 'size'"):
        tasks.build(Component(name="chest_xray", sise=64))
    with pytest.raises(ConfigError, match="less than or equal to 1024"):
        tasks.build(Component(name="chest_xray", size=4096))


def test_real_radiographs_train_and_are_measured(task: Task, shared_data: Path) -> None:
    """All 300 images of NIH ChestX-ray14 come to one scale; a network trained on some of the
    patients ranks the others better than chance. How well, in truth, is not for a test: detectors
    give the label away, see ../shared/data/README.md."""
    folder = shared_data / "nih_cxr"
    with (folder / "metadata.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    items = []
    for row in rows:
        with Image.open(folder / "images_256" / row["image"]) as picture:
            pixels = np.asarray(picture.convert("L"))
        items.append(task.load(_item(pixels, int(row["pneumonia"]), float(row["spacing"]))))
    images = torch.stack([item["image"] for item in items])
    labels = torch.stack([item["label"] for item in items])
    assert images.shape == (len(rows), 1, 64, 64)
    assert images.mean(dim=(1, 2, 3)).abs().max() < 1e-3
    assert images.abs().max() < 8

    held_out = torch.tensor([int(row["patient"]) % 4 == 0 for row in rows])
    patients = [
        {row["patient"] for row, h in zip(rows, held_out, strict=True) if h == part}
        for part in (True, False)
    ]
    assert not patients[0] & patients[1]
    network = models.build(Component(name="resnet"), task, seed=0)
    optimizer = torch.optim.Adam(network.parameters(), 0.003)
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        batch = torch.randperm(int((~held_out).sum()), generator=generator)[:32]
        loss = task.loss(network(images[~held_out][batch]), labels[~held_out][batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.inference_mode():
        predictions = [
            Prediction(
                row["patient"], task.outcome(task.infer(network, image[None])[0], label), label
            )
            for row, image, label, out in zip(rows, images, labels, held_out, strict=True)
            if out
        ]
    measured = task.measure(predictions)
    assert set(measured) == set(task.metrics)
    assert measured["auroc"] > 0.55
