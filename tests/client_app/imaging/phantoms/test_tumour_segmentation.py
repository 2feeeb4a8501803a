"""Planning CTs and their outlines are the same in every format, by readers that are not ours."""

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
from rt_utils import RTStructBuilder  # type: ignore[import-untyped]
from scipy.ndimage import binary_dilation, binary_erosion, label

from client_app.imaging.phantoms import tumour_segmentation
from client_app.imaging.phantoms._dicom import grid

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
PATIENTS = 3


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, Path]]:
    """The same patients of four hospitals as DICOM and as NIfTI."""
    folders = []
    for site in range(4):
        out = tmp_path_factory.mktemp(f"site{site}")
        for layout in ("dicom", "nifti"):
            tumour_segmentation.write_phantom(
                out / layout,
                patients=PATIENTS,
                site=site,
                seed=2,
                layout=layout,
            )
        folders.append((out / "dicom", out / "nifti"))
    return folders


def nifti(folder: Path, site: int, number: int) -> tuple[nibabel.Nifti1Image, NDArray[np.bool_]]:
    name = f"phantom_{site:02d}_{number:04d}.nii.gz"
    image, mask = (nibabel.load(folder / part / name) for part in ("images", "labels"))
    np.testing.assert_array_equal(image.affine, mask.affine)
    return image, np.asarray(mask.dataobj) > 0


def planes(folder: Path) -> list[pydicom.Dataset]:
    datasets = [pydicom.dcmread(path) for path in sorted((folder / "SE0002").glob("*.dcm"))]
    return sorted(datasets, key=lambda dataset: float(dataset.ImagePositionPatient[2]))


def test_both_layouts_hold_the_same_voxels(hospitals: list[tuple[Path, Path]]) -> None:
    for site, (dicom, other) in enumerate(hospitals):
        for number in range(PATIENTS):
            image, _ = nifti(other, site, number)
            folder = dicom / "images" / f"P{number:05d}" / "SE0002"
            reader: Any = SimpleITK.ImageSeriesReader()  # type: ignore[no-untyped-call]
            reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
            voxels = SimpleITK.GetArrayFromImage(reader.Execute()).transpose(2, 1, 0)
            np.testing.assert_array_equal(voxels, np.asarray(image.dataobj))


def test_both_layouts_lie_in_one_place(hospitals: list[tuple[Path, Path]]) -> None:
    """By the formula of PS3.3 C.7.6.2.1.1, which holds under a tilted gantry too."""
    for site, (dicom, other) in enumerate(hospitals):
        image, _ = nifti(other, site, 0)
        sources = planes(dicom / "images/P00000")
        for column, row, plane in ((0, 0, 0), (63, 0, 0), (0, 63, 5), (20, 40, len(sources) - 1)):
            source = sources[plane]
            along, down = np.array(source.ImageOrientationPatient, dtype=float).reshape(2, 3)
            rows, columns = map(float, source.PixelSpacing)
            place = np.array(source.ImagePositionPatient, dtype=float)
            place += along * columns * column + down * rows * row
            expected = LPS_TO_RAS[:3, :3] @ place
            assert image.affine @ (column, row, plane, 1) == pytest.approx([*expected, 1], abs=1e-3)


def test_outlines_are_the_same_masks(hospitals: list[tuple[Path, Path]]) -> None:
    for site, (dicom, other) in enumerate(hospitals):
        place = tumour_segmentation.hospital(site)
        for number in range(PATIENTS):
            _, expected = nifti(other, site, number)
            folder = dicom / "images" / f"P{number:05d}"
            path = folder / "SE0003" / "IM0001.dcm"
            if place.masks == "segmentation":
                assert np.array_equal(from_segmentation(path, folder, place.tumour), expected)
            else:
                struct = RTStructBuilder.create_from(str(folder / "SE0002"), str(path))
                assert place.tumour in struct.get_roi_names()
                # rt-utils: (rows, columns, slices), outlines drawn through whole pixels.
                found = struct.get_roi_mask_by_name(place.tumour).transpose(1, 0, 2)
                around = np.ones((3, 3, 1), dtype=bool)
                assert not (found & ~binary_dilation(expected, around)).any()
                assert not (binary_erosion(expected, around) & ~found).any()


def from_segmentation(path: Path, folder: Path, name: str) -> NDArray[np.bool_]:
    found = highdicom.seg.segread(path)
    numbers = found.get_segment_numbers(segment_label=name)
    uids = [source.SOPInstanceUID for source in planes(folder)]
    pixels = found.get_pixels_by_source_instance(
        uids, segment_numbers=numbers, assert_missing_frames_are_empty=True
    )
    mask: NDArray[np.bool_] = pixels[..., 0].transpose(2, 1, 0) > 0
    return mask


def test_hospitals_differ(hospitals: list[tuple[Path, Path]]) -> None:
    sources = [planes(dicom / "images/P00000") for dicom, _ in hospitals]
    assert len({source[0].Manufacturer for source in sources}) == 4
    assert len({float(source[0].SliceThickness) for source in sources}) == 3
    assert [float(source[0].GantryDetectorTilt) for source in sources] == [0, 0, 0, 8]
    # Under a tilt the planes' normal is not the way that the table goes.
    for tilted, source in zip((False, False, False, True), sources, strict=True):
        along, down = np.array(source[0].ImageOrientationPatient, dtype=float).reshape(2, 3)
        way = np.subtract(source[1].ImagePositionPatient, source[0].ImagePositionPatient)
        cosine = np.cross(along, down) @ way / np.linalg.norm(way)
        assert (cosine == pytest.approx(np.cos(np.radians(8)), abs=1e-6)) == tilted
    assert [source[0].BitsStored for source in sources] == [12, 16, 12, 12]
    assert all(source[0].RescaleIntercept == -1024 for source in sources)
    names = []
    for dicom, _ in hospitals:
        outlines = pydicom.dcmread(dicom / "images/P00000/SE0003/IM0001.dcm")
        if outlines.Modality == "SEG":
            names.append([item.SegmentLabel for item in outlines.SegmentSequence])
        else:
            names.append([item.ROIName for item in outlines.StructureSetROISequence])
    flat = [name for some in names for name in some]
    assert {"GTV", "GTVp", "Tumour", "GTV_Prim", "Heart"} < set(flat)
    assert any(name in ("Lung_L", "Lung_R") for name in flat)
    assert sum(some[0].startswith("Lung") for some in names) == 2, "the tumour is not always first"


def test_padding_lies_outside_of_the_circle(hospitals: list[tuple[Path, Path]]) -> None:
    for site, (dicom, _) in enumerate(hospitals):
        source = planes(dicom / "images/P00000")[3]
        padded = source.pixel_array == tumour_segmentation.PADDING
        assert ("PixelPaddingValue" in source) == (site == 1) == padded.any()
        if site == 1:
            assert source.PixelPaddingValue == tumour_segmentation.PADDING
            assert padded[0, 0] and not padded[32, 32]
            assert padded.mean() == pytest.approx(1 - np.pi / 4, abs=0.02)


def test_a_threshold_finds_the_tumour_in_its_lung(hospitals: list[tuple[Path, Path]]) -> None:
    """Soft tissue in one piece: the middle of its mask is near 40 HU, and around it there is air."""
    inside, around, ratio = [], [], []
    for site, (_, other) in enumerate(hospitals):
        for number in range(PATIENTS):
            image, mask = nifti(other, site, number)
            units = np.asarray(image.dataobj)
            assert label(mask)[1] == 1
            assert 40 <= mask.sum() <= 3000
            inside.append(np.percentile(units[mask], 75))  # less at its border
            shell = binary_dilation(mask, iterations=3) & ~binary_dilation(mask)
            around.append(np.percentile(units[shell], 25))
            # Irregular: it fills its sphere of the same reach badly.
            points = np.argwhere(mask) * image.header.get_zooms()
            reach = np.linalg.norm(points - points.mean(axis=0), axis=1).max() + 2
            volume = mask.sum() * np.prod(image.header.get_zooms())
            ratio.append(volume / (4 / 3 * np.pi * reach**3))
    assert np.abs(np.subtract(inside, 38)).max() < 40
    assert np.median(around) < -600
    assert np.median(ratio) < 0.75


def test_round_nodules_are_no_tumours() -> None:
    """The outline varies with direction, and follows its own formula, whatever else is drawn."""
    place = tumour_segmentation.hospital(0)
    tumour = tumour_segmentation.draw_tumour(np.random.default_rng(3), place)
    points = grid((48, 48, 24), np.eye(3), (2.0, 2.0, 4.0), np.array(tumour.centre)).points()
    masks = [
        tumour_segmentation.render(np.random.default_rng(seed), tumour, place, points)[1]
        for seed in range(4)
    ]
    for mask in masks:
        assert np.array_equal(mask == 1, tumour.inside(points) > 0)
    away = np.linalg.norm(points - np.array(tumour.centre)[:, None, None, None], axis=0)
    edge = (masks[0] == 1) & ~binary_erosion(masks[0] == 1)
    assert away[edge].max() > 1.3 * away[edge].min()


def test_the_table_names_each_file(hospitals: list[tuple[Path, Path]]) -> None:
    for _, folder in hospitals:
        with (folder / "patients.csv").open() as table:
            rows = list(csv.DictReader(table))
        assert len({row["patient"] for row in rows}) == PATIENTS
        assert {row["file"] for row in rows} == {p.name for p in (folder / "images").iterdir()}
        assert {row["file"] for row in rows} == {p.name for p in (folder / "labels").iterdir()}
