"""Headers of NIfTI files: geometry, and what is noticed without reading voxels."""

from __future__ import annotations

import gzip
import random
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.arrayproxy import ArrayProxy
from nibabel.spatialimages import HeaderDataError

from client_app.imaging.header import Kind
from client_app.imaging.nifti import read_header
from client_app.imaging.set_aside import Reason, Unfit, silenced
from tests.client_app.imaging.samples import volume


def reason(path: Path) -> Reason:
    with silenced(), pytest.raises(Unfit) as raised:
        read_header(path)
    assert str(path.parent) not in raised.value.detail
    return raised.value.reason


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "A.NII.GZ"])
def test_shape_and_affine(tmp_path: Path, kind: type, name: str) -> None:
    affine = np.array([[0, -2, 0.1, 5], [1.5, 0, 0, -3], [0, 0.2, 3, 9], [0, 0, 0, 1]])
    image = kind(np.zeros((4, 5, 6, 1), np.int16), affine)
    nibabel.save(image, tmp_path / "x.nii")
    content = (tmp_path / "x.nii").read_bytes()
    (tmp_path / name).write_bytes(content if name.endswith("nii") else gzip.compress(content))
    header = read_header(tmp_path / name)
    assert header.kind is Kind.NIFTI
    assert header.shape == (4, 5, 6)
    np.testing.assert_allclose(header.affine, affine, rtol=1e-6)
    assert header.patient_id is None and not header.attributes


def test_content_tells_compression_not_the_name(tmp_path: Path) -> None:
    volume(tmp_path / "a.nii")
    content = (tmp_path / "a.nii").read_bytes()
    (tmp_path / "b.nii.gz").write_bytes(content)
    (tmp_path / "c.nii").write_bytes(gzip.compress(content))
    assert read_header(tmp_path / "b.nii.gz") == read_header(tmp_path / "c.nii")


def test_a_series_of_volumes_keeps_its_fourth_axis(tmp_path: Path) -> None:
    volume(tmp_path / "a.nii.gz", (4, 5, 6, 7, 1))
    assert read_header(tmp_path / "a.nii.gz").shape == (4, 5, 6, 7)


def test_real_headers(shared_data: Path) -> None:
    for folder in ("hippocampus/images", "hippocampus/labels"):
        for file in sorted((shared_data / folder).glob("*.nii.gz")):
            header, image = read_header(file), nibabel.load(file)
            assert header.shape == image.shape
            np.testing.assert_allclose(header.affine, image.affine)


def test_bad_files(tmp_path: Path) -> None:
    volume(tmp_path / "good.nii")
    whole = (tmp_path / "good.nii").read_bytes()
    compressed = gzip.compress(whole)
    noise = random.Random(0).randbytes(400)
    cases = {
        "empty.nii.gz": (b"", Reason.EMPTY),
        "text.nii.gz": (b"not gzip, not NIfTI", Reason.CORRUPT),
        "readme.txt": (b"hello", Reason.NOT_NIFTI),
        "pair.img": (whole, Reason.NOT_NIFTI),
        "short.nii": (whole[:-10], Reason.TRUNCATED),
        "header_cut.nii": (whole[:300], Reason.CORRUPT),
        "header_cut.nii.gz": (compressed[:40], Reason.CORRUPT),
        "nonsense.nii.gz": (gzip.compress(noise), Reason.CORRUPT),
        "pair.nii": (whole[:344] + b"ni1\0" + whole[348:], Reason.CORRUPT),
        "unit.nii": (whole[:123] + b"\7" + whole[124:], Reason.NO_GEOMETRY),
    }
    for name, (content, expected) in cases.items():
        (tmp_path / name).write_bytes(content)
        assert reason(tmp_path / name) is expected, name


def test_voxels_of_other_kinds_and_no_geometry(tmp_path: Path) -> None:
    colour = np.zeros((3, 4, 5), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nibabel.save(nibabel.Nifti1Image(colour, np.eye(4)), tmp_path / "colour.nii")
    assert reason(tmp_path / "colour.nii") is Reason.COLOUR
    waves = np.zeros((3, 4, 5), np.complex64)
    nibabel.save(nibabel.Nifti1Image(waves, np.eye(4)), tmp_path / "complex.nii")
    assert reason(tmp_path / "complex.nii") is Reason.NOT_SUPPORTED
    flat = nibabel.Nifti1Image(np.zeros((3, 4, 5), "u1"), None)
    flat.set_sform(np.diag([1.0, 1, 0, 1]), code=1)
    nibabel.save(flat, tmp_path / "flat.nii")
    assert reason(tmp_path / "flat.nii") is Reason.NO_GEOMETRY
    lost = nibabel.Nifti1Image(np.zeros((3, 4, 5), "u1"), None)
    lost.set_sform(None)
    lost.set_qform(None)
    nibabel.save(lost, tmp_path / "lost.nii")
    assert reason(tmp_path / "lost.nii") is Reason.NO_GEOMETRY


@settings(max_examples=40, deadline=None)
@given(share=st.floats(0, 0.999), level=st.sampled_from([1, 6, 9]))
def test_a_compressed_file_cut_short_is_noticed_wherever_it_is_cut(
    tmp_path_factory: pytest.TempPathFactory, share: float, level: int
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    values = np.random.default_rng(0).integers(0, 9, (30, 30, 20)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), folder / "a.nii")
    whole = gzip.compress((folder / "a.nii").read_bytes(), level)
    (folder / "a.nii.gz").write_bytes(whole)
    assert read_header(folder / "a.nii.gz").shape == (30, 30, 20)
    (folder / "a.nii.gz").write_bytes(whole[: int(share * len(whole))])
    assert reason(folder / "a.nii.gz") in (Reason.TRUNCATED, Reason.CORRUPT, Reason.EMPTY)


def test_compressed_files_in_parts_and_with_a_tail(tmp_path: Path) -> None:
    volume(tmp_path / "a.nii", (10, 10, 10))
    whole = (tmp_path / "a.nii").read_bytes()
    parts = gzip.compress(whole[:500]) + gzip.compress(whole[500:]) + gzip.compress(b"")
    (tmp_path / "parts.nii.gz").write_bytes(parts)
    (tmp_path / "tail.nii.gz").write_bytes(gzip.compress(whole + bytes(100)))
    for name in ("parts.nii.gz", "tail.nii.gz"):
        assert read_header(tmp_path / name) == read_header(tmp_path / "a.nii")


def test_claims_cost_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Axes, offset and extensions that a header claims are not believed."""
    volume(tmp_path / "a.nii")
    whole = bytearray((tmp_path / "a.nii").read_bytes())
    huge = whole.copy()
    huge[42:48] = np.array([30000] * 3, "<i2").tobytes()
    far = whole.copy()
    far[108:112] = np.float32(3e9).tobytes()
    many = whole.copy()
    many[40:50] = np.array([4, 900, 900, 900, 30000], "<i2").tobytes()
    for name, content, expected in (
        ("huge.nii.gz", huge, Reason.TOO_LARGE),
        ("far.nii.gz", far, Reason.CORRUPT),
        ("many.nii.gz", many, Reason.TRUNCATED),
    ):
        (tmp_path / name).write_bytes(gzip.compress(bytes(content)))
        assert reason(tmp_path / name) is expected, name

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("voxels or extensions were read")

    extension = whole[:348] + b"\1\0\0\0" + np.array([0x7FFFFFF0, 4], "<i4").tobytes() + bytes(8)
    extension[108:112] = np.float32(368).tobytes()
    (tmp_path / "extension.nii").write_bytes(bytes(extension) + whole[352:])
    monkeypatch.setattr(ArrayProxy, "__array__", fail)
    monkeypatch.setattr(nibabel.nifti1.Nifti1Extensions, "from_fileobj", fail)
    assert read_header(tmp_path / "extension.nii").shape == (4, 5, 6)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_headers(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Any bytes changed in the header: a header, `Unfit`, or nibabel's own refusal."""
    folder = tmp_path_factory.mktemp("damaged")
    volume(folder / "a.nii")
    content = bytearray((folder / "a.nii").read_bytes())
    for position, value in data.draw(
        st.lists(st.tuples(st.integers(0, 351), st.integers(0, 255)), min_size=1, max_size=6)
    ):
        content[position] = value
    (folder / "a.nii").write_bytes(content)
    with silenced():
        try:
            header = read_header(folder / "a.nii")
        except (Unfit, HeaderDataError):
            return
    assert len(header.shape) >= 2 and np.isfinite(header.affine).all()


def test_a_file_that_may_not_be_read_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_header(tmp_path / "absent.nii")
