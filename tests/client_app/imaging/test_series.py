"""Volumes from planes: against SimpleITK, highdicom, nibabel and dicom2nifti on what scanners wrote,
and against a grid that is known because the planes were cut from it."""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import highdicom
import nibabel.nicom.dicomwrappers
import numpy as np
import pydicom
import pytest
import SimpleITK
from dicom2nifti import convert_dicom
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from client_app.imaging import dicom, series
from client_app.imaging.header import Header, Kind, Plane
from client_app.imaging.series import Rejected, Stack
from client_app.imaging.set_aside import Reason

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def read(folder: Path) -> dict[str, list[tuple[Path, Header]]]:
    """By series, each file with its header, in the order of names."""
    found = defaultdict(list)
    for path in sorted(folder.iterdir()):
        header = dicom.read_header(path)
        found[header.series_uid].append((path, header))
    return found


def group_one(files: Sequence[tuple[Path, Header]]) -> tuple[list[Stack], list[Path]]:
    """The stacks, of which none is rejected, and the files of the first in the order of slices."""
    stacks, rejected = series.group([header for _, header in files])
    assert rejected == []
    assert sum(len(stack.planes) for stack in stacks) == sum(len(h.planes) for _, h in files)
    return stacks, [files[position][0] for position, _ in stacks[0].planes]


@pytest.mark.parametrize(
    "folder",
    [
        "siemens_espree_1.5T_t1post",
        "toshiba_galan_3T_dti_first40",
        "hcrop_Study3",
        "philips_pcasl_classic",
    ],
)
def test_classic_series_are_those_of_simpleitk_and_highdicom(
    folder: str, shared_data: Path
) -> None:
    root = shared_data / "mr_vendor_series" / folder
    (files,) = read(root).values()
    stacks, ordered = group_one(files)
    (stack,) = stacks
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(root)))
    image = reader.Execute()
    theirs = np.eye(4)
    theirs[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    theirs[:3, 3] = image.GetOrigin()
    assert [str(path) for path in ordered] == list(reader.GetFileNames())
    assert stack.shape == image.GetSize()
    np.testing.assert_allclose(stack.affine, LPS_TO_RAS @ theirs, atol=1e-5)

    volume = highdicom.get_volume_from_series([pydicom.dcmread(path) for path in ordered])
    np.testing.assert_allclose(stack.affine, from_highdicom(volume), atol=2e-3)


def from_highdicom(volume: highdicom.Volume) -> NDArray[np.float64]:
    """Voxel (slice, row, column) in LPS with descending slices, to ours."""
    slices = volume.spatial_shape[0]
    ours = np.array([[0, 0, -1, slices - 1], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1.0]])
    return LPS_TO_RAS @ volume.affine @ ours


def test_enhanced_series_is_that_of_highdicom_and_of_its_classic_twin(shared_data: Path) -> None:
    root = shared_data / "mr_vendor_series"
    (enhanced,) = read(root / "philips_pcasl_enhanced").values()
    ((stack,), (path, *_)) = group_one(enhanced)
    volume = highdicom.Image.from_dataset(pydicom.dcmread(path)).get_volume()
    np.testing.assert_allclose(stack.affine, from_highdicom(volume), atol=1e-3)
    (classic,) = read(root / "philips_pcasl_classic").values()
    ((twin,), _) = group_one(classic)
    assert stack.shape == twin.shape
    np.testing.assert_allclose(stack.affine, twin.affine, atol=1e-9)
    # Both in one series, as some archives give them, stay two volumes.
    stacks, rejected = series.group([header for _, header in (*classic, *enhanced)])
    assert len(stacks) == 2
    assert rejected == []


@pytest.mark.parametrize("number", range(4))
def test_enhanced_time_series_has_a_volume_a_file(number: int, shared_data: Path) -> None:
    (files,) = read(shared_data / "dicom_odd/dcm_qa_enh/In/Siemens/XA10").values()
    stacks, _ = group_one(files)
    assert len(stacks) == 4
    assert {position for position, _ in stacks[number].planes} == {number}
    volume = highdicom.Image.from_dataset(pydicom.dcmread(files[number][0])).get_volume()
    np.testing.assert_allclose(stacks[number].affine, from_highdicom(volume), atol=1e-3)


def test_enhanced_file_of_two_components_makes_two_volumes(shared_data: Path) -> None:
    (files,) = read(shared_data / "dicom_odd/dcm_qa_enh/In/Philips").values()
    stacks, _ = group_one(files)
    assert [stack.shape for stack in stacks] == [(64, 64, 32), (64, 64, 32)]
    assert stacks[0].words != stacks[1].words


@pytest.mark.parametrize("folder", ["siemens_trio_mosaic_fmri", "siemens_trio_mosaic_jpeg_and_j2k"])
def test_mosaics_are_those_of_nibabel(folder: str, shared_data: Path) -> None:
    for files in read(shared_data / "mr_vendor_series" / folder).values():
        stacks, _ = group_one(files)
        assert len(stacks) == 2
        for stack in stacks:
            position = stack.planes[0][0]
            wrapper = nibabel.nicom.dicomwrappers.wrapper_from_file(files[position][0])
            rows, columns, slices = wrapper.image_shape
            assert stack.shape == (columns, rows, slices)
            assert [number for _, number in stack.planes] == list(range(slices))
            assert files[position][1].tiles == math.ceil(math.sqrt(slices))
            theirs = LPS_TO_RAS @ wrapper.affine @ np.eye(4)[[1, 0, 2, 3]]
            np.testing.assert_allclose(stack.affine, theirs, atol=1e-5)


def test_series_in_time_has_the_volumes_of_dicom2nifti(shared_data: Path, tmp_path: Path) -> None:
    root = shared_data / "mr_vendor_series/ge_mr750_fmri_4d_150files"
    (files,) = read(root).values()
    stacks, ordered = group_one(files)
    assert [stack.shape for stack in stacks] == [(64, 64, 15)] * 10
    headers = [pydicom.dcmread(path) for path, _ in files]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = convert_dicom.dicom_array_to_nifti(headers, str(tmp_path / "x.nii"), False)["NII"]
    # Each volume's content, in world coordinates: the voxel nearest to a point inside.
    point = np.array(stacks[0].affine) @ [20.0, 30.0, 7.0, 1.0]
    theirs = tuple(np.round(np.linalg.inv(image.affine) @ point).astype(int)[:3])
    for time, stack in enumerate(stacks):
        file = headers[stack.planes[7][0]]
        assert file.pixel_array[30, 20] == np.asanyarray(image.dataobj)[(*theirs, time)]
    assert ordered == [files[position][0] for position, _ in stacks[0].planes]


Lengths = st.floats(0.2, 8.0)
Angles = st.floats(-180.0, 180.0)


@st.composite
def grids(draw: st.DrawFn) -> dict[str, Any]:
    return {
        "angles": draw(st.tuples(Angles, Angles, Angles)),
        "spacing": draw(st.tuples(Lengths, Lengths, Lengths)),
        "origin": draw(st.tuples(*[st.floats(-500, 500)] * 3)),
        "slices": draw(st.integers(3, 40)),
        "shear": draw(st.sampled_from([0.0, 0.0, 0.25, -0.4])),
    }


def cut(
    *,
    angles: tuple[float, float, float] = (0.0, 0.0, 0.0),
    spacing: tuple[float, float, float] = (0.5, 0.7, 3.0),
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0),
    slices: int = 20,
    shear: float = 0.0,
    volumes: int = 1,
    shape: tuple[int, int] = (6, 5),
    words: tuple[str, ...] = (),
) -> tuple[list[Header], NDArray[np.float64]]:
    """Headers of one file a plane, rounded as DICOM's decimal strings are, and the true affine.

    Args:
        spacing: between rows, between columns, between slices along the normal.
        shear: sideways by the distance along the normal, as under a tilted gantry.
    """
    row, column, normal = Rotation.from_euler("xyz", angles, degrees=True).as_matrix().T
    step = spacing[2] * (normal + shear * column)
    headers = []
    for time in range(volumes):
        for number in range(slices):
            at = np.asarray(origin) + number * step
            plane = Plane(
                0,
                tuple(float(f"{value:.10g}") for value in at),  # type: ignore[arg-type]
                tuple(float(f"{value:.10g}") for value in (*row, *column)),  # type: ignore[arg-type]
                (spacing[0], spacing[1]),
                words,
                (0.0, 0.0, 0.0, float(time * slices + number)),
            )
            headers.append(Header(Kind.PLANES, shape, "MR", planes=(plane,)))
    truth = np.eye(4)
    truth[:3] = np.column_stack([row * spacing[1], column * spacing[0], step, origin])
    return headers, LPS_TO_RAS @ truth


def group(headers: Sequence[Header]) -> tuple[list[Stack], list[Rejected]]:
    """And every plane is somewhere, once."""
    stacks, rejected = series.group(headers)
    placed = sorted(member for part in (*stacks, *rejected) for member in part.planes)
    assert placed == [(n, p.number) for n, header in enumerate(headers) for p in header.planes]
    return stacks, rejected


@settings(max_examples=150, deadline=None)
@given(grids(), st.randoms(use_true_random=False))
def test_any_grid_in_any_order_of_files(grid: dict[str, Any], random: Any) -> None:
    """Oblique, sheared, anisotropic: voxels lie where they lay, whatever the order of files."""
    headers, truth = cut(**grid)
    shuffled = list(range(len(headers)))
    random.shuffle(shuffled)
    ((stack,), rejected) = group([headers[number] for number in shuffled])
    assert rejected == []
    assert [shuffled[position] for position, _ in stack.planes] == list(range(len(headers)))
    np.testing.assert_allclose(stack.affine, truth, atol=1e-5)
    tilt = math.degrees(math.atan(abs(grid["shear"])))
    assert stack.note == ("" if grid["shear"] == 0 else f"gantry tilted by {tilt:.1f}°")


@settings(max_examples=60, deadline=None)
@given(grids(), st.data())
def test_a_lost_slice_is_found(grid: dict[str, Any], data: st.DataObject) -> None:
    headers, _ = cut(**{**grid, "slices": max(grid["slices"], 5)})
    lost = data.draw(st.integers(1, len(headers) - 2))
    del headers[lost]
    (stacks, (one,)) = group(headers)
    assert stacks == []
    assert one.reason is Reason.SLICES_MISSING
    assert one.detail == f"1 of {len(headers) + 1}, in 1 gaps"


@settings(max_examples=60, deadline=None)
@given(grids(), st.data())
def test_a_slice_out_of_place_is_found(grid: dict[str, Any], data: st.DataObject) -> None:
    """By 5% of the spacing or 0.1 mm, in any direction; half the tolerance passes."""
    headers, _ = cut(**{**grid, "slices": max(grid["slices"], 5)})
    moved = data.draw(st.integers(1, len(headers) - 2))
    direction = Rotation.random(random_state=moved).as_matrix()[0]
    far = max(0.05 * grid["spacing"][2], 0.1)
    for distance, fits in ((far, False), (0.4 * max(0.01 * grid["spacing"][2], 0.05), True)):
        (plane,) = headers[moved].planes
        position = tuple(np.asarray(plane.position) + distance * direction)
        shaken = list(headers)
        shaken[moved] = Header(
            Kind.PLANES,
            (6, 5),
            planes=(
                Plane(0, position, plane.orientation, plane.spacing, order=plane.order),  # type: ignore[arg-type]
            ),
        )
        stacks, rejected = group(shaken)
        assert bool(stacks) is fits
        # Among slices of 0.2 mm a shift by 0.1 mm looks like a gap.
        reasons = {Reason.SPACING_VARIES, Reason.SLICES_MISSING}
        assert {one.reason for one in rejected} <= reasons


@settings(max_examples=40, deadline=None)
@given(grids(), st.integers(2, 4), st.randoms(use_true_random=False))
def test_repeats_are_volumes_in_their_order(
    grid: dict[str, Any], volumes: int, random: Any
) -> None:
    headers, truth = cut(**grid, volumes=volumes)
    shuffled = list(range(len(headers)))
    random.shuffle(shuffled)
    stacks, rejected = group([headers[number] for number in shuffled])
    assert rejected == []
    slices = len(headers) // volumes
    found = [[shuffled[position] for position, _ in stack.planes] for stack in stacks]
    assert found == np.arange(len(headers)).reshape(volumes, slices).tolist()
    np.testing.assert_allclose(stacks[-1].affine, truth, atol=1e-5)


def test_a_repeat_of_some_places_only_is_found() -> None:
    headers, _ = cut()
    again, _ = cut()
    (stacks, (one,)) = group([*headers, again[3]])
    assert (stacks, one.reason) == ([], Reason.SLICES_REPEATED)
    assert one.detail == "1 of 20 places have up to 2 slices"


def test_a_slice_lost_from_one_of_several_volumes_is_found() -> None:
    headers, _ = cut(volumes=3)
    del headers[30]
    (stacks, (one,)) = group(headers)
    assert (stacks, one.reason) == ([], Reason.SLICES_MISSING)
    assert one.detail == "1 of 60 in 3 volumes"


def test_acquisitions_of_different_extent_are_told_apart_by_their_number() -> None:
    """Two passes of a CT in one series, the second over a part."""
    first, truth = cut()
    second, _ = cut()
    passes = [
        Header(
            Kind.PLANES,
            header.shape,
            planes=(
                Plane(0, p.position, p.orientation, p.spacing, (), (0.0, float(time), 0.0, 0.0)),
            ),
        )
        for time, headers in ((1, first), (2, second[5:15]))
        for header in headers
        for p in header.planes
    ]
    stacks, rejected = group(passes)
    assert rejected == []
    assert [stack.shape[2] for stack in stacks] == [20, 10]
    np.testing.assert_allclose(stacks[0].affine, truth)


def test_words_tell_volumes_apart() -> None:
    headers = [header for word in ("echo=2.46", "echo=4.92") for header in cut(words=(word,))[0]]
    stacks, rejected = group(headers)
    assert rejected == []
    assert [stack.words for stack in stacks] == [("echo=2.46",), ("echo=4.92",)]


def test_other_sizes_and_orientations_are_other_volumes() -> None:
    headers = [*cut()[0], *cut(shape=(8, 8))[0], *cut(angles=(90.0, 0.0, 0.0))[0]]
    stacks, rejected = group(headers)
    assert rejected == []
    assert sorted(stack.shape for stack in stacks) == [(5, 6, 20), (5, 6, 20), (8, 8, 20)]


def test_planning_views_are_no_volume() -> None:
    views = [(0.0, 0.0, 0.0), (90.0, 0.0, 0.0), (0.0, 90.0, 0.0)]
    headers = [header for angles in views for header in cut(angles=angles, slices=5)[0]]
    (stacks, (one,)) = group(headers)
    assert (stacks, one.reason) == ([], Reason.LOCALISER)


def test_views_turned_around_an_axis_are_no_volume() -> None:
    headers = [cut(angles=(0.0, 0.0, angle), slices=1)[0][0] for angle in np.linspace(0, 175, 400)]
    stacks, rejected = group(headers)
    assert stacks == []
    assert [one.reason for one in rejected] == [Reason.SLICES_DIFFER]


def test_one_odd_slice_does_not_cost_the_rest() -> None:
    headers, truth = cut()
    odd, _ = cut(shape=(64, 64), slices=1)
    ((stack,), (one,)) = group([*headers, *odd])
    assert one.reason is Reason.SLICES_DIFFER
    np.testing.assert_allclose(stack.affine, truth)


def test_orientations_within_the_tolerance_are_one() -> None:
    headers, truth = cut(slices=10)
    turned, _ = cut(slices=10, angles=(0.01, 0.0, 0.0))
    ((stack,), _) = group([*headers[:5], *turned[5:]])
    np.testing.assert_allclose(stack.affine, truth, atol=0.02)


def test_a_lone_slice_is_a_volume_and_says_so() -> None:
    headers, _ = cut(slices=1)
    ((stack,), _) = group(headers)
    assert stack.shape == (5, 6, 1)
    assert stack.note == "one slice; its thickness is taken to be 1 mm"
    np.testing.assert_allclose(np.linalg.norm(np.array(stack.affine)[:3, 2]), 1.0)


def test_a_hundred_thousand_planes() -> None:
    """Neither time nor memory grows with the square: this would not end."""
    headers, _ = cut(slices=100, volumes=1000)
    stacks, _ = group(headers)
    assert len(stacks) == 1000
