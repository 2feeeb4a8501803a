"""Grey values of radiographs written here, and NIfTI against nibabel and SimpleITK."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.spatialimages import HeaderDataError
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

from federation import pixels
from federation.pixels import NotFinite, TooLarge, radiograph, read_nifti, read_radiograph


def stored(*, bits: int, signed: bool, seed: int = 0) -> np.ndarray:
    low = -(2 ** (bits - 1)) if signed else 0
    values = np.random.default_rng(seed).integers(low, low + 2**bits, (9, 7))
    values[0, :2] = low, low + 2**bits - 1
    return values


def dataset(
    values: np.ndarray, *, bits: int = 16, signed: bool = False, garbage: int = 0, **tags: Any
) -> Dataset:
    """A digital radiograph of 16 allocated bits; `garbage` fills the bits that are not stored."""
    result = Dataset()
    result.file_meta = FileMetaDataset()
    result.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    result.SOPClassUID = DigitalXRayImageStorageForPresentation
    result.SOPInstanceUID = generate_uid()
    result.Rows, result.Columns = values.shape
    result.SamplesPerPixel, result.PhotometricInterpretation = 1, "MONOCHROME2"
    result.BitsAllocated, result.BitsStored, result.HighBit = 16, bits, bits - 1
    result.PixelRepresentation = int(signed)
    mask = (1 << bits) - 1
    words = (values.astype(np.int64) & mask) | (garbage & ~mask & 0xFFFF)
    result.PixelData = words.astype("<u2").tobytes()
    for name, value in tags.items():
        setattr(result, name, value)
    return result


# Radiographs.


@pytest.mark.parametrize("garbage", [0, 0xFFFF, 0xA5A5])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", [8, 10, 12, 15, 16])
def test_only_stored_bits_count(bits: int, signed: bool, garbage: int) -> None:
    values = stored(bits=bits, signed=signed)
    got = radiograph(dataset(values, bits=bits, signed=signed, garbage=garbage))
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, values)


@pytest.mark.parametrize("slope", [1, 0.25, -2])
def test_monochrome1_is_mirrored_within_its_own_range(slope: float) -> None:
    values = stored(bits=12, signed=False)
    rescale = {"RescaleSlope": slope, "RescaleIntercept": -100}
    two = radiograph(dataset(values, **rescale))
    np.testing.assert_allclose(two, values * slope - 100)
    one = radiograph(dataset(values, **rescale, PhotometricInterpretation="MONOCHROME1"))
    np.testing.assert_allclose(one, two.max() + two.min() - two)
    # The other way of writing one image, its stored values inverted, gives one image.
    twin = dataset(4095 - values, **rescale, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_allclose(radiograph(twin), two, atol=1e-3)


@pytest.mark.parametrize("interpretation", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize(("padding", "limit"), [(0, None), (4095, None), (4095, 4000), (0, 40)])
def test_padding_is_the_darkest_and_changes_nothing_else(
    interpretation: str, padding: int, limit: int | None
) -> None:
    values = stored(bits=12, signed=False).clip(300, 3000)
    plain = radiograph(dataset(values, PhotometricInterpretation=interpretation))
    padded = values.copy()
    padded[:2] = padding if limit is None else (padding + limit) // 2
    tags = {"PixelPaddingValue": padding, "PhotometricInterpretation": interpretation}
    if limit is not None:
        tags["PixelPaddingRangeLimit"] = limit
    got = radiograph(dataset(padded, **tags))
    assert (got[:2] == got[2:].min()).all()
    offset = got[2:] - plain[2:]  # the mirror lies elsewhere where the extremes were padded over
    assert np.ptp(offset) == 0


def test_padding_with_the_wrong_sign_and_nothing_but_padding(tmp_path: Path) -> None:
    values = stored(bits=12, signed=True)
    values[3] = -2048
    header = dataset(values, bits=16, signed=True)
    header.add_new("PixelPaddingValue", "US", 65536 - 2048)
    header.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    got = radiograph(pydicom.dcmread(tmp_path / "a.dcm"))
    assert (got[3] == got[values != -2048].min()).all()
    everywhere = dataset(np.full((3, 3), 7), PixelPaddingValue=7)
    np.testing.assert_array_equal(radiograph(everywhere), np.full((3, 3), 7))


@pytest.mark.parametrize(("depth", "dtype"), [(16, "<u2"), (12, "<u2"), (8, "<u2"), (8, "u1")])
@pytest.mark.parametrize("first", [0, 100, -50])
def test_modality_tables(depth: int, dtype: str, first: int, tmp_path: Path) -> None:
    table = (np.arange(256) * 255 // 256)[::-1].astype(dtype)
    item = Dataset()
    item.ModalityLUTType = "US"
    item.add_new("LUTDescriptor", "SS", [256, first, depth])
    item.add_new("LUTData", "OW", table.tobytes())
    values = stored(bits=10, signed=True)
    header = dataset(values, bits=10, signed=True, ModalityLUTSequence=[item])
    header.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    got = radiograph(pydicom.dcmread(tmp_path / "a.dcm"))
    want = [[float(table[min(max(v - first, 0), 255)]) for v in row] for row in values]
    np.testing.assert_array_equal(got, want)


def test_no_window_and_what_cannot_be_used() -> None:
    values = stored(bits=12, signed=False)
    windowed = dataset(values, WindowCenter=100, WindowWidth=10, VOILUTFunction="SIGMOID")
    np.testing.assert_array_equal(radiograph(windowed), values)
    for slope in (0, "nan"):
        broken = dataset(values)
        broken.add_new("RescaleSlope", "DS" if slope == 0 else "FD", 0 if slope == 0 else np.nan)
        with pytest.raises(ValueError, match="slope"):
            radiograph(broken)
    short = Dataset()
    short.LUTDescriptor = [256, 0, 16]
    short.add_new("LUTData", "OW", bytes(20))
    with pytest.raises(ValueError, match="table"):
        radiograph(dataset(values, ModalityLUTSequence=[short]))
    with pytest.raises(ValueError, match="greyscale"):
        radiograph(dataset(values, PhotometricInterpretation="PALETTE COLOR"))


def test_a_radiograph_has_its_spacing(tmp_path: Path) -> None:
    values = stored(bits=12, signed=False)
    header = dataset(values, ImagerPixelSpacing=[0.2, 0.1])
    header.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    got = read_radiograph(tmp_path / "a.dcm")
    assert got.shape == (1, 9, 7) and got.dtype == torch.float32
    np.testing.assert_array_equal(got.affine.numpy(), np.diag([0.2, 0.1, 1]))
    dataset(values).save_as(tmp_path / "b.dcm", enforce_file_format=True)
    np.testing.assert_array_equal(read_radiograph(tmp_path / "b.dcm").affine.numpy(), np.eye(3))


# NIfTI.

DTYPES = ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "f4", "f8"]


@settings(max_examples=60, deadline=None)
@given(
    dtype=st.sampled_from(DTYPES),
    order=st.sampled_from("<>"),
    two=st.booleans(),
    compressed=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
    slope=st.floats(1e-3, 1e3) | st.floats(-1e3, -1e-3) | st.just(0.0),
    inter=st.floats(-1e4, 1e4),
    trailing=st.sampled_from([(), (1,), (1, 1)]),
    unit=st.sampled_from(["mm", "meter", "micron", "unknown"]),
    form=st.sampled_from(["sform", "qform", "both"]),
)
def test_nifti_equals_nibabel(
    tmp_path_factory: pytest.TempPathFactory,
    dtype: str,
    order: str,
    two: bool,
    compressed: bool,
    seed: int,
    slope: float,
    inter: float,
    trailing: tuple[int, ...],
    unit: str,
    form: str,
) -> None:
    """Every stored type, order, scale, orientation: nibabel's voxels, and its affine in mm."""
    random = np.random.default_rng(seed)
    shape = (*random.integers(2, 6, 3), *trailing)
    if dtype[0] == "f":
        raw = random.normal(size=shape).astype(dtype)
    else:
        ends = np.iinfo(dtype)
        raw = random.integers(ends.min, ends.max, shape, dtype=dtype, endpoint=True)
    turned = np.linalg.qr(random.normal(size=(3, 3)))[0] * random.uniform(0.3, 4, 3)
    affine = nibabel.affines.from_matvec(turned, random.uniform(-200, 200, 3))
    kind = nibabel.Nifti2Image if two else nibabel.Nifti1Image
    header = kind.header_class(endianness=order)
    header.set_data_dtype(np.dtype(dtype).newbyteorder(order))
    image = kind(raw, None, header)
    if form != "qform":
        image.set_sform(affine, code=1)
    if form != "sform":
        image.set_qform(affine, code=1)
    image.header.set_slope_inter(1, 0)
    image.header.set_xyzt_units(unit)
    path = tmp_path_factory.mktemp("nifti") / ("a.nii.gz" if compressed else "a.nii")
    image.to_filename(path)
    # Stored values are raw; the scale is then written into the file, as scanners' software does.
    content = bytearray(gzip.decompress(path.read_bytes()) if compressed else path.read_bytes())
    at, size = (176, 8) if two else (112, 4)
    scale = np.array([slope, inter], dtype=f"{image.header.endianness}f{size}")
    content[at : at + 2 * size] = scale.tobytes()
    path.write_bytes(gzip.compress(bytes(content)) if compressed else bytes(content))

    slope, inter = (float(number) for number in scale)
    want = raw.astype(np.float64) * slope + inter if slope else raw.astype(np.float64)
    got = read_nifti(path)
    assert got.dtype == torch.float32 and got.shape == (1, *shape[:3])
    np.testing.assert_allclose(
        got[0].numpy(),
        want.reshape(shape[:3]),
        rtol=2e-6,
        atol=2e-6 * (abs(want).max() + abs(inter)),
    )
    np.testing.assert_allclose(
        got[0].numpy(), nibabel.load(path).get_fdata().reshape(shape[:3]), rtol=1e-5, atol=1e-37
    )
    mm = {"mm": 1, "meter": 1000, "micron": 0.001, "unknown": 1}[unit]
    expected = np.diag([mm, mm, mm, 1]) @ nibabel.load(path).affine
    np.testing.assert_allclose(got.affine.numpy(), expected)
    assert got.affine.dtype == torch.float64


def test_real_volumes_equal_simple_itk(shared_data: Path) -> None:
    files = sorted((shared_data / "hippocampus/images").glob("*.nii.gz"))[:12]
    for file in files:
        got = read_nifti(file)
        image = sitk.ReadImage(str(file), sitk.sitkFloat32)
        np.testing.assert_array_equal(
            got[0].numpy(), sitk.GetArrayFromImage(image).transpose(2, 1, 0)
        )
        affine = np.eye(4)
        directions = np.array(image.GetDirection()).reshape(3, 3)
        affine[:3, :3], affine[:3, 3] = directions * image.GetSpacing(), image.GetOrigin()
        np.testing.assert_allclose(got.affine.numpy(), np.diag([-1, -1, 1, 1]) @ affine, atol=1e-5)


def test_a_volume_that_cannot_be_trusted_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def file(values: np.ndarray, name: str = "a.nii") -> Path:
        nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / name)
        return tmp_path / name

    ones = np.ones((3, 4, 5), np.float32)
    for value in (np.nan, np.inf):
        ones[1, 2, 3] = value
        with pytest.raises(NotFinite):
            read_nifti(file(ones))
    with pytest.raises(ValueError, match=r"\(3, 4, 5, 2\)"):
        read_nifti(file(np.ones((3, 4, 5, 2), np.float32)))
    with pytest.raises(ValueError, match="real"):
        read_nifti(file(np.ones((3, 4, 5), np.complex64)))
    with pytest.raises(ValueError, match="no single file"):
        (tmp_path / "b.nii").write_bytes(b"hello" * 200)
        read_nifti(tmp_path / "b.nii")
    nowhere = nibabel.Nifti1Image(np.ones((3, 4, 5), np.uint8), None)
    nowhere.set_sform(None), nowhere.set_qform(None)
    nibabel.save(nowhere, tmp_path / "c.nii")
    with pytest.raises(ValueError, match="left and right"):
        read_nifti(tmp_path / "c.nii")
    monkeypatch.setattr(pixels, "LARGEST_VOXELS", 59)
    with pytest.raises(TooLarge):
        read_nifti(file(np.ones((3, 4, 5), np.uint8)))


def test_a_flipped_byte_in_a_compressed_file_is_noticed(tmp_path: Path) -> None:
    """The checksum stands behind the voxels, where a reader that stops at them never looks."""
    values = np.random.default_rng(0).integers(0, 255, (20, 20, 20)).astype(np.uint8)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "a.nii.gz")
    whole = (tmp_path / "a.nii.gz").read_bytes()
    for position in range(600, len(whole) - 8, len(whole) // 12):
        damaged = bytearray(whole)
        damaged[position] ^= 0x10
        (tmp_path / "a.nii.gz").write_bytes(damaged)
        with pytest.raises((gzip.BadGzipFile, zlib.error, EOFError, ValueError, HeaderDataError)):
            read_nifti(tmp_path / "a.nii.gz")


def test_hippocampi_go_through_unchanged(shared_data: Path, tmp_path: Path) -> None:
    """Image and mask: what is read, written again and read by nibabel is what the file held."""
    files = sorted((shared_data / "hippocampus").glob("*/*.nii.gz"))
    assert len(files) == 246
    for file in files[::12]:
        ours = read_nifti(file)
        copy = tmp_path / "copy.nii.gz"
        nibabel.save(nibabel.Nifti1Image(ours[0].numpy(), ours.affine.numpy()), copy)
        once, again = nibabel.load(file), nibabel.load(copy)
        np.testing.assert_array_equal(again.get_fdata(), once.get_fdata())
        np.testing.assert_allclose(again.affine, once.affine, atol=1e-6)
        np.testing.assert_allclose(read_nifti(copy).affine, ours.affine, atol=1e-6)
