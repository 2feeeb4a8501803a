"""Pictures of cases, and the run's own model on them."""

from __future__ import annotations

import base64
import io
import re
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import safetensors.torch
import torch
from matplotlib.image import imread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from torch import Tensor, nn

from client_app.imaging import phantoms
from federation import models, tasks
from federation.schema import Closed, Component, ConfigError
from federation.tasks import Task
from server_app.report import write_report
from server_app.report.pictures import Sample, description, picture
from server_app.report.read import RunFolderError
from server_app.report.samples import Example, find_examples, predict_samples
from tests.server_app.report.synthetic_run import experiment, write_run


class NoOptions(Closed):
    size: int = 64
    growth_rate: int = 8


def as_read(item: dict[str, Any]) -> dict[str, Any]:
    """What was read, as it is; an image of one slice as one of two dimensions."""
    return {
        "image": item["image"].as_tensor().squeeze(-1),
        "label": torch.as_tensor(item["label"]),
    }


def save(path: Path, array: np.ndarray[Any, Any]) -> Path:
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), path)
    return path


def tiny_task(kind: Any, dims: int, classes: tuple[str, ...]) -> Task:
    def infer(network: nn.Module, image: Tensor) -> Tensor:
        logits: Tensor = network(image)
        return logits

    return Task(
        name="tiny",
        kind=kind,
        spatial_dims=dims,
        in_channels=1,
        classes=classes,
        load=as_read,
        augment=lambda item: item,
        loss=nn.functional.cross_entropy,
        infer=infer,
        outcome=lambda logits, target: logits,
        measure=lambda predictions: {},
        metrics=("dice",),
        headline="dice",
        patch=(8,) * dims,
    )


class Threshold(nn.Module):
    """Foreground where the image is above a learnt level: an answer that can be known."""

    def __init__(self, outputs: int, pooled: bool) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.zeros(1))
        self.outputs, self.pooled = outputs, pooled

    def forward(self, image: Tensor) -> Tensor:
        value = image.flatten(1).mean(1, keepdim=True) if self.pooled else image
        margin = 4 * (value - self.level)
        return margin if self.outputs == 1 else torch.cat((-margin, margin), dim=1)


def offer(
    monkeypatch: pytest.MonkeyPatch, task: Task, build_network: Callable[[], nn.Module]
) -> None:
    """Let the registry find this task and this network under every name."""

    def find(package: types.ModuleType, component: object) -> tuple[Any, Any]:
        if package is tasks:
            return types.SimpleNamespace(build=lambda options: task), NoOptions()
        return types.SimpleNamespace(build=lambda options, task: build_network()), NoOptions()

    monkeypatch.setattr(tasks.registry, "find", find)
    assert models.registry is tasks.registry


def save_model(folder: Path, level: float) -> None:
    safetensors.torch.save_file({"level": torch.tensor([level])}, folder / "model.safetensors")


@pytest.fixture
def volume_case(tmp_path: Path) -> Example:
    """A block at right (R 6, 7), anterior (A 8…9), in axial slices 4 and 5, widest in 5."""
    image = np.zeros((8, 10, 9), dtype=np.float32)
    mask = np.zeros(image.shape, dtype=np.uint8)
    mask[6:, 8:, 4] = 1
    mask[5:, 8:, 5] = 1
    image[mask > 0] = 2.0
    image[0, 0, 5] = 1.0  # left posterior, what a low level takes for foreground
    return Example(save(tmp_path / "image.nii", image), save(tmp_path / "mask.nii", mask))


def test_a_volume_shows_its_fullest_slice_in_radiological_view(
    run_folder: Path, volume_case: Example, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = tiny_task("segmentation", 3, ("background", "organ"))
    offer(monkeypatch, task, lambda: Threshold(2, False))
    save_model(run_folder, 0.5)
    (sample,) = predict_samples(run_folder, [volume_case])
    assert sample.caption == "Case 1, axial slice 6 of 9"
    assert sample.image.shape == (10, 8)
    assert sample.truth is not None
    assert sample.predicted is not None
    expected = np.zeros((10, 8))
    expected[:2, :3] = 1  # anterior on top, patient's right on the left
    np.testing.assert_array_equal(sample.truth, expected)
    expected[9, 7] = 1  # left posterior
    np.testing.assert_array_equal(sample.predicted, expected)
    assert sample.dice() == pytest.approx(2 * 6 / (6 + 7))


def test_the_weights_are_those_of_the_run(
    run_folder: Path, volume_case: Example, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = tiny_task("segmentation", 3, ("background", "organ"))
    offer(monkeypatch, task, lambda: Threshold(2, False))
    save_model(run_folder, 1.5)
    (sample,) = predict_samples(run_folder, [volume_case])
    assert sample.dice() == 1.0


@pytest.mark.parametrize("outputs", [1, 2])
def test_a_classification_gives_probabilities(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outputs: int
) -> None:
    task = tiny_task("classification", 2, ("normal", "pneumonia"))
    offer(monkeypatch, task, lambda: Threshold(outputs, True))
    save_model(run_folder, 0.0)
    bright = save(tmp_path / "bright.nii", np.full((6, 5, 1), 0.5, dtype=np.float32))
    (sample,) = predict_samples(run_folder, [Example(bright, 1)])
    positive = 1 / (1 + np.exp(-2.0 * outputs))  # softmax of (-2, 2), or sigmoid of 2
    assert sample.scores == pytest.approx({"normal": 1 - positive, "pneumonia": positive})
    assert (sample.said, sample.truth_name) == ("pneumonia", "pneumonia")


def test_count_cases_are_spread_and_nothing_names_them(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = tiny_task("classification", 2, ("normal", "pneumonia"))
    offer(monkeypatch, task, lambda: Threshold(2, True))
    save_model(run_folder, 0.0)
    cases = []
    for index in range(10):
        image = np.full((4, 4, 1), float(index), dtype=np.float32)
        cases.append(Example(save(tmp_path / f"smith-{index}.nii", image), int(index >= 5)))
    shown = predict_samples(run_folder, cases, count=4)
    assert [float(sample.image[0, 0]) for sample in shown] == [0.0, 2.0, 5.0, 7.0]
    assert [sample.caption for sample in shown] == ["Case 1", "Case 2", "Case 3", "Case 4"]
    assert len(predict_samples(run_folder, cases[:2], count=6)) == 2
    assert predict_samples(run_folder, cases, count=0) == []


def test_another_model_is_refused(
    run_folder: Path, volume_case: Example, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = tiny_task("segmentation", 3, ("background", "organ"))
    offer(monkeypatch, task, lambda: nn.Conv3d(1, 2, 1))
    save_model(run_folder, 0.0)
    with pytest.raises(RunFolderError, match="not a model of this experiment"):
        predict_samples(run_folder, [volume_case])


def test_a_run_without_a_model_is_refused(run_folder: Path) -> None:
    with pytest.raises(RunFolderError, match=r"model\.safetensors"):
        predict_samples(run_folder, [])


def test_the_real_task_and_model_are_pictured(tmp_path: Path, shared_data: Path) -> None:
    ran = experiment(1, task={"name": "hippocampus"}, model={"name": "unet"})
    write_run(tmp_path, rounds=1, ran=ran)
    network = models.build(ran.model, tasks.build(ran.task), seed=3)
    safetensors.torch.save_file(network.state_dict(), tmp_path / "model.safetensors")
    cases = find_examples(tmp_path, shared_data / "hippocampus")
    shown = predict_samples(tmp_path, cases[:2])
    assert len(shown) == 2
    for sample in shown:
        assert sample.truth is not None
        assert sample.predicted is not None
        assert set(np.unique(sample.truth)) == {0, 1, 2}
        assert set(np.unique(sample.predicted)) <= {0, 1, 2}
        assert np.isfinite(sample.image).all()
    page = write_report(tmp_path, samples=shown).read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 4  # with and without outlines
    assert cases[0].image.name.partition(".")[0] not in page


def dicom(path: Path, patient: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
    dataset.SOPInstanceUID = generate_uid(entropy_srcs=[str(path)])
    dataset.PatientID = patient
    dataset.PhotometricInterpretation, dataset.SamplesPerPixel = "MONOCHROME2", 1
    dataset.Rows, dataset.Columns = 40, 50
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
    dataset.PixelRepresentation = 0
    dataset.PixelData = np.arange(2000).astype(np.uint8).tobytes()
    dataset.save_as(path, enforce_file_format=True)


def test_radiographs_are_found_by_patient_and_pictured(tmp_path: Path) -> None:
    ran = experiment(1, model={"name": "resnet"})
    write_run(tmp_path / "run", rounds=1, ran=ran)
    network = models.build(ran.model, tasks.build(ran.task), seed=3)
    safetensors.torch.save_file(network.state_dict(), tmp_path / "run" / "model.safetensors")
    data = tmp_path / "phantoms"
    for patient, image in (("smith", "1"), ("smith", "2"), ("jones", "1"), ("nobody", "1")):
        dicom(data / "images" / patient / f"IM{image}.dcm", patient)
    (data / "images" / "notes.txt").write_text("no image")
    (data / "labels.csv").write_text("patient,label\nsmith,1\njones,Normal\nnobody,perhaps\n")
    cases = find_examples(tmp_path / "run", data)
    assert [(case.image.parent.name, case.label) for case in cases] == [("jones", 0), ("smith", 1)]
    shown = predict_samples(tmp_path / "run", cases)
    assert [sample.truth_name for sample in shown] == ["normal", "pneumonia"]
    assert all(sum(sample.scores.values()) == pytest.approx(1) for sample in shown)
    assert all("smith" not in description(sample) for sample in shown)


@pytest.mark.parametrize(
    "task",
    [
        {"name": "chest_xray"},
        {"name": "hippocampus"},
        {"name": "mammography"},
        {"name": "alzheimers", "shape": [64, 64, 64], "spacing": 3.0},
        {"name": "tumour_segmentation"},
    ],
    ids=lambda task: task["name"],
)
def test_phantoms_of_every_task_are_pictured(tmp_path: Path, task: dict[str, Any]) -> None:
    built = tasks.build(Component.model_validate(task))
    network = {"name": "unet" if built.kind == "segmentation" else "resnet"}
    ran = experiment(1, task=task, model=network)
    write_run(tmp_path / "run", rounds=1, ran=ran)
    weights = models.build(ran.model, built, seed=3).state_dict()
    safetensors.torch.save_file(weights, tmp_path / "run" / "model.safetensors")
    layout = "nifti" if built.spatial_dims == 3 else None
    phantoms.write(task["name"], tmp_path / "data", patients=3, site=0, seed=5, layout=layout)
    examples = find_examples(tmp_path / "run", tmp_path / "data")
    assert len(examples) >= 3
    if task["name"] == "mammography":
        assert {example.laterality for example in examples} == {"left", "right"}
    shown = predict_samples(tmp_path / "run", examples, count=2)
    assert len(shown) == 2
    page = write_report(tmp_path / "run", samples=shown).read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") >= 2
    assert not re.search(r"PH[XHMAT]\d\d-?\d{5}", page), "phantoms, too, are not named"


@pytest.mark.parametrize("task", ["chest_xray", "hippocampus"])
def test_a_folder_without_cases_is_refused(tmp_path: Path, task: str) -> None:
    write_run(tmp_path / "run", rounds=1, ran=experiment(1, task={"name": task}))
    with pytest.raises(ConfigError, match=f"no case for task {task}"):
        find_examples(tmp_path / "run", tmp_path)


def test_the_png_is_the_image() -> None:
    image = np.linspace(-3, 5, 48).reshape(6, 8)
    markup = picture(Sample("Case 1", image), outlines=True)
    found = re.search(r'href="data:image/png;base64,([^"]+)"', markup)
    assert found is not None
    pixels = imread(io.BytesIO(base64.b64decode(found.group(1))))
    assert pixels.shape[:2] == image.shape
    assert np.corrcoef(pixels[..., 0].ravel(), image.ravel())[0, 1] > 0.999
    assert (pixels[0, 0, 0], pixels[-1, -1, 0]) == (0.0, 1.0)


def test_outlines_lie_around_their_masks() -> None:
    mask = np.zeros((10, 12), dtype=np.int64)
    mask[2:5, 3:8] = 1
    mask[6:10, 0:4] = 2  # at the border: still closed
    markup = picture(Sample("Case 1", np.ones(mask.shape), truth=mask), outlines=True)
    paths = re.findall(r'<path class="truth" d="M([^"]+)Z"', markup)
    boxes = []
    for path in paths:
        points = np.array([[float(v) for v in p.split(",")] for p in path.split(" ")])
        boxes.append((*points.min(axis=0), *points.max(axis=0)))
    assert boxes == [(3.0, 2.0, 8.0, 5.0), (0.0, 6.0, 4.0, 10.0)]


def test_a_constant_or_broken_image_is_still_shown() -> None:
    for image in (np.zeros((3, 3)), np.full((3, 3), np.nan), np.array([[np.inf, 0], [1, 2.0]])):
        assert "data:image/png" in picture(Sample("Case 1", image), outlines=True)


def test_a_picture_is_told_in_words() -> None:
    mask = np.eye(4, dtype=np.int64)
    sample = Sample("Case 1", np.ones((4, 4)), truth=mask, predicted=mask)
    assert "true outline holds 4 pixels" in description(sample)
    assert "Dice of this slice 1.00" in description(sample)


def test_masks_on_another_grid_are_refused() -> None:
    with pytest.raises(ValueError, match="one grid"):
        Sample("Case 1", np.ones((4, 4)), truth=np.ones((4, 5), dtype=np.int64))
    with pytest.raises(ValueError, match="2-D slice"):
        Sample("Case 1", np.ones((4, 4, 4)))
