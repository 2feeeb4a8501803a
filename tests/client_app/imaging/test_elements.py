"""Every element of every sample means what pydicom says it means."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from pathlib import Path

import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.multival import MultiValue
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MRImageStorage,
)

from client_app.imaging import elements
from client_app.imaging.elements import Elements, open_elements
from client_app.imaging.set_aside import Reason, Unfit

TEXTS = frozenset({"CS", "UI", "DA", "TM", "LO", "SH", "AS"})
NUMBERS = frozenset({"US", "SS", "UL", "SL", "FL", "FD", "IS", "DS"})


def compare(theirs: Dataset, ours: Elements) -> int:
    """How many values were compared."""
    compared = 0
    for element in theirs:
        tag = int(element.tag)
        if tag == 0x00080005 or element.tag.group >= 0x7FE0 or element.tag.group == 0xFFFE:
            continue
        assert tag in ours, element.tag
        if element.VR == "SQ":
            items = ours.items(tag)
            assert len(items) == len(element.value)
            compared += sum(map(compare, element.value, items))
            continue
        values = element.value
        values = list(values) if isinstance(values, (MultiValue, list)) else [values]
        values = [] if values in ([None], [""]) else values
        if element.VR == "SS" and not element.tag.is_private and dictionary_VR(tag) == "US or SS":
            continue  # the header's own PixelRepresentation says which; none of these is ever read
        if element.VR in NUMBERS and not element.tag.is_private and element.tag.element:
            with contextlib.suppress(ValueError):  # `1A` is no number; pydicom keeps the text
                assert ours.numbers(tag) == tuple(map(float, values)), element.tag
        elif element.VR in TEXTS:
            words = ours.words(tag) if len(values) != 1 else (ours.text(tag),)
            assert words == tuple(str(value).strip(" \0") for value in values), element.tag
        compared += 1
    return compared


def compare_file(path: Path) -> int:
    theirs = pydicom.dcmread(path, stop_before_pixels=True, force=True)
    with path.open("rb") as file:
        return compare(theirs, open_elements(file, path.stat().st_size))


# Ends in the middle of a sequence, which pydicom keeps the beginning of.
CUT_SHORT = ("rtplan_truncated.dcm",)


def test_pydicoms_own_samples() -> None:
    """Those in the wheel, among them all character sets."""
    folder = Path(pydicom.__file__).parent / "data"
    compared = 0
    for path in sorted(folder.rglob("*.dcm")):
        try:
            pydicom.dcmread(path)
        except Exception:
            continue
        if path.name not in CUT_SHORT:
            compared += compare_file(path)
    assert compared > 4000


def test_odd_files(shared_data: Path) -> None:
    files = [path for path in sorted((shared_data / "dicom_odd").rglob("*")) if path.is_file()]
    assert sum(map(compare_file, files)) > 20_000


def test_one_file_of_each_scanner(shared_data: Path) -> None:
    folders = sorted((shared_data / "mr_vendor_series").iterdir())
    assert sum(compare_file(sorted(folder.iterdir())[0]) for folder in folders) > 1000


def nested(depth: int) -> Dataset:
    item = Dataset()
    item.CodeMeaning = "deep"
    for _ in range(depth):
        outer = Dataset()
        outer.AnatomicRegionSequence = [item]
        item = outer
    return item


def written(
    dataset: Dataset, syntax: str = ExplicitVRLittleEndian, *, undefined: bool = False
) -> bytes:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
    meta.MediaStorageSOPClassUID = MRImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    if undefined:
        for element in dataset.iterall():
            if element.VR == "SQ":
                element.is_undefined_length = True
                for item in element.value:
                    item.is_undefined_length_sequence_item = True
    buffer = io.BytesIO()
    dataset.file_meta = meta
    dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def opened(content: bytes) -> Elements:
    return open_elements(io.BytesIO(content), len(content))


@pytest.mark.parametrize("undefined", [False, True])
@pytest.mark.parametrize(
    "syntax",
    [
        ImplicitVRLittleEndian,
        ExplicitVRLittleEndian,
        ExplicitVRBigEndian,
        DeflatedExplicitVRLittleEndian,
    ],
)
def test_every_encoding(syntax: str, undefined: bool) -> None:
    dataset = nested(5)
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.PatientID, dataset.Rows = "Müller ", 512
    dataset.ImagePositionPatient = [1.5, -2.5, 1e-3]
    dataset.DiffusionBValue = 1000.5
    found = opened(written(dataset, syntax, undefined=undefined))
    assert found.syntax == syntax
    assert found.text("PatientID") == "Müller"
    assert found.number("Rows") == 512
    assert found.numbers("ImagePositionPatient") == (1.5, -2.5, 1e-3)
    assert found.numbers("DiffusionBValue") == (1000.5,)
    for _ in range(5):
        (found,) = found.items("AnatomicRegionSequence")
    assert found.text("CodeMeaning") == "deep"


def test_a_bomb_is_not_inflated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elements, "LARGEST_INFLATED", 4 << 20)
    dataset = Dataset()
    dataset.PatientID = "P1"
    whole = written(dataset, DeflatedExplicitVRLittleEndian)
    start = whole[: whole.index(b"1.2.840.10008.1.2.1.99") + 22]
    deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    # A header of 100 MiB: private elements of zeros.
    zeros = struct.pack("<HH2sHL", 0x0029, 0x1010, b"OB", 0, 1 << 20) + bytes(1 << 20)
    bomb = b"".join(deflater.compress(zeros) for _ in range(100)) + deflater.flush()
    rest = whole[len(start) :]
    meta = start + rest[: rest.index(b"PYDICOM") if b"PYDICOM" in rest else 0]
    with pytest.raises(Unfit) as caught:
        elements._inflated(io.BytesIO(meta + bomb), len(meta))
    assert caught.value.reason is Reason.TOO_LARGE
    assert len(bomb) < 1 << 20


def test_a_huge_claimed_length_is_not_allocated() -> None:
    dataset = Dataset()
    dataset.PatientID = "P1"
    content = written(dataset) + struct.pack("<HH2sHL", 0x0029, 0x1010, b"OB", 0, 0xFFFFFFF0)
    found = opened(content)
    assert found.missing == 0xFFFFFFF0
    assert found.text("PatientID") == "P1"


def test_sequences_without_end_in_one_another() -> None:
    start = struct.pack("<HH2sHL", 0x0008, 0x2218, b"SQ", 0, 0xFFFFFFFF)
    start += struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF)
    with pytest.raises(Unfit) as caught:
        opened(written(Dataset()) + start * 100_000)
    assert caught.value.reason is Reason.CORRUPT


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_cut_anywhere_or_changed_anywhere(data: st.DataObject) -> None:
    """Never anything but an `Unfit`, whatever is asked for after."""
    dataset = nested(3)
    dataset.PatientID, dataset.Rows, dataset.PixelSpacing = "P1", 5, [1.0, 2.0]
    content = bytearray(written(dataset, undefined=data.draw(st.booleans())))
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    del content[data.draw(st.integers(0, len(content))) :]
    try:
        found = opened(bytes(content))
        found.text("PatientID"), found.number("Rows"), found.number("PixelSpacing")
        for item in found.items("AnatomicRegionSequence"):
            item.items("AnatomicRegionSequence")
    except Unfit:
        pass
