"""Heads are whole series in either layout, and their ventricles tell the classes apart."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import highdicom
import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK
from numpy.typing import NDArray
from pydicom.uid import EnhancedMRImageStorage

from client_app.imaging.phantoms import alzheimers
from client_app.imaging.phantoms._dicom import Grid, ellipsoid, grid

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, Path]]:
    """The same patients of four hospitals as DICOM and as BIDS."""
    folders = []
    for site in range(4):
        out = tmp_path_factory.mktemp(f"site{site}")
        for layout in ("dicom", "nifti"):
            alzheimers.write_phantom(out / layout, patients=3, site=site, seed=2, layout=layout)
        folders.append((out / "dicom", out / "nifti"))
    return folders


def from_dicom(folder: Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Voxels (columns, rows, slices) and affine to RAS+, by SimpleITK or, of one file, by highdicom."""
    names = sorted(folder.glob("*.dcm"))
    if len(names) == 1:
        volume = highdicom.imread(names[0]).get_volume()
        # (slices, rows, columns) to (columns, rows, slices)
        turned = volume.permute_spatial_axes([2, 1, 0])
        return turned.array, LPS_TO_RAS @ turned.affine
    reader: Any = SimpleITK.ImageSeriesReader()  # type: ignore[no-untyped-call]
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    affine = np.eye(4)
    directions = np.array(image.GetDirection()).reshape(3, 3)
    affine[:3, :3] = directions * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return SimpleITK.GetArrayFromImage(image).transpose(2, 1, 0), LPS_TO_RAS @ affine


def test_both_layouts_hold_the_same_voxels_and_affines(hospitals: list[tuple[Path, Path]]) -> None:
    for dicom, nifti in hospitals:
        for number, image in enumerate(sorted(nifti.glob("sub-*/anat/*_T1w.nii.gz"))):
            volume = nibabel.load(image)
            voxels, affine = from_dicom(dicom / "images" / f"P{number:05d}" / "SE0002")
            expected = volume.get_fdata()
            if np.sign(affine[:3, 2] @ volume.affine[:3, 2]) < 0:  # numbered against the axis
                last = np.eye(4)
                last[2, 2], last[2, 3] = -1, voxels.shape[2] - 1
                voxels, affine = voxels[:, :, ::-1], affine @ last
            np.testing.assert_array_equal(voxels, expected)
            np.testing.assert_allclose(affine, volume.affine, atol=1e-3)


def test_hospitals_differ(hospitals: list[tuple[Path, Path]]) -> None:
    series = [
        pydicom.dcmread(next(iter(sorted((dicom / "images/P00000/SE0002").glob("*.dcm")))))
        for dicom, _ in hospitals
    ]
    assert len({dataset.Manufacturer for dataset in series}) == 4
    assert {float(dataset.MagneticFieldStrength) for dataset in series} == {1.5, 3.0}
    assert [dataset.SOPClassUID == EnhancedMRImageStorage for dataset in series].count(True) == 1
    axes = set()
    for _, nifti in hospitals:
        image = nibabel.load(next(nifti.glob("sub-*/anat/*.nii.gz")))
        axes.add(nibabel.aff2axcodes(image.affine)[2])
        off = np.abs(image.affine[:3, :3]) / image.header.get_zooms()
        assert 0.9 < off.max(axis=0).min() < 1, "a little oblique"
    assert axes == {"L", "S", "A"}, "sagittal, axial, coronal"
    brightest = [
        np.percentile(nibabel.load(next(nifti.glob("sub-*/anat/*.nii.gz"))).get_fdata(), 99)
        for _, nifti in hospitals
    ]
    assert max(brightest) > 3 * min(brightest)


def test_other_series_are_told_by_their_headers(tmp_path: Path) -> None:
    alzheimers.write_phantom(tmp_path, patients=12, site=0, seed=0)
    kinds: dict[str, set[tuple[str, int]]] = {}
    for folder in (tmp_path / "images").glob("*/*"):
        datasets = [pydicom.dcmread(path, stop_before_pixels=True) for path in folder.glob("*.dcm")]
        facing = {tuple(round(float(v)) for v in d.ImageOrientationPatient) for d in datasets}
        kinds.setdefault(datasets[0].SeriesDescription, set()).add(
            (str(datasets[0].ImageType[2]), len(facing))
        )
    assert kinds == {
        "MPRAGE": {("M", 1)},
        "Ax T2 TSE": {("M", 1)},
        "localizer": {("LOCALIZER", 3)},
    }


def test_tables_name_each_patient_with_a_class(hospitals: list[tuple[Path, Path]]) -> None:
    for dicom, nifti in hospitals:
        with (dicom / "labels.csv").open() as table:
            labels = {row["patient"]: row["label"] for row in csv.DictReader(table)}
        with (nifti / "participants.tsv").open() as table:
            people = {row["participant_id"]: row for row in csv.DictReader(table, delimiter="\t")}
        assert set(labels.values()) <= set(alzheimers.LABELS)
        assert labels.keys() == {
            pydicom.dcmread(path, specific_tags=["PatientID"]).PatientID
            for path in (dicom / "images").glob("*/SE0002/IM0001.dcm")
        }
        same = {name.replace("sub-", "").replace("PHA", "") for name in people}
        assert same == {name.replace("PHA", "").replace("-", "") for name in labels}
        assert [row["diagnosis"] for row in people.values()] == list(labels.values())
        assert {path.name for path in nifti.glob("sub-*")} == people.keys()


def fluid_in_the_middle(label: str, age: int, seed: int) -> float:
    """ml of dark voxels where the lateral ventricles lie, as a threshold finds them."""
    rng = np.random.default_rng(seed)
    brain = alzheimers.draw_brain(rng, label, age)
    where: Grid = grid((30, 40, 22), np.eye(3), (3.0, 3.0, 3.0), np.array((0, -8, 20)))
    points = where.points()
    place = alzheimers.hospital(0)
    stored = alzheimers.expose(rng, alzheimers.render(brain, points, alzheimers.T1), points, place)
    middle = ellipsoid(points, (0, -8, 20), (26, 46, 22)) > 0
    return float(((stored < 0.4 * place.scale) & middle).sum() * 0.027)


def test_ventricles_widen_with_disease_and_age() -> None:
    means = [
        np.mean([fluid_in_the_middle(label, 70, seed) for seed in range(12)])
        for label in alzheimers.LABELS
    ]
    assert means[0] * 1.1 < means[1] < means[2] / 1.1
    assert np.mean([fluid_in_the_middle("CN", 88, seed) for seed in range(12)]) > means[0] * 1.1


def test_hippocampi_shrink_with_disease() -> None:
    where = grid((20, 30, 20), np.eye(3), (2.0, 2.0, 2.0), np.array((28, -17, -12)))
    points = where.points()
    inside = ellipsoid(points, (29, -17, -12), (10, 23, 9)) > 0

    def grey(label: str) -> float:
        volumes = []
        for seed in range(12):
            brain = alzheimers.draw_brain(np.random.default_rng(seed), label, 70)
            picture = alzheimers.render(brain, points, alzheimers.T1)
            volumes.append(((picture > 0.35) & inside).sum())
        return float(np.mean(volumes))

    healthy, mild, severe = map(grey, alzheimers.LABELS)
    assert healthy > 1.1 * mild > 1.1**2 * severe


def test_t2_is_the_other_way_round() -> None:
    points = grid((60, 1, 1), np.eye(3), (2.0, 2.0, 2.0), np.array((0, 4, 22))).points()
    brain = alzheimers.Brain(1.0, 1.3, 1.0, 0.25)
    first, second = (
        alzheimers.render(brain, points, contrast) for contrast in (alzheimers.T1, alzheimers.T2)
    )
    inside = np.abs(points[0]) < 45
    assert np.corrcoef(first[inside], second[inside])[0, 1] < -0.8
