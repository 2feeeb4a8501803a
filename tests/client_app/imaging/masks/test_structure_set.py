"""Structure sets: filling against an independent rule, rt-utils both ways, real and broken files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from rt_utils import RTStructBuilder
from rt_utils.rtstruct import RTStruct
from scipy import ndimage

from client_app.imaging.masks import structure_set
from client_app.imaging.masks.contours import filled, outlines
from client_app.imaging.set_aside import Reason, Unfit
from tests.client_app.imaging.masks.series import CANARY, Series, ct_series

WRITTEN_BY = {"names": ("tumour",), "algorithm": "Test", "version": "1.0"}


def ball_with_holes(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    grid = np.indices(shape) - np.reshape([(n - 1) / 2 for n in shape], (-1, 1, 1, 1))
    mask = (np.hypot(grid[0], grid[1]) < min(shape[:2]) / 2 - 1) & (np.abs(grid[2]) < 2)
    mask &= np.hypot(grid[0] - 3, grid[1]) > 2
    mask &= np.hypot(grid[0] + 4, grid[1] + 1) > 1
    return mask.astype(np.uint8)


def read(dataset: Dataset, image: Series, folder: Path) -> NDArray[np.uint8]:
    dataset.save_as(folder / "rt.dcm", enforce_file_format=True)
    return structure_set.read(folder / "rt.dcm", ((0,),), shape=image.shape, affine=image.affine)


def test_a_polygon_holds_the_centres_with_an_odd_number_of_crossings() -> None:
    """Random polygons that cross themselves, against a loop over edges (PNPOLY, Franklin 1994)."""
    rng = np.random.default_rng(0)
    shape = (30, 25)
    x, y = (axis.astype(float) for axis in np.indices(shape))
    for _ in range(40):
        points = rng.uniform(-5, 32, (int(rng.integers(3, 20)), 2))
        odd, near = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
        for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0), strict=True):
            crossing = x0 + (y - y0) / (y1 - y0) * (x1 - x0)
            odd ^= ((y0 > y) != (y1 > y)) & (x < crossing)
            length = np.hypot(x1 - x0, y1 - y0)
            t = np.clip(((x - x0) * (x1 - x0) + (y - y0) * (y1 - y0)) / length**2, 0, 1)
            near |= np.hypot(x0 + t * (x1 - x0) - x, y0 + t * (y1 - y0) - y) < 0.03
        got = filled([points], shape)
        np.testing.assert_array_equal(got[~near], odd[~near])
        assert near.mean() < 0.2


@pytest.mark.parametrize("density", [0.2, 0.5, 0.8])
def test_outlines_are_single_closed_polygons_around_exactly_the_pixels(density: float) -> None:
    """Holes are joined by channels: each polygon alone, without even-odd over all, is right too."""
    rng = np.random.default_rng(1)
    for _ in range(30):
        region = rng.random(tuple(rng.integers(1, 20, 2))) < density
        polygons = outlines(region)
        np.testing.assert_array_equal(filled(polygons, region.shape), region)
        united = np.zeros_like(region)
        for polygon in polygons:
            united |= filled([polygon], region.shape)
        np.testing.assert_array_equal(united, region)
        assert len(polygons) == ndimage.label(region)[1]  # one for each piece, none for a hole


def test_a_contour_with_a_contour_in_it_is_a_ring() -> None:
    square = np.array([(-0.5, -0.5), (8.5, -0.5), (8.5, 8.5), (-0.5, 8.5)])
    ring = filled([square, square / 3 + 8 / 3], (9, 9))
    expected = np.ones((9, 9), dtype=bool)
    expected[3:6, 3:6] = False
    np.testing.assert_array_equal(ring, expected)


# rt-utils takes the two pixel spacings for one another and the sizes too, so only squares are fair.
SQUARE: dict[str, Any] = {"shape": (24, 24, 7), "spacing": (0.8, 0.8, 2.0)}


def test_rt_utils_reads_our_contours_as_the_very_mask(tmp_path: Path) -> None:
    image = ct_series(**SQUARE, angles=(0.3, -0.2, 0.5))
    mask = ball_with_holes(image.shape)
    written = structure_set.write(mask, image.datasets, **WRITTEN_BY)
    written.save_as(tmp_path / "rt.dcm", enforce_file_format=True)
    folder = str(image.save(tmp_path / "ct"))
    theirs = RTStructBuilder.create_from(folder, str(tmp_path / "rt.dcm"))
    back = theirs.get_roi_mask_by_name("tumour")
    np.testing.assert_array_equal(back.transpose(1, 0, 2), mask.astype(bool))


@pytest.mark.parametrize("approximate", [True, False])
@pytest.mark.parametrize("pin_hole", [True, False])
def test_we_read_the_contours_of_rt_utils(
    tmp_path: Path, approximate: bool, pin_hole: bool
) -> None:
    """As it reads them itself; without pinholes (it cuts them through pixels) as the very mask."""
    image = ct_series(**SQUARE, angles=(-0.1, 0.4, 0.2))
    mask = ball_with_holes(image.shape)
    theirs = RTStructBuilder.create_new(str(image.save(tmp_path / "ct")))
    theirs.add_roi(
        mask.astype(bool).transpose(1, 0, 2),
        name="tumour",
        approximate_contours=approximate,
        use_pin_hole=pin_hole,
    )
    theirs.save(str(tmp_path / "rt.dcm"))
    back = structure_set.read(tmp_path / "rt.dcm", ((0,),), shape=image.shape, affine=image.affine)
    np.testing.assert_array_equal(back, theirs.get_roi_mask_by_name("tumour").transpose(1, 0, 2))
    if not pin_hole:
        np.testing.assert_array_equal(back, mask)


@pytest.mark.parametrize(
    "file", ["rt.dcm", "invalid_reference_rt.dcm", "non_existent_reference_rt.dcm"]
)
def test_real_structure_sets_with_right_and_wrong_references(shared_data: Path, file: str) -> None:
    """Against rt-utils, which rounds points to pixels: off by no more than one pixel in a slice.

    It goes by the references, which are mended for it; we go by places alone.
    """
    folder = shared_data / "dicom_odd" / "rtstruct_rtutils"
    slices = [pydicom.dcmread(folder / f"ct_{n}.dcm") for n in (1, 2)]
    slices.sort(key=lambda s: float(s.ImagePositionPatient[2]))
    image = _series_of(slices)
    got = structure_set.read(folder / file, ((0,),), shape=image.shape, affine=image.affine)
    dataset = pydicom.dcmread(folder / file)
    for contour in _contours(dataset):
        contour.ContourImageSequence[0].ReferencedSOPInstanceUID = next(
            (
                s.SOPInstanceUID
                for s in slices
                if float(s.ImagePositionPatient[2]) == float(contour.ContourData[2])
            ),
            "1.2.3",  # behind the last of the two slices, where both leave it out
        )
    expected = RTStruct(slices, dataset).get_roi_mask_by_name(
        dataset.StructureSetROISequence[0].ROIName
    )
    expected = expected.transpose(1, 0, 2).astype(bool)
    assert expected.any()
    disc = np.ones((3, 3, 1))
    assert not np.any(got.astype(bool) & ~ndimage.binary_dilation(expected, disc))
    assert not np.any(ndimage.binary_erosion(expected, disc) & (got == 0))


def _series_of(slices: list[Dataset]) -> Series:
    first, last = slices[0], slices[-1]
    orientation = np.reshape([float(v) for v in first.ImageOrientationPatient], (2, 3))
    rows, columns = (float(v) for v in first.PixelSpacing)
    begin, end = (np.array(s.ImagePositionPatient, dtype=float) for s in (first, last))
    affine = np.eye(4)
    step = (end - begin) / (len(slices) - 1)
    affine[:3] = np.column_stack([orientation[0] * columns, orientation[1] * rows, step, begin])
    shape = (int(first.Columns), int(first.Rows), len(slices))
    return Series(slices, shape, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine)


def test_the_file_is_of_the_patient_and_names_every_slice(tmp_path: Path) -> None:
    image = ct_series()
    mask = np.zeros(image.shape, dtype=np.uint8)
    mask[2, 3, 4] = 1
    structure_set.write(mask, image.datasets, **WRITTEN_BY).save_as(
        tmp_path / "rt.dcm", enforce_file_format=True
    )
    back = pydicom.dcmread(tmp_path / "rt.dcm")
    source = image.datasets[0]
    assert str(back.PatientName) == CANARY and back.PatientID == "P1"
    assert back.StudyInstanceUID == source.StudyInstanceUID
    assert back.SeriesInstanceUID != source.SeriesInstanceUID
    assert back.Manufacturer == "Consilium" and back.SoftwareVersions == "1.0"
    (frame,) = back.ReferencedFrameOfReferenceSequence
    assert frame.FrameOfReferenceUID == source.FrameOfReferenceUID
    series = frame.RTReferencedStudySequence[0].RTReferencedSeriesSequence[0]
    named = [item.ReferencedSOPInstanceUID for item in series.ContourImageSequence]
    assert named == [dataset.SOPInstanceUID for dataset in image.datasets]
    (contour,) = back.ROIContourSequence[0].ContourSequence
    reference = contour.ContourImageSequence[0].ReferencedSOPInstanceUID
    assert reference == image.datasets[4].SOPInstanceUID
    assert contour.NumberOfContourPoints == 4 == len(contour.ContourData) // 3
    assert back.StructureSetROISequence[0].ROIGenerationAlgorithm == "AUTOMATIC"


def _drawn(image: Series) -> Dataset:
    mask = np.zeros(image.shape, dtype=np.uint8)
    mask[2:8, 3:7, 2:4] = 1
    return structure_set.write(mask, image.datasets, **WRITTEN_BY)


def _contours(dataset: Dataset) -> Any:
    return dataset.ROIContourSequence[0].ContourSequence


def _moved(contour: Dataset, by: tuple[float, float, float]) -> None:
    points = np.reshape([float(v) for v in contour.ContourData], (-1, 3)) + by
    contour.ContourData = [f"{v:.5f}" for v in points.ravel()]


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda c: setattr(c, "ContourData", c.ContourData[:-1]), Reason.CORRUPT),
        (lambda c: setattr(c, "ContourGeometricType", "POINT"), None),
        (lambda c: _moved(c, (0.0, 0.0, 1.2)), None),  # less than half of 2.5 mm
        (lambda c: setattr(c, "ContourData", []), None),
        (lambda c: delattr(c, "ContourGeometricType"), Reason.CORRUPT),
        (
            lambda c: setattr(c, "ContourData", [*c.ContourData[:-1], "99"]),
            Reason.GEOMETRY_DIFFERS,
        ),
    ],
)
def test_one_odd_contour(tmp_path: Path, spoil: Any, reason: Reason | None) -> None:
    """Read, or refused with a reason; points and empty contours enclose nothing."""
    image = ct_series()
    dataset = _drawn(image)
    spoil(_contours(dataset)[0])
    if reason is None:
        assert read(dataset, image, tmp_path)[:, :, 3].sum() == 24
    else:
        with pytest.raises(Unfit) as caught:
            read(dataset, image, tmp_path)
        assert caught.value.reason is reason


@pytest.mark.parametrize("text", [b"nan\\1\\2", b"1\\x\\3", b"1\\\\3", b"1e999\\1\\1"])
def test_coordinates_that_are_no_numbers(tmp_path: Path, text: bytes) -> None:
    image = ct_series()
    dataset = _drawn(image)
    dataset.save_as(tmp_path / "rt.dcm", enforce_file_format=True)
    padded = text + b" " * (len(text) % 2)
    dataset = pydicom.dcmread(tmp_path / "rt.dcm")
    raw = pydicom.dataelem.RawDataElement(
        pydicom.tag.Tag(0x3006, 0x0050), "DS", len(padded), padded, 0, False, True
    )
    _contours(dataset)[0]._dict[raw.tag] = raw
    dataset.save_as(tmp_path / "bad.dcm", enforce_file_format=True)
    with pytest.raises(Unfit) as caught:
        structure_set.read(tmp_path / "bad.dcm", ((0,),), shape=image.shape, affine=image.affine)
    assert caught.value.reason is Reason.CORRUPT


def test_a_drawing_beside_the_image(tmp_path: Path) -> None:
    image = ct_series()
    dataset = _drawn(image)
    for contour in _contours(dataset):
        _moved(contour, (500.0, 0.0, 0.0))
    with pytest.raises(Unfit) as caught:
        read(dataset, image, tmp_path)
    assert caught.value.reason is Reason.GEOMETRY_DIFFERS


def test_planes_closer_than_slices_do_not_cancel(tmp_path: Path) -> None:
    """Drawn on slices of 1 mm, read on slices of 3 mm: the plane at the centre speaks."""
    thin = ct_series((12, 10, 9), spacing=(0.9, 0.7, 1.0))
    mask = np.zeros(thin.shape, dtype=np.uint8)
    mask[2:8, 3:7] = 1
    mask[2:8, 3:7, 3] = 0
    mask[3:5, 3:7, 4] = 0
    structure_set.write(mask, thin.datasets, **WRITTEN_BY).save_as(tmp_path / "rt.dcm")
    affine = thin.affine.copy()
    affine[:3, 3] += affine[:3, 2]
    affine[:3, 2] *= 3
    back = structure_set.read(tmp_path / "rt.dcm", ((0,),), shape=(12, 10, 3), affine=affine)
    np.testing.assert_array_equal(back, mask[:, :, 1::3])


def test_a_million_points(tmp_path: Path) -> None:
    image = ct_series()
    dataset = _drawn(image)
    contour = _contours(dataset)[0]
    points = np.reshape([float(v) for v in contour.ContourData], (-1, 3))
    edge = np.linspace(points[0], points[1], 250_000)
    raw = "\\".join(f"{v:.4f}" for v in np.vstack([edge, points[1:]]).ravel()).encode()
    element = pydicom.dataelem.RawDataElement(
        pydicom.tag.Tag(0x3006, 0x0050), "DS", len(raw), raw + b" " * (len(raw) % 2), 0, True, True
    )
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
    contour._dict[element.tag] = element
    dataset.save_as(tmp_path / "rt.dcm", implicit_vr=True, little_endian=True)
    back = structure_set.read(tmp_path / "rt.dcm", ((0,),), shape=image.shape, affine=image.affine)
    assert back.sum() == 48
