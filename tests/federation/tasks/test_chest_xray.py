"""Grey values of radiographs written here, and the metrics of the chest X-ray task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from federation import tasks
from federation.schema import Component, ConfigError
from federation.tasks import Prediction, Task
from federation.tasks.chest_xray import brightness


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


def _write(
    path: Path, pixels: np.ndarray, *, bits: int = 12, signed: bool = False, **tags: Any
) -> Path:
    """A digital radiograph; signed values are not sign-extended above `bits`, as scanners do it."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID
    dataset.PatientID = "secret"
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, bits, bits - 1
    dataset.PixelRepresentation = int(signed)
    stored = pixels.astype(np.int64).astype("<i2" if signed else "<u2").view("<u2")
    dataset.PixelData = (stored & ((1 << bits) - 1)).astype("<u2").tobytes()
    for name, value in tags.items():
        setattr(dataset, name, value)
    dataset.save_as(path, enforce_file_format=True)
    return path


def _image(task: Task, path: Path) -> torch.Tensor:
    loaded = task.load({"image": path, "label": 1})
    assert loaded["label"].shape == () and loaded["label"] == 1
    image: torch.Tensor = loaded["image"]
    return image


def test_a_radiograph_becomes_a_square_of_one_scale(task: Task, tmp_path: Path) -> None:
    image = _image(task, _write(tmp_path / "a.dcm", _phantom()))
    assert image.shape == (1, 64, 64)
    assert image.dtype == torch.float32
    assert type(image) is torch.Tensor
    assert image.mean() == pytest.approx(0, abs=1e-3)
    # 96 × 80 keeps its proportions: 64 × 53, and what was added at both sides is the mean, zero.
    assert (image[0, :, :5] == 0).all() and (image[0, :, 59:] == 0).all()
    assert (image[0, :, 6:58] != 0).all()


def test_monochrome1_is_monochrome2_inverted(task: Task, tmp_path: Path) -> None:
    pixels = _phantom()
    two = _image(task, _write(tmp_path / "2.dcm", pixels))
    one = _write(tmp_path / "1.dcm", 4095 - pixels, PhotometricInterpretation="MONOCHROME1")
    torch.testing.assert_close(_image(task, one), two, atol=1e-4, rtol=0)


def test_rescaling_is_applied(task: Task, tmp_path: Path) -> None:
    pixels = _phantom()
    path = _write(tmp_path / "a.dcm", pixels, RescaleSlope="2.5", RescaleIntercept="-100")
    np.testing.assert_allclose(brightness(dcmread(path)), pixels * 2.5 - 100, rtol=1e-6)
    # A negative slope turns light and dark, so together with MONOCHROME1 nothing changes.
    plain = _image(task, _write(tmp_path / "b.dcm", pixels))
    turned = _write(
        tmp_path / "c.dcm",
        pixels,
        RescaleSlope="-1",
        RescaleIntercept="4095",
        PhotometricInterpretation="MONOCHROME1",
    )
    torch.testing.assert_close(_image(task, turned), plain, atol=1e-4, rtol=0)


def test_a_modality_table_is_applied(tmp_path: Path) -> None:
    pixels = _phantom(top=255)
    table = Dataset()
    table.LUTDescriptor = [256, 0, 16]
    table.LUTData = (np.arange(256) ** 2).astype("<u2").tobytes()
    table["LUTData"].VR = "OW"
    table.ModalityLUTType = "US"
    path = _write(tmp_path / "a.dcm", pixels, bits=8, ModalityLUTSequence=[table])
    np.testing.assert_array_equal(brightness(dcmread(path)), pixels**2)


@pytest.mark.parametrize(
    ("bits", "signed"), [(8, False), (10, False), (12, False), (16, False), (12, True), (16, True)]
)
def test_every_depth_decodes_to_its_own_values(tmp_path: Path, bits: int, signed: bool) -> None:
    pixels = _phantom(top=2**bits - 1) - (2 ** (bits - 1) if signed else 0)
    path = _write(tmp_path / "a.dcm", pixels, bits=bits, signed=signed)
    np.testing.assert_array_equal(brightness(dcmread(path)), pixels)


def test_depth_and_sign_do_not_reach_the_network(task: Task, tmp_path: Path) -> None:
    unsigned = _image(task, _write(tmp_path / "a.dcm", _phantom(), bits=12))
    signed = _image(task, _write(tmp_path / "b.dcm", _phantom() - 2048, bits=12, signed=True))
    deep = _image(task, _write(tmp_path / "c.dcm", _phantom() * 16, bits=16))
    torch.testing.assert_close(signed, unsigned, atol=1e-4, rtol=0)
    torch.testing.assert_close(deep, unsigned, atol=1e-4, rtol=0)


@pytest.mark.parametrize("interpretation", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_the_darkest(tmp_path: Path, interpretation: str) -> None:
    pixels = _phantom().clip(100, 3000)
    pixels[:10] = 4095
    path = _write(
        tmp_path / "a.dcm",
        pixels,
        PhotometricInterpretation=interpretation,
        PixelPaddingValue=4090,
        PixelPaddingRangeLimit=4095,
    )
    shown = brightness(dcmread(path))
    assert (shown[:10] == shown[10:].min()).all()


@pytest.mark.parametrize(
    "tags",
    [
        {"NumberOfFrames": 2, "Rows": 48},
        {
            "SamplesPerPixel": 3,
            "PhotometricInterpretation": "RGB",
            "PlanarConfiguration": 0,
            "Rows": 32,
        },
    ],
)
def test_frames_and_colours_are_refused(task: Task, tmp_path: Path, tags: dict[str, Any]) -> None:
    path = _write(tmp_path / "a.dcm", _phantom(), **tags)
    with pytest.raises(ValueError, match="one greyscale frame") as refusal:
        _image(task, path)
    assert "secret" not in str(refusal.value)


def test_a_label_that_is_no_class_is_refused(task: Task, tmp_path: Path) -> None:
    path = _write(tmp_path / "a.dcm", _phantom())
    with pytest.raises(ValueError, match="label 2 is no class"):
        task.load({"image": path, "label": 2})


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
