"""Voxels against those of SimpleITK, dicom2nifti and nibabel, on real series."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dicom2nifti.settings
import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
import torch
from dicom2nifti.convert_dicom import dicom_array_to_nifti
from hypothesis import given, settings
from hypothesis import strategies as st

from client_app.imaging import voxels
from client_app.imaging.header import Kind
from client_app.imaging.image import Image, Mask
from client_app.imaging.set_aside import Reason, Unfit, silenced
from client_app.imaging.voxels import read_image, read_mask
from tests.client_app.imaging.samples import radiograph

EYE = tuple(tuple(float(i == j) for j in range(4)) for i in range(4))
TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
SERIES = [
    "siemens_espree_1.5T_t1post",
    "ge_mr750_fmri_4d_150files",
    "toshiba_galan_3T_dti_first40",
    "philips_pcasl_classic",
    "hcrop_Study3",
]


def planes(files: Sequence[Path], frames: int = 1, **fields: Any) -> Image:
    """An image whose slices are `frames` frames of each file in turn; where they lie is not asked."""
    header = pydicom.dcmread(files[0], stop_before_pixels=True, force=True)
    places = tuple((file, frame) for file in range(len(files)) for frame in range(frames))
    given = {
        "shape": (int(header.Columns), int(header.Rows), len(places)),
        "planes": places,
        "affine": EYE,
    }
    return Image(Kind.PLANES, "p", tuple(files), **{**given, **fields})


def volumes(folder: Path) -> list[Image]:
    """Sort a series by place along the normal, and repeats of a place by instance number."""
    headers = {p: pydicom.dcmread(p, stop_before_pixels=True) for p in sorted(folder.iterdir())}
    at: dict[float, list[Path]] = defaultdict(list)
    for path, header in sorted(headers.items(), key=lambda item: int(item[1].InstanceNumber)):
        along, down = np.array(header.ImageOrientationPatient, float).reshape(2, 3)
        place = np.cross(along, down) @ np.array(header.ImagePositionPatient, float)
        at[round(float(place), 3)].append(path)
    result = []
    for files in zip(*(at[place] for place in sorted(at)), strict=True):
        first, last = (np.array(headers[files[i]].ImagePositionPatient, float) for i in (0, -1))
        down_mm, along_mm = map(float, headers[files[0]].PixelSpacing)
        affine = np.eye(4)
        affine[:3, 0], affine[:3, 1] = along * along_mm, down * down_mm
        affine[:3, 2], affine[:3, 3] = (last - first) / (len(files) - 1), first
        rows = tuple(map(tuple, (TO_RAS @ affine).tolist()))
        result.append(planes(files, affine=rows))
    return result


def of_simple_itk(files: Sequence[Path]) -> tuple[np.ndarray, np.ndarray]:
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(file) for file in files])
    image = reader.Execute()
    affine = np.eye(4)
    directions = np.array(image.GetDirection()).reshape(3, 3)
    affine[:3, :3], affine[:3, 3] = directions * image.GetSpacing(), image.GetOrigin()
    return sitk.GetArrayFromImage(image).transpose(2, 1, 0), TO_RAS @ affine


def of_dicom2nifti(files: Sequence[Path]) -> nibabel.Nifti1Image:
    dicom2nifti.settings.disable_validate_slicecount()
    dicom2nifti.settings.disable_validate_slice_increment()
    dicom2nifti.settings.disable_validate_orthogonal()
    datasets = [pydicom.dcmread(file) for file in files]
    return dicom_array_to_nifti(datasets, None, reorient_nifti=False)["NII"]


def failure(image: Image) -> Reason:
    with silenced(), pytest.raises(Unfit) as raised:
        read_image(image)
    return raised.value.reason


def odd(shared_data: Path, name: str) -> Path:
    own = Path(pydicom.__path__[0]) / "data/test_files" / name
    return own if own.exists() else shared_data / "dicom_odd/pydicom_data" / name


# Real series: what others read.


@pytest.mark.parametrize("name", SERIES)
def test_voxels_and_affine_of_simple_itk(shared_data: Path, name: str) -> None:
    images = volumes(shared_data / "mr_vendor_series" / name)
    assert len(images) == (10 if name.startswith("ge") else 1)
    for image in images:
        got = read_image(image)
        want, affine = of_simple_itk(image.files)
        assert got.dtype == torch.float32 and got.affine.dtype == torch.float64
        assert got.shape == (1, *image.shape)
        np.testing.assert_array_equal(got[0].numpy(), want.astype(np.float32))
        np.testing.assert_allclose(got.affine.numpy(), affine, atol=2e-4)


@pytest.mark.parametrize("name", SERIES)
def test_voxels_and_affine_of_dicom2nifti(shared_data: Path, name: str) -> None:
    images = volumes(shared_data / "mr_vendor_series" / name)
    other = of_dicom2nifti([file for image in images for file in image.files])
    data = np.asarray(other.dataobj)
    data = data.reshape(*data.shape[:3], -1)
    for number, image in enumerate(images):
        want = nibabel.as_closest_canonical(nibabel.Nifti1Image(data[..., number], other.affine))
        voxels = read_image(image)
        got = nibabel.as_closest_canonical(nibabel.Nifti1Image(voxels[0].numpy(), voxels.affine))
        np.testing.assert_allclose(np.asarray(got.dataobj), np.asarray(want.dataobj), rtol=1e-5)
        np.testing.assert_allclose(got.affine, want.affine, atol=2e-3)


def test_tiles_of_a_mosaic_are_its_slices(shared_data: Path) -> None:
    files = sorted((shared_data / "mr_vendor_series/siemens_trio_mosaic_fmri").iterdir())
    want = np.asarray(of_dicom2nifti(files).dataobj)
    assert want.shape == (64, 64, 35, 2)
    fields: dict[str, Any] = {"shape": want.shape[:3], "tiles": 6}
    got = [read_image(planes([file], 35, **fields))[0].numpy() for file in files]
    order = [0, 1] if np.array_equal(got[0], want[..., 0]) else [1, 0]
    for volume, position in zip(got, order, strict=True):
        np.testing.assert_array_equal(volume, want[..., position])
    narrow = {**fields, "tiles": 5}
    assert failure(planes(files[:1], 35, **narrow)) is Reason.LOAD_FAILED
    beyond = planes(files[:1], 37, shape=(64, 64, 37), tiles=6)
    assert failure(beyond) is Reason.LOAD_FAILED


def test_classic_and_enhanced_files_measure_the_same(shared_data: Path) -> None:
    root = shared_data / "mr_vendor_series"
    (classic,) = volumes(root / "philips_pcasl_classic")
    enhanced = planes(list((root / "philips_pcasl_enhanced").iterdir()), 40)
    first, second = read_image(classic)[0].numpy(), read_image(enhanced)[0].numpy()
    if not np.array_equal(first[..., 0], second[..., 0]):
        second = second[..., ::-1]
    np.testing.assert_array_equal(first, second)
    stored = pydicom.dcmread(classic.files[0]).pixel_array  # a slope of 0.1 is not left out
    np.testing.assert_allclose(first[..., 0], stored.T * 0.1, rtol=1e-6)


@pytest.mark.parametrize("name", SERIES[:1] + SERIES[2:])
def test_from_the_files_headers_to_the_same_volume(shared_data: Path, name: str) -> None:
    """Through `dicom.read_header` and `series.group`, which find order and affine by themselves."""
    series = pytest.importorskip("client_app.imaging.series")
    dicom = pytest.importorskip("client_app.imaging.dicom")
    (want,) = volumes(shared_data / "mr_vendor_series" / name)
    files = sorted(want.files)
    headers = [dicom.read_header(file) for file in files]
    stacks, rejected = series.group(headers)
    assert len(stacks) == 1 and not rejected
    stack = stacks[0]
    image = planes(files, shape=stack.shape, planes=stack.planes, affine=stack.affine)
    got, expected = read_image(image), read_image(want)
    np.testing.assert_allclose(got.affine.numpy(), expected.affine.numpy(), atol=2e-4)
    np.testing.assert_array_equal(got.numpy(), expected.numpy())


def test_monochrome1_twin_is_the_same_radiograph(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "dicom_odd/torchxrayvision"
    fake = pydicom.dcmread(folder / "Fake_MONOHR1.dcm")
    stored = fake.pixel_array.astype(float)
    image = Image(Kind.RADIOGRAPH, "p", (folder / "Fake_MONOHR1.dcm",), stored.shape)
    got = read_image(image)
    np.testing.assert_array_equal(got[0].numpy(), stored.max() + stored.min() - stored)
    np.testing.assert_array_equal(got.affine.numpy(), np.eye(3))
    (other,) = (file for file in folder.iterdir() if file.name != "Fake_MONOHR1.dcm")
    twin = Image(
        Kind.RADIOGRAPH,
        "p",
        (other,),
        pydicom.dcmread(other).pixel_array.shape,
        pixel_spacing=(0.2, 0.1),
    )
    plain = read_image(twin)
    np.testing.assert_array_equal(plain[0].numpy(), pydicom.dcmread(other).pixel_array)
    np.testing.assert_array_equal(plain.affine.numpy(), np.diag([0.2, 0.1, 1]))
    assert np.corrcoef(got[0].numpy().ravel(), stored.ravel())[0, 1] == pytest.approx(-1)


# What values mean.


def slices(tmp_path: Path, stored: np.ndarray, **elements: Any) -> Image:
    """Classic CT slices of 16 bits, one file each; a list gives each slice its own element."""
    files = []
    for number, plane in enumerate(stored):
        own = {k: v[number] if isinstance(v, list) else v for k, v in elements.items()}
        files.append(tmp_path / f"{number}.dcm")
        radiograph(
            files[-1],
            Rows=plane.shape[0],
            Columns=plane.shape[1],
            BitsStored=own.pop("BitsStored", 16),
            HighBit=own.pop("HighBit", 15),
            PixelRepresentation=own.pop("PixelRepresentation", 1),
            PixelData=plane.tobytes(),
            Modality="CT",
            **own,
        )
    return planes(files)


def test_each_slice_has_its_own_slope(tmp_path: Path) -> None:
    stored = np.arange(24, dtype="<i2").reshape(3, 2, 4) - 5
    image = slices(tmp_path, stored, RescaleSlope=["1", "0.5", "3"], RescaleIntercept=[0, -7, 2])
    want = stored * np.array([1, 0.5, 3])[:, None, None] + np.array([0, -7, 2])[:, None, None]
    np.testing.assert_array_equal(read_image(image)[0].numpy(), want.transpose(2, 1, 0))


def test_padding_takes_the_lowest_other_value_of_the_volume(tmp_path: Path) -> None:
    stored = np.random.default_rng(0).integers(-1000, 1000, (3, 4, 5)).astype("<i2")
    stored[:, 0], stored[0, 1:], stored[2, 2, 2] = -2000, -2000, -1001
    image = slices(tmp_path, stored, RescaleSlope=2, RescaleIntercept=-24, PixelPaddingValue=-2000)
    want = np.where(stored == -2000, -1001, stored) * 2 - 24
    np.testing.assert_array_equal(read_image(image)[0].numpy(), want.transpose(2, 1, 0))
    nothing = slices(tmp_path, np.full((2, 3, 3), -2000, "<i2"), PixelPaddingValue=-2000)
    assert failure(nothing) is Reason.LOAD_FAILED


def test_bits_that_are_not_stored_do_not_count_and_monochrome1_does_not_turn(
    tmp_path: Path,
) -> None:
    stored = np.random.default_rng(0).integers(0, 4096, (2, 4, 5)).astype("<u2")
    image = slices(
        tmp_path,
        stored | 0xA000,
        BitsStored=12,
        HighBit=11,
        PixelRepresentation=0,
        PhotometricInterpretation="MONOCHROME1",
    )
    np.testing.assert_array_equal(read_image(image)[0].numpy(), stored.transpose(2, 1, 0))
    shifted = slices(tmp_path, stored << 4, BitsStored=12, HighBit=15, PixelRepresentation=0)
    assert failure(shifted) is Reason.NOT_SUPPORTED


def test_float_pixels_and_those_that_are_not_finite(shared_data: Path, tmp_path: Path) -> None:
    source = odd(shared_data, "parametric_map_float.dcm")
    dataset = pydicom.dcmread(source)
    got = read_image(planes([source]))[0, :, :, 0].numpy()
    np.testing.assert_array_equal(got, dataset.pixel_array.T)
    pixels = dataset.pixel_array.copy()
    pixels[3, 4] = np.nan
    dataset.FloatPixelData = pixels.astype("<f4").tobytes()
    dataset.save_as(tmp_path / "nan.dcm")
    assert failure(planes([tmp_path / "nan.dcm"])) is Reason.NOT_FINITE


def test_only_the_frames_asked_for(shared_data: Path) -> None:
    source = odd(shared_data, "emri_small_RLE.dcm")
    every = read_image(planes([source], 10))
    image = planes([source], shape=(64, 64, 3), planes=((0, 7), (0, 2), (0, 5)))
    torch.testing.assert_close(read_image(image).as_tensor(), every.as_tensor()[..., [7, 2, 5]])
    beyond = planes([source], shape=(64, 64, 1), planes=((0, 10),))
    assert failure(beyond) is Reason.LOAD_FAILED


# Masks.


def _nifti(path: Path, values: np.ndarray, affine: np.ndarray) -> Path:
    nibabel.save(nibabel.Nifti1Image(values, affine), path)
    return path


def _grid(shape: tuple[int, ...], affine: np.ndarray) -> Image:
    return Image(Kind.NIFTI, "p", (), shape, affine=tuple(map(tuple, affine.tolist())))


def test_a_mask_on_the_images_grid_is_taken_as_it_is(tmp_path: Path) -> None:
    classes = np.random.default_rng(0).integers(0, 4, (5, 6, 7)).astype(np.uint8)
    affine = np.array([[0, -2, 0, 5], [1.5, 0, 0, -3], [0, 0, 3, 9], [0, 0, 0, 1.0]])
    nudged = affine + np.array([[0, 0, 0, 4e-4]] * 3 + [[0] * 4])
    path = _nifti(tmp_path / "mask.nii.gz", classes, nudged)
    got = read_mask(Mask(Kind.MASK, path), _grid((5, 6, 7), affine))
    assert got.dtype == torch.uint8
    np.testing.assert_array_equal(got[0].numpy(), classes)
    np.testing.assert_array_equal(got.affine.numpy(), affine)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_mask_on_another_grid_is_brought_onto_the_images(
    seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """SimpleITK's nearest neighbour gives the same classes under any rotation, mirror and spacing."""
    random = np.random.default_rng(seed)

    def affine(shape: tuple[int, ...]) -> np.ndarray:
        turned = np.linalg.qr(random.normal(size=(3, 3)))[0]
        turned[:, 0] *= np.sign(np.linalg.det(turned))  # ITK knows no mirror; permuting axes is one
        result = np.eye(4)
        result[:3, :3] = turned * random.uniform(0.5, 3, 3)
        result[:3, 3] = random.uniform(-2, 2, 3) - result[:3, :3] @ (np.array(shape) / 2)
        return result

    def itk(values: np.ndarray, affine: np.ndarray) -> sitk.Image:
        image = sitk.GetImageFromArray(values.transpose(2, 1, 0))
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        image.SetSpacing(spacing.tolist())
        image.SetOrigin(affine[:3, 3].tolist())
        image.SetDirection((affine[:3, :3] / spacing).ravel().tolist())
        return image

    shape, other = ((9, 10, 11), (12, 8, 10))
    own, wanted = affine(other), affine(shape)
    classes = random.integers(0, 3, other).astype(np.uint8)
    path = _nifti(tmp_path_factory.mktemp("mask") / "mask.nii", classes, own)
    own = nibabel.load(path).affine  # in the file it is float32
    got = read_mask(Mask(Kind.MASK, path), _grid(shape, wanted))[0].numpy()
    resampled = sitk.Resample(
        itk(classes, own),
        itk(np.zeros(shape, np.uint8), wanted),
        sitk.Transform(),
        sitk.sitkNearestNeighbor,
    )
    want = sitk.GetArrayFromImage(resampled).transpose(2, 1, 0)
    assert (got != want).mean() < 0.003  # centres within 1e-5 voxels of a border
    assert got.any()


def test_masks_that_are_none(tmp_path: Path) -> None:
    image = _grid((4, 4, 4), np.eye(4))
    ones = np.ones((4, 4, 4), np.uint8)
    away = np.eye(4)
    away[0, 3] = 4.5
    lost = np.zeros((9, 4, 4), np.uint8)
    lost[8] = 1
    cases = {
        Reason.LABEL_UNKNOWN: (ones * 1.5, np.eye(4)),
        Reason.GEOMETRY_DIFFERS: (ones, away),
        Reason.NOT_FINITE: (ones * np.nan, np.eye(4)),
    }
    cases_twice = [*cases.items(), (Reason.GEOMETRY_DIFFERS, (lost, np.eye(4)))]
    cases_twice += [
        (Reason.LABEL_UNKNOWN, (ones.astype(np.int16) * v, np.eye(4))) for v in (-1, 256)
    ]
    for number, (reason, (values, affine)) in enumerate(cases_twice):
        path = _nifti(tmp_path / f"{number}.nii.gz", values, affine)
        with pytest.raises(Unfit) as raised:
            read_mask(Mask(Kind.MASK, path), image)
        assert raised.value.reason is reason, number


@pytest.mark.parametrize("kind", [Kind.SEGMENTATION, Kind.STRUCTURE_SET])
def test_dicom_masks_are_read_on_the_images_grid(
    kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {}

    def read(path: Path, classes: object, *, shape: object, affine: np.ndarray) -> np.ndarray:
        asked.update(path=path, classes=classes, shape=shape, affine=affine.tolist())
        return np.full((3, 4, 5), 2, np.uint8)

    module = voxels.segmentation if kind is Kind.SEGMENTATION else voxels.structure_set
    monkeypatch.setattr(module, "read", read)
    affine = np.diag([1.0, 2, 3, 1])
    got = read_mask(Mask(kind, Path("m"), ((0, 2), (1,))), _grid((3, 4, 5), affine))
    assert got.shape == (1, 3, 4, 5) and got.dtype == torch.uint8 and (got == 2).all()
    expected = {"path": Path("m"), "classes": ((0, 2), (1,)), "shape": (3, 4, 5)}
    assert asked == {**expected, "affine": affine.tolist()}
