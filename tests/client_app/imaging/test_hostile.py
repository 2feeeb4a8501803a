"""Whatever lies below the root, an update ends, each file is used or has a reason, nothing leaks."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import sqlite3
import struct
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

from client_app.imaging import readers
from client_app.imaging.index import Index, update
from client_app.imaging.readers import SECONDS, Readers
from client_app.imaging.set_aside import Reason
from client_app.site import Data
from tests.client_app.imaging import fake_reader
from tests.client_app.imaging.samples import KEY, radiograph
from tests.fuzz_headers import CANARY, deflate_bomb, mutate, samples, with_canary, wrong

PYDICOM = Path(pydicom.__file__).parent / "data"


@pytest.fixture
def data(tmp_path: Path) -> Data:
    (tmp_path / "root").mkdir()
    return Data(root=tmp_path / "root", layout="dicom")


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


def unaccounted(state: Path) -> list[bytes]:
    """Paths that are neither set aside nor (part of) an image or a mask, told from the tables alone."""
    with contextlib.closing(sqlite3.connect(state / "index.sqlite")) as database:
        rows = database.execute(
            "SELECT path FROM files WHERE reason = '' AND kind NOT IN "
            "('radiograph', 'nifti', 'mask', 'segmentation', 'structure_set') AND number NOT IN "
            "(SELECT value FROM volumes, json_each(volumes.files))"
        )
        return [path for (path,) in rows]


def exhaust(index: Index) -> int:
    return sum(1 for each in (index.images(), index.masks(), index.set_aside()) for _ in each)


def files_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def linked(folder: Path, root: Path) -> list[Path]:
    """The folder's files below the root under names that say nothing."""
    files = files_below(folder)
    for number, path in enumerate(files):
        (root / f"{number:04d}{''.join(path.suffixes[-2:])}").symlink_to(path)
    return files


def identifiers(files: list[Path]) -> set[bytes]:
    found = set()
    for path in files:
        with contextlib.suppress(Exception):
            header = pydicom.dcmread(path, force=True, stop_before_pixels=True)
            for name in ("PatientName", "PatientID", "SOPInstanceUID", "SeriesInstanceUID"):
                found.add(str(header.get(name, "")).encode())
    return {value for value in found if len(value) >= 6}


@pytest.mark.parametrize("source", ["pydicom", "dicom_odd", "hippocampus_unpaired"])
def test_odd_files(data: Data, state: Path, source: str, request: pytest.FixtureRequest) -> None:
    folder = PYDICOM if source == "pydicom" else request.getfixturevalue("shared_data") / source
    files = linked(folder, data.root)
    with update(data, state=state, key=KEY) as index:
        assert index.files == index.read + sum(path.stat().st_size == 0 for path in files)
        assert index.files == len(files)
        assert exhaust(index) > 0
        too_bad = {Reason.TOO_SLOW, Reason.TOO_LARGE, Reason.UNREADABLE}
        assert not too_bad & {item.reason for item in index.set_aside()}
    assert unaccounted(state) == []
    kept = b"".join(path.read_bytes() for path in state.iterdir())
    if source != "hippocampus_unpaired":
        canaries = identifiers(files)
        assert len(canaries) > 20
        assert [value for value in canaries if value in kept] == []


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Readers, Path]]:
    root = tmp_path_factory.mktemp("mutated")
    with Readers(Data(root=root, layout="dicom"), KEY, workers=1) as readers:
        yield readers, root


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    file = tmp_path_factory.mktemp("sound") / "1.dcm"
    radiograph(file, patient=CANARY.decode(), PatientName=CANARY.decode())
    return [*samples([]), file.read_bytes()]


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(seed=st.integers(0, 2**32))
def test_mutated_files(pool: tuple[Readers, Path], sound: list[bytes], seed: int) -> None:
    """Ten files an example; `python -m tests.fuzz_headers` goes on for longer."""
    readers, root = pool
    dice = random.Random(seed)
    for number in range(10):
        (root / str(number)).write_bytes(mutate(dice.choice(sound), dice))
    answers = dict(readers.read(str(number).encode() for number in range(10)))
    assert len(answers) == 10
    assert [wrong(record) for record in answers.values()] == [""] * 10
    assert Reason.TOO_SLOW not in {record.reason for record in answers.values()}


def test_every_length_of_a_file(data: Data, state: Path) -> None:
    radiograph(data.root / "whole", CANARY.decode(), PatientName=CANARY.decode())
    whole = (data.root / "whole").read_bytes()
    for length in range(1, len(whole), 3):
        (data.root / f"{length:05d}").write_bytes(whole[:length])
    with update(data, state=state, key=KEY) as index:
        assert [image.files[0].name for image in index.images()] == ["whole"]
        assert sum(1 for _ in index.set_aside()) == len(range(1, len(whole), 3))
    assert CANARY not in (state / "index.sqlite").read_bytes()


def _element(group: int, number: int, vr: bytes, value: bytes, length: int | None = None) -> bytes:
    said = len(value) if length is None else length
    start = struct.pack("<HH", group, number) + vr
    if vr in (b"OB", b"SQ", b"UN", b"UT"):
        return start + struct.pack("<HI", 0, said) + value
    return start + struct.pack("<H", said) + value


def _file(path: Path, body: bytes, syntax: str = ExplicitVRLittleEndian) -> None:
    uid = syntax.encode() + b"\0" * (len(syntax) % 2)
    meta = _element(2, 0x10, b"UI", uid)
    length = _element(2, 0, b"UL", struct.pack("<I", len(meta)))
    path.write_bytes(bytes(128) + b"DICM" + length + meta + body)


def _plain_header(folder: Path) -> bytes:
    """The data set of a sound radiograph up to its pixels, explicit little endian."""
    radiograph(folder / "plain.dcm", CANARY.decode(), PatientName=CANARY.decode())
    content = (folder / "plain.dcm").read_bytes()
    (folder / "plain.dcm").unlink()
    start = content.index(b"\x08\x00\x16\x00UI")
    return content[start : content.index(b"\xe0\x7f\x10\x00")]


def test_files_made_to_harm(data: Data, state: Path, tmp_path: Path) -> None:
    root, header = data.root, _plain_header(tmp_path)
    private = struct.pack("<HH", 0x7777, 0x1010) + b"OB" + struct.pack("<HI", 0, 1 << 30)
    bomb = deflate_bomb(header + private, 1.0)
    assert len(bomb) < 2 << 20
    _file(root / "bomb", bomb, DeflatedExplicitVRLittleEndian)
    _file(
        root / "bomb of 16 GB", deflate_bomb(header + private, 16.0), DeflatedExplicitVRLittleEndian
    )
    nested = b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    _file(root / "nested", header[:60] + nested * 50_000)
    _file(root / "nested and cut", nested * 1000)
    _file(root / "claims 4 GB", header + _element(0x7FE0, 0x10, b"OB", b"1234", 0xFFFFFFF0))
    _file(root / "claims 4 GB of text", _element(8, 5, b"UT", b"x", 0xFFFFFFFE) + header)
    _file(root / "no end", header + _element(0x7FE0, 0x10, b"OB", b"", 0xFFFFFFFF))
    for name, frames in (
        ("frames", b"9999999999"),
        ("no frames", b"-1"),
        ("odd frames", b"1e308 "),
    ):
        _file(root / name, header + _element(0x28, 8, b"IS", frames))
    _file(root / "a million elements", header + _element(0x29, 0x10, b"LO", b"xx") * 1_000_000)
    (root / "gigabytes of nothing").touch()
    os.truncate(root / "gigabytes of nothing", 1 << 34)  # sparse
    (root / "preamble of nothing").write_bytes(bytes(128) + b"DICM")
    os.truncate(root / "preamble of nothing", 1 << 34)
    (root / "empty").touch()
    os.mkfifo(root / "pipe")
    (root / "loop").symlink_to(root)
    (root / "self").symlink_to("self")
    Path(os.fsdecode(os.fsencode(root) + b"/\xff\xfe\n")).write_text(CANARY.decode() * 50)
    sound = root / "sound.dcm"
    radiograph(sound)

    tracemalloc.start()
    began = time.monotonic()
    with update(data, state=state, key=KEY, workers=2) as index:
        took = time.monotonic() - began
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert [image.files[0] for image in index.images()].count(sound) == 1
        reasons = {item.path.name: item.reason for item in index.set_aside()}
    assert peak < 50 << 20
    assert unaccounted(state) == []
    assert CANARY not in (state / "index.sqlite").read_bytes()
    assert reasons["empty"] == Reason.EMPTY
    assert reasons["pipe"] == Reason.NOT_A_FILE
    assert reasons["self"] == Reason.UNREADABLE
    assert reasons["bomb of 16 GB"] in {Reason.TOO_LARGE, Reason.TOO_SLOW, Reason.CORRUPT}
    harmful = {"nested and cut", "claims 4 GB", "no end", "frames", "gigabytes of nothing"}
    assert harmful <= reasons.keys()
    # Not a measurement: that no file was waited for longer than it may take, all of them together.
    assert took < len(reasons) * SECONDS + 60


def test_a_pipe_in_a_files_place_is_not_waited_for(data: Data) -> None:
    """It was a file when the folder was walked."""
    os.mkfifo(data.root / "pipe")
    with Readers(data, KEY, workers=1, seconds=0.5) as readers:
        ((_, record),) = readers.read([b"pipe"])
    assert record.reason in {Reason.TOO_SLOW, Reason.NOT_A_FILE, Reason.NOT_DICOM}


def test_nifti_made_to_harm(tmp_path: Path, state: Path) -> None:
    data = Data(root=tmp_path / "root", layout="nifti")
    images = data.root / "images"
    images.mkdir(parents=True)
    nibabel.save(
        nibabel.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4)), images / "sound.nii"
    )
    whole = (images / "sound.nii").read_bytes()
    header = bytearray(whole[:352])
    header[40:56] = struct.pack("<8h", 3, 32767, 32767, 32767, 1, 1, 1, 1)
    (images / "bomb.nii.gz").write_bytes(deflate_bomb(bytes(header), 4.0, gzip=True))
    (images / "claims.nii").write_bytes(bytes(header) + bytes(100))
    for length in range(0, 360, 7):
        (images / f"cut{length}.nii").write_bytes(whole[:length])
    dice = random.Random(1)
    for number in range(100):
        (images / f"{number}.nii").write_bytes(mutate(whole, dice))
    with update(data, state=state, key=KEY, workers=1) as index:
        assert images / "sound.nii" in [image.files[0] for image in index.images()]
        reasons = {item.path.name: item.reason for item in index.set_aside()}
        assert exhaust(index) == index.files
    assert reasons["claims.nii"] in {Reason.TRUNCATED, Reason.TOO_LARGE, Reason.CORRUPT}
    assert "bomb.nii.gz" in reasons
    assert unaccounted(state) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_modes_that_forbid_reading(data: Data, state: Path) -> None:
    radiograph(data.root / "closed.dcm")
    (data.root / "closed.dcm").chmod(0)
    with update(data, state=state, key=KEY) as index:
        (item,) = index.set_aside()
    assert (item.reason, item.detail) == (Reason.UNREADABLE, "EACCES")
    (data.root / "closed.dcm").chmod(0o600)
    with update(data, state=state, key=KEY) as index:
        assert sum(1 for _ in index.images()) == 1


def test_memory_does_not_grow_with_the_number_of_files(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Headers are made up from the files' names; all else is real."""
    monkeypatch.setattr(readers, "READER", fake_reader.GENERATING)
    peaks = []
    for files in (2_000, 20_000):
        shutil.rmtree(data.root)
        for number in range(files):
            fake_reader.generate(data.root, number)
        tracemalloc.start()
        with update(data, state=tmp_path / f"{files}", key=KEY, workers=2) as index:
            assert sum(len(image.files) for image in index.images()) == files
            _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        peaks.append(peak)
    assert peaks[1] - peaks[0] < 2_000_000, "a hundred bytes a file"


def test_canary_is_found_where_it_is(tmp_path: Path) -> None:
    """The canary of these tests reaches the header, or its absence would prove nothing."""
    radiograph(tmp_path / "1.dcm", "0123456789", PatientName="Somebody^Else")
    (tmp_path / "2.dcm").write_bytes(with_canary((tmp_path / "1.dcm").read_bytes()))
    header = pydicom.dcmread(tmp_path / "2.dcm")
    assert str(header.PatientID).startswith(CANARY.decode())
    assert str(header.PatientName).startswith(CANARY.decode())
