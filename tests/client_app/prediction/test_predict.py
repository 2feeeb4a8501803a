"""The answer lies on its voxels, in each format, and names its model."""

from __future__ import annotations

import csv
import json
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import highdicom
import nibabel
import numpy as np
import pydicom
import pytest
import safetensors.torch
import torch
from monai.transforms import Orientation
from numpy.typing import NDArray
from rt_utils import RTStructBuilder
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation
from typer.testing import CliRunner

from client_app.cli import app
from client_app.imaging.masks import structure_set
from client_app.imaging.set_aside import Reason, SetAside
from client_app.prediction.answer import onto, segment
from client_app.prediction.predict import predict, volumes
from client_app.prediction.sources import Sources, find_sources
from federation import models, tasks
from federation.schema import ConfigError
from tests.client_app.imaging import samples
from tests.client_app.prediction.phantom import (
    Means,
    Series,
    Threshold,
    centres,
    classification_task,
    density,
    dice,
    model,
    segmentation_task,
    truth,
    write_series,
)

Volume = NDArray[Any]


def test_what_the_network_finds_lies_where_it_is_in_the_source(series: Series) -> None:
    """Against thresholding the source itself; the task turns, resamples, crops and pads it."""
    said = segment(model(segmentation_task(), Threshold()), series.image)
    wanted = truth(series.image.shape, series.affine)
    for label in (1, 2):
        assert (wanted == label).sum() > 300
        assert dice(said == label, wanted == label) > 0.95


def test_bringing_back_is_trilinear_interpolation_in_mm() -> None:
    """scipy's map_coordinates says the same of grids that have nothing in common."""
    rng = np.random.default_rng(0)
    probabilities = torch.from_numpy(rng.random((3, 7, 8, 9), dtype=np.float32))
    ours, theirs = np.diag([2.0, 1.5, 3.0, 1.0]), np.eye(4)
    theirs[:3, :3] = Rotation.from_euler("xyz", (10, 20, 30), degrees=True).as_matrix() * 1.3
    theirs[:3, 3] = (-3, 2, 1)
    got = onto(probabilities, ours, shape=(12, 11, 10), onto_affine=theirs)
    points = np.moveaxis(centres((12, 11, 10), np.linalg.inv(ours) @ theirs), -1, 0)
    sampled = np.stack(
        [map_coordinates(p, points, order=1, mode="nearest") for p in probabilities.numpy()]
    )
    size = np.array([7, 8, 9]).reshape(3, 1, 1, 1)
    inside = ((points >= -0.5) & (points <= size - 0.5)).all(axis=0)
    assert 0.1 < inside.mean() < 0.9
    np.testing.assert_array_equal(got, np.where(inside, sampled.argmax(axis=0), 0))


def test_on_the_same_grid_nothing_changes() -> None:
    classes = np.random.default_rng(1).integers(0, 3, size=(5, 6, 1))
    probabilities = torch.nn.functional.one_hot(torch.from_numpy(classes)).movedim(-1, 0).float()
    affine = np.diag([0.7, 0.7, 5.0, 1.0])
    got = onto(probabilities, affine, shape=(5, 6, 1), onto_affine=affine)
    np.testing.assert_array_equal(got, classes)


def test_a_place_that_does_not_follow_load_is_refused(series: Series) -> None:
    task = segmentation_task(place=Orientation("RAS", labels=None))
    with pytest.raises(ConfigError, match="does not follow its `load`"):
        segment(model(task, Threshold()), series.image)


# --- what is written ----------------------------------------------------------------------------------


def test_seg_and_rtstruct_hold_the_mask_that_was_computed(series: Series, tmp_path: Path) -> None:
    """The SEG is read by highdicom, the RTSTRUCT by our reader; both refer to the source series."""
    ours = model(segmentation_task(), Threshold())
    mask = segment(ours, series.image)
    out = tmp_path / "out"
    predict(ours, Sources((series.image,), ()), out)
    datasets = series.datasets

    seg = highdicom.seg.segread(out / "001-segmentation.dcm")
    read = seg.get_pixels_by_source_instance(
        [d.SOPInstanceUID for d in datasets], assert_missing_frames_are_empty=True,
        combine_segments=True,
    )  # fmt: skip
    np.testing.assert_array_equal(read.transpose(2, 1, 0), mask)
    assert [seg.get_segment_description(n).SegmentLabel for n in (1, 2)] == ["bright", "dark"]

    drawn = structure_set.read(
        out / "001-structures.dcm",
        ((0,), (1,)),
        shape=series.image.shape,
        affine=series.affine,
    )
    np.testing.assert_array_equal(drawn, mask)

    for name in ("001-segmentation.dcm", "001-structures.dcm"):
        path = out / name
        written = pydicom.dcmread(path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert written.StudyInstanceUID == datasets[0].StudyInstanceUID
        assert written.FrameOfReferenceUID == datasets[0].FrameOfReferenceUID
        assert written.PatientID == "P1"
        assert str(datasets[0].SeriesInstanceUID) in str(written)
        made_by = written.ContributingEquipmentSequence[-1]
        assert ours.sha256 in made_by.SoftwareVersions
        for word in ("not a medical device", ours.sha256, ours.experiment.sha256(), "monday"):
            assert word in made_by.ContributionDescription
        assert "Research use only" in written.SeriesDescription


@pytest.mark.parametrize("angles", [(0, 0, 0), (20, -35, 50)], ids=["axial", "oblique"])
def test_rt_utils_reads_the_mask_that_was_computed(
    angles: tuple[float, float, float], tmp_path: Path
) -> None:
    """To the voxel. Of square images of square pixels: it swaps rows and columns of all others."""
    series = write_series(
        tmp_path / "series", angles=angles, shape=(56, 56, 20), spacing=(1.3, 1.3, 3.0)
    )
    ours = model(segmentation_task(), Threshold())
    mask = segment(ours, series.image)
    predict(ours, Sources((series.image,), ()), tmp_path / "out")
    structures = RTStructBuilder.create_from(
        str(series.folder), str(tmp_path / "out" / "001-structures.dcm")
    )
    assert structures.get_roi_names() == ["bright", "dark"]
    for label, name in ((1, "bright"), (2, "dark")):
        drawn = structures.get_roi_mask_by_name(name).transpose(1, 0, 2)
        np.testing.assert_array_equal(drawn, mask == label)


def test_a_nifti_file_gets_a_nifti_mask_on_its_own_voxels(tmp_path: Path) -> None:
    affine = np.diag([-1.5, 1.2, 2.5, 1.0])
    affine[:3, 3] = (40, -30, -25)
    shape = (50, 48, 20)
    path = tmp_path / "head.nii.gz"
    voxels = density(centres(shape, affine)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(voxels, affine), path)
    out = tmp_path / "out"
    found = find_sources([str(path)], segmentation_task(), None)
    predict(model(segmentation_task(), Threshold()), found, out)
    mask = nibabel.load(out / "001-mask.nii.gz")
    np.testing.assert_allclose(mask.affine, affine)
    said, wanted = np.asarray(mask.dataobj), truth(shape, affine)
    assert said.dtype == np.uint8
    for label in (1, 2):
        assert dice(said == label, wanted == label) > 0.95
    record = json.loads((out / "predictions.json").read_text())
    assert record["images"][0]["file"] == str(path)
    assert b"Research use only" in bytes(mask.header["descrip"])


def test_nothing_found_is_an_answer_too(tmp_path: Path) -> None:
    series = write_series(tmp_path / "series")
    silent = Threshold()
    silent.steepness.data.fill_(0)  # a tie, which the first class wins
    predict(model(segmentation_task(), silent), Sources((series.image,), ()), tmp_path / "out")
    record = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert record["images"][0]["volumes_ml"] == {"bright": 0.0, "dark": 0.0}
    assert not pydicom.dcmread(tmp_path / "out" / "001-segmentation.dcm").pixel_array.any()


def test_volumes_are_in_ml_also_of_sheared_voxels(series: Series) -> None:
    classes = np.zeros((10, 10, 10), dtype=np.uint8)
    classes[:5] = 1
    affine = np.array([[2.0, 0, 0, 0], [0, 2, 1.5, 0], [0, 0, 5, 0], [0, 0, 0, 1]])
    tilted = replace(series.image, affine=tuple(map(tuple, affine.tolist())))
    assert volumes(classes, tilted, ("background", "bright", "dark")) == pytest.approx(
        {"bright": 500 * 20 / 1000, "dark": 0.0}
    )


def test_the_record_names_model_experiment_run_and_series(series: Series, tmp_path: Path) -> None:
    ours = model(segmentation_task(), Threshold())
    aside = SetAside(Path("/x/\x1b[2J"), Reason.SLICES_MISSING, "3 of 20")
    predict(ours, Sources((series.image,), (aside,)), tmp_path / "out")
    record = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert record["model_sha256"] == ours.sha256
    assert record["experiment_sha256"] == ours.experiment.sha256()
    assert (record["task"], record["run"], record["round"]) == ("test", "monday", 3)
    assert "not a medical device" in record["notice"]
    assert record["software"].startswith("Consilium")
    (said,) = record["images"]
    assert said["series_instance_uid"] == str(series.datasets[0].SeriesInstanceUID)
    assert said["files"] == ["001-segmentation.dcm", "001-structures.dcm"]
    assert record["not_answered"][0]["reason"] == "slices_missing"
    assert "\x1b" not in record["not_answered"][0]["file"]
    (row,) = csv.DictReader((tmp_path / "out" / "predictions.csv").open(newline=""))
    assert float(row["bright_ml"]) == pytest.approx(said["volumes_ml"]["bright"], rel=1e-4)
    assert row["model_sha256"] == ours.sha256


def test_a_radiograph_gets_probabilities(tmp_path: Path) -> None:
    header = samples.radiograph(tmp_path / "a.dcm", edge=16)
    task = classification_task()
    found = find_sources([str(tmp_path / "a.dcm")], task, None)
    answers, failed = predict(model(task, Means()), found, tmp_path / "out")
    assert failed == []
    mean = float(np.frombuffer(header.PixelData, dtype=np.uint16).mean()) / 4096
    wanted = float(torch.softmax(torch.tensor([0.0, mean]), dim=0)[1])
    assert answers[0].values["pneumonia"] == pytest.approx(wanted, abs=1e-5)
    assert sum(answers[0].values.values()) == pytest.approx(1)
    assert answers[0].names["sop_instance_uid"] == str(header.SOPInstanceUID)
    (row,) = csv.DictReader((tmp_path / "out" / "predictions.csv").open(newline=""))
    assert float(row["pneumonia_probability"]) == pytest.approx(wanted, abs=1e-5)


def test_earlier_predictions_are_replaced_only_by_force_and_then_all_of_them(
    tmp_path: Path,
) -> None:
    series = write_series(tmp_path / "series")
    ours, out = model(segmentation_task(), Threshold()), tmp_path / "out"
    predict(ours, Sources((series.image,) * 2, ()), out)
    with pytest.raises(ConfigError, match="--force"):
        predict(ours, Sources((series.image,), ()), out)
    (out / "mine.txt").write_text("stays")
    predict(ours, Sources((series.image,), ()), out, force=True)
    assert sorted(path.name for path in out.iterdir()) == [
        "001-segmentation.dcm",
        "001-structures.dcm",
        "mine.txt",
        "predictions.csv",
        "predictions.json",
    ]


def test_one_image_that_cannot_be_read_does_not_stop_the_others(tmp_path: Path) -> None:
    series = write_series(tmp_path / "series")
    gone = replace(series.image, files=(tmp_path / "gone.dcm", *series.image.files[1:]))
    ours = model(segmentation_task(), Threshold())
    answers, failed = predict(ours, Sources((gone, series.image), ()), tmp_path / "out")
    assert (len(answers), len(failed)) == (1, 1)
    assert (tmp_path / "out" / "001-segmentation.dcm").exists()
    with pytest.raises(ConfigError, match="no image could be answered: unreadable"):
        predict(ours, Sources((gone,), ()), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_the_command_answers_and_says_what_it_is_not(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "build", lambda *_, **__: Threshold())
    monkeypatch.setattr(tasks, "build", lambda *_: segmentation_task())
    safetensors.torch.save_file({"steepness": torch.tensor(0.02)}, run / "model.safetensors")
    series = write_series(tmp_path / "Doe^[bold]\x1b[2J")
    out = tmp_path / "out"
    arguments = ["predict", str(run), str(series.folder), "--out", str(out), "--device", "cpu"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "not a medical device" in " ".join(result.stdout.split())
    assert "\x1b[2J" not in result.stdout
    assert sorted(path.name for path in out.iterdir())[0] == "001-segmentation.dcm"
    with pytest.raises(ConfigError, match="--force"):
        CliRunner().invoke(app, arguments, catch_exceptions=False)
