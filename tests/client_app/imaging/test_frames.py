"""One image in several encodings, and files that mean harm."""

from __future__ import annotations

import shutil
import struct
import tracemalloc
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.encaps import encapsulate, generate_frames
from pydicom.filereader import read_file_meta_info
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEG2000Lossless

from client_app.imaging.header import Kind
from client_app.imaging.image import Image
from client_app.imaging.set_aside import Reason, Unfit, silenced
from client_app.imaging.voxels import read_image
from tests.client_app.imaging.samples import radiograph
from tests.client_app.imaging.test_voxels import EYE, failure, odd, planes

LIVER = "liver_nonbyte_aligned"
TWINS = {
    ("emri_small.dcm", 10): ["RLE", "big_endian", "jpeg_2k_lossless", "jpeg_ls_lossless"],
    ("MR_small.dcm", 1): [
        *("RLE", "bigendian", "expb", "implicit", "padded"),
        *("jp2klossless", "jpeg_ls_lossless"),
    ],
    ("liver_j2k.dcm", 3): ["deflate", "rle"],
    (f"{LIVER}_j2k.dcm", 3): ["deflate", "rle"],
}


@pytest.mark.parametrize(("original", "frames"), TWINS)
def test_lossless_twins(shared_data: Path, original: str, frames: int) -> None:
    want = read_image(planes([odd(shared_data, original)], frames))
    assert want.std() > 0
    for ending in TWINS[original, frames]:
        twin = f"{original.removesuffix('.dcm').removesuffix('_j2k')}_{ending}.dcm"
        got = read_image(planes([odd(shared_data, twin)], frames))
        np.testing.assert_array_equal(got.numpy(), want.numpy(), err_msg=twin)


@pytest.mark.parametrize("name", ["jpg1.dcm", "jpg2.dcm", "jp2k1.dcm", "jp2k2.dcm"])
def test_compressed_mosaics_of_simple_itk(shared_data: Path, name: str) -> None:
    file = shared_data / "mr_vendor_series/siemens_trio_mosaic_jpeg_and_j2k" / name
    got = read_image(planes([file], 36, shape=(86, 86, 36), tiles=6))[0].numpy()
    want = sitk.GetArrayFromImage(sitk.ReadImage(str(file)))[0]
    np.testing.assert_array_equal(got[..., 7], want[86:172, 86:172].T)
    np.testing.assert_array_equal(got[..., 35], want[430:, 430:].T)
    assert got[..., 7].std() > 0


def test_a_deflated_file_is_read_and_a_bomb_is_not(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, path = odd(shared_data, "MR_small.dcm"), tmp_path / "deflated.dcm"
    dataset = pydicom.dcmread(source)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.save_as(path)
    got = read_image(planes([path]))
    np.testing.assert_array_equal(got.numpy(), read_image(planes([source])).numpy())

    start = 132 + 12 + read_file_meta_info(path).FileMetaInformationGroupLength
    deflater = zlib.compressobj(9, wbits=-15)
    bomb = deflater.compress(bytes(1 << 24)) + deflater.flush()
    path.write_bytes(path.read_bytes()[:start] + bomb)
    monkeypatch.setattr("client_app.imaging.frames.LARGEST_VOXELS", 1 << 16)
    assert failure(replace(planes([source]), files=(path,))) is Reason.TOO_LARGE


def test_claims_are_checked_before_anything_is_allocated(tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    header = radiograph(path, Rows=65535, Columns=65535)
    tracemalloc.start()
    try:
        huge = Image(Kind.RADIOGRAPH, "p", (path,), (65535, 65535))
        assert failure(huge) is Reason.TOO_LARGE
        assert failure(replace(huge, shape=(8, 8))) is Reason.TOO_LARGE
        volume = Image(Kind.NIFTI, "p", (tmp_path / "no.nii",), (2048, 2048, 2048), affine=EYE)
        assert failure(volume) is Reason.TOO_LARGE
        header.Rows = header.Columns = 30000  # 1.8 GB that the file does not hold
        header.save_as(path)
        assert failure(replace(huge, shape=(30000, 30000))) is Reason.TRUNCATED
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("components", [1, 16000])
@pytest.mark.parametrize("boxed", [False, True])
def test_a_compressed_stream_cannot_claim_more_than_the_header(
    shared_data: Path, tmp_path: Path, boxed: bool, components: int
) -> None:
    """Decoders believe the stream: this one would take gigabytes."""
    dataset = pydicom.dcmread(odd(shared_data, "MR_small_jp2klossless.dcm"))
    stream = bytearray(next(generate_frames(dataset.PixelData, number_of_frames=1)))
    start = stream.index(b"\xff\x4f\xff\x51")
    edge = 60000 if components == 1 else 64
    struct.pack_into(">LLLL", stream, start + 8, edge, edge, 0, 0)
    struct.pack_into(">H", stream, start + 40, components)
    code = bytes(stream[start:])
    if boxed:  # a box before it shows what the header says
        decoy = b"\xff\x4f\xff\x51" + struct.pack(">HHLLLL", 41, 0, 64, 64, 0, 0) + bytes(18)
        box = struct.pack(">L4s", 8 + len(decoy), b"uuid") + decoy
        code = b"\0\0\0\x0cjP  \r\n\x87\n" + box + struct.pack(">L4s", 0, b"jp2c") + code
    dataset.PixelData = encapsulate([code])
    dataset.file_meta.TransferSyntaxUID = JPEG2000Lossless
    dataset.save_as(tmp_path / "bomb.dcm")
    assert failure(planes([tmp_path / "bomb.dcm"])) is Reason.CORRUPT


@pytest.mark.parametrize("kind", ["jp2klossless", "jpeg_ls_lossless"])
@pytest.mark.parametrize("share", [0.3, 0.7, 0.99])
def test_a_stream_that_is_cut_short_is_not_filled_up(
    shared_data: Path, tmp_path: Path, kind: str, share: float
) -> None:
    """Left to themselves decoders of JPEG 2000 give an image of what there is."""
    dataset = pydicom.dcmread(odd(shared_data, f"MR_small_{kind}.dcm"))
    stream = next(generate_frames(dataset.PixelData, number_of_frames=1))
    dataset.PixelData = encapsulate([stream[: int(len(stream) * share)]])
    dataset.save_as(tmp_path / "short.dcm")
    assert failure(planes([tmp_path / "short.dcm"])) is Reason.TRUNCATED


@pytest.mark.parametrize("kind", ["RLE", "jp2klossless", "jpeg_ls_lossless"])
def test_a_table_of_offsets_cannot_claim_gigabytes(
    shared_data: Path, tmp_path: Path, kind: str
) -> None:
    source = odd(shared_data, f"MR_small_{kind}.dcm")
    whole = source.read_bytes()
    table = whole.index(b"\xfe\xff\x00\xe0", whole.rindex(b"\xe0\x7f\x10\x00"))
    path = tmp_path / "a.dcm"
    path.write_bytes(whole[: table + 4] + struct.pack("<L", 0xFFFFFF00) + whole[table + 8 :])
    assert failure(replace(planes([source]), files=(path,))) is Reason.CORRUPT


def test_an_unknown_compression_is_named(shared_data: Path) -> None:
    with silenced(), pytest.raises(Unfit, match="JPEG Extended") as raised:
        read_image(planes([odd(shared_data, "JPGExtended.dcm")]))
    assert raised.value.reason is Reason.COMPRESSION_UNKNOWN


@pytest.mark.parametrize(
    "name",
    [
        "MR_small.dcm",
        "MR_small_RLE.dcm",
        "MR_small_jp2klossless.dcm",
        "MR_small_jpeg_ls_lossless.dcm",
        "JPEG2000.dcm",
        "image_dfl.dcm",
        "emri_small_RLE.dcm",
        "mr_vendor_series/siemens_trio_mosaic_jpeg_and_j2k/jpg1.dcm",
    ],
)
def test_damaged_files_are_set_aside_or_read(shared_data: Path, tmp_path: Path, name: str) -> None:
    """Cut short or with flipped bytes: the right shape and finite numbers, or `Unfit`; no crash.

    What is said of them is short and holds no path: a damaged header once put all pixels into it.
    """
    source = shared_data / name if "/" in name else odd(shared_data, name)
    path = tmp_path / "damaged.dcm"
    image = planes([source])
    whole, random, failed = source.read_bytes(), np.random.default_rng(0), 0
    with silenced():
        for trial in range(60):
            damaged = bytearray(whole)
            if trial % 3 == 0:
                del damaged[int(random.integers(0, len(whole))) :]
            else:
                # Half of them near the start, where headers and the streams' own headers are.
                end = len(whole) if trial % 2 else min(len(whole), 4000)
                for position in random.integers(0, end, 1 + trial % 7):
                    damaged[position] = random.integers(0, 256)
            path.write_bytes(damaged)
            try:
                voxels = read_image(replace(image, files=(path,)))
            except Unfit as unfit:
                failed += 1
                assert str(tmp_path) not in unfit.detail and len(unfit.detail) < 100
            else:
                assert voxels.shape == (1, *image.shape) and np.isfinite(voxels.numpy()).all()
    assert failed >= 10


def test_a_file_that_has_gone(tmp_path: Path, shared_data: Path) -> None:
    shutil.copy(odd(shared_data, "MR_small.dcm"), tmp_path / "a.dcm")
    image = planes([tmp_path / "a.dcm"])
    (tmp_path / "a.dcm").unlink()
    assert failure(image) is Reason.UNREADABLE


def test_lossless_jpeg_that_ended_the_process(shared_data: Path, tmp_path: Path) -> None:
    """GDCM aborts on another JFIF revision and on 241 bits; the first has its pixels nevertheless."""
    source = shared_data / "mr_vendor_series/siemens_trio_mosaic_jpeg_and_j2k/jpg1.dcm"
    whole, image = source.read_bytes(), planes([source])
    stream = whole.rindex(b"\xff\xd8\xff")
    path = tmp_path / "a.dcm"
    path.write_bytes(whole[: stream + 11] + b"\xa0" + whole[stream + 12 :])
    damaged = replace(image, files=(path,))
    np.testing.assert_array_equal(read_image(damaged).numpy(), read_image(image).numpy())
    path.write_bytes(whole[: stream + 24] + b"\xf1" + whole[stream + 25 :])
    assert failure(damaged) is Reason.CORRUPT
