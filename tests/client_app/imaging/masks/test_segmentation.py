"""Segmentations: highdicom both ways, other grids against SimpleITK, real and broken files."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
import SimpleITK
from highdicom.seg import SegmentDescription
from numpy.typing import NDArray
from pydicom.sr.codedict import codes
from pydicom.uid import RLELossless, generate_uid

from client_app.imaging.masks import segmentation
from client_app.imaging.set_aside import Reason, Unfit
from tests.client_app.imaging.masks.series import CANARY, LPS_TO_RAS, Series, ct_series

WRITTEN_BY = {"names": ("tumour", "something"), "algorithm": "Test", "version": "1.0"}
BOTH = ((0,), (1,))


def noise(shape: tuple[int, int, int], classes: int = 3) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, classes, shape, dtype=np.uint8)


def by_highdicom(path: Path, image: Series, kind: str, pixels: NDArray, **options: object) -> None:
    count = pixels.shape[3] if pixels.ndim == 4 else int(pixels.max())
    described = [
        SegmentDescription(n, f"segment {n}", codes.SCT.Tissue, codes.SCT.Tissue, "MANUAL")
        for n in range(1, count + 1)
    ]
    highdicom.seg.Segmentation(
        image.datasets, pixels, kind, described, generate_uid(), 1, generate_uid(), 1,
        "Maker", "Model", "1", "1", **options,
    ).save_as(path)  # fmt: skip


@pytest.mark.parametrize("labelmap", [False, True])
@pytest.mark.parametrize("enhanced", [False, True])
def test_highdicom_reads_what_is_written(tmp_path: Path, labelmap: bool, enhanced: bool) -> None:
    image = ct_series(enhanced=enhanced, angles=(0.1, 0.2, 0.3))
    mask = noise(image.shape)
    mask[:, :, 0] = mask[:, :, 3] = 0  # a slice without a frame, inside and at the end
    segmentation.write(mask, image.datasets, labelmap=labelmap, **WRITTEN_BY).save_as(
        tmp_path / "seg.dcm", enforce_file_format=True
    )
    back = highdicom.seg.segread(tmp_path / "seg.dcm")
    volume = back.get_volume(combine_segments=True)
    rounded = np.rint(
        np.linalg.inv(image.affine) @ LPS_TO_RAS @ volume.affine @ np.array([0, 0, 0, 1])
    )
    first, size = int(rounded[2]), volume.spatial_shape[0]
    array = volume.array
    step = np.sign((np.linalg.inv(image.affine) @ LPS_TO_RAS @ volume.affine)[2, 0])
    if step < 0:
        array, first = array[::-1], first - size + 1
    expected = mask[:, :, first : first + size].transpose(2, 1, 0)
    np.testing.assert_array_equal(array, expected)
    assert np.count_nonzero(array) == np.count_nonzero(mask)
    assert str(back.PatientName) == CANARY and back.Manufacturer == "Consilium"
    assert back.StudyInstanceUID == image.datasets[0].StudyInstanceUID
    assert back.segmented_property_types[0] == codes.SCT.Neoplasm
    named = back.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    assert {item.ReferencedSOPInstanceUID for item in named} == {
        dataset.SOPInstanceUID for dataset in image.datasets
    }


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
def test_every_type_that_highdicom_writes(tmp_path: Path, kind: str) -> None:
    image = ct_series(tilt=0.3)
    mask = noise(image.shape, 4)
    by_highdicom(tmp_path / "seg.dcm", image, kind, mask.transpose(2, 1, 0))
    stored = pydicom.dcmread(tmp_path / "seg.dcm").SegmentSequence
    place = {int(item.SegmentNumber): n for n, item in enumerate(stored)}
    got = segmentation.read(
        tmp_path / "seg.dcm",
        ((place[3],), (place[1], place[2])),
        shape=image.shape,
        affine=image.affine,
    )
    np.testing.assert_array_equal(got, np.array([0, 2, 2, 1])[mask])


@pytest.mark.parametrize("fraction", ["PROBABILITY", "OCCUPANCY"])
def test_fractions_count_from_the_threshold_on(tmp_path: Path, fraction: str) -> None:
    image = ct_series()
    values = np.random.default_rng(2).integers(0, 101, image.shape) / 100
    by_highdicom(
        tmp_path / "seg.dcm", image, "FRACTIONAL", values.transpose(2, 1, 0)[..., None],
        fractional_type=fraction, max_fractional_value=100, transfer_syntax_uid=RLELossless,
    )  # fmt: skip
    for threshold in (0.5, 0.25):
        got = segmentation.read(
            tmp_path / "seg.dcm",
            ((0,),),
            shape=image.shape,
            affine=image.affine,
            threshold=threshold,
        )
        np.testing.assert_array_equal(got, values >= threshold)


def test_where_segments_overlap_the_higher_class_wins(tmp_path: Path) -> None:
    image = ct_series()
    stacked = np.random.default_rng(3).integers(0, 2, (*image.shape, 2), dtype=np.uint8)
    by_highdicom(tmp_path / "seg.dcm", image, "BINARY", stacked.transpose(2, 1, 0, 3))
    grid = {"shape": image.shape, "affine": image.affine}
    got = segmentation.read(tmp_path / "seg.dcm", BOTH, **grid)
    np.testing.assert_array_equal(got, np.where(stacked[..., 1], 2, stacked[..., 0]))
    got = segmentation.read(tmp_path / "seg.dcm", ((1,), (0,)), **grid)
    np.testing.assert_array_equal(got, np.where(stacked[..., 0], 2, stacked[..., 1]))


def itk(array: NDArray, affine: NDArray) -> SimpleITK.Image:
    lps = LPS_TO_RAS @ affine
    image = SimpleITK.GetImageFromArray(array.transpose(2, 1, 0))
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    return image


def test_another_grid_is_looked_up_at_the_voxels_centres(tmp_path: Path) -> None:
    """Against SimpleITK's nearest neighbour, on an image turned, shifted and of other voxels."""
    own = ct_series((20, 18, 9), spacing=(0.9, 0.8, 1.7), angles=(0.1, 0.0, 0.2))
    mask = noise(own.shape)
    segmentation.write(mask, own.datasets, **WRITTEN_BY).save_as(tmp_path / "seg.dcm")
    image = ct_series(
        (13, 16, 7), spacing=(1.31, 1.03, 2.03), angles=(0.05, -0.12, 0.3), origin=(-60, -40, 118)
    )
    got = segmentation.read(tmp_path / "seg.dcm", BOTH, shape=image.shape, affine=image.affine)
    expected = SimpleITK.GetArrayFromImage(
        SimpleITK.Resample(
            itk(mask, own.affine),
            itk(np.zeros(image.shape, np.uint8), image.affine),
            SimpleITK.Transform(),
            SimpleITK.sitkNearestNeighbor,
        )
    ).transpose(2, 1, 0)
    assert np.count_nonzero(expected) > 100
    np.testing.assert_array_equal(got, expected)


def test_a_mask_far_away(tmp_path: Path) -> None:
    own, image = ct_series(), ct_series(origin=(500.0, 0.0, 0.0))
    segmentation.write(noise(own.shape), own.datasets, **WRITTEN_BY).save_as(tmp_path / "seg.dcm")
    with pytest.raises(Unfit) as caught:
        segmentation.read(tmp_path / "seg.dcm", BOTH, shape=image.shape, affine=image.affine)
    assert caught.value.reason is Reason.GEOMETRY_DIFFERS


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda d: delattr(d, "SegmentSequence"), Reason.CORRUPT),
        (lambda d: setattr(d, "NumberOfFrames", 10**6), Reason.CORRUPT),
        (lambda d: setattr(d, "PixelData", d.PixelData[:20]), Reason.CORRUPT),
        (lambda d: setattr(d, "Rows", 0), Reason.CORRUPT),
        (
            lambda d: delattr(d.SharedFunctionalGroupsSequence[0], "PixelMeasuresSequence"),
            Reason.NO_GEOMETRY,
        ),
    ],
)
def test_broken_files(tmp_path: Path, spoil: object, reason: Reason) -> None:
    image = ct_series()
    segmentation.write(noise(image.shape), image.datasets, **WRITTEN_BY).save_as(
        tmp_path / "seg.dcm"
    )
    dataset = pydicom.dcmread(tmp_path / "seg.dcm")
    spoil(dataset)  # type: ignore[operator]
    dataset.save_as(tmp_path / "bad.dcm")
    with pytest.raises(Unfit) as caught:
        segmentation.read(tmp_path / "bad.dcm", BOTH, shape=image.shape, affine=image.affine)
    assert caught.value.reason is reason


def test_all_real_files_are_read_as_highdicom_reads_them(shared_data: Path) -> None:
    """Every segment of every SEG on the grid that highdicom gives it, or set aside with a reason."""
    read, aside = 0, set()
    for path in sorted((shared_data / "dicom_odd").rglob("*")):
        if not path.is_file() or "seg" not in str(path.relative_to(shared_data)):
            continue
        dataset = pydicom.dcmread(path, force=True, stop_before_pixels=True)
        if dataset.get("Modality") != "SEG":
            continue
        try:
            volume = highdicom.seg.segread(path).get_volume(
                segment_numbers=[int(s.SegmentNumber) for s in dataset.SegmentSequence]
            )
            # (slices, rows, columns, segments), LPS
            array = np.moveaxis(volume.array, (0, 1, 2), (2, 1, 0))
            affine = LPS_TO_RAS @ volume.affine[:, (2, 1, 0, 3)]
        except (RuntimeError, ValueError, AttributeError, sqlite3.Error):
            array, affine = np.zeros((8, 8, 2, len(dataset.SegmentSequence))), np.eye(4)
        for position in range(array.shape[3]):
            if (
                "SegmentSequence" in dataset
                and dataset.SegmentSequence[position].SegmentNumber == 0
            ):
                continue  # a label map's background, which frames that are left out are also of
            try:
                got = segmentation.read(path, ((position,),), shape=array.shape[:3], affine=affine)
            except Unfit as unfit:
                aside.add((path.name, unfit.reason))
                continue
            np.testing.assert_array_equal(got, array[..., position] >= 0.5)
            read += 1
    assert read >= 15
    slides = {name for name, reason in aside if reason is Reason.NOT_SUPPORTED}
    assert all("_sm_" in name for name in slides) and len(slides) >= 5
    assert {item for item in aside if item[0] not in slides} == {
        ("seg_image_cr_binary.dcm", Reason.NO_GEOMETRY)
    }
