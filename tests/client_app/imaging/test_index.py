from __future__ import annotations

import logging
import multiprocessing
import os
import random
import shutil
import signal
import sqlite3
import time
from collections import Counter
from pathlib import Path

import pydicom
import pytest

from client_app.imaging import dicom
from client_app.imaging.header import Header
from client_app.imaging.index import Index, update
from client_app.imaging.pseudonym import pseudonym
from client_app.imaging.set_aside import Reason
from federation.schema import ConfigError, Data
from tests.client_app.imaging.samples import KEY, OTHER_KEY, radiograph


@pytest.fixture
def data(tmp_path: Path) -> Data:
    (tmp_path / "root").mkdir()
    return Data(root=tmp_path / "root", layout="dicom")


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


def reasons(index: Index, data: Data) -> dict[str, Reason]:
    return {str(item.path.relative_to(data.root)): item.reason for item in index.set_aside}


def test_what_a_radiograph_tells(data: Data, state: Path) -> None:
    radiograph(
        data.root / "a/1.dcm",
        " P1 ",
        PatientSex="F",
        PatientAge="045Y",
        Manufacturer="SIEMENS Healthineers",
    )
    (entry,) = update(data, state=state, key=KEY).entries
    assert entry.patient == pseudonym(KEY, "P1")
    assert entry.shape == (8, 8)
    assert entry.attributes == {"sex": "female", "age_band": "40-59", "manufacturer": "siemens"}
    assert str(entry.path) == "a/1.dcm"


def test_unchanged_files_are_not_read_again(
    data: Data, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def counted(path: Path) -> Header:
        read.append(path.name)
        return original(path)

    original = dicom.read_header
    monkeypatch.setattr(dicom, "read_header", counted)
    for number in range(5):
        radiograph(data.root / f"{number}.dcm", f"P{number}")
    (data.root / "notes.txt").write_text("not an image")

    first = update(data, state=state, key=KEY)
    assert len(read) == first.read == 6
    read.clear()
    second = update(data, state=state, key=KEY)
    assert read == []
    assert (second.entries, second.set_aside, second.read) == (first.entries, first.set_aside, 0)

    radiograph(data.root / "1.dcm", "somebody else")
    os.utime(data.root / "2.dcm", ns=(1, 1))
    radiograph(data.root / "new.dcm", "P9")
    (data.root / "3.dcm").unlink()
    third = update(data, state=state, key=KEY)
    assert sorted(read) == ["1.dcm", "2.dcm", "new.dcm"]
    assert {str(entry.path) for entry in third.entries} == {
        "0.dcm",
        "1.dcm",
        "2.dcm",
        "4.dcm",
        "new.dcm",
    }
    assert third.entries[1].patient == pseudonym(KEY, "somebody else")


def test_progress_counts_files_that_are_read(data: Data, state: Path) -> None:
    for number in range(3):
        radiograph(data.root / f"{number}.dcm")
    told: list[tuple[int, int]] = []
    update(data, state=state, key=KEY, progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (3, 3)
    told.clear()
    update(data, state=state, key=KEY, progress=lambda done, total: told.append((done, total)))
    assert told == []


def test_another_key_reads_everything_again(data: Data, state: Path) -> None:
    radiograph(data.root / "1.dcm", "P1")
    update(data, state=state, key=KEY)
    again = update(data, state=state, key=OTHER_KEY)
    assert again.read == 1
    assert again.entries[0].patient == pseudonym(OTHER_KEY, "P1")


def test_each_bad_file_has_its_reason_and_stops_nothing(data: Data, state: Path) -> None:
    root = data.root
    radiograph(root / "good.dcm")
    (root / "empty.dcm").touch()
    (root / "text.dcm").write_text("patient CANARY-ID was here\n" * 20)
    (root / "zeros").write_bytes(bytes(1000))
    (root / "prefix_only").write_bytes(bytes(128) + b"DICM")
    (root / "garbage.dcm").write_bytes(bytes(128) + b"DICM" + random.Random(0).randbytes(500))
    whole = (root / "good.dcm").read_bytes()
    (root / "truncated.dcm").write_bytes(whole[:-50])
    (root / "headless.dcm").write_bytes(whole[:-200])
    radiograph(root / "nobody.dcm", "  ")
    radiograph(root / "no_id.dcm", PatientID=None)
    radiograph(root / "colour.dcm", SamplesPerPixel=3, PhotometricInterpretation="RGB")
    radiograph(root / "frames.dcm", NumberOfFrames=4)
    radiograph(root / "ct.dcm", Modality="CT")
    radiograph(root / "report.dcm", Modality="SR", Rows=None, Columns=None)
    radiograph(root / "no_pixels.dcm", PixelData=None)
    os.mkfifo(root / "pipe")
    (root / "dangling").symlink_to(root / "nowhere")

    index = update(data, state=state, key=KEY)
    assert [str(entry.path) for entry in index.entries] == ["good.dcm"]
    found = reasons(index, data)
    assert found.pop("garbage.dcm") in {Reason.CORRUPT, Reason.NOT_DICOM}  # by its first bytes
    assert found == {
        "empty.dcm": Reason.EMPTY,
        "text.dcm": Reason.NOT_DICOM,
        "zeros": Reason.NOT_DICOM,
        "prefix_only": Reason.NOT_DICOM,
        "truncated.dcm": Reason.TRUNCATED,
        "headless.dcm": Reason.CORRUPT,
        "nobody.dcm": Reason.NO_PATIENT,
        "no_id.dcm": Reason.NO_PATIENT,
        "colour.dcm": Reason.COLOUR,
        "frames.dcm": Reason.SEVERAL_FRAMES,
        "ct.dcm": Reason.NOT_A_RADIOGRAPH,
        "report.dcm": Reason.NOT_AN_IMAGE,
        "no_pixels.dcm": Reason.TRUNCATED,
        "pipe": Reason.NOT_A_FILE,
        "dangling": Reason.UNREADABLE,
    }
    (truncated,) = (item for item in index.set_aside if item.path.name == "truncated.dcm")
    assert truncated.detail == "78 of 128 bytes of pixel data"


def test_file_without_preamble_is_read(data: Data, state: Path) -> None:
    radiograph(data.root / "whole.dcm")
    content = (data.root / "whole.dcm").read_bytes()
    (data.root / "whole.dcm").unlink()
    (data.root / "IM0001").write_bytes(content[132:])
    assert len(update(data, state=state, key=KEY).entries) == 1


def test_file_that_may_not_be_read_is_tried_again(
    data: Data, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    radiograph(data.root / "1.dcm")

    def refuse(path: Path) -> Header:
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(dicom, "read_header", refuse)
        index = update(data, state=state, key=KEY)
    assert [(item.reason, item.detail) for item in index.set_aside] == [
        (Reason.UNREADABLE, "EACCES")
    ]
    assert len(update(data, state=state, key=KEY).entries) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_folder_that_may_not_be_read_has_a_row(data: Data, state: Path) -> None:
    radiograph(data.root / "closed/1.dcm")
    (data.root / "closed").chmod(0)
    try:
        index = update(data, state=state, key=KEY)
    finally:
        (data.root / "closed").chmod(0o700)
    assert reasons(index, data) == {"closed": Reason.UNREADABLE}


def test_links_are_followed_once(data: Data, state: Path, tmp_path: Path) -> None:
    radiograph(data.root / "b/1.dcm")
    radiograph(tmp_path / "elsewhere/2.dcm")
    (data.root / "a_link_to_b").symlink_to(data.root / "b")
    (data.root / "b/loop").symlink_to(data.root)
    (data.root / "away").symlink_to(tmp_path / "elsewhere")
    index = update(data, state=state, key=KEY)
    assert [str(entry.path) for entry in index.entries] == ["away/2.dcm", "b/1.dcm"]


def test_names_that_are_not_text(data: Data, state: Path) -> None:
    radiograph(data.root / "plain.dcm")
    odd = os.fsencode(data.root) + b"/\xff\xfe.dcm"
    (data.root / "plain.dcm").rename(os.fsdecode(odd))
    (entry,) = update(data, state=state, key=KEY).entries
    assert os.fsencode(str(data.root / entry.path)) == odd


def test_no_identifier_reaches_the_index_or_a_log(
    data: Data,
    state: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    recwarn: pytest.WarningsRecorder,
) -> None:
    caplog.set_level(logging.DEBUG)
    canaries = {
        "PatientID": "CANARYID77",
        "PatientName": "Canaryname^Zoe",
        "PatientBirthDate": "19511113",
        "InstitutionName": "Canaryhospital",
        "Manufacturer": "Canarymaker",
        "AccessionNumber": "CANARYACC",
    }
    header = radiograph(data.root / "1.dcm", **canaries)
    radiograph(data.root / "2.dcm", **canaries, PatientAge="CANARY", NumberOfFrames=3)
    radiograph(data.root / "3.dcm", **canaries, SOPClassUID="CANARY.not.a.uid", Modality="CANARY")
    content = (data.root / "1.dcm").read_bytes()
    (data.root / "4.dcm").write_bytes(content.replace(b"CS\x02\x00DX", b"CS\x99\x00DX"))
    caplog.clear()  # pydicom quotes values when it writes, too
    capfd.readouterr()
    recwarn.clear()
    index = update(data, state=state, key=KEY)
    assert index.read == 4
    assert len(index.entries) == 1
    kept = b"".join(path.read_bytes() for path in state.iterdir())
    said = caplog.text + "".join(capfd.readouterr()) + "".join(str(w.message) for w in recwarn)
    said += repr(index)
    for canary in (*canaries.values(), header.SOPInstanceUID):
        assert canary.encode() not in kept
        assert canary not in said
    assert "canary" not in said.lower()


@pytest.mark.parametrize("suffix", ["", "-wal"])
def test_damaged_index_is_made_anew(data: Data, state: Path, suffix: str) -> None:
    radiograph(data.root / "1.dcm")
    first = update(data, state=state, key=KEY)
    (state / f"index.sqlite{suffix}").write_bytes(b"damaged " * 1000)
    assert update(data, state=state, key=KEY).entries == first.entries


def test_index_of_another_version_is_made_anew(data: Data, state: Path) -> None:
    radiograph(data.root / "1.dcm")
    state.mkdir()
    database = sqlite3.connect(state / "index.sqlite")
    database.execute("CREATE TABLE files (path TEXT)")
    database.execute("PRAGMA user_version=99")
    database.close()
    assert len(update(data, state=state, key=KEY).entries) == 1


def _update_for_ever(data: Data, state: Path) -> None:
    while True:
        for path in data.root.iterdir():
            path.touch()
        update(data, state=state, key=KEY)


def test_survives_being_killed(data: Data, state: Path) -> None:
    for number in range(40):
        radiograph(data.root / f"{number:02d}.dcm", f"P{number}")
    expected = update(data, state=state, key=KEY).entries
    for moment in (0.05, 0.13, 0.21):
        process = multiprocessing.get_context("fork").Process(
            target=_update_for_ever, args=(data, state)
        )
        process.start()
        time.sleep(moment)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert update(data, state=state, key=KEY).entries == expected


def test_root_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.root"):
        update(Data(root=tmp_path / "gone", layout="dicom"), state=tmp_path / "state", key=KEY)
    with pytest.raises(ConfigError, match="images/"):
        update(Data(root=tmp_path, layout="nifti"), state=tmp_path / "state", key=KEY)


def test_odd_files_are_read_or_set_aside(shared_data: Path, state: Path) -> None:
    folder = shared_data / "dicom_odd"
    data = Data(root=folder, layout="dicom")
    index = update(data, state=state, key=KEY)
    files = sum(path.is_file() for path in folder.rglob("*"))
    assert len(index.entries) + len(index.set_aside) == files
    assert {entry.path.name for entry in index.entries} >= {"Fake_MONOHR1.dcm", "dx_image.dcm"}
    allowed = {
        Reason.SEVERAL_FRAMES,
        Reason.NOT_AN_IMAGE,
        Reason.NOT_A_RADIOGRAPH,
        Reason.COLOUR,
        Reason.NO_PATIENT,
    }
    assert {item.reason for item in index.set_aside} <= allowed, "these files are all sound"


def test_mr_series_are_not_radiographs(shared_data: Path, state: Path) -> None:
    data = Data(root=shared_data / "mr_vendor_series", layout="dicom")
    index = update(data, state=state, key=KEY)
    assert index.entries == ()
    assert Counter(item.reason for item in index.set_aside)[Reason.NOT_A_RADIOGRAPH] > 50


def test_files_of_pydicom_are_read_or_set_aside(state: Path) -> None:
    folder = Path(pydicom.__file__).parent / "data"
    data = Data(root=folder, layout="dicom")
    index = update(data, state=state, key=KEY)
    files = sum(path.is_file() for path in folder.rglob("*"))
    assert files > 50
    assert len(index.entries) + len(index.set_aside) == files


def test_every_truncation_of_a_file_is_survived(data: Data, state: Path, tmp_path: Path) -> None:
    radiograph(tmp_path / "whole.dcm")
    whole = (tmp_path / "whole.dcm").read_bytes()
    for length in range(1, len(whole), 7):
        (data.root / f"{length:05d}.dcm").write_bytes(whole[:length])
    index = update(data, state=state, key=KEY)
    assert index.entries == ()
    assert len(index.set_aside) == len(range(1, len(whole), 7))


def test_copies_have_the_same_instance(data: Data, state: Path) -> None:
    radiograph(data.root / "1.dcm")
    shutil.copy(data.root / "1.dcm", data.root / "copy.dcm")
    one, other = update(data, state=state, key=KEY).entries
    assert one.instance == other.instance != ""
