"""One DICOM header: is this file a two-dimensional radiograph, of whom, and is it all there?"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

import pydicom
from pydicom.dataset import FileDataset
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

from client_app.imaging.attributes import attributes
from client_app.imaging.header import Header
from client_app.imaging.pseudonym import normalised
from client_app.imaging.set_aside import Reason, Unfit

_PREAMBLE_BYTES = 128
# Without the preamble a file starts with its first group, 0002 or 0008, in either byte order.
_FIRST_GROUPS = (b"\x02\x00", b"\x00\x02", b"\x08\x00", b"\x00\x08")
# "DR" is in no edition of the standard, and in many archives.
_PROJECTION_MODALITIES = frozenset({"CR", "DX", "DR", "RG", "MG", "IO", "PX"})
_PIXEL_DATA = (0x7FE0, 0x0010)
_UNDEFINED_LENGTH = 0xFFFFFFFF

# Nothing else of the header is even parsed.
_TAGS = [
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyDate",
    "SeriesDate",
    "AcquisitionDate",
    "ContentDate",
    "Modality",
    "Manufacturer",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "PatientAge",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "NumberOfFrames",
    "Rows",
    "Columns",
]


def read_header(path: Path) -> Header:
    """Read the header of a DICOM file, with or without extension and preamble.

    Raises:
        Unfit: not DICOM, not a two-dimensional greyscale radiograph, without pixels or patient.
        Exception: whatever pydicom raises on a file that is broken in ways of its own.
    """
    with path.open("rb") as file:
        _check_starts_like_dicom(file)
        header = pydicom.dcmread(file, force=True, stop_before_pixels=True, specific_tags=_TAGS)
        sop_class, modality = UID(_text(header, "SOPClassUID")), _text(header, "Modality")
        if not sop_class and not modality:
            raise Unfit(Reason.NOT_DICOM, "it names neither a SOP class nor a modality")
        shape = _check_radiograph(header, sop_class, modality)
        _check_pixels_complete(header, file, path.stat().st_size)
    return Header(
        shape=shape,
        patient_id=normalised(_text(header, "PatientID")),
        instance_uid=_text(header, "SOPInstanceUID") or None,
        attributes=attributes(
            sex=_text(header, "PatientSex"),
            age=_text(header, "PatientAge"),
            birth_date=_text(header, "PatientBirthDate"),
            study_date=_study_date(header),
            manufacturer=_text(header, "Manufacturer"),
        ),
    )


def _check_starts_like_dicom(file: BinaryIO) -> None:
    start = file.read(_PREAMBLE_BYTES + 4)
    file.seek(0)
    if start[_PREAMBLE_BYTES:] != b"DICM" and start[:2] not in _FIRST_GROUPS:
        raise Unfit(Reason.NOT_DICOM)


def _check_radiograph(header: FileDataset, sop_class: UID, modality: str) -> tuple[int, int]:
    """(rows, columns) of a single greyscale frame from a projection modality."""
    what = sop_class.name if sop_class.is_valid and not sop_class.is_private else "unknown"
    if "Rows" not in header or "Columns" not in header:
        if modality in _PROJECTION_MODALITIES:
            raise Unfit(Reason.CORRUPT, "its header gives no rows and columns; it may be cut off")
        raise Unfit(Reason.NOT_AN_IMAGE, f"SOP class {what}")
    frames = int(_text(header, "NumberOfFrames") or 1)
    if frames > 1:
        raise Unfit(Reason.SEVERAL_FRAMES, f"{frames} frames, SOP class {what}")
    if modality not in _PROJECTION_MODALITIES:
        raise Unfit(Reason.NOT_A_RADIOGRAPH, f"SOP class {what}")
    samples = int(_text(header, "SamplesPerPixel") or 1)
    greyscale = _text(header, "PhotometricInterpretation") in ("MONOCHROME1", "MONOCHROME2")
    if samples != 1 or not greyscale:
        raise Unfit(Reason.COLOUR, f"{samples} samples a pixel")
    shape = int(header.Rows), int(header.Columns)
    if min(shape) < 1:
        raise Unfit(Reason.NOT_AN_IMAGE, "no rows or no columns")
    return shape


def _check_pixels_complete(header: FileDataset, file: BinaryIO, size: int) -> None:
    """pydicom leaves the file where the pixel data element starts: is it there, as long as it says?

    Compressed pixels say no length and are found out when they are decoded.
    """
    if header.file_meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
        return
    implicit, little = header.original_encoding
    order = "<" if little else ">"
    element = file.read(8 if implicit else 12)
    if len(element) < (8 if implicit else 12):
        raise Unfit(Reason.TRUNCATED, "it ends before the pixel data")
    if struct.unpack(f"{order}HH", element[:4]) != _PIXEL_DATA:
        raise Unfit(Reason.NOT_AN_IMAGE, "it holds no pixel data")
    (length,) = struct.unpack(f"{order}L", element[-4:])
    present = size - file.tell()
    if length != _UNDEFINED_LENGTH and present < length:
        raise Unfit(Reason.TRUNCATED, f"{present:,} of {length:,} bytes of pixel data")


def _study_date(header: FileDataset) -> str:
    dates = ("StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate")
    return next((text for name in dates if (text := _text(header, name))), "")


def _text(header: FileDataset, name: str) -> str:
    value = header.get(name)
    return "" if value is None else str(value).strip(" \0")
